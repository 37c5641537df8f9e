//! What a store has acknowledged lately, and a server that takes over may not have.
//!
//! Replication is asynchronous, and a primary that is being replaced still answers. A release that it acknowledged then
//! would leave its slot taken until the lease ends. All of this takes effect once, however often it is sent.

use std::collections::VecDeque;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::owed;
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::plan::Plan;

/// For how long before a takeover it is sent again: longer than sentinels need to agree, and replicas to catch up.
const KEPT: Duration = Duration::from_secs(10);

/// The most plans that are kept. Beyond it the oldest go.
const MAX_KEPT: usize = 65_536;

/// The plans that a store has acknowledged, oldest first, as far as they are owed.
#[derive(Debug, Default)]
pub(super) struct Acknowledged(Mutex<VecDeque<AcknowledgedPlan>>);

/// A plan that was acknowledged.
#[derive(Debug)]
pub(super) struct AcknowledgedPlan {
    pub(super) plan: Plan,
    /// When it was decided.
    pub(super) made: Instant,
    pub(super) made_at: Timestamp,
}

impl Acknowledged {
    /// Keeps what of a plan is owed, if sending it twice does no harm.
    pub(super) fn record(&self, plan: &Plan) {
        if !owed::is_owed(plan) {
            return;
        }
        let mut plan = plan.clone();
        plan.undos.clear();
        owed::reduce(&mut plan);
        if !plan.is_empty() && owed::is_idempotent(&plan) {
            self.keep(AcknowledgedPlan { plan, made: Instant::now(), made_at: SystemClock::new().now() });
        }
    }

    /// Keeps a plan until it is too old.
    pub(super) fn keep(&self, acknowledged: AcknowledgedPlan) {
        let now = Instant::now();
        let mut kept = self.0.lock();
        while kept.front().is_some_and(|oldest| now - oldest.made > KEPT) || kept.len() >= MAX_KEPT {
            kept.pop_front();
        }
        if now - acknowledged.made <= KEPT {
            kept.push_back(acknowledged);
        }
    }

    /// Takes all that is kept.
    pub(super) fn take(&self) -> VecDeque<AcknowledgedPlan> {
        std::mem::take(&mut *self.0.lock())
    }
}
