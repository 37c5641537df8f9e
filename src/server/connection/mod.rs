//! Connections: accepted, served by hyper, and watched. The head and idle timeouts are enforced here, and all
//! connections drain when the process stops.
//!
//! hyper has no timeout for HTTP/2 heads and idle connections, and creates a timer for each HTTP/1 head. So the
//! accepting task checks all connections of its door on a tick: a request costs a few counters and no timer.

mod activity;
mod framing;
mod opening;
mod target;

use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures_util::FutureExt;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{MissedTickBehavior, Sleep};
use tokio_util::sync::CancellationToken;

use self::activity::WatchedConnection;
pub(super) use self::activity::{Activity, InFlight};
use self::framing::FrameScanner;
use self::opening::OpeningScanner;
pub(super) use self::opening::{Opening, Port};
pub(super) use self::target::ReceivedTarget;
use self::target::TargetScanner;
use super::listen::{self, ClientStream, Listener};
use crate::settings::{Bound, Bounds};
use crate::telemetry::DoorMetrics;

/// Delay after a failed accept, most likely because file descriptors ran out.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// Checks of a connection per shortest timeout. A timeout takes effect after 1 to 1.5 times its duration.
const TICKS_PER_TIMEOUT: u32 = 2;

/// The longest time for which input is discarded before a connection is closed.
const DISCARD_TIME: Duration = Duration::from_secs(5);

/// Interval of the checks while draining.
const DRAIN_TICK: Duration = Duration::from_millis(250);

/// How a door accepts connections.
#[derive(Debug)]
pub(super) struct AcceptOptions {
    /// The port.
    pub(super) port: Port,
    /// Bounds on clients.
    pub(super) bounds: Bounds,
    /// Where connections and exceeded bounds are counted.
    pub(super) doors: Arc<DoorMetrics>,
    /// The door's gauge of open connections.
    pub(super) open: fn(&DoorMetrics) -> &AtomicU64,
}

/// Accepts connections and serves each by `serve` until `stop`, then lets them finish.
///
/// Returns when the last connection has finished. The caller bounds that time.
pub(super) async fn accept<S, F>(listener: Listener, stop: CancellationToken, options: AcceptOptions, serve: S)
where
    S: Fn(ObservedStream, listen::BoundAddress, Arc<Activity>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let AcceptOptions { port, bounds, doors, open } = options;
    let permits = Arc::new(Semaphore::new(bounds.connections as usize));
    let mut watched: Vec<WatchedConnection> = Vec::new();
    let shortest = bounds.idle_timeout.unwrap_or(Duration::MAX).min(bounds.head_timeout);
    let mut ticks = tokio::time::interval((shortest / TICKS_PER_TIMEOUT).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let serve_watched =
        |stream, peer: listen::BoundAddress, permit: OwnedSemaphorePermit, watched: &mut Vec<WatchedConnection>| {
            let activity = Activity::new(&bounds, &doors);
            if watched.len() == watched.capacity() {
                watched.retain(WatchedConnection::is_open);
            }
            watched.push(WatchedConnection::new(activity.clone()));
            let address = peer.tcp().map(|peer| peer.ip());
            let served = serve(ObservedStream::new(stream, activity.clone()), peer, activity.clone());
            let counted = OpenConnection::new(doors.clone(), open);
            let doors = doors.clone();
            tokio::spawn(async move {
                served.await;
                if let Some(mistake) = port.mistake(activity.opening()) {
                    doors.mistakes.record(mistake, &port.client(address));
                }
                drop((permit, counted, activity));
            });
        };
    // One connection beyond the bound is accepted, so that its waiting is counted.
    let mut next = None;
    loop {
        tokio::select! {
            accepted = listener.accept(), if next.is_none() => match accepted {
                Ok(accepted) => {
                    next = Some(accepted);
                    if permits.available_permits() == 0 {
                        doors.exceeded.count(Bound::Connections);
                    }
                }
                Err(error) => {
                    tracing::warn!(address = %listener.bound(), %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            permit = permits.clone().acquire_owned(), if next.is_some() => {
                let permit = permit.expect("the semaphore is never closed");
                let (stream, peer) = next.take().expect("a permit is awaited only for an accepted connection");
                serve_watched(stream, peer, permit, &mut watched);
            }
            now = ticks.tick() => watched.retain_mut(|connection| connection.check(now, &bounds, &doors)),
            () = stop.cancelled() => break,
        }
    }
    // Serve the connections in the kernel's backlog, too: their clients see them as established.
    let waiting = next.into_iter().chain(std::iter::from_fn(|| listener.accept().now_or_never()?.ok()));
    for (stream, peer) in waiting.take(permits.available_permits()) {
        let Ok(permit) = permits.clone().try_acquire_owned() else { break };
        serve_watched(stream, peer, permit, &mut watched);
    }
    // Reject new clients; connected ones get GOAWAY or `connection: close`.
    drop(listener);
    for connection in &mut watched {
        connection.drain();
    }
    let mut ticks = tokio::time::interval(DRAIN_TICK);
    let all_gone = permits.acquire_many(bounds.connections);
    tokio::pin!(all_gone);
    loop {
        tokio::select! {
            _ = &mut all_gone => return,
            now = ticks.tick() => watched.retain_mut(|connection| connection.check_draining(now)),
        }
    }
}

/// Counts an open connection until dropped.
struct OpenConnection(Arc<DoorMetrics>, fn(&DoorMetrics) -> &AtomicU64);

impl OpenConnection {
    fn new(doors: Arc<DoorMetrics>, open: fn(&DoorMetrics) -> &AtomicU64) -> Self {
        open(&doors).fetch_add(1, Ordering::Relaxed);
        Self(doors, open)
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Drives a connection until it ends or is directed to close.
pub(super) async fn drive<C: GracefulConnection>(connection: C, activity: Arc<Activity>) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    let mut draining = false;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            match activity.directive(cx) {
                activity::Directive::Close => return Poll::Ready(Ok(())),
                activity::Directive::Drain if !draining => {
                    draining = true;
                    connection.as_mut().graceful_shutdown();
                }
                activity::Directive::Drain | activity::Directive::Serve => return Poll::Pending,
            }
        }
    })
    .await
}

/// A stream that records the client's progress.
#[derive(Debug)]
pub(super) struct ObservedStream {
    stream: ClientStream,
    scanner: FrameScanner,
    targets: TargetScanner,
    /// Until the protocol is known.
    opening: Option<OpeningScanner>,
    activity: Arc<Activity>,
    /// Until when input is discarded, once the stream is shut down.
    discard_until: Option<Pin<Box<Sleep>>>,
}

impl ObservedStream {
    fn new(stream: ClientStream, activity: Arc<Activity>) -> Self {
        let mut targets = TargetScanner::default();
        targets.begin();
        let opening = Some(OpeningScanner::default());
        Self { stream, scanner: FrameScanner::default(), targets, opening, activity, discard_until: None }
    }
}

impl AsyncRead for ObservedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, scanner, targets, opening, activity, .. } = self.get_mut();
        let before = into.filled().len();
        let read = Pin::new(stream).poll_read(cx, into);
        if let Poll::Ready(Ok(())) = read {
            let bytes = &mut into.filled_mut()[before..];
            if let Some(scanner) = opening {
                let told = scanner.scan(bytes);
                if told != Opening::Unknown {
                    activity.set_opening(told);
                    *opening = None;
                }
            }
            if activity.is_between_heads() {
                targets.begin();
            }
            if let Some(target) = targets.scan(bytes) {
                activity.keep_target(target);
            }
            activity.record_read(scanner, bytes);
        }
        read
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        if matches!(flushed, Poll::Ready(Ok(()))) {
            self.activity.record_written();
        }
        flushed
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, activity, discard_until, .. } = self.get_mut();
        if discard_until.is_none() {
            ready!(Pin::new(&mut *stream).poll_shutdown(cx))?;
            if !activity.discards_at_close() {
                return Poll::Ready(Ok(()));
            }
        }
        let discard_until = discard_until.get_or_insert_with(|| Box::pin(tokio::time::sleep(DISCARD_TIME)));
        let mut discarded = [0; 4096];
        while discard_until.as_mut().poll(cx).is_pending() {
            let mut into = ReadBuf::new(&mut discarded);
            match ready!(Pin::new(&mut *stream).poll_read(cx, &mut into)) {
                Ok(()) if !into.filled().is_empty() => {}
                // The client has closed its side.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        from: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
