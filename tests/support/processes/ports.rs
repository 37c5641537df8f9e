//! Replaces the fixed ports of configurations by free ones.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU16, Ordering};

/// The ports in the samples: Envoy's listeners and admin page, tollgate's doors, the listeners of the other gateways,
/// and the upstream.
const WRITTEN: [u16; 11] = [10_000, 10_001, 10_002, 9_901, 8_081, 8_080, 8_083, 8_082, 8_000, 8_070, 9_000];

/// A free port for each port in the samples.
#[derive(Clone, Debug)]
pub struct Ports(BTreeMap<u16, u16>);

impl Ports {
    /// Free ports.
    pub fn free() -> Self {
        Self(WRITTEN.into_iter().map(|written| (written, free())).collect())
    }

    /// The free port for a port in the samples.
    pub fn of(&self, written: u16) -> u16 {
        self.0[&written]
    }

    /// Replaces the ports in a configuration, wherever they are a number of their own.
    pub fn rewrite(&self, text: &str) -> String {
        let mut rewritten = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(|character: char| character.is_ascii_digit()) {
            let end =
                rest[start..].find(|character: char| !character.is_ascii_digit()).map_or(rest.len(), |end| start + end);
            rewritten.push_str(&rest[..start]);
            let number = &rest[start..end];
            match number.parse().ok().and_then(|written: u16| self.0.get(&written)) {
                Some(port) => rewritten.push_str(&port.to_string()),
                None => rewritten.push_str(number),
            }
            rest = &rest[end..];
        }
        rewritten + rest
    }
}

/// A port without a listener. It lies below the range of outgoing connections, so that none of them takes it first, and
/// each process starts its search elsewhere.
pub fn free() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    loop {
        let own = (process::id() % 97) as u16 * 103;
        let port = 20_000 + (own + NEXT.fetch_add(1, Ordering::Relaxed)) % 10_000;
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return port;
        }
    }
}
