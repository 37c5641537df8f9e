//! TLS of connections to shared stores: trusted roots, and an optional client certificate.
//!
//! Redis connects through `TlsClient`; the client library of PostgreSQL takes the `client_config` itself.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// TLS of the connections to one store.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsSettings {
    /// A file of PEM certificates to trust instead of the system's roots.
    pub ca: Option<PathBuf>,
    /// The client certificate to present, if any.
    pub identity: Option<ClientCertificate>,
    /// The name that the server's certificate must carry, instead of the host of the address.
    pub server_name: Option<String>,
}

impl TlsSettings {
    /// Reads the files that the settings name.
    ///
    /// # Errors
    ///
    /// The first of them that cannot be used.
    pub fn check(&self) -> Result<(), TlsError> {
        TlsClient::new(self).map(drop)
    }
}

/// The files of a client certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCertificate {
    /// A file of PEM certificates: the client's own first, then its chain.
    pub certificate: PathBuf,
    /// The file of its private key, in PEM.
    pub key: PathBuf,
}

/// TLS that cannot be set up from its settings.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read, or does not hold what it should.
    #[error("{}: {reason}", path.display())]
    File {
        /// The path of the file.
        path: PathBuf,
        /// The error.
        reason: String,
    },
    /// The system has no trusted roots, and no CA file is set.
    #[error("the system has no trusted root certificates, expected some or a file of them in tls_ca")]
    NoTrustedRoots,
    /// A client certificate that its key does not fit, or that is not valid.
    #[error("{}: {reason}", path.display())]
    ClientCertificate {
        /// The file of the certificate.
        path: PathBuf,
        /// The error.
        reason: rustls::Error,
    },
    /// A server name that is neither a DNS name nor an IP address.
    #[error("server name {0:?} is invalid, expected a DNS name or an IP address")]
    ServerName(String),
}

/// A TLS client with the settings of one store.
#[derive(Clone)]
pub(crate) struct TlsClient {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

impl TlsClient {
    /// Reads the files that the settings name.
    pub(crate) fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        let config = client_config(settings)?;
        let server_name = match &settings.server_name {
            None => None,
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name.clone()))?),
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name })
    }

    /// Performs the handshake with `host`. Its certificate must carry that name, or the server name of the settings.
    pub(crate) async fn connect(&self, host: &str, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?,
        };
        self.connector.connect(name, stream).await
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The configuration of a client with the trust and the client certificate of the settings. Reads their files.
pub(crate) fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        Some(path) => {
            roots.add_parsable_certificates(certificates(path)?);
            if roots.is_empty() {
                return Err(TlsError::File { path: path.clone(), reason: "holds no valid certificate".to_owned() });
            }
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsError::NoTrustedRoots);
            }
        }
    }
    let config = builder().with_root_certificates(roots);
    match &settings.identity {
        None => Ok(config.with_no_client_auth()),
        Some(ClientCertificate { certificate, key }) => {
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file_error(key, &error))?;
            config
                .with_client_auth_cert(certificates(certificate)?, key)
                .map_err(|reason| TlsError::ClientCertificate { path: certificate.clone(), reason })
        }
    }
}

/// The configuration of a client that trusts no server: for a client library that takes one and does not use TLS.
pub(crate) fn untrusting_config() -> ClientConfig {
    builder().with_root_certificates(RootCertStore::empty()).with_no_client_auth()
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("ring has cipher suites for the default versions")
}

/// The certificates in a PEM file, at least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => {
            Err(TlsError::File { path: path.to_owned(), reason: "holds no certificate, expected PEM".to_owned() })
        }
        found => found.map_err(|error| file_error(path, &error)),
    }
}

fn file_error(path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { path: path.to_owned(), reason: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_valid_certificate_is_refused_by_its_path() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ca.pem");
        let settings = TlsSettings { ca: Some(path.clone()), ..TlsSettings::default() };
        let refused = || client_config(&settings).expect_err("it is refused").to_string();
        let starts = format!("{}: ", path.display());
        assert!(refused().starts_with(&starts), "a missing file: {}", refused());
        std::fs::write(&path, "no PEM").expect("a file in the test's directory");
        assert_eq!(refused(), format!("{starts}holds no certificate, expected PEM"));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("a file");
        assert_eq!(refused(), format!("{starts}holds no valid certificate"));
    }

    #[test]
    fn a_server_name_that_no_certificate_can_carry_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ca.pem");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
        std::fs::write(&path, certificate.pem()).expect("a file in the test's directory");
        let named = |name: &str| TlsSettings {
            ca: Some(path.clone()),
            server_name: Some(name.to_owned()),
            ..TlsSettings::default()
        };
        assert!(TlsClient::new(&named("db.example")).is_ok());
        let refused = TlsClient::new(&named("not a name")).expect_err("it is refused");
        assert_eq!(refused, TlsError::ServerName("not a name".to_owned()));
    }
}
