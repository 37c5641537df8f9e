//! The admin port: metrics and health for machines, and the requests of operators.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | Prometheus' text format |
//! | `GET /livez`, `/readyz`, `/healthcheck` | liveness and readiness |
//! | `GET /status` | version, configuration, stores |
//! | `GET /top?minutes=5` | the rules and hashed keys that refused most |
//! | `POST /state` | the counters of an identity |
//! | `POST /lift` | resets them, and writes who and why to the audit log |
//! | `POST /explain` | how the rules in use treat a request, as text |
//!
//! Bodies are JSON and need the `content-type` of JSON. Requests that a browser marks as coming from a web page are
//! rejected. If a token is configured, all paths but metrics and health need `authorization: Bearer <token>`.

pub mod api;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Body, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::api::{
    CounterReading, CounterState, ErrorBody, IdentityQuery, LiftRequest, LiftedCounter, MistakeCount, RefusalCount,
    TopRefused,
};
use super::api::is_from_web_page;
use super::body;
use super::connection::{self, AcceptOptions, Activity, Port};
use super::http::{health, respond};
use super::listen::Listener;
use super::panics;
use super::token::is_bearer;
use crate::clock::Timestamp;
use crate::descriptor::Descriptor;
use crate::plan::{Fault, Outcome};
use crate::rules::KnownCounter;
use crate::service::{Current, Service, unix_seconds};
use crate::store::StoreStatus;
use crate::telemetry::{Mistake, ReloadStatus, ScrapeInput, TopEntry};

/// The largest body of a request.
const MAX_BODY_BYTES: usize = 64 << 10;

/// The time a client has to send a body.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);

/// The default of `minutes` in `/top`.
const DEFAULT_TOP_MINUTES: usize = 5;

type AdminResponse = Response<Full<Bytes>>;

/// A request that the admin port answers. All but `/metrics` need the token, if one is configured.
#[derive(Clone, Debug)]
pub struct AdminRoute {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: &'static str,
}

/// The path of the metrics.
const METRICS_PATH: &str = "/metrics";

/// Every request that is answered here, except health checks. `docs/admin-api.md` describes each.
pub const ROUTES: [AdminRoute; 6] = [
    AdminRoute { method: Method::GET, path: METRICS_PATH },
    AdminRoute { method: Method::GET, path: "/status" },
    AdminRoute { method: Method::GET, path: "/top" },
    AdminRoute { method: Method::POST, path: "/state" },
    AdminRoute { method: Method::POST, path: "/lift" },
    AdminRoute { method: Method::POST, path: "/explain" },
];

/// An error answer: its status and text.
struct AdminError(StatusCode, String);

/// The admin port.
#[derive(Clone, Debug)]
pub struct Admin(Arc<Service>);

impl Admin {
    /// The admin port of a service.
    pub fn new(service: Arc<Service>) -> Self {
        Self(service)
    }

    /// Serves a listener until `stop`.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(None);
        let options = AcceptOptions {
            port: Port::Admin,
            bounds: self.0.current().settings.bounds.clone(),
            doors: self.0.doors().clone(),
            open: |doors| &doors.admin_connections,
        };
        connection::accept(listener, stop, options, |stream, _, activity| {
            let admin = self.clone();
            let begin = activity.clone();
            let answer = service_fn(move |request| {
                let (admin, activity) = (admin.clone(), begin.clone());
                let in_flight = begin.begin();
                async move {
                    let answer = admin.answer(request, &activity).await;
                    drop(in_flight);
                    Ok::<_, Infallible>(answer)
                }
            });
            let connection = builder.serve_connection(TokioIo::new(stream), answer);
            let connection = connection::drive(connection, activity);
            async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "admin connection failed");
                }
            }
        })
        .await;
    }

    async fn answer(&self, request: http::Request<Incoming>, activity: &Activity) -> AdminResponse {
        let (head, mut body) = request.into_parts();
        let answer = panics::catch(self.0.doors(), self.answer_head(&head, &mut body)).await;
        let mut answer = answer.unwrap_or_else(|| {
            json(StatusCode::INTERNAL_SERVER_ERROR, &ErrorBody { error: "internal error".to_owned() })
        });
        body::finish(&head.headers, &mut body, MAX_BODY_BYTES as u64, &mut answer, activity).await;
        answer
    }

    async fn answer_head(&self, head: &Parts, body: &mut Incoming) -> AdminResponse {
        let current = self.0.current();
        let Some(route) = ROUTES.into_iter().find(|route| route.path == head.uri.path()) else {
            return health(self.0.health(), head.uri.path());
        };
        let needs_token = route.path != METRICS_PATH;
        if needs_token && is_from_web_page(&head.headers) {
            let error = "requests from web pages are rejected".to_owned();
            return json(StatusCode::FORBIDDEN, &ErrorBody { error });
        }
        if needs_token && !is_authorised(&head.headers, &current) {
            let error = "expected \"authorization: Bearer <server.admin_token>\"".to_owned();
            let mut answer = json(StatusCode::UNAUTHORIZED, &ErrorBody { error });
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return answer;
        }
        let answered = self.answer_authorised(&route, head, body, &current).await;
        answered.unwrap_or_else(|AdminError(status, error)| json(status, &ErrorBody { error }))
    }

    async fn answer_authorised(
        &self,
        route: &AdminRoute,
        head: &Parts,
        body: &mut Incoming,
        current: &Current,
    ) -> Result<AdminResponse, AdminError> {
        if head.method != route.method {
            return Err(admin_error(StatusCode::METHOD_NOT_ALLOWED, &format!("expected {}", route.method)));
        }
        match route.path {
            METRICS_PATH => Ok(self.metrics(current)),
            "/status" => Ok(self.status(current)),
            "/top" => self.top(head),
            "/state" => self.counter_states(current, &read(head, body).await?).await,
            "/lift" => self.lift(current, &read(head, body).await?).await,
            "/explain" => Ok(Self::explain(current, &read(head, body).await?)),
            path => unreachable!("{path} has a route and no answer"),
        }
    }

    fn metrics(&self, current: &Current) -> AdminResponse {
        let text = self.0.telemetry().metrics.render(&self.scrape_input(current));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
        respond(StatusCode::OK, headers, text)
    }

    fn scrape_input(&self, current: &Current) -> ScrapeInput {
        let names = current.version.rules.stores().iter().cloned();
        ScrapeInput {
            stores: names.zip(current.version.stores.facts()).collect(),
            ready: self.0.health().ready(),
            config: self.0.reloads(),
            doors: self.0.doors().families(),
        }
    }

    fn status(&self, current: &Current) -> AdminResponse {
        let ScrapeInput { stores, ready, config, .. } = self.scrape_input(current);
        let ReloadStatus { version, taken, refused, last_taken, loaded_at } = config;
        let now = unix_seconds();
        let store = |(name, fact): (String, StoreStatus)| {
            let json = match fact {
                StoreStatus::Memory(usage) => json!({
                    "keys": usage.keys,
                    "bytes": usage.bytes,
                    "max_bytes": usage.max_bytes,
                    "evictions": usage.evictions,
                    "leases": usage.leases,
                    "holds": usage.holds,
                    "expired_leases": usage.expired_leases,
                }),
                StoreStatus::Shared { circuit_open, owed } => json!({ "suspended": circuit_open, "backlog": owed }),
            };
            (name, json)
        };
        json_ok(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ready": ready,
            "config": {
                "version": version,
                "age_seconds": (now - loaded_at).max(0.0),
                "reloads_taken": taken,
                "reloads_refused": refused,
                "last_reload_taken": last_taken,
            },
            "gateway_mistakes": self
                .0
                .doors()
                .mistakes
                .counts()
                .map(|(mistake, count)| (mistake.name().to_owned(), count.into()))
                .collect::<serde_json::Map<_, _>>(),
            "stores": stores.into_iter().map(store).collect::<serde_json::Map<_, _>>(),
        }))
    }

    fn top(&self, head: &Parts) -> Result<AdminResponse, AdminError> {
        let query = head.uri.query().unwrap_or_default();
        let minutes = match query.split('&').find_map(|pair| pair.strip_prefix("minutes=")) {
            None => DEFAULT_TOP_MINUTES,
            Some(text) => text.parse().ok().filter(|minutes| (1..=10).contains(minutes)).ok_or_else(|| {
                admin_error(StatusCode::BAD_REQUEST, &format!("minutes is {text:?}, expected 1 to 10"))
            })?,
        };
        let refused = |ranked: TopEntry| RefusalCount {
            domain: ranked.domain,
            rule: ranked.rule,
            limiter: ranked.limiter,
            key: ranked.key.map(|key| key.to_string()),
            refused: ranked.refused,
            over: ranked.over,
        };
        let now = self.0.now();
        let tops = self.0.telemetry().top.of_last(minutes - 1, now);
        let since = Timestamp::from_micros(now - Timestamp::from_secs(60 * minutes as u64));
        let mistake = |(mistake, count): (Mistake, u64)| MistakeCount {
            mistake: mistake.name().to_owned(),
            text: mistake.text().to_owned(),
            count,
        };
        Ok(json_ok(&TopRefused {
            minutes,
            rules: tops.rules.into_iter().map(refused).collect(),
            keys: tops.counters.into_iter().map(refused).collect(),
            gateway_mistakes: self.0.doors().mistakes.seen_since(since).map(mistake).collect(),
        }))
    }

    async fn counter_states(&self, current: &Current, identity: &IdentityQuery) -> Result<AdminResponse, AdminError> {
        let known = Self::counters(current, &identity.domain, &identity.entries)?;
        Ok(json_ok(&self.read_counters(current, &known).await))
    }

    /// The values of the counters now.
    async fn read_counters(&self, current: &Current, known: &[KnownCounter]) -> Vec<CounterState> {
        let version = &current.version;
        let applied = version.read_counters(known.iter().map(|counter| counter.check), self.0.now()).await;
        let state = |(counter, answer): (&KnownCounter, Result<Outcome, Fault>)| CounterState {
            rule: counter.rule.clone(),
            limiter: counter.limiter.clone(),
            key_entries: counter.key.clone(),
            key: counter.check.counter.to_string(),
            store: version.rules.stores().get(usize::from(counter.check.store)).cloned().unwrap_or_default(),
            slots: counter.slots,
            shadow: counter.shadow,
            state: match answer {
                Err(fault) => CounterReading::Unknown { error: fault.to_string() },
                Ok(outcome) => CounterReading::Holds {
                    limit: outcome.limit,
                    used: outcome.limit.saturating_sub(outcome.remaining),
                    remaining: outcome.remaining,
                    held: outcome.held,
                    passes: outcome.passes,
                    retry_after_ms: outcome.retry_after.map(|micros| micros.div_ceil(1000)),
                    reset_ms: outcome.reset.div_ceil(1000),
                },
            },
        };
        known.iter().zip(applied.answers).map(state).collect()
    }

    async fn lift(&self, current: &Current, lift: &LiftRequest) -> Result<AdminResponse, AdminError> {
        for (name, text) in [("who", &lift.who), ("why", &lift.why)] {
            if text.trim().is_empty() {
                return Err(admin_error(
                    StatusCode::BAD_REQUEST,
                    &format!("{name} is empty, expected a text for the audit log"),
                ));
            }
        }
        if lift.entries.is_empty() {
            return Err(admin_error(StatusCode::BAD_REQUEST, "entries is empty, expected the entries of an identity"));
        }
        for (name, text) in [("who", &lift.who), ("why", &lift.why)] {
            let Some((entry, _)) = lift.entries.iter().find(|(_, value)| reveals(text, value)) else { continue };
            let error =
                format!("{name} contains the value of {entry}, which must not reach the audit log: write it without");
            return Err(admin_error(StatusCode::BAD_REQUEST, &error));
        }
        let mut known = Self::counters(current, &lift.domain, &lift.entries)?;
        if let Some(limiter) = &lift.limiter {
            let mut others: Vec<String> = known.iter().map(|counter| counter.limiter.clone()).collect();
            known.retain(|counter| counter.limiter == *limiter);
            if known.is_empty() {
                others.dedup();
                let error = format!(
                    "no limiter {limiter:?} has a key of these entries, expected one of: {}",
                    others.join(", ")
                );
                return Err(admin_error(StatusCode::NOT_FOUND, &error));
            }
        }
        let mut lifted: Vec<LiftedCounter> = Vec::with_capacity(known.len());
        for KnownCounter { limiter, check, .. } in known {
            let key = check.counter.to_string();
            // Tiers share a counter, which is reset once.
            if let Some(same) = lifted.iter().find(|lifted| lifted.key == key).cloned() {
                lifted.push(LiftedCounter { limiter, ..same });
                continue;
            }
            let forgotten = current.version.stores.forget(check.store, check.counter).await;
            let (held, error) = match forgotten {
                Ok(held) => (held, None),
                Err(fault) => (false, Some(fault.to_string())),
            };
            let (who, why, domain) = (&lift.who, &lift.why, &lift.domain);
            match &error {
                None => tracing::info!(
                    target: "tollgate::audit", action = "lift", who, why, domain, limiter, key, held, "a limit was lifted"
                ),
                Some(error) => tracing::warn!(
                    target: "tollgate::audit", action = "lift", who, why, domain, limiter, key, error,
                    "a limit could not be lifted"
                ),
            }
            lifted.push(LiftedCounter { limiter, key, held, error });
        }
        Ok(json_ok(&lifted))
    }

    fn explain(current: &Current, identity: &IdentityQuery) -> AdminResponse {
        let descriptor = current.settings.authz.descriptor(&identity.entries);
        let text = current.version.rules.explain_in_words(&identity.domain, &descriptor);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        respond(StatusCode::OK, headers, text)
    }

    /// The counters whose keys consist of these entries.
    fn counters(
        current: &Current,
        domain: &str,
        entries: &[(String, String)],
    ) -> Result<Vec<KnownCounter>, AdminError> {
        let descriptor = Descriptor::of(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let known = current.version.rules.counters(domain, &descriptor);
        known.map_err(|error| admin_error(StatusCode::NOT_FOUND, &error.to_string()))
    }
}

/// Whether a text contains the value of an entry. Values of one or two characters are ignored: every text has them.
fn reveals(text: &str, value: &str) -> bool {
    let value = value.trim();
    value.chars().count() > 2 && text.to_lowercase().contains(&value.to_lowercase())
}

/// Whether the request has the token, if one is configured.
fn is_authorised(headers: &HeaderMap, current: &Current) -> bool {
    let Some(token) = &current.settings.admin.token else { return true };
    is_bearer(headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default(), token)
}

/// Reads a JSON body.
async fn read<T: DeserializeOwned>(head: &Parts, body: &mut Incoming) -> Result<T, AdminError> {
    let json = head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !json {
        return Err(admin_error(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected \"content-type: application/json\""));
    }
    let too_large = || admin_error(StatusCode::PAYLOAD_TOO_LARGE, "expected a body of at most 64 KiB");
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(too_large());
    }
    let collected = tokio::time::timeout(BODY_TIMEOUT, Limited::new(body, MAX_BODY_BYTES).collect()).await;
    let bytes = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return Err(too_large()),
        Err(_) => return Err(admin_error(StatusCode::REQUEST_TIMEOUT, "the body did not arrive within 10 s")),
    };
    serde_json::from_slice(&bytes).map_err(|error| admin_error(StatusCode::BAD_REQUEST, &error.to_string()))
}

fn json_ok(body: &impl Serialize) -> AdminResponse {
    json(StatusCode::OK, body)
}

fn admin_error(status: StatusCode, error: &str) -> AdminError {
    AdminError(status, error.to_owned())
}

fn json(status: StatusCode, body: &impl Serialize) -> AdminResponse {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut text = serde_json::to_vec(body).expect("answers consist of texts and numbers");
    text.push(b'\n');
    respond(status, headers, text)
}
