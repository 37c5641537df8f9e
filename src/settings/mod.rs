//! What the operator chose for the doors: where they listen, what they believe, and which headers they send.

mod bounds;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use self::bounds::{Bound, Bounds};

/// The settings of all doors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// RLS, ext_authz, health and reflection.
    pub grpc: Listen,
    /// ext_authz over plain HTTP, and `/healthcheck`.
    pub http: Listen,
    /// Metrics, health and what operators ask.
    pub admin: AdminSettings,
    /// What is logged.
    pub log: Log,
    /// How it stops.
    pub drain: Drain,
    /// Headers of RLS answers. By default only `Retry-After`, since Envoy can add its own and would show both.
    pub rls_headers: HeaderFamilies,
    /// Headers of ext_authz answers, gRPC and HTTP. By default all.
    pub authz_headers: HeaderFamilies,
    /// How ext_authz makes entries of a request.
    pub authz: AuthzSettings,
    /// What clients may take.
    pub bounds: Bounds,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            grpc: Listen::Tcp(SocketAddr::from(([0, 0, 0, 0], 8081))),
            http: Listen::Tcp(SocketAddr::from(([0, 0, 0, 0], 8080))),
            admin: AdminSettings::default(),
            log: Log::default(),
            drain: Drain::default(),
            rls_headers: HeaderFamilies { x_ratelimit: false, ietf: false, retry_after: true, problem_json: false },
            authz_headers: HeaderFamilies { x_ratelimit: true, ietf: true, retry_after: true, problem_json: true },
            authz: AuthzSettings::default(),
            bounds: Bounds::default(),
        }
    }
}

/// The admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where it listens; nowhere when none.
    pub listen: Option<Listen>,
    /// Whether the operator chose that. An address that nobody chose and that is taken is done without.
    pub chosen: bool,
    /// What has to be shown, as a bearer token, to whoever asks about identities.
    pub token: Option<Token>,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { listen: Some(Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 9090)))), chosen: false, token: None }
    }
}

/// A secret that callers show. It never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// What is logged, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// One JSON object a line, for machines; else text for people.
    pub json: bool,
    /// The most refusals that are logged in a second; those left out are counted in the next line.
    pub refusals_per_second: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self { json: false, refusals_per_second: 10 }
    }
}

/// How long it takes to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// From saying so until connections close: what asks for our health has to notice. Everything is answered
    /// meanwhile.
    pub delay: Duration,
    /// The most that requests under way may take after that.
    pub timeout: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: Duration::from_secs(3), timeout: Duration::from_secs(10) }
    }
}

/// Where a door listens: `0.0.0.0:8081`, `[::]:8081`, or `unix:/run/tollgate.sock`. Port 0 takes a free one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket. A socket left behind by a dead process is replaced; a live one is an error.
    Unix(PathBuf),
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Listen::Tcp(address) => address.fmt(f),
            Listen::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Which families of headers an answer carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderFamilies {
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds from now).
    pub x_ratelimit: bool,
    /// `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-11.
    pub ietf: bool,
    /// `Retry-After` in whole seconds, rounded up, on refusals.
    pub retry_after: bool,
    /// An `application/problem+json` body (RFC 9457) on refusals for which the rule chose no body.
    pub problem_json: bool,
}

/// How ext_authz, which has no descriptors, makes one of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthzSettings {
    /// The domain asked, unless the route's `context_extensions.domain` names another.
    pub domain: String,
    /// Entries beside `remote_address`, `method`, `path` and `host`, which come by themselves.
    pub entries: Vec<(String, EntrySource)>,
    /// How many addresses, counted from the right of `X-Forwarded-For`, were written by proxies we trust. Zero
    /// believes no such header and takes the peer (semantics 34).
    pub trusted_hops: usize,
    /// Whether an address in `x-envoy-external-address` wins over that. Envoy writes it with `use_remote_address:
    /// true`, and then only for clients whose own address is public; otherwise it passes on what the client sent. So
    /// it is not believed unless the operator says that no client can do that.
    pub trust_external_address: bool,
}

impl Default for AuthzSettings {
    fn default() -> Self {
        Self { domain: "default".to_owned(), entries: Vec::new(), trusted_hops: 0, trust_external_address: false }
    }
}

/// Where an entry's value comes from. An entry that cannot be had is absent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySource {
    /// The place.
    pub from: RequestPart,
    /// The value when the place has none.
    pub default: Option<String>,
}

/// A place in an ext_authz request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestPart {
    /// A request header, lower case.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// A parameter of the query.
    Query(String),
    /// A `context_extensions` key of the route.
    Context(String),
    /// A value in the request's dynamic metadata: the namespace, then the path inside it.
    Metadata {
        /// The filter's namespace.
        namespace: String,
        /// The keys from there.
        path: Vec<String>,
    },
    /// The client certificate's principal (`source.principal`).
    Principal,
}
