//! A client of the API of workers of a running server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::StatusCode;
use serde_json::{Value, json};
use tollgate::settings::Settings;
use tollgate::settings::parse_duration;

use super::address::ServerAddress;
use super::port::Port;

/// The timeout of a request, in addition to what it waits for its turn.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The arguments that select a server's API.
#[derive(Debug, Args)]
pub(super) struct ApiArgs {
    /// The server's API: `http://127.0.0.1:8080`, `tollgate.internal:8080` or `unix:/run/tollgate-api.sock`. By default
    /// TOLLGATE_API, else server.api or server.http of the configuration.
    #[arg(long, value_name = "URL")]
    server: Option<String>,
    /// A file with a token of the server's server.api_token. By default TOLLGATE_API_TOKEN, else the one in the
    /// configuration.
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The configuration of the server. By default the one that serve would use.
    #[arg(long, value_name = "PATH")]
    config: Option<PathBuf>,
}

/// A client of one server.
#[derive(Clone, Debug)]
pub(super) struct ApiClient {
    address: ServerAddress,
    token: Option<String>,
}

/// The answer to a call that a method answers.
#[derive(Clone, Debug)]
pub(super) struct ApiAnswer {
    /// The body as it came.
    pub(super) text: String,
    /// The body.
    pub(super) body: Value,
}

impl ApiAnswer {
    /// A text of the answer.
    pub(super) fn text(&self, field: &str) -> Option<&str> {
        self.body.get(field)?.as_str()
    }

    /// A duration of the answer.
    pub(super) fn duration(&self, field: &str) -> Option<Duration> {
        parse_duration(self.text(field)?)
    }

    /// Whether a field is true.
    pub(super) fn is(&self, field: &str) -> bool {
        self.body.get(field).and_then(Value::as_bool).unwrap_or(false)
    }
}

impl ApiArgs {
    /// Finds the address of the API and a token for it.
    pub(super) fn client(&self) -> anyhow::Result<ApiClient> {
        let ApiArgs { server, token_file, config } = self;
        let (address, token) = API.find(server.as_deref(), token_file.as_deref(), config.as_deref())?;
        Ok(ApiClient { address, token })
    }
}

const API: Port = Port {
    address_variable: "TOLLGATE_API",
    token_variable: "TOLLGATE_API_TOKEN",
    address: configured_address,
    token: |settings| settings.api.tokens.into_iter().next().map(|token| token.0),
};

fn configured_address(settings: &Settings) -> anyhow::Result<ServerAddress> {
    let listen = settings.api.listen.as_ref().unwrap_or(&settings.http);
    ServerAddress::configured(listen)
        .context("the API has port 0 in the configuration, so the port is unknown: name it with --server")
}

impl ApiClient {
    /// Calls a method. `wait` is how long its answer may take in addition.
    pub(super) async fn call(&self, method: &str, body: &Value, wait: Duration) -> anyhow::Result<ApiAnswer> {
        let path = format!("/v1/{method}");
        let exchange = self.address.exchange("POST", &path, self.token.as_deref(), serde_json::to_vec(body)?, "API");
        let timeout = REQUEST_TIMEOUT + wait;
        let answered = tokio::time::timeout(timeout, exchange).await;
        let (status, body) = answered.map_err(|_| anyhow!("{} did not answer in {timeout:?}", self.address))??;
        self.answer(status, &body)
    }

    /// Renews a lease. Returns when it ends, or its fate if it is not held.
    pub(super) async fn renew(&self, lease: &str, length: Duration) -> anyhow::Result<Result<Duration, String>> {
        let body = json!({ "lease": lease, "length": seconds(length) });
        let answer = self.call("renew", &body, Duration::ZERO).await?;
        match (self.fate(&answer)?, answer.duration("lease_ends_in")) {
            ("done", Some(ends_in)) => Ok(Ok(ends_in)),
            (fate, _) => Ok(Err(fate.to_owned())),
        }
    }

    /// Releases a lease, and returns its fate.
    pub(super) async fn release(&self, lease: &str) -> anyhow::Result<String> {
        let answer = self.call("release", &json!({ "lease": lease }), Duration::ZERO).await?;
        self.fate(&answer).map(str::to_owned)
    }

    /// What became of a lease.
    fn fate<'a>(&self, answer: &'a ApiAnswer) -> anyhow::Result<&'a str> {
        match (answer.text("fate"), answer.text("detail")) {
            (Some(fate), _) => Ok(fate),
            (None, Some(detail)) => bail!("{}: {detail}", self.address),
            (None, None) => bail!("{} does not answer as the API", self.address),
        }
    }

    fn answer(&self, status: StatusCode, body: &Bytes) -> anyhow::Result<ApiAnswer> {
        let text = String::from_utf8_lossy(body).into_owned();
        let body: Option<Value> = serde_json::from_str(&text).ok();
        match (status, body) {
            (StatusCode::OK | StatusCode::TOO_MANY_REQUESTS, Some(body)) if body.is_object() => {
                Ok(ApiAnswer { text, body })
            }
            // A store does not answer, or the server stops: worth another try, as a refusal is.
            (StatusCode::SERVICE_UNAVAILABLE, Some(body)) if body["reason"].is_string() => Ok(ApiAnswer { text, body }),
            (StatusCode::UNAUTHORIZED, _) => {
                let token = if self.token.is_some() { "another token" } else { "a token" };
                bail!("{} needs {token}: name its file with --token-file, or set TOLLGATE_API_TOKEN", self.address)
            }
            (_, Some(body)) if body["detail"].is_string() => {
                bail!("{}: {}", self.address, body["detail"].as_str().unwrap_or_default())
            }
            _ => bail!("{}: {status}: is this the API? name its address with --server", self.address),
        }
    }
}

/// A duration as the API reads it.
pub(super) fn seconds(duration: Duration) -> String {
    format!("{}.{:06}s", duration.as_secs(), duration.subsec_micros())
}
