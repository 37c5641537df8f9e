//! The configuration: reads TOML and YAML strictly and builds what the program runs on.
//!
//! ```text
//!   document/   file or directory -> toml, yaml -> node: values with their lines -> expand: ${VAR} -> files: one tree
//!   schema/     that tree -> typed tables; the same tables are the JSON Schema
//!   build/      typed tables -> settings, stores, limiters, rules
//!   lint/       warnings about what is valid and probably not meant, one file for each subject
//!   rate_sync/  files of rate-sync, a Python library: what their keys became, and the same in our own form
//!   loader      all of it in order
//!   print       the effective configuration as YAML; restart: the settings in it that change only with a restart
//!   document/watch   notices changes of the files
//! ```
//!
//! All problems are reported at once, each with file, line, path and value, in both formats alike. No other room sees
//! TOML or YAML, and nothing here decides a request.
//!
//! The feature `config` alone reads TOML. YAML, JSON Schema, printing and watching are part of the feature `server`, and
//! stores other than `memory` of the features `redis` and `postgres`.

mod build;
mod configuration;
mod document;
mod lint;
mod loader;
#[cfg(feature = "server")]
mod print;
mod rate_sync;
#[cfg(feature = "server")]
mod restart;
mod schema;

pub use self::configuration::{Config, NamedStore, NamedTable, SnapshotSettings};
pub use self::document::files::{CONFIG_VARIABLE, SourceText, search_paths};
pub use self::document::origin::Origin;
pub use self::document::problem::{Errors, Note, Problem};
pub use self::document::warning::WarningKind;
#[cfg(feature = "server")]
pub use self::document::watch::ConfigWatcher;
#[cfg(feature = "server")]
pub use self::loader::convert;
#[cfg(feature = "server")]
pub use self::restart::RestartSettings;
#[cfg(feature = "server")]
pub(crate) use self::restart::{ABSENT, RestartSetting};
#[cfg(feature = "server")]
pub use self::schema::json_schema;
pub use self::schema::values::Hidden;
