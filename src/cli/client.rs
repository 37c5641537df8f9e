//! A client of the admin port of a running server.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::StatusCode;
use http::header::{AUTHORIZATION, HeaderValue};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tollgate::config::Config;
use tollgate::server::admin::api::{ErrorBody, IdentityQuery};
use tollgate::settings::{Listen, Settings};

/// The timeout of a request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The arguments that select a server.
#[derive(Debug, Args)]
pub(super) struct ServerArgs {
    /// The admin port: `127.0.0.1:9090`, `tollgate.internal:9090` or `unix:/run/tollgate-admin.sock`. By default
    /// TOLLGATE_ADMIN, else the one in the configuration.
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,
    /// A file with the server's server.admin_token. By default TOLLGATE_ADMIN_TOKEN, else the one in the configuration.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The configuration of the server. By default the one that serve would use.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// A client of one server.
#[derive(Debug)]
pub(super) struct AdminClient {
    address: AdminAddress,
    token: Option<String>,
}

/// The address of an admin port.
#[derive(Debug)]
enum AdminAddress {
    /// A host name or address, and a port.
    Tcp(String),
    Unix(PathBuf),
}

impl fmt::Display for AdminAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AdminAddress::Tcp(host) => f.write_str(host),
            AdminAddress::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl ServerArgs {
    /// Whether `--server` is given.
    pub(super) fn named(&self) -> bool {
        self.server.is_some()
    }

    /// The value of `--config`.
    pub(super) fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Finds the address of the admin port and its token.
    pub(super) fn client(&self) -> anyhow::Result<AdminClient> {
        let named = self.server.clone().or_else(|| variable("TOLLGATE_ADMIN"));
        // A named configuration is read even if the address is known, because it may have the token.
        let settings = match named.is_none() || self.config.is_some() {
            true => Some(load_settings(self.config.as_deref())?),
            false => None,
        };
        let address = match (&named, &settings) {
            (Some(named), _) => parse_address(named)?,
            (None, Some(settings)) => configured_address(settings)?,
            (None, None) => configured_address(&Settings::default())?,
        };
        let token = match &self.token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                Some(text.trim().to_owned())
            }
            None => variable("TOLLGATE_ADMIN_TOKEN")
                .or_else(|| settings.and_then(|settings| settings.admin.token).map(|token| token.0)),
        };
        Ok(AdminClient { address, token })
    }
}

/// An environment variable, if it is not empty.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// Loads the settings of a configuration.
fn load_settings(path: Option<&Path>) -> anyhow::Result<Settings> {
    let load = Config::load(path);
    load.map(|config| config.server).map_err(|errors| {
        anyhow!("{errors}\nthe configuration has the address of the server; name it with --server instead")
    })
}

fn configured_address(settings: &Settings) -> anyhow::Result<AdminAddress> {
    match &settings.admin.listen {
        None => bail!("server.admin is \"off\" in the configuration: the server has no admin port"),
        Some(Listen::Unix(path)) => Ok(AdminAddress::Unix(path.clone())),
        Some(Listen::Tcp(address)) if address.port() == 0 => {
            bail!("server.admin has port 0 in the configuration, so the port is unknown: name it with --server")
        }
        Some(Listen::Tcp(address)) => {
            let mut address = *address;
            // A server that listens on all addresses also listens on loopback.
            if address.ip().is_unspecified() {
                address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            }
            Ok(AdminAddress::Tcp(address.to_string()))
        }
    }
}

fn parse_address(text: &str) -> anyhow::Result<AdminAddress> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(AdminAddress::Unix(path.into()));
    }
    let host = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let port = host.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
    match port {
        Some(1..=u16::MAX) => Ok(AdminAddress::Tcp(host.to_owned())),
        _ => bail!("the server is {text:?}, expected a host and a port such as 127.0.0.1:9090, or unix:/path"),
    }
}

/// A query for the counters of an identity.
pub(super) fn identity(domain: &str, entries: &[(String, String)]) -> IdentityQuery {
    IdentityQuery { domain: domain.to_owned(), entries: entries.to_vec() }
}

impl AdminClient {
    /// Sends a GET request and parses the JSON response.
    pub(super) fn fetch<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        parse(&self.exchange("GET", path, Vec::new())?)
    }

    /// Sends a POST request and parses the JSON response.
    pub(super) fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> anyhow::Result<T> {
        parse(&self.exchange("POST", path, serde_json::to_vec(body)?)?)
    }

    /// Sends a POST request and returns the text of the response.
    pub(super) fn post_for_text(&self, path: &str, body: &impl Serialize) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.exchange("POST", path, serde_json::to_vec(body)?)?).into_owned())
    }

    fn exchange(&self, method: &str, path: &str, body: Vec<u8>) -> anyhow::Result<Bytes> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let exchange = async {
            let mut request = http::Request::builder().method(method).uri(path).header("host", "tollgate");
            request = request.header("content-type", "application/json");
            if let Some(token) = &self.token {
                let mut value = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| anyhow!("the token holds characters that cannot be sent"))?;
                value.set_sensitive(true);
                request = request.header(AUTHORIZATION, value);
            }
            let request = request.body(Full::new(Bytes::from(body)))?;
            let remedy = "is tollgate running there? name its admin port with --server";
            let cannot_reach = || format!("cannot reach the admin port at {}; {remedy}", self.address);
            let response = match &self.address {
                AdminAddress::Tcp(host) => {
                    send(TcpStream::connect(host).await.with_context(cannot_reach)?, request).await
                }
                AdminAddress::Unix(path) => {
                    send(UnixStream::connect(path).await.with_context(cannot_reach)?, request).await
                }
            };
            response.with_context(|| format!("{} does not answer as an admin port", self.address))
        };
        let timed = async { tokio::time::timeout(REQUEST_TIMEOUT, exchange).await };
        let (status, body) =
            runtime.block_on(timed).map_err(|_| anyhow!("{} did not answer in 10 s", self.address))??;
        if status == StatusCode::UNAUTHORIZED {
            let token = if self.token.is_some() { "another token" } else { "a token" };
            bail!("{} needs {token}: name its file with --token-file, or set TOLLGATE_ADMIN_TOKEN", self.address);
        }
        if !status.is_success() {
            let text = serde_json::from_slice::<ErrorBody>(&body).map(|body| body.error);
            bail!("{}: {}", self.address, text.unwrap_or_else(|_| format!("{status}: is this the admin port?")));
        }
        Ok(body)
    }
}

async fn send<S>(stream: S, request: http::Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // The task ends with the connection.
    tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("the response cannot be parsed: is this the admin port of the same version?")
}
