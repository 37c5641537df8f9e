//! How much is kept of requests that have begun and not ended.
//!
//! tonic collects a message until its stream ends, and flow control does not bound that: what has been read may be
//! followed by more. So what is kept is counted, for each connection and for all of them. A request that would go past
//! that is answered like one that cannot be read. One that is here as a whole when it is first looked at, as nearly all
//! are, is not counted.

use std::error::Error;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use crate::server::head;
use crate::settings::{Bound, Bounds};
use crate::telemetry::DoorMetrics;

/// What a request takes beside its bytes, about.
const REQUEST_OVERHEAD_BYTES: usize = 1 << 10;

/// The bytes kept for all connections, which are counted in the doors.
#[derive(Debug)]
pub(super) struct TotalBudget {
    bounds: Bounds,
    doors: Arc<DoorMetrics>,
}

impl TotalBudget {
    /// Within these bounds.
    pub(super) fn new(bounds: &Bounds, doors: &Arc<DoorMetrics>) -> Arc<Self> {
        Arc::new(Self { bounds: bounds.clone(), doors: doors.clone() })
    }

    /// The budget of a new connection.
    pub(super) fn connection(self: &Arc<Self>) -> Arc<Budget> {
        Arc::new(Budget { kept: AtomicUsize::new(0), total: self.clone() })
    }
}

/// The bytes kept for a connection.
#[derive(Debug)]
pub(super) struct Budget {
    kept: AtomicUsize,
    total: Arc<TotalBudget>,
}

impl Budget {
    /// Takes so many bytes more, which have to be given back, or tells which bound they would go past.
    fn take(&self, bytes: usize) -> Result<(), Bound> {
        let TotalBudget { bounds, doors } = &*self.total;
        if !take(&self.kept, bytes, bounds.unfinished_bytes_per_connection) {
            return Err(Bound::UnfinishedBytesPerConnection);
        }
        if !take(&doors.unfinished_bytes, bytes, bounds.unfinished_bytes) {
            self.kept.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Bound::UnfinishedBytes);
        }
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.kept.fetch_sub(bytes, Ordering::Relaxed);
        self.total.doors.unfinished_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn take(kept: &AtomicUsize, bytes: usize, most: usize) -> bool {
    let taken = kept.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= most;
    if !taken {
        kept.fetch_sub(bytes, Ordering::Relaxed);
    }
    taken
}

/// The body of a request, within a budget and a time.
#[derive(Debug)]
pub(super) struct MeteredBody {
    body: Incoming,
    /// Bytes of the head that have not been taken from the budget.
    head: usize,
    kept: usize,
    budget: Arc<Budget>,
    /// When it has to be whole, once it had to be waited for.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Nothing comes after that; tonic asks once more all the same.
    refused: bool,
}

impl MeteredBody {
    /// Puts the body of a request within a budget, or tells which bound its head is past.
    pub(super) fn request(request: http::Request<Incoming>, budget: Arc<Budget>) -> Result<http::Request<Self>, Bound> {
        let head = REQUEST_OVERHEAD_BYTES + head::bytes(&budget.total.bounds, request.uri(), request.headers())?;
        Ok(request.map(|body| Self { body, head, kept: 0, budget, deadline: None, refused: false }))
    }

    /// The body is not whole: whether there is time left to wait for it.
    fn in_time(&mut self, cx: &mut Context<'_>) -> bool {
        let within: Duration = self.budget.total.bounds.request_timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(within)));
        deadline.as_mut().poll(cx).is_pending()
    }

    fn refuse(&mut self, bound: Bound) -> BudgetError {
        self.refused = true;
        self.budget.total.doors.exceeded.count(bound);
        BudgetError(bound)
    }
}

impl Drop for MeteredBody {
    fn drop(&mut self) {
        if self.kept > 0 {
            self.budget.give_back(self.kept);
        }
    }
}

/// A request that is not waited for any longer.
#[derive(Debug, thiserror::Error)]
#[error("the request is unfinished and past server.bounds.{}", .0.name())]
struct BudgetError(Bound);

impl Body for MeteredBody {
    type Data = Bytes;
    type Error = Box<dyn Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Box<dyn Error + Send + Sync>>>> {
        if self.refused {
            return Poll::Ready(None);
        }
        let polled = Pin::new(&mut self.body).poll_frame(cx).map_err(Box::from);
        let more = match &polled {
            Poll::Pending => 0,
            Poll::Ready(Some(Ok(frame))) if !self.body.is_end_stream() => frame.data_ref().map_or(0, Bytes::len),
            Poll::Ready(_) => return polled,
        };
        let bytes = more + std::mem::take(&mut self.head);
        if bytes > 0 {
            if let Err(bound) = self.budget.take(bytes) {
                return Poll::Ready(Some(Err(Box::new(self.refuse(bound)))));
            }
            self.kept += bytes;
        }
        if !self.in_time(cx) {
            return Poll::Ready(Some(Err(Box::new(self.refuse(Bound::RequestTimeout)))));
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
        let bounds = Bounds { unfinished_bytes_per_connection: 10, unfinished_bytes: 30, ..Bounds::default() };
        let total = TotalBudget::new(&bounds, &Arc::default());
        let greedy: Vec<_> = (0..3).map(|_| total.connection()).collect();
        for connection in &greedy {
            assert_eq!(connection.take(10), Ok(()));
            assert_eq!(connection.take(1), Err(Bound::UnfinishedBytesPerConnection));
        }
        let modest = total.connection();
        assert_eq!(modest.take(1), Err(Bound::UnfinishedBytes));
        greedy[0].give_back(10);
        assert_eq!((modest.take(1), greedy[0].take(9)), (Ok(()), Ok(())));
        assert_eq!(modest.take(1), Err(Bound::UnfinishedBytes));
    }
}
