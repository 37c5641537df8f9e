//! From a checked configuration to what runs: compiled rules, and stores by their names.

use std::fmt;
use std::sync::Arc;

use super::Snapshot;
use crate::config::{Config, Engine, Remote};
use crate::rules::{PartitionedStore, Rules};
use crate::settings::Settings;
use crate::store::{
    MemorySettings, Next, Postgres, PostgresSettings, Redis, RedisSettings, Shared, SharedSettings, StoreHandle, Stores,
};

/// A configuration ready to be served.
#[derive(Debug)]
pub struct Prepared {
    /// The settings of the doors.
    pub settings: Settings,
    /// The rules, compiled.
    pub rules: Rules,
    /// Each store, in the order that the rules count them.
    pub plan: StorePlan,
    /// The files that stores survive a restart in.
    pub snapshots: Vec<Snapshot>,
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

/// Why a configuration that was read cannot be served. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unservable(pub Vec<String>);

impl fmt::Display for Unservable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

impl std::error::Error for Unservable {}

impl Prepared {
    /// Prepares a configuration. Nothing that serves is touched.
    ///
    /// # Errors
    ///
    /// It cannot be compiled, which reading has refused before.
    pub fn of(config: Config) -> Result<Self, Unservable> {
        let mut book = config.book;
        let mut plan = StorePlan::default();
        let mut snapshots = Vec::new();
        for (place, store) in config.stores.into_iter().enumerate() {
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
                let store =
                    u16::try_from(place).map_err(|_| Unservable(vec!["there are too many stores".to_owned()]))?;
                book.partitioned.push(PartitionedStore { store, tag: tag.clone() });
            }
            plan.0.push((store.name, kind));
            if let Some(kept) = store.snapshot {
                snapshots.push(Snapshot { store: place, path: kept.path, interval: kept.interval });
            }
        }
        // Reading has refused all that compiling does, each with its place; should a door be left open there, it is
        // shut here.
        let rules =
            Rules::compile(book).map_err(|errors| Unservable(errors.iter().map(ToString::to_string).collect()))?;
        Ok(Self { settings: config.server, rules, plan, snapshots })
    }

    /// Its stores. Those in memory are empty; the others are connected to from now on. To be called within a runtime.
    ///
    /// # Errors
    ///
    /// The settings of a store cannot be used: a file of certificates is not there.
    pub fn stores(&self) -> Result<Stores, Unservable> {
        self.stores_after(&StorePlan::default(), &Stores::memory(&[]))
    }

    /// Its stores, where each that has the name of one in use, and is the same, is that one, with all that it holds.
    pub(super) fn stores_after(&self, old: &StorePlan, stores: &Stores) -> Result<Stores, Unservable> {
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
        if problems.is_empty() { Ok(stores.next(next)) } else { Err(Unservable(problems)) }
    }
}

impl StorePlan {
    /// The stores that have to answer once before anything is sent here.
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
