//! The settings of a PostgreSQL store: URL, schema, TLS, timeouts.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::error::with_causes;
use super::names::SchemaNames;
use super::tls::PostgresTls;
use super::url::OwnParameters;
use crate::store::password::Password;
use crate::tls::{ClientCertificate, PemFile, TlsError, TlsSettings};

/// Keeps gateways on the way from dropping an idle connection, and notices a peer that is gone.
const KEEPALIVE_IDLE: Duration = Duration::from_secs(5);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);

/// The settings of a PostgreSQL store.
#[derive(Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    /// `postgres://user:password@host:port/database`, or the keys and values of libpq. With several hosts,
    /// `target_session_attrs=read-write` selects the one that accepts writes.
    ///
    /// `sslmode` is `disable` or `require`. Without it, TLS is used if `tls` has anything. `verify-ca` and `verify-full`
    /// mean `require`: a certificate is always verified, with its name. `sslrootcert` is the CA file of `tls`;
    /// `sslrootcert=system` means the authorities that the system trusts. `sslcert` and `sslkey` are the client's
    /// certificate and key.
    ///
    /// `pgbouncer=true` says that a pooler shares connections among clients. Without it that is found out.
    pub url: String,
    /// The user, if the URL has none.
    pub username: Option<String>,
    /// The password, if the URL has none. It may have any characters.
    pub password: Option<Password>,
    /// TLS, as far as the URL has no parameters for it.
    pub tls: TlsSettings,
    /// The schema that holds all tables and functions. Default: `tollgate`.
    pub schema_name: String,
    /// The prefix of the names of tables and functions. Default: empty.
    pub table_prefix: String,
    /// Creates and upgrades the schema at the first connection. If this is off, `tollgate store migrate` does it, and
    /// the service's role needs no right to create anything. Default: true.
    pub auto_create: bool,
    /// The maximum number of connections of this instance. Default: 8.
    pub pool_size: usize,
    /// Creates unlogged tables: no decision waits for the disk, replicas do not have them, and PostgreSQL empties them
    /// after a crash or failover, so that all counters start at zero. Existing tables are rewritten by
    /// `tollgate store migrate` only. Default: false.
    pub unlogged: bool,
    /// Whether a decision waits until it is on disk, as configured on the server. If not, a crash of the server loses
    /// the last decisions (of three times `wal_writer_delay`, 600 ms by default), whose units may be admitted again;
    /// nothing else is lost or damaged. Default: true.
    pub synchronous_commit: bool,
    /// The timeout of a new connection. Default: 250 ms.
    pub connect_timeout: Duration,
    /// The timeout of a statement. Default: 500 ms.
    pub response_timeout: Duration,
    /// How long a batch waits for a row that another session has locked, before it fails. It should be as long as the
    /// batches of all instances on one hot counter take, one after the other. Default: 100 ms.
    pub lock_timeout: Duration,
    /// Whether this instance removes expired counters. One instance that does is enough. Default: true.
    pub sweep: bool,
}

/// Why settings are invalid. The text continues a path: `stores.main.url ...`.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
pub enum PostgresSettingsError {
    /// The URL is malformed. The text does not contain it, because it holds a password.
    #[error("url is invalid: {0}")]
    Url(String),
    /// The URL has no host.
    #[error("url has no host, expected postgres://user@host:port/database")]
    NoHost,
    /// The SSL mode is unknown, or does not enforce TLS.
    #[error("url has sslmode={0}, expected disable, require, verify-ca or verify-full{reason}", reason = optional_tls(.0))]
    SslMode(String),
    /// A switch of the URL has another value than these.
    #[error("url has pgbouncer={0}, expected true or false")]
    PgBouncer(String),
    /// The URL and a setting say the same.
    #[error("{key} is set and url has {parameter} too, expected one of them")]
    Twice {
        /// The setting.
        key: &'static str,
        /// What the URL has.
        parameter: &'static str,
    },
    /// TLS is turned off by the URL, and set up.
    #[error("{key} is set and url has sslmode=disable, so TLS is not used")]
    Unused {
        /// The setting.
        key: &'static str,
    },
    /// A client certificate without its key, or a key without its certificate.
    #[error("url has {given} without {missing}, expected both or neither")]
    Lonely {
        /// The parameter that the URL has.
        given: &'static str,
        /// The parameter that it lacks.
        missing: &'static str,
    },
    /// A name is too long or has other characters than these.
    #[error("{key} is {name:?}, expected at most 32 characters of a-z, A-Z, 0-9, _ and -")]
    Name {
        /// The setting.
        key: &'static str,
        /// Its value.
        name: String,
    },
    /// The pool has no connections.
    #[error("pool_size is 0, expected more than zero")]
    EmptyPool,
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Default for PostgresSettings {
    fn default() -> Self {
        Self {
            url: String::new(),
            username: None,
            password: None,
            tls: TlsSettings::default(),
            schema_name: "tollgate".to_owned(),
            table_prefix: String::new(),
            auto_create: true,
            pool_size: 8,
            unlogged: false,
            synchronous_commit: true,
            connect_timeout: Duration::from_millis(250),
            response_timeout: Duration::from_millis(500),
            lock_timeout: Duration::from_millis(100),
            sweep: true,
        }
    }
}

/// Omits the URL, which holds a password.
impl fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PostgresSettings")
            .field("username", &self.username)
            .field("password", &self.password)
            .field("tls", &self.tls)
            .field("schema_name", &self.schema_name)
            .field("table_prefix", &self.table_prefix)
            .field("auto_create", &self.auto_create)
            .field("pool_size", &self.pool_size)
            .field("unlogged", &self.unlogged)
            .field("synchronous_commit", &self.synchronous_commit)
            .field("connect_timeout", &self.connect_timeout)
            .field("response_timeout", &self.response_timeout)
            .field("lock_timeout", &self.lock_timeout)
            .field("sweep", &self.sweep)
            .finish_non_exhaustive()
    }
}

/// Valid settings, parsed.
pub(super) struct ParsedSettings {
    pub(super) config: Config,
    pub(super) tls: PostgresTls,
    pub(super) names: SchemaNames,
    /// Whether a pooler is known to share connections among clients.
    pub(super) shared: bool,
}

impl PostgresSettings {
    /// Validates the settings, without connecting.
    ///
    /// # Errors
    ///
    /// The first setting that is invalid.
    pub fn check(&self) -> Result<(), PostgresSettingsError> {
        self.parse().map(|_| ())
    }

    /// Reads the files that the URL names, as far as `tls` has no others. Without this, [`check`](Self::check) and opening
    /// the store read them.
    pub(crate) fn read_files_of_url(&mut self, read: impl Fn(&Path) -> PemFile) {
        let (_, own) = OwnParameters::split(&self.url);
        self.tls.ca = self.tls.ca.take().or_else(|| own.ca().map(&read));
        if let (None, Ok(Some([certificate, key]))) = (&self.tls.identity, own.identity()) {
            self.tls.identity = Some(ClientCertificate { certificate: read(certificate), key: read(key) });
        }
    }

    /// Refuses what the URL and the other settings both have.
    fn refuse_twice(&self, config: &Config, own: &OwnParameters) -> Result<(), PostgresSettingsError> {
        let [ca, identity, _] = self.tls_keys(own)?;
        for (key, parameter, twice) in [
            ("username", "a user", self.username.is_some() && config.get_user().is_some()),
            ("password", "a password", self.password.is_some() && config.get_password().is_some()),
            ("tls_ca", "sslrootcert", ca && (own.has_system_trust() || own.ca().is_some())),
            ("tls_certificate", "sslcert", identity && own.identity().is_ok_and(|identity| identity.is_some())),
        ] {
            if twice {
                return Err(PostgresSettingsError::Twice { key, parameter });
            }
        }
        Ok(())
    }

    /// Whether CA file, client certificate and server name are set, apart from the files that the URL names.
    fn tls_keys(&self, own: &OwnParameters) -> Result<[bool; 3], PostgresSettingsError> {
        let in_url = own.identity().map_err(|[given, missing]| PostgresSettingsError::Lonely { given, missing })?;
        let TlsSettings { ca, identity, server_name } = &self.tls;
        let ca = ca.as_ref().is_some_and(|ca| own.ca() != Some(ca.path()));
        let identity = identity
            .as_ref()
            .is_some_and(|ClientCertificate { certificate, key }| in_url != Some([certificate.path(), key.path()]));
        Ok([ca, identity, server_name.is_some()])
    }

    /// Parses and validates the settings.
    pub(super) fn parse(&self) -> Result<ParsedSettings, PostgresSettingsError> {
        if self.pool_size == 0 {
            return Err(PostgresSettingsError::EmptyPool);
        }
        check_name("schema_name", &self.schema_name, 1)?;
        check_name("table_prefix", &self.table_prefix, 0)?;
        let names = SchemaNames::new(&self.schema_name, &self.table_prefix);
        let (url, own) = OwnParameters::split(&self.url);
        let mut config: Config = url.parse().map_err(|error| PostgresSettingsError::Url(with_causes(&error)))?;
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(PostgresSettingsError::NoHost);
        }
        let shared = match own.pgbouncer.as_deref() {
            None | Some("false") => false,
            Some("true") => true,
            Some(other) => return Err(PostgresSettingsError::PgBouncer(other.to_owned())),
        };
        self.refuse_twice(&config, &own)?;
        let mut settings = self.clone();
        settings.read_files_of_url(|path| PemFile::read(path));
        let tls = settings.tls;
        let local =
            config.get_hostaddrs().is_empty() && config.get_hosts().iter().all(|host| matches!(host, Host::Unix(_)));
        let use_tls = match own.ssl_mode.as_deref() {
            Some("disable") => {
                let keys = ["tls_ca", "tls_certificate", "tls_server_name"].into_iter().zip(self.tls_keys(&own)?);
                if let Some((key, _)) = keys.into_iter().find(|(_, set)| *set) {
                    return Err(PostgresSettingsError::Unused { key });
                }
                false
            }
            Some("require" | "verify-ca" | "verify-full") => true,
            Some(mode) => return Err(PostgresSettingsError::SslMode(mode.to_owned())),
            // PostgreSQL has no TLS on Unix sockets.
            None => (!tls.is_empty() || own.has_system_trust()) && !local,
        };
        config.ssl_mode(if use_tls { SslMode::Require } else { SslMode::Disable });
        let tls = PostgresTls::new(use_tls.then_some(&tls))?;
        if let Some(user) = &self.username {
            config.user(user);
        }
        if let Some(password) = &self.password {
            config.password(password.reveal());
        }
        if config.get_application_name().is_none() {
            config.application_name("tollgate");
        }
        config.keepalives_idle(KEEPALIVE_IDLE).keepalives_interval(KEEPALIVE_INTERVAL).keepalives_retries(3);
        config.connect_timeout(self.connect_timeout).tcp_user_timeout(2 * self.response_timeout);
        Ok(ParsedSettings { config, tls, names, shared })
    }
}

/// Why an SSL mode that does not enforce TLS is refused.
fn optional_tls(mode: &str) -> &'static str {
    match mode {
        "prefer" | "allow" => ": with it, a program that answers in the server's place can turn TLS off",
        _ => "",
    }
}

/// Checks a name for SQL. Names are quoted as well; this keeps them legible, and the names derived from them within the
/// 63 bytes that PostgreSQL allows.
fn check_name(key: &'static str, name: &str, min_len: usize) -> Result<(), PostgresSettingsError> {
    let allowed = |letter: char| letter.is_ascii_alphanumeric() || matches!(letter, '_' | '-');
    match (min_len..=32).contains(&name.len()) && name.chars().all(allowed) {
        true => Ok(()),
        false => Err(PostgresSettingsError::Name { key, name: name.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(url: &str) -> PostgresSettings {
        PostgresSettings { url: url.to_owned(), ..PostgresSettings::default() }
    }

    /// A CA file that does not exist.
    fn nowhere() -> TlsSettings {
        TlsSettings { ca: Some(PemFile::read("/nowhere/ca.pem")), ..TlsSettings::default() }
    }

    fn ssl_mode(url: &str) -> SslMode {
        settings(url).parse().expect("the settings are valid").config.get_ssl_mode()
    }

    #[test]
    fn tls_is_off_or_required_and_optional_tls_is_rejected() {
        assert_eq!(ssl_mode("postgres://me@db/limits"), SslMode::Disable);
        assert_eq!(ssl_mode("postgres://me@db/limits?sslmode=require&connect_timeout=3"), SslMode::Require);
        assert_eq!(ssl_mode("host=db user=me sslmode=verify-full"), SslMode::Require);
        for optional in ["prefer", "allow"] {
            let error = settings(&format!("postgres://me@db/limits?sslmode={optional}")).parse().err();
            assert_eq!(error, Some(PostgresSettingsError::SslMode(optional.to_owned())));
        }
    }

    #[test]
    fn parameters_are_refused_by_name_with_a_reason() {
        for (parameters, expected) in [
            (
                "sslmode=prefer",
                "url has sslmode=prefer, expected disable, require, verify-ca or verify-full: with it, a program that answers in the server's place can turn TLS off",
            ),
            ("sslmode=on", "url has sslmode=on, expected disable, require, verify-ca or verify-full"),
            ("pgbouncer=yes", "url has pgbouncer=yes, expected true or false"),
            ("sslcert=a.pem", "url has sslcert without sslkey, expected both or neither"),
            ("sslkey=a.pem", "url has sslkey without sslcert, expected both or neither"),
            (
                "pgbouncer=true&connection_limit=1",
                "url is invalid: invalid connection string: unknown option `connection_limit`",
            ),
        ] {
            let error = settings(&format!("postgres://me@db/limits?{parameters}")).parse().err();
            assert_eq!(error.map(|error| error.to_string()).as_deref(), Some(expected));
        }
        for (parameters, shared) in [("pgbouncer=true", true), ("pgbouncer=false", false), ("port=1", false)] {
            let parsed = settings(&format!("postgres://me@db/limits?{parameters}")).parse().expect("it is valid");
            assert_eq!(parsed.shared, shared, "{parameters}");
        }
        // The trust of the system, which this machine may lack, or the client's certificate, which is missing.
        for parameters in ["sslrootcert=system", "sslcert=no/such.pem&sslkey=no/such.key"] {
            match settings(&format!("postgres://me@db/limits?{parameters}")).parse() {
                Ok(parsed) => assert_eq!(parsed.config.get_ssl_mode(), SslMode::Require, "{parameters}"),
                Err(error) => assert!(matches!(error, PostgresSettingsError::Tls(_)), "{parameters}: {error}"),
            }
        }
    }

    #[test]
    fn an_authority_is_used_for_an_address_without_a_host_too() {
        for url in ["postgres://me@db/limits", "hostaddr=127.0.0.1 user=me", "host=/run hostaddr=127.0.0.1 user=me"] {
            let settings = PostgresSettings { tls: nowhere(), ..settings(url) };
            assert!(matches!(settings.parse(), Err(PostgresSettingsError::Tls(_))), "{url}");
        }
        let socket = PostgresSettings { tls: nowhere(), ..settings("host=/run user=me") };
        assert!(socket.parse().is_ok(), "PostgreSQL has no TLS on Unix sockets");
    }

    #[test]
    fn credentials_have_any_characters_and_one_place() {
        let odd = "a b@c/d?e=f&g%41:'\"\\\u{e4}\n";
        let own = |url: &str| PostgresSettings {
            username: Some(odd.to_owned()),
            password: Some(Password::new(odd)),
            ..settings(url)
        };
        for url in ["postgres://db/limits", "postgres://db/limits?sslmode=disable", "host=db dbname=limits"] {
            let config = own(url).parse().expect("it is valid").config;
            assert_eq!((config.get_user(), config.get_password()), (Some(odd), Some(odd.as_bytes())), "{url}");
        }
        for (url, expected) in [
            ("postgres://me@db", "username is set and url has a user too, expected one of them"),
            ("postgres://db?user=me", "username is set and url has a user too, expected one of them"),
            ("host=db password=x", "password is set and url has a password too, expected one of them"),
        ] {
            assert_eq!(own(url).check().map_err(|error| error.to_string()), Err(expected.to_owned()), "{url}");
        }
        // Each in another place is fine.
        let split = PostgresSettings { username: None, ..own("postgres://me@db") };
        let config = split.parse().expect("it is valid").config;
        assert_eq!((config.get_user(), config.get_password()), (Some("me"), Some(odd.as_bytes())));
        assert!(!format!("{split:?}").contains("g%41"));
    }

    #[test]
    fn tls_is_set_up_in_one_place_and_used() {
        let file = |path: &str| PemFile::read(path);
        let identity = Some(ClientCertificate { certificate: file("/no/a.pem"), key: file("/no/a.key") });
        for (url, tls, expected) in [
            ("db?sslrootcert=b.pem", nowhere(), "tls_ca is set and url has sslrootcert too, expected one of them"),
            ("db?sslrootcert=system", nowhere(), "tls_ca is set and url has sslrootcert too, expected one of them"),
            (
                "db?sslcert=b&sslkey=c",
                TlsSettings { identity, ..TlsSettings::default() },
                "tls_certificate is set and url has sslcert too, expected one of them",
            ),
            ("db?sslmode=disable", nowhere(), "tls_ca is set and url has sslmode=disable, so TLS is not used"),
            (
                "db?sslrootcert=/nowhere/ca.pem",
                nowhere(),
                "/nowhere/ca.pem: cannot be read: No such file or directory (os error 2)",
            ),
        ] {
            let settings = PostgresSettings { tls, ..settings(&format!("postgres://me@{url}")) };
            assert_eq!(settings.check().map_err(|error| error.to_string()), Err(expected.to_owned()), "{url}");
        }
    }

    #[test]
    fn names_that_need_escaping_or_are_too_long_are_rejected() {
        for name in ["", "a b", "a\"b", "$body$", "a;drop", &"x".repeat(33), "naïve"] {
            let settings = PostgresSettings { schema_name: name.to_owned(), ..settings("postgres://db") };
            assert!(matches!(settings.parse().err(), Some(PostgresSettingsError::Name { .. })), "{name}");
        }
        for name in ["Tollgate", "select", "my-limits", "_1"] {
            let settings = PostgresSettings { schema_name: name.to_owned(), ..settings("postgres://db") };
            assert!(settings.parse().is_ok(), "{name}");
        }
    }

    #[test]
    fn errors_and_debug_do_not_contain_the_password() {
        for url in ["postgres://me:hush@db:port/limits", "postgres://me:hush@/limits?hsot=x", "me:hush", ""] {
            let error = settings(url).parse().err().map(|error| error.to_string());
            assert!(error.as_ref().is_some_and(|text| !text.contains("hush")), "{url}: {error:?}");
        }
        assert!(!format!("{:?}", settings("postgres://me:hush@db")).contains("hush"));
    }
}
