//! Where a Redis is, who we are to it, and how long we wait.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use crate::tls::TlsSettings;

/// A Redis or Valkey that keeps counters. Two settings that are equal are the same store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RedisSettings {
    /// Where it is, and how it is spread.
    pub topology: Topology,
    /// Who we are to it: an ACL user with its password, or the password of the default user.
    pub credentials: Credentials,
    /// How connections over TCP are secured, those to sentinels too; `None` sends everything in the clear.
    pub tls: Option<TlsSettings>,
    /// The number of the database.
    pub db: u32,
    /// What every key begins with, so that others can use the same Redis.
    pub key_prefix: String,
    /// How long a connection may take to be made: addresses resolved, secured, and let in.
    pub connect_timeout: Duration,
    /// How long a call may take before its connection counts as broken.
    pub response_timeout: Duration,
}

/// How a Redis is spread.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Topology {
    /// One server.
    Standalone(Address),
    /// One server that sentinels watch, and replace when it fails.
    Sentinel {
        /// The sentinels, of which one that answers is enough.
        sentinels: Vec<Address>,
        /// What the sentinels call the server.
        master: String,
        /// Who we are to the sentinels.
        credentials: Credentials,
    },
    /// A cluster, of which these are some nodes: one that answers is enough to find the others.
    Cluster(Vec<Address>),
}

/// Where a server listens.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Address {
    /// A name or an IP address, and a port.
    Tcp(String, u16),
    /// The path of a Unix socket.
    Unix(PathBuf),
}

/// Who we are to a server. Nobody by default, which a server without a password lets in.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Credentials {
    /// The ACL user; the default user when there is none.
    pub user: Option<String>,
    /// The password.
    pub password: Option<Password>,
}

/// A password, which is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Password(String);

impl RedisSettings {
    /// What keys begin with unless told otherwise.
    pub const KEY_PREFIX: &'static str = "tollgate:";

    /// Everything else as it is by default.
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

impl Password {
    /// This password.
    pub fn new(password: impl Into<String>) -> Self {
        Self(password.into())
    }

    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(***)")
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
