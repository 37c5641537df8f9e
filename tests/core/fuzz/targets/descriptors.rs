//! Any bytes as a request to Envoy's rate limit service: decoded by the door, planned, decided and answered.

use std::sync::LazyLock;

use prost::Message;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;
use tollgate::server::grpc::messages::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};

use super::doors::Doors;

const LIMIT: usize = 3;
const DESCRIPTORS: usize = 4;
const ENTRIES: usize = 5;
const OVER_LIMIT: i32 = 2;

/// The first rule matches every account. The others only have to be evaluated.
static DOORS: LazyLock<Doors> = LazyLock::new(|| {
    Doors::open(
        r#"
        [server.bounds]
        descriptors = 4
        entries = 5
        checks = 12

        [server.headers]
        rls = { x_ratelimit = true, ietf = true, retry_after = true, problem_json = true }

        [limiters]
        account = { algorithm = "fixed_window", alignment = "first_hit", limit = 3, window = "1h" }
        address = { algorithm = "sliding_window", limit = 9, window = "1m", override = true }
        tier_free = { algorithm = "token_bucket", limit = 5, window = "1m", max_debt = 7 }
        tier_pro = { algorithm = "sliding_counter", limit = 50, window = "1m" }
        month = { algorithm = "fixed_window", limit = 4, calendar = "month", timezone = "Europe/Berlin" }
        slots = { algorithm = "concurrency", max_concurrent = 2, lease = "5m" }

        [domains.edge]
        normalise = { path = ["path"], account = ["nfkc", "trim", "lowercase"], host = ["host"], agent = ["bearer"] }
        addresses = ["via"]

        [[rules]]
        domain = "edge"
        name = "account"
        match = { account = "*" }
        apply = [{ limiter = "account", key = ["account"] }]

        [[rules]]
        domain = "edge"
        name = "own"
        match = { path = ["/login", "/a*z"] }
        apply = [
          { limiter = "address", key = ["remote_address"], charge = "own" },
          { limiter = "month", key = ["via", "host"], missing = "empty" },
        ]

        [[rules]]
        domain = "edge"
        name = "tiers"
        match = { tier = "*", remote_address = { not = "10.0.0.0/8" } }
        apply = [{ limiter = "tier_{tier}", otherwise = "tier_free", key = ["remote_address"], charge = "always", missing = "deny" }]

        [[rules]]
        domain = "edge"
        name = "slot"
        match = { slot = "*", gone = { not = "*" } }
        apply = [{ limiter = "slots", key = ["slot"] }]

        [[rules]]
        domain = "edge"
        name = "some"
        match = { agent = "?*" }
        enforce_percent = 50
        apply = [{ limiter = "tier_pro", key = ["agent"], charge = "always", overdraw = true }]

        [[rules]]
        domain = "edge"
        name = "banned"
        match = { remote_address = ["192.0.2.0/24", "2001:db8::/32"] }
        action = "deny"
        "#,
    )
});

pub fn run(data: &[u8]) {
    let doors = DOORS.forget();
    let ask = || {
        let answer = doors.call("ShouldRateLimit", data);
        let answer = RateLimitResponse::decode(answer).expect("an answer is well formed");
        assert!([1, OVER_LIMIT].contains(&answer.overall_code), "it says OK or OVER_LIMIT");
        answer
    };
    let first = ask();
    let Ok(question) = RateLimitRequest::decode(data) else {
        assert_eq!(first.overall_code, OVER_LIMIT, "what cannot be read is refused");
        return;
    };
    let descriptors = &question.descriptors;
    if descriptors.len() > DESCRIPTORS || descriptors.iter().any(|descriptor| descriptor.entries.len() > ENTRIES) {
        assert_eq!(first.overall_code, OVER_LIMIT, "what is past a bound is refused");
        return;
    }
    assert_eq!(first.statuses.len(), descriptors.len(), "each descriptor has a status");
    let admitted = std::iter::once(first).chain(std::iter::repeat_with(ask));
    let admitted = admitted.take(LIMIT + 1).filter(|answer| answer.overall_code != OVER_LIMIT).count();
    if question.domain == "edge" && descriptors.iter().any(takes_from_an_account) && !descriptors.iter().any(gives) {
        assert!(admitted <= LIMIT, "{admitted} of {LIMIT} were admitted");
    }
}

fn takes_from_an_account(descriptor: &RateLimitDescriptor) -> bool {
    descriptor.hits_addend != Some(0) && descriptor.entries.iter().any(|entry| entry.key == "account")
}

fn gives(descriptor: &RateLimitDescriptor) -> bool {
    descriptor.is_negative_hits
}
