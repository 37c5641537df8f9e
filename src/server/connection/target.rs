//! Request targets with bytes that hyper's parser rejects.
//!
//! Envoy passes on `"`, `<`, `>`, a backtick and bytes above 127 in a target, and hyper answers such a request with 400
//! before a rule sees it. So each of these bytes is replaced by an underscore before hyper reads it, and the target as
//! received is stored for the door. The length stays the same, so no request can begin or end elsewhere.
//!
//! The next head is known to begin after the answer to the previous request, without reading bodies. A client that
//! sends its next request earlier gets hyper's 400 for such a target.

/// Replaces a byte that hyper rejects.
const REPLACEMENT: u8 = b'_';

/// The longest target that is stored. hyper rejects longer ones.
const MAX_TARGET_BYTES: usize = u16::MAX as usize;

/// Follows the request lines of an HTTP/1 client.
#[derive(Debug, Default)]
pub(super) struct TargetScanner {
    position: LinePosition,
    /// The target so far, if an earlier read ended inside it.
    begun: Vec<u8>,
    replaced: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum LinePosition {
    Method,
    Target,
    #[default]
    AfterTarget,
}

impl TargetScanner {
    /// Expects a request line.
    pub(super) fn begin(&mut self) {
        *self = Self { position: LinePosition::Method, ..Self::default() };
    }

    /// Replaces what hyper would reject in the next bytes. Returns the target as received once it is complete, if
    /// anything in it was replaced.
    pub(super) fn scan(&mut self, mut bytes: &mut [u8]) -> Option<Vec<u8>> {
        if self.position == LinePosition::Method {
            let method = bytes.iter().position(|byte| *byte == b' ')?;
            bytes = &mut bytes[method + 1..];
            self.position = LinePosition::Target;
        }
        if self.position != LinePosition::Target {
            return None;
        }
        let length = bytes.iter().position(|byte| matches!(byte, b' ' | b'\r' | b'\n'));
        let end = length.unwrap_or(bytes.len());
        let target = &mut bytes[..end];
        let rejected = target.iter().any(|byte| is_rejected(*byte));
        if self.begun.len() + target.len() > MAX_TARGET_BYTES || length.is_some() && !rejected && !self.replaced {
            self.position = LinePosition::AfterTarget;
            return None;
        }
        self.begun.extend_from_slice(target);
        if rejected {
            self.replaced = true;
            replace(target);
        }
        length?;
        self.position = LinePosition::AfterTarget;
        Some(std::mem::take(&mut self.begun))
    }
}

fn is_rejected(byte: u8) -> bool {
    matches!(byte, b'"' | b'<' | b'>' | b'`' | 0x80..)
}

fn replace(target: &mut [u8]) {
    target.iter_mut().filter(|byte| is_rejected(**byte)).for_each(|byte| *byte = REPLACEMENT);
}

/// A target as received. hyper read a copy in which the bytes that it rejects are replaced.
#[derive(Clone, Debug)]
pub(in crate::server) struct ReceivedTarget(Vec<u8>);

impl ReceivedTarget {
    pub(super) fn new(target: Vec<u8>) -> Self {
        Self(target)
    }

    /// The path and query as received, if `seen` is what hyper read of this target.
    pub(in crate::server) fn path_and_query(&self, seen: &http::Uri) -> Option<String> {
        let end = self.0.iter().position(|byte| *byte == b'#').unwrap_or(self.0.len());
        let received = &self.0[..end];
        let mut replaced = received.to_vec();
        replace(&mut replaced);
        let same = seen.path_and_query().is_some_and(|seen| seen.as_str().as_bytes() == replaced);
        same.then(|| String::from_utf8_lossy(received).into_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The bytes that hyper reads of these pieces, and the stored targets.
    fn scanned(pieces: &[&[u8]]) -> (String, Vec<String>) {
        let mut scanner = TargetScanner::default();
        scanner.begin();
        let (mut read, mut kept) = (Vec::new(), Vec::new());
        for piece in pieces {
            let mut piece = piece.to_vec();
            kept.extend(scanner.scan(&mut piece).map(|target| String::from_utf8_lossy(&target).into_owned()));
            read.extend(piece);
        }
        (String::from_utf8(read).expect("text"), kept)
    }

    #[test]
    fn only_the_target_changes_wherever_the_input_is_cut() {
        let head = b"\r\nGET /a<b?\"`>\xc3\xbc HTTP/1.1\r\nhost: <\">`\r\n\r\n";
        let expected =
            ("\r\nGET /a_b?_____ HTTP/1.1\r\nhost: <\">`\r\n\r\n".to_owned(), vec!["/a<b?\"`>\u{fc}".to_owned()]);
        assert_eq!(scanned(&[head]), expected);
        for cut in 0..head.len() {
            assert_eq!(scanned(&[&head[..cut], &head[cut..]]), expected, "{cut}");
        }
        let each: Vec<_> = head.chunks(1).collect();
        assert_eq!(scanned(&each), expected);
    }

    #[test]
    fn a_usual_target_is_neither_changed_nor_kept() {
        for head in ["GET /a?b=c#d HTTP/1.1\r\nx: <>\r\n\r\n", "GET /<", "PRI * HTTP/2.0\r\n\r\n", ""] {
            assert_eq!(scanned(&[head.as_bytes()]), (head.replace("/<", "/_"), vec![]));
        }
    }

    #[test]
    fn a_target_that_hyper_did_not_see_is_not_used() {
        let received = ReceivedTarget::new(b"/a<b#c".to_vec());
        let seen = |uri| received.path_and_query(&http::Uri::from_static(uri));
        assert_eq!(seen("/a_b"), Some("/a<b".to_owned()));
        assert_eq!([seen("/a_c"), seen("/"), seen("http://h/x")], [None, None, None]);
    }
}
