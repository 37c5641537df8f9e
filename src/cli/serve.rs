//! `tollgate serve`: from a configuration to open doors.

use std::env::VarError;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;
use tollgate::app::{App, Snapshot, StopSignals};
use tollgate::config::{Config, Engine, VARIABLE, places};
use tollgate::rules::Rules;
use tollgate::store::{MemorySettings, Stores};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

/// What a first configuration can look like, told to whoever starts without one.
const FIRST: &str = r#"
    [limiters.per_address]
    algorithm = "sliding_window"
    limit = 10
    window = "1m"

    [[rules]]
    domain = "default"
    name = "per_address"
    apply = [{ limiter = "per_address", key = ["remote_address"] }]
"#;

/// The code of a process that an interrupt ends, as shells have it.
const STOPPED_AT_ONCE: u8 = 130;

/// How serving ended.
enum Stop {
    /// Requests under way had their time.
    Finished,
    /// Told twice, it waited for nothing.
    AtOnce,
}

/// Serves until told to stop.
pub fn serve(path: Option<&Path>) -> ExitCode {
    let config = match Config::load(path) {
        Ok(config) => config,
        Err(errors) => return super::refuse(&errors),
    };
    match start(config) {
        Ok(Stop::Finished) => ExitCode::SUCCESS,
        Ok(Stop::AtOnce) => ExitCode::from(STOPPED_AT_ONCE),
        Err(error) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> anyhow::Result<Stop> {
    let spaces = spaces(&config)?;
    super::warn(&config.warnings);
    let snapshots = snapshots(&config);
    let (found, development) = (!config.files.is_empty(), config.book.secret.is_development());
    let rules = Rules::compile(config.book).map_err(|errors| {
        let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
        anyhow::anyhow!(errors.join("; "))
    })?;
    log(config.server.log.json);
    if !found {
        welcome();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut signals = StopSignals::listen()?;
        let mut app = App::open(&config.server, rules, Stores::memory(&spaces)).await?;
        app.remember(snapshots);
        if development {
            eprintln!(
                "tollgate: warning: server.secret is not set: identities are hashed with a public constant; set it to \
                 \"${{file:/run/secrets/tollgate}}\" or the like before this faces the world"
            );
        }
        let admin = app.admin_address().map_or(String::new(), |admin| format!(", admin on {admin}"));
        eprintln!("tollgate: gRPC on {}, HTTP on {}{admin}", app.grpc_address(), app.http_address());
        Ok(until_stopped(app, &mut signals).await)
    })
}

/// Begins to log, to standard error: what `RUST_LOG` says, and who lifted which limit whatever it says.
///
/// What libraries tell below INFO is never written: they show what clients sent, and nobody is to switch identities on
/// by `RUST_LOG=trace`.
fn log(json: bool) {
    let asked = EnvFilter::builder().with_default_directive(Level::INFO.into());
    let (filter, error) = match asked.try_from_env() {
        Ok(filter) => (filter, None),
        Err(error) if error.source().is_some_and(|source| source.is::<VarError>()) => (EnvFilter::new("info"), None),
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let filter = filter.add_directive("tollgate::audit=info".parse().expect("it is a directive"));
    let ours = Targets::new().with_default(Level::INFO).with_target("tollgate", Level::TRACE);
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match json {
        true => log.json().flatten_event(true).finish().with(ours).init(),
        false => log.with_ansi(std::io::stderr().is_terminal()).finish().with(ours).init(),
    }
    if let Some(error) = error {
        tracing::warn!(%error, "RUST_LOG makes no sense and is not heeded");
    }
    tollgate::server::log_panics();
}

/// The files of memory stores that survive a restart.
fn snapshots(config: &Config) -> Vec<Snapshot> {
    let of = |(store, kept): (usize, &tollgate::config::Store)| {
        let snapshot = kept.snapshot.as_ref()?;
        Some(Snapshot { store, path: snapshot.path.clone(), interval: snapshot.interval })
    };
    config.stores.iter().enumerate().filter_map(of).collect()
}

/// The first signal lets requests under way finish, the second one does not.
async fn until_stopped(app: App, signals: &mut StopSignals) -> Stop {
    let told = CancellationToken::new();
    let serving = app.serve(told.clone().cancelled_owned());
    tokio::pin!(serving);
    tokio::select! {
        () = &mut serving => return Stop::Finished,
        () = signals.next() => told.cancel(),
    }
    // Whoever read this may be gone by now, which is no reason to stop otherwise.
    drop(writeln!(std::io::stderr(), "tollgate: stopping: requests under way may finish, again to stop at once"));
    tokio::select! {
        () = serving => Stop::Finished,
        () = signals.next() => Stop::AtOnce,
    }
}

/// The memory each store may take, in their order.
fn spaces(config: &Config) -> anyhow::Result<Vec<MemorySettings>> {
    let space = |store: &tollgate::config::Store| match &store.engine {
        Engine::Memory(settings) => Ok(*settings),
        engine @ (Engine::Redis(_) | Engine::Postgres(_)) => Err(anyhow::anyhow!(
            "stores.{} has engine \"{}\", which is not built yet: this version serves with engine = \"memory\"",
            store.name,
            engine.name()
        )),
    };
    config.stores.iter().map(space).collect()
}

fn welcome() {
    let places: Vec<String> = places().iter().map(|place| place.display().to_string()).collect();
    eprintln!(
        "tollgate: no configuration found, so there are no rules and every request passes; only this machine is listened to"
    );
    eprintln!("tollgate: looked at {VARIABLE} (not set), {}", places.join(", "));
    eprintln!("tollgate: to begin, write this to ./tollgate.toml and start again:\n{FIRST}");
    eprintln!("tollgate: then ask eleven times: curl -i http://127.0.0.1:8080/authz/envoy/\n");
}
