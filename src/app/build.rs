//! From a checked configuration to compiled rules and open stores.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::PlannedSnapshot;
use super::connect::connect;
use crate::config::Config;
use crate::rules::{PartitionedStore, Rules};
use crate::settings::Settings;
use crate::store::{NextStore, Postgres, Redis, SharedSettings, SharedStore, StoreConfig, StoreHandle, Stores};

/// A configuration that is ready to be served.
#[derive(Debug)]
pub struct PreparedService {
    /// The settings of the ports.
    pub settings: Settings,
    /// The rules, compiled.
    pub rules: Rules,
    /// The stores, in the order of the indexes that rules have.
    pub plan: StorePlan,
    /// The snapshots of memory stores.
    pub snapshots: Vec<PlannedSnapshot>,
}

/// The stores of a configuration, by index.
#[derive(Clone, Debug, Default)]
pub struct StorePlan(Vec<PlannedStore>);

/// One store of a configuration.
#[derive(Clone, Debug)]
struct PlannedStore {
    name: String,
    config: StoreConfig,
    /// Whether readiness waits until it has answered once.
    required: bool,
    /// How long it may then be without an answer.
    unready_after: Option<Duration>,
}

/// Why a valid configuration cannot be served. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError(pub Vec<String>);

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for BuildError {}

impl PreparedService {
    /// Compiles a configuration. Does not change what is serving.
    ///
    /// # Errors
    ///
    /// The rules do not compile. Reading a configuration refuses such rules already.
    pub fn of(config: Config) -> Result<Self, BuildError> {
        let mut book = config.book;
        let mut plan = StorePlan::default();
        let mut snapshots = Vec::new();
        for (index, store) in config.stores.into_iter().enumerate() {
            if let StoreConfig::Redis(_, SharedSettings { partitioned: true, tag, .. }) = &store.config {
                let store = u16::try_from(index)
                    .map_err(|_| BuildError(vec!["too many stores, expected at most 65536".to_owned()]))?;
                book.partitioned.push(PartitionedStore { store, tag: tag.clone() });
            }
            if let Some(snapshot) = store.snapshot {
                snapshots.push(PlannedSnapshot { store: index, path: snapshot.path, interval: snapshot.interval });
            }
            plan.0.push(PlannedStore {
                name: store.name,
                config: store.config,
                required: store.required,
                unready_after: store.unready_after,
            });
        }
        // Reading refuses everything that compiling does, with its place in the file; this catches what it might miss.
        let rules =
            Rules::compile(book).map_err(|errors| BuildError(errors.iter().map(ToString::to_string).collect()))?;
        Ok(Self { settings: config.server, rules, plan, snapshots })
    }

    /// Opens the stores. Memory stores are empty; connections to the others begin. Must be called within a runtime.
    ///
    /// # Errors
    ///
    /// The settings of a store are unusable. Reading a configuration refuses such settings already.
    pub fn stores(&self) -> Result<Stores, BuildError> {
        Ok(self.open_stores(&StorePlan::default())?.after(&Stores::memory(&[])))
    }

    /// Opens the stores. One with the name and settings of a store in use is that store, with its counters.
    pub(super) fn open_stores(&self, old: &StorePlan) -> Result<OpenedStores, BuildError> {
        let mut handles = Vec::new();
        let mut problems = Vec::new();
        for store in &self.plan.0 {
            let handle = match old.0.iter().position(|before| before.is_same_store(store)) {
                Some(index) => Ok(NextStore::Keep(index)),
                None => open(&store.config).map(NextStore::New),
            };
            match handle {
                Ok(handle) => handles.push(handle),
                Err(problem) => problems.push(format!("stores.{}: {problem}", store.name)),
            }
        }
        if problems.is_empty() { Ok(OpenedStores(handles)) } else { Err(BuildError(problems)) }
    }
}

/// The stores of a configuration, opened and not in use yet.
#[derive(Debug)]
pub(super) struct OpenedStores(Vec<NextStore>);

impl OpenedStores {
    /// Waits until every new shared store is connected.
    ///
    /// # Errors
    ///
    /// Those that are not connected within `timeout`, in their own words.
    pub(super) async fn connected(&self, timeout: Duration) -> Result<(), BuildError> {
        let new = self.0.iter().filter_map(|store| match store {
            NextStore::New(StoreHandle::Shared(shared)) => Some(shared),
            NextStore::New(StoreHandle::Memory(_)) | NextStore::Keep(_) => None,
        });
        match connect(new, timeout).await {
            missing if missing.is_empty() => Ok(()),
            missing => Err(BuildError(missing.iter().map(ToString::to_string).collect())),
        }
    }

    /// These stores, with those kept of the ones in use.
    pub(super) fn after(self, stores: &Stores) -> Stores {
        stores.next(self.0)
    }
}

impl StorePlan {
    /// The stores that readiness follows: their names, and how long each may be without an answer.
    pub(super) fn required(&self) -> impl Iterator<Item = (&str, Option<Duration>)> {
        self.0.iter().filter(|store| store.required).map(|store| (store.name.as_str(), store.unready_after))
    }
}

impl PlannedStore {
    /// Whether a store opened for this one can serve the other, with the counters it holds.
    fn is_same_store(&self, other: &Self) -> bool {
        self.name == other.name && self.config.is_same_store(&other.config)
    }
}

/// Makes a store. One outside this process is connected to from now on.
fn open(config: &StoreConfig) -> Result<StoreHandle, String> {
    Ok(match config {
        StoreConfig::Memory(settings) => StoreHandle::Memory(*settings),
        StoreConfig::Redis(settings, shared) => {
            let backend = Redis::named(&shared.name, settings).map_err(|error| error.to_string())?;
            StoreHandle::Shared(Arc::new(SharedStore::new(shared.clone(), backend)))
        }
        StoreConfig::Postgres(settings, shared) => {
            let backend = Postgres::named(&shared.name, settings).map_err(|error| error.to_string())?;
            StoreHandle::Shared(Arc::new(SharedStore::new(shared.clone(), backend)))
        }
    })
}
