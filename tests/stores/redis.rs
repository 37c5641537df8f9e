//! Redis fulfils the contract: the same answers as `advance`, decision by decision, with one plan per call and with
//! many.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::{self, subsequence};
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::limiter::{
    Alignment, Concurrency, FixedWindow, LeaseId, LeaseStatus, Limit, Lost, SlidingCounter, SlidingWindow, TokenBucket,
};
use tollgate::plan::{Applied, Charges, Check, Fault, HoldAction, HoldChange, Holding, Needs, Outcome, Plan, Undo};
use tollgate::store::{Address, Backend, Credentials, RedisSettings, Topology};

use super::redis_client::{self, apply, at, connected, connected_with_clock, counter, decide, one, plan, runtime};
use crate::support::processes::redis::{Redis as Server, Setup};
use crate::support::processes::sentinel::{NAME, Sentinel};
use crate::support::reference::numbers::Numbers;
use crate::support::reference::plans::{ANYTHING, Reference, SECOND, START, Scope, always, asks, plans};

fn bucket(limit: u32, window: u64) -> Limit {
    Limit::TokenBucket(TokenBucket::new(limit.into(), window, limit, 0).expect("it can be held"))
}

/// A limit of each algorithm, and fixed windows of both kinds that a store aligns.
fn of_each_algorithm(limit: u32, window: u64) -> [Limit; 6] {
    [
        bucket(limit, window),
        Limit::SlidingWindow(SlidingWindow { limit, window }),
        Limit::SlidingCounter(SlidingCounter { limit, window }),
        Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::Epoch(window) }),
        Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(window) }),
        Limit::Concurrency(Concurrency { max: limit, lease: window }),
    ]
}

/// The key of a counter, by the layout of keys.
fn key(counter: u64) -> Vec<u8> {
    let [first, second] = redis_client::counter(counter).0;
    [&b"tollgate:1"[..], &first.to_be_bytes(), &second.to_be_bytes()].concat()
}

/// A plan that undoes the charges of an earlier plan, from its answers.
fn take_back(plan: &Plan, applied: &Applied) -> Plan {
    let undo = |(check, answer): (&Check, &Result<Outcome, Fault>)| {
        let undo = Undo::of(check, answer.as_ref().expect("it was answered"), applied.at)?;
        // Some are taken back only where nothing was charged since.
        let only_if_last = matches!(check.limit, Limit::TokenBucket(_)) && undo.at.micros() / SECOND % 2 == 1;
        Some(Undo { only_if_last, ..undo })
    };
    let undos = plan.checks.iter().zip(&applied.answers).filter_map(undo);
    Plan { undos: undos.collect(), ..plan.of_same_asker() }
}

/// Executes batches, each at one moment, and compares them with the reference plan by plan. The charges of a batch's
/// first plan are sometimes undone at the end of the next batch.
async fn step_by_step(settings: &RedisSettings, batches: Vec<(i64, Vec<Plan>)>, run: &str) {
    let clock = ManualClock::at(START);
    let redis = connected_with_clock(settings, &clock).await;
    let (mut reference, mut now) = (Reference::default(), START);
    let mut last: Option<(Plan, Applied)> = None;
    for (step, (by, mut batch)) in batches.into_iter().enumerate() {
        now = Timestamp::from_micros(now.micros().saturating_add_signed(by));
        if let Some((plan, applied)) = last.take_if(|_| step % 3 == 0) {
            batch.push(take_back(&plan, &applied));
        }
        let expected: Vec<Applied> = batch.iter().map(|plan| reference.apply(plan, now)).collect();
        clock.set(now);
        let found = redis.execute(&batch).await;
        for (number, (expected, found)) in expected.iter().zip(&found).enumerate() {
            let place = format!("plan {number} of {}, step {step} of {run}", batch.len());
            let found = found.as_ref().unwrap_or_else(|fault| panic!("{place}: {fault}"));
            assert_eq!(found.admitted, expected.admitted, "verdict of {place}: {:?}", batch[number]);
            assert_eq!(found.answers, expected.answers, "answers of {place}: {:?}", batch[number]);
            assert_eq!(found.statuses, expected.statuses, "statuses of {place}");
            assert_eq!(found.at, now, "moment of {place}");
        }
        last = expected.into_iter().next().map(|applied| (batch.swap_remove(0), applied));
    }
}

/// Runs of 250 plans. Every other run sends each plan in a call of its own; the others send batches of up to
/// sixteen.
pub fn the_contract(runs: u32, to: &RedisSettings) {
    the_contract_of(ANYTHING, runs, to);
}

pub fn the_contract_of(scope: Scope, runs: u32, to: &RedisSettings) {
    let (runtime, done) = (runtime(), AtomicU32::new(0));
    always(runs, plans(scope, 250), |steps| {
        let run = done.fetch_add(1, Ordering::Relaxed);
        let mut batches: Vec<(i64, Vec<Plan>)> = Vec::new();
        for (number, (by, plan)) in steps.into_iter().enumerate() {
            match batches.last_mut() {
                Some((_, batch)) if run % 2 == 1 && batch.len() <= number * 7 % 16 => batch.push(plan),
                _ => batches.push((by, vec![plan])),
            }
        }
        let settings = RedisSettings { key_prefix: format!("run {run}:"), ..to.clone() };
        runtime.block_on(step_by_step(&settings, batches, &format!("run {run}")));
    });
}

/// Plans that hold what they charge, and settle, renew and lose it.
pub const HOLDS: Scope = Scope { holds: true, ..ANYTHING };

/// Weakness A7: an algorithm differs between memory and Redis.
#[test]
fn redis_keeps_the_contract() {
    let Some(server) = Server::start() else { return };
    the_contract(400, &at(server.port));
}

#[test]
fn semantics_37_to_42_redis_keeps_the_contract_of_holds() {
    let Some(server) = Server::start() else { return };
    the_contract_of(HOLDS, 400, &at(server.port));
}

#[test]
fn valkey_keeps_the_contract() {
    let Some(setup) = Setup::valkey() else { return };
    let server = setup.start();
    the_contract(400, &at(server.port));
}

#[test]
fn semantics_37_to_42_valkey_keeps_the_contract_of_holds() {
    let Some(setup) = Setup::valkey() else { return };
    let server = setup.start();
    the_contract_of(HOLDS, 100, &at(server.port));
}

#[test]
fn a_primary_that_sentinels_watch_keeps_the_contract() {
    let Some(watched) = Sentinel::start() else { return };
    let sentinels = watched.ports().into_iter().map(|port| Address::Tcp("127.0.0.1".to_owned(), port)).collect();
    let topology = Topology::Sentinel { sentinels, master: NAME.to_owned(), credentials: Credentials::default() };
    the_contract(400, &RedisSettings::new(topology));
}

/// Groups of checks on some of these counters, each with one of its numbers, and with the clock's step before each.
fn groups(counters: Vec<Vec<Numbers>>, furthest: u64) -> impl Strategy<Value = Vec<(i64, Plan)>> {
    let furthest = i64::try_from(furthest).expect("it is not ages");
    let moves = prop_oneof![4 => 0..furthest / 50, 2 => Just(0), 1 => 0..furthest, 1 => -furthest / 10..0];
    let numbered: Vec<(u64, Vec<Numbers>)> = (0..).zip(counters).collect();
    let most = numbered.len();
    let group = subsequence(numbered, 1..=most).prop_flat_map(|counters| {
        let check = |(number, numbers): (u64, Vec<Numbers>)| {
            sample::select(numbers).prop_flat_map(move |numbers| {
                asks(ANYTHING, numbers.holds()).prop_map(move |(needs, charges, refund)| Check {
                    needs,
                    charges,
                    refund,
                    ..one(counter(number), numbers.limit())
                })
            })
        };
        counters.into_iter().map(check).collect::<Vec<_>>()
    });
    vec((moves, group.prop_map(plan)), 150)
}

fn keeps_the_contract(counters: Vec<Vec<Numbers>>, furthest: u64) {
    let Some(server) = Server::start() else { return };
    let (runtime, runs) = (runtime(), AtomicU32::new(0));
    always(60, groups(counters, furthest), |steps| {
        let run = runs.fetch_add(1, Ordering::Relaxed);
        let settings = RedisSettings { key_prefix: format!("run {run}:"), ..at(server.port) };
        let batches = steps.into_iter().map(|(by, plan)| (by, vec![plan])).collect();
        runtime.block_on(step_by_step(&settings, batches, &format!("run {run}")));
    });
}

/// The most frequent plans: a few buckets whose numbers do not change.
#[test]
fn groups_of_everyday_buckets_keep_the_contract() {
    let bucket = |tokens, window, burst, debt| vec![Numbers::Bucket { tokens, window, burst, debt }];
    let counters =
        vec![bucket(5, 10 * SECOND, 5, 0), bucket(3, SECOND, 4, 9), bucket(100, 3_600 * SECOND, 20, u64::MAX)];
    keeps_the_contract(counters, 30 * SECOND);
}

/// Extreme numbers of a bucket: fractions of a token that are not round, and levels that take weeks to drain.
#[test]
fn buckets_of_every_size_keep_the_contract() {
    let bucket = |tokens, window, burst, debt| Numbers::Bucket { tokens, window, burst, debt };
    let day = 86_400 * SECOND;
    let all = vec![
        bucket(1_000, 30 * day, 1_000, 0),
        bucket(999_983, day, 999_983, 0),
        bucket(999_983, day, 50, 1_000_000),
        bucket(5, SECOND, 5, 0),
        bucket(7, 60 * SECOND, 100, 50),
        bucket(3, 365 * day, 100, 100),
    ];
    keeps_the_contract(vec![all.clone(), all], 20 * day);
}

/// Logs that grow, wrap around and are forgotten by the hundred.
#[test]
fn long_logs_keep_the_contract() {
    let log = |limit| Numbers::Log { limit, window: 10 * SECOND };
    keeps_the_contract(vec![vec![log(400)], vec![log(150), log(40), log(300)]], 15 * SECOND);
}

#[test]
fn a_plan_that_fails_leaves_the_others_and_writes_nothing() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let redis = connected(&at(server.port)).await;
        let limits = of_each_algorithm(2, 60 * SECOND);
        for (number, limit) in (0..).zip(limits) {
            let (counter_of, others) = (|part: u64| counter(10 * number + part), bucket(2, 60 * SECOND));
            server.ask::<()>(&[b"RPUSH".to_vec(), key(10 * number + 1), b"of another kind".to_vec()]);
            let bad = plan([one(counter_of(0), others), one(counter_of(1), limit), one(counter_of(2), others)]);
            let batch = [plan([one(counter_of(3), others)]), bad.clone(), plan([one(counter_of(4), limit)]), bad];
            let answers = redis.execute(&batch).await;
            let passes = |answer: &Result<Applied, Fault>| answer.as_ref().map(|applied| applied.admitted).ok();
            assert_eq!(
                answers.iter().map(passes).collect::<Vec<_>>(),
                [Some(true), None, Some(true), None],
                "{limit:?}"
            );
            assert_eq!(answers[1].as_ref().err(), Some(&Fault::Script));
            assert_eq!(decide(&redis, one(counter_of(1), limit)).await, Err(Fault::Script), "{limit:?} alone");
            for untouched in [0, 2] {
                assert_eq!(server.ask::<u32>(&[b"EXISTS".to_vec(), key(10 * number + untouched)]), 0, "{limit:?}");
            }
        }
    });
}

/// Weakness D11: refusals write.
#[test]
fn a_server_without_memory_refuses_only_what_writes() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let redis = connected(&at(server.port)).await;
        let limits = of_each_algorithm(1, 3_600 * SECOND);
        for (number, limit) in (0..).zip(limits) {
            assert!(decide(&redis, one(counter(number), limit)).await.expect("there is memory").passes);
        }
        server.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
        assert_eq!(redis.probe().await, Err(Fault::OutOfMemory));
        for (number, limit) in (0..).zip(limits) {
            let other = |limit| plan([one(counter(100 + number), limit)]);
            let refused =
                plan([Check { charges: Charges { admitted: 1, ..Charges::default() }, ..one(counter(number), limit) }]);
            let answers = redis.execute(&[other(limit), refused, other(limit)]).await;
            assert_eq!(answers[0].as_ref().err(), Some(&Fault::OutOfMemory), "{limit:?}");
            assert!(answers[1].as_ref().is_ok_and(|applied| !applied.admitted), "{limit:?}: {:?}", answers[1]);
            assert_eq!(answers[2].as_ref().err(), Some(&Fault::OutOfMemory), "{limit:?}");
        }
        server.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
        for (number, limit) in (0..).zip(limits) {
            let left = decide(
                &redis,
                Check { needs: Needs::default(), charges: Charges::default(), ..one(counter(100 + number), limit) },
            );
            assert_eq!(left.await.expect("there is memory again").remaining, 1, "nothing was charged: {limit:?}");
        }
    });
}

#[test]
fn a_server_without_memory_holds_no_more_and_still_settles_what_it_holds() {
    let Some(server) = Server::start() else { return };
    let holding = Holding::Hold { millis: 60_000, lost: Lost::Charge };
    let held = |number| Check { holding, ..one(counter(number), bucket(10, 3_600 * SECOND)) };
    let hold =
        |lease, checks: &[u64]| Plan { lease: LeaseId(lease), ..plan(checks.iter().map(|&number| held(number))) };
    let settle = |lease| {
        let Check { counter, store, limit, .. } = held(0);
        let action = HoldAction::Settle(Some(0));
        let change = HoldChange { counter, store, limit, lease: LeaseId(lease), action };
        Plan { holds: [change].into_iter().collect(), ..Plan::default() }
    };
    runtime().block_on(async {
        let redis = connected(&at(server.port)).await;
        for lease in [1, 2, 3] {
            assert!(apply(&redis, hold(lease, &[0])).await.expect("there is memory").admitted);
        }
        server.ask::<()>(&["CONFIG", "SET", "maxmemory", "1"]);
        for checks in [&[0][..], &[1], &[0, 1]] {
            assert_eq!(apply(&redis, hold(4, checks)).await.err(), Some(Fault::OutOfMemory), "{checks:?}");
        }
        for lease in [1, 2] {
            let settled = apply(&redis, settle(lease)).await.expect("what is given back takes no memory");
            assert_eq!(settled.statuses[..], [LeaseStatus::Done]);
        }
        server.ask::<()>(&["CONFIG", "SET", "maxmemory", "0"]);
        let left = decide(&redis, Check { needs: Needs::default(), charges: Charges::default(), ..held(0) }).await;
        assert_eq!(left.expect("there is memory again").remaining, 9, "only the third is held");
    });
}

#[test]
fn holds_that_are_long_forgotten_or_were_evicted_in_part_hold_up_no_plan() {
    let Some(server) = Server::start() else { return };
    let clock = ManualClock::at(Timestamp::from_micros(1_700_000_000 * SECOND));
    let limits = [bucket(10, 20 * SECOND), Limit::SlidingWindow(SlidingWindow { limit: 10, window: 20 * SECOND })];
    let hold = |limit, lease, lost| {
        let held = Check { holding: Holding::Hold { millis: 5_000, lost }, ..one(counter(0), limit) };
        Plan { lease: LeaseId(lease), ..plan([held]) }
    };
    runtime().block_on(async {
        let redis = connected_with_clock(&at(server.port), &clock).await;
        for limit in limits {
            let holds = async |lease, lost| {
                assert!(apply(&redis, hold(limit, lease, lost)).await.expect("it is decided").admitted);
                let nothing = (Needs::default(), Charges::default());
                let look = Check { holding: Holding::Reported, ..one(counter(0), limit) };
                let look = Check { needs: nothing.0, charges: nothing.1, ..look };
                decide(&redis, look).await.expect("it is decided").held
            };
            for lost in [Lost::Charge, Lost::Release] {
                assert_eq!(holds(1, lost).await, 1);
                clock.advance(Duration::from_secs(1_000));
                assert_eq!(holds(2, Lost::Charge).await, 1, "what the second holds, under {limit:?}");
                clock.advance(Duration::from_secs(1_000));
            }
            assert_eq!(holds(3, Lost::Charge).await, 1);
            for key in server.ask::<Vec<Vec<u8>>>(&["KEYS", "*h"]) {
                server.ask::<u64>(&[&b"DEL"[..], &key]);
            }
            assert_eq!(holds(4, Lost::Charge).await, 1, "what the fourth holds, under {limit:?}");
            server.ask::<()>(&["FLUSHALL"]);
        }
    });
}

#[test]
fn a_replica_cannot_be_written_to() {
    let Some(primary) = Server::start() else { return };
    let replica = Setup::redis().expect("it is installed").replica_of(&primary).start();
    replica.synced();
    runtime().block_on(async {
        let redis = tollgate::store::Redis::new(&at(replica.port)).expect("no file is read");
        while redis.probe().await == Err(Fault::Unreachable) {
            tokio::task::yield_now().await;
        }
        assert_eq!(redis.probe().await, Err(Fault::ReadOnly));
        for limit in of_each_algorithm(1, SECOND) {
            assert_eq!(decide(&redis, one(counter(0), limit)).await, Err(Fault::ReadOnly), "{limit:?}");
        }
    });
}

#[test]
fn d13_the_script_is_loaded_again_when_the_server_forgot_it() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let redis = connected(&at(server.port)).await;
        for left in [4, 3, 2] {
            let outcome = decide(&redis, one(counter(0), bucket(5, 3_600 * SECOND))).await.expect("it answers");
            assert_eq!(outcome.remaining, left, "executed once");
            server.ask::<()>(&["SCRIPT", "FLUSH"]);
        }
    });
}

#[test]
fn the_clock_of_the_server_decides() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let redis = connected(&at(server.port)).await;
        let micros = || SystemTime::now().duration_since(UNIX_EPOCH).expect("it is later").as_micros();
        let before = micros();
        let applied = apply(&redis, plan([one(counter(0), bucket(5, SECOND))])).await.expect("it answers");
        assert!((before..=micros()).contains(&applied.at.micros().into()));
    });
}

#[test]
fn what_is_forgotten_counts_no_more() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let redis = connected(&at(server.port)).await;
        for (number, limit) in (0..).zip(of_each_algorithm(1, 3_600 * SECOND)) {
            assert_eq!(redis.forget(counter(number)).await, Ok(false));
            assert!(decide(&redis, one(counter(number), limit)).await.expect("it answers").passes);
            let second = Plan { lease: LeaseId(8), ..plan([one(counter(number), limit)]) };
            assert!(!apply(&redis, second.clone()).await.expect("it answers").admitted, "{limit:?}");
            assert_eq!(redis.forget(counter(number)).await, Ok(true), "{limit:?}");
            assert!(apply(&redis, second).await.expect("it answers").admitted, "{limit:?}");
        }
    });
}

/// A store that a reload has replaced may have sent a refund, and the next one sends it again.
#[test]
fn semantics_31_a_refund_is_made_once_by_two_connections_of_one_process() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let (old, new) = (connected(&at(server.port)).await, connected(&at(server.port)).await);
        let limit = of_each_algorithm(10, 3_600 * SECOND)[4];
        for _ in 0..10 {
            assert!(decide(&old, one(counter(1), limit)).await.expect("it answers").passes);
        }
        let refund = Check { refund: 2, ..Check::look(counter(1), limit) };
        let once = Plan { once: std::num::NonZeroU32::new(7), ..plan([refund]) };
        for redis in [&old, &new] {
            let applied = apply(redis, once.clone()).await.expect("it answers");
            assert_eq!(applied.answers[0].map(|outcome| outcome.remaining), Ok(2));
        }
    });
}

/// Every key expires, at least a minute after it stops counting and not hours later.
/// Weakness R3: slots expire while they are in use.
/// Weakness R16: some keys never expire.
/// Weakness D4: a bucket with a large burst expires and is full again.
#[test]
fn no_key_outlives_what_it_counts_by_much_and_none_dies_before() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let redis = connected(&at(server.port)).await;
        let windows = [SECOND, 90 * SECOND, 3_600 * SECOND, 86_400 * SECOND, 30 * 86_400 * SECOND];
        let bursts = Limit::TokenBucket(TokenBucket::new(1, 10 * SECOND, 4_000, 0).expect("it can be held"));
        let cases = windows.into_iter().flat_map(|window| of_each_algorithm(40, window)).chain([bursts]);
        for (number, limit) in (0..).zip(cases) {
            for units in [1, 1, 7, 30] {
                let charge =
                    Check { charges: Charges { admitted: units, ..Charges::default() }, ..one(counter(number), limit) };
                let outcome = decide(&redis, charge).await.expect("it answers");
                let expires: u64 = server.ask(&[b"PTTL".to_vec(), key(number)]);
                let reset = outcome.reset / 1_000;
                assert!(expires > reset + 59_000, "{limit:?}: {expires} ms, reset {reset} ms");
                assert!(expires < 2 * reset + 60_000 + 70_000, "{limit:?}: {expires} ms, reset {reset} ms");
            }
        }
        let keys: Vec<Vec<u8>> = server.ask(&["KEYS", "*"]);
        for key in keys {
            assert!(server.ask::<i64>(&[b"PTTL".to_vec(), key.clone()]) > 0, "{key:?} expires");
        }
    });
}

/// Weakness A10: a key without an expiry blocks for ever.
#[test]
fn a_key_that_lost_its_expiry_blocks_no_client() {
    let Some(server) = Server::start() else { return };
    runtime().block_on(async {
        let clock = ManualClock::at(START);
        let redis = connected_with_clock(&at(server.port), &clock).await;
        let at = async |now, lease, check| {
            clock.set(now);
            let applied = apply(&redis, Plan { lease: LeaseId(lease), ..plan([check]) }).await;
            applied.expect("it answers").admitted
        };
        for (number, limit) in (0..).zip(of_each_algorithm(1, 60 * SECOND)) {
            let check = one(counter(number), limit);
            assert!(at(START, 1, check).await && !at(START, 2, check).await, "{limit:?}");
            assert_eq!(server.ask::<u32>(&[b"PERSIST".to_vec(), key(number)]), 1, "{limit:?}");
            let reset = START.plus(120 * SECOND);
            assert!(at(reset, 3, check).await && !at(reset, 4, check).await, "{limit:?}");
            assert!(server.ask::<i64>(&[b"PTTL".to_vec(), key(number)]) > 0, "{limit:?} expires again");
        }
    });
}
