//! The addresses of the ports.

use std::net::SocketAddr;

use super::decode::Decode;
use crate::config::document::node::{TreeNode, Value};
use crate::config::document::problem::{Location, Problems};
use crate::settings::Listen;

/// An address to listen on.
#[derive(Clone, Debug)]
pub(crate) struct ListenAddress(pub Listen);

impl Decode for ListenAddress {
    fn expected() -> String {
        "an address such as 0.0.0.0:8081, [::]:8081 or unix:/run/tollgate.sock".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        address(node, location, problems, &Self::expected()).map(ListenAddress)
    }
}

/// The address of the admin port. None is `off`.
#[derive(Clone, Debug)]
pub(crate) struct AdminListen(pub Option<Listen>);

impl Decode for AdminListen {
    fn expected() -> String {
        "an address such as 127.0.0.1:9090 or unix:/run/tollgate-admin.sock, or off".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(text) if *text.text == *"off" => Some(Self(None)),
            _ => address(node, location, problems, &Self::expected()).map(|listen| Self(Some(listen))),
        }
    }
}

/// Reads an address.
fn address(node: &TreeNode, location: &Location, problems: &mut Problems, expected: &str) -> Option<Listen> {
    let text = match &node.value {
        Value::Text(text) => &*text.text,
        _ => "",
    };
    let address = match text.strip_prefix("unix:") {
        Some("") => None,
        Some(path) => Some(Listen::Unix(path.into())),
        None => text.parse().ok().map(Listen::Tcp),
    };
    if address.is_none() {
        let port = text.rsplit_once(':').filter(|(host, port)| {
            let digits = !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
            digits && format!("{host}:0").parse::<SocketAddr>().is_ok()
        });
        match port {
            Some((_, port)) => problems.refuse(location, format!("but a port is at most 65535, and {port} is more")),
            None => problems.refuse(location, format!("expected {expected}")),
        }
    }
    address
}
