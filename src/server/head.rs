//! The head of a request: its size, checked against the bounds, and its media type.

use crate::settings::{Bound, Bounds};

/// A head past the bound is rejected and counted by the door. A head this many times larger never reaches the door:
/// the HTTP/2 decoder answers 431, which is an error to Envoy, and closes the connection. Hence the distance.
const DECODER_LIMIT_FACTOR: usize = 4;

/// Returns the bytes of a head, or the bound that it exceeds.
pub(super) fn bytes(bounds: &Bounds, uri: &http::Uri, headers: &http::HeaderMap) -> Result<usize, Bound> {
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    let bytes = uri.path_and_query().map_or(0, |path| path.as_str().len()) + fields.sum::<usize>();
    match bytes {
        _ if headers.len() > bounds.headers => Err(Bound::Headers),
        _ if bytes > bounds.header_bytes => Err(Bound::HeaderBytes),
        _ => Ok(bytes),
    }
}

/// The size from which the HTTP/2 decoder rejects a head.
pub(super) fn decoder_limit(bounds: &Bounds) -> u32 {
    u32::try_from(bounds.header_bytes.saturating_mul(DECODER_LIMIT_FACTOR)).unwrap_or(u32::MAX)
}

/// Whether a request is a call of gRPC, by its media type.
pub(super) fn is_grpc(headers: &http::HeaderMap) -> bool {
    headers
        .get(http::header::CONTENT_TYPE)
        .is_some_and(|media_type| media_type.as_bytes().starts_with(b"application/grpc"))
}
