//! `tollgate store`: prepares external stores.

use std::path::Path;
use std::process::ExitCode;

use tollgate::config::Config;
use tollgate::store::{Migrated, StoreConfig, migrate};

use super::load::{report_errors, report_warnings};
use super::table::print;

/// Creates or upgrades the schema of every PostgreSQL store of a configuration.
pub(super) fn migrate_all(path: Option<&Path>) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(errors) => return report_errors(&errors),
    };
    report_warnings(&config.warnings);
    let stores = config.stores.iter().filter_map(|store| match &store.config {
        StoreConfig::Postgres(settings, _) => Some((store.name.as_str(), settings)),
        StoreConfig::Memory(_) | StoreConfig::Redis(..) => None,
    });
    let stores: Vec<_> = stores.collect();
    if stores.is_empty() {
        print("no store keeps its counters in PostgreSQL: nothing to do\n");
        return ExitCode::SUCCESS;
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("tollgate: {error}");
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for (name, settings) in stores {
        match runtime.block_on(migrate(settings)) {
            Ok(done) => {
                let done: Vec<String> = done.into_iter().map(describe).collect();
                print(&format!("stores.{name}: schema \"{}\": {}\n", settings.schema_name, done.join(", ")));
            }
            // Continue with the other stores.
            Err(error) => {
                eprintln!("tollgate: stores.{name}: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}

fn describe(done: Migrated) -> String {
    match done {
        Migrated::Created(version) => format!("created, version {version}"),
        Migrated::Upgraded(from, to) => format!("upgraded from version {from} to {to}"),
        Migrated::Current(version) => format!("version {version}, nothing to do"),
        Migrated::Restored(version) => format!("version {version}, created again what was missing"),
        Migrated::Rewritten { unlogged: true } => "tables are no longer logged".to_owned(),
        Migrated::Rewritten { unlogged: false } => "tables are logged now".to_owned(),
    }
}
