//! What all doors decide by: the engine, the settings that go with its rules, and who watches.
//!
//! ```text
//!   rls.rs  authz.rs  http/authz.rs -> Desk::decide -> Engine::decide_by -> Telemetry::decided
//!                                         |
//!                                         '- InUse { version, settings, handles }   replaced whole
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use super::bounds::{Bound, Tally};
use super::health::Health;
use crate::decision::{Decision, Reason};
use crate::descriptor::Request;
use crate::engine::{Engine, Version};
use crate::rules::RequestBounds;
use crate::settings::Settings;
use crate::telemetry::{Door, Handles, Reload, Telemetry};

/// What doors decide by.
pub struct Desk {
    engine: Arc<Engine>,
    in_use: ArcSwap<InUse>,
    telemetry: Telemetry,
    health: Health,
    reloads: Mutex<Reload>,
    tally: Arc<Tally>,
}

/// One version of everything that decides a request and its answer. A request sees one of them, whole.
#[derive(Debug)]
pub struct InUse {
    /// Rules and stores.
    pub version: Arc<Version>,
    /// How requests are read and answers are worded.
    pub settings: Settings,
    handles: Handles,
}

impl Desk {
    /// A desk over an engine, with the settings that go with the engine's rules.
    pub fn new(engine: Arc<Engine>, settings: Settings) -> Self {
        let telemetry = Telemetry::new(settings.log.refusals_per_second);
        let version = engine.in_use();
        let handles = telemetry.prepare(&version.rules);
        watch(&telemetry, &version);
        let in_use = ArcSwap::from_pointee(InUse { version, settings, handles });
        let first = Reload { version: 1, last_taken: true, loaded_at: unix_seconds(), ..Reload::default() };
        let (health, tally) = (Health::serving(), Arc::default());
        Self { engine, in_use, telemetry, health, reloads: Mutex::new(first), tally }
    }

    /// Takes another version, whole. Requests under way finish by the one they began with.
    pub fn replace(&self, version: Version, settings: Settings) {
        let version = Arc::new(version);
        let handles = self.telemetry.prepare(&version.rules);
        watch(&self.telemetry, &version);
        self.telemetry.refusals.limit(settings.log.refusals_per_second);
        self.engine.replace(version.clone());
        self.in_use.store(Arc::new(InUse { version, settings, handles }));
        let mut reloads = self.reloads.lock();
        *reloads = Reload {
            version: reloads.version + 1,
            taken: reloads.taken + 1,
            last_taken: true,
            loaded_at: unix_seconds(),
            ..*reloads
        };
    }

    /// A configuration was read and cannot be taken: the one in use stays.
    pub fn keep(&self) {
        let mut reloads = self.reloads.lock();
        reloads.refused += 1;
        reloads.last_taken = false;
    }

    /// The configuration that was read is the one in use, whatever was read before.
    pub fn is_in_use(&self) {
        self.reloads.lock().last_taken = true;
    }

    /// What became of the configurations that were read.
    pub fn reloads(&self) -> Reload {
        *self.reloads.lock()
    }

    /// The version in use, for one request.
    pub fn in_use(&self) -> Guard<Arc<InUse>> {
        self.in_use.load()
    }

    /// Decides a request that was read by this version, and lets it be counted.
    pub async fn decide(&self, in_use: &InUse, door: Door, request: &Request<'_>) -> Decision {
        let (now, began) = (self.engine.clock().now(), Instant::now());
        let decision = self.engine.decide_by(&in_use.version, request, now).await;
        // By a clock of its own: that of the limits may be stepped, and knows nothing below a microsecond.
        let took = began.elapsed();
        self.telemetry.decided(&in_use.handles, door, &decision, now, took);
        if let Some((Reason::TooLarge, ..)) = decision.refused_by() {
            self.tally.exceeded.count(past(in_use.version.rules.bounds(), request));
        }
        decision
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// What watches.
    pub fn telemetry(&self) -> &Telemetry {
        &self.telemetry
    }

    /// Whether requests should be sent here.
    pub fn health(&self) -> &Health {
        &self.health
    }

    /// What clients take of the doors, and what was turned away.
    pub fn tally(&self) -> &Arc<Tally> {
        &self.tally
    }
}

/// Lets shared stores count what they are asked.
fn watch(telemetry: &Telemetry, version: &Version) {
    version.stores.watch(|place| telemetry.metrics.watch(&version.rules.stores()[place]));
}

/// Now, for people and their clocks. Nothing is decided by it.
fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

/// The bound that a request is past which was refused as too large.
fn past(bounds: RequestBounds, request: &Request<'_>) -> Bound {
    if request.descriptors.len() > bounds.descriptors {
        Bound::Descriptors
    } else if request.descriptors.iter().any(|descriptor| descriptor.entries.len() > bounds.entries) {
        Bound::Entries
    } else {
        Bound::Checks
    }
}

impl fmt::Debug for Desk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Desk").field("engine", &self.engine).finish_non_exhaustive()
    }
}
