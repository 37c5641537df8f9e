//! `tollgate serve`: serves gateways until stopped.

use std::env::VarError;
use std::error::Error;
use std::io::{IsTerminal, Write};
use std::path::Path;
use std::process::ExitCode;

use tokio_util::sync::CancellationToken;
use tollgate::app::{App, Ended, HangupSignals, PreparedService, StopSignals};
use tollgate::config::{Config, Origin, RestartSettings};
use tracing::Level;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use super::load::{report_errors, searched_paths};

/// An example configuration, printed if there is none.
const EXAMPLE_CONFIG: &str = r#"
    [limiters.per_address]
    algorithm = "sliding_window"
    limit = 10
    window = "1m"

    [[rules]]
    domain = "default"
    name = "per_address"
    apply = [{ limiter = "per_address", key = ["remote_address"] }]
"#;

/// The exit code after a second stop signal: shells use it for an interrupted process.
const SECOND_SIGNAL_CODE: u8 = 130;

/// Serves until a stop signal.
pub(super) fn serve(path: Option<&Path>) -> ExitCode {
    let (origin, config) = Origin::read(path);
    let config = match config {
        Ok(config) => config,
        Err(errors) => return report_errors(&errors),
    };
    match start(origin, config) {
        Ok(Ended::Drained) => ExitCode::SUCCESS,
        Ok(Ended::AtOnce) => ExitCode::from(SECOND_SIGNAL_CODE),
        Err(error) => {
            eprintln!("tollgate: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start(origin: Origin, config: Config) -> anyhow::Result<Ended> {
    let (development, restart_settings) = (config.book.secret.is_development(), RestartSettings::of(&config));
    let warnings = config.warnings.clone();
    let prepared = PreparedService::of(config)?;
    start_logging(prepared.settings.log.json);
    tollgate::app::log_data(&prepared.rules);
    tollgate::app::log_warnings(&warnings);
    if origin.config_path().is_none() {
        print_first_steps();
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let mut signals = StopSignals::listen()?;
        let hangup_signals = HangupSignals::listen()?;
        let stores = prepared.stores()?;
        let plan = prepared.plan;
        let mut app = App::open(&prepared.settings, prepared.rules, stores).await?;
        app.enable_snapshots(prepared.snapshots);
        app.connect_stores().await;
        app.await_stores(&plan);
        let reloader = app.reloader(origin, &restart_settings, plan);
        app.enable_reloads(reloader, hangup_signals);
        if development {
            print_status(format_args!(
                "warning: server.secret is not set: identities are hashed with a public constant; set it to \
                 \"${{file:/run/secrets/tollgate}}\" or the like before production use"
            ));
        }
        let admin = match app.admin_address() {
            Some(admin) => format!(", admin on {admin}"),
            None if prepared.settings.admin.listen.is_some() => ", no admin port".to_owned(),
            None => String::new(),
        };
        if let Some(api) = app.api_address() {
            print_status(format_args!("API on {api}"));
        }
        print_status(format_args!("gRPC on {}, HTTP on {}{admin}", app.grpc_address(), app.http_address()));
        anyhow::Ok(until_stopped(app, &mut signals).await)
    });
    // Tasks that still run are dropped.
    runtime.shutdown_background();
    ended
}

/// Starts logging to standard error, at the level of `RUST_LOG`. The audit log is always written.
///
/// Libraries log at INFO and above only: below it they show what clients send, and `RUST_LOG=trace` must not reveal
/// identities.
fn start_logging(json: bool) {
    let from_environment = EnvFilter::builder().with_default_directive(Level::INFO.into());
    let (filter, error) = match from_environment.try_from_env() {
        Ok(filter) => (filter, None),
        Err(error) if error.source().is_some_and(<dyn Error + 'static>::is::<VarError>) => {
            (EnvFilter::new("info"), None)
        }
        Err(error) => (EnvFilter::new("info"), Some(error)),
    };
    let filter = filter.add_directive("tollgate::audit=info".parse().expect("it is a directive"));
    // Libraries warn of what is in order, or what the log says with the name of its store: a replaced volume takes its
    // watch with it, and a pool drops a lost connection.
    let ours = Targets::new()
        .with_default(Level::INFO)
        .with_target("tollgate", Level::TRACE)
        .with_target("notify", Level::ERROR)
        .with_target("deadpool", Level::ERROR);
    // A line that cannot be written is dropped. Reporting that on the same stream would panic in the request.
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match json {
        true => log.json().flatten_event(true).finish().with(ours).init(),
        false => log.with_ansi(std::io::stderr().is_terminal()).finish().with(ours).init(),
    }
    if let Some(error) = error {
        tracing::warn!(%error, "RUST_LOG is invalid, using \"info\": expected directives such as info,tollgate=debug");
    }
    tollgate::server::log_panics();
}

/// Serves until a stop signal, then drains. A second signal ends the drain.
async fn until_stopped(app: App, signals: &mut StopSignals) -> Ended {
    let (stop, stop_at_once) = (CancellationToken::new(), CancellationToken::new());
    let serving = app.serve_until(stop.clone().cancelled_owned(), stop_at_once.clone().cancelled_owned());
    tokio::pin!(serving);
    tokio::select! {
        ended = &mut serving => return ended,
        () = signals.next() => stop.cancel(),
    }
    print_status(format_args!("stopping: waiting for requests in flight; send the signal again to stop at once"));
    tokio::select! {
        ended = &mut serving => return ended,
        () = signals.next() => stop_at_once.cancel(),
    }
    serving.await
}

/// Writes a line to standard error. A failure, such as a full disk, is ignored.
fn print_status(text: std::fmt::Arguments<'_>) {
    drop(writeln!(std::io::stderr(), "tollgate: {text}"));
}

fn print_first_steps() {
    eprintln!(
        "tollgate: no configuration found, so there are no rules and every request passes; it listens on this machine only"
    );
    eprintln!("tollgate: looked at {}", searched_paths());
    eprintln!("tollgate: to begin, write this to ./tollgate.toml and start again:\n{EXAMPLE_CONFIG}");
    eprintln!("tollgate: then send this request eleven times: curl -i http://127.0.0.1:8080/authz/envoy/\n");
}
