//! Requests that name an identity several times, through a real Envoy: none reaches the upstream as another than the one
//! that is counted (semantics 63). `make contract` runs these tests with older versions of Envoy too.

use std::thread;

use crate::support::processes::{Ask, Gateway, read};

/// Requests of one client, each with another name before the victim's.
const TRIES: usize = 12;

fn example(name: &str) -> String {
    read(format!("examples/envoy/{name}"))
}

/// Replaces a part of a text that must occur exactly once.
fn with(text: &str, part: &str, other: &str) -> String {
    assert_eq!(text.matches(part).count(), 1, "{part:?} in\n{text}");
    text.replace(part, other)
}

/// The ways to name an account several times, by where the rules read it.
fn spellings(ask: impl Fn(&str) -> Ask, part: &str, n: usize) -> Vec<Ask> {
    let fake = format!("fake{n}");
    match part {
        "header" => vec![
            ask("").header("x-account", &fake).header("x-account", "bob"),
            ask("").header("X-Account", "bob").header("a", "b").header("x-ACCOUNT", &fake),
            ask("").header("x-account", "").header("x-account", "bob"),
            ask("").header("x-account", "bob").header("x-account", "bob"),
        ],
        "query" => vec![
            ask(&format!("?account={fake}&account=bob")),
            ask(&format!("?a=b&acc%6funt={fake}&&account=bob")),
            ask("?account=bob&account=bob"),
            ask(&format!("?account={fake};account=bob")),
            ask(&format!("?account=bob;{fake}")),
            ask("?x=1;account=bob"),
            ask("?account[]=bob"),
            ask(&format!("?account={fake}&account[]=bob")),
            ask(&format!("?account={fake}&account%5B0%5D=bob")),
            ask(&format!("?account={fake}&+account=bob")),
            ask(&format!("?account={fake}&account%00=bob")),
            ask(&format!("?account={fake}&amp;account=bob")),
            ask("?%5Baccount]=bob"),
        ],
        "cookie" => vec![
            ask("").header("cookie", &format!("account={fake}; account=bob")),
            ask("").header("cookie", &format!("account={fake};\taccount =\tbob")),
            ask("").header("cookie", &format!("account={fake}")).header("cookie", "account=bob"),
            ask("").header("cookie", r#"account="b\157b""#),
            ask("").header("cookie", &format!("account={fake}; account[]=bob")),
            ask("").header("cookie", &format!("account={fake}; %61ccount=bob")),
        ],
        other => panic!("{other}"),
    }
}

/// The header `x_account`, which some upstreams read as `x-account`.
fn with_an_underscore(ask: &Ask) -> Ask {
    ask.clone().header("x_account", "bob")
}

#[test]
fn of_repeats_through_ext_authz_none_reaches_the_upstream() {
    let entries = "account = { header = \"x-account\" }\n";
    let more = "cookie = { cookie = \"account\" }\nquery = { query = \"account\" }\n";
    let rules = with(&example("ext_authz.toml"), entries, &format!("{entries}{more}"));
    let rule = "\n[[rules]]\ndomain = \"edge\"\nname = \"more\"\n\
                apply = [{ limiter = \"account\", key = [\"cookie\"] }, { limiter = \"account\", key = [\"query\"] }]\n";
    let rules = rules + rule;
    let allowed = "                - exact: x-account\n";
    let http = with(&example("ext_authz_http.yaml"), allowed, &format!("{allowed}                - exact: cookie\n"));
    let grpc = example("ext_authz_grpc.yaml");
    let joining = with(&grpc, "              encode_raw_headers: true\n", "");
    for (name, envoy) in [("grpc", &grpc), ("grpc without raw headers", &joining), ("http", &http)] {
        let Some(gateway) = Gateway::start(envoy, &rules) else { return };
        for part in ["header", "query", "cookie"] {
            for n in 0..TRIES {
                let ask = |query: &str| Ask::get(&format!("/{query}")).from(&format!("203.0.113.{n}"));
                for ask in spellings(ask, part, n) {
                    let refused = gateway.ask(&ask);
                    assert_eq!(refused.status, 400, "{name}: {ask:?} {refused:?}");
                    assert_eq!(refused.header("retry-after"), None, "{name}");
                }
            }
        }
        let one = Ask::get("/").account("bob").from("203.0.113.99");
        gateway.ask(&with_an_underscore(&one)).expect(400);
        assert_eq!(gateway.upstream.seen().len(), 0, "{name}: what was refused did not reach it");
        for status in [200, 200, 200, 429] {
            gateway.ask(&one).expect(status);
        }
    }
}

#[test]
fn the_samples_of_rls_refuse_repeats_before_they_ask() {
    let all = ["header", "query", "cookie"].as_slice();
    let account = ["header"].as_slice();
    for (name, path, parts) in [
        ("login", "/login", all),
        ("concurrency", "/page", account),
        ("failed_logins", "/login", account),
        ("gateway", "/login", account),
        ("rls_filter", "/page", account),
        ("tokens", "/page", account),
    ] {
        let Some(gateway) = Gateway::example(name, name) else { return };
        let ask = |query: &str| Ask::get(&format!("{path}{query}"));
        // All at once: Envoy keeps each connection open for a second after an answer of Lua.
        let asks = parts.iter().flat_map(|part| (0..TRIES).flat_map(move |n| spellings(ask, part, n)));
        thread::scope(|scope| {
            let answers = asks.map(|ask| {
                let gateway = &gateway;
                scope.spawn(move || (gateway.ask(&ask), ask))
            });
            for answer in answers.collect::<Vec<_>>() {
                let (refused, ask) = answer.join().expect("an answer");
                assert_eq!(refused.status, 400, "{name}: {ask:?} {refused:?}");
            }
        });
        gateway.ask(&with_an_underscore(&ask("").account("bob"))).expect(400);
        assert_eq!(gateway.upstream.seen().len(), 0, "{name}: what was refused did not reach it");
        let once = Ask::post(&format!("{path}?account=b.ob&b=account&q=a;b&return=/x;y=1&accounts[]=c"))
            .json(r#"{"username": "ada"}"#);
        let once = once.account("Doe, John").header("cookie", "account=s%3Abob; xaccount=c\\");
        assert_ne!(gateway.ask(&once).status, 400, "{name}");
        assert_eq!(gateway.upstream.seen().len(), 1, "{name}");
    }
}

/// `rls_filter.yaml` with another filter in front, or none.
fn behind(filter: &str) -> Option<Gateway> {
    let envoy = example("rls_filter.yaml");
    let start = envoy.find("          # Envoy sends the first value of a repeated header only").expect("the guard");
    let end = envoy.find("          - name: envoy.filters.http.ratelimit\n").expect("the filter");
    let envoy = format!("{}{filter}{}", &envoy[..start], &envoy[end..]);
    Gateway::start(&envoy, &example("rls_filter.toml"))
}

/// The values of `x-account` that the upstream got with each request.
fn accounts(gateway: &Gateway) -> Vec<Vec<String>> {
    let seen = gateway.upstream.seen().into_iter();
    let values = |headers: Vec<(String, String)>| {
        headers.into_iter().filter(|(name, _)| name == "x-account").map(|(_, value)| value).collect()
    };
    seen.map(|seen| values(seen.headers)).collect()
}

/// What the documents say about Envoy: it asks about the first value, and sends all of them on.
#[test]
fn without_a_guard_rls_sees_the_first_value_only() {
    let Some(gateway) = behind("") else { return };
    for n in 0..TRIES {
        let ask = Ask::get("/").from(&format!("203.0.113.{n}"));
        gateway.ask(&ask.account(&format!("fake{n}")).account("bob")).expect(200);
    }
    for n in 0..TRIES {
        let ask = Ask::get("/").from(&format!("198.51.100.{n}"));
        let expected = if n < 10 { 200 } else { 429 };
        gateway.ask(&ask.account("bob").account(&format!("fake{n}"))).expect(expected);
    }
    let seen = accounts(&gateway);
    assert_eq!(seen.len(), TRIES + 10);
    assert!(seen.iter().all(|accounts| accounts.len() == 2 && accounts.contains(&"bob".to_owned())), "{seen:?}");
}

/// The other way that the documents name: the upstream gets the value that is counted.
#[test]
fn a_header_that_is_overwritten_by_its_first_value_is_the_one_that_is_counted() {
    let text = read("docs/envoy.md");
    let start = text.find("- name: envoy.filters.http.header_mutation\n").expect("the filter in docs/envoy.md");
    let filter = &text[start..start + text[start..].find("```").expect("the end of the block")];
    let filter: String = filter.lines().map(|line| format!("          {line}\n")).collect();
    let Some(gateway) = behind(&filter) else { return };
    for n in 0..TRIES {
        let ask = Ask::get("/").from(&format!("203.0.113.{n}"));
        let expected = if n < 10 { 200 } else { 429 };
        gateway.ask(&ask.account("bob").account(&format!("fake{n}"))).expect(expected);
    }
    gateway.ask(&Ask::get("/").from("203.0.113.99").account("").account("bob"));
    gateway.ask(&Ask::get("/").from("203.0.113.98")).expect(200);
    let seen = accounts(&gateway);
    let (bob, others): (Vec<_>, Vec<_>) = seen.into_iter().partition(|accounts| *accounts == ["bob"]);
    assert_eq!(bob.len(), 10, "{others:?}");
    assert!(others.iter().flatten().all(String::is_empty), "{others:?}");
}

/// The headers that `/authz/envoy` and gRPC without raw headers read as one value, although Envoy joins others of two.
#[test]
fn envoy_makes_one_header_of_some_before_it_sends_them_on() {
    let Some(gateway) = Gateway::example("rls_filter", "rls_filter") else { return };
    let folded = ["accept", "authorization", "content-type", "origin", "referer", "user-agent"];
    for name in folded.into_iter().chain(["x-api-key"]) {
        gateway.ask(&Ask::get("/").header(name, "a").header(name, "b")).expect(200);
        let seen = gateway.upstream.seen().pop().expect("it reached the upstream");
        let values: Vec<_> = seen.headers.iter().filter(|(key, _)| key == name).map(|(_, value)| &**value).collect();
        let expected: &[&str] = if name == "x-api-key" { &["a", "b"] } else { &["a,b"] };
        assert_eq!(values, expected, "{name}");
    }
}
