//! The protocol that the first bytes of a connection announce, and what it says about the gateway.
//!
//! hyper closes a connection that speaks another protocol, and says nothing that a log could show. A gateway then lets
//! requests pass, because its calls fail.

use std::net::IpAddr;

use super::framing::PREFACE;
use crate::telemetry::Mistake;

/// The most bytes that are needed to tell.
const MAX_BYTES: usize = PREFACE.len();

/// "PROXY" and a space begin version 1 of the PROXY protocol.
const PROXY_1: &[u8] = b"PROXY ";

/// The signature of version 2.
const PROXY_2: &[u8] = b"\r\n\r\n\0\r\nQUIT\n";

/// A TLS record of a handshake, and the major version of SSL 3 and every TLS.
const TLS: &[u8] = &[0x16, 3];

/// The protocol of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Opening {
    /// Not told yet.
    Unknown,
    /// The head of an HTTP/1 request.
    Http1,
    /// The preface of HTTP/2.
    Http2,
    /// A ClientHello.
    Tls,
    /// The preamble of the PROXY protocol, of either version.
    Proxy,
    /// Anything else.
    Other,
}

/// A port of the process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::server) enum Port {
    Grpc,
    Http,
    Admin,
    /// The API's own address, over HTTP/1, HTTP/2 and gRPC.
    Api,
}

impl Port {
    /// Describes a client of this port, for a log. A Unix socket has no address.
    pub(in crate::server) fn client(self, address: Option<IpAddr>) -> String {
        let port = match self {
            Port::Grpc => "gRPC",
            Port::Http => "HTTP",
            Port::Admin => "admin",
            Port::Api => "API",
        };
        match address {
            Some(address) => format!("{port} port, from {address}"),
            None => format!("{port} socket"),
        }
    }

    /// The mistake of a gateway that speaks a protocol at this port, if the port does not serve it.
    pub(super) fn mistake(self, opening: Opening) -> Option<Mistake> {
        match (opening, self) {
            (Opening::Http1, Port::Grpc) => Some(Mistake::Http1AtGrpcPort),
            (Opening::Http2, Port::Admin) => Some(Mistake::GrpcAtOtherPort),
            (Opening::Tls, _) => Some(Mistake::Tls),
            (Opening::Proxy, _) => Some(Mistake::ProxyProtocol),
            (Opening::Http1, Port::Http | Port::Admin | Port::Api)
            | (Opening::Http2, Port::Grpc | Port::Http | Port::Api)
            | (Opening::Unknown | Opening::Other, _) => None,
        }
    }
}

/// Reads the first bytes of a connection.
#[derive(Debug, Default)]
pub(super) struct OpeningScanner {
    read: [u8; MAX_BYTES],
    length: usize,
}

impl OpeningScanner {
    /// Reads more bytes. [`Opening::Unknown`] until enough have come.
    pub(super) fn scan(&mut self, bytes: &[u8]) -> Opening {
        let more = bytes.len().min(MAX_BYTES - self.length);
        self.read[self.length..self.length + more].copy_from_slice(&bytes[..more]);
        self.length += more;
        let read = &self.read[..self.length];
        for (signature, opening) in
            [(PREFACE, Opening::Http2), (PROXY_1, Opening::Proxy), (PROXY_2, Opening::Proxy), (TLS, Opening::Tls)]
        {
            if read.starts_with(signature) {
                return opening;
            }
            if signature.starts_with(read) {
                return Opening::Unknown;
            }
        }
        // A method is a token and ends with a space. None in use has more than 20 letters.
        let letters = read.iter().take_while(|byte| byte.is_ascii_alphabetic() || **byte == b'-').count();
        match read.get(letters) {
            Some(b' ') if letters > 0 => Opening::Http1,
            None if letters < MAX_BYTES => Opening::Unknown,
            Some(_) | None => Opening::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_bytes_tell_the_protocol_however_the_network_cuts_them() {
        let hello = [&[0x16, 3, 1, 2, 0][..], b"rest"].concat();
        let cases: [(&[u8], Opening); 11] = [
            (PREFACE, Opening::Http2),
            (b"POST /envoy.service HTTP/1.1\r\n", Opening::Http1),
            (b"PRI / HTTP/1.1\r\n\r\n", Opening::Http1),
            (b"GET / HTTP/1.0\r\n\r\n", Opening::Http1),
            (b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n", Opening::Proxy),
            (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c", Opening::Proxy),
            (&hello, Opening::Tls),
            (b"*1\r\n$4\r\nPING\r\n", Opening::Other),
            (&[0x16, 9, 9], Opening::Other),
            (b"P", Opening::Unknown),
            (b"", Opening::Unknown),
        ];
        for (bytes, expected) in cases {
            assert_eq!(OpeningScanner::default().scan(bytes), expected, "{bytes:?}");
            let mut scanner = OpeningScanner::default();
            let mut told = bytes.iter().map(|byte| scanner.scan(std::slice::from_ref(byte)));
            let told = told.find(|opening| *opening != Opening::Unknown);
            assert_eq!(told.unwrap_or(Opening::Unknown), expected, "{bytes:?} byte by byte");
        }
    }

    #[test]
    fn a_port_that_serves_a_protocol_is_no_mistake() {
        for port in [Port::Grpc, Port::Http, Port::Admin] {
            for opening in [Opening::Unknown, Opening::Other] {
                assert_eq!(port.mistake(opening), None);
            }
            assert_eq!(port.mistake(Opening::Tls), Some(Mistake::Tls));
            assert_eq!(port.mistake(Opening::Proxy), Some(Mistake::ProxyProtocol));
        }
        let served = [(Port::Grpc, Opening::Http2), (Port::Http, Opening::Http1), (Port::Http, Opening::Http2)];
        for (port, opening) in served.into_iter().chain([(Port::Admin, Opening::Http1)]) {
            assert_eq!(port.mistake(opening), None);
        }
    }
}
