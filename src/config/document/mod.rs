//! Reads TOML and YAML files into one tree of values with line numbers. YAML needs the feature `server`.

pub(super) mod disk;
pub(super) mod expand;
pub(super) mod files;
pub(super) mod node;
pub(super) mod origin;
pub(super) mod problem;
mod toml;
pub(super) mod warning;
#[cfg(feature = "server")]
pub(super) mod watch;
#[cfg(feature = "server")]
mod yaml;
