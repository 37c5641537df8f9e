//! Unary gRPC calls, read and written on hyper's bodies.
//!
//! ```text
//!   frame = flag 1 (0: not compressed) | length 4 | message        request: one frame; response: one frame, grpc-status
//! ```
//!
//! tonic's codec is made for streams: for one message each way it boxes a decoder, two bodies and three futures, copies
//! the input, and allocates two buffers of 8 KiB.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;

use super::lease_guard::HandedOutLease;

/// Bytes of the flag and the length.
const FRAME_HEAD_BYTES: usize = 5;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The body of a unary request.
pub(super) trait RequestBody: HttpBody<Data = Bytes> + Unpin + Send {}

impl<B: HttpBody<Data = Bytes> + Unpin + Send> RequestBody for B {}

/// Why a request cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    /// The message is longer than its bound.
    TooLarge,
    /// The message is not framed or encoded correctly.
    Malformed,
}

/// Reads the single message of a unary request, at most `limit` bytes.
///
/// "A Compressed-Flag value of 1 indicates that the binary octet sequence of Message is compressed using the mechanism
/// declared by the Message-Encoding header." We offer no compression, so none is read.
pub(super) async fn read_message<B: RequestBody>(request: http::Request<B>, limit: usize) -> Result<Bytes, ReadError> {
    if request.headers().get(ENCODING).is_some_and(|encoding| encoding != "identity") {
        return Err(ReadError::Malformed);
    }
    let mut body = request.into_body();
    let mut read = Bytes::new();
    let mut length = None;
    while !body.is_end_stream() {
        let Some(frame) = body.frame().await else { break };
        let Ok(data) = frame.map_err(|_| ReadError::Malformed)?.into_data() else { continue };
        // Nearly every message comes in one piece.
        read = match read.is_empty() {
            true => data,
            false => {
                let mut both = BytesMut::from(read);
                both.extend_from_slice(&data);
                both.freeze()
            }
        };
        if length.is_none() && read.len() >= FRAME_HEAD_BYTES {
            length = Some(take_length(&mut read, limit)?);
        }
        if length.is_some_and(|length| read.len() > length) {
            return Err(ReadError::Malformed);
        }
    }
    match length == Some(read.len()) {
        true => Ok(read),
        false => Err(ReadError::Malformed),
    }
}

/// Takes the flag and the length off the front.
fn take_length(read: &mut Bytes, limit: usize) -> Result<usize, ReadError> {
    match (read.get_u8(), read.get_u32() as usize) {
        (0, length) if length <= limit => Ok(length),
        (0, _) => Err(ReadError::TooLarge),
        (1.., _) => Err(ReadError::Malformed),
    }
}

/// Returns a response of one frame.
pub(super) fn response(frame: Bytes, lease: Option<HandedOutLease>) -> Response<Body> {
    let mut response = Response::new(Body::new(UnaryBody { frame: Some(frame), ended: false }));
    response.headers_mut().insert(http::header::CONTENT_TYPE, tonic::metadata::GRPC_CONTENT_TYPE);
    if let Some(lease) = lease {
        response.extensions_mut().insert(lease);
    }
    response
}

/// Returns the error response, which the door then replaces by its refusal.
pub(super) fn error_response(error: ReadError) -> Response<Body> {
    match error {
        ReadError::TooLarge => Status::out_of_range("past server.bounds.message_bytes").into_http(),
        ReadError::Malformed => Status::internal("the request message is malformed").into_http(),
    }
}

/// One frame, then trailers with status OK.
struct UnaryBody {
    frame: Option<Bytes>,
    ended: bool,
}

impl HttpBody for UnaryBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Ready(match (self.frame.take(), self.ended) {
            (Some(frame), _) => Some(Ok(Frame::data(frame))),
            (None, false) => {
                self.ended = true;
                let mut trailers = HeaderMap::with_capacity(1);
                trailers.insert(Status::GRPC_STATUS, HeaderValue::from_static("0"));
                Some(Ok(Frame::trailers(trailers)))
            }
            (None, true) => None,
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}
