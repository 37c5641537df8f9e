//! A real PostgreSQL server.
//!
//! The result of `initdb` is cached in the target directory and copied for each server, so a server costs a test less
//! than a second. Tests that only need a database share a server, which ends with the last of them.

use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use std::{fmt::Write, fs, thread};

use tempfile::TempDir;
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use super::process::bound;
use super::{Certificates, Process, installed, ports, until};

/// The user of the tests.
pub const USER: &str = "tollgate";
/// The password of that user.
pub const PASSWORD: &str = "secret";

/// The account that runs PostgreSQL when the tests run as root, which PostgreSQL refuses.
const ACCOUNT: &str = "postgres";

/// The setup of a server, before it starts.
#[derive(Clone, Debug)]
pub struct Setup {
    programs: PathBuf,
    lines: Vec<String>,
    tls: bool,
    client_certificates: bool,
}

impl Setup {
    /// PostgreSQL with its default configuration and passwords. None when it is not installed.
    pub fn new() -> Option<Self> {
        installed::postgres().map(|programs| Self {
            programs,
            lines: Vec::new(),
            tls: false,
            client_certificates: false,
        })
    }

    /// Adds a line of configuration, such as `max_connections = 5`.
    #[must_use]
    pub fn line(mut self, line: impl Into<String>) -> Self {
        self.lines.push(line.into());
        self
    }

    /// Requires TLS on its port.
    #[must_use]
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Requires TLS on its port, and a client certificate of its authority.
    #[must_use]
    pub fn client_certificates(self) -> Self {
        Self { client_certificates: true, ..self.tls() }
    }

    /// Starts it.
    pub fn start(self) -> Postgres {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let data = directory.path().join(DATA);
        let account = account();
        change_owner(directory.path(), account);
        copy(&template(&self.programs, account), &data);
        let port = ports::free();
        let certificates = self.tls.then(|| Certificates::make(directory.path()));
        let mut text = format!(
            "listen_addresses = '127.0.0.1'\nport = {port}\nunix_socket_directories = '{}'\nfsync = off\n",
            directory.path().display()
        );
        if let Some(files) = &certificates {
            for file in [&files.authority, &files.server, &files.server_key] {
                change_owner(file, account);
            }
            restrict(&files.server_key);
            let (authority, server, key) = (&files.authority, &files.server, &files.server_key);
            for (name, file) in [("ssl_ca_file", authority), ("ssl_cert_file", server), ("ssl_key_file", key)] {
                writeln!(text, "{name} = '{}'", file.display()).expect("a string takes it");
            }
            text += "ssl = on\n";
        }
        for line in &self.lines {
            writeln!(text, "{line}").expect("a string takes it");
        }
        let clients = if self.client_certificates { " clientcert=verify-ca" } else { "" };
        let kind = if self.tls { "hostssl" } else { "host" };
        // An existing file keeps its owner.
        fs::write(data.join("postgresql.conf"), text).expect("a file in the test's directory");
        fs::write(
            data.join("pg_hba.conf"),
            format!("local all all trust\n{kind} all all 127.0.0.1/32 scram-sha-256{clients}\n"),
        )
        .expect("a file in the test's directory");
        let process = self.launch(&directory, port);
        let server = Postgres { process, setup: self, port, certificates, databases: AtomicU32::new(0), directory };
        server.execute("postgres", &format!("CREATE ROLE {USER} LOGIN PASSWORD '{PASSWORD}'"));
        server
    }

    fn launch(&self, directory: &TempDir, port: u16) -> Process {
        // SIGQUIT is an immediate shutdown: it writes nothing and frees the shared memory.
        let mut command = as_account(bound(&self.programs.join("postgres"), "QUIT"), account());
        command.arg("-D").arg(directory.path().join(DATA)).current_dir(directory.path());
        Process::start("postgres", &mut command, directory.path())
            .ready(|| query(directory, port, "postgres", "SELECT 1").is_ok())
    }
}

const DATA: &str = "data";

/// A running server.
#[derive(Debug)]
pub struct Postgres {
    // Dropped before the directory.
    process: Process,
    setup: Setup,
    /// The port that it listens on.
    pub port: u16,
    /// The files for TLS, if it uses TLS.
    pub certificates: Option<Certificates>,
    databases: AtomicU32,
    directory: TempDir,
}

impl Postgres {
    /// A server that all running tests share. None when it is not installed.
    pub fn shared() -> Option<Arc<Self>> {
        static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());
        // A test that failed with the lock held did not change the value.
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = shared.upgrade() {
            return Some(running);
        }
        let server = Arc::new(Setup::new()?.start());
        *shared = Arc::downgrade(&server);
        Some(server)
    }

    /// Creates a database that belongs to the tests' user, and returns its name.
    pub fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.execute("postgres", &format!("CREATE DATABASE {name} OWNER {USER}"));
        name
    }

    /// The URL of a database for the tests' user.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    /// Runs statements as the superuser.
    ///
    /// # Panics
    ///
    /// If one fails.
    pub fn execute(&self, database: &str, sql: &str) {
        self.value(database, sql);
    }

    /// Runs statements as the superuser, and returns the first value of the last row.
    ///
    /// # Panics
    ///
    /// If one fails.
    pub fn value(&self, database: &str, sql: &str) -> Option<String> {
        let rows = query(&self.directory, self.port, database, sql);
        rows.unwrap_or_else(|error| panic!("{sql}: {error:?}\n{}", self.process.log()))
    }

    /// Uses other files for TLS for new connections: its certificate and key, and the authorities of clients.
    pub fn set_tls(&self, files: &Certificates, clients: &[&Path]) {
        let own = self.certificates.as_ref().expect("it uses TLS");
        let read = |path: &Path| fs::read_to_string(path).expect("a file of the test");
        // Existing files keep their owners.
        for (from, to) in [(&files.server, &own.server), (&files.server_key, &own.server_key)] {
            fs::write(to, read(from)).expect("a file in the test's directory");
        }
        let clients: String = clients.iter().map(|authority| read(authority)).collect();
        fs::write(&own.authority, clients).expect("a file in the test's directory");
        self.execute("postgres", "SELECT pg_reload_conf()");
    }

    /// The id of its main process.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// CPU time of all its processes, in steps of 10 ms.
    pub fn cpu(&self) -> Duration {
        self.processes().into_iter().map(cpu).sum()
    }

    /// Stops all its processes until [`thaw`](Self::thaw): they use no CPU and do not answer.
    pub fn freeze(&self) {
        // The main process first, so that it cannot start others.
        for process in self.processes() {
            signal(process, "-STOP");
        }
    }

    /// Continues its processes.
    pub fn thaw(&self) {
        for process in self.processes() {
            signal(process, "-CONT");
        }
    }

    /// Kills all its processes, as a crash does.
    pub fn kill(&mut self) {
        let processes = self.processes();
        self.process.kill();
        for &process in &processes {
            signal(process, "-KILL");
        }
        until("postgres is gone", || processes.iter().all(|&process| stat(process).is_none_or(|stat| stat.dead)));
    }

    /// Starts it again with its data, on the same port.
    pub fn restart(&mut self) {
        self.kill();
        self.process = self.setup.launch(&self.directory, self.port);
    }

    /// The ids of its processes, the main process first.
    fn processes(&self) -> Vec<u32> {
        let first = self.process.id();
        let all = fs::read_dir("/proc").expect("Linux has /proc").flatten();
        let ids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        let children = ids.filter(|&id| stat(id).is_some_and(|stat| stat.parent == first));
        [first].into_iter().chain(children).collect()
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A stopped process would outlive its parent, and a killed parent leaves its shared memory behind.
        self.thaw();
        signal(self.process.id(), "-QUIT");
        let began = Instant::now();
        while stat(self.process.id()).is_some_and(|stat| !stat.dead) && began.elapsed() < Duration::from_secs(5) {
            thread::sleep(Duration::from_millis(5));
        }
    }
}

/// Runs statements as the superuser, who may log in through the socket.
fn query(directory: &TempDir, port: u16, database: &str, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let host = directory.path().display();
    let address = format!("host={host} port={port} user={ACCOUNT} dbname={database} connect_timeout=5");
    on_own_thread(async {
        let (client, connection) = tokio_postgres::connect(&address, NoTls).await?;
        let _connection = tokio::spawn(connection);
        first_value(&client, sql).await
    })
}

async fn first_value(client: &Client, sql: &str) -> Result<Option<String>, tokio_postgres::Error> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row.get(0).map(str::to_owned)),
        _ => None,
    });
    Ok(rows.last().flatten())
}

/// Runs a future on a thread of its own: the test's thread may belong to a runtime, in which blocking is not allowed.
fn on_own_thread<T: Send>(work: impl Future<Output = T> + Send) -> T {
    thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(work)
        });
        thread.join().expect("the work does not panic")
    })
}

/// The user and group for PostgreSQL. None to use the caller's.
pub(super) fn account() -> Option<(u32, u32)> {
    let root = fs::metadata("/proc/self").expect("Linux has /proc").uid() == 0;
    root.then(|| {
        let id = |option| {
            let output = Command::new("id").args([option, ACCOUNT]).output().expect("id runs");
            let text = String::from_utf8(output.stdout).expect("a number is text");
            text.trim().parse().unwrap_or_else(|_| panic!("root cannot run PostgreSQL, and there is no user {ACCOUNT}"))
        };
        (id("-u"), id("-g"))
    })
}

pub(super) fn as_account(mut command: Command, account: Option<(u32, u32)>) -> Command {
    if let Some((user, group)) = account {
        command.uid(user).gid(group);
    }
    command
}

pub(super) fn change_owner(path: &Path, account: Option<(u32, u32)>) {
    if let Some((user, group)) = account {
        chown(path, Some(user), Some(group)).expect("root may change owners");
    }
}

/// Makes a file readable by its owner only.
fn restrict(path: &Path) {
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("the test's file");
}

/// The directory of cached files. None in the benches, which use these modules for other servers.
const CACHE_DIRECTORY: Option<&str> = option_env!("CARGO_TARGET_TMPDIR");

/// The result of `initdb`, which takes a second or more: created once for each version.
fn template(programs: &Path, account: Option<(u32, u32)>) -> PathBuf {
    let version = Command::new(programs.join("postgres")).arg("--version").output().expect("postgres runs").stdout;
    let version = String::from_utf8_lossy(&version).trim().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
    let cache = Path::new(CACHE_DIRECTORY.expect("cargo sets it for tests and benches"));
    let template = cache.join(version);
    if !template.exists() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        change_owner(directory.path(), account);
        let data = directory.path().join(DATA);
        let mut initdb = as_account(Command::new(programs.join("initdb")), account);
        let options = ["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--no-instructions"];
        initdb.args(["-U", ACCOUNT]).args(options).arg("-D").arg(&data).current_dir(directory.path());
        let output = initdb.output().expect("initdb runs");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        // Moved into place atomically. If another test was faster, its template is used.
        let staging = tempfile::tempdir_in(cache).expect("a directory beside the build");
        copy(&data, &staging.path().join(DATA));
        let _ = fs::rename(staging.path().join(DATA), &template);
    }
    template
}

fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp runs");
    assert!(status.success(), "cannot copy {} to {}", from.display(), to.display());
}

fn signal(process: u32, name: &str) {
    // The process may have ended already.
    let _ = Command::new("kill").args([name, &process.to_string()]).stderr(std::process::Stdio::null()).status();
}

/// The state of a process as the kernel reports it.
struct Stat {
    parent: u32,
    dead: bool,
    ticks: u64,
}

/// Reads `/proc/[pid]/stat` (proc(5)): after the name in parentheses come the state, the parent, and from the
/// fourteenth field on the times of the process and of its ended children.
fn stat(process: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    let fields: Vec<&str> = text.rsplit_once(") ")?.1.split(' ').collect();
    let ticks = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok()).sum();
    Some(Stat { parent: fields[1].parse().ok()?, dead: fields[0] == "Z", ticks })
}

fn cpu(process: u32) -> Duration {
    Duration::from_millis(stat(process).map_or(0, |stat| stat.ticks * 10))
}
