//! The settings of a Redis store: addresses, credentials, TLS, timeouts.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::store::password::Password;
use crate::tls::TlsSettings;

/// The settings of a Redis or Valkey store. Equal settings mean the same store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisSettings {
    /// Its servers.
    pub topology: Topology,
    /// An ACL user with its password, or the password of the default user.
    pub credentials: Credentials,
    /// TLS of connections over TCP, including those to sentinels. `None` means no encryption.
    pub tls: Option<TlsSettings>,
    /// The database number.
    pub db: u32,
    /// The prefix of every key, so that other programs can use the same Redis.
    pub key_prefix: String,
    /// The timeout of a new connection: name resolution, TLS handshake and authentication together.
    pub connect_timeout: Duration,
    /// The timeout of a call. A connection that exceeds it is abandoned.
    pub response_timeout: Duration,
}

/// The servers of a Redis.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topology {
    /// One server.
    Standalone(Address),
    /// A master that sentinels monitor, and replace when it fails.
    Sentinel {
        /// The sentinels. One that answers is enough.
        sentinels: Vec<Address>,
        /// The name of the master at the sentinels.
        master: String,
        /// The credentials for the sentinels themselves.
        credentials: Credentials,
    },
    /// A cluster, by some of its nodes. One that answers is enough to find the others.
    Cluster(Vec<Address>),
}

/// The address of a server.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// A host name or an IP address, and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Credentials for a server. The default has none, which a server without a password accepts.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// The ACL user. `None` means the default user.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Password>,
}

impl RedisSettings {
    /// The default prefix of keys.
    pub const KEY_PREFIX: &'static str = "tollgate:";

    /// Default settings for these servers.
    pub fn new(topology: Topology) -> Self {
        Self {
            topology,
            credentials: Credentials::default(),
            tls: None,
            db: 0,
            key_prefix: Self::KEY_PREFIX.to_owned(),
            connect_timeout: Duration::from_millis(250),
            response_timeout: Duration::from_millis(500),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Address::Tcp(host, port) => write!(f, "{host}:{port}"),
            Address::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}
