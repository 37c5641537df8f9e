//! From the typed tables to what the program runs on.

pub(super) mod limiters;
pub(super) mod rules;
pub(super) mod server;
pub(super) mod stores;
