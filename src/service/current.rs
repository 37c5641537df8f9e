//! The service itself, and the version in use of everything that decides a request.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use super::health::Health;
use super::queues::WaitQueues;
use crate::clock::{Clock, Timestamp};
use crate::decision::Decision;
use crate::descriptor::Request;
use crate::engine::Version;
use crate::lease::LeaseIds;
use crate::settings::Settings;
use crate::telemetry::{Door, DoorMetrics, Handles, ReloadStatus, Telemetry};

/// Decides the requests of all doors.
pub struct Service {
    pub(super) current: ArcSwap<Current>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) leases: LeaseIds,
    pub(super) telemetry: Telemetry,
    health: Health,
    reloads: Mutex<ReloadStatus>,
    doors: Arc<DoorMetrics>,
    pub(super) queues: Arc<WaitQueues>,
}

/// One version of everything that decides a request and shapes its answer.
#[derive(Debug)]
pub struct Current {
    /// Rules and stores.
    pub version: Arc<Version>,
    /// How requests are read and answers are written.
    pub settings: Settings,
    pub(super) handles: Handles,
}

/// The version in use, for one request.
pub struct CurrentGuard<'a> {
    service: &'a Service,
    current: Guard<Arc<Current>>,
}

impl Deref for CurrentGuard<'_> {
    type Target = Current;

    fn deref(&self) -> &Current {
        &self.current
    }
}

impl CurrentGuard<'_> {
    /// Decides a request and records the decision. The request must have been read with the settings of this version.
    #[expect(clippy::disallowed_methods, reason = "a duration for a metric, which no decision depends on")]
    pub async fn decide(&self, door: Door, request: &Request<'_>) -> Decision {
        let Service { clock, leases, telemetry, doors, .. } = self.service;
        let (now, began) = (clock.now(), Instant::now());
        let decision = self.version.decide(request, now, leases.next_id()).await;
        // Not measured by `clock`, which tests can set and which counts whole microseconds.
        let took = began.elapsed();
        telemetry.record_decision(&self.handles, door, &decision, now, took);
        // The entries of ext_authz are made here, so their keys are those that the configuration knows.
        self.handles.note_matches(request, &decision, door == Door::Rls, &doors.mistakes);
        if let Some(bound) = decision.exceeded_bound() {
            doors.exceeded.count(bound);
        }
        self.service.note_given_back(&self.version.stores, &decision);
        decision
    }
}

impl fmt::Debug for CurrentGuard<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current.fmt(f)
    }
}

impl Service {
    /// A service with this first version.
    pub fn new(version: Version, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        let telemetry = Telemetry::new(settings.log.refusals_per_second);
        let handles = telemetry.prepare(&version.rules, &settings.authz);
        observe_stores(&telemetry, &version);
        let doors: Arc<DoorMetrics> = Arc::default();
        let queues = Arc::new(WaitQueues::new(doors.clone()));
        queues.hear_hints(&version.stores);
        let current = ArcSwap::from_pointee(Current { version: Arc::new(version), settings, handles });
        let first = ReloadStatus { version: 1, last_taken: true, loaded_at: unix_seconds(), ..ReloadStatus::default() };
        Self {
            current,
            clock,
            leases: LeaseIds::new(),
            telemetry,
            health: Health::serving(),
            reloads: Mutex::new(first),
            queues,
            doors,
        }
    }

    /// Replaces the version in use as a whole. Requests in flight finish with the version they began with.
    pub fn replace(&self, version: Version, settings: Settings) {
        let handles = self.telemetry.prepare(&version.rules, &settings.authz);
        observe_stores(&self.telemetry, &version);
        self.queues.hear_hints(&version.stores);
        self.telemetry.refusals.set_limit(settings.log.refusals_per_second);
        self.current.store(Arc::new(Current { version: Arc::new(version), settings, handles }));
        // A limit may be larger now.
        self.queues.wake_all();
        let mut reloads = self.reloads.lock();
        *reloads = ReloadStatus {
            version: reloads.version + 1,
            taken: reloads.taken + 1,
            last_taken: true,
            loaded_at: unix_seconds(),
            ..*reloads
        };
    }

    /// Records that a configuration was rejected. The version in use stays.
    pub fn record_failed_reload(&self) {
        let mut reloads = self.reloads.lock();
        reloads.refused += 1;
        reloads.last_taken = false;
    }

    /// Records that the configuration read last is the one in use.
    pub fn record_unchanged_reload(&self) {
        self.reloads.lock().last_taken = true;
    }

    /// Counts and times of configuration reloads.
    pub fn reloads(&self) -> ReloadStatus {
        *self.reloads.lock()
    }

    /// The version in use, for one request.
    pub fn current(&self) -> CurrentGuard<'_> {
        CurrentGuard { service: self, current: self.current.load() }
    }

    /// Reports not ready, and answers everybody who waits.
    pub fn begin_to_stop(&self) {
        self.health.set_stopping();
        self.queues.drain();
    }

    /// Compares the clock with the wall clock, and returns the microseconds by which it jumped, if it did.
    pub(crate) fn synchronise_clock(&self) -> Option<i64> {
        self.clock.synchronise()
    }

    /// Logs the mistakes of gateways that are due. Called once a second.
    pub(crate) fn report_mistakes(&self) {
        let current = self.current();
        self.telemetry.report_mistakes(&current.handles, &current.version.rules, &self.doors.mistakes, self.now());
    }

    /// The time by which limits are decided.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Metrics, the log of refusals, and the rules and counters that refused most.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// The readiness of this process.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// Counters of the doors.
    pub fn doors(&self) -> &Arc<DoorMetrics> {
        &self.doors
    }
}

/// Connects shared stores to their metrics.
fn observe_stores(telemetry: &Telemetry, version: &Version) {
    version.stores.observe(|index| telemetry.metrics.store_observer(&version.rules.stores()[index]));
}

/// Wall-clock time, to display only.
#[expect(clippy::disallowed_methods, reason = "no decision depends on it")]
pub(crate) fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("current", &self.current).finish_non_exhaustive()
    }
}
