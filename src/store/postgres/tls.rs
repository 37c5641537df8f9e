//! TLS to a PostgreSQL: rustls with ring, the certificate always checked.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use tokio_postgres_rustls::MakeRustlsConnect;

/// How the client library is to speak TLS, if at all.
#[derive(Clone)]
pub(super) struct Tls(pub(super) MakeRustlsConnect);

impl Tls {
    /// Trusts the certificates of `ca`, or else those of the system. What is not `wanted` trusts nobody.
    pub(super) fn new(wanted: bool, ca: Option<&Path>) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        match ca {
            _ if !wanted => {}
            Some(file) => {
                let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", file.display());
                let text = fs::read(file).map_err(|error| failed(&error))?;
                for certificate in CertificateDer::pem_slice_iter(&text) {
                    let certificate = certificate.map_err(|error| failed(&error))?;
                    roots.add(certificate).map_err(|error| failed(&error))?;
                }
                if roots.is_empty() {
                    return Err(failed(&"it holds no certificate"));
                }
            }
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring knows the versions of TLS that rustls has")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Ok(Self(MakeRustlsConnect::new(config)))
    }
}
