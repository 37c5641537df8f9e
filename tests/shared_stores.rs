//! Several instances on one real store: races between them, and faults of the store under load.
//!
//! In a binary of their own, because faults are measured in milliseconds and races keep the machine busy: beside the tests
//! of other binaries both would be flaky.

mod support;

mod shared_stores {
    mod faults;
    mod in_process;
    mod races;
    mod three_instances;
}

/// The machine. A fault is measured alone on it: it is locked for writing. Races may run beside each other: they lock it
/// for reading.
static MACHINE: tokio::sync::RwLock<()> = tokio::sync::RwLock::const_new(());
