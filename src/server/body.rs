//! Bodies of HTTP/1 requests that decide nothing.
//!
//! A gateway can announce the client's body and never send it: nginx does for `auth_request`, unless its configuration
//! removes `Content-Length`. If tollgate waited for the body, the request would hang, and the gateway's next request on
//! the connection would be read as the body. So no body is waited for, and a connection whose body has not arrived
//! completely is closed after the answer.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;

use bytes::Bytes;
use http::header::{CONNECTION, EXPECT};
use http::{HeaderMap, HeaderValue, Response};
use hyper::body::{Body, Incoming};

use super::connection::Activity;
use crate::settings::Bound;

/// Polls without progress until the rest of a body counts as not arrived. hyper reads input between two polls, and only
/// once the body was polled.
const IDLE_POLLS: u8 = 2;

/// How much of a body has arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Arrived {
    Whole,
    Part,
    /// More than the bound.
    TooMuch,
}

/// Discards the part of a body that has arrived, at most `max_bytes`. Adds `connection: close` if it is incomplete.
/// Returns the bound that the body exceeds.
pub(super) async fn finish<B>(
    headers: &HeaderMap,
    body: &mut Incoming,
    max_bytes: u64,
    response: &mut Response<B>,
    activity: &Activity,
) -> Option<Bound> {
    let arrived = match headers.contains_key(EXPECT) && !body.is_end_stream() {
        // Polling the body would make hyper send `100 Continue`, and the client would send the body.
        true => Arrived::Part,
        false => discard(body, max_bytes).await,
    };
    if arrived != Arrived::Whole {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        activity.discard_at_close();
    }
    (arrived == Arrived::TooMuch).then_some(Bound::BodyBytes)
}

async fn discard(body: &mut Incoming, max_bytes: u64) -> Arrived {
    let mut left = max_bytes;
    let mut idle = 0;
    poll_fn(|cx| {
        loop {
            if body.is_end_stream() {
                return Poll::Ready(Arrived::Whole);
            }
            match Pin::new(&mut *body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(Arrived::Whole),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(Arrived::Part),
                Poll::Ready(Some(Ok(frame))) => {
                    idle = 0;
                    match left.checked_sub(frame.data_ref().map_or(0, Bytes::len) as u64) {
                        Some(rest) => left = rest,
                        None => return Poll::Ready(Arrived::TooMuch),
                    }
                }
                Poll::Pending if idle == IDLE_POLLS => return Poll::Ready(Arrived::Part),
                Poll::Pending => {
                    idle += 1;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
    })
    .await
}
