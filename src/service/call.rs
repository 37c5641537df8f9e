//! One try of an acquire: its plans, what the stores answer, and what stands in its way.

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::Instant;

use super::acquisition::{Acquisition, Lease, micros};
use super::current::{Current, Service};
use super::in_flight::{InFlight, Purpose};
use super::named::{Held, admit_held, look_at_lease, looks_of, named_lease, take_held};
use super::queues::Wanted;
use crate::ask::{Acquire, Ask, AskError, AskErrorKind};
use crate::clock::Timestamp;
use crate::decision::{Decision, Reason};
use crate::lease::LeaseIds;
use crate::limiter::{Limit, Lost, OnStoreError, TokenBucket, WorkerSettings};
use crate::plan::{Charges, Check, CounterName, Holding, Plan};
use crate::rules::{CheckSource, Planned};
use crate::telemetry::{AcquireResult, Door};

/// The plans of a call, by one version of the rules: one of all its asks, or one for each of which any will do.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) current: Arc<Current>,
    pub(super) alternatives: SmallVec<[Alternative; 1]>,
}

/// A plan of a call, with the number of its first ask.
#[derive(Debug)]
pub(super) struct Alternative {
    ask: usize,
    pub(super) planned: Box<Planned>,
}

/// The answer to a try, with the version that decided it and the time that it took.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) acquisition: Acquisition,
    pub(super) current: Arc<Current>,
    pub(super) now: Timestamp,
    took: Duration,
}

impl Call {
    /// Plans a call that makes sense.
    pub(super) fn plan(current: Arc<Current>, acquire: &Acquire, leases: &LeaseIds) -> Result<Self, AskError> {
        let size = if acquire.any { 1 } else { acquire.asks.len().max(1) };
        let mut alternatives = SmallVec::new();
        for (ask, asks) in acquire.asks.chunks(size).enumerate() {
            alternatives.push(Alternative::plan(&current, acquire, ask, asks, leases)?);
        }
        Ok(Self { current, alternatives })
    }

    /// The counters of its plans, each once.
    pub(super) fn counters(&self) -> SmallVec<[CounterName; 4]> {
        let plans = self.alternatives.iter().map(|alternative| &alternative.planned.plan);
        let mut counters: SmallVec<[CounterName; 4]> =
            plans.flat_map(|plan| &plan.checks).map(|check| check.counter).collect();
        counters.sort_unstable();
        counters.dedup();
        counters
    }

    /// The shortest timeout of its limiters.
    pub(super) fn timeout(&self) -> Option<Duration> {
        let rules = &self.current.version.rules;
        let sources = self.alternatives.iter().flat_map(|alternative| &alternative.planned.sources);
        sources.filter(|source| !source.shadow).filter_map(|source| rules.limiter(source.target).workers.timeout).min()
    }

    /// The bucket on which it can be granted ahead, with its limiter's settings (semantics 46).
    pub(super) fn granted_ahead(&mut self) -> Option<(&mut TokenBucket, CounterName, WorkerSettings)> {
        let [Alternative { planned, .. }] = self.alternatives.as_mut_slice() else { return None };
        let ([source], None) = (planned.sources.as_slice(), planned.refused) else { return None };
        let workers = self.current.version.rules.limiter(source.target).workers;
        let [check] = planned.plan.checks.as_mut_slice() else { return None };
        let Check { counter, needs, shadow, always_denied, holding, .. } = *check;
        let plain = needs.fits > 0 && !needs.one_left && !shadow && !always_denied && !holding.holds();
        match &mut check.limit {
            Limit::TokenBucket(bucket) if workers.wait && plain => Some((bucket, counter, workers)),
            _ => None,
        }
    }
}

impl Alternative {
    fn plan(
        current: &Current,
        acquire: &Acquire,
        ask: usize,
        asks: &[Ask],
        leases: &LeaseIds,
    ) -> Result<Self, AskError> {
        let domain = acquire.domain.as_deref().unwrap_or(&current.settings.api.domain);
        let rules = &current.version.rules;
        let lease = match &acquire.idempotency_key {
            None => leases.next_id(),
            Some(key) => named_lease(rules.secret(), domain, key, acquire),
        };
        let mut planned = rules.plan_asks(domain, asks, ask, lease)?;
        if acquire.idempotency_key.is_some() {
            look_at_lease(&mut planned)?;
        }
        if let Some(length) = acquire.lease {
            for check in &mut planned.plan.checks {
                if let Limit::Concurrency(slots) = &mut check.limit {
                    slots.lease = micros(length);
                }
                check.holding = check.holding.lasting(micros(length));
            }
        }
        Ok(Self { ask, planned })
    }

    /// Changes what its checks charge, as the purpose needs it.
    fn prepare(&mut self, purpose: Purpose) {
        for check in &mut self.planned.plan.checks {
            check.charges = match purpose {
                Purpose::Take => check.charges,
                Purpose::TakeOrWait => Charges { admitted: check.charges.admitted, ..Charges::default() },
                Purpose::Look => Charges::default(),
            };
            if purpose == Purpose::Look {
                check.holding = check.holding.looking();
            }
        }
    }
}

impl Service {
    /// Tries each alternative in turn, until one is granted. Refused, the answer is the one that is worth another try
    /// soonest.
    pub(super) async fn ask_each(
        &self,
        mut call: Call,
        acquire: &Acquire,
        purpose: Purpose,
    ) -> Result<Answered, AskError> {
        self.find_held(&mut call).await;
        let mut refused: Option<Answered> = None;
        for alternative in call.alternatives {
            let answered = self.ask(&call.current, alternative, acquire, purpose, &[]).await?;
            if answered.acquisition.granted() {
                return Ok(answered);
            }
            refused = Some(sooner(refused, answered));
        }
        Ok(refused.expect("a call has an ask"))
    }

    /// Finds what an earlier call with the same idempotency key got. Of several asks of which any will do, only that is left.
    pub(super) async fn find_held(&self, call: &mut Call) {
        let plans = || call.alternatives.iter().map(|alternative| &alternative.planned.plan);
        // A single plan looks for itself.
        if call.alternatives.len() < 2 || !plans().any(Plan::has_named_lease) {
            return;
        }
        let changes = plans().flat_map(|plan| plan.changes.iter().copied()).collect();
        let holds = plans().flat_map(|plan| plan.holds.iter().copied()).collect();
        let looks = Plan { changes, holds, ..Plan::default() };
        let applied = call.current.version.apply(&looks, self.clock.now()).await;
        // Those of all slots come first.
        let (slots, holds) = applied.statuses.split_at(looks.changes.len().min(applied.statuses.len()));
        let (mut slots, mut holds) = (slots.iter(), holds.iter());
        let is_held = |plan: &Plan| {
            let slots = slots.by_ref().take(plan.changes.len());
            matches!(Held::of(slots.chain(holds.by_ref().take(plan.holds.len()))), Held::All(_))
        };
        if let Some(held) = plans().position(is_held) {
            let held = call.alternatives.swap_remove(held);
            call.alternatives = SmallVec::from_iter([held]);
        }
    }

    /// Tries one alternative. `behind` are counters for which others wait who came before: it is refused by those too.
    pub(super) async fn ask(
        &self,
        current: &Arc<Current>,
        alternative: Alternative,
        acquire: &Acquire,
        purpose: Purpose,
        behind: &[CounterName],
    ) -> Result<Answered, AskError> {
        let ask = alternative.ask;
        let answered = self.ask_whole(current, alternative, acquire, purpose, behind).await?;
        if !acquire.partial || answered.acquisition.refused != Some(Reason::Limit) || acquire.asks[ask].cost == 1 {
            return Ok(answered);
        }
        self.ask_part(current, answered, acquire, purpose, behind).await
    }

    async fn ask_whole(
        &self,
        current: &Arc<Current>,
        mut alternative: Alternative,
        acquire: &Acquire,
        purpose: Purpose,
        behind: &[CounterName],
    ) -> Result<Answered, AskError> {
        let (now, began) = (self.clock.now(), Instant::now());
        let named = alternative.planned.plan.has_named_lease();
        // What the call takes, for the lease of one that was held before: a look takes nothing.
        let terms: SmallVec<[(Charges, Holding); 3]> = match named {
            true => alternative.planned.plan.checks.iter().map(|check| (check.charges, check.holding)).collect(),
            false => SmallVec::new(),
        };
        let looks = named.then(|| looks_of(&alternative.planned.plan));
        alternative.prepare(purpose);
        let Alternative { ask, planned } = alternative;
        let (mut planned, mut applied) = InFlight::new(self, current, planned, now, purpose).await;
        let mut held = Held::None;
        if let Some(looks) = looks {
            held = take_held(&mut planned, &mut applied);
            if held != Held::None && applied.admitted {
                // A fallback knew of it, and its store did not.
                current.version.stores.take_back(&planned.plan, &applied, false, self.clock.now());
            }
            if held == Held::Some {
                held = self.look_again(current, &looks).await;
                if !matches!(held, Held::All(_)) {
                    let message = "of what an earlier call with this key took, a part has ended; release the rest, or use \
                                   another key";
                    let error = AskError::invalid("idempotency_key", message);
                    return Err(AskError { kind: AskErrorKind::Conflict, ..error });
                }
            }
        }
        if let Held::All(_) = held {
            for (check, (charges, holding)) in planned.plan.checks.iter_mut().zip(terms) {
                (check.charges, check.holding) = (charges, holding);
            }
            admit_held(&mut planned, &mut applied);
        }
        for (check, answer) in planned.plan.checks.iter().zip(&mut applied.answers) {
            if let (Limit::TokenBucket(bucket), Ok(outcome)) = (&check.limit, &mut *answer)
                && bucket.grants_ahead()
            {
                // The time until it would pass without waiting.
                let ahead = bucket.levels_ahead() / bucket.drain();
                outcome.retry_after = outcome.retry_after.map(|wait| wait.saturating_add(ahead));
            }
            if held == Held::None
                && behind.contains(&check.counter)
                && let Ok(outcome) = answer
                && outcome.passes
            {
                (outcome.passes, outcome.retry_after) = (false, Some(0));
                applied.admitted = false;
            }
        }
        let decision = Decision::judge(current.version.rules.clone(), planned, applied);
        let took = began.elapsed();
        let refused = decision.refusal().map(|refusal| refusal.reason);
        let ends_in = match held {
            Held::All(ends_in) => Duration::from_micros(ends_in),
            Held::None | Held::Some => {
                shortest_lease(&decision).saturating_sub(Duration::from_micros(self.clock.now() - now))
            }
        };
        let lease = decision.lease().map(|text| Lease { text: text.to_owned(), ends_in });
        let asks = if acquire.any { &acquire.asks[ask..=ask] } else { &acquire.asks };
        let units = asks.iter().fold(0, |units: u32, ask| units.saturating_add(ask.cost));
        let units = if refused.is_none() { units } else { 0 };
        let acquisition = Acquisition { ask, units, waited: Duration::ZERO, lease, refused, decision };
        Ok(Answered { acquisition, current: current.clone(), now, took })
    }

    /// Tries for as many units as are left, at least one, after all of them were refused (semantics 49).
    async fn ask_part(
        &self,
        current: &Arc<Current>,
        mut answered: Answered,
        acquire: &Acquire,
        purpose: Purpose,
        behind: &[CounterName],
    ) -> Result<Answered, AskError> {
        let mut most = acquire.asks[0].cost;
        // Others may take units meanwhile, so that fewer fit than were left.
        for _ in 0..MAX_PARTIAL_TRIES {
            most = units_left(&answered.acquisition.decision).min(most - 1).max(1);
            let part = Ask { cost: most, ..acquire.asks[0].clone() };
            let alternative = Alternative::plan(current, acquire, 0, std::slice::from_ref(&part), &self.leases)?;
            answered = self.ask_whole(current, alternative, acquire, purpose, behind).await?;
            let granted = answered.acquisition.granted();
            if granted {
                answered.acquisition.units = most;
            }
            if granted || most == 1 || answered.acquisition.refused != Some(Reason::Limit) {
                break;
            }
        }
        Ok(answered)
    }

    /// Records an answered acquire, which waited for so long.
    pub(super) fn record_acquire(&self, answered: &Answered, waited: Duration, ahead: bool) {
        let Answered { acquisition, current, now, took } = answered;
        self.telemetry.record_decision(&current.handles, Door::Api, &acquisition.decision, *now, *took);
        let result = match acquisition.refused {
            None if ahead => AcquireResult::GrantedAhead,
            None => AcquireResult::Granted,
            Some(Reason::QueueFull) => AcquireResult::QueueFull,
            Some(Reason::Draining) => AcquireResult::Draining,
            Some(_) => AcquireResult::Refused,
        };
        self.telemetry.metrics.record_acquire(result, waited);
    }
}

/// Tries for a part of what was asked, before the last refusal is the answer.
const MAX_PARTIAL_TRIES: usize = 8;

/// The most units that every check of a refused decision has left.
fn units_left(decision: &Decision) -> u32 {
    let checks = decision.planned().plan.checks.iter().zip(&decision.applied().answers);
    let left = checks.filter(|(check, _)| !check.shadow).filter_map(|(check, answer)| {
        let remaining = answer.as_ref().ok()?.remaining;
        // Slots are taken one by one.
        match (&check.limit, remaining) {
            (Limit::Concurrency(_), 1..) => None,
            (_, remaining) => Some(remaining),
        }
    });
    left.min().unwrap_or_default()
}

/// Of two refusals, the one that is worth another try sooner.
pub(super) fn sooner(known: Option<Answered>, other: Answered) -> Answered {
    let wait = |answered: &Answered| {
        let refusal = answered.acquisition.decision.refusal();
        refusal.and_then(|refusal| refusal.retry_after).unwrap_or(Duration::MAX)
    };
    match known {
        Some(known) if wait(&known) <= wait(&other) => known,
        _ => other,
    }
}

/// The time until the first slot that a decision took is free again.
fn shortest_lease(decision: &Decision) -> Duration {
    let length = |check: &Check| match check.limit {
        _ if check.charges.admitted == 0 || check.shadow => None,
        Limit::Concurrency(slots) => Some(slots.lease),
        _ => check.holding.terms().map(|(length, _)| length),
    };
    let shortest = decision.planned().plan.checks.iter().filter_map(length).min();
    Duration::from_micros(shortest.unwrap_or_default())
}

/// A counter that refused a call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Obstacle {
    /// The counter, with the most callers that may wait for it.
    pub(super) wanted: Wanted,
    /// The store that holds it.
    pub(super) store: u16,
    /// Microseconds until it may pass. `None` if its store did not answer.
    pub(super) retry_after: Option<u64>,
    /// Whether time alone frees it.
    by_time: bool,
}

/// Whether rules hold on the limiter of a check so that a hold that is lost is given back (semantics 45).
fn is_released_by_rules(source: &CheckSource, check: &Check) -> bool {
    let released = match check.holding {
        Holding::None | Holding::Kept => false,
        Holding::Released | Holding::Reported => true,
        Holding::Hold { lost, .. } => lost == Lost::Release,
    };
    released && source.rule != CheckSource::NO_RULE
}

/// The counters that refused a decision, if waiting for at most `rest` can help (semantics 45).
pub(super) fn obstacles(decision: &Decision, rest: Duration) -> SmallVec<[Obstacle; 1]> {
    let none = SmallVec::new();
    match decision.refusal().map(|refusal| refusal.reason) {
        Some(Reason::Limit | Reason::StoreError) => {}
        _ => return none,
    }
    let mut found: SmallVec<[Obstacle; 1]> = SmallVec::new();
    for source in decision.planned().sources.iter().filter(|source| !source.shadow) {
        let index = usize::from(source.check);
        let (check, answer) = (&decision.planned().plan.checks[index], &decision.applied().answers[index]);
        let most = decision.rules().limiter(source.target).workers.queue;
        let obstacle = match answer {
            Ok(outcome) if outcome.passes => continue,
            // It never fits.
            Ok(outcome) if outcome.retry_after.is_none() => return none,
            Ok(outcome) => Obstacle {
                wanted: (check.counter, most),
                store: check.store,
                retry_after: outcome.retry_after,
                by_time: !matches!(check.limit, Limit::Concurrency(_)) && !is_released_by_rules(source, check),
            },
            Err(_) if check.on_store_error == OnStoreError::Allow => continue,
            Err(_) => Obstacle { wanted: (check.counter, most), store: check.store, retry_after: None, by_time: false },
        };
        if !found.iter().any(|known| known.wanted.0 == check.counter) {
            found.push(obstacle);
        }
    }
    let longest = found.iter().filter_map(|obstacle| obstacle.retry_after).max().unwrap_or_default();
    let too_late = Duration::from_micros(longest) > rest && found.iter().all(|obstacle| obstacle.by_time);
    if too_late { none } else { found }
}
