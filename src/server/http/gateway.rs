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

use crate::rules;
use crate::server::authz_request::AuthzRequest;
use crate::server::connection::ReceivedTarget;
use crate::server::ext_authz::{forwarded_for, joined, one_address, origin_form};
use crate::settings::AuthzSettings;

/// The gateway that sent a request, which determines how the request is read.
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

/// Why a gateway's request is refused before the rules are tried: without method and target no rule about them would
/// match, and the request would pass.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GatewayError {
    /// The gateway did not send one of these headers.
    #[error("expected the header {}", .0.join(" or "))]
    Missing(&'static [&'static str]),
    /// The headers name different requests. The gateway writes one of them, and may pass on the other from its client.
    #[error("the headers {} differ: expected one request", .0.join(" and "))]
    Differ(&'static [&'static str]),
    /// hyper read another target than the one received.
    #[error("the target cannot be read: percent-encode it")]
    Target,
}

const ORIGINAL_URI: &str = "x-original-uri";
const ORIGINAL_URL: &str = "x-original-url";

/// A request that a gateway asks about.
pub(super) struct GatewayRequest<'a> {
    gateway: Gateway,
    head: &'a Parts,
    peer: Option<IpAddr>,
    method: Cow<'a, str>,
    target: Cow<'a, str>,
    host: Option<Cow<'a, str>>,
    body: Option<&'a [u8]>,
}

impl<'a> GatewayRequest<'a> {
    /// Reads the request that a gateway asks about. `body` is what came of the client's body.
    pub(super) fn read(
        gateway: Gateway,
        head: &'a Parts,
        body: Option<&'a [u8]>,
        peer: Option<IpAddr>,
    ) -> Result<Self, GatewayError> {
        let host = match (gateway, head.uri.authority()) {
            // HTTP/2 sends the host as the authority.
            (Gateway::Envoy | Gateway::Nginx, Some(authority)) => Some(Cow::Borrowed(authority.as_str())),
            (Gateway::Envoy | Gateway::Nginx, None) => only(head, &["host"])?,
            (Gateway::ForwardAuth, _) => only(head, &["x-forwarded-host"])?,
        };
        let (method, target, host) = match gateway {
            Gateway::Envoy => (Cow::Borrowed(head.method.as_str()), envoy_target(head)?, host),
            Gateway::Nginx => {
                let (target, host) = nginx_target(head, host)?;
                (one(head, &["x-original-method"])?, target, host)
            }
            Gateway::ForwardAuth => (one(head, &["x-forwarded-method"])?, one(head, &["x-forwarded-uri"])?, host),
        };
        Ok(Self { gateway, head, peer, method, target, host, body })
    }
}

/// The values of a header that are not empty.
fn values<'a>(head: &'a Parts, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    let values = head.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    values.filter(|value| !value.is_empty())
}

/// The only value of a header, if it has one. If it is sent several times, it has to say the same.
fn only<'a>(head: &'a Parts, name: &'static [&'static str; 1]) -> Result<Option<Cow<'a, str>>, GatewayError> {
    let mut values = values(head, name[0]);
    let Some(value) = values.next() else { return Ok(None) };
    match values.any(|other| other != value) {
        true => Err(GatewayError::Differ(name)),
        false => Ok(Some(value)),
    }
}

/// The only value of a header that the gateway has to send.
fn one<'a>(head: &'a Parts, name: &'static [&'static str; 1]) -> Result<Cow<'a, str>, GatewayError> {
    only(head, name)?.ok_or(GatewayError::Missing(name))
}

/// The target behind the prefix, as Envoy sent it.
fn envoy_target(head: &Parts) -> Result<Cow<'_, str>, GatewayError> {
    let target = match head.extensions.get::<ReceivedTarget>() {
        Some(received) => Cow::Owned(received.path_and_query(&head.uri).ok_or(GatewayError::Target)?),
        None => Cow::Borrowed(head.uri.path_and_query().map_or("", |target| target.as_str())),
    };
    Ok(match target {
        Cow::Borrowed(target) => Cow::Borrowed(target.strip_prefix(ENVOY_PREFIX).unwrap_or(target)),
        Cow::Owned(mut target) => {
            if target.starts_with(ENVOY_PREFIX) {
                target.drain(..ENVOY_PREFIX.len());
            }
            Cow::Owned(target)
        }
    })
}

/// The target in nginx's headers, and the host.
///
/// The usual configuration sends `X-Original-URI` and the client's `Host`. ingress-nginx sends `X-Original-URL` with the
/// client's host in it, and the name of the auth service as `Host`. In either case the other header can be the client's,
/// so two headers have to name the same request.
fn nginx_target<'a>(
    head: &'a Parts,
    host: Option<Cow<'a, str>>,
) -> Result<(Cow<'a, str>, Option<Cow<'a, str>>), GatewayError> {
    const NAMES: [&str; 2] = [ORIGINAL_URI, ORIGINAL_URL];
    let mut targets = NAMES.into_iter().flat_map(|name| values(head, name).map(move |value| (name, value)));
    let (name, target) = targets.next().ok_or(GatewayError::Missing(&NAMES))?;
    let host = match (name, origin_form(target.clone())) {
        (ORIGINAL_URL, (Some(authority), _)) => Some(authority),
        _ => host,
    };
    for (name, other) in targets {
        let (authority, path) = origin_form(other);
        let same_host = name == ORIGINAL_URI
            || authority.is_none_or(|authority| host.as_ref().is_some_and(|host| same_host(host, &authority)));
        if path != origin_form(target.clone()).1 || !same_host {
            return Err(GatewayError::Differ(&NAMES));
        }
    }
    Ok((target, host))
}

fn same_host(one: &str, other: &str) -> bool {
    rules::host(one) == rules::host(other)
}

impl AuthzRequest for GatewayRequest<'_> {
    fn method(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&*self.method))
    }

    fn target(&self) -> Option<Cow<'_, str>> {
        Some(Cow::Borrowed(&*self.target))
    }

    fn host(&self) -> Option<Cow<'_, str>> {
        self.host.as_deref().map(Cow::Borrowed)
    }

    fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        self.head.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()))
    }

    fn joins_headers(&self) -> bool {
        self.gateway == Gateway::Envoy
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

    fn metadata(&self, _: &str, _: &[String]) -> Vec<Cow<'_, str>> {
        Vec::new()
    }

    fn principal(&self) -> Option<&str> {
        None
    }

    fn body(&self) -> Option<&[u8]> {
        self.body
    }
}
