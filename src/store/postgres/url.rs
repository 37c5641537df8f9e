//! The parameters of a URL that the client library does not know, or knows less of.

use std::path::{Path, PathBuf};

/// The parameters that a query can begin with although an @ follows: these, and those of the client library.
const PARAMETERS: [&str; 16] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "pgbouncer",
    "user",
    "password",
    "dbname",
    "options",
    "application_name",
    "host",
    "hostaddr",
    "port",
    "connect_timeout",
    "target_session_attrs",
    "channel_binding",
];

/// Where the query of a URL begins. A question mark in front of the host belongs to the password, unless a parameter
/// follows it.
fn query_of(url: &str) -> Option<usize> {
    let host = url.find('@').unwrap_or(0);
    let known = |query: &str| query.split_once('=').is_some_and(|(key, _)| PARAMETERS.contains(&key));
    url.match_indices('?').map(|(mark, _)| mark).find(|mark| *mark > host || known(&url[mark + 1..]))
}

/// These parameters of a URL.
#[derive(Default)]
pub(super) struct OwnParameters {
    pub(super) ssl_mode: Option<String>,
    root_cert: Option<PathBuf>,
    ssl_cert: Option<PathBuf>,
    ssl_key: Option<PathBuf>,
    pub(super) pgbouncer: Option<String>,
}

impl OwnParameters {
    /// Splits them off a URL, or off keys and values.
    pub(super) fn split(url: &str) -> (String, Self) {
        let mut own = Self::default();
        let mut keep = |pair: &str| match pair.split_once('=') {
            Some((key, value)) => !own.take(key, value),
            None => true,
        };
        let rest = if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            match query_of(url) {
                Some(mark) => {
                    let pairs = url[mark + 1..].split('&').filter(|pair| !pair.is_empty() && keep(pair));
                    // The client library takes all before the first @ for credentials.
                    let pairs: Vec<String> = pairs.map(|pair| pair.replace('@', "%40")).collect();
                    let question_mark = if pairs.is_empty() { "" } else { "?" };
                    format!("{}{question_mark}{}", &url[..mark], pairs.join("&"))
                }
                None => url.to_owned(),
            }
        } else {
            url.split_whitespace().filter(|pair| keep(pair)).collect::<Vec<_>>().join(" ")
        };
        (rest, own)
    }

    /// Takes a parameter, and returns whether it is one of these.
    fn take(&mut self, key: &str, value: &str) -> bool {
        let value = || percent_encoding::percent_decode_str(value).decode_utf8_lossy().into_owned();
        match key {
            "sslmode" => self.ssl_mode = Some(value()),
            "sslrootcert" => self.root_cert = Some(value().into()),
            "sslcert" => self.ssl_cert = Some(value().into()),
            "sslkey" => self.ssl_key = Some(value().into()),
            "pgbouncer" => self.pgbouncer = Some(value()),
            _ => return false,
        }
        true
    }

    /// Whether the authorities that the system trusts are meant: libpq's word for them, which requires TLS.
    pub(super) fn has_system_trust(&self) -> bool {
        self.root_cert.as_deref() == Some(Path::new("system"))
    }

    /// The file of trusted authorities.
    pub(super) fn ca(&self) -> Option<&Path> {
        self.root_cert.as_deref().filter(|_| !self.has_system_trust())
    }

    /// The files of the client's certificate and key. An error is the parameter that is given, and the one that is
    /// missing.
    pub(super) fn identity(&self) -> Result<Option<[&Path; 2]>, [&'static str; 2]> {
        match (self.ssl_cert.as_deref(), self.ssl_key.as_deref()) {
            (Some(certificate), Some(key)) => Ok(Some([certificate, key])),
            (None, None) => Ok(None),
            (Some(_), None) => Err(["sslcert", "sslkey"]),
            (None, Some(_)) => Err(["sslkey", "sslcert"]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_found_whatever_the_password_contains() {
        for (url, rest) in [
            ("postgres://me@h/d?sslmode=require", "postgres://me@h/d"),
            ("postgres://me:a?b@h/d?sslmode=require", "postgres://me:a?b@h/d"),
            ("postgres://me:a?b=c@h/d?port=1&sslmode=require", "postgres://me:a?b=c@h/d?port=1"),
            ("postgres://h/d?sslmode=require&password=a@b", "postgres://h/d?password=a%40b"),
            ("postgres://h/d?password=a@b&sslmode=require", "postgres://h/d?password=a%40b"),
            ("postgresql://h?sslmode=require", "postgresql://h"),
            ("host=h sslmode=require user=me", "host=h user=me"),
        ] {
            let (left, own) = OwnParameters::split(url);
            assert_eq!((left.as_str(), own.ssl_mode.as_deref()), (rest, Some("require")), "{url}");
        }
    }
}
