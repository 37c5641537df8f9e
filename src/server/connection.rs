//! Connections: accepted, served by hyper, and told to finish when the process stops.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::listen::{Bound, Listener, Stream};

/// How long a client may take to say its first words. Both protocols of HTTP are told apart by them, and neither
/// side of hyper bounds that time itself.
const FIRST_WORDS: Duration = Duration::from_secs(10);

/// As many bytes as the preface of HTTP/2 has: who sent them has said which protocol it speaks.
const PREFACE: usize = 24;

/// The wait after an accept that failed, most likely for want of file descriptors.
const BREATHER: Duration = Duration::from_millis(50);

/// Accepts connections and serves each by `serve` until `stop`, then lets them finish.
///
/// Returns when the last has finished: how long that may take is for the caller to bound.
pub(super) async fn accept<S, F>(listener: Listener, stop: CancellationToken, serve: S)
where
    S: Fn(Patient, Bound, Watcher) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let connections = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                tokio::spawn(serve(Patient::new(stream), peer, connections.watcher()));
            }
            Err(error) => {
                tracing::warn!(address = %listener.bound(), %error, "cannot accept a connection");
                tokio::time::sleep(BREATHER).await;
            }
        }
    }
    // New clients are turned away at once; those that are here get GOAWAY or `connection: close`.
    drop(listener);
    connections.shutdown().await;
}

/// A stream whose client has [`FIRST_WORDS`] to begin.
#[derive(Debug)]
pub(super) struct Patient {
    stream: Stream,
    heard: usize,
    deadline: Option<Pin<Box<Sleep>>>,
}

impl Patient {
    fn new(stream: Stream) -> Self {
        Self { stream, heard: 0, deadline: Some(Box::pin(tokio::time::sleep(FIRST_WORDS))) }
    }
}

impl AsyncRead for Patient {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = into.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, into);
        let Some(deadline) = &mut self.deadline else { return read };
        if read.is_pending() {
            ready!(deadline.as_mut().poll(cx));
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.heard += into.filled().len() - before;
        if self.heard >= PREFACE {
            self.deadline = None;
        }
        read
    }
}

impl AsyncWrite for Patient {
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
