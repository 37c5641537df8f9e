//! A configuration that was read and checked.

use std::path::PathBuf;
use std::time::Duration;

use super::document::problem::{Note, Problem};
use super::document::warning::WarningKind;
use super::schema::values::Hidden;
use crate::rules::RuleBook;
use crate::settings::Settings;
use crate::store::StoreConfig;

/// A whole configuration, checked.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The settings of the ports.
    pub server: Settings,
    /// The stores, in the order of the indexes that limiters have. Never empty after reading.
    pub stores: Vec<NamedStore>,
    /// The limiters, domains and rules.
    pub book: RuleBook,
    /// Whether clear text is meant on addresses that other machines can reach.
    pub clear_text_accepted: bool,
    /// The kinds of warnings that are not reported.
    pub accepted_warnings: Vec<WarningKind>,
    /// Warnings: the configuration works, but these deserve attention.
    pub warnings: Vec<Problem>,
    /// The sizes of lists, and what became of each key of a file of rate-sync.
    pub notes: Vec<Note>,
    /// The lists as written.
    pub lists: Vec<(String, PathBuf)>,
    /// The tables as written.
    pub tables: Vec<NamedTable>,
    /// The names of the files that were read. Empty when none was found.
    pub files: Vec<String>,
}

/// A table of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NamedTable {
    /// Its name.
    pub name: String,
    /// The path of its file as written.
    pub file: PathBuf,
    /// The column by whose values rows are found.
    pub by: String,
    /// Whether that column has digests.
    pub hashed: bool,
}

/// A store of the configuration.
#[derive(Clone, Debug)]
pub struct NamedStore {
    /// Its name.
    pub name: String,
    /// Its kind and settings.
    pub config: StoreConfig,
    /// How long a decision waits for it.
    pub timeout: Duration,
    /// Whether readiness waits until it has answered once.
    pub required: bool,
    /// How long it may be without an answer before readiness ends, if it is required.
    pub unready_after: Option<Duration>,
    /// The snapshot that preserves its counters over a restart. Memory stores only.
    pub snapshot: Option<SnapshotSettings>,
    /// Its URL. Redis and PostgreSQL only.
    pub url: Option<Hidden>,
    /// The other keys of a Redis or PostgreSQL store as written, secrets masked.
    pub options: Vec<(&'static str, String)>,
}

/// The settings of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotSettings {
    /// The path of the file.
    pub path: PathBuf,
    /// How often it is written.
    pub interval: Duration,
}
