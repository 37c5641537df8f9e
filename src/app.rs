//! The whole service: a configuration becomes open doors over one engine, and these are served until told to stop.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, SystemClock};
use crate::engine::Engine;
use crate::rules::Rules;
use crate::server::grpc::Grpc;
use crate::server::{Bound, Http, ListenError, Listener, Settings};
use crate::store::Stores;

/// How long requests under way may take once the process was told to stop.
const DRAIN: Duration = Duration::from_secs(10);

/// How often the stores forget what no longer counts.
const SWEEP: Duration = Duration::from_secs(5);

/// Why the service cannot start: one line for the operator.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The gRPC door cannot be opened.
    #[error("server.grpc: {0}")]
    Grpc(ListenError),
    /// The HTTP door cannot be opened.
    #[error("server.http: {0}")]
    Http(ListenError),
}

/// Open doors, not served yet: the addresses are known, and clients wait.
#[derive(Debug)]
pub struct App {
    engine: Arc<Engine>,
    grpc: (Grpc, Listener),
    http: (Http, Listener),
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
        let engine = Arc::new(Engine::new(rules, stores, clock));
        Ok(Self {
            grpc: (Grpc::new(engine.clone(), settings).await, grpc),
            http: (Http::new(engine.clone(), settings), http),
            engine,
        })
    }

    /// Where RLS, ext_authz, health and reflection are.
    pub fn grpc_address(&self) -> &Bound {
        self.grpc.1.bound()
    }

    /// Where ext_authz over plain HTTP is.
    pub fn http_address(&self) -> &Bound {
        self.http.1.bound()
    }

    /// Serves until `shutdown`, then lets requests under way finish, for ten seconds at most.
    pub async fn serve(self, shutdown: impl Future<Output = ()>) {
        let stop = CancellationToken::new();
        let mut doors = JoinSet::new();
        let (grpc, grpc_listener) = self.grpc;
        let (http, http_listener) = self.http;
        doors.spawn(grpc.clone().serve(grpc_listener, stop.clone()));
        doors.spawn(http.serve(http_listener, stop.clone()));
        let sweeping = tokio::spawn(sweep(self.engine));
        shutdown.await;
        sweeping.abort();
        // Health first, so that gateways that ask for it look elsewhere before connections close.
        grpc.leave().await;
        stop.cancel();
        if tokio::time::timeout(DRAIN, async { while doors.join_next().await.is_some() {} }).await.is_err() {
            tracing::warn!("requests were still under way after {DRAIN:?} and are abandoned");
        }
    }
}

/// Lets the stores forget now and then, beside the threads that serve.
async fn sweep(engine: Arc<Engine>) {
    let mut pause = tokio::time::interval(SWEEP);
    pause.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        pause.tick().await;
        let engine = engine.clone();
        let swept = tokio::task::spawn_blocking(move || engine.stores().sweep(engine.clock().now()));
        if let Err(error) = swept.await {
            tracing::warn!(%error, "forgetting what no longer counts failed; it is tried again");
        }
    }
}

/// Waits for the process to be told to stop: SIGTERM or SIGINT.
pub async fn shutdown_signal() {
    use tokio::signal::unix::{SignalKind, signal};

    let wait = |kind: SignalKind| async move {
        match signal(kind) {
            Ok(mut signal) => drop(signal.recv().await),
            Err(error) => {
                tracing::warn!(%error, "cannot listen for a signal");
                std::future::pending().await
            }
        }
    };
    tokio::select! {
        () = wait(SignalKind::terminate()) => {}
        () = wait(SignalKind::interrupt()) => {}
    }
}
