//! The queue of a shared store: batching, deadlines and circuit breaking.
//!
//! ```text
//!   execute(plan) -> queue -> a call with all queued plans -> Backend::execute -> an answer to each caller
//!      |                      sent without waiting for more    |
//!      |<- deadline: Fault::Timeout                            '- the caller is gone: its leases are released
//!      |<- breaker open: Fault::CircuitOpen, at once; a probe runs until the store answers
//! ```
//!
//! Each lane of the store (a part that can fail independently) has its own queue and breaker. Durations are measured by
//! tokio's clock, which tests can pause.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::stream::{FuturesUnordered, StreamExt};
use smallvec::SmallVec;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use super::backend::{Backend, BoxFuture, DynBackend};
use super::breaker::{CircuitBreaker, PROBE_INTERVAL};
use super::metrics::StoreObserver;
use crate::limiter::{LeaseId, Limit};
use crate::plan::{Applied, Check, CounterName, Fault, LeaseAction, LeaseChange, Outcome, Plan, Undo};

/// Settings of the queue of a shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// How long a decision waits for the store.
    pub timeout: Duration,
    /// The maximum number of plans in one call; 1 turns batching off.
    pub max_batch: usize,
    /// The maximum number of calls in flight for each lane. Further plans wait and share the next call.
    pub max_calls: usize,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { timeout: Duration::from_millis(10), max_batch: 64, max_calls: 2 }
    }
}

/// The pause between two attempts to warm a store up.
const WARM_UP_PAUSE: Duration = Duration::from_millis(20);

/// The queue in front of a shared store.
pub struct Queue {
    inner: Arc<QueueInner>,
    /// By lane.
    senders: Vec<mpsc::UnboundedSender<QueuedPlan>>,
}

/// State shared by the callers and the tasks of the lanes.
struct QueueInner {
    name: String,
    backend: Box<dyn DynBackend>,
    settings: QueueSettings,
    /// By lane.
    breakers: Vec<CircuitBreaker>,
    /// How often the store has recovered.
    recoveries: AtomicU32,
    observer: ArcSwapOption<Box<dyn StoreObserver>>,
}

/// A plan waiting for a call.
struct QueuedPlan {
    plan: Plan,
    answer: oneshot::Sender<Result<Applied, Fault>>,
    /// Whether it is executed even if its caller no longer waits.
    unconditional: bool,
    /// Whether its charges are undone if its caller no longer waits.
    prefetch: bool,
}

impl Queue {
    /// Creates the queue of a store behind `backend`. Must be called within a tokio runtime: it spawns a task for each
    /// lane, which runs until the queue is dropped.
    pub fn new(name: &str, backend: impl Backend, settings: QueueSettings) -> Self {
        let breakers = (0..backend.lanes()).map(|_| CircuitBreaker::default()).collect();
        let inner = Arc::new(QueueInner {
            name: name.to_owned(),
            backend: Box::new(backend),
            settings,
            breakers,
            recoveries: AtomicU32::new(0),
            observer: ArcSwapOption::empty(),
        });
        let start_lane = |lane| {
            let (sender, queued) = mpsc::unbounded_channel();
            tokio::spawn(run_lane(inner.clone(), lane, queued));
            sender
        };
        let senders = (0..inner.breakers.len()).map(start_lane).collect();
        Self { inner, senders }
    }

    /// Sets the observer that counts calls and failures.
    pub fn observe(&self, observer: Box<dyn StoreObserver>) {
        self.inner.observer.store(Some(Arc::new(observer)));
    }

    /// The deadline of a decision that begins now.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.inner.settings.timeout
    }

    /// Executes a plan on the store.
    ///
    /// # Errors
    ///
    /// The store fails, or does not answer before `deadline`. The plan may still be executed; concurrency slots that it
    /// takes are then released.
    pub async fn execute(&self, plan: Plan, deadline: Instant) -> Result<Applied, Fault> {
        self.execute_or_prefetch(plan, deadline, false).await
    }

    /// Like [`Queue::execute`], for units charged in advance. They are unused, so they are undone if the answer is late.
    pub(super) async fn prefetch(&self, plan: Plan, deadline: Instant) -> Result<Applied, Fault> {
        self.execute_or_prefetch(plan, deadline, true).await
    }

    async fn execute_or_prefetch(&self, plan: Plan, deadline: Instant, prefetch: bool) -> Result<Applied, Fault> {
        let lane = self.inner.backend.lane(&plan);
        let answer = match self.inner.breakers[lane].circuit_open() {
            true => {
                // Lease changes and undos are sent anyway: the store may have recovered before a probe finds out. The
                // fallback answers the checks, so they are left out.
                let returns = Plan { checks: SmallVec::new(), groups: SmallVec::new(), ..plan };
                if !returns.is_empty() {
                    self.post(returns);
                }
                Err(Fault::CircuitOpen)
            }
            false => self.execute_in_lane(lane, plan, deadline, prefetch).await,
        };
        if let Err(fault) = answer {
            self.inner.report(|observer| observer.failed(fault));
        }
        answer
    }

    async fn execute_in_lane(
        &self,
        lane: usize,
        plan: Plan,
        deadline: Instant,
        prefetch: bool,
    ) -> Result<Applied, Fault> {
        let begun = Instant::now();
        let answer = self.enqueue(lane, plan, prefetch);
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer.unwrap_or(Err(Fault::Unreachable)),
            Err(_) => {
                // If another store used up the deadline, that is no failure of this store.
                if begun.elapsed() >= self.inner.settings.timeout {
                    self.inner.record_failure(lane, Fault::Timeout);
                }
                Err(Fault::Timeout)
            }
        }
    }

    /// Queues a plan without waiting for its answer.
    pub fn post(&self, plan: Plan) {
        drop(self.enqueue(self.inner.backend.lane(&plan), plan, false));
    }

    fn enqueue(&self, lane: usize, plan: Plan, prefetch: bool) -> oneshot::Receiver<Result<Applied, Fault>> {
        let (answer, receiver) = oneshot::channel();
        let unconditional = !plan.undos.is_empty() || !plan.changes.is_empty();
        // If the lane's task has ended, the receiver learns it: its sender is dropped.
        let _ = self.senders[lane].send(QueuedPlan { plan, answer, unconditional, prefetch });
        receiver
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
                Ok(Ok(())) => return Ok(()),
                Ok(Err(text)) => reason = text,
                Err(_) => return Err(reason),
            }
            if Instant::now() + WARM_UP_PAUSE >= deadline {
                return Err(reason);
            }
            tokio::time::sleep(WARM_UP_PAUSE).await;
        }
    }

    /// Whether the circuit breaker of any lane is open.
    pub fn circuit_open(&self) -> bool {
        self.inner.circuit_open()
    }

    /// Passes the observer, if there is one, to `report`.
    pub(super) fn report(&self, report: impl FnOnce(&dyn StoreObserver)) {
        self.inner.report(report);
    }

    /// How often the store has recovered. A change ends the outage that a fallback was started for.
    pub(super) fn recoveries(&self) -> u32 {
        self.inner.recoveries.load(Ordering::Acquire)
    }
}

impl QueueInner {
    fn report(&self, report: impl FnOnce(&dyn StoreObserver)) {
        if let Some(observer) = &*self.observer.load() {
            report(&***observer);
        }
    }

    /// Awaits a probe, whose answer must come within the timeout. The probe is not cancelled: the backend closes a
    /// connection that does not answer only when its own timeout ends.
    async fn probe_in_time(&self, probe: BoxFuture<'_, Result<(), Fault>>) -> Result<(), Fault> {
        let begun = Instant::now();
        let answer = probe.await;
        if begun.elapsed() > self.settings.timeout { answer.and(Err(Fault::Timeout)) } else { answer }
    }

    fn circuit_open(&self) -> bool {
        self.breakers.iter().any(CircuitBreaker::circuit_open)
    }

    fn record_failure(&self, lane: usize, fault: Fault) {
        if self.breakers[lane].record_failure(fault, self.settings.timeout) {
            tracing::warn!(store = self.name, lane, %fault, "circuit breaker opened, store failing: its limiters follow on_store_error until it answers");
        }
    }

    /// Reports the plans with undos.
    fn report_undone(&self, plans: &[Plan], answers: &[Result<Applied, Fault>]) {
        let undo_failed =
            |(plan, answer): (&Plan, &Result<Applied, Fault>)| (!plan.undos.is_empty()).then_some(answer.is_err());
        for failed in plans.iter().zip(answers).filter_map(undo_failed) {
            self.report(|observer| observer.undone(failed));
        }
    }

    /// Updates the breaker from the answers of a call.
    fn record_call(&self, lane: usize, plans: &[Plan], answers: &[Result<Applied, Fault>], took: Duration) {
        // An error that the store itself reports shows that it is up.
        let unanswered = |fault: &Fault| matches!(fault, Fault::Unreachable | Fault::Timeout);
        let faults = || answers.iter().filter_map(|answer| answer.as_ref().err().copied());
        if let Some(fault) = faults().find(unanswered) {
            return self.record_failure(lane, fault);
        }
        let in_time = took <= self.settings.timeout;
        if faults().next().is_some() {
            self.breakers[lane].set_faulty();
        } else if in_time && plans.iter().zip(answers).any(|(plan, answer)| has_written(plan, answer)) {
            self.record_write(lane);
        }
        // A response after the timeout counts as a failure.
        if in_time {
            self.record_answer(lane);
        }
    }

    /// Records that a lane executed a write. The store has recovered once no lane is faulty.
    fn record_write(&self, lane: usize) {
        if self.breakers[lane].record_write() && !self.breakers.iter().any(CircuitBreaker::faulty) {
            self.recoveries.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn record_answer(&self, lane: usize) {
        if self.breakers[lane].record_answer() {
            tracing::info!(store = self.name, lane, "circuit breaker closed, store answers again");
        }
    }
}

/// Makes the calls of one lane until the queue is dropped and all plans are answered.
async fn run_lane(inner: Arc<QueueInner>, lane: usize, mut queued: mpsc::UnboundedReceiver<QueuedPlan>) {
    let mut calls = FuturesUnordered::new();
    let mut batch = Vec::with_capacity(inner.settings.max_batch);
    let mut open = true;
    let prober = probe_until_closed(inner.clone(), lane);
    tokio::pin!(prober);
    while open || !calls.is_empty() {
        tokio::select! {
            biased;
            Some(()) = calls.next(), if !calls.is_empty() => {}
            count = queued.recv_many(&mut batch, inner.settings.max_batch),
                if open && calls.len() < inner.settings.max_calls =>
            {
                open = count > 0;
                batch.retain(|queued: &QueuedPlan| queued.unconditional || !queued.answer.is_closed());
                if !batch.is_empty() {
                    calls.push(execute_batch(inner.clone(), lane, std::mem::take(&mut batch)));
                }
            }
            () = &mut prober => {}
        }
    }
}

/// Executes a batch in one call, and compensates the plans whose callers no longer wait in another.
async fn execute_batch(inner: Arc<QueueInner>, lane: usize, batch: Vec<QueuedPlan>) {
    let queued = batch.into_iter().map(|queued| (queued.plan, (queued.answer, queued.prefetch)));
    let (plans, callers): (Vec<Plan>, Vec<_>) = queued.unzip();
    let begun = Instant::now();
    inner.breakers[lane].begin_call();
    let answers = inner.backend.execute(&plans).await;
    inner.breakers[lane].end_call();
    inner.report(|observer| observer.called(begun.elapsed(), plans.len()));
    inner.report_undone(&plans, &answers);
    inner.record_call(lane, &plans, &answers, begun.elapsed());
    let mut late = Vec::new();
    for ((plan, (caller, prefetch)), answer) in plans.iter().zip(callers).zip(answers) {
        if let Err(Ok(applied)) = caller.send(answer) {
            late.extend(compensating_plan(plan, &applied, prefetch));
        }
    }
    if !late.is_empty() {
        // If this fails as well, the slots become free when their leases expire.
        let answers = inner.backend.execute(&late).await;
        inner.report_undone(&late, &answers);
    }
}

/// Whether a plan certainly wrote to the store. A store that only answers reads has not recovered.
fn has_written(plan: &Plan, answer: &Result<Applied, Fault>) -> bool {
    let admitted = answer.as_ref().is_ok_and(|applied| applied.admitted);
    admitted && plan.checks.iter().any(|check| check.charges.admitted > 0 && !check.shadow)
}

/// The plan that releases the slots, or undoes the prefetched units, of a plan whose caller no longer waits.
fn compensating_plan(plan: &Plan, applied: &Applied, prefetch: bool) -> Option<Plan> {
    if prefetch {
        let undo =
            |(check, answer): (&Check, &Result<Outcome, Fault>)| Undo::of(check, answer.as_ref().ok()?, applied.at);
        let charged = plan.checks.iter().zip(&applied.answers).filter_map(undo);
        return applied.admitted.then(|| Plan { undos: charged.collect(), ..Plan::default() });
    }
    let taken = plan.checks.iter().zip(&applied.answers).filter(|(check, answer)| {
        matches!(check.limit, Limit::Concurrency(_))
            && check.charges.admitted > 0
            && answer.is_ok_and(|outcome| outcome.passes)
    });
    let changes = taken.map(|(check, _)| release_change(check.store, check.counter, plan.lease)).collect();
    let plan = Plan { changes, ..Plan::default() };
    (applied.admitted && !plan.changes.is_empty()).then_some(plan)
}

fn release_change(store: u16, counter: CounterName, lease: LeaseId) -> LeaseChange {
    LeaseChange { counter, store, lease, action: LeaseAction::Release }
}

/// Probes a lane whenever its breaker is open, until it closes. Never returns.
async fn probe_until_closed(inner: Arc<QueueInner>, lane: usize) {
    let breaker = &inner.breakers[lane];
    loop {
        breaker.opened().await;
        while breaker.circuit_open() {
            match inner.probe_in_time(inner.backend.probe_lane(lane)).await {
                // The probe is answered while a call hangs: the counters of the call may be locked.
                Ok(()) if breaker.call_in_flight() => {}
                Ok(()) => {
                    // A cluster node without hash slots gets no writes that could show its recovery.
                    if inner.breakers.len() > 1 {
                        inner.record_write(lane);
                    }
                    inner.record_answer(lane);
                }
                Err(fault) => {
                    tracing::debug!(store = inner.name, lane, %fault, "circuit breaker stays open, store still failing");
                }
            }
            if breaker.circuit_open() {
                tokio::time::sleep(PROBE_INTERVAL).await;
            }
        }
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("name", &self.inner.name).field("breakers", &self.inner.breakers).finish()
    }
}
