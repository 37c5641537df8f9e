//! Configuration: the meaning of a file, the errors about a broken one, and the effects of a reload.

#![expect(
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test: no other crate uses it, it waits for real servers"
)]

mod support;

mod config {
    mod errors;
    mod forms;
    mod lists;
    mod meaning;
    mod rate_sync;
    mod reload;
    mod tables;
    mod warnings;
}
