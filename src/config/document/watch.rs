//! Watches the files of a configuration for changes.
//!
//! Directories are watched instead of files, because editors that save by renaming, and Kubernetes, which swaps the
//! symbolic link `..data` of a mounted volume, replace the file.
//!
//! ```text
//!   /etc/tollgate/app.toml -> ..data/app.toml          watched: app.toml and ..data in /etc/tollgate,
//!   /etc/tollgate/..data   -> ..2026_11_21             app.toml in /etc/tollgate/..2026_11_21, and the names
//!                                                      of these directories in their parents
//! ```
//!
//! A swap changes the directories to watch. So every reading begins with a new watcher, which notices all later
//! changes.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, timeout_at};

use super::files::has_config_extension;
use super::origin::Origin;

/// Events become one change after this time without another event. A swap of a volume takes a few milliseconds.
const QUIET_PERIOD: Duration = Duration::from_millis(100);

/// The maximum wait for the quiet period, and for the end of a write.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// The maximum number of symbolic links in a path, as in Linux.
const MAX_SYMLINKS: usize = 40;

/// Watches the files of a configuration.
#[derive(Debug)]
pub struct ConfigWatcher {
    events: UnboundedReceiver<FileEvent>,
    /// `QUIET_PERIOD`; longer in tests, whose own writes may be slow.
    quiet_period: Duration,
    /// Ends its thread when dropped.
    _watcher: RecommendedWatcher,
}

/// An event of a watched file or directory.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FileEvent {
    /// It was created, removed or replaced.
    Changed,
    /// Part of its content was written.
    Writing(PathBuf),
    /// It was closed after writing.
    Written(PathBuf),
}

impl ConfigWatcher {
    /// Starts to watch the paths of an origin.
    ///
    /// # Errors
    ///
    /// The system has no more watches, or cannot watch one of the directories.
    pub fn over(origin: &Origin) -> notify::Result<Self> {
        let names = WatchedNames::of(origin);
        let directories: Vec<PathBuf> = names.0.keys().cloned().collect();
        let (sender, events) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // A lost event may have been a change. Sending fails only if this watcher was dropped.
            match event {
                Ok(event) => names.events_of(&event).into_iter().for_each(|event| drop(sender.send(event))),
                Err(_) => drop(sender.send(FileEvent::Changed)),
            }
        })?;
        for directory in directories {
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                // Parents may not be readable, and a directory may just have been removed.
                Err(error) if !is_inaccessible(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(Self { events, quiet_period: QUIET_PERIOD, _watcher: watcher })
    }

    /// Waits for the next change. It is complete when no file is being written and no event occurred for
    /// `QUIET_PERIOD`, or at the latest after `MAX_WAIT`.
    pub async fn changed(&mut self) {
        let mut writing = BTreeSet::new();
        self.next_event(&mut writing).await;
        let deadline = Instant::now() + MAX_WAIT;
        loop {
            let quiet_at = if writing.is_empty() { Instant::now() + self.quiet_period } else { deadline };
            if timeout_at(quiet_at.min(deadline), self.next_event(&mut writing)).await.is_err() {
                return;
            }
        }
    }

    async fn next_event(&mut self, writing: &mut BTreeSet<PathBuf>) {
        match self.events.recv().await {
            Some(FileEvent::Changed) => {}
            Some(FileEvent::Writing(path)) => drop(writing.insert(path)),
            Some(FileEvent::Written(path)) => drop(writing.remove(&path)),
            // The watcher's thread has ended, so no event will come.
            None => std::future::pending().await,
        }
    }
}

/// Whether a directory does not exist or is not readable.
fn is_inaccessible(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied)
        }
        _ => false,
    }
}

/// The watched names, by directory.
#[derive(Debug, Default)]
struct WatchedNames(BTreeMap<PathBuf, WatchedDirectory>);

#[derive(Debug, Default)]
struct WatchedDirectory {
    names: BTreeSet<OsString>,
    /// Whether to watch all configuration files, including new ones.
    all_configs: bool,
}

impl WatchedNames {
    fn of(origin: &Origin) -> Self {
        let mut names = Self::default();
        for path in origin.paths() {
            let real = names.add(path);
            if Some(path) == origin.config_path() && real.is_dir() {
                names.0.entry(real).or_default().all_configs = true;
            }
        }
        names
    }

    /// Adds every name in a path and in the targets of its symbolic links. Returns the resolved path.
    fn add(&mut self, path: &Path) -> PathBuf {
        let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
        let mut real = PathBuf::new();
        let mut links = 0;
        let mut rest: VecDeque<OsString> = path.components().map(|part| part.as_os_str().to_owned()).collect();
        while let Some(part) = rest.pop_front() {
            match Path::new(&part).components().next() {
                Some(Component::Normal(name)) => {
                    self.0.entry(real.clone()).or_default().names.insert(name.to_owned());
                    real.push(name);
                    match std::fs::read_link(&real) {
                        Ok(target) if links < MAX_SYMLINKS => {
                            links += 1;
                            real.pop();
                            let parts = target.components().map(|part| part.as_os_str().to_owned());
                            parts.rev().for_each(|part| rest.push_front(part));
                        }
                        // Not a symbolic link, or it does not exist yet.
                        Ok(_) | Err(_) => {}
                    }
                }
                Some(Component::ParentDir) => drop(real.pop()),
                Some(root @ (Component::RootDir | Component::Prefix(_))) => real = PathBuf::from(root.as_os_str()),
                Some(Component::CurDir) | None => {}
            }
        }
        real
    }

    /// Converts an event, for the watched names in it.
    fn events_of(&self, event: &Event) -> Vec<FileEvent> {
        if event.need_rescan() {
            return vec![FileEvent::Changed];
        }
        let convert: fn(&Path) -> FileEvent = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => |path| FileEvent::Written(path.to_owned()),
            // tollgate itself reads the files.
            EventKind::Access(_) => return Vec::new(),
            EventKind::Modify(ModifyKind::Data(_)) => |path| FileEvent::Writing(path.to_owned()),
            _ => |_| FileEvent::Changed,
        };
        event.paths.iter().filter(|path| self.is_watched(path)).map(|path| convert(path)).collect()
    }

    fn is_watched(&self, path: &Path) -> bool {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return false };
        self.0.get(directory).is_some_and(|watched| watched.includes(name))
    }
}

impl WatchedDirectory {
    fn includes(&self, name: &OsStr) -> bool {
        self.names.contains(name) || self.all_configs && has_config_extension(Path::new(name))
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;
    use tokio::time::timeout;

    use super::*;

    /// Much longer than the quiet period.
    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    fn directory() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("a file in the test's directory");
    }

    fn origin(path: &Path) -> Origin {
        let (origin, config) = Origin::read(Some(path));
        config.unwrap_or_else(|errors| panic!("{errors}"));
        origin
    }

    fn watch(origin: &Origin) -> ConfigWatcher {
        let watch = ConfigWatcher::over(origin).expect("the system watches");
        ConfigWatcher { quiet_period: 5 * QUIET_PERIOD, ..watch }
    }

    async fn changed(watch: &mut ConfigWatcher) {
        timeout(TEST_TIMEOUT, watch.changed()).await.expect("the change is noticed");
    }

    /// Whether no events are left, so that all of them were one change.
    fn is_quiet(watch: &ConfigWatcher) -> bool {
        watch.events.is_empty()
    }

    /// Creates a volume as Kubernetes mounts it, with a first version of its files.
    fn volume(directory: &Path, name: &str) {
        mount(directory, "..first", &[(name, "")]);
        symlink(Path::new("..data").join(name), directory.join(name)).expect("a link");
    }

    /// Replaces the version of a volume, as the kubelet does.
    fn mount(directory: &Path, version: &str, files: &[(&str, &str)]) {
        fs::create_dir(directory.join(version)).expect("a directory");
        files.iter().for_each(|(name, text)| write(&directory.join(version).join(name), text));
        let before = fs::read_link(directory.join("..data"));
        symlink(version, directory.join("..data_tmp")).expect("a link");
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("renamed");
        if let Ok(before) = before {
            fs::remove_dir_all(directory.join(before)).expect("removed");
        }
    }

    #[tokio::test]
    async fn a_file_that_is_written_or_replaced_is_one_change() {
        let directory = directory();
        let path = directory.path().join("tollgate.toml");
        write(&path, "");
        let mut watch = watch(&origin(&path));
        write(&path, "# written");
        changed(&mut watch).await;
        assert!(is_quiet(&watch));
        write(&directory.path().join(".tollgate.toml.swp"), "# an editor's own");
        fs::rename(directory.path().join(".tollgate.toml.swp"), &path).expect("renamed");
        changed(&mut watch).await;
        assert!(is_quiet(&watch));
        fs::remove_file(&path).expect("removed");
        changed(&mut watch).await;
        write(&path, "# here again");
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn a_swap_of_a_kubernetes_volume_is_one_change_each_time() {
        let directory = directory();
        volume(directory.path(), "tollgate.toml");
        let path = directory.path().join("tollgate.toml");
        for version in ["..second", "..third", "..fourth"] {
            let mut watch = watch(&origin(&path));
            mount(directory.path(), version, &[("tollgate.toml", "# another")]);
            changed(&mut watch).await;
            assert!(is_quiet(&watch));
        }
    }

    #[tokio::test]
    async fn a_directory_is_watched_for_files_that_come_and_go() {
        let directory = directory();
        write(&directory.path().join("a.toml"), "");
        let mut watch = watch(&origin(directory.path()));
        write(&directory.path().join("b.yaml"), "{}");
        changed(&mut watch).await;
        fs::remove_file(directory.path().join("b.yaml")).expect("removed");
        changed(&mut watch).await;
        assert!(is_quiet(&watch));
    }

    #[tokio::test]
    async fn replacing_a_whole_directory_is_a_change() {
        let around = directory();
        let path = around.path().join("conf.d");
        fs::create_dir(&path).expect("a directory");
        write(&path.join("a.toml"), "");
        let mut watch = watch(&origin(&path));
        fs::rename(&path, around.path().join("old")).expect("renamed");
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn a_secret_in_another_mounted_volume_is_watched() {
        let (directory, secrets) = (directory(), directory());
        volume(secrets.path(), "key");
        let path = directory.path().join("tollgate.toml");
        let secret = secrets.path().join("key");
        fs::write(secret, "0123456789abcdef").expect("a file in the test's directory");
        write(&path, &format!("[server]\nsecret = '${{file:{}/key}}'", secrets.path().display()));
        let mut watch = watch(&origin(&path));
        mount(secrets.path(), "..second", &[("key", "fedcba9876543210")]);
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn the_creation_of_a_missing_secret_is_a_change() {
        let directory = directory();
        let path = directory.path().join("tollgate.toml");
        write(&path, "[server]\nsecret = '${file:secrets/key}'");
        let (origin, config) = Origin::read(Some(&path));
        config.expect_err("the secret is missing");
        let mut watch = watch(&origin);
        fs::create_dir(directory.path().join("secrets")).expect("a directory");
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn other_files_and_reads_are_no_change() {
        let directory = directory();
        let path = directory.path().join("tollgate.toml");
        write(&path, "");
        let origin = origin(&path);
        let mut watch = watch(&origin);
        write(&directory.path().join("kept.snapshot"), "counters");
        drop(origin.read_again());
        fs::remove_file(&path).expect("removed");
        // Events come in order.
        let first = timeout(TEST_TIMEOUT, watch.events.recv()).await.expect("the removal is noticed");
        assert_eq!(first, Some(FileEvent::Changed));
        assert!(is_quiet(&watch));
    }

    #[tokio::test]
    async fn a_change_waits_until_a_file_is_completely_written() {
        let directory = directory();
        let path = directory.path().join("tollgate.toml");
        write(&path, "");
        let mut watch = watch(&origin(&path));
        let mut file = File::create(&path).expect("it can be written");
        file.write_all(b"# the first half").expect("written");
        let event = watch.events.recv().await;
        assert_eq!(event, Some(FileEvent::Writing(path.clone())));
        file.write_all(b"# and more").expect("written");
        assert!(timeout(3 * watch.quiet_period, watch.changed()).await.is_err(), "the file is still open");
        file.write_all(b"# and the rest").expect("written");
        drop(file);
        changed(&mut watch).await;
        assert!(is_quiet(&watch));
    }

    #[test]
    fn a_cycle_of_symbolic_links_ends() {
        let directory = directory();
        symlink("b", directory.path().join("a")).expect("a link");
        symlink("a", directory.path().join("b")).expect("a link");
        let mut names = WatchedNames::default();
        names.add(&directory.path().join("a"));
        assert!(names.0[&directory.path().canonicalize().expect("it is there")].names.len() == 2);
    }
}
