//! Where a client is: in the middle of a head, waiting for answers, or silent.
//!
//! ```text
//!   stream  --- heard ------>  Activity  <------ begin, end ---  requests
//!                                ^ |
//!             look, now and then | | told: stay, leave, close
//!                                | v
//!                accept        WatchedConnection           attend
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use crate::settings::{Bound, Bounds};
use crate::telemetry::DoorMetrics;

/// The time a client has to answer GOAWAY before its idle connection is closed all the same.
const GOAWAY_GRACE: Duration = Duration::from_secs(10);

/// The same when the process stops: long enough for a round trip and for what is on its way.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// The life of a connection, as its stream and its requests tell it.
#[derive(Debug)]
pub(in crate::server) struct Activity {
    /// Requests that have begun.
    began: AtomicU64,
    /// Requests under way.
    in_flight: AtomicU64,
    /// What the client has said: see [`FrameScanner`].
    said: AtomicU64,
    /// What it had said of HTTP/1 when its last request began or ended: all that the request was made of.
    said_before: AtomicU64,
    /// Whether it speaks HTTP/1.
    plain: AtomicBool,
    directive: AtomicU8,
    waker: AtomicWaker,
    most_requests: u64,
    streams: u64,
    doors: Arc<DoorMetrics>,
}

/// What a connection is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Directive {
    /// Serve on.
    Serve,
    /// Finish what is under way.
    Drain,
    /// End.
    Close,
}

impl Activity {
    pub(super) fn new(bounds: &Bounds, doors: &Arc<DoorMetrics>) -> Arc<Self> {
        Arc::new(Self {
            began: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            // Its first words are awaited as the rest of a head is.
            said: AtomicU64::new(MID_HEAD),
            said_before: AtomicU64::new(0),
            plain: AtomicBool::new(false),
            directive: AtomicU8::new(Directive::Serve as u8),
            waker: AtomicWaker::new(),
            most_requests: bounds.requests,
            streams: bounds.streams.into(),
            doors: doors.clone(),
        })
    }

    /// Notes what was read.
    pub(super) fn record_read(&self, scanner: &mut FrameScanner, bytes: &[u8]) {
        let said = scanner.scan(bytes);
        if matches!(scanner, FrameScanner::Plain(_)) {
            self.plain.store(true, Ordering::Relaxed);
        }
        self.said.store(said, Ordering::Relaxed);
    }

    /// Begins a call that may go on for as long as its client likes, and says nothing about how busy this process is.
    pub(in crate::server) fn begin_long_call(self: &Arc<Self>) -> InFlight {
        self.began.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { activity: self.clone(), counted: false }
    }

    /// Begins a request; none when there are too many under way.
    pub(in crate::server) fn begin(self: &Arc<Self>) -> Option<InFlight> {
        self.began.fetch_add(1, Ordering::Relaxed);
        self.said_before.store(self.said.load(Ordering::Relaxed), Ordering::Relaxed);
        let mine = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let all = self.doors.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let begun = InFlight { activity: self.clone(), counted: true };
        if mine == self.streams && !self.plain.load(Ordering::Relaxed) {
            self.doors.exceeded.count(Bound::Streams);
        }
        if all > self.most_requests {
            self.doors.exceeded.count(Bound::Requests);
            return None;
        }
        Some(begun)
    }

    /// Bytes of HTTP/1 since its last request.
    pub(in crate::server) fn http1_bytes(&self) -> u64 {
        self.said.load(Ordering::Relaxed).saturating_sub(self.said_before.load(Ordering::Relaxed))
    }

    /// What to do. The task that asks is woken when that changes.
    pub(super) fn directive(&self, cx: &Context<'_>) -> Directive {
        self.waker.register(cx.waker());
        match self.directive.load(Ordering::Acquire) {
            told if told == Directive::Close as u8 => Directive::Close,
            told if told == Directive::Drain as u8 => Directive::Drain,
            _ => Directive::Serve,
        }
    }

    fn direct(&self, told: Directive) {
        self.directive.fetch_max(told as u8, Ordering::Release);
        self.waker.wake();
    }

    /// What the client is in the middle of: a number of its own for each head.
    fn mid_head(&self) -> Option<u64> {
        let said = self.said.load(Ordering::Relaxed);
        if !self.plain.load(Ordering::Relaxed) {
            return (said & MID_HEAD != 0).then_some(said);
        }
        let answering = self.in_flight.load(Ordering::Relaxed) > 0;
        let begun = said > self.said_before.load(Ordering::Relaxed);
        (begun && !answering).then(|| self.began.load(Ordering::Relaxed))
    }
}

/// A request under way, as long as this is held.
#[derive(Debug)]
pub(in crate::server) struct InFlight {
    activity: Arc<Activity>,
    /// Whether it is among the requests of the process.
    counted: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Activity { said, said_before, in_flight, doors, .. } = &*self.activity;
        said_before.store(said.load(Ordering::Relaxed), Ordering::Relaxed);
        in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.counted {
            doors.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// A connection as whoever ticks at it remembers it.
#[derive(Debug)]
pub(super) struct WatchedConnection {
    activity: Arc<Activity>,
    /// What the client was in the middle of, and when that was first seen.
    mid_head: Option<(u64, Instant)>,
    /// How many requests had begun, and since when none is under way.
    quiet: (u64, Instant),
    /// When it was told to leave.
    left: Option<Instant>,
}

impl WatchedConnection {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        let now = Instant::now();
        let mid_head = activity.mid_head().map(|mid_head| (mid_head, now));
        Self { activity, mid_head, quiet: (0, now), left: None }
    }

    /// Whether anybody else still knows it.
    pub(super) fn is_open(&self) -> bool {
        Arc::strong_count(&self.activity) > 1
    }

    pub(super) fn drain(&mut self) {
        self.left.get_or_insert_with(Instant::now);
        self.activity.direct(Directive::Drain);
    }

    /// Looks after it once it was told to leave: one whose client has nothing under way and does not go, because it never
    /// said a word or is not there any more, is closed. Whether it is still open.
    pub(super) fn check_draining(&mut self, now: Instant) -> bool {
        if self.activity.in_flight.load(Ordering::Relaxed) > 0 {
            self.left = Some(now);
        }
        let gone = self.left.is_some_and(|left| now.saturating_duration_since(left) >= DRAIN_GRACE);
        if gone {
            self.activity.direct(Directive::Close);
        }
        self.is_open() && !gone
    }

    /// Looks after it. Whether it is still open.
    pub(super) fn check(&mut self, now: Instant, bounds: &Bounds, doors: &DoorMetrics) -> bool {
        if !self.is_open() {
            return false;
        }
        let mid_head = self.activity.mid_head();
        if self.mid_head.map(|(known, _)| known) != mid_head {
            self.mid_head = mid_head.map(|mid_head| (mid_head, now));
        }
        if self.mid_head.is_some_and(|(_, since)| now - since >= bounds.head_timeout) {
            doors.exceeded.count(Bound::HeadTimeout);
            self.activity.direct(Directive::Close);
            return false;
        }
        let began = self.activity.began.load(Ordering::Relaxed);
        if self.activity.in_flight.load(Ordering::Relaxed) > 0 || began != self.quiet.0 {
            self.quiet = (began, now);
        }
        let quiet = now - self.quiet.1;
        match self.left {
            None if bounds.idle_timeout.is_some_and(|idle| quiet >= idle) => {
                doors.exceeded.count(Bound::IdleTimeout);
                self.left = Some(now);
                self.activity.direct(Directive::Drain);
            }
            Some(left) if now - left >= GOAWAY_GRACE && quiet >= GOAWAY_GRACE => {
                self.activity.direct(Directive::Close);
                return false;
            }
            None | Some(_) => {}
        }
        true
    }
}

/// Set in what was said when the client is in the middle of something.
const MID_HEAD: u64 = 1;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Listens to a client, as far as to know where in its words it is.
#[derive(Debug)]
pub(super) enum FrameScanner {
    /// So many bytes of the preface of HTTP/2 were said, and nothing else.
    Preface(usize),
    /// So many bytes of HTTP/1. Where its heads end is known by the requests that begin.
    Plain(u64),
    /// Http2Frames of HTTP/2.
    Http2Frames(Http2Frames),
}

impl Default for FrameScanner {
    fn default() -> Self {
        FrameScanner::Preface(0)
    }
}

impl FrameScanner {
    /// What was said so far: bytes of HTTP/1, else twice what was finished, and [`MID_HEAD`] when something is not.
    fn scan(&mut self, mut bytes: &[u8]) -> u64 {
        if let FrameScanner::Preface(known) = self {
            let rest = &PREFACE[*known..];
            let same = rest.iter().zip(bytes).take_while(|(expected, said)| expected == said).count();
            if same == rest.len() {
                bytes = &bytes[same..];
                *self = FrameScanner::Http2Frames(Http2Frames::default());
            } else if same == bytes.len() {
                *known += same;
                return MID_HEAD;
            } else {
                *self = FrameScanner::Plain(*known as u64);
            }
        }
        match self {
            FrameScanner::Preface(_) => MID_HEAD,
            FrameScanner::Plain(said) => {
                *said += bytes.len() as u64;
                *said
            }
            FrameScanner::Http2Frames(frames) => frames.scan(bytes),
        }
    }
}

/// Where in the frames of HTTP/2 a client is (RFC 9113, section 4.1).
///
/// ```text
///    0      3      4       5               9            9 + length
///    | length | type | flags | stream        | payload ...
/// ```
#[derive(Debug, Default)]
pub(super) struct Http2Frames {
    head: [u8; Http2Frames::HEAD],
    /// How much of the head was said.
    known: usize,
    /// How much of the payload was not.
    rest: usize,
    /// Whether a list of headers goes on in the next frame.
    goes_on: bool,
    /// Http2Frames that were said whole; a list of headers is one.
    finished: u64,
}

impl Http2Frames {
    const HEAD: usize = 9;
    const HEADERS: u8 = 1;
    const CONTINUATION: u8 = 9;
    const END_HEADERS: u8 = 4;

    fn scan(&mut self, mut bytes: &[u8]) -> u64 {
        while !bytes.is_empty() {
            if self.known < Self::HEAD {
                let said = bytes.len().min(Self::HEAD - self.known);
                self.head[self.known..self.known + said].copy_from_slice(&bytes[..said]);
                self.known += said;
                bytes = &bytes[said..];
                if self.known < Self::HEAD {
                    break;
                }
                let [high, middle, low, kind, flags, ..] = self.head;
                self.rest = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                if matches!(kind, Self::HEADERS | Self::CONTINUATION) {
                    self.goes_on = flags & Self::END_HEADERS == 0;
                }
            }
            let said = bytes.len().min(self.rest);
            self.rest -= said;
            bytes = &bytes[said..];
            if self.rest == 0 {
                self.known = 0;
                self.finished += u64::from(!self.goes_on);
            }
        }
        // Its settings are the first words of a client, which are awaited.
        let mid_head = self.known > 0 || self.goes_on || self.finished == 0;
        self.finished << 1 | u64::from(mid_head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn bounds() -> Bounds {
        Bounds { head_timeout: 10 * SECOND, idle_timeout: Some(60 * SECOND), streams: 2, ..Bounds::default() }
    }

    struct Client {
        activity: Arc<Activity>,
        scanner: FrameScanner,
        watched: WatchedConnection,
        start: Instant,
        doors: Arc<DoorMetrics>,
    }

    impl Client {
        fn new() -> Self {
            let doors = Arc::default();
            let activity = Activity::new(&bounds(), &doors);
            let watched = WatchedConnection::new(activity.clone());
            Self { activity, scanner: FrameScanner::default(), watched, start: Instant::now(), doors }
        }

        fn says(&mut self, words: &[u8]) {
            self.activity.record_read(&mut self.scanner, words);
        }

        /// What it is told after a look so many seconds from its beginning.
        fn at(&mut self, second: u64) -> Directive {
            // The first look came a moment after the connection.
            let now = self.start + Duration::from_secs(second) + Duration::from_millis(1);
            self.watched.check(now, &bounds(), &self.doors);
            self.activity.directive(&Context::from_waker(std::task::Waker::noop()))
        }

        fn counted(&self) -> Vec<(Bound, u64)> {
            self.doors.exceeded.counts().filter(|(_, count)| *count > 0).collect()
        }
    }

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1];
        frame.extend(payload);
        frame
    }

    const SETTINGS: u8 = 4;
    const PING: u8 = 6;

    #[test]
    fn a_client_that_says_nothing_or_half_a_preface_is_closed() {
        for words in [&b""[..], b"PRI * HTTP", PREFACE, &[PREFACE, &[0, 0, 0]].concat()] {
            let mut client = Client::new();
            client.says(words);
            assert_eq!([0, 5, 9].map(|second| client.at(second)), [Directive::Serve; 3]);
            assert_eq!(client.at(25), Directive::Close, "{words:?}");
            assert_eq!(client.counted(), [(Bound::HeadTimeout, 1)]);
        }
    }

    #[test]
    fn a_head_of_http_2_that_drips_is_closed_and_frames_between_heads_are_not_heads() {
        let mut client = Client::new();
        let mut begin = PREFACE.to_vec();
        begin.extend(frame(SETTINGS, 0, &[0; 6]));
        // As the network may cut it.
        for byte in &begin {
            client.says(std::slice::from_ref(byte));
        }
        for second in 0..50 {
            client.says(&frame(PING, 0, &[0; 8]));
            assert_eq!(client.at(second), Directive::Serve);
        }
        client.says(&frame(Http2Frames::HEADERS, 0, b"half"));
        for second in 50..60 {
            client.says(&frame(Http2Frames::CONTINUATION, 0, b"more"));
            assert_eq!(client.at(second), Directive::Serve, "{second}");
        }
        assert_eq!(client.at(60), Directive::Close);
        assert_eq!(client.counted(), [(Bound::HeadTimeout, 1)]);
    }

    #[test]
    fn a_head_of_http_1_that_drips_is_closed_and_its_body_is_not_a_head() {
        let mut client = Client::new();
        client.says(b"GET /authz HTTP/1.1\r\n\r\n");
        let request = client.activity.begin().expect("there is room");
        for second in 0..30 {
            client.says(b"of a body");
            assert_eq!(client.at(second), Directive::Serve);
        }
        drop(request);
        assert_eq!(client.at(50), Directive::Serve);
        client.says(b"G");
        assert_eq!([51, 60].map(|second| client.at(second)), [Directive::Serve; 2]);
        client.says(b"E");
        assert_eq!(client.at(61), Directive::Close);
    }

    #[test]
    fn a_connection_without_a_request_leaves_and_one_that_does_not_answer_is_closed() {
        let mut client = Client::new();
        client.says(b"GET /authz HTTP/1.1\r\n\r\n");
        let request = client.activity.begin();
        // Under way for longer than that.
        assert_eq!([0, 50, 100].map(|second| client.at(second)), [Directive::Serve; 3]);
        drop(request);
        assert_eq!([101, 159].map(|second| client.at(second)), [Directive::Serve; 2]);
        assert_eq!([160, 165].map(|second| client.at(second)), [Directive::Drain; 2]);
        assert_eq!(client.at(170), Directive::Close);
        assert_eq!(client.counted(), [(Bound::IdleTimeout, 1)]);
    }

    #[test]
    fn requests_under_way_are_known_until_they_end() {
        let client = Client::new();
        let in_flight = || client.doors.in_flight.load(Ordering::Relaxed);
        let first = client.activity.begin();
        let second = client.activity.begin();
        assert_eq!((in_flight(), client.counted()), (2, vec![(Bound::Streams, 1)]));
        drop((first, second));
        assert_eq!(in_flight(), 0);
    }
}
