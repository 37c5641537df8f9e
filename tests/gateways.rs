//! The real binary behind real gateways: what a user of Envoy, nginx or Caddy sees.

#[path = "../support/mod.rs"]
#[expect(dead_code, unused_imports, reason = "the servers of stores are not needed here")]
mod support;

mod demo;
mod documents;
mod envoy_doors;
mod envoy_examples;
mod envoy_outages;
mod forward_auth;
mod nginx;
mod rolling_restart;
