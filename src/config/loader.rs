//! Reads a whole configuration: finds the files, decodes them and builds what the program runs on.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::build::{limiters, rules, server, stores};
use super::configuration::Config;
use super::document::disk::Disk;
use super::document::files::{self, SourceText};
use super::document::origin::Origin;
use super::document::problem::{Errors, Problems};
use super::schema;
use super::schema::decode::{Field, field};
use crate::settings::Listen;

impl Config {
    /// Reads the configuration at `path`, or else the one that `TOLLGATE_CONFIG` names, or else the first of
    /// [`search_paths`](super::search_paths) that exists. If there is none, everything has its default, there are no
    /// rules, and the gRPC and HTTP ports listen on loopback only.
    ///
    /// # Errors
    ///
    /// A path that is named does not exist, or the files are invalid: all their problems.
    pub fn load(path: Option<&Path>) -> Result<Self, Errors> {
        Origin::read(path).1
    }

    /// The configuration when there is no file.
    fn without_files() -> Result<Self, Errors> {
        let mut config = Self::read(&[], &|_| None)?;
        for port in [&mut config.server.grpc, &mut config.server.http] {
            if let Listen::Tcp(address) = port {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
            }
        }
        Ok(config)
    }

    /// Reads the texts of several files as one configuration, expanding `variables` in them.
    ///
    /// # Errors
    ///
    /// All problems of the texts.
    ///
    /// ```
    /// use tollgate::config::{Config, SourceText};
    ///
    /// let text = "[limiters.login]\nalgorithm = 'sliding_window'\nlimit = 5\nwindow = '0s'\n";
    /// let source = SourceText { name: "tollgate.toml".to_owned(), text: text.to_owned() };
    /// let errors = Config::read(&[source], &|_| None).unwrap_err();
    /// assert_eq!(errors.to_string(), "tollgate.toml:4: limiters.login.window is \"0s\", expected more than zero");
    /// ```
    pub fn read(sources: &[SourceText], variables: &dyn Fn(&str) -> Option<String>) -> Result<Self, Errors> {
        compose(sources, variables, &Disk::default())
    }
}

impl Origin {
    /// Reads the configuration at `path`, or else the one that [`Config::load`] finds.
    pub fn read(path: Option<&Path>) -> (Self, Result<Config, Errors>) {
        match files::find(path, &variable) {
            Ok(Some(place)) => Self::read_at(place, false),
            Ok(None) => (Disk::default().origin(None), Config::without_files()),
            Err(errors) => (Disk::default().origin(None), Err(errors)),
        }
    }

    /// Reads the same file or directory again; does not search. An empty file is an error this time: it is about to be
    /// written, and without its rules every request would pass.
    pub fn read_again(&self) -> (Self, Result<Config, Errors>) {
        match &self.place {
            Some(place) => Self::read_at(place.clone(), true),
            None => (self.clone(), Config::without_files()),
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
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn compose(sources: &[SourceText], variables: &dyn Fn(&str) -> Option<String>, disk: &Disk) -> Result<Config, Errors> {
    let files: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
    let mut problems = Problems::of(files.clone());
    let tree = files::tree(sources, variables, disk, &mut problems);
    let mut config = match field::<schema::File>(&tree, String::new(), &mut problems) {
        Field::Given(file) => build(&file, &mut problems),
        Field::Absent | Field::Refused => Config::default(),
    };
    config.warnings = problems.finish()?;
    config.files = files;
    Ok(config)
}

fn build(file: &schema::File, problems: &mut Problems) -> Config {
    let stores = stores::stores(file, problems);
    let names: Vec<String> = stores.iter().map(|store| store.name.clone()).collect();
    let limiters = limiters::limiters(file, &names, problems);
    let settings = server::server(file, problems);
    let mut book = server::book(file, problems);
    book.stores = names;
    (book.domains, book.rules) = rules::rules(file, &limiters, &settings, problems);
    book.limiters = limiters.into_built();
    let entries = rules::entries(file);
    Config { server: settings, stores, book, entries, ..Config::default() }
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
