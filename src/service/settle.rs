//! Settling a lease.

use super::current::Service;
use crate::ask::AskError;
use crate::lease::{self, LeaseCommand};
use crate::limiter::LeaseStatus;

/// What was used of what a lease holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Units {
    /// What was charged.
    Charged,
    /// This much, for each hold alike.
    Each(u64),
    /// This much by the name of each limiter. One that is not named keeps what it charged.
    ByLimiter(Vec<(String, u64)>),
}

impl Service {
    /// Ends a lease with what was used.
    ///
    /// # Errors
    ///
    /// The units name a limiter of which the lease holds nothing.
    pub async fn settle(&self, lease: &str, units: Units) -> Result<LeaseStatus, AskError> {
        let named: Vec<(&str, u64)>;
        let units = match &units {
            Units::Charged => lease::Units::Charged,
            Units::Each(units) => lease::Units::Each(*units),
            Units::ByLimiter(units) => {
                named = units.iter().map(|(limiter, units)| (limiter.as_str(), *units)).collect();
                lease::Units::ByLimiter(&named)
            }
        };
        let settled = self.change_lease(lease, &LeaseCommand::Settle(units)).await;
        settled.map_err(|unknown| AskError::invalid(format!("units.{}", unknown.0), unknown.to_string()))
    }
}
