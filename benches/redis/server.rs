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
    /// Starts a server and waits until it answers.
    pub async fn start() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a free port");
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &free.port().to_string(), "--save", "", "--dir"])
            .arg(directory.path())
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
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

    /// CPU time that the server has used.
    pub async fn cpu(&self) -> Duration {
        let mut connection = self.connection().await;
        let text: String = redis::cmd("INFO").arg("cpu").query_async(&mut connection).await.expect("it answers");
        let seconds = |field: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
            line.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs_f64).expect("a number of seconds")
        };
        seconds("used_cpu_user") + seconds("used_cpu_sys")
    }

    /// Bytes that a key takes with its value.
    pub async fn memory_usage(&self, key: &[u8]) -> u64 {
        let mut connection = self.connection().await;
        let bytes = redis::cmd("MEMORY").arg("USAGE").arg(key).query_async(&mut connection).await;
        bytes.expect("the key is there")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
