//! tollgate decides, for gateways and workers: may this pass, and if not, when?
//!
//! The binary serves Envoy's rate limit service and ext_authz; this library is everything in it, for programs that
//! decide in their own process and for tests. [`engine::Engine::decide`] is the short way in, with an example.
//!
//! ```text
//!  RLS / ext_authz / HTTP                                              response
//!         |                                                               ^
//!    descriptor::Request                                                  |
//!         '------------------->.                              .-----------'
//!                              v                              |
//!                      engine::decide ------------> decision::Decision
//!                        |                                    ^
//!            rules.plan(&request) -> Plan { checks }          | Decision::judge
//!                        |                                    |
//!                        '---> store.apply(&plan) --> Applied { outcomes }
//! ```
//!
//! # The rooms, in reading order
//!
//! | room | its noun |
//! |---|---|
//! | [`clock`] | a moment |
//! | [`descriptor`] | what is asked |
//! | [`limiter`] | the arithmetic: limits, plans, [`limiter::advance`] |
//! | [`rules`] | which limiters apply, and what counters are called |
//! | [`decision`] | the answer |
//! | [`store`] | where counters are kept |
//! | [`engine`] | the walk; the one place that awaits |
//! | [`telemetry`] | what it tells of itself |
//! | [`server`] | the doors: gRPC, HTTP, admin, headers |
//! | [`config`] | what the operator wrote, read strictly |
//! | [`app`] | the whole, built and served |
//!
//! A room imports only rooms above it. The first five are pure: time is an argument; nothing awaits, logs or counts.
//!
//! # Invariants
//!
//! * A request is charged to all its limiters or to none, except where a check says otherwise.
//! * A store does what [`limiter::advance`] does, decision by decision.
//! * Counting is integer and saturating, below 2^53, and rounding never favours the caller.
//! * No identity reaches a store, a log or a label: counters are named by a keyed hash.
//! * Rules in use are immutable and replaced whole; a request sees one version.

#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod app;
pub mod clock;
pub mod config;
pub mod decision;
pub mod descriptor;
pub mod engine;
pub mod lease;
pub mod limiter;
pub mod plan;
pub mod rules;
pub mod secret;
pub mod server;
pub mod service;
pub mod settings;
pub mod store;
pub mod telemetry;
