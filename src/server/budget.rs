//! Memory budget of unfinished requests.
//!
//! tonic collects a message until its stream ends, and flow control does not bound that: more may follow what was read.
//! So the bytes of unfinished requests are counted for each connection and for all. A request that would exceed a budget is
//! refused like one that cannot be read. A request that is complete when first polled, as nearly all are, is not counted.

use std::error::Error;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::Sleep;

use crate::server::head;
use crate::settings::{Bound, Bounds};
use crate::telemetry::DoorMetrics;

/// Approximate memory of a request besides its bytes.
const REQUEST_OVERHEAD_BYTES: usize = 1 << 10;

/// The budget of all connections. Its use is counted in the metrics of the doors.
#[derive(Debug)]
pub(in crate::server) struct TotalBudget {
    bounds: Bounds,
    doors: Arc<DoorMetrics>,
}

impl TotalBudget {
    pub(in crate::server) fn new(bounds: &Bounds, doors: &Arc<DoorMetrics>) -> Arc<Self> {
        Arc::new(Self { bounds: bounds.clone(), doors: doors.clone() })
    }

    /// The budget of a new connection.
    pub(in crate::server) fn connection(self: &Arc<Self>) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicUsize::new(0), total: self.clone() })
    }
}

/// The budget of a connection.
#[derive(Debug)]
pub(in crate::server) struct Budget {
    used: AtomicUsize,
    total: Arc<TotalBudget>,
}

impl Budget {
    /// Takes bytes, which the caller gives back, or returns the bound that they would exceed.
    fn take(&self, bytes: usize) -> Result<(), Bound> {
        let TotalBudget { bounds, doors } = &*self.total;
        if !take(&self.used, bytes, bounds.unfinished_bytes_per_connection) {
            return Err(Bound::UnfinishedBytesPerConnection);
        }
        if !take(&doors.unfinished_bytes, bytes, bounds.unfinished_bytes) {
            self.used.fetch_sub(bytes, Ordering::Relaxed);
            return Err(Bound::UnfinishedBytes);
        }
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
        self.total.doors.unfinished_bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

fn take(used: &AtomicUsize, bytes: usize, limit: usize) -> bool {
    let taken = used.fetch_add(bytes, Ordering::Relaxed).saturating_add(bytes) <= limit;
    if !taken {
        used.fetch_sub(bytes, Ordering::Relaxed);
    }
    taken
}

/// The body of a request, within a budget and a timeout.
#[derive(Debug)]
pub(in crate::server) struct MeteredBody {
    body: Incoming,
    /// Bytes of the head that have not been taken from the budget.
    head: usize,
    used: usize,
    budget: Arc<Budget>,
    /// The timeout of the request; starts when the body is first found incomplete.
    deadline: Option<Pin<Box<Sleep>>>,
    /// Whether the body failed. It yields nothing more, although tonic polls once more.
    refused: bool,
}

impl MeteredBody {
    /// Puts the body of a request under a budget, or returns the bound that its head exceeds.
    pub(in crate::server) fn request(
        request: http::Request<Incoming>,
        budget: Arc<Budget>,
    ) -> Result<http::Request<Self>, Bound> {
        let (head, body) = request.into_parts();
        match Self::new(&head, body, budget) {
            Ok(body) => Ok(http::Request::from_parts(head, body)),
            Err((bound, _)) => Err(bound),
        }
    }

    /// The same for a request in its parts. A body that is not put under the budget comes back.
    pub(in crate::server) fn new(head: &Parts, body: Incoming, budget: Arc<Budget>) -> Result<Self, (Bound, Incoming)> {
        match head::bytes(&budget.total.bounds, &head.uri, &head.headers) {
            Ok(bytes) => {
                let head = REQUEST_OVERHEAD_BYTES + bytes;
                Ok(Self { body, head, used: 0, budget, deadline: None, refused: false })
            }
            Err(bound) => Err((bound, body)),
        }
    }

    /// The body itself, for its rest.
    pub(in crate::server) fn incoming(&mut self) -> &mut Incoming {
        &mut self.body
    }

    /// Whether there is time left to wait for an incomplete body.
    fn in_time(&mut self, cx: &mut Context<'_>) -> bool {
        let timeout: Duration = self.budget.total.bounds.request_timeout;
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
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
        if self.used > 0 {
            self.budget.give_back(self.used);
        }
    }
}

/// An unfinished request that exceeded a bound.
#[derive(Debug, thiserror::Error)]
#[error("the unfinished request exceeds server.bounds.{}", .0.name())]
pub(in crate::server) struct BudgetError(pub(in crate::server) Bound);

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
            self.used += bytes;
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
