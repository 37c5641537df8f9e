//! Runs the examples of `docs/api.md` with curl. `UPDATE_DOCS=1` writes their answers again.

use std::process::Command;

use serde_json::Value;

use super::pages::{is_written, read};
use crate::support::binary::{DOORS, Served, both};
use crate::support::processes::installed;

const PAGE: &str = "docs/api.md";

/// Fields whose values differ between runs.
const VOLATILE: [&str; 7] = ["lease", "lease_ends_in", "waited", "reset", "remaining", "retry_after", "retry_after_ms"];

/// The lease that the page shows.
const SHOWN_LEASE: &str = "AQAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// An answer without what differs between runs.
fn steady(value: &mut Value) {
    match value {
        Value::Object(fields) => fields.iter_mut().for_each(|(name, value)| match VOLATILE.contains(&name.as_str()) {
            true if !value.is_null() => *value = 0.into(),
            _ => steady(value),
        }),
        Value::Array(values) => values.iter_mut().for_each(steady),
        _ => {}
    }
}

fn same(shown: &str, answer: &Value) -> bool {
    let Ok(mut shown) = serde_json::from_str::<Value>(shown) else { return false };
    let mut answer = answer.clone();
    steady(&mut shown);
    steady(&mut answer);
    shown == answer
}

#[test]
fn the_examples_of_the_page_of_the_api_are_what_it_answers() {
    let Some(curl) = installed::program("curl") else { return };
    let page = read(PAGE);
    let (_, config) = page.split_once("```toml\n").expect("the configuration");
    let (config, _) = config.split_once("```").expect("its end");
    let served = Served::start(&format!("{DOORS}{config}"), &[]);
    let (mut written, mut rest, mut played, mut lease) = (String::new(), page.as_str(), 0, String::new());
    while let Some((before, after)) = rest.split_once("```sh\n") {
        let (command, after) = after.split_once("```\n").expect("the end of a command");
        let (between, after) = after.split_once("```json\n").expect("its answer");
        let (shown, after) = after.split_once("```\n").expect("the end of an answer");
        let script = command.trim_end().replace("127.0.0.1:8080", &served.http);
        let script = script.replacen("curl", &format!("{} --silent --include --http1.1", curl.display()), 1);
        let output = Command::new("sh").args(["-c", &script]).env("lease", &lease).output().expect("it runs");
        let answer = both(&output);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{command}: {answer}"));
        let status = head.split_once(' ').and_then(|(_, rest)| rest.split("\r\n").next()).expect("a status");
        assert!(between.contains(&format!("`{status}`")), "{command}: the page does not say {status}: {body}");
        let mut body: Value = serde_json::from_str(body).unwrap_or_else(|_| panic!("{command}: {body}"));
        if let Some(given) = body.get("lease").and_then(Value::as_str) {
            given.clone_into(&mut lease);
            body["lease"] = SHOWN_LEASE.into();
        }
        let pretty = format!("{body:#}\n");
        let kept = if same(shown, &body) { shown } else { &pretty };
        written += &format!("{before}```sh\n{command}```\n{between}```json\n{kept}```\n");
        rest = after;
        played += 1;
    }
    assert!(played >= 9, "{played} examples");
    is_written(PAGE, &format!("{written}{rest}"));
}
