//! What clients may take from the doors at most.
//!
//! | what a client does | what it meets |
//! |---|---|
//! | asks too much at once, or takes too long to say it | a refusal in the door's own words (semantics 28) |
//! | begins a head and does not finish it | a closed connection: there is nobody to answer |
//! | asks nothing for long | a connection that is closed in order |
//! | wants more connections or streams | a place in the queue |
//!
//! The bounds of a request's descriptors, entries and checks are the rules' (`RequestBounds`).

use std::time::Duration;

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
