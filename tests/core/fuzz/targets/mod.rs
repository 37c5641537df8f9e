//! The fuzz targets. Each takes any bytes and checks invariants of the result.
//!
//! `tests/core/fuzz` runs them on stable Rust as part of the tests: the corpus first, then a bounded number of inputs
//! derived from it. `fuzz/fuzz_targets` gives the same functions to libFuzzer, which is guided by coverage: see
//! `fuzz/README.md`.

pub mod authz;
pub mod configuration;
pub mod decisions;
pub mod descriptors;
pub mod doors;
pub mod http;
pub mod leases;
pub mod paths;
pub mod snapshot;
pub mod workers;
