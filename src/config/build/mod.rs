//! Builds settings, stores, limiters and rules from the typed tables.

mod data_file;
mod key;
pub(super) mod limiters;
pub(super) mod lists;
pub(super) mod rules;
pub(super) mod server;
pub(super) mod stores;
pub(super) mod tables;
pub(super) mod values;
