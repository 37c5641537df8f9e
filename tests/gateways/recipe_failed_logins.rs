//! The recipe of `failed_logins.yaml`: every try is held, and a right one is given back.

use std::net::TcpStream;

use super::recipes::{Recipe, at_once, begin, count, hang_up, settled, settlements, used};
use crate::support::processes::{Answer, Ask, Gateway, Redis, until};

fn recipe() -> Recipe {
    Recipe::new("failed_logins")
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

/// How many guesses have reached the password check.
fn guesses(gateway: &Gateway) -> usize {
    gateway.upstream.seen().iter().filter(|request| request.header("x-password") == Some("guess")).count()
}

/// How many tries of an account are charged.
fn charged(gateway: &Gateway, account: &str) -> u64 {
    used(gateway, "login", "failures", ("account", account)).used
}

/// Waits until every right login so far has been given back.
fn given_back(gateway: &Gateway, right_logins: u64) {
    until("every right login to be given back", || settlements(gateway).0 == right_logins);
    assert_eq!(settlements(gateway), (right_logins, 0), "each once, and no other");
}

#[test]
fn semantics_44_of_forty_parallel_guesses_three_reach_the_password_check() {
    let Some(gateway) = recipe().start() else { return };
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
    assert_eq!(charged(&gateway, "ada"), 3);
    assert_eq!(settlements(&gateway), (0, 0), "no refused request gave anything back");
    gateway.ask(&guess("bob")).expect(401);
}

#[test]
fn semantics_44_failed_logins_count_the_same_in_redis() {
    let Some(redis) = Redis::start() else { return };
    let Some(gateway) = recipe().on(&redis).start() else { return };
    for _ in 0..12 {
        gateway.ask(&right("ada")).expect(200);
    }
    given_back(&gateway, 12);
    let statuses = at_once(&gateway, &vec![guess("ada"); 40]);
    assert_eq!((count(&statuses, 401), count(&statuses, 429)), (3, 37), "{statuses:?}");
    gateway.ask(&right("ada")).expect(429);
    assert_eq!(charged(&gateway, "ada"), 3);
    assert!(redis.ask::<usize>(&["DBSIZE"]) > 0, "it counts there");
}

/// A second in place of the five minutes.
#[test]
fn semantics_44_the_right_password_passes_again_once_the_window_has_ended() {
    let Some(gateway) = recipe().rules("window = \"5m\"", "window = \"1s\"").start() else { return };
    until("three guesses in one second", || {
        at_once(&gateway, &vec![guess("ada"); 6]);
        gateway.ask(&right("ada")).status == 429
    });
    until("the window to end", || gateway.ask(&right("ada")).status == 200);
}

#[test]
fn semantics_44_right_logins_one_after_the_other_cost_nothing_however_the_path_is_spelled() {
    let Some(gateway) = recipe().start() else { return };
    for _ in 0..12 {
        gateway.ask(&right("ada")).expect(200);
    }
    given_back(&gateway, 12);
    assert_eq!(charged(&gateway, "ada"), 0);
    for (number, path) in ["//login", "/x/../login", "/login?a=b", "/./login"].into_iter().enumerate() {
        gateway.ask(&Ask::post(path).account("ada").header("x-password", "secret")).expect(200);
        given_back(&gateway, 13 + number as u64);
    }
    // A failure stays: a right login gives back its own charge and no other.
    gateway.ask(&guess("ada")).expect(401);
    for number in 17..=20 {
        gateway.ask(&right("ada")).expect(200);
        given_back(&gateway, number);
        assert_eq!(charged(&gateway, "ada"), 1);
    }
}

#[test]
fn semantics_44_of_twelve_parallel_right_logins_nine_are_refused_meanwhile_and_nothing_stays_counted() {
    let Some(gateway) = recipe().start() else { return };
    let ask = right("ada").header("x-wait", "gate");
    let begin = |_| ask.begin(gateway.port(10_000)).expect("Envoy accepts");
    let logins: Vec<TcpStream> = (0..12).map(begin).collect();
    until("all to be decided", || {
        gateway.upstream.held() == 3 && gateway.stat("cluster.upstream.ratelimit.over_limit") == 9
    });
    assert_eq!(charged(&gateway, "ada"), 3);
    gateway.upstream.open_gate();
    let statuses: Vec<u16> = logins.into_iter().map(|login| Answer::read(login).expect("an answer").status).collect();
    assert_eq!((count(&statuses, 200), count(&statuses, 429)), (3, 9), "{statuses:?}");
    given_back(&gateway, 3);
    assert_eq!(charged(&gateway, "ada"), 0);

    // An upstream that answers at once: how many are refused depends on how they meet, and never more than nine.
    let statuses = at_once(&gateway, &vec![right("bob"); 12]);
    let passed = count(&statuses, 200);
    println!("of twelve right logins at once, with an upstream that answers at once, {} were refused", 12 - passed);
    assert!(passed >= 3 && passed + count(&statuses, 429) == 12, "{statuses:?}");
    given_back(&gateway, 3 + passed as u64);
    assert_eq!(charged(&gateway, "bob"), 0);
}

#[test]
fn semantics_44_right_logins_in_between_never_let_a_fourth_guess_through() {
    let Some(gateway) = recipe().start() else { return };
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
fn semantics_44_a_client_that_hangs_up_before_the_answer_has_used_a_try() {
    let Some(gateway) = recipe().start() else { return };
    let clients = (0..3).map(|_| begin(&gateway, &right("ada"))).collect();
    hang_up(&gateway, clients);
    gateway.upstream.open_gate();
    // Envoy sends its calls in order: what it had to give back came before this.
    gateway.ask(&right("bob")).expect(200);
    given_back(&gateway, 1);
    assert_eq!(charged(&gateway, "ada"), 3);
    gateway.ask(&right("ada")).expect(429);
}

#[test]
fn semantics_44_a_login_that_the_route_gives_up_has_used_a_try() {
    let Some(gateway) = recipe().impatient().start() else { return };
    for _ in 0..3 {
        gateway.ask(&right("ada").header("x-wait", "gate")).expect(504);
    }
    gateway.ask(&right("bob")).expect(200);
    given_back(&gateway, 1);
    assert_eq!(charged(&gateway, "ada"), 3);
    gateway.ask(&right("ada")).expect(429);
}

#[test]
fn semantics_44_an_answer_that_says_neither_right_nor_wrong_has_used_a_try() {
    let Some(gateway) = recipe().start() else { return };
    for _ in 0..3 {
        gateway.ask(&login("ada", "broken")).expect(500);
    }
    gateway.ask(&right("ada")).expect(429);
    assert_eq!(charged(&gateway, "ada"), 3);
}

#[test]
fn semantics_44_a_login_that_envoy_repeats_is_charged_once_and_ends_as_its_last_answer_says() {
    let Some(gateway) = recipe().retrying().start() else { return };
    gateway.ask(&right("ada").header("x-unavailable", "2")).expect(200);
    assert_eq!(gateway.upstream.seen().len(), 3, "Envoy repeated it twice");
    given_back(&gateway, 1);
    assert_eq!(charged(&gateway, "ada"), 0);
    // The first two requests with the header have been: from five on, two more are unavailable.
    gateway.ask(&guess("bob").header("x-unavailable", "5")).expect(401);
    assert_eq!(gateway.upstream.seen().len(), 6, "Envoy repeated it twice");
    assert_eq!(charged(&gateway, "bob"), 1);
    gateway.ask(&guess("cyd").header("x-unavailable", "100")).expect(503);
    assert_eq!(charged(&gateway, "cyd"), 1);
}

/// Another way to say it: every try is settled, with its number of failures.
#[test]
fn semantics_44_a_try_can_be_settled_with_no_failure_or_with_one() {
    let outcome = r#"                - extension:
                    name: outcome
                    typed_config:
                      "@type": type.googleapis.com/envoy.extensions.rate_limit_descriptors.expr.v3.Descriptor
                      descriptor_key: outcome
                      text: "{200: 'right'}[response.code]"
"#;
    let recipe = recipe()
        .envoy(outcome, "                hits_addend: {format: \"%CEL(response.code == 200 ? 0 : 1)%\"}\n")
        .envoy("descriptor_key: release", "descriptor_key: settle");
    let Some(gateway) = recipe.start() else { return };
    for _ in 0..12 {
        gateway.ask(&right("ada")).expect(200);
    }
    given_back(&gateway, 12);
    assert_eq!(charged(&gateway, "ada"), 0);
    let statuses = at_once(&gateway, &vec![guess("ada"); 40]);
    assert_eq!((count(&statuses, 401), count(&statuses, 429)), (3, 37), "{statuses:?}");
    given_back(&gateway, 15);
    gateway.ask(&right("ada")).expect(429);
}

/// Both return their leases in one namespace.
#[test]
fn semantics_44_two_rate_limit_filters_in_one_chain_end_each_its_own_lease() {
    let Some(gateway) = recipe().with_a_second_filter().start() else { return };
    let second = || settled(&gateway, "second", "second", ("filter", "second"));
    gateway.ask(&right("ada")).expect(200);
    given_back(&gateway, 2);
    assert_eq!((charged(&gateway, "ada"), second()), (0, 1));
    gateway.ask(&guess("ada")).expect(401);
    given_back(&gateway, 3);
    assert_eq!((charged(&gateway, "ada"), second()), (1, 2));
    gateway.ask(&right("ada")).expect(200);
    given_back(&gateway, 5);
    assert_eq!((charged(&gateway, "ada"), second()), (1, 3));
    // The second filter refuses: the try stays, and its lease is not that of the request before.
    gateway.ask(&right("ada")).expect(429);
    assert_eq!((charged(&gateway, "ada"), second()), (2, 3));
    assert_eq!(settlements(&gateway), (5, 0));
}

#[test]
fn right_logins_cost_nothing_where_the_route_rewrites_the_path_and_removes_the_account() {
    let recipe = recipe().route("prefix_rewrite: /v2/").envoy(
        "              - match: {prefix: /}\n",
        "              - match: {prefix: /}\n                request_headers_to_remove: [x-account]\n",
    );
    let Some(gateway) = recipe.start() else { return };
    for _ in 0..12 {
        gateway.ask(&right("ada")).expect(200);
    }
    let seen = gateway.upstream.seen();
    assert!(seen.iter().all(|seen| seen.line == "POST /v2/login" && seen.header("x-account").is_none()), "{seen:?}");
    given_back(&gateway, 12);
    assert_eq!(charged(&gateway, "ada"), 0);
}

/// They are not charged, so they must not be given back.
#[test]
fn other_pages_give_back_no_failure() {
    let Some(gateway) = recipe().start() else { return };
    for _ in 0..3 {
        gateway.ask(&guess("ada")).expect(401);
    }
    for path in ["/", "/login", "/loginx"] {
        gateway.ask(&Ask::get(path).account("ada").header("x-password", "secret")).expect(200);
    }
    gateway.ask(&Ask::post("/Login").account("ada").header("x-password", "secret")).expect(200);
    gateway.ask(&right("bob")).expect(200);
    given_back(&gateway, 1);
    assert_eq!(charged(&gateway, "ada"), 3);
    gateway.ask(&right("ada")).expect(429);
}
