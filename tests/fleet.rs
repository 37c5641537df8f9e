//! Two versions of the program at the same time: this one, and the one that `TOLLGATE_BEFORE` names, as during an upgrade
//! or when it is rolled back.
//!
//! `scripts/fleet` builds the other version and runs these tests. `cargo test` alone does not.

#![expect(
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test: no other crate uses it, and it waits for real servers"
)]

mod support;

mod fleet {
    mod shared;
    mod snapshots;
    mod version;
}
