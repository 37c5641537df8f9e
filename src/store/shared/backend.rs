//! What a store outside this process has to do: carry out plans, one batch a round trip.

use std::future::Future;

use crate::clock::Timestamp;
use crate::plan::{Applied, CounterName, Fault, Plan};

/// A store outside this process, as it is asked.
///
/// What a plan means is [`crate::plan::advance`]. A plan that comes here has checks, changes and undos of this store
/// only.
pub trait Backend: Send + Sync + 'static {
    /// Executes plans in order, each atomically and each by itself: one that fails leaves the others. One answer for
    /// each.
    ///
    /// `now` is given by tests. Without it the store's own clock decides, at one moment for each call. A call that may
    /// have been executed is never repeated.
    fn execute(
        &self,
        plans: &[Plan],
        now: Option<Timestamp>,
    ) -> impl Future<Output = Vec<Result<Applied, Fault>>> + Send;

    /// Forgets what a counter holds. Says whether it held anything.
    ///
    /// # Errors
    ///
    /// The store cannot be asked; the counter is as it was, or forgotten.
    fn forget(&self, counter: CounterName) -> impl Future<Output = Result<bool, Fault>> + Send;

    /// Whether it answers and can be written to.
    ///
    /// # Errors
    ///
    /// Why it cannot.
    fn probe(&self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// How many parts it has that can be away by themselves: the nodes of a cluster. Each is asked by itself, and left
    /// alone by itself.
    fn lanes(&self) -> usize {
        1
    }

    /// The part that is to execute a plan, as far as it is known.
    fn lane(&self, _plan: &Plan) -> usize {
        0
    }

    /// Whether a part answers and can be written to.
    ///
    /// # Errors
    ///
    /// Why it cannot.
    fn probe_lane(&self, _lane: usize) -> impl Future<Output = Result<(), Fault>> + Send {
        self.probe()
    }
}
