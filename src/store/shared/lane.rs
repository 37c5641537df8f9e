//! The lanes of a shared store: parts that can fail independently, each with its own task, batches and circuit breaker.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use arc_swap::{ArcSwap, ArcSwapOption};
use futures_util::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;

use super::backend::{BoxFuture, DynBackend};
use super::backlog::{Backlog, Unsettled, giving_back};
use super::breaker::{CircuitBreaker, PROBE_INTERVAL};
use super::metrics::{DropReason, StoreObserver};
use super::owed;
use crate::plan::{Applied, Fault, Plan, Undo};
use crate::store::warnings::Warnings;

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

/// A store without an answer for this long is asked for one.
const SILENCE: Duration = Duration::from_secs(5);

/// How often a plan is sent again, before its deadline, over connections that break.
const MAX_REPEATS: u32 = 3;

/// State shared by the callers, the tasks of the lanes, and the task that hands the backlog over.
pub(super) struct QueueInner {
    pub(super) name: String,
    pub(super) backend: Box<dyn DynBackend>,
    pub(super) settings: QueueSettings,
    /// By lane.
    pub(super) breakers: Vec<CircuitBreaker>,
    /// Whether another server can take over the counters of the store.
    pub(super) may_be_taken_over: bool,
    /// What this process owes the store.
    backlog: ArcSwap<Backlog>,
    /// Whether another queue has taken the backlog over.
    is_replaced: AtomicBool,
    replaced: Notify,
    warnings: Warnings,
    /// When the store last answered in time.
    pub(super) answered: Mutex<Option<Instant>>,
    pub(super) observer: ArcSwapOption<Box<dyn StoreObserver>>,
}

/// The way to the task of each lane.
pub(super) struct Lanes(Vec<mpsc::UnboundedSender<QueuedPlan>>);

/// A plan waiting for a call.
struct QueuedPlan {
    plan: Plan,
    caller: Caller,
}

/// The caller of a plan.
struct Caller {
    answer: Option<Answer>,
    kind: CallerKind,
    /// When it stops waiting. It may still want to know what became of the plan.
    deadline: Option<Instant>,
    /// How often the plan is sent again.
    repeats: u32,
    /// Whether it was sent over a connection that broke before the answer.
    lost: bool,
    unsettled: Unsettled,
}

/// Where the answer of a plan goes.
type Answer = oneshot::Sender<Result<Applied, Fault>>;

/// Where the answer of a plan arrives.
pub(super) type PendingAnswer = oneshot::Receiver<Result<Applied, Fault>>;

/// What happens to a plan whose call fails, or whose caller no longer waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum CallerKind {
    /// A decision: what it owes gets into the backlog.
    Decision,
    /// A plan that nobody waits for. It is executed all the same.
    Post,
    /// Units that are charged in advance: they are undone if nobody waits for them.
    Prefetch,
}

impl Lanes {
    /// Starts the task of each lane, which runs until the lanes are dropped.
    pub(super) fn start(inner: &Arc<QueueInner>) -> Self {
        let start = |lane| {
            let (sender, queued) = mpsc::unbounded_channel();
            tokio::spawn(run_lane(inner.clone(), lane, queued));
            sender
        };
        Self((0..inner.breakers.len()).map(start).collect())
    }

    /// Queues a plan, and returns where its answer arrives. After the deadline it is not sent any more.
    pub(super) fn send(
        &self,
        inner: &QueueInner,
        lane: usize,
        plan: Plan,
        kind: CallerKind,
        deadline: Option<Instant>,
    ) -> PendingAnswer {
        let (answer, receiver) = oneshot::channel();
        let unsettled = inner.backlog().unsettled();
        let caller = Caller { answer: Some(answer), kind, deadline, repeats: 0, lost: false, unsettled };
        // If the lane's task has ended, the receiver learns it: its sender is dropped.
        let _ = self.0[lane].send(QueuedPlan { plan, caller });
        receiver
    }
}

impl QueueInner {
    pub(super) fn new(name: &str, backend: Box<dyn DynBackend>, settings: QueueSettings) -> Self {
        let breakers = (0..backend.lanes()).map(|_| CircuitBreaker::default()).collect();
        let warnings = Warnings::of(name);
        Self {
            name: name.to_owned(),
            may_be_taken_over: backend.takeovers().is_some(),
            backend,
            settings,
            breakers,
            backlog: ArcSwap::from_pointee(Backlog::new()),
            is_replaced: AtomicBool::new(false),
            replaced: Notify::new(),
            warnings,
            answered: Mutex::default(),
            observer: ArcSwapOption::empty(),
        }
    }

    pub(super) fn report(&self, report: impl FnOnce(&dyn StoreObserver)) {
        if let Some(observer) = &*self.observer.load() {
            report(&***observer);
        }
    }

    /// What this process owes the store.
    pub(super) fn backlog(&self) -> Arc<Backlog> {
        self.backlog.load_full()
    }

    /// Goes on with the backlog of a queue that this one replaces, which stops sending it.
    pub(super) fn take_over(&self, old: &QueueInner) {
        let own = self.backlog.swap(old.backlog());
        old.is_replaced.store(true, Ordering::Release);
        old.replaced.notify_one();
        own.close();
    }

    /// Waits until another queue has taken the backlog over.
    pub(super) async fn replaced(&self) {
        self.replaced.notified().await;
    }

    /// Ends the task that hands the backlog over, once nothing is owed.
    pub(super) fn close(&self) {
        if !self.is_replaced.load(Ordering::Acquire) {
            self.backlog().close();
        }
    }

    /// Counts what was dropped of the backlog, and logs what changes an answer.
    pub(super) fn report_dropped(&self, reason: DropReason, count: usize) {
        if count == 0 {
            return;
        }
        self.report(|observer| observer.dropped(reason, count as u64));
        if reason != DropReason::Expired {
            let reason = reason.name();
            self.warnings.warn(&format_args!(
                "{count} releases, refunds or charges never reach the store: {reason}; \
                 tollgate_store_backlog_dropped_total counts them"
            ));
        }
    }

    /// Drops the backlog, since there is no time left.
    pub(super) fn drop_backlog(&self) {
        self.report_dropped(DropReason::Closed, self.backlog().clear());
    }

    /// Adds what is owed of a failed plan to the backlog. `sent` says that it may have been executed.
    pub(super) fn owe(&self, plan: Plan, sent: bool) {
        if owed::is_owed(&plan)
            && let Some(reason) = self.backlog().owe(plan, sent)
        {
            self.report_dropped(reason, 1);
        }
    }

    /// Records that the store has executed a plan.
    fn acknowledged(&self, plan: &Plan) {
        if self.may_be_taken_over {
            self.backlog().acknowledged.record(plan);
        }
    }

    /// A plan that is sent again after a fault. If it may have been executed, its undos must not be twice.
    fn repeated(&self, mut queued: QueuedPlan, fault: Fault) -> QueuedPlan {
        queued.caller.repeats += 1;
        if fault.may_be_executed() {
            queued.caller.lost = true;
            if !queued.plan.undos.is_empty() {
                queued.plan.undos.clear();
                self.report_dropped(DropReason::Unknown, 1);
            }
        }
        queued
    }

    pub(super) fn breaker_of(&self, plan: &Plan) -> &CircuitBreaker {
        &self.breakers[self.backend.lane(plan)]
    }

    /// Awaits a probe, whose answer must come within the timeout. The probe is not cancelled: the backend closes a
    /// connection that does not answer only when its own timeout ends.
    pub(super) async fn probe_in_time(&self, probe: BoxFuture<'_, Result<(), Fault>>) -> Result<(), Fault> {
        let begun = Instant::now();
        let answer = match probe.await {
            // It answers: refusals and releases need no memory.
            Err(Fault::OutOfMemory) => Ok(()),
            answer => answer,
        };
        if begun.elapsed() > self.settings.timeout {
            return answer.and(Err(Fault::Timeout));
        }
        if answer.is_ok() {
            self.record_sign_of_life();
        }
        answer
    }

    pub(super) fn record_sign_of_life(&self) {
        *self.answered.lock() = Some(Instant::now());
    }

    /// Asks a store that has been silent for a sign of life, so that one that is gone does not look well because nobody
    /// asks it.
    async fn probe_silent(&self, lane: usize) {
        if self.answered.lock().is_some_and(|answered| answered.elapsed() < SILENCE) {
            return;
        }
        if let Err(fault) = self.probe_in_time(self.backend.probe_lane(lane)).await {
            self.record_failure(lane, fault);
        }
    }

    /// Waits for a connection, no longer than a decision does.
    pub(super) async fn linked(&self, lane: usize) -> Result<(), Fault> {
        let linked = tokio::time::timeout(self.settings.timeout, self.backend.linked(lane)).await;
        linked.unwrap_or(Err(Fault::Unreachable))
    }

    /// Whether any lane gets calls.
    pub(super) fn any_lane_usable(&self) -> bool {
        self.breakers.iter().any(|breaker| !breaker.circuit_open())
    }

    pub(super) fn circuit_open(&self) -> bool {
        self.breakers.iter().any(CircuitBreaker::circuit_open)
    }

    pub(super) fn record_failure(&self, lane: usize, fault: Fault) {
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
    fn record_call(&self, lane: usize, answers: &[Result<Applied, Fault>], took: Duration) {
        // An error that the store itself reports shows that it is up.
        let unanswered =
            |fault: &Fault| matches!(fault, Fault::Unreachable | Fault::Busy | Fault::Timeout | Fault::ConnectionLost);
        let mut faults = answers.iter().filter_map(|answer| answer.as_ref().err().copied());
        if let Some(fault) = faults.find(unanswered) {
            return self.record_failure(lane, fault);
        }
        if answers.iter().any(Result::is_ok) {
            self.record_answer_after(lane, took);
        } else if took <= self.settings.timeout {
            self.record_answer(lane);
        }
    }

    /// Records that a lane answered after this time. A response after the timeout counts as a failure.
    pub(super) fn record_answer_after(&self, lane: usize, took: Duration) {
        if took <= self.settings.timeout {
            self.record_sign_of_life();
            self.record_answer(lane);
        }
    }

    fn record_answer(&self, lane: usize) {
        if self.breakers[lane].record_answer() {
            tracing::info!(store = self.name, lane, "circuit breaker closed, store answers again");
            self.backlog().recovered();
        }
    }

    /// The plan that takes back what nobody uses, since the caller did not wait for the answer: slots, what is held, and
    /// units that were charged in advance.
    fn take_back(plan: &Plan, applied: &Applied, kind: CallerKind) -> Plan {
        let charged = plan.checks.iter().zip(&applied.answers);
        let charged = charged.filter_map(|(check, answer)| Some((check, answer.as_ref().ok()?)));
        if kind == CallerKind::Prefetch {
            let undos = charged.filter_map(|(check, outcome)| Undo::of(check, outcome, applied.at));
            return Plan { undos: undos.collect(), ..Plan::default() };
        }
        let mut taken = Plan::default();
        if !plan.has_named_lease() {
            for (check, _) in charged.filter(|(_, outcome)| outcome.charged > 0 || outcome.held > 0) {
                giving_back(check, plan.lease, &mut taken);
            }
        }
        taken
    }
}

impl QueuedPlan {
    /// The plan as it is still to be executed. If its caller no longer waits, that is what it owes.
    fn still_wanted(mut self, inner: &QueueInner) -> Option<Self> {
        if self.caller.waits() {
            return Some(self);
        }
        let sent = self.caller.lost;
        let fault = if sent { Fault::ConnectionLost } else { Fault::Unreachable };
        let heard = self.caller.answer.take().is_some_and(|answer| answer.send(Err(fault)).is_ok());
        if sent && !heard {
            inner.owe(giving_all_back(&self.plan), false);
        }
        owed::reduce(&mut self.plan);
        (!self.plan.is_empty()).then_some(self)
    }

    /// Whether it is sent again after a fault: its connection broke, or another call found that it had broken.
    fn repeats_after(&self, fault: Fault) -> bool {
        let repeatable = match fault {
            Fault::ConnectionLost => self.caller.kind == CallerKind::Decision && owed::is_repeatable(&self.plan),
            Fault::Unreachable => true,
            _ => false,
        };
        repeatable && self.caller.repeats < MAX_REPEATS && self.caller.waits()
    }
}

impl Caller {
    /// Whether the plan is to be executed: its caller waits for the answer, or needs none.
    fn waits(&self) -> bool {
        match self.kind {
            CallerKind::Post => true,
            CallerKind::Decision | CallerKind::Prefetch => {
                let heard = self.answer.as_ref().is_some_and(|answer| !answer.is_closed());
                heard && self.deadline.is_none_or(|deadline| Instant::now() < deadline)
            }
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
            Some(repeated) = calls.next(), if !calls.is_empty() => {
                if !Vec::is_empty(&repeated) {
                    calls.push(execute_batch(inner.clone(), lane, repeated));
                }
            }
            count = queued.recv_many(&mut batch, inner.settings.max_batch),
                if open && calls.len() < inner.settings.max_calls =>
            {
                open = count > 0;
                if !batch.is_empty() {
                    calls.push(execute_batch(inner.clone(), lane, std::mem::take(&mut batch)));
                }
            }
            () = &mut prober => {}
        }
    }
}

/// Executes a batch in one call, and compensates the plans whose callers no longer wait in another. Returns the plans to
/// send again.
async fn execute_batch(inner: Arc<QueueInner>, lane: usize, batch: Vec<QueuedPlan>) -> Vec<QueuedPlan> {
    let linked = inner.linked(lane).await;
    let wanted = batch.into_iter().filter_map(|queued| queued.still_wanted(&inner));
    let (mut plans, mut callers): (Vec<Plan>, Vec<Caller>) = wanted.map(|queued| (queued.plan, queued.caller)).unzip();
    if plans.is_empty() {
        return Vec::new();
    }
    let begun = Instant::now();
    let mut answers = match linked {
        Ok(()) => {
            inner.breakers[lane].begin_call();
            let answers = inner.backend.execute(&plans).await;
            inner.breakers[lane].end_call();
            inner.report(|observer| observer.called(begun.elapsed(), plans.len()));
            answers
        }
        Err(fault) => plans.iter().map(|_| Err(fault)).collect(),
    };
    inner.report_undone(&plans, &answers);
    let mut repeated = Vec::new();
    // Without a connection, the attempt to open one has failed.
    if linked.is_ok() && answers.iter().any(is_cut_off) {
        let all = plans.drain(..).zip(callers.drain(..)).zip(std::mem::take(&mut answers));
        for ((plan, caller), answer) in all.collect::<Vec<_>>() {
            let queued = QueuedPlan { plan, caller };
            match answer {
                Err(fault) if queued.repeats_after(fault) => repeated.push(inner.repeated(queued, fault)),
                answer => {
                    plans.push(queued.plan);
                    callers.push(queued.caller);
                    answers.push(answer);
                }
            }
        }
    }
    // One lost connection is no reason to stop asking: the next may be open in time.
    if !answers.is_empty() {
        inner.record_call(lane, &answers, begun.elapsed());
    }
    let mut late = Vec::new();
    for ((plan, caller), answer) in plans.into_iter().zip(callers).zip(answers) {
        let Caller { answer: caller, kind, lost, unsettled, .. } = caller;
        // An earlier call may have executed it.
        let answer = answer.map_err(|fault| if lost { Fault::ConnectionLost } else { fault });
        match answer {
            Ok(applied) => {
                inner.acknowledged(&plan);
                if let Some(Ok(applied)) = caller.and_then(|caller| caller.send(Ok(applied)).err()) {
                    late.push((QueueInner::take_back(&plan, &applied, kind), unsettled));
                }
            }
            Err(fault) => {
                let sent = fault.may_be_executed();
                let taken = if sent { giving_all_back(&plan) } else { Plan::default() };
                // Before the answer: the caller may be the last that keeps this queue.
                inner.owe(plan, sent);
                if caller.is_none_or(|caller| caller.send(Err(fault)).is_err()) {
                    inner.owe(taken, false);
                }
            }
        }
    }
    late.retain(|(plan, _)| !plan.is_empty());
    if !late.is_empty() {
        // Unsettled until they have been executed, or are owed.
        let (late, _unsettled): (Vec<Plan>, Vec<Unsettled>) = late.into_iter().unzip();
        let answers = inner.backend.execute(&late).await;
        inner.report_undone(&late, &answers);
        for (plan, answer) in late.into_iter().zip(answers) {
            match answer {
                Ok(_) => inner.acknowledged(&plan),
                Err(fault) => inner.owe(plan, fault.may_be_executed()),
            }
        }
    }
    repeated
}

/// The plan that gives back the slots and holds that a plan of unknown fate may have taken, for one that nobody waits for.
fn giving_all_back(plan: &Plan) -> Plan {
    let mut taken = Plan::default();
    if !plan.has_named_lease() {
        plan.checks.iter().for_each(|check| giving_back(check, plan.lease, &mut taken));
    }
    taken
}

/// Whether there was no answer because the connection broke, before the call or in it.
fn is_cut_off(answer: &Result<Applied, Fault>) -> bool {
    matches!(answer, Err(Fault::ConnectionLost | Fault::Unreachable))
}

/// Probes a lane whenever its breaker is open, until it closes, and when it has been silent. Never returns.
async fn probe_until_closed(inner: Arc<QueueInner>, lane: usize) {
    let breaker = &inner.breakers[lane];
    loop {
        if tokio::time::timeout(SILENCE, breaker.opened()).await.is_err() && !breaker.circuit_open() {
            inner.probe_silent(lane).await;
            continue;
        }
        while breaker.circuit_open() {
            let connected = inner.backend.connected(lane).now_or_never().is_some();
            match inner.probe_in_time(inner.backend.probe_lane(lane)).await {
                // The probe is answered while a call hangs: the counters of the call may be locked.
                Ok(()) if breaker.call_in_flight() => {}
                Ok(()) => inner.record_answer(lane),
                Err(fault) => {
                    tracing::debug!(store = inner.name, lane, %fault, "circuit breaker stays open, store still failing");
                }
            }
            if !breaker.circuit_open() {
                break;
            }
            match connected {
                true => tokio::time::sleep(PROBE_INTERVAL).await,
                // A new connection is probed at once.
                false => drop(tokio::time::timeout(PROBE_INTERVAL, inner.backend.connected(lane)).await),
            }
        }
    }
}
