//! Files of rate-sync, a Python library: which they are, what their keys become, and their conversion to our own form.

use std::path::Path;
use std::time::Duration;

use tollgate::config::{Config, Note, SourceText, convert, json_schema};
use tollgate::limiter::{Algorithm, Limiter, OnStoreError, WorkerSettings};

/// A file with all kinds of stores and limiters that rate-sync has.
const FILE: &str = r#"
[stores.local]
engine = "memory"

[stores.redis_main]
engine = "redis"
url = "${REDIS_URL:-redis://localhost:6379/0}"
db = 1
password = "12345678"
key_prefix = "myapp"
pool_min_size = 2
pool_max_size = 10
timing_margin_ms = 10.0
socket_timeout = 5.0
socket_connect_timeout = 5

[stores.db]
engine = "postgres"
url = "postgresql://localhost/app"
table_name = "rate_limiter_state"
schema_name = "public"
auto_create = true
pool_min_size = 2
pool_max_size = 10
timing_margin_ms = 10

[limiters.payments]
store = "redis_main"
rate_per_second = 90.0
timeout = 30.0
fail_closed = true

[limiters.uploads]
store = "local"
max_concurrent = 5

[limiters.api]
store = "db"
algorithm = "token_bucket"
rate_per_second = 2.5
max_concurrent = 10
fail_closed = false

[limiters.login]
store = "redis_main"
algorithm = "sliding_window"
limit = 5
window_seconds = 300

[limiters.only_slots]
store = "local"
algorithm = "token_bucket"
max_concurrent = 2

[fastapi]
trusted_proxy_networks = ["10.0.0.0/8", "::1"]
"#;

fn read(text: &str) -> Config {
    let source = SourceText { name: "rate-sync.toml".to_owned(), text: text.to_owned() };
    Config::read(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

fn refused(text: &str) -> String {
    let source = SourceText { name: "a.toml".to_owned(), text: text.to_owned() };
    Config::read(&[source], &|_| None).expect_err("refused").to_string()
}

fn limiter<'a>(config: &'a Config, name: &str) -> &'a Limiter {
    config.book.limiters.iter().find(|limiter| limiter.name == name).expect(name)
}

/// The text of a file in our own form.
fn converted(text: &str) -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("rate-sync.toml");
    std::fs::write(&path, text).expect("written");
    convert(&path).unwrap_or_else(|errors| panic!("{errors}\n{text}"))
}

/// What decides: the limiters, the stores without the keys that have no effect, the domains.
fn limits(config: &Config) -> String {
    let stores = config.stores.iter().map(|store| (&store.name, &store.config, store.timeout, store.required));
    let stores: Vec<_> = stores.collect();
    let server = (&config.server.http, &config.server.log, &config.server.api, &config.server.bounds);
    format!("{:?}\n{:?}\n{:?}\n{:?}", config.book.limiters, config.book.domains, stores, server)
}

#[test]
fn a_rate_sync_file_is_read_unchanged() {
    let config = read(FILE);
    let login = limiter(&config, "login");
    assert_eq!(login.quota.as_ref().map(|quota| (quota.limit, quota.window)), Some((5, Duration::from_secs(300))));
    assert_eq!(config.stores[usize::from(login.store)].name, "redis_main");
    assert_eq!(limiter(&config, "payments").on_store_error, OnStoreError::Deny);
    let api = limiter(&config, "api");
    assert_eq!(api.on_store_error, OnStoreError::Allow);
    assert!(api.quota.is_some() && api.concurrency.is_some_and(|slots| slots.max == 10), "joined: two checks");
    assert!(limiter(&config, "only_slots").quota.is_none());
    let schema = jsonschema::validator_for(&json_schema()).expect("a schema");
    let tree: toml::Value = toml::from_str(FILE).expect("TOML");
    let json = serde_json::to_value(tree).expect("JSON");
    assert_eq!(schema.iter_errors(&json).map(|error| error.to_string()).collect::<Vec<_>>(), [""; 0]);
}

/// Weakness R7: `fail_closed` is read and ignored.
#[test]
fn semantics_50_limiters_of_a_rate_sync_file_are_asked_for_by_name_and_wait() {
    let config = read(FILE);
    let workers = |name: &str| limiter(&config, name).workers;
    let default = WorkerSettings::default();
    let longest = Some(Duration::from_secs(600));
    let paced = WorkerSettings { direct: true, wait: true, timeout: Some(Duration::from_secs(30)), ..default };
    assert_eq!(workers("payments"), paced);
    // Only a bucket alone is granted ahead; the others queue.
    for name in ["uploads", "api", "login", "only_slots"] {
        assert_eq!(workers(name), WorkerSettings { direct: true, timeout: longest, ..default }, "{name}");
    }
    assert_eq!(config.book.domains.iter().map(|domain| domain.name.as_str()).collect::<Vec<_>>(), ["default"]);
    assert_eq!(config.warnings.iter().map(ToString::to_string).collect::<Vec<_>>(), [""; 0]);
    let named = read(&format!("[server]\napi_domain = 'jobs'\n[server.bounds]\nmax_wait = '40s'\n{FILE}"));
    assert_eq!(named.book.domains[0].name, "jobs");
    assert_eq!(limiter(&named, "login").workers.timeout, Some(Duration::from_secs(40)));
}

#[test]
fn semantics_50_a_file_is_of_rate_sync_if_it_has_no_rules_and_a_key_of_it_and_says_nothing_of_direct() {
    const BUCKET: &str = "[limiters.a]\nrate_per_second = 5\n";
    const WINDOW: &str = "[limiters.a]\nalgorithm = 'sliding_window'\nlimit = 5\n";
    const RULE: &str = "[[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{ limiter = 'a', key = ['account'] }]\n";
    for (text, of_rate_sync) in [
        (BUCKET.to_owned(), true),
        (format!("{WINDOW}window_seconds = 60\n"), true),
        ("[limiters.a]\nmax_concurrent = 5\ntimeout = 3\n".to_owned(), true),
        (format!("{BUCKET}[limiters.b]\nmax_concurrent = 5\n[server]\nhttp = '127.0.0.1:1'\n"), true),
        (format!("{BUCKET}queue = 5\nburst = 2\n"), true),
        (format!("{WINDOW}window = '1m'\n"), false),
        ("[limiters.a]\nmax_concurrent = 5\n".to_owned(), false),
        (format!("{BUCKET}{RULE}"), false),
        (format!("{BUCKET}direct = true\n"), false),
        (format!("{BUCKET}[limiters.b]\nmax_concurrent = 5\ndirect = false\n"), false),
    ] {
        let config = read(&text);
        let waits =
            config.book.limiters.iter().all(|limiter| limiter.workers.direct && limiter.workers.timeout.is_some());
        assert_eq!((waits, config.notes.is_empty()), (of_rate_sync, !of_rate_sync), "{text}");
    }
    // What our own keys say counts.
    let own = limiter(&read(&format!("{BUCKET}wait = false\nqueue = 5\non_store_error = 'deny'\n")), "a").clone();
    assert_eq!((own.workers.wait, own.workers.queue, own.on_store_error), (false, 5, OnStoreError::Deny));
}

#[test]
fn semantics_20_the_rate_of_a_rate_sync_file_means_what_it_means_elsewhere() {
    let burst = |rate: &str| {
        let config = read(&format!("[limiters.a]\nrate_per_second = {rate}\n"));
        match limiter(&config, "a").quota.as_ref().expect("a rate").algorithm {
            Algorithm::TokenBucket { burst, .. } => burst,
            ref other => panic!("{other:?} is no bucket"),
        }
    };
    assert_eq!(["0.5", "10", "19.9", "90", "100"].map(burst), [Some(1), Some(1), Some(1), Some(9), Some(10)]);
}

#[test]
fn every_key_of_a_rate_sync_file_is_noted_with_what_it_became() {
    let shown = |note: &Note| {
        assert!(note.line.is_some() || note.path.is_empty(), "{note}");
        format!("{note}\n")
    };
    let notes: String = read(FILE).notes.iter().map(shown).collect();
    insta::assert_snapshot!(notes);
    let keys = FILE.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key);
    for key in keys.filter(|key| *key != "trusted_proxy_networks") {
        assert!(notes.contains(&format!(".{key} is ")), "{key} is not noted");
    }
    let secret = read("[stores.a]\nengine = 'redis'\nurl = 'redis://:hunter2@h'\n[limiters.a]\nrate_per_second = 1\n");
    assert!(!format!("{:?}", secret.notes).contains("hunter2"));
}

#[test]
fn a_rate_sync_file_without_waiting_says_so_and_one_that_waits_too_long_is_refused() {
    let file = |timeout: &str| format!("[limiters.leader]\nmax_concurrent = 1\ntimeout = {timeout}\n");
    for zero in ["0", "0.0", "'0s'"] {
        let config = read(&file(zero));
        assert_eq!(limiter(&config, "leader").workers.timeout, Some(Duration::ZERO));
        assert!(config.notes.iter().any(|note| note.text.ends_with("callers do not wait, unless they say max_wait")));
    }
    assert_eq!(
        refused(&file("3600.0")),
        "a.toml:3: limiters.leader.timeout is 3600.0, expected at most server.bounds.max_wait, which is 10m"
    );
    assert!(read(&format!("{}[server.bounds]\nmax_wait = '1h'\n", file("3600.0"))).warnings.is_empty());
}

/// Weakness R13: a window drops `max_concurrent`, and one in PostgreSQL cannot be used.
#[test]
fn a_converted_file_loads_to_the_same_limits() {
    let text = converted(FILE);
    insta::assert_snapshot!(text.replacen(text.lines().next().expect("a line"), "# Converted from ...", 1));
    let (from, to) = (read(FILE), read(&text));
    assert_eq!(limits(&from), limits(&to));
    assert!(to.warnings.is_empty() && to.notes.is_empty(), "{:?} {:?}", to.warnings, to.notes);
}

#[test]
fn what_check_prints_of_a_rate_sync_file_loads_to_the_same_limits() {
    let from = read(FILE.replace("password = \"12345678\"\n", "").as_str());
    let source = SourceText { name: "printed.yaml".to_owned(), text: from.effective() };
    let printed = Config::read(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    assert_eq!(limits(&from), limits(&printed));
    assert!(printed.notes.is_empty());
}

#[test]
fn conversions_of_any_keys_load_to_the_same_limits() {
    // Each line may be left out. Those of one limiter come together.
    let limiters: [&[&str]; 6] = [
        &["rate_per_second = 90.0", "timeout = 0", "fail_closed = true", "burst = 3", "wait = false"],
        &["rate_per_second = '${RATE:-2.5}'", "timeout = '${WAIT:-7.5}'", "fail_closed = '${CLOSED:-false}'"],
        &["algorithm = 'sliding_window'\nlimit = 7\nwindow_seconds = 90.5", "timeout = 0.25", "max_concurrent = 2"],
        &["algorithm = 'sliding_window'\nlimit = '${L:-7}'\nwindow_seconds = '${W:-60}'", "queue = 3"],
        &["algorithm = 'token_bucket'\nmax_concurrent = 3", "lease = '5m'", "timeout = 600"],
        &["max_concurrent = '${SLOTS:-4}'\ntimeout = 1", "on_store_error = 'deny'", "rate_per_second = 1000"],
    ];
    let other = "[server]\nhttp = '127.0.0.1:0'\nsecret = 'a \\\"quoted\\\" secret'\n[server.bounds]\nmax_wait = '15m'\n\
                 [log]\nrefusals_per_second = 3\n";
    let other = other.replace('\'', "\"");
    for choice in 0..64_usize {
        let mut text = if choice % 2 == 0 { other.clone() } else { String::new() };
        text += "[limiters.first]\nrate_per_second = 0.016666666\n";
        for (index, lines) in limiters.iter().enumerate() {
            let kept = lines.iter().enumerate().filter(|(line, _)| *line == 0 || (choice >> line) % 2 == 1);
            let kept: Vec<&str> = kept.map(|(_, line)| *line).collect();
            text += &format!("[limiters.'n {index}']\n{}\n", kept.join("\n"));
        }
        let own = converted(&text);
        assert_eq!(limits(&read(&text)), limits(&read(&own)), "{text}\nbecame\n{own}");
    }
}

#[test]
fn a_conversion_keeps_variables_and_refuses_what_is_not_of_rate_sync() {
    let own = converted("[stores.a]\nengine = 'redis'\nurl = '${URL:-redis://h}'\n[limiters.a]\nrate_per_second = 5\n");
    assert!(own.contains("url = \"${URL:-redis://h}\"\n"), "{own}");
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("tollgate.toml");
    let converted = |text: &str| {
        std::fs::write(&path, text).expect("written");
        convert(&path).expect_err("refused").to_string().replace(&path.display().to_string(), "tollgate.toml")
    };
    assert_eq!(
        converted("[limiters.a]\nrate_per_second = 5\ndirect = true\n"),
        "tollgate.toml: is no file of rate-sync, which has no rules, a limiter with rate_per_second, window_seconds or \
         timeout, and none with direct"
    );
    assert_eq!(
        converted("[limiters.a]\nrate_per_second = 0\n"),
        "tollgate.toml:2: limiters.a.rate_per_second is 0, expected more than zero"
    );
    assert_eq!(
        convert(Path::new("no/such.toml")).expect_err("missing").to_string(),
        "no/such.toml: no such file or directory"
    );
}

#[test]
fn e1_what_rate_sync_refuses_is_refused() {
    let limiter = |keys: &str| refused(&format!("[limiters.a]\n{keys}\n"));
    for (keys, reason) in [
        ("rate_per_second = 0", "a.toml:2: limiters.a.rate_per_second is 0, expected more than zero"),
        ("rate_per_second = -2.5", "a.toml:2: limiters.a.rate_per_second is -2.5, expected more than zero"),
        ("max_concurrent = 0", "a.toml:2: limiters.a.max_concurrent is 0, expected more than zero"),
        (
            "algorithm = 'sliding_window'\nlimit = 0\nwindow_seconds = 60",
            "a.toml:3: limiters.a.limit is 0, expected more than zero",
        ),
        (
            "algorithm = 'sliding_window'\nlimit = 5\nwindow_seconds = -60",
            "a.toml:4: limiters.a.window_seconds is -60, expected more than zero",
        ),
        (
            "algorithm = 'sliding_window'\nwindow_seconds = 60",
            "a.toml:1: limiters.a.limit is missing, expected a whole number more than zero",
        ),
        (
            "rate_per_second = 5\nlimit = 5\nwindow_seconds = 60",
            "a.toml:3: limiters.a.limit is 5, but rate_per_second is given too; expected a rate, or a limit and a window",
        ),
    ] {
        assert_eq!(limiter(keys), reason);
    }
}
