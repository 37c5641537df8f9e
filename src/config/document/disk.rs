//! The file system as a configuration sees it, with a record of everything that was read.

use std::cell::RefCell;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use siphasher::sip128::{Hasher128, SipHasher24};

use super::origin::Origin;

/// The file system, with the path and a hash of everything that was read from it.
#[derive(Debug, Default)]
pub struct Disk {
    read: RefCell<Vec<(PathBuf, [u8; 16])>>,
}

impl Disk {
    /// Reads a file, up to one byte more than `limit`.
    pub fn read(&self, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = File::open(path).and_then(|file| file.take(limit.saturating_add(1)).read_to_end(&mut content));
        let read = read.map(|_| content);
        self.record(path, read.as_deref().map_err(ToString::to_string));
        read
    }

    /// Records a path that has no content: a directory.
    pub fn record_directory(&self, path: &Path) {
        self.record(path, Ok(b""));
    }

    fn record(&self, path: &Path, read: Result<&[u8], String>) {
        // Only a hash is kept, because the content may be a secret.
        let mut hasher = SipHasher24::new();
        match read {
            Ok(content) => hasher.write(content),
            Err(reason) => hasher.write(format!("not read: {reason}").as_bytes()),
        }
        self.read.borrow_mut().push((path.to_owned(), hasher.finish128().as_bytes()));
    }

    /// The origin of a configuration that was read through this.
    pub fn origin(self, place: Option<PathBuf>) -> Origin {
        let read = self.read.into_inner();
        let mut hasher = SipHasher24::new();
        for (path, content) in &read {
            hasher.write(path.as_os_str().as_encoded_bytes());
            hasher.write_u8(0);
            hasher.write(content);
        }
        let content = hasher.finish128().as_bytes();
        Origin { place, paths: read.into_iter().map(|(path, _)| path).collect(), content }
    }
}
