//! Requests of gateways over plain HTTP, and which of their headers are trusted.
//!
//! Every client of this door is trusted as a gateway: bind it where only gateways can connect. A header that a gateway
//! merely passes on was chosen by *its client*. So for each gateway only the headers that it writes itself are trusted.
//!
//! | gateway | client's address |
//! |---|---|
//! | envoy | `x-envoy-external-address` with `trust_external_address`; else `X-Forwarded-For`, `trusted_hops` from the right; else the peer. `allowed_headers` must name both headers. Without them Envoy sends neither, and all clients share Envoy's own address. |
//! | nginx | `X-Real-IP`, which the sample sets to `$remote_addr`; else `X-Forwarded-For`, `trusted_hops` from the right; else the peer. A location that does not set `X-Real-IP` passes on the client's. |
//! | forward | the last address of `X-Forwarded-For`, which the calling proxy writes, or the one `trusted_hops` from the right; else the peer |

use std::borrow::Cow;
use std::net::IpAddr;

use http::request::Parts;

use crate::server::ext_authz::{AuthzRequest, forwarded_for, joined, one_address};
use crate::settings::AuthzSettings;

/// The gateway that asks, which decides how its request is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Gateway {
    /// Envoy's raw HTTP service: method, path and host are the request's own, behind a prefix.
    Envoy,
    /// nginx `auth_request`: a GET with method and URI in headers.
    Nginx,
    /// Caddy `forward_auth` and Traefik ForwardAuth: a GET with method and URI in `X-Forwarded-*` headers.
    ForwardAuth,
}

/// The `path_prefix` of Envoy's HTTP service.
const ENVOY_PREFIX: &str = "/authz/envoy";

impl Gateway {
    /// The gateway that uses this path.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/authz/nginx" => Some(Gateway::Nginx),
            "/authz/forward" => Some(Gateway::ForwardAuth),
            path => path
                .strip_prefix(ENVOY_PREFIX)
                .filter(|rest| rest.is_empty() || rest.starts_with('/'))
                .map(|_| Gateway::Envoy),
        }
    }
}

/// A request that a gateway asks about.
pub(super) struct GatewayRequest<'a> {
    pub(super) gateway: Gateway,
    pub(super) head: &'a Parts,
    pub(super) peer: Option<IpAddr>,
}

impl GatewayRequest<'_> {
    /// The first header with this name, if it is not empty.
    fn header(&self, name: &'static str) -> Option<Cow<'_, str>> {
        self.headers(name).next().filter(|value| !value.is_empty())
    }

    /// A required header that the gateway did not send. Without it, rules about paths and methods would not match, and
    /// the request would pass.
    pub(super) fn missing_header(&self) -> Option<&'static str> {
        let (uri, method) = match self.gateway {
            Gateway::Envoy => return None,
            Gateway::Nginx => ("x-original-uri", "x-original-method"),
            Gateway::ForwardAuth => ("x-forwarded-uri", "x-forwarded-method"),
        };
        [uri, method].into_iter().find(|name| self.header(name).is_none())
    }
}

impl AuthzRequest for GatewayRequest<'_> {
    fn method(&self) -> Option<Cow<'_, str>> {
        match self.gateway {
            Gateway::Envoy => Some(Cow::Borrowed(self.head.method.as_str())),
            Gateway::Nginx => self.header("x-original-method"),
            Gateway::ForwardAuth => self.header("x-forwarded-method"),
        }
    }

    fn target(&self) -> Option<Cow<'_, str>> {
        match self.gateway {
            Gateway::Envoy => {
                let target = self.head.uri.path_and_query()?.as_str();
                target.strip_prefix(ENVOY_PREFIX).map(Cow::Borrowed)
            }
            Gateway::Nginx => self.header("x-original-uri"),
            Gateway::ForwardAuth => self.header("x-forwarded-uri"),
        }
    }

    fn host(&self) -> Option<Cow<'_, str>> {
        match self.gateway {
            // HTTP/2 sends the host as the authority.
            Gateway::Envoy | Gateway::Nginx => match self.head.uri.authority() {
                Some(authority) => Some(Cow::Borrowed(authority.as_str())),
                None => self.header("host"),
            },
            Gateway::ForwardAuth => self.header("x-forwarded-host"),
        }
    }

    fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        self.head.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()))
    }

    fn remote_address(&self, settings: &AuthzSettings) -> Option<Cow<'_, str>> {
        let hops = settings.trusted_hops;
        let (gateway_header, hops) = match self.gateway {
            Gateway::Envoy if settings.trust_external_address => {
                (joined(self.headers("x-envoy-external-address")), hops)
            }
            Gateway::Envoy => (None, hops),
            Gateway::Nginx => (joined(self.headers("x-real-ip")), hops),
            Gateway::ForwardAuth => (None, hops.max(1)),
        };
        let forwarded = || {
            let header = joined(self.headers("x-forwarded-for"))?;
            forwarded_for(&header, hops).map(|address| Cow::Owned(address.to_owned()))
        };
        let peer = || self.peer.map(|peer| Cow::Owned(peer.to_string()));
        gateway_header.and_then(one_address).or_else(forwarded).or_else(peer)
    }

    fn context(&self, _: &str) -> Option<&str> {
        None
    }

    fn metadata(&self, _: &str, _: &[String]) -> Option<Cow<'_, str>> {
        None
    }

    fn principal(&self) -> Option<&str> {
        None
    }
}
