//! Requests as Caddy's `forward_auth` and Traefik's ForwardAuth send them: a GET with the client's method, URI and
//! address in `X-Forwarded-*`, and all other headers of the client.

use crate::support::processes::{Ask, Ports, Tollgate, read};

/// The request that Caddy makes for a `POST` of this URI by the client at this address.
fn question(uri: &str, client: &str) -> Ask {
    let query = uri.split_once('?').map_or(String::new(), |(_, query)| format!("?{query}"));
    Ask::get(&format!("/authz/forward{query}"))
        .header("x-forwarded-for", client)
        .header("x-forwarded-host", "shop.test")
        .header("x-forwarded-method", "POST")
        .header("x-forwarded-proto", "https")
        .header("x-forwarded-uri", uri)
}

#[test]
fn caddy_and_traefik_pass_a_refusal_on_as_it_is() {
    let tollgate = Tollgate::start(&read("examples/nginx/tollgate.toml"), &Ports::free());
    let login = question("/login?next=/", "203.0.113.1").account("ada");
    for left in (0..5).rev() {
        assert_eq!(tollgate.ask(&login).expect(200).remaining(), Some(left));
    }
    let refused = tollgate.ask(&login).expect(429);
    assert!(matches!(refused.retry_after(), Some(290..=300)), "{refused:?}");
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    tollgate.ask(&question("//login", "203.0.113.2").account("ada")).expect(429);
    tollgate.ask(&question("/login", "203.0.113.2").account("bob")).expect(200);
    tollgate.ask(&question("/internal/keys", "203.0.113.2")).expect(404);
}

#[test]
fn the_client_is_the_last_address_and_never_the_leftmost() {
    let tollgate = Tollgate::start(&read("examples/nginx/tollgate.toml"), &Ports::free());
    for n in 0..30 {
        tollgate.ask(&question("/login", &format!("198.51.100.{n}, 203.0.113.1"))).expect(200);
    }
    tollgate.ask(&question("/login", "198.51.100.99, 203.0.113.1")).expect(429);
    tollgate.ask(&question("/login", "203.0.113.1").header("x-real-ip", "198.51.100.1")).expect(429);
    tollgate.ask(&question("/login", "203.0.113.1, 203.0.113.2")).expect(200);
}

#[test]
fn further_hops_are_trusted_if_configured() {
    let rules = read("examples/nginx/tollgate.toml")
        .replace("domain = \"web\"\n\n[authz.entries]", "domain = \"web\"\ntrusted_hops = 2\n\n[authz.entries]");
    let tollgate = Tollgate::start(&rules, &Ports::free());
    for n in 0..30 {
        tollgate.ask(&question("/login", &format!("192.0.2.1, 203.0.113.1, 10.0.0.{n}"))).expect(200);
    }
    tollgate.ask(&question("/login", "192.0.2.2, 203.0.113.1, 10.0.0.99")).expect(429);
    tollgate.ask(&question("/login", "192.0.2.2, 203.0.113.2, 10.0.0.99")).expect(200);
}
