//! Finds the servers that tests need, and skips a test whose server is not installed.
//!
//! `make test` installs them and sets `TOLLGATE_REQUIRE_SERVERS`: then a missing server is a failure. Otherwise the
//! test is skipped with a message, written past the test harness, which would capture it.

use std::env;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;

use super::project;

/// Envoy: `TOLLGATE_ENVOY`, else from `PATH`, else the one in the project's virtual environment.
pub fn envoy() -> Option<PathBuf> {
    let named = env::var_os("TOLLGATE_ENVOY").map(PathBuf::from);
    let local = || Some(project().join(".venv/bin/envoy")).filter(|path| path.exists());
    found("envoy", named.or_else(|| on_path("envoy")).or_else(local))
}

/// nginx with its `auth_request` module.
pub fn nginx() -> Option<PathBuf> {
    let system = || Some(PathBuf::from("/usr/sbin/nginx")).filter(|path| path.exists());
    found("nginx", on_path("nginx").or_else(system))
}

/// HAProxy with Lua.
pub fn haproxy() -> Option<PathBuf> {
    let system = || Some(PathBuf::from("/usr/sbin/haproxy")).filter(|path| path.exists());
    found("haproxy", on_path("haproxy").or_else(system))
}

/// Caddy.
pub fn caddy() -> Option<PathBuf> {
    program("caddy")
}

/// Traefik: `TOLLGATE_TRAEFIK`, else from `PATH`, else the one in the project's virtual environment.
pub fn traefik() -> Option<PathBuf> {
    let named = env::var_os("TOLLGATE_TRAEFIK").map(PathBuf::from);
    let local = || Some(project().join(".venv/bin/traefik")).filter(|path| path.exists());
    found("traefik", named.or_else(|| on_path("traefik")).or_else(local))
}

/// Python 3, for the demo.
pub fn python() -> Option<PathBuf> {
    program("python3")
}

/// Redis, which also runs as Sentinel.
pub fn redis() -> Option<PathBuf> {
    program("redis-server")
}

/// Valkey: `TOLLGATE_VALKEY`, else from `PATH`, else the one in the project's virtual environment.
pub fn valkey() -> Option<PathBuf> {
    let named = env::var_os("TOLLGATE_VALKEY").map(PathBuf::from);
    let local = || Some(project().join(".venv/bin/valkey-server")).filter(|path| path.exists());
    found("valkey-server", named.or_else(|| on_path("valkey-server")).or_else(local))
}

/// Redis 6.2: `TOLLGATE_REDIS_6`, else the one in the project's virtual environment.
pub fn redis_6() -> Option<PathBuf> {
    let named = env::var_os("TOLLGATE_REDIS_6").map(PathBuf::from);
    let local = || Some(project().join(".venv/bin/redis-server-6")).filter(|path| path.exists());
    found("Redis 6.2", named.or_else(local))
}

/// schemathesis: `TOLLGATE_SCHEMATHESIS`, else from `PATH`, else the one in the project's virtual environment.
pub fn schemathesis() -> Option<PathBuf> {
    let named = env::var_os("TOLLGATE_SCHEMATHESIS").map(PathBuf::from);
    let local = || Some(project().join(".venv/bin/schemathesis")).filter(|path| path.exists());
    found("schemathesis", named.or_else(|| on_path("schemathesis")).or_else(local))
}

/// twemproxy, which Debian keeps off the `PATH` of users.
pub fn twemproxy() -> Option<PathBuf> {
    let system = || Some(PathBuf::from("/usr/sbin/nutcracker")).filter(|path| path.exists());
    found("nutcracker", on_path("nutcracker").or_else(system))
}

/// The directory of PostgreSQL's programs: the newest of Debian's packages, else the one in `PATH`.
pub fn postgres() -> Option<PathBuf> {
    let version = |path: &PathBuf| path.file_name()?.to_str()?.parse::<u32>().ok();
    let installed = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten().map(|entry| entry.path());
    let newest = installed.filter(|path| path.join("bin/initdb").is_file()).max_by_key(version);
    let directory = newest.map(|path| path.join("bin"));
    found("postgres", directory.or_else(|| Some(on_path("initdb")?.parent()?.to_owned())))
}

/// PgBouncer, which Debian keeps off the `PATH` of users.
pub fn pgbouncer() -> Option<PathBuf> {
    let system = || Some(PathBuf::from("/usr/sbin/pgbouncer")).filter(|path| path.exists());
    found("pgbouncer", on_path("pgbouncer").or_else(system))
}

/// The library that sets a process's wall clock, in the directory of any architecture.
pub fn faketime() -> Option<PathBuf> {
    let libraries = fs::read_dir("/usr/lib").into_iter().flatten().flatten().map(|entry| entry.path());
    found("libfaketime", libraries.map(|path| path.join("faketime/libfaketime.so.1")).find(|path| path.is_file()))
}

/// A program from `PATH`.
pub fn program(name: &str) -> Option<PathBuf> {
    found(name, on_path(name))
}

fn found(name: &str, path: Option<PathBuf>) -> Option<PathBuf> {
    if path.is_none() {
        let test = thread::current();
        let test = test.name().unwrap_or("a test");
        assert!(env::var_os("TOLLGATE_REQUIRE_SERVERS").is_none(), "{test} needs {name}: make servers installs it");
        let line = format!("left out: {test} needs {name}, which `make servers` installs\n");
        // Written at once, so that tests that run in parallel do not interleave.
        io::stderr().write_all(line.as_bytes()).expect("stderr is open");
    }
    path
}

/// A program from `PATH`, if it is there.
pub fn on_path(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|directory| Path::new(&directory).join(name)).find(|path| path.is_file())
}
