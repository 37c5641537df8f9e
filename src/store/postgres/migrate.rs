//! Creates and upgrades the schema, and checks its version before it is used.
//!
//! `schema.sql` and `apply.sql` are templates: a name in braces is replaced by the quoted name of that object. The
//! names contain the version of the layout, so that a new version can be filled next to this one while instances of
//! both run.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::Type;
use tokio_postgres::{Client, Error, GenericClient, Row};

use super::error::with_causes;
use super::link::Parameter;
use super::names::{SchemaNames, quoted};
use super::settings::PostgresSettingsError;

/// The version of the schema that this release creates and uses. A schema is compared by its version only, so a changed
/// statement in `schema.sql` or `apply.sql` needs a new one.
const SCHEMA_VERSION: i32 = 6;

/// The oldest version whose releases can use a schema of [`SCHEMA_VERSION`].
const OLDEST_COMPATIBLE_VERSION: i32 = 1;

const SCHEMA_SQL: &str = include_str!("schema.sql");
const APPLY_SQL: &str = include_str!("apply.sql");

/// The tables and functions that this release uses.
const TABLES: [&str; 6] = ["counters", "grants", "leases", "values", "holds", "held"];
const FUNCTIONS: [&str; 16] = [
    "apply",
    "bucket",
    "rescale",
    "correct",
    "correct_log",
    "value_room",
    "value_wait",
    "undo_values",
    "hold_status",
    "take_back",
    "drop_hold",
    "hold",
    "end_holds",
    "change_hold",
    "forget",
    "sweep",
];

/// Sets the timeouts of a migration, which may wait for that of another instance.
const MIGRATION_TIMEOUTS_SQL: &str = "SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '60s'";

/// Why a schema cannot be used, created or upgraded.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MigrateError {
    /// The schema does not exist, or has no tables of tollgate.
    #[error("schema \"{0}\" has no tables of tollgate; run `tollgate store migrate`")]
    Missing(String),
    /// The schema is of an older version.
    #[error("schema \"{schema}\" has version {found}, expected {SCHEMA_VERSION}; run `tollgate store migrate`")]
    Older {
        /// The name of the schema.
        schema: String,
        /// Its version.
        found: i32,
    },
    /// The schema is of a newer version, which this release cannot use.
    #[error(
        "schema \"{schema}\" has version {found}, newer than version {SCHEMA_VERSION} of this release; use a newer \
         release of tollgate, or set another schema_name"
    )]
    Newer {
        /// The name of the schema.
        schema: String,
        /// Its version.
        found: i32,
    },
    /// The schema lacks tables or functions that its version has.
    #[error("schema \"{schema}\" lacks {missing}; run `tollgate store migrate` of the newest release in use")]
    Incomplete {
        /// The name of the schema.
        schema: String,
        /// The names of what it lacks.
        missing: String,
    },
    /// The server accepts the connection, but does not answer.
    #[error("the server accepts the connection but does not answer; check that the address is PostgreSQL's")]
    Silent,
    /// The settings are invalid.
    #[error(transparent)]
    Settings(#[from] PostgresSettingsError),
    /// The server cannot be reached, or reported an error.
    #[error("{}", with_causes(.0))]
    Server(#[from] Error),
}

impl MigrateError {
    /// Whether creating, upgrading or restoring the schema helps.
    pub(super) fn is_mended_by_migration(&self) -> bool {
        match self {
            MigrateError::Missing(_) | MigrateError::Older { .. } | MigrateError::Incomplete { .. } => true,
            MigrateError::Newer { .. } | MigrateError::Silent | MigrateError::Settings(_) | MigrateError::Server(_) => {
                false
            }
        }
    }
}

/// One result of a migration.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Migrated {
    /// The schema was created, with this version.
    Created(i32),
    /// The schema was upgraded from one version to another.
    Upgraded(i32, i32),
    /// The schema has this version, which is usable as it is.
    Current(i32),
    /// The schema has this version, and lacked tables or functions, which were created again.
    Restored(i32),
    /// Tables were rewritten, because logging was turned on or off.
    Rewritten {
        /// Whether logging is off now.
        unlogged: bool,
    },
}

/// Checks that the schema exists, is complete, and that its version is usable.
pub(super) async fn check(client: &impl GenericClient, names: &SchemaNames) -> Result<(), MigrateError> {
    let schema = || names.schema().to_owned();
    match contents(client, names).await? {
        None => Err(MigrateError::Missing(schema())),
        Some(Contents { version, .. }) if version < SCHEMA_VERSION => {
            Err(MigrateError::Older { schema: schema(), found: version })
        }
        Some(Contents { version, oldest, .. }) if oldest > SCHEMA_VERSION => {
            Err(MigrateError::Newer { schema: schema(), found: version })
        }
        Some(Contents { missing: Some(missing), .. }) => Err(MigrateError::Incomplete { schema: schema(), missing }),
        Some(Contents { missing: None, .. }) => Ok(()),
    }
}

/// What is in a schema.
struct Contents {
    version: i32,
    /// The oldest version that is compatible.
    oldest: i32,
    /// The names of tables and functions that are missing.
    missing: Option<String>,
}

/// What is in the schema, or `None` without one.
async fn contents(client: &impl GenericClient, names: &SchemaNames) -> Result<Option<Contents>, Error> {
    let sql = format!(
        "SELECT version, oldest, (SELECT string_agg(name, ', ') FROM (\
         SELECT name FROM unnest($1) AS name WHERE to_regclass(name) IS NULL \
         UNION ALL SELECT name FROM unnest($2) AS name WHERE to_regproc(name) IS NULL) AS missing) FROM {}",
        names.of("meta")
    );
    let [tables, functions] =
        [&TABLES[..], &FUNCTIONS].map(|all| all.iter().map(|one| names.of(one)).collect::<Vec<_>>());
    let parameters: [Parameter<'_>; 2] = [(&tables, Type::TEXT_ARRAY), (&functions, Type::TEXT_ARRAY)];
    let contents = |row: Row| Contents { version: row.get(0), oldest: row.get(1), missing: row.get(2) };
    match client.query_typed_opt(&sql, &parameters).await {
        Ok(row) => Ok(row.map(contents)),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether the error is that a named object does not exist.
fn is_missing(error: &Error) -> bool {
    let missing =
        [&SqlState::UNDEFINED_TABLE, &SqlState::INVALID_SCHEMA_NAME, &SqlState::UNDEFINED_FUNCTION].map(SqlState::code);
    error.code().is_some_and(|code| missing.contains(&code.code()))
}

/// Creates or upgrades the schema, in one transaction and one caller at a time. With `rewrite`, existing tables whose
/// logging differs from `unlogged` are rewritten.
pub(super) async fn migrate(
    client: &mut Client,
    names: &SchemaNames,
    unlogged: bool,
    rewrite: bool,
) -> Result<Vec<Migrated>, MigrateError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(MIGRATION_TIMEOUTS_SQL).await?;
    let lock = format!("tollgate: {}", names.of("meta"));
    let wait = "SELECT pg_advisory_xact_lock(hashtextextended($1, 0))";
    transaction.query_typed(wait, &[(&lock, Type::TEXT)]).await?;

    // A query of a missing table would abort the transaction.
    let exists = "SELECT to_regclass($1) IS NOT NULL";
    let exists: bool = transaction.query_typed_one(exists, &[(&names.of("meta"), Type::TEXT)]).await?.get(0);
    let found = if exists { contents(&transaction, names).await? } else { None };
    let mut done = Vec::new();
    match found {
        Some(Contents { version: found, oldest, .. }) if oldest > SCHEMA_VERSION => {
            return Err(MigrateError::Newer { schema: names.schema().to_owned(), found });
        }
        Some(Contents { version, missing: None, .. }) if version >= SCHEMA_VERSION => {
            done.push(Migrated::Current(version));
        }
        // The functions of a newer version are not those of this one.
        Some(Contents { version, missing: Some(missing), .. }) if version > SCHEMA_VERSION => {
            return Err(MigrateError::Incomplete { schema: names.schema().to_owned(), missing });
        }
        older => {
            let schema_exists = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
            // CREATE SCHEMA IF NOT EXISTS needs the right to create schemas even if this one exists.
            if !transaction.query_typed_one(schema_exists, &[(&names.schema(), Type::TEXT)]).await?.get::<_, bool>(0) {
                transaction.batch_execute(&format!("CREATE SCHEMA {}", quoted(names.schema()))).await?;
            }
            transaction.batch_execute(&names.fill(SCHEMA_SQL, unlogged)).await?;
            transaction.batch_execute(&names.fill(APPLY_SQL, unlogged)).await?;
            let meta = names.of("meta");
            let record = format!(
                "INSERT INTO {meta} (version, oldest) VALUES ($1, $2) \
                 ON CONFLICT (one) DO UPDATE SET version = excluded.version, oldest = excluded.oldest"
            );
            let versions: [Parameter<'_>; 2] =
                [(&SCHEMA_VERSION, Type::INT4), (&OLDEST_COMPATIBLE_VERSION, Type::INT4)];
            transaction.execute_typed(&record, &versions).await?;
            done.push(match older {
                None => Migrated::Created(SCHEMA_VERSION),
                Some(Contents { version: SCHEMA_VERSION, .. }) => Migrated::Restored(SCHEMA_VERSION),
                Some(Contents { version, .. }) => Migrated::Upgraded(version, SCHEMA_VERSION),
            });
        }
    }
    if rewrite && set_logging(&transaction, names, unlogged).await? {
        done.push(Migrated::Rewritten { unlogged });
    }
    transaction.commit().await?;
    Ok(done)
}

/// Rewrites the tables whose logging differs from `unlogged`, and returns whether there were any.
async fn set_logging(client: &impl GenericClient, names: &SchemaNames, unlogged: bool) -> Result<bool, Error> {
    let mut rewritten = false;
    for table in TABLES.map(|table| names.of(table)) {
        let is_unlogged = "SELECT relpersistence = 'u' FROM pg_class WHERE oid = to_regclass($1)";
        if client.query_typed_one(is_unlogged, &[(&table, Type::TEXT)]).await?.get::<_, bool>(0) != unlogged {
            let logging = if unlogged { "UNLOGGED" } else { "LOGGED" };
            client.batch_execute(&format!("ALTER TABLE {table} SET {logging}")).await?;
            rewritten = true;
        }
    }
    Ok(rewritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_placeholder_of_the_templates_is_replaced() {
        let names = SchemaNames::new("a\"b", "p_");
        let sql = names.fill(SCHEMA_SQL, true) + &names.fill(APPLY_SQL, true);
        let code: Vec<&str> = sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
        assert!(code.iter().all(|line| !line.contains(['{', '}'])), "{code:?}");
        assert!(sql.contains("\"a\"\"b\".\"p_counters_v1\""));
    }
}
