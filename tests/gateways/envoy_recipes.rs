//! The recipes that count what a response says, with parallel requests: failed logins, and tokens.

use std::net::TcpStream;
use std::thread;

use crate::support::processes::{Answer, Ask, Gateway, read, until};

fn logins() -> Option<Gateway> {
    Gateway::example("failed_logins", "failed_logins")
}

fn login(account: &str, password: &str) -> Ask {
    Ask::post("/login").account(account).header("x-password", password)
}

fn guess(account: &str) -> Ask {
    login(account, "guess")
}

fn right(account: &str) -> Ask {
    login(account, "secret")
}

/// Sends all of them at once. Returns their statuses.
fn at_once(gateway: &Gateway, asks: &[Ask]) -> Vec<u16> {
    thread::scope(|scope| {
        let sent: Vec<_> = asks.iter().map(|ask| scope.spawn(|| gateway.ask(ask).status)).collect();
        sent.into_iter().map(|answer| answer.join().expect("an answer")).collect()
    })
}

fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|found| **found == status).count()
}

/// How many guesses have reached the password check.
fn guesses(gateway: &Gateway) -> usize {
    gateway.upstream.seen().iter().filter(|request| request.header("x-password") == Some("guess")).count()
}

#[test]
fn of_forty_parallel_guesses_three_reach_the_password_check() {
    let Some(gateway) = logins() else { return };
    let statuses = at_once(&gateway, &vec![guess("ada"); 40]);
    assert_eq!((count(&statuses, 401), count(&statuses, 429)), (3, 37), "{statuses:?}");
    assert_eq!(guesses(&gateway), 3);

    let refused = gateway.ask(&right("ada")).expect(429);
    assert!(refused.retry_after().is_some_and(|seconds| (270..=300).contains(&seconds)), "{refused:?}");
    // Other spellings of the path are the same page.
    for path in ["//login", "/%6Cogin", "/x/../login", "/login?a=b", "/./login"] {
        gateway.ask(&Ask::post(path).account("ada")).expect(429);
    }
    assert_eq!(gateway.upstream.seen().len(), 3);
    gateway.ask(&guess("bob")).expect(401);
}

#[test]
fn right_logins_cost_nothing_however_the_path_is_spelled() {
    let Some(gateway) = logins() else { return };
    for _ in 0..12 {
        gateway.ask(&right("ada")).expect(200);
    }
    for path in ["//login", "/x/../login", "/login?a=b", "/./login"] {
        for _ in 0..4 {
            let ask = Ask::post(path).account("ada").header("x-password", "secret");
            until("the charge of the one before to be given back", || gateway.ask(&ask).status == 200);
        }
    }
    until("every charge to be given back", || gateway.ask(&right("ada")).remaining() == Some(2));
    // A failure stays: a right login sees it, and gives back only its own charge.
    gateway.ask(&guess("ada")).expect(401);
    for _ in 0..4 {
        until("the others to be given back", || gateway.ask(&right("ada")).remaining() == Some(1));
    }
}

#[test]
fn right_logins_in_between_never_let_a_fourth_guess_through() {
    let Some(gateway) = logins() else { return };
    let mixed: Vec<Ask> = (0..60).map(|number| if number % 2 == 0 { guess("ada") } else { right("ada") }).collect();
    for _ in 0..3 {
        at_once(&gateway, &mixed);
        assert!(guesses(&gateway) <= 3, "{} guesses", guesses(&gateway));
    }
    // The right ones have been given back: together exactly three guesses pass.
    until("the third guess to pass", || {
        gateway.ask(&guess("ada"));
        guesses(&gateway) >= 3
    });
    for _ in 0..5 {
        gateway.ask(&guess("ada")).expect(429);
        gateway.ask(&right("ada")).expect(429);
    }
    assert_eq!(guesses(&gateway), 3);
}

#[test]
fn an_error_of_the_upstream_and_a_client_that_goes_away_give_nothing_back() {
    let Some(gateway) = logins() else { return };
    for _ in 0..3 {
        gateway.ask(&login("ada", "broken")).expect(500);
    }
    let given_back = || gateway.ask(&right("eve")).remaining() == Some(2);

    for number in 1..=3 {
        let client = right("bob").header("x-wait", "gate").begin(gateway.port(10_000)).expect("Envoy accepts");
        until("the login to be at the upstream", || gateway.upstream.held() == number);
        drop(client);
    }
    until("Envoy to see that they are gone", || gateway.stat("cluster.upstream.upstream_rq_active") == 0);
    gateway.upstream.open_gate();
    // Envoy sends its calls in order: whatever it had to give back came before this.
    until("a right login to be given back", given_back);
    gateway.ask(&right("ada")).expect(429);
    gateway.ask(&right("bob")).expect(429);
}

/// Envoy reads the headers of its late call as the route left them.
#[test]
fn right_logins_cost_nothing_where_the_route_rewrites_the_path() {
    let envoy = read("examples/envoy/failed_logins.yaml");
    let rewritten = envoy.replace("route: {cluster: upstream}", "route: {cluster: upstream, prefix_rewrite: /v2/}");
    assert!(envoy != rewritten, "the example has the route");
    let Some(gateway) = Gateway::start(&rewritten, &read("examples/envoy/failed_logins.toml")) else { return };
    for _ in 0..12 {
        gateway.ask(&right("ada")).expect(200);
    }
    assert!(gateway.upstream.seen().iter().all(|request| request.line == "POST /v2/login"));
    until("every charge to be given back", || gateway.ask(&right("ada")).remaining() == Some(2));
}

/// They are not charged, so they must not be given back.
#[test]
fn other_pages_give_back_no_failure() {
    let Some(gateway) = logins() else { return };
    for _ in 0..3 {
        gateway.ask(&guess("ada")).expect(401);
    }
    for path in ["/", "/login", "/loginx"] {
        gateway.ask(&Ask::get(path).account("ada").header("x-password", "secret")).expect(200);
    }
    gateway.ask(&Ask::post("/Login").account("ada").header("x-password", "secret")).expect(200);
    until("a right login to be given back", || gateway.ask(&right("bob")).remaining() == Some(2));
    gateway.ask(&right("ada")).expect(429);
}

#[test]
fn a_login_that_took_too_long_gives_nothing_back() {
    let envoy = read("examples/envoy/failed_logins.yaml");
    let short = envoy.replace("duration('60s')", "duration('0s')");
    assert!(envoy != short, "the example has the condition");
    let Some(gateway) = Gateway::start(&short, &read("examples/envoy/failed_logins.toml")) else { return };
    for left in [2, 1, 0] {
        assert_eq!(gateway.ask(&right("ada")).expect(200).remaining(), Some(left));
    }
    gateway.ask(&right("ada")).expect(429);
}

fn llm() -> Option<Gateway> {
    Gateway::example("tokens", "tokens")
}

/// A call that says it used this many tokens.
fn chat(tokens: &str) -> Ask {
    Ask::get(&format!("/v1/chat?tokens={tokens}"))
}

/// Waits until this many tokens are left. Each look holds four hundred for a moment and uses none. A bucket of a
/// thousand an hour refills a token in 3.6 seconds.
fn left(gateway: &Gateway, account: &str, tokens: u64) {
    let look = chat("0").account(account);
    until("the tokens to be settled", || {
        let answer = gateway.ask(&look);
        let left = answer.remaining().map(|left| left + 400);
        answer.status == 200 && left.is_some_and(|left| (tokens..tokens + 20).contains(&left))
    });
}

#[test]
fn of_fifty_parallel_calls_two_reach_the_upstream_and_what_they_used_is_charged() {
    let Some(gateway) = llm() else { return };
    let call = chat("150").account("ada").header("x-wait", "gate");
    let begin = |_| call.begin(gateway.port(10_000)).expect("Envoy accepts");
    let calls: Vec<TcpStream> = (0..50).map(begin).collect();
    until("all to be decided", || {
        gateway.upstream.held() == 2 && gateway.stat("cluster.upstream.ratelimit.over_limit") == 48
    });
    gateway.upstream.open_gate();
    let statuses: Vec<u16> = calls.into_iter().map(|call| Answer::read(call).expect("an answer").status).collect();
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (2, 48), "{statuses:?}");
    assert_eq!(gateway.upstream.seen().len(), 2);
    // The refused ones gave nothing back.
    left(&gateway, "ada", 700);
}

#[test]
fn calls_in_parallel_never_use_more_than_the_budget() {
    let Some(gateway) = llm() else { return };
    let calls = vec![chat("300").account("ada"); 30];
    at_once(&gateway, &calls);
    let used = || 300 * gateway.upstream.seen().len() as u64;
    at_once(&gateway, &calls);
    // A bucket refills while the test runs.
    assert!(used() <= 1000 + 20, "{} tokens", used());
    until("the budget to be used", || {
        gateway.ask(&calls[0]);
        used() >= 900
    });
    until("no hold to fit", || gateway.ask(&calls[0]).remaining().is_some_and(|left| left >= 100));
    gateway.ask(&calls[0]).expect(429);
    assert_eq!(used(), 900);
}

#[test]
fn a_call_that_used_more_than_it_held_is_charged_whole_and_a_debt_has_to_drain() {
    let Some(gateway) = llm() else { return };
    gateway.ask(&chat("900").account("ada")).expect(200);
    let refused = |account: &str| gateway.ask(&chat("0").account(account)).expect(429).retry_after();
    until("the tokens to be settled", || gateway.ask(&chat("0").account("ada")).status == 429);
    assert!(matches!(refused("ada"), Some(1040..=1080)), "300 tokens at 3.6 seconds: {:?}", refused("ada"));

    gateway.ask(&chat("1500").account("bob")).expect(200);
    until("the debt to be counted", || gateway.ask(&chat("0").account("bob")).status == 429);
    assert!(matches!(refused("bob"), Some(3200..=3240)), "900 tokens at 3.6 seconds: {:?}", refused("bob"));
    gateway.ask(&chat("10").account("cyd")).expect(200);
}

#[test]
fn a_call_without_a_total_costs_what_it_held() {
    let Some(gateway) = llm() else { return };
    for (number, total) in ["-5", "null", "true", "1e12", "[1]", "{}"].iter().enumerate() {
        let account = format!("account{number}");
        gateway.ask(&chat(total).account(&account)).expect(200);
        left(&gateway, &account, 600);
    }
    gateway.ask(&chat("10").account("text").header("x-answer-type", "text/plain")).expect(200);
    left(&gateway, "text", 600);

    let client = chat("10").account("ada").header("x-wait", "gate").begin(gateway.port(10_000)).expect("Envoy accepts");
    until("the call to be at the upstream", || gateway.upstream.held() == 1);
    drop(client);
    gateway.upstream.open_gate();
    left(&gateway, "ada", 600);
}

#[test]
fn tokens_are_charged_whatever_type_the_response_says_it_has() {
    let Some(gateway) = llm() else { return };
    let types = ["application/json; charset=utf-8", "Application/JSON", "application/json ;v=1", ""];
    for (number, kind) in types.into_iter().enumerate() {
        let account = format!("account{number}");
        gateway.ask(&chat("100").account(&account).header("x-answer-type", kind)).expect(200);
        left(&gateway, &account, 900);
    }
}
