//! Counters in a PostgreSQL, 14 or newer.
//!
//! A batch of plans is one call of one function (apply.sql), which is [`crate::plan::advance`] in PL/pgSQL:
//!
//! ```text
//!   make or lock each row, in the order of names -> what time is it? -> load -> plan, plan, plan ... -> write each once
//! ```
//!
//! Waiting for a row is waiting for the batch of another instance, so on one hot counter the batches of all instances
//! follow each other, each one commit long. A single query would judge what it saw before it waited, and `now()` would
//! be when it began to wait.
//!
//! What is asked goes on when nobody waits for its answer any more: a connection that is half made, or in the middle of
//! a statement, is of use to the next caller.

mod error;
mod migrate;
mod names;
mod settings;
mod wire;

use std::sync::Arc;
use std::time::{Duration, Instant};

use deadpool_postgres::{
    Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod, Runtime, TimeoutType,
};
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio_postgres::Error;

use self::error::with_causes;
pub use self::migrate::{MigrateError, Migrated};
use self::names::SchemaNames;
use self::settings::Understood;
pub use self::settings::{PostgresSettings, PostgresSettingsError};
use self::wire::{Call, Id, int};
use super::shared::Backend;
use crate::clock::Timestamp;
use crate::plan::{Applied, CounterName, Fault, Plan};

/// How long a counter stays after it is forgotten: as far as the server's clock may step back without harm.
const SLACK: Duration = Duration::from_secs(600);

/// How often forgotten counters are looked for, by all instances together.
const SWEEP: Duration = Duration::from_secs(1);

/// How long the statement's own timeout may be late before the connection is given up.
const GRACE: Duration = Duration::from_millis(250);

/// How long making or upgrading the schema may take.
const MIGRATION: Duration = Duration::from_secs(120);

/// What is said of a connection whose server stopped answering while it was made.
const LATE: &str = "the server accepted a connection and does not answer";

/// How often the same trouble is told.
const TELL: Duration = Duration::from_secs(10);

/// A PostgreSQL that holds counters.
#[derive(Debug)]
pub struct Postgres {
    link: Arc<Link>,
    sweeper: Option<JoinHandle<()>>,
}

/// What tasks of a store share.
struct Link {
    pool: Pool,
    sql: Sql,
    response_timeout: Duration,
    told: Mutex<[Option<Instant>; Fault::ALL.len()]>,
}

/// The statements, with their names.
struct Sql {
    apply: String,
    forget: String,
    sweep: String,
    probe: String,
}

impl Postgres {
    /// A store that connects when it is first asked. To be made within a runtime.
    ///
    /// # Errors
    ///
    /// The settings cannot be understood.
    pub fn new(settings: &PostgresSettings) -> Result<Self, PostgresSettingsError> {
        let Understood { config, tls, names } = settings.understand()?;
        let sql = Sql {
            apply: format!("SELECT {}($1, $2, $3, $4, $5, $6)", names.of("apply")),
            forget: format!("SELECT {}($1)", names.of("forget")),
            sweep: format!("SELECT {}($1, $2)", names.of("sweep")),
            // Whatever cannot be written to refuses this, though there is nothing to write.
            probe: format!("UPDATE {} SET swept = swept WHERE false", names.of("meta")),
        };
        let manager = Manager::from_config(config, tls, ManagerConfig { recycling_method: RecyclingMethod::Fast });
        let pool = Pool::builder(manager)
            .max_size(settings.pool_size)
            .wait_timeout(Some(settings.response_timeout))
            .create_timeout(Some(2 * settings.connect_timeout))
            .runtime(Runtime::Tokio1)
            .post_create(made(settings, names, sql.apply.clone()))
            .build()
            .expect("a runtime was named, which is all that timeouts need");
        let told = Mutex::default();
        let link = Arc::new(Link { pool, sql, response_timeout: settings.response_timeout, told });
        let sweeper = settings.sweep.then(|| tokio::spawn(sweep_now_and_then(link.clone())));
        Ok(Self { link, sweeper })
    }

    /// Removes some of the counters that were forgotten long ago. Says whether there may be more at once. The store does
    /// so by itself now and then.
    ///
    /// # Errors
    ///
    /// The store cannot be asked.
    pub async fn sweep(&self) -> Result<bool, Fault> {
        detached(self.link.clone(), |link| async move { link.sweep(Duration::ZERO).await }).await
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if let Some(sweeper) = &self.sweeper {
            sweeper.abort();
        }
    }
}

/// Makes or upgrades the schema of a store, as `tollgate store migrate` does. Says what was done.
///
/// # Errors
///
/// The settings cannot be understood, or the server says no. Nothing was changed then.
pub async fn migrate(settings: &PostgresSettings) -> Result<Vec<Migrated>, MigrateError> {
    let Understood { config, tls, names } = settings.understand()?;
    let (mut client, connection) = config.connect(tls).await?;
    let connection = tokio::spawn(connection);
    let done = migrate::migrate(&mut client, &names, settings.unlogged, true).await;
    connection.abort();
    done
}

impl Backend for Postgres {
    async fn execute(&self, plans: &[Plan], now: Option<Timestamp>) -> Vec<Result<Applied, Fault>> {
        if plans.is_empty() {
            return Vec::new();
        }
        let call = Call::of(plans);
        let answer = detached(self.link.clone(), move |link| async move { link.apply(&call, now).await }).await;
        match answer {
            Ok(answer) => wire::read(plans, &answer).unwrap_or_else(|| vec![Err(Fault::Script); plans.len()]),
            Err(fault) => vec![Err(fault); plans.len()],
        }
    }

    async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        detached(self.link.clone(), move |link| async move { link.forget(counter).await }).await
    }

    async fn probe(&self) -> Result<(), Fault> {
        detached(self.link.clone(), |link| async move { link.probe().await }).await
    }
}

/// Goes on when nobody waits for it any more.
async fn detached<T, F>(link: Arc<Link>, work: impl FnOnce(Arc<Link>) -> F) -> Result<T, Fault>
where
    T: Send + 'static,
    F: Future<Output = Result<T, Fault>> + Send + 'static,
{
    tokio::spawn(work(link)).await.unwrap_or(Err(Fault::Script))
}

impl Link {
    async fn apply(&self, call: &Call, now: Option<Timestamp>) -> Result<Vec<i64>, Fault> {
        let now = now.map(|now| int(now.micros()));
        self.ask(async |client| {
            let statement = client.prepare_cached(&self.sql.apply).await?;
            let Call { names, holders, shapes, program, answers } = call;
            client.query_one(&statement, &[&now, names, holders, shapes, program, answers]).await?.try_get(0)
        })
        .await
    }

    async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        self.ask(async |client| client.query_one(&self.sql.forget, &[&Id::from(counter)]).await?.try_get(0)).await
    }

    async fn sweep(&self, pause: Duration) -> Result<bool, Fault> {
        let [slack, pause] = [SLACK, pause].map(|time| int(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)));
        self.ask(async |client| client.query_one(&self.sql.sweep, &[&slack, &pause]).await?.try_get(0)).await
    }

    async fn probe(&self) -> Result<(), Fault> {
        self.ask(async |client| client.execute(&self.sql.probe, &[]).await.map(drop)).await
    }

    /// Asks over a connection of the pool. One that does not answer is given up, and one whose server has become
    /// somebody else's replica: the next one may find another.
    async fn ask<T>(&self, question: impl AsyncFnOnce(&Object) -> Result<T, Error>) -> Result<T, Fault> {
        let client = self.pool.get().await.map_err(|error| self.tell(fault_of_pool(&error), &error))?;
        match tokio::time::timeout(self.response_timeout + GRACE, question(&client)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => {
                let fault = fault(&error);
                if fault == Fault::ReadOnly {
                    drop(Object::take(client));
                }
                Err(self.tell(fault, &error))
            }
            Err(late) => {
                drop(Object::take(client));
                Err(self.tell(Fault::Timeout, &late))
            }
        }
    }

    /// Tells of an error, of each kind only now and then.
    fn tell(&self, fault: Fault, error: &dyn std::error::Error) -> Fault {
        let told = &mut self.told.lock()[fault as usize];
        if told.is_none_or(|told| told.elapsed() >= TELL) {
            *told = Some(Instant::now());
            tracing::warn!(fault = fault.name(), error = with_causes(error), "postgres");
        }
        fault
    }
}

/// What happens to a connection when it is made.
fn made(settings: &PostgresSettings, names: SchemaNames, apply: String) -> Hook {
    // Zero would be for ever.
    let [statement, lock] =
        [settings.response_timeout, settings.lock_timeout].map(|time| time.as_millis().clamp(1, i32::MAX as u128));
    let commit = if settings.synchronous_commit { "" } else { "SET synchronous_commit = off;" };
    // A row is read again after it was waited for; the stricter isolations would fail instead.
    let session = format!(
        "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED; \
         SET statement_timeout = {statement}; SET lock_timeout = {lock}; SET jit = off; {commit}"
    );
    let (auto_create, unlogged) = (settings.auto_create, settings.unlogged);
    let patience = settings.response_timeout + GRACE;
    let made = Arc::new((session, names, apply));
    // The connections of a pool are made at once, and one of them makes the schema.
    let making = Arc::new(tokio::sync::Mutex::new(()));
    Hook::async_fn(move |client, _| {
        let (made, making) = (made.clone(), making.clone());
        Box::pin(async move {
            let (session, names, apply) = &*made;
            let checked = within(patience, async {
                client.batch_execute(session).await?;
                migrate::check(&**client, names).await
            });
            match checked.await? {
                Err(MigrateError::Missing(_) | MigrateError::Older { .. }) if auto_create => {
                    let _one = making.lock().await;
                    let done = within(MIGRATION, migrate::migrate(client, names, unlogged, false)).await?;
                    for done in done.map_err(hook_error)? {
                        if !matches!(done, Migrated::Current(_)) {
                            tracing::info!(schema = names.schema(), ?done, "postgres");
                        }
                    }
                }
                checked => checked.map_err(hook_error)?,
            }
            within(patience, client.prepare_cached(apply)).await?.map(drop).map_err(HookError::Backend)
        })
    })
}

/// Gives up what takes longer.
async fn within<T>(time: Duration, work: impl Future<Output = T>) -> Result<T, HookError> {
    tokio::time::timeout(time, work).await.map_err(|_| HookError::message(LATE))
}

fn hook_error(error: MigrateError) -> HookError {
    match error {
        MigrateError::Server(error) => HookError::Backend(error),
        error => HookError::message(error.to_string()),
    }
}

/// Removes forgotten counters, a few at a time, for as long as there are any.
async fn sweep_now_and_then(link: Arc<Link>) {
    loop {
        tokio::time::sleep(SWEEP).await;
        let mut pause = SWEEP;
        // A store that is away is told of by those who need it.
        while let Ok(true) = link.sweep(pause).await {
            pause = Duration::ZERO;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

fn fault_of_pool(error: &PoolError) -> Fault {
    match error {
        PoolError::Backend(error) | PoolError::PostCreateHook(HookError::Backend(error)) => fault(error),
        PoolError::Timeout(TimeoutType::Wait) => Fault::Timeout,
        PoolError::PostCreateHook(HookError::Message(late)) if late == LATE => Fault::Timeout,
        PoolError::Timeout(_) | PoolError::Closed => Fault::Unreachable,
        PoolError::PostCreateHook(_) | PoolError::NoRuntimeSpecified => Fault::Script,
    }
}

/// What an error comes to. Without a code it is of the connection.
fn fault(error: &Error) -> Fault {
    let Some(code) = error.code() else { return Fault::Unreachable };
    let code = code.code();
    match (code, &code[..2.min(code.len())]) {
        ("57014" | "55P03", _) => Fault::Timeout,
        // Nobody is served: too many connections, starting, or shutting down.
        ("53300", _) | (_, "08" | "57") => Fault::Unreachable,
        ("53100" | "25006", _) => Fault::ReadOnly,
        (_, "53") => Fault::OutOfMemory,
        ("42501", _) | (_, "28") => Fault::Denied,
        _ => Fault::Script,
    }
}

impl std::fmt::Debug for Link {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Link").field("pool", &self.pool.status()).finish_non_exhaustive()
    }
}
