//! Connections: accepted, served by hyper, and watched: one whose client says nothing for too long is closed, and all
//! are told to finish when the process stops.
//!
//! hyper bounds neither the time of a head of HTTP/2 nor that of an idle connection, and the timer that it has for
//! heads of HTTP/1 is a new one for every request. So the task that accepts ticks at all connections of its door now
//! and then: a request pays for a few counters and no timer.

mod activity;

use std::future::{Future, poll_fn};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::FutureExt;
use hyper_util::server::graceful::GracefulConnection;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

pub(super) use self::activity::{Activity, InFlight};
use self::activity::{FrameScanner, WatchedConnection};
use super::listen::{self, Listener, Stream};
use crate::settings::{Bound, Bounds};
use crate::telemetry::DoorMetrics;

/// The wait after an accept that failed, most likely for want of file descriptors.
const ACCEPT_RETRY_DELAY: Duration = Duration::from_millis(50);

/// How often connections are looked at in the shortest time that one of them may take. A bound of time is met between
/// once and one and a half times that.
const TICKS_PER_TIMEOUT: u32 = 2;

/// How often they are looked at once the door has closed.
const DRAIN_TICK: Duration = Duration::from_millis(250);

/// What a door gives its connections.
#[derive(Debug)]
pub(super) struct AcceptOptions {
    /// What clients may take.
    pub(super) bounds: Bounds,
    /// Where that is counted.
    pub(super) doors: Arc<DoorMetrics>,
    /// The count of open connections among it.
    pub(super) open: fn(&DoorMetrics) -> &AtomicU64,
}

/// Accepts connections and serves each by `serve` until `stop`, then lets them finish.
///
/// Returns when the last has finished: how long that may take is for the caller to bound.
pub(super) async fn accept<S, F>(listener: Listener, stop: CancellationToken, options: AcceptOptions, serve: S)
where
    S: Fn(ObservedStream, listen::Bound, Arc<Activity>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let AcceptOptions { bounds, doors, open } = options;
    let room = Arc::new(Semaphore::new(bounds.connections as usize));
    let mut watched: Vec<WatchedConnection> = Vec::new();
    let shortest = bounds.idle_timeout.unwrap_or(Duration::MAX).min(bounds.head_timeout);
    let mut ticks = tokio::time::interval((shortest / TICKS_PER_TIMEOUT).max(Duration::from_millis(1)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let attended = |stream, peer, place: OwnedSemaphorePermit, watched: &mut Vec<WatchedConnection>| {
        let activity = Activity::new(&bounds, &doors);
        if watched.len() == watched.capacity() {
            watched.retain(WatchedConnection::is_open);
        }
        watched.push(WatchedConnection::new(activity.clone()));
        let served = serve(
            ObservedStream { stream, scanner: FrameScanner::default(), activity: activity.clone() },
            peer,
            activity,
        );
        let counted = OpenConnection::new(doors.clone(), open);
        tokio::spawn(async move {
            served.await;
            drop((place, counted));
        });
    };
    // One more than there is room for: so it is known that it waits.
    let mut next = None;
    loop {
        tokio::select! {
            accepted = listener.accept(), if next.is_none() => match accepted {
                Ok(accepted) => {
                    next = Some(accepted);
                    if room.available_permits() == 0 {
                        doors.exceeded.count(Bound::Connections);
                    }
                }
                Err(error) => {
                    tracing::warn!(address = %listener.bound(), %error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_RETRY_DELAY).await;
                }
            },
            place = room.clone().acquire_owned(), if next.is_some() => {
                let place = place.expect("it is never closed");
                let (stream, peer) = next.take().expect("only then is there a place to wait for");
                attended(stream, peer, place, &mut watched);
            }
            now = ticks.tick() => watched.retain_mut(|connection| connection.check(now, &bounds, &doors)),
            () = stop.cancelled() => break,
        }
    }
    // What the kernel took before now is served too: its client was told that somebody listens.
    let waiting = next.into_iter().chain(std::iter::from_fn(|| listener.accept().now_or_never()?.ok()));
    for (stream, peer) in waiting.take(room.available_permits()) {
        let Ok(place) = room.clone().try_acquire_owned() else { break };
        attended(stream, peer, place, &mut watched);
    }
    // New clients are turned away from now on; those that are here get GOAWAY or `connection: close`.
    drop(listener);
    for connection in &mut watched {
        connection.drain();
    }
    let mut ticks = tokio::time::interval(DRAIN_TICK);
    let all_gone = room.acquire_many(bounds.connections);
    tokio::pin!(all_gone);
    loop {
        tokio::select! {
            _ = &mut all_gone => return,
            now = ticks.tick() => watched.retain_mut(|connection| connection.check_draining(now)),
        }
    }
}

/// An open connection, as long as this is held.
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

/// Serves a connection until it ends, or until it is told to.
pub(super) async fn drive<C: GracefulConnection>(connection: C, activity: Arc<Activity>) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    let mut leaving = false;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            match activity.directive(cx) {
                activity::Directive::Close => return Poll::Ready(Ok(())),
                activity::Directive::Drain if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                activity::Directive::Drain | activity::Directive::Serve => return Poll::Pending,
            }
        }
    })
    .await
}

/// A stream that knows where in its words the client is.
#[derive(Debug)]
pub(super) struct ObservedStream {
    stream: Stream,
    scanner: FrameScanner,
    activity: Arc<Activity>,
}

impl AsyncRead for ObservedStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, scanner, activity } = self.get_mut();
        let before = into.filled().len();
        let read = Pin::new(stream).poll_read(cx, into);
        if let Poll::Ready(Ok(())) = read {
            activity.record_read(scanner, &into.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for ObservedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
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
