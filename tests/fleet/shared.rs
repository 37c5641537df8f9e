//! Two versions on one shared store.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::version::{Instance, Version};
use crate::support::processes::redis::Setup;
use crate::support::processes::{Ask, Postgres};
use crate::support::service::{OK, lease};

/// Every algorithm with 60 units in a window that does not end during a test. A year keeps its boundary away from the
/// test on every day but one.
const LIMITERS: &str = "
[limiters.bucket]
algorithm = 'token_bucket'
limit = 60
window = '1d'
[limiters.sliding]
algorithm = 'sliding_window'
limit = 60
window = '1d'
[limiters.counter]
algorithm = 'sliding_counter'
limit = 60
window = '365d'
[limiters.epoch]
algorithm = 'fixed_window'
alignment = 'epoch'
limit = 60
window = '365d'
[limiters.first_hit]
algorithm = 'fixed_window'
alignment = 'first_hit'
limit = 60
window = '1d'
[limiters.calendar]
algorithm = 'fixed_window'
calendar = 'year'
limit = 60
[limiters.slots]
algorithm = 'concurrency'
max_concurrent = 8
lease = '10m'
[limiters.tier_large]
algorithm = 'token_bucket'
limit = 60
window = '1d'
[limiters.tier_small]
algorithm = 'token_bucket'
limit = 5
window = '1d'
";

/// The limiters with 60 units.
const COUNTING: [&str; 6] = ["bucket", "sliding", "counter", "epoch", "first_hit", "calendar"];

/// The configuration of both versions: a decision that the store does not make is refused, so that none is made
/// elsewhere.
fn configuration(store: &str, apply: &str) -> String {
    let mut toml = format!(
        "[server]\ngrpc = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\nsecret = 'for this test'\n\
         drain_delay = '0s'\n[stores.main]\n{store}timeout = '10s'\n{LIMITERS}"
    );
    for limiter in COUNTING.into_iter().chain(["slots"]) {
        toml += &format!(
            "[[rules]]\ndomain = 'edge'\nname = '{limiter}'\nmatch = {{ use = '{limiter}' }}\n\
             apply = [{{ limiter = '{limiter}', key = ['account'] }}]\n"
        );
    }
    for limiter in COUNTING {
        toml += &format!(
            "[[rules]]\ndomain = 'edge'\nname = 'held_{limiter}'\nmatch = {{ held = '{limiter}' }}\n\
             apply = [{{ limiter = '{limiter}', key = ['account', 'held']{apply} }}]\n"
        );
    }
    toml += "[[rules]]\ndomain = 'edge'\nname = 'several'\nmatch = { use = 'several' }\n\
             apply = [{ limiter = 'bucket', key = ['use'] }, { limiter = 'sliding', key = ['use', 'account'] }]\n\
             [[rules]]\ndomain = 'edge'\nname = 'tiers'\nmatch = { use = 'tiers' }\n\
             apply = [{ limiter = 'tier_{tier}', key = ['account'] }]\n";
    toml.replace("]\nalgorithm", "]\non_store_error = 'deny'\nalgorithm")
}

/// How many of `requests` are admitted, when both instances get them at the same time from four clients each.
async fn admitted(
    instances: [&Instance; 2],
    entries: &'static [(&'static str, &'static str)],
    requests: usize,
) -> usize {
    const CLIENTS: usize = 4;
    let clients = instances.into_iter().flat_map(|instance| (0..CLIENTS).map(move |_| instance.rls.clone()));
    let clients = clients.map(|rls| {
        tokio::spawn(async move {
            let mut admitted = 0;
            for _ in 0..requests.div_ceil(2 * CLIENTS) {
                admitted += usize::from(rls.one(entries).await.overall_code == OK);
            }
            admitted
        })
    });
    let mut sum = 0;
    for client in clients.collect::<Vec<_>>() {
        sum += client.await.expect("a client asks to its end");
    }
    sum
}

fn of(limiter: &'static str) -> &'static [(&'static str, &'static str)] {
    match limiter {
        "bucket" => &[("use", "bucket"), ("account", "a")],
        "sliding" => &[("use", "sliding"), ("account", "a")],
        "counter" => &[("use", "counter"), ("account", "a")],
        "epoch" => &[("use", "epoch"), ("account", "a")],
        "first_hit" => &[("use", "first_hit"), ("account", "a")],
        "calendar" => &[("use", "calendar"), ("account", "a")],
        other => panic!("{other} has no units"),
    }
}

async fn use_up_together(before: &Instance, now: &Instance) {
    for limiter in COUNTING {
        let entries = of(limiter);
        assert_eq!(before.ask(entries, 20).await.overall_code, OK, "{limiter}");
        assert_eq!(now.left(entries).await, 40, "{limiter}: this version reads what the one before wrote");
        assert_eq!(now.ask(entries, 20).await.overall_code, OK, "{limiter}");
        assert_eq!(before.left(entries).await, 20, "{limiter}: the version before reads what this one wrote");
        for (giver, left) in [(now, 30), (before, 40)] {
            giver.refund(entries, 10).await;
            assert_eq!(
                (before.left(entries).await, now.left(entries).await),
                (left, left),
                "{limiter}: after a refund"
            );
        }
        assert_eq!(admitted([before, now], entries, 120).await, 40, "{limiter}: the sum of both");
    }
}

async fn decide_all_or_nothing_together(before: &Instance, now: &Instance) {
    const FIRST: &[(&str, &str)] = &[("use", "several"), ("account", "a")];
    const SECOND: &[(&str, &str)] = &[("use", "several"), ("account", "b")];
    let first = admitted([before, now], FIRST, 40).await;
    let second = admitted([now, before], SECOND, 80).await;
    assert_eq!((first, second), (40, 20), "60 of both accounts together");
    // Requests that the bucket refused were not charged to the window of the account.
    for instance in [before, now] {
        let answer = instance.ask(SECOND, 0).await;
        assert_eq!(answer.statuses[0].limit_remaining, 0, "{:?}: the bucket is empty", instance.version);
    }
}

async fn share_tiers(before: &Instance, now: &Instance) {
    const LARGE: &[(&str, &str)] = &[("use", "tiers"), ("account", "a"), ("tier", "large")];
    const SMALL: &[(&str, &str)] = &[("use", "tiers"), ("account", "a"), ("tier", "small")];
    assert_eq!(before.ask(LARGE, 50).await.overall_code, OK);
    assert_ne!(now.ask(SMALL, 1).await.overall_code, OK, "it has used more than a small one may");
    assert_eq!((before.left(LARGE).await, now.left(LARGE).await), (10, 10));
    assert_eq!(now.ask(LARGE, 5).await.overall_code, OK);
    assert_eq!((before.left(LARGE).await, now.left(LARGE).await), (5, 5));
}

/// The version of a lease text (semantics 38).
fn version_of(lease: &str) -> u8 {
    URL_SAFE_NO_PAD.decode(lease).expect("base64url")[0]
}

/// Takes a slot over the API.
fn take_as_a_worker(instance: &Instance) -> String {
    let ask = Ask::post("/v1/acquire").loopback();
    let ask = ask.json("{\"domain\": \"edge\", \"entries\": {\"use\": \"slots\", \"account\": \"a\"}}");
    let port = instance.served.http.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).expect("a port");
    let answer = ask.send(port).expect("it answers").expect(200);
    let answer: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
    answer["lease"].as_str().expect("a slot is free").to_owned()
}

async fn release_leases_of_each_other(before: &Instance, now: &Instance) {
    const SLOT: &[(&str, &str)] = &[("use", "slots"), ("account", "a")];
    let take = async |instance: &Instance| lease(&instance.rls.one(SLOT).await).expect("a slot is free");
    let mut by_before = Vec::new();
    let mut by_now = Vec::new();
    for _ in 0..3 {
        by_before.push(take(before).await);
        by_now.push(take(now).await);
    }
    by_before.push(take(before).await);
    by_now.push(take_as_a_worker(now));
    assert!(by_now.iter().all(|lease| version_of(lease) == 1), "slots alone are written as before: {by_now:?}");
    assert_eq!(admitted([before, now], SLOT, 16).await, 0, "all slots are taken");
    for (slot, left) in by_before.iter().zip(1..) {
        now.release(slot).await;
        assert_eq!(now.left(SLOT).await, left, "this version releases a lease of the one before");
    }
    for (slot, left) in by_now.iter().zip(5..) {
        before.release(slot).await;
        assert_eq!(before.left(SLOT).await, left, "the version before releases a lease of this one");
    }
    assert_eq!(admitted([before, now], SLOT, 40).await, 8);
}

/// The version before knows of no holds: it counts what is held like anything else, and neither gives it back nor loses it.
async fn count_what_this_version_holds(before: &Instance, now: &Instance) {
    for limiter in COUNTING {
        let entries = &[("held", limiter), ("account", "a")];
        let held = lease(&now.ask(entries, 20).await).expect("it is held");
        assert_eq!(version_of(&held), 2, "the version of what is held");
        assert_eq!(before.left(entries).await, 40, "{limiter}");
        assert_eq!(before.ask(entries, 10).await.overall_code, OK, "{limiter}");
        before.release(&held).await;
        assert_eq!((before.left(entries).await, now.left(entries).await), (30, 30), "{limiter}: no lease to it");
        now.settle(&held, 5).await;
        assert_eq!((before.left(entries).await, now.left(entries).await), (45, 45), "{limiter}: settled");
        let more = lease(&now.ask(entries, 5).await).expect("it is held");
        before.refund(entries, 1).await;
        now.settle(&more, 25).await;
        assert_eq!((before.left(entries).await, now.left(entries).await), (21, 21), "{limiter}: more was used");
    }
}

/// Everything that two versions do together, and what the version before then finds when it starts again.
async fn upgrade_and_go_back(store: &str) {
    let (configuration, holding) = (configuration(store, ""), configuration(store, ", hold = '5m'"));
    let before = Version::Before.serve(&configuration).await;
    // The store belongs to the version before, as it does when an upgrade begins.
    assert_eq!(before.ask(&[("use", "bucket"), ("account", "first")], 1).await.overall_code, OK);
    let now = Version::Now.serve(&holding).await;
    count_what_this_version_holds(&before, &now).await;
    use_up_together(&before, &now).await;
    decide_all_or_nothing_together(&before, &now).await;
    share_tiers(&before, &now).await;
    release_leases_of_each_other(&before, &now).await;
    drop((before, now));
    let again = Version::Before.serve(&configuration).await;
    for limiter in COUNTING {
        assert_eq!(again.left(of(limiter)).await, 0, "{limiter}: what this version used stays used");
    }
    assert_eq!(again.left(&[("use", "slots"), ("account", "a")]).await, 0);
}

/// So lease texts that the version before cannot read are written by nothing that it can be configured with too.
#[test]
fn semantics_38_the_version_before_refuses_a_configuration_that_can_hold() {
    let store = "engine = 'redis'\nurl = 'redis://127.0.0.1:6379'\n";
    let (plain, holding) = (configuration(store, ""), configuration(store, ", hold = '5m'"));
    let direct = plain.replace("lease = '10m'", "lease = '10m'\ndirect = true");
    assert_ne!(plain, direct);
    assert_eq!(Version::Before.complaint(&plain), None);
    for (toml, key) in [(holding, "hold"), (direct, "direct")] {
        assert_eq!(Version::Now.complaint(&toml), None, "{key}");
        let complaint = Version::Before.complaint(&toml).unwrap_or_else(|| panic!("the version before knows {key}"));
        assert!(complaint.contains(key), "{complaint}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_share_a_redis() {
    let Some(redis) = Setup::redis().map(Setup::start) else { panic!("redis-server is not installed") };
    upgrade_and_go_back(&format!("engine = 'redis'\nurl = 'redis://127.0.0.1:{}'\n", redis.port)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_versions_share_a_postgres() {
    let Some(postgres) = Postgres::shared() else { panic!("PostgreSQL is not installed") };
    let url = postgres.url(&postgres.database());
    upgrade_and_go_back(&format!("engine = 'postgres'\nurl = '{url}'\n")).await;
}
