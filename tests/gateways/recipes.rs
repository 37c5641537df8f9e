//! What the recipes have in common that count by how a request ends (semantics 44): parallel requests, the unpleasant
//! endings, and what the counters hold.

use std::net::TcpStream;
use std::thread;

use serde_json::{Value, json};

use crate::support::processes::{Ask, Gateway, Redis, read, until};

/// The port of tollgate's admin page in the rules that these tests start.
const ADMIN: u16 = 8_082;

/// A recipe: its sample and what is changed in it.
pub struct Recipe {
    envoy: String,
    rules: String,
}

impl Recipe {
    /// The recipe of `examples/envoy/<name>.yaml` and `.toml`.
    pub fn new(name: &str) -> Self {
        let rules = read(format!("examples/envoy/{name}.toml"));
        let rules = with(&rules, "[server]\n", &format!("[server]\nadmin = \"127.0.0.1:{ADMIN}\"\n"));
        Self { envoy: read(format!("examples/envoy/{name}.yaml")), rules }
    }

    /// Replaces a part of the Envoy configuration.
    pub fn envoy(self, part: &str, other: &str) -> Self {
        Self { envoy: with(&self.envoy, part, other), ..self }
    }

    /// Replaces a part of the rules.
    pub fn rules(self, part: &str, other: &str) -> Self {
        Self { rules: with(&self.rules, part, other), ..self }
    }

    /// Gives the route to the upstream these settings.
    pub fn route(self, settings: &str) -> Self {
        let start = self.envoy.find("route: {cluster: upstream").expect("a route");
        let end = start + self.envoy[start..].find('}').expect("its end");
        let route = self.envoy[start..end].to_owned();
        self.envoy(&route, &format!("route: {{cluster: upstream, {settings}"))
    }

    /// Lets the route give up on an upstream that has not answered soon.
    pub fn impatient(self) -> Self {
        self.route("timeout: 0.2s")
    }

    /// Lets the route repeat what the upstream answers with 503.
    pub fn retrying(self) -> Self {
        self.route("retry_policy: {retry_on: 5xx, num_retries: 2}")
    }

    /// Puts a second rate limit filter behind all others. It holds eight of ten units for each request, and settles one.
    pub fn with_a_second_filter(mut self) -> Self {
        let router = "          - name: envoy.filters.http.router\n";
        self.rules.push_str(SECOND_RULES);
        self.envoy(router, &format!("{SECOND_FILTER}{router}"))
    }

    /// Counts in this Redis, with a timeout for a busy machine.
    pub fn on(mut self, redis: &Redis) -> Self {
        let url = redis.url();
        self.rules.push_str(&format!(
            "\n[stores.main]\nengine = \"redis\"\nurl = \"{url}\"\nrequired = true\ntimeout = \"5s\"\n"
        ));
        self
    }

    /// Starts it. None when Envoy is not installed.
    pub fn start(&self) -> Option<Gateway> {
        Gateway::start(&self.envoy, &self.rules)
    }
}

/// Replaces a part of a text that must occur exactly once.
fn with(text: &str, part: &str, other: &str) -> String {
    assert_eq!(text.matches(part).count(), 1, "{part:?} in\n{text}");
    text.replace(part, other)
}

const SECOND_RULES: &str = r#"
[limiters.second]
algorithm = "sliding_window"
limit = 10
window = "1h"

[[rules]]
domain = "second"
name = "second"
match = { filter = "second" }
apply = [{ limiter = "second", key = ["filter"], hold = "1m" }]
"#;

const SECOND_FILTER: &str = r#"          - name: envoy.filters.http.ratelimit
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit
              domain: second
              rate_limits:
              - actions:
                - generic_key: {descriptor_key: filter, descriptor_value: second}
                hits_addend: {number: 8}
              - actions:
                - metadata:
                    descriptor_key: settle
                    metadata_key: {key: envoy.filters.http.ratelimit, path: [{key: lease_second}]}
                    source: DYNAMIC
                hits_addend: {number: 1}
                apply_on_stream_done: true
              timeout: 0.25s
              failure_mode_deny: true
              rate_limit_service:
                transport_api_version: V3
                grpc_service: {envoy_grpc: {cluster_name: tollgate}}
"#;

/// What a counter of units has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// Units used.
    pub used: u64,
    /// Those of them that a lease can still correct.
    pub held: u64,
}

/// What the counter of a limiter has used for an account, or for another entry.
pub fn used(gateway: &Gateway, domain: &str, limiter: &str, entry: (&str, &str)) -> Used {
    let counter = counter(gateway, domain, limiter, false, entry);
    let number = |name: &str| counter[name].as_u64().unwrap_or_else(|| panic!("{name}: {counter}"));
    Used { used: number("used"), held: number("held") }
}

/// Waits until so many slots of a limiter are taken.
pub fn until_taken(gateway: &Gateway, domain: &str, limiter: &str, entry: (&str, &str), slots: u64) {
    until("the slots to be taken or free", || counter(gateway, domain, limiter, true, entry)["used"] == slots);
}

/// The state of a counter, as the admin page says it.
fn counter(gateway: &Gateway, domain: &str, limiter: &str, slots: bool, (entry, value): (&str, &str)) -> Value {
    let query = json!({"domain": domain, "entries": [[entry, value]]});
    let answer = gateway.ask_at(ADMIN, &Ask::post("/state").loopback().json(&query.to_string())).expect(200);
    let counters: Vec<Value> = serde_json::from_str(&answer.body).expect("a list of counters");
    let counter = counters.iter().find(|counter| counter["limiter"] == limiter && counter["slots"] == slots);
    counter.unwrap_or_else(|| panic!("{limiter}: {}", answer.body))["holds"].clone()
}

/// Waits until every lease of a counter has ended, and returns what it has used.
pub fn settled(gateway: &Gateway, domain: &str, limiter: &str, entry: (&str, &str)) -> u64 {
    until("every lease to be settled", || used(gateway, domain, limiter, entry).held == 0);
    used(gateway, domain, limiter, entry).used
}

/// How many holds were settled or released by now, in time and otherwise.
pub fn settlements(gateway: &Gateway) -> (u64, u64) {
    let page = gateway.ask_at(ADMIN, &Ask::get("/metrics").loopback()).expect(200).body;
    let count = |when: &str| {
        let name = format!("tollgate_holds_settled_total{{when=\"{when}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).map_or(0, |count| count.parse().expect("a number"))
    };
    (count("in_time"), count("late") + count("unknown"))
}

/// Sends all of them at once. Returns their statuses.
pub fn at_once(gateway: &Gateway, asks: &[Ask]) -> Vec<u16> {
    thread::scope(|scope| {
        let sent: Vec<_> = asks.iter().map(|ask| scope.spawn(|| gateway.ask(ask).status)).collect();
        sent.into_iter().map(|answer| answer.join().expect("an answer")).collect()
    })
}

/// Begins a request, and returns once the upstream has it in its hands and does not answer.
pub fn begin(gateway: &Gateway, ask: &Ask) -> TcpStream {
    let before = gateway.upstream.held();
    let client = ask.clone().header("x-wait", "gate").begin(gateway.port(10_000)).expect("Envoy accepts");
    until("the request to be at the upstream", || gateway.upstream.held() == before + 1);
    client
}

/// Hangs up, and waits until Envoy has noticed.
pub fn hang_up(gateway: &Gateway, clients: Vec<TcpStream>) {
    drop(clients);
    until("Envoy to see that they are gone", || gateway.stat("cluster.upstream.upstream_rq_active") == 0);
}

/// How many of the statuses are this one.
pub fn count(statuses: &[u16], status: u16) -> usize {
    statuses.iter().filter(|found| **found == status).count()
}
