//! Calls of the API of workers: any bytes as JSON, and as a message of protobuf.
//!
//! They are answered, with JSON of a known status, and what is not granted charges nothing.

use std::sync::LazyLock;

use prost::Message;
use serde_json::Value;
use tollgate::server::api::messages::{AcquireRequest, AcquireResponse};

use super::doors::{Doors, wait};

static DOORS: LazyLock<Doors> = LazyLock::new(|| {
    Doors::open(
        r#"
        [server.bounds]
        max_wait = "1us"

        [limiters]
        slots = { max_concurrent = 2, lease = "1h", direct = true }
        window = { algorithm = "sliding_window", limit = 5, window = "1h" }

        [[rules]]
        domain = "default"
        name = "window"
        match = { account = "*" }
        apply = [{ limiter = "window", key = ["account"] }]
        "#,
    )
});

const PATHS: [&str; 5] = ["/v1/acquire", "/v1/peek", "/v1/renew", "/v1/release", "/v1/settle"];

/// The first byte selects the path; the others are the body.
pub fn run(data: &[u8]) {
    let doors = DOORS.forget();
    let Some((path, body)) = data.split_first() else { return };
    let path = PATHS[usize::from(*path) % PATHS.len()];
    let (status, answer) = wait(doors.http.answer_call(path, body)).expect("the API is served");
    let answer: Value = serde_json::from_slice(&answer).expect("JSON");
    assert!([200, 400, 404, 409, 429, 503].contains(&status.as_u16()), "{status}: {answer}");
    let granted = answer["granted"] == true;
    let left = |ask: &str| {
        let (_, peeked) = wait(doors.http.answer_call("/v1/peek", ask.as_bytes())).expect("the API is served");
        let peeked: Value = serde_json::from_slice(&peeked).expect("JSON");
        peeked["limits"][0]["remaining"].as_u64()
    };
    if !granted {
        assert_eq!(left(r#"{"entries": {"account": "al"}}"#), Some(5), "{answer}");
        assert_eq!(left(r#"{"limiter": "slots"}"#), Some(2), "{answer}");
    }
    let answer = doors.forget().call_or_error("Acquire", body);
    match answer.map(|answer| AcquireResponse::decode(answer).expect("an answer of the API")) {
        Some(answer) if answer.granted => assert!(AcquireRequest::decode(body).is_ok(), "{answer:?}"),
        Some(_) | None => assert_eq!(left(r#"{"limiter": "slots"}"#), Some(2)),
    }
}
