//! The recipes of `docs/workers.md`: real workers, which are the scripts of `examples/workers`, on the real program.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use crate::support::processes::{Answer, Ask, Ports, Redis, Tollgate, installed, project, read, until};

/// A recipe's configuration with these texts replaced.
fn recipe(name: &str, replaced: &[(&str, &str)]) -> String {
    replaced.iter().fold(read(format!("examples/workers/{name}.toml")), |text, (from, to)| {
        assert!(text.contains(from), "{name}.toml has no {from}");
        text.replace(from, to)
    })
}

/// A server with a configuration, and the URL of its HTTP door.
struct Server {
    tollgate: Tollgate,
    url: String,
}

impl Server {
    fn start(toml: &str) -> Self {
        let ports = Ports::free();
        Self { tollgate: Tollgate::start(toml, &ports), url: format!("http://127.0.0.1:{}", ports.of(8_080)) }
    }

    fn post(&self, method: &str, message: &serde_json::Value) -> Answer {
        self.tollgate.ask(&Ask::post(&format!("/v1/{method}")).loopback().json(&message.to_string()))
    }
}

/// A script that runs, and the lines that it has printed.
struct Worker {
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    reader: Option<thread::JoinHandle<()>>,
}

impl Worker {
    fn start(script: &str, arguments: &[&str]) -> Self {
        Self::start_with(script, arguments, "")
    }

    fn start_with(script: &str, arguments: &[&str], input: &str) -> Self {
        let python = installed::python().expect("the tests of workers need Python");
        let mut command = Command::new(python);
        command.arg(format!("{script}.py")).args(arguments).current_dir(project().join("examples/workers"));
        command.env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("Python runs");
        child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("it reads");
        let lines = Arc::new(Mutex::new(Vec::new()));
        let (output, seen) = (child.stdout.take().expect("piped"), lines.clone());
        let reader = thread::spawn(move || {
            for line in BufReader::new(output).lines() {
                seen.lock().expect("no panic").push(line.expect("text"));
            }
        });
        Self { child, lines, reader: Some(reader) }
    }

    /// The lines so far that begin with this.
    fn said(&self, beginning: &str) -> Vec<String> {
        let lines = self.lines.lock().expect("no panic");
        lines.iter().filter(|line| line.starts_with(beginning)).cloned().collect()
    }

    /// All lines, when it has ended without an error.
    fn ended(mut self) -> Vec<String> {
        let status = self.child.wait().expect("it ends");
        self.reader.take().expect("once").join().expect("no panic");
        let lines = self.lines.lock().expect("no panic").clone();
        assert!(status.success(), "{status}: {lines:?}");
        lines
    }

    /// Kills it, so that it releases nothing. Returns the time.
    fn kill(&mut self) -> f64 {
        self.child.kill().expect("it runs");
        self.child.wait().expect("it ends");
        now()
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds since 1970, as the scripts print them.
fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs_f64()
}

/// The time at the end of a line.
fn time(line: &str) -> f64 {
    line.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("{line:?} ends with no time"))
}

/// The most of these spans that overlap.
fn most_at_once(spans: &[(f64, f64)]) -> usize {
    let at = |moment: f64| spans.iter().filter(|(begin, end)| *begin <= moment && moment < *end).count();
    spans.iter().map(|(begin, _)| at(*begin)).max().unwrap_or(0)
}

#[test]
fn twenty_workers_on_three_instances_share_the_rate_of_a_third_party() {
    let Some(redis) = Redis::start() else { return };
    let url = ("${REDIS_URL:-redis://127.0.0.1:6379/0}", redis.url());
    let toml = recipe("third_party", &[(url.0, url.1.as_str()), ("= 90 ", "= 50 ")]);
    let servers: Vec<Server> = (0..3).map(|_| Server::start(&toml)).collect();
    let begun = Instant::now();
    let workers: Vec<Worker> =
        (0..20).map(|number| Worker::start("third_party", &[&servers[number % 3].url, "10"])).collect();
    let calls: usize = workers.into_iter().map(|worker| worker.ended().len()).sum();
    let took = begun.elapsed();
    assert_eq!(calls, 200);
    // A tenth of a second's worth can pass at once.
    let least = Duration::from_secs_f64((200.0 - 5.0) / 50.0);
    assert!(took >= least, "200 calls took {took:?}, less than {least:?}");
    println!("200 calls at 50 a second took {took:?}");
}

/// Deliveries that are in flight, and the most that were, by path.
type InFlight = Arc<Mutex<HashMap<String, (usize, usize)>>>;

/// A server of webhooks, of which those to `/slow` take their time.
fn endpoints() -> (String, InFlight) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = format!("http://{}", listener.local_addr().expect("bound"));
    let counts = InFlight::default();
    let shared = counts.clone();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let counts = shared.clone();
            thread::spawn(move || serve_one(stream, &counts));
        }
    });
    (address, counts)
}

fn serve_one(mut stream: TcpStream, counts: &InFlight) {
    let mut reader = BufReader::new(stream.try_clone().expect("a socket"));
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head).is_ok_and(|bytes| bytes > 0) {}
    let Some(path) = head.split(' ').nth(1).map(str::to_owned) else { return };
    // The body of two bytes.
    let _ = reader.read_exact(&mut [0; 2]);
    let count =
        |change: fn(&mut (usize, usize))| change(counts.lock().expect("no panic").entry(path.clone()).or_default());
    count(|(flying, most)| {
        *flying += 1;
        *most = (*most).max(*flying);
    });
    if path == "/slow" {
        thread::sleep(Duration::from_millis(300));
    }
    count(|(flying, _)| *flying -= 1);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
}

#[test]
fn webhooks_are_delivered_five_at_once_to_an_endpoint_and_a_slow_one_holds_up_no_other() {
    let server = Server::start(&recipe("webhooks", &[]));
    let (address, counts) = endpoints();
    let queue: String =
        (0..50).map(|number| format!("{address}/{}\n", if number < 40 { "slow" } else { "fast" })).collect();
    let lines = Worker::start_with("webhooks", &[&server.url], &queue).ended();
    let all: Vec<&String> = lines.iter().filter(|line| line.starts_with("delivered")).collect();
    assert_eq!(all.len(), 50);
    let last = |end: &str| all.iter().rposition(|line| line.ends_with(end)).expect("delivered");
    assert!(last("/fast") < last("/slow"), "the fast ones came last: {lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("requeued") && line.ends_with("/slow")), "{lines:?}");
    let counts = counts.lock().expect("no panic");
    assert_eq!(counts["/slow"].1, 5, "five at once, and no more");
}

#[test]
fn an_upload_keeps_its_slot_for_longer_than_its_lease_and_one_that_died_loses_it() {
    let server = Server::start(&recipe("uploads", &[("\"30s\"", "\"1s\"")]));
    let uploads: Vec<Worker> = (0..5).map(|_| Worker::start("uploads", &[&server.url, "bob", "2.5"])).collect();
    let spans: Vec<(f64, f64)> = uploads
        .into_iter()
        .map(|upload| {
            let lines = upload.ended();
            assert!(lines[0].starts_with("begun ") && lines[1].starts_with("finished "), "{lines:?}");
            (time(&lines[0]), time(&lines[1]))
        })
        .collect();
    assert_eq!(most_at_once(&spans), 2, "{spans:?}");
    assert!(spans.iter().all(|(begin, end)| end - begin >= 2.5), "{spans:?}");
    let mut two: Vec<Worker> = (0..2).map(|_| Worker::start("uploads", &[&server.url, "bob", "600"])).collect();
    until("both have a slot", || two.iter().all(|upload| !upload.said("begun").is_empty()));
    let third = Worker::start("uploads", &[&server.url, "bob", "0.1"]);
    let other = Worker::start("uploads", &[&server.url, "alice", "0.1"]);
    assert!(other.ended()[1].starts_with("finished"), "another account has slots of its own");
    assert!(third.said("begun").is_empty());
    let killed = two[0].kill();
    let lines = third.ended();
    assert!(time(&lines[0]) > killed, "{lines:?}, and the first was killed at {killed}");
}

#[test]
fn one_candidate_leads_and_another_takes_over_when_it_dies() {
    let server = Server::start(&recipe("leader", &[("\"10s\"", "\"1s\"")]));
    let mut candidates: Vec<Worker> =
        (0..3).map(|_| Worker::start("leader", &[&server.url, "nightly-report", "600"])).collect();
    let leaders = |candidates: &[Worker]| -> Vec<usize> {
        (0..candidates.len()).filter(|number| !candidates[*number].said("leading").is_empty()).collect()
    };
    until("one leads and two stand by", || {
        leaders(&candidates).len() == 1
            && candidates.iter().filter(|candidate| !candidate.said("standing by").is_empty()).count() >= 2
    });
    let first = leaders(&candidates)[0];
    let killed = candidates[first].kill();
    candidates.remove(first);
    until("another leads", || !leaders(&candidates).is_empty());
    let second = leaders(&candidates);
    assert_eq!(second.len(), 1, "one leads");
    let led = time(&candidates[second[0]].said("leading")[0]);
    assert!(led > killed, "the second led at {led}, and the first was killed at {killed}");
}

#[test]
fn a_batch_sends_what_is_left_of_the_budget() {
    let window = "window = \"1d\"\nalignment = \"first_hit\"";
    let server = Server::start(&recipe(
        "batch",
        &[("calendar = \"day\"\ntimezone = \"Europe/Berlin\"", window), ("= 10000", "= 9900")],
    ));
    let asked = serde_json::json!({ "limiter": "emails", "key": { "account": "customer-7" }, "cost": 260 });
    server.post("acquire", &asked).expect(200);
    let lines = Worker::start("batch", &[&server.url, "customer-7", "25000"]).ended();
    let sent: Vec<u64> = lines.iter().filter_map(|line| line.strip_prefix("sent ")?.parse().ok()).collect();
    assert_eq!((sent.len(), sent.iter().sum::<u64>(), sent.last()), (20, 9_640, Some(&140)), "{lines:?}");
    let left = lines.last().expect("the end");
    assert!(left.starts_with("left 15360 until "), "{left}");
    let until = time(left);
    assert!((80_000.0..=86_400.0).contains(&until), "{left}");
    assert_eq!(Worker::start("batch", &[&server.url, "customer-8", "700"]).ended(), ["sent 500", "sent 200", "left 0"]);
}

#[test]
fn semantics_44_a_call_pays_what_it_used_and_only_failed_logins_count() {
    let tokens = recipe("tokens", &[("limit = 100000", "limit = 1000")]);
    let server = Server::start(&tokens);
    let call = || Worker::start("tokens", &[&server.url, "bob", "400", "150"]).ended().concat();
    for number in 0..5 {
        assert_eq!(call(), "settled done", "call {number}");
    }
    // 250 of 1000 are left, and what has refilled in the seconds since.
    assert!(call().starts_with("refused "));
    let server = Server::start(&recipe("logins", &[]));
    let login = |password: &str| Worker::start("logins", &[&server.url, "bob", password]).ended().concat();
    for _ in 0..4 {
        assert_eq!(login("right"), "welcome", "a right login counts nothing");
    }
    for _ in 0..3 {
        assert_eq!(login("guess"), "wrong");
    }
    assert!(login("right").starts_with("too many failures, try again in "));
}

/// What the scripts of the recipes stand on: a call that is refused or makes no sense is told so.
#[test]
fn the_client_of_the_recipes_tells_a_refusal_from_a_mistake() {
    let server = Server::start(&recipe("leader", &[]));
    let asked = serde_json::json!({ "limiter": "leader", "key": { "job": "report" } });
    server.post("acquire", &asked).expect(200);
    assert_eq!(server.post("acquire", &asked).status, 429);
    assert_eq!(server.post("acquire", &serde_json::json!({ "limiter": "laeder" })).status, 404);
    let client = "import sys; from limits import *\n\
                  try: Limits(sys.argv[1]).acquire(limiter=sys.argv[2], key={'job': 'report'})\n\
                  except Refused as refused: print('refused', refused.reason, 0 < refused.retry_after <= 10)\n\
                  except Failed as failed: print('failed', failed)\n";
    let said = |limiter: &str| printed(client, &[&server.url, limiter]);
    assert_eq!(said("leader"), "refused limit True\n");
    assert!(said("laeder").starts_with("failed 404: ") && said("laeder").contains("leader"), "{}", said("laeder"));
    let ask = Ask::post("/v1/acquire").json(&asked.to_string());
    assert_eq!(server.tollgate.ask(&ask).status, 403, "the host is no loopback address, so a page could have asked");
}

/// A server closes connections that are idle for long, and a restart closes all: a lease is released all the same.
#[test]
fn the_client_of_the_recipes_opens_a_connection_again_that_was_closed() {
    let server = Server::start(&recipe("uploads", &[]));
    let client = "import socket, sys; from limits import *\n\
                  limits = Limits(sys.argv[1])\n\
                  def close(): limits.threads.connection.sock.shutdown(socket.SHUT_RDWR)\n\
                  with limits.acquire(limiter='uploads', key={'account': 'bob'}): close()\n\
                  close()\n\
                  with limits.acquire(limiter='uploads', key={'account': 'bob'}) as slot: print(slot.settle(0), slot.lost.is_set())\n";
    assert_eq!(printed(client, &[&server.url]), "done False\n");
    let asked = serde_json::json!({ "limiter": "uploads", "key": { "account": "bob" } });
    let peek = server.post("peek", &asked).expect(200);
    let peek: serde_json::Value = serde_json::from_str(&peek.body).expect("JSON");
    assert_eq!(peek["limits"][0]["remaining"], 10, "{peek}");
}

/// What a program of Python prints, which has the client of the recipes.
fn printed(program: &str, arguments: &[&str]) -> String {
    let python = installed::python().expect("the tests of workers need Python");
    let mut command = Command::new(python);
    command.args(["-c", program]).args(arguments).current_dir(project().join("examples/workers"));
    let output = command.env("PYTHONDONTWRITEBYTECODE", "1").output().expect("Python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}
