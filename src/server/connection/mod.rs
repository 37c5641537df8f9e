//! Connections: accepted, served by hyper, and watched: one whose client says nothing for too long is closed, and all
//! are told to finish when the process stops.
//!
//! hyper bounds neither the time of a head of HTTP/2 nor that of an idle connection, and the timer that it has for
//! heads of HTTP/1 is a new one for every request. So the task that accepts looks at all connections of its door now
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

use self::activity::{Ear, Watched};
pub(super) use self::activity::{InFlight, Pulse};
use super::listen::{self, ClientStream, Listener};
use crate::settings::{Bound, Bounds};
use crate::telemetry::DoorMetrics;

/// The wait after an accept that failed, most likely for want of file descriptors.
const BREATHER: Duration = Duration::from_millis(50);

/// How often connections are looked at in the shortest time that one of them may take. A bound of time is met between
/// once and one and a half times that.
const LOOKS: u32 = 2;

/// How often they are looked at once the door has closed.
const LAST_LOOKS: Duration = Duration::from_millis(250);

/// What a door gives its connections.
#[derive(Debug)]
pub(super) struct Terms {
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
pub(super) async fn accept<S, F>(listener: Listener, stop: CancellationToken, terms: Terms, serve: S)
where
    S: Fn(Heard, listen::BoundAddress, Arc<Pulse>) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let Terms { bounds, doors, open } = terms;
    let room = Arc::new(Semaphore::new(bounds.connections as usize));
    let mut watched: Vec<Watched> = Vec::new();
    let shortest = bounds.idle_timeout.unwrap_or(Duration::MAX).min(bounds.head_timeout);
    let mut looks = tokio::time::interval((shortest / LOOKS).max(Duration::from_millis(1)));
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let attended = |stream, peer, place: OwnedSemaphorePermit, watched: &mut Vec<Watched>| {
        let pulse = Pulse::new(&bounds, &doors);
        if watched.len() == watched.capacity() {
            watched.retain(Watched::is_open);
        }
        watched.push(Watched::new(pulse.clone()));
        let served = serve(Heard { stream, ear: Ear::default(), pulse: pulse.clone() }, peer, pulse);
        let counted = Counted::new(doors.clone(), open);
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
                    tokio::time::sleep(BREATHER).await;
                }
            },
            place = room.clone().acquire_owned(), if next.is_some() => {
                let place = place.expect("it is never closed");
                let (stream, peer) = next.take().expect("only then is there a place to wait for");
                attended(stream, peer, place, &mut watched);
            }
            now = looks.tick() => watched.retain_mut(|connection| connection.look(now, &bounds, &doors)),
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
        connection.leave();
    }
    let mut looks = tokio::time::interval(LAST_LOOKS);
    let all_gone = room.acquire_many(bounds.connections);
    tokio::pin!(all_gone);
    loop {
        tokio::select! {
            _ = &mut all_gone => return,
            now = looks.tick() => watched.retain_mut(|connection| connection.look_last(now)),
        }
    }
}

/// An open connection, as long as this is held.
struct Counted(Arc<DoorMetrics>, fn(&DoorMetrics) -> &AtomicU64);

impl Counted {
    fn new(doors: Arc<DoorMetrics>, open: fn(&DoorMetrics) -> &AtomicU64) -> Self {
        open(&doors).fetch_add(1, Ordering::Relaxed);
        Self(doors, open)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.1(&self.0).fetch_sub(1, Ordering::Relaxed);
    }
}

/// Serves a connection until it ends, or until it is told to.
pub(super) async fn attend<C: GracefulConnection>(connection: C, pulse: Arc<Pulse>) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    let mut leaving = false;
    poll_fn(|cx| {
        loop {
            if let Poll::Ready(ended) = connection.as_mut().poll(cx) {
                return Poll::Ready(ended);
            }
            match pulse.told(cx) {
                activity::Told::Close => return Poll::Ready(Ok(())),
                activity::Told::Leave if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                activity::Told::Leave | activity::Told::Stay => return Poll::Pending,
            }
        }
    })
    .await
}

/// A stream that knows where in its words the client is.
#[derive(Debug)]
pub(super) struct Heard {
    stream: ClientStream,
    ear: Ear,
    pulse: Arc<Pulse>,
}

impl AsyncRead for Heard {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, ear, pulse } = self.get_mut();
        let before = into.filled().len();
        let read = Pin::new(stream).poll_read(cx, into);
        if let Poll::Ready(Ok(())) = read {
            pulse.heard(ear, &into.filled()[before..]);
        }
        read
    }
}

impl AsyncWrite for Heard {
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
