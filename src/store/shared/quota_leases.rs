//! Leases of quota around a shared store: a block of units of a hot counter is charged at once and handed out here.
//!
//! ```text
//!   1 unit -> store charges 8        7 x 1 unit -> answered here        1 unit -> store charges 16, and so on
//! ```
//!
//! Only plans of a single check on a token bucket or a fixed window are answered from a block. Any other plan on the
//! same counter returns the block first. Leased units are charged in the store, so all instances together never admit
//! more than the limit: a block of a fixed window ends with the window, and one of a bucket shrinks as fast as the
//! bucket refills, or its units would be admitted in addition to the refilled ones. Other instances may be refused while
//! units are unused here. Unused units are returned with the next prefetch, after a second without use, and at shutdown.

use std::collections::HashMap;

use foldhash::quality::RandomState;
use parking_lot::Mutex;

use crate::clock::Timestamp;
use crate::limiter::Limit;
use crate::plan::{Applied, Check, CounterName, Needs, Outcome, Plan, Undo};

/// How long before the end of its window a block ends: the clocks run at almost the same speed.
const WINDOW_END_MARGIN_MICROS: u64 = 1_000;

/// A counter that uses up its block within this time is hot: its next block is twice as large.
const HOT_BLOCK_MICROS: u64 = 100_000;

/// A block is returned after this time without use.
const IDLE_BLOCK_MICROS: u64 = 1_000_000;

/// The maximum number of counters with a block.
const MAX_BLOCKS: usize = 16_384;

/// Blocks by counter.
#[derive(Debug)]
pub(super) struct QuotaLeases {
    /// The maximum units of a block.
    max_units: u32,
    blocks: Mutex<HashMap<CounterName, QuotaBlock, RandomState>>,
}

/// Units of a counter that are charged in the store and handed out here.
#[derive(Clone, Debug)]
struct QuotaBlock {
    limit: Limit,
    store: u16,
    /// The charged units.
    units: u32,
    /// Those of them that are not handed out yet.
    unused: u32,
    /// When they were charged, by the store's clock.
    charged_at: Timestamp,
    /// The store's outcome of the charge.
    outcome: Outcome,
    /// The validity, by this process's clock: from a moment not after the charge until the window ends.
    valid_from: Timestamp,
    valid_until: Timestamp,
    /// The last use, by this process's clock.
    last_used: Timestamp,
    /// Whether a larger block is being prefetched. Until it arrives, plans go to the store.
    prefetching: bool,
}

/// The answer to a plan, or the plan to execute on the store for it.
pub(super) enum QuotaAnswer {
    /// The answer, from a block.
    Local(Applied),
    /// A larger plan, which charges a block. Its answer goes to [`QuotaLeases::accept_prefetch`].
    Prefetch(Plan),
    /// The plan itself, with undos of the unused units of its counters.
    Forward(Plan),
}

impl QuotaLeases {
    /// Leases of at most `max_units` units each.
    pub(super) fn new(max_units: u32) -> Self {
        Self { max_units, blocks: Mutex::default() }
    }

    /// Answers a plan from its counter's block, or returns the plan to execute on the store.
    pub(super) fn answer(&self, mut plan: Plan, now: Timestamp) -> QuotaAnswer {
        let mut blocks = self.blocks.lock();
        let Some(check) = leasable_check(&plan).copied() else {
            let checks = plan.checks.iter();
            plan.undos.extend(checks.filter_map(|check| blocks.remove(&check.counter)?.undo_unused(check.counter)));
            return QuotaAnswer::Forward(plan);
        };
        let cost = check.needs.fits;
        let full = blocks.len() >= MAX_BLOCKS;
        let Some(block) = blocks.get_mut(&check.counter) else {
            if full {
                return QuotaAnswer::Forward(plan);
            }
            // A counter seen once may never be seen again, so nothing is prefetched yet.
            blocks.insert(check.counter, QuotaBlock::empty(&check, now));
            return QuotaAnswer::Forward(plan);
        };
        if block.limit == check.limit && !block.prefetching && block.usable_units(now) >= cost {
            block.unused -= cost;
            block.last_used = now;
            return QuotaAnswer::Local(block.applied(cost, now));
        }
        if block.prefetching {
            return QuotaAnswer::Forward(plan);
        }
        plan.undos.extend(block.undo_unused(check.counter));
        let hot = block.limit == check.limit && now - block.valid_from <= HOT_BLOCK_MICROS;
        let units = if hot { block.units.max(1).saturating_mul(2).min(self.max_units) } else { 1 };
        *block = QuotaBlock { units, prefetching: units > cost, ..QuotaBlock::empty(&check, now) };
        if units <= cost {
            return QuotaAnswer::Forward(plan);
        }
        plan.checks[0].needs.fits = units;
        plan.checks[0].charges.admitted = units;
        QuotaAnswer::Prefetch(plan)
    }

    /// Stores the block that the store charged for a larger plan, sent at `since`, and hands out `cost` units of it.
    /// Returns the answer to the original plan, or `None` if the store did not admit the larger one: then the original
    /// plan has to be executed on the store.
    pub(super) fn accept_prefetch(
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
            // With the epoch as its start it is not hot: units of a nearly exhausted counter are charged one by one.
            blocks.insert(check.counter, QuotaBlock::empty(check, Timestamp::EPOCH));
            return None;
        };
        let units = check.charges.admitted;
        let valid_until = match check.limit {
            Limit::FixedWindow(_) => since.plus(outcome.reset.saturating_sub(WINDOW_END_MARGIN_MICROS)),
            _ => since.plus(outcome.reset),
        };
        let block = QuotaBlock {
            limit: check.limit,
            store: check.store,
            units,
            unused: units - cost,
            charged_at: applied.at,
            outcome,
            valid_from: since,
            valid_until,
            last_used: since,
            prefetching: false,
        };
        let answer = Applied { at: applied.at, ..block.applied(cost, since) };
        blocks.insert(check.counter, block);
        Some(answer)
    }

    /// Ends the blocks of idle counters. Returns the plans that return their unused units.
    pub(super) fn end_idle(&self, now: Timestamp) -> Vec<Plan> {
        self.end_blocks(|block| now - block.last_used > IDLE_BLOCK_MICROS)
    }

    /// Ends all blocks. Returns the plans that return their unused units.
    pub(super) fn end_all(&self) -> Vec<Plan> {
        self.end_blocks(|_| true)
    }

    fn end_blocks(&self, ends: impl Fn(&QuotaBlock) -> bool) -> Vec<Plan> {
        let mut ended = Vec::new();
        self.blocks.lock().retain(|counter, block| {
            let ends = ends(block);
            if ends && let Some(undo) = block.undo_unused(*counter) {
                ended.push(Plan { undos: vec![undo], ..Plan::default() });
            }
            !ends
        });
        ended
    }

    /// Drops the block of a counter that is being removed. Its charge is removed with the counter.
    pub(super) fn forget(&self, counter: &CounterName) {
        self.blocks.lock().remove(counter);
    }
}

impl QuotaBlock {
    /// A block of a known counter without units.
    fn empty(check: &Check, now: Timestamp) -> Self {
        let outcome =
            Outcome { passes: true, limit: 0, remaining: 0, reset: 0, retry_after: None, charged: 0, held: 0 };
        Self {
            limit: check.limit,
            store: check.store,
            units: 0,
            unused: 0,
            charged_at: now,
            outcome,
            valid_from: now,
            valid_until: now,
            last_used: now,
            prefetching: false,
        }
    }

    /// The units that may be handed out now.
    fn usable_units(&self, now: Timestamp) -> u32 {
        if !(self.valid_from..self.valid_until).contains(&now) {
            return 0;
        }
        match self.limit {
            Limit::TokenBucket(bucket) => self.unused.saturating_sub(bucket.refilled(now - self.valid_from)),
            _ => self.unused,
        }
    }

    /// The store's answer to a charge of `cost` units, as far as it is known here.
    fn applied(&self, cost: u32, now: Timestamp) -> Applied {
        let outcome = Outcome {
            remaining: self.outcome.remaining.saturating_add(self.unused),
            reset: self.outcome.reset.saturating_sub(now - self.valid_from),
            charged: self.charged(cost),
            ..self.outcome
        };
        let answers = std::iter::once(Ok(outcome)).collect();
        Applied { admitted: true, answers, at: now, ..Applied::default() }
    }

    /// The undo of the unused units, if there are any.
    fn undo_unused(&self, counter: CounterName) -> Option<Undo> {
        let &Self { store, limit, unused, charged_at: at, outcome: Outcome { reset, .. }, .. } = self;
        (unused > 0).then_some(Undo {
            counter,
            store,
            limit,
            charged: self.charged(unused),
            at,
            reset,
            only_if_last: false,
            holds: false,
        })
    }

    /// What these units of the block added to the counter.
    fn charged(&self, units: u32) -> u64 {
        match self.limit {
            Limit::TokenBucket(bucket) => bucket.levels(units),
            _ => units.into(),
        }
    }
}

/// The only check of a plan, if it can be answered from a block.
fn leasable_check(plan: &Plan) -> Option<&Check> {
    let [check] = plan.checks.as_slice() else { return None };
    let no_changes = plan.changes.is_empty() && plan.holds.is_empty() && plan.undos.is_empty();
    let only_this = no_changes && !plan.refused;
    let right_limit = match &check.limit {
        // What is granted ahead is granted in order over all instances.
        Limit::TokenBucket(bucket) => !bucket.grants_ahead(),
        limit => matches!(limit, Limit::FixedWindow(_)),
    };
    let needs_its_charge = check.needs == Needs { fits: check.charges.admitted, ..Needs::default() };
    let plain = check.refund == 0 && !check.shadow && !check.always_denied && check.charges.admitted > 0;
    let charges_on_admission = check.charges.passed == 0 && check.charges.refused == 0;
    // What is held has to be in the store, where any instance can settle it.
    let unheld = !check.holding.looks();
    (only_this && right_limit && needs_its_charge && plain && unheld && charges_on_admission).then_some(check)
}
