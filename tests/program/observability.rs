//! Checks `examples/observability` against the metrics of the real program.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::Value;

use crate::support::binary::{DOORS, Served, both, exchange};
use crate::support::processes::installed;

/// Rules of every kind, so that every series exists.
const RULES: &str = r#"
[stores.main]
engine = "memory"

[stores.away]
engine = "redis"
url = "redis://127.0.0.1:1/0"

[limiters.shared]
algorithm = "token_bucket"
limit = 100
window = "1h"
store = "away"

[limiters.login]
algorithm = "sliding_window"
limit = 2
window = "1h"

[limiters.slots]
max_concurrent = 1
lease = "1h"

[[rules]]
domain = "edge"
name = "login"
apply = [
  { limiter = "login", key = ["account"] },
  { limiter = "slots", key = ["account"] },
  { limiter = "shared", key = ["account"] },
]

[[rules]]
domain = "edge"
name = "trial"
mode = "shadow"
apply = [{ limiter = "login", key = ["remote_address"] }]

[authz]
domain = "edge"

[authz.entries]
account = { header = "x-account" }
"#;

fn scrape() -> String {
    let served = Served::start(&format!("{DOORS}{RULES}"), &[]);
    for _ in 0..3 {
        served.ask("GET /authz/envoy/", "x-account: ada\r\n");
    }
    let answer = exchange(&served.admin, b"GET /metrics HTTP/1.0\r\n\r\n");
    answer.split_once("\r\n\r\n").expect("an answer").1.to_owned()
}

/// The root of the project.
fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn examples() -> PathBuf {
    project().join("examples/observability")
}

fn example(name: &str) -> String {
    fs::read_to_string(examples().join(name)).expect(name)
}

/// Runs promtool in a directory. None if it is not installed.
fn promtool(arguments: &[&str], directory: &Path, input: &str) -> Option<Output> {
    let mut command = Command::new(installed::program("promtool")?);
    command.args(arguments).current_dir(directory);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("promtool runs");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
    Some(child.wait_with_output().expect("promtool ends"))
}

fn passes(arguments: &[&str], directory: &Path) {
    let Some(output) = promtool(arguments, directory, "") else { return };
    assert!(output.status.success(), "promtool {arguments:?}: {}", both(&output));
}

/// The metrics in an expression, a histogram by its base name.
fn named(expression: &str) -> BTreeSet<String> {
    let words = expression.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    let metrics = words.filter(|word| word.starts_with("tollgate_") || word.starts_with("process_"));
    let of_histograms =
        |word: &str| ["_bucket", "_sum", "_count"].iter().find_map(|part| word.strip_suffix(part)).map(str::to_owned);
    metrics.map(|word| of_histograms(word).unwrap_or_else(|| word.to_owned())).collect()
}

/// The expressions of the alerts, each with the name of its alert.
fn alerts() -> Vec<(String, String)> {
    let file: Value = serde_yaml::from_str(&example("alerts.yml")).expect("YAML");
    let groups = file["groups"].as_array().expect("groups").iter();
    let rules = groups.flat_map(|group| group["rules"].as_array().expect("rules").clone());
    let text = |rule: &Value, key: &str| rule[key].as_str().expect(key).to_owned();
    let alerts = rules.map(|rule| {
        for annotation in ["summary", "description"] {
            assert!(rule["annotations"][annotation].is_string(), "{} has no {annotation}", rule["alert"]);
        }
        assert!(["page", "ticket", "notice"].contains(&rule["labels"]["severity"].as_str().expect("a severity")));
        (text(&rule, "alert"), text(&rule, "expr"))
    });
    alerts.collect()
}

fn dashboard() -> Value {
    serde_json::from_str(&example("grafana-dashboard.json")).expect("JSON")
}

/// The panels of the dashboard that show data.
fn panels() -> Vec<Value> {
    let dashboard = dashboard();
    let panels = dashboard["panels"].as_array().expect("panels").iter();
    panels.filter(|panel| panel["type"] != "row").cloned().collect()
}

/// The queries of the dashboard, with Grafana's variables filled in.
fn dashboard_queries() -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("an expression").to_owned();
    let mut queries: Vec<String> = Vec::new();
    for panel in panels() {
        queries.extend(panel["targets"].as_array().expect("targets").iter().map(|target| text(&target["expr"])));
    }
    let annotations = dashboard()["annotations"]["list"].as_array().expect("annotations").clone();
    queries
        .extend(annotations.iter().filter(|annotation| annotation["expr"].is_string()).map(|one| text(&one["expr"])));
    queries.iter().map(|expression| expression.replace("$__rate_interval", "1m")).collect()
}

#[test]
fn a_real_scrape_is_clean() {
    let Some(output) = promtool(&["check", "metrics"], &project(), &scrape()) else { return };
    assert_eq!((both(&output).as_str(), output.status.code()), ("", Some(0)));
}

#[test]
fn promtool_accepts_the_configuration_and_sees_each_alert_fire() {
    passes(&["check", "config", "prometheus.yml"], &examples());
    passes(&["check", "rules", "alerts.yml"], &examples());
    passes(&["test", "rules", "alerts_test.yml"], &examples());
    let tests = example("alerts_test.yml");
    for (alert, _) in alerts() {
        assert!(tests.contains(&format!("{alert}\"")) || tests.contains(&format!("alertname: {alert}\n")), "{alert}");
    }
}

#[test]
fn every_metric_of_an_alert_or_a_panel_exists() {
    let scrape = scrape();
    let there = |metric: &str| scrape.contains(&format!("\n# TYPE {metric} "));
    let alerts = alerts();
    assert!(alerts.len() >= 16, "{}", alerts.len());
    let watched = alerts.into_iter().map(|(_, expression)| expression).chain(dashboard_queries());
    let watched: BTreeSet<String> = watched.flat_map(|expression| named(&expression)).collect();
    assert!(watched.len() >= 25, "{watched:?}");
    for metric in &watched {
        assert!(there(metric), "{metric} is not among the metrics");
    }
    // Conversely, an alert or a panel uses every metric.
    let ours = scrape.lines().filter_map(|line| line.strip_prefix("# TYPE tollgate_")?.split(' ').next());
    let hidden: Vec<&str> = ours.filter(|name| !watched.contains(&format!("tollgate_{name}"))).collect();
    assert_eq!(hidden, [""; 0], "no alert and no panel shows these");
}

#[test]
fn every_label_in_an_expression_is_a_label_of_a_series() {
    let scrape = scrape();
    // Labels of the scrape and of histograms. `by` and `on` accept unknown labels without an error.
    let mut labels = BTreeSet::from(["job", "instance", "le"]);
    for line in scrape.lines().filter(|line| !line.starts_with('#')) {
        let inside = line.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(inside, _)| inside);
        labels.extend(inside.split("\",").filter_map(|pair| pair.split_once('=')).map(|(label, _)| label));
    }
    for expression in dashboard_queries().into_iter().chain(alerts().into_iter().map(|(_, expression)| expression)) {
        for by in expression.split("by (").skip(1).filter_map(|rest| rest.split(')').next()) {
            for label in by.split(',').map(str::trim) {
                assert!(labels.contains(label), "{label} in {expression}");
            }
        }
    }
}

#[test]
fn every_expression_of_the_dashboard_is_a_valid_query() {
    let queries = dashboard_queries();
    assert!(queries.len() >= 30, "{}", queries.len());
    let rule = |(number, expression): (usize, &String)| {
        let expression = serde_json::to_string(expression).expect("a text");
        format!("  - {{ record: \"query:{number}\", expr: {expression} }}\n")
    };
    let rules: String = queries.iter().enumerate().map(rule).collect();
    let directory = tempfile::tempdir().expect("a directory");
    fs::write(directory.path().join("queries.yml"), format!("groups:\n- name: queries\n  rules:\n{rules}"))
        .expect("written");
    passes(&["check", "rules", "--lint=none", "queries.yml"], directory.path());
}

#[test]
fn every_panel_has_a_description_and_a_unit_and_overlaps_no_other() {
    let mut taken: BTreeSet<(u64, u64)> = BTreeSet::new();
    let mut numbers: BTreeSet<u64> = BTreeSet::new();
    for panel in panels() {
        let title = panel["title"].as_str().expect("a title");
        assert!(panel["description"].as_str().is_some_and(|text| text.len() > 20), "{title} has no description");
        assert!(panel["fieldConfig"]["defaults"]["unit"].is_string(), "{title} has no unit");
        assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}");
        assert!(numbers.insert(panel["id"].as_u64().expect("an id")), "{title}");
        let at = |key: &str| panel["gridPos"][key].as_u64().expect(key);
        for x in at("x")..at("x") + at("w") {
            assert!(x < 24, "{title} is too wide");
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{title} lies on another panel");
            }
        }
    }
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64() >= Some(38), "Grafana 10 or newer");
    let variables = dashboard["templating"]["list"].as_array().expect("variables");
    assert_eq!(variables[0]["type"], "datasource");
}
