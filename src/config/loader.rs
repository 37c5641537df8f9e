//! Reads a configuration: finds the files, decodes them and builds settings, stores and rules.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use super::build::{limiters, lists, rules, server, stores, tables};
use super::configuration::{Config, NamedTable};
use super::document::disk::Disk;
use super::document::files::{self, SourceText};
use super::document::origin::Origin;
use super::document::problem::{Errors, Problems};
use super::document::warning::WarningKind;
use super::lint;
use super::rate_sync;
use super::schema;
use super::schema::decode::{Field, field};
use super::schema::values::Item;
use crate::settings::Listen;

impl Config {
    /// Reads the configuration at `path`, else the one that `TOLLGATE_CONFIG` names, else the first of
    /// [`search_paths`](super::search_paths) that exists. If there is none, every setting has its default, there are no
    /// rules, and the gRPC and HTTP ports listen on loopback only.
    ///
    /// # Errors
    ///
    /// The named path does not exist, or the files are invalid: all their errors.
    pub fn load(path: Option<&Path>) -> Result<Self, Errors> {
        Origin::read(path).1
    }

    /// The configuration if there is no file.
    fn without_files() -> Result<Self, Errors> {
        let mut config = Self::read(&[], &|_| None)?;
        for port in [&mut config.server.grpc, &mut config.server.http] {
            if let Listen::Tcp(address) = port {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
            }
        }
        Ok(config)
    }

    /// Reads several texts as one configuration, and expands `variables` in them.
    ///
    /// # Errors
    ///
    /// All errors of the texts.
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
            Ok(Some(path)) => Self::read_at(path, false),
            Ok(None) => (Disk::default().origin(None), Config::without_files()),
            Err(errors) => (Disk::default().origin(None), Err(errors)),
        }
    }

    /// Reads the same file or directory again. Here an empty file is an error: it is probably being written, and
    /// without its rules every request would pass.
    pub fn read_again(&self) -> (Self, Result<Config, Errors>) {
        match &self.config_path {
            Some(path) => Self::read_at(path.clone(), true),
            None => (self.clone(), Config::without_files()),
        }
    }

    fn read_at(path: PathBuf, again: bool) -> (Self, Result<Config, Errors>) {
        let disk = Disk::default();
        let config = files::read(&path, &disk).and_then(|sources| {
            if let Some(empty) = sources.iter().find(|source| again && source.text.trim().is_empty()) {
                return Err(Errors::one(empty.name.clone(), "is empty, expected a configuration"));
            }
            compose(&sources, &variable, &disk)
        });
        (disk.origin(Some(path)), config)
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

fn compose(sources: &[SourceText], variables: &dyn Fn(&str) -> Option<String>, disk: &Disk) -> Result<Config, Errors> {
    let files: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
    let mut problems = Problems::of(files.clone());
    let tree = files::merged_tree(sources, variables, disk, &mut problems);
    let mut config = match field::<schema::File>(&tree, String::new(), &mut problems) {
        Field::Given(file) => build(&file, disk, &mut problems),
        Field::Absent | Field::Invalid => Config::default(),
    };
    config.notes = problems.take_notes();
    config.warnings = problems.finish()?;
    config.files = files;
    Ok(config)
}

/// The file of rate-sync at `path` in our own form, as TOML with comments. It loads to the same limits.
///
/// # Errors
///
/// The file cannot be read, has errors, or is not one of rate-sync.
#[cfg(feature = "server")]
pub fn convert(path: &Path) -> Result<String, Errors> {
    let disk = Disk::default();
    let sources = files::read(path, &disk)?;
    let files: Vec<String> = sources.iter().map(|source| source.name.clone()).collect();
    let mut problems = Problems::of(files.clone());
    let tree = files::merged_tree(&sources, &variable, &disk, &mut problems);
    let file = field::<schema::File>(&tree, String::new(), &mut problems);
    let built = file.get().map(|file| (file, Config { files, ..build(file, &disk, &mut problems) }));
    problems.finish()?;
    match built {
        Some((file, config)) if rate_sync::is_rate_sync(file) => Ok(rate_sync::convert::text(&tree, file, &config)),
        _ => Err(Errors::one(
            path.display().to_string(),
            "is no file of rate-sync, which has no rules, a limiter with rate_per_second, window_seconds or timeout, and \
             none with direct",
        )),
    }
}

fn build(file: &schema::File, disk: &Disk, problems: &mut Problems) -> Config {
    let stores = stores::stores(file, disk, problems);
    let names: Vec<String> = stores.iter().map(|store| store.name.clone()).collect();
    let settings = server::server(file, problems);
    let limiters = limiters::limiters(file, &names, &settings.bounds, problems);
    let mut book = server::book(file, problems);
    book.stores = names;
    book.max_wait = settings.bounds.max_wait;
    let lists = lists::lists(file, disk, problems);
    let tables = tables::tables(file, disk, problems);
    (book.domains, book.rules) = rules::rules(file, &limiters, &lists, &tables, &settings, problems);
    book.tables = tables.finish(problems);
    book.lists = lists.finish(problems);
    (book.limiters, book.values) = limiters.into_built();
    let accepted_warnings = accepted_warnings(file);
    accepted_warnings.iter().for_each(|kind| problems.accept(*kind));
    lint::warn(file, &settings, &book, problems);
    let clear_text_accepted = file.server.get().is_some_and(|server| server.clear_text.get().is_some());
    let list = |item: &Item<schema::ListFile>| {
        Some((item.name.clone(), item.value.as_ref()?.file.get()?.value.clone().into()))
    };
    let lists = file.lists.named().iter().filter_map(list).collect();
    let table = |item: &Item<schema::TableFile>| {
        let written = item.value.as_ref()?;
        Some(NamedTable {
            name: item.name.clone(),
            file: written.file.get()?.value.clone().into(),
            by: written.by.get()?.value.clone(),
            hashed: written.hashed.get().is_some(),
        })
    };
    let config = Config {
        tables: file.tables.named().iter().filter_map(table).collect(),
        server: settings,
        stores,
        book,
        clear_text_accepted,
        accepted_warnings,
        lists,
        ..Config::default()
    };
    if rate_sync::is_rate_sync(file) {
        rate_sync::note(file, &config, problems);
    }
    config
}

/// The kinds of warnings that the files accept, each once.
fn accepted_warnings(file: &schema::File) -> Vec<WarningKind> {
    let accepted = file.check.get().map_or(&[][..], |check| check.accept.items());
    let mut accepted: Vec<WarningKind> = accepted.iter().map(|kind| kind.value).collect();
    accepted.sort_unstable();
    accepted.dedup();
    accepted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_changes_with_the_content_of_a_file_or_secret_and_with_the_list_of_files() {
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
    fn an_origin_includes_files_that_could_not_be_read() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("tollgate.toml");
        std::fs::write(&path, "[server]\nsecret = '${file:key}'").expect("written");
        let (origin, config) = Origin::read(Some(&path));
        config.expect_err("the secret is missing");
        assert_eq!(origin.paths().collect::<Vec<_>>(), [directory.path().join("key"), path]);
    }

    #[test]
    fn an_empty_file_is_accepted_at_the_start_and_refused_by_a_reload() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("tollgate.toml");
        std::fs::write(&path, " \n").expect("written");
        let (origin, config) = Origin::read(Some(&path));
        config.expect("there are no rules yet");
        let refused = origin.read_again().1.expect_err("it is empty");
        assert_eq!(refused.to_string(), format!("{}: is empty, expected a configuration", path.display()));
    }
}
