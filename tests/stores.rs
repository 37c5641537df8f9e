//! The stores, one at a time: the contract that each fulfils, and the specifics of each.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test: no other crate uses it, what it measures is printed, it waits for real servers"
)]

mod support;

mod stores {
    mod backlog;
    mod compensation;
    mod contract;
    mod fake;
    mod held;
    mod keys;
    mod leases;
    mod memory;
    mod pooler;
    mod postgres;
    mod queue;
    mod redis;
    mod redis_client;
    mod redis_cluster;
    mod redis_links;
    mod redis_memory;
    mod redis_products;
    mod redis_wrappers;
    mod servers;
    mod settled;
    mod snapshot;
    mod tiers;
    mod undone;
    mod wrapped;
    mod wrappers;
}
