//! Limits of different values (semantics 57): how many accounts one address may try in a window.

use std::sync::Arc;
use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::subsequence;
use tollgate::clock::Timestamp;
use tollgate::decision::Reason;
use tollgate::descriptor::{Descriptor, Hits, Request};
use tollgate::engine::Version;
use tollgate::limiter::{Algorithm, Distinct, LeaseId, Limit, Limiter, MAX_DISTINCT, OnStoreError, Quota, SpecError};
use tollgate::plan::{Charges, Check, CounterName, Needs, Outcome, Plan, Undo};
use tollgate::rules::{
    Apply, Charge, CompileError, HoldFor, KeyEntry, LimiterValues, Missing, Normaliser, RefusedBy, Rule, RuleBook,
    Rules,
};
use tollgate::secret::Secret;
use tollgate::settings::Bound;
use tollgate::store::{MemorySettings, MemoryStores, NextStore};

use super::world::{World, hits};
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, secs};
use crate::support::reference::plans::{SECOND, START, always};

const WINDOW: Duration = secs(60);
const MICRO: Duration = Duration::from_micros(1);

fn of(entries: &[&str]) -> Algorithm {
    Algorithm::Distinct { of: entries.iter().map(|entry| (*entry).to_owned()).collect() }
}

fn accounts(limit: u32) -> Limiter {
    quota("spray", limit, WINDOW, of(&["account"]))
}

fn by_address(charge: Charge) -> Apply {
    Apply { charge, ..apply("spray", &["address"]) }
}

/// A limit on the number of accounts from each address.
fn world(limit: u32) -> World {
    World::new(vec![accounts(limit)], vec![applies("all", [by_address(Charge::Admitted)])])
}

/// An attempt from address x.
fn at(account: &str) -> [(&str, &str); 2] {
    [("address", "x"), ("account", account)]
}

fn reloaded(world: World, limiters: Vec<Limiter>, rules: Vec<Rule>) -> World {
    let World { engine, clock } = world;
    let book = RuleBook { limiters, rules, ..RuleBook::default() };
    let rules = Arc::new(Rules::compile(book).expect("the book compiles"));
    let stores = engine.current().stores.next((0..rules.stores().len()).map(NextStore::Keep));
    engine.replace(Arc::new(Version { rules, stores }));
    World { engine, clock }
}

/// How many of these accounts pass, one after the other.
fn admitted(world: &World, accounts: &[&str]) -> usize {
    accounts.iter().filter(|account| world.passes(&at(account))).count()
}

#[test]
fn semantics_57_an_address_tries_at_most_so_many_different_accounts() {
    let world = world(3);
    assert_eq!(admitted(&world, &["a", "b", "c", "d", "e"]), 3);
    assert!(world.passes(&[("address", "y"), ("account", "d")]), "another address has another counter");
}

#[test]
fn semantics_57_a_remembered_value_passes_whatever_is_left() {
    let world = world(2);
    assert_eq!(admitted(&world, &["a", "b"]), 2);
    assert_eq!(world.admits(100, &at("a")), 100);
    assert!(!world.passes(&at("c")));
    // Also where the limit was lowered below what is remembered.
    let world = reloaded(world, vec![accounts(1)], vec![applies("all", [by_address(Charge::Admitted)])]);
    assert_eq!(admitted(&world, &["a", "b", "c"]), 2);
}

#[test]
fn semantics_57_a_charge_remembers_a_known_value_anew() {
    let world = world(2);
    assert_eq!(admitted(&world, &["a", "b"]), 2);
    world.wait(secs(40));
    assert!(world.passes(&at("a")));
    world.wait(secs(20));
    // b is forgotten, a counts from its second attempt.
    assert_eq!(admitted(&world, &["c", "d", "a"]), 2);
}

#[test]
fn semantics_57_retry_after_is_that_of_an_exact_window() {
    let world = world(2);
    assert!(world.passes(&at("a")));
    world.wait(secs(10));
    assert!(world.passes(&at("b")));
    world.wait(secs(5));
    let refused = world.ask(&at("c"));
    let refusal = refused.refusal().expect("it is refused");
    assert_eq!(refusal.retry_after, Some(secs(45)), "a leaves the window then");
    assert_eq!(refused.tightest().expect("it applies").reset, secs(55), "b is the last to leave");
    world.wait(secs(45) - MICRO);
    assert!(!world.passes(&at("c")));
    world.wait(MICRO);
    assert!(world.passes(&at("c")));
}

#[test]
fn semantics_57_entries_of_values_are_normalised_as_those_of_keys() {
    let normalised = |normalise: Vec<Normaliser>| {
        let of = vec![KeyEntry { entry: "account".to_owned(), normalise }];
        World::of(RuleBook {
            limiters: vec![accounts(1)],
            values: vec![LimiterValues { limiter: "spray".to_owned(), of }],
            rules: vec![applies("all", [by_address(Charge::Admitted)])],
            ..RuleBook::default()
        })
    };
    let spellings = ["Bob", "bob", " BOB "];
    assert_eq!(admitted(&normalised(vec![Normaliser::Trim, Normaliser::Lowercase]), &spellings), 3);
    assert_eq!(admitted(&normalised(Vec::new()), &spellings), 1);
}

#[test]
fn semantics_57_the_names_of_the_entries_belong_to_the_kind_of_the_counter() {
    let rules = || vec![applies("all", [by_address(Charge::Admitted)])];
    let limiter = |entries: &[&str]| vec![quota("spray", 1, WINDOW, of(entries))];
    let world = World::new(limiter(&["account", "device"]), rules());
    let entries = |account| [("address", "x"), ("account", account), ("device", "d"), ("phone", "p")];
    assert!(world.passes(&entries("a")));
    // Their order makes no other counter.
    let world = reloaded(world, limiter(&["device", "account"]), rules());
    assert!(world.passes(&entries("a")));
    assert!(!world.passes(&entries("b")));
    let world = reloaded(world, limiter(&["account", "phone"]), rules());
    assert!(world.passes(&entries("b")), "other entries count from nothing");
}

#[test]
fn semantics_57_several_entries_count_together() {
    let world = World::new(
        vec![quota("spray", 2, WINDOW, of(&["account", "device"]))],
        vec![applies("all", [by_address(Charge::Admitted)])],
    );
    let passes = |account, device| world.passes(&[("address", "x"), ("account", account), ("device", device)]);
    assert!(passes("a", "1"));
    assert!(passes("a", "2"));
    assert!(!passes("b", "1"));
    assert!(!passes("b", "2"));
    assert!(!passes("1", "a"), "which entry has a value matters");
}

/// Tries several accounts in one call.
fn together<'a>(world: &World, accounts: impl IntoIterator<Item = &'a str>) -> tollgate::decision::Decision {
    world.decide(accounts.into_iter().map(|account| Descriptor::of(at(account))))
}

#[test]
fn semantics_57_different_values_of_one_counter_in_one_call_are_counted_together() {
    let world = world(3);
    assert!(together(&world, ["a", "b", "a"]).allowed());
    let refused = together(&world, ["c", "d"]);
    assert_eq!(refused.refusal().expect("one has no room").reason, Reason::Limit);
    assert_eq!(world.left(&at("a")), 1, "nothing of a refused call is remembered");
    assert!(together(&world, ["a", "c", "b"]).allowed(), "only one of them is new");
    // More at once than can ever be remembered never pass.
    assert_eq!(together(&world, ["d", "e", "f", "g"]).refusal().expect("it is refused").retry_after, None);
}

#[test]
fn semantics_57_a_call_with_a_new_and_an_expiring_value_waits_for_both() {
    let world = world(2);
    assert!(world.passes(&at("a")));
    world.wait(secs(10));
    assert!(world.passes(&at("b")));
    // When a leaves the window it is new as well: there is room for a and c once b has left it too.
    let refused = together(&world, ["a", "c"]);
    assert_eq!(refused.refusal().expect("it is refused").retry_after, Some(secs(60)));
    world.wait(secs(60) - MICRO);
    assert!(!together(&world, ["a", "c"]).allowed());
    world.wait(MICRO);
    assert!(together(&world, ["a", "c"]).allowed());
}

#[test]
fn semantics_57_nine_values_of_one_counter_in_one_call_are_too_large() {
    let world = world(20);
    let nine = ["a", "b", "c", "d", "e", "f", "g", "h", "i"];
    let refused = together(&world, nine);
    assert_eq!(refused.refusal().expect("it is refused").reason, Reason::TooLarge);
    assert_eq!(refused.planned().refused, Some(RefusedBy::TooLarge(Bound::Checks)));
    assert_eq!(world.left(&at("a")), 20, "and nothing is charged");
    assert!(together(&world, nine[..8].iter().chain(&nine[..8]).copied()).allowed(), "each counts once");
    assert_eq!(world.left(&at("a")), 12);
    // Values of other counters do not count.
    let others = ["1", "2", "3", "4", "5", "6", "7", "8", "9"];
    assert!(world.decide(others.map(|address| Descriptor::of([("address", address), ("account", "a")]))).allowed());
}

#[test]
fn semantics_57_a_missing_value_follows_missing() {
    let world = |missing| {
        let limiters = vec![accounts(1), quota("tries", 5, WINDOW, Algorithm::SlidingWindow)];
        let applied = [Apply { missing, ..by_address(Charge::Admitted) }, apply("tries", &["address"])];
        World::new(limiters, vec![applies("all", applied)])
    };
    let without = [("address", "x")];
    let skip = world(Missing::Skip);
    assert_eq!(skip.admits(7, &without), 5, "the rule's other check counts");
    assert_eq!(skip.ask(&without).planned().notes.skipped, 1);
    let deny = world(Missing::Deny);
    assert_eq!(deny.ask(&without).refusal().expect("it is refused").reason, Reason::MissingKey);
    let empty = world(Missing::Empty);
    assert!(empty.passes(&without));
    assert!(empty.passes(&at("")), "it is the empty value");
    assert!(!empty.passes(&at("a")));
}

#[test]
fn semantics_57_slots_of_a_limiter_are_taken_whether_a_value_is_there_or_not() {
    let slots = tollgate::limiter::Concurrency { max: 1, lease: 60 * SECOND };
    let limiter = Limiter { concurrency: Some(slots), ..accounts(1) };
    let world = World::new(vec![limiter], vec![applies("all", [by_address(Charge::Admitted)])]);
    assert!(world.passes(&[("address", "x")]));
    assert!(!world.passes(&[("address", "x")]), "the slot is taken");
}

#[test]
fn semantics_57_what_only_units_can_do_is_refused() {
    let compile = |apply: Apply| {
        let (limiters, rules) = (vec![accounts(1)], vec![applies("all", [apply])]);
        Rules::compile(RuleBook { limiters, rules, ..RuleBook::default() }).map(drop)
    };
    let (rule, limiter) = ("all".to_owned(), "spray".to_owned());
    let charged = CompileError::ChargedValues { rule: rule.clone(), limiter: limiter.clone() };
    let overdrawn = CompileError::OverdrawnValues { rule, limiter };
    let hold = Some(HoldFor { length: secs(60), lost: Default::default() });
    assert_eq!(compile(by_address(Charge::Always)), Err(vec![charged]));
    assert_eq!(compile(Apply { overdraw: true, ..by_address(Charge::Own) }), Err(vec![overdrawn.clone()]));
    assert_eq!(compile(Apply { hold, ..by_address(Charge::Own) }), Err(vec![overdrawn]));
    assert_eq!(compile(by_address(Charge::Own)), Ok(()));
}

#[test]
fn semantics_57_a_limit_is_at_most_1000_values_of_at_least_one_entry() {
    let quota = |limit, entries: &[&str]| Quota::new(limit, WINDOW, of(entries)).map(drop);
    assert_eq!(quota(MAX_DISTINCT, &["account"]), Ok(()));
    assert_eq!(quota(MAX_DISTINCT + 1, &["account"]), Err(SpecError::TooManyValues));
    assert_eq!(quota(1, &[]), Err(SpecError::NoEntry));
    assert_eq!(quota(0, &["account"]), Err(SpecError::Zero));
}

#[test]
fn semantics_57_a_thousand_values_are_remembered_each() {
    let world = world(MAX_DISTINCT);
    let names: Vec<String> = (0..MAX_DISTINCT + 3).map(|number| number.to_string()).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    assert_eq!(admitted(&world, &names), MAX_DISTINCT as usize);
    assert_eq!(admitted(&world, &names), MAX_DISTINCT as usize, "all of them again");
}

#[test]
fn semantics_57_a_peek_asks_for_room_for_one_new_value() {
    let world = world(2);
    let peek = |account| world.decide([hits(Hits::Peek, &at(account))]);
    assert!(world.passes(&at("a")));
    assert!(peek("b").allowed());
    assert_eq!(world.left(&at("b")), 1, "it remembers nothing");
    assert!(world.passes(&at("b")));
    assert!(!peek("c").allowed());
    assert!(!peek("a").allowed(), "when full it refuses, whatever its value");
    // Merged with a charge, both have to hold.
    let both = world.decide([Descriptor::of(at("a")), hits(Hits::Peek, &at("a"))]);
    assert!(!both.allowed());
}

#[test]
fn semantics_57_no_hits_cost_more_than_one_value_and_none_give_one_back() {
    let world = world(2);
    assert!(world.decide([hits(Hits::Charge(50), &at("a"))]).allowed());
    assert_eq!(world.left(&at("a")), 1);
    assert!(world.decide([hits(Hits::Refund(1), &at("a"))]).allowed());
    assert_eq!(world.left(&at("a")), 1);
}

#[test]
fn semantics_57_with_own_an_account_that_refuses_by_itself_cannot_be_sprayed_for_nothing() {
    let limiters = || vec![accounts(3), quota("account", 1, WINDOW, bucket(None))];
    let world =
        |charge| World::new(limiters(), vec![applies("all", [by_address(charge), apply("account", &["account"])])]);
    let spray = |world: &World| {
        // Somebody else has used up every account.
        for account in ["a", "b", "c", "d", "e"] {
            assert!(world.passes(&[("address", "y"), ("account", account)]) == (account < "d"));
        }
        ["a", "b", "c", "d", "e"].map(|account| {
            let refused = world.ask(&at(account));
            refused.refusal().and_then(|refusal| refusal.limiter).map(str::to_owned)
        })
    };
    let own = world(Charge::Own);
    let refusing = spray(&own);
    assert_eq!(refusing[3].as_deref(), Some("spray"), "three refused accounts are remembered: {refusing:?}");
    let admitted = world(Charge::Admitted);
    assert_eq!(spray(&admitted)[3], None, "refused accounts are not remembered, and d is tried");
}

#[test]
fn semantics_57_a_check_in_shadow_remembers_what_passes_and_refuses_nobody() {
    let shadow = Rule { shadow: true, ..applies("all", [by_address(Charge::Admitted)]) };
    let world = World::new(vec![accounts(2)], vec![shadow]);
    assert_eq!(admitted(&world, &["a", "b", "c"]), 3);
    let nine = ["1", "2", "3", "4", "5", "6", "7", "8", "9"];
    assert!(together(&world, nine).allowed(), "nor for more values than it can count");
}

#[test]
fn semantics_57_values_are_hashes_under_the_secret_of_one_counter_each() {
    let values = |secret: &str, address: &str, account: &str| {
        let book = RuleBook {
            secret: Secret::new(secret),
            limiters: vec![accounts(2)],
            rules: vec![applies("all", [by_address(Charge::Admitted)])],
            ..RuleBook::default()
        };
        let rules = Rules::compile(book).expect("the book compiles");
        let descriptor = Descriptor::of([("address", address), ("account", account)]);
        let request = Request { domain: DOMAIN, descriptors: [descriptor].into_iter().collect() };
        rules.plan(&request, LeaseId(0)).plan.values.as_slice().to_vec()
    };
    let one = values("s", "x", "bob");
    assert_eq!(one.len(), 1);
    assert_eq!(one, values("s", "x", "bob"));
    for other in [values("t", "x", "bob"), values("s", "y", "bob"), values("s", "x", "alice")] {
        assert_ne!(one, other);
    }
}

#[test]
fn semantics_57_a_rule_that_repeats_the_entry_of_a_value_is_in_doubt() {
    let world = world(1);
    let mut descriptor = Descriptor::of([("address", "x")]);
    descriptor.push_repeated("account", vec!["a".into(), "b".into()]);
    assert_eq!(world.decide([descriptor]).refusal().expect("it is refused").reason, Reason::Repeated);
}

/// One step of the property: a request, or the undo of the last charge.
#[derive(Clone, Debug)]
enum Step {
    Ask { values: Vec<u64>, peek: bool, own: bool, refused: bool, limit: u32 },
    Undo,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let moves = prop_oneof![
        3 => Just(0_u64),
        4 => 0..4 * SECOND,
        2 => (0..3_u64, 0..3_u64).prop_map(|(windows, more)| (windows * LENGTH + more).saturating_sub(1)),
    ];
    let values = subsequence((1..=7).collect::<Vec<u64>>(), 0..=4);
    let ask = (values, any::<bool>(), any::<bool>(), prop::bool::weighted(0.3), 1..5u32);
    let ask = ask.prop_map(|(values, peek, own, refused, limit)| Step::Ask { values, peek, own, refused, limit });
    vec((moves, prop_oneof![5 => ask, 1 => Just(Step::Undo)]), 1..60)
}

/// A second implementation, slow and plain: all charges there ever were.
#[derive(Default)]
struct AllCharges {
    charges: Vec<(u64, u64)>,
    /// The number of values that the last charge added, if it can be undone.
    last: usize,
}

const LENGTH: u64 = 10 * SECOND;

impl AllCharges {
    fn remembered(&self, now: u64) -> Vec<u64> {
        let mut values: Vec<u64> =
            self.charges.iter().filter(|(_, at)| at + LENGTH > now).map(|(value, _)| *value).collect();
        values.sort_unstable();
        values.dedup();
        values
    }

    fn passes(&self, values: &[u64], peek: bool, limit: u32, now: u64) -> bool {
        let remembered = self.remembered(now);
        let new = values.iter().filter(|value| !remembered.contains(value)).count();
        let fits = new == 0 || remembered.len() + new <= limit as usize;
        fits && (!peek || remembered.len() < limit as usize)
    }
}

fn follow(steps: &[(u64, Step)]) {
    let memory = MemoryStores::new(&[MemorySettings::default()]);
    let mut model = AllCharges::default();
    let mut now = START;
    let mut undone: Option<Plan> = None;
    for (by, step) in steps {
        now = Timestamp::from_micros(now.micros() + by);
        let at = now.micros();
        let Step::Ask { values, peek, own, refused, limit } = step else {
            // Only the last charge is taken back: the others are no longer told apart.
            if let Some(plan) = undone.take() {
                memory.apply(&plan, now);
                model.charges.truncate(model.charges.len() - model.last);
            }
            continue;
        };
        let peek = *peek || values.is_empty();
        let mut plan = Plan { refused: *refused, lease: LeaseId(1), ..Plan::default() };
        let asked = plan.values.ask(values.iter().copied()).expect("they are few");
        let charged = u32::from(!values.is_empty());
        let check = Check {
            needs: Needs { fits: charged, one_left: peek },
            charges: Charges { admitted: charged, passed: if *own { charged } else { 0 }, refused: 0 },
            on_store_error: OnStoreError::Local,
            ..Check::look(CounterName([1, 2]), Limit::Distinct(Distinct { limit: *limit, window: LENGTH, asked }))
        };
        plan.checks.push(check);
        plan.groups.push(1);
        let passes = model.passes(values, peek, *limit, at);
        let applied = memory.apply(&plan, now);
        let outcome: Outcome = applied.answers[0].expect("there is room");
        assert_eq!(outcome.passes, passes, "{step:?}");
        assert_eq!(applied.admitted, passes && !refused);
        if passes && charged > 0 && (!refused || *own) {
            model.charges.extend(values.iter().map(|value| (*value, at)));
            model.last = values.len();
            let undos = Undo::of(&check, &outcome, now).into_iter().collect();
            undone = Some(Plan { undos, ..plan.of_same_asker() });
        } else {
            assert_eq!(outcome.charged, 0);
        }
        let remembered = model.remembered(at);
        assert_eq!(outcome.remaining as usize, (*limit as usize).saturating_sub(remembered.len()));
        let reset = model.charges.iter().map(|(_, charged)| (charged + LENGTH).saturating_sub(at)).max().unwrap_or(0);
        assert_eq!(outcome.reset, reset);
        // The first moment at which it passes is that of an expiry.
        let expiries = model.charges.iter().map(|(_, charged)| charged + LENGTH).filter(|expiry| *expiry > at);
        let wait =
            expiries.filter(|expiry| model.passes(values, peek, *limit, *expiry)).min().map(|expiry| expiry - at);
        assert_eq!(outcome.retry_after, if passes { None } else { wait }, "{step:?} beside {remembered:?}");
    }
}

#[test]
fn semantics_57_every_sequence_of_requests_and_undos_counts_as_all_charges_do() {
    always(3_000, steps(), |steps| follow(&steps));
}
