//! Settling a lease.

use super::current::Service;
use crate::ask::AskError;
use crate::lease::{LeaseCommand, Units};
use crate::limiter::LeaseStatus;

impl Service {
    /// Ends a lease with what was used of it.
    ///
    /// # Errors
    ///
    /// The units name a limiter of which the lease holds nothing.
    pub async fn settle(&self, lease: &str, units: Units) -> Result<LeaseStatus, AskError> {
        let settled = self.change_lease(lease, &LeaseCommand::Settle(units)).await;
        settled.map_err(|unknown| AskError::invalid(format!("units.{}", unknown.0), unknown.to_string()))
    }
}
