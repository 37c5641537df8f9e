//! The schema: made, upgraded, and looked at before it is used.
//!
//! `schema.sql` and `apply.sql` are templates. What stands in braces there is the name of something, and is put in
//! quoted. The layout's version is part of each name, so that a next one can be filled beside this one while instances
//! of both versions run.

use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, Error, GenericClient};

use super::error::with_causes;
use super::names::{SchemaNames, quoted};
use super::settings::PostgresSettingsError;

/// The version of the schema that this tollgate makes and knows.
const VERSION: i32 = 1;
/// The oldest that a tollgate may know to use a schema that this one made.
const OLDEST: i32 = 1;

const TABLES: &str = include_str!("schema.sql");
const APPLY: &str = include_str!("apply.sql");

/// How long making the schema may wait for who else makes it.
const PATIENCE: &str = "SET LOCAL statement_timeout = '60s'; SET LOCAL lock_timeout = '60s'";

/// Why a schema cannot be used or made.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// See the text.
    #[error("schema \"{0}\" holds nothing of tollgate; run `tollgate store migrate`")]
    Missing(String),
    /// See the text.
    #[error("schema \"{schema}\" has version {found}, older than {VERSION}; run `tollgate store migrate`")]
    Older {
        /// The name of the schema.
        schema: String,
        /// Its version.
        found: i32,
    },
    /// See the text.
    #[error(
        "schema \"{schema}\" has version {found}, of a newer tollgate than this one, which knows version {VERSION}; \
         use that one, or another schema_name"
    )]
    Newer {
        /// The name of the schema.
        schema: String,
        /// Its version.
        found: i32,
    },
    /// The settings cannot be understood.
    #[error(transparent)]
    Settings(#[from] PostgresSettingsError),
    /// The server says no, or cannot be asked.
    #[error("{}", with_causes(.0))]
    Server(#[from] Error),
}

/// What was done to a schema.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Migrated {
    /// It was made, of this version.
    Created(i32),
    /// It was brought from one version to another.
    Upgraded(i32, i32),
    /// It is usable as it was, and of this version.
    Current(i32),
    /// Tables were rewritten, because logging was turned on or off.
    Rewritten {
        /// Whether they are not logged now.
        unlogged: bool,
    },
}

/// Whether the schema is there and of a version that can be used.
pub(super) async fn check(client: &impl GenericClient, names: &SchemaNames) -> Result<(), MigrateError> {
    let schema = || names.schema().to_owned();
    match version(client, names).await? {
        None => Err(MigrateError::Missing(schema())),
        Some((found, _)) if found < VERSION => Err(MigrateError::Older { schema: schema(), found }),
        Some((found, oldest)) if oldest > VERSION => Err(MigrateError::Newer { schema: schema(), found }),
        Some(_) => Ok(()),
    }
}

/// The schema's version and the oldest that it serves; `None` when there is none.
async fn version(client: &impl GenericClient, names: &SchemaNames) -> Result<Option<(i32, i32)>, Error> {
    let sql = format!("SELECT version, oldest FROM {}", names.of("meta"));
    match client.query_opt(&sql, &[]).await {
        Ok(row) => Ok(row.map(|row| (row.get(0), row.get(1)))),
        Err(error) if is_missing(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether something that was named is not there.
fn is_missing(error: &Error) -> bool {
    let missing =
        [&SqlState::UNDEFINED_TABLE, &SqlState::INVALID_SCHEMA_NAME, &SqlState::UNDEFINED_FUNCTION].map(SqlState::code);
    error.code().is_some_and(|code| missing.contains(&code.code()))
}

/// Makes or upgrades the schema, one caller at a time. `rewrite` says whether tables that are there are to be rewritten
/// where they are logged and should not be, or the other way round.
pub(super) async fn migrate(
    client: &mut Client,
    names: &SchemaNames,
    unlogged: bool,
    rewrite: bool,
) -> Result<Vec<Migrated>, MigrateError> {
    let transaction = client.transaction().await?;
    transaction.batch_execute(PATIENCE).await?;
    let lock = format!("tollgate: {}", names.of("meta"));
    transaction.execute("SELECT pg_advisory_xact_lock(hashtextextended($1, 0))", &[&lock]).await?;

    // A missing table would end the transaction, so it is asked for first.
    let there: bool = transaction.query_one("SELECT to_regclass($1) IS NOT NULL", &[&names.of("meta")]).await?.get(0);
    let found = if there { version(&transaction, names).await? } else { None };
    let mut done = Vec::new();
    match found {
        Some((found, oldest)) if oldest > VERSION => {
            return Err(MigrateError::Newer { schema: names.schema().to_owned(), found });
        }
        Some((found, _)) if found >= VERSION => done.push(Migrated::Current(found)),
        older => {
            let schema = "SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = $1)";
            // Asked for first, because making what is there needs the right to make it too.
            if !transaction.query_one(schema, &[&names.schema()]).await?.get::<_, bool>(0) {
                transaction.batch_execute(&format!("CREATE SCHEMA {}", quoted(names.schema()))).await?;
            }
            transaction.batch_execute(&names.fill(TABLES, unlogged)).await?;
            transaction.batch_execute(&names.fill(APPLY, unlogged)).await?;
            let meta = names.of("meta");
            let record = format!(
                "INSERT INTO {meta} (version, oldest) VALUES ($1, $2) \
                 ON CONFLICT (one) DO UPDATE SET version = excluded.version, oldest = excluded.oldest"
            );
            transaction.execute(&record, &[&VERSION, &OLDEST]).await?;
            done.push(match older {
                None => Migrated::Created(VERSION),
                Some((found, _)) => Migrated::Upgraded(found, VERSION),
            });
        }
    }
    if rewrite && set_logged(&transaction, names, unlogged).await? {
        done.push(Migrated::Rewritten { unlogged });
    }
    transaction.commit().await?;
    Ok(done)
}

/// Rewrites the tables that are logged and should not be, or the other way round. Says whether any was.
async fn set_logged(client: &impl GenericClient, names: &SchemaNames, unlogged: bool) -> Result<bool, Error> {
    let mut rewritten = false;
    for table in ["counters", "grants", "leases"].map(|table| names.of(table)) {
        let is = "SELECT relpersistence = 'u' FROM pg_class WHERE oid = to_regclass($1)";
        if client.query_one(is, &[&table]).await?.get::<_, bool>(0) != unlogged {
            let how = if unlogged { "UNLOGGED" } else { "LOGGED" };
            client.batch_execute(&format!("ALTER TABLE {table} SET {how}")).await?;
            rewritten = true;
        }
    }
    Ok(rewritten)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_of_the_templates_is_filled_in() {
        let names = SchemaNames::new("a\"b", "p_");
        let sql = names.fill(TABLES, true) + &names.fill(APPLY, true);
        let code: Vec<&str> = sql.lines().filter(|line| !line.trim_start().starts_with("--")).collect();
        assert!(code.iter().all(|line| !line.contains(['{', '}'])), "{code:?}");
        assert!(sql.contains("\"a\"\"b\".\"p_counters_v1\""));
    }
}
