//! Who may use the API (semantics 52).
//!
//! With tokens, who has one. Without, clients of a listener that only this machine reaches, if they are no browser: a web
//! page can send requests to this machine under any name, so the host has to be one of loopback.

use std::time::Duration;

use http::header::{AUTHORIZATION, HOST, ORIGIN};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};

use super::error::{ApiError, ApiErrorKind};
use crate::server::listen::BoundAddress;
use crate::server::token::is_bearer;
use crate::service::Service;

/// The time until a wrong token is answered: it slows down who tries many.
const WRONG_TOKEN_DELAY: Duration = Duration::from_millis(100);

/// The most wrong tokens whose answer waits. The rest is answered at once: what waits takes memory.
const MAX_DELAYED: usize = 64;

/// Where the listener of a request is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Reach {
    /// To a Unix socket.
    Socket,
    /// To loopback.
    Loopback,
    /// To an address that other machines reach.
    Network,
}

impl Reach {
    pub(in crate::server) fn of(bound: &BoundAddress) -> Self {
        match bound {
            BoundAddress::Unix(_) => Self::Socket,
            BoundAddress::Tcp(address) if address.ip().to_canonical().is_loopback() => Self::Loopback,
            BoundAddress::Tcp(_) => Self::Network,
        }
    }
}

/// Whether a browser marks the request as sent by a web page.
pub(in crate::server) fn is_from_web_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site")
}

/// Checks that a client may use the API.
pub(in crate::server) async fn check(service: &Service, head: &Parts, reach: Reach) -> Result<(), ApiError> {
    if is_from_web_page(&head.headers) {
        return Err(ApiError::new(ApiErrorKind::Forbidden, "requests from web pages are rejected"));
    }
    // The guard of the version in use is not held while a wrong token waits.
    let has_token = {
        let tokens = &service.current().settings.api.tokens;
        match tokens.is_empty() {
            true => None,
            false => {
                let value = head.headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
                // Every token is compared, so that the time does not say which one is nearly right.
                Some(tokens.iter().fold(false, |found, token| is_bearer(value, token) | found))
            }
        }
    };
    match (has_token, reach) {
        (Some(true), _) | (None, Reach::Socket) => Ok(()),
        (Some(false), _) => {
            reject(service).await;
            let text = "expected \"authorization: Bearer <token>\" with a token of server.api_token";
            Err(ApiError::new(ApiErrorKind::Unauthenticated, text))
        }
        (None, Reach::Loopback) if is_loopback_host(head) => Ok(()),
        (None, Reach::Loopback) => {
            let text = "without server.api_token the host has to be localhost or an address of loopback";
            Err(ApiError::new(ApiErrorKind::Forbidden, text))
        }
        (None, Reach::Network) => {
            let text = "the API is not open at an address that other machines reach: set server.api_token, or set \
                        server.api to an address of loopback or a Unix socket";
            Err(ApiError::new(ApiErrorKind::Forbidden, text))
        }
    }
}

/// Counts a wrong token, and waits, unless too many do.
async fn reject(service: &Service) {
    let rejected = &service.doors().rejected_tokens;
    rejected.count();
    if let Some(failures) = rejected.due(service.now()) {
        tracing::warn!(failures, "calls of the API without a valid token were rejected");
    }
    if let Some(_waiting) = rejected.wait(MAX_DELAYED) {
        tokio::time::sleep(WRONG_TOKEN_DELAY).await;
    }
}

/// Whether the request names this machine: HTTP/2 sends the host as the authority.
fn is_loopback_host(head: &Parts) -> bool {
    let named = match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers.get(HOST).and_then(|host| host.to_str().ok()),
    };
    named.is_some_and(is_loopback)
}

/// Whether `localhost:8080`, `127.0.0.1` or `[::1]:8080` is this machine.
fn is_loopback(host: &str) -> bool {
    let (name, rest) = match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, rest)) => {
            return is_port(rest) && address.parse().is_ok_and(|a: std::net::Ipv6Addr| a.is_loopback());
        }
        None => host.split_once(':').map_or((host, ""), |(name, _)| (name, &host[name.len()..])),
    };
    let name = name.to_ascii_lowercase();
    is_port(rest)
        && (name == "localhost"
            || name.ends_with(".localhost")
            || name.parse().is_ok_and(|address: std::net::Ipv4Addr| address.is_loopback()))
}

/// Whether a text is nothing, or a colon and a port.
fn is_port(text: &str) -> bool {
    text.strip_prefix(':').map_or(text.is_empty(), |port| port.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantics_52_only_names_of_this_machine_are_loopback() {
        for host in ["localhost", "LocalHost:8080", "127.0.0.1", "127.1.2.3:80", "[::1]", "[::1]:8080", "a.localhost"] {
            assert!(is_loopback(host), "{host}");
        }
        let others = ["", ":80", "localhost.evil.com", "127.0.0.1.evil.com", "evil.com", "10.0.0.1", "[::2]", "::1"];
        for host in
            others.into_iter().chain(["[::1", "[::1]x", "localhost:x", "localhost:80:80", "xlocalhost", "0.0.0.0"])
        {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
