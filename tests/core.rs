//! The meaning of the library, without sockets or other processes: semantics, behaviour of each algorithm, properties,
//! races between threads, and the fuzz targets on bounded input.

#![expect(
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test: no other crate uses it, it waits for real servers"
)]

mod support;

mod core {
    mod asks;
    mod behaviour;
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
