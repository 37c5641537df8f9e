//! Reloads: a new configuration is applied as a whole or not at all, and counters keep their state (semantics 29).

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as Attributes};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tollgate::app::{App, PendingRestart, PreparedService, ReloadOutcome, Reloader};
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::config::{Config, Origin, RestartSettings};
use tollgate::decision::Decision;
use tollgate::descriptor::{Descriptor, Request};
use tollgate::limiter::LeaseStatus;
use tollgate::service::Service;
use tollgate::store::StoreFact;
use tollgate::telemetry::Door;

use crate::support::service::{CHECK, Rls};

/// A service that is served from a file which the test replaces.
struct Served {
    directory: TempDir,
    service: Arc<Service>,
    reloader: Reloader,
    grpc: SocketAddr,
    _stop: oneshot::Sender<()>,
    _serving: JoinHandle<()>,
}

const SERVER: &str = "[server]\ngrpc = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\nadmin = 'off'\ndrain_delay = '0s'\n";

impl Served {
    async fn of(text: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        fs::write(directory.path().join("tollgate.toml"), format!("{SERVER}{text}")).expect("a file");
        let (origin, config) = Origin::read(Some(&directory.path().join("tollgate.toml")));
        let config = config.unwrap_or_else(|errors| panic!("{errors}"));
        let restart_settings = RestartSettings::of(&config);
        let prepared = PreparedService::of(config).expect("it can be served");
        let clock = ManualClock::at(Timestamp::from_secs(1_800_000_000));
        let stores = prepared.stores().expect("stores in memory can be made");
        let plan = prepared.plan;
        let app = App::open_at(&prepared.settings, prepared.rules, stores, Arc::new(clock)).await;
        let app = app.expect("the doors open");
        let (service, reloader) = (app.service().clone(), app.reloader(origin, &restart_settings, plan));
        let grpc = app.grpc_address().tcp().expect("an address");
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(app.serve(async move { drop(stopped.await) }));
        Self { directory, service, reloader, grpc, _stop: stop, _serving: serving }
    }

    fn file(&self) -> PathBuf {
        self.directory.path().join("tollgate.toml")
    }

    /// Replaces the file and reloads it.
    fn become_(&mut self, text: &str) -> ReloadOutcome {
        fs::write(self.file(), format!("{SERVER}{text}")).expect("a file");
        self.reloader.reload(false)
    }

    /// Replaces the file and reloads it; it must be applied in full.
    fn take(&mut self, text: &str) {
        assert_eq!(self.become_(text), ReloadOutcome::Applied { pending: Vec::new() });
    }

    async fn ask(&self, entries: &[(&str, &str)]) -> Decision {
        let descriptor = Descriptor::of(entries.iter().copied());
        let request = Request { domain: "edge", descriptors: [descriptor].into_iter().collect() };
        self.service.current().decide(Door::Rls, &request).await
    }

    /// The number of requests of an account that pass before one is refused.
    async fn passes(&self, account: &str) -> usize {
        for passed in 0..100 {
            if !self.ask(&[("account", account)]).await.allowed() {
                return passed;
            }
        }
        panic!("nothing is refused");
    }
}

/// One limiter, applied to every account.
fn limited(limiter: &str) -> String {
    format!(
        "[limiters.login]\n{limiter}\n[[rules]]\ndomain = 'edge'\nname = 'login'\n\
         apply = [{{ limiter = 'login', key = ['account'] }}]\n"
    )
}

#[tokio::test]
async fn semantics_29_counts_carry_over_when_limit_rate_burst_or_max_concurrent_change() {
    let cases = [
        (
            "algorithm = 'sliding_window'\nlimit = 5\nwindow = '1h'",
            "algorithm = 'sliding_window'\nlimit = 8\nwindow = '1h'",
        ),
        (
            "algorithm = 'sliding_counter'\nlimit = 5\nwindow = '1h'",
            "algorithm = 'sliding_counter'\nlimit = 8\nwindow = '1h'",
        ),
        (
            "algorithm = 'fixed_window'\nlimit = 5\nwindow = '1h'",
            "algorithm = 'fixed_window'\nlimit = 8\nwindow = '1h'",
        ),
        (
            "algorithm = 'token_bucket'\nlimit = 5\nwindow = '1h'",
            "algorithm = 'token_bucket'\nlimit = 8\nwindow = '1h'",
        ),
        (
            "algorithm = 'token_bucket'\nlimit = 100\nwindow = '1h'\nburst = 5",
            "algorithm = 'token_bucket'\nlimit = 100\nwindow = '1h'\nburst = 8",
        ),
        (
            "algorithm = 'token_bucket'\nlimit = 5\nwindow = '1h'",
            "algorithm = 'token_bucket'\nlimit = 8\nwindow = '1d'",
        ),
        ("rate_per_second = 1\nburst = 5", "rate_per_second = 2\nburst = 8"),
        ("algorithm = 'concurrency'\nmax_concurrent = 5", "algorithm = 'concurrency'\nmax_concurrent = 8"),
    ];
    for (five, eight) in cases {
        let mut served = Served::of(&limited(five)).await;
        assert_eq!(served.passes("ada").await, 5, "{five}");
        served.take(&limited(eight));
        assert_eq!(served.passes("ada").await, 3, "{eight}: five of eight were used");
        assert_eq!(served.passes("bob").await, 8, "{eight}");
        served.take(&limited(five));
        assert_eq!(served.passes("ada").await, 0, "{five}: more than five are used");
    }
}

#[tokio::test]
async fn semantics_29_a_changed_algorithm_store_alignment_or_window_is_a_fresh_counter() {
    let stores = "[stores.main]\nengine = 'memory'\n[stores.other]\nengine = 'memory'\n";
    let login = |limiter: &str| format!("{stores}{}", limited(&format!("limit = 5\nstore = 'main'\n{limiter}")));
    let fixed = "algorithm = 'fixed_window'\nwindow = '1d'";
    let cases = [
        ("algorithm = 'sliding_window'\nwindow = '1h'", "algorithm = 'sliding_counter'\nwindow = '1h'"),
        ("algorithm = 'sliding_window'\nwindow = '1h'", "algorithm = 'sliding_window'\nwindow = '2h'"),
        ("algorithm = 'sliding_counter'\nwindow = '1h'", "algorithm = 'sliding_counter'\nwindow = '2h'"),
        (fixed, "algorithm = 'fixed_window'\nwindow = '2d'"),
        (fixed, "algorithm = 'fixed_window'\ncalendar = 'day'"),
        (fixed, "algorithm = 'token_bucket'\nwindow = '1d'"),
    ];
    for (before, after) in cases {
        let mut served = Served::of(&login(before)).await;
        assert_eq!(served.passes("ada").await, 5, "{before}");
        served.take(&login(after));
        assert_eq!(served.passes("ada").await, 5, "{after}: a fresh counter");
        // The earlier counter still exists: taking a mistake back does not charge anything twice.
        served.take(&login(before));
        assert_eq!(served.passes("ada").await, 0, "{before}");
        served.take(&login(before).replace("store = 'main'", "store = 'other'"));
        assert_eq!(served.passes("ada").await, 5, "{before} in another store");
    }
}

#[tokio::test]
async fn stores_keep_what_they_hold_by_their_names() {
    let login = |stores: &[&str], store: &str| {
        let stores: String = stores.iter().map(|name| format!("[stores.{name}]\nengine = 'memory'\n")).collect();
        format!(
            "{stores}{}",
            limited(&format!("algorithm = 'sliding_window'\nlimit = 5\nwindow = '1h'\nstore = '{store}'"))
        )
    };
    let mut served = Served::of(&login(&["a", "b"], "b")).await;
    assert_eq!(served.passes("ada").await, 5);
    for stores in [&["b", "a"][..], &["c", "b"], &["b"], &["x", "y", "z", "b"]] {
        served.take(&login(stores, "b"));
        assert_eq!(served.passes("ada").await, 0, "{stores:?}");
    }
    served.take(&login(&["x"], "x"));
    assert_eq!(served.passes("ada").await, 5, "another store is another");
    served.take(&login(&["b"], "b"));
    assert_eq!(served.passes("ada").await, 5, "one that was gone is new");
}

#[tokio::test]
async fn a_slot_that_was_taken_before_a_reload_is_given_back_after_it() {
    let exports = |stores: &str, max: u32| {
        format!("{stores}{}", limited(&format!("algorithm = 'concurrency'\nmax_concurrent = {max}\nstore = 'main'")))
    };
    let mut served = Served::of(&exports("[stores.main]\nengine = 'memory'\n", 2)).await;
    let held = [served.ask(&[("account", "ada")]).await, served.ask(&[("account", "ada")]).await];
    let [first, second] = held.map(|decision| decision.lease().expect("a lease").to_string());
    // Its store has another index now, and its limiter another number.
    served.take(&exports("[stores.first]\nengine = 'memory'\n[stores.main]\nengine = 'memory'\n", 1));
    assert_eq!(served.passes("ada").await, 0);
    assert_eq!(served.service.release(&first).await, Some(LeaseStatus::Done));
    assert_eq!(served.passes("ada").await, 0, "the other is still held");
    // Its slots are still in use without a rule that applies it.
    served.take("[stores.main]\nengine = 'memory'\n");
    assert_eq!(served.service.release(&second).await, Some(LeaseStatus::Done));
    served.take(&exports("[stores.main]\nengine = 'memory'\n", 1));
    assert_eq!(served.passes("ada").await, 1);
}

const FIVE: &str = "algorithm = 'sliding_window'\nlimit = 5\nwindow = '1h'";

/// Weakness R23: a bad file ends the program that reads it.
#[tokio::test]
async fn a_bad_file_is_refused_with_what_check_says_and_the_last_good_configuration_stays() {
    let mut served = Served::of(&limited(FIVE)).await;
    served.ask(&[("account", "ada")]).await;
    let bad = [
        "[limiters.login",
        &limited(&FIVE.replace("limit = 5", "limit = 0\nwindw = '1h'")),
        &limited(FIVE).replace("limiter = 'login'", "limiter = 'logon'"),
        "[server.bounds]\nentries = 0",
        "[stores.main]\nengine = 'redis'\nurl = '${file:no/such/file}'",
        "[stores.main]\nengine = 'redis'\nurl = 'rediss://localhost'\ntls_ca = 'no/such.pem'",
    ];
    for (number, bad) in bad.iter().enumerate() {
        let ReloadOutcome::Rejected(problems) = served.become_(bad) else { panic!("taken: {bad}") };
        match Config::load(Some(&served.file())) {
            Err(errors) => assert_eq!(problems.join("\n"), errors.to_string()),
            // `check` accepts it, but this machine cannot serve it.
            Ok(_) => assert!(problems[0].starts_with("stores.main: no/such.pem: "), "{problems:?}"),
        }
        assert_eq!((served.service.reloads().version, served.service.reloads().refused), (1, number as u64 + 1));
        assert!(!served.service.reloads().last_taken);
        assert!(served.service.health().ready(), "a bad file is no reason to send requests elsewhere");
        assert_eq!(served.reloader.reload(false), ReloadOutcome::Unchanged, "it is reported once");
    }
    fs::remove_file(served.file()).expect("removed");
    let missing = vec![format!("{}: no such file or directory", served.file().display())];
    assert_eq!(served.reloader.reload(false), ReloadOutcome::Rejected(missing));
    fs::write(served.file(), "\n").expect("written");
    assert!(matches!(served.reloader.reload(false), ReloadOutcome::Rejected(_)), "no rules would let everything pass");
    assert!(matches!(served.reloader.reload(true), ReloadOutcome::Rejected(_)), "an explicit reload reports it again");
    assert_eq!(served.passes("ada").await, 4, "nothing of it took effect");

    assert_eq!(served.become_(&limited(FIVE)), ReloadOutcome::Unchanged, "the file is again the version in use");
    assert!(served.service.reloads().last_taken);
    assert_eq!(served.service.reloads().version, 1);
}

#[tokio::test]
async fn what_does_not_change_is_no_reload_and_what_does_is_counted() {
    let mut served = Served::of(&limited(FIVE)).await;
    assert_eq!(
        (served.service.reloads().version, served.service.reloads().taken, served.service.reloads().refused),
        (1, 0, 0)
    );
    let first = served.service.reloads().loaded_at;
    assert_eq!(served.become_(&limited(FIVE)), ReloadOutcome::Unchanged);
    assert_eq!(served.reloader.reload(true), ReloadOutcome::Unchanged);
    assert_eq!(served.service.reloads().loaded_at, first);
    served.take(&limited(&FIVE.replace('5', "6")));
    assert_eq!(
        (served.service.reloads().version, served.service.reloads().taken, served.service.reloads().refused),
        (2, 1, 0)
    );
    assert!(served.service.reloads().loaded_at > first);
}

#[tokio::test]
async fn semantics_29_what_waits_for_a_restart_is_told_by_its_key_and_the_rest_is_taken() {
    let store = |keys: &str| format!("[stores.main]\nengine = 'memory'\n{keys}\n");
    let mut served = Served::of(&format!("{}{}", store("max_memory = '2MiB'"), limited(FIVE))).await;
    let six = limited(&FIVE.replace('5', "6"));
    let other = format!(
        "{}[stores.new]\nengine = 'memory'\nmax_memory = '8MiB'\n{six}",
        store("max_memory = '4MiB'\nsnapshot = 'kept'")
    );
    let text = format!("{SERVER}{other}").replace("grpc = '127.0.0.1:0'", "grpc = '127.0.0.1:1'");
    fs::write(served.file(), text).expect("written");
    let pending =
        |key: &str, old: &str, new: &str| PendingRestart { key: key.into(), old: old.into(), new: new.into() };
    let all = vec![
        pending("server.grpc", "127.0.0.1:0", "127.0.0.1:1"),
        pending("stores.main.max_memory", "2097152", "4194304"),
        pending("stores.main.snapshot", "none", "kept"),
        pending("stores.main.snapshot_interval", "none", "1m"),
    ];
    assert_eq!(served.reloader.reload(false), ReloadOutcome::Applied { pending: all });
    assert_eq!(served.passes("ada").await, 6, "the rest is taken");
    assert_eq!(served.service.current().settings.grpc.to_string(), "127.0.0.1:0");
    let bytes = |fact| match fact {
        StoreFact::Memory(usage) => usage.max_bytes,
        StoreFact::Shared { .. } => panic!("it is in memory"),
    };
    let stores: Vec<usize> = served.service.current().version.stores.facts().into_iter().map(bytes).collect();
    assert_eq!(stores, [2 << 20, 8 << 20]);
    // It stays pending until the file says again what is in use.
    assert!(matches!(served.become_(&other), ReloadOutcome::Applied { pending } if pending.len() == 3));
    served
        .take(&format!("{}[stores.new]\nengine = 'memory'\nmax_memory = '8MiB'\n{six}", store("max_memory = '2MiB'")));
}

#[tokio::test]
async fn semantics_02_another_secret_is_another_name_for_every_counter() {
    let secret = |text: &str| limited(FIVE) + &format!("[authz]\ndomain = 'edge'\n# {text}\n");
    let mut served = Served::of(&secret("")).await;
    assert_eq!(served.passes("ada").await, 5);
    let text = format!("{SERVER}secret = 'sixteen characters or more'\n{}", secret("another"));
    fs::write(served.file(), text).expect("written");
    assert_eq!(served.reloader.reload(false), ReloadOutcome::Applied { pending: Vec::new() });
    assert_eq!(served.passes("ada").await, 5);
}

#[tokio::test]
async fn semantics_13_the_kill_switch_is_a_reload() {
    let mut served = Served::of(&limited(FIVE)).await;
    assert_eq!(served.passes("ada").await, 5);
    let text = format!("{SERVER}mode = 'shadow'\n{}", limited(FIVE));
    fs::write(served.file(), text).expect("written");
    assert_eq!(served.reloader.reload(false), ReloadOutcome::Applied { pending: Vec::new() });
    assert!(served.ask(&[("account", "ada")]).await.allowed());
    served.take(&limited(FIVE));
    assert_eq!(served.passes("ada").await, 0);
}

/// A version that reads `who` from a header of its own and denies every other value.
fn version(who: &str) -> String {
    format!(
        "[authz]\ndomain = 'edge'\n[authz.entries]\nwho = {{ header = 'x-{who}' }}\n[domains.edge]\nunmatched = 'deny'\n\
         [[rules]]\ndomain = 'edge'\nname = 'known'\nmatch = {{ who = '{who}' }}\naction = 'allow'\n"
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_request_sees_one_version_of_settings_and_rules() {
    let mut served = Served::of(&version("a")).await;
    let done = Arc::new(AtomicBool::new(false));
    let rls = Rls::at(served.grpc).await;
    let asking: Vec<_> = (0..16)
        .map(|_| {
            let (rls, done) = (rls.clone(), done.clone());
            tokio::spawn(async move {
                let mut asked = 0;
                while !done.load(Ordering::Relaxed) {
                    let headers = [("x-a", "a"), ("x-b", "b")].map(|(name, value)| (name.to_owned(), value.to_owned()));
                    let http = HttpRequest { path: "/".into(), headers: headers.into(), ..HttpRequest::default() };
                    let request = Attributes { http: Some(http), ..Attributes::default() };
                    let attributes = AttributeContext { request: Some(request), ..AttributeContext::default() };
                    let check = CheckRequest { attributes: Some(attributes) };
                    let answer: CheckResponse = rls.call(CHECK, check).await.expect("never an error of gRPC");
                    assert_eq!(
                        answer.status.map(|status| status.code),
                        Some(0),
                        "settings of one and rules of the other"
                    );
                    asked += 1;
                }
                asked
            })
        })
        .collect();
    let mut served = tokio::task::spawn_blocking(move || {
        for number in 0..1000 {
            served.take(&version(["b", "a"][number % 2]));
        }
        served
    })
    .await
    .expect("every version is taken");
    done.store(true, Ordering::Relaxed);
    let mut asked = 0;
    for asking in asking {
        asked += asking.await.expect("every answer is one of one version");
    }
    assert_eq!(served.service.reloads().version, 1001);
    assert!(asked > 100, "only {asked} requests were asked meanwhile");
    served.take(&version("b"));
}
