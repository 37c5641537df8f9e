//! What workers ask of the service: to acquire slots and units, to look at them, and to renew and release a lease.
//!
//! ```text
//!   Acquire -> is it valid? -> Call: plans -> the stores -> Acquisition
//!                                  ^            |
//!                                  '-- wait.rs -'  refused, and it may wait
//! ```

use std::time::Duration;

use tokio::time::Instant;

use super::acquisition::{Acquisition, micros};
use super::call::Call;
use super::current::{Current, Service};
use super::in_flight::Purpose;
use super::wait::end_of_wait;
use crate::ask::{Acquire, Ask, AskError, Place, Subject};
use crate::lease::{LeaseCommand, UnknownLimiter};
use crate::limiter::LeaseStatus;
use crate::settings::Settings;

/// The longest lease that a call can ask for.
const MAX_LEASE: Duration = Duration::from_secs(86_400);

/// Bytes of the name and of the value of an entry, and of a limiter's name.
const MAX_TEXT_BYTES: usize = 8 << 10;

/// Bytes of an idempotency key.
const MAX_KEY_BYTES: usize = 512;

impl Service {
    /// Acquires what a worker asks for, and waits for it as long as the call or its limiters say, and no longer than
    /// shortly before `deadline`. Cancel-safe: a caller that goes away has charged nothing (semantics 48).
    ///
    /// # Errors
    ///
    /// The call makes no sense: nothing was charged.
    pub async fn acquire(&self, acquire: &Acquire, deadline: Option<Instant>) -> Result<Acquisition, AskError> {
        let began = Instant::now();
        let call = self.call(acquire)?;
        call.current.version.stores.listen_to_hints();
        let end = end_of_wait(acquire, &call, began, deadline);
        if end <= began {
            // Boxed, as what waits is: a caller that waits would hold the memory of both.
            let acquisition = Box::pin(self.ask_each(call, acquire, Purpose::Take)).await?;
            self.record_acquire(&acquisition, Duration::ZERO, false);
            return Ok(acquisition.acquisition);
        }
        Box::pin(self.wait(acquire, call, began, end)).await
    }

    /// Answers what [`Service::acquire`] would answer now without waiting, and takes nothing.
    ///
    /// # Errors
    ///
    /// The call makes no sense.
    pub async fn peek(&self, acquire: &Acquire) -> Result<Acquisition, AskError> {
        let call = self.call(acquire)?;
        // Boxed: every request of the HTTP door has room for the largest future of its methods, and moves it.
        let acquisition = Box::pin(self.ask_each(call, acquire, Purpose::Look)).await?.acquisition;
        Ok(Acquisition { lease: None, ..acquisition })
    }

    /// A call that makes sense, planned by the rules in use.
    pub(super) fn call(&self, acquire: &Acquire) -> Result<Call, AskError> {
        let current = self.current.load_full();
        validate(acquire, &current)?;
        Call::plan(current, acquire, &self.leases)
    }

    /// Makes what a lease holds end so much later than now, or each its own length. Returns its status, and the time until
    /// the first of it ends.
    ///
    /// # Errors
    ///
    /// The length is zero, or longer than a day.
    pub async fn renew(
        &self,
        lease: &str,
        length: Option<Duration>,
    ) -> Result<(LeaseStatus, Option<Duration>), AskError> {
        if let Some(length) = length {
            check_length("length", length)?;
        }
        let status = self.change_lease(lease, &LeaseCommand::Renew(length.map(micros))).await;
        let status = status.unwrap_or(LeaseStatus::Unknown);
        Ok(match status {
            LeaseStatus::Held(ends_in) => (status, Some(Duration::from_micros(ends_in))),
            _ => (status, None),
        })
    }

    /// Gives everything back that a lease holds. Doing so again or late is not an error, and a text that is no lease is
    /// [`LeaseStatus::Unknown`].
    pub async fn release(&self, lease: &str) -> LeaseStatus {
        self.change_lease(lease, &LeaseCommand::Release).await.unwrap_or(LeaseStatus::Unknown)
    }

    /// Changes what a lease took, and wakes those who wait for it.
    pub(super) async fn change_lease(
        &self,
        lease: &str,
        command: &LeaseCommand,
    ) -> Result<LeaseStatus, UnknownLimiter> {
        let version = self.current().version.clone();
        let status = version.change_lease(lease, command, self.now()).await?.unwrap_or(LeaseStatus::Unknown);
        self.note_lease_changed(lease, command, status, &version);
        Ok(status)
    }
}

/// Checks everything about a call that rules do not.
fn validate(acquire: &Acquire, current: &Current) -> Result<(), AskError> {
    let Acquire { domain, asks, any, max_wait, lease, partial, idempotency_key } = acquire;
    let Settings { bounds, .. } = &current.settings;
    check_text(|| "domain".to_owned(), domain.as_deref().unwrap_or_default())?;
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
    asks.iter().enumerate().try_for_each(|(number, ask)| validate_ask(Place(number), ask))
}

fn validate_ask(place: Place, ask: &Ask) -> Result<(), AskError> {
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
            check_text(|| format!("{place}.limiter"), limiter)?;
            ("key", key)
        }
    };
    entries.iter().try_for_each(|(entry, value)| {
        check_text(|| format!("{place}.{field}"), entry)?;
        check_text(|| format!("{place}.{field}.{entry}"), value)
    })
}

fn check_text(place: impl FnOnce() -> String, text: &str) -> Result<(), AskError> {
    match text.len() {
        0..=MAX_TEXT_BYTES => Ok(()),
        length => Err(AskError::invalid(place(), format!("has {length} bytes, expected at most {MAX_TEXT_BYTES}"))),
    }
}

fn check_length(place: &str, length: Duration) -> Result<(), AskError> {
    match length {
        length if micros(length) == 0 => {
            Err(AskError::invalid(place, format!("is {length:?}, expected at least a microsecond")))
        }
        length if length > MAX_LEASE => Err(AskError::invalid(place, format!("is {length:?}, expected at most 1d"))),
        _ => Ok(()),
    }
}
