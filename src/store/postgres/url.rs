//! The parameters of a URL that the client library does not know, or knows less of.

use std::path::PathBuf;

use super::settings::PostgresSettingsError;
use crate::tls::ClientCertificate;

/// These parameters of a URL.
#[derive(Default)]
pub(super) struct OwnParameters {
    pub(super) ssl_mode: Option<String>,
    pub(super) root_cert: Option<PathBuf>,
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
            // A password may contain a question mark.
            let host = url.find('@').unwrap_or(0);
            match url[host..].split_once('?') {
                Some((path, pairs)) => {
                    let pairs: Vec<&str> = pairs.split('&').filter(|pair| !pair.is_empty() && keep(pair)).collect();
                    let question_mark = if pairs.is_empty() { "" } else { "?" };
                    format!("{}{path}{question_mark}{}", &url[..host], pairs.join("&"))
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

    /// The certificate that this client shows to the server.
    pub(super) fn identity(&self) -> Result<Option<ClientCertificate>, PostgresSettingsError> {
        match (self.ssl_cert.clone(), self.ssl_key.clone()) {
            (Some(certificate), Some(key)) => Ok(Some(ClientCertificate { certificate, key })),
            (None, None) => Ok(None),
            (Some(_), None) => Err(PostgresSettingsError::Lonely { given: "sslcert", missing: "sslkey" }),
            (None, Some(_)) => Err(PostgresSettingsError::Lonely { given: "sslkey", missing: "sslcert" }),
        }
    }
}
