//! Three real processes that count in one real store: their configurations and their clients.
//!
//! No request passes without the store: every limiter here denies when the store fails.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Instant;

use futures_util::future::join_all;
use tollgate::server::grpc::messages::service::ratelimit::v3::rate_limit_response::DescriptorStatus;
use tollgate::server::grpc::messages::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};

use crate::support::binary::{DOORS, Served, WAIT_TIMEOUT};
use crate::support::processes::{Answer, Ask, Cluster, Postgres, until};
use crate::support::service::{OK, OVER_LIMIT, Rls, descriptor, question};

pub const INSTANCES: usize = 3;
pub const TRIES: usize = 500;

/// The window of the tests: a boundary falls into a test with a probability of about a millionth.
pub const YEAR: &str = "365d";

// Configurations

/// The doors, and a store with a deadline for a busy machine. Limiters and rules follow.
fn counting_in(store: &str) -> String {
    format!(
        "{DOORS}drain_delay = '0s'\nsecret = 'of this test, and no other'\n\n\
         [stores.main]\n{store}\nrequired = true\ntimeout = '10s'\n"
    )
}

pub fn in_a_redis(port: u16) -> String {
    format!("engine = 'redis'\nurl = 'redis://127.0.0.1:{port}'")
}

pub fn in_a_postgres(server: &Postgres) -> String {
    format!("engine = 'postgres'\nurl = '{}'", server.url(&server.database()))
}

pub fn in_a_cluster(cluster: &Cluster) -> String {
    let nodes: Vec<String> = cluster.ports().iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("engine = 'redis'\nmode = 'cluster'\nurl = 'redis://{}'", nodes.join(","))
}

fn limiter(name: &str, keys: &str) -> String {
    format!("\n[limiters.{name}]\n{keys}\non_store_error = 'deny'\n")
}

/// A service that limits every request by account, with this limiter in this store.
pub fn service(store: &str, keys: &str) -> String {
    format!(
        "{}{}\n[[rules]]\ndomain = 'edge'\nname = 'all'\napply = [{{ limiter = 'limiter', key = ['account'] }}]\n\n\
         [authz]\ndomain = 'edge'\n\n[authz.entries]\naccount = {{ header = 'x-account' }}\n",
        counting_in(store),
        limiter("limiter", keys)
    )
}

pub const ALGORITHMS: [&str; 6] =
    ["token_bucket", "sliding_window", "sliding_counter", "fixed_window", "first_hit", "concurrency"];

/// A service with a limit of ten by account for each algorithm, which a descriptor names, and two more limits, so that
/// a request with three descriptors is decided by three counters.
pub fn of_each_algorithm(store: &str, window: &str) -> String {
    let mut toml = counting_in(store);
    let mut add = |name: &str, keys: &str, matched: &str, key: &str| {
        toml += &limiter(name, keys);
        toml += &format!(
            "\n[[rules]]\ndomain = 'edge'\nname = '{name}'\nmatch = {{ {matched} }}\n\
             apply = [{{ limiter = '{name}', key = ['{key}'] }}]\n"
        );
    };
    for name in ALGORITHMS {
        let keys = match name {
            "concurrency" => format!("max_concurrent = 10\nlease = '{window}'"),
            "first_hit" => format!("algorithm = 'fixed_window'\nalignment = '{name}'\nlimit = 10\nwindow = '{window}'"),
            _ => format!("algorithm = '{name}'\nlimit = 10\nwindow = '{window}'"),
        };
        add(name, &keys, &format!("algorithm = '{name}'"), "account");
    }
    add("all", &format!("algorithm = 'token_bucket'\nlimit = 12\nwindow = '{window}'"), "all = '*'", "all");
    add("running", &format!("max_concurrent = 11\nlease = '{window}'"), "running = '*'", "running");
    toml
}

// Processes and their clients

pub fn of(account: &str) -> RateLimitRequest {
    question("edge", [descriptor(&[("account", account)])])
}

pub fn one(algorithm: &str, account: &str) -> RateLimitRequest {
    question("edge", [descriptor(&[("algorithm", algorithm), ("account", account)])])
}

/// A request that is limited to twelve, to ten and to eleven at once.
pub fn composite(algorithm: &str, account: &str) -> RateLimitRequest {
    let by_account = descriptor(&[("algorithm", algorithm), ("account", account)]);
    question("edge", [descriptor(&[("all", algorithm)]), by_account, descriptor(&[("running", algorithm)])])
}

pub fn passes(answer: &RateLimitResponse) -> bool {
    answer.overall_code == OK
}

/// Sends a request until the store has decided it. On a busy machine the first call may fail: in PostgreSQL, a call
/// waits at most 100 ms for a row. A refusal by policy names no limit.
pub async fn decided(door: &Rls, request: &RateLimitRequest) -> RateLimitResponse {
    let began = Instant::now();
    loop {
        let answer = door.ask(request.clone()).await;
        let by_limit = |status: &DescriptorStatus| status.code == OVER_LIMIT && status.current_limit.is_some();
        if passes(&answer) || answer.statuses.iter().any(by_limit) {
            return answer;
        }
        assert!(began.elapsed() < WAIT_TIMEOUT, "the store never decides: {answer:?}");
    }
}

/// Processes that serve the same configuration, once they are ready.
pub fn processes(count: usize, toml: &str) -> Vec<Served> {
    (0..count).map(|_| Served::start(toml, &[]).ready()).collect()
}

/// Three processes, each with a connection to its gRPC door, as from an Envoy.
pub struct Instances {
    pub served: Vec<Served>,
    pub doors: Vec<Rls>,
}

impl Instances {
    pub async fn start(toml: &str) -> Self {
        Self::of(processes(INSTANCES, toml)).await
    }

    pub async fn of(served: Vec<Served>) -> Self {
        let doors = join_all(served.iter().map(|served| Rls::at(&served.grpc))).await;
        Self { served, doors }
    }

    /// Lets a number of callers send a request at the same moment, over all doors, and counts the admitted ones.
    pub async fn stampede(&self, callers: usize, request: &RateLimitRequest) -> usize {
        let start = Arc::new(tokio::sync::Barrier::new(callers));
        let caller = |number: usize| {
            let (door, start, request) = (self.doors[number % INSTANCES].clone(), start.clone(), request.clone());
            tokio::spawn(async move {
                start.wait().await;
                passes(&decided(&door, &request).await)
            })
        };
        let callers: Vec<_> = (0..callers).map(caller).collect();
        join_all(callers).await.into_iter().filter(|passed| *passed.as_ref().expect("it is answered")).count()
    }

    /// Sends requests to the doors in turn until one is refused. Returns the number that passed.
    pub async fn left(&self, request: &RateLimitRequest) -> usize {
        let mut passed = 0;
        while passes(&decided(&self.doors[passed % INSTANCES], request).await) {
            passed += 1;
            assert!(passed < TRIES, "there is no limit");
        }
        passed
    }

    /// The number of limits that were refused by policy and requested again.
    pub fn by_policy(&self) -> f64 {
        self.sum("tollgate_store_policy_answers_total{store=\"main\",policy=\"deny\"}")
    }

    /// The number of plans that the store has answered.
    pub fn plans(&self) -> f64 {
        self.sum("tollgate_store_call_plans_sum{store=\"main\"}")
    }

    fn sum(&self, series: &str) -> f64 {
        self.served.iter().map(|served| served.metric(series)).sum()
    }
}

pub fn port(address: &str) -> u16 {
    address.rsplit_once(':').expect("a port").1.parse().expect("a number")
}

pub fn try_once(served: &Served) -> Answer {
    try_at(port(&served.http))
}

pub fn try_at(http: u16) -> Answer {
    Ask::get("/authz/envoy/").account("a").send(http).expect("it answers")
}

/// Sends a number of requests to each HTTP door at the same moment. Returns how many passed.
pub fn tries(served: &[Served], each: usize) -> usize {
    let start = Barrier::new(served.len() * each);
    thread::scope(|scope| {
        let one = |served| {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                let mut status = 0;
                until("the store decides", || {
                    status = try_once(served).status;
                    status != 503
                });
                assert!(status == 200 || status == 429, "{status}");
                status == 200
            })
        };
        let all: Vec<_> = served.iter().flat_map(|served| std::iter::repeat_n(served, each)).map(one).collect();
        all.into_iter().map(|one| one.join().expect("it is answered")).filter(|passed| *passed).count()
    })
}
