//! Reloads: a configuration is applied as a whole or not at all, and counters keep their state (semantics 29).

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
use tollgate::store::StoreStatus;
use tollgate::telemetry::Door;

use crate::support::service::{CHECK, Rls};

/// A service whose configuration file the test replaces.
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
        let app = app.expect("the ports open");
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
    async fn reload_with(&mut self, text: &str) -> ReloadOutcome {
        fs::write(self.file(), format!("{SERVER}{text}")).expect("a file");
        self.reloader.reload(false).await
    }

    /// Replaces the file and reloads it, and expects that all of it is applied.
    async fn apply(&mut self, text: &str) {
        assert_eq!(self.reload_with(text).await, ReloadOutcome::Applied { pending: Vec::new() });
    }

    async fn decide(&self, entries: &[(&str, &str)]) -> Decision {
        let descriptor = Descriptor::of(entries.iter().copied());
        let request = Request { domain: "edge", descriptors: [descriptor].into_iter().collect() };
        self.service.current().decide(Door::Rls, &request).await
    }

    /// The number of requests of an account that pass before one is refused.
    async fn passes(&self, account: &str) -> usize {
        for passed in 0..100 {
            if !self.decide(&[("account", account)]).await.allowed() {
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
        served.apply(&limited(eight)).await;
        assert_eq!(served.passes("ada").await, 3, "{eight}: five of eight were used");
        assert_eq!(served.passes("bob").await, 8, "{eight}");
        served.apply(&limited(five)).await;
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
        served.apply(&login(after)).await;
        assert_eq!(served.passes("ada").await, 5, "{after}: a fresh counter");
        // The earlier counter still exists, so undoing a mistaken change charges nothing twice.
        served.apply(&login(before)).await;
        assert_eq!(served.passes("ada").await, 0, "{before}");
        served.apply(&login(before).replace("store = 'main'", "store = 'other'")).await;
        assert_eq!(served.passes("ada").await, 5, "{before} in another store");
    }
}

#[tokio::test]
async fn counters_follow_the_name_of_their_store() {
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
        served.apply(&login(stores, "b")).await;
        assert_eq!(served.passes("ada").await, 0, "{stores:?}");
    }
    served.apply(&login(&["x"], "x")).await;
    assert_eq!(served.passes("ada").await, 5, "another name is another store");
    served.apply(&login(&["b"], "b")).await;
    assert_eq!(served.passes("ada").await, 5, "a store that was removed is new");
}

#[tokio::test]
async fn a_slot_acquired_before_a_reload_can_be_released_after_it() {
    let exports = |stores: &str, max: u32| {
        format!("{stores}{}", limited(&format!("algorithm = 'concurrency'\nmax_concurrent = {max}\nstore = 'main'")))
    };
    let mut served = Served::of(&exports("[stores.main]\nengine = 'memory'\n", 2)).await;
    let decisions = [served.decide(&[("account", "ada")]).await, served.decide(&[("account", "ada")]).await];
    let [first, second] = decisions.map(|decision| decision.lease().expect("a lease").to_string());
    // The indexes of its store and limiter have changed.
    served.apply(&exports("[stores.first]\nengine = 'memory'\n[stores.main]\nengine = 'memory'\n", 1)).await;
    assert_eq!(served.passes("ada").await, 0);
    assert_eq!(served.service.release(&first).await, LeaseStatus::Done);
    assert_eq!(served.passes("ada").await, 0, "the other slot is still held");
    // Slots can be released even if no rule applies the limiter.
    served.apply("[stores.main]\nengine = 'memory'\n").await;
    assert_eq!(served.service.release(&second).await, LeaseStatus::Done);
    served.apply(&exports("[stores.main]\nengine = 'memory'\n", 1)).await;
    assert_eq!(served.passes("ada").await, 1);
}

const FIVE: &str = "algorithm = 'sliding_window'\nlimit = 5\nwindow = '1h'";

/// Weakness R23: an invalid file ends the program.
#[tokio::test]
async fn an_invalid_file_is_rejected_with_the_errors_of_check_and_the_last_configuration_stays() {
    let mut served = Served::of(&limited(FIVE)).await;
    served.decide(&[("account", "ada")]).await;
    let invalid = [
        "[limiters.login",
        &limited(&FIVE.replace("limit = 5", "limit = 0\nwindw = '1h'")),
        &limited(FIVE).replace("limiter = 'login'", "limiter = 'logon'"),
        "[server.bounds]\nentries = 0",
        "[stores.main]\nengine = 'redis'\nurl = '${file:no/such/file}'",
        "[stores.main]\nengine = 'redis'\nurl = 'rediss://localhost'\ntls_ca = 'no/such.pem'",
    ];
    for (number, text) in invalid.iter().enumerate() {
        let ReloadOutcome::Rejected(problems) = served.reload_with(text).await else { panic!("applied: {text}") };
        let errors = Config::load(Some(&served.file())).expect_err("check reports the same");
        assert_eq!(problems.join("\n"), errors.to_string());
        assert_eq!((served.service.reloads().version, served.service.reloads().refused), (1, number as u64 + 1));
        assert!(!served.service.reloads().last_taken);
        assert!(served.service.health().ready(), "an invalid file does not affect readiness");
        assert_eq!(served.reloader.reload(false).await, ReloadOutcome::Unchanged, "it is reported once");
    }
    fs::remove_file(served.file()).expect("removed");
    let missing = vec![format!("{}: no such file or directory", served.file().display())];
    assert_eq!(served.reloader.reload(false).await, ReloadOutcome::Rejected(missing));
    fs::write(served.file(), "\n").expect("written");
    assert!(
        matches!(served.reloader.reload(false).await, ReloadOutcome::Rejected(_)),
        "without rules every request would pass"
    );
    assert!(
        matches!(served.reloader.reload(true).await, ReloadOutcome::Rejected(_)),
        "an explicit reload reports it again"
    );
    assert_eq!(served.passes("ada").await, 4, "none of it was applied");

    assert_eq!(
        served.reload_with(&limited(FIVE)).await,
        ReloadOutcome::Unchanged,
        "the file has the version in use again"
    );
    assert!(served.service.reloads().last_taken);
    assert_eq!(served.service.reloads().version, 1);
}

#[tokio::test]
async fn only_changes_count_as_reloads() {
    let mut served = Served::of(&limited(FIVE)).await;
    assert_eq!(
        (served.service.reloads().version, served.service.reloads().taken, served.service.reloads().refused),
        (1, 0, 0)
    );
    let first = served.service.reloads().loaded_at;
    assert_eq!(served.reload_with(&limited(FIVE)).await, ReloadOutcome::Unchanged);
    assert_eq!(served.reloader.reload(true).await, ReloadOutcome::Unchanged);
    assert_eq!(served.service.reloads().loaded_at, first);
    served.apply(&limited(&FIVE.replace('5', "6"))).await;
    assert_eq!(
        (served.service.reloads().version, served.service.reloads().taken, served.service.reloads().refused),
        (2, 1, 0)
    );
    assert!(served.service.reloads().loaded_at > first);
}

#[tokio::test]
async fn semantics_29_settings_that_need_a_restart_are_reported_and_the_rest_is_applied() {
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
    assert_eq!(served.reloader.reload(false).await, ReloadOutcome::Applied { pending: all });
    assert_eq!(served.passes("ada").await, 6, "the rest is applied");
    assert_eq!(served.service.current().settings.grpc.to_string(), "127.0.0.1:0");
    let bytes = |fact| match fact {
        StoreStatus::Memory(usage) => usage.max_bytes,
        StoreStatus::Shared { .. } => panic!("it is in memory"),
    };
    let stores: Vec<usize> = served.service.current().version.stores.facts().into_iter().map(bytes).collect();
    assert_eq!(stores, [2 << 20, 8 << 20]);
    // It stays pending until the file has the values in use again.
    assert!(matches!(served.reload_with(&other).await, ReloadOutcome::Applied { pending } if pending.len() == 3));
    served
        .apply(&format!("{}[stores.new]\nengine = 'memory'\nmax_memory = '8MiB'\n{six}", store("max_memory = '2MiB'")))
        .await;
}

#[tokio::test]
async fn semantics_02_another_secret_changes_the_name_of_every_counter() {
    let secret = |text: &str| limited(FIVE) + &format!("[authz]\ndomain = 'edge'\n# {text}\n");
    let mut served = Served::of(&secret("")).await;
    assert_eq!(served.passes("ada").await, 5);
    let text = format!("{SERVER}secret = 'sixteen characters or more'\n{}", secret("another"));
    fs::write(served.file(), text).expect("written");
    assert_eq!(served.reloader.reload(false).await, ReloadOutcome::Applied { pending: Vec::new() });
    assert_eq!(served.passes("ada").await, 5);
}

#[tokio::test]
async fn semantics_13_the_kill_switch_works_by_reload() {
    let mut served = Served::of(&limited(FIVE)).await;
    assert_eq!(served.passes("ada").await, 5);
    let text = format!("{SERVER}mode = 'shadow'\n{}", limited(FIVE));
    fs::write(served.file(), text).expect("written");
    assert_eq!(served.reloader.reload(false).await, ReloadOutcome::Applied { pending: Vec::new() });
    assert!(served.decide(&[("account", "ada")]).await.allowed());
    served.apply(&limited(FIVE)).await;
    assert_eq!(served.passes("ada").await, 0);
}

/// A configuration that reads `who` from the header `x-{who}` and denies all other values.
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
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let (rls, done) = (rls.clone(), done.clone());
            tokio::spawn(async move {
                let mut requests = 0;
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
                        "settings and rules are of different versions"
                    );
                    requests += 1;
                }
                requests
            })
        })
        .collect();
    for number in 0..1000 {
        served.apply(&version(["b", "a"][number % 2])).await;
    }
    done.store(true, Ordering::Relaxed);
    let mut requests = 0;
    for client in clients {
        requests += client.await.expect("every response is of one version");
    }
    assert_eq!(served.service.reloads().version, 1001);
    assert!(requests > 100, "only {requests} requests were sent meanwhile");
    served.apply(&version("b")).await;
}
