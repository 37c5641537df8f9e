//! Connections that nobody else reads: TLS with certificates to trust, and one of our own.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::settings::{Identity, TlsSettings};

/// Secures connections.
#[derive(Clone)]
pub(super) struct Tls {
    connector: TlsConnector,
    server_name: Option<ServerName<'static>>,
}

/// Why connections cannot be secured as it is configured.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read, or is not what it should be.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Nobody is trusted.
    #[error("the system trusts no certificates, expected a file of those to trust")]
    NobodyTrusted,
    /// A certificate and its key do not go together.
    #[error("{}: {reason}", path.display())]
    Identity {
        /// The file of the certificate.
        path: PathBuf,
        /// What is wrong with it.
        reason: rustls::Error,
    },
    /// The server cannot be called that.
    #[error("{0:?} is no name of a server")]
    ServerName(String),
}

impl Tls {
    /// Reads the files that the settings name.
    pub(super) fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        let mut roots = RootCertStore::empty();
        let trusted = match &settings.ca {
            Some(path) => certificates(path)?,
            None => rustls_native_certs::load_native_certs().certs,
        };
        roots.add_parsable_certificates(trusted);
        if roots.is_empty() {
            return Err(TlsError::NobodyTrusted);
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("ring has suites for the default versions")
            .with_root_certificates(roots);
        let config = match &settings.identity {
            None => config.with_no_client_auth(),
            Some(Identity { certificate, key }) => {
                let key = PrivateKeyDer::from_pem_file(key).map_err(|error| file(key, &error))?;
                config
                    .with_client_auth_cert(certificates(certificate)?, key)
                    .map_err(|reason| TlsError::Identity { path: certificate.clone(), reason })?
            }
        };
        let server_name = match &settings.server_name {
            None => None,
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name.clone()))?),
        };
        Ok(Self { connector: TlsConnector::from(Arc::new(config)), server_name })
    }

    /// Secures a connection to `host`, whose certificate must carry that name or the one that was set.
    pub(super) async fn secure(&self, host: &str, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(std::io::Error::other)?,
        };
        self.connector.connect(name, stream).await
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let found = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(found) if found.is_empty() => {
            Err(TlsError::File { path: path.to_owned(), reason: "there is no certificate in it".to_owned() })
        }
        found => found.map_err(|error| file(path, &error)),
    }
}

fn file(path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { path: path.to_owned(), reason: error.to_string() }
}
