//! Holds: charges that a lease corrects (semantics 37 to 43), through the whole engine with a memory store.

use std::time::Duration;

use futures_util::FutureExt;
use tollgate::decision::{Decision, Reason};
use tollgate::descriptor::{Descriptor, Hits};
use tollgate::lease::{LeaseCommand, Units, UnknownLimiter};
use tollgate::limiter::{Algorithm, LeaseStatus, Limiter, Lost, Schedule};
use tollgate::rules::{Action, Apply, Charge, CompileError, HoldFor, Rule, RuleBook, Rules};

use super::world::{World, hits};
use crate::support::fixtures::{applies, apply, bucket, quota, rule, secs, slots};

const LOG: Algorithm = Algorithm::SlidingWindow;
const PAIR: Algorithm = Algorithm::SlidingCounter;
const EPOCH: Algorithm = Algorithm::FixedWindow(Schedule::Epoch);
const FIRST_HIT: Algorithm = Algorithm::FixedWindow(Schedule::FirstHit);

const A: &[(&str, &str)] = &[("account", "a")];
const B: &[(&str, &str)] = &[("account", "b")];

fn algorithms() -> [Algorithm; 5] {
    [bucket(None), LOG, PAIR, EPOCH, FIRST_HIT]
}

/// A limiter that is applied to each account, whose charges are held.
fn held(limiter: &str, length: Duration, lost: Lost) -> Apply {
    Apply { hold: Some(HoldFor { length, lost }), ..apply(limiter, &["account"]) }
}

/// One limiter, whose charges are held for a minute.
fn holding(limiter: Limiter, lost: Lost) -> World {
    let name = limiter.name.clone();
    World::new(vec![limiter], vec![applies("all", [held(&name, secs(60), lost)])])
}

fn tokens(lost: Lost) -> World {
    holding(quota("tokens", 1000, secs(3600), EPOCH), lost)
}

fn charge(world: &World, units: u32) -> Decision {
    world.decide([hits(Hits::Charge(units), A)])
}

fn lease(decision: &Decision) -> String {
    decision.lease().expect("it holds something").to_owned()
}

fn change(world: &World, lease: &str, command: &LeaseCommand) -> Option<LeaseStatus> {
    let changed = world.engine.change_lease(lease, command).now_or_never().expect("the memory store never waits");
    changed.expect("no limiter is named")
}

fn settle(world: &World, lease: &str, units: u32) -> Option<LeaseStatus> {
    change(world, lease, &LeaseCommand::Settle(Units::Each(units)))
}

#[test]
fn semantics_37_a_hold_is_charged_at_once_and_reported_as_any_charge() {
    for algorithm in algorithms() {
        let plain = World::new(
            vec![quota("limiter", 10, secs(100), algorithm.clone())],
            vec![applies("all", [apply("limiter", &["account"])])],
        );
        let world = holding(quota("limiter", 10, secs(100), algorithm.clone()), Lost::Charge);
        for _ in 0..12 {
            let (held, counted) = (charge(&world, 1), charge(&plain, 1));
            assert_eq!(held.allowed(), counted.allowed(), "{algorithm:?}");
            assert_eq!(held.tightest().map(|tightest| tightest.remaining), counted.tightest().map(|t| t.remaining));
            assert_eq!(held.lease().is_some(), held.allowed(), "{algorithm:?}");
            assert_eq!(counted.lease(), None);
            [&world, &plain].iter().for_each(|world| world.wait(secs(3)));
        }
    }
}

#[test]
fn semantics_37_a_peek_a_refund_and_a_charge_on_a_refusal_hold_nothing() {
    let own = Apply { charge: Charge::Own, ..held("own", secs(60), Lost::Charge) };
    let limiters = vec![quota("own", 10, secs(100), LOG), quota("other", 1, secs(100), LOG)];
    let world = World::new(limiters, vec![applies("all", [own, apply("other", &["account"])])]);
    assert_eq!(world.decide([hits(Hits::Peek, A)]).lease(), None);
    assert_eq!(world.decide([hits(Hits::Refund(1), A)]).lease(), None);
    let admitted = lease(&charge(&world, 1));
    assert_eq!(charge(&world, 1).lease(), None, "own is charged although it is refused");
    assert_eq!(settle(&world, &admitted, 0), Some(LeaseStatus::Done));
    assert!(!charge(&world, 9).allowed());
    assert!(!world.passes(A));
}

#[test]
fn semantics_37_of_applies_that_meet_the_longest_hold_counts_and_charge_before_release() {
    let rules = vec![
        applies("one", [held("limiter", secs(10), Lost::Charge)]),
        applies("two", [held("limiter", secs(60), Lost::Release)]),
    ];
    let world = World::new(vec![quota("limiter", 5, secs(3600), LOG)], rules);
    let first = lease(&charge(&world, 5));
    world.wait(secs(59));
    assert_eq!(settle(&world, &first, 5), Some(LeaseStatus::Done), "the longest");
    world.wait(secs(3600));
    charge(&world, 5);
    world.wait(secs(61));
    assert!(!world.passes(A), "it stays charged");
}

#[test]
fn semantics_38_a_request_that_needs_more_than_eight_slots_and_holds_is_refused() {
    let names: Vec<String> = (0..9).map(|number| format!("limiter_{number}")).collect();
    let world_of = |holds: usize, with_slots: bool| {
        let mut limiters: Vec<Limiter> = names.iter().map(|name| quota(name, 5, secs(60), LOG)).collect();
        limiters.push(slots("slots", 5, secs(60)));
        let mut all: Vec<Apply> = names[..holds].iter().map(|name| held(name, secs(60), Lost::Charge)).collect();
        if with_slots {
            all.push(apply("slots", &["account"]));
        }
        World::new(limiters, vec![applies("all", all)])
    };
    assert!(world_of(8, false).passes(A));
    assert!(world_of(7, true).passes(A));
    for world in [world_of(9, false), world_of(8, true)] {
        assert_eq!(world.ask(A).refusal().map(|refusal| refusal.reason), Some(Reason::TooLarge));
    }
}

#[test]
fn semantics_38_a_counter_remembers_ten_thousand_holds() {
    let world = holding(quota("limiter", 20_000, secs(3600), EPOCH), Lost::Charge);
    let first = lease(&charge(&world, 1));
    for _ in 1..10_000 {
        assert!(charge(&world, 1).lease().is_some());
    }
    let beyond = charge(&world, 1);
    assert!(beyond.allowed() && beyond.lease().is_none(), "it is charged and cannot be corrected");
    assert_eq!(world.left(A), 9_999);
    assert_eq!(settle(&world, &first, 0), Some(LeaseStatus::Done));
    assert!(charge(&world, 1).lease().is_some());
    // Lost holds go before new ones are refused.
    world.wait(secs(60));
    assert!(charge(&world, 1).lease().is_some());
}

#[test]
fn semantics_39_fewer_units_give_the_rest_back_and_more_are_charged_whatever_is_left() {
    for algorithm in algorithms() {
        for (used, left) in [(0, 10), (1, 9), (4, 6), (9, 1), (25, 0)] {
            let world = holding(quota("limiter", 10, secs(1000), algorithm.clone()), Lost::Charge);
            let lease = lease(&charge(&world, 4));
            assert_eq!(world.left(A), 6);
            assert_eq!(settle(&world, &lease, used), Some(LeaseStatus::Done));
            assert_eq!(world.left(A), left, "{used} of {algorithm:?}");
        }
    }
}

#[test]
fn semantics_39_what_has_drained_or_whose_window_has_ended_comes_back_to_nobody() {
    let world = holding(quota("limiter", 10, secs(100), bucket(None)), Lost::Charge);
    let first = lease(&charge(&world, 6));
    world.wait(secs(40));
    assert_eq!(world.left(A), 8, "four of six have drained");
    assert!(charge(&world, 8).allowed());
    assert_eq!(settle(&world, &first, 0), Some(LeaseStatus::Done));
    assert_eq!(world.left(A), 2);
    for algorithm in [LOG, EPOCH, FIRST_HIT] {
        let world = holding(quota("limiter", 10, secs(30), algorithm.clone()), Lost::Charge);
        let first = lease(&charge(&world, 10));
        world.wait(secs(30));
        assert!(charge(&world, 10).allowed());
        assert_eq!(settle(&world, &first, 0), Some(LeaseStatus::Done));
        assert_eq!(world.left(A), 0, "{algorithm:?}: units of others");
    }
}

#[test]
fn semantics_39_a_bucket_that_is_held_owes_as_much_as_can_be_counted_unless_max_debt_says_less() {
    let owed = |max_debt| {
        let algorithm = Algorithm::TokenBucket { burst: None, max_debt };
        let world = holding(quota("limiter", 10, secs(100), algorithm), Lost::Charge);
        let lease = lease(&charge(&world, 10));
        settle(&world, &lease, 110);
        world.ask(A).refusal().and_then(|refusal| refusal.retry_after)
    };
    assert_eq!(owed(None), Some(secs(1010)));
    assert_eq!(owed(Some(5)), Some(secs(60)));
}

#[test]
fn semantics_39_no_units_keep_what_was_charged_and_free_the_slots() {
    let limiters = vec![quota("limiter", 10, secs(1000), LOG), slots("slots", 1, secs(60))];
    let both = applies("all", [held("limiter", secs(60), Lost::Release), apply("slots", &["account"])]);
    let world = World::new(limiters, vec![both]);
    let first = lease(&charge(&world, 4));
    assert!(!charge(&world, 1).allowed(), "the slot is taken");
    assert_eq!(change(&world, &first, &LeaseCommand::Settle(Units::Charged)), Some(LeaseStatus::Done));
    world.wait(secs(120));
    assert!(charge(&world, 6).allowed());
    assert!(!charge(&world, 1).allowed());
}

#[test]
fn semantics_39_units_by_limiter() {
    let limiters = vec![quota("tokens", 1000, secs(1000), LOG), quota("requests", 10, secs(1000), LOG)];
    let all = ["tokens", "requests"].map(|name| held(name, secs(60), Lost::Charge));
    let world = World::new(limiters, vec![applies("all", all)]);
    let first = lease(&charge(&world, 4));
    let settle = |units: &[(&str, u32)]| {
        let units = units.iter().map(|(name, units)| ((*name).to_owned(), *units)).collect();
        let command = LeaseCommand::Settle(Units::ByLimiter(units));
        world.engine.change_lease(&first, &command).now_or_never().expect("the memory store never waits")
    };
    assert_eq!(settle(&[("token", 1)]), Err(UnknownLimiter("token".to_owned())));
    assert_eq!(settle(&[("requests", 1)]), Ok(Some(LeaseStatus::Done)));
    assert!(charge(&world, 9).allowed(), "nine requests are left");
    assert!(!charge(&world, 1).allowed());
}

/// A descriptor that settles or releases.
fn ends<'a>(entry: &'a str, lease: &'a str, hits: Hits, own_hits: bool) -> Descriptor<'a> {
    Descriptor { hits, own_hits, ..Descriptor::of([("path", "/x"), (entry, lease), ("account", "a")]) }
}

#[test]
fn semantics_39_a_descriptor_settles_by_its_own_hits_and_its_other_entries_are_ignored() {
    let cases = [
        ("settle", Hits::Charge(1), true, 9),
        ("settle", Hits::Charge(30), true, 0),
        ("settle", Hits::Peek, true, 10),
        ("settle", Hits::Charge(7), false, 6),
        ("settle", Hits::Refund(1), true, 10),
        ("settle", Hits::Refund(1), false, 10),
        ("release", Hits::Charge(3), true, 10),
        ("release", Hits::Charge(1), false, 10),
    ];
    for (entry, operation, own, left) in cases {
        let world = holding(quota("limiter", 10, secs(1000), LOG), Lost::Charge);
        let first = lease(&charge(&world, 4));
        let settled = world.decide([ends(entry, &first, operation, own)]);
        assert!(settled.allowed());
        assert_eq!(settled.applied().statuses.as_slice(), [LeaseStatus::Done]);
        assert_eq!(world.left(A), left, "{entry} {operation:?} {own}");
    }
}

#[test]
fn semantics_39_of_several_for_one_lease_in_a_call_the_first_counts_and_it_comes_before_the_checks() {
    let world = holding(quota("limiter", 4, secs(1000), LOG), Lost::Charge);
    let first = lease(&charge(&world, 4));
    let both = [
        ends("settle", &first, Hits::Charge(1), true),
        ends("settle", &first, Hits::Charge(1), false),
        hits(Hits::Charge(3), A),
    ];
    let decision = world.decide(both);
    assert!(decision.allowed(), "what was given back is there for the checks of the same call");
    assert_eq!(decision.applied().statuses.as_slice(), [LeaseStatus::Done]);
    assert_eq!(world.left(A), 0);
}

#[test]
fn semantics_39_what_is_no_genuine_lease_settles_nothing() {
    let world = holding(quota("limiter", 4, secs(1000), LOG), Lost::Charge);
    let first = lease(&charge(&world, 2));
    for forged in ["junk", &first[1..], &format!("{first}A"), ""] {
        world.decide([ends("settle", forged, Hits::Charge(0), true)]);
        assert_eq!(change(&world, forged, &LeaseCommand::Release), None);
    }
    assert_eq!(settle(&world, &first, 2), Some(LeaseStatus::Done));
}

#[test]
fn semantics_39_the_entry_that_settles_has_a_name_of_ones_own() {
    let world = World::of(RuleBook {
        limiters: vec![quota("limiter", 4, secs(1000), LOG)],
        rules: vec![rule("all", &[("account", "*")], Action::Apply(vec![held("limiter", secs(60), Lost::Charge)]))],
        settle_entry: "used".to_owned(),
        ..RuleBook::default()
    });
    let first = lease(&charge(&world, 4));
    let of = |entry| Descriptor { hits: Hits::Peek, own_hits: true, ..Descriptor::of([(entry, first.as_str())]) };
    world.decide([of("settle")]);
    assert!(!world.passes(A));
    world.decide([of("used")]);
    assert!(world.passes(A));
}

#[test]
fn semantics_40_a_hold_that_nobody_ends_stays_charged_or_is_given_back_at_its_end() {
    for algorithm in algorithms() {
        let stays = holding(quota("limiter", 4, secs(100_000), algorithm.clone()), Lost::Charge);
        let comes_back = holding(quota("limiter", 4, secs(100_000), algorithm.clone()), Lost::Release);
        for world in [&stays, &comes_back] {
            charge(world, 4);
            world.wait(secs(59));
            assert!(!world.passes(A), "{algorithm:?}");
            world.wait(secs(1));
        }
        assert!(!stays.passes(A), "{algorithm:?}");
        assert_eq!(comes_back.left(A), 4, "{algorithm:?}");
    }
}

#[test]
fn semantics_40_what_is_given_back_at_an_end_is_what_it_was_then() {
    // 10 in 100 s: at the end of the hold, six of its nine tokens have drained, which come back to nobody.
    let world = holding(quota("limiter", 10, secs(100), bucket(None)), Lost::Release);
    charge(&world, 9);
    world.wait(secs(20));
    world.decide([hits(Hits::Charge(3), A)]);
    world.wait(secs(39));
    let before = world.left(A);
    world.wait(secs(1));
    assert_eq!(before, 3);
    assert_eq!(world.left(A), 7);
}

#[test]
fn semantics_41_twice_is_once() {
    let world = tokens(Lost::Charge);
    let first = lease(&charge(&world, 400));
    assert_eq!(settle(&world, &first, 150), Some(LeaseStatus::Done));
    assert_eq!(settle(&world, &first, 150), Some(LeaseStatus::Unknown));
    assert_eq!(settle(&world, &first, 999), Some(LeaseStatus::Unknown));
    assert_eq!(change(&world, &first, &LeaseCommand::Release), Some(LeaseStatus::Unknown));
    assert_eq!(world.left(A), 850);
}

#[test]
fn semantics_41_late_is_told_and_counts_by_what_became_of_the_hold() {
    let cases = [
        (Lost::Charge, Some(150), 850),
        (Lost::Charge, Some(500), 500),
        (Lost::Charge, Some(0), 1000),
        (Lost::Charge, None, 600),
        (Lost::Release, Some(150), 850),
        (Lost::Release, Some(0), 1000),
        (Lost::Release, None, 600),
    ];
    for (lost, units, left) in cases {
        let world = tokens(lost);
        let first = lease(&charge(&world, 400));
        world.wait(secs(119));
        let command = LeaseCommand::Settle(units.map_or(Units::Charged, Units::Each));
        assert_eq!(change(&world, &first, &command), Some(LeaseStatus::Expired), "{lost:?} {units:?}");
        assert_eq!(world.left(A), left, "{lost:?} {units:?}");
        assert_eq!(change(&world, &first, &command), Some(LeaseStatus::Unknown));
    }
    for lost in [Lost::Charge, Lost::Release] {
        let world = tokens(lost);
        let first = lease(&charge(&world, 400));
        world.wait(secs(120));
        assert_eq!(settle(&world, &first, 0), Some(LeaseStatus::Unknown), "as long again as its hold");
    }
}

#[test]
fn semantics_41_a_renewed_hold_lives_its_own_length_or_another_from_now() {
    let world = tokens(Lost::Release);
    let first = lease(&charge(&world, 400));
    world.wait(secs(50));
    assert_eq!(change(&world, &first, &LeaseCommand::Renew(None)), Some(LeaseStatus::Held(60_000_000)));
    world.wait(secs(59));
    assert_eq!(world.left(A), 600);
    assert_eq!(change(&world, &first, &LeaseCommand::Renew(Some(600_000_000))), Some(LeaseStatus::Held(600_000_000)));
    world.wait(secs(599));
    assert_eq!(world.left(A), 600);
    world.wait(secs(1));
    assert_eq!(world.left(A), 1000);
    assert_eq!(change(&world, &first, &LeaseCommand::Renew(None)), Some(LeaseStatus::Expired));
}

#[test]
fn semantics_42_retry_after_is_the_limits_own_or_the_end_of_the_first_hold_that_is_given_back() {
    for (lost, wait) in [(Lost::Charge, 3600), (Lost::Release, 60)] {
        let world = tokens(lost);
        charge(&world, 1000);
        let retry_after = || world.ask(A).refusal().and_then(|refusal| refusal.retry_after);
        assert_eq!(retry_after(), Some(secs(wait)), "{lost:?}");
        world.wait(secs(50));
        assert_eq!(retry_after(), Some(secs(wait - 50)));
    }
}

#[test]
fn semantics_43_a_lift_forgets_holds() {
    let world = tokens(Lost::Charge);
    let first = lease(&charge(&world, 1000));
    let counter = world.ask(A).planned().plan.checks[0].counter;
    let stores = world.engine.current();
    assert_eq!(stores.stores.forget(0, counter).now_or_never(), Some(Ok(true)));
    assert_eq!(settle(&world, &first, 5000), Some(LeaseStatus::Unknown));
    assert_eq!(world.left(A), 1000);
}

#[test]
fn semantics_37_slots_are_not_held_by_a_rule() {
    let book =
        |rules: Vec<Rule>| RuleBook { limiters: vec![slots("slots", 1, secs(60))], rules, ..RuleBook::default() };
    let errors = Rules::compile(book(vec![applies("all", [held("slots", secs(60), Lost::Charge)])]));
    assert!(matches!(errors.expect_err("it cannot hold")[..], [CompileError::HeldSlots { .. }]));
}

/// Budgets of a model, and logins that count when they failed: the numbers of the two recipes.
#[test]
fn semantics_44_parallel_calls_spend_no_more_than_the_budget_and_only_failures_count() {
    let world = tokens(Lost::Charge);
    let calls: Vec<Decision> = (0..50).map(|_| charge(&world, 400)).collect();
    let leases: Vec<String> = calls.iter().filter_map(|call| call.lease().map(str::to_owned)).collect();
    assert_eq!(leases.len(), 2);
    assert!(leases.iter().all(|lease| settle(&world, lease, 150) == Some(LeaseStatus::Done)));
    assert_eq!(world.left(A), 700);

    let world = holding(quota("failures", 3, secs(900), LOG), Lost::Charge);
    let logins: Vec<Decision> = (0..40).map(|_| charge(&world, 1)).collect();
    let leases: Vec<String> = logins.iter().filter_map(|login| login.lease().map(str::to_owned)).collect();
    assert_eq!(leases.len(), 3);
    assert!(leases.iter().all(|lease| settle(&world, lease, 1) == Some(LeaseStatus::Done)));
    assert!(!world.passes(A), "the right password is refused too, until the window ends");
    for _ in 0..12 {
        let login = lease(&world.ask(B));
        assert_eq!(settle(&world, &login, 0), Some(LeaseStatus::Done));
    }
}
