//! From a checked configuration to what runs: compiled rules, and stores by their names.

use std::fmt;

use super::Snapshot;
use crate::config::{Config, Engine};
use crate::rules::Rules;
use crate::server::Settings;
use crate::store::{Keeper, MemorySettings, Stores};

/// A configuration ready to be served.
#[derive(Debug)]
pub struct Prepared {
    /// The settings of the doors.
    pub settings: Settings,
    /// The rules, compiled.
    pub rules: Rules,
    /// The bounds of each store, in the order that the rules count them.
    pub spaces: Vec<MemorySettings>,
    /// The files that stores survive a restart in.
    pub snapshots: Vec<Snapshot>,
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
    /// It names a store that this version cannot serve with.
    pub fn of(config: Config) -> Result<Self, Unservable> {
        let mut spaces = Vec::with_capacity(config.stores.len());
        let mut snapshots = Vec::new();
        for (place, store) in config.stores.iter().enumerate() {
            match &store.engine {
                Engine::Memory(settings) => spaces.push(*settings),
                engine @ (Engine::Redis(_) | Engine::Postgres(_)) => {
                    return Err(Unservable(vec![format!(
                        "stores.{} has engine \"{}\", which is not built yet: this version serves with engine = \
                         \"memory\"",
                        store.name,
                        engine.name()
                    )]));
                }
            }
            if let Some(kept) = &store.snapshot {
                snapshots.push(Snapshot { store: place, path: kept.path.clone(), interval: kept.interval });
            }
        }
        // Reading has refused all that compiling does, each with its place; should a door be left open there, it is
        // shut here.
        let rules = Rules::compile(config.book)
            .map_err(|errors| Unservable(errors.iter().map(ToString::to_string).collect()))?;
        Ok(Self { settings: config.server, rules, spaces, snapshots })
    }

    /// Its stores, empty.
    pub fn stores(&self) -> Stores {
        Stores::memory(&self.spaces)
    }

    /// Its stores, where each that has the name of one in use is that one, with all that it holds.
    pub(super) fn stores_after(&self, rules: &Rules, stores: &Stores) -> Stores {
        let named = self.rules.stores().iter().zip(&self.spaces);
        stores.next(
            named.map(|(name, space)| rules.stores().iter().position(|old| old == name).ok_or(Keeper::Memory(*space))),
        )
    }
}
