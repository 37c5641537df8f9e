//! The position of a client in its HTTP input: inside a head, or between heads.
//!
//! The scanner follows the client's bytes only as far as frame boundaries. It does not check the protocol: hyper does.

/// Set in the value of [`FrameScanner::scan`] while the client is inside a head.
pub(super) const MID_HEAD: u64 = 1;

pub(super) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Follows the bytes of a client.
#[derive(Debug)]
pub(super) enum FrameScanner {
    /// This many bytes of the HTTP/2 preface were read, and nothing else.
    Preface(usize),
    /// This many bytes of HTTP/1 were read. Heads end where requests begin, which the scanner does not see.
    Http1(u64),
    /// HTTP/2.
    Http2(Http2Frames),
}

impl Default for FrameScanner {
    fn default() -> Self {
        FrameScanner::Preface(0)
    }
}

impl FrameScanner {
    /// Returns the progress so far. HTTP/1: bytes read. Otherwise: twice the number of complete frames, plus
    /// [`MID_HEAD`] while a frame head or a list of headers is incomplete.
    pub(super) fn scan(&mut self, mut bytes: &[u8]) -> u64 {
        if let FrameScanner::Preface(known) = self {
            let rest = &PREFACE[*known..];
            let same = rest.iter().zip(bytes).take_while(|(expected, read)| expected == read).count();
            if same == rest.len() {
                bytes = &bytes[same..];
                *self = FrameScanner::Http2(Http2Frames::default());
            } else if same == bytes.len() {
                *known += same;
                return MID_HEAD;
            } else {
                *self = FrameScanner::Http1(*known as u64);
            }
        }
        match self {
            FrameScanner::Preface(_) => MID_HEAD,
            FrameScanner::Http1(read) => {
                *read += bytes.len() as u64;
                *read
            }
            FrameScanner::Http2(frames) => frames.scan(bytes),
        }
    }
}

/// Position in a sequence of HTTP/2 frames (RFC 9113, section 4.1).
///
/// ```text
///    0      3      4       5               9            9 + length
///    | length | type | flags | stream        | payload ...
/// ```
#[derive(Debug, Default)]
pub(super) struct Http2Frames {
    head: [u8; Http2Frames::HEAD_BYTES],
    /// Bytes of the frame head that were read.
    head_read: usize,
    /// Bytes of the payload that were not read yet.
    payload_left: usize,
    /// Whether a list of headers continues in the next frame.
    continues: bool,
    /// Complete frames. A list of headers counts as one.
    finished: u64,
}

impl Http2Frames {
    const HEAD_BYTES: usize = 9;
    pub(super) const HEADERS: u8 = 1;
    pub(super) const CONTINUATION: u8 = 9;
    const END_HEADERS: u8 = 4;

    fn scan(&mut self, mut bytes: &[u8]) -> u64 {
        while !bytes.is_empty() {
            if self.head_read < Self::HEAD_BYTES {
                let read = bytes.len().min(Self::HEAD_BYTES - self.head_read);
                self.head[self.head_read..self.head_read + read].copy_from_slice(&bytes[..read]);
                self.head_read += read;
                bytes = &bytes[read..];
                if self.head_read < Self::HEAD_BYTES {
                    break;
                }
                let [high, middle, low, kind, flags, ..] = self.head;
                self.payload_left = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                if matches!(kind, Self::HEADERS | Self::CONTINUATION) {
                    self.continues = flags & Self::END_HEADERS == 0;
                }
            }
            let read = bytes.len().min(self.payload_left);
            self.payload_left -= read;
            bytes = &bytes[read..];
            if self.payload_left == 0 {
                self.head_read = 0;
                self.finished += u64::from(!self.continues);
            }
        }
        // A client must begin with SETTINGS; until then it counts as inside a head.
        let mid_head = self.head_read > 0 || self.continues || self.finished == 0;
        self.finished << 1 | u64::from(mid_head)
    }
}
