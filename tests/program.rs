//! The real program: its command line and its behaviour while it serves.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test: no other crate uses it, what it measures is printed, it waits for real servers"
)]

mod support;

mod program {
    mod acquire;
    mod answers;
    mod api_document;
    mod api_page;
    mod check;
    mod cli;
    mod data;
    mod drain;
    mod loaded;
    mod notices;
    mod observability;
    mod on_postgres;
    mod on_redis;
    mod operator;
    mod pages;
    mod rate_sync;
    mod reload_live;
    mod reload_stores;
    mod restart;
    mod rotations;
    mod secrets;
    mod store_log;
    mod workers;
}
