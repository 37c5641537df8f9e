//! TLS of shared stores: reads the files that a store names, and checks them.
//!
//! The files are part of the configuration, as those of `${file:...}` are: they are watched, and a store whose files
//! change is another store.

use std::path::Path;

use crate::config::document::disk::Disk;
use crate::config::document::problem::{Location, Problems};
use crate::config::schema;
use crate::config::schema::decode::Field;
use crate::tls::{ClientCertificate, PemFile, TlsError, TlsSettings};

/// Reads a file.
pub(super) fn file(path: &Path, disk: &Disk) -> PemFile {
    PemFile::with_content(path.to_owned(), disk.read(path, PemFile::MAX_BYTES))
}

/// The TLS settings of a store's keys.
pub(super) fn settings(store: &schema::Store, disk: &Disk, problems: &mut Problems) -> TlsSettings {
    let read = |field: &Field<String>| field.get().map(|text| file(Path::new(&text.value), disk));
    let identity = match (read(&store.tls_certificate), read(&store.tls_key)) {
        (Some(certificate), Some(key)) => Some(ClientCertificate { certificate, key }),
        (certificate, _) => {
            let (given, other) = match certificate.is_some() {
                true => (&store.tls_certificate, &store.tls_key),
                false => (&store.tls_key, &store.tls_certificate),
            };
            // One that is invalid was reported.
            if let (Some(location), true) = (given.location(), other.is_absent()) {
                let other = if certificate.is_some() { "tls_key" } else { "tls_certificate" };
                problems.refuse(location, format!("but there is no {other}; expected both or neither"));
            }
            None
        }
    };
    let server_name = store.tls_server_name.get().map(|text| text.value.clone());
    TlsSettings { ca: read(&store.tls_ca), identity, server_name }
}

/// Reports TLS that cannot be set up: at the key that names the file, else at the URL.
pub(super) fn refuse(
    error: &TlsError,
    settings: &TlsSettings,
    store: &schema::Store,
    url: &Location,
    problems: &mut Problems,
) {
    match error {
        TlsError::File { path, reason } => {
            let identity = settings.identity.as_ref();
            let files = [
                (settings.ca.as_ref(), &store.tls_ca),
                (identity.map(|identity| &identity.certificate), &store.tls_certificate),
                (identity.map(|identity| &identity.key), &store.tls_key),
            ];
            let named = files.into_iter().find(|(file, _)| file.is_some_and(|file| file.path() == path));
            match named.and_then(|(_, key)| key.location()) {
                Some(location) => problems.refuse(location, format!("which {reason}")),
                None => problems.refuse(url, format!("which names {}, which {reason}", path.display())),
            }
        }
        TlsError::ServerName(_) => {
            let location = store.tls_server_name.location().unwrap_or(url);
            problems.refuse(location, "expected a DNS name or an IP address");
        }
        error => problems.refuse(url, format!("but {error}")),
    }
}
