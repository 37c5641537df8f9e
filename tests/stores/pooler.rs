//! Counters in a real PostgreSQL behind a real PgBouncer, which gives each transaction another connection of the server.

use std::time::{Duration, Instant};

use tokio_postgres::NoTls;
use tollgate::plan::{CounterName, Fault};
use tollgate::store::{Backend, Migrated, Postgres, PostgresSettings, migrate};

use super::postgres::{
    check, compare_random_plans_with, execute, five_hundred_callers_of_three_instances_admit_ten, one,
    one_of_each_algorithm, plan, runtime, settings, wait_until,
};
use crate::support::processes::{PgBouncer, Proxy, postgres};

/// Settings of a session that another client must not find changed.
const FOREIGN_SETTINGS: &str = "SELECT string_agg(name || '=' || setting, ' ' ORDER BY name) FROM pg_settings WHERE name \
     IN ('statement_timeout', 'lock_timeout', 'synchronous_commit', 'jit', 'default_transaction_isolation')";

/// Settings for a database behind a pooler, with parameters for the URL.
fn pooled(server: &postgres::Postgres, pooler: &PgBouncer, database: &str, parameters: &str) -> PostgresSettings {
    PostgresSettings { url: format!("{}{parameters}", pooler.url(database)), ..settings(server, database) }
}

/// What clients of the pooler find in the sessions that it gives them, while all its connections are in use.
async fn sessions(pooler: &PgBouncer, database: &str, connections: usize) -> Vec<(String, i64)> {
    let mut clients = Vec::new();
    for _ in 0..connections {
        let (client, connection) = tokio_postgres::connect(&pooler.url(database), NoTls).await.expect("a session");
        tokio::spawn(connection);
        client.batch_execute("BEGIN").await.expect("a connection of the server");
        clients.push(client);
    }
    let mut found = Vec::new();
    for client in &clients {
        let row = client.query_typed_one(FOREIGN_SETTINGS, &[]).await.expect("the settings");
        let kept = "SELECT count(*) FROM pg_prepared_statements";
        let statements = client.query_typed_one(kept, &[]).await.expect("the statements").get(0);
        found.push((row.get(0), statements));
        client.batch_execute("COMMIT").await.expect("the connection is free");
    }
    found
}

/// However the pooler deals with the settings of the startup, it is found out, and no session of others changes.
#[test]
fn instances_behind_a_transaction_pooler_are_exact_and_leave_no_trace_in_the_sessions_of_others() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let poolers = [
        ("which refuses options", vec![], ""),
        ("which ignores options", vec!["ignore_startup_parameters = options"], ""),
        ("which the URL names", vec!["ignore_startup_parameters = options"], "?pgbouncer=true"),
        ("which resets sessions", vec!["server_reset_query_always = 1"], ""),
        ("which the URL denies", vec![], "?pgbouncer=false"),
    ];
    runtime().block_on(async {
        for (which, mut lines, parameters) in poolers {
            lines.push("default_pool_size = 3");
            let Some(pooler) = PgBouncer::start(&server, &lines) else { return };
            let database = server.database();
            let settings = PostgresSettings {
                sweep: true,
                synchronous_commit: false,
                ..pooled(&server, &pooler, &database, parameters)
            };
            let before = sessions(&pooler, &database, 3).await;
            assert!(before[0].0.contains("statement_timeout=0 synchronous_commit=on"), "{before:?}");
            five_hundred_callers_of_three_instances_admit_ten(&settings).await;
            let store = Postgres::new(&settings).expect("the settings are valid");
            assert_eq!(store.probe().await, Ok(()));
            assert!(store.sweep().await.is_ok());
            assert_eq!(store.forget(CounterName([0, 0])).await, Ok(true));
            assert_eq!(sessions(&pooler, &database, 3).await, before, "a pooler {which}");
        }
    });
}

/// A connection of the server serves the transactions of all, so each finds the statements of the others.
#[test]
fn postgres_keeps_the_contract_behind_a_transaction_pooler() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let Some(pooler) = PgBouncer::start(&server, &["default_pool_size = 2"]) else { return };
    compare_random_plans_with(&pooled(&server, &pooler, &server.database(), ""), 4, 7);
}

#[test]
fn the_settings_of_the_store_hold_behind_a_pooler() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let Some(pooler) = PgBouncer::start(&server, &[]) else { return };
    let database = server.database();
    // Settings with which a decision would fail, or would not be durable.
    server.execute(
        "postgres",
        &format!(
            "ALTER DATABASE {database} SET default_transaction_isolation = 'serializable'; \
             ALTER DATABASE {database} SET statement_timeout = '100ms'"
        ),
    );
    runtime().block_on(async {
        let settings = PostgresSettings {
            lock_timeout: Duration::from_millis(300),
            ..pooled(&server, &pooler, &database, "?pgbouncer=true")
        };
        migrate(&settings).await.expect("it is created");
        let store = Postgres::new(&settings).expect("the settings are valid");
        assert!(execute(&store, &one(99)).await.expect("an answer").admitted);
        let (mut holder, connection) = tokio_postgres::connect(&server.url(&database), NoTls).await.expect("a session");
        tokio::spawn(connection);
        holder.batch_execute("SET statement_timeout = 0").await.expect("a setting");
        let held = holder.transaction().await.expect("a transaction");
        held.batch_execute("SELECT FROM tollgate.counters_v1 FOR UPDATE").await.expect("it is locked");
        let began = Instant::now();
        assert_eq!(execute(&store, &one(99)).await.err(), Some(Fault::Busy));
        assert!(began.elapsed() >= settings.lock_timeout, "neither the statement's timeout of the database");
        held.rollback().await.expect("it is unlocked");
        let long = PostgresSettings { lock_timeout: settings.response_timeout, ..settings };
        five_hundred_callers_of_three_instances_admit_ten(&long).await;
    });
}

/// The address of PostgreSQL becomes that of a pooler.
#[test]
fn a_pooler_that_appears_later_is_found_out() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    let direct = Proxy::to(server.port);
    let port = direct.port;
    let url = server.url(&database).replace(&format!(":{}/", server.port), &format!(":{port}/"));
    let settings = PostgresSettings { url, ..settings(&server, &database) };
    let runtime = runtime();
    let store = runtime.block_on(async { Postgres::new(&settings).expect("the settings are valid") });
    assert!(runtime.block_on(execute(&store, &one(99))).expect("an answer").admitted);
    drop(direct);
    let Some(pooler) = PgBouncer::start_on(port, &server, &["default_pool_size = 2"]) else { return };
    runtime.block_on(async {
        let before = sessions(&pooler, &database, 2).await;
        wait_until("it is connected again", async || execute(&store, &one(99)).await.is_ok()).await;
        five_hundred_callers_of_three_instances_admit_ten(&settings).await;
        assert!(execute(&store, &one(99)).await.expect("an answer").admitted);
        assert_eq!(sessions(&pooler, &database, 2).await, before);
    });
}

/// As behind a pooler that passes on whatever it is sent: the statements of a session that was direct are gone.
#[test]
fn a_prepared_statement_that_is_gone_costs_no_answer() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let database = server.database();
    runtime().block_on(async {
        let settings = PostgresSettings { pool_size: 1, ..settings(&server, &database) };
        let store = Postgres::new(&settings).expect("the settings are valid");
        // It does not drain during the test.
        let requests = [(); 4].map(|()| plan([check(1, one_of_each_algorithm(1_000_000)[4])]));
        assert!(execute(&store, &requests[0]).await.expect("an answer").admitted);
        server.execute(
            &database,
            "CREATE OR REPLACE FUNCTION tollgate.forget_v1(name uuid) RETURNS boolean LANGUAGE plpgsql \
             AS $$BEGIN DEALLOCATE ALL; RETURN true; END$$",
        );
        assert_eq!(store.forget(CounterName([1, 1])).await, Ok(true));
        for (request, left) in requests[1..].iter().zip([999_998, 999_997, 999_996]) {
            let applied = execute(&store, request).await.expect("an answer");
            assert_eq!(applied.answers[0].expect("an answer").remaining, left);
        }
    });
}

#[test]
fn the_schema_is_migrated_through_a_pooler() {
    let Some(server) = postgres::Postgres::shared() else { return };
    let Some(pooler) = PgBouncer::start(&server, &["default_pool_size = 2"]) else { return };
    let settings = pooled(&server, &pooler, &server.database(), "");
    runtime().block_on(async {
        let mut made = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let settings = settings.clone();
            made.spawn(async move { migrate(&settings).await.expect("it is made") });
        }
        let done: Vec<Migrated> = made.join_all().await.into_iter().flatten().collect();
        assert_eq!(done.iter().filter(|done| matches!(done, Migrated::Created(_))).count(), 1, "{done:?}");
    });
}
