//! Encodes a batch of plans as a command.

use hashbrown::HashTable;
use redis::Cmd;

use super::keys::{ACQUIRED_SUFFIX, HOLDS_BY_END_SUFFIX, HOLDS_SUFFIX, Keys};
use super::shapes::Shapes;
use crate::clock::Timestamp;
use crate::limiter::Limit;
use crate::plan::{Check, CounterName, HoldAction, HoldChange, LeaseAction, Plan};
use crate::store::shared::process_id;

/// The script that decides.
pub(in crate::store::redis) const SCRIPT: &str = include_str!("../script.lua");

/// The most counter references in one call, each counted twice for the two keys of leases: well within the Lua stack,
/// and an index fits in two bytes.
const MAX_REFERENCES: usize = 8192;

/// How a command names the script.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::redis) enum ScriptRef<'a> {
    /// By its digest, if the server has it.
    Digest(&'a str),
    /// By its text, which the server then keeps.
    Text,
}

/// The number of these plans that go into one call, at least one.
pub(in crate::store::redis) fn batch_size(plans: &[Plan]) -> usize {
    let mut references = 0;
    let fits = plans.iter().take_while(|plan| {
        references += references_of(plan);
        references <= MAX_REFERENCES
    });
    fits.count().max(1)
}

/// Whether the indexes of a plan fit in two bytes. Longer plans are refused before they reach a store.
pub(in crate::store::redis) fn is_encodable(plan: &Plan) -> bool {
    references_of(plan) < usize::from(u16::MAX)
}

fn references_of(plan: &Plan) -> usize {
    let looking = plan.checks.iter().filter(|check| check.holding.looks()).count();
    let held = plan.undos.iter().filter(|undo| undo.holds).count() + looking;
    let counters = plan.checks.len() + plan.changes.len() + plan.undos.len() + usize::from(plan.once.is_some());
    2 * (counters + held + 2 * plan.holds.len())
}

/// Whether a plan has anything to do with holds.
fn has_holds(plan: &Plan) -> bool {
    let looks = || plan.checks.iter().any(|check| check.holding.looks());
    !plan.holds.is_empty() || looks() || plan.undos.iter().any(|undo| undo.holds)
}

/// The command that executes these plans, which [`batch_size`] puts into one call. Calendars have the windows around
/// `at`. With `now`, that is the time instead of the server's.
pub(in crate::store::redis) fn encode(
    plans: &[Plan],
    at: Timestamp,
    now: Option<Timestamp>,
    keys: &Keys,
    script: ScriptRef<'_>,
) -> Cmd {
    let mut counters = CounterTable::of(plans);
    let mut shapes = Shapes::at(at);
    let mut program = Vec::with_capacity(10 + 16 * plans.len());
    program.extend_from_slice(&now.map_or(-1.0, |now| now.micros() as f64).to_le_bytes());
    put_u16(&mut program, counters.lists[STRING_KEYS].len() + counters.lists[HOLD_KEYS].len());
    for plan in plans {
        encode_plan(plan, &mut counters, &mut shapes, &mut program);
    }

    let mut cmd = match script {
        ScriptRef::Digest(digest) => redis::cmd("EVALSHA").arg(digest).take(),
        ScriptRef::Text => redis::cmd("EVAL").arg(SCRIPT).take(),
    };
    cmd.arg(counters.keys());
    let mut key = Vec::with_capacity(40);
    let mut put = |counter: CounterName, suffix: &[u8]| {
        keys.write(counter, &mut key);
        key.extend_from_slice(suffix);
        cmd.arg(&key[..]);
    };
    let [strings, logs, leases, holds] = &counters.lists;
    strings.iter().for_each(|&counter| put(counter, &[]));
    holds.iter().for_each(|&counter| put(counter, &[HOLDS_SUFFIX]));
    logs.iter().for_each(|&counter| put(counter, &[]));
    for &counter in leases {
        put(counter, &[]);
        put(counter, &[ACQUIRED_SUFFIX]);
    }
    holds.iter().for_each(|&counter| put(counter, &[HOLDS_BY_END_SUFFIX]));
    cmd.arg(&program[..]);
    let mut bytes = Vec::new();
    for shape in &shapes.list {
        bytes.clear();
        shape.iter().for_each(|bits| bytes.extend_from_slice(&bits.to_le_bytes()));
        cmd.arg(&bytes[..]);
    }
    cmd
}

fn encode_plan(plan: &Plan, counters: &mut CounterTable, shapes: &mut Shapes, program: &mut Vec<u8>) {
    let holds = has_holds(plan);
    if encode_common(plan, holds, counters, shapes, program) {
        return;
    }
    program.push(1);
    let start = program.len();
    program.extend_from_slice(&[0; 4]);
    program.push(u8::from(plan.refused) + 2 * u8::from(plan.once.is_some()) + 4 * u8::from(holds));
    put_u16(program, plan.changes.len());
    put_u16(program, plan.undos.len());
    put_u16(program, plan.groups.len());
    program.extend_from_slice(&plan.lease.0.to_be_bytes());
    if plan.once.is_some() {
        put_u16(program, counters.next());
    }
    if holds {
        put_u16(program, plan.holds.len());
    }
    for change in &plan.changes {
        let (renew, length) = match change.action {
            LeaseAction::Release => (0, 0),
            LeaseAction::Renew(length) => (1, length),
            LeaseAction::RenewOwn => (2, 0),
            LeaseAction::Look => (4, 0),
        };
        program.push(renew);
        put_u16(program, counters.next());
        put_f64(program, length);
        program.extend_from_slice(&change.lease.0.to_be_bytes());
    }
    for change in &plan.holds {
        put_hold_change(change, counters, shapes, program);
    }
    let values = plan.values.as_slice();
    for undo in &plan.undos {
        put_u16(program, shapes.of_undo(undo, values));
        put_u16(program, counters.next());
        put_f64(program, undo.at.micros());
        // A negative one stands for a charge that is taken back only if it is the last.
        let reset = undo.reset as f64;
        program.extend_from_slice(&if undo.only_if_last { -1.0 - reset } else { reset }.to_le_bytes());
        if holds {
            put_u16(program, if undo.holds { counters.next() } else { 0 });
        }
    }
    for group in plan.groups() {
        put_u16(program, group.len());
        for check in group {
            match holds {
                true => put_held_check(check, values, counters, shapes, program),
                false => put_check(check, values, counters, shapes, program),
            }
        }
    }
    let length = u32::try_from(program.len() - start - 4).expect("a plan with 16 bits of references is short");
    program[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// Encodes a plan that has a short form of its own. Returns whether it has.
fn encode_common(
    plan: &Plan,
    holds: bool,
    counters: &mut CounterTable,
    shapes: &mut Shapes,
    program: &mut Vec<u8>,
) -> bool {
    if !plan.changes.is_empty() || !plan.undos.is_empty() || plan.once.is_some() || plan.refused {
        return false;
    }
    let bucket = |limit: &Limit| matches!(limit, Limit::TokenBucket(_));
    let mut changes = plan.holds.iter();
    match (changes.next(), &plan.groups[..], &plan.checks[..]) {
        (None, [_], [check]) if bucket(&check.limit) && check.refund == 0 && holds => {
            program.push(3);
            put_held_check(check, &[], counters, shapes, program);
            program.extend_from_slice(&plan.lease.0.to_be_bytes());
        }
        (None, [_], [check]) if bucket(&check.limit) && check.refund == 0 => {
            program.push(0);
            put_check(check, &[], counters, shapes, program);
        }
        (None, [group], checks) if !holds && checks.iter().all(|check| key_group(&check.limit) == STRING_KEYS) => {
            program.push(2);
            put_u16(program, (*group).into());
            put_u16(program, 0);
            checks.iter().for_each(|check| put_check(check, &[], counters, shapes, program));
        }
        (Some(change), [], [])
            if bucket(&change.limit) && matches!(change.action, HoldAction::Settle(_)) && changes.next().is_none() =>
        {
            program.push(4);
            put_hold_change(change, counters, shapes, program);
        }
        _ => return false,
    }
    true
}

fn put_check(check: &Check, values: &[u64], counters: &mut CounterTable, shapes: &mut Shapes, program: &mut Vec<u8>) {
    put_u16(program, shapes.of_check(check, values));
    put_u16(program, counters.next());
}

/// A check of a plan with holds.
fn put_held_check(
    check: &Check,
    values: &[u64],
    counters: &mut CounterTable,
    shapes: &mut Shapes,
    program: &mut Vec<u8>,
) {
    put_check(check, values, counters, shapes, program);
    let looks = check.holding.looks();
    put_u16(program, if looks { counters.next() } else { 0 });
    put_u16(program, if looks { shapes.of_holding(check.holding) } else { 0 });
}

fn put_hold_change(change: &HoldChange, counters: &mut CounterTable, shapes: &mut Shapes, program: &mut Vec<u8>) {
    let (action, number) = match change.action {
        HoldAction::Settle(None) => (0, 0),
        HoldAction::Settle(Some(units)) => (1, units.into()),
        HoldAction::Renew(None) => (2, 0),
        HoldAction::Renew(Some(length)) => (3, length),
        HoldAction::Look => (4, 0),
    };
    put_u16(program, shapes.of_check(&change.look(0), &[]));
    put_u16(program, counters.next());
    put_u16(program, counters.next());
    program.push(action);
    put_f64(program, number);
    program.extend_from_slice(&change.lease.0.to_be_bytes());
}

fn put_u16(program: &mut Vec<u8>, number: usize) {
    let number = u16::try_from(number).expect("a call has fewer references than two bytes can count");
    program.extend_from_slice(&number.to_le_bytes());
}

fn put_f64(program: &mut Vec<u8>, number: u64) {
    program.extend_from_slice(&(number as f64).to_le_bytes());
}

/// The groups of `KEYS`. Short strings and holds are first, because the script reads them with one `MGET`.
const STRING_KEYS: usize = 0;
const LOG_KEYS: usize = 1;
const LEASE_KEYS: usize = 2;
const HOLD_KEYS: usize = 3;

fn key_group(limit: &Limit) -> usize {
    match limit {
        Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => STRING_KEYS,
        Limit::SlidingWindow(_) | Limit::Distinct(_) => LOG_KEYS,
        Limit::Concurrency(_) => LEASE_KEYS,
    }
}

/// The counters of a batch, each once, and the references to them.
struct CounterTable {
    lists: [Vec<CounterName>; 4],
    /// The list and the index in it of each reference, in the order of the program.
    references: Vec<(usize, usize)>,
    next: usize,
}

impl CounterTable {
    fn of(plans: &[Plan]) -> Self {
        let count = plans.iter().map(references_of).sum::<usize>() / 2;
        let lists = [Vec::with_capacity(count), Vec::new(), Vec::new(), Vec::new()];
        let mut counters = Self { lists, references: Vec::with_capacity(count), next: 0 };
        let mut seen = HashTable::with_capacity(count);
        for plan in plans {
            if let Some(name) = plan.once_name(process_id()) {
                counters.add(&mut seen, STRING_KEYS, name);
            }
            plan.changes.iter().for_each(|change| counters.add(&mut seen, LEASE_KEYS, change.counter));
            for change in &plan.holds {
                counters.add(&mut seen, key_group(&change.limit), change.counter);
                counters.add(&mut seen, HOLD_KEYS, change.counter);
            }
            for undo in &plan.undos {
                counters.add(&mut seen, key_group(&undo.limit), undo.counter);
                if undo.holds {
                    counters.add(&mut seen, HOLD_KEYS, undo.counter);
                }
            }
            for check in &plan.checks {
                counters.add(&mut seen, key_group(&check.limit), check.counter);
                if check.holding.looks() {
                    counters.add(&mut seen, HOLD_KEYS, check.counter);
                }
            }
        }
        counters
    }

    fn add(&mut self, seen: &mut HashTable<(usize, usize)>, kind: usize, counter: CounterName) {
        let list = &mut self.lists[kind];
        // A counter's name is already a hash.
        let found = seen.find(counter.0[0], |&(other, place)| other == kind && list[place] == counter);
        let place = match found {
            Some(&(_, place)) => place,
            None => {
                list.push(counter);
                let place = list.len() - 1;
                let lists = &self.lists;
                seen.insert_unique(counter.0[0], (kind, place), |&(kind, place)| lists[kind][place].0[0]);
                place
            }
        };
        self.references.push((kind, place));
    }

    /// The index in `KEYS`, from 1, of the next reference of the program.
    fn next(&mut self) -> usize {
        let (kind, place) = self.references[self.next];
        self.next += 1;
        let [strings, logs, _, holds] = &self.lists;
        1 + match kind {
            STRING_KEYS => place,
            HOLD_KEYS => strings.len() + place,
            LOG_KEYS => strings.len() + holds.len() + place,
            _ => strings.len() + holds.len() + logs.len() + 2 * place,
        }
    }

    fn keys(&self) -> usize {
        let [strings, logs, leases, holds] = &self.lists;
        strings.len() + logs.len() + 2 * (leases.len() + holds.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{LeaseId, Lost, SlidingWindow, TokenBucket};
    use crate::plan::Holding;

    fn check(number: u64, limit: Limit) -> Check {
        Check::charge(CounterName([number, 0]), limit, 1)
    }

    fn plan(checks: &[Check]) -> Plan {
        Plan::of(checks.iter().copied())
    }

    fn bucket() -> Limit {
        Limit::TokenBucket(TokenBucket::new(5, 1_000_000, 5, 0).expect("it can be held"))
    }

    /// The arguments of a command.
    fn words(plans: &[Plan]) -> Vec<Vec<u8>> {
        let cmd = encode(plans, Timestamp::EPOCH, None, &Keys::new("p:", false), ScriptRef::Digest("digest"));
        let words = cmd.args_iter().map(|word| match word {
            redis::Arg::Simple(word) => word.to_vec(),
            _ => unreachable!("no cursor is sent"),
        });
        words.collect()
    }

    /// The program of a plan.
    fn program(plan: &Plan) -> Vec<u8> {
        let words = words(std::slice::from_ref(plan));
        let keys: usize = String::from_utf8_lossy(&words[2]).parse().expect("a number of keys");
        words[3 + keys].clone()
    }

    #[test]
    fn a_counter_and_a_shape_that_occur_twice_are_sent_once() {
        let words = words(&[plan(&[check(1, bucket())]), plan(&[check(1, bucket())]), plan(&[check(2, bucket())])]);
        assert_eq!(words[2], b"2", "keys");
        assert_eq!(words.len(), 3 + 2 + 1 + 1, "two keys, the program and one shape");
    }

    #[test]
    fn a_plan_of_one_bucket_takes_five_bytes() {
        let words = words(&[plan(&[check(1, bucket())]), plan(&[check(2, bucket())])]);
        assert_eq!(words[5][10..], [0, 2, 0, 1, 0, 0, 2, 0, 2, 0]);
    }

    #[test]
    fn a_held_bucket_and_its_settlement_have_short_forms() {
        let holding = Holding::Hold { millis: 1_000, lost: Lost::Charge };
        let held = Check { holding, ..check(1, bucket()) };
        let hold = plan(&[held]);
        let settled = |change: HoldChange| Plan { holds: [change].into_iter().collect(), ..Plan::default() };
        let (counter, lease, action) = (held.counter, LeaseId(7), HoldAction::Settle(None));
        let settle = HoldChange { counter, store: 0, limit: bucket(), lease, action };
        let words = words(std::slice::from_ref(&hold));
        let [key, _, holds, order] = Keys::new("p:", false).of(counter);
        assert_eq!(words[3..6], [key, holds, order]);
        assert_eq!(words[6][8..10], [2, 0], "the holds are read with the counters");
        assert_eq!((words[6][10], words[6].len()), (3, 10 + 25));
        let settlement = program(&settled(settle));
        assert_eq!((settlement[10], settlement.len()), (4, 10 + 32));
        let others = [
            Plan { refused: true, ..hold.clone() },
            plan(&[held, check(2, bucket())]),
            plan(&[Check { refund: 1, ..held }]),
            settled(HoldChange { action: HoldAction::Renew(None), ..settle }),
            Plan { holds: [settle].into_iter().collect(), ..hold },
        ];
        for other in others {
            assert_eq!(program(&other)[10], 1, "{other:?}");
        }
    }

    #[test]
    fn short_strings_are_the_first_keys() {
        let log = Limit::SlidingWindow(SlidingWindow { limit: 5, window: 1_000_000 });
        let words = words(&[plan(&[check(1, log), check(2, bucket())])]);
        assert_eq!(words[2], b"2");
        assert_eq!(words[3], Keys::new("p:", false).of(CounterName([2, 0]))[0], "the bucket");
        assert_eq!(words[5][8..10], [1, 0], "one of them is a short string");
    }

    #[test]
    fn a_call_has_no_more_references_than_a_script_can_hold() {
        let long = plan(&vec![check(1, bucket()); 3_000]);
        assert_eq!(batch_size(&[long.clone(), long.clone()]), 1);
        assert_eq!(
            batch_size(&[plan(&vec![check(1, bucket()); 30_000])]),
            1,
            "a single plan is sent whatever its size"
        );
        assert!(is_encodable(&long));
        assert!(!is_encodable(&plan(&vec![check(1, bucket()); 40_000])));
    }
}
