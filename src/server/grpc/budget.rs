//! How much is kept of requests that have begun and not ended.
//!
//! tonic collects a message until its stream ends, and flow control does not bound that: what has been read may be
//! followed by more. So what is kept is counted, for each connection and for all of them. A request that would go past
//! that is answered like one that cannot be read. One that is here as a whole when it is first looked at, as nearly all
//! are, is not counted.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};

/// The most bytes kept for a connection: room for a few requests of the largest size, or for as many streams as a
/// connection may have with a kilobyte each.
const OF_CONNECTION: usize = 8 << 20;

/// The most bytes kept for all connections.
const OF_PROCESS: usize = 128 << 20;

/// What a request takes beside its bytes, about.
const OF_REQUEST: usize = 1 << 10;

/// The bytes kept for all connections of a door.
#[derive(Clone, Debug, Default)]
pub(super) struct Total(Arc<AtomicUsize>);

impl Total {
    /// The budget of a new connection.
    pub(super) fn connection(&self) -> Arc<Budget> {
        Arc::new(Budget { connection: AtomicUsize::new(0), total: self.0.clone() })
    }
}

/// The bytes kept for a connection.
#[derive(Debug)]
pub(super) struct Budget {
    connection: AtomicUsize,
    total: Arc<AtomicUsize>,
}

impl Budget {
    /// Whether there was room for so many bytes more; then they have to be given back.
    fn take(&self, bytes: usize) -> bool {
        if !take(&self.connection, bytes, OF_CONNECTION) {
            return false;
        }
        let taken = take(&self.total, bytes, OF_PROCESS);
        if !taken {
            self.connection.fetch_sub(bytes, Ordering::Relaxed);
        }
        taken
    }

    fn give_back(&self, bytes: usize) {
        self.connection.fetch_sub(bytes, Ordering::Relaxed);
        self.total.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn take(kept: &AtomicUsize, bytes: usize, most: usize) -> bool {
    let taken = kept.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= most;
    if !taken {
        kept.fetch_sub(bytes, Ordering::Relaxed);
    }
    taken
}

/// The body of a request, within a budget.
#[derive(Debug)]
pub(super) struct Metered {
    body: Incoming,
    /// Bytes of the head that have not been taken from the budget.
    head: usize,
    kept: usize,
    budget: Arc<Budget>,
}

impl Metered {
    /// Puts the body of a request within a budget.
    pub(super) fn request(request: http::Request<Incoming>, budget: Arc<Budget>) -> http::Request<Self> {
        let fields = request.headers().iter().map(|(name, value)| name.as_str().len() + value.len());
        let head = OF_REQUEST + request.uri().path().len() + fields.sum::<usize>();
        request.map(|body| Self { body, head, kept: 0, budget })
    }
}

impl Drop for Metered {
    fn drop(&mut self) {
        if self.kept > 0 {
            self.budget.give_back(self.kept);
        }
    }
}

/// A request for which there is no room.
#[derive(Debug, thiserror::Error)]
#[error("too much is kept of requests that have not ended")]
struct NoRoom;

impl Body for Metered {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx).map_err(Box::from);
        let more = match &polled {
            Poll::Pending => 0,
            Poll::Ready(Some(Ok(frame))) if !self.body.is_end_stream() => frame.data_ref().map_or(0, Bytes::len),
            Poll::Ready(_) => return polled,
        };
        let bytes = more + std::mem::take(&mut self.head);
        if bytes > 0 {
            if !self.budget.take(bytes) {
                return Poll::Ready(Some(Err(Box::new(NoRoom))));
            }
            self.kept += bytes;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_and_all_of_them_together_have_a_bound() {
        let total = Total::default();
        let greedy: Vec<_> = (0..OF_PROCESS / OF_CONNECTION).map(|_| total.connection()).collect();
        for connection in &greedy {
            assert!(connection.take(OF_CONNECTION));
            assert!(!connection.take(1));
        }
        let modest = total.connection();
        assert!(!modest.take(1));
        greedy[0].give_back(OF_CONNECTION);
        assert!(modest.take(1) && greedy[0].take(OF_CONNECTION - 1));
        assert!(!modest.take(1));
    }
}
