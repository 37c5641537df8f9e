//! Reloads of the configuration while serving. A changed configuration is read, checked and compiled in the background,
//! and then applied as a whole or not at all.
//!
//! ```text
//!   a file changed, or SIGHUP -> Origin::read_again -> unchanged: nothing happens
//!                                    |-> errors: rejected, the configuration in use stays
//!                                    '-> PreparedService -> new stores are connected -> Service::replace
//!                                                            '-> not in time: rejected, and tried again
//! ```
//!
//! Counters stay where their names and their stores stay (semantics 1 and 29). A change of a restart setting is logged
//! and takes effect at the next start.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::build::OpenedStores;
use super::{BuildError, PreparedService, StorePlan};
use crate::config::{ABSENT, ConfigWatcher, Origin, Problem, RestartSetting, RestartSettings, WarningKind};
use crate::engine::Version;
use crate::rules::{DataSize, Rules};
use crate::service::Service;
use crate::settings::{ApiSettings, Bounds, Settings};
use crate::telemetry::ReloadStatus;

/// How long a reload waits until new shared stores are connected.
const STORE_CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The pause before a reload that was rejected because of a store is tried again.
const STORE_RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// How long [`drop_rules`] waits for requests that still use the previous rules.
const RULES_IN_USE_TIMEOUT: Duration = Duration::from_secs(1);

/// The outcome of a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReloadOutcome {
    /// The files have not changed.
    Unchanged,
    /// The configuration in the files is in use.
    Applied {
        /// Changes that take effect at the next start.
        pending: Vec<PendingRestart>,
    },
    /// The files have errors; the configuration in use stays. One line for each error.
    Rejected(Vec<String>),
}

/// Logs the warnings of a configuration that was applied.
pub fn log_warnings(warnings: &[Problem]) {
    for warning in warnings {
        let name = warning.warning.map_or("", WarningKind::name);
        tracing::warn!(warning = name, "{warning}");
    }
}

/// Logs the sizes of the lists and tables of a configuration that was applied.
pub fn log_data(rules: &Rules) {
    for DataSize { name: list, rows: values, bytes } in rules.lists() {
        tracing::info!(list, values, bytes, "list loaded");
    }
    for DataSize { name: table, rows, bytes } in rules.tables() {
        tracing::info!(table, rows, bytes, "table loaded");
    }
}

/// A change that takes effect at the next start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingRestart {
    /// The configuration key.
    pub key: String,
    /// The value in use.
    pub old: String,
    /// The value in the file.
    pub new: String,
}

/// SIGHUP, which forces a reload. While this is held, the signal does not end the process.
#[derive(Debug)]
pub struct HangupSignals(Signal);

impl HangupSignals {
    /// Starts to listen for the signal.
    ///
    /// # Errors
    ///
    /// The system does not allow a signal handler.
    pub fn listen() -> io::Result<Self> {
        Ok(Self(signal(SignalKind::hangup())?))
    }
}

/// Reads the configuration again and applies it.
#[derive(Debug)]
pub struct Reloader {
    service: Arc<Service>,
    /// The files of the configuration in use, as they were read.
    applied: Origin,
    /// The files as they were read last.
    last_read: Origin,
    /// How the stores in use were made.
    plan: StorePlan,
    /// The restart settings in use, by key.
    restart_settings: BTreeMap<String, String>,
    /// Whether the last reload was rejected because a store could not be connected.
    store_missing: bool,
}

impl Reloader {
    pub(super) fn new(
        service: Arc<Service>,
        origin: Origin,
        restart_settings: &RestartSettings,
        plan: StorePlan,
    ) -> Self {
        let in_use = |(key, setting): (&String, &RestartSetting)| (key.clone(), setting.value.clone());
        let restart_settings = restart_settings.0.iter().map(in_use).collect();
        Self { service, applied: origin.clone(), last_read: origin, plan, restart_settings, store_missing: false }
    }

    /// Reloads when a file changes and on SIGHUP. Never returns.
    pub(super) async fn run(mut self, mut hangup_signals: HangupSignals) {
        let mut forced = false;
        let mut warned = false;
        loop {
            // Watch before reading, so that no change in between is missed.
            let mut watch = match ConfigWatcher::over(&self.last_read) {
                Ok(watch) => Some(watch),
                Err(error) => {
                    if !warned {
                        tracing::warn!(%error, "cannot watch the configuration for changes: send SIGHUP to reload it");
                    }
                    warned = true;
                    None
                }
            };
            let watched: Vec<PathBuf> = self.last_read.paths().map(PathBuf::from).collect();
            self.reload(forced).await;
            if !self.last_read.paths().eq(&watched) {
                forced = false;
                continue;
            }
            let changed = async {
                match &mut watch {
                    Some(watch) => watch.changed().await,
                    None => std::future::pending().await,
                }
            };
            let retry = async {
                match self.store_missing {
                    true => tokio::time::sleep(STORE_RETRY_INTERVAL).await,
                    false => std::future::pending().await,
                }
            };
            forced = tokio::select! {
                () = changed => false,
                _ = hangup_signals.0.recv() => true,
                () = retry => true,
            };
        }
    }

    /// Reads the files again and applies them. If `forced`, the outcome is logged even if nothing changed.
    ///
    /// New shared stores are connected first; the version in use decides until then.
    pub async fn reload(&mut self, forced: bool) -> ReloadOutcome {
        let (last_read, applied) = (self.last_read.clone(), self.applied.clone());
        let read = blocking(move || {
            let (origin, config) = last_read.read_again();
            // What is not needed is freed here: a list has millions of values.
            let config = (origin != applied).then_some(config);
            (origin, config)
        });
        let Some((origin, config)) = read.await else { return self.reject(internal_error()) };
        let changed = origin != self.last_read;
        self.last_read = origin;
        let Some(config) = config else {
            let ReloadStatus { version, last_taken, .. } = self.service.reloads();
            if forced || !last_taken {
                tracing::info!(version, "configuration unchanged");
            }
            self.service.record_unchanged_reload();
            self.store_missing = false;
            return ReloadOutcome::Unchanged;
        };
        if !changed && !forced {
            blocking(move || drop(config)).await;
            return ReloadOutcome::Unchanged;
        }
        self.store_missing = false;
        let config = match config {
            Ok(config) => config,
            Err(errors) => return self.reject(errors.iter().map(ToString::to_string).collect()),
        };
        let (restart_settings, warnings) = (RestartSettings::of(&config), config.warnings.clone());
        let plan = self.plan.clone();
        let prepared = blocking(move || {
            let prepared = PreparedService::of(config)?;
            let stores = prepared.open_stores(&plan)?;
            Ok::<_, BuildError>((prepared, stores))
        });
        let (prepared, stores) = match prepared.await {
            Some(Ok(prepared)) => prepared,
            Some(Err(error)) => return self.reject(error.0),
            None => return self.reject(internal_error()),
        };
        if let Err(error) = stores.connected(STORE_CONNECT_TIMEOUT).await {
            self.store_missing = true;
            // Freeing a hundred thousand rules takes long as well.
            blocking(move || drop(prepared)).await;
            return self.reject(error.0);
        }
        self.apply(prepared, stores, restart_settings, warnings).await
    }

    fn reject(&mut self, problems: Vec<String>) -> ReloadOutcome {
        self.service.record_failed_reload();
        let version = self.service.reloads().version;
        tracing::warn!(version, problems = problems.len(), "configuration rejected: the one in use stays");
        problems.iter().for_each(|problem| tracing::warn!("{problem}"));
        ReloadOutcome::Rejected(problems)
    }

    async fn apply(
        &mut self,
        prepared: PreparedService,
        stores: OpenedStores,
        restart_settings: RestartSettings,
        warnings: Vec<Problem>,
    ) -> ReloadOutcome {
        let (old, settings) = {
            let current = self.service.current();
            (current.version.clone(), until_restart(&current.settings, &prepared.settings))
        };
        let secret_changed = prepared.rules.secret().fingerprint() != old.rules.secret().fingerprint();
        let pending = self.pending_restart(restart_settings, old.rules.stores());
        let version = Version { rules: Arc::new(prepared.rules), stores: stores.after(&old.stores) };
        self.applied = self.last_read.clone();
        self.plan = prepared.plan;
        let (service, waits) = (self.service.clone(), pending.clone());
        let replaced = blocking(move || {
            service.replace(version, settings);
            tracing::info!(version = service.reloads().version, "configuration applied");
            log_data(&service.current().version.rules);
            log_warnings(&warnings);
            if secret_changed {
                tracing::warn!(
                    "server.secret changed: all counters start at zero, and leases can no longer be released before they expire"
                );
            }
            for PendingRestart { key, old, new } in &waits {
                tracing::warn!(key, old, new, "change takes effect after a restart");
            }
            drop_rules(old);
        });
        match replaced.await {
            Some(()) => ReloadOutcome::Applied { pending },
            None => self.reject(internal_error()),
        }
    }

    /// Changes of restart settings against those in use. The settings of a new store take effect now, and those of a
    /// removed store are dropped.
    fn pending_restart(&mut self, RestartSettings(new): RestartSettings, stores: &[String]) -> Vec<PendingRestart> {
        self.restart_settings.retain(|key, _| new.contains_key(key));
        let mut pending = Vec::new();
        for (key, new) in new {
            let fresh = new.opens.is_some_and(|store| !stores.contains(&store));
            let old = match self.restart_settings.get(&key) {
                Some(old) => old.clone(),
                None if fresh => new.value.clone(),
                None => ABSENT.to_owned(),
            };
            if old != new.value {
                pending.push(PendingRestart { key: key.clone(), old: old.clone(), new: new.value });
            }
            self.restart_settings.insert(key, old);
        }
        pending
    }
}

/// Runs work that may take long off the threads that serve. `None` if it panics, which must not end the process or the
/// next reload.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}

fn internal_error() -> Vec<String> {
    vec!["reading the configuration failed: internal error".to_owned()]
}

/// The new settings, with the old values of those that need a restart, such as addresses.
fn until_restart(old: &Settings, new: &Settings) -> Settings {
    let mut settings = new.clone();
    settings.grpc = old.grpc.clone();
    settings.http = old.http.clone();
    // Address and token were checked together: while the old address stays open, its token stays too.
    if settings.admin.listen != old.admin.listen {
        settings.admin = old.admin.clone();
    }
    settings.log.json = old.log.json;
    // Likewise at the port of the API.
    if settings.api.listen != old.api.listen {
        let domain = std::mem::take(&mut settings.api.domain);
        settings.api = ApiSettings { domain, ..old.api.clone() };
    }
    let Bounds { authz_body_bytes, max_wait, waiters, .. } = settings.bounds;
    settings.bounds = Bounds { authz_body_bytes, max_wait, waiters, ..old.bounds.clone() };
    settings
}

/// Waits for the requests that still use these rules, so that the rules are dropped here: freeing a hundred thousand
/// rules would delay a request.
fn drop_rules(version: Arc<Version>) {
    let rules: Arc<Rules> = version.rules.clone();
    drop(version);
    let pause = RULES_IN_USE_TIMEOUT / 100;
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
    use crate::config::{Config, SourceText};
    use crate::settings::{AdminSettings, Listen, Log, Token};

    #[test]
    fn an_admin_port_that_stays_open_to_others_keeps_its_token() {
        let open = Listen::Tcp(([0, 0, 0, 0], 9090).into());
        let token = |text: &str| Some(Token(text.to_owned()));
        let settings =
            |listen, token| Settings { admin: AdminSettings { listen, chosen: true, token }, ..Settings::default() };
        let old = settings(Some(open.clone()), token("a token that others know"));
        // Without its address the token would not be needed, but the address stays until the next start.
        for new in [settings(None, None), settings(Some(Listen::Tcp(([127, 0, 0, 1], 9090).into())), None)] {
            assert_eq!(until_restart(&old, &new).admin, old.admin);
        }
        let another = settings(Some(open), token("a token that replaces it"));
        assert_eq!(until_restart(&old, &another).admin, another.admin);
    }

    #[test]
    fn an_address_of_the_api_that_stays_open_to_others_keeps_its_tokens() {
        let open = Listen::Tcp(([0, 0, 0, 0], 9091).into());
        let token = |text: &str| vec![Token(text.to_owned())];
        let settings = |listen, tokens, domain: &str| {
            let api = ApiSettings { listen, tokens, domain: domain.to_owned() };
            Settings { api, ..Settings::default() }
        };
        let old = settings(Some(open.clone()), token("a token that others know"), "jobs");
        for listen in [None, Some(Listen::Tcp(([127, 0, 0, 1], 9091).into()))] {
            let kept = until_restart(&old, &settings(listen, Vec::new(), "others")).api;
            assert_eq!(kept, ApiSettings { domain: "others".to_owned(), ..old.api.clone() });
        }
        let another = settings(Some(open), token("a token that replaces it"), "jobs");
        assert_eq!(until_restart(&old, &another).api, another.api);
    }

    #[test]
    fn a_reload_keeps_just_the_settings_that_the_schema_marks() {
        let read = |text: &str| {
            let source = SourceText { name: "a.toml".to_owned(), text: text.to_owned() };
            Config::read(&[source], &|_| None).expect("nothing is wrong")
        };
        let old = read("");
        let new = read(
            "[server]\ngrpc = '127.0.0.1:1'\nhttp = '127.0.0.1:2'\nadmin = '127.0.0.1:3'\napi = '127.0.0.1:4'\napi_domain = 'a'\ndrain_delay = '1s'\ndrain_timeout = '1s'\n\
             [server.headers.rls]\nietf = true\n[server.headers.authz]\nietf = false\n\
             [server.bounds]\nmessage_bytes = '2KiB'\nheaders = 40\nheader_bytes = '9KiB'\nbody_bytes = 5\n\
             unfinished_bytes_per_connection = '1MiB'\nunfinished_bytes = '2MiB'\nrequests = 7\nconnections = 7\nstreams = 7\n\
             head_timeout = '1s'\nrequest_timeout = '1s'\nidle_timeout = 'off'\nmax_wait = '1s'\nwaiters = 7\n\
             [log]\nformat = 'json'\nrefusals_per_second = 3\n[authz]\ndomain = 'a'\ntrusted_hops = 2\n",
        );
        let restart = |config: &Config| RestartSettings::of(config).0;
        let changed = restart(&new).into_iter().filter(|(key, value)| restart(&old).get(key) != Some(value));
        let whole: Vec<String> = restart(&old).into_keys().filter(|key| !key.starts_with("stores.")).collect();
        assert_eq!(changed.map(|(key, _)| key).collect::<Vec<_>>(), whole, "every marked setting has another value");
        let kept = Config { server: until_restart(&old.server, &new.server), ..new.clone() };
        assert_eq!(restart(&kept), restart(&old), "marked, and not kept");
        // With the marked settings of the new configuration nothing of the old one is left.
        let Settings { grpc, http, admin, api, bounds, .. } = new.server.clone();
        let log = Log { json: true, ..kept.server.log };
        let taken = Config { server: Settings { grpc, http, admin, api, bounds, log, ..kept.server }, ..new.clone() };
        assert_eq!(taken.effective(), new.effective(), "kept, and not marked");
    }
}
