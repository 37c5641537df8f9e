//! A server's process: start, CPU and memory from /proc, stop.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// The unit of CPU times in /proc: a hundredth of a second on every architecture of Linux.
const TICK: Duration = Duration::from_millis(10);

/// User and system time of a process since its start.
pub fn cpu_of(process: u32) -> Duration {
    let text = std::fs::read_to_string(format!("/proc/{process}/stat")).expect("the process is running");
    // The second field, the name, may contain anything, including spaces and parentheses.
    let (_, fields) = text.rsplit_once(')').expect("the name is in parentheses");
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let ticks = |number: usize| -> u32 { fields[number].parse().expect("a number of ticks") };
    TICK * (ticks(11) + ticks(12))
}

/// A running server, pinned to core 0. It stops when this is dropped.
pub struct Server {
    process: Child,
    started: Instant,
    pub grpc: SocketAddr,
    /// The address of its HTTP door, if it has one.
    pub http: Option<SocketAddr>,
}

impl Server {
    /// Starts a command and waits until it prints its addresses.
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
        // Later output is read too, so that the server never blocks on a full pipe.
        std::thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
        let address = |door: &str| {
            let (_, after) = line.split_once(door)?;
            after.split([',', '\n']).next()?.trim().parse().ok()
        };
        let grpc = address("gRPC on ").expect("an address follows");
        Self { http: address("HTTP on "), grpc, process, started }
    }

    /// User and system time since its start.
    pub fn cpu(&self) -> Duration {
        cpu_of(self.process.id())
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        let path = format!("/proc/{}/status", self.process.id());
        let text = std::fs::read_to_string(path).expect("the server is running");
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has a resident size");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
    }

    /// The time from its start to its first response.
    pub fn until_healthy(&self) -> Duration {
        assert_eq!(self.get("/healthcheck", &[]), 200);
        self.started.elapsed()
    }

    /// Sends a GET to the HTTP door and returns the status.
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
        // taskset replaced itself with the server, so this is the server's process.
        drop(self.process.kill().and_then(|()| self.process.wait()));
    }
}
