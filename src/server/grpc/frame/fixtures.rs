//! An engine for the tests of written answers.

use std::sync::Arc;
use std::time::Duration;

use crate::clock::{ManualClock, Timestamp};
use crate::engine::Engine;
use crate::limiter::{Algorithm, Concurrency, Limiter, OnStoreError, Quota, WorkerSettings};
use crate::rules::{
    Action, Apply, Charge, KeyEntry, Matcher, Missing, RefusalText, Rule, RuleBook, RuleHeaders, Rules,
};
use crate::store::{MemorySettings, Stores};

fn rule(name: &str, limiter: &str, refusal: RefusalText) -> Rule {
    Rule {
        domain: "edge".into(),
        name: name.into(),
        matches: vec![("path".into(), Matcher::parse(&format!("/{limiter}")))],
        action: Action::Apply(vec![Apply {
            limiter: limiter.into(),
            otherwise: None,
            key: vec![KeyEntry { entry: "account".into(), normalise: vec![] }],
            charge: Charge::Admitted,
            overdraw: false,
            missing: Missing::Skip,
            hold: None,
        }]),
        last: false,
        shadow: false,
        enforce_percent: None,
        refusal,
        headers: RuleHeaders::All,
        skip_absent: false,
    }
}

/// An engine with windows of 90 s, of which two have rules that show little or nothing, a bucket of half a second, and a concurrency limit with a name of 200 bytes and a
/// refusal with a body.
pub(in crate::server::grpc) fn engine() -> Engine {
    let limiter = |name: &str, quota: Option<Quota>, concurrency| Limiter {
        name: name.into(),
        store: 0,
        quota,
        concurrency,
        on_store_error: OnStoreError::Local,
        overridable: false,
        workers: WorkerSettings::default(),
    };
    let window = Quota::new(2, Duration::from_secs(90), Algorithm::SlidingWindow).expect("the numbers fit");
    let bucket = Algorithm::TokenBucket { burst: Some(3), max_debt: None };
    let bucket = Quota::new(2, Duration::from_millis(500), bucket).expect("the numbers fit");
    let long = "l".repeat(200);
    let text = RefusalText { status: None, body: Some("b".repeat(20_000)), content_type: None };
    let book = RuleBook {
        limiters: vec![
            limiter("window", Some(window.clone()), None),
            limiter("quiet", Some(window.clone()), None),
            limiter("silent", Some(window), None),
            limiter("bucket", Some(bucket), None),
            limiter(&long, None, Some(Concurrency { max: 1, lease: 60_000_000 })),
        ],
        rules: vec![
            rule("by window", "window", RefusalText::default()),
            rule("by bucket", "bucket", RefusalText::default()),
            rule("by slots", &long, text),
            Rule { headers: RuleHeaders::RetryAfter, ..rule("by quiet", "quiet", RefusalText::default()) },
            Rule { headers: RuleHeaders::None, ..rule("by silent", "silent", RefusalText::default()) },
        ],
        ..RuleBook::default()
    };
    let clock = ManualClock::at(Timestamp::from_micros(1_700_000_000_123_456));
    Engine::new(
        Rules::compile(book).expect("the rules are right"),
        Stores::memory(&[MemorySettings::default()]),
        Arc::new(clock),
    )
}
