//! The real program while a reload replaces a shared store under load: the new store is connected before it decides,
//! and the old one decides until then.
//!
//! `cargo test --test program reload_stores -- --nocapture` prints the measurements.

use std::any::Any;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use tempfile::TempDir;

use super::loaded::{LIMIT, Loaded, REFUSED, TAKEN, ask, limited, limited_to, write};
use crate::support::binary::Served;
use crate::support::processes::postgres::{PASSWORD, USER};
use crate::support::processes::redis::Setup;
use crate::support::processes::{
    Certificates, Cluster, Postgres, Proxy, Sentinel, WAIT_TIMEOUT, postgres, sentinel, until,
};

/// A server with two users, or two passwords of one user, that are both valid.
struct Rotated {
    _servers: Box<dyn Any>,
    /// The keys of the store, with a place for each secret.
    keys: Box<dyn Fn(&Path) -> String>,
    /// What the file of the secret has.
    secrets: [String; 2],
    /// Makes the server accept a secret.
    accept: Box<dyn Fn(&str)>,
}

impl Rotated {
    fn redis(servers: impl Any, keys: String) -> Self {
        Self {
            _servers: Box::new(servers),
            keys: Box::new(move |secret| {
                format!("engine = 'redis'\n{keys}\nusername = 'limits'\npassword = '${{file:{}}}'", secret.display())
            }),
            secrets: ["password-one".to_owned(), "password-two".to_owned()],
            accept: Box::new(|_| ()),
        }
    }

    /// Redis with a user who has two passwords.
    fn setup() -> Option<Setup> {
        Setup::redis().map(|setup| setup.line("user limits on >password-one >password-two ~* &* +@all"))
    }

    fn standalone() -> Option<Self> {
        let server = Self::setup()?.start();
        let keys = format!("url = 'redis://127.0.0.1:{}'", server.port);
        Some(Self::redis(server, keys))
    }

    fn sentinel() -> Option<Self> {
        let servers = Sentinel::of(&Self::setup()?);
        let keys =
            format!("mode = 'sentinel'\nsentinel_master = '{}'\nurl = '{}'", sentinel::NAME, url(&servers.ports()));
        Some(Self::redis(servers, keys))
    }

    fn cluster() -> Option<Self> {
        let servers = Cluster::of(&Self::setup()?, 3, 0);
        let keys = format!("mode = 'cluster'\nurl = '{}'", url(&servers.ports()));
        Some(Self::redis(servers, keys))
    }

    /// PostgreSQL with a second user, since a user has one password.
    fn postgres() -> Option<Self> {
        let server = Postgres::shared()?;
        let database = server.database();
        let other = format!("other_of_{database}");
        server.execute("postgres", &format!("CREATE ROLE {other} LOGIN PASSWORD 'password-two' IN ROLE {USER}"));
        let first = server.url(&database);
        let second = first.replace(&format!("{USER}:{PASSWORD}@"), &format!("{other}:password-two@"));
        Some(Self {
            _servers: Box::new(server),
            keys: Box::new(|secret| format!("engine = 'postgres'\nurl = '${{file:{}}}'", secret.display())),
            secrets: [first, second],
            accept: Box::new(|_| ()),
        })
    }

    /// PostgreSQL with a user whose password is replaced, by one with characters that no URL could have.
    fn postgres_password() -> Option<Self> {
        let server = Postgres::shared()?;
        let database = server.database();
        let role = format!("rotated_of_{database}");
        let secrets = ["p@ss:w/rd?one=1&%41 #$", "'\u{e4}\"\\${two}\n@"].map(str::to_owned);
        server.execute("postgres", &format!("CREATE ROLE {role} LOGIN IN ROLE {USER}"));
        let keys = format!(
            "engine = 'postgres'\nurl = 'postgres://127.0.0.1:{}/{database}'\nusername = '{role}'",
            server.port
        );
        let accept = move |secret: &str| {
            let quoted = secret.replace('\'', "''");
            server.execute("postgres", &format!("ALTER ROLE {role} PASSWORD '{quoted}'"));
        };
        Some(Self {
            _servers: Box::new(()),
            keys: Box::new(move |secret| format!("{keys}\npassword = '${{file:{}}}'", secret.display())),
            secrets,
            accept: Box::new(accept),
        })
    }
}

fn url(ports: &[u16]) -> String {
    let addresses: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    format!("redis://{}", addresses.join(","))
}

/// Ten rotations of the secret under load.
async fn rotate(what: &str, rotated: Option<Rotated>) {
    let Some(Rotated { _servers, keys, secrets, accept }) = rotated else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let secret = directory.path().join("secret");
    accept(&secrets[0]);
    write(&secret, &secrets[0]);
    let toml = limited(&format!("{}\ntimeout = '2s'\nrequired = true", keys(&secret)));
    let loaded = Loaded::start(&toml).await;
    loaded.answers_more();
    for rotation in 1..=10 {
        accept(&secrets[rotation % 2]);
        loaded.take(|| write(&secret, &secrets[rotation % 2]));
    }
    assert_eq!(loaded.said("new store connected"), 1 + 10, "{}", loaded.served.said());
    let refused = "tollgate_config_reloads_total{result=\"refused\"}";
    assert_eq!(loaded.served.metric(refused), 0.0);
    loaded.ends_exact(&format!("ten rotations of a password, {what}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_password_of_a_redis_under_load_cost_no_answer_by_policy() {
    rotate("Redis", Rotated::standalone()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_password_behind_sentinels_under_load_cost_no_answer_by_policy() {
    rotate("Sentinel", Rotated::sentinel()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_password_of_a_cluster_under_load_cost_no_answer_by_policy() {
    rotate("Cluster", Rotated::cluster()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_user_of_a_postgres_under_load_cost_no_answer_by_policy() {
    rotate("PostgreSQL", Rotated::postgres()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rotations_of_the_password_of_a_postgres_under_load_cost_no_answer_by_policy() {
    rotate("PostgreSQL with a key for the password", Rotated::postgres_password()).await;
}

/// Reloads that change one key of the store each, and then set it back.
async fn change_each(what: &str, base: &str, changes: &[&str]) {
    let loaded = Loaded::start(&limited(base)).await;
    loaded.answers_more();
    let file = loaded.served.directory.path().join("tollgate.toml");
    for change in changes {
        // A change is a key that the base lacks, or another value of one that it has.
        let key = change.split(" = ").next().expect("a key");
        let others: Vec<&str> = base.lines().filter(|line| !line.starts_with(&format!("{key} = "))).collect();
        loaded.take(|| write(&file, &limited(&format!("{}\n{change}", others.join("\n")))));
        loaded.take(|| write(&file, &limited(base)));
    }
    // Readiness follows the same store.
    let replaced = changes.iter().filter(|change| !change.starts_with("required")).count();
    assert_eq!(loaded.said("new store connected"), 1 + 2 * replaced, "{}", loaded.served.said());
    loaded.ends_exact(&format!("reload of each of {} keys, {what}", changes.len())).await;
}

/// The keys for TLS with these files, and changes of each: the files have the same content at another place.
fn tls_keys(files: &Certificates, copies: &Path) -> (String, Vec<String>) {
    let named = [("tls_ca", &files.authority), ("tls_certificate", &files.client), ("tls_key", &files.client_key)];
    let key = |key: &str, file: &Path| format!("{key} = '{}'", file.display());
    let base: Vec<String> = named.iter().map(|(name, file)| key(name, file)).collect();
    let copied = named.iter().map(|(name, file)| {
        let to = copies.join(file.file_name().expect("a file"));
        fs::copy(file, &to).expect("copied");
        key(name, &to)
    });
    (base.join("\n"), copied.chain(["tls_server_name = 'localhost'".to_owned()]).collect())
}

/// Keys that every shared store has, changed.
const CHANGES: [&str; 7] = [
    "timeout = '3s'",
    "instances = 2",
    "required = false",
    "max_batch = 8",
    "max_calls = 4",
    "refusal_cache = '1s'",
    "quota_lease = 64",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_each_key_of_a_redis_under_load_costs_no_answer_by_policy() {
    let Some(setup) = Rotated::setup() else { return };
    let server = setup.line("tls-auth-clients optional").tls().start();
    let (port, files) = server.tls();
    let copies = TempDir::new().expect("a directory");
    let (tls, of_tls) = tls_keys(files, copies.path());
    let base = format!(
        "engine = 'redis'\nurl = 'rediss://127.0.0.1:{port}'\nusername = 'limits'\npassword = 'password-one'\n\
         {tls}\ntimeout = '2s'\nrequired = true"
    );
    let url = format!("url = 'rediss://localhost:{port}'");
    let own = ["password = 'password-two'", "socket_connect_timeout = '400ms'", &url];
    let changes: Vec<&str> = CHANGES.into_iter().chain(own).chain(of_tls.iter().map(String::as_str)).collect();
    change_each("Redis with TLS", &base, &changes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_of_each_key_of_a_postgres_under_load_costs_no_answer_by_policy() {
    let Some(server) = postgres::Setup::new().map(|setup| setup.client_certificates().start()) else { return };
    let copies = TempDir::new().expect("a directory");
    let (tls, of_tls) = tls_keys(server.certificates.as_ref().expect("it uses TLS"), copies.path());
    let address = format!("127.0.0.1:{}/{}", server.port, server.database());
    let base = format!(
        "engine = 'postgres'\nurl = 'postgres://{address}'\nusername = '{USER}'\npassword = '{PASSWORD}'\n{tls}\n\
         timeout = '2s'\nrequired = true"
    );
    let url = format!("url = 'postgres://{address}?sslmode=require'");
    let own = ["pool_max_size = 3", "auto_create = false", "synchronous_commit = false", &url];
    let changes: Vec<&str> = CHANGES.into_iter().chain(own).chain(of_tls.iter().map(String::as_str)).collect();
    change_each("PostgreSQL with TLS", &base, &changes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_store_that_takes_long_to_connect_is_waited_for_while_the_old_one_decides() {
    let Some(server) = Rotated::setup().map(Setup::start) else { return };
    let proxy = Proxy::to(server.port);
    proxy.blackhole();
    let store = |port| {
        format!(
            "engine = 'redis'\nurl = 'redis://127.0.0.1:{port}'\nusername = 'limits'\npassword = 'password-one'\n\
             timeout = '2s'\nrequired = true"
        )
    };
    let loaded = Loaded::start(&limited(&store(server.port))).await;
    loaded.take(|| {
        write(&loaded.served.directory.path().join("tollgate.toml"), &limited(&store(proxy.port)));
        loaded.served.signal("-HUP");
        loaded.until_said(&format!("connecting to 127.0.0.1:{} failed", proxy.port), 1);
        loaded.answers_more();
        assert_eq!((loaded.said(TAKEN), loaded.said(REFUSED)), (0, 0), "{}", loaded.served.said());
        proxy.heal();
    });
    loaded.ends_exact("a store that is connected after a while").await;
}

/// A store that cannot be connected: the keys of the one in use, those of the next one, words of the refusal, words that
/// must not be logged, and the remedy.
struct Missing {
    old: String,
    new: String,
    words: &'static str,
    secret: &'static str,
    remedy: Box<dyn FnOnce() + Send>,
}

/// The reload is refused, the old store decides, and once the new store can be connected, it is taken.
async fn is_refused_and_tried_again(missing: Missing) {
    let Missing { old, new, words, secret, remedy } = missing;
    let loaded = Loaded::start(&limited(&old)).await;
    write(&loaded.served.directory.path().join("tollgate.toml"), &limited(&new));
    loaded.until_said(REFUSED, 1);
    loaded.until_said("stores.main: not connected within 5s: ", 1);
    loaded.answers_more();
    let said = loaded.served.said();
    let reason = said.lines().find(|line| line.contains("stores.main: not connected within 5s: "));
    assert!(reason.is_some_and(|line| line.contains(words)), "{words}: {said}");
    assert!(!said.contains(secret), "{said}");
    let refused = loaded.served.metric("tollgate_config_reloads_total{result=\"refused\"}");
    assert!(refused >= 1.0, "{refused}");
    assert_eq!(loaded.served.metric("tollgate_config_last_reload_successful"), 0.0);
    assert_eq!(loaded.said(TAKEN), 0);
    remedy();
    // Nobody changes a file or sends a signal.
    loaded.until_said(TAKEN, 1);
    assert_eq!(loaded.served.metric("tollgate_config_last_reload_successful"), 1.0);
    loaded.answers_more();
    loaded.ends_exact(words).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_refused_while_its_redis_rejects_the_password_and_taken_once_it_accepts_it() {
    let Some(server) = Rotated::setup().map(Setup::start) else { return };
    let server = Arc::new(server);
    let store = |password| {
        format!(
            "engine = 'redis'\nurl = 'redis://127.0.0.1:{}'\nusername = 'limits'\npassword = '{password}'\n\
             timeout = '2s'\nrequired = true",
            server.port
        )
    };
    let (old, new) = (store("password-one"), store("planted-password"));
    let remedied = server.clone();
    let remedy = Box::new(move || remedied.ask::<()>(&["ACL", "SETUSER", "limits", ">planted-password"]));
    is_refused_and_tried_again(Missing { old, new, words: "WRONGPASS", secret: "planted-password", remedy }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_refused_while_a_node_of_its_cluster_rejects_the_password_and_taken_once_it_accepts_it() {
    let Some(setup) = Rotated::setup() else { return };
    let cluster = Arc::new(Cluster::of(&setup, 3, 0));
    let store = |password| {
        format!(
            "engine = 'redis'\nmode = 'cluster'\nurl = '{}'\nusername = 'limits'\npassword = '{password}'\n\
             timeout = '2s'\nrequired = true",
            url(&cluster.ports())
        )
    };
    let (old, new) = (store("password-one"), store("planted-password"));
    let accepts = |node: usize| {
        let cluster = cluster.clone();
        move || cluster.nodes[node].ask::<()>(&["ACL", "SETUSER", "limits", ">planted-password"])
    };
    accepts(0)();
    accepts(1)();
    let remedy = Box::new(accepts(2));
    is_refused_and_tried_again(Missing { old, new, words: "WRONGPASS", secret: "planted-password", remedy }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_refused_while_its_postgres_rejects_the_password_and_taken_once_it_accepts_it() {
    let Some(server) = Postgres::shared() else { return };
    let database = server.database();
    let other = format!("another_of_{database}");
    server.execute("postgres", &format!("CREATE ROLE {other} LOGIN PASSWORD 'not yet' IN ROLE {USER}"));
    let url = server.url(&database);
    let store = |url: &str| format!("engine = 'postgres'\nurl = '{url}'\ntimeout = '2s'\nrequired = true");
    let (old, new) =
        (store(&url), store(&url.replace(&format!("{USER}:{PASSWORD}@"), &format!("{other}:planted-password@"))));
    let words = "password authentication failed for user";
    // The server ends with its last user, and is needed after the remedy.
    let altered = server.clone();
    let remedy =
        Box::new(move || altered.execute("postgres", &format!("ALTER ROLE {other} PASSWORD 'planted-password'")));
    is_refused_and_tried_again(Missing { old, new, words, secret: "planted-password", remedy }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_is_refused_while_its_sentinels_know_no_such_master_or_its_server_is_away() {
    let Some(sentinels) = Rotated::setup().map(|setup| Sentinel::of(&setup)) else { return };
    let servers = Arc::new(sentinels);
    let store = |master: &str| {
        format!(
            "engine = 'redis'\nmode = 'sentinel'\nsentinel_master = '{master}'\nurl = '{}'\nusername = 'limits'\n\
             password = 'password-one'\ntimeout = '2s'\nrequired = true",
            url(&servers.ports())
        )
    };
    let (old, new) = (store(sentinel::NAME), store("renamed"));
    let known = servers.clone();
    let remedy = Box::new(move || {
        let port = known.servers[known.primary()].port.to_string();
        for sentinel in &known.sentinels {
            sentinel.ask::<()>(&["SENTINEL", "MONITOR", "renamed", "127.0.0.1", &port, "2"]);
        }
    });
    let words = "the sentinels know no master named";
    is_refused_and_tried_again(Missing { old, new, words, secret: "password-one", remedy }).await;
    // A server that refuses connections, and one whose certificate is not trusted.
    let proxy = Arc::new(Proxy::to(servers.servers[servers.primary()].port));
    proxy.refuse();
    let store = |port| {
        format!(
            "engine = 'redis'\nurl = 'redis://127.0.0.1:{port}'\nusername = 'limits'\npassword = 'password-one'\n\
             timeout = '2s'\nrequired = true\nkey_prefix = 'direct:'"
        )
    };
    let (old, new) = (store(servers.servers[servers.primary()].port), store(proxy.port));
    let healed = proxy.clone();
    let remedy = Box::new(move || healed.heal());
    is_refused_and_tried_again(Missing { old, new, words: "onnection refused", secret: "password-one", remedy }).await;
}

/// The units of the counter that a store has charged, according to another instance.
fn charged(other: &Served) -> usize {
    let state = other.run(&["state", "edge", "account=0"]);
    let row = state.lines().find(|line| line.starts_with("daily")).unwrap_or_else(|| panic!("{state}"));
    let used = row.split("  ").map(str::trim).find_map(|cell| cell.strip_suffix(&format!(" of {LIMIT}")));
    used.and_then(|used| used.parse().ok()).unwrap_or_else(|| panic!("{state}"))
}

/// An instance with leased quota is reloaded, and gives it back.
async fn gives_back(what: &str, store: &str) {
    // One call at a time, so that none waits for a row that another one has locked.
    let of =
        |more: &str| limited_to(LIMIT, &format!("{store}\ntimeout = '2s'\nrequired = true\nmax_calls = 1\n{more}"));
    let mut loaded = Loaded::with_accounts(&of("quota_lease = 1000"), 1, LIMIT).await;
    let plain = Served::start(&of(""), &[]).ready();
    until("800 are admitted", || loaded.admitted(0) >= 800);
    loaded.done.store(true, Ordering::Relaxed);
    for caller in loaded.callers.drain(..) {
        caller.await.expect("every answer is an answer");
    }
    // Until a block is only used in part.
    while charged(&plain) == loaded.admitted(0) {
        ask(&loaded.rls, &loaded.admitted, 0).await;
    }
    let (admitted, leased) = (loaded.admitted(0), charged(&plain));
    assert!(leased > admitted, "{leased} of {admitted}");
    write(&loaded.served.directory.path().join("tollgate.toml"), &of("quota_lease = 1000\nmax_batch = 32"));
    loaded.until_said("store let go: its unused leased quota is given back", 1);
    let began = Instant::now();
    while charged(&plain) != admitted {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{} of {admitted}: {}", charged(&plain), loaded.served.said());
    }
    println!("{what}: {} of {leased} units were unused, and given back", leased - admitted);
    loaded.ends_exact(&format!("a reload with leased quota, {what}")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_gives_leased_quota_back_to_redis() {
    let Some(server) = Setup::redis().map(Setup::start) else { return };
    gives_back("Redis", &format!("engine = 'redis'\nurl = 'redis://127.0.0.1:{}'", server.port)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_gives_leased_quota_back_to_a_cluster() {
    let Some(cluster) = Cluster::start(3, 0) else { return };
    gives_back("Cluster", &format!("engine = 'redis'\nmode = 'cluster'\nurl = '{}'", url(&cluster.ports()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reload_gives_leased_quota_back_to_postgres() {
    let Some(server) = Postgres::shared() else { return };
    gives_back("PostgreSQL", &format!("engine = 'postgres'\nurl = '{}'", server.url(&server.database()))).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn reloads_with_leased_quota_under_load_lose_no_unit() {
    let Some(server) = Setup::redis().map(Setup::start) else { return };
    let store = |batch: usize| {
        let keys = format!("timeout = '2s'\nrequired = true\nquota_lease = 1000\nmax_batch = {batch}");
        limited_to(LIMIT, &format!("engine = 'redis'\nurl = 'redis://127.0.0.1:{}'\n{keys}", server.port))
    };
    let loaded = Loaded::with_accounts(&store(1), 1, LIMIT).await;
    let file = loaded.served.directory.path().join("tollgate.toml");
    for batch in 2..8 {
        loaded.take(|| write(&file, &store(batch)));
    }
    loaded.ends_exact("reloads with leased quota under load").await;
}
