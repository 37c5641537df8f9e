//! Asks the admin port of a server that runs.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tollgate::config::Config;
use tollgate::server::admin::answers::{Complaint, Identity};
use tollgate::server::{Listen, Settings};

/// How long a server may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which server to ask.
#[derive(Debug, Args)]
pub struct Place {
    /// The admin port: `127.0.0.1:9090`, or `unix:/run/tollgate-admin.sock`. Without it, the one in the configuration.
    #[arg(long, value_name = "ADDRESS", env = "TOLLGATE_ADMIN")]
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
    listen: Listen,
    token: Option<String>,
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

    /// Finds out where it is.
    pub fn server(&self) -> anyhow::Result<Server> {
        let written = match &self.server {
            Some(_) => None,
            None => Some(configured(self.config.as_deref())?),
        };
        let listen = match (&self.server, &written) {
            (Some(address), _) => address_of(address)?,
            (None, Some(settings)) => settings
                .admin
                .listen
                .clone()
                .context("server.admin is \"off\" in the configuration: name a --server")?,
            (None, None) => Settings::default().admin.listen.context("there is a default")?,
        };
        let token = match &self.token_file {
            Some(file) => {
                let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
                Some(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            None => std::env::var("TOLLGATE_ADMIN_TOKEN")
                .ok()
                .or_else(|| written.and_then(|settings| settings.admin.token).map(|token| token.0)),
        };
        Ok(Server { listen, token })
    }
}

/// The doors as a configuration has them.
fn configured(path: Option<&Path>) -> anyhow::Result<Settings> {
    let load = Config::load(path);
    load.map(|config| config.server)
        .map_err(|errors| anyhow!("{errors}\nthe configuration says where to ask; name a --server to ask without it"))
}

fn address_of(text: &str) -> anyhow::Result<Listen> {
    let text = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
    match text.strip_prefix("unix:") {
        Some(path) => Ok(Listen::Unix(path.into())),
        None => {
            let expected = || format!("--server is {text:?}, expected an address such as 127.0.0.1:9090");
            let host = text.replace("localhost:", "127.0.0.1:");
            host.parse().map(Listen::Tcp).with_context(expected)
        }
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
                request = request.header("authorization", format!("Bearer {token}"));
            }
            let request = request.body(Full::new(Bytes::from(body)))?;
            let asked = format!("no answer from the admin port at {}", self.listen);
            let remedy = "is tollgate running there? name its admin port with --server";
            let answer = match &self.listen {
                Listen::Tcp(address) => {
                    let mut address = *address;
                    // Who listens everywhere is asked here.
                    if address.ip().is_unspecified() {
                        address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());
                    }
                    let stream = TcpStream::connect(address).await.with_context(|| format!("{asked}; {remedy}"))?;
                    send(stream, request).await
                }
                Listen::Unix(path) => {
                    let stream = UnixStream::connect(path).await.with_context(|| format!("{asked}; {remedy}"))?;
                    send(stream, request).await
                }
            };
            answer.context(asked)
        };
        let timed = async { tokio::time::timeout(PATIENCE, exchange).await };
        let (status, body) =
            runtime.block_on(timed).map_err(|_| anyhow!("{} did not answer in 10 s", self.listen))??;
        if !status.is_success() {
            let said = serde_json::from_slice::<Complaint>(&body).map(|complaint| complaint.error);
            bail!("{}: {status}: {}", self.listen, said.unwrap_or_else(|_| "is this the admin port?".to_owned()));
        }
        Ok(body)
    }
}

async fn send<S>(stream: S, request: http::Request<Full<Bytes>>) -> anyhow::Result<(http::StatusCode, Bytes)>
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
