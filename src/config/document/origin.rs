//! The files that a configuration was read from, and a hash of their content.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Where a configuration was read from. Two are equal when everything that was read is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file or directory. None when none was named and none was found.
    pub(in crate::config) place: Option<PathBuf>,
    pub(in crate::config) paths: BTreeSet<PathBuf>,
    pub(in crate::config) content: [u8; 16],
}

impl Origin {
    /// The file or directory that was named or found.
    pub fn place(&self) -> Option<&Path> {
        self.place.as_deref()
    }

    /// Every path that was read or looked for: the file or directory, the files in it, and those that `${file:...}`
    /// names. Some may not exist.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(PathBuf::as_path)
    }
}
