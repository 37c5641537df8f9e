//! The body of a gRPC response, which may release the lease that it hands out.
//!
//! hyper drops the body of a stream that was reset, so a body dropped before its end releases the lease.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::server::connection::InFlight;
use crate::server::lease_guard::LeaseGuard;

/// The body of a response, which may guard a lease.
#[derive(Debug)]
pub(in crate::server) struct GuardedBody {
    body: Body,
    guard: Option<LeaseGuard>,
    /// Set for a streaming call, which is in flight until its body ends.
    _in_flight: Option<InFlight>,
}

impl From<Body> for GuardedBody {
    fn from(body: Body) -> Self {
        Self { body, guard: None, _in_flight: None }
    }
}

impl GuardedBody {
    /// A body that releases a lease when dropped before its end.
    pub(super) fn with_lease(body: Body, guard: LeaseGuard) -> Self {
        Self { body, guard: Some(guard), _in_flight: None }
    }

    /// A body whose request is in flight until its end.
    pub(super) fn streaming(body: Body, in_flight: Option<InFlight>) -> Self {
        Self { body, guard: None, _in_flight: in_flight }
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // hyper polls the trailers only after the message was sent.
        let ended = frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
        if ended && let Some(guard) = &mut self.guard {
            guard.disarm();
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
