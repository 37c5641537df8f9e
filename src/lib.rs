//! tollgate decides rate limits and quotas for gateways and Rust programs: may this pass, and if not, when?
//!
//! The binary serves Envoy's rate limit service and ext_authz. This library contains all of it, for programs that
//! decide in their own process and for tests. Start with [`engine::Engine::decide`], which has an example.
//!
//! ```text
//!  RLS / ext_authz / HTTP                                              response
//!         |                                                               ^
//!    descriptor::Request                                                  |
//!         '------------------->.                              .-----------'
//!                              v                              |
//!                  engine::Version::decide -----> decision::Decision
//!                        |                                    ^
//!            rules.plan(&request) -> plan::Plan { checks }    | Decision::judge
//!                        |                                    |
//!                        '---> stores.apply(&plan) --> plan::Applied { answers }
//! ```
//!
//! # Rooms
//!
//! A room imports only rooms above it in this table; `tests/tidy` reads the table and every path in `src/`.
//!
//! | room | holds |
//! |---|---|
//! | [`clock`] | timestamps, and the clocks that give them |
//! | [`descriptor`] | a request: domain, descriptors, entries, hits |
//! | [`ask`] | what a worker asks for |
//! | [`settings`] | settings of the doors |
//! | `tls` | one TLS client for shared stores |
//! | [`limiter`] | the arithmetic: one file for each algorithm |
//! | [`plan`] | the checks of a request and their outcomes; [`plan::advance`] defines their meaning |
//! | [`secret`] | the deployment's secret, and the hashed names of counters |
//! | [`lease`] | ids and sealed texts of held slots |
//! | [`store`] | where counters are kept |
//! | [`rules`] | which limiters apply to a request |
//! | [`decision`] | the answer to a request |
//! | [`engine`] | the walk of a request; the one place that awaits a store |
//! | `telemetry` | metrics, the log of refusals, the most refused |
//! | `service` | the version in use, shared by all doors |
//! | `server` | the doors: gRPC, HTTP, admin |
//! | `config` | configuration files, read strictly |
//! | `app` | everything, built from a configuration and served |
//!
//! Time is an argument to `limiter`, `plan`, `rules` and `decision`: they neither await, log nor count.
//!
//! # Invariants
//!
//! * A request is charged to all its limiters or to none, except where a check says otherwise.
//! * A store does what [`plan::advance`] does, decision by decision.
//! * Counting is integer and saturating, below 2^53, and rounding never favours the caller.
//! * No identity reaches a store, a log or a label: counters are named by a keyed hash.
//! * Rules in use are immutable and replaced as a whole; a request sees one version.
//!
//! # Features
//!
//! Without the default features this is the core with the memory store: everything up to [`engine`], except `tls`.
//! `redis` and `postgres` add shared stores, `config` adds the room of that name, and `server` adds everything else.

#![cfg_attr(
    not(feature = "server"),
    allow(dead_code, reason = "crate-private items that only the rooms of the server use")
)]

#[cfg(feature = "server")]
pub mod app;
pub mod ask;
pub mod clock;
#[cfg(feature = "config")]
pub mod config;
pub mod decision;
pub mod descriptor;
pub mod engine;
pub mod lease;
pub mod limiter;
pub mod plan;
pub mod rules;
pub mod secret;
#[cfg(feature = "server")]
pub mod server;
#[cfg(feature = "server")]
pub mod service;
pub mod settings;
pub mod store;
#[cfg(feature = "server")]
pub mod telemetry;
#[cfg(any(feature = "postgres", feature = "redis"))]
pub mod tls;
