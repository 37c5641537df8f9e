//! Checks the pages that are generated from the program. `UPDATE_DOCS=1` writes them again.
//!
//! | page | made from |
//! |---|---|
//! | `docs/metrics.md` | a scrape of the real binary |
//! | `docs/admin-api.md` | its examples: the responses of the real binary to the requests of the page |
//! | `docs/algorithms.svg` | `limiter::advance` |
//! | `docs/check.md` | its table: the kinds of warnings |

mod plot;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::Value;
use tollgate::config::WarningKind;
use tollgate::server::admin::ROUTES;

use crate::support::binary::{DOORS, Served, exchange};

fn file(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(name)
}

pub(super) fn read(name: &str) -> String {
    fs::read_to_string(file(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// Compares a file with its expected content, or writes it if requested.
pub(super) fn is_written(name: &str, made: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(file(name), made).expect("writable");
    }
    let written = read(name);
    let differs = written.lines().zip(made.lines()).find(|(written, made)| written != made);
    assert!(
        written == made,
        "{name} is out of date, first here: {differs:?}; write it anew: UPDATE_DOCS=1 cargo test --test program pages"
    );
}

// docs/metrics.md

/// Rules and stores of every kind, so that every series exists.
const EVERY_SERIES: &str = r#"
[stores.memory]
engine = "memory"

[stores.redis]
engine = "redis"
url = "redis://127.0.0.1:1/0"

[limiters.window]
algorithm = "sliding_window"
limit = 2
window = "1h"
store = "memory"

[limiters.bucket]
algorithm = "token_bucket"
limit = 2
window = "1h"
store = "redis"

[[rules]]
domain = "edge"
name = "enforced"
apply = [{ limiter = "window", key = ["account"] }, { limiter = "bucket", key = ["account"] }]

[[rules]]
domain = "edge"
name = "trial"
mode = "shadow"
apply = [{ limiter = "window", key = ["remote_address"] }]

[authz]
domain = "edge"
entries.account = { header = "x-account" }
"#;

/// Labels whose values are names chosen by the operator, or the version.
const CHOSEN: [(&str, &str); 8] = [
    ("domain", "a domain; empty for requests of a domain that is not configured"),
    ("rule", "a rule; `(others)` for all after the first 2 000; empty where no rule decided"),
    (
        "limiter",
        "a limiter as it is named in the configuration; `(others)` for the limiters of such rules; empty where no limiter decided",
    ),
    ("entry", "a header, cookie or query of `[authz.entries]` that a rule of the domain needs"),
    ("store", "a store"),
    ("list", "a list"),
    ("table", "a table"),
    ("version", "the version of the binary"),
];

/// The sections of the page, each with the prefix of its metrics.
const SECTIONS: [(&str, &str); 5] = [
    ("Stores", "tollgate_store_"),
    ("Leases", "tollgate_leases_"),
    ("Configuration", "tollgate_config_"),
    ("Decisions, doors and health", "tollgate_"),
    ("The process", "process_"),
];

/// A metric as the scrape shows it.
#[derive(Default)]
struct Metric {
    kind: String,
    help: String,
    /// The values of each label, in the order of the scrape.
    labels: Vec<(String, BTreeSet<String>)>,
}

fn scraped(scrape: &str) -> BTreeMap<String, Metric> {
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    for line in scrape.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            metrics.entry(name.to_owned()).or_default().help.push_str(help);
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            metrics.entry(name.to_owned()).or_default().kind.push_str(kind);
        }
    }
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let Some((series, _)) = line.rsplit_once(' ') else { continue };
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let parts = ["_bucket", "_sum", "_count"];
        let of_histogram = parts
            .into_iter()
            .find_map(|part| metrics.contains_key(name.strip_suffix(part)?).then(|| name.strip_suffix(part)));
        let name = of_histogram.flatten().unwrap_or(name);
        let metric = metrics.get_mut(name).unwrap_or_else(|| panic!("{name} has no type"));
        for (label, value) in labels.trim_end_matches('}').split("\",").filter_map(|pair| pair.split_once("=\"")) {
            let value = value.trim_end_matches('"').to_owned();
            match metric.labels.iter_mut().find(|(known, _)| known == label) {
                Some((_, values)) => drop(values.insert(value)),
                None => metric.labels.push((label.to_owned(), BTreeSet::from([value]))),
            }
        }
    }
    metrics
}

/// The unit of a metric, by its name.
fn unit(name: &str, help: &str) -> &'static str {
    let name = name.trim_end_matches("_total");
    match name {
        _ if name.ends_with("timestamp_seconds") || name.ends_with("start_time_seconds") => "Unix time, seconds",
        _ if name.ends_with("_seconds") => "seconds",
        _ if name.ends_with("_bytes") => "bytes",
        _ if help.starts_with("1 ") || help.starts_with("Always 1") => "0 or 1",
        _ => "count",
    }
}

fn tables(metrics: &BTreeMap<String, Metric>) -> String {
    let mut text = String::new();
    let section = |name: &str| SECTIONS.iter().position(|(_, begins)| name.starts_with(begins));
    // The section of requests comes first: its prefix is the shortest and matches all others.
    for place in [3, 0, 1, 2, 4] {
        text += &format!(
            "\n## {}\n\n| series | type | labels | unit | meaning |\n|---|---|---|---|---|\n",
            SECTIONS[place].0
        );
        for (name, metric) in metrics.iter().filter(|(name, _)| section(name) == Some(place)) {
            let labels: Vec<String> = metric
                .labels
                .iter()
                .filter(|(label, _)| label != "le")
                .map(|(label, _)| format!("`{label}`"))
                .collect();
            let Metric { kind, help, .. } = metric;
            text += &format!("| `{name}` | {kind} | {} | {} | {help} |\n", labels.join(", "), unit(name, help));
        }
    }
    text += "\n## Labels\n\n| label | of | values |\n|---|---|---|\n";
    for (label, values) in CHOSEN {
        text += &format!("| `{label}` | | {values} |\n");
    }
    for (name, metric) in metrics {
        for (label, values) in &metric.labels {
            if label == "le" || CHOSEN.iter().any(|(chosen, _)| chosen == label) {
                continue;
            }
            let values: Vec<String> = values
                .iter()
                .map(|value| if value.is_empty() { "empty".to_owned() } else { format!("`{value}`") })
                .collect();
            text += &format!("| `{label}` | `{name}` | {} |\n", values.join(", "));
        }
    }
    text += "\n## Buckets\n\n| histogram | upper bounds (`le`) |\n|---|---|\n";
    for (name, metric) in metrics {
        let Some((_, bounds)) = metric.labels.iter().find(|(label, _)| label == "le") else { continue };
        let mut bounds: Vec<&String> = bounds.iter().collect();
        bounds.sort_by(|a, b| a.parse::<f64>().expect("a number").total_cmp(&b.parse().expect("a number")));
        let bounds: Vec<String> = bounds.into_iter().map(|bound| format!("`{bound}`")).collect();
        text += &format!("| `{name}` | {} |\n", bounds.join(", "));
    }
    text
}

#[test]
fn the_page_of_metrics_has_every_series_as_the_program_serves_it() {
    let files = tempfile::tempdir().expect("a directory");
    fs::write(files.path().join("office.txt"), "192.0.2.7").expect("written");
    fs::write(files.path().join("keys.csv"), "api_key,account\nk,acme\n").expect("written");
    let data = format!(
        "[lists.office]\nfile = '{0}/office.txt'\n[tables.keys]\nfile = '{0}/keys.csv'\nby = 'api_key'\n",
        files.path().display()
    );
    let served = Served::start(&format!("{DOORS}{EVERY_SERIES}{data}"), &[]);
    // A histogram has series only once it has an observation.
    served.ask("GET /authz/envoy/", "");
    let scrape = exchange(&served.admin, b"GET /metrics HTTP/1.0\r\n\r\n");
    let (_, scrape) = scrape.split_once("\r\n\r\n").expect("an answer");
    let metrics = scraped(scrape);
    for (name, metric) in &metrics {
        assert!(!metric.help.is_empty() && !metric.kind.is_empty(), "{name} has no help or no type");
    }
    const BEGIN: &str = "<!-- The rest of this page is made by tests/program/pages.rs. -->\n";
    let page = read("docs/metrics.md");
    let (written, _) = page.split_once(BEGIN).expect("the mark where the tables begin");
    is_written("docs/metrics.md", &format!("{written}{BEGIN}{}", tables(&metrics)));
    // A metric without a series in this configuration would be missing.
    for name in named_in_the_source() {
        assert!(metrics.contains_key(&name), "{name} is in the source and not in the scrape of this test");
    }
    for (name, label) in [("tollgate_decisions_total", "reason"), ("tollgate_store_errors_total", "kind")] {
        let (_, values) = metrics[name].labels.iter().find(|(known, _)| known == label).expect("its label");
        for value in values.iter().filter(|value| !value.is_empty()) {
            assert!(written.contains(&format!("| `{value}` |")), "the page does not say what {label} {value} means");
        }
    }
}

/// The metric names in the source, each a string literal.
fn named_in_the_source() -> BTreeSet<String> {
    let mut folders = vec![file("src")];
    let mut names = BTreeSet::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the project") {
            let path = entry.expect("something in it").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("a file of the project");
                let constants = text.split("&str = \"tollgate_").skip(1).filter_map(|rest| rest.split('"').next());
                names.extend(constants.map(|name| format!("tollgate_{name}")));
            }
        }
    }
    assert!(names.len() >= 30, "{names:?}");
    names
}

// docs/admin-api.md

/// The configuration for the examples of the page. With a secret, their keys are the same in every run.
const EXAMPLES_CONFIG: &str = r#"secret = 'of the examples in docs/admin-api.md'

[limiters.login_account]
algorithm = "sliding_window"
limit = 5
window = "5m"

[[rules]]
domain = "edge"
name = "login"
match = { path = "/login", method = "POST" }
apply = [{ limiter = "login_account", key = ["account"] }]

[authz]
domain = "edge"

[authz.entries]
account = { header = "x-account" }
"#;

/// Fields whose numbers differ between runs.
const VOLATILE: [&str; 4] = ["age_seconds", "bytes", "reset_ms", "retry_after_ms"];

/// A response without the numbers that differ between runs.
fn steady(answer: &str) -> String {
    fn still(value: &mut Value) {
        match value {
            Value::Object(fields) => {
                fields.iter_mut().for_each(|(name, value)| match VOLATILE.contains(&name.as_str()) {
                    true if value.is_number() => *value = 0.into(),
                    _ => still(value),
                });
            }
            Value::Array(values) => values.iter_mut().for_each(still),
            _ => {}
        }
    }
    match serde_json::from_str::<Value>(answer) {
        Ok(mut value) => {
            still(&mut value);
            value.to_string()
        }
        Err(_) => answer.to_owned(),
    }
}

/// The methods and paths in the headings of the page, such as `## POST /state`.
fn documented(page: &str) -> BTreeSet<(String, String)> {
    let headings = page.lines().filter_map(|line| line.strip_prefix("## ")?.split_once(" /"));
    headings
        .flat_map(|(method, paths)| {
            format!("/{paths}").split(", ").map(|path| (method.to_owned(), path.to_owned())).collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn the_page_of_the_admin_port_has_every_request_and_no_other() {
    let documented = documented(&read("docs/admin-api.md"));
    let mut answered: BTreeSet<(String, String)> =
        ROUTES.into_iter().map(|route| (route.method.to_string(), route.path.to_owned())).collect();
    answered.extend(["/livez", "/readyz", "/healthcheck"].map(|path| ("GET".to_owned(), path.to_owned())));
    assert_eq!(documented, answered);
    let served = Served::start(&format!("{DOORS}{EXAMPLES_CONFIG}"), &[]);
    for (method, path) in documented {
        let status = |method: &str| {
            let answer = exchange(&served.admin, format!("{method} {path} HTTP/1.0\r\n\r\n").as_bytes());
            answer.split(' ').nth(1).map(str::to_owned).expect("a status")
        };
        // A request without a body has no content type.
        let expected = if method == "GET" { "200" } else { "415" };
        assert_eq!(status(&method), expected, "{method} {path}");
    }
}

#[test]
fn the_examples_of_the_page_of_the_admin_port_are_what_it_answers() {
    let served = Served::start(&format!("{DOORS}{EXAMPLES_CONFIG}"), &[]);
    for _ in 0..8 {
        served.ask("POST /authz/envoy/login", "x-account: bob\r\n");
    }
    let page = read("docs/admin-api.md");
    let mut written = String::new();
    let mut played = 0;
    let mut rest = page.as_str();
    while let Some((before, after)) = rest.split_once("```text\n") {
        let (request, after) = after.split_once("```\n").expect("the end of a request");
        let (head, body) = request.trim_end().split_once("\n\n").unwrap_or((request.trim_end(), ""));
        let (first, headers) = head.split_once('\n').unwrap_or((head, ""));
        let headers: String = headers.lines().map(|line| format!("{line}\r\n")).collect();
        let request_bytes = format!("{first} HTTP/1.0\r\n{headers}content-length: {}\r\n\r\n{body}", body.len());
        let answer = exchange(&served.admin, request_bytes.as_bytes());
        let (answer_head, answer) = answer.split_once("\r\n\r\n").expect("an answer");
        let status = answer_head.split_once(' ').and_then(|(_, rest)| rest.split("\r\n").next()).expect("a status");
        let (between, after) = after.split_once("```").expect("its answer");
        let (language, after) = after.split_once('\n').expect("a language");
        let (shown, after) = after.split_once("```\n").expect("the end of an answer");
        let shown_status = format!("`{status}`");
        let pretty = match (language, serde_json::from_str::<Value>(answer)) {
            ("json", Ok(value)) => format!("{value:#}\n"),
            _ => answer.to_owned(),
        };
        let same = steady(shown) == steady(&pretty);
        assert!(between.contains(&shown_status), "{first}: the page does not say {shown_status}");
        written += &format!(
            "{before}```text\n{request}```\n{between}```{language}\n{}```\n",
            if same { shown } else { &pretty }
        );
        rest = after;
        played += 1;
    }
    assert!(played >= 6, "{played} examples");
    is_written("docs/admin-api.md", &format!("{written}{rest}"));
}

// docs/check.md

#[test]
fn the_page_of_check_lists_every_kind_of_warning() {
    const HEAD: &str = "| name | what | remedy |\n|---|---|---|\n";
    let page = read("docs/check.md");
    let (before, table) = page.split_once(HEAD).expect("the table of warnings");
    let (_, after) = table.split_once("\n\n").expect("a paragraph after the table");
    let row = |kind: &WarningKind| format!("| `{}` | {} | {} |\n", kind.name(), kind.about(), kind.remedy());
    let rows: String = WarningKind::ALL.iter().map(row).collect();
    is_written("docs/check.md", &format!("{before}{HEAD}{rows}\n{after}"));
}

// docs/algorithms.svg

#[test]
fn the_picture_of_the_algorithms_is_what_they_admit() {
    is_written("docs/algorithms.svg", &plot::svg());
}
