//! A server's process: started, watched through /proc, and ended.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The kernel counts CPU in hundredths of a second, on every architecture that Linux tells user space about.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of a process so far.
pub fn cpu_of(process: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process is running");
    // The second field, the name, may hold anything up to its closing parenthesis.
    let (_, fields) = text.rsplit_once(')').expect("the name is in parentheses");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |number: usize| -> u32 { fields[number].parse().expect("a number of ticks") };
    TICK * (ticks(11) + ticks(12))
}

/// A running server, pinned to core 0. It ends with this value.
pub struct Server {
    process: Child,
    started: Instant,
    pub grpc: SocketAddr,
    /// Where it has one.
    pub http: Option<SocketAddr>,
}

impl Server {
    /// Starts a command line and waits until it says where it listens.
    pub fn start(command: &[&str]) -> Self {
        let started = Instant::now();
        let mut process = Command::new("taskset")
            .args(["-c", "0"])
            .args(command)
            .env("RUST_LOG", "warn")
            .stderr(Stdio::piped())
            .spawn()
            .expect("taskset starts it");
        let mut said = BufReader::new(process.stderr.take().expect("it is piped"));
        let mut line = String::new();
        loop {
            line.clear();
            let read = said.read_line(&mut line).expect("it speaks text");
            assert!(read > 0, "{command:?} ended before it listened");
            if line.contains("gRPC on") {
                break;
            }
        }
        // What it says later is read, so that it never waits for a reader.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let address = |door: &str| {
            let (_, after) = line.split_once(door)?;
            after.split([',', '\n']).next()?.trim().parse().ok()
        };
        let grpc = address("gRPC on ").expect("an address follows");
        Self { http: address("HTTP on "), grpc, process, started }
    }

    /// User and system time so far.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.process.id())
    }

    /// Resident bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).expect("the server is running");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a resident size");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
    }

    /// The time from its start to its first answer.
    pub fn until_healthy(&self) -> Duration {
        assert_eq!(self.get("/healthcheck", &[]), 200);
        self.started.elapsed()
    }

    /// Asks the HTTP door. Returns the status.
    pub fn get(&self, path: &str, headers: &[(&str, &str)]) -> u16 {
        let address = self.http.expect("this server has an HTTP door");
        let mut stream = TcpStream::connect(address).expect("it listens");
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request = format!("GET {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).expect("it reads");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("it answers in text");
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status follows the version")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // taskset became the server, so this is its process.
        drop(self.process.kill().and_then(|()| self.process.wait()));
    }
}
