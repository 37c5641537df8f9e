//! Waiting for what a worker asks for (semantics 45 to 48).
//!
//! ```text
//!   one bucket, wait = true    charged now, beyond the limit ----> answered at its moment       granted ahead (46)
//!   anything else              refused -> queue of each refusing counter -> the first asks again        queued (47)
//! ```

use std::sync::Arc;
use std::time::Duration;

use smallvec::SmallVec;
use tokio::time::{Instant, sleep_until};

use super::acquisition::Acquisition;
use super::call::{Answered, Call, Obstacle, obstacles, sooner};
use super::current::{Current, Service};
use super::in_flight::Purpose;
use super::queues::{Place, QueueFull, Wanted};
use crate::ask::{Acquire, AskError};
use crate::clock::Clock;
use crate::decision::{Decision, Reason};
use crate::engine::Version;
use crate::lease::{LeaseCommand, LeaseToken};
use crate::limiter::LeaseStatus;
use crate::plan::{Applied, Check, Plan};
use crate::store::Stores;
use crate::telemetry::AcquireResult;

/// How long before its deadline a caller is answered.
const DEADLINE_MARGIN: Duration = Duration::from_millis(10);

/// The first of a queue asks again after this time, whatever it knows, and then after twice the time.
const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(2);

/// Until when a call waits.
pub(super) fn end_of_wait(acquire: &Acquire, call: &Call, began: Instant, deadline: Option<Instant>) -> Instant {
    let longest = acquire.max_wait.or_else(|| call.timeout()).unwrap_or_default();
    let end = began + longest.min(call.current.settings.bounds.max_wait);
    let deadline = deadline.map(|deadline| deadline.checked_sub(DEADLINE_MARGIN).unwrap_or(began));
    deadline.map_or(end, |deadline| end.min(deadline))
}

impl Service {
    /// Acquires what a call asks for, and waits for it until `end`.
    pub(super) async fn wait(
        &self,
        acquire: &Acquire,
        call: Call,
        began: Instant,
        end: Instant,
    ) -> Result<Acquisition, AskError> {
        let place = self.queues.arrive();
        let mut waiter =
            Waiter { service: self, acquire, place, began, end, waited: false, ahead: false, answered: false };
        // Boxed each, so that a caller has only the memory of what it waits for.
        let acquired = Box::pin(waiter.acquire(call)).await;
        // A call that makes no sense any more is no caller that went away.
        waiter.answered = acquired.is_err();
        let (answered, moment) = acquired?;
        if moment.is_zero() {
            return Ok(waiter.answer(*answered));
        }
        (waiter.waited, waiter.ahead) = (true, true);
        let charge = AheadCharge { answered: Some(answered), clock: self.clock.clone() };
        let answered = match Box::pin(self.stops_within(moment)).await {
            false => charge.keep(),
            true => refused(charge.give_back(), Reason::Draining),
        };
        Ok(waiter.answer(*answered))
    }

    /// Waits for so long, or until the process stops. Returns whether it does.
    async fn stops_within(&self, wait: Duration) -> bool {
        let stop = self.queues.stop().notified();
        tokio::pin!(stop);
        stop.as_mut().enable();
        if self.queues.is_draining() {
            return true;
        }
        tokio::select! {
            biased;
            () = sleep_until(Instant::now() + wait) => false,
            () = stop => true,
        }
    }

    /// Wakes those who wait for what a decision gave back: by refunds, releases, or because another store refused it.
    pub(super) fn note_given_back(&self, stores: &Stores, decision: &Decision) {
        let (plan, applied) = (&decision.planned().plan, decision.applied());
        let undone = !applied.admitted && plan.checks.len() > 1;
        let changes = !plan.changes.is_empty() || !plan.holds.is_empty();
        if undone || changes || plan.checks.iter().any(|check| check.refund > 0) {
            self.note_given_back_by(stores, plan, applied);
        }
    }

    #[cold]
    fn note_given_back_by(&self, stores: &Stores, plan: &Plan, applied: &Applied) {
        plan.changes.iter().for_each(|change| self.queues.given_back(stores, change.store, change.counter));
        plan.holds.iter().for_each(|change| self.queues.given_back(stores, change.store, change.counter));
        let place = |check: &Check| (check.store, check.counter.partition());
        let spread = plan.checks.iter().any(|check| place(check) != place(&plan.checks[0]));
        for (check, answer) in plan.checks.iter().zip(&applied.answers) {
            let undone = spread && !applied.admitted && answer.as_ref().is_ok_and(|outcome| outcome.passes);
            if check.refund > 0 || undone {
                self.queues.given_back(stores, check.store, check.counter);
            }
        }
    }

    /// Counts what a lease gave back, and wakes those who wait for it. A renewal gives nothing back.
    pub(super) fn note_lease_changed(
        &self,
        lease: &str,
        command: &LeaseCommand,
        status: LeaseStatus,
        version: &Version,
    ) {
        if matches!(command, LeaseCommand::Renew(_)) {
            return;
        }
        let Some(token) = LeaseToken::open(lease, version.rules.secret(), version.rules.stores()) else { return };
        for place in &token.places {
            match place.charged_by {
                Some(_) => self.telemetry().metrics.record_settlement(status),
                None => self.telemetry().metrics.record_release(status),
            }
            self.queues.given_back(&version.stores, place.store, place.counter);
        }
    }
}

/// A caller that may wait.
struct Waiter<'a> {
    service: &'a Service,
    acquire: &'a Acquire,
    place: Place<'a>,
    began: Instant,
    end: Instant,
    /// Whether it had to wait.
    waited: bool,
    /// Whether it was granted ahead.
    ahead: bool,
    /// Whether it was answered. Dropped before, it is counted as cancelled.
    answered: bool,
}

/// The answer to a call that may be granted ahead, what stands in its way, and the time until its moment.
type AskedAhead = (Answered, SmallVec<[Obstacle; 1]>, Duration);

/// Why a caller tries again.
enum Wake {
    /// Something changed, or its time has come.
    Again,
    /// Nothing is known to have changed.
    Poll,
    /// It has waited for as long as it may.
    Ended,
    /// The process stops.
    Draining,
}

impl Waiter<'_> {
    /// Asks until it is answered. Returns the answer, and the time until its moment if it was granted ahead.
    async fn acquire(&mut self, mut call: Call) -> Result<(Box<Answered>, Duration), AskError> {
        let mut poll = FIRST_POLL;
        let mut last = false;
        loop {
            self.place.watch(call.counters().into_iter());
            let asked = Instant::now();
            // Boxed, because who waits needs none of their memory.
            let (answered, obstacles) = match Box::pin(self.ask_ahead(&mut call)).await? {
                Some((answered, _, wait)) if !wait.is_zero() => return Ok((Box::new(answered), wait)),
                Some((answered, obstacles, _)) => (answered, obstacles),
                None => Box::pin(self.ask_each(call)).await?,
            };
            if answered.acquisition.granted() || obstacles.is_empty() || last {
                return Ok((Box::new(answered), Duration::ZERO));
            }
            if self.service.queues.is_draining() {
                return Ok((refused(Box::new(answered), Reason::Draining), Duration::ZERO));
            }
            if self.stand(&obstacles).is_err() {
                return Ok((refused(Box::new(answered), Reason::QueueFull), Duration::ZERO));
            }
            for obstacle in &obstacles {
                answered.current.version.stores.hint_wanted(obstacle.store, obstacle.wanted.0);
            }
            let missed = self.place.missed();
            // It is asked again by the rules in use then, so nothing of these is kept.
            drop(answered);
            self.place.watch(std::iter::empty());
            let wake = match missed && !self.place.leads().is_empty() {
                true => Wake::Again,
                false => self.sleep(asked, &obstacles, poll).await,
            };
            self.waited = true;
            poll = match wake {
                Wake::Poll => (2 * poll).min(LONGEST_POLL),
                Wake::Again | Wake::Ended | Wake::Draining => FIRST_POLL,
            };
            last = matches!(wake, Wake::Ended);
            call = self.service.call(self.acquire)?;
            if matches!(wake, Wake::Draining) {
                let answered = Box::pin(self.service.ask_each(call, self.acquire, Purpose::Look)).await?;
                return Ok((refused(Box::new(answered), Reason::Draining), Duration::ZERO));
            }
        }
    }

    /// Stands in the queues of what refused it.
    fn stand(&mut self, obstacles: &[Obstacle]) -> Result<(), QueueFull> {
        let wanted: SmallVec<[Wanted; 2]> = obstacles.iter().map(|obstacle| obstacle.wanted).collect();
        let waiters = self.waiters();
        self.place.stand(&wanted, waiters)
    }

    fn waiters(&self) -> u32 {
        self.service.current.load().settings.bounds.waiters
    }

    fn rest(&self) -> Duration {
        self.end.saturating_duration_since(Instant::now())
    }

    /// Tries each alternative in turn. One that wants a counter for which others wait who came before takes nothing.
    /// Returns the answer, and what stands in the way if waiting can help.
    async fn ask_each(&mut self, mut call: Call) -> Result<(Answered, SmallVec<[Obstacle; 1]>), AskError> {
        self.service.find_held(&mut call).await;
        let mut refused: Option<Answered> = None;
        let mut all: SmallVec<[Obstacle; 1]> = SmallVec::new();
        for alternative in call.alternatives {
            let counters = alternative.planned.plan.checks.iter().map(|check| check.counter);
            let behind = self.place.behind(counters);
            let purpose = if behind.is_empty() { Purpose::TakeOrWait } else { Purpose::Look };
            let answered = self.service.ask(&call.current, alternative, self.acquire, purpose, &behind).await?;
            if answered.acquisition.granted() {
                return Ok((answered, SmallVec::new()));
            }
            for obstacle in obstacles(&answered.acquisition.decision, self.rest()) {
                if !all.iter().any(|known| known.wanted.0 == obstacle.wanted.0) {
                    all.push(obstacle);
                }
            }
            refused = Some(sooner(refused, answered));
        }
        Ok((refused.expect("a call has an ask"), all))
    }

    /// Sleeps until it is worth to ask again. Only the first of a queue has a reason of its own.
    async fn sleep(&self, asked: Instant, obstacles: &[Obstacle], poll: Duration) -> Wake {
        let queues = &self.service.queues;
        let stop = queues.stop().notified();
        tokio::pin!(stop);
        stop.as_mut().enable();
        if queues.is_draining() {
            return Wake::Draining;
        }
        loop {
            let leads = self.place.leads();
            let led = obstacles.iter().filter(|obstacle| leads.contains(&obstacle.wanted.0));
            let retry = led.filter_map(|obstacle| obstacle.retry_after).min().map(Duration::from_micros);
            let due = match (leads.is_empty(), retry) {
                (true, _) => None,
                (false, Some(retry)) if retry <= poll => Some((asked + retry, Wake::Again)),
                (false, _) => Some((asked + poll, Wake::Poll)),
            };
            let (moment, wake) = due.filter(|(due, _)| *due <= self.end).unwrap_or((self.end, Wake::Ended));
            tokio::select! {
                biased;
                () = &mut stop => return Wake::Draining,
                () = self.place.notify().notified() => {
                    if !self.place.leads().is_empty() {
                        return Wake::Again;
                    }
                }
                () = sleep_until(moment) => return if moment >= self.end { Wake::Ended } else { wake },
            }
        }
    }

    /// The answer to the caller.
    fn answer(&mut self, mut answered: Answered) -> Acquisition {
        self.answered = true;
        let waited = if self.waited { self.began.elapsed() } else { Duration::ZERO };
        answered.acquisition.waited = waited;
        self.service.record_acquire(&answered, waited, self.ahead);
        answered.acquisition
    }

    /// Grants a call ahead, if it is of one bucket alone. Returns the answer, what stands in the way if waiting can help,
    /// and the time until a grant's moment. `None` if it is another call.
    async fn ask_ahead(&mut self, call: &mut Call) -> Result<Option<AskedAhead>, AskError> {
        // The whole of a partial ask is not waited for.
        if self.acquire.partial && self.acquire.asks[0].cost > 1 {
            return Ok(None);
        }
        let rest = u32::try_from(self.rest().as_micros()).unwrap_or(u32::MAX);
        let waiters = self.waiters();
        let draining = self.service.queues.is_draining();
        let Some((bucket, counter, workers)) = call.granted_ahead() else { return Ok(None) };
        let may_wait = !draining && self.place.go_ahead((counter, workers.queue), waiters).is_ok();
        if may_wait {
            *bucket = bucket.granting_ahead(rest);
        }
        let bucket = *bucket;
        let alternative = call.alternatives.pop().expect("a call that is granted ahead has one plan");
        let mut answered = self.service.ask(&call.current, alternative, self.acquire, Purpose::TakeOrWait, &[]).await?;
        let decision = &answered.acquisition.decision;
        if !answered.acquisition.granted() {
            let obstacles = obstacles(decision, self.rest());
            if !may_wait && !obstacles.is_empty() {
                answered.acquisition.refused = Some(if draining { Reason::Draining } else { Reason::QueueFull });
                return Ok(Some((answered, SmallVec::new(), Duration::ZERO)));
            }
            return Ok(Some((answered, obstacles, Duration::ZERO)));
        }
        let outcome = decision.applied().answers.first().and_then(|answer| answer.as_ref().ok());
        let wait = outcome.map_or(0, |outcome| bucket.fits_in(outcome.reset));
        Ok(Some((answered, SmallVec::new(), Duration::from_micros(wait))))
    }
}

fn refused(mut answered: Box<Answered>, reason: Reason) -> Box<Answered> {
    answered.acquisition.refused = Some(reason);
    answered
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if !self.answered {
            self.service.telemetry.metrics.record_acquire(AcquireResult::Cancelled, self.began.elapsed());
        }
    }
}

/// A charge that was granted ahead. Dropped before its moment, it is given back if nothing was charged since.
struct AheadCharge {
    answered: Option<Box<Answered>>,
    clock: Arc<dyn Clock>,
}

impl AheadCharge {
    /// The moment has come.
    fn keep(mut self) -> Box<Answered> {
        self.answered.take().expect("it is kept once")
    }

    fn give_back(mut self) -> Box<Answered> {
        let answered = self.answered.take().expect("it is given back once");
        take_back(&answered.current, &answered.acquisition.decision, &self.clock);
        answered
    }
}

impl Drop for AheadCharge {
    fn drop(&mut self) {
        if let Some(answered) = &self.answered {
            take_back(&answered.current, &answered.acquisition.decision, &self.clock);
        }
    }
}

fn take_back(current: &Current, decision: &Decision, clock: &Arc<dyn Clock>) {
    current.version.stores.take_back(&decision.planned().plan, decision.applied(), true, clock.now());
}
