//! Asks the admin port of a server that runs.

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
use tollgate::server::admin::api::{Complaint, Identity};
use tollgate::settings::{Listen, Settings};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which server to ask.
#[derive(Debug, Args)]
pub struct Place {
    /// The admin port: `127.0.0.1:9090`, `tollgate.internal:9090` or `unix:/run/tollgate-admin.sock`. Without it
    /// TOLLGATE_ADMIN, else the one in the configuration.
    #[arg(long, value_name = "ADDRESS")]
    server: Option<String>,
    /// What the server's server.admin_token is, in a file. Without it TOLLGATE_ADMIN_TOKEN, else the one in the
    /// configuration.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The configuration of the server; looked for as serve does when not given.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// A server that runs.
#[derive(Debug)]
pub struct Server {
    at: At,
    token: Option<String>,
}

/// An admin port, as it is reached.
#[derive(Debug)]
enum At {
    /// A host, by its name or address, and a port.
    Tcp(String),
    Unix(PathBuf),
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Tcp(host) => f.write_str(host),
            At::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Place {
    /// Whether a server was named.
    pub fn named(&self) -> bool {
        self.server.is_some()
    }

    /// The configuration that was named.
    pub fn config(&self) -> Option<&Path> {
        self.config.as_deref()
    }

    /// Finds out where it is, and what to show there.
    pub fn server(&self) -> anyhow::Result<Server> {
        let named = self.server.clone().or_else(|| variable("TOLLGATE_ADMIN"));
        // What was named is read even where it is not needed to know where to ask: its token may be.
        let written = match named.is_none() || self.config.is_some() {
            true => Some(configured(self.config.as_deref())?),
            false => None,
        };
        let at = match (&named, &written) {
            (Some(address), _) => named_place(address)?,
            (None, Some(settings)) => configured_place(settings)?,
            (None, None) => configured_place(&Settings::default())?,
        };
        let token = match &self.token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                Some(text.trim().to_owned())
            }
            None => variable("TOLLGATE_ADMIN_TOKEN")
                .or_else(|| written.and_then(|settings| settings.admin.token).map(|token| token.0)),
        };
        Ok(Server { at, token })
    }
}

/// A variable of the environment that says something.
fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The doors as a configuration has them.
fn configured(path: Option<&Path>) -> anyhow::Result<Settings> {
    let load = Config::load(path);
    load.map(|config| config.server)
        .map_err(|errors| anyhow!("{errors}\nthe configuration says where to ask; name a --server to ask without it"))
}

fn configured_place(settings: &Settings) -> anyhow::Result<At> {
    match &settings.admin.listen {
        None => bail!("server.admin is \"off\" in the configuration: there is nobody to ask"),
        Some(Listen::Unix(path)) => Ok(At::Unix(path.clone())),
        Some(Listen::Tcp(address)) if address.port() == 0 => {
            bail!("server.admin has port 0 in the configuration, which is any: name the --server")
        }
        Some(Listen::Tcp(address)) => {
            let mut address = *address;
            // Who listens everywhere is asked here.
            if address.ip().is_unspecified() {
                address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
            }
            Ok(At::Tcp(address.to_string()))
        }
    }
}

fn named_place(text: &str) -> anyhow::Result<At> {
    if let Some(path) = text.strip_prefix("unix:") {
        return Ok(At::Unix(path.into()));
    }
    let host = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    let port = host.rsplit_once(':').filter(|(host, _)| !host.is_empty()).and_then(|(_, port)| port.parse().ok());
    match port {
        Some(1..=u16::MAX) => Ok(At::Tcp(host.to_owned())),
        _ => bail!("the server is {text:?}, expected a host and a port such as 127.0.0.1:9090, or unix:/path"),
    }
}

/// An identity as the admin port is asked for it.
pub fn identity(domain: &str, entries: &[(String, String)]) -> Identity {
    Identity { domain: domain.to_owned(), entries: entries.to_vec() }
}

impl Server {
    /// Asks for something.
    pub fn fetch<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        parse(&self.exchange("GET", path, Vec::new())?)
    }

    /// Asks a question.
    pub fn post<T: DeserializeOwned>(&self, path: &str, question: &impl Serialize) -> anyhow::Result<T> {
        parse(&self.exchange("POST", path, serde_json::to_vec(question)?)?)
    }

    /// Asks a question whose answer is a text.
    pub fn post_for_text(&self, path: &str, question: &impl Serialize) -> anyhow::Result<String> {
        Ok(String::from_utf8_lossy(&self.exchange("POST", path, serde_json::to_vec(question)?)?).into_owned())
    }

    fn exchange(&self, method: &str, path: &str, body: Vec<u8>) -> anyhow::Result<Bytes> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let exchange = async {
            let mut request = http::Request::builder().method(method).uri(path).header("host", "tollgate");
            request = request.header("content-type", "application/json");
            if let Some(token) = &self.token {
                let mut shown = HeaderValue::from_str(&format!("Bearer {token}"))
                    .map_err(|_| anyhow!("the token holds characters that cannot be sent"))?;
                shown.set_sensitive(true);
                request = request.header(AUTHORIZATION, shown);
            }
            let request = request.body(Full::new(Bytes::from(body)))?;
            let remedy = "is tollgate running there? name its admin port with --server";
            let unreached = || format!("cannot reach the admin port at {}; {remedy}", self.at);
            let answer = match &self.at {
                At::Tcp(host) => send(TcpStream::connect(host).await.with_context(unreached)?, request).await,
                At::Unix(path) => send(UnixStream::connect(path).await.with_context(unreached)?, request).await,
            };
            answer.with_context(|| format!("{} answers in another way than an admin port does", self.at))
        };
        let timed = async { tokio::time::timeout(PATIENCE, exchange).await };
        let (status, body) = runtime.block_on(timed).map_err(|_| anyhow!("{} did not answer in 10 s", self.at))??;
        if status == StatusCode::UNAUTHORIZED {
            let shown = if self.token.is_some() { "another token" } else { "a token" };
            bail!("{} wants {shown}: name its file with --token-file, or set TOLLGATE_ADMIN_TOKEN", self.at);
        }
        if !status.is_success() {
            let said = serde_json::from_slice::<Complaint>(&body).map(|complaint| complaint.error);
            bail!("{}: {}", self.at, said.unwrap_or_else(|_| format!("{status}: is this the admin port?")));
        }
        Ok(body)
    }
}

async fn send<S>(stream: S, request: http::Request<Full<Bytes>>) -> anyhow::Result<(StatusCode, Bytes)>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // It ends with the answer.
    tokio::spawn(connection);
    let answer = sender.send_request(request).await?;
    let status = answer.status();
    Ok((status, answer.into_body().collect().await?.to_bytes()))
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("the answer makes no sense: is this the admin port of the same version?")
}
