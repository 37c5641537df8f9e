//! From a message of a worker to what it asks for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::error::ApiError;
use super::forms::{MAX_COST, shown};
use crate::ask::{Acquire, Ask, Subject};
use crate::server::grpc::limits_messages;
use crate::server::grpc::limits_messages::AcquireRequest;

/// Reads what a call asks for.
pub(in crate::server) fn acquire(request: AcquireRequest) -> Result<Acquire, ApiError> {
    let AcquireRequest {
        domain,
        limiter,
        key,
        entries,
        cost,
        hold,
        lost,
        asks,
        any,
        max_wait,
        lease,
        partial,
        idempotency_key,
    } = request;
    let flat = limits_messages::Ask { limiter, key, entries, cost, hold, lost };
    let asks = match asks.is_empty() {
        true => vec![ask(flat, "")?],
        false => {
            if let Some(field) = written(&flat) {
                return Err(ApiError::at(field, "expected it in the asks, because there are asks"));
            }
            let numbered = asks.into_iter().enumerate();
            numbered.map(|(number, of)| ask(of, &format!("asks[{number}]."))).collect::<Result<_, _>>()?
        }
    };
    Ok(Acquire {
        domain,
        asks,
        any,
        max_wait: duration(max_wait, "max_wait")?,
        lease: duration(lease, "lease")?,
        partial,
        idempotency_key,
    })
}

/// The first field of an ask that is there.
fn written(ask: &limits_messages::Ask) -> Option<&'static str> {
    let limits_messages::Ask { limiter, key, entries, cost, hold, lost } = ask;
    let fields = [
        ("limiter", limiter.is_some()),
        ("key", !key.is_empty()),
        ("entries", !entries.is_empty()),
        ("cost", cost.is_some()),
        ("hold", hold.is_some()),
        ("lost", lost.is_some()),
    ];
    fields.into_iter().find(|(_, there)| *there).map(|(name, _)| name)
}

fn ask(ask: limits_messages::Ask, place: &str) -> Result<Ask, ApiError> {
    let limits_messages::Ask { limiter, key, entries, cost, hold, lost } = ask;
    let at = |field: &str| format!("{place}{field}");
    let pairs = |entries: BTreeMap<String, String>| entries.into_iter().collect();
    let subject = match (limiter, entries.is_empty()) {
        (Some(limiter), true) => Subject::Limiter { limiter, key: pairs(key) },
        (Some(_), false) => {
            return Err(ApiError::at(at("entries"), "expected either entries, or a limiter with its key"));
        }
        (None, _) if !key.is_empty() => return Err(ApiError::at(at("key"), "expected a limiter with it")),
        (None, false) => Subject::Entries(pairs(entries)),
        (None, true) => return Err(ApiError::at(at("limiter"), "expected a limiter, or entries that rules match")),
    };
    let cost = cost.unwrap_or(1);
    let cost = u32::try_from(cost).ok().filter(|cost| *cost > 0).ok_or_else(|| {
        let value =
            if i64::try_from(cost).is_err() { "a negative or huge number".to_owned() } else { cost.to_string() };
        ApiError::at(at("cost"), format!("{value}, expected a whole number from 1 to {MAX_COST}"))
    })?;
    let release_lost = match lost.as_deref() {
        None | Some("charge") => false,
        Some("release") => true,
        Some(other) => {
            return Err(ApiError::at(at("lost"), format!("{}, expected \"charge\" or \"release\"", shown(other))));
        }
    };
    let hold = duration(hold, &at("hold"))?;
    if lost.is_some() && hold.is_none() {
        return Err(ApiError::at(at("lost"), "expected a hold with it"));
    }
    Ok(Ask { subject, cost, hold, release_lost })
}

/// Reads a duration. Protobuf's can be negative, and have seconds and nanoseconds that contradict each other.
pub(super) fn duration(duration: Option<prost_types::Duration>, place: &str) -> Result<Option<Duration>, ApiError> {
    let Some(prost_types::Duration { seconds, nanos }) = duration else { return Ok(None) };
    let valid = u64::try_from(seconds).ok().zip(u32::try_from(nanos).ok()).filter(|(_, nanos)| *nanos < 1_000_000_000);
    match valid {
        Some((seconds, nanos)) => Ok(Some(Duration::new(seconds, nanos))),
        None => {
            Err(ApiError::at(place, format!("{seconds} s and {nanos} ns, expected a duration that is not negative")))
        }
    }
}
