//! The real binary behind real gateways: what a user of Envoy, nginx or Caddy sees.

mod support;

mod gateways {
    mod demo;
    mod documents;
    mod envoy_doors;
    mod envoy_examples;
    mod envoy_outages;
    mod forward_auth;
    mod nginx;
    mod rolling_restart;
}
