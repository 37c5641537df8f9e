//! How gateways ask about a request by plain HTTP, and which of what they say is believed.
//!
//! Whoever can connect to this door is believed to be the gateway: bind it where only gateways are. What a gateway
//! merely passes on is the *client's* word; so each flavour believes the headers that its gateway writes itself, and
//! no others.
//!
//! | flavour | client's address |
//! |---|---|
//! | envoy | `x-envoy-external-address` with `trust_external_address`; else `X-Forwarded-For`, `trusted_hops` from the right; else the peer. Both have to be among `allowed_headers`, or Envoy sends neither and all clients are one: Envoy. |
//! | nginx | `X-Real-IP`, which the sample sets to `$remote_addr`; else `X-Forwarded-For`, `trusted_hops` from the right; else the peer. A location that does not set it passes on the client's. |
//! | forward | the last of `X-Forwarded-For`, which the asking proxy writes, or `trusted_hops` from the right; else the peer |

use std::borrow::Cow;
use std::net::IpAddr;

use http::request::Parts;

use crate::server::ext_authz::{AuthzRequest, forwarded_for, joined, one_address};
use crate::settings::AuthzSettings;

/// Who asks, and so how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavour {
    /// Envoy's raw HTTP service: method, path and host are the request's own, behind a prefix.
    Envoy,
    /// nginx `auth_request`: a GET whose headers tell method and URI.
    Nginx,
    /// Caddy `forward_auth` and Traefik ForwardAuth: a GET whose `X-Forwarded-*` headers tell them.
    Forward,
}

const ENVOY: &str = "/authz/envoy";

impl Flavour {
    /// The flavour that a path asks for.
    pub(super) fn of(path: &str) -> Option<Self> {
        match path {
            "/authz/nginx" => Some(Flavour::Nginx),
            "/authz/forward" => Some(Flavour::Forward),
            path => {
                path.strip_prefix(ENVOY).filter(|rest| rest.is_empty() || rest.starts_with('/')).map(|_| Flavour::Envoy)
            }
        }
    }
}

/// A request that a gateway asks about.
pub(super) struct Told<'a> {
    pub(super) flavour: Flavour,
    pub(super) head: &'a Parts,
    pub(super) peer: Option<IpAddr>,
}

impl Told<'_> {
    /// The first header of a name that says anything.
    fn header(&self, name: &'static str) -> Option<Cow<'_, str>> {
        self.headers(name).next().filter(|value| !value.is_empty())
    }

    /// The header that tells what is asked for, where the gateway did not send it. Rules about paths and methods
    /// would not match, and the request would pass.
    pub(super) fn missing(&self) -> Option<&'static str> {
        let (uri, method) = match self.flavour {
            Flavour::Envoy => return None,
            Flavour::Nginx => ("x-original-uri", "x-original-method"),
            Flavour::Forward => ("x-forwarded-uri", "x-forwarded-method"),
        };
        [uri, method].into_iter().find(|name| self.header(name).is_none())
    }
}

impl AuthzRequest for Told<'_> {
    fn method(&self) -> Option<Cow<'_, str>> {
        match self.flavour {
            Flavour::Envoy => Some(Cow::Borrowed(self.head.method.as_str())),
            Flavour::Nginx => self.header("x-original-method"),
            Flavour::Forward => self.header("x-forwarded-method"),
        }
    }

    fn target(&self) -> Option<Cow<'_, str>> {
        match self.flavour {
            Flavour::Envoy => {
                let target = self.head.uri.path_and_query()?.as_str();
                target.strip_prefix(ENVOY).map(Cow::Borrowed)
            }
            Flavour::Nginx => self.header("x-original-uri"),
            Flavour::Forward => self.header("x-forwarded-uri"),
        }
    }

    fn host(&self) -> Option<Cow<'_, str>> {
        match self.flavour {
            // HTTP/2 has the host in its target.
            Flavour::Envoy | Flavour::Nginx => match self.head.uri.authority() {
                Some(authority) => Some(Cow::Borrowed(authority.as_str())),
                None => self.header("host"),
            },
            Flavour::Forward => self.header("x-forwarded-host"),
        }
    }

    fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        self.head.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()))
    }

    fn remote_address(&self, settings: &AuthzSettings) -> Option<Cow<'_, str>> {
        let hops = settings.trusted_hops;
        let (written, hops) = match self.flavour {
            Flavour::Envoy if settings.trust_external_address => {
                (joined(self.headers("x-envoy-external-address")), hops)
            }
            Flavour::Envoy => (None, hops),
            Flavour::Nginx => (joined(self.headers("x-real-ip")), hops),
            Flavour::Forward => (None, hops.max(1)),
        };
        let forwarded = || {
            let header = joined(self.headers("x-forwarded-for"))?;
            forwarded_for(&header, hops).map(|address| Cow::Owned(address.to_owned()))
        };
        let peer = || self.peer.map(|peer| Cow::Owned(peer.to_string()));
        written.and_then(one_address).or_else(forwarded).or_else(peer)
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
