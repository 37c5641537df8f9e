//! The real program, stopped and started again: the counters that a memory store keeps in its snapshot.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// A served configuration and the address of its HTTP door.
struct Served {
    child: Child,
    http: String,
    /// Its remaining output, read so that it can keep writing.
    said: BufReader<std::process::ChildStderr>,
}

impl Served {
    fn start(directory: &Path, interval: &str) -> Self {
        let configuration = format!(
            r#"
[server]
grpc = "127.0.0.1:0"
http = "127.0.0.1:0"
secret = "for this test"
drain_delay = "0s"
admin = "off"

[stores.main]
engine = "memory"
snapshot = "kept.snapshot"
snapshot_interval = "{interval}"

[limiters.login]
algorithm = "sliding_window"
limit = 3
window = "1h"

[[rules]]
domain = "edge"
name = "login"
apply = [{{ limiter = "login", key = ["account"] }}]

[authz]
domain = "edge"

[authz.entries]
account = {{ header = "x-account" }}
"#
        );
        std::fs::write(directory.join("tollgate.toml"), configuration).expect("a file in the test's directory");
        let mut child = Command::new(env!("CARGO_BIN_EXE_tollgate"))
            .args(["serve", "--config", "tollgate.toml"])
            .current_dir(directory)
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let mut said = BufReader::new(child.stderr.take().expect("it was piped"));
        let mut line = String::new();
        while !line.contains("HTTP on ") {
            line.clear();
            assert!(said.read_line(&mut line).expect("text") > 0, "it ended instead");
        }
        let http = line.rsplit("HTTP on ").next().expect("an address").trim().to_owned();
        Self { child, http, said }
    }

    /// The status of one attempt.
    fn ask(&self, account: &str) -> u16 {
        let mut stream = TcpStream::connect(&self.http).expect("it listens");
        let request = format!("POST /authz/envoy/login HTTP/1.0\r\nhost: a\r\nx-account: {account}\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("it is sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it is answered");
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
    }

    /// Stops it, waits until it has stopped, and returns its output.
    fn stop(mut self) -> String {
        let kill = Command::new("kill").arg(self.child.id().to_string()).status().expect("kill runs");
        assert!(kill.success());
        let mut rest = String::new();
        self.said.read_to_string(&mut rest).expect("text");
        assert!(self.child.wait().expect("a child's state").success(), "{rest}");
        rest
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn counts_survive_a_stop() {
    let directory = tempfile::tempdir().expect("a directory");
    let served = Served::start(directory.path(), "1h");
    assert_eq!([served.ask("ada"), served.ask("ada")], [200, 200]);
    served.stop();
    let kept = std::fs::read(directory.path().join("kept.snapshot")).expect("it was written");
    assert!(!kept.windows(3).any(|bytes| bytes == b"ada"), "no identity is in it");

    let served = Served::start(directory.path(), "1h");
    assert_eq!([served.ask("ada"), served.ask("ada"), served.ask("bob")], [200, 429, 200]);
}

#[test]
fn counts_survive_a_kill_as_of_the_last_interval() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("kept.snapshot");
    let served = Served::start(directory.path(), "50ms");
    assert_eq!([served.ask("ada"), served.ask("ada"), served.ask("ada")], [200, 200, 200]);
    // All three grants are in the file once it is 128 bytes long: 78 for head, end and seal, 26 for the counter, 24 for
    // the grants.
    let began = Instant::now();
    while std::fs::metadata(&file).map_or(0, |file| file.len()) < 128 {
        assert!(began.elapsed() < WAIT_TIMEOUT, "no snapshot was written");
        std::thread::yield_now();
    }
    drop(served);
    let served = Served::start(directory.path(), "1h");
    assert_eq!(served.ask("ada"), 429);
}

#[test]
fn a_damaged_file_is_kept_aside_and_the_store_begins_empty() {
    let directory = tempfile::tempdir().expect("a directory");
    let served = Served::start(directory.path(), "1h");
    assert_eq!([served.ask("ada"), served.ask("ada"), served.ask("ada"), served.ask("ada")], [200, 200, 200, 429]);
    served.stop();
    let file = directory.path().join("kept.snapshot");
    let mut bytes = std::fs::read(&file).expect("it was written");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, &bytes).expect("it is written");

    let served = Served::start(directory.path(), "1h");
    assert_eq!(served.ask("ada"), 200, "it begins empty");
    assert_eq!(std::fs::read(directory.path().join("kept.snapshot.refused")).expect("it is kept"), bytes);
    served.stop();
}
