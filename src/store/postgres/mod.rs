//! Counters in PostgreSQL, 14 or newer. Each call runs one function on the server, which decides a batch of plans.
//!
//! The function (apply.sql) is [`crate::plan::advance`] in PL/pgSQL:
//!
//! ```text
//!   insert or lock each row, in the order of names -> read the clock -> load -> plan, plan ... -> write each once
//! ```
//!
//! A batch that waits for a row waits for the batch of another instance, so on one hot counter the batches of all
//! instances run one after the other, each as long as a commit. A single query would decide by the state from before it
//! waited, and `now()` is the time at which the transaction began.
//!
//! A statement whose caller was cancelled runs to its end in its own task, so that the connection, which may be half
//! set up, remains usable for the next caller.

mod error;
mod hints;
mod link;
mod migrate;
mod names;
mod settings;
mod tls;
mod url;
mod wire;

use std::fmt::Display;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, QueueMode, RecyclingMethod, Runtime, TimeoutType,
};
use futures_util::future::join_all;
use futures_util::{StreamExt, stream};
use tokio::task::JoinHandle;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSqlOwned, Type};
use tokio_postgres::{Error, Row};

use self::error::with_causes;
use self::hints::HintChannel;
use self::link::{Connector, Link, Parameter};
pub use self::migrate::{MigrateError, Migrated};
use self::names::SchemaNames;
use self::settings::ParsedSettings;
pub use self::settings::{PostgresSettings, PostgresSettingsError};
use self::wire::{ApplyAnswer, ApplyArguments, Uuid, bigint};
use super::remedy::with_remedy;
use super::shared::{Backend, CALENDAR_ATTEMPTS, HearText, StoreClock, process_id};
use super::warnings::Warnings;
use crate::clock::{Clock, Timestamp};
use crate::limiter::{Alignment, FixedWindow, Limit};
use crate::plan::{Applied, Charges, Check, CounterName, Fault, Plan};
use tokio::time::timeout;

/// How long the id of a plan is remembered, as in Redis.
const ID_RETENTION: Duration = Duration::from_secs(60);

/// How often idle connections are asked for a sign of life: a gateway on the way may have dropped them silently.
const PING_INTERVAL: Duration = Duration::from_secs(5);

/// How long a counter is kept after it expires: the server's clock can step back as far without harm.
const EXPIRED_COUNTER_RETENTION: Duration = Duration::from_secs(600);

/// Asks whether the server is read-only, as a replica is. It answers while its disk is full, and so refusals go on.
const PROBE_SQL: &str = "SELECT current_setting('transaction_read_only')::boolean";

/// How often expired counters are swept, by all instances together.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// How many connections are opened at a time to fill the pool.
const FILLED_AT_ONCE: usize = 2;

/// The most connections that are opened before a store decides: more than it has calls in flight at first.
const WARM_CONNECTIONS: usize = 4;

/// The delay between the steps of a sweep that found many.
const SWEEP_STEP_DELAY: Duration = Duration::from_millis(20);

/// How long after the server's own timeout a statement may still answer, before its connection is closed.
const STATEMENT_TIMEOUT_GRACE: Duration = Duration::from_millis(250);

/// The timeout of connecting for `tollgate store migrate`, until the server has accepted the user.
const MIGRATION_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The timeout of creating or upgrading the schema.
const MIGRATION_TIMEOUT: Duration = Duration::from_secs(120);

/// The error of a connection whose server stops answering while the connection is set up.
const SETUP_TIMEOUT_ERROR: &str = "connection setup timed out: the server accepted the connection but does not answer";

/// A PostgreSQL store.
pub struct Postgres {
    pool: Arc<PostgresPool>,
    tasks: Vec<JoinHandle<()>>,
    /// Replaces the server's own clock, in tests.
    clock: Option<Arc<dyn Clock>>,
    server_clock: StoreClock,
    hints: HintChannel,
}

/// The connection pool with the statements of the store, shared by its tasks.
struct PostgresPool {
    connections: Pool,
    link: Arc<Link>,
    statements: Statements,
    response_timeout: Duration,
    warnings: Arc<Warnings>,
}

/// The SQL of each statement.
struct Statements {
    apply: String,
    apply_once: String,
    forget: String,
    sweep: String,
}

impl Postgres {
    /// A store that connects at its first call. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// The first setting that is invalid.
    pub fn new(settings: &PostgresSettings) -> Result<Self, PostgresSettingsError> {
        Self::named("", settings)
    }

    /// Like [`new`](Self::new), with the name of the store for the log.
    ///
    /// # Errors
    ///
    /// As `new`.
    #[expect(clippy::missing_panics_doc, reason = "the pool has the runtime that its timeouts need")]
    pub fn named(name: &str, settings: &PostgresSettings) -> Result<Self, PostgresSettingsError> {
        let ParsedSettings { config, tls, names, shared } = settings.parse()?;
        let statements = Statements {
            apply: format!("SELECT {}($1, $2, $3, $4, $5, $6, $7)", names.of("apply")),
            // One statement is one transaction: the id is remembered if, and only if, the rest takes effect.
            apply_once: format!(
                "SELECT CASE WHEN id.answer[2] = 1 THEN {apply}($1, $8, $9, $10, $11, $12, $13) \
                 ELSE {apply}($1, $14, $15, $16, $17, $18, $19) END \
                 FROM (SELECT {apply}($1, $2, $3, $4, $5, $6, $7) AS answer OFFSET 0) AS id",
                apply = names.of("apply")
            ),
            forget: format!("SELECT {}($1)", names.of("forget")),
            sweep: format!("SELECT {}($1, $2)", names.of("sweep")),
        };
        let warnings = Arc::new(Warnings::of(name));
        let link = Arc::new(Link::new(settings, shared, warnings.clone()));
        let hints = HintChannel::new(&names, config.clone(), tls.clone(), link.clone());
        let connector = Connector { link: link.clone(), tls };
        let manager =
            Manager::from_connect(config, connector, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let connections = Pool::builder(manager)
            .max_size(settings.pool_size)
            // The server process that decided last has all it needs in its caches: taking them in turn cost half as much
            // again of its CPU when calls do not overlap.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(settings.response_timeout))
            .create_timeout(Some(2 * settings.connect_timeout))
            .runtime(Runtime::Tokio1)
            .post_create(setup_hook(settings, names, link.clone(), statements.apply.clone(), warnings.clone()))
            .build()
            .expect("timeouts only need a runtime, which is set");
        let response_timeout = settings.response_timeout;
        let pool = Arc::new(PostgresPool { connections, link, statements, response_timeout, warnings });
        let mut tasks = vec![tokio::spawn(ping_periodically(pool.clone()))];
        if settings.sweep {
            tasks.push(tokio::spawn(sweep_periodically(pool.clone())));
        }
        Ok(Self { pool, tasks, clock: None, server_clock: StoreClock::default(), hints })
    }

    /// Decides by this clock instead of the server's own, for tests. It is read once for each call; sweeps follow the
    /// server's clock.
    #[must_use]
    pub fn with_clock(mut self, clock: Arc<dyn Clock>) -> Self {
        self.clock = Some(clock);
        self
    }

    /// Removes some of the counters that expired long ago, and returns whether there may be more. With
    /// [`PostgresSettings::sweep`], the store does this every second.
    ///
    /// # Errors
    ///
    /// Why the store did not answer.
    pub async fn sweep(&self) -> Result<bool, Fault> {
        detached(self.pool.clone(), |pool| async move { pool.sweep(Duration::ZERO).await }).await
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Creates or upgrades the schema of a store, as `tollgate store migrate` does, and returns what was done.
///
/// # Errors
///
/// The settings are invalid, or the server reported an error. Then nothing was changed.
pub async fn migrate(settings: &PostgresSettings) -> Result<Vec<Migrated>, MigrateError> {
    let ParsedSettings { config, tls, names, .. } = settings.parse()?;
    let silent = |_| MigrateError::Silent;
    let (mut client, connection) = timeout(MIGRATION_CONNECT_TIMEOUT, config.connect(tls)).await.map_err(silent)??;
    let connection = tokio::spawn(connection);
    let migrated = migrate::migrate(&mut client, &names, settings.unlogged, true);
    let done = timeout(MIGRATION_TIMEOUT, migrated).await;
    connection.abort();
    done.map_err(silent)?
}

impl Postgres {
    /// Executes plans in one statement.
    async fn execute_together(&self, plans: &[Plan]) -> Vec<Result<Applied, Fault>> {
        if plans.is_empty() {
            return Vec::new();
        }
        let failed = |fault| plans.iter().map(|_| Err(fault)).collect();
        let mut at = self.expected_time();
        for _ in 0..CALENDAR_ATTEMPTS {
            let (arguments, now) = (ApplyArguments::of(plans, at), self.test_time());
            let call = detached(self.pool.clone(), move |pool| async move { pool.apply(&arguments, now).await });
            match call.await.and_then(|answer| self.read(plans, &answer, &mut at)) {
                Ok(Some(answers)) => return answers.into_iter().map(Ok).collect(),
                Ok(None) => {}
                Err(fault) => return failed(fault),
            }
        }
        failed(Fault::Script)
    }

    /// Executes a plan with an id, and without what is executed once if another call with the id has been executed.
    async fn execute_once(&self, plan: &Plan) -> Result<Applied, Fault> {
        let mut at = self.expected_time();
        for attempt in 0..CALENDAR_ATTEMPTS as u32 {
            // With the wrong windows of a calendar only the id is remembered, so the next attempt has another.
            let once = plan.once.and_then(|id| NonZeroU32::new(id.get() | attempt << 30));
            let id = Plan { once, ..plan.clone() }.once_name(process_id()).unwrap_or_default();
            let arguments = [id_plan(id), plan.clone(), without_once(plan)].map(|plan| ApplyArguments::of(&[plan], at));
            let now = self.test_time();
            let call = detached(self.pool.clone(), move |pool| async move { pool.apply_once(&arguments, now).await });
            if let Some(answers) = self.read(std::slice::from_ref(plan), &call.await?, &mut at)? {
                return answers.into_iter().next().ok_or(Fault::Script);
            }
        }
        Err(Fault::Script)
    }

    /// Reads an answer. `None` if the windows of a calendar did not hold for the server's time, which `at` is set to.
    fn read(&self, plans: &[Plan], answer: &[i64], at: &mut Timestamp) -> Result<Option<Vec<Applied>>, Fault> {
        let (server, answers) = match wire::decode(plans, answer).ok_or(Fault::Script)? {
            ApplyAnswer::Answers(server, answers) => (server, Some(answers)),
            ApplyAnswer::OutsideCalendar(server) => (server, None),
        };
        self.server_clock.record(server);
        *at = server;
        Ok(answers)
    }

    /// The time at which a call is expected to decide.
    fn expected_time(&self) -> Timestamp {
        self.clock.as_ref().map_or_else(|| self.server_clock.now(), |clock| clock.now())
    }

    /// The time that tests set, in Unix microseconds.
    fn test_time(&self) -> Option<i64> {
        self.clock.as_ref().map(|clock| bigint(clock.now().micros()))
    }
}

/// A plan that is admitted only the first time: its counter holds one unit for as long as an id is remembered.
fn id_plan(id: CounterName) -> Plan {
    let alignment = Alignment::FirstHit(u64::try_from(ID_RETENTION.as_micros()).unwrap_or(u64::MAX));
    Plan::of([Check::charge(id, Limit::FixedWindow(FixedWindow { limit: 1, alignment }), 1)])
}

/// A plan without what takes effect once: its refunds, and the charges of checks that charge refusals too.
fn without_once(plan: &Plan) -> Plan {
    let mut plan = plan.clone();
    for check in &mut plan.checks {
        check.refund = 0;
        if check.charges.refused > 0 {
            check.charges = Charges::default();
        }
    }
    plan
}

impl Backend for Postgres {
    async fn execute(&self, plans: &[Plan]) -> Vec<Result<Applied, Fault>> {
        if plans.iter().all(|plan| plan.once.is_none()) {
            return self.execute_together(plans).await;
        }
        // Each plan with an id has a statement of its own, the others share one.
        let (once, others): (Vec<usize>, Vec<usize>) = (0..plans.len()).partition(|&place| plans[place].once.is_some());
        let together: Vec<Plan> = others.iter().map(|&place| plans[place].clone()).collect();
        let each = join_all(once.iter().map(|&place| self.execute_once(&plans[place])));
        let (together, each) = tokio::join!(self.execute_together(&together), each);
        let mut answers: Vec<_> = others.into_iter().zip(together).chain(once.into_iter().zip(each)).collect();
        answers.sort_unstable_by_key(|(place, _)| *place);
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        detached(self.pool.clone(), move |pool| async move { pool.forget(counter).await }).await
    }

    async fn publish(&self, message: String) {
        self.hints.publish(message).await;
    }

    async fn listen(&self, hear: HearText) {
        self.hints.listen(hear).await;
    }

    async fn probe(&self) -> Result<(), Fault> {
        detached(self.pool.clone(), |pool| async move { pool.probe().await }).await
    }

    async fn warm_up(&self) -> Result<(), String> {
        self.pool.fill().await
    }
}

/// Runs work in its own task, which continues when the caller is cancelled.
async fn detached<T, F>(pool: Arc<PostgresPool>, work: impl FnOnce(Arc<PostgresPool>) -> F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Fault>> + Send + 'static,
{
    tokio::spawn(work(pool)).await.unwrap_or(Err(Fault::Script))
}

impl PostgresPool {
    /// Calls the function with the arguments, at `now` if tests give a time in Unix microseconds.
    async fn apply(&self, arguments: &ApplyArguments, now: Option<i64>) -> Result<Vec<i64>, Fault> {
        let now: Parameter<'_> = (&now, Type::INT8);
        let parameters: Vec<_> = std::iter::once(now).chain(parameters(arguments)).collect();
        self.run(&self.statements.apply, &parameters, first_value).await
    }

    /// Calls the function with the arguments of an id, and then with those of the plan with the id, or of the plan
    /// without what is executed once.
    async fn apply_once(&self, arguments: &[ApplyArguments; 3], now: Option<i64>) -> Result<Vec<i64>, Fault> {
        let now: Parameter<'_> = (&now, Type::INT8);
        let parameters: Vec<_> = std::iter::once(now).chain(arguments.iter().flat_map(parameters)).collect();
        self.run(&self.statements.apply_once, &parameters, first_value).await
    }

    async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        self.run(&self.statements.forget, &[(&Uuid::from(counter), Type::UUID)], first_value).await
    }

    async fn sweep(&self, pause: Duration) -> Result<bool, Fault> {
        let [slack, pause] =
            [EXPIRED_COUNTER_RETENTION, pause].map(|time| bigint(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)));
        let parameters: [Parameter<'_>; 2] = [(&slack, Type::INT8), (&pause, Type::INT8)];
        self.run(&self.statements.sweep, &parameters, first_value).await
    }

    /// Opens all connections of the pool, or as many as the server has left, and checks that it accepts writes.
    async fn fill(&self) -> Result<(), String> {
        // The rest is opened when it is needed.
        let most = self.connections.status().max_size;
        let size = most.min(WARM_CONNECTIONS);
        // All are held at once, so that each is another one. All opened at once would delay calls of other pools.
        let mut opening = stream::iter(0..size).map(|_| self.connections.get()).buffer_unordered(FILLED_AT_ONCE);
        let (mut opened, mut full) = (Vec::<Object>::with_capacity(size), None);
        while let Some(connection) = opening.next().await {
            match connection {
                Ok(connection) => opened.push(connection),
                Err(error) if is_full(&error) => full = Some(why_not_connected(&error)),
                Err(error) => return Err(with_remedy(why_not_connected(&error))),
            }
        }
        match full {
            Some(reason) if opened.is_empty() => return Err(reason),
            Some(reason) => {
                let count = opened.len();
                self.warnings.warn(&format_args!(
                    "the server has {count} of {size} connections left, pool_max_size is {most}: {reason}"
                ));
            }
            None => {}
        }
        drop((opening, opened));
        self.probe().await.map_err(|fault| match self.warnings.latest() {
            text if text.is_empty() => fault.to_string(),
            text => text,
        })
    }

    async fn probe(&self) -> Result<(), Fault> {
        self.run(PROBE_SQL, &[], |row| match row.try_get(0) {
            Ok(true) => Err(Fault::ReadOnly),
            Ok(false) => Ok(()),
            Err(_) => Err(Fault::Script),
        })
        .await
    }

    /// Runs a statement over a connection of the pool, and reads its only row. A connection whose server does not
    /// answer or is read-only is closed: the next one may reach another server.
    async fn run<T>(
        &self,
        sql: &str,
        parameters: &[Parameter<'_>],
        read: impl FnOnce(&Row) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let connection = self
            .connections
            .get()
            .await
            .map_err(|error| self.warn(fault_of_pool(&error), &why_not_connected(&error)))?;
        let answer = self.link.query(&connection, sql, parameters);
        let failed = match timeout(self.response_timeout + STATEMENT_TIMEOUT_GRACE, answer).await {
            Ok(Ok(row)) => match read(&row) {
                Ok(value) => return Ok(value),
                Err(fault) => self.warn(fault, &fault),
            },
            Ok(Err(error)) => self.warn(fault_of_statement(&error), &with_causes(&error)),
            Err(elapsed) => {
                drop(Object::take(connection));
                return Err(self.warn(Fault::Timeout, &elapsed));
            }
        };
        if failed == Fault::ReadOnly {
            drop(Object::take(connection));
        }
        Err(failed)
    }

    /// Logs an error.
    fn warn(&self, fault: Fault, error: &dyn Display) -> Fault {
        self.warnings.warn(&format_args!("call failed, {}: {error}", fault.name()));
        fault
    }

    /// Asks each idle connection for a sign of life, all at the same time: a gateway drops all connections that are idle,
    /// and waiting for each in turn would take as many timeouts. One that gives none is closed.
    async fn ping(&self) {
        // Each probe holds a connection while it waits, so that the next one gets another.
        join_all((0..self.connections.status().available).map(|_| self.probe())).await;
    }
}

/// The arguments of the function, but the time.
fn parameters(arguments: &ApplyArguments) -> [Parameter<'_>; 6] {
    let ApplyArguments { names, holders, shapes, program, answers, charged } = arguments;
    [
        (names, Type::UUID_ARRAY),
        (holders, Type::UUID_ARRAY),
        (shapes, Type::INT8_ARRAY),
        (program, Type::INT8_ARRAY),
        (answers, Type::INT4),
        (charged, Type::BOOL_ARRAY),
    ]
}

/// The first value of a row.
fn first_value<T: FromSqlOwned>(row: &Row) -> Result<T, Fault> {
    row.try_get(0).map_err(|_| Fault::Script)
}

/// Sets up each new connection: the check of the schema or its creation, the prepared statement.
fn setup_hook(
    settings: &PostgresSettings,
    names: SchemaNames,
    link: Arc<Link>,
    apply: String,
    warnings: Arc<Warnings>,
) -> Hook {
    let (auto_create, unlogged) = (settings.auto_create, settings.unlogged);
    let limit = settings.response_timeout + STATEMENT_TIMEOUT_GRACE;
    let setup = Arc::new((names, link, apply, warnings));
    // The pool opens connections concurrently, and one of them creates the schema.
    let migration_lock = Arc::new(tokio::sync::Mutex::new(()));
    Hook::async_fn(move |client, _| {
        let (setup, migration_lock) = (setup.clone(), migration_lock.clone());
        Box::pin(async move {
            let (names, link, apply, warnings) = &*setup;
            match with_timeout(limit, migrate::check(&**client, names)).await? {
                Err(error) if auto_create && error.is_mended_by_migration() => {
                    let _guard = migration_lock.lock().await;
                    let migrated =
                        with_timeout(MIGRATION_TIMEOUT, migrate::migrate(client, names, unlogged, false)).await?;
                    for done in migrated.map_err(hook_error)? {
                        if !matches!(done, Migrated::Current(_)) {
                            tracing::info!(store = warnings.name(), schema = names.schema(), ?done, "schema migrated");
                        }
                    }
                }
                checked => checked.map_err(hook_error)?,
            }
            with_timeout(limit, link.prepare(client, apply)).await?.map_err(HookError::Backend)
        })
    })
}

/// Fails with [`SETUP_TIMEOUT_ERROR`] if the work takes longer.
async fn with_timeout<T>(limit: Duration, work: impl Future<Output = T>) -> Result<T, HookError> {
    timeout(limit, work).await.map_err(|_| HookError::message(SETUP_TIMEOUT_ERROR))
}

fn hook_error(error: MigrateError) -> HookError {
    match error {
        MigrateError::Server(error) => HookError::Backend(error),
        error => HookError::message(error.to_string()),
    }
}

/// Removes expired counters every [`SWEEP_INTERVAL`], a few at a time until none is left or the store fails.
async fn sweep_periodically(pool: Arc<PostgresPool>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        let mut pause = SWEEP_INTERVAL;
        while let Ok(true) = pool.sweep(pause).await {
            pause = Duration::ZERO;
            tokio::time::sleep(SWEEP_STEP_DELAY).await;
        }
    }
}

/// Keeps idle connections alive.
async fn ping_periodically(pool: Arc<PostgresPool>) {
    loop {
        tokio::time::sleep(PING_INTERVAL).await;
        pool.ping().await;
    }
}

/// Why the pool gives no connection, in the server's words.
fn why_not_connected(error: &PoolError) -> String {
    match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => {
            format!("connecting failed: {}", with_causes(error))
        }
        PoolError::PostCreateHook(HookError::Message(text)) => format!("connecting failed: {text}"),
        PoolError::Timeout(TimeoutType::Create) => "connecting timed out".to_owned(),
        PoolError::Timeout(TimeoutType::Wait) => "no connection of the pool was free in time".to_owned(),
        error => with_causes(error),
    }
}

/// Whether the server, or the role, has no connection left.
fn is_full(error: &PoolError) -> bool {
    matches!(error, PoolError::Backend(error) if error.code() == Some(&SqlState::TOO_MANY_CONNECTIONS))
}

fn fault_of_pool(error: &PoolError) -> Fault {
    match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => fault(error),
        PoolError::Timeout(TimeoutType::Wait) => Fault::Busy,
        PoolError::PostCreateHook(HookError::Message(text)) if text == SETUP_TIMEOUT_ERROR => Fault::Busy,
        PoolError::Timeout(_) | PoolError::Closed => Fault::Unreachable,
        PoolError::PostCreateHook(_) | PoolError::NoRuntimeSpecified => Fault::Script,
    }
}

/// The fault of a statement. An error without a code is that the connection broke; the codes are that the server ended
/// it.
fn fault_of_statement(error: &Error) -> Fault {
    match error.code().map(SqlState::code) {
        None | Some("57P01" | "57P02" | "57P05") => Fault::ConnectionLost,
        Some(_) => fault(error),
    }
}

/// The fault of an error, by its SQLSTATE code. An error without a code is one of the connection.
fn fault(error: &Error) -> Fault {
    let Some(code) = error.code() else { return Fault::Unreachable };
    let code = code.code();
    match (code, &code[..2.min(code.len())]) {
        // The statement was cancelled, or found a row locked for too long: it was rolled back.
        ("57014" | "55P03", _) => Fault::Busy,
        // Too many connections; the server starts or shuts down.
        ("53300", _) | (_, "08" | "57") => Fault::Unreachable,
        ("53100" | "25006", _) => Fault::ReadOnly,
        (_, "53") => Fault::OutOfMemory,
        ("42501", _) | (_, "28") => Fault::Denied,
        _ => Fault::Script,
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").field("pool", &self.pool).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PostgresPool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresPool").field("connections", &self.connections.status()).finish_non_exhaustive()
    }
}
