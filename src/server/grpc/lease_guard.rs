//! Releases a lease whose response did not reach Envoy.
//!
//! Envoy resets a call that timed out and forgets it: it will never release the lease of that call. hyper drops the
//! body of a stream that was reset, so a body dropped before its end releases the lease. A response lost later, between
//! our kernel and Envoy, leaves a lease that expires.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::server::connection::InFlight;
use crate::service::Service;

/// The lease that a response hands out; among the extensions of the response.
#[derive(Clone, Debug)]
pub(super) struct HandedOutLease(pub(super) Arc<str>);

/// Releases a lease when dropped.
#[derive(Debug)]
pub(super) struct LeaseGuard(Option<(Arc<Service>, Arc<str>)>);

impl LeaseGuard {
    pub(super) fn new(service: Arc<Service>, lease: HandedOutLease) -> Self {
        Self(Some((service, lease.0)))
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and the lease expires.
        if let Some((service, lease)) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { service.release(&lease).await });
        }
    }
}

/// The body of a response, which may guard a lease.
#[derive(Debug)]
pub(super) struct GuardedBody {
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
