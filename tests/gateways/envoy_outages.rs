//! Envoy without a running tollgate: each door fails as its example says.

use crate::support::processes::{Ask, Gateway};

#[test]
fn without_tollgate_the_routes_example_lets_requests_pass() {
    let Some(mut gateway) = Gateway::example("rls_routes", "rls_routes") else { return };
    gateway.stop_tollgate();
    for _ in 0..12 {
        gateway.ask(&Ask::get("/page").from("203.0.113.1")).expect(200);
    }
    assert_eq!(gateway.stat("cluster.upstream.ratelimit.failure_mode_allowed"), 12);
}

#[test]
fn without_tollgate_the_examples_that_protect_something_refuse_with_503() {
    for example in ["rls_filter", "login", "failed_logins", "tokens"] {
        let Some(mut gateway) = Gateway::example(example, example) else { return };
        gateway.stop_tollgate();
        gateway.ask(&Ask::post("/login").from("203.0.113.1")).expect(503);
    }
}

#[test]
fn without_tollgate_the_ext_authz_examples_refuse_with_503() {
    for (example, rules) in
        [("ext_authz_grpc", "ext_authz"), ("ext_authz_http", "ext_authz"), ("ext_authz_settle", "ext_authz_settle")]
    {
        let Some(mut gateway) = Gateway::example(example, rules) else { return };
        gateway.stop_tollgate();
        gateway.ask(&Ask::get("/").from("203.0.113.1")).expect(503);
    }
}
