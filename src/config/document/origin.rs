//! The files of a configuration, and a hash of their content.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The files that a configuration was read from. Two origins are equal if their paths and contents are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file or directory. None if none was named and none was found.
    pub(in crate::config) config_path: Option<PathBuf>,
    pub(in crate::config) paths: BTreeSet<PathBuf>,
    pub(in crate::config) content_hash: [u8; 16],
}

impl Origin {
    /// The file or directory that was named or found.
    pub fn config_path(&self) -> Option<&Path> {
        self.config_path.as_deref()
    }

    /// All paths of the configuration: the file or directory, the files in it, and the targets of `${file:...}`. Some
    /// may not exist.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(PathBuf::as_path)
    }
}
