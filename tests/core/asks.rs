//! What workers ask for, planned and answered without waiting (semantics 45, 50 and 50a).

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use tollgate::ask::{Acquire, Ask, AskError, AskErrorKind, Subject};
use tollgate::clock::ManualClock;
use tollgate::decision::Reason;
use tollgate::descriptor::{Descriptor, Hits, Request};
use tollgate::engine::Version;
use tollgate::limiter::{Algorithm, LeaseStatus, Limiter, WorkerSettings};
use tollgate::plan::CounterName;
use tollgate::rules::{
    Action, Apply, Charge, Derive, Domain, KeyEntry, LookupTable, Missing, Normaliser, PartitionedStore, Rule,
    RuleBook, Rules, Unmatched,
};
use tollgate::service::{Acquisition, Service};
use tollgate::settings::Settings;
use tollgate::store::{MemorySettings, Stores};
use tollgate::telemetry::Door;

use super::world::START;
use crate::support::fixtures::{DOMAIN, applies, apply, bucket, quota, rule, secs, slots};

/// A service on a memory store and a manual clock.
struct Workers {
    service: Service,
    clock: ManualClock,
}

impl Workers {
    fn new(limiters: Vec<Limiter>, rules: Vec<Rule>) -> Self {
        Self::of(RuleBook { limiters, rules, ..RuleBook::default() })
    }

    fn of(book: RuleBook) -> Self {
        let clock = ManualClock::at(START);
        let spaces = vec![MemorySettings::default(); book.stores.len()];
        let rules = Arc::new(Rules::compile(book).expect("the book compiles"));
        let version = Version { rules, stores: Stores::memory(&spaces) };
        Self { service: Service::new(version, Settings::default(), Arc::new(clock.clone())), clock }
    }

    fn acquire(&self, acquire: &Acquire) -> Result<Acquisition, AskError> {
        self.service.acquire(acquire, None).now_or_never().expect("nobody waits")
    }

    fn peek(&self, acquire: &Acquire) -> Acquisition {
        self.service.peek(acquire).now_or_never().expect("nobody waits").expect("it makes sense")
    }

    fn grants(&self, acquire: &Acquire) -> bool {
        self.acquire(acquire).expect("it makes sense").granted()
    }

    fn error(&self, acquire: &Acquire) -> AskError {
        self.acquire(acquire).expect_err("it makes no sense")
    }

    /// The counters of a gateway's request.
    fn counters_of_gateway(&self, entries: &[(&str, &str)]) -> Vec<CounterName> {
        let descriptor = Descriptor { hits: Hits::Peek, ..Descriptor::of(entries.iter().copied()) };
        let request = Request { domain: DOMAIN, descriptors: [descriptor].into_iter().collect() };
        let current = self.service.current();
        let decision = current.decide(Door::Rls, &request).now_or_never().expect("the memory store never waits");
        counters(&decision)
    }
}

fn counters(decision: &tollgate::decision::Decision) -> Vec<CounterName> {
    decision.planned().plan.checks.iter().map(|check| check.counter).collect()
}

fn owned(entries: &[(&str, &str)]) -> Vec<(String, String)> {
    entries.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn entries(written: &[(&str, &str)]) -> Ask {
    Ask { subject: Subject::Entries(owned(written)), cost: 1, hold: None, release_lost: false }
}

fn limiter(name: &str, key: &[(&str, &str)]) -> Ask {
    let subject = Subject::Limiter { limiter: name.to_owned(), key: owned(key) };
    Ask { subject, cost: 1, hold: None, release_lost: false }
}

fn cost(cost: u32, ask: Ask) -> Ask {
    Ask { cost, ..ask }
}

fn of(asks: impl Into<Vec<Ask>>) -> Acquire {
    Acquire { domain: Some(DOMAIN.to_owned()), asks: asks.into(), ..Acquire::default() }
}

fn direct(limiter: Limiter) -> Limiter {
    Limiter { workers: WorkerSettings { direct: true, ..WorkerSettings::default() }, ..limiter }
}

const MINUTE: Duration = Duration::from_secs(60);

fn window(name: &str, limit: u32) -> Limiter {
    quota(name, limit, MINUTE, Algorithm::SlidingWindow)
}

#[test]
fn semantics_59_workers_ask_by_what_an_entry_is_derived_from() {
    let mut keys = LookupTable::new("keys", ["api_key", "account", "tier"].map(str::to_owned).to_vec(), 0, None);
    keys.push(2, ["k1", "acme", "pro"]);
    keys.push(3, ["k2", "acme", "pro"]);
    let keys = Arc::new(keys);
    let derive = |entry: &str, otherwise: Option<&str>| Derive {
        entry: entry.to_owned(),
        from: "api_key".to_owned(),
        table: keys.clone(),
        column: entry.to_owned(),
        otherwise: otherwise.map(str::to_owned),
    };
    let domain = Domain {
        name: DOMAIN.to_owned(),
        derive: vec![derive("account", None), derive("tier", Some("free"))],
        ..Domain::default()
    };
    let denying = Apply { missing: Missing::Deny, ..apply("api_{tier}", &["account"]) };
    let workers = Workers::of(RuleBook {
        limiters: vec![window("api_free", 1), window("api_pro", 2)],
        rules: vec![applies("quota", vec![denying])],
        domains: vec![domain],
        tables: vec![keys.clone()],
        ..RuleBook::default()
    });
    let by_key = |key: &str| of([limiter("api_{tier}", &[("api_key", key)])]);
    let counters_of = |acquire: &Acquire| counters(&workers.peek(acquire).decision);
    assert_eq!(counters_of(&by_key("k1")), workers.counters_of_gateway(&[("api_key", "k1")]));
    assert_eq!(counters_of(&by_key("k1")), counters_of(&of([entries(&[("api_key", "k2")])])));
    assert!(workers.grants(&by_key("k1")) && workers.grants(&by_key("k2")) && !workers.grants(&by_key("k1")));
    // An unknown key is refused, and nobody asks by the derived entry.
    let refused = workers.acquire(&by_key("other")).expect("it makes sense");
    assert!(!refused.granted());
    assert_eq!(refused.decision.refusal().map(|refusal| refusal.reason), Some(Reason::MissingKey));
    let error = workers.error(&of([limiter("api_{tier}", &[("account", "acme"), ("tier", "pro")])]));
    assert_eq!(error.kind, AskErrorKind::NotFound);
    assert!(error.message.contains("rules apply it by: api_key"), "{}", error.message);
}

#[test]
fn semantics_59_an_operator_names_an_identity_by_what_is_derived_or_by_its_source() {
    let mut keys = LookupTable::new("keys", ["api_key", "account"].map(str::to_owned).to_vec(), 0, None);
    keys.push(2, ["k1", "acme"]);
    let keys = Arc::new(keys);
    let derive = Derive {
        entry: "account".to_owned(),
        from: "api_key".to_owned(),
        table: keys,
        column: "account".to_owned(),
        otherwise: None,
    };
    let domain = Domain { name: DOMAIN.to_owned(), derive: vec![derive], ..Domain::default() };
    let rules = Rules::compile(RuleBook {
        limiters: vec![window("login", 1)],
        rules: vec![applies("quota", vec![apply("login", &["account"])])],
        domains: vec![domain],
        ..RuleBook::default()
    });
    let rules = rules.expect("it compiles");
    let counter = |entry, value| {
        let known = rules.counters(DOMAIN, &Descriptor::of([(entry, value)])).expect("a counter");
        known.iter().map(|known| known.check.counter).collect::<Vec<_>>()
    };
    assert_eq!(counter("account", "acme"), counter("api_key", "k1"));
    rules.counters(DOMAIN, &Descriptor::of([("api_key", "other")])).expect_err("it has no account");
}

#[test]
fn semantics_50_an_ask_is_counted_by_the_counter_of_the_gateway_s_request_with_these_entries() {
    let folded = |entry: &str| KeyEntry { entry: entry.to_owned(), normalise: vec![Normaliser::Lowercase] };
    let limiters = || {
        vec![
            window("api_free", 5),
            window("api_pro", 50),
            window("login", 5),
            slots("exports", 2, MINUTE),
            window("all", 9),
        ]
    };
    let rules = || {
        vec![
            applies("quota", vec![apply("api_{tier}", &["account"])]),
            applies(
                "logins",
                vec![
                    apply("login", &["remote_address", "path"]),
                    Apply { key: vec![folded("account"), folded("host")], ..apply("exports", &[]) },
                    apply("all", &[]),
                ],
            ),
        ]
    };
    let domain = Domain {
        name: DOMAIN.to_owned(),
        normalise: vec![("path".to_owned(), vec![Normaliser::Path]), ("tier".to_owned(), vec![Normaliser::Lowercase])],
        ..Domain::default()
    };
    let partitioned = |tag: Option<&str>| vec![PartitionedStore { store: 0, tag: tag.map(str::to_owned) }];
    for partitioned in [vec![], partitioned(None), partitioned(Some("path")), partitioned(Some("account"))] {
        let workers = Workers::of(RuleBook {
            limiters: limiters(),
            rules: rules(),
            domains: vec![domain.clone()],
            partitioned,
            ..RuleBook::default()
        });
        let request =
            [("account", "Bob"), ("tier", "PRO"), ("remote_address", "::ffff:1.2.3.4"), ("path", "//x"), ("host", "H")];
        let gateway = workers.counters_of_gateway(&request);
        assert_eq!(gateway.len(), 4);
        let asked = workers.acquire(&of([entries(&request)])).expect("rules match");
        assert_eq!(counters(&asked.decision), gateway);
        let by_limiter = [
            limiter("api_{tier}", &[("tier", "Pro"), ("account", "Bob")]),
            limiter("login", &[("path", "/y/../x?q"), ("remote_address", "1.2.3.4")]),
            limiter("exports", &[("account", "BOB"), ("host", "h")]),
            limiter("all", &[]),
        ];
        for (number, ask) in by_limiter.iter().enumerate() {
            let asked = workers.acquire(&of([ask.clone()])).expect("a rule applies it");
            assert_eq!(counters(&asked.decision), [gateway[number]], "{ask:?}");
        }
        let together = workers.acquire(&of(by_limiter)).expect("rules apply them");
        assert_eq!(counters(&together.decision), gateway, "all asks are one plan");
    }
    // An address of IPv6 is cut, and a limiter asked for directly has the same form of its values.
    let gateway = Workers::new(limiters(), vec![applies("x", vec![apply("login", &["remote_address"])])]);
    let asks = Workers::of(RuleBook {
        limiters: vec![direct(window("login", 5))],
        domains: vec![Domain { name: DOMAIN.to_owned(), ..Domain::default() }],
        ..RuleBook::default()
    });
    let by_gateway = gateway.counters_of_gateway(&[("remote_address", "2001:db8::1")]);
    let ask = of([limiter("login", &[("remote_address", "2001:db8::2")])]);
    assert_eq!(counters(&asks.acquire(&ask).expect("it is direct").decision), by_gateway);
}

#[test]
fn semantics_50_several_asks_are_all_or_nothing() {
    let rules = vec![applies("both", vec![apply("a", &["x"]), apply("b", &["x"])])];
    let workers = Workers::new(vec![window("a", 3), window("b", 1)], rules);
    let key = [("x", "1")];
    assert!(workers.grants(&of([limiter("a", &key), limiter("b", &key)])));
    let refused = workers.acquire(&of([limiter("a", &key), limiter("b", &key)])).expect("it makes sense");
    assert_eq!(refused.refused, Some(Reason::Limit));
    assert_eq!(refused.units, 0);
    assert_eq!(refused.decision.refusal().and_then(|refusal| refusal.limiter), Some("b"));
    assert!(workers.grants(&of([cost(2, limiter("a", &key))])), "the refused call charged nothing");
    assert!(!workers.grants(&of([limiter("a", &key)])));
}

#[test]
fn semantics_50_what_nothing_counts_is_an_error_with_the_nearest_name_and_never_a_pass() {
    let login = rule("login", &[("path", "/login")], Action::Apply(vec![apply("login", &["account"])]));
    let quota = rule("quota", &[("tier", "*")], Action::Apply(vec![apply("api_{tier}", &["account"])]));
    let allowed = rule("inside", &[("network", "inside")], Action::Allow);
    let limiters = vec![window("login", 2), window("api_free", 2), direct(window("stripe", 2)), window("idle", 2)];
    let workers = Workers::new(limiters, vec![login, quota, allowed]);
    let key = [("account", "a")];
    let cases = [
        (of([entries(&[("path", "/logout"), ("account", "a")])]), "asks[0].entries", "nearly matches"),
        (of([entries(&[("path", "/login"), ("acount", "a")])]), "asks[0].entries", "account"),
        (of([entries(&[("unknown", "x")])]), "asks[0].entries", "unknown"),
        (of([limiter("logni", &key)]), "asks[0].limiter", "did you mean \"login\"?"),
        (of([limiter("strip", &key)]), "asks[0].limiter", "did you mean \"stripe\"?"),
        (of([limiter("api_free", &key)]), "asks[0].limiter", "as \"api_{tier}\""),
        (of([limiter("idle", &key)]), "asks[0].limiter", "direct = true"),
        (of([limiter("login", &[("acount", "a")])]), "asks[0].key", "did you mean \"account\" by \"acount\"?"),
        (of([limiter("login", &[])]), "asks[0].key", "by no entries; rules apply it by: account"),
        (of([limiter("login", &[("account", "a"), ("x", "y")])]), "asks[0].key", "rules apply it by: account"),
        (of([limiter("api_{tier}", &key)]), "asks[0].key", "account + tier"),
        (
            of([limiter("api_{tier}", &[("account", "a"), ("tier", "fre")])]),
            "asks[0].key",
            "\"api_fre\"; did you mean \"api_free\"?",
        ),
        (of([limiter("login", &key), limiter("nothing at all", &[])]), "asks[1].limiter", "no limiter"),
        (Acquire { domain: Some("edgy".to_owned()), ..of([limiter("stripe", &key)]) }, "domain", "\"edge\""),
        (Acquire { domain: None, ..of([limiter("stripe", &key)]) }, "domain", "\"default\""),
    ];
    for (acquire, place, words) in cases {
        let error = workers.error(&acquire);
        assert_eq!((error.kind, error.place.as_str()), (AskErrorKind::NotFound, place), "{error}");
        assert!(error.message.contains(words), "{error} does not say {words:?}");
    }
    assert_eq!(workers.counters_of_gateway(&[("path", "/login"), ("account", "a")]).len(), 1);
    assert_eq!(workers.peek(&of([limiter("login", &key)])).decision.tightest().map(|check| check.remaining), Some(2));
    // What an allow rule lets pass is a pass; a rule in shadow never refuses anybody.
    assert!(workers.grants(&of([entries(&[("network", "inside")])])));
    let trial = Rule { shadow: true, ..rule("trial", &[("x", "*")], Action::Apply(vec![apply("a", &["x"])])) };
    let shadow = Workers::new(vec![window("a", 1)], vec![trial]);
    for _ in 0..3 {
        assert!(shadow.grants(&of([entries(&[("x", "1")])])));
        assert!(shadow.grants(&of([limiter("a", &[("x", "1")])])));
    }
}

#[test]
fn semantics_50_applies_that_disagree_about_a_key_are_an_error_and_an_enforced_one_wins_over_shadow() {
    let folded = KeyEntry { entry: "x".to_owned(), normalise: vec![Normaliser::Lowercase] };
    let plain = || apply("a", &["x"]);
    let others = [Apply { key: vec![folded], ..plain() }, Apply { charge: Charge::Own, ..plain() }];
    for other in others {
        let workers =
            Workers::new(vec![window("a", 1)], vec![applies("one", vec![plain()]), applies("two", vec![other])]);
        let error = workers.error(&of([limiter("a", &[("x", "1")])]));
        assert_eq!((error.kind, error.place.as_str()), (AskErrorKind::Invalid, "asks[0].limiter"));
        assert!(error.message.contains("\"one\" and \"two\""), "{error}");
    }
    let same = Apply { missing: Missing::Empty, ..plain() };
    let trial = Rule { shadow: true, ..applies("trial", vec![same]) };
    let workers = Workers::new(vec![window("a", 1)], vec![trial, applies("real", vec![plain()])]);
    let grants = [(); 2].map(|()| workers.grants(&of([limiter("a", &[("x", "1")])])));
    assert_eq!(grants, [true, false]);
}

#[test]
fn semantics_50_a_direct_limiter_counts_by_any_key_in_any_known_domain() {
    let limiters = vec![Limiter { quota: window("", 2).quota, ..direct(slots("stripe", 5, MINUTE)) }];
    let domain = |name: &str| Domain { name: name.to_owned(), ..Domain::default() };
    let workers =
        Workers::of(RuleBook { limiters, domains: vec![domain(DOMAIN), domain("default")], ..RuleBook::default() });
    let ask = |key: &[(&str, &str)]| of([limiter("stripe", key)]);
    let first = workers.acquire(&ask(&[("a", "1"), ("b", "2")])).expect("it is direct");
    assert_eq!(counters(&first.decision).len(), 2, "its quota and its slots");
    assert_eq!(
        first.decision.tightest().map(|check| (check.limiter, check.rule, check.remaining)),
        Some(("stripe", None, 1))
    );
    assert!(workers.grants(&ask(&[("b", "2"), ("a", "1")])), "in any order");
    let refused = workers.acquire(&ask(&[("a", "1"), ("b", "2")])).expect("it is direct");
    assert_eq!(refused.refused, Some(Reason::Limit));
    assert_eq!(refused.decision.refusal().map(|refusal| (refusal.limiter, refusal.rule)), Some((Some("stripe"), None)));
    for other in [ask(&[("a", "1")]), ask(&[]), Acquire { domain: None, ..ask(&[("a", "1"), ("b", "2")]) }] {
        assert!(workers.grants(&other), "another counter: {other:?}");
    }
}

#[test]
fn semantics_50_a_denied_ask_is_a_refusal_and_no_error() {
    let deny = rule("ban", &[("account", "evil")], Action::Deny);
    let counted = rule("all", &[("path", "*")], Action::Apply(vec![apply("a", &["account"])]));
    let domain = Domain { name: DOMAIN.to_owned(), unmatched: Unmatched::Deny, ..Domain::default() };
    let workers = Workers::of(RuleBook {
        limiters: vec![window("a", 1)],
        rules: vec![deny, counted],
        domains: vec![domain],
        ..RuleBook::default()
    });
    for (asked, reason) in [(("account", "evil"), Reason::Denied), (("account", "good"), Reason::Unmatched)] {
        let refused = workers.acquire(&of([entries(&[asked])])).expect("it makes sense");
        assert_eq!((refused.refused, refused.units), (Some(reason), 0));
    }
}

#[test]
fn semantics_50_a_call_that_makes_no_sense_is_an_error_with_its_place_and_charges_nothing() {
    let workers = Workers::new(vec![window("a", 1)], vec![applies("all", vec![apply("a", &["x"])])]);
    let key = [("x", "1")];
    let ask = || limiter("a", &key);
    let long = "x".repeat(100_000);
    let many: Vec<(String, String)> = (0..65).map(|number| (format!("e{number}"), String::new())).collect();
    let key_of = |key: &str| Acquire { idempotency_key: Some(key.to_owned()), ..of([ask()]) };
    let cases = [
        (of([]), "asks", "at least one"),
        (of(vec![ask(); 101]), "asks", "101"),
        (of([ask(), cost(0, ask())]), "asks[1].cost", "at least 1"),
        (of([limiter("a", &[("x", &long)])]), "asks[0].key.x", "100000 bytes"),
        (of([limiter(&long, &key)]), "asks[0].limiter", "100000 bytes"),
        (of([entries(&[(&long, "1")])]), "asks[0].entries", "100000 bytes"),
        (of([entries(&[("x", "1"), ("x", "2")])]), "asks[0].entries", "twice"),
        (of([entries(&[])]), "asks[0].entries", "at least one"),
        (of([Ask { subject: Subject::Entries(many), ..ask() }]), "asks[0].entries", "at most 64"),
        (Acquire { domain: Some(long.clone()), ..of([ask()]) }, "domain", "100000 bytes"),
        (Acquire { max_wait: Some(secs(365 * 86_400)), ..of([ask()]) }, "max_wait", "server.bounds.max_wait"),
        (Acquire { max_wait: Some(secs(601)), ..of([ask()]) }, "max_wait", "at most 600s"),
        (Acquire { lease: Some(Duration::ZERO), ..of([ask()]) }, "lease", "at least a microsecond"),
        (Acquire { lease: Some(secs(86_401)), ..of([ask()]) }, "lease", "1d"),
        (Acquire { partial: true, ..of([ask(), ask()]) }, "partial", "single ask"),
        (Acquire { partial: true, any: true, ..of([ask()]) }, "partial", "single ask"),
        (Acquire { partial: true, ..key_of("k") }, "idempotency_key", "partial"),
        (key_of(""), "idempotency_key", "random"),
        (key_of(&long), "idempotency_key", "100000 bytes"),
        (of([Ask { release_lost: true, ..ask() }]), "asks[0].lost", "without hold"),
        (of([Ask { hold: Some(Duration::ZERO), ..ask() }]), "asks[0].hold", "at least a microsecond"),
    ];
    for (acquire, place, words) in cases {
        let error = workers.error(&acquire);
        assert_eq!((error.kind, error.place.as_str()), (AskErrorKind::Invalid, place), "{error}");
        assert!(error.message.contains(words), "{error} does not say {words:?}");
    }
    assert!(workers.grants(&of([ask()])), "nothing was charged");
}

#[test]
fn semantics_50a_a_peek_answers_for_the_whole_cost_and_takes_nothing() {
    let limiters = vec![quota("a", 10, MINUTE, bucket(None)), slots("jobs", 1, MINUTE)];
    let workers = Workers::new(limiters, vec![applies("all", vec![apply("a", &["x"]), apply("jobs", &["x"])])]);
    let call = |units| of([cost(units, entries(&[("x", "1")]))]);
    for _ in 0..3 {
        assert_eq!([10, 11].map(|units| workers.peek(&call(units)).granted()), [true, false]);
    }
    assert!(workers.acquire(&call(8)).expect("it makes sense").granted());
    let peeked = workers.peek(&of([cost(3, limiter("a", &[("x", "1")]))]));
    assert!(!peeked.granted());
    assert_eq!(peeked.decision.refusal().and_then(|refusal| refusal.retry_after), Some(secs(6)));
    assert!(!workers.peek(&call(1)).granted(), "the slot is held");
    assert!(workers.peek(&of([cost(2, limiter("a", &[("x", "1")]))])).granted());
}

#[test]
fn semantics_50_a_lease_has_the_length_that_was_asked_for_and_its_end_is_reported() {
    let workers = Workers::new(vec![slots("jobs", 1, MINUTE)], vec![applies("all", vec![apply("jobs", &[])])]);
    let call = |lease: Option<u64>| Acquire { lease: lease.map(secs), ..of([limiter("jobs", &[])]) };
    let acquire = |lease| workers.acquire(&call(lease)).expect("it makes sense");
    let lease = acquire(Some(15)).lease.expect("a slot was taken");
    assert_eq!(lease.ends_in, secs(15));
    workers.clock.advance(secs(14));
    assert_eq!(acquire(None).refused, Some(Reason::Limit));
    workers.clock.advance(secs(1));
    let next = acquire(None).lease.expect("the first lease ended");
    assert_eq!(next.ends_in, MINUTE);
    let renew = |lease: &str, length| workers.service.renew(lease, length).now_or_never().expect("nobody waits");
    assert_eq!(renew(&next.text, Some(secs(90))), Ok((LeaseStatus::Held(90_000_000), Some(secs(90)))));
    for senseless in [Duration::ZERO, secs(86_401)] {
        let error = renew(&next.text, Some(senseless)).expect_err("it is not renewed by less than was asked for");
        assert_eq!(error.place, "length");
    }
    workers.clock.advance(secs(40));
    assert_eq!(renew(&next.text, None), Ok((LeaseStatus::Held(90_000_000), Some(secs(90)))));
    workers.clock.advance(secs(89));
    assert_eq!(acquire(None).refused, Some(Reason::Limit), "its own length is that of the last renewal");
    assert_eq!(renew("forged", Some(secs(90))), Ok((LeaseStatus::Unknown, None)));
    let release = |lease: &str| workers.service.release(lease).now_or_never().expect("nobody waits");
    let released = [release(&next.text), release(&next.text), release(&lease.text), release("forged")];
    assert_eq!(released, [LeaseStatus::Done, LeaseStatus::Unknown, LeaseStatus::Unknown, LeaseStatus::Unknown]);
}

#[test]
fn any_of_several_asks_takes_the_first_that_is_admitted() {
    let limiters = vec![window("a", 1), window("b", 1), window("c", 9)];
    let workers = Workers::new(limiters, vec![applies("all", vec![apply("a", &[]), apply("b", &[]), apply("c", &[])])]);
    let call = Acquire { any: true, ..of([limiter("a", &[]), limiter("b", &[])]) };
    let granted = [(); 2].map(|()| workers.acquire(&call).expect("it makes sense"));
    assert_eq!(granted.map(|acquisition| (acquisition.granted(), acquisition.ask)), [(true, 0), (true, 1)]);
    workers.clock.advance(secs(59));
    let refused = workers.acquire(&call).expect("it makes sense");
    assert_eq!(refused.decision.refusal().and_then(|refusal| refusal.retry_after), Some(secs(1)));
    // Entries that no rule counts are an error also where another ask would be admitted.
    let unknown = Acquire { any: true, ..of([limiter("c", &[]), limiter("d", &[])]) };
    assert_eq!(workers.error(&unknown).place, "asks[1].limiter");
}
