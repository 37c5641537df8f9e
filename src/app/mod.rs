//! The whole service: a configuration becomes open doors over one engine, and these are served until told to stop.
//!
//! ```text
//!   prepare.rs    a configuration -> what runs
//!   reload.rs     another configuration while serving
//!   snapshots.rs  what memory stores remember
//! ```

mod build;
mod reload;
mod snapshots;

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use self::build::{Prepared, StorePlan, Unservable};
pub use self::reload::{Hangups, Look, Reloader, Settled, Waiting};
pub use self::snapshots::Snapshot;
use self::snapshots::Snapshots;
use crate::clock::{Clock, SystemClock};
use crate::config::Origin;
use crate::engine::Version;
use crate::rules::Rules;
use crate::server::grpc::Grpc;
use crate::server::{Admin, Bound, Http, ListenError, Listener};
use crate::service::Service;
use crate::settings::{AdminSettings, Drain, Settings};
use crate::store::Stores;

/// How often the stores forget what no longer counts.
const SWEEP: Duration = Duration::from_secs(5);

/// How often a store that is required is asked whether it is there.
const LOOK: Duration = Duration::from_millis(100);

/// How long quota that was leased and not used may take to be returned.
const RETURN: Duration = Duration::from_secs(1);

/// How long snapshots may take when there is no time.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Why the service cannot start: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The gRPC door cannot be opened.
    #[error("server.grpc: {0}")]
    Grpc(ListenError),
    /// The HTTP door cannot be opened.
    #[error("server.http: {0}")]
    Http(ListenError),
    /// The admin port cannot be opened.
    #[error("server.admin: {0}")]
    Admin(ListenError),
}

/// Open doors, not served yet: the addresses are known, and clients wait.
#[derive(Debug)]
pub struct App {
    service: Arc<Service>,
    follow: Option<(Reloader, Hangups)>,
    snapshots: Snapshots,
    /// The stores that have to answer once before anything is sent here, by name.
    required: Vec<String>,
    grpc: (Grpc, Listener),
    http: (Http, Listener),
    admin: Option<(Admin, Listener)>,
}

/// How serving ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Requests under way had their time.
    Drained,
    /// Told twice, it waited for nothing.
    AtOnce,
}

impl App {
    /// Opens the doors over an engine of its own, by the machine's clock.
    pub async fn open(settings: &Settings, rules: Rules, stores: Stores) -> Result<Self, AppError> {
        Self::open_at(settings, rules, stores, Arc::new(SystemClock::new())).await
    }

    /// The same by another clock.
    pub async fn open_at(
        settings: &Settings,
        rules: Rules,
        stores: Stores,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, AppError> {
        let grpc = Listener::bind(&settings.grpc).await.map_err(AppError::Grpc)?;
        let http = Listener::bind(&settings.http).await.map_err(AppError::Http)?;
        let admin = open_admin(&settings.admin).await?;
        let version = Version { rules: Arc::new(rules), stores };
        let service = Arc::new(Service::new(version, settings.clone(), clock));
        Ok(Self {
            grpc: (Grpc::new(service.clone()).await, grpc),
            http: (Http::new(service.clone()), http),
            admin: admin.map(|listener| (Admin::new(service.clone()), listener)),
            follow: None,
            snapshots: Snapshots::none(service.clone()),
            required: Vec::new(),
            service,
        })
    }

    /// Reads what memory stores held when they were last written, and writes them from now on. A file that cannot be
    /// taken is kept aside and the store begins empty: refusing to serve would open the gateways instead.
    pub fn remember(&mut self, snapshots: Vec<Snapshot>) {
        self.snapshots.read(snapshots);
    }

    /// What takes the place of the configuration that this was opened with, once its files become another.
    pub fn reloader(&self, origin: Origin, settled: &Settled, plan: StorePlan) -> Reloader {
        Reloader::new(self.service.clone(), origin, settled, plan)
    }

    /// Lets nothing be sent here until the stores that the configuration requires have answered once.
    pub fn wait_for(&mut self, plan: &StorePlan) {
        self.required = plan.required().map(str::to_owned).collect();
        if !self.required.is_empty() {
            self.service.health().wait();
        }
    }

    /// Takes what the files become while this serves.
    pub fn follow(&mut self, reloader: Reloader, hangups: Hangups) {
        self.follow = Some((reloader, hangups));
    }

    /// What its doors decide by.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Where RLS, ext_authz, health and reflection are.
    pub fn grpc_address(&self) -> &Bound {
        self.grpc.1.bound()
    }

    /// Where ext_authz over plain HTTP is.
    pub fn http_address(&self) -> &Bound {
        self.http.1.bound()
    }

    /// Where metrics are, and what operators ask; none when there is no admin port.
    pub fn admin_address(&self) -> Option<&Bound> {
        self.admin.as_ref().map(|(_, listener)| listener.bound())
    }

    /// Serves until `shutdown`, then drains.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        self.serve_until(shutdown, std::future::pending()).await;
    }

    /// Serves until `shutdown`, then drains, unless it is told to stop `at_once`.
    ///
    /// ```text
    ///   shutdown      health says so, and everything is answered as before
    ///   + delay       no more connections; GOAWAY or `connection: close` on those there are
    ///   + timeout     whatever is still under way is abandoned; most often nothing is, and much earlier
    ///                 snapshots are written: what was charged until now is in them
    /// ```
    pub async fn serve_until(self, shutdown: impl Future<Output = ()>, at_once: impl Future<Output = ()>) -> Ended {
        let stop = CancellationToken::new();
        let mut doors = JoinSet::new();
        let (grpc, grpc_listener) = self.grpc;
        let (http, http_listener) = self.http;
        doors.spawn(grpc.clone().serve(grpc_listener, stop.clone()));
        doors.spawn(http.serve(http_listener, stop.clone()));
        // Metrics are told to the last: this ends with the process.
        let mut asked = JoinSet::new();
        if let Some((admin, listener)) = self.admin {
            asked.spawn(admin.serve(listener, CancellationToken::new()));
        }
        let mut beside = JoinSet::new();
        beside.spawn(sweep(self.service.clone()));
        if let Some((reloader, hangups)) = self.follow {
            beside.spawn(reloader.follow(hangups));
        }
        if !self.required.is_empty() {
            grpc.set_not_serving().await;
            beside.spawn(serve_when_answered(self.service.clone(), grpc.clone(), self.required));
        }
        let mut writing = self.snapshots.write_now_and_then();

        shutdown.await;
        beside.shutdown().await;
        let Drain { delay, timeout } = self.service.current().settings.drain;
        let drain = async {
            grpc.set_draining().await;
            tokio::time::sleep(delay).await;
            grpc.end_watches().await;
            stop.cancel();
            let finished = async { while doors.join_next().await.is_some() {} };
            if tokio::time::timeout(timeout, finished).await.is_err() {
                tracing::warn!("connections were still open after {timeout:?} and are abandoned");
            }
        };
        let ended = tokio::select! {
            () = drain => Ended::Drained,
            () = at_once => Ended::AtOnce,
        };
        writing.shutdown().await;
        let version = self.service.current().version.clone();
        version.stores.return_leased_quota(self.service.now(), RETURN).await;
        match ended {
            Ended::Drained => self.snapshots.write().await,
            Ended::AtOnce if tokio::time::timeout(LAST_WORDS, self.snapshots.write()).await.is_err() => {
                tracing::warn!("a snapshot took longer than {LAST_WORDS:?} to write: the one before is still there");
            }
            Ended::AtOnce => {}
        }
        ended
    }
}

/// Opens the admin port. An address that nobody chose and that is taken, by another tollgate on this machine perhaps, is
/// done without.
async fn open_admin(settings: &AdminSettings) -> Result<Option<Listener>, AppError> {
    let Some(listen) = &settings.listen else { return Ok(None) };
    match Listener::bind(listen).await {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if !settings.chosen => {
            tracing::warn!(%error, "there is no admin port: set server.admin to another address, or to \"off\"");
            Ok(None)
        }
        Err(error) => Err(AppError::Admin(error)),
    }
}

/// Waits until each of these stores has answered once.
async fn serve_when_answered(service: Arc<Service>, grpc: Grpc, stores: Vec<String>) {
    for store in stores {
        loop {
            let version = service.current().version.clone();
            // One that a reload took away is not waited for.
            let place = version.rules.stores().iter().position(|name| *name == store);
            match place {
                Some(place) if !version.stores.answers(place).await => tokio::time::sleep(LOOK).await,
                _ => break,
            }
        }
    }
    grpc.set_serving().await;
    tracing::info!("the stores that are required answer: requests may be sent here");
}

/// Lets the stores forget now and then, and the metrics put in order what they were told, beside the threads that
/// serve.
async fn sweep(service: Arc<Service>) {
    let mut pause = tokio::time::interval(SWEEP);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pause.tick().await;
        let service = service.clone();
        let swept = tokio::task::spawn_blocking(move || {
            let version = service.current().version.clone();
            version.stores.sweep(service.now());
            service.telemetry().metrics.upkeep();
        });
        if swept.await.is_err() {
            // What it panicked with may hold values of a request; where it did is in the log.
            tracing::warn!("forgetting what no longer counts failed; it is tried again");
        }
    }
}

/// What tells the process to stop: SIGTERM and SIGINT. While this is held, neither ends the process by itself.
#[derive(Debug)]
pub struct StopSignals {
    terminate: Signal,
    interrupt: Signal,
}

impl StopSignals {
    /// Listens for them from now on.
    ///
    /// # Errors
    ///
    /// The system refuses to say.
    pub fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    pub async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
