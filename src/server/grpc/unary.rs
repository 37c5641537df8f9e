//! Unary gRPC calls, read and written on hyper's bodies.
//!
//! ```text
//!   frame = flag 1 (1: compressed) | length 4 | message        request: one frame; response: one frame, grpc-status
//! ```
//!
//! tonic's codec is made for streams: for one message each way it boxes a decoder, two bodies and three futures, copies
//! the input, and allocates two buffers of 8 KiB.

use std::io::Read;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::{Buf, Bytes, BytesMut};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame};
use tonic::Status;
use tonic::body::Body;

use crate::server::headers::clean;
use crate::server::lease_guard::HandedOutLease;

/// Bytes of the flag and the length.
const FRAME_HEAD_BYTES: usize = 5;

/// The most bytes of an encoding's name that are logged.
const MAX_ENCODING_BYTES: usize = 32;

const ENCODING: HeaderName = HeaderName::from_static("grpc-encoding");

/// The body of a unary request.
pub(super) trait RequestBody: HttpBody<Data = Bytes> + Unpin + Send {}

impl<B: HttpBody<Data = Bytes> + Unpin + Send> RequestBody for B {}

/// Why a request cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    /// The message is longer than its bound.
    TooLarge,
    /// The message is compressed by a method that is not supported; its name, fit for a log.
    Encoding(String),
    /// The message is not framed or encoded correctly.
    Malformed,
}

/// Reads the single message of a unary request, at most `limit` bytes, compressed or not.
///
/// "A Compressed-Flag value of 1 indicates that the binary octet sequence of Message is compressed using the mechanism
/// declared by the Message-Encoding header." gzip is the only one that every gRPC library has.
pub(super) async fn read_message<B: RequestBody>(request: http::Request<B>, limit: usize) -> Result<Bytes, ReadError> {
    let (head, mut body) = request.into_parts();
    let mut read = Bytes::new();
    let mut prefix: Option<Prefix> = None;
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
        if prefix.is_none() && read.len() >= FRAME_HEAD_BYTES {
            prefix = Some(Prefix::take(&mut read, limit)?);
        }
        if prefix.as_ref().is_some_and(|prefix| read.len() > prefix.length) {
            return Err(ReadError::Malformed);
        }
    }
    match prefix {
        Some(Prefix { length, compressed }) if length == read.len() => match compressed {
            false => Ok(read),
            true => decompress(&head.headers, &read, limit),
        },
        _ => Err(ReadError::Malformed),
    }
}

/// The flag and the length of a frame.
struct Prefix {
    compressed: bool,
    length: usize,
}

impl Prefix {
    /// Takes it off the front.
    fn take(read: &mut Bytes, limit: usize) -> Result<Self, ReadError> {
        let (flag, length) = (read.get_u8(), read.get_u32() as usize);
        match flag {
            0 | 1 if length > limit => Err(ReadError::TooLarge),
            0 | 1 => Ok(Self { compressed: flag == 1, length }),
            2.. => Err(ReadError::Malformed),
        }
    }
}

/// Decompresses a message to at most `limit` bytes, by the encoding that the headers declare.
fn decompress(headers: &HeaderMap, message: &[u8], limit: usize) -> Result<Bytes, ReadError> {
    let encoding = headers.get(ENCODING).map(HeaderValue::as_bytes);
    match encoding {
        Some(b"gzip") => {}
        None | Some(b"identity") => return Err(ReadError::Malformed),
        Some(other) => {
            let name = String::from_utf8_lossy(&other[..other.len().min(MAX_ENCODING_BYTES)]);
            return Err(ReadError::Encoding(clean(&name).into_owned()));
        }
    }
    let mut decoder = flate2::bufread::GzDecoder::new(message);
    let mut decompressed = Vec::new();
    // One byte more than the limit tells a message that is too large.
    let most = (limit as u64).saturating_add(1);
    (&mut decoder).take(most).read_to_end(&mut decompressed).map_err(|_| ReadError::Malformed)?;
    match decoder.into_inner() {
        _ if decompressed.len() > limit => Err(ReadError::TooLarge),
        [] => Ok(decompressed.into()),
        [..] => Err(ReadError::Malformed),
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
pub(super) fn error_response(error: &ReadError) -> Response<Body> {
    match error {
        ReadError::TooLarge => Status::out_of_range("past server.bounds.message_bytes").into_http(),
        ReadError::Encoding(_) => Status::unimplemented("grpc-encoding is not supported").into_http(),
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
