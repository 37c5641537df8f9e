//! Mistakes of gateways, counted by the doors: which requests are one, and which are not.

use std::time::Duration;

use tollgate::rules::{Action, Domain, Missing, Rule, RuleBook};
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::settings::{AuthzSettings, Settings};
use tollgate::telemetry::Mistake;

use crate::support::service::*;

/// Logins by path and method, and exports by `kind`.
fn rules() -> RuleBook {
    let login = rule("login", &[("path", "/login"), ("method", "POST")], &[("account", &["account"])]);
    let export = rule("export", &[("kind", "export")], &[("account", &["account"])]);
    book([window("account", 100, 60)], [login, export])
}

/// The mistakes that were counted so far.
fn mistakes(service: &Doors) -> Vec<(Mistake, u64)> {
    service.service.doors().mistakes.counts().filter(|(_, count)| *count > 0).collect()
}

/// Waits until the mistakes are these.
async fn until(service: &Doors, expected: &[(Mistake, u64)]) {
    let counted = async {
        while mistakes(service) != expected {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let counted = tokio::time::timeout(WAIT_TIMEOUT, counted).await;
    assert!(counted.is_ok(), "expected {expected:?}, counted {:?}", mistakes(service));
}

/// Waits until a report has looked at all requests so far, and returns the mistakes.
async fn looked_at(service: &Doors) -> Vec<(Mistake, u64)> {
    // A report that finds this one has looked at all before it.
    let before = mistakes(service);
    let known = before.iter().find(|(mistake, _)| *mistake == Mistake::UnknownKeys).map_or(0, |(_, count)| *count);
    service.rls().await.ask(question("edge", [descriptor(&[("looked_at", "")])])).await;
    let looked_at = |service: &Doors| {
        mistakes(service).into_iter().any(|(mistake, count)| mistake == Mistake::UnknownKeys && count > known)
    };
    let began = tokio::time::Instant::now();
    while !looked_at(service) {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{:?}", mistakes(service));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    mistakes(service)
}

#[tokio::test]
async fn a_descriptor_with_a_key_that_no_rule_uses_is_a_mistake_if_every_rule_lacks_one() {
    let misspelt: [&[RateLimitDescriptor]; 5] = [
        &[descriptor(&[("pth", "/login"), ("method", "POST"), ("account", "ada")])],
        &[descriptor(&[("Path", "/login"), ("method", "POST")])],
        &[descriptor(&[("method", "POST"), ("", "/login")])],
        // Of several descriptors, one is enough.
        &[descriptor(&[("kind", "export"), ("account", "ada")]), descriptor(&[("pth", "/login")])],
        &[descriptor(&[("pth", "/login")]), descriptor(&[("path", "/other"), ("method", "GET")])],
    ];
    let service = Doors::start(rules()).await;
    let rls = service.rls().await;
    for (number, descriptors) in misspelt.iter().enumerate() {
        rls.ask(question("edge", descriptors.iter().cloned())).await;
        until(&service, &[(Mistake::UnknownKeys, number as u64 + 1)]).await;
    }
}

#[tokio::test]
async fn semantics_26_what_is_meant_to_pass_is_no_mistake() {
    let mut book = rules();
    let trial = rule("trial", &[("trial", "*")], &[("account", &["account"])]);
    book.rules.push(Rule { shadow: true, ..trial });
    let service = Doors::start(book).await;
    let rls = service.rls().await;
    for descriptors in [
        // Values that no rule is about, with and without a key that no rule uses.
        vec![descriptor(&[("path", "/"), ("method", "GET")])],
        vec![descriptor(&[("path", "/"), ("method", "POST"), ("request_id", "7")])],
        vec![descriptor(&[("kind", "import"), ("region", "eu")])],
        // An entry that Envoy skips because it is absent.
        vec![descriptor(&[("path", "/login")])],
        vec![descriptor(&[("account", "ada")])],
        // A rule in shadow mode matches.
        vec![descriptor(&[("trial", "1"), ("region", "eu")])],
        // A release without a genuine lease, in any domain with rules.
        vec![descriptor(&[("release", "")])],
        vec![descriptor(&[("path", "/login"), ("method", "POST"), ("region", "eu")])],
    ] {
        rls.ask(question("edge", descriptors)).await;
    }
    assert_eq!(looked_at(&service).await, [(Mistake::UnknownKeys, 1)], "the one of looking");
}

/// The descriptor of a login, with some keys spelt otherwise.
fn login(spelt: &[(&str, &str)]) -> RateLimitDescriptor {
    let entries = [("path", "/login"), ("method", "POST"), ("account", "ada"), ("remote_address", "198.51.100.7")];
    let key = |key: &'static str| spelt.iter().find(|(known, _)| *known == key).map_or(key, |(_, spelt)| spelt);
    descriptor(&entries.map(|(known, value)| (key(known), value)))
}

/// The rules for logins, and more rules beside them.
fn logins(more: impl IntoIterator<Item = Rule>) -> RuleBook {
    let mut book = rules();
    book.rules.extend(more);
    book
}

#[tokio::test]
async fn semantics_26_a_key_that_is_nearly_a_missing_one_is_a_mistake_whatever_other_rules_do() {
    let blocked = || Rule { action: Action::Deny, ..rule("blocked", &[("remote_address", "203.0.113.0/24")], &[]) };
    let health = || rule("health", &[("path", "/health")], &[("account", &["path"])]);
    let each_address = || rule("each_address", &[], &[("account", &["remote_address"])]);
    let spellings: [&[(&str, &str)]; 8] = [
        &[("path", "pth")],
        &[("path", "Path")],
        &[("method", "mthod")],
        &[("method", "METHOD")],
        &[("remote_address", "remote-address")],
        &[("remote_address", "remote_addres")],
        &[("path", "paht"), ("method", "methd")],
        &[("account", "acount"), ("path", "/path")],
    ];
    for more in [vec![blocked()], vec![health(), blocked()], vec![each_address(), health()]] {
        let service = Doors::start(logins(more)).await;
        let rls = service.rls().await;
        for (number, spelt) in spellings.iter().enumerate() {
            rls.ask(question("edge", [login(spelt)])).await;
            until(&service, &[(Mistake::UnknownKeys, number as u64 + 1)]).await;
        }
    }
}

#[tokio::test]
async fn semantics_26_a_misspelt_entry_of_a_key_is_a_mistake_though_a_rule_matches() {
    for missing in [Missing::Skip, Missing::Deny, Missing::Empty] {
        let mut book = rules();
        for rule in &mut book.rules {
            let Action::Apply(applies) = &mut rule.action else { continue };
            applies.iter_mut().for_each(|apply| apply.missing = missing);
        }
        let service = Doors::start(book).await;
        let rls = service.rls().await;
        for (number, spelt) in ["acount", "Account", "accounts"].into_iter().enumerate() {
            let answer = rls.ask(question("edge", [login(&[("account", spelt)])])).await;
            assert_eq!(answer.overall_code == OVER_LIMIT, missing == Missing::Deny, "{missing:?}");
            until(&service, &[(Mistake::UnknownKeys, number as u64 + 1)]).await;
        }
    }
    // Each request whose check is skipped is counted, not only the first.
    let service = Doors::start(rules()).await;
    let rls = service.rls().await;
    for _ in 0..5 {
        rls.ask(question("edge", [login(&[("account", "acount")])])).await;
    }
    until(&service, &[(Mistake::UnknownKeys, 5)]).await;
    // The entry that fills the name of a limiter.
    let tiered = rule("tiered", &[("path", "/login")], &[("{tier}", &["account"])]);
    let service = Doors::start(book([window("gold", 100, 60)], [tiered])).await;
    service.rls().await.ask(question("edge", [descriptor(&[("path", "/login"), ("teir", "gold")])])).await;
    until(&service, &[(Mistake::UnknownKeys, 1)]).await;
}

#[tokio::test]
async fn a_misspelt_key_beside_correct_requests_that_a_rule_matches_is_a_mistake_too() {
    let each_address = rule("each_address", &[], &[("account", &["remote_address"])]);
    let service = Doors::start(logins([each_address])).await;
    let rls = service.rls().await;
    // Nothing is skipped and everything matches, so that a decision shows no sign: one a second is looked at.
    let began = tokio::time::Instant::now();
    // In turn, so that what is looked at after a pause is each of them half the time.
    for round in 0.. {
        if !mistakes(&service).is_empty() {
            break;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT);
        let correct = || rls.ask(question("edge", [login(&[])]));
        let misspelt = || rls.ask(question("edge", [login(&[("path", "pth")])]));
        if round % 2 == 0 {
            correct().await;
            misspelt().await;
        } else {
            misspelt().await;
            correct().await;
        }
        tokio::time::sleep(Duration::from_millis(3)).await;
    }
    assert!(matches!(mistakes(&service)[..], [(Mistake::UnknownKeys, _)]));
}

#[tokio::test]
async fn semantics_26_keys_that_are_meant_to_be_there_or_to_be_absent_are_no_mistakes() {
    let mut book = logins([rule("device", &[("device", "*")], &[("account", &["device", "ip"])])]);
    let listed = ["path", "method", "account", "kind", "device", "ip", "devices", "accounts"];
    book.domains.push(Domain {
        name: "edge".into(),
        entries: Some(listed.map(str::to_owned).to_vec()),
        ..Domain::default()
    });
    let service = Doors::start(book).await;
    let rls = service.rls().await;
    for entries in [
        // Listed, and near to what rules use.
        &[("path", "/login"), ("method", "POST"), ("accounts", "7")][..],
        &[("path", "/"), ("devices", "7")],
        // Only absent.
        &[("path", "/login"), ("method", "POST")],
        &[("method", "POST"), ("account", "ada")],
        // Near to an entry that is there too.
        &[("path", "/login"), ("method", "POST"), ("account", "ada"), ("acount", "7")],
        // Near to nothing.
        &[("path", "/login"), ("method", "POST"), ("region", "eu")],
        &[("path", "/other"), ("method", "GET"), ("request_id", "7")],
        // Of two letters each, which every other pair nearly is.
        &[("path", "/login"), ("method", "POST"), ("id", "7")],
        &[("device", "7"), ("id", "7")],
    ] {
        rls.ask(question("edge", [descriptor(entries)])).await;
    }
    assert_eq!(looked_at(&service).await, [(Mistake::UnknownKeys, 1)], "the one of looking");
}

#[tokio::test]
async fn requests_without_a_known_domain_or_descriptors_are_mistakes() {
    let service = Doors::start(rules()).await;
    let rls = service.rls().await;
    let login = || [descriptor(&[("path", "/login"), ("method", "POST")])];
    rls.ask(question("edge", login())).await;
    for _ in 0..9 {
        rls.ask(question("egde", login())).await;
    }
    rls.ask(question("", login())).await;
    rls.ask(question("edge", [])).await;
    rls.ask(question("shop", [])).await;
    // A request past a bound is refused, whatever its domain.
    let many = std::iter::repeat_n(descriptor(&[("a", "b")]), 101);
    assert_eq!(rls.ask(question("shop", many)).await.overall_code, OVER_LIMIT);
    let counted = [(Mistake::UnknownDomain, 10), (Mistake::EmptyDomain, 1), (Mistake::NoDescriptors, 1)];
    assert_eq!(mistakes(&service), counted);
}

/// ext_authz for the domain `edge`.
fn authz() -> Settings {
    let authz =
        AuthzSettings { domain: "edge".into(), entries: vec![], trusted_hops: 0, trust_external_address: false };
    Settings { authz, ..settings() }
}

#[tokio::test]
async fn a_domain_of_which_no_rule_ever_matched_is_a_mistake_after_a_minute() {
    let service = Doors::start_with(authz(), rules()).await;
    let page = "GET /authz/envoy/page HTTP/1.1\r\nhost: shop";
    for _ in 0..3 {
        assert_eq!(service.ask(page).await.status, 200);
    }
    // A key that no rule uses comes from ext_authz with every request.
    assert_eq!(looked_at(&service).await, [(Mistake::UnknownKeys, 1)]);
    service.clock.advance(Duration::from_secs(59));
    assert_eq!(looked_at(&service).await, [(Mistake::UnknownKeys, 2)]);
    service.clock.advance(Duration::from_secs(1));
    until(&service, &[(Mistake::UnknownKeys, 2), (Mistake::NothingMatched, 5)]).await;
    service.ask(page).await;
    until(&service, &[(Mistake::UnknownKeys, 2), (Mistake::NothingMatched, 6)]).await;
    // From the first match on, a page that no rule limits is no mistake.
    assert_eq!(service.ask("POST /authz/envoy/login HTTP/1.1\r\nhost: shop").await.status, 200);
    service.ask(page).await;
    service.clock.advance(Duration::from_secs(3600));
    assert_eq!(looked_at(&service).await, [(Mistake::UnknownKeys, 3), (Mistake::NothingMatched, 6)]);
}

#[tokio::test]
async fn random_keys_are_told_apart_within_a_bound_and_again_a_minute_later() {
    let service = Doors::start(rules()).await;
    let rls = service.rls().await;
    let ask = async |number: u32| {
        let key = format!("key{number}");
        rls.ask(question("edge", [descriptor(&[(&*key, "\r\n")])])).await;
    };
    for number in 0..1000 {
        ask(number).await;
    }
    let counted = || mistakes(&service).first().map_or(0, |(_, count)| *count);
    let began = tokio::time::Instant::now();
    let wait = async || {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{:?}", mistakes(&service));
        tokio::time::sleep(Duration::from_millis(5)).await;
    };
    // Sixteen sets of keys are counted, and each came once.
    while counted() < 16 {
        wait().await;
    }
    assert_eq!(counted(), 16);
    // A report empties the table.
    service.clock.advance(Duration::from_secs(60));
    while counted() < 40 {
        ask(2000).await;
        wait().await;
    }
}
