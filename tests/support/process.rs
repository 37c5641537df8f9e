//! A process that ends with the test that started it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::until;

/// A running process, what it wrote, and its end when dropped.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts it. What it writes goes to a file in `directory`.
    pub fn start(name: &'static str, command: &mut Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).expect("a file in the test's directory");
        let error = file.try_clone().expect("a second handle of a file");
        let child = command
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(error)
            .spawn()
            .unwrap_or_else(|error| panic!("{name} did not start: {error}"));
        Self { name, child, log }
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    ///
    /// When it ends instead, or never is: with what it wrote.
    pub fn ready(mut self, mut ready: impl FnMut() -> bool) -> Self {
        until(self.name, || {
            if let Some(status) = self.child.try_wait().expect("a child's state") {
                panic!("{} ended with {status}:\n{}", self.name, self.log());
            }
            ready()
        });
        self
    }

    /// Its id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Sends it a signal, such as `-TERM`.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.id().to_string()]).status().expect("kill runs");
        assert!(sent.success(), "{} is not there:\n{}", self.name, self.log());
    }

    /// Waits until it has ended, and says with which code.
    pub fn ended(&mut self) -> Option<i32> {
        let mut code = None;
        until(self.name, || {
            let status = self.child.try_wait().expect("a child's state");
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        code
    }

    /// What it wrote so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Neither fails unless it has ended already, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- {} wrote:\n{}", self.name, self.log());
        }
    }
}
