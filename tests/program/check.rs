//! `tollgate check` with warnings: text, exit codes, JSON; and the same warnings in the log of `serve`.

use std::process::Output;

use serde::Deserialize;
use tollgate::config::WarningKind;

use crate::support::binary::{DOORS, Served, tollgate};

const WARNED: &str = "[limiters.a]\nmax_concurrent = 1\n[[rules]]\ndomain = 'edge'\nname = 'é'\n\
                      match = { x_y = 'é', path = '^/login$' }\naction = 'deny'\n[domains.edge]\nnormalise = { path = ['path'] }\n";
const REFUSED: &str = "[limiters.a]\nmax_concurrent = 0\n";
const GOOD: &str = "[[rules]]\ndomain = 'edge'\nname = 'a'\naction = 'deny'\n";

/// A line of `check --json`. An unknown key is a change that editors have to be asked about: docs/check.md lists the keys.
#[derive(Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Finding {
    file: String,
    line: Option<u32>,
    column: Option<u32>,
    path: String,
    severity: Severity,
    warning: Option<String>,
    text: String,
}

#[derive(Debug, Deserialize, PartialEq)]
#[serde(rename_all = "snake_case")]
enum Severity {
    Error,
    Warning,
}

/// The exit code, standard output and standard error of `check` on files with these texts.
fn check(files: &[(&str, &str)], arguments: &[&str]) -> (Option<i32>, String, String) {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        std::fs::write(directory.path().join(name), text).expect("written");
    }
    let mut command = tollgate(directory.path());
    command.arg("check").args(arguments).args(files.iter().map(|(name, _)| *name));
    let Output { status, stdout, stderr } = command.output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

fn findings(out: &str) -> Vec<Finding> {
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))).collect()
}

const UNUSED: &str = "limiters.a is applied by no rule, so it limits nothing; apply it in a rule, remove it, or, if workers \
                      ask for it by name, set direct = true";
const REGULAR: &str = "rules[0].match.path is \"^/login$\", which looks like a regular expression for its \"^\": only * is \
                       special here; write \"/login\"";

#[test]
fn warnings_have_a_name_and_are_errors_only_if_check_is_strict() {
    let texts = |severity: &str| {
        format!("a.toml:1:{severity} {UNUSED} [unused_limiter]\na.toml:6:{severity} {REGULAR} [regular_expression]\n")
    };
    let good = "a.toml: good: 1 rule, 1 limiter, 1 store\n".to_owned();
    assert_eq!(check(&[("a.toml", WARNED)], &[]), (Some(0), good, texts(" warning:")));
    assert_eq!(check(&[("a.toml", WARNED)], &["--strict"]), (Some(1), String::new(), texts("")));
    let good = "a.toml: good: 1 rule, 0 limiters, 1 store\n".to_owned();
    assert_eq!(check(&[("a.toml", GOOD)], &["--strict"]), (Some(0), good, String::new()));
    let (code, out, _) = check(&[("a.toml", WARNED), ("b.toml", GOOD)], &["--strict", "--print"]);
    assert_eq!(code, Some(1));
    assert!(out.contains("# b.toml as it takes effect") && !out.contains("# a.toml"), "{out}");
    let accepted = format!("{WARNED}[check]\naccept = ['unused_limiter', 'regular_expression']\n");
    assert_eq!(check(&[("a.toml", &accepted)], &["--strict"]).0, Some(0));
}

#[test]
fn json_has_a_line_for_each_error_and_warning_and_nothing_else() {
    let finding =
        |file: &str, place: Option<(u32, u32)>, path: &str, severity, warning: Option<&str>, text: &str| Finding {
            file: file.to_owned(),
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
            path: path.to_owned(),
            severity,
            warning: warning.map(str::to_owned),
            text: text.to_owned(),
        };
    let zero = "limiters.a.max_concurrent is 0, expected more than zero";
    let refused = finding("b.toml", Some((2, 1)), "limiters.a.max_concurrent", Severity::Error, None, zero);
    let files = [("a.toml", WARNED), ("b.toml", REFUSED), ("c.toml", GOOD)];
    let (code, out, err) = check(&files, &["--json"]);
    assert_eq!((code, err.as_str()), (Some(1), ""));
    let unused = |severity| finding("a.toml", Some((1, 11)), "limiters.a", severity, Some("unused_limiter"), UNUSED);
    // The column counts characters, not bytes.
    let regular = |severity| {
        finding("a.toml", Some((6, 22)), "rules[0].match.path", severity, Some("regular_expression"), REGULAR)
    };
    assert_eq!(findings(&out), [unused(Severity::Warning), regular(Severity::Warning), refused]);
    let (code, out, _) = check(&files[..1], &["--json"]);
    assert_eq!((code, findings(&out).len()), (Some(0), 2));
    let (code, out, err) = check(&files[..1], &["--json", "--strict"]);
    assert_eq!((code, err.as_str()), (Some(1), ""));
    assert_eq!(findings(&out), [unused(Severity::Error), regular(Severity::Error)]);
    assert_eq!(check(&[("c.toml", GOOD)], &["--json", "--strict"]), (Some(0), String::new(), String::new()));
    assert_eq!(check(&[("c.toml", GOOD)], &["--json", "--print"]).0, Some(2), "one of them has standard output");
    let (code, out, _) = check(&[("c.toml", "= 7\n")], &["--json"]);
    let [syntax] = &findings(&out)[..] else { panic!("one error: {out}") };
    assert_eq!((code, syntax.line, syntax.path.as_str(), &syntax.severity), (Some(1), Some(1), "", &Severity::Error));
    let (_, out, _) = check(
        &[(
            "c.yaml",
            "domains:\n  edge: { unmatched: deny }\nrules:\n- { domain: edge, name: a, action: deny, status: 302 }\n",
        )],
        &["--json"],
    );
    let [redirect] = &findings(&out)[..] else { panic!("one warning: {out}") };
    assert_eq!((redirect.line, redirect.column, redirect.path.as_str()), (Some(4), Some(42), "rules[0].status"));
}

#[test]
fn what_cannot_be_read_is_an_error_without_a_place_in_json() {
    let directory = tempfile::tempdir().expect("a directory");
    let output = tollgate(directory.path()).args(["check", "--json", "none.toml"]).output().expect("the program runs");
    let found = findings(&String::from_utf8(output.stdout).expect("text"));
    let [missing] = &found[..] else { panic!("one error: {found:?}") };
    let text = (missing.file.as_str(), missing.line, missing.text.as_str());
    assert_eq!(text, ("none.toml", None, "no such file or directory"));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn warnings_are_logged_once_at_the_start_and_once_with_a_reload() {
    let text = format!("{DOORS}{WARNED}");
    let served = Served::start(&text, &[]);
    served.until(REGULAR);
    let count = |sentence: &str| served.said().matches(sentence).count();
    assert_eq!((count(UNUSED), count(REGULAR)), (1, 1), "{}", served.said());
    assert!(served.said().contains("unused_limiter"), "{}", served.said());
    std::fs::write(served.directory.path().join("tollgate.toml"), text.replace("^/login$", "^/login.*$"))
        .expect("written");
    served.signal("-HUP");
    served.until("configuration applied");
    served.until("write \"/login*\"");
    assert_eq!((count(UNUSED), count(REGULAR)), (2, 1), "{}", served.said());
}

#[test]
fn the_log_in_json_has_the_warnings_too() {
    let served = Served::start(&format!("{DOORS}{WARNED}[log]\nformat = 'json'\n"), &[]);
    served.until("unused_limiter");
    let said = served.said();
    let line = said.lines().find(|line| line.contains("unused_limiter")).expect("a line");
    let line: serde_json::Value = serde_json::from_str(line).expect("each line of the log is JSON");
    assert_eq!((&line["level"], &line["warning"]), (&"WARN".into(), &WarningKind::UnusedLimiter.name().into()));
}
