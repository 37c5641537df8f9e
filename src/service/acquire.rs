//! What workers ask of the service: to acquire slots and units, to look at them, and to renew and release a lease.
//!
//! ```text
//!   Acquire -> is it valid? -> Rules::plan_asks -> Version::execute -> Acquisition
//! ```

use std::time::{Duration, Instant};

use super::{Current, Service};
use crate::ask::{Acquire, Ask, AskError, Subject};
use crate::decision::{Decision, Reason};
use crate::limiter::{LeaseStatus, Limit};
use crate::plan::{Charges, Check, LeaseAction};
use crate::rules::Planned;
use crate::settings::Settings;
use crate::telemetry::Door;

/// The longest lease that a call can ask for.
const MAX_LEASE: Duration = Duration::from_secs(86_400);

/// Bytes of the name and of the value of an entry, and of a limiter's name.
const MAX_TEXT_BYTES: usize = 8 << 10;

/// Bytes of an idempotency key.
const MAX_KEY_BYTES: usize = 512;

/// The answer to an [`Acquire`].
#[derive(Debug)]
pub struct Acquisition {
    /// The decision on what was granted, or on what was asked last.
    pub decision: Decision,
    /// The ask that was granted, of several of which any will do. Else zero.
    pub ask: usize,
    /// The units that were granted. Zero if none were.
    pub units: u32,
    /// How long the caller waited.
    pub waited: Duration,
    /// What holds the slots that were taken.
    pub lease: Option<Lease>,
    /// Why nothing was granted.
    pub refused: Option<Reason>,
}

impl Acquisition {
    /// Whether what was asked for was granted, or would be.
    pub fn granted(&self) -> bool {
        self.refused.is_none()
    }
}

/// A lease that was handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The sealed text.
    pub text: String,
    /// The time until the first of its slots is free again, unless it is renewed.
    pub ends_in: Duration,
}

impl Service {
    /// Acquires what a worker asks for.
    ///
    /// # Errors
    ///
    /// The call makes no sense: nothing was charged.
    pub async fn acquire(
        &self,
        acquire: &Acquire,
        deadline: Option<tokio::time::Instant>,
    ) -> Result<Acquisition, AskError> {
        let _ = deadline;
        self.try_each(acquire, Purpose::Take).await
    }

    /// Answers what [`Service::acquire`] would answer now without waiting, and takes nothing.
    ///
    /// # Errors
    ///
    /// The call makes no sense.
    pub async fn peek(&self, acquire: &Acquire) -> Result<Acquisition, AskError> {
        self.try_each(acquire, Purpose::Look).await
    }

    /// Asks the stores for each alternative in turn, until one is granted.
    async fn try_each(&self, acquire: &Acquire, purpose: Purpose) -> Result<Acquisition, AskError> {
        let current = self.current.load_full();
        validate(acquire, &current)?;
        // All are planned before any is charged, so that a call that makes no sense charges nothing.
        let mut plans: Vec<(usize, Box<Planned>)> = Vec::new();
        let domain = acquire.domain.as_deref().unwrap_or(&current.settings.api.domain);
        for (first, asks) in alternatives(acquire) {
            let mut planned = current.version.rules.plan_asks(domain, asks, first, self.leases.next_id())?;
            adjust(&mut planned, acquire, purpose);
            plans.push((first, planned));
        }
        let mut refused = None;
        for (first, planned) in plans {
            let acquisition = self.execute(&current, acquire, first, planned, purpose).await;
            if acquisition.granted() {
                return Ok(acquisition);
            }
            refused = Some(sooner(refused, acquisition));
        }
        Ok(refused.expect("a call has an ask"))
    }

    /// Makes what a lease holds end so much later than now. Returns its status, and the time until it ends.
    pub async fn renew(&self, lease: &str, length: Option<Duration>) -> (LeaseStatus, Option<Duration>) {
        let length = length.unwrap_or(Duration::from_secs(60)).min(MAX_LEASE);
        let version = self.current().version.clone();
        let status = version.change_lease(lease, LeaseAction::Renew(micros(length)), self.now()).await;
        match status.unwrap_or(LeaseStatus::Unknown) {
            LeaseStatus::Done => (LeaseStatus::Done, Some(length)),
            status => (status, None),
        }
    }

    /// Gives everything back that a lease holds. Doing so again or late is not an error, and a text that is no lease is
    /// [`LeaseStatus::Unknown`].
    pub async fn release(&self, lease: &str) -> LeaseStatus {
        let version = self.current().version.clone();
        let status = version.change_lease(lease, LeaseAction::Release, self.now()).await;
        status.unwrap_or(LeaseStatus::Unknown)
    }

    /// Asks the stores once.
    #[expect(clippy::disallowed_methods, reason = "a duration for a metric, which no decision depends on")]
    async fn execute(
        &self,
        current: &Current,
        acquire: &Acquire,
        ask: usize,
        planned: Box<Planned>,
        purpose: Purpose,
    ) -> Acquisition {
        let (now, began) = (self.clock.now(), Instant::now());
        let decision = current.version.execute(planned, now).await;
        let took = began.elapsed();
        if purpose == Purpose::Take {
            self.telemetry.record_decision(&current.handles, Door::Api, &decision, now, took);
        }
        let refused = decision.refusal().map(|refusal| refusal.reason);
        let lease = decision.lease().map(|text| Lease {
            text: text.to_owned(),
            ends_in: shortest_lease(&decision).saturating_sub(Duration::from_micros(self.clock.now() - now)),
        });
        let asks = if acquire.any { &acquire.asks[ask..=ask] } else { &acquire.asks };
        let units = asks.iter().fold(0, |units: u32, ask| units.saturating_add(ask.cost));
        let units = if refused.is_none() { units } else { 0 };
        Acquisition { ask, units, waited: Duration::ZERO, lease, refused, decision }
    }
}

/// What an ask does in the stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Purpose {
    /// Takes what it asks for, if it is there.
    Take,
    /// Takes nothing.
    Look,
}

/// The plans of a call: one of all asks, or one of each, with the number of its first ask.
fn alternatives(acquire: &Acquire) -> impl Iterator<Item = (usize, &[Ask])> {
    let size = if acquire.any { 1 } else { acquire.asks.len() };
    acquire.asks.chunks(size.max(1)).enumerate()
}

/// Of two refusals, the one that is worth another try sooner.
fn sooner(known: Option<Acquisition>, other: Acquisition) -> Acquisition {
    let wait = |acquisition: &Acquisition| {
        let refusal = acquisition.decision.refusal();
        refusal.and_then(|refusal| refusal.retry_after).unwrap_or(Duration::MAX)
    };
    match known {
        Some(known) if wait(&known) <= wait(&other) => known,
        _ => other,
    }
}

/// Gives the checks of a plan the length of the lease that the call asks for, and takes their charges where it only
/// looks.
fn adjust(planned: &mut Planned, acquire: &Acquire, purpose: Purpose) {
    for check in &mut planned.plan.checks {
        if let (Limit::Concurrency(slots), Some(length)) = (&mut check.limit, acquire.lease) {
            slots.lease = micros(length);
        }
        if purpose == Purpose::Look {
            check.charges = Charges::default();
        }
    }
}

/// The time until the first slot that a decision took is free again.
fn shortest_lease(decision: &Decision) -> Duration {
    let length = |check: &Check| match check.limit {
        Limit::Concurrency(slots) if check.charges.admitted > 0 && !check.shadow => Some(slots.lease),
        _ => None,
    };
    let shortest = decision.planned().plan.checks.iter().filter_map(length).min();
    Duration::from_micros(shortest.unwrap_or_default())
}

fn micros(length: Duration) -> u64 {
    u64::try_from(length.as_micros()).unwrap_or(u64::MAX)
}

/// Checks everything about a call that rules do not.
fn validate(acquire: &Acquire, current: &Current) -> Result<(), AskError> {
    let Acquire { domain, asks, any, max_wait, lease, partial, idempotency_key } = acquire;
    let Settings { bounds, .. } = &current.settings;
    check_text("domain", domain.as_deref().unwrap_or_default())?;
    let most = current.version.rules.bounds().descriptors;
    match asks.len() {
        0 => return Err(AskError::invalid("asks", "expected at least one ask")),
        count if count > most => {
            return Err(AskError::invalid("asks", format!("has {count} asks, expected at most {most}")));
        }
        _ => {}
    }
    if let Some(wait) = max_wait
        && *wait > bounds.max_wait
    {
        let most = bounds.max_wait;
        let message = format!("is {wait:?}, expected at most {most:?} (server.bounds.max_wait)");
        return Err(AskError::invalid("max_wait", message));
    }
    if let Some(lease) = lease {
        check_length("lease", *lease)?;
    }
    if *partial && (asks.len() > 1 || *any) {
        return Err(AskError::invalid("partial", "expected a single ask, without any"));
    }
    if let Some(key) = idempotency_key {
        match key.len() {
            _ if *partial => {
                let message = "cannot be used with partial: how much the first call was granted is not known";
                return Err(AskError::invalid("idempotency_key", message));
            }
            0 => return Err(AskError::invalid("idempotency_key", "expected a random text")),
            length if length > MAX_KEY_BYTES => {
                let message = format!("has {length} bytes, expected at most {MAX_KEY_BYTES}");
                return Err(AskError::invalid("idempotency_key", message));
            }
            _ => {}
        }
    }
    asks.iter().enumerate().try_for_each(|(number, ask)| validate_ask(&format!("asks[{number}]"), ask))
}

fn validate_ask(place: &str, ask: &Ask) -> Result<(), AskError> {
    let Ask { subject, cost, hold, release_lost } = ask;
    if *cost == 0 {
        return Err(AskError::invalid(format!("{place}.cost"), "is 0, expected at least 1; peek takes nothing"));
    }
    match hold {
        Some(length) => check_length(&format!("{place}.hold"), *length)?,
        None if *release_lost => {
            return Err(AskError::invalid(format!("{place}.lost"), "has no meaning without hold"));
        }
        None => {}
    }
    let (field, entries) = match subject {
        Subject::Entries(entries) if entries.is_empty() => {
            return Err(AskError::invalid(format!("{place}.entries"), "expected at least one entry"));
        }
        Subject::Entries(entries) => ("entries", entries),
        Subject::Limiter { limiter, key } => {
            check_text(&format!("{place}.limiter"), limiter)?;
            ("key", key)
        }
    };
    entries.iter().try_for_each(|(entry, value)| {
        check_text(&format!("{place}.{field}"), entry)?;
        check_text(&format!("{place}.{field}.{entry}"), value)
    })
}

fn check_text(place: &str, text: &str) -> Result<(), AskError> {
    match text.len() {
        0..=MAX_TEXT_BYTES => Ok(()),
        length => Err(AskError::invalid(place, format!("has {length} bytes, expected at most {MAX_TEXT_BYTES}"))),
    }
}

fn check_length(place: &str, length: Duration) -> Result<(), AskError> {
    match length {
        Duration::ZERO => Err(AskError::invalid(place, "is zero, expected more")),
        length if length > MAX_LEASE => Err(AskError::invalid(place, format!("is {length:?}, expected at most 1d"))),
        _ => Ok(()),
    }
}
