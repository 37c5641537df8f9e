//! The bounds of requests and connections.
//!
//! | client | response |
//! |---|---|
//! | sends a request that is too large or too slow | a refusal in the protocol of the port (semantics 28) |
//! | does not finish the head of a request | the connection is closed without a response |
//! | is idle for too long | the connection is closed gracefully |
//! | opens too many connections or streams | they wait |
//!
//! The bounds of descriptors, entries and checks belong to the rules (`RequestBounds`).

use std::time::Duration;

/// The bounds of requests and connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Bytes of a gRPC message. RLS requests consist of request headers, which Envoy limits to 60 KiB by default.
    /// ext_authz requests may include a body.
    pub message_bytes: usize,
    /// Number of headers of a request.
    pub headers: usize,
    /// Bytes of the path and headers of a request. The bound is generous, because the headers of a call may contain
    /// text of the client (`initial_metadata`).
    pub header_bytes: usize,
    /// Bytes of a body that the HTTP port reads and discards to keep the connection.
    pub body_bytes: u64,
    /// Bytes of a body from which ext_authz reads entries.
    pub authz_body_bytes: usize,
    /// Memory for the unfinished requests of a connection: enough for a few requests of the maximum size, or for the
    /// maximum number of streams with a kilobyte each.
    pub unfinished_bytes_per_connection: usize,
    /// Memory for the unfinished requests of all connections.
    pub unfinished_bytes: usize,
    /// Requests in flight in the process. The default exceeds the possible number of unfinished requests, so that those
    /// alone cannot block others.
    pub requests: u64,
    /// Connections per port.
    pub connections: u32,
    /// Streams per HTTP/2 connection. Envoy opens one connection per worker, and may send a burst on it before it reads
    /// the SETTINGS frame.
    pub streams: u32,
    /// The timeout of a request head, from its first byte, and of the first bytes of a connection.
    pub head_timeout: Duration,
    /// The timeout of the rest of a request, from the end of its head.
    pub request_timeout: Duration,
    /// The timeout of a connection without a request in flight. It is long, because Envoy keeps connections open and
    /// must retry a request that is sent while its connection is closed. None disables it.
    pub idle_timeout: Option<Duration>,
    /// The longest wait that a worker may ask for.
    pub max_wait: Duration,
    /// Workers that wait in the process.
    pub waiters: u32,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            message_bytes: 1 << 20,
            headers: 512,
            header_bytes: 256 << 10,
            body_bytes: 64 << 10,
            authz_body_bytes: 64 << 10,
            unfinished_bytes_per_connection: 8 << 20,
            unfinished_bytes: 128 << 20,
            requests: 200_000,
            connections: 10_000,
            streams: 4_096,
            head_timeout: Duration::from_secs(10),
            request_timeout: Duration::from_secs(10),
            idle_timeout: Some(Duration::from_secs(3600)),
            max_wait: Duration::from_secs(600),
            waiters: 10_000,
        }
    }
}

/// Declares the bounds, each with its name in configuration and metrics.
macro_rules! bounds {
    ($($(#[doc = $doc:literal])* $name:ident: $word:literal,)*) => {
        /// A bound that a client can exceed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Bound {
            $($(#[doc = $doc])* $name,)*
        }

        impl Bound {
            /// All bounds.
            pub const ALL: [Bound; [$($word),*].len()] = [$(Bound::$name),*];

            /// The key in `server.bounds`.
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
    /// A message that is too large was refused.
    MessageBytes: "message_bytes",
    /// A request with too many headers was refused.
    Headers: "headers",
    /// A request with too large a head was refused.
    HeaderBytes: "header_bytes",
    /// A body was too large to discard: the request was answered and the connection closed.
    BodyBytes: "body_bytes",
    /// An unfinished request was refused because its connection used too much memory.
    UnfinishedBytesPerConnection: "unfinished_bytes_per_connection",
    /// An unfinished request was refused because all connections together used too much memory.
    UnfinishedBytes: "unfinished_bytes",
    /// A request was refused because too many were in flight.
    Requests: "requests",
    /// A connection had to wait for another one to end.
    Connections: "connections",
    /// A connection reached its number of streams.
    Streams: "streams",
    /// A connection was closed in the middle of a head.
    HeadTimeout: "head_timeout",
    /// A request was not complete in time.
    RequestTimeout: "request_timeout",
    /// An idle connection was closed.
    IdleTimeout: "idle_timeout",
}
