//! Every configuration in `examples/envoy/`, run by a real Envoy with its rules. Those that hold what they charge, and
//! the endings of requests, are in `recipe_*.rs`.

use std::collections::BTreeSet;
use std::fs;

use crate::support::processes::{Answer, Ask, Gateway, project, until};

/// The examples that have tests: a new example without one fails one here.
const TESTED: [&str; 13] = [
    "concurrency.yaml",
    "ext_authz_grpc.yaml",
    "ext_authz_http.yaml",
    "ext_authz_settle.yaml",
    "failed_logins.yaml",
    "gateway.yaml",
    "login.yaml",
    "login_form.yaml",
    "rls_filter.yaml",
    "rls_routes.yaml",
    "tiers.yaml",
    "tokens.yaml",
    "two_instances.yaml",
];

#[test]
fn every_example_is_tested() {
    let files = fs::read_dir(project().join("examples/envoy")).expect("the examples");
    let names = files.map(|file| file.expect("a file").file_name().into_string().expect("a name in ASCII"));
    let found: BTreeSet<String> = names.filter(|name| name.ends_with(".yaml")).collect();
    assert_eq!(found, BTreeSet::from(TESTED.map(str::to_owned)));
}

#[test]
fn rls_by_routes_counts_the_site_and_the_search_together() {
    let Some(gateway) = Gateway::example("rls_routes", "rls_routes") else { return };
    let search = Ask::get("/search?q=toll").from("203.0.113.1");
    for left in [2, 1, 0] {
        let answer = gateway.ask(&search).expect(200);
        assert_eq!(answer.remaining(), Some(left));
    }
    let refused = gateway.ask(&search).expect(429);
    assert_eq!(refused.header("x-envoy-ratelimited"), Some("true"));
    assert!(matches!(refused.retry_after(), Some(1..=10)), "one in ten seconds: {refused:?}");
    assert_eq!(refused.remaining(), Some(0));
    let limits = refused.header("x-ratelimit-limit").expect("Envoy sends the limits");
    assert!(limits.contains("10;w=60"), "the site's: {limits}");
    assert!(limits.contains("6;w=60"), "the search's, as configured: {limits}");

    // Three searches were admitted at a cost of one to the site each. The refused one was not charged.
    let page = Ask::get("/page").from("203.0.113.1");
    for left in (0..7).rev() {
        assert_eq!(gateway.ask(&page).expect(200).remaining(), Some(left));
    }
    gateway.ask(&page).expect(429);

    let file = gateway.ask(&Ask::get("/static/site.css").from("203.0.113.1")).expect(200);
    assert_eq!(file.header("x-ratelimit-limit"), None, "Envoy makes no call about it");
    gateway.ask(&page.header("x-forwarded-for", "203.0.113.2")).expect(200);
}

#[test]
fn rls_by_filter_charges_a_write_for_five() {
    let Some(gateway) = Gateway::example("rls_filter", "rls_filter") else { return };
    let from_home = |ask: Ask, account: &str| gateway.ask(&ask.account(account).from("203.0.113.1"));
    assert_eq!(from_home(Ask::post("/orders"), "ada").expect(200).remaining(), Some(5));
    assert_eq!(from_home(Ask::post("/orders"), "ada").expect(200).remaining(), Some(0));
    let refused = from_home(Ask::get("/orders"), "ada").expect(429);
    assert!(matches!(refused.retry_after(), Some(50..=60)), "{refused:?}");

    // Ten of the address's twenty are used. The account refuses the third write of another account.
    from_home(Ask::post("/orders"), "bob").expect(200);
    from_home(Ask::get("/orders"), "bob").expect(200);
    from_home(Ask::post("/orders"), "bob").expect(429);
    from_home(Ask::get("/orders"), "bob").expect(200);
    // Seventeen are used: no write fits any more, with or without an account. A refusal does not charge the account.
    from_home(Ask::post("/orders"), "cyd").expect(429);
    gateway.ask(&Ask::post("/orders").from("203.0.113.1")).expect(429);
    let elsewhere = gateway.ask(&Ask::post("/orders").account("cyd").from("203.0.113.2")).expect(200);
    assert_eq!(elsewhere.remaining(), Some(5));

    // The route with a domain of its own.
    for expected in [200, 200, 429] {
        gateway.ask(&Ask::get("/report").from("203.0.113.9")).expect(expected);
    }
}

#[test]
fn ext_authz_over_grpc_answers_with_status_headers_and_body() {
    let Some(gateway) = Gateway::example("ext_authz_grpc", "ext_authz") else { return };
    asked_through_ext_authz(&gateway);

    // The route selected the domain and so its rules.
    for (address, expected) in [("203.0.113.1", 200), ("203.0.113.2", 200), ("203.0.113.3", 429)] {
        gateway.ask(&Ask::get("/partner/feed").from(address)).expect(expected);
    }
    let file = gateway.ask(&Ask::get("/static/site.css").from("203.0.113.1")).expect(200);
    assert_eq!(file.header("x-ratelimit-limit"), None, "Envoy makes no call about it");
}

#[test]
fn ext_authz_over_http_answers_with_status_headers_and_body() {
    let Some(gateway) = Gateway::example("ext_authz_http", "ext_authz") else { return };
    asked_through_ext_authz(&gateway);
}

/// Without these headers, Envoy makes UNAVAILABLE of a refusal, which gRPC clients retry.
#[test]
fn a_grpc_client_behind_ext_authz_is_told_that_its_limit_is_exhausted() {
    for example in ["ext_authz_grpc", "ext_authz_http"] {
        let Some(gateway) = Gateway::example(example, "ext_authz") else { return };
        let call = Ask::post("/").account("ada").from("203.0.113.1").header("content-type", "application/grpc");
        for _ in 0..3 {
            gateway.ask(&call).expect(200);
        }
        let refused = gateway.ask(&call).expect(200);
        assert_eq!(refused.header("grpc-status"), Some("8"), "{refused:?}");
        assert_eq!(refused.header("grpc-message"), Some("limit exceeded; try again later"), "{refused:?}");
    }
}

/// Behaviour shared by both examples of ext_authz.
fn asked_through_ext_authz(gateway: &Gateway) {
    let ada = Ask::get("/").account("ada").from("203.0.113.1");
    for left in [2, 1, 0] {
        let passed = gateway.ask(&ada).expect(200);
        assert_eq!(passed.header("x-ratelimit-limit"), Some("3"));
        assert_eq!(passed.remaining(), Some(left));
        assert!(passed.header("ratelimit-policy").is_some_and(|policy| policy.contains("q=3;w=60")), "{passed:?}");
        assert!(passed.header("ratelimit").is_some_and(|state| state.contains(&format!("r={left};t="))), "{passed:?}");
        assert_eq!(passed.header("retry-after"), None);
    }
    let refused = gateway.ask(&ada).expect(429);
    assert!(matches!(refused.retry_after(), Some(50..=60)), "{refused:?}");
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert!(refused.body.contains("429"), "{refused:?}");
    assert_eq!(refused.remaining(), Some(0));

    // The refused request did not charge the address: two of its five are left.
    for (account, expected) in [("bob", 200), ("cyd", 200), ("dan", 429)] {
        gateway.ask(&Ask::get("/").account(account).from("203.0.113.1")).expect(expected);
    }
    // An address cannot be forged, neither to the left of the load balancer's entry nor in Envoy's own header.
    for forged in ["198.51.100.1, 203.0.113.1", "10.0.0.1,203.0.113.1"] {
        gateway.ask(&Ask::get("/").from(forged)).expect(429);
    }
    let forged = Ask::get("/").from("203.0.113.1").header("x-envoy-external-address", "198.51.100.2");
    gateway.ask(&forged).expect(429);
    let elsewhere = gateway.ask(&Ask::get("/").account("dan").from("203.0.113.2")).expect(200);
    assert_eq!(elsewhere.remaining(), Some(2));
    // Internal clients are counted apart as well.
    for _ in 0..5 {
        gateway.ask(&Ask::get("/").from("10.1.2.3")).expect(200);
    }
    gateway.ask(&Ask::get("/").from("198.51.100.1, 10.1.2.3")).expect(429);
    gateway.ask(&Ask::get("/").from("10.1.2.4")).expect(200);

    // A rule's own refusal, for every spelling of its path.
    for path in ["/internal/keys", "//internal/keys", "/%69nternal/keys", "/a/../internal/keys?x=1"] {
        let hidden = gateway.ask(&Ask::get(path).from("203.0.113.3")).expect(404);
        assert_eq!(hidden.body, "no such page\n");
    }
    let reached = gateway.upstream.seen();
    assert!(reached.iter().all(|request| !request.line.contains("internal")), "{reached:?}");
}

#[test]
fn a_login_page_is_guarded_by_address_and_account() {
    let Some(gateway) = Gateway::example("login", "login") else { return };
    let login = |account: &str, address: &str| {
        Ask::post("/login").json(&format!(r#"{{"username": "{account}", "password": "guess"}}"#)).from(address)
    };
    // One account from many addresses.
    for address in 1..=5 {
        gateway.ask(&login("ada", &format!("203.0.113.{address}"))).expect(401);
    }
    let refused = gateway.ask(&login("ada", "203.0.113.6")).expect(429);
    assert!(matches!(refused.retry_after(), Some(290..=300)), "{refused:?}");
    assert_eq!(refused.header("x-ratelimit-limit"), Some("5, 5;w=300;name=\"login_account\""));
    // All spellings of an account share a counter.
    gateway.ask(&login(" ADA ", "203.0.113.7")).expect(429);
    gateway.ask(&login("bob", "203.0.113.7")).expect(401);

    // The address is charged for what the account refuses: after thirty tries it is used up.
    for _ in 0..30 {
        gateway.ask(&login("ada", "198.51.100.1")).expect(429);
    }
    gateway.ask(&login("cyd", "198.51.100.1")).expect(429);
    // A refusal by the address does not charge the account.
    for _ in 0..10 {
        gateway.ask(&login("cyd", "198.51.100.1")).expect(429);
    }
    for left in (0..5).rev() {
        assert_eq!(gateway.ask(&login("cyd", "203.0.113.8")).expect(401).remaining(), Some(left));
    }
    // Neither a missing or disguised account nor another spelling of the path avoids the address's limit.
    gateway.ask(&Ask::post("/login").from("198.51.100.1")).expect(429);
    gateway.ask(&Ask::post("/login").json("{\"username\": 7}").from("198.51.100.1")).expect(429);
    gateway.ask(&Ask::post("/login").json("not json").from("198.51.100.1")).expect(429);
    for path in ["//login", "/%6Cogin", "/x/../login", "/login?a=b", "/./login"] {
        gateway.ask(&Ask::post(path).from("198.51.100.1")).expect(429);
    }
    // The rule does not apply to other pages.
    gateway.ask(&Ask::get("/").from("198.51.100.1")).expect(200);
    gateway.ask(&Ask::get("/login").from("198.51.100.1")).expect(200);
}

#[test]
fn a_login_counts_for_its_account_whatever_the_content_type() {
    let Some(gateway) = Gateway::example("login", "login") else { return };
    let typed = |kind: Option<&str>, body: &str| match kind {
        Some(kind) => Ask::post("/login").body(body).header("content-type", kind),
        None => Ask::post("/login").body(body),
    };
    let ada = r#"{"username": "ada"}"#;
    let json = ["application/json", "application/json; charset=utf-8", "Application/JSON", "application/json ;v=1"];
    let read: Vec<Option<&str>> = json.into_iter().map(Some).chain([None]).collect();
    for (number, kind) in read.iter().enumerate() {
        gateway.ask(&typed(*kind, ada).from(&format!("203.0.113.{number}"))).expect(401);
    }
    for (number, kind) in read.iter().enumerate() {
        gateway.ask(&typed(*kind, ada).from(&format!("203.0.113.{number}"))).expect(429);
    }
    // A request whose account cannot be read is refused, even the first.
    let form = Some("application/x-www-form-urlencoded");
    let unread = [
        typed(Some("text/plain"), ada),
        typed(form, ada),
        typed(form, "username=ada"),
        typed(Some("application/json,text/plain"), ada),
        typed(Some(json[0]), r#"{"username": "ada", "#),
        typed(Some(json[0]), r#"{"username": ""}"#),
        typed(Some(json[0]), r#"{"username": ["ada"]}"#),
        typed(Some(json[0]), r#"{"password": "guess"}"#),
        typed(None, ""),
    ];
    for (number, login) in unread.iter().enumerate() {
        gateway.ask(&login.clone().from(&format!("198.51.100.{number}"))).expect(429);
    }
    // Of a duplicate account the last counts, as in most JSON parsers.
    gateway.ask(&typed(None, r#"{"username": "bob", "username": "ada"}"#).from("203.0.113.9")).expect(429);
    // The address is charged for those as well.
    for _ in 0..30 {
        gateway.ask(&unread[0].clone().from("192.0.2.1")).expect(429);
    }
    gateway.ask(&typed(None, r#"{"username": "bob"}"#).from("192.0.2.1")).expect(429);
}

#[test]
fn leaving_out_the_account_does_not_lift_its_limit() {
    for (example, ask) in [
        ("concurrency", Ask::get("/slow")),
        ("failed_logins", Ask::post("/login")),
        ("gateway", Ask::get("/slow")),
        ("tokens", Ask::get("/v1/chat?tokens=10")),
    ] {
        let Some(gateway) = Gateway::example(example, example) else { return };
        gateway.upstream.open_gate();
        let refused = gateway.ask(&ask).expect(429);
        assert_eq!(refused.header("x-envoy-ratelimited"), Some("true"), "{example}");
        assert_ne!(gateway.ask(&ask.account("ada")).status, 429, "{example}");
        assert_eq!(gateway.upstream.seen().len(), 1, "{example}: what was refused did not reach it");
    }
    // Pages other than the login need no account.
    let Some(gateway) = Gateway::example("failed_logins", "failed_logins") else { return };
    gateway.ask(&Ask::get("/")).expect(200);
}

/// Tokens of the key in tiers.yaml: `{"iss": "shop", "sub": .., "tier": ..}`.
mod tokens {
    pub const ADA_FREE: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImV4YW1wbGUifQ.eyJpc3MiOiJzaG9wIiwic3ViIjoiYWRhIiwidGllciI6ImZyZWUifQ.gf0Y0nk8avINBTCBycm1UqXCMBujACFxPfJg4FtI9mM";
    pub const ADA_PRO: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImV4YW1wbGUifQ.eyJpc3MiOiJzaG9wIiwic3ViIjoiYWRhIiwidGllciI6InBybyJ9.rqq2qQrDc6uXd4zpH99UZg5Uy1IyQxtw8fJ45y8rf2E";
    pub const BOB_PRO: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImV4YW1wbGUifQ.eyJpc3MiOiJzaG9wIiwic3ViIjoiYm9iIiwidGllciI6InBybyJ9.rH1H_alAZ6rbpdli1tr6Pmq9_uKHaYe2y0k_SFkSN00";
    pub const EVE_ENTERPRISE: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImV4YW1wbGUifQ.eyJpc3MiOiJzaG9wIiwic3ViIjoiZXZlIiwidGllciI6ImVudGVycHJpc2UifQ.SaCqqcMRHpYqFgSZ-bxlgrpCfAW8tVWKTi-dL0OyJRI";
    pub const JOE_WITHOUT: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImV4YW1wbGUifQ.eyJpc3MiOiJzaG9wIiwic3ViIjoiam9lIn0.i_RY3Fgdw_MCrdPfUqitOpC0NI-X_GC5ZvA5ATqxbPk";
    pub const KIM_GOLD: &str = "eyJhbGciOiJIUzI1NiIsImtpZCI6ImV4YW1wbGUifQ.eyJpc3MiOiJzaG9wIiwic3ViIjoia2ltIiwidGllciI6ImdvbGQifQ._kyMhBtWDR0Lhi5tzU2dXeltvbGrvQgJhmPoUA5P6kQ";
}

#[test]
fn a_tier_gives_what_it_sells_and_an_upgrade_keeps_what_was_used() {
    let Some(gateway) = Gateway::example("tiers", "tiers") else { return };
    let ask = |token: &str| gateway.ask(&Ask::get("/").header("authorization", &format!("Bearer {token}")));
    let uses_up = |token: &str, tier: &str, from: u64, limit: u64| {
        for left in (0..from).rev() {
            let answer = ask(token).expect(200);
            assert_eq!(answer.remaining(), Some(left));
            let limits = format!("{limit}, {limit};w=60;name=\"api_{tier}\"");
            assert_eq!(answer.header("x-ratelimit-limit"), Some(&*limits));
            assert_eq!(answer.header("x-tier"), Some(tier), "from the dynamic metadata");
            assert_eq!(answer.header("x-rule"), Some("quota"), "from the dynamic metadata");
        }
        let refused = ask(token).expect(429);
        assert!(matches!(refused.retry_after(), Some(50..=60)), "{refused:?}");
        assert_eq!(refused.header("x-rule"), Some("quota"), "from the dynamic metadata of a refusal");
    };
    uses_up(tokens::ADA_FREE, "free", 3, 3);
    uses_up(tokens::BOB_PRO, "pro", 6, 6);
    uses_up(tokens::EVE_ENTERPRISE, "enterprise", 12, 12);
    // Three of six are used.
    uses_up(tokens::ADA_PRO, "pro", 3, 6);
    // A token without a tier gets Envoy's default; an unknown tier gets the default of the rule.
    uses_up(tokens::JOE_WITHOUT, "free", 3, 3);
    assert_eq!(ask(tokens::KIM_GOLD).expect(200).header("x-ratelimit-limit"), Some("3, 3;w=60;name=\"api_free\""));

    gateway.ask(&Ask::get("/")).expect(401);
}

#[test]
fn slots_come_back_when_the_stream_ends_and_when_the_client_walks_away() {
    let Some(gateway) = Gateway::example("concurrency", "concurrency") else { return };
    let export = Ask::get("/slow").account("ada");
    let begin = || export.begin(gateway.port(10_000)).expect("Envoy accepts");
    let finish = |stream| Answer::read(stream).expect("an answer").expect(200);

    let (first, second) = (begin(), begin());
    until("both to be running", || gateway.upstream.held() == 2);
    let refused = gateway.ask(&export).expect(429);
    assert!(matches!(refused.retry_after(), Some(1..=300)), "until the first lease ends at the latest: {refused:?}");
    // A refused request holds no slot and releases none: the account is still full.
    gateway.ask(&export).expect(429);
    // Another account has slots of its own.
    let other = Ask::get("/slow").account("bob").begin(gateway.port(10_000)).expect("Envoy accepts");
    until("the other account to be running", || gateway.upstream.held() == 3);

    gateway.upstream.open_gate();
    finish(first);
    finish(second);
    finish(other);
    gateway.upstream.close_gate();

    // Both slots are free again once Envoy has reported the end of the requests.
    let (third, fourth) = (run(&gateway, &export, 1), run(&gateway, &export, 2));
    gateway.ask(&export).expect(429);

    // One client disconnects while its export runs.
    drop(third);
    until("Envoy has noticed", || gateway.stat("cluster.upstream.upstream_rq_active") == 1);
    let fifth = run(&gateway, &export, 2);
    gateway.ask(&export).expect(429);
    gateway.upstream.open_gate();
    finish(fourth);
    finish(fifth);
}

/// Starts a slow request as soon as it gets a slot, so that it is the `running`th at the upstream.
fn run(gateway: &Gateway, ask: &Ask, running: u64) -> std::net::TcpStream {
    let active = || gateway.stat("cluster.upstream.upstream_rq_active");
    let mut started = None;
    until("a slot to be free", || {
        let refusals = gateway.stat("cluster.upstream.ratelimit.over_limit");
        let stream = ask.begin(gateway.port(10_000)).expect("Envoy accepts");
        until("a verdict", || active() == running || gateway.stat("cluster.upstream.ratelimit.over_limit") > refusals);
        started = Some(stream);
        active() == running
    });
    started.expect("until() ended with one")
}

#[test]
fn the_gateway_of_the_containers_asks_the_same_rules_at_three_doors() {
    let Some(gateway) = Gateway::example("gateway", "gateway") else { return };
    for (port, account) in [(10_000, "ada"), (10_001, "bob"), (10_002, "cyd")] {
        let login = Ask::post("/login").account(account).from("203.0.113.1");
        for left in (0..5).rev() {
            assert_eq!(gateway.ask_at(port, &login).expect(401).remaining(), Some(left), "{port}");
        }
        gateway.ask_at(port, &login).expect(429);
    }
    // The doors share the counter: fifteen tries that were admitted and three that only the address was charged for.
    for _ in 0..12 {
        gateway.ask_at(10_000, &Ask::post("/login").from("203.0.113.1")).expect(401);
    }
    for port in [10_000, 10_001, 10_002] {
        gateway.ask_at(port, &Ask::post("/login").from("203.0.113.1")).expect(429);
    }
}
