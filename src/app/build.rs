//! Builds what is served from a checked configuration: settings, compiled rules, and stores by name.

use std::fmt;
use std::sync::Arc;

use super::SnapshotFile;
use crate::config::{Config, Engine, Remote};
use crate::rules::{PartitionedStore, Rules};
use crate::settings::Settings;
use crate::store::{
    MemorySettings, Next, Postgres, PostgresSettings, Redis, RedisSettings, Shared, SharedSettings, StoreHandle, Stores,
};

/// A configuration that is ready to be served.
#[derive(Debug)]
pub struct PreparedService {
    /// The settings of the doors.
    pub settings: Settings,
    /// The rules, compiled.
    pub rules: Rules,
    /// The stores, in the order by which rules index them.
    pub plan: StorePlan,
    /// The snapshot files of memory stores.
    pub snapshots: Vec<SnapshotFile>,
}

/// The stores of a configuration, by their names.
#[derive(Clone, Debug, Default)]
pub struct StorePlan(Vec<(String, StoreKind)>);

/// How a store is made. Two that are equal are the same store.
#[derive(Clone, Debug, PartialEq, Eq)]
enum StoreKind {
    Memory(MemorySettings),
    Redis(RedisSettings, SharedSettings, bool),
    Postgres(PostgresSettings, SharedSettings, bool),
}

/// Why a configuration cannot be served: at least one line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError(pub Vec<String>);

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for BuildError {}

impl PreparedService {
    /// Prepares a configuration. Nothing in use changes.
    ///
    /// # Errors
    ///
    /// The rules cannot be compiled. Reading a configuration finds these errors first.
    pub fn of(config: Config) -> Result<Self, BuildError> {
        let mut book = config.book;
        let mut plan = StorePlan::default();
        let mut snapshots = Vec::new();
        for (index, store) in config.stores.into_iter().enumerate() {
            let kind = match store.engine {
                Engine::Memory(settings) => StoreKind::Memory(settings),
                Engine::Redis(Remote { settings, shared, required, .. }) => {
                    StoreKind::Redis(settings, shared, required)
                }
                Engine::Postgres(Remote { settings, shared, required, .. }) => {
                    StoreKind::Postgres(settings, shared, required)
                }
            };
            if let StoreKind::Redis(_, SharedSettings { partitioned: true, tag, .. }, _) = &kind {
                let store = u16::try_from(index)
                    .map_err(|_| BuildError(vec!["too many stores, expected at most 65536".to_owned()]))?;
                book.partitioned.push(PartitionedStore { store, tag: tag.clone() });
            }
            plan.0.push((store.name, kind));
            if let Some(snapshot) = store.snapshot {
                snapshots.push(SnapshotFile { store: index, path: snapshot.path, interval: snapshot.interval });
            }
        }
        // Reading has reported all errors that compiling can find, each with its line. This is a second check.
        let rules =
            Rules::compile(book).map_err(|errors| BuildError(errors.iter().map(ToString::to_string).collect()))?;
        Ok(Self { settings: config.server, rules, plan, snapshots })
    }

    /// Makes its stores. Memory stores are empty; shared stores start to connect. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// The settings of a store cannot be used: a file of certificates is missing, for example.
    pub fn stores(&self) -> Result<Stores, BuildError> {
        self.stores_after(&StorePlan::default(), &Stores::memory(&[]))
    }

    /// Makes its stores. A store in use with the same name and settings is kept, with its counters.
    pub(super) fn stores_after(&self, old: &StorePlan, stores: &Stores) -> Result<Stores, BuildError> {
        let kept = |name: &str, kind: &StoreKind| {
            let same = |(known, before): &(String, StoreKind)| known == name && before.is(kind);
            old.0.iter().position(same)
        };
        let mut next = Vec::new();
        let mut problems = Vec::new();
        for (name, kind) in &self.plan.0 {
            match kept(name, kind).map_or_else(|| kind.make().map(Next::New), |index| Ok(Next::Keep(index))) {
                Ok(store) => next.push(store),
                Err(problem) => problems.push(format!("stores.{name}: {problem}")),
            }
        }
        if problems.is_empty() { Ok(stores.next(next)) } else { Err(BuildError(problems)) }
    }
}

impl StorePlan {
    /// The stores that must answer once before this process is ready.
    pub(super) fn required(&self) -> impl Iterator<Item = &str> {
        let required = |kind: &StoreKind| match kind {
            StoreKind::Memory(_) => false,
            StoreKind::Redis(_, _, required) | StoreKind::Postgres(_, _, required) => *required,
        };
        self.0.iter().filter(move |(_, kind)| required(kind)).map(|(name, _)| name.as_str())
    }
}

impl StoreKind {
    /// Whether a store that was made so can go on as the other. The bounds of a memory store wait for a restart.
    fn is(&self, other: &Self) -> bool {
        matches!((self, other), (StoreKind::Memory(_), StoreKind::Memory(_))) || self == other
    }

    fn make(&self) -> Result<StoreHandle, String> {
        Ok(match self {
            StoreKind::Memory(settings) => StoreHandle::Memory(*settings),
            StoreKind::Redis(settings, shared, _) => {
                let backend = Redis::new(settings).map_err(|error| error.to_string())?;
                StoreHandle::Shared(Arc::new(Shared::new(shared.clone(), backend)))
            }
            StoreKind::Postgres(settings, shared, _) => {
                let backend = Postgres::new(settings).map_err(|error| error.to_string())?;
                StoreHandle::Shared(Arc::new(Shared::new(shared.clone(), backend)))
            }
        })
    }
}
