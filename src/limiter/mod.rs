//! The arithmetic: limits, the plan a request makes of them, and [`advance`], which decides it.
//!
//! Everything here is pure. Time is an argument, nothing awaits, logs or counts; state and time go in, state and
//! outcome come out. [`advance`] is the meaning of a decision: the memory store runs it, and what runs inside a
//! shared store is its translation.
//!
//! Numbers are integers. Times are microseconds. No intermediate leaves 2^53, because Lua counts in doubles
//! (semantics 4), and rounding never favours the caller.

mod concurrency;
mod fixed_window;
mod sliding_counter;
mod sliding_window;
mod spec;
mod token_bucket;

use std::fmt;

use smallvec::SmallVec;

pub use self::concurrency::{Concurrency, Lease, LeaseId, Leases};
pub use self::fixed_window::{Alignment, Bounds, FixedCount, FixedWindow};
pub use self::sliding_counter::{CounterPair, SlidingCounter};
pub use self::sliding_window::{Grants, SlidingWindow};
pub use self::spec::{
    Algorithm, Calendar, CalendarUnit, LARGEST_LOG, LONGEST_WINDOW, Limiter, MOST_SLOTS, OnStoreError, Quota, Schedule,
    SpecError,
};
pub use self::token_bucket::{BucketLevel, TokenBucket, Unrepresentable};
use crate::clock::Timestamp;

/// The largest integer that every store counts exactly.
pub const EXACT: u64 = 1 << 53;

/// Names one counter: a keyed hash (semantics 1 and 2), so that no identity reaches a store.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct CounterName(pub [u64; 2]);

impl CounterName {
    /// Where the counter lives in a store of many places: counters that share it can be decided together. Naming puts
    /// the hash of one entry of the key here (see [`crate::rules`]).
    pub fn home(&self) -> u16 {
        self.0[1] as u16
    }

    /// The same counter, living there.
    pub(crate) fn at_home(self, home: u16) -> Self {
        let [first, second] = self.0;
        Self([first, second & !0xffff | u64::from(home)])
    }
}

/// As logs and tools show it: 32 hexadecimal digits.
impl fmt::Display for CounterName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, second] = self.0;
        write!(f, "{first:016x}{second:016x}")
    }
}

/// The numbers that one check is decided by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum Limit {
    /// At most `burst + rate x t` units in any time `t`.
    TokenBucket(TokenBucket),
    /// At most `limit` units in any window; a log of grants.
    SlidingWindow(SlidingWindow),
    /// About `limit` units in any window; two counts.
    SlidingCounter(SlidingCounter),
    /// At most `limit` units in each window; one count.
    FixedWindow(FixedWindow),
    /// At most `max` leases at a time.
    Concurrency(Concurrency),
}

/// What a counter holds between two decisions.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum State {
    /// Nothing is counted: a counter never seen, or forgotten.
    #[default]
    Empty,
    /// Of [`Limit::TokenBucket`].
    Bucket(BucketLevel),
    /// Of [`Limit::SlidingWindow`].
    Grants(Grants),
    /// Of [`Limit::SlidingCounter`].
    Pair(CounterPair),
    /// Of [`Limit::FixedWindow`].
    Fixed(FixedCount),
    /// Of [`Limit::Concurrency`].
    Leases(Leases),
}

/// A state as a store hands it to [`advance`], with whether it has to be written back.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// The counter's state.
    pub state: State,
    /// Whether [`advance`] changed it.
    pub wrote: bool,
    /// Whether its check passes, while its group is decided.
    passes: bool,
}

impl From<State> for Held {
    fn from(state: State) -> Self {
        Held { state, wrote: false, passes: false }
    }
}

/// When a check passes (semantics 9 and 10). All needs of a check must be met.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Needs {
    /// The cost that must fit. Zero asks nothing.
    pub fits: u32,
    /// One whole unit must be left: a peek, or a charge with `overdraw = true`.
    pub one_left: bool,
    /// The counter must not be above its limit: a peek in a domain of ratelimit format.
    pub not_over: bool,
}

/// What a check charges, by how its group ends (semantics 9). Costs of zero charge nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Charges {
    /// When the group is admitted.
    pub admitted: u32,
    /// When the group is refused and this check itself passes (`charge = "own"` and `"always"`).
    pub passed: u32,
    /// When the group is refused and this check refuses too (`charge = "always"`).
    pub refused: u32,
}

/// One counter, one limit, one cost: the unit that a store executes. A group holds at most one check a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Check {
    /// Which counter.
    pub counter: CounterName,
    /// Which of the configured stores holds it.
    pub store: u16,
    /// By which numbers.
    pub limit: Limit,
    /// When it passes.
    pub needs: Needs,
    /// What it charges.
    pub charges: Charges,
    /// Units given back before anything is charged, whatever the verdict (semantics 11).
    pub refund: u32,
    /// Counts and reports but never denies (semantics 13).
    pub shadow: bool,
    /// Refuses always: a limit of zero that came with the request (semantics 18).
    pub barred: bool,
    /// What to answer when the store cannot.
    pub on_store_error: OnStoreError,
}

impl Check {
    /// What this check came to, where a store that decides elsewhere tells the state after its group and whether the
    /// check passes.
    pub(crate) fn outcome(&self, state: State, passes: bool, now: Timestamp) -> Outcome {
        let mut held = Held { state, wrote: false, passes };
        self.limit.settle(&mut held, now, self, 0, LeaseId::default())
    }
}

/// Something done to a lease, by its id. It never fails: an unknown or expired lease is no error.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseChange {
    /// The counter that holds the lease.
    pub counter: CounterName,
    /// Which of the configured stores holds it.
    pub store: u16,
    /// Which lease.
    pub lease: LeaseId,
    /// What to do.
    pub action: LeaseAction,
}

/// Takes a charge back exactly, of a group that another store refused: nobody may tell afterwards that it was made.
///
/// Unlike a refund it does not give to the caller what others paid for: a window that has ended since owes nothing, and
/// of a log the very grants go that were made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Undo {
    /// The counter that was charged.
    pub counter: CounterName,
    /// Which of the configured stores holds it.
    pub store: u16,
    /// By which numbers.
    pub limit: Limit,
    /// What was charged.
    pub units: u32,
    /// When, by the clock of the store: [`Applied::at`].
    pub at: Timestamp,
    /// What was told then: microseconds until nothing is counted.
    pub reset: u64,
}

impl Undo {
    /// A check that asks nothing of the counter and takes nothing.
    pub(crate) fn look(&self) -> Check {
        Check {
            counter: self.counter,
            store: self.store,
            limit: self.limit,
            needs: Needs::default(),
            charges: Charges::default(),
            refund: 0,
            shadow: false,
            barred: false,
            on_store_error: OnStoreError::Local,
        }
    }
}

/// What to do to a lease.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseAction {
    /// Gives the slot back.
    Release,
    /// Lets a lease that is still held expire this many microseconds from now.
    Renew(u64),
}

/// All checks of one request, as plain data (semantics 6).
///
/// Lease changes come first, then what is taken back. Then the groups run in order, each admitted whole or not at all, each seeing what the
/// one before did.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Plan {
    /// Releases and renewals, which take effect whatever the verdict.
    pub changes: SmallVec<[LeaseChange; 1]>,
    /// Charges to take back, made under this plan's lease.
    pub undos: Vec<Undo>,
    /// The checks of all groups, one group after the other.
    pub checks: SmallVec<[Check; 3]>,
    /// Where each group ends in `checks`.
    pub groups: SmallVec<[u16; 2]>,
    /// The groups are refused already, whatever their checks say; what is charged on refusals still is.
    pub refused: bool,
    /// The id under which every slot of this request is held.
    pub lease: LeaseId,
}

impl Plan {
    /// Whether there is nothing for a store to do.
    pub fn is_empty(&self) -> bool {
        self.checks.is_empty() && self.changes.is_empty() && self.undos.is_empty()
    }

    /// The groups, in order.
    pub fn groups(&self) -> impl Iterator<Item = &[Check]> {
        let mut start = 0;
        self.groups.iter().map(move |&end| {
            let group = &self.checks[start..usize::from(end)];
            start = usize::from(end);
            group
        })
    }
}

/// What one check came to, after its group.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outcome {
    /// Whether this check itself passes; its group may still have been refused by another.
    pub passes: bool,
    /// The most units the counter holds: the burst of a bucket, the limit of a window, the slots of a concurrency.
    pub limit: u32,
    /// Whole units left.
    pub remaining: u32,
    /// Microseconds until nothing is counted.
    pub reset: u64,
    /// On a refusal: microseconds until the same check would pass. Absent when it never will.
    pub retry_after: Option<u64>,
}

/// How long a need has to wait.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Wait {
    /// It is met.
    Met,
    /// It will be met after so many microseconds, if nothing else is charged.
    For(u64),
    /// It exceeds what the limiter can ever hold (semantics 14).
    Never,
}

/// What one need asks of a counter.
#[derive(Clone, Copy, Debug)]
enum Need {
    Fits(u32),
    OneLeft,
    NotOver,
}

/// A counter seen by its limit: whole units left, and microseconds until nothing is counted.
struct Report {
    limit: u32,
    remaining: u32,
    reset: u64,
}

/// What each algorithm answers about its own state. `now` is never before a moment in the state, because
/// [`Arithmetic::correct`] comes first.
trait Arithmetic {
    type State: Default;

    /// Moves moments that lie ahead of `now` to `now` (semantics 3). Says whether anything moved.
    fn correct(&self, state: &mut Self::State, now: Timestamp) -> bool;

    /// Gives units back, clamped at empty. Says whether anything changed.
    fn refund(&self, state: &mut Self::State, now: Timestamp, units: u32) -> bool;

    /// Takes back a charge that was made under this lease, at a moment that is not after `now`. Says whether anything
    /// changed.
    fn undo(&self, state: &mut Self::State, now: Timestamp, undo: &Undo, lease: LeaseId) -> bool;

    /// How long until the need is met.
    fn wait(&self, state: &Self::State, now: Timestamp, need: Need) -> Wait;

    /// Takes units, beyond the limit too: who may charge was decided before.
    fn charge(&self, state: &mut Self::State, now: Timestamp, units: u32, lease: LeaseId);

    /// What is left.
    fn report(&self, state: &Self::State, now: Timestamp) -> Report;
}

/// Calls `$body` with the algorithm of a limit and the state that belongs to it. A state of another kind counts
/// as empty: the kind is part of a counter's name, so it can only be there by a fault of the store.
macro_rules! with_algorithm {
    ($limit:expr, $held:expr, |$algorithm:ident, $state:ident| $body:expr) => {
        match $limit {
            Limit::TokenBucket($algorithm) => with_algorithm!(@state $held, Bucket, |$state| $body),
            Limit::SlidingWindow($algorithm) => with_algorithm!(@state $held, Grants, |$state| $body),
            Limit::SlidingCounter($algorithm) => with_algorithm!(@state $held, Pair, |$state| $body),
            Limit::FixedWindow($algorithm) => with_algorithm!(@state $held, Fixed, |$state| $body),
            Limit::Concurrency($algorithm) => with_algorithm!(@state $held, Leases, |$state| $body),
        }
    };
    (@state $held:expr, $variant:ident, |$state:ident| $body:expr) => {{
        if !matches!($held, State::$variant(_)) {
            *$held = State::$variant(Default::default());
        }
        match $held {
            State::$variant($state) => $body,
            _ => unreachable!("the line above made it this variant"),
        }
    }};
}

impl Limit {
    /// The part of this limit that one of so many instances may admit by itself, at least one unit.
    ///
    /// All parts together are at most the limit, unless there are more instances than units.
    pub fn share(self, instances: u32) -> Self {
        let part = |units: u32| (units / instances.max(1)).max(1);
        match self {
            Limit::TokenBucket(bucket) => Limit::TokenBucket(bucket.share(instances.max(1))),
            Limit::SlidingWindow(window) => Limit::SlidingWindow(SlidingWindow { limit: part(window.limit), ..window }),
            Limit::SlidingCounter(window) => {
                Limit::SlidingCounter(SlidingCounter { limit: part(window.limit), ..window })
            }
            Limit::FixedWindow(window) => Limit::FixedWindow(FixedWindow { limit: part(window.limit), ..window }),
            Limit::Concurrency(slots) => Limit::Concurrency(Concurrency { max: part(slots.max), ..slots }),
        }
    }

    /// The first half of a check: corrects, refunds, and says how long its needs have to wait.
    fn examine(&self, held: &mut Held, now: Timestamp, check: &Check) -> Wait {
        let counted = !matches!(held.state, State::Empty);
        let (wrote, wait) =
            with_algorithm!(self, &mut held.state, |algorithm, state| examine(algorithm, state, now, check, counted));
        held.wrote |= wrote;
        wait
    }

    /// The second half: charges, and says what it came to.
    fn settle(&self, held: &mut Held, now: Timestamp, check: &Check, units: u32, lease: LeaseId) -> Outcome {
        held.wrote |= units > 0;
        let passes = held.passes;
        with_algorithm!(self, &mut held.state, |algorithm, state| settle(
            algorithm, state, now, check, units, lease, passes
        ))
    }
}

// One function for each half and algorithm: what the questions of a half have in common is computed once. A dispatch
// for each question took 560 instructions of a decision more.

#[inline]
fn examine<A: Arithmetic>(
    algorithm: &A,
    state: &mut A::State,
    now: Timestamp,
    check: &Check,
    counted: bool,
) -> (bool, Wait) {
    let mut wrote = false;
    if counted {
        wrote = algorithm.correct(state, now);
        wrote |= check.refund > 0 && algorithm.refund(state, now, check.refund);
    }
    (wrote, check.needs.wait(algorithm, state, now))
}

#[inline]
fn settle<A: Arithmetic>(
    algorithm: &A,
    state: &mut A::State,
    now: Timestamp,
    check: &Check,
    units: u32,
    lease: LeaseId,
    passes: bool,
) -> Outcome {
    if units > 0 {
        algorithm.charge(state, now, units, lease);
    }
    let Report { limit, remaining, reset } = algorithm.report(state, now);
    if check.barred {
        return Outcome { passes: false, limit: 0, remaining: 0, reset, retry_after: None };
    }
    let retry_after = match passes {
        true => None,
        // A passing need after a refusal cannot be: nothing but charges happened in between.
        false => match check.needs.wait(algorithm, state, now) {
            Wait::Met => Some(0),
            Wait::For(wait) => Some(wait),
            Wait::Never => None,
        },
    };
    Outcome { passes, limit, remaining, reset, retry_after }
}

impl Needs {
    /// The longest wait among the needs, each tested apart (semantics 6).
    #[inline]
    fn wait<A: Arithmetic>(self, algorithm: &A, state: &A::State, now: Timestamp) -> Wait {
        let mut longest = Wait::Met;
        if self.fits > 0 {
            longest = algorithm.wait(state, now, Need::Fits(self.fits));
        }
        if self.one_left {
            longest = longest.max(algorithm.wait(state, now, Need::OneLeft));
        }
        if self.not_over {
            longest = longest.max(algorithm.wait(state, now, Need::NotOver));
        }
        longest
    }
}

/// Whether a group was admitted, and what each of its checks came to.
pub type GroupOutcome = (bool, SmallVec<[Outcome; 3]>);

/// Decides one group of checks at one moment: the meaning that every store keeps.
///
/// `held` are the states of the checks' counters, in the order of the checks. `refused` says that the group is
/// refused already, whatever its checks say: one of its checks could not be held by the store and its policy is to
/// deny.
///
/// ```text
///   correct and refund -> does each check pass? -> is the group admitted? -> charge -> report
/// ```
pub fn advance(checks: &[Check], held: &mut [Held], lease: LeaseId, now: Timestamp, refused: bool) -> GroupOutcome {
    let mut outcomes = SmallVec::with_capacity(checks.len());
    let admitted = advance_each(checks, held, lease, now, refused, |_, _, outcome| outcomes.push(outcome));
    (admitted, outcomes)
}

/// [`advance`] for a store that keeps each state as soon as it is settled: `keep` is given the place of a check, what
/// it holds now, and its outcome.
#[inline]
pub(crate) fn advance_each(
    checks: &[Check],
    held: &mut [Held],
    lease: LeaseId,
    now: Timestamp,
    refused: bool,
    mut keep: impl FnMut(usize, &mut Held, Outcome),
) -> bool {
    debug_assert_eq!(checks.len(), held.len(), "one state for each check");
    let mut admitted = !refused;
    for (check, held) in checks.iter().zip(held.iter_mut()) {
        held.passes = check.limit.examine(held, now, check) == Wait::Met && !check.barred;
        admitted &= held.passes || check.shadow;
    }
    for (number, (check, held)) in checks.iter().zip(held.iter_mut()).enumerate() {
        let units = match (check.shadow, admitted, held.passes) {
            (true, true, true) | (false, true, _) => check.charges.admitted,
            (true, _, _) => 0,
            (false, false, true) => check.charges.passed,
            (false, false, false) => check.charges.refused,
        };
        let outcome = check.limit.settle(held, now, check, units, lease);
        keep(number, held, outcome);
    }
    admitted
}

/// Releases or renews a lease. Says what became of it.
pub fn change_lease(held: &mut Held, change: &LeaseChange, now: Timestamp) -> LeaseFate {
    let State::Leases(leases) = &mut held.state else { return LeaseFate::Unknown };
    held.wrote |= leases.correct(now);
    let (fate, wrote) = match change.action {
        LeaseAction::Release => leases.release(change.lease, now),
        LeaseAction::Renew(length) => leases.renew(change.lease, now, length),
    };
    held.wrote |= wrote;
    fate
}

/// Takes a charge back. `lease` is the one it was made under.
pub fn undo(held: &mut Held, undo: &Undo, lease: LeaseId, now: Timestamp) {
    if matches!(held.state, State::Empty) {
        return;
    }
    let undo = Undo { at: undo.at.min(now), ..*undo };
    held.wrote |= with_algorithm!(undo.limit, &mut held.state, |algorithm, state| {
        // Not `||`: a corrected state is still to be undone.
        algorithm.correct(state, now) | algorithm.undo(state, now, &undo, lease)
    });
}

/// Why a check could not be answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
pub enum Fault {
    /// The memory store is full and nothing in it can go (semantics 30).
    #[error("the memory store is full")]
    Full,
    /// The store did not answer within its deadline. What it was asked may have happened.
    #[error("the store did not answer in time")]
    Timeout,
    /// There is no connection to the store, or it broke. What it was asked may have happened.
    #[error("the store cannot be reached")]
    Unreachable,
    /// The store failed too often just now and is not asked until it answers again.
    #[error("the store is left alone until it answers again")]
    Suspended,
    /// The store has no memory left to write to.
    #[error("the store is out of memory")]
    OutOfMemory,
    /// The store cannot be written to: it is a replica, or its disk is full.
    #[error("the store cannot be written to")]
    ReadOnly,
    /// The store does not know us, or does not let us.
    #[error("the store denies access")]
    Denied,
    /// The store refuses what it was asked for another reason, which the log tells.
    #[error("the store reported an error")]
    Script,
}

impl Fault {
    /// All of them, in the order they are declared.
    pub const ALL: [Fault; 8] = [
        Fault::Full,
        Fault::Timeout,
        Fault::Unreachable,
        Fault::Suspended,
        Fault::OutOfMemory,
        Fault::ReadOnly,
        Fault::Denied,
        Fault::Script,
    ];

    /// One word for labels.
    pub fn word(self) -> &'static str {
        match self {
            Fault::Full => "full",
            Fault::Timeout => "timeout",
            Fault::Unreachable => "unreachable",
            Fault::Suspended => "suspended",
            Fault::OutOfMemory => "out_of_memory",
            Fault::ReadOnly => "read_only",
            Fault::Denied => "denied",
            Fault::Script => "script",
        }
    }
}

/// What a plan came to.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// Whether every group was admitted.
    pub admitted: bool,
    /// One answer for each check of the plan.
    pub answers: SmallVec<[Result<Outcome, Fault>; 3]>,
    /// One fate for each lease change of the plan.
    pub fates: SmallVec<[LeaseFate; 1]>,
    /// The moment it was decided by, of the clock that decides.
    pub at: Timestamp,
}

/// What became of a lease that was released or renewed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LeaseFate {
    /// It was held, and has been released or renewed.
    Done,
    /// It had expired before: its slot may have gone to somebody else already.
    Expired,
    /// It is not known here: never acquired, released before, or expired and forgotten.
    Unknown,
}

#[cfg(test)]
mod tests;
