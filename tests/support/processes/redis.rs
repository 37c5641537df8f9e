//! A real Redis or Valkey.
//!
//! Its addresses, commands, and faults: freeze, crash, restart.

use std::fmt::{Debug, Write};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use redis::{
    Client, ClientTlsConfig, Connection, ConnectionLike, FromRedisValue, RedisResult, TlsCertificates, ToRedisArgs,
};
use tempfile::TempDir;

use super::process::bound;
use super::{Certificates, Process, installed, ports, until};

/// The timeout of an answer to a test.
const ANSWER: Duration = Duration::from_secs(5);

/// The setup of a server, before it starts.
#[derive(Clone, Debug)]
pub struct Setup {
    program: PathBuf,
    /// Whether the command DEBUG has to be enabled: older servers have it always, and do not know the line.
    debug_command: bool,
    core: Option<usize>,
    lines: Vec<String>,
    password: Option<String>,
    socket: bool,
    tls: bool,
    sentinel: bool,
}

impl Setup {
    /// Redis. None when it is not installed.
    pub fn redis() -> Option<Self> {
        installed::redis().map(Self::of)
    }

    /// Valkey. None when it is not installed.
    pub fn valkey() -> Option<Self> {
        installed::valkey().map(Self::of)
    }

    /// Redis 6.2, the oldest that is supported. None when it is not installed.
    pub fn redis_6() -> Option<Self> {
        installed::redis_6().map(|program| Self { debug_command: false, ..Self::of(program) })
    }

    fn of(program: PathBuf) -> Self {
        Self {
            debug_command: true,
            program,
            core: None,
            lines: Vec::new(),
            password: None,
            socket: false,
            tls: false,
            sentinel: false,
        }
    }

    /// Adds a line of configuration, such as `maxmemory 2mb` or `user ada on >secret ~* +@all`.
    #[must_use]
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Pins it to this core of the machine.
    #[must_use]
    pub fn on_core(mut self, core: usize) -> Self {
        self.core = Some(core);
        self
    }

    /// Requires this password.
    #[must_use]
    pub fn password(mut self, password: &str) -> Self {
        self.password = Some(password.to_owned());
        self.line(format!("requirepass {password}"))
    }

    /// Listens on a Unix socket as well.
    #[must_use]
    pub fn unix_socket(mut self) -> Self {
        self.socket = true;
        self
    }

    /// Listens on a port with TLS as well, which requires a client certificate unless a line says `tls-auth-clients
    /// no`.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Makes it a replica of another server, with that server's password.
    #[must_use]
    pub fn replica_of(self, primary: &Redis) -> Self {
        let setup = self.line(format!("replicaof 127.0.0.1 {}", primary.port));
        match &primary.setup.password {
            Some(password) => setup.line(format!("masterauth {password}")),
            None => setup,
        }
    }

    /// Makes it a sentinel.
    #[must_use]
    pub fn sentinel(mut self) -> Self {
        self.sentinel = true;
        self
    }

    /// Starts it. Without a line that says otherwise, it persists nothing.
    pub fn start(self) -> Redis {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let port = ports::free();
        let tls = self.tls.then(|| (ports::free(), Certificates::make(directory.path())));
        let mut text = format!("bind 127.0.0.1\nport {port}\ndir {}\n", directory.path().display());
        if !self.sentinel {
            // The first replica need not wait for others to join its transfer.
            text += "save \"\"\nrepl-diskless-sync-delay 0\n";
            if self.debug_command {
                text += "enable-debug-command yes\n";
            }
        }
        if self.socket {
            writeln!(text, "unixsocket {}", directory.path().join(SOCKET).display()).expect("a string takes it");
        }
        if let Some((port, files)) = &tls {
            writeln!(
                text,
                "tls-port {port}\ntls-ca-cert-file {}\ntls-cert-file {}\ntls-key-file {}",
                files.authority.display(),
                files.server.display(),
                files.server_key.display()
            )
            .expect("a string takes it");
        }
        for line in &self.lines {
            writeln!(text, "{line}").expect("a string takes it");
        }
        fs::write(directory.path().join(CONFIGURATION), text).expect("a file in the test's directory");
        let process = self.launch(&directory, port);
        Redis { process, setup: self, port, tls, directory }
    }

    /// Starts the process, and waits until it has loaded its data and answers.
    fn launch(&self, directory: &TempDir, port: u16) -> Process {
        let mut command = match self.core {
            // taskset replaces itself with the server, so the process is the server's.
            Some(core) => {
                let mut command = bound(Path::new("taskset"), "KILL");
                command.args(["-c", &core.to_string()]).arg(&self.program);
                command
            }
            None => bound(&self.program, "KILL"),
        };
        command.arg(directory.path().join(CONFIGURATION));
        if self.sentinel {
            command.arg("--sentinel");
        }
        let client = Client::open(self.url(port)).expect("an address");
        Process::start("redis", &mut command, directory.path())
            .ready(|| patient(&client).is_ok_and(|mut connection| connection.check_connection()))
    }

    fn url(&self, port: u16) -> String {
        match &self.password {
            Some(password) => format!("redis://:{password}@127.0.0.1:{port}"),
            None => format!("redis://127.0.0.1:{port}"),
        }
    }
}

const CONFIGURATION: &str = "redis.conf";
const SOCKET: &str = "redis.sock";

/// A running server.
#[derive(Debug)]
pub struct Redis {
    // Dropped before the directory.
    process: Process,
    setup: Setup,
    /// Its port without TLS.
    pub port: u16,
    tls: Option<(u16, Certificates)>,
    directory: TempDir,
}

impl Redis {
    /// A Redis with the default setup. None when it is not installed.
    pub fn start() -> Option<Self> {
        Setup::redis().map(Setup::start)
    }

    /// Its URL, with its password.
    pub fn url(&self) -> String {
        self.setup.url(self.port)
    }

    /// Its port with TLS, and the certificates.
    pub fn tls(&self) -> (u16, &Certificates) {
        let (port, files) = self.tls.as_ref().expect("it was set up with TLS");
        (*port, files)
    }

    /// Uses other files for TLS for new connections: its certificate and key, and the authorities of clients.
    pub fn set_tls(&self, files: &Certificates, clients: &[&Path]) {
        let read = |path: &&Path| fs::read_to_string(path).expect("a file of the test");
        let authorities = self.directory.path().join("authorities.pem");
        fs::write(&authorities, clients.iter().map(read).collect::<String>()).expect("a file in the test's directory");
        let (authorities, server, key) = (path(&authorities), path(&files.server), path(&files.server_key));
        let files = ["tls-ca-cert-file", &authorities, "tls-cert-file", &server, "tls-key-file", &key];
        self.ask::<()>(&[&["CONFIG", "SET"][..], &files].concat());
    }

    /// The Unix socket.
    pub fn socket(&self) -> PathBuf {
        assert!(self.setup.socket, "it was set up without a socket");
        self.directory.path().join(SOCKET)
    }

    /// A new connection.
    pub fn connection(&self) -> RedisResult<Connection> {
        patient(&Client::open(self.url())?)
    }

    /// A new connection with TLS and the client's certificate.
    pub fn tls_connection(&self) -> RedisResult<Connection> {
        let (port, files) = self.tls();
        let pem = |path| fs::read(path).expect("a file of the test's directory");
        let certificates = TlsCertificates {
            client_tls: Some(ClientTlsConfig { client_cert: pem(&files.client), client_key: pem(&files.client_key) }),
            root_cert: Some(pem(&files.authority)),
        };
        patient(&Client::build_with_tls(format!("rediss://127.0.0.1:{port}"), certificates)?)
    }

    /// Sends it a command.
    pub fn command<T: FromRedisValue>(&self, words: &[impl ToRedisArgs]) -> RedisResult<T> {
        let mut command = redis::Cmd::new();
        command.arg(words);
        command.query(&mut self.connection()?)
    }

    /// Sends a command that must succeed.
    ///
    /// # Panics
    ///
    /// If it fails.
    pub fn ask<T: FromRedisValue>(&self, words: &[impl ToRedisArgs + Debug]) -> T {
        self.command(words)
            .unwrap_or_else(|error| panic!("{words:?} at {}: {error}\n{}", self.port, self.process.log()))
    }

    /// A field of INFO, such as `role` of the section `replication`.
    pub fn info(&self, section: &str, field: &str) -> String {
        let text: String = self.ask(&["INFO", section]);
        line(&text, field).unwrap_or_else(|| panic!("no {field} in {text}")).to_owned()
    }

    /// Waits until a field of INFO has a value. At times the server does not answer: a sentinel that changes its role
    /// closes its connections, and a replica does not answer while it loads.
    pub fn becomes(&self, section: &str, field: &str, value: &str) {
        until(&format!("{field} becomes {value}"), || {
            self.command::<String>(&["INFO", section]).is_ok_and(|text| line(&text, field) == Some(value))
        });
    }

    /// CPU time that it has used.
    pub fn cpu(&self) -> Duration {
        let seconds = |field| self.info("cpu", field).parse().expect("a number of seconds");
        Duration::from_secs_f64(seconds("used_cpu_user")) + Duration::from_secs_f64(seconds("used_cpu_sys"))
    }

    /// Waits until it has caught up with its primary.
    pub fn synced(&self) {
        self.becomes("replication", "master_link_status", "up");
    }

    /// Waits until a replica has everything that was written here so far.
    pub fn followed_by(&self, replica: &Redis) {
        let written = "written so far";
        self.ask::<()>(&["SET", written, "1", "PX", "60000"]);
        until("the replica has it", || replica.ask(&["EXISTS", written]));
        self.ask::<()>(&["DEL", written]);
    }

    /// Stops its process until [`thaw`](Self::thaw): it uses no CPU and does not answer.
    pub fn freeze(&self) {
        self.process.signal("-STOP");
    }

    /// Continues its process.
    pub fn thaw(&self) {
        self.process.signal("-CONT");
    }

    /// Kills it, as a crash does.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Starts it again on the same port, with its configuration and files.
    pub fn restart(&mut self) {
        self.kill();
        self.process = self.setup.launch(&self.directory, self.port);
    }
}

fn line<'a>(text: &'a str, field: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

fn patient(client: &Client) -> RedisResult<Connection> {
    let connection = client.get_connection_with_timeout(ANSWER)?;
    connection.set_read_timeout(Some(ANSWER))?;
    connection.set_write_timeout(Some(ANSWER))?;
    Ok(connection)
}
