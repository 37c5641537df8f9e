//! Builds settings, stores, limiters and rules from the typed tables.

mod key;
mod data_file;
pub(super) mod limiters;
pub(super) mod lists;
pub(super) mod rules;
pub(super) mod server;
pub(super) mod stores;
pub(super) mod tables;
pub(super) mod values;
