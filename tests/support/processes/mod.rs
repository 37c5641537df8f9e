//! Real processes for tests: the tollgate binary, Envoy, nginx, an upstream; Redis, Valkey and PostgreSQL, and a pooler,
//! proxies or a faulty network in front of them.
//!
//! All processes listen on free loopback ports, are polled until they are ready, and end when their value is dropped.
//! Configurations are the documented ones with other ports: see [`Ports`].

pub mod certificates;
pub mod cluster;
pub mod gateway;
pub mod http;
pub mod installed;
pub mod pgbouncer;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
pub mod redis_proxy;
pub mod script_server;
pub mod sentinel;
pub mod tollgate;
pub mod upstream;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use self::certificates::Certificates;
pub use self::cluster::Cluster;
pub use self::gateway::Gateway;
pub use self::http::{Answer, Ask};
pub use self::pgbouncer::PgBouncer;
pub use self::ports::Ports;
pub use self::postgres::Postgres;
pub use self::process::Process;
pub use self::proxy::Proxy;
pub use self::redis::Redis;
pub use self::redis_proxy::RedisProxy;
pub use self::script_server::ScriptServer;
pub use self::sentinel::Sentinel;
pub use self::tollgate::Tollgate;
pub use self::upstream::Upstream;

/// The timeout of every wait for a real process.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// The root of the project.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = project().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Polls until a condition holds.
///
/// # Panics
///
/// If it does not hold in time.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < WAIT_TIMEOUT, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
