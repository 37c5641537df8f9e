//! Several instances on one real store: races between them, and faults of the store under load.
//!
//! This is a binary of its own: fault tests measure milliseconds and races keep the machine busy, so both would be
//! flaky if they ran together with other tests.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test: no other crate uses it, what it measures is printed, it waits for real servers"
)]

mod support;

mod shared_stores {
    mod blinks;
    mod blips;
    mod failovers;
    #[expect(dead_code, reason = "the tests of the stores use more of it")]
    #[path = "../stores/fake.rs"]
    mod fake;
    mod faults;
    mod idle;
    mod in_process;
    mod killed_workers;
    mod load;
    mod races;
    mod reloads;
    mod slot_races;
    mod three_instances;
    mod waiters;
}

/// A lock on the machine. A fault test takes it for writing, because it needs the machine alone; races take it for
/// reading and may run concurrently.
static MACHINE: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());
