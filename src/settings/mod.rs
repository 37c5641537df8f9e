//! The settings of the ports: addresses, bounds, trusted proxies and response headers.

mod authz;
mod bounds;
mod duration;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use self::authz::{AuthzSettings, BodyField, BodyFormat, EntrySource, Repeated, RequestPart};
pub use self::bounds::{Bound, Bounds};
pub use self::duration::{LONGEST_DURATION, parse_duration};

/// The settings of all ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The address for RLS, ext_authz, health and reflection over gRPC.
    pub grpc: Listen,
    /// The address for ext_authz over plain HTTP, and `/healthcheck`.
    pub http: Listen,
    /// The admin port: metrics, health and requests of operators.
    pub admin: AdminSettings,
    /// The log.
    pub log: Log,
    /// The drain at shutdown.
    pub drain: Drain,
    /// Headers of RLS responses. By default only `Retry-After`, because Envoy can add the others itself and the client
    /// would get both.
    pub rls_headers: HeaderFamilies,
    /// Headers of ext_authz responses over gRPC and HTTP. By default all.
    pub authz_headers: HeaderFamilies,
    /// How a descriptor is made from an ext_authz request.
    pub authz: AuthzSettings,
    /// The API of workers.
    pub api: ApiSettings,
    /// The bounds of requests and connections.
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
            rls_headers: HeaderFamilies {
                x_ratelimit: false,
                ietf: false,
                retry_after: true,
                problem_json: false,
                names: true,
            },
            authz_headers: HeaderFamilies {
                x_ratelimit: true,
                ietf: true,
                retry_after: true,
                problem_json: true,
                names: true,
            },
            authz: AuthzSettings::default(),
            api: ApiSettings::default(),
            bounds: Bounds::default(),
        }
    }
}

/// The admin port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSettings {
    /// The address. None if there is no admin port.
    pub listen: Option<Listen>,
    /// Whether the operator chose the address. If the default address is in use, there is no admin port.
    pub chosen: bool,
    /// The bearer token that requests about identities need.
    pub token: Option<Token>,
}

impl Default for AdminSettings {
    fn default() -> Self {
        Self { listen: Some(Listen::Tcp(SocketAddr::from(([127, 0, 0, 1], 9090)))), chosen: false, token: None }
    }
}

/// The API of workers and programs: `tollgate.v1.Limits`, and HTTP/JSON at `/v1` (semantics 50 to 52).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ApiSettings {
    /// An address of its own. Without one, HTTP/JSON is served at the HTTP port, and gRPC at the gRPC port.
    pub listen: Option<Listen>,
    /// The bearer tokens that open it. With two, callers move from one to the other.
    pub tokens: Vec<Token>,
    /// The domain of calls that name none.
    pub domain: String,
}

impl Default for ApiSettings {
    fn default() -> Self {
        Self { listen: None, tokens: Vec::new(), domain: "default".to_owned() }
    }
}

/// A bearer token. `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(pub String);

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// The settings of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Log {
    /// Whether to log JSON, one object per line, instead of text.
    pub json: bool,
    /// The maximum number of refusals to log per second. The next line counts those that were not logged.
    pub refusals_per_second: u32,
}

impl Default for Log {
    fn default() -> Self {
        Self { json: false, refusals_per_second: 10 }
    }
}

/// The times of a shutdown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drain {
    /// The time between reporting not ready and closing connections, for health checks to notice. Requests are still
    /// served.
    pub delay: Duration,
    /// The timeout of requests in flight after that.
    pub timeout: Duration,
}

impl Default for Drain {
    fn default() -> Self {
        Self { delay: Duration::from_secs(3), timeout: Duration::from_secs(10) }
    }
}

/// An address to listen on: `0.0.0.0:8081`, `[::]:8081`, or `unix:/run/tollgate.sock`. Port 0 selects a free port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Listen {
    /// A TCP address.
    Tcp(SocketAddr),
    /// A Unix socket. A stale socket file is replaced; a socket in use is an error.
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

/// The families of headers in a response, and whether they name anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeaderFamilies {
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` (seconds from now).
    pub x_ratelimit: bool,
    /// `RateLimit` and `RateLimit-Policy` of draft-ietf-httpapi-ratelimit-headers-11.
    pub ietf: bool,
    /// `Retry-After` in whole seconds, rounded up, on refusals.
    pub retry_after: bool,
    /// An `application/problem+json` body (RFC 9457) on refusals whose rule has no body.
    pub problem_json: bool,
    /// Whether clients see the names of rules, limiters and tiers.
    pub names: bool,
}
