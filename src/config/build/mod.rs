//! Builds settings, stores, limiters and rules from the typed tables.

mod key;
pub(super) mod limiters;
pub(super) mod rules;
pub(super) mod server;
pub(super) mod stores;
pub(super) mod values;
