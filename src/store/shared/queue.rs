//! The queue of a shared store: batching, deadlines and the circuit breaker.
//!
//! ```text
//!   ask(plan) -> queue -> a call with all waiting plans -> Backend::execute -> each caller its answer
//!      |                    never waits for more           |
//!      |<- deadline: Fault::Timeout                        '- nobody waits any more: leases are released
//!      |<- circuit_open: Fault::CircuitOpen, at once; a probe runs until the store answers
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
use super::breaker::{Breaker, PROBE_INTERVAL};
use super::metrics::StoreObserver;
use crate::clock::Timestamp;
use crate::limiter::{LeaseId, Limit};
use crate::plan::{Applied, Check, CounterName, Fault, LeaseAction, LeaseChange, Plan, Undo};

/// Settings of the queue of a shared store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// How long a decision waits for the store.
    pub deadline: Duration,
    /// The most plans in one call; 1 turns batching off.
    pub batch: usize,
    /// The most calls in flight. Plans that arrive meanwhile wait and share the next call.
    pub calls: usize,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { deadline: Duration::from_millis(10), batch: 64, calls: 2 }
    }
}

/// The queue in front of a shared store.
pub struct Queue {
    inner: Arc<Inner>,
    /// One for each lane.
    senders: Vec<mpsc::UnboundedSender<Pending>>,
}

/// State shared by the callers and the tasks that make the calls.
struct Inner {
    name: String,
    backend: Box<dyn DynBackend>,
    settings: QueueSettings,
    /// One for each lane.
    breakers: Vec<Breaker>,
    /// How often the store has recovered.
    recoveries: AtomicU32,
    observer: ArcSwapOption<Box<dyn StoreObserver>>,
}

/// A plan waiting for its call.
struct Pending {
    plan: Plan,
    now: Option<Timestamp>,
    answer: oneshot::Sender<Result<Applied, Fault>>,
    /// Executed even if its caller no longer waits.
    unconditional: bool,
    /// Whether its charges are returned if its caller no longer waits.
    prefetch: bool,
}

impl Queue {
    /// Creates the queue of a store behind `backend`. Must be called within a tokio runtime: it spawns a task for each
    /// lane, which runs until the queue is dropped.
    pub fn new(name: &str, backend: impl Backend, settings: QueueSettings) -> Self {
        let breakers = (0..backend.lanes()).map(|_| Breaker::default()).collect();
        let inner = Arc::new(Inner {
            name: name.to_owned(),
            backend: Box::new(backend),
            settings,
            breakers,
            recoveries: AtomicU32::new(0),
            observer: ArcSwapOption::empty(),
        });
        let queue = |lane| {
            let (queue, pending) = mpsc::unbounded_channel();
            tokio::spawn(run(inner.clone(), lane, pending));
            queue
        };
        let senders = (0..inner.breakers.len()).map(queue).collect();
        Self { inner, senders }
    }

    /// Sets the observer that counts calls and failures.
    pub fn observe(&self, observer: Box<dyn StoreObserver>) {
        observer.circuit(self.circuit_open());
        self.inner.observer.store(Some(Arc::new(observer)));
    }

    /// The deadline of a decision that begins now.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.inner.settings.deadline
    }

    /// Executes a plan on the store. Tests pass `now`; without it the store's own clock decides.
    ///
    /// # Errors
    ///
    /// The store fails, or does not answer before `deadline`. The plan may still be executed; a concurrency slot taken
    /// then is released.
    pub async fn ask(&self, plan: Plan, now: Option<Timestamp>, deadline: Instant) -> Result<Applied, Fault> {
        self.ask_for(plan, now, deadline, false).await
    }

    /// Like [`Queue::ask`], for units charged in advance: they are unused, so they are returned if the answer is late.
    pub(super) async fn prefetch(
        &self,
        plan: Plan,
        now: Option<Timestamp>,
        deadline: Instant,
    ) -> Result<Applied, Fault> {
        self.ask_for(plan, now, deadline, true).await
    }

    async fn ask_for(
        &self,
        plan: Plan,
        now: Option<Timestamp>,
        deadline: Instant,
        prefetch: bool,
    ) -> Result<Applied, Fault> {
        let lane = self.inner.backend.lane(&plan);
        let answer = match self.inner.breakers[lane].circuit_open() {
            true => {
                // Lease changes and undos are worth a try: the store may have recovered before a probe finds out. The
                // checks are answered by the fallback, so they are left out.
                let returns = Plan { checks: SmallVec::new(), groups: SmallVec::new(), ..plan };
                if !returns.is_empty() {
                    self.post(returns, now);
                }
                Err(Fault::CircuitOpen)
            }
            false => self.wait(lane, plan, now, deadline, prefetch).await,
        };
        if let Err(fault) = answer {
            self.inner.report(|observer| observer.failed(fault));
        }
        answer
    }

    async fn wait(
        &self,
        lane: usize,
        plan: Plan,
        now: Option<Timestamp>,
        deadline: Instant,
        prefetch: bool,
    ) -> Result<Applied, Fault> {
        let begun = Instant::now();
        let answer = self.send(lane, plan, now, prefetch);
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer.unwrap_or(Err(Fault::Unreachable)),
            Err(_) => {
                // A decision that spent its time at another store is no failure of this one.
                if begun.elapsed() >= self.inner.settings.deadline {
                    self.inner.failed(lane, Fault::Timeout);
                }
                Err(Fault::Timeout)
            }
        }
    }

    /// Queues a plan without waiting for its answer.
    pub fn post(&self, plan: Plan, now: Option<Timestamp>) {
        drop(self.send(self.inner.backend.lane(&plan), plan, now, false));
    }

    fn send(
        &self,
        lane: usize,
        plan: Plan,
        now: Option<Timestamp>,
        prefetch: bool,
    ) -> oneshot::Receiver<Result<Applied, Fault>> {
        let (answer, answered) = oneshot::channel();
        let unconditional = !plan.undos.is_empty() || !plan.changes.is_empty();
        // If the task is gone, the dropped answer sender reports it.
        let _ = self.senders[lane].send(Pending { plan, now, answer, unconditional, prefetch });
        answered
    }

    /// Removes a counter and returns whether it held anything.
    ///
    /// # Errors
    ///
    /// The store did not answer.
    pub async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        // An operator waits longer than a gateway.
        let timeout = self.inner.settings.deadline.max(Duration::from_secs(1));
        tokio::time::timeout(timeout, self.inner.backend.forget(counter)).await.unwrap_or(Err(Fault::Timeout))
    }

    /// Checks that the store answers and accepts writes.
    ///
    /// # Errors
    ///
    /// Why it does not.
    pub async fn probe(&self) -> Result<(), Fault> {
        self.inner.probe_in_time(self.inner.backend.probe()).await
    }

    /// Whether the circuit breaker of any lane is open.
    pub fn circuit_open(&self) -> bool {
        self.inner.circuit_open()
    }

    /// Passes the observer, if there is one, to `report`.
    pub(super) fn report(&self, report: impl FnOnce(&dyn StoreObserver)) {
        self.inner.report(report);
    }

    /// How often the store has recovered. Counters of a fallback are discarded when this changes.
    pub(super) fn recoveries(&self) -> u32 {
        self.inner.recoveries.load(Ordering::Acquire)
    }
}

impl Inner {
    fn report(&self, report: impl FnOnce(&dyn StoreObserver)) {
        if let Some(observer) = &*self.observer.load() {
            report(&***observer);
        }
    }

    /// Awaits a probe. It is not cut short: a connection that does not answer is closed only when the backend's own
    /// timeout ends.
    async fn probe_in_time(&self, probe: BoxFuture<'_, Result<(), Fault>>) -> Result<(), Fault> {
        let begun = Instant::now();
        let answer = probe.await;
        // A store slower than the deadline is of no use.
        if begun.elapsed() > self.settings.deadline { answer.and(Err(Fault::Timeout)) } else { answer }
    }

    fn circuit_open(&self) -> bool {
        self.breakers.iter().any(Breaker::circuit_open)
    }

    fn failed(&self, lane: usize, fault: Fault) {
        if self.breakers[lane].record_failure(fault, self.settings.deadline) {
            tracing::warn!(store = self.name, lane, %fault, "store failing, circuit breaker opened: its limiters follow on_store_error until it answers");
            self.report(|observer| observer.circuit(true));
        }
    }

    /// Reports the plans that take charges back.
    fn report_undone(&self, plans: &[Plan], answers: &[Result<Applied, Fault>]) {
        let undoes =
            |(plan, answer): (&Plan, &Result<Applied, Fault>)| (!plan.undos.is_empty()).then_some(answer.is_err());
        for failed in plans.iter().zip(answers).filter_map(undoes) {
            self.report(|observer| observer.undone(failed));
        }
    }

    /// Updates the breaker from the answers of a call.
    fn learn(&self, lane: usize, plans: &[Plan], answers: &[Result<Applied, Fault>], took: Duration) {
        // An error that the store itself reports shows that it is up.
        let away = |fault: &Fault| matches!(fault, Fault::Unreachable | Fault::Timeout);
        let faults = || answers.iter().filter_map(|answer| answer.as_ref().err().copied());
        if let Some(fault) = faults().find(away) {
            return self.failed(lane, fault);
        }
        let in_time = took <= self.settings.deadline;
        if faults().next().is_some() {
            self.breakers[lane].set_faulty();
        } else if in_time && plans.iter().zip(answers).any(|(plan, answer)| writes(plan, answer)) {
            self.record_write(lane);
        }
        // A response after the deadline counts as a failure.
        if in_time {
            self.record_answer(lane);
        }
    }

    /// Records that a lane executed a write. The store has recovered once no lane is faulty.
    fn record_write(&self, lane: usize) {
        if self.breakers[lane].record_write() && !self.breakers.iter().any(Breaker::faulty) {
            self.recoveries.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn record_answer(&self, lane: usize) {
        if self.breakers[lane].record_answer() {
            tracing::info!(store = self.name, lane, "store answers again, circuit breaker closed");
            self.report(|observer| observer.circuit(self.circuit_open()));
        }
    }
}

/// Makes the calls of one lane until the queue is dropped and all plans are answered.
async fn run(inner: Arc<Inner>, lane: usize, mut pending: mpsc::UnboundedReceiver<Pending>) {
    let mut calls = FuturesUnordered::new();
    let mut batch = Vec::with_capacity(inner.settings.batch);
    let mut open = true;
    let prober = probe_until_closed(inner.clone(), lane);
    tokio::pin!(prober);
    while open || !calls.is_empty() {
        tokio::select! {
            biased;
            Some(()) = calls.next(), if !calls.is_empty() => {}
            count = pending.recv_many(&mut batch, inner.settings.batch),
                if open && calls.len() < inner.settings.calls =>
            {
                open = count > 0;
                batch.retain(|pending: &Pending| pending.unconditional || !pending.answer.is_closed());
                if !batch.is_empty() {
                    calls.push(call(inner.clone(), lane, std::mem::take(&mut batch)));
                }
            }
            () = &mut prober => {}
        }
    }
}

/// Executes a batch: one call, or several in tests that inject different times.
async fn call(inner: Arc<Inner>, lane: usize, mut batch: Vec<Pending>) {
    while let Some(first) = batch.first() {
        // Plans with different injected times go into different calls.
        let now = first.now;
        let same = batch.iter().position(|pending| pending.now != now).unwrap_or(batch.len());
        let rest = batch.split_off(same);
        let pending = batch.into_iter().map(|pending| (pending.plan, (pending.answer, pending.prefetch)));
        let (plans, waiting): (Vec<Plan>, Vec<_>) = pending.unzip();
        let begun = Instant::now();
        inner.breakers[lane].begin_call();
        let answers = inner.backend.execute(&plans, now).await;
        inner.breakers[lane].end_call();
        inner.report(|observer| observer.called(begun.elapsed(), plans.len()));
        inner.report_undone(&plans, &answers);
        inner.learn(lane, &plans, &answers, begun.elapsed());
        let mut late = Vec::new();
        for ((plan, (waiting, prefetch)), answer) in plans.iter().zip(waiting).zip(answers) {
            if let Err(Ok(applied)) = waiting.send(answer) {
                late.extend(compensate(plan, &applied, prefetch));
            }
        }
        if !late.is_empty() {
            // If this fails as well, the slots are freed when their leases expire.
            let answers = inner.backend.execute(&late, now).await;
            inner.report_undone(&late, &answers);
        }
        batch = rest;
    }
}

/// Whether a plan certainly wrote to the store. A store that only answers reads has not recovered.
fn writes(plan: &Plan, answer: &Result<Applied, Fault>) -> bool {
    let admitted = answer.as_ref().is_ok_and(|applied| applied.admitted);
    admitted && plan.checks.iter().any(|check| check.charges.admitted > 0 && !check.shadow)
}

/// The plan that releases the slots, or returns the prefetched units, of a plan whose caller no longer waits.
fn compensate(plan: &Plan, applied: &Applied, prefetch: bool) -> Option<Plan> {
    if prefetch {
        let charged = plan.checks.iter().zip(&applied.answers).filter_map(|(check, answer)| {
            let reset = answer.as_ref().ok()?.reset;
            let &Check { counter, store, limit, charges, .. } = check;
            Some(Undo { counter, store, limit, units: charges.admitted, at: applied.at, reset })
        });
        return applied.admitted.then(|| Plan { undos: charged.collect(), ..Plan::default() });
    }
    let taken = plan.checks.iter().zip(&applied.answers).filter(|(check, answer)| {
        matches!(check.limit, Limit::Concurrency(_))
            && check.charges.admitted > 0
            && answer.is_ok_and(|outcome| outcome.passes)
    });
    let changes = taken.map(|(check, _)| release(check.store, check.counter, plan.lease)).collect();
    let plan = Plan { changes, ..Plan::default() };
    (applied.admitted && !plan.changes.is_empty()).then_some(plan)
}

fn release(store: u16, counter: CounterName, lease: LeaseId) -> LeaseChange {
    LeaseChange { counter, store, lease, action: LeaseAction::Release }
}

/// Waits for the breaker of a lane to open, then probes the lane until the breaker closes; forever.
async fn probe_until_closed(inner: Arc<Inner>, lane: usize) {
    let breaker = &inner.breakers[lane];
    loop {
        breaker.opened().await;
        while breaker.circuit_open() {
            match inner.probe_in_time(inner.backend.probe_lane(lane)).await {
                // The store answers the probe while a call hangs: its counters may be blocked.
                Ok(()) if breaker.call_in_flight() => {}
                Ok(()) => {
                    // A node that lost its hash slots to another gets no more writes that could show its recovery.
                    if inner.breakers.len() > 1 {
                        inner.record_write(lane);
                    }
                    inner.record_answer(lane);
                }
                Err(fault) => {
                    tracing::debug!(store = inner.name, lane, %fault, "store still failing, circuit breaker stays open")
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
