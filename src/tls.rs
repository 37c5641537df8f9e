//! TLS of connections to shared stores: trusted roots, and an optional client certificate.
//!
//! Redis connects through `TlsClient`. The client library of PostgreSQL takes its configuration.
//!
//! ```text
//!   tls_ca, tls_certificate, tls_key -> PemFile: path and content, read once -> TlsSettings -> TlsClient
//! ```
//!
//! Settings hold the content of their files, so a renewed file makes other settings: a reload replaces the store.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// TLS of the connections to one store.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TlsSettings {
    /// A file of certificates to trust instead of the system's roots.
    pub ca: Option<PemFile>,
    /// The client certificate to present, if any.
    pub identity: Option<ClientCertificate>,
    /// The name that the server's certificate must carry, instead of the host of the address.
    pub server_name: Option<String>,
}

impl TlsSettings {
    /// Checks that a client can be made of the settings.
    ///
    /// # Errors
    ///
    /// The first of them that cannot be used.
    pub fn check(&self) -> Result<(), TlsError> {
        TlsClient::new(self).map(drop)
    }

    /// Whether nothing is set.
    pub(crate) fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// The files of a client certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClientCertificate {
    /// The client's own certificate first, then its chain.
    pub certificate: PemFile,
    /// Its private key.
    pub key: PemFile,
}

/// A PEM file with the content that it had when it was read. Files are equal if both are.
#[derive(Clone, PartialEq, Eq)]
pub struct PemFile {
    path: PathBuf,
    /// Why it could not be read, if so: [`TlsSettings::check`] reports it.
    content: Result<Arc<[u8]>, String>,
}

impl PemFile {
    /// The largest file that a configuration reads, in bytes. The roots of a system take some 250 KiB.
    pub(crate) const MAX_BYTES: u64 = 4 * 1024 * 1024;

    /// Reads a file.
    pub fn read(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        let content = std::fs::read(&path);
        Self::with_content(path, content)
    }

    /// A file that was read already.
    pub(crate) fn with_content(path: PathBuf, content: io::Result<Vec<u8>>) -> Self {
        let content = match content {
            Ok(content) if content.len() as u64 > Self::MAX_BYTES => {
                Err("is larger than 4 MiB, expected PEM".to_owned())
            }
            Ok(content) => Ok(content.into()),
            Err(error) => Err(format!("cannot be read: {error}")),
        };
        Self { path, content }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn content(&self) -> Result<&[u8], TlsError> {
        self.content.as_deref().map_err(|reason| self.refused(reason))
    }

    fn refused(&self, reason: impl fmt::Display) -> TlsError {
        TlsError::File { path: self.path.clone(), reason: reason.to_string() }
    }

    /// Its certificates, at least one.
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let found: Result<Vec<_>, pem::Error> = CertificateDer::pem_slice_iter(self.content()?).collect();
        match found {
            Ok(found) if found.is_empty() => Err(self.refused("holds no certificate, expected PEM")),
            found => found.map_err(|error| self.refused(format_args!("is not valid PEM: {error}"))),
        }
    }

    /// Its private key.
    fn private_key(&self) -> Result<PrivateKeyDer<'static>, TlsError> {
        PrivateKeyDer::from_pem_slice(self.content()?).map_err(|error| match error {
            pem::Error::NoItemsFound => self.refused("holds no private key, expected PEM without a passphrase"),
            // The error may quote the file.
            _ => self.refused("is not valid PEM"),
        })
    }
}

/// Omits the content, which may be a private key.
impl fmt::Debug for PemFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("PemFile").field(&self.path).finish()
    }
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
        /// What is wrong with it.
        reason: String,
    },
    /// The system has no trusted roots, and no CA file is set.
    #[error("the system has no trusted root certificates, expected some or a file of them in tls_ca")]
    NoTrustedRoots,
    /// A server name that is neither a DNS name nor an IP address.
    #[error("server name {0:?} is invalid, expected a DNS name or an IP address")]
    ServerName(String),
}

/// A TLS client with the settings of one store.
#[derive(Clone)]
pub(crate) struct TlsClient {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

impl TlsClient {
    /// A client with the trust and the client certificate of the settings.
    pub(crate) fn new(settings: &TlsSettings) -> Result<Self, TlsError> {
        let config = client_config(settings)?;
        let server_name = match &settings.server_name {
            None => None,
            Some(name) => Some(ServerName::try_from(name.clone()).map_err(|_| TlsError::ServerName(name.clone()))?),
        };
        Ok(Self { config: Arc::new(config), server_name })
    }

    /// Performs the handshake with `host`. Its certificate must carry that name, or the server name of the settings.
    pub(crate) async fn connect(&self, host: &str, stream: TcpStream) -> io::Result<TlsStream<TcpStream>> {
        let name = match &self.server_name {
            Some(name) => name.clone(),
            None => ServerName::try_from(host.to_owned()).map_err(io::Error::other)?,
        };
        TlsConnector::from(self.config.clone()).connect(name, stream).await
    }

    /// The configuration, for a client library that performs the handshake itself.
    pub(crate) fn config(&self) -> ClientConfig {
        (*self.config).clone()
    }
}

impl fmt::Debug for TlsClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsClient").field("server_name", &self.server_name).finish_non_exhaustive()
    }
}

/// The configuration of a client with the trust and the client certificate of the settings.
fn client_config(settings: &TlsSettings) -> Result<ClientConfig, TlsError> {
    let mut roots = RootCertStore::empty();
    match &settings.ca {
        Some(file) => {
            roots.add_parsable_certificates(file.certificates()?);
            if roots.is_empty() {
                return Err(file.refused("holds no valid certificate"));
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
            let (chain, private_key) = (certificate.certificates()?, key.private_key()?);
            config.with_client_auth_cert(chain, private_key).map_err(|error| {
                let key = key.path.display();
                certificate.refused(format_args!("cannot be used with the key in {key}: {error}"))
            })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_without_a_valid_certificate_is_refused_by_its_path() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ca.pem");
        let settings = || TlsSettings { ca: Some(PemFile::read(&path)), ..TlsSettings::default() };
        let refused = || settings().check().expect_err("it is refused").to_string();
        let starts = format!("{}: ", path.display());
        assert!(refused().starts_with(&format!("{starts}cannot be read: ")), "a missing file: {}", refused());
        std::fs::write(&path, "no PEM").expect("a file in the test's directory");
        assert_eq!(refused(), format!("{starts}holds no certificate, expected PEM"));
        std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").expect("a file");
        assert_eq!(refused(), format!("{starts}holds no valid certificate"));
    }

    #[test]
    fn a_client_certificate_needs_its_own_key() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let write = |name: &str, text: &str| {
            let path = directory.path().join(name);
            std::fs::write(&path, text).expect("a file in the test's directory");
            PemFile::read(path)
        };
        let [own, other] = [(); 2].map(|()| rcgen::KeyPair::generate().expect("a key"));
        let pem = rcgen::CertificateParams::default().self_signed(&own).expect("a certificate").pem();
        let certificate = write("client.pem", &pem);
        let ca = Some(write("ca.pem", &pem));
        let checked = |key: PemFile| {
            let identity = Some(ClientCertificate { certificate: certificate.clone(), key });
            TlsSettings { ca: ca.clone(), identity, server_name: None }.check()
        };
        assert_eq!(checked(write("own.key", &own.serialize_pem())), Ok(()));
        let refused = |key| checked(key).expect_err("it is refused").to_string();
        let text = refused(write("other.key", &other.serialize_pem()));
        assert!(text.contains("client.pem: cannot be used with the key in ") && text.contains("other.key"), "{text}");
        let text = refused(write("empty.key", "no PEM"));
        assert!(text.ends_with("empty.key: holds no private key, expected PEM without a passphrase"), "{text}");
        let key = write("own.key", &own.serialize_pem());
        assert!(!format!("{key:?}").contains("PRIVATE"), "{key:?}");
        assert_ne!(key, write("own.key", &other.serialize_pem()), "another content is another file");
    }

    #[test]
    fn a_server_name_that_no_certificate_can_carry_is_refused() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let path = directory.path().join("ca.pem");
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
        std::fs::write(&path, certificate.pem()).expect("a file in the test's directory");
        let named = |name: &str| TlsSettings {
            ca: Some(PemFile::read(&path)),
            server_name: Some(name.to_owned()),
            ..TlsSettings::default()
        };
        assert!(TlsClient::new(&named("db.example")).is_ok());
        let refused = TlsClient::new(&named("not a name")).expect_err("it is refused");
        assert_eq!(refused, TlsError::ServerName("not a name".to_owned()));
    }
}
