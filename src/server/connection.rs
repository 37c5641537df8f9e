//! Connections: accepted, served by hyper, and told to finish when the process stops.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::Semaphore;
use tokio::time::Sleep;
use tokio_util::sync::CancellationToken;

use super::listen::{Bound, Listener, Stream};

/// How long a client may take to say its first words. Both protocols of HTTP are told apart by them, and neither
/// side of hyper bounds that time itself.
const FIRST_WORDS: Duration = Duration::from_secs(10);

/// As many bytes as a client of HTTP/2 begins with: the preface and the head of its settings. hyper waits for neither
/// in bounded time. No head of HTTP/1 that asks us anything is shorter, and hyper bounds the time for the rest of it.
const BEGINNING: usize = 24 + 9;

/// The most connections of a door at a time. More wait in the kernel until one ends, and the kernel's own bound on
/// open files may be lower.
const MOST_CONNECTIONS: usize = 10_000;

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
    accept_at_most(MOST_CONNECTIONS, listener, stop, serve).await;
}

async fn accept_at_most<S, F>(most: usize, listener: Listener, stop: CancellationToken, serve: S)
where
    S: Fn(Patient, Bound, Watcher) -> F,
    F: Future<Output = ()> + Send + 'static,
{
    let connections = GracefulShutdown::new();
    let room = Arc::new(Semaphore::new(most));
    loop {
        let next = async {
            let place = room.clone().acquire_owned().await.expect("it is never closed");
            (place, listener.accept().await)
        };
        let (place, accepted) = tokio::select! {
            next = next => next,
            () = stop.cancelled() => break,
        };
        match accepted {
            Ok((stream, peer)) => {
                let served = serve(Patient::new(stream), peer, connections.watcher());
                tokio::spawn(async move {
                    served.await;
                    drop(place);
                });
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
        if self.heard >= BEGINNING {
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

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpStream;

    use super::*;
    use crate::server::Listen;

    #[tokio::test]
    async fn a_connection_too_many_waits_until_one_ends() {
        let free = Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 0)));
        let listener = Listener::bind(&free).await.expect("a free port");
        let address = listener.bound().tcp().expect("an address");
        let stop = CancellationToken::new();
        let (greeted, mut greetings) = tokio::sync::mpsc::unbounded_channel();
        // Says that it serves, then waits for the client to go.
        let serve = move |mut stream: Patient, _, _| {
            let greeted = greeted.clone();
            async move {
                greeted.send(()).expect("somebody listens");
                drop(stream.write_all(b"!").await);
                drop(stream.read_to_end(&mut Vec::new()).await);
            }
        };
        let accepting = tokio::spawn(accept_at_most(2, listener, stop.clone(), serve));
        let mut clients = Vec::new();
        for _ in 0..3 {
            clients.push(TcpStream::connect(address).await.expect("the kernel takes it"));
        }
        for client in &mut clients[..2] {
            assert_eq!(client.read_u8().await.expect("served"), b'!');
            greetings.recv().await.expect("served");
        }
        assert!(greetings.is_empty(), "the third waits");
        drop(clients.remove(0));
        assert_eq!(clients[1].read_u8().await.expect("served at last"), b'!');
        stop.cancel();
        accepting.await.expect("no panic");
    }
}
