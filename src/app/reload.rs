//! Another configuration while serving: read, checked and compiled beside, then taken whole or not at all.
//!
//! ```text
//!   a change of what was read, SIGHUP -> Origin::read_again -> the same as before: nothing
//!                                            |-> anything wrong: refused, and what is in use stays
//!                                            '-> Prepared -> Service::replace, once
//! ```
//!
//! Counters stay where their names and their stores do (semantics 1 and 29). What was settled when the process started
//! is told and left as it is.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{Prepared, StorePlan, Unservable};
use crate::config::{Config, ConfigWatcher, Origin, Problem};
use crate::engine::Version;
use crate::rules::Rules;
use crate::service::Service;
use crate::settings::{Bounds, Settings};
use crate::telemetry::Reload;

/// How long requests that began by the rules before may hold on to them, at most.
const RETIREMENT: Duration = Duration::from_secs(1);

/// What a look at the files came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Look {
    /// They are as they were.
    Same,
    /// They were taken and are in use.
    Taken {
        /// What changed and waits for a restart.
        waiting: Vec<Waiting>,
    },
    /// Something is wrong with them, and what was in use still is. One line for each problem.
    Refused(Vec<String>),
}

/// A change that takes effect at the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waiting {
    /// The key.
    pub key: String,
    /// The value that holds.
    pub old: String,
    /// The value that the file has.
    pub new: String,
}

/// Asks for another look: SIGHUP. While this is held, it does not end the process.
#[derive(Debug)]
pub struct Hangups(Signal);

impl Hangups {
    /// Listens for it from now on.
    ///
    /// # Errors
    ///
    /// The system refuses to say.
    pub fn listen() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }
}

/// Takes what the files become.
#[derive(Debug)]
pub struct Reloader {
    service: Arc<Service>,
    /// Where the configuration in use came from.
    taken: Origin,
    /// What was read last.
    last: Origin,
    /// The stores in use.
    plan: StorePlan,
    /// The values that hold until the process ends, by key.
    settled: BTreeMap<String, String>,
}

impl Reloader {
    pub(super) fn new(service: Arc<Service>, origin: Origin, settled: &Settled, plan: StorePlan) -> Self {
        Self { service, taken: origin.clone(), last: origin, plan, settled: settled.0.clone() }
    }

    /// Looks again whenever something changes or somebody asks, for ever.
    pub(super) async fn follow(mut self, mut hangups: Hangups) {
        let mut asked = false;
        let mut told = false;
        loop {
            // Before looking: what changes from now on is heard.
            let mut watch = match ConfigWatcher::over(&self.last) {
                Ok(watch) => Some(watch),
                Err(error) => {
                    if !told {
                        tracing::warn!(%error, "changes of the configuration go unnoticed; SIGHUP reads it again");
                    }
                    told = true;
                    None
                }
            };
            let watched: Vec<PathBuf> = self.last.paths().map(PathBuf::from).collect();
            let look = tokio::task::spawn_blocking(move || {
                self.look_without_panic(asked);
                self
            });
            let Ok(looked) = look.await else { return };
            self = looked;
            if !self.last.paths().eq(&watched) {
                asked = false;
                continue;
            }
            let changed = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            asked = tokio::select! {
                () = changed => false,
                _ = hangups.0.recv() => true,
            };
        }
    }

    /// A fault of ours in reading a file must not end what serves, nor the next look.
    fn look_without_panic(&mut self, asked: bool) {
        if catch_unwind(AssertUnwindSafe(|| self.look(asked))).is_err() {
            self.refuse(vec!["reading it failed by a fault of this program".to_owned()]);
        }
    }

    /// Reads the files again and takes what they became. `asked` tells about them even if nothing changed.
    pub fn look(&mut self, asked: bool) -> Look {
        let (origin, config) = self.last.read_again();
        let changed = origin != self.last;
        self.last = origin;
        if self.last == self.taken {
            let Reload { version, last_taken, .. } = self.service.reloads();
            if asked || !last_taken {
                tracing::info!(version, "the configuration is the one in use");
            }
            self.service.record_unchanged_reload();
            return Look::Same;
        }
        if !changed && !asked {
            return Look::Same;
        }
        let config = match config {
            Ok(config) => config,
            Err(errors) => return self.refuse(errors.iter().map(ToString::to_string).collect()),
        };
        let (settled, warnings) = (Settled::of(&config), config.warnings.clone());
        match Prepared::of(config).and_then(|prepared| self.take(prepared, settled, &warnings)) {
            Ok(look) => look,
            Err(unservable) => self.refuse(unservable.0),
        }
    }

    fn refuse(&mut self, problems: Vec<String>) -> Look {
        self.service.record_failed_reload();
        let version = self.service.reloads().version;
        tracing::warn!(version, problems = problems.len(), "the configuration is refused; the one in use stays");
        problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        Look::Refused(problems)
    }

    fn take(&mut self, prepared: Prepared, settled: Settled, warnings: &[Problem]) -> Result<Look, Unservable> {
        let (old, settings) = {
            let current = self.service.current();
            (current.version.clone(), as_settled(&current.settings, &prepared.settings))
        };
        let stores = prepared.stores_after(&self.plan, &old.stores)?;
        let secret = prepared.rules.secret().fingerprint() != old.rules.secret().fingerprint();
        let waiting = self.waiting(settled, old.rules.stores());
        self.service.replace(Version { rules: Arc::new(prepared.rules), stores }, settings);
        self.taken = self.last.clone();
        self.plan = prepared.plan;
        tracing::info!(version = self.service.reloads().version, "another configuration is in use");
        warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
        if secret {
            tracing::warn!("server.secret is another: all counters start afresh, and leases end when they expire");
        }
        for Waiting { key, old, new } in &waiting {
            tracing::warn!(key, old, new, "this change waits for a restart");
        }
        retire(old);
        Ok(Look::Taken { waiting })
    }

    /// What differs from what was settled. A store that is new settles its own, and one that is gone is forgotten.
    fn waiting(&mut self, Settled(new): Settled, stores: &[String]) -> Vec<Waiting> {
        let store = |key: &str| Some(key.strip_prefix("stores.")?.rsplit_once('.')?.0.to_owned());
        let known = |key: &str| store(key).is_none_or(|store| stores.contains(&store));
        self.settled.retain(|key, _| new.contains_key(key));
        let mut waiting = Vec::new();
        for (key, new) in new {
            let fresh = !known(&key) && !key.ends_with(".snapshot") && !key.ends_with(".snapshot_interval");
            let old = match self.settled.get(&key) {
                Some(old) => old.clone(),
                None if fresh => new.clone(),
                None => NONE.to_owned(),
            };
            if old != new {
                waiting.push(Waiting { key: key.clone(), old: old.clone(), new });
            }
            self.settled.insert(key, old);
        }
        waiting
    }
}

/// How a value that is not there is shown.
const NONE: &str = "none";

/// What the next settings are while the process lives: its doors stay where they are.
fn as_settled(old: &Settings, new: &Settings) -> Settings {
    let mut settings = new.clone();
    settings.grpc = old.grpc.clone();
    settings.http = old.http.clone();
    // Address and token were checked together: an open address keeps its token for as long as it is open.
    if settings.admin.listen != old.admin.listen {
        settings.admin = old.admin.clone();
    }
    settings.log.json = old.log.json;
    settings.bounds = old.bounds.clone();
    settings
}

/// The values of a configuration that hold until the process ends, by key.
#[derive(Clone, Debug)]
pub struct Settled(BTreeMap<String, String>);

impl Settled {
    /// Those of a configuration.
    pub fn of(config: &Config) -> Self {
        // What the doors read with every request is not among them, nor what is asked for when the process stops.
        let Settings { grpc, http, admin, log, bounds, drain: _, rls_headers: _, authz_headers: _, authz: _ } =
            &config.server;
        let mut settled = BTreeMap::new();
        let mut settle = |key: String, value: Option<String>| {
            settled.insert(key, value.unwrap_or_else(|| NONE.to_owned()));
        };
        settle("server.grpc".to_owned(), Some(grpc.to_string()));
        settle("server.http".to_owned(), Some(http.to_string()));
        settle("server.admin".to_owned(), admin.listen.as_ref().map(ToString::to_string));
        settle("log.format".to_owned(), Some(if log.json { "json" } else { "text" }.to_owned()));
        let Bounds {
            message_bytes,
            headers,
            header_bytes,
            body_bytes,
            unfinished_bytes_per_connection,
            unfinished_bytes,
            requests,
            connections,
            streams,
            head_timeout,
            request_timeout,
            idle_timeout,
        } = bounds;
        let mut bound = |key: &str, value: String| settle(format!("server.bounds.{key}"), Some(value));
        bound("message_bytes", message_bytes.to_string());
        bound("headers", headers.to_string());
        bound("header_bytes", header_bytes.to_string());
        bound("body_bytes", body_bytes.to_string());
        bound("unfinished_bytes_per_connection", unfinished_bytes_per_connection.to_string());
        bound("unfinished_bytes", unfinished_bytes.to_string());
        bound("requests", requests.to_string());
        bound("connections", connections.to_string());
        bound("streams", streams.to_string());
        bound("head_timeout", format!("{head_timeout:?}"));
        bound("request_timeout", format!("{request_timeout:?}"));
        bound("idle_timeout", idle_timeout.map_or("off".to_owned(), |timeout| format!("{timeout:?}")));
        for store in &config.stores {
            let of = |key: &str| format!("stores.{}.{key}", store.name);
            if let crate::store::StoreConfig::Memory(memory) = &store.config {
                settle(of("max_memory"), Some(memory.max_memory.to_string()));
                settle(of("max_keys"), memory.max_keys.map(|keys| keys.to_string()));
            }
            let snapshot = store.snapshot.as_ref();
            settle(of("snapshot"), snapshot.map(|snapshot| snapshot.path.display().to_string()));
            settle(of("snapshot_interval"), snapshot.map(|snapshot| format!("{:?}", snapshot.interval)));
        }
        Self(settled)
    }
}

/// Waits for the requests that began by these rules, and so lets them go here: taking a hundred thousand rules apart
/// is not for a request to do.
fn retire(version: Arc<Version>) {
    let rules: Arc<Rules> = version.rules.clone();
    drop(version);
    let pause = RETIREMENT / 100;
    for _ in 0..100 {
        if Arc::strong_count(&rules) == 1 {
            return;
        }
        std::thread::sleep(pause);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{AdminSettings, Listen, Token};

    #[test]
    fn an_admin_port_that_stays_open_to_others_keeps_its_token() {
        let open = Listen::Tcp(([0, 0, 0, 0], 9090).into());
        let token = |text: &str| Some(Token(text.to_owned()));
        let settings =
            |listen, token| Settings { admin: AdminSettings { listen, chosen: true, token }, ..Settings::default() };
        let old = settings(Some(open.clone()), token("a token that others know"));
        // Without its address the token would not be needed, but the address stays until the next start.
        for new in [settings(None, None), settings(Some(Listen::Tcp(([127, 0, 0, 1], 9090).into())), None)] {
            assert_eq!(as_settled(&old, &new).admin, old.admin);
        }
        let another = settings(Some(open), token("a token that replaces it"));
        assert_eq!(as_settled(&old, &another).admin, another.admin);
    }
}
