//! A Redis of the bench, without persistence.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use redis::aio::MultiplexedConnection;

/// A running server. It stops when this is dropped.
pub struct Server {
    process: Child,
    pub port: u16,
    _directory: tempfile::TempDir,
}

impl Server {
    /// Starts a server, by its program, and waits until it answers.
    pub async fn start(program: &str) -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let process = Command::new(program)
            .args(["--bind", "127.0.0.1", "--port", &free.port().to_string(), "--save", "", "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap_or_else(|error| panic!("{program}: {error}"));
        let server = Self { process, port: free.port(), _directory: directory };
        while server.try_connect().await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server
    }

    pub async fn connection(&self) -> MultiplexedConnection {
        self.try_connect().await.expect("it answered before")
    }

    async fn try_connect(&self) -> redis::RedisResult<MultiplexedConnection> {
        let client = redis::Client::open(format!("redis://127.0.0.1:{}", self.port))?;
        client.get_multiplexed_async_connection().await
    }

    /// A field of INFO.
    pub async fn info(&self, section: &str, field: &str) -> String {
        let mut connection = self.connection().await;
        let text: String = redis::cmd("INFO").arg(section).query_async(&mut connection).await.expect("it answers");
        let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
        value.unwrap_or_else(|| panic!("no {field} in {text}")).to_owned()
    }

    /// A field of INFO that is a number.
    pub async fn number(&self, section: &str, field: &str) -> f64 {
        self.info(section, field).await.parse().unwrap_or_else(|error| panic!("{field}: {error}"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
