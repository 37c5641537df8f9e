//! Leases of quota around a shared store: for a hot counter a block of units is charged at once and handed out here.
//!
//! ```text
//!   ask(1) -> store charges 8        ask(1) x 7 -> answered here        ask(1) -> store charges 16, and so on
//! ```
//!
//! Only plans of a single check on a token bucket or a fixed window take part, and any other plan on the same counter
//! returns the block first. What is leased is charged in the store, so all instances together never admit more than the
//! limit: a block of a fixed window ends with it, and one of a bucket shrinks as fast as the bucket refills, or its units
//! would be had on top of those that came in their place. Other instances may be refused while units lie here unused.
//! What is unused is returned when more is asked for, after a moment of idleness, and at shutdown.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::limiter::Limit;
use crate::plan::{Applied, Check, CounterName, Needs, Outcome, Plan, Undo};

/// How long before the end of a window its block ends: clocks run at almost the same speed.
const MARGIN: u64 = 1_000;

/// A counter that uses its block up within this many microseconds is hot and gets twice as much.
const HOT: u64 = 100_000;

/// After so many microseconds without use a block is returned.
const IDLE: u64 = 1_000_000;

/// Counters with a block at most.
const MOST: usize = 16_384;

/// Blocks by counter.
#[derive(Debug)]
pub(super) struct QuotaLeases {
    /// Units in a block at most.
    most: u32,
    blocks: Mutex<HashMap<CounterName, Block, RandomState>>,
}

/// Units that were charged in the store.
#[derive(Clone, Debug)]
struct Block {
    limit: Limit,
    store: u16,
    /// What was charged, and how much of it nobody has used.
    units: u32,
    left: u32,
    /// By the store's clock: when it was charged.
    charged: Timestamp,
    /// What the store told then.
    outcome: Outcome,
    /// By this process's clock: not after the charge, when its window ends, and when it was last used.
    since: Timestamp,
    until: Timestamp,
    used: Timestamp,
    /// A larger block is being asked for: others ask for themselves.
    asking: bool,
}

/// What to do with a plan.
pub(super) enum Leased {
    /// It is answered here.
    Answered(Applied),
    /// The store is to be asked for this larger plan first, and its answer is for [`QuotaLeases::take`].
    Larger(Plan),
    /// The store is to be asked for this: the plan, with what is returned before it.
    Plain(Plan),
}

impl QuotaLeases {
    /// Leases of at most so many units.
    pub(super) fn new(most: u32) -> Self {
        Self { most, blocks: Mutex::default() }
    }

    /// Answers a plan from its counter's block, or says what to ask.
    pub(super) fn ask(&self, mut plan: Plan, now: Timestamp) -> Leased {
        let mut blocks = self.blocks.lock();
        let Some(check) = leasable(&plan).copied() else {
            let checks = plan.checks.iter();
            plan.undos.extend(checks.filter_map(|check| blocks.remove(&check.counter)?.rest(check.counter)));
            return Leased::Plain(plan);
        };
        let cost = check.needs.fits;
        let full = blocks.len() >= MOST;
        let Some(block) = blocks.get_mut(&check.counter) else {
            if full {
                return Leased::Plain(plan);
            }
            // The first time says nothing: it may never be asked for again.
            blocks.insert(check.counter, Block::none(&check, now));
            return Leased::Plain(plan);
        };
        if block.limit == check.limit && !block.asking && block.usable(now) >= cost {
            block.left -= cost;
            block.used = now;
            return Leased::Answered(block.answer(now));
        }
        if block.asking {
            return Leased::Plain(plan);
        }
        plan.undos.extend(block.rest(check.counter));
        let hot = block.limit == check.limit && now - block.since <= HOT;
        let units = if hot { block.units.max(1).saturating_mul(2).min(self.most) } else { 1 };
        *block = Block { units, asking: units > cost, ..Block::none(&check, now) };
        if units <= cost {
            return Leased::Plain(plan);
        }
        plan.checks[0].needs.fits = units;
        plan.checks[0].charges.admitted = units;
        Leased::Larger(plan)
    }

    /// Takes the store's answer to a larger plan that was asked at `since` for a cost. The answer to the plan as it was;
    /// none when so much is not left, and the plan is to be asked as it was.
    pub(super) fn take(
        &self,
        larger: &Plan,
        cost: u32,
        applied: Option<&Applied>,
        since: Timestamp,
    ) -> Option<Applied> {
        let check = &larger.checks[0];
        let mut blocks = self.blocks.lock();
        let granted = applied.filter(|applied| applied.admitted);
        let outcome = granted.and_then(|applied| applied.answers.first()?.ok());
        let (Some(applied), Some(outcome)) = (granted, outcome) else {
            // As long ago as can be: what is nearly used up is asked for one by one.
            blocks.insert(check.counter, Block::none(check, Timestamp::EPOCH));
            return None;
        };
        let units = check.charges.admitted;
        let until = match check.limit {
            Limit::FixedWindow(_) => since.plus(outcome.reset.saturating_sub(MARGIN)),
            _ => since.plus(outcome.reset),
        };
        let block = Block {
            limit: check.limit,
            store: check.store,
            units,
            left: units - cost,
            charged: applied.at,
            outcome,
            since,
            until,
            used: since,
            asking: false,
        };
        let answer = Applied { at: applied.at, ..block.answer(since) };
        blocks.insert(check.counter, block);
        Some(answer)
    }

    /// Ends blocks, and returns what is unused: of counters that nobody asked for lately, or of all.
    pub(super) fn end(&self, now: Timestamp, all: bool) -> Vec<Plan> {
        let mut ended = Vec::new();
        self.blocks.lock().retain(|counter, block| {
            let ends = all || now - block.used > IDLE;
            if ends && let Some(undo) = block.rest(*counter) {
                ended.push(Plan { undos: vec![undo], ..Plan::default() });
            }
            !ends
        });
        ended
    }

    /// Forgets a counter's block: the counter was forgotten, and what was charged with it.
    pub(super) fn forget(&self, counter: &CounterName) {
        self.blocks.lock().remove(counter);
    }
}

impl Block {
    /// A counter that was seen, without a block.
    fn none(check: &Check, now: Timestamp) -> Self {
        let outcome = Outcome { passes: true, limit: 0, remaining: 0, reset: 0, retry_after: None };
        Self {
            limit: check.limit,
            store: check.store,
            units: 0,
            left: 0,
            charged: now,
            outcome,
            since: now,
            until: now,
            used: now,
            asking: false,
        }
    }

    /// Units that may be handed out now.
    fn usable(&self, now: Timestamp) -> u32 {
        if !(self.since..self.until).contains(&now) {
            return 0;
        }
        match self.limit {
            Limit::TokenBucket(bucket) => self.left.saturating_sub(bucket.refilled(now - self.since)),
            _ => self.left,
        }
    }

    /// What the store would have said, as far as it is known here.
    fn answer(&self, now: Timestamp) -> Applied {
        let outcome = Outcome {
            remaining: self.outcome.remaining.saturating_add(self.left),
            reset: self.outcome.reset.saturating_sub(now - self.since),
            ..self.outcome
        };
        let answers = std::iter::once(Ok(outcome)).collect();
        Applied { admitted: true, answers, at: now, ..Applied::default() }
    }

    /// What returns the units that nobody used.
    fn rest(&self, counter: CounterName) -> Option<Undo> {
        let &Self { store, limit, left: units, charged: at, outcome: Outcome { reset, .. }, .. } = self;
        (units > 0).then_some(Undo { counter, store, limit, units, at, reset })
    }
}

/// The only check of a plan, where it can be answered from a block.
fn leasable(plan: &Plan) -> Option<&Check> {
    let [check] = plan.checks.as_slice() else { return None };
    let alone = plan.changes.is_empty() && plan.undos.is_empty() && !plan.refused;
    let kind = matches!(check.limit, Limit::TokenBucket(_) | Limit::FixedWindow(_));
    let needs = check.needs == Needs { fits: check.charges.admitted, ..Needs::default() };
    let plain = check.refund == 0 && !check.shadow && !check.always_denied && check.charges.admitted > 0;
    let refusals = check.charges.passed == 0 && check.charges.refused == 0;
    (alone && kind && needs && plain && refusals).then_some(check)
}
