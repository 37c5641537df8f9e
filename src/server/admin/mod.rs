//! The admin port: metrics and health for machines, and what operators ask in the night.
//!
//! | request | answer |
//! |---|---|
//! | `GET /metrics` | Prometheus' text format |
//! | `GET /livez`, `/readyz`, `/healthcheck` | whether it lives, whether it should be asked |
//! | `GET /status` | version, configuration, stores |
//! | `GET /top?minutes=5` | the rules and hashed keys refused most |
//! | `POST /state` | the counters of an identity |
//! | `POST /lift` | forgets them, with who and why in the audit log |
//! | `POST /explain` | what the rules in use make of a request, in words |
//!
//! Bodies are JSON and say so in `content-type`, and what a browser says to come from a web page is not answered. With a
//! token configured, all but metrics and health want `authorization: Bearer <token>`.

pub mod api;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, ORIGIN, WWW_AUTHENTICATE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio_util::sync::CancellationToken;

use self::api::{Complaint, CounterState, Identity, Lift, Lifted, Refused, State, TopRefused};
use super::connection::{self, AcceptOptions};
use super::http::{health, respond};
use super::listen::Listener;
use super::panics;
use crate::descriptor::Descriptor;
use crate::plan::{Fault, Outcome};
use crate::rules::KnownCounter;
use crate::service::{Current, Service};
use crate::store::StoreFact;
use crate::telemetry::{Facts, Ranked, Reload};

/// The largest question.
const LARGEST_BODY: usize = 64 << 10;

/// How long a client may take for a body.
const PATIENCE: Duration = Duration::from_secs(10);

/// The minutes that `/top` tells of when it is not asked for others.
const MINUTES: usize = 5;

type Answer = Response<Full<Bytes>>;

/// A request that the admin port answers. All of them need the token, where there is one, but [`METRICS`].
#[derive(Clone, Debug)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path.
    pub path: &'static str,
}

/// The path of the metrics.
const METRICS: &str = "/metrics";

/// Every request that is answered here, beside those about health. `docs/admin-api.md` describes each.
pub const ROUTES: [Route; 6] = [
    Route { method: Method::GET, path: METRICS },
    Route { method: Method::GET, path: "/status" },
    Route { method: Method::GET, path: "/top" },
    Route { method: Method::POST, path: "/state" },
    Route { method: Method::POST, path: "/lift" },
    Route { method: Method::POST, path: "/explain" },
];

/// Why a question was not answered, with the status that says so.
struct Unanswered(StatusCode, String);

/// The services of the admin port.
#[derive(Clone, Debug)]
pub struct Admin(Arc<Service>);

impl Admin {
    /// The services over a service.
    pub fn new(service: Arc<Service>) -> Self {
        Self(service)
    }

    /// Serves a listener until `stop`.
    pub async fn serve(self, listener: Listener, stop: CancellationToken) {
        let mut builder = http1::Builder::new();
        builder.header_read_timeout(None);
        let options = AcceptOptions {
            bounds: self.0.current().settings.bounds.clone(),
            doors: self.0.doors().clone(),
            open: |doors| &doors.admin_connections,
        };
        connection::accept(listener, stop, options, |stream, _, activity| {
            let admin = self.clone();
            let begin = activity.clone();
            let answer = service_fn(move |request| {
                let admin = admin.clone();
                let in_flight = begin.begin();
                async move {
                    let answer = panics::catch(admin.0.doors(), admin.answer(request)).await;
                    drop(in_flight);
                    let complaint = || Complaint { error: "this met an error of ours".to_owned() };
                    let broke = || json(StatusCode::INTERNAL_SERVER_ERROR, &complaint());
                    Ok::<_, Infallible>(answer.unwrap_or_else(broke))
                }
            });
            let connection = builder.serve_connection(TokioIo::new(stream), answer);
            let connection = connection::drive(connection, activity);
            async move {
                if let Err(error) = connection.await {
                    tracing::debug!(%error, "an admin connection broke");
                }
            }
        })
        .await;
    }

    async fn answer(&self, request: http::Request<Incoming>) -> Answer {
        let (head, body) = request.into_parts();
        let current = self.0.current();
        let Some(route) = ROUTES.into_iter().find(|route| route.path == head.uri.path()) else {
            return health(self.0.health(), head.uri.path());
        };
        let private = route.path != METRICS;
        if private && from_a_page(&head.headers) {
            let error = "expected no request of a web page".to_owned();
            return json(StatusCode::FORBIDDEN, &Complaint { error });
        }
        if private && !authorised(&head.headers, &current) {
            let error = "expected \"authorization: Bearer <server.admin_token>\"".to_owned();
            let mut answer = json(StatusCode::UNAUTHORIZED, &Complaint { error });
            answer.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            return answer;
        }
        let answered = self.answer_authorised(&route, &head, body, &current).await;
        answered.unwrap_or_else(|Unanswered(status, error)| json(status, &Complaint { error }))
    }

    async fn answer_authorised(
        &self,
        route: &Route,
        head: &Parts,
        body: Incoming,
        current: &Current,
    ) -> Result<Answer, Unanswered> {
        if head.method != route.method {
            return Err(unanswered(StatusCode::METHOD_NOT_ALLOWED, &format!("expected {}", route.method)));
        }
        match route.path {
            METRICS => Ok(self.metrics(current)),
            "/status" => Ok(self.status(current)),
            "/top" => self.top(head),
            "/state" => self.state(current, &read(head, body).await?).await,
            "/lift" => self.lift(current, &read(head, body).await?).await,
            "/explain" => Ok(self.explain(current, &read(head, body).await?)),
            path => unreachable!("{path} has a route and no answer"),
        }
    }

    fn metrics(&self, current: &Current) -> Answer {
        let text = self.0.telemetry().metrics.render(&self.facts(current));
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
        respond(StatusCode::OK, headers, text)
    }

    fn facts(&self, current: &Current) -> Facts {
        let names = current.version.rules.stores().iter().cloned();
        Facts {
            stores: names.zip(current.version.stores.facts()).collect(),
            ready: self.0.health().ready(),
            config: self.0.reloads(),
            doors: self.0.doors().facts(),
        }
    }

    fn status(&self, current: &Current) -> Answer {
        let Facts { stores, ready, config, .. } = self.facts(current);
        let Reload { version, taken, refused, last_taken, loaded_at } = config;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let store = |(name, fact): (String, StoreFact)| {
            let json = match fact {
                StoreFact::Memory(usage) => json!({
                    "keys": usage.keys,
                    "bytes": usage.bytes,
                    "max_bytes": usage.max_bytes,
                    "evictions": usage.evictions,
                    "leases": usage.leases,
                    "expired_leases": usage.expired_leases,
                }),
                StoreFact::Shared { circuit_open } => json!({ "suspended": circuit_open }),
            };
            (name, json)
        };
        tell(&json!({
            "version": env!("CARGO_PKG_VERSION"),
            "ready": ready,
            "config": {
                "version": version,
                "age_seconds": (now - loaded_at).max(0.0),
                "reloads_taken": taken,
                "reloads_refused": refused,
                "last_reload_taken": last_taken,
            },
            "stores": stores.into_iter().map(store).collect::<serde_json::Map<_, _>>(),
        }))
    }

    fn top(&self, head: &Parts) -> Result<Answer, Unanswered> {
        let query = head.uri.query().unwrap_or_default();
        let minutes = match query.split('&').find_map(|pair| pair.strip_prefix("minutes=")) {
            None => MINUTES,
            Some(text) => text.parse().ok().filter(|minutes| (1..=10).contains(minutes)).ok_or_else(|| {
                unanswered(StatusCode::BAD_REQUEST, &format!("minutes is {text:?}, expected 1 to 10"))
            })?,
        };
        let refused = |ranked: Ranked| Refused {
            domain: ranked.domain,
            rule: ranked.rule,
            limiter: ranked.limiter,
            key: ranked.key.map(|key| key.to_string()),
            refused: ranked.refused,
            over: ranked.over,
        };
        let tops = self.0.telemetry().top.of_last(minutes - 1, self.0.now());
        Ok(tell(&TopRefused {
            minutes,
            rules: tops.rules.into_iter().map(refused).collect(),
            keys: tops.counters.into_iter().map(refused).collect(),
        }))
    }

    async fn state(&self, current: &Current, identity: &Identity) -> Result<Answer, Unanswered> {
        let known = self.counters(current, &identity.domain, &identity.entries)?;
        Ok(tell(&self.states(current, &known).await))
    }

    /// What the counters hold now.
    async fn states(&self, current: &Current, known: &[KnownCounter]) -> Vec<CounterState> {
        let version = &current.version;
        let looked = version.read_counters(known.iter().map(|counter| counter.check), self.0.now()).await;
        let state = |(counter, answer): (&KnownCounter, Result<Outcome, Fault>)| CounterState {
            rule: counter.rule.clone(),
            limiter: counter.limiter.clone(),
            key_entries: counter.key.clone(),
            key: counter.check.counter.to_string(),
            store: version.rules.stores().get(usize::from(counter.check.store)).cloned().unwrap_or_default(),
            slots: counter.slots,
            shadow: counter.shadow,
            state: match answer {
                Err(fault) => State::Unknown { error: fault.to_string() },
                Ok(outcome) => State::Holds {
                    limit: outcome.limit,
                    used: outcome.limit.saturating_sub(outcome.remaining),
                    remaining: outcome.remaining,
                    passes: outcome.passes,
                    retry_after_ms: outcome.retry_after.map(|micros| micros.div_ceil(1000)),
                    reset_ms: outcome.reset.div_ceil(1000),
                },
            },
        };
        known.iter().zip(looked.answers).map(state).collect()
    }

    async fn lift(&self, current: &Current, lift: &Lift) -> Result<Answer, Unanswered> {
        for (name, text) in [("who", &lift.who), ("why", &lift.why)] {
            if text.trim().is_empty() {
                return Err(unanswered(
                    StatusCode::BAD_REQUEST,
                    &format!("{name} is empty, expected a word for the audit log"),
                ));
            }
        }
        if lift.entries.is_empty() {
            return Err(unanswered(StatusCode::BAD_REQUEST, "entries is empty, expected those of an identity"));
        }
        for (name, text) in [("who", &lift.who), ("why", &lift.why)] {
            let Some((entry, _)) = lift.entries.iter().find(|(_, value)| tells(text, value)) else { continue };
            let error = format!("{name} holds the {entry}, which would stand in the audit log: say it without");
            return Err(unanswered(StatusCode::BAD_REQUEST, &error));
        }
        let mut known = self.counters(current, &lift.domain, &lift.entries)?;
        if let Some(limiter) = &lift.limiter {
            let mut others: Vec<String> = known.iter().map(|counter| counter.limiter.clone()).collect();
            known.retain(|counter| counter.limiter == *limiter);
            if known.is_empty() {
                others.dedup();
                let error =
                    format!("no limiter {limiter:?} counts by these entries; those that do: {}", others.join(", "));
                return Err(unanswered(StatusCode::NOT_FOUND, &error));
            }
        }
        let mut lifted: Vec<Lifted> = Vec::with_capacity(known.len());
        for KnownCounter { limiter, check, .. } in known {
            let key = check.counter.to_string();
            // Tiers share a counter, which is forgotten once.
            if let Some(same) = lifted.iter().find(|lifted| lifted.key == key).cloned() {
                lifted.push(Lifted { limiter, ..same });
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
            lifted.push(Lifted { limiter, key, held, error });
        }
        Ok(tell(&lifted))
    }

    fn explain(&self, current: &Current, identity: &Identity) -> Answer {
        let (rules, now) = (&current.version.rules, self.0.now());
        let text = rules.explain_in_words(&identity.domain, &identity.entries, now);
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
        respond(StatusCode::OK, headers, text)
    }

    /// The counters that are identified by entries.
    fn counters(
        &self,
        current: &Current,
        domain: &str,
        entries: &[(String, String)],
    ) -> Result<Vec<KnownCounter>, Unanswered> {
        let descriptor = Descriptor::of(entries.iter().map(|(key, value)| (key.as_str(), value.as_str())));
        let known = current.version.rules.counters(domain, &descriptor, self.0.now());
        known.map_err(|error| unanswered(StatusCode::NOT_FOUND, &error.to_string()))
    }
}

/// Whether a text holds the value of an entry. One or two characters are in every text.
fn tells(text: &str, value: &str) -> bool {
    let value = value.trim();
    value.chars().count() > 2 && text.to_lowercase().contains(&value.to_lowercase())
}

/// Whether a browser says that a page sent this: a page can have any name, also one that leads to this machine.
fn from_a_page(headers: &HeaderMap) -> bool {
    headers.contains_key(ORIGIN) || headers.contains_key("sec-fetch-site")
}

/// Whether the token was shown, if there is one. Each byte is compared, so that the time tells nothing.
fn authorised(headers: &HeaderMap, current: &Current) -> bool {
    let Some(token) = &current.settings.admin.token else { return true };
    let shown = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes).unwrap_or_default();
    let shown = match shown.split_at_checked(b"Bearer ".len()) {
        Some((scheme, shown)) if scheme.eq_ignore_ascii_case(b"Bearer ") => shown,
        _ => b"",
    };
    let differ = shown.iter().zip(token.0.as_bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    shown.len() == token.0.len() && differ == 0
}

/// Reads a question of JSON.
async fn read<T: DeserializeOwned>(head: &Parts, body: Incoming) -> Result<T, Unanswered> {
    let json = head.headers.get(CONTENT_TYPE).is_some_and(|value| value.as_bytes().starts_with(b"application/json"));
    if !json {
        return Err(unanswered(StatusCode::UNSUPPORTED_MEDIA_TYPE, "expected \"content-type: application/json\""));
    }
    let collected = tokio::time::timeout(PATIENCE, Limited::new(body, LARGEST_BODY).collect()).await;
    let bytes = match collected {
        Ok(Ok(body)) => body.to_bytes(),
        Ok(Err(_)) => return Err(unanswered(StatusCode::PAYLOAD_TOO_LARGE, "expected a body of at most 64 KiB")),
        Err(_) => return Err(unanswered(StatusCode::REQUEST_TIMEOUT, "the body did not come in time")),
    };
    serde_json::from_slice(&bytes).map_err(|error| unanswered(StatusCode::BAD_REQUEST, &error.to_string()))
}

fn tell(told: &impl Serialize) -> Answer {
    json(StatusCode::OK, told)
}

fn unanswered(status: StatusCode, error: &str) -> Unanswered {
    Unanswered(status, error.to_owned())
}

fn json(status: StatusCode, told: &impl Serialize) -> Answer {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let mut text = serde_json::to_vec(told).expect("answers are texts and numbers");
    text.push(b'\n');
    respond(status, headers, text)
}
