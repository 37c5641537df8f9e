//! What is fuzzed. Each target takes any bytes and holds what they came to against what must always be true.
//!
//! `tests/core/fuzz` runs them on stable Rust as a part of the tests: the corpus first, then a bounded number of inputs
//! made of it. `fuzz/fuzz_targets` gives the same functions to libFuzzer, which is led by coverage: see `fuzz/README.md`.

pub mod authz;
pub mod configuration;
pub mod decisions;
pub mod descriptors;
pub mod doors;
pub mod http;
pub mod leases;
pub mod paths;
pub mod snapshot;
