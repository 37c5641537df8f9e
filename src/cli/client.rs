//! A client of the admin port of a running server.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::StatusCode;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tollgate::server::admin::api::{ErrorBody, IdentityQuery};
use tollgate::settings::Settings;

use super::address::ServerAddress;
use super::port::Port;

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
    address: ServerAddress,
    token: Option<String>,
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
        let ServerArgs { server, token_file, config } = self;
        let (address, token) = ADMIN.find(server.as_deref(), token_file.as_deref(), config.as_deref())?;
        Ok(AdminClient { address, token })
    }
}

const ADMIN: Port = Port {
    address_variable: "TOLLGATE_ADMIN",
    token_variable: "TOLLGATE_ADMIN_TOKEN",
    address: configured_address,
    token: |settings| settings.admin.token.map(|token| token.0),
};

fn configured_address(settings: &Settings) -> anyhow::Result<ServerAddress> {
    let Some(listen) = &settings.admin.listen else {
        bail!("server.admin is \"off\" in the configuration: the server has no admin port")
    };
    ServerAddress::configured(listen)
        .context("server.admin has port 0 in the configuration, so the port is unknown: name it with --server")
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
        let exchange = self.address.exchange(method, path, self.token.as_deref(), body, "admin port");
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

fn parse<T: DeserializeOwned>(body: &[u8]) -> anyhow::Result<T> {
    serde_json::from_slice(body).context("the response cannot be parsed: is this the admin port of the same version?")
}
