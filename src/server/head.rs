//! The head of a request against the bounds on it.

use crate::settings::{Bound, Bounds};

/// Past the bound a head of HTTP/2 is refused by us and counted. What is so many times larger does not get here: the
/// protocol's own machinery answers 431, which is an error to Envoy, and then closes the connection. So there is much
/// room between the two.
const DECODER_LIMIT_FACTOR: usize = 4;

/// The bytes of a head, or the bound that it is past.
pub(super) fn bytes(bounds: &Bounds, uri: &http::Uri, headers: &http::HeaderMap) -> Result<usize, Bound> {
    let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
    let bytes = uri.path_and_query().map_or(0, |path| path.as_str().len()) + fields.sum::<usize>();
    match bytes {
        _ if headers.len() > bounds.headers => Err(Bound::Headers),
        _ if bytes > bounds.header_bytes => Err(Bound::HeaderBytes),
        _ => Ok(bytes),
    }
}

/// The size of a head that HTTP/2 does not even read.
pub(super) fn decoder_limit(bounds: &Bounds) -> u32 {
    u32::try_from(bounds.header_bytes.saturating_mul(DECODER_LIMIT_FACTOR)).unwrap_or(u32::MAX)
}
