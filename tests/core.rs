//! The meaning of the library, without sockets or other processes: semantics, behaviour of each algorithm, properties,
//! races between threads, and the fuzz targets on bounded input.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test: no other crate uses it, what it measures is printed, it waits for real servers"
)]

mod support;

/// That of the program, so that what a waiter takes is what it takes there.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

mod core {
    mod asks;
    mod behaviour;
    mod distinct;
    mod fuzz;
    mod holds;
    mod model;
    mod properties;
    mod races;
    mod repeats;
    mod rollouts;
    mod semantics;
    mod tiers;
    mod waiting;
    mod world;
}
