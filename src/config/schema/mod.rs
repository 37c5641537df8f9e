//! Everything that a configuration can hold: the one schema of TOML and YAML.
//!
//! ```text
//!   file, server, store, limiter, rule, data, authz, check   the tables and their keys; their documentation is what `tollgate schema` prints
//!   key                                        the properties of a key besides its type: required, needs a restart, ...
//!   values/, address                           the types of values
//!   decode                                     from a tree to these tables; the macros `table!` and `choice!`
//!   json, document                             the JSON Schema of all of it
//! ```

mod address;
mod authz;
mod check;
mod data;
pub(super) mod decode;
#[cfg(feature = "server")]
mod document;
mod file;
#[cfg(feature = "server")]
mod json;
mod key;
mod limiter;
mod rule;
mod server;
mod store;
pub(super) mod values;

pub(super) use self::authz::{Authz, EntrySource, Repeated, UnreadableBody, WrittenEntry, WrittenMetadata};
pub(super) use self::data::{ListFile, TableFile};
#[cfg(feature = "server")]
pub use self::document::json_schema;
pub(super) use self::file::File;
#[cfg(feature = "server")]
pub(super) use self::key::Effect;
pub(super) use self::limiter::{Algorithm, Alignment, Calendar, Limiter, OnStoreError};
pub(super) use self::rule::{
    AbsentDerived, Apply, Charge, Domain, Lost, Match, Missing, Mode, Normaliser, Rule, RuleHeaders, Verdict,
    WrittenKeyEntry,
};
pub(super) use self::server::{Bounds, HeaderFamilies, LogFormat, Server};
#[cfg(any(feature = "postgres", feature = "redis"))]
pub(super) use self::store::RedisMode;
pub(super) use self::store::{Store, StoreKind};
