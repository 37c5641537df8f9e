//! What all doors decide by: one version of rules, stores and settings in use, a clock, and telemetry.
//!
//! ```text
//!   server: rls, authz, http -> Service::current -> InUse::decide -> Version::decide -> Telemetry::decided
//!                                     |
//!                                     '- Current { version, settings, handles }   replaced as a whole
//! ```

mod health;

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

pub use self::health::Health;
use crate::clock::{Clock, Timestamp};
use crate::decision::Decision;
use crate::descriptor::Request;
use crate::engine::Version;
use crate::lease::LeaseIds;
use crate::limiter::LeaseStatus;
use crate::plan::LeaseAction;
use crate::settings::Settings;
use crate::telemetry::{Door, DoorMetrics, Handles, Reload, Telemetry};

/// What doors decide by.
pub struct Service {
    current: ArcSwap<Current>,
    clock: Arc<dyn Clock>,
    leases: LeaseIds,
    telemetry: Telemetry,
    health: Health,
    reloads: Mutex<Reload>,
    doors: Arc<DoorMetrics>,
}

/// One version of everything that decides a request and words its answer.
#[derive(Debug)]
pub struct Current {
    /// Rules and stores.
    pub version: Arc<Version>,
    /// How requests are read and answers are worded.
    pub settings: Settings,
    handles: Handles,
}

/// The version in use, held for one request.
pub struct InUse<'a> {
    service: &'a Service,
    current: Guard<Arc<Current>>,
}

impl Deref for InUse<'_> {
    type Target = Current;

    fn deref(&self) -> &Current {
        &self.current
    }
}

impl InUse<'_> {
    /// Decides a request that was read by this version, and counts it.
    pub async fn decide(&self, door: Door, request: &Request<'_>) -> Decision {
        let Service { clock, leases, telemetry, doors, .. } = self.service;
        let (now, began) = (clock.now(), Instant::now());
        let decision = self.version.decide(request, now, leases.next_id()).await;
        // A clock of its own: the clock of the limits may be stepped, and has no unit below a microsecond.
        let took = began.elapsed();
        telemetry.decided(&self.handles, door, &decision, now, took);
        if let Some(bound) = decision.exceeded_bound() {
            doors.exceeded.count(bound);
        }
        decision
    }
}

impl fmt::Debug for InUse<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.current.fmt(f)
    }
}

impl Service {
    /// A service that decides by this version.
    pub fn new(version: Version, settings: Settings, clock: Arc<dyn Clock>) -> Self {
        let telemetry = Telemetry::new(settings.log.refusals_per_second);
        let handles = telemetry.prepare(&version.rules);
        watch(&telemetry, &version);
        let current = ArcSwap::from_pointee(Current { version: Arc::new(version), settings, handles });
        let first = Reload { version: 1, last_taken: true, loaded_at: unix_seconds(), ..Reload::default() };
        Self {
            current,
            clock,
            leases: LeaseIds::new(),
            telemetry,
            health: Health::serving(),
            reloads: Mutex::new(first),
            doors: Arc::default(),
        }
    }

    /// Takes another version as a whole. Requests in flight finish by the one they began with.
    pub fn replace(&self, version: Version, settings: Settings) {
        let handles = self.telemetry.prepare(&version.rules);
        watch(&self.telemetry, &version);
        self.telemetry.refusals.limit(settings.log.refusals_per_second);
        self.current.store(Arc::new(Current { version: Arc::new(version), settings, handles }));
        let mut reloads = self.reloads.lock();
        *reloads = Reload {
            version: reloads.version + 1,
            taken: reloads.taken + 1,
            last_taken: true,
            loaded_at: unix_seconds(),
            ..*reloads
        };
    }

    /// Records that a configuration was read and rejected: the one in use stays.
    pub fn record_failed_reload(&self) {
        let mut reloads = self.reloads.lock();
        reloads.refused += 1;
        reloads.last_taken = false;
    }

    /// Records that the configuration that was read last is the one in use.
    pub fn record_unchanged_reload(&self) {
        self.reloads.lock().last_taken = true;
    }

    /// Counts and times of the configurations that were read.
    pub fn reloads(&self) -> Reload {
        *self.reloads.lock()
    }

    /// The version in use, for one request.
    pub fn current(&self) -> InUse<'_> {
        InUse { service: self, current: self.current.load() }
    }

    /// Releases every slot of a lease by the version in use; see [`Version::change_lease`].
    pub async fn release(&self, lease: &str) -> Option<LeaseStatus> {
        let version = self.current().version.clone();
        version.change_lease(lease, LeaseAction::Release, self.now()).await
    }

    /// The moment that limits are decided at.
    pub fn now(&self) -> Timestamp {
        self.clock.now()
    }

    /// Metrics, the log of refusals and the most refused.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Whether requests should be sent here.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What clients take of the doors, and what was turned away.
    pub fn doors(&self) -> &Arc<DoorMetrics> {
        &self.doors
    }
}

/// Lets the metrics count what shared stores are asked.
fn watch(telemetry: &Telemetry, version: &Version) {
    version.stores.observe(|index| telemetry.metrics.store_observer(&version.rules.stores()[index]));
}

/// The wall clock, for people. Nothing is decided by it.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("current", &self.current).finish_non_exhaustive()
    }
}
