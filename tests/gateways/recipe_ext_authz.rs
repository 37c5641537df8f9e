//! The recipe of `ext_authz_settle.yaml`: ext_authz decides, and a rate limit filter ends what it decided.

use super::recipes::{Recipe, at_once, begin, count, hang_up, settled, settlements, until_taken, used};
use crate::support::processes::{Answer, Ask, Gateway, until};

fn recipe() -> Recipe {
    Recipe::new("ext_authz_settle")
}

fn guess(account: &str) -> Ask {
    Ask::post("/login").account(account).header("x-password", "guess")
}

fn right(account: &str) -> Ask {
    Ask::post("/login").account(account).header("x-password", "secret")
}

fn export(account: &str) -> Ask {
    Ask::get("/slow").account(account)
}

/// How many tries of an account are charged.
fn charged(gateway: &Gateway, account: &str) -> u64 {
    used(gateway, "edge", "failures", ("account", account)).used
}

/// Waits until so many logins have been given back or settled, and checks that it was in time.
fn ended(gateway: &Gateway, logins: u64) {
    until("every login to be settled", || settlements(gateway).0 == logins);
    assert_eq!(settlements(gateway), (logins, 0), "each once, and in time");
}

/// Waits until an account holds so many slots.
fn slots(gateway: &Gateway, account: &str, slots: u64) {
    until_taken(gateway, "edge", "exports", ("account", account), slots);
}

/// How often Envoy has asked by the rate limit filter before a request, and been answered.
fn decided_by_rls(gateway: &Gateway) -> u64 {
    ["ok", "over_limit", "error"].iter().map(|name| gateway.stat(&format!("cluster.upstream.ratelimit.{name}"))).sum()
}

#[test]
fn semantics_44_ext_authz_decides_and_the_rate_limit_filter_gives_right_logins_back() {
    let Some(gateway) = recipe().start() else { return };
    let statuses = at_once(&gateway, &vec![guess("ada"); 40]);
    assert_eq!((count(&statuses, 401), count(&statuses, 429)), (3, 37), "{statuses:?}");
    assert_eq!(gateway.upstream.seen().len(), 3);
    ended(&gateway, 3);
    let refused = gateway.ask(&right("ada")).expect(429);
    assert!(refused.retry_after().is_some_and(|seconds| (270..=300).contains(&seconds)), "{refused:?}");
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert_eq!(charged(&gateway, "ada"), 3);

    for number in 1..=12 {
        gateway.ask(&right("bob")).expect(200);
        ended(&gateway, 3 + number);
    }
    assert_eq!(charged(&gateway, "bob"), 0);

    let statuses = at_once(&gateway, &vec![right("cyd"); 12]);
    let passed = count(&statuses, 200);
    assert!(passed >= 3 && passed + count(&statuses, 429) == 12, "{statuses:?}");
    ended(&gateway, 15 + passed as u64);
    assert_eq!(charged(&gateway, "cyd"), 0);
    assert_eq!(decided_by_rls(&gateway), 0, "nothing is asked and charged twice");
}

#[test]
fn semantics_44_ext_authz_takes_slots_and_the_rate_limit_filter_frees_them() {
    let Some(gateway) = recipe().start() else { return };
    let running = vec![begin(&gateway, &export("ada")), begin(&gateway, &export("ada"))];
    let statuses = at_once(&gateway, &vec![export("ada"); 20]);
    assert_eq!(count(&statuses, 429), 20, "{statuses:?}");
    slots(&gateway, "ada", 2);
    assert_eq!(gateway.upstream.held(), 2);
    gateway.upstream.open_gate();
    for export in running {
        Answer::read(export).expect("an answer").expect(200);
    }
    slots(&gateway, "ada", 0);
    // Far more than two, one after the other.
    for _ in 0..10 {
        until("a slot to be free", || gateway.ask(&export("ada")).status == 200);
    }
    slots(&gateway, "ada", 0);
    assert_eq!(decided_by_rls(&gateway), 0);
}

#[test]
fn semantics_44_parallel_exports_are_never_more_than_two_at_once_and_leave_no_slot_taken() {
    let Some(gateway) = recipe().start() else { return };
    let exports = vec![export("ada").header("x-wait", "gate"); 30];
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| at_once(&gateway, &exports));
        until("two to run", || gateway.upstream.held() == 2);
        until("the others to be refused", || gateway.stat("cluster.upstream.ext_authz.denied") == 28);
        assert_eq!(gateway.upstream.held(), 2);
        gateway.upstream.open_gate();
        let statuses = sent.join().expect("answers");
        assert_eq!((count(&statuses, 200), count(&statuses, 429)), (2, 28), "{statuses:?}");
    });
    slots(&gateway, "ada", 0);
}

#[test]
fn semantics_44_behind_ext_authz_a_client_that_hangs_up_frees_its_slot_and_has_used_a_try() {
    let Some(gateway) = recipe().start() else { return };
    let clients = vec![begin(&gateway, &export("ada")), begin(&gateway, &right("bob"))];
    slots(&gateway, "ada", 1);
    hang_up(&gateway, clients);
    slots(&gateway, "ada", 0);
    ended(&gateway, 1);
    assert_eq!(charged(&gateway, "bob"), 1);
}

#[test]
fn semantics_44_behind_ext_authz_a_504_frees_its_slot_and_has_used_a_try() {
    let Some(gateway) = recipe().envoy("cluster: upstream, timeout: 60s", "cluster: upstream, timeout: 0.2s").start()
    else {
        return;
    };
    gateway.ask(&export("ada")).expect(504);
    slots(&gateway, "ada", 0);
    gateway.ask(&right("bob").header("x-wait", "gate")).expect(504);
    ended(&gateway, 1);
    assert_eq!(charged(&gateway, "bob"), 1);
}

#[test]
fn semantics_44_behind_ext_authz_what_envoy_repeats_is_charged_once() {
    let Some(gateway) = recipe().retrying().start() else { return };
    gateway.ask(&right("ada").header("x-unavailable", "2")).expect(200);
    ended(&gateway, 1);
    assert_eq!(charged(&gateway, "ada"), 0);
    gateway.ask(&guess("bob").header("x-unavailable", "100")).expect(503);
    ended(&gateway, 2);
    assert_eq!((gateway.upstream.seen().len(), charged(&gateway, "bob")), (6, 1));
}

/// Its leases are in the namespace of the rate limit filter, and those of ext_authz in another.
#[test]
fn semantics_44_behind_ext_authz_a_second_rate_limit_filter_settles_its_own_lease() {
    let Some(gateway) = recipe().with_a_second_filter().start() else { return };
    let second = || settled(&gateway, "second", "second", ("filter", "second"));
    gateway.ask(&right("ada")).expect(200);
    ended(&gateway, 2);
    assert_eq!((charged(&gateway, "ada"), second()), (0, 1));
    gateway.ask(&guess("ada")).expect(401);
    ended(&gateway, 4);
    assert_eq!((charged(&gateway, "ada"), second()), (1, 2));
    gateway.ask(&Ask::get("/slow").account("ada").header("x-unavailable", "1")).expect(503);
    slots(&gateway, "ada", 0);
    assert_eq!(second(), 3);
    gateway.ask(&right("ada")).expect(429);
    ended(&gateway, 6);
    assert_eq!((charged(&gateway, "ada"), second()), (2, 3));
}

/// The filter that answers stands right behind ext_authz. The rate limit filter, which stands before both, still ends the
/// lease.
#[test]
fn semantics_44_a_filter_that_answers_after_ext_authz_leaves_no_slot_taken() {
    let end = "              validate_mutations: true\n";
    let Some(gateway) = recipe().envoy(end, &format!("{end}{ANSWERS_ITSELF}")).start() else { return };
    for _ in 0..6 {
        gateway.ask(&export("ada")).expect(401);
        slots(&gateway, "ada", 0);
    }
    gateway.ask(&right("bob")).expect(401);
    ended(&gateway, 1);
    assert_eq!((gateway.upstream.seen().len(), charged(&gateway, "bob")), (0, 1));
}

#[test]
fn behind_ext_authz_a_request_without_an_account_is_refused_and_other_pages_need_none() {
    let Some(gateway) = recipe().start() else { return };
    gateway.upstream.open_gate();
    for ask in [Ask::post("/login"), Ask::get("/slow")] {
        let refused = gateway.ask(&ask);
        assert!([403, 429].contains(&refused.status), "{refused:?}");
    }
    assert_eq!(gateway.upstream.seen().len(), 0);
    gateway.ask(&Ask::get("/")).expect(200);
}

/// Over plain HTTP the lease is a header of the answer, which Envoy copies to the metadata under the header's name.
#[test]
fn semantics_44_ext_authz_over_plain_http_is_ended_in_the_same_way() {
    let namespace = "metadata_key: {key: envoy.filters.http.ext_authz, path: [{key: ";
    let recipe = ["release", "settle"].into_iter().fold(recipe(), |recipe, entry| {
        let of = |lease: &str| format!("descriptor_key: {entry}\n                    {namespace}{lease}}}]}}");
        recipe.envoy(&of("lease"), &of("x-tollgate-lease"))
    });
    let recipe = recipe
        .envoy("              encode_raw_headers: true\n", "              allowed_headers: {patterns: [{prefix: x-}]}\n")
        .envoy(
            "              grpc_service:\n                envoy_grpc: {cluster_name: tollgate}\n                timeout: 0.25s\n",
            HTTP_SERVICE,
        )
        .envoy("  - name: tollgate\n", &format!("{HTTP_CLUSTER}  - name: tollgate\n"));
    let Some(gateway) = recipe.start() else { return };
    let statuses = at_once(&gateway, &vec![guess("ada"); 40]);
    assert_eq!((count(&statuses, 401), count(&statuses, 429)), (3, 37), "{statuses:?}");
    for number in 1..=12 {
        gateway.ask(&right("bob")).expect(200);
        ended(&gateway, 3 + number);
    }
    assert_eq!((charged(&gateway, "ada"), charged(&gateway, "bob")), (3, 0));
    let running = vec![begin(&gateway, &export("cyd")), begin(&gateway, &export("cyd"))];
    gateway.ask(&export("cyd")).expect(429);
    hang_up(&gateway, running);
    slots(&gateway, "cyd", 0);
    // The lease goes to no client, and to no upstream.
    let answer = gateway.ask(&right("bob")).expect(200);
    assert!(answer.headers.iter().all(|(name, _)| !name.contains("lease")), "{answer:?}");
    let seen = gateway.upstream.seen();
    assert!(seen.iter().all(|request| request.header("x-tollgate-lease").is_none()), "{seen:?}");
}

const HTTP_SERVICE: &str = r#"              http_service:
                server_uri: {uri: "http://tollgate", cluster: tollgate_http, timeout: 0.25s}
                path_prefix: /authz/envoy
                authorization_response:
                  dynamic_metadata_from_headers: {patterns: [{prefix: x-tollgate-}]}
"#;

const HTTP_CLUSTER: &str = r#"  - name: tollgate_http
    type: STATIC
    load_assignment:
      cluster_name: tollgate_http
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: 8080}}}
"#;

const ANSWERS_ITSELF: &str = r#"          - name: envoy.filters.http.lua
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.lua.v3.Lua
              default_source_code:
                inline_string: |
                  function envoy_on_request(handle)
                    handle:respond({[":status"] = "401"}, "no")
                  end
"#;
