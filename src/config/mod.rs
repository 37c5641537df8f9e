//! What the operator wrote, read strictly.
//!
//! ```text
//!   file or directory -> toml.rs, yaml.rs -> node.rs: values with places -> expand.rs: ${VAR} -> files.rs: one tree
//!        -> decode.rs, values.rs, schema.rs: typed tables -> limiters.rs, rules.rs, settings.rs: what the program runs on
//!   origin.rs: what all of that was read from -> watch.rs: hears when some of it may have changed
//! ```
//!
//! All that is wrong is told at once, each with file, line, path and value, in both formats alike. Nothing past this
//! room sees TOML or YAML, and nothing here decides a request.

mod build;
mod document;
mod print;
mod schema;

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::document::files::{Source, VARIABLE, places};
use self::document::origin::Disk;
pub use self::document::origin::Origin;
use self::document::problem::Problems;
pub use self::document::problem::{Errors, Problem};
pub use self::document::watch::Watch;
use self::schema::decode::{Field, field};
pub use self::schema::values::Hidden;
use crate::rules::RuleBook;
use crate::settings::{Listen, Settings};
use crate::store::{MemorySettings, PostgresSettings, RedisSettings, SharedSettings};

/// A whole configuration, checked.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The settings of the doors.
    pub server: Settings,
    /// The stores, in the order that limiters count them. Never empty once read.
    pub stores: Vec<Store>,
    /// The limiters, domains and rules.
    pub book: RuleBook,
    /// The entries that a domain says its clients send, by its name, for the domains that say so. Rules were held
    /// against them.
    pub entries: Vec<(String, Vec<String>)>,
    /// What works and is worth a word.
    pub warnings: Vec<Problem>,
    /// The files that were read, by name. Empty when none was found.
    pub files: Vec<String>,
}

/// A place where counters are kept.
#[derive(Clone, Debug)]
pub struct Store {
    /// Its name.
    pub name: String,
    /// What keeps them.
    pub engine: Engine,
    /// How long a decision waits for it.
    pub timeout: Duration,
    /// Where its counters survive a restart; of a memory store only.
    pub snapshot: Option<Snapshot>,
}

/// A file that counters survive a restart in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The file.
    pub path: PathBuf,
    /// How often it is written.
    pub interval: Duration,
}

/// What keeps counters.
#[derive(Clone, Debug)]
pub enum Engine {
    /// This process.
    Memory(MemorySettings),
    /// Redis or Valkey.
    Redis(Remote<RedisSettings>),
    /// PostgreSQL.
    Postgres(Remote<PostgresSettings>),
}

/// A store outside of this process.
#[derive(Clone, Debug)]
pub struct Remote<S> {
    /// Where it is.
    pub url: Hidden,
    /// Its other keys as the file has them, secrets masked.
    pub options: Vec<(&'static str, String)>,
    /// What they come to.
    pub settings: S,
    /// How it is asked.
    pub shared: SharedSettings,
    /// Whether nothing is to be sent here before it has answered once.
    pub required: bool,
}

impl Engine {
    /// The word that the file has.
    pub fn name(&self) -> &'static str {
        match self {
            Engine::Memory(_) => "memory",
            Engine::Redis(_) => "redis",
            Engine::Postgres(_) => "postgres",
        }
    }
}

impl Config {
    /// Reads the configuration at `path`, or else the one that `TOLLGATE_CONFIG` names, or else the first of
    /// [`places`] that exists. Without any, everything has its default and there are no rules, and as nobody chose to
    /// open it to the network, it listens on loopback alone.
    ///
    /// # Errors
    ///
    /// A path that is named and not there, and everything that is wrong in the files.
    pub fn load(path: Option<&Path>) -> Result<Self, Errors> {
        Origin::read(path).1
    }

    /// What holds where nothing was written.
    fn of_nothing() -> Result<Self, Errors> {
        let mut config = Self::read(&[], &|_| None)?;
        for door in [&mut config.server.grpc, &mut config.server.http] {
            if let Listen::Tcp(address) = door {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
            }
        }
        Ok(config)
    }

    /// Reads the texts of some files as one configuration, with `variables` to expand.
    ///
    /// # Errors
    ///
    /// Everything that is wrong in them.
    ///
    /// ```
    /// use tollgate::config::{Config, Source};
    ///
    /// let text = "[limiters.login]\nalgorithm = 'sliding_window'\nlimit = 5\nwindow = '0s'\n";
    /// let source = Source { name: "tollgate.toml".to_owned(), text: text.to_owned() };
    /// let errors = Config::read(&[source], &|_| None).unwrap_err();
    /// assert_eq!(errors.to_string(), "tollgate.toml:4: limiters.login.window is \"0s\", expected more than zero");
    /// ```
    pub fn read(sources: &[Source], variables: &dyn Fn(&str) -> Option<String>) -> Result<Self, Errors> {
        compose(sources, variables, &Disk::default())
    }

    /// The configuration as it takes effect, every default written out and every secret masked, as YAML that can be
    /// read again.
    pub fn effective(&self) -> String {
        print::yaml(self)
    }
}

fn compose(sources: &[Source], variables: &dyn Fn(&str) -> Option<String>, disk: &Disk) -> Result<Config, Errors> {
    let files: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
    let mut problems = Problems::of(files.clone());
    let tree = document::files::tree(sources, variables, disk, &mut problems);
    let mut config = match field::<schema::File>(&tree, String::new(), &mut problems) {
        Field::Given(file) => build(&file, &mut problems),
        Field::Absent | Field::Refused => Config::default(),
    };
    config.warnings = problems.finish()?;
    config.files = files;
    Ok(config)
}

fn build(file: &schema::File, problems: &mut Problems) -> Config {
    let stores = build::server::stores(file, problems);
    let names: Vec<String> = stores.iter().map(|store| store.name.clone()).collect();
    let limiters = build::limiters::limiters(file, &names, problems);
    let server = build::server::server(file, problems);
    let mut book = build::server::book(file, problems);
    book.stores = names;
    (book.domains, book.rules) = build::rules::rules(file, &limiters, &server, problems);
    book.limiters = limiters.into_built();
    let entries = build::rules::entries(file);
    Config { server, stores, book, entries, ..Config::default() }
}

/// The JSON Schema (draft 2020-12) of a configuration, made from the tables that read it.
pub fn json_schema() -> serde_json::Value {
    let mut schema =
        schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<schema::File>();
    schema.insert("title".to_owned(), "tollgate configuration".into());
    schema.to_value()
}
