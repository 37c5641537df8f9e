//! Workers that share slots while workers, an instance and the connections to the store are killed: never more slots are
//! held than there are, by the workers' own clocks, and none is lost (semantics 24 and 47).
//!
//! `TOLLGATE_KILLS` is for how many seconds nothing is killed, and then something is, instead of two.

use std::env;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;

use super::in_process::Resets;
use super::three_instances::{in_a_postgres, in_a_redis};
use crate::MACHINE;
use crate::support::dice::Dice;
use crate::support::processes::{Ask, Ports, Postgres, Process, Redis, Tollgate, installed, project, until};

const INSTANCES: usize = 3;
const WORKERS: usize = 20;
const SLOTS: usize = 10;
const LEASE: Duration = Duration::from_secs(2);

/// How often a worker and the connections to the store are killed.
const WORKER_KILLED_EACH: Duration = Duration::from_millis(350);
const CONNECTIONS_KILLED_EACH: Duration = Duration::from_millis(800);

/// Seconds since 1970, as the workers write them.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// A worker process.
struct Worker {
    process: Process,
    directory: TempDir,
}

impl Worker {
    fn start(number: usize, seed: usize, ports: &[Ports]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let mut command = Command::new(installed::python().expect("the tests of workers need Python"));
        command.arg(project().join("tests/shared_stores/slot_worker.py")).arg(seed.to_string());
        command.env("PYTHONPATH", project().join("examples/workers")).env("PYTHONDONTWRITEBYTECODE", "1");
        // Each begins with another instance.
        let place = |turn| (number + turn) % INSTANCES;
        command.args((0..INSTANCES).map(|turn| format!("http://127.0.0.1:{}", ports[place(turn)].of(8_080))));
        let process = Process::start("worker", &mut command, directory.path());
        Self { process, directory }
    }

    /// Kills it. Returns the times when it had a slot.
    fn kill(mut self) -> Vec<Span> {
        self.process.kill();
        let spans = spans(&self.process.log());
        drop(self.directory);
        spans
    }

    fn has_worked(&self) -> bool {
        self.process.log().contains("done ")
    }

    /// Whether it had a slot when it wrote last.
    fn has_a_slot(&self) -> bool {
        self.process.log().lines().next_back().is_some_and(|line| line.starts_with("held "))
    }
}

/// A time when a worker had a slot.
#[derive(Clone, Copy, Debug)]
struct Span {
    since: f64,
    until: f64,
    /// Whether its worker was killed, so that its lease had to end.
    left_behind: bool,
}

/// The times that a worker wrote until it was killed.
fn spans(log: &str) -> Vec<Span> {
    let (complete, _) = log.rsplit_once('\n').unwrap_or_default();
    let mut spans = Vec::new();
    let mut open: Option<(f64, f64)> = None;
    for line in complete.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let time = |place: usize| -> f64 { words[place].parse().unwrap_or_else(|_| panic!("{line:?} has no time")) };
        match words[0] {
            "held" => open = Some((time(1), time(2))),
            "done" => {
                let (since, _) = open.take().expect("it had a slot");
                spans.push(Span { since, until: time(1), left_behind: false });
            }
            _ => panic!("a worker wrote {log}"),
        }
    }
    if let Some((since, until)) = open {
        spans.push(Span { since, until, left_behind: true });
    }
    spans
}

/// The spans at the moment when most overlap.
fn most_at_once(spans: &[Span]) -> Vec<Span> {
    let at = |moment: f64| spans.iter().filter(move |span| span.since <= moment && moment < span.until).copied();
    let busiest = spans.iter().map(|span| span.since).max_by_key(|moment| at(*moment).count());
    at(busiest.expect("there are spans")).collect()
}

/// Instances, their workers, and what those that were killed wrote.
struct Jobs {
    toml: String,
    ports: Vec<Ports>,
    instances: Vec<Tollgate>,
    workers: Vec<Worker>,
    started: usize,
    killed: Vec<Span>,
}

impl Jobs {
    fn start(store: &str) -> Self {
        let toml = format!(
            "[server]\ngrpc = '127.0.0.1:8081'\nhttp = '127.0.0.1:8080'\nadmin = '127.0.0.1:0'\nsecret = 'of this test, and no other'\n\
             [stores.main]\n{store}\nrequired = true\ntimeout = '2s'\n\
             [limiters.jobs]\nmax_concurrent = {SLOTS}\nlease = '{LEASE:?}'\ndirect = true\non_store_error = 'deny'\n"
        );
        let ports: Vec<Ports> = (0..INSTANCES).map(|_| Ports::free()).collect();
        let instances = ports.iter().map(|ports| Tollgate::start(&toml, ports)).collect();
        let mut jobs = Self { toml, ports, instances, workers: Vec::new(), started: 0, killed: Vec::new() };
        for number in 0..WORKERS {
            let worker = jobs.worker(number);
            jobs.workers.push(worker);
        }
        until("every worker has worked", || jobs.workers.iter().all(Worker::has_worked));
        jobs
    }

    fn worker(&mut self, number: usize) -> Worker {
        self.started += 1;
        Worker::start(number, self.started, &self.ports)
    }

    /// Kills a worker, mostly one with a slot, and starts another in its place.
    fn kill_worker(&mut self, dice: &mut Dice) {
        let busy: Vec<usize> = (0..WORKERS).filter(|number| self.workers[*number].has_a_slot()).collect();
        let number = if busy.is_empty() || dice.below(3) == 0 { dice.below(WORKERS) } else { *dice.pick(&busy) };
        let next = self.worker(number);
        self.killed.extend(std::mem::replace(&mut self.workers[number], next).kill());
    }

    /// Kills an instance and starts it again, which takes a moment.
    fn kill_instance(&mut self, number: usize) {
        drop(self.instances.remove(number));
        self.instances.insert(number, Tollgate::start(&self.toml, &self.ports[number]));
    }

    /// Kills a worker, an instance, or the connections to the store, for so long.
    fn kill_for(&mut self, length: Duration, store: &impl Resets) {
        let (began, mut dice) = (Instant::now(), Dice(14));
        let (mut workers, mut connections, mut instances) = (Duration::ZERO, CONNECTIONS_KILLED_EACH, length / 3);
        while began.elapsed() < length {
            let elapsed = began.elapsed();
            if elapsed >= workers {
                self.kill_worker(&mut dice);
                workers += WORKER_KILLED_EACH;
            }
            if elapsed >= connections {
                store.reset();
                connections += CONNECTIONS_KILLED_EACH;
            }
            if elapsed >= instances {
                self.kill_instance(dice.below(INSTANCES));
                instances += length.min(Duration::from_secs(5));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The slots that are free, as an instance sees them.
    fn free(&self) -> u64 {
        let ask = Ask::post("/v1/peek").loopback().json("{\"limiter\": \"jobs\"}");
        let answer = self.instances[0].ask(&ask);
        let answer: serde_json::Value = serde_json::from_str(&answer.body).expect("JSON");
        answer["limits"][0]["remaining"].as_u64().unwrap_or(0)
    }
}

/// The seconds of each part of the test.
fn seconds() -> Duration {
    let seconds = env::var("TOLLGATE_KILLS").map_or(2, |seconds| seconds.parse().expect("a number of seconds"));
    Duration::from_secs(seconds)
}

/// How much of the slots is in use from one time to another, and for how long one is free each time.
fn in_use(spans: &[Span], from: f64, to: f64) -> (f64, Duration) {
    let all = SLOTS as f64 * (to - from);
    let held: f64 = spans.iter().map(|span| (span.until.min(to) - span.since.max(from)).max(0.0)).sum();
    let begun = spans.iter().filter(|span| span.since >= from && span.since < to).count();
    (held / all, Duration::from_secs_f64((all - held).max(0.0) / begun.max(1) as f64))
}

fn share_slots_and_die(name: &str, server: &impl Resets, store: &str) {
    let _alone = MACHINE.blocking_write();
    let mut jobs = Jobs::start(store);
    let quiet = now();
    thread::sleep(seconds());
    let kills = now();
    jobs.kill_for(seconds(), server);
    let workers: Vec<Worker> = jobs.workers.drain(..).collect();
    let mut spans = std::mem::take(&mut jobs.killed);
    let left_behind = spans.iter().filter(|span| span.left_behind).count();
    spans.extend(workers.into_iter().flat_map(Worker::kill));
    // Those that died had slots, which end by themselves.
    until("all slots are free", || jobs.free() == SLOTS as u64);
    let (share, free) = in_use(&spans, quiet, kills);
    println!(
        "{name}: {} rounds of {} workers, of which {left_behind} were killed with a slot and followed by another; while nothing was killed, {:.1} % \
         of the slots were in use, and one was free for {free:?} each time",
        spans.len(),
        jobs.started,
        share * 100.0
    );
    assert!(left_behind >= 1, "none of {} workers was killed with a slot", jobs.started);
    let most = most_at_once(&spans);
    assert_eq!(most.len(), SLOTS, "never more, and all of them: {most:#?}");
    // Of a busy machine it is asked less than the 95 % that an idle one has to have.
    assert!(share >= 0.8, "{share} of the slots were in use");
}

#[test]
fn semantics_24_47_slots_on_redis_are_exact_while_workers_an_instance_and_connections_are_killed() {
    let Some(server) = Redis::start() else { return };
    share_slots_and_die("redis", &server, &in_a_redis(server.port));
}

#[test]
fn semantics_24_47_slots_on_postgresql_are_exact_while_workers_an_instance_and_connections_are_killed() {
    let Some(server) = Postgres::shared() else { return };
    share_slots_and_die("postgresql", &*server, &in_a_postgres(&server));
}
