//! A process that ends with its test.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;
use std::sync::mpsc::{self, Sender};
use std::{io, mem, thread};

use super::{installed, until};

/// A command whose process gets this signal if the test process dies without dropping it.
pub fn bound(program: &Path, signal: &str) -> Command {
    match installed::on_path("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", signal, "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Starts a process from a thread that lives as long as the test process: the kernel counts the starting thread as the
/// parent, not its process (prctl(2), PR_SET_PDEATHSIG), and a test's thread ends before servers that tests share.
fn spawn(command: Command) -> io::Result<Child> {
    type Birth = (Command, Sender<io::Result<Child>>);
    static NURSERY: LazyLock<Sender<Birth>> = LazyLock::new(|| {
        let (nursery, births) = mpsc::channel::<Birth>();
        thread::spawn(move || {
            for (mut command, parent) in births {
                // The caller waits for the answer.
                let _ = parent.send(command.spawn());
            }
        });
        nursery
    });
    let (parent, child) = mpsc::channel();
    NURSERY.send((command, parent)).expect("the nursery stays");
    child.recv().expect("the nursery answers")
}

/// A running process with its output. It is killed when this is dropped.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a process. Its output goes to a file in `directory`.
    pub fn start(name: &'static str, command: &mut Command, directory: &Path) -> Self {
        let log = directory.join(format!("{name}.log"));
        let file = File::create(&log).expect("a file in the test's directory");
        let error = file.try_clone().expect("a second handle of a file");
        command.stdin(Stdio::null()).stdout(file).stderr(error);
        let child = spawn(mem::replace(command, Command::new("started")))
            .unwrap_or_else(|error| panic!("{name} did not start: {error}"));
        Self { name, child, log }
    }

    /// Waits until it is ready.
    ///
    /// # Panics
    ///
    /// If it ends or does not become ready in time, with its output.
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

    /// Kills it, as a crash does, and waits until it is gone. Does nothing if it has ended already.
    pub fn kill(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Waits until it has ended, and returns its exit code.
    pub fn ended(&mut self) -> Option<i32> {
        let mut code = None;
        until(self.name, || {
            let status = self.child.try_wait().expect("a child's state");
            code = status.and_then(|status| status.code());
            status.is_some()
        });
        code
    }

    /// Its output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
        if thread::panicking() {
            eprintln!("--- {} wrote:\n{}", self.name, self.log());
        }
    }
}
