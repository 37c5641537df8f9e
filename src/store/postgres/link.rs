//! How statements reach the server: directly, or through a pooler that shares its connections among clients, such as
//! PgBouncer with `pool_mode = transaction`.
//!
//! ```text
//!   direct   startup(settings) .. Parse named ............. Bind Execute | Bind Execute | ...
//!   shared   startup ............ BEGIN; SET LOCAL settings | Parse Bind Execute, unnamed | COMMIT     in one round trip
//! ```
//!
//! A direct connection gets its settings when it starts, and keeps prepared statements. Behind a pooler the next
//! transaction may run on another connection of the server, which other programs use as well: it does not have the
//! statements of this client, and a setting of the session would stay in the sessions of others.
//!
//! No setting says which it is. A pooler refuses the settings of the startup, or does not pass them on: a mark among
//! them is missing then. If a pooler passes everything on, the first statement that is missing gives it away. A
//! connection that is taken for shared is right without a pooler, too, and costs more.

use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use deadpool_postgres::{ClientWrapper, Connect};
use smallvec::SmallVec;
use tokio::task::JoinHandle;
use tokio_postgres::config::Config;
use tokio_postgres::error::{Severity, SqlState};
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Error, Row};

use super::error::with_causes;
use super::settings::PostgresSettings;
use super::tls::PostgresTls;
use crate::store::warnings::Warnings;

/// The setting that marks a direct connection. PostgreSQL accepts any setting whose name has a dot.
const MARK: &str = "tollgate.connection";

/// A parameter of a statement, with its type: an unnamed statement is not described before it is executed.
pub(super) type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// How the statements of one store reach the server.
#[derive(Debug)]
pub(super) struct Link {
    /// The settings of a direct connection, as options of its startup.
    options: String,
    /// The beginning of a transaction on a shared connection.
    begin: String,
    shared: AtomicBool,
    warnings: Arc<Warnings>,
}

impl Link {
    /// A link whose connections have the settings. With `shared`, a pooler is known to be in between.
    pub(super) fn new(settings: &PostgresSettings, shared: bool, warnings: Arc<Warnings>) -> Self {
        // Zero would mean no timeout.
        let [statement, lock] =
            [settings.response_timeout, settings.lock_timeout].map(|time| time.as_millis().clamp(1, i32::MAX as u128));
        let mut values = vec![
            ("statement_timeout", statement.to_string()),
            ("lock_timeout", lock.to_string()),
            ("jit", "off".to_owned()),
        ];
        if !settings.synchronous_commit {
            values.push(("synchronous_commit", "off".to_owned()));
        }
        let options: Vec<String> = values.iter().map(|(name, value)| format!("-c {name}={value}")).collect();
        let set: Vec<String> = values.iter().map(|(name, value)| format!("; SET LOCAL {name} = {value}")).collect();
        // A row is read again after waiting for it; stricter isolation levels would fail instead.
        Self {
            options: format!(r"{} -c default_transaction_isolation=read\ committed", options.join(" ")),
            begin: format!("BEGIN ISOLATION LEVEL READ COMMITTED{}", set.concat()),
            shared: AtomicBool::new(shared),
            warnings,
        }
    }

    /// Runs a statement that returns one row.
    pub(super) async fn query(
        &self,
        connection: &ClientWrapper,
        sql: &str,
        parameters: &[Parameter<'_>],
    ) -> Result<Row, Error> {
        if !self.is_shared() {
            match query_prepared(connection, sql, parameters).await {
                // The statement was not executed.
                Err(error) if is_statement_of_another_client(&error) => self.take_for_shared(&with_causes(&error)),
                answer => return answer,
            }
        }
        // All three are sent at once, in this order. If one fails, the server rolls back at the end.
        let (begun, row, ended) = tokio::join!(
            biased;
            connection.batch_execute(&self.begin),
            connection.query_typed_one(sql, parameters),
            connection.batch_execute("COMMIT"),
        );
        begun?;
        let row = row?;
        ended?;
        Ok(row)
    }

    /// Prepares a statement on a new connection, if it can keep one.
    pub(super) async fn prepare(&self, connection: &ClientWrapper, sql: &str) -> Result<(), Error> {
        if self.is_shared() {
            return Ok(());
        }
        match connection.prepare_cached(sql).await {
            Err(error) if is_statement_of_another_client(&error) => {
                self.take_for_shared(&with_causes(&error));
                Ok(())
            }
            prepared => prepared.map(drop),
        }
    }

    pub(super) fn is_shared(&self) -> bool {
        self.shared.load(Ordering::Relaxed)
    }

    fn take_for_shared(&self, reason: &str) {
        if !self.shared.swap(true, Ordering::Relaxed) {
            tracing::info!(
                store = self.warnings.name(),
                reason,
                "a pooler shares the connections: each transaction has its own settings"
            );
        }
    }

    /// Connects. A direct connection gets its settings; a pooler is recognised by how it deals with them.
    async fn connect(&self, config: &Config, tls: &PostgresTls) -> Result<(Client, JoinHandle<()>), Error> {
        if self.is_shared() {
            return self.open(config, tls).await;
        }
        // No other connection has this mark, so the mark of another one is not taken for it.
        let mark = format!("{:016x}", RandomState::new().hash_one(MARK));
        let given = config.get_options().unwrap_or_default();
        let mut direct = config.clone();
        direct.options(format!("{given} {} -c {MARK}={mark}", self.options).trim_start());
        let (client, task) = match self.open(&direct, tls).await {
            Ok(connected) => connected,
            // Poolers report many faults by the code for an unknown parameter of the startup, so only success without
            // the parameter shows that it was this one.
            Err(error) if error.code() == Some(&SqlState::PROTOCOL_VIOLATION) => {
                let connected = self.open(config, tls).await?;
                self.take_for_shared(&with_causes(&error));
                return Ok(connected);
            }
            Err(error) => return Err(error),
        };
        let row = client.query_typed_one("SELECT current_setting($1, true)", &[(&MARK, Type::TEXT)]).await?;
        if row.try_get::<_, Option<&str>>(0)? != Some(mark.as_str()) {
            self.take_for_shared("the settings of the startup are not those of the session");
        }
        Ok((client, task))
    }

    /// Opens a connection, driven by a task of its own.
    async fn open(&self, config: &Config, tls: &PostgresTls) -> Result<(Client, JoinHandle<()>), Error> {
        let (client, connection) = config.connect(tls.clone()).await?;
        let warnings = self.warnings.clone();
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                warnings.warn(&format_args!("connection lost: {}", with_causes(&error)));
            }
        });
        Ok((client, task))
    }
}

/// Runs a statement that the connection prepares once.
async fn query_prepared(connection: &ClientWrapper, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, Error> {
    let statement = connection.prepare_cached(sql).await?;
    let values: SmallVec<[&(dyn ToSql + Sync); 8]> = parameters.iter().map(|(value, _)| *value).collect();
    connection.query_one(&statement, &values).await
}

/// Whether a prepared statement is missing, exists already, or is another one. A pooler ends the connection after its
/// own errors of that last code; the server goes on.
fn is_statement_of_another_client(error: &Error) -> bool {
    let Some(error) = error.as_db_error() else { return false };
    let protocol = *error.code() == SqlState::PROTOCOL_VIOLATION && error.parsed_severity() == Some(Severity::Error);
    protocol || [SqlState::INVALID_SQL_STATEMENT_NAME, SqlState::DUPLICATE_PSTATEMENT].contains(error.code())
}

/// Makes the connections of a pool.
pub(super) struct Connector {
    pub(super) link: Arc<Link>,
    pub(super) tls: PostgresTls,
}

/// What [`Connect`] returns.
type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

impl Connect for Connector {
    fn connect(&self, config: &Config) -> BoxFuture<'_, Result<(Client, JoinHandle<()>), Error>> {
        let config = config.clone();
        Box::pin(async move { self.link.connect(&config, &self.tls).await })
    }
}
