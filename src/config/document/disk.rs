//! Reads files and records what was read.

use std::cell::RefCell;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use siphasher::sip128::{Hasher128, SipHasher24};

use super::origin::Origin;

/// Reads files, and records the path and a hash of the content of each.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    reads: RefCell<Vec<(PathBuf, [u8; 16])>>,
}

impl Disk {
    /// Reads at most `limit` bytes of a file and one more, by which the caller detects a larger one.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut content));
        let content = read.map(|_| content);
        self.record(path, content.as_deref().map_err(ToString::to_string));
        content
    }

    /// Records a directory, which has no content.
    pub(crate) fn record_directory(&self, path: &Path) {
        self.record(path, Ok(b""));
    }

    fn record(&self, path: &Path, content: Result<&[u8], String>) {
        // Only a hash is kept, because the content may be a secret.
        let mut hasher = SipHasher24::new();
        match content {
            Ok(content) => hasher.write(content),
            Err(reason) => hasher.write(format!("not read: {reason}").as_bytes()),
        }
        self.reads.borrow_mut().push((path.to_owned(), hasher.finish128().as_bytes()));
    }

    /// The origin of the configuration at `config_path`, from everything that was read.
    pub(crate) fn origin(self, config_path: Option<PathBuf>) -> Origin {
        let reads = self.reads.into_inner();
        let mut hasher = SipHasher24::new();
        for (path, content_hash) in &reads {
            hasher.write(path.as_os_str().as_encoded_bytes());
            hasher.write_u8(0);
            hasher.write(content_hash);
        }
        let content_hash = hasher.finish128().as_bytes();
        Origin { config_path, paths: reads.into_iter().map(|(path, _)| path).collect(), content_hash }
    }
}
