//! The recipe of `tokens.yaml`: an estimate is held, and settled with what was used.

use std::net::TcpStream;
use std::time::Instant;

use super::recipes::{Recipe, at_once, begin, count, hang_up, settled, settlements};
use crate::support::processes::{Answer, Ask, Gateway, Redis, until};

/// A bucket that refills so slowly that no token comes back while a test runs.
fn recipe() -> Recipe {
    Recipe::new("tokens").rules("window = \"1h\"", "window = \"30d\"")
}

/// A call that says it used this many tokens.
fn chat(tokens: &str) -> Ask {
    Ask::post(&format!("/v1/chat?tokens={tokens}"))
}

/// The tokens that an account has used, once all its calls are settled.
fn tokens(gateway: &Gateway, account: &str) -> u64 {
    settled(gateway, "llm", "tokens", ("account", account))
}

/// Begins fifty calls of 150 tokens. Returns how many passed, and how many were refused.
fn fifty_calls(gateway: &Gateway) -> (usize, usize) {
    let call = chat("150").account("ada").header("x-wait", "gate");
    let begin = |_| call.begin(gateway.port(10_000)).expect("Envoy accepts");
    let calls: Vec<TcpStream> = (0..50).map(begin).collect();
    until("all to be decided", || {
        gateway.upstream.held() == 2 && gateway.stat("cluster.upstream.ratelimit.over_limit") == 48
    });
    gateway.upstream.open_gate();
    let statuses: Vec<u16> = calls.into_iter().map(|call| Answer::read(call).expect("an answer").status).collect();
    (count(&statuses, 200), count(&statuses, 429))
}

#[test]
fn semantics_44_of_fifty_parallel_calls_two_pass_at_once_and_seven_hundred_tokens_are_left_exactly() {
    let Some(gateway) = recipe().start() else { return };
    assert_eq!(fifty_calls(&gateway), (2, 48));
    assert_eq!(gateway.upstream.seen().len(), 2);
    assert_eq!(tokens(&gateway, "ada"), 300, "of a thousand");
    assert_eq!(settlements(&gateway), (2, 0), "no refused call settled anything");
    // Holding 400 of the rest.
    assert_eq!(gateway.ask(&chat("0").account("ada")).expect(200).remaining(), Some(300));
}

#[test]
fn semantics_44_seven_hundred_tokens_are_left_exactly_in_redis_too() {
    let Some(redis) = Redis::start() else { return };
    let Some(gateway) = recipe().on(&redis).start() else { return };
    assert_eq!(fifty_calls(&gateway), (2, 48));
    assert_eq!(tokens(&gateway, "ada"), 300, "of a thousand");
    assert!(redis.ask::<usize>(&["DBSIZE"]) > 0, "it counts there");
}

/// As it is, the sample refills a token in 3.6 seconds.
#[test]
fn semantics_44_the_sample_as_it_is_charges_what_fifty_parallel_calls_used_less_what_has_drained() {
    let Some(gateway) = Recipe::new("tokens").start() else { return };
    let began = Instant::now();
    assert_eq!(fifty_calls(&gateway), (2, 48));
    let used = tokens(&gateway, "ada");
    let drained = began.elapsed().as_millis() as u64 / 3600 + 1;
    assert!((300 - drained..=300).contains(&used), "{used}");
}

#[test]
fn semantics_44_calls_in_parallel_never_use_more_than_the_budget() {
    let Some(gateway) = recipe().start() else { return };
    let calls = vec![chat("300").account("ada"); 30];
    at_once(&gateway, &calls);
    let used = || 300 * gateway.upstream.seen().len() as u64;
    at_once(&gateway, &calls);
    assert!(used() <= 1000, "{} tokens", used());
    until("no estimate to fit", || {
        let refused = gateway.ask(&calls[0]).status == 429;
        refused && used() >= 900
    });
    assert_eq!((used(), tokens(&gateway, "ada")), (900, 900));
    gateway.ask(&calls[0]).expect(429);
}

#[test]
fn semantics_44_what_a_call_uses_beyond_its_estimate_is_charged_and_a_debt_has_to_drain() {
    let Some(gateway) = Recipe::new("tokens").start() else { return };
    let refused = |account: &str| gateway.ask(&chat("0").account(account)).expect(429).retry_after();
    gateway.ask(&chat("900").account("ada")).expect(200);
    assert!((899..=900).contains(&tokens(&gateway, "ada")));
    assert!(matches!(refused("ada"), Some(1040..=1080)), "300 tokens at 3.6 seconds: {:?}", refused("ada"));

    gateway.ask(&chat("1500").account("bob")).expect(200);
    until("the debt to be counted", || settlements(&gateway).0 == 2);
    assert!(matches!(refused("bob"), Some(3200..=3240)), "900 tokens at 3.6 seconds: {:?}", refused("bob"));
    gateway.ask(&chat("10").account("cyd")).expect(200);
}

#[test]
fn semantics_44_a_client_can_raise_the_estimate_and_never_lower_it() {
    let Some(gateway) = recipe().start() else { return };
    let cost = |number: usize, ask: &Ask| {
        let ask = ask.clone().account(&format!("account{number}"));
        1000 - gateway.ask(&ask).expect(200).remaining().expect("Envoy says what is left")
    };
    let lower = ["1", "0", "-5", "399.9", "null", "true", "[1]", "{}", "\"\"", "\"abc\"", "\"1\"", "-1e99", "400"];
    for (number, asked) in lower.into_iter().enumerate() {
        let ask = chat("0").json(&format!("{{\"max_tokens\": {asked}}}"));
        assert_eq!(cost(number, &ask), 400, "{asked}");
    }
    let unreadable = [
        Ask::get("/v1/chat?tokens=0"),
        chat("0"),
        chat("0").json("{\"max_tokens\": 1"),
        chat("0").json("[1, 2]"),
        chat("0").header("x-max-tokens", "1").header("x-ratelimit-hits-addend", "1"),
    ];
    for (number, ask) in unreadable.iter().enumerate() {
        assert_eq!(cost(100 + number, ask), 400, "{ask:?}");
    }
    let raised = [("600", 600), ("\"600\"", 600), ("1000", 1000), ("600.7", 600), ("6e2", 600)];
    for (number, (asked, expected)) in raised.into_iter().enumerate() {
        for (kind, other) in
            ["application/json", "application/json; charset=utf-8", "text/plain", ""].iter().enumerate()
        {
            let ask = chat("0").body(&format!("{{\"max_tokens\": {asked}}}")).header("content-type", other);
            assert_eq!(cost(200 + 10 * number + kind, &ask), expected, "{asked} {other}");
        }
    }
    // What never fits is refused, and costs nothing.
    let before = gateway.upstream.seen().len();
    for asked in ["1001", "1e9", "1000000001", "1e12", "1e300", "99999999999999999999999"] {
        let ask = chat("0").json(&format!("{{\"max_tokens\": {asked}}}")).account("eve");
        let refused = gateway.ask(&ask).expect(429);
        assert_eq!(refused.retry_after(), None, "{asked}: {refused:?}");
    }
    assert_eq!((gateway.upstream.seen().len(), tokens(&gateway, "eve")), (before, 0));
}

#[test]
fn semantics_44_a_response_that_names_no_usage_costs_the_estimate() {
    let Some(gateway) = recipe().start() else { return };
    let totals = ["-5", "null", "true", "1e12", "[1]", "{}", "\"\"", "\"abc\""];
    for (number, total) in totals.into_iter().enumerate() {
        let account = format!("account{number}");
        gateway.ask(&chat(total).account(&account)).expect(200);
        assert_eq!(tokens(&gateway, &account), 400, "{total}");
    }
    gateway.ask(&chat("10").account("text").header("x-answer-type", "text/plain")).expect(200);
    assert_eq!(tokens(&gateway, "text"), 400);
    gateway.ask(&Ask::get("/other").account("other")).expect(200);
    assert_eq!(tokens(&gateway, "other"), 400);
    gateway
        .ask(&chat("10").json("{\"max_tokens\": 700}").account("more").header("x-answer-type", "text/plain"))
        .expect(200);
    assert_eq!(tokens(&gateway, "more"), 700);
    // None of them waits for the end of its hold.
    assert_eq!(settlements(&gateway), (totals.len() as u64 + 3, 0));
    // Of a fraction, Envoy sends the whole number below it.
    gateway.ask(&chat("1.5").account("fraction")).expect(200);
    assert_eq!(tokens(&gateway, "fraction"), 1);
}

#[test]
fn semantics_44_a_client_that_hangs_up_before_the_usage_is_known_has_paid_its_estimate() {
    let Some(gateway) = recipe().start() else { return };
    let clients = (0..2).map(|_| begin(&gateway, &chat("10").account("ada"))).collect();
    hang_up(&gateway, clients);
    gateway.upstream.open_gate();
    assert_eq!(tokens(&gateway, "ada"), 800);
    gateway.ask(&chat("10").account("ada")).expect(429);
    assert_eq!(settlements(&gateway), (2, 0));
}

#[test]
fn semantics_44_a_call_that_the_route_gives_up_has_paid_its_estimate() {
    let Some(gateway) = recipe().envoy("timeout: 120s", "timeout: 0.2s").start() else { return };
    gateway.ask(&chat("10").account("ada").header("x-wait", "gate")).expect(504);
    assert_eq!(tokens(&gateway, "ada"), 400);
    assert_eq!(settlements(&gateway), (1, 0));
}

#[test]
fn semantics_44_a_call_that_envoy_repeats_is_charged_once() {
    let Some(gateway) = recipe().retrying().start() else { return };
    gateway.ask(&chat("150").account("ada").header("x-unavailable", "2")).expect(200);
    assert_eq!(gateway.upstream.seen().len(), 3, "Envoy repeated it twice");
    assert_eq!(tokens(&gateway, "ada"), 150);
    gateway.ask(&chat("150").account("bob").header("x-unavailable", "100")).expect(503);
    assert_eq!(gateway.upstream.seen().len(), 6, "Envoy repeated it twice");
    assert_eq!(tokens(&gateway, "bob"), 400, "no answer names a usage");
    assert_eq!(settlements(&gateway), (2, 0));
}

/// Both return their leases in one namespace.
#[test]
fn semantics_44_a_second_rate_limit_filter_settles_its_own_lease() {
    let Some(gateway) = recipe().with_a_second_filter().start() else { return };
    let second = || settled(&gateway, "second", "second", ("filter", "second"));
    let call = chat("10").account("ada");
    for number in 1..=3 {
        gateway.ask(&call).expect(200);
        assert_eq!((tokens(&gateway, "ada"), second()), (10 * number, number));
    }
    // What a filter behind refuses costs the estimate.
    gateway.ask(&call).expect(429);
    assert_eq!((tokens(&gateway, "ada"), second()), (430, 3));
    assert_eq!(settlements(&gateway), (7, 0));
}

#[test]
fn tokens_are_charged_whatever_type_the_response_says_it_has() {
    let Some(gateway) = recipe().start() else { return };
    let types = ["application/json; charset=utf-8", "Application/JSON", "application/json ;v=1", ""];
    for (number, kind) in types.into_iter().enumerate() {
        let account = format!("account{number}");
        gateway.ask(&chat("100").account(&account).header("x-answer-type", kind)).expect(200);
        assert_eq!(tokens(&gateway, &account), 100, "{kind}");
    }
}

/// Another filter makes metadata of it.
#[test]
fn semantics_44_a_usage_in_a_header_is_settled_and_a_call_without_the_header_costs_the_estimate() {
    let recipe = recipe().envoy(
        "          - name: envoy.filters.http.json_to_metadata\n",
        &format!("{HEADER_TO_METADATA}          - name: envoy.filters.http.json_to_metadata\n"),
    );
    let recipe = recipe.envoy("%DYNAMIC_METADATA(llm:total)%", "%DYNAMIC_METADATA(llm:used)%");
    let Some(gateway) = recipe.start() else { return };
    gateway.ask(&chat("10").account("ada").header("x-answer-tokens", "150")).expect(200);
    assert_eq!(tokens(&gateway, "ada"), 150);
    gateway.ask(&chat("10").account("bob")).expect(200);
    assert_eq!(tokens(&gateway, "bob"), 400);
}

const HEADER_TO_METADATA: &str = r#"          - name: envoy.filters.http.header_to_metadata
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.header_to_metadata.v3.Config
              response_rules:
              - header: x-tokens
                on_header_present: {metadata_namespace: llm, key: used, type: NUMBER}
"#;

#[test]
fn semantics_44_what_envoy_counts_itself_is_settled_in_the_same_way() {
    let usage = chat("10").account("ada");
    let body = "{\"usage\": {\"total_tokens\": 10}}".len() as u64;
    for (format, used) in [
        ("%BYTES_SENT%", body..=body),
        ("%DURATION%", 0..=399),
        ("%CEL(int(metadata.filter_metadata['llm']['total']) * 2)%", 20..=20),
    ] {
        let Some(gateway) = recipe().envoy("%DYNAMIC_METADATA(llm:total)%", format).start() else { return };
        gateway.ask(&usage).expect(200);
        let found = tokens(&gateway, "ada");
        assert!(used.contains(&found), "{format}: {found}");
    }
}

/// Only the newest Envoy knows the headers of a response when the stream ends. Others drop the descriptor, so that every
/// call costs its estimate.
#[test]
fn semantics_44_a_format_of_a_response_header_needs_envoy_1_40() {
    let Some(gateway) = recipe().envoy("%DYNAMIC_METADATA(llm:total)%", "%RESP(x-tokens)%").start() else { return };
    let about = gateway.ask_at(9_901, &Ask::get("/server_info")).expect(200).body;
    let older = ["/1.36.", "/1.37.", "/1.38.", "/1.39."].iter().any(|version| about.contains(version));
    gateway.ask(&chat("10").account("ada").header("x-answer-tokens", "150")).expect(200);
    assert_eq!(tokens(&gateway, "ada"), if older { 400 } else { 150 });
    gateway.ask(&chat("10").account("bob")).expect(200);
    assert_eq!(tokens(&gateway, "bob"), 400);
}
