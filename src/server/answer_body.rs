//! The body of an answer over HTTP, which may hand out a lease.
//!
//! ```text
//!   HTTP/2   hyper asks for the next frame once the one before was sent: only then the lease stays
//!   HTTP/1   hyper takes the body as a whole. The lease stays once the connection has written everything
//! ```
//!
//! A body that is dropped before, or a connection that ends, releases the lease.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use super::connection::Activity;
use super::lease_guard::LeaseGuard;

/// The body of an answer.
#[derive(Debug)]
pub(super) struct AnswerBody {
    body: Full<Bytes>,
    guard: Option<LeaseGuard>,
    /// The connection that writes the body as a whole: of HTTP/1.
    whole: Option<Arc<Activity>>,
}

impl From<Full<Bytes>> for AnswerBody {
    fn from(body: Full<Bytes>) -> Self {
        Self { body, guard: None, whole: None }
    }
}

impl AnswerBody {
    /// The same body, which releases a lease if it is not sent. `whole` is the connection if it speaks HTTP/1.
    pub(super) fn with_lease(self, guard: LeaseGuard, whole: Option<Arc<Activity>>) -> Self {
        Self { guard: Some(guard), whole, ..self }
    }
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match (&frame, self.whole.take()) {
            (Some(_), Some(connection)) => {
                if let Some(guard) = self.guard.take() {
                    connection.keep_until_written(guard);
                }
            }
            (Some(_), None) => {}
            (None, _) => {
                if let Some(mut guard) = self.guard.take() {
                    guard.disarm();
                }
            }
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream() && self.guard.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
