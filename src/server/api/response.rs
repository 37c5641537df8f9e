//! From what the service answers to a message for the worker.

use std::time::Duration;

use super::error::{ApiError, ApiErrorKind};
use super::forms::message_duration;
use crate::decision::{CheckStatus, Decision, Reason};
use crate::limiter::LeaseStatus;
use crate::server::grpc::limits_messages::{AcquireResponse, Limit, PeekResponse};
use crate::service::Acquisition;

/// The time after which a change of a lease that a store did not answer is worth another try.
const STORE_RETRY: Duration = Duration::from_secs(1);

/// The answer to an acquire.
pub(in crate::server) fn acquired(acquisition: &Acquisition) -> AcquireResponse {
    let Acquisition { decision, ask, units, waited, lease, refused } = acquisition;
    let why = Refused::of(acquisition);
    AcquireResponse {
        granted: refused.is_none(),
        lease: lease.as_ref().map(|lease| lease.text.clone()),
        // What only rules in shadow took ends unnoticed.
        lease_ends_in: lease.as_ref().filter(|lease| !lease.ends_in.is_zero()).map(|lease| duration(lease.ends_in)),
        waited: Some(duration(*waited)),
        units: u64::from(*units),
        ask: u32::try_from(*ask).unwrap_or(u32::MAX),
        reason: refused.map(|reason| reason.name().to_owned()),
        limiter: why.limiter.map(str::to_owned),
        rule: why.rule.map(str::to_owned),
        retry_after: why.retry_after.map(duration),
        retry_after_ms: why.retry_after.map(millis),
        degraded: decision.degraded(),
        signals: String::new(),
        limits: limits(decision),
    }
}

/// The answer to a peek.
pub(in crate::server) fn peeked(acquisition: &Acquisition) -> PeekResponse {
    let why = Refused::of(acquisition);
    let granted = acquisition.refused.is_none();
    PeekResponse {
        would_grant: granted,
        reason: acquisition.refused.map(|reason| reason.name().to_owned()),
        limiter: why.limiter.map(str::to_owned),
        rule: why.rule.map(str::to_owned),
        retry_after_ms: if granted { Some(0) } else { why.retry_after.map(millis) },
        degraded: acquisition.decision.degraded(),
        limits: limits(&acquisition.decision),
    }
}

/// What refused, and when it is worth another try.
pub(in crate::server) struct Refused<'a> {
    pub(in crate::server) limiter: Option<&'a str>,
    pub(in crate::server) rule: Option<&'a str>,
    pub(in crate::server) retry_after: Option<Duration>,
}

impl<'a> Refused<'a> {
    pub(in crate::server) fn of(acquisition: &'a Acquisition) -> Self {
        let refusal = acquisition.decision.refusal().filter(|_| acquisition.refused.is_some());
        Self {
            limiter: refusal.as_ref().and_then(|refusal| refusal.limiter),
            rule: refusal.as_ref().and_then(|refusal| refusal.rule),
            retry_after: refusal.and_then(|refusal| refusal.retry_after),
        }
    }
}

fn limits(decision: &Decision) -> Vec<Limit> {
    let limit = |status: CheckStatus<'_>| Limit {
        limiter: status.limiter.to_owned(),
        rule: status.rule.map(str::to_owned),
        limit: status.limit,
        window: status.window.map(duration),
        remaining: status.remaining,
        reset: Some(duration(status.reset)),
    };
    decision.checks().map(limit).collect()
}

/// The word of a lease's fate.
///
/// # Errors
///
/// The store did not answer.
pub(super) fn fate(status: LeaseStatus) -> Result<String, ApiError> {
    let word = match status {
        LeaseStatus::Done | LeaseStatus::Held(_) => "done",
        LeaseStatus::Expired => "expired",
        LeaseStatus::Unknown => "unknown",
        LeaseStatus::Unanswered => {
            let kind = ApiErrorKind::Unavailable { retry_after: STORE_RETRY, reason: Reason::StoreError.name() };
            return Err(ApiError::new(
                kind,
                "a store did not answer: what became of the lease is not known; try again",
            ));
        }
    };
    Ok(word.to_owned())
}

/// A duration in whole microseconds, as all counting is.
pub(super) fn duration(duration: Duration) -> prost_types::Duration {
    message_duration(Duration::new(duration.as_secs(), duration.subsec_micros() * 1000))
}

/// Milliseconds, rounded up: who waits that long is not too early.
pub(in crate::server) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}
