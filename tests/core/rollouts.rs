//! Rules that are enforced for a share of the keys (`enforce_percent`, semantics 13).

use tollgate::limiter::Limiter;
use tollgate::rules::{Action, Apply, Domain, KeyEntry, Missing, Normaliser, Rule, RuleBook, Unmatched};

use super::world::World;
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, rule, secs, slots};

fn part(percent: u8, all: Vec<Apply>) -> Rule {
    Rule { enforce_percent: Some(percent), ..applies("part", all) }
}

fn names() -> Vec<String> {
    (0..400).map(|number| format!("account-{number}")).collect()
}

/// A limiter of one unit, which admits one request of three where it is enforced.
fn once(name: &str, seconds: u64) -> Limiter {
    quota(name, 1, secs(seconds), bucket(None))
}

/// The accounts for which some limit refuses.
fn enforced(world: &World) -> Vec<String> {
    let refused =
        |name: &String| world.admits(3, &[("account", name), ("path", "/a"), ("remote_address", "10.0.0.1")]) < 3;
    names().into_iter().filter(refused).collect()
}

#[test]
fn semantics_13_the_same_keys_are_enforced_by_all_limiters_of_a_rule() {
    // Case 5: 77 % of the accounts at 50 %.
    let limiters = || vec![once("second", 1), once("day", 86_400), slots("running", 1, secs(60))];
    let world = |names: &[&str]| {
        World::new(limiters(), vec![part(50, names.iter().map(|name| apply(name, &["account"])).collect())])
    };
    let all = enforced(&world(&["second", "day", "running"]));
    assert!((160..240).contains(&all.len()), "{} of 400 at 50 %", all.len());
    for one in ["second", "day", "running"] {
        assert_eq!(enforced(&world(&[one])), all, "the same accounts by {one} alone");
    }
}

#[test]
fn semantics_13_a_key_is_chosen_by_what_the_keys_of_a_rule_have_in_common() {
    let limiters = || vec![once("account", 60), once("both", 60)];
    let alone = enforced(&World::new(limiters(), vec![part(50, vec![apply("account", &["account"])])]));
    let both = vec![apply("both", &["path", "account"]), apply("account", &["account"])];
    assert_eq!(enforced(&World::new(limiters(), vec![part(50, both)])), alone);
    // Nothing in common: the first key decides.
    let other = vec![apply("account", &["account"]), apply("both", &["remote_address"])];
    let world =
        World::new(vec![once("account", 60), quota("both", 100_000, secs(60), bucket(None))], vec![part(50, other)]);
    assert_eq!(enforced(&world), alone);
}

#[test]
fn semantics_13_a_key_is_chosen_by_its_normalised_value() {
    let lower = KeyEntry { entry: "account".to_owned(), normalise: vec![Normaliser::Lowercase] };
    let by = |percent| {
        let key = vec![lower.clone()];
        World::new(vec![once("limiter", 60)], vec![part(percent, vec![Apply { key, ..apply("limiter", &[]) }])])
    };
    for name in names() {
        let spelt = name.to_uppercase();
        let (one, other) = (by(50), by(50));
        assert_eq!(one.admits(3, &[("account", &name)]), other.admits(3, &[("account", &spelt)]), "{name}");
    }
}

#[test]
fn semantics_13_only_what_is_enforced_ends_the_walk() {
    // Case 5: a new rule at 1 % switched the older one off for everybody, 100 -> 400 admitted.
    let rules = |percent| {
        vec![
            Rule { last: true, ..part(percent, vec![apply("new", &["account"])]) },
            applies("old", [apply("old", &["account"])]),
        ]
    };
    let limiters = || vec![quota("new", 4, secs(60), bucket(None)), once("old", 60)];
    for (percent, by_the_new) in [(0, 0..1), (1, 0..16), (50, 160..240), (100, 400..401)] {
        let world = World::new(limiters(), rules(percent));
        let admitted: Vec<usize> = names().iter().map(|name| world.admits(9, &[("account", name)])).collect();
        assert!(admitted.iter().all(|admitted| [1, 4].contains(admitted)), "the old limit or the new one");
        let new = admitted.iter().filter(|admitted| **admitted == 4).count();
        assert!(by_the_new.contains(&new), "{new} of 400 by the new rule at {percent} %");
    }
}

#[test]
fn semantics_26_a_rule_that_is_not_enforced_for_a_key_is_no_match() {
    let closed = Domain { name: DOMAIN.to_owned(), unmatched: Unmatched::Deny, ..Domain::default() };
    let world = World::of(RuleBook {
        domains: vec![closed],
        limiters: vec![quota("limiter", 9, secs(60), bucket(None))],
        rules: vec![part(50, vec![apply("limiter", &["account"])])],
        ..RuleBook::default()
    });
    let passed = names().iter().filter(|name| world.passes(&[("account", name)])).count();
    assert!((160..240).contains(&passed), "{passed} of 400 match");
}

#[test]
fn semantics_13_a_refusal_without_a_counter_is_of_the_keys_that_are_enforced() {
    let tiered = Apply { missing: Missing::Deny, ..apply("api_{tier}", &["account"]) };
    let world = World::new(vec![once("api_pro", 60)], vec![part(50, vec![tiered])]);
    let refused = names().iter().filter(|name| !world.passes(&[("account", name), ("tier", "none")])).count();
    assert!((160..240).contains(&refused), "{refused} of 400 have no limiter");
    let ban = rule("ban", &[("account", "*")], Action::Deny);
    let last = Rule { last: true, ..part(0, vec![apply("api_pro", &["account"])]) };
    assert!(!World::new(vec![once("api_pro", 60)], vec![last, ban]).passes(&[("account", "a")]), "the walk goes on");
}
