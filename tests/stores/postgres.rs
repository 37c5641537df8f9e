//! Counters in a real PostgreSQL: the contract of every store, and the faults of this one.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::limiter::{
    Alignment, Calendar, CalendarUnit, Concurrency, FixedWindow, LeaseId, Limit, OnStoreError, SlidingCounter,
    SlidingWindow, TokenBucket,
};
use tollgate::plan::{
    Applied, Charges, Check, CounterName, Fault, HoldChange, LeaseAction, LeaseChange, Needs, Plan, Undo,
};
use tollgate::store::{Backend, MigrateError, Migrated, Postgres, PostgresSettings, migrate};
use tollgate::tls::{PemFile, TlsSettings};

use crate::support::processes::{Certificates, WAIT_TIMEOUT, postgres, read};
use crate::support::reference::plans::{ANYTHING, Reference, SECOND, START, Scope, always, plans};

type Answers = Vec<Result<Applied, Fault>>;

pub(super) fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("a runtime starts")
}

/// Settings for a database, with timeouts for a busy machine. The timestamps of tests are long past, so nothing is
/// swept.
pub(super) fn settings(server: &postgres::Postgres, database: &str) -> PostgresSettings {
    PostgresSettings {
        url: server.url(database),
        connect_timeout: WAIT_TIMEOUT,
        response_timeout: WAIT_TIMEOUT,
        lock_timeout: WAIT_TIMEOUT,
        sweep: false,
        ..PostgresSettings::default()
    }
}

/// A store in a database of its own.
fn store(server: &postgres::Postgres) -> Postgres {
    Postgres::new(&settings(server, &server.database())).expect("the settings are valid")
}

/// The same, which decides by this clock.
fn store_with_clock(server: &postgres::Postgres, clock: &ManualClock) -> Postgres {
    store(server).with_clock(Arc::new(clock.clone()))
}

/// The same plan on other counters, so that each run of a test begins with empty ones.
fn salted(plan: &Plan, salt: u64) -> Plan {
    let mut plan = plan.clone();
    let other = |CounterName([first, second]): CounterName| CounterName([first, second ^ (salt << 32)]);
    plan.checks.iter_mut().for_each(|check| check.counter = other(check.counter));
    plan.changes.iter_mut().for_each(|change| change.counter = other(change.counter));
    plan.holds = plan.holds.iter().map(|change| HoldChange { counter: other(change.counter), ..*change }).collect();
    plan
}

/// A plan that takes back the charges of a plan.
fn undo_plan(plan: &Plan, applied: &Applied) -> Plan {
    let mut undos = Vec::new();
    for (check, answer) in plan.checks.iter().zip(&applied.answers) {
        // Some are taken back only where nothing was charged since.
        let only_if_last = matches!(check.limit, Limit::TokenBucket(_)) && applied.at.micros() / SECOND % 2 == 1;
        let undo = Undo::of(check, &answer.expect("it was answered"), applied.at);
        undos.extend(undo.map(|undo| Undo { only_if_last, ..undo }));
    }
    Plan { undos, ..plan.of_same_asker() }
}

fn compare_random_plans(runs: u32, batch_size: usize) {
    let Some(server) = postgres::Postgres::shared() else { return };
    compare_random_plans_with(&settings(&server, &server.database()), runs, batch_size);
}

/// Executes runs of 250 random plans on PostgreSQL, some of them undone afterwards, and compares the answers with those
/// of `advance`. A call has `batch_size` plans.
pub(super) fn compare_random_plans_with(settings: &PostgresSettings, runs: u32, batch_size: usize) {
    compare_plans_of(ANYTHING, settings, runs, batch_size);
}

fn compare_plans_of(scope: Scope, settings: &PostgresSettings, runs: u32, batch_size: usize) {
    let runtime = runtime();
    let clock = ManualClock::at(START);
    let store = runtime.block_on(async { Postgres::new(settings).expect("the settings are valid") });
    let store = store.with_clock(Arc::new(clock.clone()));
    let execute_at = |plans: &[Plan], now| {
        clock.set(now);
        runtime.block_on(store.execute(plans))
    };
    let (run, decided) = (Cell::new(0), Cell::new(0));
    always(runs, plans(scope, 250), |steps| {
        run.set(run.get() + 1);
        let (mut reference, mut now) = (Reference::default(), START);
        for (number, steps) in steps.chunks(batch_size).enumerate() {
            now = Timestamp::from_micros(now.micros().saturating_add_signed(steps[0].0));
            let mut plans: Vec<Plan> = steps.iter().map(|(_, plan)| salted(plan, run.get())).collect();
            let mut expected: Vec<Applied> = plans.iter().map(|plan| reference.apply(plan, now)).collect();
            if number % 3 == 0 && expected[0].admitted {
                // In the same call, or in the next one at another time.
                let undo = undo_plan(&plans[0], &expected[0]);
                if number % 2 == 0 {
                    expected.push(reference.apply(&undo, now));
                    plans.push(undo);
                } else {
                    compare(number, &plans, &expected, &execute_at(&plans, now));
                    now = Timestamp::from_micros(now.micros().saturating_add_signed(steps[0].0 / 3));
                    expected = vec![reference.apply(&undo, now)];
                    plans = vec![undo];
                }
            }
            compare(number, &plans, &expected, &execute_at(&plans, now));
            decided.set(decided.get() + steps.len());
        }
    });
    assert!(decided.get() >= runs as usize * 250);
}

fn compare(number: usize, plans: &[Plan], expected: &[Applied], found: &Answers) {
    assert_eq!(found.len(), plans.len(), "answers of call {number}");
    for (plan, (expected, found)) in plans.iter().zip(expected.iter().zip(found)) {
        let found = found.as_ref().unwrap_or_else(|fault| panic!("call {number}: {fault}: {plan:?}"));
        assert_eq!(found.admitted, expected.admitted, "verdict in call {number}");
        assert_eq!(found.answers, expected.answers, "answers in call {number}");
        assert_eq!(found.statuses, expected.statuses, "statuses in call {number}");
        assert_eq!(found.at, expected.at, "time of call {number}");
    }
}

/// Weakness R21: the slot of a killed holder is never freed.
#[test]
fn postgres_keeps_the_contract_plan_by_plan() {
    compare_random_plans(20, 1);
}

#[test]
fn semantics_37_to_42_postgres_keeps_the_contract_of_holds() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let scope = Scope { holds: true, ..ANYTHING };
    compare_plans_of(scope, &settings(&server, &server.database()), 10, 1);
    compare_plans_of(scope, &settings(&server, &server.database()), 30, 12);
}

#[test]
fn postgres_keeps_the_contract_in_batches() {
    compare_random_plans(80, 7);
}

/// A limit of each algorithm, which admits `limit` units at once and no more during a test.
pub(super) fn one_of_each_algorithm(limit: u32) -> [Limit; 6] {
    let window = 3_600 * SECOND;
    [
        Limit::TokenBucket(TokenBucket::new(limit.into(), window, limit, 0).expect("it can be held")),
        Limit::SlidingWindow(SlidingWindow { limit, window }),
        Limit::SlidingCounter(SlidingCounter { limit, window }),
        Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::Epoch(24 * window) }),
        Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(window) }),
        Limit::Concurrency(Concurrency { max: limit, lease: window }),
    ]
}

pub(super) fn check(name: u64, limit: Limit) -> Check {
    Check { on_store_error: OnStoreError::Deny, ..Check::charge(CounterName([name, name]), limit, 1) }
}

/// A plan of one group with a lease of its own.
pub(super) fn plan(checks: impl IntoIterator<Item = Check>) -> Plan {
    static LEASE: AtomicU64 = AtomicU64::new(1);
    let lease = LeaseId(LEASE.fetch_add(1, Ordering::Relaxed).into());
    Plan { lease, ..Plan::of(checks) }
}

/// A plan of a single check on a counter.
pub(super) fn one(name: u64) -> Plan {
    plan([check(name, one_of_each_algorithm(1_000_000)[0])])
}

pub(super) async fn execute(store: &Postgres, plan: &Plan) -> Result<Applied, Fault> {
    store.execute(std::slice::from_ref(plan)).await.pop().expect("one answer for each")
}

/// Waits until a condition holds.
pub(super) async fn wait_until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !holds().await {
        assert!(began.elapsed() < WAIT_TIMEOUT, "timed out waiting: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Executes plans at given times, one call each, and compares the answers with those of `advance`.
fn compare_at_times(plans: impl IntoIterator<Item = (Timestamp, Vec<Plan>)>) {
    let Some(server) = postgres::Postgres::shared() else { return };
    runtime().block_on(async {
        let clock = ManualClock::at(START);
        let store = store_with_clock(&server, &clock);
        let mut reference = Reference::default();
        for (number, (now, plans)) in plans.into_iter().enumerate() {
            let expected: Vec<Applied> = plans.iter().map(|plan| reference.apply(plan, now)).collect();
            clock.set(now);
            compare(number, &plans, &expected, &store.execute(&plans).await);
        }
    });
}

/// Pseudorandom numbers, the same in every run.
fn numbers(mut seed: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 20) % below
    }
}

#[test]
fn the_window_of_a_calendar_is_chosen_by_the_clock_of_the_store() {
    let weeks = Calendar::of(CalendarUnit::Week, &jiff::tz::TimeZone::UTC);
    let bounds = weeks.bounds(START).times();
    let limit = Limit::FixedWindow(FixedWindow { limit: 2, alignment: Alignment::Calendar(weeks) });
    let mut moments = vec![START];
    for bound in bounds {
        moments.extend([bound.micros() - 1, bound.micros(), bound.micros() + 1].map(Timestamp::from_micros));
    }
    moments.extend([bounds[3].plus(SECOND), bounds[1], bounds[0], START]);
    compare_at_times(moments.into_iter().map(|now| (now, vec![plan([check(1, limit)]), plan([check(1, limit)])])));
}

#[test]
fn a_long_log_counts_only_the_grants_in_its_window() {
    let mut next = numbers(1);
    let mut now = START;
    compare_at_times((0..700).map(|_| {
        // Mostly short steps; sometimes long ones, after which many or a few states expire.
        let by = if next(40) == 0 { next(90 * SECOND) } else { next(SECOND / 2) };
        now = now.plus(by);
        let limit = [100, 300, 300, 40][next(4) as usize];
        let log = Limit::SlidingWindow(SlidingWindow { limit, window: 60 * SECOND });
        let cost = u32::try_from(1 + next(3) * next(8)).expect("it is small");
        let mut request = check(1, log);
        match next(8) {
            0 => (request.needs, request.charges) = (Needs { one_left: true, ..Needs::default() }, Charges::default()),
            1 => (request.needs, request.charges, request.refund) = (Needs::default(), Charges::default(), cost),
            when => {
                request.needs.fits = cost;
                request.charges = Charges { admitted: cost, passed: 0, refused: if when == 2 { cost } else { 0 } };
            }
        }
        (now, vec![plan([request])])
    }));
}

/// Weakness D11: moments are seconds in floating point.
#[test]
fn the_largest_numbers_are_counted_exactly() {
    let mut next = numbers(2);
    let mut wide = move |most: u64| (1 + next(most)) >> next(most.ilog2().into());
    let small = |wide: &mut dyn FnMut(u64) -> u64| u32::try_from(wide(u32::MAX.into()).max(1)).expect("it is below");
    let ten_years = 315_360_000 * SECOND;
    let limit = |kind: usize, wide: &mut dyn FnMut(u64) -> u64| {
        let (limit, window) = (small(wide), wide(ten_years).max(1));
        match kind {
            0 => TokenBucket::new(small(wide).into(), window, limit, wide(1 << 40)).ok().map(Limit::TokenBucket),
            1 => Some(Limit::SlidingWindow(SlidingWindow { limit: limit.min(10), window })),
            2 => Some(Limit::SlidingCounter(SlidingCounter { limit, window })),
            3 => Some(Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::Epoch(window) })),
            4 => Some(Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(window) })),
            _ => Some(Limit::Concurrency(Concurrency { max: limit, lease: window })),
        }
    };
    let mut calls = Vec::new();
    let mut now = START;
    for _ in 0..60 {
        let mut plans = Vec::new();
        for name in 0..48 {
            let kind = (name % 6) as usize;
            let Some(limit) = limit(kind, &mut wide) else { continue };
            let cost = small(&mut wide);
            let charges = Charges { admitted: cost, passed: cost, refused: cost };
            let fits = if kind == 5 { 1 } else { cost };
            let refund = if wide(4) == 1 { small(&mut wide) } else { 0 };
            plans.push(plan([Check {
                needs: Needs { fits, ..Needs::default() },
                charges,
                refund,
                ..check(name, limit)
            }]));
        }
        calls.push((now, plans));
        now = now.plus(wide(ten_years / 4));
    }
    compare_at_times(calls);
}

/// Weakness R19: callers that contend for a row fail.
/// Weakness R21: rows are locked outside of the transaction that writes them.
#[test]
fn five_hundred_callers_of_three_instances_on_a_limit_of_ten_admit_ten() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let settings = settings(&server, &server.database());
    runtime().block_on(five_hundred_callers_of_three_instances_admit_ten(&settings));
}

/// Lets 500 callers of three instances request limits of ten: of each algorithm alone, then all together.
pub(super) async fn five_hundred_callers_of_three_instances_admit_ten(settings: &PostgresSettings) {
    let stores = [(); 3].map(|()| Arc::new(Postgres::new(settings).expect("the settings are valid")));
    let limits = one_of_each_algorithm(10);
    for kind in 0..=limits.len() {
        let checks = match kind {
            6 => limits.iter().zip(60..).map(|(limit, name)| check(name, *limit)).collect(),
            kind => vec![check(kind as u64, limits[kind])],
        };
        let mut callers = tokio::task::JoinSet::new();
        for caller in 0..50 {
            let store = stores[caller % 3].clone();
            let plans: Vec<Plan> = (0..10).map(|_| plan(checks.iter().copied())).collect();
            callers.spawn(async move { store.execute(&plans).await });
        }
        let answers: Answers = callers.join_all().await.into_iter().flatten().collect();
        assert_eq!(answers.len(), 500);
        let admitted = answers.iter().filter(|answer| answer.as_ref().expect("an answer").admitted).count();
        assert_eq!(admitted, 10, "of kind {kind}");
    }
}

/// Weakness R19: callers that contend for a row fail.
#[test]
fn random_plans_over_shared_counters_do_not_deadlock() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let settings = settings(&server, &database);
    always(1, plans(ANYTHING, 1_600), |steps| {
        runtime().block_on(async {
            let store = Arc::new(Postgres::new(&settings).expect("the settings are valid"));
            // Twenty counters: ten, and the same ten salted.
            let plans: Vec<Plan> =
                steps.iter().zip(0..).map(|((_, plan), number)| salted(plan, number / 7 % 2)).collect();
            let counters: Vec<CounterName> =
                plans.iter().flat_map(|plan| plan.checks.iter().map(|check| check.counter)).collect();
            let mut callers = tokio::task::JoinSet::new();
            for part in plans.chunks(plans.len() / 8) {
                let (store, part) = (store.clone(), part.to_vec());
                callers.spawn(async move {
                    for batch in part.chunks(5) {
                        let answers = store.execute(batch).await;
                        assert!(answers.iter().all(Result::is_ok), "{:?}", answers.iter().find(|one| one.is_err()));
                    }
                });
            }
            // Delete rows while callers wait for them.
            for counter in counters.iter().step_by(97) {
                store.forget(*counter).await.expect("it is forgotten");
            }
            callers.join_all().await;
        });
    });
    let deadlocks = format!("SELECT deadlocks FROM pg_stat_database WHERE datname = '{database}'");
    assert_eq!(server.value("postgres", &deadlocks).as_deref(), Some("0"));
}

#[test]
fn a_forgotten_counter_starts_empty() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    runtime().block_on(async {
        let store = Postgres::new(&settings(&server, &database)).expect("the settings are valid");
        for (limit, name) in one_of_each_algorithm(1).into_iter().zip(0..) {
            let request = || plan([check(name, limit)]);
            assert!(execute(&store, &request()).await.expect("an answer").admitted);
            assert!(!execute(&store, &request()).await.expect("an answer").admitted);
            assert_eq!(store.forget(CounterName([name, name])).await, Ok(true));
            assert_eq!(store.forget(CounterName([name, name])).await, Ok(false));
            assert!(execute(&store, &request()).await.expect("an answer").admitted, "{limit:?}");
        }
    });
}

#[test]
fn a_charge_of_a_full_window_of_ten_thousand_writes_no_more_than_one_of_ten() {
    let Some(setup) = postgres::Setup::new() else { return };
    // The first write to a page after a checkpoint logs the whole page, which would distort the measurement.
    let server = setup.line("full_page_writes = off").line("autovacuum = off").start();
    let database = server.database();
    runtime().block_on(async {
        let clock = ManualClock::at(START);
        let store = Postgres::new(&settings(&server, &database)).expect("the settings are valid");
        let store = store.with_clock(Arc::new(clock.clone()));
        let window = 3_600 * SECOND;
        let written = async |name: u64, limit: u32| {
            let log = Limit::SlidingWindow(SlidingWindow { limit, window });
            // Beyond the limit the newest grant replaces the oldest.
            let always = Charges { admitted: 1, passed: 1, refused: 1 };
            let request = || plan([Check { charges: always, ..check(name, log) }]);
            for (number, chunk) in (0..u64::from(limit)).collect::<Vec<_>>().chunks(100).enumerate() {
                let plans: Vec<Plan> = chunk.iter().map(|_| request()).collect();
                clock.set(START.plus(number as u64));
                store.execute(&plans).await.into_iter().for_each(|answer| drop(answer.expect("an answer")));
            }
            // One row per grant, as if each had a moment of its own.
            let counter = format!("'00000000-0000-000{name}-0000-00000000000{name}'");
            let first = START.micros();
            server.execute(
                &database,
                &format!(
                    "DELETE FROM tollgate.grants_v1 WHERE counter = {counter}; INSERT INTO tollgate.grants_v1 \
                     SELECT {counter}, n, {first} + n FROM generate_series(1, {limit}) n"
                ),
            );
            let position = || {
                let bytes = server.value(&database, "SELECT pg_current_wal_insert_lsn() - '0/0'").expect("a number");
                bytes.parse::<u64>().expect("a number")
            };
            let before = position();
            for number in 0..100 {
                clock.set(START.plus(20_000 + number));
                assert!(!execute(&store, &request()).await.expect("an answer").admitted, "it is full");
            }
            position() - before
        };
        let (small, large) = (written(1, 10).await, written(2, 10_000).await);
        println!("WAL of 100 charges: {small} bytes with 10 grants, {large} with 10 000");
        assert!(large <= 2 * small, "{large} bytes, against {small}");
    });
}

/// Weakness R21: rows are never deleted.
#[test]
fn counters_that_expired_long_ago_are_swept_and_others_stay() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let rows = || {
        let sql = "SELECT (SELECT count(*) FROM tollgate.counters_v1) || ' ' || (SELECT count(*) FROM \
                   tollgate.grants_v1) || ' ' || (SELECT count(*) FROM tollgate.leases_v1)";
        server.value(&database, sql).expect("numbers")
    };
    runtime().block_on(async {
        let clock = ManualClock::at(START);
        let store = Postgres::new(&settings(&server, &database)).expect("the settings are valid");
        let store = store.with_clock(Arc::new(clock.clone()));
        let limits = one_of_each_algorithm(5);
        let all = |from: u64| plan(limits.iter().zip(from..).map(|(limit, name)| check(name, *limit)));
        let now = server.value(&database, "SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint");
        let now = Timestamp::from_micros(now.expect("a number").parse().expect("a number"));
        let ago = |hours: u64| Timestamp::from_micros(now.micros() - hours * 3_600 * SECOND);
        // More rows than one sweep deletes, and some that have not expired.
        clock.set(ago(100));
        for batch in 0..30 {
            let plans: Vec<Plan> = (0..20).map(|plan| all(1_000 + 200 * batch + 10 * plan)).collect();
            assert!(store.execute(&plans).await.iter().all(Result::is_ok));
        }
        clock.set(now);
        assert!(execute(&store, &all(0)).await.expect("an answer").admitted);
        assert_eq!(rows(), "3606 601 601");
        assert_eq!(store.sweep().await, Ok(true), "there is more to do at once");
        wait_until("the whole table was swept", async || {
            store.sweep().await.expect("it is swept");
            rows() == "6 1 1"
        })
        .await;
        // After a sweep by another instance, this one does nothing.
        server.execute(&database, "UPDATE tollgate.counters_v1 SET expires = 0");
        assert_eq!(server.value(&database, "SELECT tollgate.sweep_v1(0, 60000000)").as_deref(), Some("f"));
        assert_eq!(rows(), "6 1 1");
    });
}

/// Weakness R21: names are interpolated into SQL.
#[test]
fn concurrent_migrations_create_a_schema_once_and_names_are_quoted() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    runtime().block_on(async {
        let mut settings = settings(&server, &database);
        settings.schema_name = "select".to_owned();
        settings.table_prefix = "My-".to_owned();
        let mut made = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let settings = settings.clone();
            made.spawn(async move { migrate(&settings).await.expect("it is created") });
        }
        let done: Vec<Migrated> = made.join_all().await.into_iter().flatten().collect();
        assert_eq!(done.iter().filter(|done| **done == Migrated::Created(6)).count(), 1, "{done:?}");
        assert_eq!(done.iter().filter(|done| **done == Migrated::Current(6)).count(), 3, "{done:?}");

        // Another schema or prefix has counters of its own.
        let others = PostgresSettings { table_prefix: String::new(), ..settings.clone() };
        for settings in [settings, others] {
            let store = Postgres::new(&settings).expect("the settings are valid");
            let request = || plan([check(1, one_of_each_algorithm(1)[0])]);
            assert!(execute(&store, &request()).await.expect("an answer").admitted);
            assert!(!execute(&store, &request()).await.expect("an answer").admitted);
        }
    });
}

#[test]
fn a_missing_or_older_schema_is_upgraded_and_an_incompatible_newer_one_is_rejected() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let version = |version: i32, oldest: i32| {
        server.execute(&database, &format!("UPDATE tollgate.meta SET version = {version}, oldest = {oldest}"));
    };
    runtime().block_on(async {
        let settings = PostgresSettings { auto_create: false, ..settings(&server, &database) };
        let fresh = || Postgres::new(&settings).expect("the settings are valid");
        assert_eq!(fresh().probe().await, Err(Fault::Script), "there is no schema, and it must not be created");
        assert_eq!(migrate(&settings).await.expect("created"), [Migrated::Created(6)]);
        assert_eq!(fresh().probe().await, Ok(()));
        assert_eq!(migrate(&settings).await.expect("as it was"), [Migrated::Current(6)]);

        version(0, 0);
        assert_eq!(fresh().probe().await, Err(Fault::Script), "it is older");
        assert_eq!(migrate(&settings).await.expect("upgraded"), [Migrated::Upgraded(0, 6)]);
        assert!(execute(&fresh(), &one(1)).await.expect("an answer").admitted);

        // Of version 1, whose instances go on with their function and the counters.
        let once = || plan([check(5, Limit::SlidingWindow(SlidingWindow { limit: 1, window: 3_600 * SECOND }))]);
        assert!(execute(&fresh(), &once()).await.expect("an answer").admitted);
        let parameters = "bigint, uuid[], uuid[], bigint[], bigint[], integer";
        server.execute(&database, &format!("DROP FUNCTION tollgate.apply_v1_2({parameters})"));
        for version in ["3", "4", "5", "6"] {
            let function = format!("tollgate.apply_v1_{version}({parameters}, boolean[])");
            server.execute(&database, &format!("DROP FUNCTION {function}"));
        }
        version(1, 1);
        assert_eq!(migrate(&settings).await.expect("upgraded"), [Migrated::Upgraded(1, 6)]);
        assert!(!execute(&fresh(), &once()).await.expect("an answer").admitted, "it is counted still");
        let functions = "SELECT count(*) FROM pg_proc WHERE proname LIKE 'apply_v1%'";
        assert_eq!(server.value(&database, functions).as_deref(), Some("6"));
        let oldest = "SELECT version || ' ' || oldest FROM tollgate.meta";
        assert_eq!(server.value(&database, oldest).as_deref(), Some("6 1"));

        // A newer version that is compatible with this one.
        version(7, 1);
        assert_eq!(fresh().probe().await, Ok(()));
        assert_eq!(migrate(&settings).await.expect("as it was"), [Migrated::Current(7)]);
        version(7, 7);
        assert_eq!(fresh().probe().await, Err(Fault::Script), "it is newer");
        let refused = migrate(&settings).await.expect_err("it is newer");
        assert!(matches!(refused, MigrateError::Newer { found: 7, .. }), "{refused}");

        version(6, 1);
        let unlogged = PostgresSettings { unlogged: true, ..settings.clone() };
        let rewritten = [Migrated::Current(6), Migrated::Rewritten { unlogged: true }];
        assert_eq!(migrate(&unlogged).await.expect("rewritten"), rewritten);
        let kind = "SELECT relpersistence FROM pg_class WHERE relname = 'counters_v1'";
        assert_eq!(server.value(&database, kind).as_deref(), Some("u"));
        assert!(execute(&fresh(), &one(1)).await.expect("an answer").admitted);
    });
}

#[test]
fn a_function_or_a_table_that_was_dropped_is_named_and_restored_by_a_migration() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    runtime().block_on(async {
        let settings = PostgresSettings { auto_create: false, ..settings(&server, &database) };
        migrate(&settings).await.expect("created");
        let running = Postgres::new(&settings).expect("the settings are valid");
        assert!(execute(&running, &one(1)).await.expect("an answer").admitted);
        let objects = server.value(
            &database,
            "SELECT string_agg(what, ';') FROM (SELECT 'FUNCTION ' || oid::regprocedure AS what FROM pg_proc WHERE \
             pronamespace = 'tollgate'::regnamespace AND proname !~ 'apply_v1(_[2345])?$' UNION ALL SELECT 'TABLE ' || \
             oid::regclass FROM pg_class WHERE relnamespace = 'tollgate'::regnamespace AND relkind = 'r' AND relname <> \
             'meta') AS all_of_them",
        );
        let objects = objects.expect("there are some");
        assert_eq!(objects.split(';').count(), 22, "{objects}");
        for object in objects.split(';') {
            server.execute(&database, &format!("DROP {object}"));
            let fresh = || Postgres::new(&settings).expect("the settings are valid");
            assert_eq!(fresh().probe().await, Err(Fault::Script), "{object}");
            assert_eq!(migrate(&settings).await.expect("restored"), [Migrated::Restored(6)], "{object}");
            assert!(execute(&fresh(), &one(1)).await.expect("an answer").admitted, "{object}");
            wait_until("a store in use goes on", async || execute(&running, &one(1)).await.is_ok()).await;
            // With the right to create tables, a new connection restores them.
            server.execute(&database, &format!("DROP {object}"));
            let creating = PostgresSettings { auto_create: true, ..settings.clone() };
            let store = Postgres::new(&creating).expect("the settings are valid");
            assert!(execute(&store, &one(1)).await.expect("an answer").admitted, "{object}");
        }
        // The functions of a newer release are not replaced by those of this one.
        server.execute(&database, "DROP FUNCTION tollgate.forget_v1(uuid); UPDATE tollgate.meta SET version = 7");
        let refused = migrate(&settings).await.expect_err("it is of a newer release").to_string();
        assert!(refused.contains("lacks \"tollgate\".\"forget_v1\"; run `tollgate store migrate`"), "{refused}");
    });
}

#[test]
fn a_migration_of_a_server_that_accepts_and_never_answers_ends() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = listener.local_addr().expect("an address");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
    runtime.expect("a runtime starts").block_on(async {
        let url = format!("postgres://me:secret@{address}/limits");
        let settings = PostgresSettings { url, connect_timeout: WAIT_TIMEOUT, ..PostgresSettings::default() };
        let refused = migrate(&settings).await.expect_err("nothing answers").to_string();
        assert!(refused.starts_with("the server accepts the connection but does not answer"), "{refused}");
    });
}

/// Counters that are only looked at get no row, alone or in a batch with others.
#[test]
fn a_check_that_charges_nothing_inserts_no_row() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let rows = || {
        server.value(
            &database,
            "SELECT string_agg(right(counter::text, 2), ' ' ORDER BY counter) FROM tollgate.counters_v1",
        )
    };
    runtime().block_on(async {
        let store = Postgres::new(&settings(&server, &database)).expect("the settings are valid");
        let limits = one_of_each_algorithm(5);
        let peek = |name: u64, limit| Check { charges: Charges::default(), ..check(name, limit) };
        for (limit, name) in limits.into_iter().zip(0x10..) {
            let looked = execute(&store, &plan([peek(name, limit)])).await.expect("an answer");
            assert_eq!((looked.admitted, looked.answers[0].expect("an answer").remaining), (true, 5), "{limit:?}");
        }
        let release = LeaseChange {
            counter: CounterName([0x20, 0x20]),
            store: 0,
            lease: LeaseId(1),
            action: LeaseAction::Release,
        };
        let released = Plan { changes: [release].into_iter().collect(), ..plan([]) };
        assert!(execute(&store, &released).await.is_ok());
        let refund = Check { refund: 1, ..peek(0x21, limits[0]) };
        assert!(execute(&store, &plan([refund])).await.is_ok());
        assert_eq!(rows(), None);

        // In any order with counters that are charged, in one plan and in one call.
        let mixed = [
            plan([peek(0x30, limits[1]), check(0x31, limits[1]), peek(0x32, limits[5])]),
            plan([peek(0x33, limits[2])]),
            plan([check(0x34, limits[3]), peek(0x31, limits[1])]),
        ];
        let answers = store.execute(&mixed).await;
        let left = |plan: usize, check: usize| {
            answers[plan].as_ref().expect("an answer").answers[check].expect("an answer").remaining
        };
        assert_eq!([left(0, 0), left(0, 1), left(0, 2), left(1, 0), left(2, 0), left(2, 1)], [5, 4, 5, 5, 4, 4]);
        assert_eq!(rows().as_deref(), Some("31 34"));
        let seen = execute(&store, &plan([peek(0x34, limits[3]), peek(0x40, limits[0])])).await.expect("an answer");
        assert_eq!(seen.answers[0].expect("an answer").remaining, 4, "an existing counter is read");
        assert_eq!(rows().as_deref(), Some("31 34"));
    });
}

/// The function of version 1 of the schema has its arguments and answers still.
#[test]
fn an_instance_of_the_first_schema_counts_in_the_same_counters() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let settings = settings(&server, &database);
    runtime().block_on(async {
        let bucket = Limit::TokenBucket(TokenBucket::new(10, 3_600 * SECOND, 10, 0).expect("it can be held"));
        let request = |cost| plan([Check::charge(CounterName([0, 1]), bucket, cost)]);
        let clock = Arc::new(ManualClock::at(START));
        let store = Postgres::new(&settings).expect("the settings are valid").with_clock(clock);
        let left = async || store.execute(&[request(0)]).await[0].clone().expect("an answer").answers[0];
        assert!(store.execute(&[request(2)]).await[0].as_ref().expect("an answer").admitted);
        let (start, level) = (START.micros(), 360_000_000_u64);
        let shape = |room: u64, cost: u64| format!("1,10,10,{level},1,0,0,{room},0,{cost},0,0,0,0,0");
        let apply = |shape: String, program: &str, answers: u32| {
            let uuid = "'00000000-0000-0000-0000-000000000001'::uuid";
            let sql = format!(
                "SELECT tollgate.apply_v1({start}, ARRAY[{uuid}], ARRAY[{uuid}], ARRAY[{shape}], ARRAY[{program}], {answers})"
            );
            server.value(&database, &sql).expect("an answer")
        };
        // A plan without changes and undos, of one group of one check; then the same again, refused.
        let twice = "0,1,0,0,1,1,1,0,0,1,0,0,1,1,1,0";
        let reset = 8 * level;
        let expected = format!("{{{start},1,2,{reset},-2,0,2,{reset},{}}}", 4 * level);
        assert_eq!(apply(shape(6, 6), twice, 9), expected);
        assert_eq!(left().await.expect("an answer").remaining, 2);
        // An undo of all six units, in a plan without checks.
        let undo = format!("0,1,0,1,0,1,0,6,{start},{reset}");
        assert_eq!(apply(shape(6, 6), &undo, 2), format!("{{{start},1}}"));
        assert_eq!(left().await.expect("an answer").remaining, 8);
    });
}

/// The function of version 4 of the schema has its answers still, to instances that know of no status above two.
#[test]
fn an_instance_of_the_fourth_schema_renews_and_looks_as_it_did() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let settings = settings(&server, &database);
    runtime().block_on(async {
        let slots = Limit::Concurrency(Concurrency { max: 2, lease: 60 * SECOND });
        let store =
            Postgres::new(&settings).expect("the settings are valid").with_clock(Arc::new(ManualClock::at(START)));
        let taken = Plan { lease: LeaseId(1), ..Plan::of([Check::charge(CounterName([0, 1]), slots, 1)]) };
        assert!(execute(&store, &taken).await.expect("an answer").admitted);
        let uuid = "'00000000-0000-0000-0000-000000000001'::uuid";
        for (change, status) in [("-9", 0), ("-2", 0), ("5000000", 0), ("-1", 0), ("-9", 2), ("-2", 2)] {
            let sql = format!(
                "SELECT tollgate.apply_v1_4({start}, ARRAY[{uuid}], ARRAY[{uuid}], ARRAY[]::bigint[], \
                 ARRAY[0,1,1,0,0,1,1,{change}]::bigint[], 3)",
                start = START.micros()
            );
            let expected = format!("{{{},1,{status}}}", START.micros());
            assert_eq!(server.value(&database, &sql), Some(expected), "{change}");
        }
    });
}

/// Weakness R22: following the documentation creates a schema that does not work.
#[test]
fn unknown_or_unprivileged_roles_are_denied() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    runtime().block_on(async {
        let mut settings = settings(&server, &database);
        let right = settings.url.clone();
        settings.url = right.replace(postgres::PASSWORD, "guessed");
        let store = Postgres::new(&settings).expect("the settings are valid");
        assert_eq!(execute(&store, &one(1)).await.err(), Some(Fault::Denied));
        let refused = migrate(&settings).await.expect_err("the password is wrong").to_string();
        assert!(refused.contains("password authentication failed"), "{refused}");
        assert!(!refused.contains("guessed"), "{refused}");

        server.execute("postgres", "CREATE ROLE guest LOGIN PASSWORD 'welcome'");
        settings.url = right.replace(&format!("{}:{}", postgres::USER, postgres::PASSWORD), "guest:welcome");
        let store = Postgres::new(&settings).expect("the settings are valid");
        assert_eq!(execute(&store, &one(1)).await.err(), Some(Fault::Denied), "a guest may not create a schema");

        // A schema created by another user is used with no more privileges than these.
        settings.auto_create = false;
        migrate(&PostgresSettings { url: right, ..settings.clone() }).await.expect("it is created");
        assert_eq!(execute(&store, &one(1)).await.err(), Some(Fault::Denied));
        // As docs/stores.md grants them.
        let page = read("docs/stores.md");
        let rights = page.split("```sql").nth(1).and_then(|rest| rest.split("```").next()).expect("it shows them");
        let rights = rights.replace("TO limits", "TO guest");
        // Some installations take from everyone what PostgreSQL gives by default.
        server.execute(&database, "REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA tollgate FROM PUBLIC");
        server.execute(&database, &rights);
        let store = Postgres::new(&settings).expect("the settings are valid");
        assert_eq!(store.probe().await, Ok(()));
        assert!(execute(&store, &one(1)).await.expect("an answer").admitted);
        assert!(store.sweep().await.is_ok());
    });
}

#[test]
fn tls_accepts_only_certificates_of_a_trusted_authority() {
    let Some(setup) = postgres::Setup::new() else { return };
    let server = setup.tls().start();
    let database = server.database();
    let files = server.certificates.clone().expect("it uses TLS");
    let other_directory = tempfile::tempdir().expect("a directory");
    let untrusted = Certificates::make(other_directory.path());
    runtime().block_on(async {
        let plain = settings(&server, &database);
        let tls = |ca: &std::path::Path| TlsSettings { ca: Some(PemFile::read(ca)), ..TlsSettings::default() };
        let with = |ca: &std::path::Path| PostgresSettings { tls: tls(ca), ..plain.clone() };
        let request = async |settings: &PostgresSettings| {
            let store = Postgres::new(settings).expect("the settings are valid");
            execute(&store, &one(1)).await.map(|applied| applied.admitted)
        };
        assert_eq!(request(&with(&files.authority)).await, Ok(true));
        let in_url = format!("{}?sslmode=verify-full&sslrootcert={}", plain.url, files.authority.display());
        assert_eq!(request(&PostgresSettings { url: in_url, ..plain.clone() }).await, Ok(true));
        assert_eq!(
            request(&with(&untrusted.authority)).await,
            Err(Fault::Unreachable),
            "another authority's certificate"
        );
        assert_eq!(request(&plain).await, Err(Fault::Denied), "this server requires TLS");
        for (name, expected) in [("localhost", Ok(true)), ("elsewhere.test", Err(Fault::Unreachable))] {
            let tls = TlsSettings { server_name: Some(name.to_owned()), ..tls(&files.authority) };
            assert_eq!(request(&PostgresSettings { tls, ..plain.clone() }).await, expected, "{name}");
        }
        let missing = with(&other_directory.path().join("missing.pem"));
        assert!(Postgres::new(&missing).is_err());
    });
}

#[test]
fn a_store_is_warm_with_the_connections_that_its_server_has_left() {
    let Some(setup) = postgres::Setup::new() else { return };
    // Three of them are reserved for superusers.
    let server = setup.line("max_connections = 6").start();
    let database = server.database();
    runtime().block_on(async {
        let settings = PostgresSettings { pool_size: 8, ..settings(&server, &database) };
        let store = Postgres::new(&settings).expect("the settings are valid");
        wait_until("it is warm", async || store.warm_up().await.is_ok()).await;
        let sessions = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'tollgate'";
        assert_eq!(server.value(&database, sessions).as_deref(), Some("3"));
        assert!(execute(&store, &one(1)).await.expect("an answer").admitted);
        let other = Postgres::new(&settings).expect("the settings are valid");
        let refused = other.warm_up().await.expect_err("no connection is left");
        assert!(refused.contains("connection slots"), "{refused}");
    });
}

#[test]
fn a_locked_row_times_out_its_callers_and_does_not_delay_others() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    runtime().block_on(async {
        let mut settings = settings(&server, &database);
        settings.pool_size = 2;
        settings.lock_timeout = Duration::from_millis(300);
        let store = Arc::new(Postgres::new(&settings).expect("the settings are valid"));
        assert!(execute(&store, &one(1)).await.expect("an answer").admitted);
        let (mut holder, connection) = tokio_postgres::connect(&settings.url, NoTls).await.expect("a session");
        let connection = tokio::spawn(connection);
        let held = holder.transaction().await.expect("a transaction");
        held.execute("SELECT FROM tollgate.counters_v1 FOR UPDATE", &[]).await.expect("it is locked");

        let began = Instant::now();
        let waiting = tokio::spawn({
            let store = store.clone();
            async move { execute(&store, &one(1)).await.err() }
        });
        assert!(execute(&store, &one(2)).await.expect("an answer").admitted, "others are answered meanwhile");
        assert_eq!(waiting.await.expect("no panic"), Some(Fault::Busy));
        assert!(began.elapsed() >= settings.lock_timeout);

        // Both connections are in use: the next call waits for one of them.
        let (first, second, third) = (one(1), one(1), one(2));
        let all = tokio::join!(execute(&store, &first), execute(&store, &second), execute(&store, &third));
        assert_eq!((all.0.err(), all.1.err()), (Some(Fault::Busy), Some(Fault::Busy)));
        drop(all.2);
        held.rollback().await.expect("it is unlocked");
        wait_until("the row is unlocked", async || execute(&store, &one(1)).await.is_ok()).await;
        connection.abort();
    });
}

#[test]
fn semantics_31_a_refund_is_made_once_by_two_connections_of_one_process_to_a_postgres() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let settings = settings(&server, &server.database());
    runtime().block_on(async {
        let [old, new] = [(); 2].map(|()| Postgres::new(&settings).expect("the settings are valid"));
        let full = check(1, one_of_each_algorithm(10)[4]);
        for _ in 0..10 {
            assert!(execute(&old, &plan([full])).await.expect("an answer").admitted);
        }
        let refund = Check { refund: 2, ..Check::look(full.counter, full.limit) };
        let once = Plan { once: std::num::NonZeroU32::new(7), ..plan([refund]) };
        for store in [&old, &new] {
            let applied = execute(store, &once).await.expect("an answer");
            assert_eq!(applied.answers[0].map(|outcome| outcome.remaining), Ok(2));
        }
    });
}

#[test]
fn the_store_reconnects_to_a_restarted_server_and_reports_faults_of_a_dead_one() {
    let Some(setup) = postgres::Setup::new() else { return };
    let mut server = setup.start();
    let database = server.database();
    let settings = PostgresSettings { sweep: false, url: server.url(&database), ..PostgresSettings::default() };
    let runtime = runtime();
    let store = runtime.block_on(async { Arc::new(Postgres::new(&settings).expect("the settings are valid")) });
    let over = Arc::new(AtomicBool::new(false));
    // An algorithm that does not drain during the test.
    let counted = |name| plan([check(name, one_of_each_algorithm(1_000_000)[4])]);
    let load = || {
        let (store, over) = (store.clone(), over.clone());
        runtime.spawn(async move {
            let (mut answered, mut faults) = (0_u64, Vec::new());
            while !over.load(Ordering::Relaxed) {
                match execute(&store, &counted(1)).await {
                    Ok(applied) => answered += u64::from(applied.admitted),
                    Err(fault) => {
                        faults.push(fault);
                        tokio::time::sleep(Duration::from_millis(1)).await;
                    }
                }
            }
            (answered, faults)
        })
    };
    let loads: Vec<_> = (0..8).map(|_| load()).collect();
    runtime.block_on(wait_until("the first answer", async || execute(&store, &one(2)).await.is_ok()));
    server.restart();
    runtime.block_on(wait_until("the first answer afterwards", async || execute(&store, &one(2)).await.is_ok()));
    over.store(true, Ordering::Relaxed);
    let (mut answered, mut faults) = (0, Vec::new());
    for load in loads {
        let (more, failed) = runtime.block_on(load).expect("no panic");
        answered += more;
        faults.extend(failed);
    }
    assert!(
        faults
            .iter()
            .all(|fault| matches!(fault, Fault::Unreachable | Fault::ConnectionLost | Fault::Timeout | Fault::Busy)),
        "{faults:?}"
    );
    assert!(!faults.is_empty() && answered > 0);
    // Every answered call was counted; those without an answer may have been.
    let count = "SELECT a FROM tollgate.counters_v1 ORDER BY counter LIMIT 1";
    let counted: u64 = server.value(&database, count).expect("it is there").parse().expect("a number");
    assert!(
        (answered.saturating_sub(1)..=answered + faults.len() as u64).contains(&counted),
        "{counted} of {answered}"
    );

    server.freeze();
    let frozen = runtime.block_on(async { tokio::time::timeout(WAIT_TIMEOUT, execute(&store, &one(1))).await });
    assert_eq!(frozen.expect("it times out").err(), Some(Fault::Timeout));
    server.thaw();
    runtime.block_on(wait_until("it answers again", async || execute(&store, &one(1)).await.is_ok()));
    server.kill();
    runtime.block_on(wait_until("its end is noticed", async || {
        execute(&store, &one(1)).await.err() == Some(Fault::Unreachable)
    }));
}

#[test]
fn a_read_only_database_is_reported_until_it_accepts_writes() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let read_only = |on: &str| {
        let others = format!(
            "ALTER DATABASE {database} SET default_transaction_read_only = {on}; \
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{database}'"
        );
        server.execute("postgres", &others);
    };
    runtime().block_on(async {
        let store = Postgres::new(&settings(&server, &database)).expect("the settings are valid");
        assert_eq!(store.probe().await, Ok(()));
        read_only("on");
        wait_until("it is read only", async || store.probe().await == Err(Fault::ReadOnly)).await;
        assert_eq!(execute(&store, &one(1)).await.err(), Some(Fault::ReadOnly));
        // Connections are not closed by the server this time: the store discards those that are read-only.
        server.execute("postgres", &format!("ALTER DATABASE {database} SET default_transaction_read_only = off"));
        wait_until("it accepts writes", async || execute(&store, &one(1)).await.is_ok()).await;
        assert_eq!(store.probe().await, Ok(()));
    });
}

#[test]
fn tollgate_store_migrate_creates_and_reports_the_schema() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let run = |configuration: &str| {
        std::fs::write(directory.path().join("tollgate.toml"), configuration).expect("written");
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_tollgate"));
        command.args(["store", "migrate", "--config", "tollgate.toml"]).current_dir(directory.path());
        let output = command.env_remove("RUST_LOG").output().expect("the program runs");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let stores = |url: &str| format!("[stores.limits]\nengine = \"postgres\"\nurl = \"{url}\"\n");
    let url = server.url(&server.database());
    let (code, said, _) = run(&stores(&url));
    assert_eq!((code, said.as_str()), (Some(0), "stores.limits: schema \"tollgate\": created, version 6\n"));
    let (code, said, _) = run(&stores(&url));
    assert_eq!((code, said.as_str()), (Some(0), "stores.limits: schema \"tollgate\": version 6, nothing to do\n"));

    let (code, said, error) = run(&stores(&url.replace(postgres::PASSWORD, "guessed")));
    assert_eq!((code, said.as_str()), (Some(1), ""));
    assert!(error.contains("stores.limits: ") && error.contains("password authentication failed"), "{error}");
    assert!(!error.contains("guessed"), "{error}");
    let (code, said, _) = run("");
    assert_eq!((code, said.as_str()), (Some(0), "no store keeps its counters in PostgreSQL: nothing to do\n"));
}
