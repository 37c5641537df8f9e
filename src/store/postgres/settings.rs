//! Where a PostgreSQL is and how it is used.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};
use tokio_postgres_rustls::MakeRustlsConnect;

use super::error::with_causes;
use super::names::SchemaNames;
use crate::tls::{TlsError, TlsSettings, client_config, untrusting_config};

/// Where a PostgreSQL is and how it is used.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    /// `postgres://user:password@host:port/database`, or keys and values as libpq has them. Several hosts may be named,
    /// with `target_session_attrs=read-write` to find the one that can be written to.
    ///
    /// `sslmode` is `disable` or `require`; without it, TLS is spoken when `ca` is set. `verify-ca` and `verify-full`
    /// mean `require`: a certificate is always checked, with its name. `sslrootcert` means `ca`.
    pub url: String,
    /// The schema that holds everything. Default: `tollgate`.
    pub schema_name: String,
    /// What the names of tables and functions begin with. Default: nothing.
    pub table_prefix: String,
    /// Creates and upgrades the schema at the first connection. Otherwise `tollgate store migrate` has to, and the role
    /// needs no right to create anything. Default: true.
    pub auto_create: bool,
    /// The most connections of this instance. Default: 8.
    pub pool_size: usize,
    /// A file of PEM certificates that the server's is to be signed by. Default: those the system trusts.
    pub ca: Option<PathBuf>,
    /// Tables that are not logged: no decision waits for the disk, replicas see nothing, and PostgreSQL empties them when
    /// it crashes or fails over, so that every limit starts afresh. Applies when they are created; for tables that are
    /// there, `tollgate store migrate` rewrites them. Default: false.
    pub unlogged: bool,
    /// Whether a decision waits until it is on disk, as the server is configured to. Without, what was decided in the
    /// last moments (three times `wal_writer_delay`, 600 ms as it comes) before a crash of the server is forgotten, and
    /// may be admitted once more; nothing else is lost and nothing is damaged. Default: true.
    pub synchronous_commit: bool,
    /// How long a connection may take to be made. Default: 250 ms.
    pub connect_timeout: Duration,
    /// How long a statement may take. Default: 500 ms.
    pub response_timeout: Duration,
    /// How long a batch waits for a row that another session holds; those who wait then are a batch that failed. It is
    /// as long as the batches of all instances on one hot counter take, one after the other. Default: 100 ms.
    pub lock_timeout: Duration,
    /// Whether this instance removes counters that are forgotten. Default: true; one that does is enough.
    pub sweep: bool,
}

/// Why settings cannot be. Its text continues a path: `stores.main.url ...`.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum PostgresSettingsError {
    /// See the text. It tells nothing of the URL, which holds a password.
    #[error("url cannot be read: {0}")]
    Url(String),
    /// See the text.
    #[error("url names no host")]
    NoHost,
    /// See the text.
    #[error("url says sslmode={0}, expected disable, require, verify-ca or verify-full")]
    SslMode(String),
    /// See the text.
    #[error("{key} is {name:?}, expected at most 32 of a-z, A-Z, 0-9, _ and -")]
    Name {
        /// Which setting.
        key: &'static str,
        /// What it is.
        name: String,
    },
    /// See the text.
    #[error("pool_size is 0, expected more than zero")]
    NoConnections,
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            schema_name: "tollgate".to_owned(),
            table_prefix: String::new(),
            auto_create: true,
            pool_size: 8,
            ca: None,
            unlogged: false,
            synchronous_commit: true,
            connect_timeout: Duration::from_millis(250),
            response_timeout: Duration::from_millis(500),
            lock_timeout: Duration::from_millis(100),
            sweep: true,
        }
    }
}

/// The URL holds a password.
impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("schema_name", &self.schema_name)
            .field("table_prefix", &self.table_prefix)
            .field("auto_create", &self.auto_create)
            .field("pool_size", &self.pool_size)
            .field("ca", &self.ca)
            .field("unlogged", &self.unlogged)
            .field("synchronous_commit", &self.synchronous_commit)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("sweep", &self.sweep)
            .finish_non_exhaustive()
    }
}

/// Settings that were understood.
pub(super) struct Understood {
    pub(super) config: Config,
    pub(super) tls: MakeRustlsConnect,
    pub(super) names: SchemaNames,
}

impl PostgresSettings {
    /// Whether they can be used. Nothing is connected to.
    ///
    /// # Errors
    ///
    /// What is wrong with them.
    pub fn check(&self) -> Result<(), PostgresSettingsError> {
        self.understand().map(|_| ())
    }

    /// The names and the way to the server.
    pub(super) fn understand(&self) -> Result<Understood, PostgresSettingsError> {
        if self.pool_size == 0 {
            return Err(PostgresSettingsError::NoConnections);
        }
        let names =
            SchemaNames::new(name("schema_name", &self.schema_name, 1)?, name("table_prefix", &self.table_prefix, 0)?);
        let (url, asked) = without_tls(&self.url);
        let mut config: Config = url.parse().map_err(|error| PostgresSettingsError::Url(with_causes(&error)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(PostgresSettingsError::NoHost);
        }
        let ca = self.ca.clone().or(asked.root);
        let local = config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        let wanted = match asked.mode.as_deref() {
            Some("disable") => false,
            Some("require" | "verify-ca" | "verify-full") => true,
            Some(mode) => return Err(PostgresSettingsError::SslMode(mode.to_owned())),
            // There is no TLS on a Unix socket.
            None => ca.is_some() && !local,
        };
        config.ssl_mode(if wanted { SslMode::Require } else { SslMode::Disable });
        let tls = match wanted {
            true => client_config(&TlsSettings { ca, ..TlsSettings::default() })?,
            false => untrusting_config(),
        };
        let tls = MakeRustlsConnect::new(tls);
        if config.get_application_name().is_none() {
            config.application_name("tollgate");
        }
        config.connect_timeout(self.connect_timeout).tcp_user_timeout(2 * self.response_timeout);
        Ok(Understood { config, tls, names })
    }
}

/// A name as it may stand in SQL. It is quoted too; this keeps it legible, and the names made of it short enough.
fn name<'a>(key: &'static str, name: &'a str, least: usize) -> Result<&'a str, PostgresSettingsError> {
    let fine = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    match (least..=32).contains(&name.len()) && name.chars().all(fine) {
        true => Ok(name),
        false => Err(PostgresSettingsError::Name { key, name: name.to_owned() }),
    }
}

/// What a URL asks of TLS.
#[derive(Default)]
struct Asked {
    mode: Option<String>,
    root: Option<PathBuf>,
}

/// Takes out of a URL, or of keys and values, what the client library does not know.
fn without_tls(url: &str) -> (String, Asked) {
    let mut asked = Asked::default();
    let mut keep = |pair: &str| {
        let decoded = |text: &str| percent_encoding::percent_decode_str(text).decode_utf8_lossy().into_owned();
        match pair.split_once('=') {
            Some(("sslmode", mode)) => asked.mode = Some(decoded(mode)),
            Some(("sslrootcert", file)) => asked.root = Some(decoded(file).into()),
            _ => return true,
        }
        false
    };
    let kept = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
        match url.split_once('?') {
            Some((place, pairs)) => {
                let pairs: Vec<&str> = pairs.split('&').filter(|pair| keep(pair)).collect();
                if pairs.is_empty() { place.to_owned() } else { format!("{place}?{}", pairs.join("&")) }
            }
            None => url.to_owned(),
        }
    } else {
        url.split_whitespace().filter(|pair| keep(pair)).collect::<Vec<_>>().join(" ")
    };
    (kept, asked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(url: &str) -> PostgresSettings {
        PostgresSettings { url: url.to_owned(), ..PostgresSettings::default() }
    }

    fn mode(settings: &PostgresSettings) -> SslMode {
        settings.understand().expect("the settings are fine").config.get_ssl_mode()
    }

    #[test]
    fn tls_is_spoken_where_it_is_asked_for_and_nowhere_by_halves() {
        assert_eq!(mode(&of("postgres://me@db/limits")), SslMode::Disable);
        assert_eq!(mode(&of("postgres://me@db/limits?sslmode=require&connect_timeout=3")), SslMode::Require);
        assert_eq!(mode(&of("host=db user=me sslmode=verify-full")), SslMode::Require);
        for half in ["prefer", "allow"] {
            let error = of(&format!("postgres://me@db/limits?sslmode={half}")).understand().err();
            assert_eq!(error, Some(PostgresSettingsError::SslMode(half.to_owned())));
        }
    }

    #[test]
    fn names_that_would_have_to_be_escaped_are_refused() {
        for name in ["", "a b", "a\"b", "$body$", "a;drop", &"x".repeat(33), "naïve"] {
            let settings = PostgresSettings { schema_name: name.to_owned(), ..of("postgres://db") };
            assert!(matches!(settings.understand().err(), Some(PostgresSettingsError::Name { .. })), "{name}");
        }
        for name in ["Tollgate", "select", "my-limits", "_1"] {
            let settings = PostgresSettings { schema_name: name.to_owned(), ..of("postgres://db") };
            assert!(settings.understand().is_ok(), "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_says_nothing_of_the_password() {
        for url in ["postgres://me:hush@db:port/limits", "postgres://me:hush@/limits?hsot=x", "me:hush", ""] {
            let error = of(url).understand().err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|text| !text.contains("hush")), "{url}: {error:?}");
        }
        assert!(!format!("{:?}", of("postgres://me:hush@db")).contains("hush"));
    }
}
