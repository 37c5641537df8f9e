//! The whole service: a configuration becomes open doors over one engine, and these are served until told to stop.

use std::future::Future;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::engine::Engine;
use crate::rules::Rules;
use crate::server::grpc::Grpc;
use crate::server::{Admin, AdminSettings, Bound, Desk, Http, ListenError, Listener, Settings};
use crate::store::{Owner, Stores};

/// How long requests under way may take once the process was told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// How often the stores forget what no longer counts.
const SWEEP: Duration = Duration::from_secs(5);

/// A memory store's file, and the store it belongs to.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// The place of the store among the configured ones.
    pub store: usize,
    /// The file.
    pub path: PathBuf,
    /// How often it is written.
    pub interval: Duration,
}

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
    engine: Arc<Engine>,
    desk: Arc<Desk>,
    snapshots: Vec<(Snapshot, Owner)>,
    grpc: (Grpc, Listener),
    http: (Http, Listener),
    admin: Option<(Admin, Listener)>,
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
        let engine = Arc::new(Engine::new(rules, stores, clock));
        let desk = Arc::new(Desk::new(engine.clone(), settings.clone()));
        Ok(Self {
            grpc: (Grpc::new(desk.clone()).await, grpc),
            http: (Http::new(desk.clone()), http),
            admin: admin.map(|listener| (Admin::new(desk.clone()), listener)),
            desk,
            engine,
            snapshots: Vec::new(),
        })
    }

    /// Reads what memory stores held when they were last written, and writes them from now on. A file that cannot be
    /// taken is kept aside and the store begins empty: refusing to serve would open the gateways instead.
    pub fn remember(&mut self, snapshots: Vec<Snapshot>) {
        let in_use = self.engine.in_use();
        let now = self.engine.clock().now();
        for snapshot in snapshots {
            let Some(store) = in_use.rules.stores().get(snapshot.store) else { continue };
            let owner = Owner { fingerprint: in_use.rules.secret().fingerprint(), store: store.clone() };
            match in_use.stores.load(snapshot.store, &snapshot.path, &owner, now) {
                Ok(Some(counters)) => tracing::info!(counters, store, "read the store's snapshot"),
                Ok(None) => tracing::info!(store, path = %snapshot.path.display(), "no snapshot to read yet"),
                Err(error) => tracing::warn!(store, %error, "the store begins empty"),
            }
            self.snapshots.push((snapshot, owner));
        }
    }

    /// What the doors decide by.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.desk
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

    /// Serves until `shutdown`, then lets requests under way finish, for ten seconds at most.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let stop = CancellationToken::new();
        let mut doors = JoinSet::new();
        let (grpc, grpc_listener) = self.grpc;
        let (http, http_listener) = self.http;
        doors.spawn(grpc.clone().serve(grpc_listener, stop.clone()));
        doors.spawn(http.serve(http_listener, stop.clone()));
        // Metrics are told to the last: this ends with the process.
        let asked = self.admin.map(|(admin, listener)| tokio::spawn(admin.serve(listener, CancellationToken::new())));
        let sweeping = tokio::spawn(sweep(self.desk.clone()));
        let mut writing = JoinSet::new();
        for (snapshot, owner) in self.snapshots.clone() {
            writing.spawn(write_now_and_then(self.engine.clone(), snapshot, owner));
        }
        shutdown.await;
        sweeping.abort();
        // Health first, so that gateways that ask for it look elsewhere before connections close.
        grpc.leave().await;
        stop.cancel();
        if tokio::time::timeout(DRAIN, async { while doors.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!("requests were still under way after {DRAIN:?} and are abandoned");
        }
        // Last, so that what was charged while draining is in it.
        writing.shutdown().await;
        for (snapshot, owner) in self.snapshots {
            write_snapshot(self.engine.clone(), snapshot, owner).await;
        }
        if let Some(asked) = asked {
            asked.abort();
        }
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

/// Writes a store's snapshot at its interval.
async fn write_now_and_then(engine: Arc<Engine>, snapshot: Snapshot, owner: Owner) {
    let mut pause = tokio::time::interval(snapshot.interval);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    // The first tick is at once, when there is nothing new to write.
    pause.tick().await;
    loop {
        pause.tick().await;
        write_snapshot(engine.clone(), snapshot.clone(), owner.clone()).await;
    }
}

/// Writes a store's snapshot, beside the threads that serve.
async fn write_snapshot(engine: Arc<Engine>, snapshot: Snapshot, owner: Owner) {
    let write = move || engine.in_use().stores.save(snapshot.store, &snapshot.path, &owner);
    match tokio::task::spawn_blocking(write).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the snapshot was not written; the one before is still there"),
        // What it panicked with may hold values of a request; where it did is in the log.
        Err(_) => tracing::warn!("the snapshot was not written; the one before is still there"),
    }
}

/// Lets the stores forget now and then, and the metrics put in order what they were told, beside the threads that
/// serve.
async fn sweep(desk: Arc<Desk>) {
    let mut pause = tokio::time::interval(SWEEP);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pause.tick().await;
        let desk = desk.clone();
        let swept = tokio::task::spawn_blocking(move || {
            desk.engine().in_use().stores.sweep(desk.engine().clock().now());
            desk.telemetry().metrics.upkeep();
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
