//! What a shared store costs: CPU of tollgate and of Redis per request, beside the memory store and a tonic server that
//! does nothing, in one run; and how that grows with limiters and with instances.
//!
//! Everything has core 0 but h2load, which has core 1. CPU is user and system time of the processes.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::load::{self, Load};
use crate::server::{self, Server};
use crate::{ROUNDS, gateway, median, questions};

/// A Redis that keeps nothing on disk.
struct Redis {
    process: Child,
    port: u16,
}

impl Redis {
    fn start(program: &str) -> Self {
        let port = std::net::TcpListener::bind("127.0.0.1:0")
            .and_then(|listener| listener.local_addr())
            .expect("a port is free")
            .port();
        let process = Command::new("taskset")
            .args(["-c", "0", program, "--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("taskset starts it");
        let deadline = std::time::Instant::now() + Duration::from_secs(10);
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(std::time::Instant::now() < deadline, "{program} does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { process, port }
    }

    fn cpu(&self) -> Duration {
        server::cpu_of(self.process.id())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.process.kill().and_then(|()| self.process.wait()));
    }
}

/// Servers that share the load of one line of the table.
struct Contender<'a> {
    name: String,
    servers: Vec<&'a Server>,
    redis: Option<&'a Redis>,
    load: Load,
    micros: Vec<(f64, f64)>,
}

fn of<'a>(name: &str, servers: &[&'a Server], redis: Option<&'a Redis>, domain: &str) -> Contender<'a> {
    let load = Load::grpc(questions::RLS, &questions::rls_frame(domain, "/login", "load", questions::ADDRESS));
    Contender { name: name.to_owned(), servers: servers.to_vec(), redis, load, micros: Vec::new() }
}

impl Contender<'_> {
    fn turn(&mut self) {
        let cpu = |contender: &Self| {
            let servers: Duration = contender.servers.iter().map(|server| server.cpu()).sum();
            (servers, contender.redis.map_or(Duration::ZERO, Redis::cpu))
        };
        let before = cpu(self);
        std::thread::scope(|scope| {
            for server in &self.servers {
                scope.spawn(|| self.load.run(server));
            }
        });
        let after = cpu(self);
        let requests = f64::from(load::REQUESTS) * self.servers.len() as f64;
        let micros = |spent: Duration| spent.as_secs_f64() * 1e6 / requests;
        self.micros.push((micros(after.0 - before.0), micros(after.1 - before.1)));
    }

    fn medians(&self) -> (f64, f64) {
        let of = |part: fn(&(f64, f64)) -> f64| median(self.micros.iter().map(part).collect());
        (of(|micros| micros.0), of(|micros| micros.1))
    }
}

/// Prints the table.
pub fn report(idle: &str, tollgate: &str, configuration: &str, redis: &str) {
    let directory = std::env::temp_dir().join(format!("tollgate-stores-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("there is a temporary directory");
    let redis = Redis::start(redis);
    let written = |name: &str, more: &str| write(&directory, name, configuration, &settings(&redis, more));
    let (batched, single) = (written("batched.toml", ""), written("single.toml", "max_batch = 1\nmax_calls = 64\n"));
    let start = |path: &Path| Server::start(&[tollgate, "serve", "--config", path.to_str().expect("a path in UTF-8")]);
    let idle = Server::start(&[idle]);
    let memory = start(Path::new(configuration));
    let instances = [(); 3].map(|()| start(&batched));
    let unbatched = start(&single);

    let [first, second, third] = &instances;
    let mut contenders = [
        of("idle tonic server", &[&idle], None, "one"),
        of("memory, one limiter", &[&memory], None, "one"),
        of("memory, two limiters", &[&memory], None, "two"),
        of("Redis, one limiter", &[first], Some(&redis), "one"),
        of("Redis, two limiters", &[first], Some(&redis), "two"),
        of("Redis, five limiters", &[first], Some(&redis), "five"),
        of("Redis, one limiter, each by itself", &[&unbatched], Some(&redis), "one"),
        of("Redis, one limiter, two instances", &[first, second], Some(&redis), "one"),
        of("Redis, one limiter, three instances", &[first, second, third], Some(&redis), "one"),
    ];
    for _ in 0..ROUNDS {
        contenders.iter_mut().for_each(Contender::turn);
    }
    let (idle, _) = contenders[0].medians();
    let (memory, _) = contenders[1].medians();
    println!("CPU per request, microseconds");
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
    drop(std::fs::remove_dir_all(directory));
}

/// Latency through a real Envoy with a Redis behind tollgate, beside the memory store and a service that does nothing.
pub fn through_envoy(envoy: &str, noop: &str, tollgate: &str, configuration: &str, redis: &str) {
    let directory = std::env::temp_dir().join(format!("tollgate-stores-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("there is a temporary directory");
    let redis = Redis::start(redis);
    let path = write(&directory, "gateway.toml", configuration, &settings(&redis, ""));
    let start = |path: &Path| Server::start(&[tollgate, "serve", "--config", path.to_str().expect("a path in UTF-8")]);
    let (noop, memory, shared) = (Server::start(&[noop]), start(Path::new(configuration)), start(&path));
    let services =
        [(gateway::NOTHING, &noop), (gateway::MEMORY, &memory), ("tollgate, two limiters in Redis", &shared)];
    gateway::report(envoy, &services);
    drop(std::fs::remove_dir_all(directory));
}

fn settings(redis: &Redis, more: &str) -> String {
    // A bench is no gateway: what takes longer than its core has time for is to be counted too.
    let port = redis.port;
    format!("\n[stores.main]\nengine = \"redis\"\nurl = \"redis://127.0.0.1:{port}/0\"\ntimeout = \"5s\"\n{more}")
}

fn write(directory: &Path, name: &str, configuration: &str, more: &str) -> PathBuf {
    let path = directory.join(name);
    let text = std::fs::read_to_string(configuration).expect("the bench's configuration");
    std::fs::write(&path, text + more).expect("a file in a directory of our own");
    path
}
