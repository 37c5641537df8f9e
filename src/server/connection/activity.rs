//! The activity of a client: sending a head, waiting for responses, or idle.
//!
//! ```text
//!   stream -- record_read --> Activity <-- begin, end -- requests
//!                               ^ |
//!             check, each tick  | |  Directive: serve, drain, close
//!                               | v
//!             accept    WatchedConnection    drive
//! ```

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Context;
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::time::Instant;

use super::framing::{FrameScanner, MID_HEAD};
use super::opening::Opening;
use super::target::ReceivedTarget;
use crate::server::lease_guard::LeaseGuard;
use crate::settings::{Bound, Bounds};
use crate::telemetry::DoorMetrics;

/// Time for a client to answer GOAWAY before its idle connection is closed.
const GOAWAY_GRACE: Duration = Duration::from_secs(10);

/// The same while the process stops: enough for a round trip and for requests on their way.
const DRAIN_GRACE: Duration = Duration::from_secs(2);

/// Activity of a connection, recorded by its stream and its requests.
#[derive(Debug)]
pub(in crate::server) struct Activity {
    /// Requests that have begun.
    began: AtomicU64,
    /// Requests in flight.
    in_flight: AtomicU64,
    /// Progress of the client's input: see [`FrameScanner::scan`].
    read: AtomicU64,
    /// HTTP/1: bytes read when the last request began or ended; they all belong to requests that began.
    read_at_request: AtomicU64,
    /// Whether the client speaks HTTP/1.
    http1: AtomicBool,
    /// The protocol that the first bytes announce, as an [`Opening`].
    opening: Mutex<Opening>,
    /// HTTP/1: the target of the next request as received, if hyper reads a changed copy of it.
    received_target: Mutex<Option<ReceivedTarget>>,
    /// Whether input is discarded before the connection is closed.
    discard_at_close: AtomicBool,
    /// The leases of answers that are not written yet.
    unwritten: Mutex<Vec<LeaseGuard>>,
    has_unwritten: AtomicBool,
    directive: AtomicU8,
    waker: AtomicWaker,
    max_requests: u64,
    streams: u64,
    doors: Arc<DoorMetrics>,
}

/// What the watchdog directs a connection to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Directive {
    /// Keep serving.
    Serve,
    /// Finish the requests in flight.
    Drain,
    /// Close at once.
    Close,
}

impl Activity {
    pub(super) fn new(bounds: &Bounds, doors: &Arc<DoorMetrics>) -> Arc<Self> {
        Arc::new(Self {
            began: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            // The first bytes are subject to the head timeout, too.
            read: AtomicU64::new(MID_HEAD),
            read_at_request: AtomicU64::new(0),
            http1: AtomicBool::new(false),
            opening: Mutex::new(Opening::Unknown),
            received_target: Mutex::new(None),
            discard_at_close: AtomicBool::new(false),
            unwritten: Mutex::default(),
            has_unwritten: AtomicBool::new(false),
            directive: AtomicU8::new(Directive::Serve as u8),
            waker: AtomicWaker::new(),
            max_requests: bounds.requests,
            streams: bounds.streams.into(),
            doors: doors.clone(),
        })
    }

    /// Records bytes read from the client.
    pub(super) fn record_read(&self, scanner: &mut FrameScanner, bytes: &[u8]) {
        let read = scanner.scan(bytes);
        if matches!(scanner, FrameScanner::Http1(_)) {
            self.http1.store(true, Ordering::Relaxed);
        }
        self.read.store(read, Ordering::Relaxed);
    }

    /// Whether the next byte begins the head of another HTTP/1 request.
    pub(super) fn is_between_heads(&self) -> bool {
        self.http1.load(Ordering::Relaxed) && self.in_flight.load(Ordering::Relaxed) == 0 && self.http1_bytes() == 0
    }

    /// Stores the protocol of the connection.
    pub(super) fn set_opening(&self, opening: Opening) {
        *self.opening.lock().unwrap_or_else(PoisonError::into_inner) = opening;
    }

    /// The protocol of the connection.
    pub(in crate::server) fn opening(&self) -> Opening {
        *self.opening.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Stores the target of the next request as received.
    pub(super) fn keep_target(&self, target: Vec<u8>) {
        *self.received_target.lock().unwrap_or_else(PoisonError::into_inner) = Some(ReceivedTarget::new(target));
    }

    /// Takes the target of the beginning request as received, if hyper read a changed copy of it.
    pub(in crate::server) fn take_target(&self) -> Option<ReceivedTarget> {
        self.received_target.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Discards input for a moment before the connection is closed: a socket that is closed with unread input is reset,
    /// and the client may lose the answer.
    pub(in crate::server) fn discard_at_close(&self) {
        self.discard_at_close.store(true, Ordering::Relaxed);
    }

    pub(super) fn discards_at_close(&self) -> bool {
        self.discard_at_close.load(Ordering::Relaxed)
    }

    /// Keeps the guard of a lease whose answer is about to be written. If the connection ends before, the lease is
    /// released.
    pub(in crate::server) fn keep_until_written(&self, guard: LeaseGuard) {
        self.unwritten.lock().unwrap_or_else(PoisonError::into_inner).push(guard);
        self.has_unwritten.store(true, Ordering::Relaxed);
    }

    /// Everything was written.
    pub(super) fn record_written(&self) {
        if self.has_unwritten.load(Ordering::Relaxed) && self.has_unwritten.swap(false, Ordering::Relaxed) {
            for mut guard in std::mem::take(&mut *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner)) {
                guard.disarm();
            }
        }
    }

    /// Begins a call of unlimited length, which does not count towards the requests of the process.
    pub(in crate::server) fn begin_long_call(self: &Arc<Self>) -> InFlight {
        self.began.fetch_add(1, Ordering::Relaxed);
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        InFlight { activity: self.clone(), counted: false }
    }

    /// Begins a request. `None` when too many are in flight.
    pub(in crate::server) fn begin(self: &Arc<Self>) -> Option<InFlight> {
        self.began.fetch_add(1, Ordering::Relaxed);
        self.read_at_request.store(self.read.load(Ordering::Relaxed), Ordering::Relaxed);
        let mine = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let all = self.doors.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        let begun = InFlight { activity: self.clone(), counted: true };
        if mine == self.streams && !self.http1.load(Ordering::Relaxed) {
            self.doors.exceeded.count(Bound::Streams);
        }
        if all > self.max_requests {
            self.doors.exceeded.count(Bound::Requests);
            return None;
        }
        Some(begun)
    }

    /// HTTP/1: bytes read since the last request.
    pub(in crate::server) fn http1_bytes(&self) -> u64 {
        self.read.load(Ordering::Relaxed).saturating_sub(self.read_at_request.load(Ordering::Relaxed))
    }

    /// Returns the current directive and wakes the task when it changes.
    pub(super) fn directive(&self, cx: &Context<'_>) -> Directive {
        self.waker.register(cx.waker());
        match self.directive.load(Ordering::Acquire) {
            directive if directive == Directive::Close as u8 => Directive::Close,
            directive if directive == Directive::Drain as u8 => Directive::Drain,
            _ => Directive::Serve,
        }
    }

    fn direct(&self, directive: Directive) {
        self.directive.fetch_max(directive as u8, Ordering::Release);
        self.waker.wake();
    }

    /// Identifies the head that the client is sending, if it is sending one.
    fn mid_head(&self) -> Option<u64> {
        let read = self.read.load(Ordering::Relaxed);
        if !self.http1.load(Ordering::Relaxed) {
            return (read & MID_HEAD != 0).then_some(read);
        }
        let answering = self.in_flight.load(Ordering::Relaxed) > 0;
        let begun = read > self.read_at_request.load(Ordering::Relaxed);
        (begun && !answering).then(|| self.began.load(Ordering::Relaxed))
    }
}

/// A request in flight until dropped.
#[derive(Debug)]
pub(in crate::server) struct InFlight {
    activity: Arc<Activity>,
    /// Whether it counts towards the requests of the process.
    counted: bool,
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Activity { read, read_at_request, in_flight, doors, .. } = &*self.activity;
        read_at_request.store(read.load(Ordering::Relaxed), Ordering::Relaxed);
        in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.counted {
            doors.in_flight.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The watchdog's view of a connection.
#[derive(Debug)]
pub(super) struct WatchedConnection {
    activity: Arc<Activity>,
    /// The head that the client is sending, and when it was first seen.
    mid_head: Option<(u64, Instant)>,
    /// Requests begun so far, and the time from which on none was in flight.
    idle_since: (u64, Instant),
    /// When draining began.
    draining_since: Option<Instant>,
}

impl WatchedConnection {
    pub(super) fn new(activity: Arc<Activity>) -> Self {
        let now = Instant::now();
        let mid_head = activity.mid_head().map(|mid_head| (mid_head, now));
        Self { activity, mid_head, idle_since: (0, now), draining_since: None }
    }

    /// Whether the connection still exists.
    pub(super) fn is_open(&self) -> bool {
        Arc::strong_count(&self.activity) > 1
    }

    pub(super) fn drain(&mut self) {
        self.draining_since.get_or_insert_with(Instant::now);
        self.activity.direct(Directive::Drain);
    }

    /// Checks a draining connection: closes it when no request was in flight for [`DRAIN_GRACE`], for a client that
    /// never sent anything or is gone. Returns whether it is still open.
    pub(super) fn check_draining(&mut self, now: Instant) -> bool {
        if self.activity.in_flight.load(Ordering::Relaxed) > 0 {
            self.draining_since = Some(now);
        }
        let gone = self.draining_since.is_some_and(|since| now.saturating_duration_since(since) >= DRAIN_GRACE);
        if gone {
            self.activity.direct(Directive::Close);
        }
        self.is_open() && !gone
    }

    /// Checks the head and idle timeouts. Returns whether the connection is still open.
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
        if self.activity.in_flight.load(Ordering::Relaxed) > 0 || began != self.idle_since.0 {
            self.idle_since = (began, now);
        }
        let idle = now - self.idle_since.1;
        match self.draining_since {
            None if bounds.idle_timeout.is_some_and(|timeout| idle >= timeout) => {
                doors.exceeded.count(Bound::IdleTimeout);
                self.draining_since = Some(now);
                self.activity.direct(Directive::Drain);
            }
            Some(since) if now - since >= GOAWAY_GRACE && idle >= GOAWAY_GRACE => {
                self.activity.direct(Directive::Close);
                return false;
            }
            None | Some(_) => {}
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::super::framing::{Http2Frames, PREFACE};
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

        /// Returns the directive after a check at this second.
        fn at(&mut self, second: u64) -> Directive {
            // The first check came a moment after the connection.
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
        // In flight for longer than the idle timeout.
        assert_eq!([0, 50, 100].map(|second| client.at(second)), [Directive::Serve; 3]);
        drop(request);
        assert_eq!([101, 159].map(|second| client.at(second)), [Directive::Serve; 2]);
        assert_eq!([160, 165].map(|second| client.at(second)), [Directive::Drain; 2]);
        assert_eq!(client.at(170), Directive::Close);
        assert_eq!(client.counted(), [(Bound::IdleTimeout, 1)]);
    }

    #[test]
    fn requests_in_flight_are_counted_until_they_end() {
        let client = Client::new();
        let in_flight = || client.doors.in_flight.load(Ordering::Relaxed);
        let first = client.activity.begin();
        let second = client.activity.begin();
        assert_eq!((in_flight(), client.counted()), (2, vec![(Bound::Streams, 1)]));
        drop((first, second));
        assert_eq!(in_flight(), 0);
    }
}
