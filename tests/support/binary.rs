//! The real program serving on free ports, its output, and its command line.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tempfile::TempDir;

/// The path of the program.
const PROGRAM: &str = env!("CARGO_BIN_EXE_tollgate");

/// The timeout of every wait.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

/// The addresses of all doors, with any free port. Precedes the configuration of a test.
pub const DOORS: &str = "[server]\ngrpc = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\nadmin = '127.0.0.1:0'\n";

/// `tollgate serve`, running. It is killed when this is dropped.
pub struct Served {
    child: Child,
    said: Arc<Mutex<String>>,
    readers: Vec<JoinHandle<()>>,
    pub grpc: String,
    pub http: String,
    pub admin: String,
    pub directory: TempDir,
}

impl Served {
    /// Serves a configuration with these environment variables.
    pub fn start(toml: &str, variables: &[(&str, &str)]) -> Self {
        Self::start_program(Path::new(PROGRAM), toml, variables)
    }

    /// Serves a configuration by another version of the program.
    pub fn start_program(program: &Path, toml: &str, variables: &[(&str, &str)]) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        std::fs::write(directory.path().join("tollgate.toml"), toml).expect("a file in the test's directory");
        let mut command = in_directory(program, directory.path());
        command.arg("serve").envs(variables.iter().copied()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let said = Arc::new(Mutex::new(String::new()));
        let (found, addresses) = mpsc::channel();
        let keep = |from: Box<dyn Read + Send>| {
            let (said, found) = (said.clone(), found.clone());
            std::thread::spawn(move || {
                for line in BufReader::new(from).split(b'\n') {
                    let line = String::from_utf8_lossy(&line.expect("it is read")).into_owned();
                    *said.lock() += &format!("{line}\n");
                    if let Some(addresses) = line.strip_prefix("tollgate: gRPC on ") {
                        // Only the first addresses are received.
                        let _ = found.send(addresses.to_owned());
                    }
                }
            })
        };
        let readers = vec![
            keep(Box::new(child.stdout.take().expect("it was piped"))),
            keep(Box::new(child.stderr.take().expect("it was piped"))),
        ];
        let addresses =
            addresses.recv_timeout(WAIT_TIMEOUT).unwrap_or_else(|_| panic!("it never listened:\n{}", said.lock()));
        let (grpc, rest) = addresses.split_once(", HTTP on ").expect("two doors");
        let (http, admin) = rest.split_once(", admin on ").unwrap_or((rest, ""));
        Self { grpc: grpc.to_owned(), http: http.to_owned(), admin: admin.to_owned(), child, said, readers, directory }
    }

    /// Its output so far, both standard output and standard error.
    pub fn said(&self) -> String {
        self.said.lock().clone()
    }

    /// Waits until its output contains a text.
    pub fn until(&self, text: &str) {
        let began = Instant::now();
        while !self.said.lock().contains(text) {
            assert!(began.elapsed() < WAIT_TIMEOUT, "it never said {text:?}:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Waits until it is ready: its stores have answered.
    pub fn ready(self) -> Self {
        let began = Instant::now();
        while !exchange(&self.admin, b"GET /readyz HTTP/1.0\r\n\r\n").contains(" 200 OK\r\n") {
            assert!(began.elapsed() < WAIT_TIMEOUT, "it is never ready:\n{}", self.said());
            std::thread::sleep(Duration::from_millis(5));
        }
        self
    }

    /// The value of a series of its metrics, by name and labels as in the scrape.
    pub fn metric(&self, series: &str) -> f64 {
        let answer = exchange(&self.admin, b"GET /metrics HTTP/1.0\r\n\r\n");
        let value = answer.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        value.unwrap_or_else(|| panic!("no {series} in {answer}")).parse().expect("a number")
    }

    /// Sends it a signal.
    pub fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Stops it, waits until it has stopped, and returns its output.
    pub fn stop(&mut self) -> String {
        self.signal("-TERM");
        self.wait()
    }

    /// Waits until it has stopped, and returns its output.
    pub fn wait(&mut self) -> String {
        assert!(self.child.wait().expect("a child's state").success(), "{}", self.said());
        for reader in self.readers.drain(..) {
            reader.join().expect("it reads to the end");
        }
        self.said()
    }

    /// A command of its command line, in its directory and with its admin port.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = tollgate(self.directory.path());
        command.args(arguments).env("TOLLGATE_ADMIN", &self.admin);
        command
    }

    /// The output of a command that must succeed, standard output first.
    pub fn run(&self, arguments: &[&str]) -> String {
        let output = self.command(arguments).output().expect("the program runs");
        let said = both(&output);
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    }

    /// The standard error of a command that must be refused.
    pub fn complaint(&self, arguments: &[&str]) -> String {
        complaint(&mut self.command(arguments))
    }

    /// The status of a request to the HTTP door with this request line and these headers.
    pub fn ask(&self, line: &str, headers: &str) -> u16 {
        let answer = exchange(&self.http, format!("{line} HTTP/1.0\r\nhost: a\r\n{headers}\r\n").as_bytes());
        answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status")
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        // Both fail only if the process has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The program in a directory, without the caller's environment variables.
pub fn tollgate(directory: &Path) -> Command {
    in_directory(Path::new(PROGRAM), directory)
}

fn in_directory(program: &Path, directory: &Path) -> Command {
    let mut command = Command::new(program);
    command.current_dir(directory).env("COLUMNS", "100").env("USER", "ann");
    let addresses = ["TOLLGATE_ADMIN", "TOLLGATE_ADMIN_TOKEN", "TOLLGATE_API", "TOLLGATE_API_TOKEN"];
    for variable in ["TOLLGATE_CONFIG", "RUST_LOG", "SUDO_USER", "LOGNAME"].into_iter().chain(addresses) {
        command.env_remove(variable);
    }
    command
}

/// The standard error of a command, which must exit with the code of a refusal.
pub fn complaint(command: &mut Command) -> String {
    let output = command.output().expect("the program runs");
    let said = both(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    said
}

/// The standard output of a command, then its standard error.
pub fn both(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Sends bytes and reads until the other side closes.
pub fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).expect("it listens");
    stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a timeout");
    stream.write_all(bytes).expect("it is sent");
    let mut answer = Vec::new();
    // The server may reset the connection on invalid input.
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8_lossy(&answer).into_owned()
}
