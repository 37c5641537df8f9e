//! The real binary behind real gateways, from the view of a client of Envoy, nginx, Caddy, Traefik or HAProxy.

#![expect(
    clippy::disallowed_methods,
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test: no other crate uses it, what it measures is printed, it waits for real servers"
)]

mod support;

mod gateways {
    mod caddy;
    mod demo;
    mod documents;
    mod envoy_doors;
    mod envoy_examples;
    mod envoy_outages;
    mod forward_auth;
    mod haproxy;
    mod mistakes;
    mod nginx;
    mod recipe_concurrency;
    mod recipe_ext_authz;
    mod recipe_failed_logins;
    mod recipe_login_form;
    mod recipe_tokens;
    mod recipes;
    mod repeats;
    mod rolling_restart;
    mod site;
    mod spellings;
    mod traefik;
}
