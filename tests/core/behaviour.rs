//! Behaviour that users of rate limiters expect, case by case, on the memory store with a manual clock.
//!
//! The cases are numbered as in the project's catalogue of the libraries that its users come from:
//!
//! | not here | because |
//! | --- | --- |
//! | W4, W5, P1 to P5, C3, C4, C7 | they wait for a slot or a token, which is the acquire API |
//! | C5 | a guard that releases when it is dropped belongs to the library; a reset stream belongs to the doors |
//! | M4, M5 | a plan has no "any of" |
//! | H1, H3, E | they are about responses of the doors and errors of the configuration |
//!
//! Known faults of those libraries are numbered too: R in rate-sync, D in distributed-rate-limiter, A in
//! async-ratelimit. A test, here or in another file, that names such a weakness fails if tollgate has it. The following
//! do not apply to a service and have no test:
//!
//! | no test | because |
//! | --- | --- |
//! | R6 | annotations break FastAPI's dependency injection: no framework calls tollgate in its own process |
//! | R17 | each waiter polls the store every 5 ms: tollgate refuses at once, so nothing waits |
//! | D10 | a Python package misses dependencies and documented imports: tollgate is one binary; for its documents see R29 |

use std::time::Duration;

use tollgate::descriptor::{Descriptor, Hits};
use tollgate::limiter::{Algorithm, LeaseStatus, Limiter, Schedule};
use tollgate::rules::{Action, Apply, KeyEntry, Normaliser};
use tollgate::store::StoreStatus;

use super::world::{START, World, hits};
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, rule, secs, slots};

const LOG: Algorithm = Algorithm::SlidingWindow;
const PAIR: Algorithm = Algorithm::SlidingCounter;
const EPOCH: Algorithm = Algorithm::FixedWindow(Schedule::Epoch);
const FIRST_HIT: Algorithm = Algorithm::FixedWindow(Schedule::FirstHit);

/// One limiter, applied to each account.
fn one(limit: u32, window: Duration, algorithm: Algorithm) -> World {
    per_account(vec![quota("limiter", limit, window, algorithm)], &["limiter"])
}

fn per_account(limiters: Vec<Limiter>, applied: &[&str]) -> World {
    let all: Vec<Apply> = applied.iter().map(|limiter| apply(limiter, &["account"])).collect();
    World::new(limiters, vec![applies("all", all)])
}

const A: &[(&str, &str)] = &[("account", "a")];

/// The units left after each of some requests; none where the request was refused.
fn calls(world: &World, count: usize) -> Vec<Option<u32>> {
    let call = |_| {
        let decision = world.ask(A);
        let counted = decision.tightest().expect("a limiter applies");
        decision.allowed().then_some(counted.remaining)
    };
    (0..count).map(call).collect()
}

// Windows

#[test]
fn case_w01_six_calls_on_a_sliding_window_of_five() {
    assert_eq!(one(5, secs(60), LOG).admits(6, A), 5);
}

#[test]
fn case_w02_a_full_sliding_window_is_free_after_its_length() {
    let world = one(3, secs(1), LOG);
    assert_eq!(world.admits(4, A), 3);
    world.wait(Duration::from_millis(1_100));
    assert!(world.passes(A));
}

#[test]
fn case_w03_forty_calls_on_a_sliding_window_of_twenty() {
    assert_eq!(one(20, secs(60), LOG).admits(40, A), 20);
}

#[test]
fn case_w06_half_a_window_after_a_full_one_both_kinds_of_sliding_window_pass() {
    for algorithm in [LOG, PAIR] {
        let world = one(5, secs(10), algorithm);
        assert_eq!(world.admits(6, A), 5);
        world.wait(secs(15));
        assert!(world.passes(A));
    }
}

#[test]
fn case_w07_two_windows_after_a_full_one_nothing_is_counted() {
    for algorithm in [LOG, PAIR] {
        let world = one(5, secs(10), algorithm);
        world.admits(5, A);
        world.wait(secs(21));
        assert_eq!(world.admits(6, A), 5);
    }
}

/// Weakness A2: hits from before an idle day still count.
#[test]
fn case_w08_a_full_window_is_free_after_a_day() {
    for algorithm in [LOG, PAIR, EPOCH, FIRST_HIT] {
        let world = one(5, secs(10), algorithm);
        world.admits(5, A);
        world.wait(secs(86_400));
        assert_eq!(world.admits(6, A), 5);
    }
}

#[test]
fn case_w09_a_fixed_window_counts_down() {
    for algorithm in [EPOCH, FIRST_HIT] {
        let world = one(3, secs(10), algorithm);
        assert_eq!(calls(&world, 4), [Some(2), Some(1), Some(0), None]);
        assert_eq!(world.ask(A).tightest().expect("a limiter applies").remaining, 0);
    }
}

#[test]
fn case_w10_a_fixed_window_is_free_after_its_end() {
    for algorithm in [EPOCH, FIRST_HIT] {
        let world = one(2, secs(10), algorithm);
        world.admits(2, A);
        world.wait(secs(11));
        assert_eq!(calls(&world, 1), [Some(1)]);
    }
}

#[test]
fn case_w11_a_fixed_window_lets_nearly_two_limits_pass_around_its_boundary() {
    let world = one(10, secs(10), FIRST_HIT);
    world.admits(1, A);
    world.wait(Duration::from_millis(9_900));
    let before = world.admits(20, A);
    world.wait(Duration::from_millis(200));
    let after = world.admits(20, A);
    assert_eq!((before, after), (9, 10), "19 within 0.2 s: the known property of fixed windows");
}

#[test]
fn case_w12_a_refusal_says_when_the_window_is_free_again() {
    let world = one(1, secs(10), LOG);
    world.admits(1, A);
    world.wait(secs(3));
    let refused = world.ask(A);
    assert!(!refused.allowed());
    assert_eq!(refused.tightest().expect("a limiter applies").reset, secs(7));
    assert_eq!(refused.refusal().expect("it is refused").retry_after, Some(secs(7)));
}

// Buckets

#[test]
fn case_b01_a_bucket_counts_down() {
    let world = one(5, secs(10), bucket(None));
    assert_eq!(calls(&world, 6), [Some(4), Some(3), Some(2), Some(1), Some(0), None]);
}

#[test]
fn case_b02_a_bucket_refills_with_time() {
    let world = one(5, secs(10), bucket(None));
    world.admits(6, A);
    world.wait(secs(4));
    assert_eq!(calls(&world, 1), [Some(1)]);
}

#[test]
fn case_b03_a_bucket_holds_no_more_than_its_burst() {
    let world = one(5, secs(10), bucket(None));
    world.admits(6, A);
    world.wait(secs(1_000));
    assert_eq!(calls(&world, 1), [Some(4)]);
}

#[test]
fn case_b04_a_drained_bucket_of_three_is_full_after_two_windows() {
    let world = one(3, secs(1), bucket(None));
    world.admits(3, A);
    world.wait(secs(2));
    assert_eq!(world.admits(5, A), 3);
}

/// Weakness A1: every request drops the fraction of a token.
#[test]
fn case_b05_asking_often_does_not_starve_a_client() {
    let world = one(10, secs(60), bucket(None));
    world.admits(10, A);
    let admitted: usize = (0..600)
        .map(|_| {
            world.wait(secs(1));
            world.admits(1, A)
        })
        .sum();
    assert!((99..=101).contains(&admitted), "{admitted} in 600 s at 10 a minute");
}

#[test]
fn case_b06_idling_earns_the_rate_and_no_more() {
    let world = one(1, secs(1), bucket(Some(100)));
    world.admits(100, A);
    world.wait(Duration::from_millis(2_200));
    assert_eq!(world.admits(150, A), 2);
}

/// Weakness D1: the cost of a request is accepted and ignored.
#[test]
fn case_b07_a_call_pays_its_cost() {
    let world = one(10, secs(60), bucket(None));
    let calls = [0; 3].map(|_| world.decide([hits(Hits::Charge(5), A)]).allowed());
    assert_eq!(calls, [true, true, false]);
}

#[test]
fn case_b08_idling_fills_the_burst() {
    let world = one(10, secs(1), bucket(Some(20)));
    world.admits(20, A);
    world.wait(secs(10));
    assert_eq!(world.admits(30, A), 20);
}

/// Weakness R1: an allowance for slow clocks admits more than the rate, and everything from 100 a second on.
#[test]
fn case_p06_a_rate_admits_what_it_says_under_a_hammer() {
    for rate in [5, 10, 50, 90, 100, 1_000] {
        for burst in [1, 20] {
            let world = one(rate, secs(1), bucket(Some(burst)));
            let admitted: u32 = (0..10_000)
                .map(|_| {
                    world.wait(Duration::from_micros(100));
                    u32::from(world.passes(A))
                })
                .sum();
            assert!(admitted <= rate + burst, "{admitted} at {rate}/s with a burst of {burst}");
            assert!(f64::from(admitted) >= 0.98 * f64::from(rate), "{admitted} at {rate}/s with a burst of {burst}");
        }
    }
}

// Concurrency

/// The lease of a request that is admitted.
fn acquire(world: &World) -> Option<String> {
    let decision = world.ask(A);
    assert_eq!(decision.lease().is_some(), decision.allowed(), "who passes holds a lease");
    decision.lease().map(str::to_owned)
}

/// Releases a lease as Envoy does when the stream ends.
fn release(world: &World, lease: &str) {
    let decision = world.decide([Descriptor::of([("release", lease)])]);
    assert!(decision.allowed(), "a release is never refused");
}

fn two_slots() -> World {
    per_account(vec![slots("slots", 2, secs(300))], &["slots"])
}

#[test]
fn case_c01_the_third_of_two_slots_is_refused() {
    let world = two_slots();
    assert_eq!(world.admits(3, A), 2);
    world.wait(Duration::from_millis(50));
    assert!(!world.passes(A));
}

#[test]
fn case_c02_ten_tries_at_one_moment_get_three_slots() {
    let world = per_account(vec![slots("slots", 3, secs(300))], &["slots"]);
    assert_eq!(world.admits(10, A), 3);
}

#[test]
fn case_c06_a_release_too_many_frees_nothing() {
    let world = two_slots();
    let lease = acquire(&world).expect("a slot is free");
    release(&world, &lease);
    release(&world, &lease);
    assert_eq!(world.admits(5, A), 2);
}

#[test]
fn case_c08_a_window_and_slots_together() {
    let world =
        per_account(vec![quota("window", 5, secs(60), LOG), slots("slots", 2, secs(300))], &["window", "slots"]);
    let first = acquire(&world).expect("a slot is free");
    acquire(&world).expect("another is free");
    assert_eq!(acquire(&world), None);
    release(&world, &first);
    assert!(acquire(&world).is_some());
}

#[test]
fn case_c09_slots_given_back_do_not_give_the_window_back() {
    let world =
        per_account(vec![quota("window", 2, secs(60), LOG), slots("slots", 5, secs(300))], &["window", "slots"]);
    for _ in 0..2 {
        let lease = acquire(&world).expect("both allow it");
        release(&world, &lease);
    }
    let refused = world.ask(A);
    assert_eq!(refused.refusal().and_then(|refusal| refusal.limiter), Some("window"));
}

#[test]
fn case_c10_a_rate_joined_with_slots_never_lets_more_run() {
    let joined =
        Limiter { concurrency: slots("", 3, secs(300)).concurrency, ..quota("both", 100, secs(1), bucket(None)) };
    let world = per_account(vec![joined], &["both"]);
    let (mut running, mut waiting, mut most) = (Vec::new(), 10, 0);
    while waiting > 0 {
        while let (true, Some(lease)) = (waiting > 0, acquire(&world)) {
            running.push(lease);
            waiting -= 1;
        }
        most = most.max(running.len());
        world.wait(Duration::from_millis(50));
        running.drain(..).for_each(|lease| release(&world, &lease));
    }
    assert_eq!(most, 3);
}

/// Weakness R3: slots in use are forgotten, and sooner at a higher rate.
#[test]
fn case_c11_a_slot_is_held_however_fast_the_rate_is() {
    let joined =
        Limiter { concurrency: slots("", 2, secs(300)).concurrency, ..quota("both", 10, secs(1), bucket(None)) };
    let world = per_account(vec![joined], &["both"]);
    assert_eq!(world.admits(2, A), 2);
    world.wait(Duration::from_millis(1_300));
    assert!(!world.passes(A));
}

#[test]
fn case_c12_the_slot_of_a_killed_holder_is_free_when_its_lease_ends_and_not_before() {
    let world = two_slots();
    assert_eq!(world.admits(2, A), 2);
    world.wait(secs(300) - Duration::from_micros(1));
    assert!(!world.passes(A));
    world.wait(Duration::from_micros(1));
    assert_eq!(world.admits(3, A), 2);
}

/// Weakness R4: under traffic, the slot of a killed holder is never freed.
#[test]
fn a_slot_that_is_never_released_is_free_in_time_under_traffic() {
    let world = two_slots();
    assert!(acquire(&world).is_some(), "this one is never released");
    let mut others = Vec::new();
    for second in 1..300 {
        world.wait(secs(1));
        others.drain(..).for_each(|lease: String| release(&world, &lease));
        others.extend(acquire(&world));
        assert_eq!(others.len(), 1, "the other slot goes round");
        assert!(!world.passes(A), "both are held {second} s later");
    }
    world.wait(secs(1));
    assert!(world.passes(A), "the lease has ended");
}

/// Weakness R3: a late release frees the slot of another holder.
#[test]
fn case_c13_a_late_release_frees_nobody_elses_slot() {
    use futures_util::FutureExt;

    let world = two_slots();
    let late = acquire(&world).expect("a slot is free");
    acquire(&world).expect("another is free");
    world.wait(secs(301));
    assert_eq!(world.admits(3, A), 2, "both leases have expired");
    let status = world.engine.release(&late).now_or_never().expect("the memory store never waits");
    assert!(matches!(status, Some(LeaseStatus::Expired | LeaseStatus::Unknown)), "{status:?}");
    assert!(!world.passes(A));
}

/// Weakness R14: a unit is charged although no slot was free.
#[test]
fn case_c14_a_refusal_for_want_of_a_slot_does_not_charge_the_window() {
    let limiters = vec![quota("window", 5, secs(60), LOG), slots("slots", 1, secs(300))];
    let window = rule("window", &[("see", "window")], Action::Apply(vec![apply("window", &["account"])]));
    let both = rule(
        "both",
        &[("see", "both")],
        Action::Apply(vec![apply("window", &["account"]), apply("slots", &["account"])]),
    );
    let world = World::new(limiters, vec![window, both]);
    assert_eq!(world.admits(5, &[("account", "a"), ("see", "both")]), 1);
    assert_eq!(world.left(&[("account", "a"), ("see", "window")]), 4);
}

// Several limits

fn address_and_account(address: u32, account: u32) -> World {
    let limiters = vec![quota("ip", address, secs(60), LOG), quota("account", account, secs(60), LOG)];
    World::new(limiters, vec![applies("login", [apply("ip", &["remote_address"]), apply("account", &["account"])])])
}

fn login<'a>(address: &'a str, account: &'a str) -> [(&'a str, &'a str); 2] {
    [("remote_address", address), ("account", account)]
}

#[test]
fn case_m01_of_two_limits_the_tighter_is_told() {
    let world = address_and_account(1_000, 10);
    let decision = world.ask(&login("1.2.3.4", "a"));
    let counted = decision.tightest().expect("two limiters apply");
    assert_eq!((counted.limit, counted.remaining), (10, 9));
}

#[test]
fn case_m02_the_eleventh_call_is_refused_by_the_account() {
    let world = address_and_account(1_000, 10);
    assert_eq!(world.admits(10, &login("1.2.3.4", "a")), 10);
    let refused = world.ask(&login("1.2.3.4", "a"));
    assert_eq!(refused.refusal().and_then(|refusal| refusal.limiter), Some("account"));
    assert_eq!(refused.tightest().expect("two limiters apply").remaining, 0);
}

#[test]
fn case_m03_other_identities_are_not_touched() {
    let world = address_and_account(1_000, 10);
    world.admits(11, &login("1.2.3.4", "a"));
    assert!(world.passes(&login("1.2.3.4", "b")));
    assert!(world.passes(&login("4.3.2.1", "b")));
    assert!(!world.passes(&login("4.3.2.1", "a")));
}

#[test]
fn case_m06_the_fourth_try_on_an_account_of_three_is_refused_by_the_account() {
    let world = address_and_account(10, 3);
    assert_eq!(world.admits(3, &login("1.2.3.4", "a")), 3);
    let refused = world.ask(&login("1.2.3.4", "a"));
    assert_eq!(refused.refusal().and_then(|refusal| refusal.limiter), Some("account"));
}

/// Weakness R10: limits are checked one after the other, and charges made before a refusal remain.
#[test]
fn case_m07_refused_tries_on_one_account_leave_the_address_for_another() {
    let world = address_and_account(10, 3);
    assert_eq!(world.admits(10, &login("1.2.3.4", "a")), 3);
    let decision = world.ask(&login("1.2.3.4", "b"));
    assert!(decision.allowed());
    let address = decision.checks().find(|counted| counted.limiter == "ip").expect("it applies");
    assert_eq!(address.remaining, 6, "3 and this one were charged");
}

/// Weakness R9: a peek followed by a charge charges twice.
#[test]
fn case_m08_two_limits_of_ten_checked_together_admit_ten_of_twenty() {
    assert_eq!(address_and_account(10, 10).admits(20, &login("1.2.3.4", "a")), 10);
}

/// Weakness R9: a peek consumes.
#[test]
fn case_m09_peeking_takes_nothing() {
    let world = address_and_account(10, 10);
    for _ in 0..20 {
        assert!(world.decide([hits(Hits::Peek, &login("1.2.3.4", "a"))]).allowed());
    }
    assert_eq!(world.admits(11, &login("1.2.3.4", "a")), 10);
}

/// Weaknesses R9, R28: a limiter that is not configured silently has no limit.
#[test]
fn case_m10_descriptors_that_no_rule_knows_follow_the_domain() {
    use tollgate::rules::{Domain, RuleBook, Unmatched};

    for (unmatched, passes) in [(Unmatched::Allow, true), (Unmatched::Deny, false)] {
        let known = rule("known", &[("account", "*")], Action::Apply(vec![apply("limiter", &["account"])]));
        let world = World::of(RuleBook {
            limiters: vec![quota("limiter", 10, secs(60), LOG)],
            domains: vec![Domain { name: DOMAIN.to_owned(), unmatched, ..Domain::default() }],
            rules: vec![known],
            ..RuleBook::default()
        });
        let decision = world.decide([Descriptor::of([("account", "a")]), Descriptor::of([("what", "is this")])]);
        assert_eq!(decision.allowed(), passes);
        assert_eq!(world.left(A), if passes { 9 } else { 10 }, "a request that is denied charges nothing");
    }
}

// State, keys

/// Weaknesses D5, A4: limiters of the same identity share a counter.
#[test]
fn case_s07_two_limiters_and_one_identity_are_independent() {
    let limiters = vec![quota("reads", 2, secs(60), LOG), quota("writes", 2, secs(60), LOG)];
    let on = |limiter: &str, method: &str| {
        rule(limiter, &[("method", method)], Action::Apply(vec![apply(limiter, &["account"])]))
    };
    let world = World::new(limiters, vec![on("reads", "GET"), on("writes", "POST")]);
    assert_eq!(world.admits(3, &[("account", "a"), ("method", "GET")]), 2);
    assert_eq!(world.admits(3, &[("account", "a"), ("method", "POST")]), 2);
}

#[test]
fn case_s09_special_characters_in_identities_are_distinct() {
    let two = World::new(
        vec![quota("limiter", 1, secs(60), LOG)],
        vec![applies("all", [apply("limiter", &["account", "device"])])],
    );
    let identities = [
        ("user@x", ""),
        ("user", "@x"),
        ("1.2.3.4:80", "c"),
        ("1.2.3.4", "80:c"),
        ("a:b", "c"),
        ("a", "b:c"),
        ("a\0b", "c"),
        ("a", "b\0c"),
        ("", "a:bc"),
        ("ä", "é"),
    ];
    for (account, device) in identities {
        let entries = [("account", account), ("device", device)];
        assert_eq!(two.admits(2, &entries), 1, "{account:?} and {device:?} have a counter of their own");
    }
}

#[test]
fn case_s10_a_counter_is_forgotten_when_it_no_longer_counts() {
    let limiters = vec![
        quota("log", 5, secs(60), LOG),
        quota("bucket", 5, secs(60), bucket(None)),
        quota("fixed", 5, secs(60), EPOCH),
        slots("slots", 5, secs(60)),
    ];
    let world = per_account(limiters, &["log", "bucket", "fixed", "slots"]);
    world.ask(A);
    let keys = |after: u64| {
        world.clock.set(START + secs(after));
        world.engine.current().stores.sweep(START + secs(after));
        match world.engine.current().stores.facts()[0] {
            StoreStatus::Memory(usage) => usage.keys,
            StoreStatus::Shared { .. } => panic!("it is in memory"),
        }
    };
    assert_eq!(keys(0), 4);
    assert_eq!(keys(11), 4, "a fifth of the bucket takes 12 s");
    assert_eq!(keys(12), 3);
    assert_eq!(keys(59), 3);
    assert_eq!(keys(60), 0);
}

#[test]
fn case_h06_spellings_of_an_identity_are_equal_after_their_normalisers() {
    let key = KeyEntry { entry: "account".to_owned(), normalise: vec![Normaliser::Lowercase, Normaliser::Trim] };
    let world = World::new(
        vec![quota("limiter", 2, secs(60), LOG)],
        vec![applies("all", [Apply { key: vec![key], ..apply("limiter", &[]) }])],
    );
    assert!(world.passes(&[("account", "User@X ")]));
    assert!(world.passes(&[("account", "user@x")]));
    assert!(!world.passes(&[("account", " USER@x")]));
    assert!(world.passes(&[("account", "user@y")]));
}
