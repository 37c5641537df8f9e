//! Hears when what a configuration was read from may have changed.
//!
//! Directories are watched, never files: an editor that saves by renaming, and Kubernetes, which swaps the symbolic
//! link `..data` of a mounted volume, put another file in the place of the one that was read.
//!
//! ```text
//!   /etc/tollgate/app.toml -> ..data/app.toml          watched: app.toml and ..data in /etc/tollgate,
//!   /etc/tollgate/..data   -> ..2026_11_21             app.toml in /etc/tollgate/..2026_11_21, and the names
//!                                                      of these directories in those that they lie in
//! ```
//!
//! Which directories these are changes with every swap, so a watch is made anew for every reading, before it: what
//! changes from then on is heard.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc::{self, UnboundedReceiver};
use tokio::time::{Instant, timeout_at};

use super::files::has_ending;
use super::origin::Origin;

/// How long nothing must happen before what happened is one change. A swap of a volume takes a few milliseconds.
const QUIET_PERIOD: Duration = Duration::from_millis(100);

/// The longest that a change waits for quiet_period, or for a file that is being written to be closed.
const MAX_WAIT: Duration = Duration::from_secs(5);

/// As many symbolic links as Linux follows on the way to a file.
const MAX_SYMLINKS: usize = 40;

/// A watch over what a configuration was read from.
#[derive(Debug)]
pub struct ConfigWatcher {
    events: UnboundedReceiver<FileEvent>,
    /// [`QUIET_PERIOD`], and longer in tests, whose own writing may be held up.
    quiet_period: Duration,
    /// Ends its thread when dropped.
    _watcher: RecommendedWatcher,
}

/// What happened to a file or directory that matters.
#[derive(Clone, Debug, PartialEq, Eq)]
enum FileEvent {
    /// It is there, gone, or another one.
    Changed,
    /// Some of its content was written.
    Writing(PathBuf),
    /// It was closed after that.
    Written(PathBuf),
}

impl ConfigWatcher {
    /// Watches from now on.
    ///
    /// # Errors
    ///
    /// The system gives no more watches, or a directory that something was read from cannot be watched.
    pub fn over(origin: &Origin) -> notify::Result<Self> {
        let names = WatchedNames::of(origin);
        let directories: Vec<PathBuf> = names.0.keys().cloned().collect();
        let (sender, events) = mpsc::unbounded_channel();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // An event that was lost may have been any: reading again finds out. Nobody listens to a dropped watch.
            match event {
                Ok(event) => names.events_of(&event).into_iter().for_each(|event| drop(sender.send(event))),
                Err(_) => drop(sender.send(FileEvent::Changed)),
            }
        })?;
        for directory in directories {
            match watcher.watch(&directory, RecursiveMode::NonRecursive) {
                // What is above a directory, or was there a moment ago, is watched where that is possible.
                Err(error) if !is_refused(&error) => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(Self { events, quiet_period: QUIET_PERIOD, _watcher: watcher })
    }

    /// Waits for the next change: from the first that happened until nothing happens and no file is half written, or
    /// for five seconds.
    pub async fn changed(&mut self) {
        let mut writing = BTreeSet::new();
        self.next_event(&mut writing).await;
        let latest = Instant::now() + MAX_WAIT;
        loop {
            let quiet_period = if writing.is_empty() { Instant::now() + self.quiet_period } else { latest };
            if timeout_at(quiet_period.min(latest), self.next_event(&mut writing)).await.is_err() {
                return;
            }
        }
    }

    async fn next_event(&mut self, writing: &mut BTreeSet<PathBuf>) {
        match self.events.recv().await {
            Some(FileEvent::Changed) => {}
            Some(FileEvent::Writing(path)) => drop(writing.insert(path)),
            Some(FileEvent::Written(path)) => drop(writing.remove(&path)),
            // The watcher's thread has ended, so nothing will be heard.
            None => std::future::pending().await,
        }
    }
}

/// Whether a directory cannot be watched by anybody in our place: it is gone, or not for us to see.
fn is_refused(error: &notify::Error) -> bool {
    match &error.kind {
        notify::ErrorKind::PathNotFound => true,
        notify::ErrorKind::Io(error) => {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied)
        }
        _ => false,
    }
}

/// The names that matter, by the directory they are in.
#[derive(Debug, Default)]
struct WatchedNames(BTreeMap<PathBuf, WatchedDirectory>);

#[derive(Debug, Default)]
struct WatchedDirectory {
    names: BTreeSet<OsString>,
    /// Every file that has the ending of one matters, whether it was there or not.
    configurations: bool,
}

impl WatchedNames {
    fn of(origin: &Origin) -> Self {
        let mut names = Self::default();
        for path in origin.paths() {
            let real = names.follow(path);
            if Some(path) == origin.place() && real.is_dir() {
                names.0.entry(real).or_default().configurations = true;
            }
        }
        names
    }

    /// Adds each name on the way to a path, through symbolic links, and says where the way ends.
    fn follow(&mut self, path: &Path) -> PathBuf {
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
                        // No link, or nothing there yet.
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

    /// What an event says about the names that matter.
    fn events_of(&self, event: &Event) -> Vec<FileEvent> {
        if event.need_rescan() {
            return vec![FileEvent::Changed];
        }
        let of: fn(&Path) -> FileEvent = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => |path| FileEvent::Written(path.to_owned()),
            // Reading is what we do ourselves.
            EventKind::Access(_) => return Vec::new(),
            EventKind::Modify(ModifyKind::Data(_)) => |path| FileEvent::Writing(path.to_owned()),
            _ => |_| FileEvent::Changed,
        };
        event.paths.iter().filter(|path| self.is_watched(path)).map(|path| of(path)).collect()
    }

    fn is_watched(&self, path: &Path) -> bool {
        let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else { return false };
        self.0.get(directory).is_some_and(|watched| watched.includes(name))
    }
}

impl WatchedDirectory {
    fn includes(&self, name: &OsStr) -> bool {
        self.names.contains(name) || self.configurations && has_ending(Path::new(name))
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

    /// Longer than quiet_period takes, many times.
    const TEST_TIMEOUT: Duration = Duration::from_secs(20);

    fn directory() -> TempDir {
        tempfile::tempdir().expect("a directory")
    }

    fn write(path: &Path, text: &str) {
        fs::write(path, text).expect("a file in the test's directory");
    }

    fn origin(place: &Path) -> Origin {
        let (origin, config) = Origin::read(Some(place));
        config.unwrap_or_else(|errors| panic!("{errors}"));
        origin
    }

    fn watch(origin: &Origin) -> ConfigWatcher {
        let watch = ConfigWatcher::over(origin).expect("the system watches");
        ConfigWatcher { quiet_period: 5 * QUIET_PERIOD, ..watch }
    }

    async fn changed(watch: &mut ConfigWatcher) {
        timeout(TEST_TIMEOUT, watch.changed()).await.expect("the change is heard");
    }

    /// Nothing is left to be heard: what happened was one change.
    fn is_quiet(watch: &ConfigWatcher) -> bool {
        watch.events.is_empty()
    }

    /// A volume as Kubernetes mounts it, with a first version of its files.
    fn volume(directory: &Path, name: &str) {
        mount(directory, "..first", &[(name, "")]);
        symlink(Path::new("..data").join(name), directory.join(name)).expect("a link");
    }

    /// Puts another version in the place of the one before, as the kubelet does.
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
        let place = directory.path().join("tollgate.toml");
        write(&place, "");
        let mut watch = watch(&origin(&place));
        write(&place, "# written");
        changed(&mut watch).await;
        assert!(is_quiet(&watch));
        write(&directory.path().join(".tollgate.toml.swp"), "# an editor's own");
        fs::rename(directory.path().join(".tollgate.toml.swp"), &place).expect("renamed");
        changed(&mut watch).await;
        assert!(is_quiet(&watch));
        fs::remove_file(&place).expect("removed");
        changed(&mut watch).await;
        write(&place, "# here again");
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn a_swap_of_a_kubernetes_volume_is_one_change_each_time() {
        let directory = directory();
        volume(directory.path(), "tollgate.toml");
        let place = directory.path().join("tollgate.toml");
        for version in ["..second", "..third", "..fourth"] {
            let mut watch = watch(&origin(&place));
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
    async fn a_directory_that_is_replaced_whole_is_a_change() {
        let around = directory();
        let place = around.path().join("conf.d");
        fs::create_dir(&place).expect("a directory");
        write(&place.join("a.toml"), "");
        let mut watch = watch(&origin(&place));
        fs::rename(&place, around.path().join("old")).expect("renamed");
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn a_secret_in_another_mounted_volume_is_watched() {
        let (directory, secrets) = (directory(), directory());
        volume(secrets.path(), "key");
        let place = directory.path().join("tollgate.toml");
        let secret = secrets.path().join("key");
        fs::write(secret, "0123456789abcdef").expect("a file in the test's directory");
        write(&place, &format!("[server]\nsecret = '${{file:{}/key}}'", secrets.path().display()));
        let mut watch = watch(&origin(&place));
        mount(secrets.path(), "..second", &[("key", "fedcba9876543210")]);
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn a_secret_that_is_not_there_yet_is_waited_for() {
        let directory = directory();
        let place = directory.path().join("tollgate.toml");
        write(&place, "[server]\nsecret = '${file:secrets/key}'");
        let (origin, config) = Origin::read(Some(&place));
        config.expect_err("the secret is missing");
        let mut watch = watch(&origin);
        fs::create_dir(directory.path().join("secrets")).expect("a directory");
        changed(&mut watch).await;
    }

    #[tokio::test]
    async fn what_others_write_beside_it_and_our_own_reading_is_not_heard() {
        let directory = directory();
        let place = directory.path().join("tollgate.toml");
        write(&place, "");
        let origin = origin(&place);
        let mut watch = watch(&origin);
        write(&directory.path().join("kept.snapshot"), "counters");
        drop(origin.read_again());
        fs::remove_file(&place).expect("removed");
        // Events come in order.
        let first = timeout(TEST_TIMEOUT, watch.events.recv()).await.expect("the removal is heard");
        assert_eq!(first, Some(FileEvent::Changed));
        assert!(is_quiet(&watch));
    }

    #[tokio::test]
    async fn a_file_that_is_half_written_is_waited_for() {
        let directory = directory();
        let place = directory.path().join("tollgate.toml");
        write(&place, "");
        let mut watch = watch(&origin(&place));
        let mut file = File::create(&place).expect("it can be written");
        file.write_all(b"# the first half").expect("written");
        let heard = watch.events.recv().await;
        assert_eq!(heard, Some(FileEvent::Writing(place.clone())));
        file.write_all(b"# and more").expect("written");
        assert!(timeout(3 * watch.quiet_period, watch.changed()).await.is_err(), "the file is still open");
        file.write_all(b"# and the rest").expect("written");
        drop(file);
        changed(&mut watch).await;
        assert!(is_quiet(&watch));
    }

    #[test]
    fn links_that_go_round_in_a_ring_end_the_way() {
        let directory = directory();
        symlink("b", directory.path().join("a")).expect("a link");
        symlink("a", directory.path().join("b")).expect("a link");
        let mut names = WatchedNames::default();
        names.follow(&directory.path().join("a"));
        assert!(names.0[&directory.path().canonicalize().expect("it is there")].names.len() == 2);
    }
}
