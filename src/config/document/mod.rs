//! Files in TOML or YAML as one tree of values, each with its line.

pub(super) mod disk;
pub(super) mod expand;
pub(super) mod files;
pub(super) mod node;
pub(super) mod origin;
pub(super) mod problem;
mod toml;
pub(super) mod watch;
mod yaml;
