//! A store outside this process, as requests ask it: within a deadline, in batches, and not at all while it is away.
//!
//! ```text
//!   ask(plan) -> queue -> a call with all that waits -> Backend::execute -> each its answer
//!      |                    never waits for more           |
//!      |<- deadline: Fault::Timeout                        '- nobody waits any more: leases go back
//!      |<- circuit_open: Fault::CircuitOpen, at once; a probe looks for its return
//! ```
//!
//! All of this is so for each part of a store that can be away by itself. How long things take is told by tokio's clock,
//! which tests can hold.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::stream::{FuturesUnordered, StreamExt};
use metrics::{Counter, Gauge, Histogram};
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::backend::Backend;
use crate::clock::Timestamp;
use crate::limiter::{LeaseId, Limit};
use crate::plan::{Applied, Check, CounterName, Fault, LeaseAction, LeaseChange, Plan, Undo};

/// How many failures in a row it takes to leave a store alone, for longer than a deadline. One late answer says nothing,
/// however many waited for it.
const FAILURES: u32 = 10;

/// How often a store that is left alone is asked whether it is back.
const PROBE: Duration = Duration::from_millis(100);

/// How a store outside this process is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSettings {
    /// How long a decision waits.
    pub deadline: Duration,
    /// The most plans in one call; 1 sends each by itself.
    pub batch: usize,
    /// The most calls under way. What comes meanwhile waits and shares the next one.
    pub calls: usize,
}

impl Default for QueueSettings {
    fn default() -> Self {
        Self { deadline: Duration::from_millis(10), batch: 64, calls: 2 }
    }
}

/// What a store is counted with.
pub struct StoreMetrics {
    /// Seconds from a call to its answer.
    pub latency: Histogram,
    /// Plans in a call.
    pub batch: Histogram,
    /// Plans that could not be answered, by [`Fault`].
    pub faults: [Counter; Fault::ALL.len()],
    /// Checks answered by policy: allowed, denied, decided locally.
    pub policy: [Counter; 3],
    /// Whether the store is left alone.
    pub circuit_open: Gauge,
    /// Plans that took charges back, whether or not anybody waited for it: done, and failed.
    pub undone: [Counter; 2],
    /// Plans answered without a call: by the cache of refusals, and from a lease of quota.
    pub near: [Counter; 2],
}

/// A store outside this process.
pub struct Queue {
    asking: Arc<Asking>,
    /// One for each part of the store.
    queues: Vec<mpsc::UnboundedSender<Asked>>,
}

/// What the callers of a store and its calls share.
struct Asking {
    name: String,
    backend: Box<dyn DynBackend>,
    settings: QueueSettings,
    /// One for each part of the store.
    breakers: Vec<Breaker>,
    /// How often nothing failed any more.
    returns: AtomicU32,
    watch: ArcSwapOption<StoreMetrics>,
}

/// A plan that waits for its call.
struct Asked {
    plan: Plan,
    now: Option<Timestamp>,
    answer: oneshot::Sender<Result<Applied, Fault>>,
    /// Executed even if nobody waits any more.
    anyway: bool,
    /// Whether what it charges goes back when nobody waits any more.
    borrowed: bool,
}

impl Queue {
    /// A store that is asked through `backend`. To be called within a runtime, where its calls are made until it is
    /// dropped.
    pub fn new(name: &str, backend: impl Backend, settings: QueueSettings) -> Self {
        let breakers = (0..backend.lanes()).map(|_| Breaker::default()).collect();
        let asking = Arc::new(Asking {
            name: name.to_owned(),
            backend: Box::new(backend),
            settings,
            breakers,
            returns: AtomicU32::new(0),
            watch: ArcSwapOption::empty(),
        });
        let queue = |lane| {
            let (queue, asked) = mpsc::unbounded_channel();
            tokio::spawn(carry(asking.clone(), lane, asked));
            queue
        };
        let queues = (0..asking.breakers.len()).map(queue).collect();
        Self { asking, queues }
    }

    /// Counts with these from now on.
    pub fn watch(&self, watch: Arc<StoreMetrics>) {
        watch.circuit_open.set(f64::from(u8::from(self.circuit_open())));
        self.asking.watch.store(Some(watch));
    }

    /// When a decision that begins now has to be made.
    pub fn deadline(&self) -> Instant {
        Instant::now() + self.asking.settings.deadline
    }

    /// Asks the store for a plan. `now` is given by tests; without it the store's own clock decides.
    ///
    /// # Errors
    ///
    /// It cannot say, or not in time. What was asked may still happen; a slot taken then is given back.
    pub async fn ask(&self, plan: Plan, now: Option<Timestamp>, deadline: Instant) -> Result<Applied, Fault> {
        self.ask_for(plan, now, deadline, false).await
    }

    /// The same for units that are borrowed: nobody has used them yet, so they go back if nobody waits for them.
    pub(super) async fn borrow(&self, plan: Plan, now: Option<Timestamp>, deadline: Instant) -> Result<Applied, Fault> {
        self.ask_for(plan, now, deadline, true).await
    }

    async fn ask_for(
        &self,
        plan: Plan,
        now: Option<Timestamp>,
        deadline: Instant,
        borrowed: bool,
    ) -> Result<Applied, Fault> {
        let lane = self.asking.backend.lane(&plan);
        let answer = match self.asking.breakers[lane].circuit_open() {
            true => {
                // What is given back is worth a try: the store may be back, and not be asked yet. Its checks are answered
                // without it, so nothing is charged for them there.
                let given_back = Plan { checks: SmallVec::new(), groups: SmallVec::new(), ..plan };
                if !given_back.is_empty() {
                    self.post(given_back, now);
                }
                Err(Fault::CircuitOpen)
            }
            false => self.wait(lane, plan, now, deadline, borrowed).await,
        };
        if let Err(fault) = answer {
            self.asking.count(|watch| watch.faults[fault as usize].increment(1));
        }
        answer
    }

    async fn wait(
        &self,
        lane: usize,
        plan: Plan,
        now: Option<Timestamp>,
        deadline: Instant,
        borrowed: bool,
    ) -> Result<Applied, Fault> {
        let begun = Instant::now();
        let answer = self.send(lane, plan, now, borrowed);
        match tokio::time::timeout_at(deadline, answer).await {
            Ok(answer) => answer.unwrap_or(Err(Fault::Unreachable)),
            Err(_) => {
                // A decision that had spent its time elsewhere says nothing about this store.
                if begun.elapsed() >= self.asking.settings.deadline {
                    self.asking.failed(lane, Fault::Timeout);
                }
                Err(Fault::Timeout)
            }
        }
    }

    /// Asks the store for a plan that is to be executed whether or not anybody waits for its answer.
    pub fn post(&self, plan: Plan, now: Option<Timestamp>) {
        drop(self.send(self.asking.backend.lane(&plan), plan, now, false));
    }

    fn send(
        &self,
        lane: usize,
        plan: Plan,
        now: Option<Timestamp>,
        borrowed: bool,
    ) -> oneshot::Receiver<Result<Applied, Fault>> {
        let (answer, answered) = oneshot::channel();
        let anyway = !plan.undos.is_empty() || !plan.changes.is_empty();
        // A queue without its end cannot answer; the dropped sender says so.
        let _ = self.queues[lane].send(Asked { plan, now, answer, anyway, borrowed });
        answered
    }

    /// Forgets what a counter holds. Says whether it held anything.
    ///
    /// # Errors
    ///
    /// The store cannot be asked.
    pub async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        // An operator waits longer than a gateway.
        let patience = self.asking.settings.deadline.max(Duration::from_secs(1));
        tokio::time::timeout(patience, self.asking.backend.forget(counter)).await.unwrap_or(Err(Fault::Timeout))
    }

    /// Whether the store answers and can be written to.
    ///
    /// # Errors
    ///
    /// Why it cannot.
    pub async fn probe(&self) -> Result<(), Fault> {
        self.asking.in_time(self.asking.backend.probe()).await
    }

    /// Whether the store is left alone for now, or a part of it.
    pub fn circuit_open(&self) -> bool {
        self.asking.circuit_open()
    }

    /// What the store is counted with, for those who answer in its place.
    pub(super) fn count(&self, count: impl FnOnce(&StoreMetrics)) {
        self.asking.count(count);
    }

    /// How often the store came back after it had failed. Whoever answered in its place in between is to forget what
    /// they counted.
    pub(super) fn returns(&self) -> u32 {
        self.asking.returns.load(Ordering::Acquire)
    }
}

impl Asking {
    fn count(&self, count: impl FnOnce(&StoreMetrics)) {
        if let Some(watch) = &*self.watch.load() {
            count(watch);
        }
    }

    /// Waits for a probe to its end, which is the store's own: a connection that does not answer is only given up then.
    async fn in_time(&self, probe: Boxed<'_, Result<(), Fault>>) -> Result<(), Fault> {
        let begun = Instant::now();
        let answer = probe.await;
        // Slower than a decision may wait is as good as away.
        if begun.elapsed() > self.settings.deadline { answer.and(Err(Fault::Timeout)) } else { answer }
    }

    fn circuit_open(&self) -> bool {
        self.breakers.iter().any(Breaker::circuit_open)
    }

    fn failed(&self, lane: usize, fault: Fault) {
        if self.breakers[lane].failed(fault, self.settings.deadline) {
            tracing::warn!(store = self.name, lane, %fault, "the store is left alone until it answers again");
            self.count(|watch| watch.circuit_open.set(1.0));
        }
    }

    /// Counts what took charges back.
    fn count_undone(&self, plans: &[Plan], answers: &[Result<Applied, Fault>]) {
        let undoes =
            |(plan, answer): (&Plan, &Result<Applied, Fault>)| (!plan.undos.is_empty()).then_some(answer.is_err());
        for failed in plans.iter().zip(answers).filter_map(undoes) {
            self.count(|watch| watch.undone[usize::from(failed)].increment(1));
        }
    }

    /// Learns from a call how the store is.
    fn learn(&self, lane: usize, plans: &[Plan], answers: &[Result<Applied, Fault>], took: Duration) {
        // What the store itself reports is an answer, of a store that is there.
        let away = |fault: &Fault| matches!(fault, Fault::Unreachable | Fault::Timeout);
        let faults = || answers.iter().filter_map(|answer| answer.as_ref().err().copied());
        if let Some(fault) = faults().find(away) {
            return self.failed(lane, fault);
        }
        let in_time = took <= self.settings.deadline;
        if faults().next().is_some() {
            self.breakers[lane].faulty.store(true, Ordering::Release);
        } else if in_time && plans.iter().zip(answers).any(|(plan, answer)| writes(plan, answer)) {
            self.wrote(lane);
        }
        // An answer that nobody could wait for is none.
        if in_time {
            self.answered(lane);
        }
    }

    /// A part of the store counts again. Those who stand in are needed until all do.
    fn wrote(&self, lane: usize) {
        if self.breakers[lane].wrote() && !self.breakers.iter().any(Breaker::faulty) {
            self.returns.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn answered(&self, lane: usize) {
        if self.breakers[lane].answered() {
            tracing::info!(store = self.name, lane, "the store answers again");
            self.count(|watch| watch.circuit_open.set(f64::from(u8::from(self.circuit_open()))));
        }
    }
}

/// Carries what is asked to the store, until nobody can ask any more and everything is answered.
async fn carry(asking: Arc<Asking>, lane: usize, mut asked: mpsc::UnboundedReceiver<Asked>) {
    let mut calls = FuturesUnordered::new();
    let mut batch = Vec::with_capacity(asking.settings.batch);
    let mut open = true;
    let look = look_for_return(asking.clone(), lane);
    tokio::pin!(look);
    while open || !calls.is_empty() {
        tokio::select! {
            biased;
            Some(()) = calls.next(), if !calls.is_empty() => {}
            count = asked.recv_many(&mut batch, asking.settings.batch),
                if open && calls.len() < asking.settings.calls =>
            {
                open = count > 0;
                batch.retain(|asked: &Asked| asked.anyway || !asked.answer.is_closed());
                if !batch.is_empty() {
                    calls.push(call(asking.clone(), lane, std::mem::take(&mut batch)));
                }
            }
            () = &mut look => {}
        }
    }
}

/// One call with many plans.
async fn call(asking: Arc<Asking>, lane: usize, mut batch: Vec<Asked>) {
    while let Some(first) = batch.first() {
        // Times that tests give differ; the store's own clock is one for all.
        let now = first.now;
        let same = batch.iter().position(|asked| asked.now != now).unwrap_or(batch.len());
        let rest = batch.split_off(same);
        let asked = batch.into_iter().map(|asked| (asked.plan, (asked.answer, asked.borrowed)));
        let (plans, waiting): (Vec<Plan>, Vec<_>) = asked.unzip();
        let begun = Instant::now();
        asking.breakers[lane].in_flight.fetch_add(1, Ordering::Relaxed);
        let answers = asking.backend.execute(&plans, now).await;
        asking.breakers[lane].in_flight.fetch_sub(1, Ordering::Relaxed);
        asking.count(|watch| {
            watch.latency.record(begun.elapsed());
            watch.batch.record(plans.len() as f64);
        });
        asking.count_undone(&plans, &answers);
        asking.learn(lane, &plans, &answers, begun.elapsed());
        let mut late = Vec::new();
        for ((plan, (waiting, borrowed)), answer) in plans.iter().zip(waiting).zip(answers) {
            if let Err(Ok(applied)) = waiting.send(answer) {
                late.extend(give_back(plan, &applied, borrowed));
            }
        }
        if !late.is_empty() {
            // Should this fail as well, the slots are free when their leases expire.
            let answers = asking.backend.execute(&late, now).await;
            asking.count_undone(&late, &answers);
        }
        batch = rest;
    }
}

/// Whether a plan changed anything for certain: a store that only answers is not back yet.
fn writes(plan: &Plan, answer: &Result<Applied, Fault>) -> bool {
    let admitted = answer.as_ref().is_ok_and(|applied| applied.admitted);
    admitted && plan.checks.iter().any(|check| check.charges.admitted > 0 && !check.shadow)
}

/// What gives back the slots of a plan that nobody waits for any more.
fn give_back(plan: &Plan, applied: &Applied, borrowed: bool) -> Option<Plan> {
    if borrowed {
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

/// Probes a store that is left alone until it answers.
async fn look_for_return(asking: Arc<Asking>, lane: usize) {
    let breaker = &asking.breakers[lane];
    loop {
        breaker.opened.notified().await;
        while breaker.circuit_open() {
            match asking.in_time(asking.backend.probe_lane(lane)).await {
                // A store that answers this and nothing else may be held up where the counters are.
                Ok(()) if breaker.in_flight.load(Ordering::Relaxed) > 0 => {}
                Ok(()) => {
                    // A node that has lost its slots to another is never written to again.
                    if asking.breakers.len() > 1 {
                        asking.wrote(lane);
                    }
                    asking.answered(lane);
                }
                Err(fault) => tracing::debug!(store = asking.name, lane, %fault, "the store is still away"),
            }
            if breaker.circuit_open() {
                tokio::time::sleep(PROBE).await;
            }
        }
    }
}

/// Knows whether a store is worth asking.
#[derive(Debug, Default)]
struct Breaker {
    /// Those in a row.
    failures: Mutex<Failures>,
    circuit_open: AtomicBool,
    /// Calls that have not been answered yet.
    in_flight: AtomicUsize,
    /// Whether the store was away, or could not do what it was asked, since it last came back. One late answer is
    /// neither, or whoever stands in would start afresh after each.
    faulty: AtomicBool,
    opened: Notify,
}

/// Failures in a row.
#[derive(Debug, Default)]
struct Failures {
    count: u32,
    since: Option<Instant>,
}

impl Breaker {
    fn circuit_open(&self) -> bool {
        self.circuit_open.load(Ordering::Relaxed)
    }

    fn faulty(&self) -> bool {
        self.faulty.load(Ordering::Acquire)
    }

    /// Says whether the store is left alone from now on: not for one pause of it that many waited for.
    fn failed(&self, fault: Fault, patience: Duration) -> bool {
        let persistent = {
            let mut failures = self.failures.lock();
            failures.count += 1;
            let since = *failures.since.get_or_insert_with(Instant::now);
            failures.count >= FAILURES && since.elapsed() >= patience
        };
        // Without a connection there is nothing to wait for.
        let enough = persistent || fault == Fault::Unreachable;
        if enough {
            self.faulty.store(true, Ordering::Release);
        }
        let opens = enough && !self.circuit_open.swap(true, Ordering::AcqRel);
        if opens {
            self.opened.notify_one();
        }
        opens
    }

    /// The store counts. Says whether it did not before.
    fn wrote(&self) -> bool {
        self.faulty.load(Ordering::Relaxed) && self.faulty.swap(false, Ordering::AcqRel)
    }

    /// Says whether the store is asked again from now on.
    fn answered(&self) -> bool {
        *self.failures.lock() = Failures::default();
        self.circuit_open.load(Ordering::Relaxed) && self.circuit_open.swap(false, Ordering::AcqRel)
    }
}

/// A boxed future, for a trait that can be an object: one allocation a call, which is one for a whole batch.
type Boxed<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

trait DynBackend: Send + Sync {
    fn execute<'a>(&'a self, plans: &'a [Plan], now: Option<Timestamp>) -> Boxed<'a, Vec<Result<Applied, Fault>>>;
    fn forget(&self, counter: CounterName) -> Boxed<'_, Result<bool, Fault>>;
    fn probe(&self) -> Boxed<'_, Result<(), Fault>>;
    fn lane(&self, plan: &Plan) -> usize;
    fn probe_lane(&self, lane: usize) -> Boxed<'_, Result<(), Fault>>;
}

impl<B: Backend> DynBackend for B {
    fn execute<'a>(&'a self, plans: &'a [Plan], now: Option<Timestamp>) -> Boxed<'a, Vec<Result<Applied, Fault>>> {
        Box::pin(Backend::execute(self, plans, now))
    }

    fn forget(&self, counter: CounterName) -> Boxed<'_, Result<bool, Fault>> {
        Box::pin(Backend::forget(self, counter))
    }

    fn probe(&self) -> Boxed<'_, Result<(), Fault>> {
        Box::pin(Backend::probe(self))
    }

    fn lane(&self, plan: &Plan) -> usize {
        Backend::lane(self, plan)
    }

    fn probe_lane(&self, lane: usize) -> Boxed<'_, Result<(), Fault>> {
        Box::pin(Backend::probe_lane(self, lane))
    }
}

impl std::fmt::Debug for Queue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Queue").field("name", &self.asking.name).field("breakers", &self.asking.breakers).finish()
    }
}
