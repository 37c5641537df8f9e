//! The whole program: opens the doors of a configuration and serves them until shutdown.
//!
//! ```text
//!   build.rs      a configuration -> settings, rules and stores
//!   connect.rs    new shared stores are connected before they decide
//!   readiness.rs  required stores that answer -> whether the instance is ready
//!   reload.rs     a changed configuration while serving
//!   snapshots.rs  the snapshot files of memory stores
//! ```

mod build;
mod connect;
mod readiness;
mod reload;
mod snapshots;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::build::{BuildError, PreparedService, StorePlan};
use self::connect::connect;
use self::readiness::{RequiredStore, follow_stores};
pub use self::reload::{HangupSignals, PendingRestart, ReloadOutcome, Reloader, log_data, log_warnings};
pub use self::snapshots::PlannedSnapshot;
use self::snapshots::SnapshotWriter;
use crate::clock::{Clock, SystemClock};
use crate::config::{Origin, RestartSettings};
use crate::engine::Version;
use crate::rules::Rules;
use crate::server::grpc::Grpc;
use crate::server::{Admin, BoundAddress, Http, ListenError, Listener};
use crate::service::Service;
use crate::settings::{AdminSettings, Drain, Settings};
use crate::store::Stores;

/// The interval at which stores remove expired counters.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// The interval at which the clock is compared with the wall clock.
const CLOCK_SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// The interval at which mistakes of gateways are looked at.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// How long serving waits for connections to shared stores.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// The time to return unused leased quota at shutdown.
const QUOTA_RETURN_TIMEOUT: Duration = Duration::from_secs(1);

/// The time to hand over what is owed to shared stores at shutdown.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(2);

/// The time to write snapshots after a second stop signal.
const FINAL_SNAPSHOT_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the program cannot start: one line for the operator.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppError {
    /// The gRPC door cannot listen.
    #[error("server.grpc: {0}")]
    Grpc(ListenError),
    /// The HTTP door cannot listen.
    #[error("server.http: {0}")]
    Http(ListenError),
    /// The address of the API cannot be listened on.
    #[error("server.api: {0}")]
    Api(ListenError),
    /// The admin port cannot listen.
    #[error("server.admin: {0}")]
    Admin(ListenError),
}

/// Open doors that are not served yet. Clients can connect, and wait.
#[derive(Debug)]
pub struct App {
    service: Arc<Service>,
    reloads: Option<(Reloader, HangupSignals)>,
    snapshots: SnapshotWriter,
    /// The stores that readiness follows.
    required_stores: Vec<RequiredStore>,
    grpc: (Grpc, Listener),
    http: (Http, Listener),
    /// The API of workers at an address of its own.
    api: Option<(Http, Listener)>,
    admin: Option<(Admin, Listener)>,
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Requests in flight had time to finish.
    Drained,
    /// A second signal stopped it at once.
    AtOnce,
}

impl App {
    /// Opens the doors of a new service with the system clock.
    ///
    /// # Errors
    ///
    /// An address cannot be bound, or the admin port cannot be opened.
    pub async fn open(settings: &Settings, rules: Rules, stores: Stores) -> Result<Self, AppError> {
        Self::open_at(settings, rules, stores, Arc::new(SystemClock::new())).await
    }

    /// Opens the doors of a new service with the given clock.
    ///
    /// # Errors
    ///
    /// An address cannot be bound, or the admin port cannot be opened.
    pub async fn open_at(
        settings: &Settings,
        rules: Rules,
        stores: Stores,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AppError> {
        let grpc = Listener::bind(&settings.grpc).await.map_err(AppError::Grpc)?;
        let http = Listener::bind(&settings.http).await.map_err(AppError::Http)?;
        let api = match &settings.api.listen {
            Some(listen) => Some(Listener::bind(listen).await.map_err(AppError::Api)?),
            None => None,
        };
        let admin = open_admin(&settings.admin).await?;
        let version = Version { rules: Arc::new(rules), stores };
        let service = Arc::new(Service::new(version, settings.clone(), clock));
        let grpc_door = Grpc::new(service.clone());
        Ok(Self {
            api: api.map(|listener| (Http::for_workers(service.clone(), &grpc_door), listener)),
            grpc: (grpc_door, grpc),
            http: (Http::new(service.clone()), http),
            admin: admin.map(|listener| (Admin::new(service.clone()), listener)),
            reloads: None,
            snapshots: SnapshotWriter::none(service.clone()),
            required_stores: Vec::new(),
            service,
        })
    }

    /// Loads the snapshots of memory stores, and writes them from now on. A file that cannot be loaded is renamed and the
    /// store starts empty: if tollgate did not start, gateways would let every request pass.
    pub fn enable_snapshots(&mut self, snapshots: Vec<PlannedSnapshot>) {
        self.snapshots.read(snapshots);
    }

    /// A reloader for the files of the configuration that this was opened with.
    pub fn reloader(&self, origin: Origin, restart_settings: &RestartSettings, plan: StorePlan) -> Reloader {
        Reloader::new(self.service.clone(), origin, restart_settings, plan)
    }

    /// Connects to the shared stores, so that the first decisions need not wait for that. One that does not answer in
    /// time does not keep this process from serving.
    pub async fn connect_stores(&self) {
        let version = self.service.current().version.clone();
        for missing in connect(version.stores.shared_stores(), CONNECT_TIMEOUT).await {
            let store = missing.store.as_str();
            tracing::warn!(store, "{missing}: its limiters follow on_store_error until it answers");
        }
    }

    /// Reports not ready until each required store has answered once, and while one does not answer.
    pub fn await_stores(&mut self, plan: &StorePlan) {
        self.required_stores = RequiredStore::all(plan);
        if !self.required_stores.is_empty() {
            self.service.health().set_waiting();
        }
    }

    /// Applies changes of the configuration while serving.
    pub fn enable_reloads(&mut self, reloader: Reloader, hangup_signals: HangupSignals) {
        self.reloads = Some((reloader, hangup_signals));
    }

    /// The service behind the doors.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// The address of the gRPC door.
    pub fn grpc_address(&self) -> &BoundAddress {
        self.grpc.1.bound()
    }

    /// The address of the HTTP door.
    pub fn http_address(&self) -> &BoundAddress {
        self.http.1.bound()
    }

    /// The address of the API, if it has one of its own.
    pub fn api_address(&self) -> Option<&BoundAddress> {
        self.api.as_ref().map(|(_, listener)| listener.bound())
    }

    /// The address of the admin port, if there is one.
    pub fn admin_address(&self) -> Option<&BoundAddress> {
        self.admin.as_ref().map(|(_, listener)| listener.bound())
    }

    /// Serves until `shutdown`, then drains.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        self.serve_until(shutdown, std::future::pending()).await;
    }

    /// Serves until `shutdown`, then drains. `at_once` ends the drain.
    ///
    /// ```text
    ///   shutdown      health reports not ready; requests are answered as before
    ///   + delay       no new connections; GOAWAY or `connection: close` on open ones
    ///   + timeout     requests still in flight are dropped; usually all have finished much earlier
    ///                 snapshots are written, with all charges so far
    /// ```
    pub async fn serve_until(self, shutdown: impl Future<Output = ()>, at_once: impl Future<Output = ()>) -> Ended {
        let stop = CancellationToken::new();
        let mut doors = JoinSet::new();
        let (grpc, grpc_listener) = self.grpc;
        let (http, http_listener) = self.http;
        doors.spawn(grpc.clone().serve(grpc_listener, stop.clone()));
        doors.spawn(http.serve(http_listener, stop.clone()));
        if let Some((api, listener)) = self.api {
            doors.spawn(api.serve(listener, stop.clone()));
        }
        // The admin port is served during the drain too: metrics stay available until the process ends.
        let mut admin_tasks = JoinSet::new();
        if let Some((admin, listener)) = self.admin {
            admin_tasks.spawn(admin.serve(listener, CancellationToken::new()));
        }
        let mut background = JoinSet::new();
        background.spawn(sweep(self.service.clone()));
        background.spawn(synchronise_clock(self.service.clone()));
        background.spawn(report_mistakes(self.service.clone()));
        if let Some((reloader, hangup_signals)) = self.reloads {
            background.spawn(reloader.run(hangup_signals));
        }
        if !self.required_stores.is_empty() {
            grpc.set_not_serving();
            background.spawn(follow_stores(self.service.clone(), grpc.clone(), self.required_stores));
        }
        let mut snapshot_tasks = self.snapshots.write_periodically();

        shutdown.await;
        background.shutdown().await;
        let Drain { delay, timeout } = self.service.current().settings.drain;
        let drain = async {
            grpc.set_draining();
            tokio::time::sleep(delay).await;
            grpc.end_watches();
            stop.cancel();
            let finished = async { while doors.join_next().await.is_some() {} };
            if tokio::time::timeout(timeout, finished).await.is_err() {
                tracing::warn!("drain timeout of {timeout:?} exceeded: open connections are dropped");
            }
        };
        let ended = tokio::select! {
            () = drain => Ended::Drained,
            () = at_once => Ended::AtOnce,
        };
        snapshot_tasks.shutdown().await;
        let version = self.service.current().version.clone();
        version.stores.return_leased_quota(QUOTA_RETURN_TIMEOUT).await;
        version.stores.hand_over(HAND_OVER_TIMEOUT).await;
        match ended {
            Ended::Drained => self.snapshots.write_all().await,
            Ended::AtOnce
                if tokio::time::timeout(FINAL_SNAPSHOT_TIMEOUT, self.snapshots.write_all()).await.is_err() =>
            {
                tracing::warn!("snapshot not written within {FINAL_SNAPSHOT_TIMEOUT:?}: the previous one is kept");
            }
            Ended::AtOnce => {}
        }
        ended
    }
}

/// Opens the admin port. If the default address is in use, perhaps by another tollgate on this machine, there is no admin
/// port.
async fn open_admin(settings: &AdminSettings) -> Result<Option<Listener>, AppError> {
    let Some(listen) = &settings.listen else { return Ok(None) };
    match Listener::bind(listen).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !settings.chosen => {
            tracing::warn!(%error, "no admin port: set server.admin to another address, or to \"off\"");
            Ok(None)
        }
        Err(error) => Err(AppError::Admin(error)),
    }
}

/// Follows the wall clock, and warns of its jumps.
async fn synchronise_clock(service: Arc<Service>) {
    let mut interval = tokio::time::interval(CLOCK_SYNC_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        if let Some(jump) = service.synchronise_clock() {
            let seconds = jump as f64 / 1e6;
            tracing::warn!(
                seconds,
                "clock jumped, because it was set or the machine slept: memory stores and calendars follow it"
            );
        }
    }
}

/// Logs mistakes of gateways, off the threads that serve: a request is compared with every rule of its domain.
async fn report_mistakes(service: Arc<Service>) {
    let mut interval = tokio::time::interval(REPORT_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let service = service.clone();
        if tokio::task::spawn_blocking(move || service.report_mistakes()).await.is_err() {
            // The panic message may hold values of a request; the panic hook has logged where it happened.
            tracing::warn!("reporting mistakes of gateways failed: retrying");
        }
    }
}

/// Removes expired counters and drains the samples of histograms, at an interval and off the threads that serve.
async fn sweep(service: Arc<Service>) {
    let mut interval = tokio::time::interval(SWEEP_INTERVAL);
    interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        interval.tick().await;
        let service = service.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let version = service.current().version.clone();
            version.stores.sweep(service.now());
            service.telemetry().metrics.upkeep();
        });
        if swept.await.is_err() {
            // The panic message may hold values of a request; the panic hook has logged where it happened.
            tracing::warn!("removing expired counters failed: retrying");
        }
    }
}

/// SIGTERM and SIGINT. While this is held, neither signal ends the process directly.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Starts to listen for both signals.
    ///
    /// # Errors
    ///
    /// The system does not allow a signal handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next signal.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
