//! The real program while certificates of its shared store are renewed under load, as cert-manager does: the volume
//! with the files is swapped, and nobody sends a signal.
//!
//! `cargo test --test program rotations -- --nocapture` prints the measurements.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::loaded::{Loaded, REFUSED, TAKEN, limited, write};
use crate::support::processes::redis::Setup;
use crate::support::processes::{Certificates, Postgres, Redis, postgres};

/// How many times each file is renewed.
const ROTATIONS: usize = 5;

/// A server with TLS that requires client certificates.
enum Server {
    Redis(Redis),
    Postgres { server: Postgres, database: String },
}

impl Server {
    fn redis() -> Option<Self> {
        Setup::redis().map(|setup| Self::Redis(setup.tls().start()))
    }

    fn postgres() -> Option<Self> {
        let server = postgres::Setup::new()?.client_certificates().start();
        let database = server.database();
        Some(Self::Postgres { server, database })
    }

    /// The keys of a store on it.
    fn store(&self) -> String {
        let (engine, url) = match self {
            Server::Redis(server) => ("redis", format!("rediss://127.0.0.1:{}", server.tls().0)),
            Server::Postgres { server, database } => ("postgres", server.url(database)),
        };
        format!("engine = '{engine}'\nurl = '{url}'\ntimeout = '2s'\nrequired = true")
    }

    /// Uses the server's files of one authority, and accepts clients of these authorities.
    fn set_tls(&self, files: &Certificates, clients: &[&Path]) {
        match self {
            Server::Redis(server) => server.set_tls(files, clients),
            Server::Postgres { server, .. } => server.set_tls(files, clients),
        }
    }
}

/// A volume as Kubernetes mounts it: links to files in a directory that is replaced as a whole.
struct Volume {
    directory: TempDir,
    version: usize,
}

impl Volume {
    const FILES: [&str; 3] = ["ca.crt", "tls.crt", "tls.key"];

    fn mounted(texts: [&str; 3]) -> Self {
        let mut volume = Self { directory: tempfile::tempdir().expect("a directory"), version: 0 };
        volume.mount(texts);
        for name in Self::FILES {
            symlink(Path::new("..data").join(name), volume.file(name)).expect("a link");
        }
        volume
    }

    fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Replaces the files, all at one moment.
    fn mount(&mut self, texts: [&str; 3]) {
        let before = self.version;
        self.version += 1;
        let of = |version| self.file(&format!("..version_{version}"));
        fs::create_dir(of(self.version)).expect("a directory");
        for (name, text) in Self::FILES.into_iter().zip(texts) {
            write(&of(self.version).join(name), text);
        }
        symlink(of(self.version), self.file("..data_tmp")).expect("a link");
        fs::rename(self.file("..data_tmp"), self.file("..data")).expect("renamed");
        if before > 0 {
            fs::remove_dir_all(of(before)).expect("removed");
        }
    }

    /// The keys of a store that name its files.
    fn keys(&self) -> String {
        let [ca, certificate, key] = Self::FILES.map(|name| self.file(name).display().to_string());
        format!("tls_ca = '{ca}'\ntls_certificate = '{certificate}'\ntls_key = '{key}'")
    }
}

/// An authority, and the texts of its files.
struct Authority {
    _directory: TempDir,
    files: Certificates,
    ca: String,
    client: String,
    client_key: String,
}

impl Authority {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let files = Certificates::make(directory.path());
        // The server may run as another user.
        let open = |path: &Path, mode| {
            fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(mode)).expect("the test's file");
        };
        open(directory.path(), 0o755);
        let read = |path: &Path| fs::read_to_string(path).expect("a file of the test");
        let [ca, client, client_key] = [&files.authority, &files.client, &files.client_key].map(|file| read(file));
        Self { _directory: directory, files, ca, client, client_key }
    }

    fn volume(&self) -> [&str; 3] {
        [&self.ca, &self.client, &self.client_key]
    }
}

/// A program under load on a server, whose files are in a volume.
async fn started(server: &Server, first: &Authority) -> (Loaded, Volume) {
    server.set_tls(&first.files, &[&first.files.authority]);
    let volume = Volume::mounted(first.volume());
    let loaded = Loaded::start(&limited(&format!("{}\n{}", server.store(), volume.keys()))).await;
    loaded.answers_more();
    (loaded, volume)
}

fn is_connected_anew(loaded: &Loaded, times: usize) {
    assert_eq!(loaded.said("new store connected"), 1 + times, "{}", loaded.served.said());
    assert_eq!(loaded.said(REFUSED), 0, "{}", loaded.served.said());
}

/// The authority of the server is replaced: both are trusted, then the server uses the new one, then only that one is
/// trusted.
async fn rotate_authority(what: &str, server: Option<Server>) {
    let Some(server) = server else { return };
    let mut old = Authority::new();
    let client = Authority::new();
    let (loaded, mut volume) = started(&server, &old).await;
    server.set_tls(&old.files, &[&old.files.authority, &client.files.authority]);
    loaded.take_unasked(|| volume.mount([&old.ca, &client.client, &client.client_key]));
    for _ in 0..ROTATIONS {
        let new = Authority::new();
        let both = format!("{}{}", old.ca, new.ca);
        loaded.take_unasked(|| volume.mount([&both, &client.client, &client.client_key]));
        server.set_tls(&new.files, &[&client.files.authority]);
        loaded.take_unasked(|| volume.mount([&new.ca, &client.client, &client.client_key]));
        old = new;
    }
    is_connected_anew(&loaded, 1 + 2 * ROTATIONS);
    loaded.ends_exact(&format!("{ROTATIONS} rotations of the authority, {what}")).await;
}

/// The client certificate is replaced by one of another authority, which is the only one that the server then accepts.
async fn rotate_client(what: &str, server: Option<Server>) {
    let Some(server) = server else { return };
    let first = Authority::new();
    let (loaded, mut volume) = started(&server, &first).await;
    let mut old = first.files.authority.clone();
    let mut kept = Vec::new();
    for _ in 0..ROTATIONS {
        let new = Authority::new();
        server.set_tls(&first.files, &[&old, &new.files.authority]);
        loaded.take_unasked(|| volume.mount([&first.ca, &new.client, &new.client_key]));
        server.set_tls(&first.files, &[&new.files.authority]);
        old.clone_from(&new.files.authority);
        kept.push(new);
    }
    is_connected_anew(&loaded, ROTATIONS);
    loaded.ends_exact(&format!("{ROTATIONS} rotations of the client certificate, {what}")).await;
}

/// Files that cannot be used: the store in use decides until they are mended, and the log says what to do.
async fn refuse_bad_files(what: &str, server: Option<Server>) {
    let Some(server) = server else { return };
    let (first, other) = (Authority::new(), Authority::new());
    let (loaded, mut volume) = started(&server, &first).await;
    let half = &first.ca[..first.ca.len() / 2];
    let [ca, certificate] = ["ca.crt", "tls.crt"].map(|name| volume.file(name).display().to_string());
    let mut refused = 0;
    for (texts, words) in [
        ([half, &first.client, &first.client_key], format!("stores.main.tls_ca is \"{ca}\", which is not valid PEM: ")),
        (
            ["", &first.client, &first.client_key],
            format!("tls_ca is \"{ca}\", which holds no certificate, expected PEM"),
        ),
        // A certificate that is renewed before its key.
        (
            [&first.ca, &other.client, &first.client_key],
            format!("tls_certificate is \"{certificate}\", which cannot be used with the key in "),
        ),
        ([&other.ca, &first.client, &first.client_key], "stores.main: not connected within 5s: ".to_owned()),
    ] {
        volume.mount(texts);
        refused += 1;
        loaded.until_said(REFUSED, refused);
        loaded.until_said(&words, 1);
        loaded.answers_more();
    }
    let said = loaded.served.said();
    let reason = said.lines().find(|line| line.contains("not connected within 5s: ")).expect("it was waited for");
    assert!(reason.contains("invalid peer certificate: UnknownIssuer"), "{reason}");
    assert!(reason.contains("tls_ca"), "the remedy: {reason}");
    let new = format!("{}{}", first.ca, other.ca);
    loaded.take_unasked(|| volume.mount([&new, &first.client, &first.client_key]));
    assert_eq!(loaded.said(TAKEN), 1, "{}", loaded.served.said());
    loaded.ends_exact(&format!("files that cannot be used, {what}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_authority_of_a_redis_under_load_cost_no_answer_by_policy() {
    rotate_authority("Redis", Server::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_authority_of_a_postgres_under_load_cost_no_answer_by_policy() {
    rotate_authority("PostgreSQL", Server::postgres()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_client_certificate_for_a_redis_under_load_cost_no_answer_by_policy() {
    rotate_client("Redis", Server::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_client_certificate_for_a_postgres_under_load_cost_no_answer_by_policy() {
    rotate_client("PostgreSQL", Server::postgres()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_used_keep_the_redis_store_that_decides() {
    refuse_bad_files("Redis", Server::redis()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_that_cannot_be_used_keep_the_postgres_store_that_decides() {
    refuse_bad_files("PostgreSQL", Server::postgres()).await;
}
