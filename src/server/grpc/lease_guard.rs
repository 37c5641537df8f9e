//! Undoing an acquired lease whose answer nobody heard.
//!
//! Envoy resets a call that took too long and forgets it: it will never release what that call acquired. hyper drops
//! the body of a stream that was reset, so a body that is dropped before its end gives the lease back. What is lost
//! later, between our kernel and Envoy, expires with the lease.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;

use crate::server::connection::InFlight;
use crate::service::Service;

/// Says, among the extensions of an answer, which lease it hands out.
#[derive(Clone, Debug)]
pub(super) struct HandedOutLease(pub(super) Arc<str>);

/// Gives a lease back when it is dropped.
#[derive(Debug)]
pub(super) struct LeaseGuard(Option<(Arc<Service>, Arc<str>)>);

impl LeaseGuard {
    pub(super) fn new(service: Arc<Service>, acquired: HandedOutLease) -> Self {
        Self(Some((service, acquired.0)))
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        // Without a runtime the process is ending; then the lease expires by itself.
        if let Some((service, lease)) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { service.release(&lease).await });
        }
    }
}

/// The body of an answer.
#[derive(Debug)]
pub(super) struct GuardedBody {
    body: Body,
    undo: Option<LeaseGuard>,
    /// Of a call that goes on as long as its answer does.
    _in_flight: Option<InFlight>,
}

impl From<Body> for GuardedBody {
    fn from(body: Body) -> Self {
        Self { body, undo: None, _in_flight: None }
    }
}

impl GuardedBody {
    /// A body that undoes a lease when it is dropped before its end.
    pub(super) fn with_lease(body: Body, undo: LeaseGuard) -> Self {
        Self { body, undo: Some(undo), _in_flight: None }
    }

    /// A body whose request is under way until its end.
    pub(super) fn streaming(body: Body, in_flight: Option<InFlight>) -> Self {
        Self { body, undo: None, _in_flight: in_flight }
    }
}

impl HttpBody for GuardedBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        // The trailers are asked for once the message has been sent.
        let ended = frame.as_ref().is_none_or(|frame| frame.as_ref().is_ok_and(Frame::is_trailers));
        if ended && let Some(undo) = &mut self.undo {
            undo.disarm();
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
