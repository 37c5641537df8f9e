//! A certificate authority of a test, and certificates that it signed.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};

/// PEM files: the authority, a server at 127.0.0.1 and localhost, and a client whose name is tollgate.
#[derive(Clone, Debug)]
pub struct Certificates {
    /// The authority's certificate.
    pub authority: PathBuf,
    /// The server's certificate.
    pub server: PathBuf,
    /// The server's key.
    pub server_key: PathBuf,
    /// The client's certificate.
    pub client: PathBuf,
    /// The client's key.
    pub client_key: PathBuf,
}

/// The number of authorities so far.
static MADE: AtomicUsize = AtomicUsize::new(0);

impl Certificates {
    /// Creates a new authority and certificates, which clients of other authorities do not trust.
    pub fn make(directory: &Path) -> Self {
        let mut params = CertificateParams::new([]).expect("no names are names");
        // OpenSSL finds an authority by its name, so each has another.
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        params.distinguished_name.push(DnType::CommonName, format!("authority {number} of tests"));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().expect("a key");
        let certificate = params.self_signed(&key).expect("an authority signs itself");
        let files = Self {
            authority: directory.join("authority.pem"),
            server: directory.join("server.pem"),
            server_key: directory.join("server.key"),
            client: directory.join("client.pem"),
            client_key: directory.join("client.key"),
        };
        fs::write(&files.authority, certificate.pem()).expect("a file in the test's directory");
        let authority = Issuer::new(params, key);
        sign(&authority, &["localhost", "127.0.0.1"], &files.server, &files.server_key);
        sign(&authority, &["tollgate"], &files.client, &files.client_key);
        files
    }
}

fn sign(authority: &Issuer<'_, KeyPair>, names: &[&str], file: &Path, key_file: &Path) {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names.clone()).expect("these are names");
    params.distinguished_name.push(DnType::CommonName, names[0].as_str());
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, authority).expect("an authority signs");
    fs::write(file, certificate.pem()).expect("a file in the test's directory");
    fs::write(key_file, key.serialize_pem()).expect("a file in the test's directory");
}
