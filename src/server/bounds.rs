//! What a client may take: the bounds of the doors, and how often each was met.
//!
//! | what a client does | what it meets |
//! |---|---|
//! | asks too much at once, or takes too long to say it | a refusal in the door's own words (semantics 28) |
//! | begins a head and does not finish it | a closed connection: there is nobody to answer |
//! | asks nothing for long | a connection that is closed in order |
//! | wants more connections or streams | a place in the queue |
//!
//! Requests are bounded by [`RequestBounds`](crate::rules::RequestBounds) as well, which the rules keep.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::telemetry::DoorFact;

/// What clients may take from the doors at most.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a gRPC message. RLS questions are made of request headers, which Envoy bounds at 60 KiB unless told
    /// otherwise; ext_authz may bring a body, which nothing here reads.
    pub message_bytes: usize,
    /// Headers of a request.
    pub headers: usize,
    /// Bytes of a request's path and headers. Those of a call may carry text of the client's (`initial_metadata`), so
    /// there is much room.
    pub header_bytes: usize,
    /// Bytes of a body that the HTTP door passes over to keep the connection.
    pub body_bytes: u64,
    /// Bytes kept for the unfinished requests of a connection: room for a few requests of the largest size, or for as
    /// many streams as a connection may have with a kilobyte each.
    pub unfinished_bytes_per_connection: usize,
    /// Bytes kept for the unfinished requests of all connections.
    pub unfinished_bytes: usize,
    /// Requests under way in the process. By default more than there can be unfinished ones, so that these alone are
    /// in nobody's way.
    pub requests: u64,
    /// Connections of a door.
    pub connections: u32,
    /// Streams of a connection of HTTP/2. Envoy opens a connection for each worker and sends whole bursts on it before
    /// it reads our settings.
    pub streams: u32,
    /// The time a client has for the head of a request, from its first byte; and for its first words.
    pub head_timeout: Duration,
    /// The time a client has for the rest of a request, from the end of its head.
    pub request_timeout: Duration,
    /// How long a connection may have no request under way. Envoy keeps connections, and a request on its way while
    /// one is closed has to be repeated, so this is long. None lets them stay.
    pub idle_timeout: Option<Duration>,
}

/// Past the bound a head of HTTP/2 is refused by us and counted. What is so many times larger does not get here: the
/// protocol's own machinery answers 431, which is an error to Envoy, and then closes the connection. So there is much
/// room between the two.
const UNREADABLE: usize = 4;

impl Bounds {
    /// The bytes of a head, or the bound that it is past.
    pub(super) fn head(&self, uri: &http::Uri, headers: &http::HeaderMap) -> Result<usize, Bound> {
        let fields = headers.iter().map(|(name, value)| name.as_str().len() + value.len());
        let bytes = uri.path_and_query().map_or(0, |path| path.as_str().len()) + fields.sum::<usize>();
        match bytes {
            _ if headers.len() > self.headers => Err(Bound::Headers),
            _ if bytes > self.header_bytes => Err(Bound::HeaderBytes),
            _ => Ok(bytes),
        }
    }

    /// The size of a head that HTTP/2 does not even read.
    pub(super) fn unreadable_head(&self) -> u32 {
        u32::try_from(self.header_bytes.saturating_mul(UNREADABLE)).unwrap_or(u32::MAX)
    }
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            message_bytes: 1 << 20,
            headers: 512,
            header_bytes: 256 << 10,
            body_bytes: 64 << 10,
            unfinished_bytes_per_connection: 8 << 20,
            unfinished_bytes: 128 << 20,
            requests: 200_000,
            connections: 10_000,
            streams: 4_096,
            head_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(3600)),
        }
    }
}

/// Declares the bounds, each with the word that configuration and metrics have for it.
macro_rules! bounds {
    ($($(#[doc = $doc:literal])* $name:ident: $word:literal,)*) => {
        /// A bound that a client can meet.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bound {
            $($(#[doc = $doc])* $name,)*
        }

        impl Bound {
            /// All of them.
            pub const ALL: [Bound; [$($word),*].len()] = [$(Bound::$name),*];

            /// Its key in `server.bounds`.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Bound::$name => $word,)*
                }
            }
        }
    };
}

bounds! {
    /// A request with too many descriptors was refused.
    Descriptors: "descriptors",
    /// A request with a descriptor of too many entries was refused.
    Entries: "entries",
    /// A request that makes too many checks was refused.
    Checks: "checks",
    /// A message too large was refused.
    MessageBytes: "message_bytes",
    /// A request with too many headers was refused.
    Headers: "headers",
    /// A request with a head too large was refused.
    HeaderBytes: "header_bytes",
    /// A body was too large to be passed over: the question was answered and the connection closed.
    BodyBytes: "body_bytes",
    /// An unfinished request was refused for what its connection has begun.
    UnfinishedBytesPerConnection: "unfinished_bytes_per_connection",
    /// An unfinished request was refused for what all connections have begun.
    UnfinishedBytes: "unfinished_bytes",
    /// A request was refused because so many were under way.
    Requests: "requests",
    /// A connection had to wait for another one to end.
    Connections: "connections",
    /// A connection had as many requests under way as it may have streams.
    Streams: "streams",
    /// A connection was closed in the middle of a head.
    HeadTimeout: "head_timeout",
    /// A request did not become whole in time.
    RequestTimeout: "request_timeout",
    /// A connection was closed because it asked nothing.
    IdleTimeout: "idle_timeout",
}

/// How often each bound was met.
#[derive(Debug, Default)]
pub struct Exceeded([AtomicU64; Bound::ALL.len()]);

impl Exceeded {
    /// Counts one more.
    pub fn count(&self, bound: Bound) {
        self.0[bound as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All of them, also those that nobody met.
    pub fn counts(&self) -> impl Iterator<Item = (Bound, u64)> + '_ {
        Bound::ALL.into_iter().map(|bound| (bound, self.0[bound as usize].load(Ordering::Relaxed)))
    }
}

/// What clients take at the moment, and what was turned away since the start: one for all doors of a process.
#[derive(Debug, Default)]
pub struct Tally {
    /// How often each bound was met.
    pub exceeded: Exceeded,
    /// Requests that panicked.
    pub panics: AtomicU64,
    /// Requests under way.
    pub under_way: AtomicU64,
    /// Bytes kept of requests that have begun and not ended.
    pub unfinished_bytes: AtomicUsize,
    /// Open connections of the gRPC door.
    pub grpc_connections: AtomicU64,
    /// Open connections of the HTTP door.
    pub http_connections: AtomicU64,
    /// Open connections of the admin port.
    pub admin_connections: AtomicU64,
}

impl Tally {
    /// The same for the metrics.
    pub(super) fn facts(&self) -> Vec<DoorFact> {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let fact = |name, text, label, counts, gauge| DoorFact { name, text, label, counts, gauge };
        let exceeded = self.exceeded.counts().map(|(bound, count)| (bound.name(), count)).collect();
        let open = [
            ("grpc", now(&self.grpc_connections)),
            ("http", now(&self.http_connections)),
            ("admin", now(&self.admin_connections)),
        ];
        let one = |count| vec![("", count)];
        let unfinished = self.unfinished_bytes.load(Ordering::Relaxed) as u64;
        vec![
            fact(EXCEEDED, "Times that a client exceeded a bound of server.bounds.", Some("bound"), exceeded, false),
            fact(PANICS, "Requests that panicked.", None, one(now(&self.panics)), false),
            fact(CONNECTIONS, "Open connections by door.", Some("door"), open.into(), true),
            fact(UNDER_WAY, "Requests in flight.", None, one(now(&self.under_way)), true),
            fact(UNFINISHED, "Memory held for unfinished requests.", None, one(unfinished), true),
        ]
    }
}

const EXCEEDED: &str = "tollgate_bounds_exceeded_total";
const PANICS: &str = "tollgate_panics_total";
const CONNECTIONS: &str = "tollgate_connections";
const UNDER_WAY: &str = "tollgate_requests_under_way";
const UNFINISHED: &str = "tollgate_unfinished_bytes";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_counted_under_its_own_name() {
        let exceeded = Exceeded::default();
        exceeded.count(Bound::Headers);
        exceeded.count(Bound::IdleTimeout);
        exceeded.count(Bound::IdleTimeout);
        let counted: Vec<_> = exceeded.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(Bound::Headers, 1), (Bound::IdleTimeout, 2)]);
        let mut names: Vec<_> = Bound::ALL.iter().map(|bound| bound.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Bound::ALL.len());
    }
}
