//! Reads files in TOML or YAML as one tree of values, each with its line. YAML needs the feature `server`.

pub(super) mod disk;
pub(super) mod expand;
pub(super) mod files;
pub(super) mod node;
pub(super) mod origin;
pub(super) mod problem;
mod toml;
#[cfg(feature = "server")]
pub(super) mod watch;
#[cfg(feature = "server")]
mod yaml;
