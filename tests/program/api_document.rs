//! The OpenAPI document of the API: it is valid, and the server keeps it whatever a client sends.

use std::fs;
use std::process::Command;

use crate::support::binary::{DOORS, Served, both, exchange};
use crate::support::processes::installed;

const LIMITERS: &str = r#"
[limiters.uploads]
max_concurrent = 1000
lease = "1s"
direct = true

[limiters.stripe_api]
algorithm = "token_bucket"
rate_per_second = 1000
burst = 100
direct = true

[[rules]]
domain = "jobs"
name = "stripe_api"
match = { kind = "charge" }
apply = [{ limiter = "stripe_api", key = ["endpoint"] }]
"#;

const TOKEN: &str = "a token of sixteen";

fn document(served: &Served) -> String {
    let request = format!("GET /v1/openapi.json HTTP/1.0\r\nhost: localhost\r\nauthorization: Bearer {TOKEN}\r\n\r\n");
    let answer = exchange(&served.http, request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").expect("an answer");
    assert!(head.starts_with("HTTP/1.0 200") || head.starts_with("HTTP/1.1 200"), "{head}");
    body.to_owned()
}

#[test]
fn the_document_is_valid_openapi() {
    let Some(schemathesis) = installed::schemathesis() else { return };
    let served = Served::start(&format!("{DOORS}{LIMITERS}"), &[]);
    let file = served.directory.path().join("openapi.json");
    fs::write(&file, document(&served)).expect("a file in the test's directory");
    // It is installed beside the other.
    let validator = schemathesis.with_file_name("openapi-spec-validator");
    let output = Command::new(validator).args(["--schema", "3.1"]).arg(&file).output().expect("it runs");
    assert!(output.status.success(), "{}", both(&output));
}

#[test]
fn whatever_a_client_sends_the_answer_is_one_that_the_document_has() {
    let Some(schemathesis) = installed::schemathesis() else { return };
    let server = format!("{DOORS}api_token = '{TOKEN}'\n[server.bounds]\nmax_wait = '10ms'\n");
    let served = Served::start(&format!("{server}{LIMITERS}"), &[]);
    let directory = served.directory.path();
    // What is valid by its schema can still make no sense: an unknown domain, entries beside a limiter.
    let config = format!(
        "[auth.openapi.token]\nbearer = '{TOKEN}'\n\
         [checks.positive_data_acceptance]\nexpected-statuses = [200, 400, 404, 409, 429, 503]\n"
    );
    fs::write(directory.join("schemathesis.toml"), config).expect("a file in the test's directory");
    fs::write(directory.join("openapi.json"), document(&served)).expect("a file in the test's directory");
    let output = Command::new(schemathesis)
        .args(["--config-file", "schemathesis.toml", "run", "openapi.json"])
        .args(["--url", &format!("http://{}", served.http)])
        .args(["--checks", "all", "--max-examples", "60", "--seed", "1", "--no-color", "--request-timeout", "20"])
        .current_dir(directory)
        .output()
        .expect("it runs");
    let said = both(&output);
    println!("{said}");
    assert!(output.status.success(), "{said}");
    assert_eq!(served.metric("tollgate_panics_total"), 0.0, "{}", served.said());
}
