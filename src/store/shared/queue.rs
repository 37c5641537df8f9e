//! The queue of a shared store: batching, deadlines and circuit breaking.
//!
//! ```text
//!   execute(plan) -> queue -> a call with all queued plans -> Backend::execute -> an answer to each caller
//!      |                      sent without waiting for more    |
//!      |<- deadline: Fault::Timeout                            |- the caller is gone: its leases are released
//!      |<- breaker open: Fault::CircuitOpen, at once;          |- the connection broke: sent again
//!          a probe runs until the store answers                '- it failed: what it owes gets into the backlog
//! ```
//!
//! A caller that decides without the store meanwhile still learns what became of its plan (settle.rs).
//!
//! A batch waits for its connection, and its callers no longer than their deadlines. A decision that was in flight when
//! the connection broke is sent again. It can then be charged twice, which refuses early and admits nothing; refunds and
//! recorded uses have an id that makes them take effect once, and undos are not sent again.
//!
//! Each lane of the store (a part that can fail independently) has its own queue and breaker. Durations are measured by
//! tokio's clock, which tests can pause.

use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::backend::{Backend, HearText};
use super::backlog::Backlog;
use super::hand_over::hand_over;
use super::lane::{CallerKind, Lanes, QueueInner, QueueSettings};
use super::metrics::StoreObserver;
use super::settle::{PolicyDecision, Unanswered};
use crate::plan::{Applied, CounterName, Fault, Plan};

/// The pause between two attempts to warm a store up.
const WARM_UP_PAUSE: Duration = Duration::from_millis(20);

/// The queue in front of a shared store.
pub struct Queue {
    inner: Arc<QueueInner>,
    lanes: Lanes,
}

impl Queue {
    /// Creates the queue of a store behind `backend`. Must be called within a tokio runtime: it spawns a task for each
    /// lane, which runs until the queue is dropped.
    pub fn new(name: &str, backend: impl Backend, settings: QueueSettings) -> Self {
        let inner = Arc::new(QueueInner::new(name, Box::new(backend), settings));
        let lanes = Lanes::start(&inner);
        tokio::spawn(hand_over(inner.clone()));
        Self { inner, lanes }
    }

    /// Sets the observer that counts calls and failures.
    pub fn observe(&self, observer: Box<dyn StoreObserver>) {
        self.inner.observer.store(Some(Arc::new(observer)));
    }

    /// The deadline of a decision that begins now.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.inner.settings.timeout
    }

    /// Sends a text to all instances after a while, without waiting for it.
    pub(super) fn publish(&self, message: String, after: Duration) {
        let inner = self.inner.clone();
        tokio::spawn(async move {
            tokio::time::sleep(after).await;
            inner.backend.publish(message).await;
        });
    }

    /// Passes on the texts of all instances, in a task of its own.
    pub(super) fn listen(&self, hear: HearText) -> JoinHandle<()> {
        let inner = self.inner.clone();
        tokio::spawn(async move { inner.backend.listen(hear).await })
    }

    /// Executes a plan on the store.
    ///
    /// # Errors
    ///
    /// The store fails, or does not answer before `deadline`. The plan may still be executed; concurrency slots that it
    /// takes are then released. Its lease changes and undos, and of its checks the refunds and recorded uses, are sent
    /// again until the store answers, as far as they are idempotent.
    pub async fn execute(&self, plan: Plan, deadline: Instant) -> Result<Applied, Fault> {
        self.ask(plan, deadline).await.map_err(|unanswered| unanswered.fault)
    }

    /// Like [`Queue::execute`], for units charged in advance. They are unused, so they are undone if the answer is late.
    pub(super) async fn prefetch(&self, plan: Plan, deadline: Instant) -> Result<Applied, Fault> {
        self.send(CallerKind::Prefetch, plan, deadline).await.map_err(|unanswered| unanswered.fault)
    }

    /// Like [`Queue::execute`], for a caller that decides without the store if it does not answer, and settles that.
    pub(super) async fn ask(&self, plan: Plan, deadline: Instant) -> Result<Applied, Unanswered> {
        self.send(CallerKind::Decision, plan, deadline).await
    }

    async fn send(&self, kind: CallerKind, plan: Plan, deadline: Instant) -> Result<Applied, Unanswered> {
        let lane = self.inner.backend.lane(&plan);
        let answer = match self.inner.breakers[lane].circuit_open() {
            true => {
                self.inner.owe(plan, false);
                Err(Fault::CircuitOpen.into())
            }
            false => self.send_in_lane(lane, kind, plan, deadline).await,
        };
        if let Err(Unanswered { fault, .. }) = answer {
            self.inner.report(|observer| observer.failed(fault));
        }
        answer
    }

    async fn send_in_lane(
        &self,
        lane: usize,
        kind: CallerKind,
        plan: Plan,
        deadline: Instant,
    ) -> Result<Applied, Unanswered> {
        let begun = Instant::now();
        let mut answer = self.lanes.send(&self.inner, lane, plan, kind, Some(deadline));
        match tokio::time::timeout_at(deadline, &mut answer).await {
            Ok(answer) => Ok(answer.unwrap_or(Err(Fault::Unreachable))?),
            Err(_) => {
                // If another store used up the deadline, that is no failure of this store.
                if begun.elapsed() >= self.inner.settings.timeout {
                    self.inner.record_failure(lane, Fault::Timeout);
                }
                Err(Unanswered { fault: Fault::Timeout, late: Some(answer) })
            }
        }
    }

    /// Settles what was decided without the store: at once, or when the late answer is there.
    pub(super) fn settle(&self, decision: PolicyDecision, unanswered: Unanswered) {
        self.inner.clone().settle(decision, unanswered);
    }

    /// Queues a plan without waiting for its answer.
    pub fn post(&self, plan: Plan) {
        drop(self.lanes.send(&self.inner, self.inner.backend.lane(&plan), plan, CallerKind::Post, None));
    }

    /// What this process owes the store.
    pub(super) fn backlog(&self) -> Arc<Backlog> {
        self.inner.backlog()
    }

    /// Goes on with what the queue of a store that this one replaces owes.
    pub(super) fn take_over(&self, old: &Self) {
        self.inner.take_over(&old.inner);
    }

    /// The number of plans, counters and slots that wait to be handed over.
    pub fn owed(&self) -> usize {
        self.inner.backlog().waiting()
    }

    /// Waits until everything that is owed has reached the store, or until the deadline.
    pub async fn hand_over(&self, deadline: Instant) {
        let backlog = self.inner.backlog();
        backlog.recovered();
        if tokio::time::timeout_at(deadline, backlog.emptied()).await.is_err() {
            self.inner.drop_backlog();
        }
    }

    /// Removes a counter and returns whether it held anything.
    ///
    /// # Errors
    ///
    /// The store did not answer.
    pub async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        // Operators can wait longer than gateways.
        let timeout = self.inner.settings.timeout.max(Duration::from_secs(1));
        tokio::time::timeout(timeout, self.inner.backend.forget(counter)).await.unwrap_or(Err(Fault::Timeout))
    }

    /// Checks that the store answers and accepts writes.
    ///
    /// # Errors
    ///
    /// The reason why it does not.
    pub async fn probe(&self) -> Result<(), Fault> {
        self.inner.probe_in_time(self.inner.backend.probe()).await
    }

    /// Waits until the store is connected and ready for calls.
    ///
    /// # Errors
    ///
    /// Why it is not before `deadline`, in the store's own words.
    pub async fn connected(&self, deadline: Instant) -> Result<(), String> {
        let mut reason = "no answer".to_owned();
        loop {
            match tokio::time::timeout_at(deadline, self.inner.backend.warm_up()).await {
                Ok(Ok(())) => {
                    self.inner.record_sign_of_life();
                    return Ok(());
                }
                Ok(Err(text)) => reason = text,
                Err(_) => return Err(reason),
            }
            if Instant::now() + WARM_UP_PAUSE >= deadline {
                return Err(reason);
            }
            tokio::time::sleep(WARM_UP_PAUSE).await;
        }
    }

    /// How long the store has not answered. `None` if it never has.
    pub fn silent_for(&self) -> Option<Duration> {
        self.inner.answered.lock().map(|answered| answered.elapsed())
    }

    /// Whether the circuit breaker of any lane is open.
    pub fn circuit_open(&self) -> bool {
        self.inner.circuit_open()
    }

    /// Passes the observer, if there is one, to `report`.
    pub(super) fn report(&self, report: impl FnOnce(&dyn StoreObserver)) {
        self.inner.report(report);
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.inner.close();
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("name", &self.inner.name).field("breakers", &self.inner.breakers).finish()
    }
}
