//! Files of rate-sync, a Python library, given to the real program.

use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::support::processes::{Answer, Ask, Ports, Tollgate};

const FILE: &str = "[stores.local]\nengine = \"memory\"\n\n[limiters.stripe]\nstore = \"local\"\nrate_per_second = 10.0\n\
                    timeout = 2.5\n\n[limiters.jobs]\nstore = \"local\"\nmax_concurrent = 2\ntimeout = 0\n";

/// `[server]`, which such a file may have.
const ADDRESSES: &str = "[server]\ngrpc = \"127.0.0.1:8081\"\nhttp = \"127.0.0.1:8080\"\nadmin = \"off\"\n\n";

/// The program in a directory that has the file.
fn run(directory: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.current_dir(directory).env_remove("TOLLGATE_CONFIG").env_remove("RUST_LOG");
    command.args(arguments).output().expect("the program runs")
}

fn written() -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    std::fs::write(directory.path().join("rate-sync.toml"), FILE).expect("written");
    directory
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn check_says_in_a_line_each_what_the_keys_of_a_rate_sync_file_became() {
    let directory = written();
    let checked = run(directory.path(), &["check", "--strict", "rate-sync.toml"]);
    assert_eq!((checked.status.code(), text(&checked.stderr)), (Some(0), ""));
    assert_eq!(
        text(&checked.stdout),
        "rate-sync.toml: note: is a file of rate-sync: workers ask for its limiters by name, in the domain \"default\"\n\
         rate-sync.toml:2: note: stores.local.engine is \"memory\": the counters are in this process, so each instance counts \
         alone\n\
         rate-sync.toml:5: note: limiters.stripe.store is \"local\": where its counters are\n\
         rate-sync.toml:6: note: limiters.stripe.rate_per_second is 10.0: 10 in 1s, evenly spaced\n\
         rate-sync.toml:7: note: limiters.stripe.timeout is 2.5: callers that do not say max_wait wait up to 2500ms\n\
         rate-sync.toml:10: note: limiters.jobs.store is \"local\": where its counters are\n\
         rate-sync.toml:11: note: limiters.jobs.max_concurrent is 2: slots, each free again when it is released, or 1m after \
         its holder last renewed it\n\
         rate-sync.toml:12: note: limiters.jobs.timeout is 0: callers do not wait, unless they say max_wait\n\
         rate-sync.toml: good: 0 rules, 2 limiters, 1 store\n"
    );
    let json = run(directory.path(), &["check", "--json", "--strict", "rate-sync.toml"]);
    let findings: Vec<serde_json::Value> =
        text(&json.stdout).lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!((json.status.code(), findings.len()), (Some(0), 8));
    assert!(findings.iter().all(|finding| finding["severity"] == "note" && finding["warning"].is_null()));
    assert_eq!((&findings[3]["line"], &findings[3]["column"]), (&6.into(), &1.into()));
    assert_eq!(findings[3]["path"], "limiters.stripe.rate_per_second");
    let printed = run(directory.path(), &["check", "--print", "rate-sync.toml"]);
    assert!(!text(&printed.stdout).contains("note:"), "{}", text(&printed.stdout));
}

#[test]
fn convert_prints_a_file_that_is_good_and_has_the_same_limits() {
    let directory = written();
    let converted = run(directory.path(), &["convert", "rate-sync.toml"]);
    assert_eq!((converted.status.code(), text(&converted.stderr)), (Some(0), ""));
    std::fs::write(directory.path().join("tollgate.toml"), &converted.stdout).expect("written");
    let checked = run(directory.path(), &["check", "--strict", "tollgate.toml"]);
    assert_eq!(
        text(&checked.stdout),
        "tollgate.toml: good: 0 rules, 2 limiters, 1 store\n",
        "{}",
        text(&checked.stderr)
    );
    let effective = |name: &str| {
        let printed = run(directory.path(), &["check", "--print", name]);
        text(&printed.stdout).split_once('\n').expect("a comment").1.to_owned()
    };
    assert_eq!(effective("rate-sync.toml"), effective("tollgate.toml"));
    let again = run(directory.path(), &["convert", "tollgate.toml"]);
    assert_eq!((again.status.code(), text(&again.stdout)), (Some(1), ""));
    assert!(text(&again.stderr).starts_with("tollgate.toml: is no file of rate-sync"), "{}", text(&again.stderr));
}

/// The cases C1, C4, P1 and P3, as a worker of rate-sync asks that has moved to the API.
#[test]
fn semantics_50_a_rate_sync_file_acts_by_the_names_of_its_limiters() {
    let ports = Ports::free();
    let tollgate = Tollgate::start_file("rate-sync.toml", &format!("{ADDRESSES}{FILE}"), &ports);
    let acquire = |body: &str| -> (Answer, serde_json::Value) {
        let answer = tollgate.ask(&Ask::post("/v1/acquire").loopback().json(body));
        let said = serde_json::from_str(&answer.body).unwrap_or_else(|error| panic!("{error}: {answer:?}"));
        (answer, said)
    };
    // Two slots, and nobody waits: the file says timeout = 0.
    let job = r#"{"limiter": "jobs"}"#;
    let (first, held) = acquire(job);
    assert_eq!((first.status, acquire(job).0.status), (200, 200));
    let (third, refused) = acquire(job);
    assert_eq!(
        (third.status, refused["reason"].as_str(), refused["limiter"].as_str()),
        (429, Some("limit"), Some("jobs"))
    );
    let lease = serde_json::json!({ "lease": held["lease"] }).to_string();
    tollgate.ask(&Ask::post("/v1/release").loopback().json(&lease)).expect(200);
    assert_eq!(acquire(r#"{"limiter": "jobs", "domain": "default"}"#).0.status, 200);
    // Another key is another counter, as a clone of rate-sync's limiter is.
    assert_eq!(acquire(r#"{"limiter": "jobs", "key": {"user_id": "7"}}"#).0.status, 200);
    // Ten a second, evenly spaced: six take half a second, and each waits for its turn.
    let begun = Instant::now();
    for _ in 0..6 {
        assert_eq!(acquire(r#"{"limiter": "stripe"}"#).0.status, 200);
    }
    assert!(begun.elapsed() >= Duration::from_millis(500), "six took {:?}", begun.elapsed());
    // Who waits for less than its turn is refused.
    let spaced = acquire(r#"{"limiter": "stripe", "max_wait": "0.01s"}"#);
    assert_eq!((spaced.0.status, spaced.1["reason"].as_str()), (429, Some("limit")));
    let (unknown, said) = acquire(r#"{"limiter": "strip"}"#);
    assert_eq!(unknown.status, 404);
    assert!(said["detail"].as_str().is_some_and(|detail| detail.contains("\"stripe\"")), "{said}");
    assert_eq!(acquire(r#"{"limiter": "stripe", "domain": "edge"}"#).0.status, 404, "an unknown domain");
}
