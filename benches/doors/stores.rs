//! The cost of a shared store: CPU of tollgate and of Redis per request, compared with the memory store and a tonic
//! server that does nothing, in one run; and its growth with limiters, with instances, and with the primaries of a cluster.
//!
//! The clients run on core 1, everything else on core 0. CPU is user and system time of the processes.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tempfile::TempDir;

use crate::load::{self, Load};
use crate::processes::redis::Setup;
use crate::processes::{Cluster, Redis, until};
use crate::server::Server;
use crate::{ROUNDS, client, gateway, median, questions};

/// Accounts that requests take in turn, where there are many.
const ACCOUNTS: usize = 10_000;

/// Requests in flight on each connection, as many as h2load has.
const STREAMS: usize = 50;

/// Numbers of primaries in the clusters.
const PRIMARIES: [usize; 3] = [1, 3, 6];

/// Store settings that send each request as a call of its own.
const UNBATCHED: &str = "max_batch = 1\nmax_calls = 64\n";

/// How long an idle cluster is watched.
const REST: Duration = Duration::from_secs(5);

/// The accounts of the requests.
enum Asking {
    /// A single account.
    One(Load),
    /// Many accounts in turn, as framed messages.
    Many(Arc<[Bytes]>),
}

/// Servers that share the load of one row of the table.
struct Contender<'a> {
    name: String,
    servers: Vec<&'a Server>,
    nodes: Vec<&'a Redis>,
    asking: Asking,
    turns: Vec<Spent>,
}

/// Microseconds of CPU per request: of all servers together, and of each node of the store.
struct Spent {
    service: f64,
    nodes: Vec<f64>,
}

impl Spent {
    fn store(&self) -> f64 {
        // The sum of an empty iterator of floats is -0.
        self.nodes.iter().fold(0.0, |sum, node| sum + node)
    }
}

/// A contender that gets requests of one account.
fn of<'a>(name: &str, servers: &[&'a Server], redis: Option<&'a Redis>, domain: &str) -> Contender<'a> {
    let frame = questions::rls_frame(domain, "/login", "load", questions::ADDRESS);
    let asking = Asking::One(Load::grpc(questions::RLS, &frame));
    let (servers, nodes) = (servers.to_vec(), redis.into_iter().collect());
    Contender { name: name.to_owned(), servers, nodes, asking, turns: Vec::new() }
}

impl Contender<'_> {
    fn turn(&mut self) {
        let before = self.cpu();
        std::thread::scope(|scope| {
            for server in &self.servers {
                scope.spawn(|| self.asking.run(server));
            }
        });
        let after = self.cpu();
        let requests = f64::from(load::REQUESTS) * self.servers.len() as f64;
        let micros = |after: Duration, before: Duration| (after - before).as_secs_f64() * 1e6 / requests;
        let nodes = after.1.into_iter().zip(before.1).map(|(after, before)| micros(after, before)).collect();
        self.turns.push(Spent { service: micros(after.0, before.0), nodes });
    }

    /// CPU of the servers together, and of each node, since their start.
    fn cpu(&self) -> (Duration, Vec<Duration>) {
        (self.servers.iter().map(|server| server.cpu()).sum(), self.nodes.iter().map(|node| node.cpu()).collect())
    }

    fn median(&self, part: impl Fn(&Spent) -> f64) -> f64 {
        median(self.turns.iter().map(part).collect())
    }

    /// The medians of the service, and of all nodes together.
    fn medians(&self) -> (f64, f64) {
        (self.median(|spent| spent.service), self.median(Spent::store))
    }
}

impl Asking {
    fn run(&self, server: &Server) {
        match self {
            Self::One(load) => load.run(server),
            Self::Many(frames) => {
                let frames = frames.clone();
                let frame = move |number| frames[number as usize % frames.len()].clone();
                let answered = |number: u64, admitted: bool| assert!(admitted, "request {number} is refused");
                client::ask(server.grpc, STREAMS, load::REQUESTS.into(), frame, answered);
            }
        }
    }
}

/// Starts tollgate with a store.
struct Starter<'a> {
    program: &'a str,
    configuration: String,
    directory: TempDir,
}

impl<'a> Starter<'a> {
    fn new(program: &'a str, configuration: &str) -> Self {
        let configuration = std::fs::read_to_string(configuration).expect("the bench's configuration");
        Self { program, configuration, directory: tempfile::tempdir().expect("a temporary directory") }
    }

    fn memory(&self) -> Server {
        self.start("")
    }

    /// Starts it with the Redis on these ports and further settings of the store.
    fn redis(&self, ports: &[u16], more: &str) -> Server {
        let nodes = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect::<Vec<_>>().join(",");
        // The timeout is long: here, requests that wait for a saturated core are measured too.
        let store = format!("engine = \"redis\"\nurl = \"redis://{nodes}\"\nrequired = true\ntimeout = \"5s\"\n{more}");
        let server = self.start(&format!("\n[stores.main]\n{store}"));
        until("the store answers", || server.get("/healthcheck", &[]) == 200);
        server
    }

    fn start(&self, stores: &str) -> Server {
        let files = std::fs::read_dir(&self.directory).expect("the bench's directory").count();
        let path = self.directory.path().join(format!("{files}.toml"));
        std::fs::write(&path, self.configuration.clone() + stores).expect("a file in a directory of our own");
        Server::start(&[self.program, "serve", "--config", path.to_str().expect("a path in UTF-8")])
    }
}

fn redis() -> Setup {
    Setup::redis().expect("redis-server is installed").on_core(0)
}

/// Prints the tables.
pub fn report(idle: &str, tollgate: &str, configuration: &str) {
    let starter = Starter::new(tollgate, configuration);
    limiters_and_instances(idle, &starter);
    primaries(&starter);
}

fn limiters_and_instances(idle: &str, starter: &Starter) {
    let redis = redis().start();
    let idle = Server::start(&[idle]);
    let memory = starter.memory();
    let instances = [(); 3].map(|()| starter.redis(&[redis.port], ""));
    let unbatched = starter.redis(&[redis.port], UNBATCHED);

    let [first, second, third] = &instances;
    let mut contenders = [
        of("idle tonic server", &[&idle], None, "one"),
        of("memory, one limiter", &[&memory], None, "one"),
        of("memory, two limiters", &[&memory], None, "two"),
        of("Redis, one limiter", &[first], Some(&redis), "one"),
        of("Redis, two limiters", &[first], Some(&redis), "two"),
        of("Redis, five limiters", &[first], Some(&redis), "five"),
        of("Redis, one limiter, one request a call", &[&unbatched], Some(&redis), "one"),
        of("Redis, one limiter, two instances", &[first, second], Some(&redis), "one"),
        of("Redis, one limiter, three instances", &[first, second, third], Some(&redis), "one"),
    ];
    for _ in 0..ROUNDS {
        contenders.iter_mut().for_each(Contender::turn);
    }
    let (idle, _) = contenders[0].medians();
    let (memory, _) = contenders[1].medians();
    println!("CPU per request, microseconds: RLS about one account, sent by h2load");
    println!("  {:<38} {:>8} {:>8} {:>8} {:>10} {:>14}", "", "service", "Redis", "sum", "x memory", "sum x idle");
    for contender in &contenders {
        let (service, store) = contender.medians();
        let sum = service + store;
        let goal = match contender.name.as_str() {
            "Redis, one limiter" => "   goals: service 1.6 x memory, sum 1.9 x idle tonic",
            _ => "",
        };
        println!(
            "  {:<38} {service:>8.2} {store:>8.2} {sum:>8.2} {:>10.2} {:>14.2}{goal}",
            contender.name,
            service / memory,
            sum / idle
        );
    }
}

fn primaries(starter: &Starter) {
    let redis = redis();
    let single = redis.clone().start();
    let clusters = PRIMARIES.map(|primaries| Cluster::of(&redis, primaries, 0));
    let memory = starter.memory();
    let [batched, unbatched] = ["", UNBATCHED].map(|more| starter.redis(&[single.port], more));
    let clustered = clusters.each_ref().map(|cluster| starter.redis(&cluster.ports(), "mode = \"cluster\"\n"));

    let frame = |number| questions::rls_frame("one", "/login", &format!("account-{number}"), questions::ADDRESS).into();
    let frames: Arc<[Bytes]> = (0..ACCOUNTS).map(frame).collect();
    let of = |name: &str, server, nodes| {
        let asking = Asking::Many(frames.clone());
        Contender { name: name.to_owned(), servers: vec![server], nodes, asking, turns: Vec::new() }
    };
    let mut contenders = vec![
        of("memory", &memory, Vec::new()),
        of("one Redis", &batched, vec![&single]),
        of("one Redis, one request a call", &unbatched, vec![&single]),
    ];
    for ((primaries, cluster), server) in PRIMARIES.iter().zip(&clusters).zip(&clustered) {
        let plural = if *primaries == 1 { "y" } else { "ies" };
        contenders.push(of(&format!("cluster, {primaries} primar{plural}"), server, cluster.nodes.iter().collect()));
    }
    for _ in 0..ROUNDS {
        contenders.iter_mut().for_each(Contender::turn);
    }
    for node in contenders.iter().flat_map(|contender| &contender.nodes) {
        assert!(node.ask::<usize>(&["DBSIZE"]) > 0, "a primary got no request");
    }
    let rest = at_rest(&contenders);

    println!("\nHow it grows with the primaries of a Redis Cluster, all nodes on one core");
    println!("CPU per decision, microseconds: RLS with one limiter about {ACCOUNTS} accounts in turn");
    println!("(at rest: CPU of all nodes, microseconds per idle second)");
    println!(
        "  {:<26} {:>8} {:>10} {:>8} {:>13} {:>9}   each node",
        "", "service", "all nodes", "sum", "x 1 primary", "at rest"
    );
    let total = |contender: &Contender| contender.median(|spent| spent.service + spent.store());
    let one = total(&contenders[contenders.len() - PRIMARIES.len()]);
    for (contender, rest) in contenders.iter().zip(rest) {
        let (service, nodes) = contender.medians();
        let sum = total(contender);
        let each = |node| format!("{:.2}", contender.median(|spent: &Spent| spent.nodes[node]));
        let each = (0..contender.nodes.len()).map(each).collect::<Vec<_>>().join(" ");
        println!(
            "  {:<26} {service:>8.2} {nodes:>10.2} {sum:>8.2} {:>13.2} {rest:>9.0}   {each}",
            contender.name,
            sum / one
        );
    }
}

/// CPU of the nodes of each contender while idle, in microseconds per second.
fn at_rest(contenders: &[Contender]) -> Vec<f64> {
    let nodes = |contender: &Contender| contender.cpu().1.into_iter().sum::<Duration>();
    let before: Vec<Duration> = contenders.iter().map(nodes).collect();
    std::thread::sleep(REST);
    let spent = contenders.iter().zip(before).map(|(contender, before)| nodes(contender) - before);
    spent.map(|spent| spent.as_secs_f64() * 1e6 / REST.as_secs_f64()).collect()
}

/// Latency through a real Envoy with a Redis behind tollgate, with the memory store, and with a service that does
/// nothing.
pub fn through_envoy(envoy: &str, noop: &str, tollgate: &str, configuration: &str) {
    let starter = Starter::new(tollgate, configuration);
    let redis = redis().start();
    let (noop, memory, shared) = (Server::start(&[noop]), starter.memory(), starter.redis(&[redis.port], ""));
    let services =
        [(gateway::NOTHING, &noop), (gateway::MEMORY, &memory), ("tollgate, two limiters in Redis", &shared)];
    gateway::report(envoy, &services);
}
