//! From the tables that were read to what the program runs on.

pub(super) mod limiters;
pub(super) mod rules;
pub(super) mod server;
mod stores;
