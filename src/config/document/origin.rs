//! What a configuration was read from: every file and directory that it depends on, and what they held.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::File;
use std::hash::Hasher;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use siphasher::sip128::{Hasher128, SipHasher24};

use super::files;
use super::problem::Errors;
use crate::config::{Config, compose};

/// Where a configuration came from. Two are equal when everything that was read is the same.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// The file or directory. None when none was named and none was found.
    place: Option<PathBuf>,
    paths: BTreeSet<PathBuf>,
    content: [u8; 16],
}

impl Origin {
    /// Reads the configuration at `path`, or else the one that [`Config::load`] finds.
    pub fn read(path: Option<&Path>) -> (Self, Result<Config, Errors>) {
        match files::find(path, &variable) {
            Ok(Some(place)) => Self::read_at(place, false),
            Ok(None) => (Disk::default().origin(None), Config::of_nothing()),
            Err(errors) => (Disk::default().origin(None), Err(errors)),
        }
    }

    /// Reads the same place again, whatever else would be found by now. A file that holds nothing at all is an error this
    /// time: somebody is about to write it, and without its rules requests would pass.
    pub fn read_again(&self) -> (Self, Result<Config, Errors>) {
        match &self.place {
            Some(place) => Self::read_at(place.clone(), true),
            None => (self.clone(), Config::of_nothing()),
        }
    }

    fn read_at(place: PathBuf, again: bool) -> (Self, Result<Config, Errors>) {
        let disk = Disk::default();
        let config = files::read(&place, &disk).and_then(|sources| {
            if let Some(empty) = sources.iter().find(|source| again && source.text.trim().is_empty()) {
                return Err(Errors::one(empty.name.clone(), "is empty, expected a configuration, or no such file"));
            }
            compose(&sources, &variable, &disk)
        });
        (disk.origin(Some(place)), config)
    }

    /// The file or directory that was named or found.
    pub fn place(&self) -> Option<&Path> {
        self.place.as_deref()
    }

    /// Everything that was read or asked for: the place, the files in it, and those that `${file:...}` names. Some may
    /// not be there.
    pub fn paths(&self) -> impl Iterator<Item = &Path> {
        self.paths.iter().map(PathBuf::as_path)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// The file system, and what was read from it.
#[derive(Debug, Default)]
pub(in crate::config) struct Disk {
    seen: RefCell<Vec<(PathBuf, [u8; 16])>>,
}

impl Disk {
    /// What a file holds, up to a byte more than `most`.
    pub fn read(&self, path: &Path, most: u64) -> io::Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = File::open(path).and_then(|file| file.take(most.saturating_add(1)).read_to_end(&mut content));
        let read = read.map(|_| content);
        self.saw(path, read.as_deref().map_err(ToString::to_string));
        read
    }

    /// A path whose own content is no part of the configuration: a directory.
    pub fn looked_at(&self, path: &Path) {
        self.saw(path, Ok(b""));
    }

    fn saw(&self, path: &Path, read: Result<&[u8], String>) {
        // Contents may be secrets: what is kept only tells whether they changed.
        let mut hasher = SipHasher24::new();
        match read {
            Ok(content) => hasher.write(content),
            Err(reason) => hasher.write(format!("not read: {reason}").as_bytes()),
        }
        self.seen.borrow_mut().push((path.to_owned(), hasher.finish128().as_bytes()));
    }

    fn origin(self, place: Option<PathBuf>) -> Origin {
        let seen = self.seen.into_inner();
        let mut hasher = SipHasher24::new();
        for (path, content) in &seen {
            hasher.write(path.as_os_str().as_encoded_bytes());
            hasher.write_u8(0);
            hasher.write(content);
        }
        let content = hasher.finish128().as_bytes();
        Origin { place, paths: seen.into_iter().map(|(path, _)| path).collect(), content }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_another_when_a_file_a_secret_or_the_list_of_files_changes_and_not_when_one_is_touched() {
        let directory = tempfile::tempdir().expect("a directory");
        let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).expect("written");
        write("a.toml", "[server]\nsecret = '${file:key}'");
        write("key", "0123456789abcdef");
        let (mut last, config) = Origin::read(Some(directory.path()));
        config.expect("nothing is wrong");
        let mut again = |expected: bool| {
            let (origin, config) = last.read_again();
            config.expect("nothing is wrong");
            assert_eq!(origin == last, expected);
            last = origin;
        };
        again(true);
        write("key", "0123456789abcdef");
        again(true);
        write("key", "another that is long");
        again(false);
        write("a.toml", "[server]\nsecret = '${file:key}' # the same");
        again(false);
        write("b.toml", "# to be written");
        again(false);
        write("b.json", "");
        again(true);
    }

    #[test]
    fn an_origin_names_what_could_not_be_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("tollgate.toml");
        std::fs::write(&place, "[server]\nsecret = '${file:key}'").expect("written");
        let (origin, config) = Origin::read(Some(&place));
        config.expect_err("the secret is missing");
        assert_eq!(origin.paths().collect::<Vec<_>>(), [directory.path().join("key"), place]);
    }

    #[test]
    fn files_that_hold_nothing_are_taken_first_and_not_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let place = directory.path().join("tollgate.toml");
        std::fs::write(&place, " \n").expect("written");
        let (origin, config) = Origin::read(Some(&place));
        config.expect("there are no rules yet");
        let refused = origin.read_again().1.expect_err("the rest is about to be written");
        assert_eq!(
            refused.to_string(),
            format!("{}: is empty, expected a configuration, or no such file", place.display())
        );
    }
}
