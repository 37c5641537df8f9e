//! The interface to a store outside this process, which executes a batch of plans in one round trip.

use std::pin::Pin;
use std::sync::Arc;

use tokio::sync::watch;

use crate::plan::{Applied, CounterName, Fault, Plan};

/// A store outside this process.
///
/// The meaning of a plan is [`crate::plan::advance`]. All checks, changes and undos of a plan passed here are of this
/// store.
pub trait Backend: Send + Sync + 'static {
    /// Executes plans in order and returns one answer for each. Each plan is atomic, and a plan that fails does not
    /// affect the others.
    ///
    /// The store's own clock decides, at one moment for each call. A call that may have been executed is not retried
    /// here; it fails with [`Fault::ConnectionLost`] or [`Fault::Timeout`].
    fn execute(&self, plans: &[Plan]) -> impl Future<Output = Vec<Result<Applied, Fault>>> + Send;

    /// Waits while a lane is being connected to, and returns once it is connected.
    ///
    /// # Errors
    ///
    /// Why the last attempt failed. It returns at once then: the next attempt may take long.
    fn linked(&self, _lane: usize) -> impl Future<Output = Result<(), Fault>> + Send {
        std::future::ready(Ok(()))
    }

    /// Waits until a lane is connected, whatever fails before.
    fn connected(&self, _lane: usize) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Changes whenever a server has taken over the counters of another, which may have acknowledged more than it passed
    /// on. `None` where that does not happen.
    fn takeovers(&self) -> Option<watch::Receiver<()>> {
        None
    }

    /// Removes a counter and returns whether it held anything.
    ///
    /// # Errors
    ///
    /// The store did not answer. The counter may have been removed or not.
    fn forget(&self, counter: CounterName) -> impl Future<Output = Result<bool, Fault>> + Send;

    /// Checks that the store answers and accepts writes.
    ///
    /// # Errors
    ///
    /// The reason why it does not.
    fn probe(&self) -> impl Future<Output = Result<(), Fault>> + Send;

    /// Sends a text to all instances that listen, this one included, if the store can do that. Nothing depends on it.
    fn publish(&self, _message: String) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Passes on the texts of all instances, over a connection of its own, until it is dropped. Returns where the store
    /// cannot do that.
    fn listen(&self, _hear: HearText) -> impl Future<Output = ()> + Send {
        std::future::ready(())
    }

    /// Opens what calls need, such as connections and statements, so that the first calls do not wait for them.
    ///
    /// # Errors
    ///
    /// What it waits for, or why the last attempt failed, in the store's own words. It may succeed when it is called
    /// again.
    fn warm_up(&self) -> impl Future<Output = Result<(), String>> + Send {
        async { self.probe().await.map_err(|fault| fault.to_string()) }
    }

    /// The number of lanes: parts that can fail independently, such as the nodes of a cluster. Each has its own queue
    /// and circuit breaker.
    fn lanes(&self) -> usize {
        1
    }

    /// The lane that executes a plan, as far as known.
    fn lane(&self, _plan: &Plan) -> usize {
        0
    }

    /// Checks that a lane answers and accepts writes.
    ///
    /// # Errors
    ///
    /// The reason why it does not.
    fn probe_lane(&self, _lane: usize) -> impl Future<Output = Result<(), Fault>> + Send {
        self.probe()
    }
}

/// Takes a text that an instance sent through the store.
pub type HearText = Arc<dyn Fn(&str) + Send + Sync>;

/// A boxed future: one allocation for each call, which carries a whole batch.
pub(super) type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// [`Backend`] as a trait object.
pub(super) trait DynBackend: Send + Sync {
    fn execute<'a>(&'a self, plans: &'a [Plan]) -> BoxFuture<'a, Vec<Result<Applied, Fault>>>;
    fn linked(&self, lane: usize) -> BoxFuture<'_, Result<(), Fault>>;
    fn connected(&self, lane: usize) -> BoxFuture<'_, ()>;
    fn takeovers(&self) -> Option<watch::Receiver<()>>;
    fn forget(&self, counter: CounterName) -> BoxFuture<'_, Result<bool, Fault>>;
    fn probe(&self) -> BoxFuture<'_, Result<(), Fault>>;
    fn publish(&self, message: String) -> BoxFuture<'_, ()>;
    fn listen(&self, hear: HearText) -> BoxFuture<'_, ()>;
    fn warm_up(&self) -> BoxFuture<'_, Result<(), String>>;
    fn lanes(&self) -> usize;
    fn lane(&self, plan: &Plan) -> usize;
    fn probe_lane(&self, lane: usize) -> BoxFuture<'_, Result<(), Fault>>;
}

impl<B: Backend> DynBackend for B {
    fn execute<'a>(&'a self, plans: &'a [Plan]) -> BoxFuture<'a, Vec<Result<Applied, Fault>>> {
        Box::pin(Backend::execute(self, plans))
    }

    fn linked(&self, lane: usize) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(Backend::linked(self, lane))
    }

    fn connected(&self, lane: usize) -> BoxFuture<'_, ()> {
        Box::pin(Backend::connected(self, lane))
    }

    fn takeovers(&self) -> Option<watch::Receiver<()>> {
        Backend::takeovers(self)
    }

    fn forget(&self, counter: CounterName) -> BoxFuture<'_, Result<bool, Fault>> {
        Box::pin(Backend::forget(self, counter))
    }

    fn probe(&self) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(Backend::probe(self))
    }

    fn publish(&self, message: String) -> BoxFuture<'_, ()> {
        Box::pin(Backend::publish(self, message))
    }

    fn listen(&self, hear: HearText) -> BoxFuture<'_, ()> {
        Box::pin(Backend::listen(self, hear))
    }

    fn warm_up(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(Backend::warm_up(self))
    }

    fn lanes(&self) -> usize {
        Backend::lanes(self)
    }

    fn lane(&self, plan: &Plan) -> usize {
        Backend::lane(self, plan)
    }

    fn probe_lane(&self, lane: usize) -> BoxFuture<'_, Result<(), Fault>> {
        Box::pin(Backend::probe_lane(self, lane))
    }
}
