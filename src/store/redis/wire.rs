//! What plans and answers look like on the wire: one call of `script.lua` for a batch of plans.
//!
//! It knows no connection: [`encode`] makes a command of plans and [`decode`] makes answers of its reply. The layout is
//! told at the head of the script.

use hashbrown::{HashMap, HashTable};
use redis::{Cmd, ErrorKind, RedisError, Value};
use smallvec::SmallVec;

use super::link::Unanswered;
use crate::clock::Timestamp;
use crate::limiter::{
    Alignment, Applied, Bounds, BucketLevel, Check, CounterName, CounterPair, EXACT, Fault, FixedCount, LeaseAction,
    LeaseFate, Limit, Outcome, Plan, State, Undo,
};

/// The script that decides.
pub(super) const SCRIPT: &str = include_str!("script.lua");

/// The version of the layout of keys and of what is in them (semantics 2).
const LAYOUT: &str = "1";

/// How many places the calls of one batch may name: what a script can hold at ease, and what two bytes can number.
const MOST_NAMED: usize = 8192;

/// A room that no counter has, and one that every counter has.
const NEVER: u64 = EXACT;
const ALWAYS: f64 = -(EXACT as f64);

/// How counters are called in this Redis.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    /// What every key begins with.
    start: Vec<u8>,
    /// Whether keys of one home are in one slot of a cluster.
    tagged: bool,
}

impl Keys {
    /// Keys that begin with `prefix`.
    pub(super) fn new(prefix: &str, tagged: bool) -> Self {
        Self { start: [prefix, LAYOUT].concat().into_bytes(), tagged }
    }

    /// The key of a counter. In a cluster the home is its hash tag:
    ///
    /// ```text
    ///   tollgate:1 <16 bytes of the name>
    ///   tollgate:1{<home>}<the first 14 bytes of the name>
    /// ```
    ///
    /// A key of up to 31 bytes with the state of a bucket takes 88 bytes of Redis.
    fn write(&self, counter: CounterName, key: &mut Vec<u8>) {
        key.clear();
        key.extend_from_slice(&self.start);
        let [first, second] = counter.0;
        if self.tagged {
            key.extend_from_slice(&tag(counter.home()));
            key.extend_from_slice(&first.to_be_bytes());
            key.extend_from_slice(&second.to_be_bytes()[..6]);
        } else {
            key.extend_from_slice(&first.to_be_bytes());
            key.extend_from_slice(&second.to_be_bytes());
        }
    }

    /// The keys that a counter may have: what it counts, and since when its leases are held.
    pub(super) fn of(&self, counter: CounterName) -> [Vec<u8>; 2] {
        let mut key = Vec::new();
        self.write(counter, &mut key);
        let mut beside = key.clone();
        beside.push(BESIDE);
        [key, beside]
    }

    /// A key that holds no counter, to try whether keys can be written.
    pub(super) fn probe(&self) -> Vec<u8> {
        [&self.start[..], b"probe"].concat()
    }
}

/// What the key of the second set of leases ends with.
const BESIDE: u8 = b'a';

/// A home in three characters between braces. They are never empty and never a brace, which would end the tag.
pub(super) fn tag(home: u16) -> [u8; 5] {
    let part = |shift: u16| b'0' + ((home >> shift) & 0x3f) as u8;
    [b'{', part(12), part(6), part(0), b'}']
}

/// How the script is named.
#[derive(Clone, Copy, Debug)]
pub(super) enum Named<'a> {
    /// By its digest, as the server keeps it.
    Digest(&'a str),
    /// By its text, which the server keeps from then on.
    Text,
}

/// How many of these plans go into one call: at least one.
pub(super) fn fitting(plans: &[Plan]) -> usize {
    let mut named = 0;
    let fits = plans.iter().take_while(|plan| {
        named += names(plan);
        named <= MOST_NAMED
    });
    fits.count().max(1)
}

/// Whether a plan can be asked at all. What is longer was refused long before it came here.
pub(super) fn can_be_asked(plan: &Plan) -> bool {
    names(plan) < usize::from(u16::MAX)
}

fn names(plan: &Plan) -> usize {
    2 * (plan.checks.len() + plan.changes.len() + plan.undos.len())
}

/// The command that executes these plans, which [`fitting`] says go into one call.
pub(super) fn encode(plans: &[Plan], now: Option<Timestamp>, keys: &Keys, script: Named<'_>) -> Cmd {
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
    let alone = plan.changes.is_empty() && plan.undos.is_empty() && !plan.refused && plan.groups.len() == 1;
    if let ([check], true) = (&plan.checks[..], alone)
        && matches!(check.limit, Limit::TokenBucket(_))
        && check.refund == 0
    {
        program.push(0);
        short(program, shapes.of_check(check));
        short(program, named.next());
        return;
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

/// What a check asks without the counter: doubles, as their bits.
type Shape = SmallVec<[u64; 14]>;

/// The shapes of a batch, each once.
#[derive(Default)]
struct Shapes {
    list: Vec<Shape>,
    places: HashMap<Shape, usize, foldhash::fast::FixedState>,
}

impl Shapes {
    fn of_check(&mut self, check: &Check) -> usize {
        self.place(shape_of(check, [check.charges.admitted, check.charges.passed, check.charges.refused]))
    }

    fn of_undo(&mut self, undo: &Undo) -> usize {
        self.place(shape_of(&undo.look(), [undo.units, 0, 0]))
    }

    /// The place in ARGV.
    fn place(&mut self, shape: Shape) -> usize {
        let place = match self.list.last() {
            Some(last) if *last == shape => self.list.len() - 1,
            _ => *self.places.entry(shape).or_insert_with_key(|shape| {
                self.list.push(shape.clone());
                self.list.len() - 1
            }),
        };
        place + 2
    }
}

fn shape_of(check: &Check, [admitted, passed, refused]: [u32; 3]) -> Shape {
    let (kind, holds) = match &check.limit {
        Limit::TokenBucket(bucket) => (1, bucket.burst()),
        Limit::FixedWindow(window) => (2, window.limit),
        Limit::SlidingCounter(window) => (3, window.limit),
        Limit::SlidingWindow(window) => (4, window.limit),
        Limit::Concurrency(slots) => (5, slots.max),
    };
    let units = |units: u32| match &check.limit {
        Limit::TokenBucket(bucket) => u64::from(units).min(bucket.capacity()) * bucket.unit(),
        _ => units.into(),
    };
    let (passed, refused) = if check.shadow { (0, 0) } else { (passed, refused) };
    let mut shape = Shape::new();
    shape.push(f64::from(kind).to_bits());
    shape.push(f64::from(u8::from(check.shadow)).to_bits());
    shape.push(room(check, holds, units).to_bits());
    let mut push = |numbers: &[u64]| shape.extend(numbers.iter().map(|&number| (number as f64).to_bits()));
    push(&[admitted, passed, refused, check.refund].map(units));
    match &check.limit {
        Limit::TokenBucket(bucket) => {
            let (full, capacity, unit) = (bucket.burst().into(), bucket.capacity(), bucket.unit());
            push(&[full, capacity].map(|tokens: u64| tokens * unit));
            push(&[unit, bucket.drain(), code(unit)]);
        }
        Limit::FixedWindow(window) => {
            push(&[window.limit.into()]);
            match window.alignment {
                Alignment::Epoch(length) => push(&[0, length]),
                Alignment::FirstHit(length) => push(&[1, length]),
                Alignment::Calendar(Bounds(bounds)) => {
                    push(&[2]);
                    push(&bounds.map(Timestamp::micros));
                }
            }
        }
        Limit::SlidingCounter(window) => {
            push(&[window.limit.into(), window.window, window.step(), window.steps()]);
        }
        Limit::SlidingWindow(window) => push(&[window.limit.into(), window.window]),
        Limit::Concurrency(slots) => push(&[slots.max.into(), slots.lease]),
    }
    shape
}

/// What has to be left for a check to pass, in what its counter counts.
fn room(check: &Check, holds: u32, units: impl Fn(u32) -> u64) -> f64 {
    let needs = check.needs;
    let slot = matches!(check.limit, Limit::Concurrency(_));
    let fits = if slot { needs.fits.min(1) } else { needs.fits };
    let units = match (check.barred, needs.one_left) {
        (true, _) => NEVER,
        (_, _) if fits > holds && !slot => NEVER,
        (_, one_left) if fits > 0 || one_left => units(fits.max(one_left.into())),
        (_, _) if needs.not_over => 0,
        (_, _) => return ALWAYS,
    };
    units as f64
}

/// A number of up to 4095 and so many zeroes, in two bytes; zero for any other.
fn code(mut unit: u64) -> u64 {
    let mut zeroes = 0;
    while unit.is_multiple_of(10) && unit > 0 {
        unit /= 10;
        zeroes += 1;
    }
    if unit < 4096 && zeroes < 16 { unit * 16 + zeroes } else { 0 }
}

/// Why a plan has no answer: what it means to us, and what the store said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) fault: Fault,
    pub(super) text: String,
}

impl Problem {
    fn garbled() -> Self {
        Self { fault: Fault::Script, text: "the reply of the script is not what it should be".to_owned() }
    }
}

impl From<&str> for Problem {
    fn from(text: &str) -> Self {
        Self { fault: fault(text), text: text.to_owned() }
    }
}

impl From<RedisError> for Problem {
    fn from(error: RedisError) -> Self {
        let text = match (error.code(), error.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            _ => error.to_string(),
        };
        let fault = match error.kind() {
            _ if error.is_timeout() => Fault::Timeout,
            ErrorKind::Io | ErrorKind::ClusterConnectionNotFound => Fault::Unreachable,
            ErrorKind::AuthenticationFailed => Fault::Denied,
            _ => fault(&text),
        };
        Self { fault, text }
    }
}

impl From<Unanswered> for Problem {
    fn from(unanswered: Unanswered) -> Self {
        match unanswered {
            Unanswered::Absent(fault) => Self { fault, text: String::new() },
            Unanswered::Failed(error) => error.into(),
        }
    }
}

/// What an error of the store means, by the word that it begins with.
pub(super) fn fault(text: &str) -> Fault {
    match text.split(' ').next().unwrap_or_default() {
        "OOM" => Fault::OutOfMemory,
        "READONLY" | "MISCONF" | "NOREPLICAS" => Fault::ReadOnly,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Fault::Denied,
        "LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "BUSY" => Fault::Unreachable,
        _ if text.contains("can't run this command") || text.contains("can't access at least one of the keys") => {
            Fault::Denied
        }
        _ => Fault::Script,
    }
}

/// The answers in a reply, one for each plan that was asked.
pub(super) fn decode(plans: &[Plan], reply: &Value) -> Vec<Result<Applied, Problem>> {
    let Value::Array(items) = reply else {
        return plans.iter().map(|_| Err(Problem::garbled())).collect();
    };
    let mut items = Items { items: items.iter() };
    let Some(now) = items.number().and_then(|now| u64::try_from(now).ok()) else {
        return plans.iter().map(|_| Err(Problem::garbled())).collect();
    };
    let now = Timestamp::from_micros(now);
    plans.iter().map(|plan| items.plan(plan, now)).collect()
}

struct Items<'a> {
    items: std::slice::Iter<'a, Value>,
}

impl Items<'_> {
    fn number(&mut self) -> Option<i64> {
        match self.items.next() {
            Some(Value::Int(number)) => Some(*number),
            _ => None,
        }
    }

    /// A number that is never negative.
    fn count(&mut self) -> Option<u64> {
        self.number().and_then(|number| u64::try_from(number).ok())
    }

    fn plan(&mut self, plan: &Plan, now: Timestamp) -> Result<Applied, Problem> {
        if let Some(Value::BulkString(text)) = self.items.as_slice().first() {
            self.items.next();
            return Err(Problem::from(&*String::from_utf8_lossy(text)));
        }
        let mut applied = Applied { admitted: !plan.refused, at: now, ..Applied::default() };
        for _ in &plan.changes {
            applied.fates.push(match self.number() {
                Some(0) => LeaseFate::Done,
                Some(1) => LeaseFate::Expired,
                Some(2) => LeaseFate::Unknown,
                _ => return Err(Problem::garbled()),
            });
        }
        for check in &plan.checks {
            let outcome = self.outcome(check, now).ok_or_else(Problem::garbled)?;
            applied.admitted &= outcome.passes || check.shadow;
            applied.answers.push(Ok(outcome));
        }
        Ok(applied)
    }

    /// What a check came to. Of what is told whole, the arithmetic here tells the rest.
    fn outcome(&mut self, check: &Check, now: Timestamp) -> Option<Outcome> {
        let first = self.number()?;
        let passes = first >= 0;
        let counted = u64::try_from(if passes { first } else { -1 - first }).ok()?;
        let count = || u32::try_from(counted).ok();
        let state = match &check.limit {
            Limit::TokenBucket(bucket) => State::Bucket(BucketLevel { level: counted, at: now, unit: bucket.unit() }),
            Limit::FixedWindow(_) => {
                let end = Timestamp::from_micros(self.count()?);
                State::Fixed(FixedCount { start: now, end, count: count()? })
            }
            Limit::SlidingCounter(window) => {
                let start = Timestamp::from_micros(now.micros() - now.micros() % window.window);
                let previous = u32::try_from(self.count()?).ok()?;
                State::Pair(CounterPair { start, current: count()?, previous })
            }
            Limit::SlidingWindow(_) | Limit::Concurrency(_) => {
                let (reset, wait) = (self.count()?, self.number()?);
                return Some(told(check, passes, count()?, reset, wait));
            }
        };
        Some(check.outcome(state, passes, now))
    }
}

/// What a check of a log or of leases came to, which is told without its state.
fn told(check: &Check, passes: bool, counted: u32, reset: u64, wait: i64) -> Outcome {
    let limit = match &check.limit {
        Limit::Concurrency(slots) => slots.max,
        Limit::SlidingWindow(window) => window.limit,
        Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => 0,
    };
    match check.barred {
        true => Outcome { passes: false, limit: 0, remaining: 0, reset, retry_after: None },
        false => {
            let retry_after = if passes { None } else { u64::try_from(wait).ok() };
            Outcome { passes, limit, remaining: limit.saturating_sub(counted), reset, retry_after }
        }
    }
}
