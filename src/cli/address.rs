//! The address of a running server, and the exchange of one request with it.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, bail};
use bytes::Bytes;
use http::StatusCode;
use http::header::{AUTHORIZATION, HOST, HeaderValue};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tollgate::settings::Listen;

/// The address of a server.
#[derive(Clone, Debug)]
pub(super) enum ServerAddress {
    /// A host name or address, and a port.
    Tcp(String),
    Unix(PathBuf),
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ServerAddress::Tcp(host) => f.write_str(host),
            ServerAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ServerAddress {
    /// Parses `127.0.0.1:9090`, `http://127.0.0.1:9090` or `unix:/path`.
    pub(super) fn parse(text: &str) -> anyhow::Result<Self> {
        if let Some(path) = text.strip_prefix("unix:") {
            return Ok(Self::Unix(path.into()));
        }
        let host = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        let port = host.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
        match port {
            Some(1..=u16::MAX) => Ok(Self::Tcp(host.to_owned())),
            _ => bail!("the server is {text:?}, expected a host and a port such as 127.0.0.1:9090, or unix:/path"),
        }
    }

    /// The address that a server with this setting listens on, as this machine reaches it. `None` if its port is chosen
    /// by the system.
    pub(super) fn configured(listen: &Listen) -> Option<Self> {
        match listen {
            Listen::Unix(path) => Some(Self::Unix(path.clone())),
            Listen::Tcp(address) if address.port() == 0 => None,
            Listen::Tcp(address) => {
                let mut address = *address;
                // A server that listens on all addresses also listens on loopback.
                if address.ip().is_unspecified() {
                    address.set_ip(Ipv4Addr::LOCALHOST.into());
                }
                Some(Self::Tcp(address.to_string()))
            }
        }
    }

    /// Sends a request on a new connection. `port` names the port in errors, with the remedy.
    pub(super) async fn exchange(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Vec<u8>,
        port: &str,
    ) -> anyhow::Result<(StatusCode, Bytes)> {
        // Without a token the API is open to requests to this machine only.
        let host = match self {
            ServerAddress::Tcp(host) => host,
            ServerAddress::Unix(_) => "localhost",
        };
        let mut request = http::Request::builder().method(method).uri(path).header(HOST, host);
        request = request.header("content-type", "application/json");
        if let Some(token) = token {
            let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| anyhow::anyhow!("the token holds characters that cannot be sent"))?;
            value.set_sensitive(true);
            request = request.header(AUTHORIZATION, value);
        }
        let request = request.body(Full::new(Bytes::from(body)))?;
        let remedy = format!("is tollgate running there? name its {port} with --server");
        let cannot_reach = || format!("cannot reach the {port} at {self}; {remedy}");
        let response = match self {
            ServerAddress::Tcp(host) => send(TcpStream::connect(host).await.with_context(cannot_reach)?, request).await,
            ServerAddress::Unix(path) => {
                send(UnixStream::connect(path).await.with_context(cannot_reach)?, request).await
            }
        };
        response.with_context(|| format!("{self} does not answer as {}", article(port)))
    }
}

fn article(port: &str) -> String {
    if port.starts_with('A') { format!("the {port}") } else { format!("an {port}") }
}

/// A token in a file.
pub(super) fn token_in(file: &std::path::Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Ok(text.trim().to_owned())
}

/// An environment variable, if it is not empty.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

async fn send<S>(stream: S, request: http::Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The task ends with the connection, and the connection when this is dropped.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}
