//! The definitions of `docs/semantics.md`, with at least one test for each number that concerns the core.
//!
//! | number | where else |
//! | --- | --- |
//! | 1, 2, 24, 27 | also next to the code, in `src/rules/` |
//! | 3 | also `limiter/tests.rs`, and `races.rs` for the machine's clock |
//! | 4 | also `properties.rs`, which goes to the ends of all numbers |
//! | 17 (units), 19, 28 (the answer on the wire), 33 to 36 | the doors' tests |
//! | 29 (files), 32 | the tests of reloads and of restarts |
//! | 30 | `tests/stores/memory.rs` |
//! | 31 | also failures of shared stores: `tests/stores/compensation.rs`, `tests/shared_stores/` |
//! | 58, 59 | `tests/config/lists.rs`, `tests/config/tables.rs`; also next to the code, in `src/rules/` |
//!
//! The last tests of this file compare the page with the numbers that all tests cite.

use std::collections::BTreeSet;
use std::fs;
use std::ops::RangeInclusive;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tollgate::clock::Timestamp;
use tollgate::decision::{Decision, Reason};
use tollgate::descriptor::{Descriptor, Hits, LimitOverride, Request};
use tollgate::engine::{Engine, Version};
use tollgate::limiter::{
    Algorithm, Calendar, CalendarUnit, LeaseStatus, Limiter, MAX_LOG_LIMIT, OnStoreError, Quota, Schedule, SpecError,
};
use tollgate::rules::{
    Action, Apply, Charge, CompileError, Domain, Matcher, Missing, RefusalText, RequestBounds, Rule, RuleBook, Rules,
    Unmatched,
};
use tollgate::secret::Secret;
use tollgate::store::{MemorySettings, NextStore, Stores};

use super::world::{START, World, hits};
use crate::support::dice::Dice;
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, rule, secs, slots};

const LOG: Algorithm = Algorithm::SlidingWindow;
const PAIR: Algorithm = Algorithm::SlidingCounter;
const EPOCH: Algorithm = Algorithm::FixedWindow(Schedule::Epoch);
const FIRST_HIT: Algorithm = Algorithm::FixedWindow(Schedule::FirstHit);
const MICRO: Duration = Duration::from_micros(1);

const A: &[(&str, &str)] = &[("account", "a")];
const B: &[(&str, &str)] = &[("account", "b")];

/// One limiter, applied to each account.
fn one(limiter: Limiter) -> World {
    let name = limiter.name.clone();
    World::new(vec![limiter], vec![applies("all", [apply(&name, &["account"])])])
}

/// The same world with other rules: its counters stay.
fn reloaded(world: World, book: RuleBook) -> World {
    let World { engine, clock } = world;
    let rules = Arc::new(Rules::compile(book).expect("the book compiles"));
    let stores = engine.current().stores.next((0..rules.stores().len()).map(NextStore::Keep));
    engine.replace(Arc::new(Version { rules, stores }));
    World { engine, clock }
}

/// A rule that applies the limiter to requests whose entry `see` names it.
fn on_sight(limiter: &str, key: &[&str]) -> Rule {
    rule(limiter, &[("see", limiter)], Action::Apply(vec![apply(limiter, key)]))
}

/// The limiter that a refusal reports.
fn refusing(decision: &Decision) -> Option<&str> {
    decision.refusal().and_then(|refusal| refusal.limiter)
}

fn retry_after(decision: &Decision) -> Option<Duration> {
    decision.refusal().expect("it is refused").retry_after
}

fn remaining(decision: &Decision) -> u32 {
    decision.tightest().expect("a limiter applies").remaining
}

fn tiered(key: &[&str]) -> Rule {
    applies("tiers", [Apply { otherwise: Some("api_free".to_owned()), ..apply("api_{tier}", key) }])
}

fn of_tier<'a>(tier: &'a str, account: &'a str) -> [(&'a str, &'a str); 2] {
    [("tier", tier), ("account", account)]
}

// Counters

#[test]
fn semantics_01_an_account_that_changes_tier_keeps_what_it_has_used() {
    let limiters = vec![quota("api_free", 5, secs(60), LOG), quota("api_pro", 8, secs(60), LOG)];
    let world = World::new(limiters, vec![tiered(&["account"])]);
    assert_eq!(world.admits(9, &of_tier("free", "a")), 5);
    assert_eq!(world.admits(9, &of_tier("pro", "a")), 3);
    assert_eq!(world.admits(9, &of_tier("free", "a")), 0);
    assert_eq!(world.admits(9, &of_tier("free", "b")), 5);
}

#[test]
fn semantics_01_two_rules_with_one_limiter_and_key_share_a_counter_however_they_list_it() {
    let rules = vec![
        rule("reads", &[("method", "GET")], Action::Apply(vec![apply("limiter", &["account", "device"])])),
        rule("writes", &[("method", "POST")], Action::Apply(vec![apply("limiter", &["device", "account"])])),
    ];
    let world = World::new(vec![quota("limiter", 3, secs(60), LOG)], rules);
    let with = |method: &'static str| [("account", "a"), ("device", "d"), ("method", method)];
    assert_eq!(world.admits(2, &with("GET")), 2);
    assert_eq!(world.admits(2, &with("POST")), 1);
}

#[test]
fn semantics_01_an_algorithm_or_a_window_that_changes_starts_afresh() {
    let changed = [
        quota("limiter", 5, secs(60), PAIR),
        quota("limiter", 5, secs(60), EPOCH),
        quota("limiter", 5, secs(60), FIRST_HIT),
        quota("limiter", 5, secs(60), bucket(None)),
        quota("limiter", 5, secs(61), LOG),
    ];
    for limiter in changed {
        let world = one(quota("limiter", 5, secs(60), LOG));
        assert_eq!(world.admits(6, A), 5);
        let rules = vec![applies("all", [apply("limiter", &["account"])])];
        let world = reloaded(world, RuleBook { limiters: vec![limiter], rules, ..RuleBook::default() });
        assert_eq!(world.admits(6, A), 5);
    }
}

#[test]
fn semantics_01_a_buckets_window_is_only_a_number() {
    let world = one(quota("limiter", 60, secs(60), bucket(Some(5))));
    assert_eq!(world.admits(6, A), 5);
    let limiters = vec![quota("limiter", 3_600, secs(3_600), bucket(Some(5)))];
    let rules = vec![applies("all", [apply("limiter", &["account"])])];
    let world = reloaded(world, RuleBook { limiters, rules, ..RuleBook::default() });
    assert!(!world.passes(A));
}

#[test]
fn semantics_01_domains_share_nothing() {
    let limiters = vec![quota("limiter", 1, secs(60), LOG)];
    let here = applies("all", [apply("limiter", &["account"])]);
    let there = Rule { domain: "elsewhere".to_owned(), ..here.clone() };
    let world = World::new(limiters, vec![here, there]);
    assert_eq!(world.admits(2, A), 1);
    let request =
        Request { domain: "elsewhere", descriptors: [Descriptor::of(A.iter().copied())].into_iter().collect() };
    assert!(world.engine.decide(&request).now_or_never().expect("the memory store never waits").allowed());
}

#[test]
fn semantics_02_another_secret_starts_all_counters_afresh() {
    let book = |secret| RuleBook {
        secret,
        limiters: vec![quota("limiter", 1, secs(60), LOG)],
        rules: vec![applies("all", [apply("limiter", &["account"])])],
        ..RuleBook::default()
    };
    let world = World::of(book(Secret::new("one")));
    assert_eq!(world.admits(2, A), 1);
    let world = reloaded(world, book(Secret::new("one")));
    assert_eq!(world.admits(2, A), 0);
    let world = reloaded(world, book(Secret::new("another")));
    assert_eq!(world.admits(2, A), 1);
}

/// Weakness R12: a clock that is set back opens a window, or locks out.
#[test]
fn semantics_03_time_that_steps_back_opens_no_window_and_locks_nobody_out_for_longer() {
    for algorithm in [LOG, PAIR, EPOCH, FIRST_HIT, bucket(None)] {
        let world = one(quota("limiter", 5, secs(60), algorithm.clone()));
        world.wait(secs(86_400));
        assert_eq!(world.admits(6, A), 5, "{algorithm:?}");
        world.clock.set(START + secs(600));
        let refused = world.ask(A);
        assert!(!refused.allowed(), "{algorithm:?}: stepping back opens nothing");
        let wait = retry_after(&refused).expect("it passes some day");
        assert!(wait <= secs(2 * 60), "{algorithm:?}: waits {wait:?}, not a day");
        world.wait(wait);
        assert!(world.passes(A), "{algorithm:?}");
    }
}

#[test]
fn semantics_03_leases_keep_their_length_when_time_steps_back() {
    let world = one(slots("slots", 1, secs(60)));
    world.wait(secs(86_400));
    assert!(world.passes(A));
    world.clock.set(START);
    assert_eq!(retry_after(&world.ask(A)), Some(secs(60)), "the correction is written although it is refused");
    world.wait(secs(60));
    assert!(world.passes(A));
}

#[test]
fn semantics_04_a_cost_of_all_numbers_is_counted_and_not_wrapped() {
    for algorithm in [LOG, PAIR, EPOCH, FIRST_HIT, bucket(None)] {
        let limiter = quota("limiter", 5, secs(60), algorithm.clone());
        let always = Apply { charge: Charge::Always, ..apply("limiter", &["account"]) };
        let world = World::new(vec![limiter], vec![applies("all", [always])]);
        for _ in 0..3 {
            assert!(!world.decide([hits(Hits::Charge(u32::MAX), A)]).allowed(), "{algorithm:?}");
        }
        assert!(!world.passes(A), "{algorithm:?}: it was charged");
        world.decide([hits(Hits::Refund(u32::MAX), A)]);
    }
}

#[test]
fn semantics_04_a_rate_that_cannot_be_met_within_a_percent_is_refused_with_what_would_fit() {
    let ten_years = secs(10 * 365 * 86_400);
    let refused = Quota::new(3, ten_years, bucket(Some(u32::MAX)));
    let Err(SpecError::Rate(largest)) = refused else { panic!("{refused:?}") };
    assert!(Quota::new(3, ten_years, bucket(Some(largest))).is_ok(), "{largest} would fit");
    assert!(matches!(Quota::new(3, ten_years, bucket(Some(largest + 1))), Err(SpecError::Rate(_))));
}

// Request, plan, outcome

#[test]
fn semantics_05_hits_of_zero_peek_and_negative_hits_give_back() {
    assert_eq!(Hits::of(0, false), Hits::Peek);
    assert_eq!(Hits::of(3, false), Hits::Charge(3));
    assert_eq!(Hits::of(3, true), Hits::Refund(3));
    assert_eq!(Hits::of(u64::MAX, false), Hits::Charge(u32::MAX), "saturating");
    assert_eq!(Descriptor::of(A.iter().copied()).hits, Hits::Charge(1));
}

#[test]
fn semantics_05_each_descriptor_brings_its_own_cost() {
    let world = one(quota("limiter", 10, secs(60), LOG));
    let decision = world.decide([hits(Hits::Charge(4), A), hits(Hits::Peek, B)]);
    let left: Vec<u32> = decision.statuses().filter_map(|status| Some(status.check?.remaining)).collect();
    assert_eq!(left, [6, 10]);
}

#[test]
fn semantics_06_entries_never_combine_across_descriptors() {
    let both = rule("both", &[("account", "*"), ("device", "*")], Action::Deny);
    let world = World::new(vec![], vec![both]);
    assert!(world.decide([Descriptor::of([("account", "a")]), Descriptor::of([("device", "d")])]).allowed());
    assert!(!world.passes(&[("account", "a"), ("device", "d")]));
}

#[test]
fn semantics_06_the_whole_call_is_admitted_or_refused_together() {
    let world = one(quota("limiter", 1, secs(60), LOG));
    assert!(world.passes(A));
    assert!(!world.decide([Descriptor::of(A.iter().copied()), Descriptor::of(B.iter().copied())]).allowed());
    assert_eq!(world.left(B), 1, "b was not charged for a's refusal");
}

#[test]
fn semantics_06_checks_of_one_counter_are_charged_once_with_the_highest_cost() {
    let world = one(quota("limiter", 10, secs(60), LOG));
    let decision = world.decide([hits(Hits::Charge(2), A), hits(Hits::Charge(5), A), hits(Hits::Charge(3), A)]);
    let left: Vec<u32> = decision.statuses().filter_map(|status| Some(status.check?.remaining)).collect();
    assert_eq!(left, [5, 5, 5], "all of them get the one outcome");
}

#[test]
fn semantics_06_each_way_of_passing_is_tested_with_its_own_highest_cost() {
    let fits = apply("limiter", &["account"]);
    let overdraws = Apply { overdraw: true, charge: Charge::Always, ..apply("limiter", &["account"]) };
    let rules = vec![
        rule("fits", &[("by", "fits")], Action::Apply(vec![fits])),
        rule("overdraws", &[("by", "overdraws")], Action::Apply(vec![overdraws])),
    ];
    let world = World::new(vec![quota("limiter", 10, secs(60), EPOCH)], rules);
    let decide = |fits, overdraws| {
        world.decide([
            hits(Hits::Charge(fits), &[("account", "a"), ("by", "fits")]),
            hits(Hits::Charge(overdraws), &[("account", "a"), ("by", "overdraws")]),
        ])
    };
    assert!(decide(1, 8).allowed());
    assert_eq!(world.left(&[("account", "a"), ("by", "fits")]), 2, "the highest cost was charged");
    // Three units do not fit into two, although one is left for the overdraft: refused, and the overdraft is charged.
    assert!(!decide(3, 1).allowed());
    assert_eq!(world.left(&[("account", "a"), ("by", "fits")]), 1);
    // One unit fits and one is left: twenty are charged beyond the limit.
    assert!(decide(1, 20).allowed());
    assert!(!decide(1, 1).allowed());
}

#[test]
fn semantics_06_a_peek_merges_into_a_charge() {
    let world = one(quota("limiter", 2, secs(60), LOG));
    assert!(world.decide([hits(Hits::Peek, A), hits(Hits::Charge(2), A)]).allowed());
    assert!(!world.decide([hits(Hits::Peek, A), hits(Hits::Charge(1), A)]).allowed());
    assert_eq!(world.admits(1, A), 0);
}

#[test]
fn semantics_06_where_numbers_differ_the_strictest_hold() {
    let limiters = vec![quota("api_free", 2, secs(60), LOG), quota("api_pro", 5, secs(60), LOG)];
    let world = World::new(limiters, vec![tiered(&["account"])]);
    let both = || {
        let tiers = [of_tier("free", "a"), of_tier("pro", "a")];
        world.decide(tiers.map(Descriptor::of)).allowed()
    };
    assert_eq!([both(), both(), both()], [true, true, false]);
    assert_eq!(world.left(&of_tier("pro", "a")), 3);
}

#[test]
fn semantics_06_of_two_buckets_the_smaller_burst_and_the_slower_rate_hold() {
    let limiters = vec![quota("api_free", 10, secs(1), bucket(Some(2))), quota("api_pro", 1, secs(1), bucket(Some(5)))];
    let world = World::new(limiters, vec![tiered(&["account"])]);
    let both = || world.decide([of_tier("free", "a"), of_tier("pro", "a")].map(Descriptor::of));
    assert_eq!([both().allowed(), both().allowed(), both().allowed()], [true, true, false]);
    assert_eq!(retry_after(&both()), Some(secs(1)));
}

#[test]
fn semantics_06_an_outcome_describes_the_state_after_its_group() {
    let world = one(quota("limiter", 3, secs(60), LOG));
    assert_eq!(remaining(&world.ask(A)), 2);
    let always = Apply { charge: Charge::Always, ..apply("limiter", &["account"]) };
    let world = World::new(vec![quota("limiter", 3, secs(60), bucket(None))], vec![applies("all", [always])]);
    let refused = world.decide([hits(Hits::Charge(4), A)]);
    assert_eq!(remaining(&refused), 0, "the refused cost has been charged already");
}

/// Weakness A5: a request without a key is not limited.
#[test]
fn semantics_07_leaving_out_the_account_does_not_switch_off_the_limit_on_the_address() {
    let limiters = vec![quota("login_ip", 2, secs(60), LOG), quota("login_account", 1, secs(60), LOG)];
    let login = applies("login", [apply("login_ip", &["remote_address"]), apply("login_account", &["account"])]);
    let world = World::new(limiters, vec![login]);
    assert_eq!(world.admits(3, &[("remote_address", "1.2.3.4")]), 2);
    let decision = world.ask(&[("remote_address", "4.3.2.1")]);
    assert_eq!(decision.planned().notes.skipped, 1, "the check that was left out is counted");
}

#[test]
fn semantics_07_a_missing_key_can_be_refused_or_counted_as_empty() {
    let with = |missing| {
        let strict = Apply { missing, ..apply("limiter", &["account"]) };
        World::new(vec![quota("limiter", 1, secs(60), LOG)], vec![applies("all", [strict])])
    };
    let deny = with(Missing::Deny);
    let refused = deny.ask(&[]);
    assert_eq!(refused.refusal().map(|refusal| refusal.reason), Some(Reason::MissingKey));
    assert_eq!(refused.rule(), Some("all"));
    assert!(deny.passes(A));
    let empty = with(Missing::Empty);
    assert!(empty.passes(&[]));
    assert!(!empty.passes(&[("account", "")]), "the empty value is the same counter");
    assert!(empty.passes(A));
}

#[test]
fn semantics_07_what_a_rule_matches_must_be_present() {
    let world = World::new(vec![], vec![rule("both", &[("account", "*"), ("tier", "*")], Action::Deny)]);
    assert!(world.passes(A));
    assert!(!world.passes(&[("account", ""), ("tier", "free")]));
}

#[test]
fn semantics_08_a_refused_request_charges_nobody() {
    for algorithm in [LOG, PAIR, EPOCH, FIRST_HIT, bucket(None)] {
        let limiters = vec![quota("address", 10, secs(60), algorithm.clone()), quota("account", 1, secs(60), LOG)];
        let login = rule(
            "login",
            &[("account", "*")],
            Action::Apply(vec![apply("address", &["remote_address"]), apply("account", &["account"])]),
        );
        let world = World::new(limiters, vec![login, on_sight("address", &["remote_address"])]);
        let try_login = [("remote_address", "1.2.3.4"), ("account", "a")];
        assert_eq!(world.admits(50, &try_login), 1);
        assert_eq!(world.left(&[("remote_address", "1.2.3.4"), ("see", "address")]), 9, "{algorithm:?}");
    }
}

#[test]
fn semantics_09_an_address_pays_for_tries_that_the_account_refuses() {
    let limiters = vec![quota("login_ip", 4, secs(60), LOG), quota("login_account", 1, secs(60), LOG)];
    let own = Apply { charge: Charge::Own, ..apply("login_ip", &["remote_address"]) };
    let world = World::new(limiters, vec![applies("login", [own, apply("login_account", &["account"])])]);
    let from = |address: &'static str, account: &'static str| [("remote_address", address), ("account", account)];
    assert!(world.passes(&from("1.2.3.4", "a")));
    for _ in 0..3 {
        assert_eq!(refusing(&world.ask(&from("1.2.3.4", "a"))), Some("login_account"));
    }
    assert_eq!(refusing(&world.ask(&from("1.2.3.4", "b"))), Some("login_ip"), "four tries are paid for");
    assert!(world.passes(&from("4.3.2.1", "b")), "and b was not charged");
}

#[test]
fn semantics_09_own_pays_only_for_what_it_lets_pass_itself() {
    let own = Apply { charge: Charge::Own, ..apply("limiter", &["account"]) };
    let world = World::new(vec![quota("limiter", 2, secs(10), LOG)], vec![applies("all", [own])]);
    assert_eq!(world.admits(5, A), 2);
    world.wait(secs(10));
    assert_eq!(world.admits(5, A), 2, "its refusals were not charged");
}

#[test]
fn semantics_09_who_keeps_trying_stays_out_with_always() {
    for algorithm in [LOG, bucket(None)] {
        let always = Apply { charge: Charge::Always, ..apply("limiter", &["account"]) };
        let world = World::new(vec![quota("limiter", 2, secs(10), algorithm)], vec![applies("all", [always])]);
        assert_eq!(world.admits(2, A), 2);
        for _ in 0..20 {
            world.wait(secs(4));
            assert!(!world.passes(A));
        }
        world.wait(secs(20));
        assert!(world.passes(A));
    }
}

#[test]
fn semantics_09_a_bucket_owes_at_most_its_max_debt() {
    let wait_after = |max_debt, charge, overdraw| {
        let algorithm = Algorithm::TokenBucket { burst: None, max_debt };
        let check = Apply { charge, overdraw, ..apply("limiter", &["account"]) };
        let world = World::new(vec![quota("limiter", 10, secs(10), algorithm)], vec![applies("all", [check])]);
        (0..100).for_each(|_| drop(world.ask(A)));
        let peek = world.decide([hits(Hits::Peek, A)]);
        retry_after(&peek).expect("it passes some day")
    };
    assert_eq!(wait_after(None, Charge::Admitted, false), secs(1), "no debt where refusals are not charged");
    assert_eq!(wait_after(None, Charge::Always, false), secs(1 + 10), "the limit, where a rule charges always");
    assert_eq!(wait_after(Some(3), Charge::Always, false), secs(1 + 3));
    assert_eq!(wait_after(None, Charge::Always, true), secs(1 + 90), "unbounded, where a rule overdraws");
}

#[test]
fn semantics_09_a_window_counts_on_past_its_limit_and_forgets_at_its_boundary() {
    let always = Apply { charge: Charge::Always, ..apply("limiter", &["account"]) };
    let world = World::new(vec![quota("limiter", 5, secs(10), EPOCH)], vec![applies("all", [always])]);
    assert_eq!(world.admits(50, A), 5);
    world.decide([hits(Hits::Refund(44), A)]);
    assert!(!world.passes(A), "fifty were counted");
    world.wait(secs(10));
    assert_eq!(world.admits(6, A), 5);
}

#[test]
fn semantics_09_a_full_exact_log_drops_its_oldest_grant_for_the_newest() {
    let always = Apply { charge: Charge::Always, ..apply("limiter", &["account"]) };
    let world = World::new(vec![quota("limiter", 2, secs(10), LOG)], vec![applies("all", [always])]);
    assert!(world.passes(A));
    world.wait(secs(4));
    assert!(world.passes(A));
    world.wait(secs(4));
    let refused = world.ask(A);
    assert_eq!(retry_after(&refused), Some(secs(6)), "counted are the grants at 4 s and at 8 s");
}

#[test]
fn semantics_09_slots_are_charged_when_admitted_or_not_configured_at_all() {
    let odd = [
        Apply { charge: Charge::Own, ..apply("slots", &["account"]) },
        Apply { charge: Charge::Always, ..apply("slots", &["account"]) },
        Apply { overdraw: true, ..apply("slots", &["account"]) },
    ];
    for check in odd {
        let rules = vec![applies("all", [check])];
        let book = RuleBook { limiters: vec![slots("slots", 1, secs(60))], rules, ..RuleBook::default() };
        let errors = Rules::compile(book).expect_err("refused requests send no release");
        assert!(matches!(errors.as_slice(), [CompileError::ChargedSlot { .. }]), "{errors:?}");
    }
}

#[test]
fn semantics_10_a_peek_refuses_when_less_than_a_unit_is_left_and_takes_nothing() {
    for algorithm in [LOG, PAIR, EPOCH, FIRST_HIT, bucket(None)] {
        let world = one(quota("limiter", 2, secs(10), algorithm));
        for _ in 0..20 {
            assert!(world.decide([hits(Hits::Peek, A)]).allowed());
        }
        assert_eq!(world.admits(3, A), 2);
        assert!(!world.decide([hits(Hits::Peek, A)]).allowed());
    }
}

#[test]
fn semantics_10_a_peek_takes_no_slot() {
    let world = one(slots("slots", 1, secs(60)));
    let peek = world.decide([hits(Hits::Peek, A)]);
    assert!(peek.allowed());
    assert_eq!(peek.lease(), None);
    assert!(world.passes(A));
    assert!(!world.decide([hits(Hits::Peek, A)]).allowed());
}

#[test]
fn semantics_11_a_refund_takes_effect_whatever_the_verdict_and_before_the_charges() {
    let world = one(quota("limiter", 2, secs(60), bucket(None)));
    assert_eq!(world.admits(2, A), 2);
    assert_eq!(world.admits(2, B), 2);
    let decision = world.decide([hits(Hits::Refund(1), A), hits(Hits::Charge(1), B)]);
    assert!(!decision.allowed());
    assert_eq!(world.left(A), 1, "a got its unit back although the call was refused");
    assert!(world.decide([hits(Hits::Refund(1), B), hits(Hits::Charge(1), B)]).allowed());
}

#[test]
fn semantics_11_a_refund_clamps_at_empty_and_never_fails() {
    for algorithm in [LOG, PAIR, EPOCH, FIRST_HIT, bucket(None)] {
        let world = one(quota("limiter", 3, secs(10), algorithm.clone()));
        assert!(world.decide([hits(Hits::Refund(5), A)]).allowed());
        world.admits(2, A);
        assert!(world.decide([hits(Hits::Refund(5), A)]).allowed());
        assert_eq!(world.admits(5, A), 3, "{algorithm:?}");
    }
}

#[test]
fn semantics_11_a_refund_gives_back_the_current_window_and_not_the_previous_one() {
    let world = one(quota("limiter", 4, secs(10), PAIR));
    assert_eq!(world.admits(5, A), 4);
    world.wait(secs(10));
    world.decide([hits(Hits::Refund(4), A)]);
    assert_eq!(world.admits(1, A), 0, "the window before counts still");
}

#[test]
fn semantics_11_a_refund_gives_back_the_oldest_grants_of_an_exact_log() {
    let world = one(quota("limiter", 2, secs(10), LOG));
    world.admits(1, A);
    world.wait(secs(5));
    world.admits(1, A);
    world.decide([hits(Hits::Refund(1), A)]);
    world.wait(secs(5));
    assert_eq!(world.left(A), 1, "the grant at 5 s is the one that is left");
}

/// A recipe for failed logins charges every try and gives right ones back (examples/envoy/failed_logins.yaml).
#[test]
fn semantics_11_refunds_before_the_window_ends_never_admit_more_failures_than_the_limit() {
    const WINDOW: u64 = 10_000;
    for seed in 0..200 {
        let mut dice = Dice(seed);
        let world = one(quota("limiter", 3, Duration::from_millis(WINDOW), LOG));
        let (mut failures, mut due): (Vec<u64>, Vec<u64>) = (Vec::new(), Vec::new());
        let mut now = 0;
        for _ in 0..400 {
            let next = now + dice.below(1_500) as u64;
            // What comes back before the next try, in any order.
            due.sort_unstable();
            while due.first().is_some_and(|at| *at <= next) {
                let at = due.remove(0);
                world.wait(Duration::from_millis(at - now));
                now = at;
                world.decide([hits(Hits::Refund(1), A)]);
            }
            world.wait(Duration::from_millis(next - now));
            now = next;
            if world.passes(A) {
                match dice.below(2) {
                    0 => failures.push(now),
                    _ => due.push(now + dice.below(WINDOW as usize) as u64),
                }
            }
        }
        for (number, end) in failures.iter().enumerate() {
            let counted = failures[..=number].iter().filter(|at| **at + WINDOW > *end).count();
            assert!(counted <= 3, "seed {seed}: {counted} failures before {end}");
        }
        assert!(failures.len() > 20, "seed {seed}: {failures:?}");
    }
}

/// A recipe must not send such a refund: it sends none when a response took too long.
#[test]
fn semantics_11_a_refund_after_the_window_of_its_charge_gives_back_units_of_others() {
    for algorithm in [LOG, PAIR, EPOCH, FIRST_HIT] {
        let world = one(quota("limiter", 3, secs(10), algorithm.clone()));
        assert!(world.passes(A), "the charge");
        world.wait(secs(20));
        assert_eq!(world.admits(5, A), 3);
        world.decide([hits(Hits::Refund(1), A)]);
        assert_eq!(world.admits(5, A), 1, "{algorithm:?}: a fourth in this window");
    }
}

/// A recipe for tokens holds the most that a call may use and settles afterwards (examples/envoy/tokens.yaml).
#[test]
fn semantics_11_a_bucket_with_holds_admits_no_more_than_its_rate_and_the_longest_call_allow() {
    const HELD: u32 = 40;
    const LONGEST: u64 = 30;
    let hold = || apply("tokens", &["account"]);
    let settled = Apply { overdraw: true, charge: Charge::Always, ..hold() };
    for seed in 0..100 {
        let rules = vec![
            rule("hold", &[("phase", "hold")], Action::Apply(vec![hold()])),
            rule("settle", &[("phase", "settle")], Action::Apply(vec![settled.clone()])),
        ];
        let world = World::new(vec![quota("tokens", 100, secs(100), bucket(None))], rules);
        let settle = |used| {
            let entries = [("account", "a"), ("phase", "settle")];
            world.decide([hits(Hits::Refund(HELD), &entries), hits(Hits::Charge(used), &entries)]);
        };
        let mut dice = Dice(seed);
        // When a call began, when it ends, and what it uses.
        let (mut calls, mut running) = (Vec::new(), Vec::new());
        for now in 0..600_u64 {
            running.retain(|(end, used): &(u64, u32)| {
                let runs = *end > now;
                if !runs {
                    settle(*used);
                }
                runs
            });
            // Busy and idle phases.
            let tries = if now / 60 % 2 == 0 { dice.below(4) } else { 0 };
            for _ in 0..tries {
                if world.decide([hits(Hits::Charge(HELD), &[("account", "a"), ("phase", "hold")])]).allowed() {
                    let used = dice.below(HELD as usize + 1) as u32;
                    calls.push((now, used));
                    running.push((now + dice.below(LONGEST as usize + 1) as u64, used));
                }
            }
            world.wait(secs(1));
        }
        for (number, (first, _)) in calls.iter().enumerate() {
            let mut used = 0;
            for (last, units) in &calls[number..] {
                used += u64::from(*units);
                assert!(used <= 100 + (last - first) + LONGEST, "seed {seed}: {used} between {first} and {last}");
            }
        }
    }
}

#[test]
fn semantics_11_a_refund_does_nothing_to_slots() {
    let world = one(slots("slots", 1, secs(60)));
    assert!(world.passes(A));
    assert!(world.decide([hits(Hits::Refund(1), A)]).allowed());
    assert!(!world.passes(A));
}

#[test]
fn semantics_12_what_was_used_is_recorded_whole_even_beyond_what_was_left() {
    let before = apply("tokens", &["account"]);
    let after = Apply { overdraw: true, charge: Charge::Always, ..apply("tokens", &["account"]) };
    let rules = vec![
        rule("before", &[("stream", "begins")], Action::Apply(vec![before])),
        rule("after", &[("stream", "ended")], Action::Apply(vec![after])),
    ];
    let world = World::new(vec![quota("tokens", 100, secs(100), bucket(None))], rules);
    let peek = || world.decide([hits(Hits::Peek, &[("account", "a"), ("stream", "begins")])]);
    let record = |tokens| world.decide([hits(Hits::Charge(tokens), &[("account", "a"), ("stream", "ended")])]);
    assert!(peek().allowed());
    assert!(record(250).allowed(), "a unit was left");
    assert_eq!(retry_after(&peek()), Some(secs(151)), "the debt drains before anything passes");
    assert!(!record(10).allowed(), "refused, and recorded too");
    assert_eq!(retry_after(&peek()), Some(secs(161)));
}

#[test]
fn semantics_12_the_exact_log_cannot_be_overdrawn() {
    let overdrawn = Apply { overdraw: true, ..apply("limiter", &["account"]) };
    let book = RuleBook {
        limiters: vec![quota("limiter", 5, secs(60), LOG)],
        rules: vec![applies("all", [overdrawn])],
        ..RuleBook::default()
    };
    let errors = Rules::compile(book).expect_err("what is overdrawn would be forgotten");
    assert!(matches!(errors.as_slice(), [CompileError::OverdrawnLog { .. }]), "{errors:?}");
}

fn with_shadow(shadow: Rule, enforced: Vec<Rule>, limiters: Vec<Limiter>) -> World {
    World::new(limiters, std::iter::once(Rule { shadow: true, ..shadow }).chain(enforced).collect())
}

#[test]
fn semantics_13_a_shadow_rule_counts_and_never_denies() {
    let limiters = vec![quota("limiter", 2, secs(60), LOG)];
    let world = with_shadow(applies("trial", [apply("limiter", &["account"])]), vec![], limiters);
    assert_eq!(world.admits(5, A), 5);
    let decision = world.ask(A);
    let outcome = decision.applied().answers[0].expect("the store answers");
    assert!(!outcome.passes, "it would have refused");
    assert_eq!(outcome.remaining, 0, "two were counted");
    assert!(decision.tightest().is_none(), "it is not reported");
}

#[test]
fn semantics_13_a_shadow_check_is_charged_only_when_the_enforced_part_admits() {
    let limiters = vec![quota("trial", 5, secs(60), LOG), quota("real", 1, secs(60), LOG)];
    let enforced = applies("real", [apply("real", &["account"])]);
    let trial = applies("trial", [apply("trial", &["account"])]);
    let world = with_shadow(trial, vec![enforced], limiters);
    assert_eq!(world.admits(4, A), 1);
    let outcome = world.ask(A).applied().answers[0].expect("the store answers");
    assert_eq!(outcome.remaining, 4);
}

#[test]
fn semantics_13_on_a_counter_that_both_use_enforced_wins() {
    let limiters = vec![quota("limiter", 2, secs(60), LOG)];
    let enforced = applies("real", [apply("limiter", &["account"])]);
    let trial = applies("trial", [apply("limiter", &["account"])]);
    let world = with_shadow(trial, vec![enforced], limiters);
    assert_eq!(world.admits(5, A), 2, "charged once, and enforced");
    assert_eq!(world.ask(A).rule(), Some("real"));
}

#[test]
fn semantics_13_a_rule_in_shadow_opens_no_door() {
    let shadow = |rule: Rule| Rule { shadow: true, ..rule };
    let ban = rule("ban", &[("account", "*")], Action::Deny);
    let trials = [
        shadow(rule("friends", &[("account", "*")], Action::Allow)),
        Rule { last: true, ..shadow(applies("last", [apply("limiter", &["account"])])) },
    ];
    for trial in trials {
        let world = World::new(vec![quota("limiter", 9, secs(60), LOG)], vec![trial, ban.clone()]);
        assert_eq!(world.ask(A).rule(), Some("ban"), "the walk goes on past a rule in shadow");
    }
    let closed = Domain { name: DOMAIN.to_owned(), unmatched: Unmatched::Deny, ..Domain::default() };
    let world = World::of(RuleBook {
        domains: vec![closed],
        limiters: vec![quota("limiter", 9, secs(60), LOG)],
        rules: vec![shadow(applies("trial", [apply("limiter", &["account"])]))],
        ..RuleBook::default()
    });
    assert!(!world.passes(A), "a rule in shadow alone is no match");
}

#[test]
fn semantics_13_slots_in_shadow_never_refuse_a_request_for_holding_too_many() {
    let limiters: Vec<Limiter> = (0..12).map(|number| slots(&format!("slots-{number}"), 5, secs(60))).collect();
    let all = limiters.iter().map(|limiter| apply(&limiter.name, &["account"])).collect::<Vec<_>>();
    let world = with_shadow(applies("trial", all), vec![], limiters);
    let decision = world.ask(A);
    assert!(decision.allowed());
    assert!(decision.lease().is_some(), "the lease has as many of them as fit");
}

#[test]
fn semantics_13_a_domain_and_the_whole_server_can_be_in_shadow() {
    let limiters = vec![quota("limiter", 1, secs(60), LOG)];
    let rules = vec![
        rule("ban", &[("account", "banned")], Action::Deny),
        rule(
            "known",
            &[("account", "*")],
            Action::Apply(vec![Apply { missing: Missing::Deny, ..apply("limiter", &["device"]) }]),
        ),
    ];
    let domain = |shadow| Domain { name: DOMAIN.to_owned(), shadow, unmatched: Unmatched::Deny, ..Domain::default() };
    let book = |server, shadow| RuleBook {
        shadow: server,
        domains: vec![domain(shadow)],
        limiters: limiters.clone(),
        rules: rules.clone(),
        ..RuleBook::default()
    };
    for (server, shadow) in [(true, false), (false, true)] {
        let world = World::of(book(server, shadow));
        assert_eq!(world.admits(3, &[("account", "a"), ("device", "d")]), 3, "limits");
        assert!(world.passes(&[("account", "banned"), ("device", "d")]), "deny rules");
        assert!(world.passes(A), "missing keys");
        assert!(world.passes(&[("what", "is this")]), "descriptors that no rule matches");
    }
    let world = World::of(book(false, false));
    assert_eq!(world.admits(3, &[("account", "a"), ("device", "d")]), 1);
    assert!(!world.passes(&[("what", "is this")]));
}

#[test]
fn semantics_13_enforcing_a_share_gives_each_key_the_same_answer_always() {
    let world_at = |percent| {
        let partly = Rule { enforce_percent: Some(percent), ..applies("part", [apply("limiter", &["account"])]) };
        World::new(vec![quota("limiter", 1, secs(60), LOG)], vec![partly])
    };
    let names: Vec<String> = (0..500).map(|number| format!("account-{number}")).collect();
    let enforced = |world: &World| -> Vec<&str> {
        let refused = |name: &&str| world.admits(3, &[("account", name)]) == 1;
        names.iter().map(String::as_str).filter(refused).collect()
    };
    let (none, third, more, all) =
        (enforced(&world_at(0)), enforced(&world_at(30)), enforced(&world_at(60)), enforced(&world_at(100)));
    assert_eq!((none.len(), all.len()), (0, 500));
    assert!((100..200).contains(&third.len()), "{} of 500 at 30 %", third.len());
    assert!(third.iter().all(|name| more.contains(name)), "raising the share keeps those who were enforced");
    assert_eq!(third, enforced(&world_at(30)));
}

#[test]
fn semantics_14_a_cost_above_all_that_fits_is_refused_without_a_retry_after() {
    for algorithm in [LOG, PAIR, EPOCH, FIRST_HIT, bucket(None)] {
        let world = one(quota("limiter", 5, secs(60), algorithm.clone()));
        let refused = world.decide([hits(Hits::Charge(6), A)]);
        assert!(!refused.allowed());
        assert_eq!(retry_after(&refused), None, "{algorithm:?}");
    }
    let overdraws = Apply { overdraw: true, ..apply("limiter", &["account"]) };
    let world = World::new(vec![quota("limiter", 5, secs(60), EPOCH)], vec![applies("all", [overdraws])]);
    assert!(world.decide([hits(Hits::Charge(6), A)]).allowed(), "not with overdraw");
}

#[test]
fn semantics_15_of_several_refusals_the_longest_wait_decides_and_is_named() {
    let limiters =
        vec![quota("minute", 1, secs(60), LOG), quota("hour", 1, secs(3_600), LOG), quota("second", 1, secs(1), LOG)];
    let all = ["minute", "hour", "second"].map(|limiter| apply(limiter, &["account"]));
    let world = World::new(limiters, vec![applies("all", all)]);
    assert!(world.passes(A));
    let refused = world.ask(A);
    assert_eq!(refusing(&refused), Some("hour"));
    assert_eq!(retry_after(&refused), Some(secs(3_600)));
    assert_eq!(refused.tightest().expect("it is refused").limiter, "hour");
    let never = world.decide([hits(Hits::Charge(2), A)]);
    assert_eq!(retry_after(&never), None, "never is the longest wait");
}

/// A world whose second store is too small for any counter.
fn with_a_full_store(on_store_error: OnStoreError, applied: Vec<Apply>) -> World {
    let nowhere = Limiter { store: 1, on_store_error, ..quota("nowhere", 5, secs(60), LOG) };
    let book = RuleBook {
        stores: vec!["main".to_owned(), "full".to_owned()],
        limiters: vec![quota("limiter", 1, secs(60), LOG), nowhere],
        rules: vec![applies("all", applied)],
        ..RuleBook::default()
    };
    let clock = tollgate::clock::ManualClock::at(START);
    let spaces = [MemorySettings::default(), MemorySettings { max_memory: 0, max_keys: None }];
    let rules = Rules::compile(book).expect("the book compiles");
    World { engine: Engine::new(rules, Stores::memory(&spaces), Arc::new(clock.clone())), clock }
}

#[test]
fn semantics_15_a_definite_refusal_beats_a_store_error() {
    let both = vec![apply("nowhere", &["account"]), apply("limiter", &["account"])];
    let world = with_a_full_store(OnStoreError::Deny, both.clone());
    let failed = world.ask(A);
    assert_eq!(failed.refusal().map(|refusal| refusal.reason), Some(Reason::StoreError));
    assert_eq!(refusing(&failed), Some("nowhere"));
    let world = with_a_full_store(OnStoreError::Allow, both);
    assert!(world.passes(A));
    let refused = world.ask(A);
    assert_eq!(refused.refusal().map(|refusal| refusal.reason), Some(Reason::Limit));
    assert_eq!(refusing(&refused), Some("limiter"));
}

#[test]
fn semantics_15_a_refusal_stands_even_where_the_store_that_failed_would_deny() {
    let applied = vec![apply("nowhere", &["device"]), apply("limiter", &["account"])];
    let world = with_a_full_store(OnStoreError::Deny, applied);
    assert!(world.passes(A), "without a device the full store is not used");
    let refused = world.ask(&[("account", "a"), ("device", "d")]);
    assert_eq!(refused.refusal().map(|refusal| refusal.reason), Some(Reason::Limit));
}

// Status of a descriptor

#[test]
fn semantics_16_one_status_for_each_descriptor_in_order() {
    let limiters = vec![quota("tight", 1, secs(60), LOG), quota("wide", 10, secs(3_600), LOG)];
    let rules = vec![
        rule("friends", &[("account", "friend")], Action::Allow),
        Rule { shadow: true, ..rule("trial", &[("trial", "*")], Action::Apply(vec![apply("tight", &["trial"])])) },
        rule(
            "all",
            &[("account", "*")],
            Action::Apply(vec![apply("wide", &["account"]), apply("tight", &["account"])]),
        ),
    ];
    let world = World::new(limiters, rules);
    let all = || {
        world.decide(
            [("account", "a"), ("what", "is this"), ("account", "friend"), ("trial", "t"), ("account", "b")]
                .map(|entry| Descriptor::of([entry])),
        )
    };
    let passed = all();
    let reported: Vec<Option<&str>> =
        passed.statuses().map(|status| status.check.map(|counted| counted.limiter)).collect();
    assert_eq!(reported, [Some("tight"), None, None, None, Some("tight")], "the lowest remaining is reported");
    assert!(passed.statuses().all(|status| status.allowed));

    world.wait(secs(59));
    assert!(world.passes(&[("account", "c")]));
    world.wait(secs(1));
    let refused = world.decide([Descriptor::of(B.iter().copied()), Descriptor::of([("account", "c")])]);
    let reported: Vec<(bool, u32)> =
        refused.statuses().map(|status| (status.allowed, status.check.expect("it counts").remaining)).collect();
    assert_eq!(reported, [(true, 1), (false, 0)], "b passes inside the refused request, uncharged");
}

#[test]
fn semantics_16_beside_a_denied_descriptor_the_others_say_what_they_have_left() {
    let rules = vec![
        rule("banned", &[("account", "mallory")], Action::Deny),
        rule("all", &[("account", "*")], Action::Apply(vec![apply("wide", &["account"])])),
    ];
    let world = World::new(vec![quota("wide", 10, secs(60), LOG)], rules);
    for _ in 0..2 {
        let refused = world.decide(["a", "mallory"].map(|account| Descriptor::of([("account", account)])));
        assert_eq!(refused.refusal().and_then(|refusal| refusal.rule), Some("banned"));
        let reported: Vec<(bool, Option<u32>)> =
            refused.statuses().map(|status| (status.allowed, status.check.map(|counted| counted.remaining))).collect();
        assert_eq!(reported, [(true, Some(10)), (false, None)], "and nothing is charged");
    }
}
#[test]
fn semantics_16_the_refusing_check_with_the_longest_wait_is_the_status() {
    let limiters = vec![quota("minute", 1, secs(60), LOG), quota("hour", 1, secs(3_600), LOG)];
    let all = ["minute", "hour"].map(|limiter| apply(limiter, &["account"]));
    let world = World::new(limiters, vec![applies("all", all)]);
    assert!(world.passes(A));
    let refused = world.ask(A);
    let status = refused.statuses().next().expect("one descriptor, one status");
    assert_eq!(status.check.expect("it counts").limiter, "hour");
}

#[test]
fn semantics_17_what_is_told_are_the_configured_numbers() {
    let limiter = Limiter {
        concurrency: slots("", 4, secs(60)).concurrency,
        ..quota("both", 100, secs(3_600), bucket(Some(20)))
    };
    let world = one(limiter);
    let decision = world.ask(A);
    let reported: Vec<_> =
        decision.checks().map(|counted| (counted.limit, counted.window, counted.capacity, counted.remaining)).collect();
    assert_eq!(reported, [(100, Some(secs(3_600)), 20, 19), (4, None, 4, 3)]);
}

#[test]
fn semantics_17_reset_is_the_time_until_nothing_is_counted() {
    let cases = [
        (quota("limiter", 5, secs(10), LOG), secs(10)),
        (quota("limiter", 5, secs(10), PAIR), secs(20)),
        (quota("limiter", 5, secs(10), EPOCH), secs(10)),
        (quota("limiter", 5, secs(10), bucket(None)), secs(4)),
        (slots("limiter", 5, secs(30)), secs(30)),
    ];
    for (limiter, reset) in cases {
        let world = one(limiter);
        world.admits(1, A);
        let decision = world.ask(A);
        assert_eq!(decision.tightest().expect("it applies").reset, reset);
    }
}

fn overriding(limiter: Limiter) -> World {
    one(Limiter { overridable: true, ..limiter })
}

fn with_limit(limit: u32, window: Duration, entries: &[(&'static str, &'static str)]) -> Descriptor<'static> {
    Descriptor { limit: Some(LimitOverride { limit, window }), ..Descriptor::of(entries.iter().copied()) }
}

#[test]
fn semantics_18_a_limit_of_the_request_replaces_limit_and_window() {
    let world = overriding(quota("limiter", 10, secs(60), LOG));
    let passed = world.decide([with_limit(2, secs(30), A)]);
    let reported = passed.tightest().expect("it applies");
    assert_eq!((reported.limit, reported.window, reported.remaining), (2, Some(secs(30)), 1));
    assert!(world.decide([with_limit(2, secs(30), A)]).allowed());
    assert_eq!(retry_after(&world.decide([with_limit(2, secs(30), A)])), Some(secs(30)));
}

#[test]
fn semantics_18_only_limiters_that_say_so_and_only_that_descriptor() {
    let world = one(quota("limiter", 10, secs(60), LOG));
    assert_eq!(world.decide([with_limit(2, secs(30), A)]).tightest().expect("it applies").limit, 10);
    let world = overriding(quota("limiter", 10, secs(60), LOG));
    let decision = world.decide([with_limit(2, secs(30), A), Descriptor::of(B.iter().copied())]);
    let limits: Vec<u32> = decision.statuses().filter_map(|status| Some(status.check?.limit)).collect();
    assert_eq!(limits, [2, 10]);
}

#[test]
fn semantics_18_an_explicit_burst_stays() {
    let world = overriding(quota("limiter", 10, secs(10), bucket(Some(3))));
    let reported = world.decide([with_limit(100, secs(10), A)]);
    assert_eq!(reported.tightest().expect("it applies").capacity, 3);
    let world = overriding(quota("limiter", 10, secs(10), bucket(None)));
    let reported = world.decide([with_limit(100, secs(10), A)]);
    assert_eq!(reported.tightest().expect("it applies").capacity, 100);
}

#[test]
fn semantics_18_zero_refuses_always() {
    let world = overriding(quota("limiter", 10, secs(60), LOG));
    let refused = world.decide([with_limit(0, secs(60), A)]);
    let reported = refused.tightest().expect("it applies");
    assert_eq!((reported.limit, reported.remaining, reported.retry_after), (0, 0, None));
    assert!(!refused.allowed());
    assert_eq!(world.admits(11, A), 10, "and charges nothing");
}

#[test]
fn semantics_18_numbers_that_configuration_would_refuse_are_ignored_and_counted() {
    let world = overriding(quota("limiter", 10, secs(60), LOG));
    let decision = world.decide([with_limit(MAX_LOG_LIMIT + 1, secs(60), A)]);
    assert_eq!(decision.tightest().expect("it applies").limit, 10);
    assert_eq!(decision.planned().notes.overrides_ignored, 1);
}

// Algorithms

#[test]
fn semantics_20_a_bucket_admits_at_most_its_burst_and_its_rate() {
    let world = one(quota("limiter", 100, secs(3_600), bucket(None)));
    let first_hour: usize = (0..3_600)
        .map(|_| {
            world.wait(secs(1));
            world.admits(2, A)
        })
        .sum();
    assert_eq!(first_hour, 100 + 99, "about twice the limit in the first hour");
}

/// Weakness D9: the reported limit is the rate, and the reported remaining exceeds it.
#[test]
fn semantics_20_the_limit_told_is_the_burst_and_reset_is_until_full() {
    let world = one(quota("limiter", 60, secs(60), bucket(Some(5))));
    let decision = world.decide([hits(Hits::Charge(3), A)]);
    let reported = decision.tightest().expect("it applies");
    assert_eq!((reported.capacity, reported.remaining, reported.reset), (5, 2, secs(3)));
    world.wait(Duration::from_millis(1_500));
    assert_eq!(world.left(A), 3, "whole tokens");
}

#[test]
fn semantics_20_an_upgrade_locks_nobody_out_and_a_downgrade_sets_nobody_free() {
    let limiters =
        vec![quota("api_free", 10, secs(3_600), bucket(None)), quota("api_pro", 1_000, secs(3_600), bucket(None))];
    let world = World::new(limiters, vec![tiered(&["account"])]);
    assert_eq!(world.admits(11, &of_tier("free", "a")), 10);
    assert_eq!(remaining(&world.ask(&of_tier("pro", "a"))), 1_000 - 11, "ten used, in units, and this one");

    world.decide([hits(Hits::Charge(500), &of_tier("pro", "a"))]);
    let refused = world.ask(&of_tier("free", "a"));
    assert_eq!(retry_after(&refused), Some(secs(360)), "clamped to what the small bucket can owe");
    assert_eq!(world.left(&of_tier("pro", "a")), 1_000 - 511, "only charges write");
}

#[test]
fn semantics_20_what_was_used_drains_at_the_new_rate_from_the_last_charge() {
    let limiters =
        vec![quota("api_free", 1, secs(10), bucket(Some(10))), quota("api_pro", 1, secs(1), bucket(Some(10)))];
    let world = World::new(limiters, vec![tiered(&["account"])]);
    assert_eq!(world.admits(11, &of_tier("free", "a")), 10);
    world.wait(secs(5));
    assert_eq!(world.left(&of_tier("pro", "a")), 5);
    assert!(!world.passes(&of_tier("free", "a")));
}

#[test]
fn semantics_21_an_exact_window_never_forgets_what_counts_even_under_a_smaller_limit() {
    let limiters = vec![quota("api_free", 2, secs(60), LOG), quota("api_pro", 6, secs(60), LOG)];
    let always = Apply { charge: Charge::Always, ..apply("api_{tier}", &["account"]) };
    let world = World::new(limiters, vec![applies("tiers", [always])]);
    assert_eq!(world.admits(4, &of_tier("pro", "a")), 4);
    assert_eq!(world.admits(3, &of_tier("free", "a")), 0);
    assert_eq!(world.left(&of_tier("pro", "a")), 2);
}

#[test]
fn semantics_21_an_exact_window_forgets_each_grant_at_its_own_time() {
    let world = one(quota("limiter", 3, secs(10), LOG));
    for _ in 0..3 {
        world.admits(1, A);
        world.wait(secs(2));
    }
    world.wait(secs(4) - MICRO);
    assert_eq!(world.left(A), 0);
    world.wait(MICRO);
    assert_eq!(world.left(A), 1);
    world.wait(secs(2));
    assert_eq!(world.left(A), 2);
}

#[test]
fn semantics_22_the_formula_of_the_sliding_counter() {
    let world = one(quota("limiter", 10, secs(10), PAIR));
    world.wait(secs(9));
    assert_eq!(world.admits(11, A), 10);
    world.wait(secs(1));
    let refused = world.ask(A);
    // W = 10^7, s = ceil(W / 2^20) = 10, K = 10^6; ceil(10 k / K) + 1 <= 10 holds from k = 9 x 10^5, elapsed 1 s.
    assert_eq!(retry_after(&refused), Some(secs(1)));
    world.wait(secs(1) - MICRO);
    assert!(!world.passes(A));
    world.wait(MICRO);
    assert_eq!(world.admits(2, A), 1);
    world.wait(secs(4));
    assert_eq!(world.left(A), 10 - 5 - 1);
}

#[test]
fn semantics_22_at_most_the_limit_in_an_aligned_window_and_nearly_twice_in_any() {
    let world = one(quota("limiter", 10, secs(10), PAIR));
    world.wait(secs(10) - MICRO);
    assert_eq!(world.admits(20, A), 10);
    world.wait(MICRO);
    let any: usize = (0..9_999)
        .map(|_| {
            world.wait(Duration::from_millis(1));
            world.admits(1, A)
        })
        .sum();
    assert!(any < 10, "{any} in the window after a full one: 19 within one window's length");
}

#[test]
fn semantics_23_a_fixed_window_is_aligned_to_the_epoch_or_to_its_first_hit() {
    for (algorithm, waits) in [(EPOCH, 4), (FIRST_HIT, 10)] {
        let world = one(quota("limiter", 1, secs(10), algorithm));
        world.wait(secs(6));
        world.admits(1, A);
        assert_eq!(retry_after(&world.ask(A)), Some(secs(waits)));
    }
}

fn calendar(unit: CalendarUnit, zone: &str) -> World {
    let zone = jiff::tz::TimeZone::get(zone).expect("the zone is bundled");
    let schedule = Schedule::Calendar(Calendar::of(unit, &zone));
    one(quota("limiter", 1, unit.nominal_length(), Algorithm::FixedWindow(schedule)))
}

fn at(civil: &str) -> Timestamp {
    let moment: jiff::Zoned = civil.parse().expect("a time with its zone");
    Timestamp::from_micros(u64::try_from(moment.timestamp().as_microsecond()).expect("after 1970"))
}

#[test]
fn semantics_23_calendar_windows_follow_their_zone() {
    use CalendarUnit::{Day, Hour, Month, Week, Year};
    let cases = [
        (Hour, "2026-03-29T01:59:59.999999+01:00[Europe/Berlin]", "2026-03-29T03:00:00+02:00[Europe/Berlin]"),
        // A day of 23 hours, and one of 25.
        (Day, "2026-03-29T00:00:00+01:00[Europe/Berlin]", "2026-03-30T00:00:00+02:00[Europe/Berlin]"),
        (Day, "2026-10-25T00:00:00+02:00[Europe/Berlin]", "2026-10-26T00:00:00+01:00[Europe/Berlin]"),
        // A Wednesday, and the Monday after it.
        (Week, "2026-11-18T12:00:00+05:45[Asia/Kathmandu]", "2026-11-23T00:00:00+05:45[Asia/Kathmandu]"),
        (Week, "2026-11-23T00:00:00+05:45[Asia/Kathmandu]", "2026-11-30T00:00:00+05:45[Asia/Kathmandu]"),
        (Month, "2028-02-29T23:59:59-05:00[America/New_York]", "2028-03-01T00:00:00-05:00[America/New_York]"),
        (Year, "2026-12-31T23:00:00+00:00[UTC]", "2027-01-01T00:00:00+00:00[UTC]"),
    ];
    for (unit, now, boundary) in cases {
        let zone = now.split(['[', ']']).nth(1).expect("the zone is in brackets");
        let world = calendar(unit, zone);
        world.clock.set(at(now));
        assert_eq!(world.admits(2, A), 1, "{unit:?} at {now}");
        let wait = Duration::from_micros(at(boundary) - at(now));
        assert_eq!(retry_after(&world.ask(A)), Some(wait), "{unit:?} at {now}");
        world.wait(wait - MICRO);
        assert!(!world.passes(A), "{unit:?} at {now}");
        world.wait(MICRO);
        assert!(world.passes(A), "{unit:?} at {now}");
    }
    assert_eq!(
        (Month.nominal_length(), Year.nominal_length()),
        (secs(30 * 86_400), secs(365 * 86_400)),
        "as Envoy's units"
    );
}

fn lease(decision: &Decision) -> String {
    decision.lease().expect("a slot was taken").to_owned()
}

fn status(world: &World, lease: &str) -> Option<LeaseStatus> {
    world.engine.release(lease).now_or_never().expect("the memory store never waits")
}

#[test]
fn semantics_24_one_slot_whatever_the_hits() {
    let world = one(slots("slots", 3, secs(60)));
    assert!(world.decide([hits(Hits::Charge(50), A)]).allowed());
    assert_eq!(world.admits(5, A), 2);
}

#[test]
fn semantics_24_retry_after_is_the_expiry_that_frees_a_slot() {
    let limiters = vec![slots("api_free", 1, secs(60)), slots("api_pro", 3, secs(60))];
    let world = World::new(limiters, vec![tiered(&["account"])]);
    for _ in 0..3 {
        assert!(world.passes(&of_tier("pro", "a")));
        world.wait(secs(10));
    }
    assert_eq!(retry_after(&world.ask(&of_tier("pro", "a"))), Some(secs(30)), "the first expiry of three");
    assert_eq!(retry_after(&world.ask(&of_tier("free", "a"))), Some(secs(50)), "held - max + 1 = 3: the third");
}

/// Weakness R10: slots that were taken together are never released.
#[test]
fn semantics_24_one_lease_holds_all_slots_of_a_request() {
    let limiters = vec![slots("per_account", 1, secs(60)), slots("all", 1, secs(60))];
    let both = applies("both", [apply("per_account", &["account"]), apply("all", &[])]);
    let world = World::new(limiters, vec![both]);
    let held = lease(&world.ask(A));
    assert!(!world.passes(B));
    assert_eq!(status(&world, &held), Some(LeaseStatus::Done));
    assert!(world.passes(B));
}

#[test]
fn semantics_24_at_most_eight_slots() {
    let names: Vec<String> = (0..9).map(|number| format!("slots_{number}")).collect();
    let world_of = |count: usize| {
        let limiters = names.iter().map(|name| slots(name, 1, secs(60))).collect();
        let all: Vec<Apply> = names[..count].iter().map(|name| apply(name, &["account"])).collect();
        World::new(limiters, vec![applies("all", all)])
    };
    assert!(world_of(8).passes(A));
    let too_many = |refused: &Decision| {
        assert_eq!(refused.refusal().map(|refusal| refusal.reason), Some(Reason::TooLarge));
    };
    too_many(&world_of(9).ask(A));
    // A peek in the same request takes no slots away from the count, and a second charge of the same eight adds none.
    let twice = |count, first| world_of(count).decide([hits(first, A), hits(Hits::Charge(1), A)]);
    too_many(&twice(9, Hits::Peek));
    assert!(twice(8, Hits::Peek).allowed());
    assert!(twice(8, Hits::Charge(1)).allowed());
    // A limiter first applied in shadow mode is enforced by the rule after it.
    let limiters = names.iter().map(|name| slots(name, 1, secs(60))).collect();
    let all = |rule| applies(rule, names.iter().map(|name| apply(name, &["account"])).collect::<Vec<_>>());
    too_many(&with_shadow(all("trial"), vec![all("all")], limiters).ask(A));
}

#[test]
fn semantics_24_a_descriptor_with_only_a_genuine_lease_gives_it_back_whatever_its_hits_or_domain() {
    for operation in [Hits::Charge(7), Hits::Peek, Hits::Refund(1)] {
        for domain in [DOMAIN, "elsewhere"] {
            let world = one(slots("slots", 1, secs(60)));
            let held = lease(&world.ask(A));
            let descriptor = hits(operation, &[("release", &held)]);
            let request = Request { domain, descriptors: [descriptor].into_iter().collect() };
            let decision = world.engine.decide(&request).now_or_never().expect("the memory store never waits");
            assert!(decision.allowed());
            assert_eq!(decision.applied().statuses.as_slice(), [LeaseStatus::Done]);
            assert!(world.passes(A), "{operation:?} in {domain}");
        }
    }
}

#[test]
fn semantics_24_twice_is_once_and_expired_or_unknown_is_ok() {
    let world = one(slots("slots", 1, secs(60)));
    let first = lease(&world.ask(A));
    assert_eq!(status(&world, &first), Some(LeaseStatus::Done));
    let second = lease(&world.ask(A));
    assert_eq!(status(&world, &first), Some(LeaseStatus::Unknown), "and the second holder keeps its slot");
    assert!(!world.passes(A));
    world.wait(secs(60));
    assert_eq!(status(&world, &second), Some(LeaseStatus::Expired), "what came too late can be counted");
}

#[test]
fn semantics_24_what_is_no_genuine_lease_is_an_ordinary_value() {
    let limiters = vec![quota("limiter", 1, secs(60), LOG), slots("slots", 1, secs(60))];
    let rules = vec![
        rule("releases", &[("release", "*")], Action::Apply(vec![apply("limiter", &["release"])])),
        rule("slots", &[("account", "*")], Action::Apply(vec![apply("slots", &["account"])])),
    ];
    let world = World::new(limiters, rules);
    assert_eq!(world.admits(2, &[("release", "junk")]), 1);
    let held = lease(&world.ask(A));
    let mut forged = held.clone();
    forged.replace_range(30..31, if &held[30..31] == "A" { "B" } else { "A" });
    assert_eq!(world.admits(2, &[("release", &forged)]), 1);
    assert!(!world.passes(A), "nothing was given back");
    assert!(world.passes(&[("release", &held), ("more", "entries")]), "what else the descriptor has is ignored");
    assert!(world.passes(A));
}

#[test]
fn semantics_24_a_release_takes_effect_inside_a_refused_request() {
    let rules = vec![
        rule("slots", &[("account", "*")], Action::Apply(vec![apply("slots", &["account"])])),
        rule("ban", &[("banned", "*")], Action::Deny),
    ];
    let world = World::new(vec![slots("slots", 1, secs(60))], rules);
    let held = lease(&world.ask(A));
    let denied = world.decide([Descriptor::of([("release", held.as_str())]), Descriptor::of([("banned", "yes")])]);
    assert!(!denied.allowed());
    assert!(world.passes(A));
}

#[test]
fn semantics_24_the_entry_that_releases_has_a_name_of_ones_own() {
    let world = World::of(RuleBook {
        limiters: vec![slots("slots", 1, secs(60))],
        rules: vec![rule("slots", &[("account", "*")], Action::Apply(vec![apply("slots", &["account"])]))],
        release_entry: "give_back".to_owned(),
        ..RuleBook::default()
    });
    let held = lease(&world.ask(A));
    world.ask(&[("release", &held)]);
    assert!(!world.passes(A));
    world.ask(&[("give_back", &held)]);
    assert!(world.passes(A));
}

#[test]
fn semantics_24_a_renewed_lease_lives_on() {
    let world = one(slots("slots", 1, secs(60)));
    let held = lease(&world.ask(A));
    world.wait(secs(50));
    let renewed = world.engine.renew(&held, 60_000_000).now_or_never().expect("the memory store never waits");
    assert_eq!(renewed, Some(LeaseStatus::Held(60_000_000)));
    assert_eq!(retry_after(&world.ask(A)), Some(secs(60)));
}

// Rules

#[test]
fn semantics_25_allow_and_final_end_the_walk_and_keep_what_was_found_before() {
    let limiters = vec![quota("before", 1, secs(60), LOG), quota("after", 5, secs(60), LOG)];
    let last = |ends: Rule| {
        let rules = vec![
            applies("before", [apply("before", &["account"])]),
            ends,
            applies("after", [apply("after", &["account"])]),
        ];
        World::new(limiters.clone(), rules)
    };
    let allow = last(rule("friends", &[("account", "a")], Action::Allow));
    let end = last(Rule { last: true, ..rule("end", &[("account", "a")], Action::Apply(vec![])) });
    for world in [allow, end] {
        let decision = world.ask(A);
        let limiters: Vec<&str> = decision.checks().map(|counted| counted.limiter).collect();
        assert_eq!(limiters, ["before"]);
        assert_eq!(refusing(&world.ask(A)), Some("before"));
        let decision = world.ask(B);
        assert_eq!(decision.checks().count(), 2);
    }
}

#[test]
fn semantics_25_deny_refuses_and_charges_nothing() {
    let own = Apply { charge: Charge::Always, ..apply("limiter", &["account"]) };
    let rules = vec![
        applies("all", [own]),
        Rule {
            refusal: RefusalText { status: Some(451), body: Some("no".to_owned()), content_type: None },
            ..rule("ban", &[("country", "xx")], Action::Deny)
        },
    ];
    let world = World::new(vec![quota("limiter", 2, secs(60), EPOCH)], rules);
    let denied = world.ask(&[("account", "a"), ("country", "xx")]);
    let refusal = denied.refusal().expect("it is denied");
    assert_eq!((refusal.reason, refusal.rule, refusal.retry_after), (Reason::Denied, Some("ban"), None));
    assert_eq!(refusal.text.and_then(|text| text.status), Some(451));
    assert_eq!(world.left(A), 2);
}

#[test]
fn semantics_25_a_rule_chooses_the_text_of_its_refusal() {
    let text = RefusalText { status: Some(503), body: Some("later".to_owned()), content_type: None };
    let limited = Rule { refusal: text.clone(), ..applies("all", [apply("limiter", &["account"])]) };
    let world = World::new(vec![quota("limiter", 1, secs(60), LOG)], vec![limited]);
    world.ask(A);
    assert_eq!(world.ask(A).refusal().and_then(|refusal| refusal.text).cloned(), Some(text));
}

#[test]
fn semantics_25_rules_apply_in_the_order_they_are_written() {
    let rules =
        vec![rule("first", &[("account", "*")], Action::Allow), rule("second", &[("account", "a")], Action::Deny)];
    assert!(World::new(vec![], rules.clone()).passes(A));
    assert!(!World::new(vec![], rules.into_iter().rev().collect()).passes(A));
}

/// Weakness R28: a missing limiter does not limit.
#[test]
fn semantics_26_a_template_that_finds_no_limiter_takes_its_otherwise_or_refuses() {
    let limiters = vec![quota("api_free", 1, secs(60), LOG), quota("api_pro", 5, secs(60), LOG)];
    let world = World::new(limiters.clone(), vec![tiered(&["account"])]);
    let unknown = world.ask(&of_tier("platinum", "a"));
    assert_eq!(unknown.tightest().expect("it applies").limiter, "api_free");
    assert_eq!(world.ask(&of_tier("pro", "b")).tier(), Some("pro"));

    let strict = World::new(limiters, vec![applies("tiers", [apply("api_{tier}", &["account"])])]);
    let refused = strict.ask(&of_tier("platinum", "a"));
    assert_eq!(refused.refusal().map(|refusal| refusal.reason), Some(Reason::NoLimiter));
}

#[test]
fn semantics_26_descriptors_that_no_rule_matches_have_a_default_of_their_own() {
    let world = World::new(vec![], vec![]);
    assert!(world.passes(A), "allow, where nothing is said");
    let strict = World::of(RuleBook {
        domains: vec![Domain { name: DOMAIN.to_owned(), unmatched: Unmatched::Deny, ..Domain::default() }],
        ..RuleBook::default()
    });
    assert_eq!(strict.ask(A).refusal().map(|refusal| refusal.reason), Some(Reason::Unmatched));
}

#[test]
fn semantics_26_an_unmatched_descriptor_that_is_denied_charges_nothing_wherever_it_stands() {
    let always = Apply { charge: Charge::Always, missing: Missing::Deny, ..apply("limiter", &["account"]) };
    let by_device = Apply { missing: Missing::Deny, ..apply("limiter", &["device"]) };
    let world = World::of(RuleBook {
        limiters: vec![quota("limiter", 3, secs(60), EPOCH)],
        domains: vec![Domain { name: DOMAIN.to_owned(), unmatched: Unmatched::Deny, ..Domain::default() }],
        rules: vec![
            rule("all", &[("account", "*")], Action::Apply(vec![always])),
            rule("strict", &[("strict", "*")], Action::Apply(vec![by_device])),
        ],
        ..RuleBook::default()
    });
    let known = || Descriptor::of(A.iter().copied());
    let without_key = || Descriptor::of([("account", "a"), ("strict", "yes")]);
    let unknown = || Descriptor::of([("what", "is this")]);
    for descriptors in [[known(), without_key(), unknown()], [unknown(), without_key(), known()]] {
        assert!(!world.decide(descriptors).allowed());
        assert_eq!(world.left(A), 3);
    }
}

#[test]
fn semantics_27_one_client_has_one_address() {
    let world = World::new(
        vec![quota("limiter", 1, secs(60), LOG)],
        vec![applies("all", [apply("limiter", &["remote_address"])])],
    );
    let passes = |address: &str| world.passes(&[("remote_address", address)]);
    assert!(passes("1.2.3.4"));
    assert!(!passes("::ffff:1.2.3.4"), "IPv4 mapped into IPv6 is IPv4");
    assert!(passes("2001:db8:1:2:3::4"));
    assert!(!passes("2001:DB8:1:2::9"), "the same /64, in another spelling");
    assert!(passes("2001:db8:1:3::4"), "the next /64");
    assert!(passes("1.2.3.4:80"), "what cannot be parsed stays text");
}

#[test]
fn semantics_27_other_entries_are_addresses_where_they_are_listed_and_match_as_addresses() {
    let world = World::of(RuleBook {
        domains: vec![Domain { name: DOMAIN.to_owned(), addresses: vec!["peer".to_owned()], ..Domain::default() }],
        limiters: vec![quota("limiter", 1, secs(60), LOG)],
        rules: vec![
            rule("inside", &[("peer", "10.0.0.0/8")], Action::Allow),
            applies("all", [apply("limiter", &["peer"]), apply("limiter", &["other"])]),
        ],
        ..RuleBook::default()
    });
    assert_eq!(world.admits(3, &[("peer", "::ffff:10.1.2.3")]), 3);
    assert_eq!(world.admits(1, &[("peer", "2001:db8::1")]), 1);
    assert_eq!(world.admits(1, &[("peer", "2001:db8::2")]), 0);
    assert_eq!(world.admits(1, &[("other", "2001:db8::1")]), 1);
    assert_eq!(world.admits(1, &[("other", "2001:db8::2")]), 1, "an entry that is not listed is text");
}

#[test]
fn semantics_28_past_a_bound_the_answer_is_a_refusal_that_charges_nothing() {
    let bounds = RequestBounds { descriptors: 3, entries: 2, checks: 4 };
    let twice = [apply("limiter", &["account"]), apply("limiter", &["account", "x"]), apply("other", &["account"])];
    let world = World::of(RuleBook {
        limiters: vec![quota("limiter", 9, secs(60), LOG), quota("other", 9, secs(60), LOG)],
        rules: vec![applies("all", twice.map(|check| Apply { charge: Charge::Always, ..check }))],
        bounds,
        ..RuleBook::default()
    });
    let entries = ["a", "b", "c", "d"].map(|account| Descriptor::of([("account", account)]));
    let reason = |descriptors: &[Descriptor<'static>]| {
        let decision = world.decide(descriptors.iter().cloned());
        assert_eq!(decision.statuses().count(), descriptors.len(), "one status for each descriptor");
        decision.refusal().map(|refusal| refusal.reason)
    };
    assert_eq!(reason(&entries[..2]), None);
    assert_eq!(reason(&entries), Some(Reason::TooLarge), "descriptors");
    assert_eq!(reason(&entries[..3]), Some(Reason::TooLarge), "checks");
    let long = [Descriptor::of([("account", "a"), ("b", "b"), ("c", "c")])];
    assert_eq!(reason(&long), Some(Reason::TooLarge), "entries");
    assert_eq!(world.left(A), 8, "only the one request that fitted was charged");
}

#[test]
fn semantics_28_long_values_are_hashed_and_not_refused() {
    let world = one(quota("limiter", 1, secs(60), LOG));
    let long = "a".repeat(1 << 20);
    assert_eq!(world.admits(2, &[("account", &long)]), 1);
    assert_eq!(world.admits(2, &[("account", &long[1..])]), 1);
}

#[test]
fn semantics_29_counts_carry_over_when_the_numbers_change() {
    let cases = [
        (quota("limiter", 5, secs(60), LOG), quota("limiter", 8, secs(60), LOG), 3),
        (quota("limiter", 5, secs(60), PAIR), quota("limiter", 8, secs(60), PAIR), 3),
        (quota("limiter", 5, secs(60), EPOCH), quota("limiter", 8, secs(60), EPOCH), 3),
        (quota("limiter", 5, secs(60), FIRST_HIT), quota("limiter", 8, secs(60), FIRST_HIT), 3),
        (quota("limiter", 5, secs(60), bucket(None)), quota("limiter", 8, secs(60), bucket(None)), 3),
        (quota("limiter", 5, secs(60), bucket(None)), quota("limiter", 9, secs(30), bucket(Some(6))), 1),
        (slots("limiter", 5, secs(60)), slots("limiter", 8, secs(90)), 3),
        (slots("limiter", 5, secs(60)), slots("limiter", 2, secs(60)), 0),
    ];
    for (before, after, left) in cases {
        let world = one(before);
        assert_eq!(world.admits(6, A), 5);
        let rules = vec![applies("all", [apply("limiter", &["account"])])];
        let world = reloaded(world, RuleBook { limiters: vec![after], rules, ..RuleBook::default() });
        assert_eq!(world.admits(9, A), left);
    }
}

#[test]
fn semantics_30_and_31_when_memory_is_full_the_limiters_policy_answers() {
    for (policy, passes) in [(OnStoreError::Allow, true), (OnStoreError::Deny, false), (OnStoreError::Local, false)] {
        let world = with_a_full_store(policy, vec![apply("nowhere", &["account"])]);
        let decision = world.ask(A);
        assert_eq!(decision.allowed(), passes, "{policy:?}");
        if !passes {
            let refusal = decision.refusal().expect("it is refused");
            assert_eq!((refusal.reason, refusal.limiter), (Reason::StoreError, Some("nowhere")), "{policy:?}");
        }
    }
}

#[test]
fn semantics_31_a_shadow_check_that_fails_refuses_nobody() {
    let world = with_a_full_store(OnStoreError::Deny, vec![]);
    let nowhere = Limiter { store: 1, on_store_error: OnStoreError::Deny, ..quota("nowhere", 5, secs(60), LOG) };
    let trial = Rule { shadow: true, ..applies("trial", [apply("nowhere", &["account"])]) };
    let world = reloaded(
        world,
        RuleBook {
            stores: vec!["main".to_owned(), "full".to_owned()],
            limiters: vec![nowhere],
            rules: vec![trial],
            ..RuleBook::default()
        },
    );
    assert!(world.passes(A));
}

#[test]
fn matchers_of_every_kind_choose_rules() {
    let cases = [
        ("exact", Matcher::parse("/a")),
        ("pattern", Matcher::parse("/b*")),
        ("any", Matcher::AnyOf(vec![Matcher::parse("/c"), Matcher::parse("*d")])),
    ];
    let rules = cases
        .map(|(name, matcher)| Rule { matches: vec![("path".to_owned(), matcher)], ..rule(name, &[], Action::Deny) });
    let world = World::new(vec![], rules.to_vec());
    for (path, by) in
        [("/a", Some("exact")), ("/bc", Some("pattern")), ("/c", Some("any")), ("/xd", Some("any")), ("/x", None)]
    {
        let decision = world.ask(&[("path", path)]);
        assert_eq!(decision.rule(), by, "{path}");
    }
}

// The page

/// The numbers of `docs/semantics.md`, in its order.
fn page() -> Vec<usize> {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/semantics.md")).expect("the page");
    let number = |heading: &str| {
        let number = heading.split_once(". ").and_then(|(number, _)| number.parse::<usize>().ok());
        number.unwrap_or_else(|| panic!("docs/semantics.md: the heading {heading:?} has no number"))
    };
    // A part of another section, such as 50a.
    let is_part = |heading: &str| heading[digits(heading).len()..].starts_with(|rest: char| rest.is_ascii_lowercase());
    page.lines().filter_map(|line| line.strip_prefix("### ")).filter(|heading| !is_part(heading)).map(number).collect()
}

/// The files below a folder of the project: the path and the text of each.
fn texts(folder: &str) -> Vec<(String, String)> {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders = vec![project.join(folder)];
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("something in it").path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let name = path.strip_prefix(project).expect("it is in the project").display().to_string();
            let bytes = fs::read(&path).expect("a file of the project");
            texts.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
    texts
}

/// The digits at the start of a text.
fn digits(text: &str) -> &str {
    let end = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    &text[..end]
}

/// The numbers that a text cites, a range by its two ends: 5, 9 and 12 of "semantics 5 and 9 to 12".
fn cited(text: &str) -> BTreeSet<usize> {
    let mut cited = BTreeSet::new();
    for citation in text.split("semantics ").skip(1) {
        for word in citation.split_whitespace() {
            let number = digits(word);
            cited.extend(number.parse::<usize>());
            let goes_on = match number {
                "" => matches!(word, "and" | "to"),
                number => matches!(&word[number.len()..], "" | ","),
            };
            if !goes_on {
                break;
            }
        }
    }
    cited
}

/// The numbers that the page keeps for what comes next.
const KEPT: [RangeInclusive<usize>; 2] = [54..=56, 60..=61];

fn is_kept(number: usize) -> bool {
    KEPT.iter().any(|kept| kept.contains(&number))
}

#[test]
fn every_number_of_the_page_has_a_test_and_no_test_has_another() {
    let page = page();
    let expected = (1..).filter(|number| !is_kept(*number));
    for (number, expected) in page.iter().zip(expected) {
        assert_eq!(*number, expected, "docs/semantics.md: numbers follow one another and never change");
    }
    let mut tested = BTreeSet::new();
    for (file, text) in ["src", "tests"].into_iter().flat_map(texts) {
        for line in text.lines() {
            let Some(name) = line.trim_start().trim_start_matches("async ").strip_prefix("fn semantics_") else {
                continue;
            };
            let number = digits(name);
            assert_eq!(number.len(), 2, "{file}: a number has two digits: {line}");
            let number: usize = number.parse().expect("two digits");
            assert!(page.contains(&number), "{file}: docs/semantics.md has no number {number}: {line}");
            tested.insert(number);
        }
    }
    for number in page {
        assert!(tested.contains(&number), "docs/semantics.md: {number} has no test, semantics_{number:02}_...");
    }
}

#[test]
fn every_number_that_is_cited_is_one_of_the_page() {
    assert_eq!(
        cited("(semantics 5 and 9 to 12). A 7, semantics 1, 36 and 3 more"),
        BTreeSet::from([1, 3, 5, 9, 12, 36])
    );
    let page = page();
    for (file, text) in ["src", "tests", "docs"].into_iter().flat_map(texts) {
        for number in cited(&text) {
            assert!(
                page.contains(&number) || is_kept(number),
                "{file} cites {number}, which docs/semantics.md does not have"
            );
        }
    }
}
