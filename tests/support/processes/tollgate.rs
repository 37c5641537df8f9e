//! The real binary, serving.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::process::Command;

use tempfile::TempDir;

use super::{Answer, Ask, Ports, Process, until};

/// `tollgate serve` with a configuration.
#[derive(Debug)]
pub struct Tollgate {
    // Dropped before the directory.
    process: Process,
    ports: Ports,
    _directory: TempDir,
}

/// The path of the binary. None in the benches, which use these modules for other servers.
const BINARY: Option<&str> = option_env!("CARGO_BIN_EXE_tollgate");

impl Tollgate {
    /// Serves this configuration, whose ports 8081 (gRPC) and 8080 (HTTP) are replaced.
    pub fn start(toml: &str, ports: &Ports) -> Self {
        Self::start_file("tollgate.toml", toml, ports)
    }

    /// Serves a configuration in a file of this name.
    pub fn start_file(name: &str, toml: &str, ports: &Ports) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join(name);
        fs::write(&file, ports.rewrite(toml)).expect("a file in the test's directory");
        let mut command = Command::new(BINARY.expect("cargo sets it for tests and benches"));
        command.arg("serve").arg("--config").arg(&file).current_dir(directory.path());
        let http = ports.of(8_080);
        let process = Process::start("tollgate", &mut command, directory.path())
            .ready(|| Ask::get("/healthcheck").send(http).is_ok_and(|answer| answer.status == 200));
        Self { process, ports: ports.clone(), _directory: directory }
    }

    /// Sends a request to its HTTP door.
    pub fn ask(&self, ask: &Ask) -> Answer {
        ask.send(self.ports.of(8_080)).unwrap_or_else(|error| panic!("{ask:?}: {error}\n{}", self.process.log()))
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Sends bytes to its gRPC door, and waits until it closes the connection.
    pub fn send_to_grpc(&self, bytes: &[u8]) {
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, self.ports.of(8_081))).expect("it listens");
        stream.write_all(bytes).expect("it is sent");
        // The connection may be reset.
        let _ = stream.read_to_end(&mut Vec::new());
    }

    /// Stops its process as a debugger does: the kernel still accepts connections, and nothing answers them.
    pub fn hang(&self) {
        self.process.signal("-STOP");
        // A thread runs on until the kernel next schedules it.
        let threads = format!("/proc/{}/task", self.process.id());
        until("every thread has stopped", || {
            let mut threads = fs::read_dir(&threads).expect("a process's threads").flatten();
            threads.all(|thread| {
                let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
                stat.rsplit_once(") ").is_some_and(|(_, state)| state.starts_with('T'))
            })
        });
    }
}
