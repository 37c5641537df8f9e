//! A batch of plans as a command.

use hashbrown::HashTable;
use redis::Cmd;

use super::SCRIPT;
use super::keys::{BESIDE, Keys};
use super::shapes::Shapes;
use crate::clock::Timestamp;
use crate::limiter::Limit;
use crate::plan::{Check, CounterName, LeaseAction, Plan};

/// How many times the plans of one call may name a counter: what a script can hold at ease, and two bytes can number.
const MOST_NAMED: usize = 8192;

/// How the script is named.
#[derive(Clone, Copy, Debug)]
pub(in crate::store::redis) enum Named<'a> {
    /// By its digest, as the server keeps it.
    Digest(&'a str),
    /// By its text, which the server keeps from then on.
    Text,
}

/// How many of these plans go into one call: at least one.
pub(in crate::store::redis) fn fitting(plans: &[Plan]) -> usize {
    let mut named = 0;
    let fits = plans.iter().take_while(|plan| {
        named += names(plan);
        named <= MOST_NAMED
    });
    fits.count().max(1)
}

/// Whether a plan can be asked at all. What is longer was refused long before it came here.
pub(in crate::store::redis) fn can_be_asked(plan: &Plan) -> bool {
    names(plan) < usize::from(u16::MAX)
}

fn names(plan: &Plan) -> usize {
    2 * (plan.checks.len() + plan.changes.len() + plan.undos.len())
}

/// The command that executes these plans, which [`fitting`] says go into one call.
pub(in crate::store::redis) fn encode(plans: &[Plan], now: Option<Timestamp>, keys: &Keys, script: Named<'_>) -> Cmd {
    let mut named = Counters::of(plans);
    let mut shapes = Shapes::default();
    let mut program = Vec::with_capacity(10 + 16 * plans.len());
    program.extend_from_slice(&now.map_or(-1.0, |now| now.micros() as f64).to_le_bytes());
    short(&mut program, named.lists[0].len());
    for plan in plans {
        program_of(plan, &mut named, &mut shapes, &mut program);
    }

    let mut cmd = match script {
        Named::Digest(digest) => redis::cmd("EVALSHA").arg(digest).take(),
        Named::Text => redis::cmd("EVAL").arg(SCRIPT).take(),
    };
    cmd.arg(named.keys());
    let mut key = Vec::with_capacity(40);
    for (kind, list) in named.lists.iter().enumerate() {
        for &counter in list {
            keys.write(counter, &mut key);
            cmd.arg(&key[..]);
            if kind == LEASES {
                key.push(BESIDE);
                cmd.arg(&key[..]);
            }
        }
    }
    cmd.arg(&program[..]);
    let mut bytes = Vec::new();
    for shape in &shapes.list {
        bytes.clear();
        shape.iter().for_each(|bits| bytes.extend_from_slice(&bits.to_le_bytes()));
        cmd.arg(&bytes[..]);
    }
    cmd
}

fn program_of(plan: &Plan, named: &mut Counters, shapes: &mut Shapes, program: &mut Vec<u8>) {
    if let ([group], true) = (&plan.groups[..], plan.changes.is_empty() && plan.undos.is_empty() && !plan.refused) {
        let bucket = |check: &Check| matches!(check.limit, Limit::TokenBucket(_)) && check.refund == 0;
        match &plan.checks[..] {
            [check] if bucket(check) => {
                program.push(0);
                short(program, shapes.of_check(check));
                short(program, named.next());
                return;
            }
            checks if checks.iter().all(|check| place_of(&check.limit) == STRINGS) => {
                program.push(2);
                short(program, (*group).into());
                short(program, 0);
                for check in checks {
                    short(program, shapes.of_check(check));
                    short(program, named.next());
                }
                return;
            }
            _ => {}
        }
    }
    program.push(1);
    let start = program.len();
    program.extend_from_slice(&[0; 4]);
    program.push(plan.refused.into());
    short(program, plan.changes.len());
    short(program, plan.undos.len());
    short(program, plan.groups.len());
    program.extend_from_slice(&plan.lease.0.to_be_bytes());
    for change in &plan.changes {
        let (renew, length) = match change.action {
            LeaseAction::Release => (0, 0),
            LeaseAction::Renew(length) => (1, length),
        };
        program.push(renew);
        short(program, named.next());
        double(program, length);
        program.extend_from_slice(&change.lease.0.to_be_bytes());
    }
    for undo in &plan.undos {
        short(program, shapes.of_undo(undo));
        short(program, named.next());
        double(program, undo.at.micros());
        double(program, undo.reset);
    }
    for group in plan.groups() {
        short(program, group.len());
        for check in group {
            short(program, shapes.of_check(check));
            short(program, named.next());
        }
    }
    let length = u32::try_from(program.len() - start - 4).expect("a plan of 16 bits of names is short");
    program[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn short(program: &mut Vec<u8>, number: usize) {
    let number = u16::try_from(number).expect("a call names no more than two bytes can number");
    program.extend_from_slice(&number.to_le_bytes());
}

fn double(program: &mut Vec<u8>, number: u64) {
    program.extend_from_slice(&(number as f64).to_le_bytes());
}

/// The places of KEYS: what is one short string first, because those are read in one go.
const STRINGS: usize = 0;
const LOGS: usize = 1;
const LEASES: usize = 2;

fn place_of(limit: &Limit) -> usize {
    match limit {
        Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => STRINGS,
        Limit::SlidingWindow(_) => LOGS,
        Limit::Concurrency(_) => LEASES,
    }
}

/// The counters of a batch, each once, and where they are named.
struct Counters {
    lists: [Vec<CounterName>; 3],
    /// For each time that a counter is named, in the order of the program: which list, and where in it.
    named: Vec<(usize, usize)>,
    next: usize,
}

impl Counters {
    fn of(plans: &[Plan]) -> Self {
        let count = plans.iter().map(names).sum::<usize>() / 2;
        let lists = [Vec::with_capacity(count), Vec::new(), Vec::new()];
        let mut counters = Self { lists, named: Vec::with_capacity(count), next: 0 };
        let mut seen = HashTable::with_capacity(count);
        for plan in plans {
            plan.changes.iter().for_each(|change| counters.name(&mut seen, LEASES, change.counter));
            plan.undos.iter().for_each(|undo| counters.name(&mut seen, place_of(&undo.limit), undo.counter));
            plan.checks.iter().for_each(|check| counters.name(&mut seen, place_of(&check.limit), check.counter));
        }
        counters
    }

    fn name(&mut self, seen: &mut HashTable<(usize, usize)>, kind: usize, counter: CounterName) {
        let list = &mut self.lists[kind];
        // A name is a hash already.
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
        self.named.push((kind, place));
    }

    /// The place in KEYS of the counter that is named next.
    fn next(&mut self) -> usize {
        let (kind, place) = self.named[self.next];
        self.next += 1;
        let [strings, logs, _] = &self.lists;
        1 + match kind {
            STRINGS => place,
            LOGS => strings.len() + place,
            _ => strings.len() + logs.len() + 2 * place,
        }
    }

    fn keys(&self) -> usize {
        self.lists[STRINGS].len() + self.lists[LOGS].len() + 2 * self.lists[LEASES].len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::{SlidingWindow, TokenBucket};

    fn check(number: u64, limit: Limit) -> Check {
        Check::charge(CounterName([number, 0]), limit, 1)
    }

    fn plan(checks: &[Check]) -> Plan {
        Plan::of(checks.iter().copied())
    }

    fn bucket() -> Limit {
        Limit::TokenBucket(TokenBucket::new(5, 1_000_000, 5, 0).expect("it can be held"))
    }

    /// The words of a command.
    fn words(plans: &[Plan]) -> Vec<Vec<u8>> {
        let cmd = encode(plans, None, &Keys::new("p:", false), Named::Digest("digest"));
        let words = cmd.args_iter().map(|word| match word {
            redis::Arg::Simple(word) => word.to_vec(),
            _ => unreachable!("no cursor is sent"),
        });
        words.collect()
    }

    #[test]
    fn a_counter_and_a_shape_that_are_asked_twice_are_sent_once() {
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
    fn what_is_one_short_string_is_named_first() {
        let log = Limit::SlidingWindow(SlidingWindow { limit: 5, window: 1_000_000 });
        let words = words(&[plan(&[check(1, log), check(2, bucket())])]);
        assert_eq!(words[2], b"2");
        assert_eq!(words[3], Keys::new("p:", false).of(CounterName([2, 0]))[0], "the bucket");
        assert_eq!(words[5][8..10], [1, 0], "one of them is a short string");
    }

    #[test]
    fn a_call_names_no_more_than_a_script_can_hold() {
        let long = plan(&vec![check(1, bucket()); 3_000]);
        assert_eq!(fitting(&[long.clone(), long.clone()]), 1);
        assert_eq!(fitting(&[plan(&vec![check(1, bucket()); 30_000])]), 1, "one is asked whatever it names");
        assert!(can_be_asked(&long));
        assert!(!can_be_asked(&plan(&vec![check(1, bucket()); 40_000])));
    }
}
