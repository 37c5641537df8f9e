//! A real PgBouncer in front of a PostgreSQL server.

use std::fs;
use std::net::TcpStream;

use tempfile::TempDir;

use super::postgres::{PASSWORD, Postgres, USER, account, as_account, change_owner};
use super::process::bound;
use super::{Process, installed, ports};

/// A running pooler with `pool_mode = transaction`.
#[derive(Debug)]
pub struct PgBouncer {
    // Dropped before the directory.
    _process: Process,
    /// The port that it listens on.
    pub port: u16,
    _directory: TempDir,
}

impl PgBouncer {
    /// Starts one in front of a server, with further lines of configuration, such as `default_pool_size = 2`. None when
    /// it is not installed.
    pub fn start(server: &Postgres, lines: &[&str]) -> Option<Self> {
        Self::start_on(ports::free(), server, lines)
    }

    /// Starts one on a port.
    pub fn start_on(port: u16, server: &Postgres, lines: &[&str]) -> Option<Self> {
        let program = installed::pgbouncer()?;
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, text: String| {
            let path = directory.path().join(name);
            fs::write(&path, text).expect("a file in the test's directory");
            change_owner(&path, account());
            path
        };
        change_owner(directory.path(), account());
        let users = file("users.txt", format!("\"{USER}\" \"{PASSWORD}\"\n"));
        let configuration = format!(
            "[databases]\n* = host=127.0.0.1 port={}\n[pgbouncer]\npool_mode = transaction\n\
             listen_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = scram-sha-256\n\
             auth_file = {}\n{}\n",
            server.port,
            users.display(),
            lines.join("\n")
        );
        let configuration = file("pgbouncer.ini", configuration);
        // It refuses to run as root, too.
        let mut command = as_account(bound(&program, "KILL"), account());
        command.arg(configuration).current_dir(directory.path());
        let process = Process::start("pgbouncer", &mut command, directory.path())
            .ready(|| TcpStream::connect(("127.0.0.1", port)).is_ok());
        Some(Self { _process: process, port, _directory: directory })
    }

    /// The URL of a database for the tests' user.
    pub fn url(&self, database: &str) -> String {
        format!("postgresql://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }
}
