//! Real processes for tests: the tollgate binary, Envoy, nginx, and an upstream behind them; Redis, Valkey and PostgreSQL,
//! and a bad network before them.
//!
//! Everything listens on free loopback ports, is waited for by asking it, and ends with the value that stands for it.
//! Configurations are the ones a user reads, with their ports replaced: see [`Ports`].

pub mod certificates;
pub mod cluster;
pub mod gateway;
pub mod http;
pub mod installed;
pub mod ports;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod redis;
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
pub use self::ports::Ports;
pub use self::postgres::Postgres;
pub use self::process::Process;
pub use self::proxy::Proxy;
pub use self::redis::Redis;
pub use self::sentinel::Sentinel;
pub use self::tollgate::Tollgate;
pub use self::upstream::Upstream;

/// How long a real process may take to do what it is waited for.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The root of the project.
pub fn project() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// A file of the project.
pub fn read(path: impl AsRef<Path>) -> String {
    let path = project().join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Asks again until the answer is yes.
///
/// # Panics
///
/// When it never is.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < PATIENCE, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
