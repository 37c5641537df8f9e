//! `tollgate serve`: from a configuration to open doors.

use std::env::VarError;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;
use tollgate::app::{App, Ended, Hangups, Prepared, Settled, StopSignals};
use tollgate::config::{Config, Origin};
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

/// Serves until told to stop.
pub fn serve(path: Option<&Path>) -> ExitCode {
    let (origin, config) = Origin::read(path);
    let config = match config {
        Ok(config) => config,
        Err(errors) => return super::refuse(&errors),
    };
    match start(origin, config) {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::AtOnce) => ExitCode::from(STOPPED_AT_ONCE),
        Err(error) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(origin: Origin, config: Config) -> anyhow::Result<Ended> {
    let (development, settled) = (config.book.secret.is_development(), Settled::of(&config));
    let warnings = config.warnings.clone();
    let prepared = Prepared::of(config)?;
    super::warn(&warnings);
    log(prepared.settings.log.json);
    if origin.place().is_none() {
        welcome();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut signals = StopSignals::listen()?;
        let hangups = Hangups::listen()?;
        let stores = prepared.stores()?;
        let plan = prepared.plan;
        let mut app = App::open(&prepared.settings, prepared.rules, stores).await?;
        app.remember(prepared.snapshots);
        app.wait_for(&plan);
        let reloader = app.reloader(origin, &settled, plan);
        app.follow(reloader, hangups);
        if development {
            tell(format_args!(
                "warning: server.secret is not set: identities are hashed with a public constant; set it to \
                 \"${{file:/run/secrets/tollgate}}\" or the like before this faces the world"
            ));
        }
        let admin = match app.admin_address() {
            Some(admin) => format!(", admin on {admin}"),
            None if prepared.settings.admin.listen.is_some() => ", no admin port".to_owned(),
            None => String::new(),
        };
        tell(format_args!("gRPC on {}, HTTP on {}{admin}", app.grpc_address(), app.http_address()));
        anyhow::Ok(until_stopped(app, &mut signals).await)
    });
    // What still runs beside is abandoned: nobody waits for it any more.
    runtime.shutdown_background();
    ended
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
    // What cannot be written is lost. To complain of it, where nothing can be written either, would end the request.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match json {
        true => log.json().flatten_event(true).finish().with(ours).init(),
        false => log.with_ansi(std::io::stderr().is_terminal()).finish().with(ours).init(),
    }
    if let Some(error) = error {
        tracing::warn!(%error, "RUST_LOG makes no sense and is not heeded");
    }
    tollgate::server::log_panics();
}

/// The first signal lets requests under way finish, the second one does not.
async fn until_stopped(app: App, signals: &mut StopSignals) -> Ended {
    let (told, again) = (CancellationToken::new(), CancellationToken::new());
    let serving = app.serve_until(told.clone().cancelled_owned(), again.clone().cancelled_owned());
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended,
        () = signals.next() => told.cancel(),
    }
    tell(format_args!("stopping: requests under way may finish, again to stop at once"));
    tokio::select! {
        ended = &mut serving => return ended,
        () = signals.next() => again.cancel(),
    }
    serving.await
}

/// Says something to whoever started this. They may be gone by now, or their disk full, which is no reason to stop.
fn tell(text: std::fmt::Arguments<'_>) {
    drop(writeln!(std::io::stderr(), "tollgate: {text}"));
}

fn welcome() {
    eprintln!(
        "tollgate: no configuration found, so there are no rules and every request passes; only this machine is listened to"
    );
    eprintln!("tollgate: looked at {}", super::looked_at());
    eprintln!("tollgate: to begin, write this to ./tollgate.toml and start again:\n{FIRST}");
    eprintln!("tollgate: then ask eleven times: curl -i http://127.0.0.1:8080/authz/envoy/\n");
}
