//! Entries that a request names several times (semantics 63).

use std::borrow::Cow;

use tollgate::decision::{Decision, Reason};
use tollgate::descriptor::Descriptor;
use tollgate::rules::{Action, Charge, Matcher, Rule, RuleBook};

use super::world::World;
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, rule, secs};

/// A descriptor with these entries, and an account that is named several times.
fn repeated<'a>(entries: &[(&'a str, &'a str)], accounts: &[&'a str]) -> Descriptor<'a> {
    let mut descriptor = Descriptor::of(entries.iter().copied());
    descriptor.push_repeated("account", accounts.iter().copied().map(Cow::Borrowed).collect());
    descriptor
}

fn ask(world: &World, descriptor: Descriptor<'_>) -> Decision {
    world.decide([descriptor])
}

fn reason(decision: &Decision) -> Option<Reason> {
    decision.refusal().map(|refusal| refusal.reason)
}

/// A rule with these tests that applies limiters by these keys.
fn matching(name: &str, tests: &[(&str, Matcher)], keys: &[&[&str]]) -> Rule {
    let matches = tests.iter().map(|(entry, test)| ((*entry).to_owned(), test.clone())).collect();
    Rule { matches, ..applies(name, keys.iter().map(|key| apply("limiter", key)).collect::<Vec<_>>()) }
}

fn world(rules: Vec<Rule>) -> World {
    World::new(vec![quota("limiter", 1, secs(60), bucket(None)), quota("api_free", 1, secs(60), bucket(None))], rules)
}

fn path() -> (&'static str, Matcher) {
    ("path", Matcher::parse("/login"))
}

#[test]
fn semantics_63_a_repeat_refuses_where_a_rule_needs_the_entry_and_nowhere_else() {
    let not = |matcher| Matcher::Not(Box::new(matcher));
    let tests = ["bob", "*", "b*", "*b", "*b*", "10.0.0.0/8"].map(Matcher::parse).into_iter().chain([
        not(Matcher::parse("bob")),
        Matcher::AnyOf(vec![Matcher::parse("bob"), not(Matcher::Present)]),
        not(not(Matcher::Present)),
    ]);
    let by_test = tests.flat_map(|test| {
        let deny = Rule { action: Action::Deny, ..matching("wall", &[path(), ("account", test.clone())], &[]) };
        let allow = Rule { action: Action::Allow, ..deny.clone() };
        [deny, allow, matching("wall", &[path(), ("account", test)], &[&["remote_address"]])]
    });
    let by_key = [
        matching("wall", &[path()], &[&["account"]]),
        matching("wall", &[path()], &[&["remote_address"], &["remote_address", "account"]]),
        Rule { matches: vec![("path".to_owned(), path().1)], ..applies("wall", [apply("api_{account}", &[])]) },
    ];
    for wall in by_test.chain(by_key) {
        let world = world(vec![wall.clone()]);
        let at = |path, accounts: [&'static str; 2]| {
            ask(&world, repeated(&[("path", path), ("remote_address", "10.0.0.1")], &accounts))
        };
        for accounts in [["a", "bob"], ["x", "y"], ["bob", "bob"], ["", ""]] {
            let refused = at("/login", accounts);
            assert_eq!((reason(&refused), refused.rule()), (Some(Reason::Repeated), Some("wall")), "{wall:?}");
            assert!(at("/page", accounts).allowed(), "{wall:?}");
        }
    }
}

#[test]
fn semantics_63_a_repeated_entry_is_there() {
    let absent = Matcher::Not(Box::new(Matcher::Present));
    let world = world(vec![matching("without", &[("account", absent)], &[&["remote_address"]])]);
    for _ in 0..3 {
        assert!(ask(&world, repeated(&[("remote_address", "10.0.0.1")], &["a", "b"])).allowed());
    }
    assert_eq!(world.admits(2, &[("remote_address", "10.0.0.1")]), 1);
}

#[test]
fn semantics_63_the_first_rule_that_needs_it_decides_and_nothing_is_charged() {
    let allow = rule("allow", &[("path", "/open")], Action::Allow);
    let mut address = apply("limiter", &["remote_address"]);
    address.charge = Charge::Always;
    let address = applies("address", [address]);
    let world = world(vec![allow, address, applies("account", [apply("limiter", &["account"])])]);
    let entries = |path| repeated(&[("path", path), ("remote_address", "10.0.0.1")], &["a", "b"]);
    for _ in 0..3 {
        assert!(ask(&world, entries("/open")).allowed(), "an earlier rule ends the walk");
        assert_eq!(reason(&ask(&world, entries("/login"))), Some(Reason::Repeated));
    }
    assert!(world.passes(&[("path", "/login"), ("remote_address", "10.0.0.1")]), "nothing was charged");
}

#[test]
fn semantics_13_and_37_a_rule_in_shadow_would_refuse() {
    let shadow = Rule { shadow: true, last: true, ..applies("shadow", [apply("limiter", &["account"])]) };
    let world = world(vec![shadow, applies("address", [apply("limiter", &["remote_address"])])]);
    let entries = || repeated(&[("remote_address", "10.0.0.1")], &["a", "b"]);
    let decision = ask(&world, entries());
    assert!(decision.allowed());
    assert_eq!(decision.would_refuse(), Some("shadow"));
    assert_eq!(reason(&ask(&world, entries())), Some(Reason::Limit), "the walk went on");
}

#[test]
fn semantics_13_and_37_a_share_of_the_keys_is_enforced_if_any_value_is() {
    let part = Rule { enforce_percent: Some(50), ..applies("part", [apply("limiter", &["account"])]) };
    let world = world(vec![part]);
    let names: Vec<String> = (0..200).map(|number| format!("account-{number}")).collect();
    let (enforced, others): (Vec<&str>, Vec<&str>) =
        names.iter().map(String::as_str).partition(|name| world.admits(3, &[("account", name)]) < 3);
    assert!(enforced.len() > 60 && others.len() > 60);
    for (one, other) in enforced.iter().zip(&others) {
        for accounts in [[one, other], [other, one]] {
            let decision = ask(&world, repeated(&[], &accounts.map(|account| *account)));
            assert_eq!(reason(&decision), Some(Reason::Repeated), "{accounts:?}");
        }
        let decision = ask(&world, repeated(&[], &[other, other]));
        assert!(decision.allowed() && decision.would_refuse() == Some("part"), "{other}");
    }
}

#[test]
fn explaining_a_repeat_says_what_planning_does() {
    let tests = [path(), ("account", Matcher::parse("b*"))];
    for bits in 0..8_u8 {
        let [last, shadow, whole] = [1, 2, 4].map(|bit| bits & bit > 0);
        for action in [Action::Allow, Action::Deny, applies("", [apply("limiter", &["account"])]).action] {
            let first = Rule { last, shadow, action, ..matching("first", &tests, &[]) };
            let second = matching("second", &[], &[&["remote_address"]]);
            let limiters = vec![quota("limiter", 1, secs(60), bucket(None))];
            let rules = vec![first.clone(), second];
            let world = World::of(RuleBook { limiters, rules, shadow: whole, ..RuleBook::default() });
            let descriptor = || repeated(&[("path", "/login"), ("remote_address", "10.0.0.1")], &["a", "b"]);
            let decision = ask(&world, descriptor());
            let text = world.engine.current().rules.explain_in_words(DOMAIN, &descriptor());
            let case = format!("{first:?} {whole}\n{text}");
            assert_eq!(decision.allowed(), shadow || whole, "{case}");
            assert!(text.contains("  account = \"a\" or \"b\": repeated, so its value is in doubt\n"), "{case}");
            let refused = "verdict: refused by rule first, because account is repeated\n";
            assert_eq!(text.contains(refused), !decision.allowed(), "{case}");
            let reached = decision.planned().sources.iter().any(|source| source.rule == 1);
            assert_eq!(text.contains("rule second matches"), reached, "{case}");
        }
    }
}
