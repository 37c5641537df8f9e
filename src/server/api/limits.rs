//! The methods of the API, whatever protocol they come by.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::error::{ApiError, ApiErrorKind};
use super::forms::MAX_COST;
use super::{request, response};
use crate::ask::{Acquire, AskError};
use crate::decision::Reason;
use crate::lease::Units;
use crate::server::grpc::limits_messages::{
    AcquireRequest, Limiter, ListLimitersResponse, ReleaseRequest, ReleaseResponse, RenewRequest, RenewResponse,
    SettleRequest, SettleResponse,
};
use crate::service::{Acquisition, Service};
use crate::telemetry::{Door, Reply};

/// When it is worth another try after the process stops: about the time in which a client finds another instance.
const DRAIN_RETRY: Duration = Duration::from_secs(1);

/// The methods of `tollgate.v1.Limits`.
#[derive(Debug)]
pub(in crate::server) struct Limits {
    service: Arc<Service>,
}

impl Limits {
    pub(in crate::server) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    pub(in crate::server) fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Acquires, and waits until the deadline at most. Dropping the future ends the wait.
    pub(in crate::server) async fn acquire(
        &self,
        message: AcquireRequest,
        deadline: Option<Instant>,
    ) -> Result<Acquisition, ApiError> {
        let flat = message.asks.is_empty();
        let acquire = self.read(|| request::acquire(message))?;
        self.acquire_asked(&acquire, flat, deadline).await
    }

    /// Acquires what was asked for, `flat` without a list of asks.
    pub(in crate::server) async fn acquire_asked(
        &self,
        acquire: &Acquire,
        flat: bool,
        deadline: Option<Instant>,
    ) -> Result<Acquisition, ApiError> {
        let answer = self.service.acquire(acquire, deadline).await;
        self.answered(answer.map_err(|error| placed(error, flat)))
    }

    /// Looks at what an acquire would be answered.
    pub(in crate::server) async fn peek(&self, message: AcquireRequest) -> Result<Acquisition, ApiError> {
        let flat = message.asks.is_empty();
        let acquire = self.read(|| request::acquire(message))?;
        let answer = self.service.peek(&acquire).await;
        self.answered(answer.map_err(|error| placed(error, flat)))
    }

    pub(in crate::server) async fn renew(&self, message: RenewRequest) -> Result<RenewResponse, ApiError> {
        let length = self.read(|| {
            there(&message.lease)?;
            request::duration(message.length, "length")
        })?;
        let renewed = self.service.renew(&message.lease, length).await;
        let (status, ends_in) = renewed.map_err(|error| self.unreadable(error.into()))?;
        Ok(RenewResponse { fate: response::fate(status)?, lease_ends_in: ends_in.map(response::duration) })
    }

    pub(in crate::server) async fn release(&self, message: ReleaseRequest) -> Result<ReleaseResponse, ApiError> {
        self.read(|| there(&message.lease))?;
        Ok(ReleaseResponse { fate: response::fate(self.service.release(&message.lease).await)? })
    }

    pub(in crate::server) async fn settle(&self, message: SettleRequest) -> Result<SettleResponse, ApiError> {
        let SettleRequest { lease, units } = message;
        let units = self.read(|| {
            there(&lease)?;
            let Some(units) = units else { return Ok(Units::Charged) };
            let number = |units: u64, place: &str| {
                let huge = |_| ApiError::at(place, format!("a negative or huge number, expected 0 to {MAX_COST}"));
                u32::try_from(units).map_err(huge)
            };
            match (units.each, units.by_limiter.is_empty()) {
                (Some(each), true) => Ok(Units::Each(number(each, "units")?)),
                (None, false) => {
                    let by_limiter = units.by_limiter.into_iter().map(|(limiter, units)| {
                        let units = number(units, &format!("units.{limiter}"))?;
                        Ok((limiter, units))
                    });
                    Ok(Units::ByLimiter(by_limiter.collect::<Result<_, ApiError>>()?))
                }
                (Some(_), false) => Err(ApiError::at("units", "expected one number, or one for each limiter")),
                (None, true) => Ok(Units::Charged),
            }
        })?;
        match self.service.settle(&lease, units).await {
            Ok(status) => Ok(SettleResponse { fate: response::fate(status)? }),
            Err(error) => Err(self.unreadable(error.into())),
        }
    }

    /// What can be asked for.
    pub(in crate::server) fn limiters(&self) -> ListLimitersResponse {
        let current = self.service.current();
        let limiter = |known: crate::rules::AskableLimiter<'_>| Limiter {
            domain: known.domain.map(str::to_owned),
            limiter: known.limiter.to_owned(),
            rule: known.rule.map(str::to_owned),
            key: known.key.into_iter().map(str::to_owned).collect(),
            fills: known.fills.into_iter().map(str::to_owned).collect(),
        };
        ListLimitersResponse { limiters: current.version.rules.askable_limiters().map(limiter).collect() }
    }

    /// Reads a call, and counts it if it makes no sense.
    fn read<T>(&self, read: impl FnOnce() -> Result<T, ApiError>) -> Result<T, ApiError> {
        read().map_err(|error| self.unreadable(error))
    }

    /// Counts an error, and returns it.
    pub(in crate::server) fn unreadable(&self, error: ApiError) -> ApiError {
        self.service.telemetry().metrics.record_reply(Door::Api, Reply::Unreadable);
        error
    }

    /// A refusal that is worth another try elsewhere is an error.
    fn answered(&self, answer: Result<Acquisition, AskError>) -> Result<Acquisition, ApiError> {
        let acquisition = answer.map_err(|error| self.unreadable(error.into()))?;
        let unavailable = |text, retry_after, reason: Reason| {
            Err(ApiError::new(ApiErrorKind::Unavailable { retry_after, reason: reason.name() }, text))
        };
        match acquisition.refused {
            Some(reason @ Reason::StoreError) => {
                let wait = acquisition.decision.refusal().and_then(|refusal| refusal.retry_after);
                unavailable("a store did not answer; nothing was charged", wait.unwrap_or(DRAIN_RETRY), reason)
            }
            Some(reason @ Reason::Draining) => {
                unavailable("the server is stopping; nothing was charged", DRAIN_RETRY, reason)
            }
            _ => Ok(acquisition),
        }
    }
}

/// An error with its place in the call: the ask of a flat call is the call itself.
fn placed(error: AskError, flat: bool) -> AskError {
    let place = match error.place.strip_prefix("asks[0]") {
        Some(rest) if flat => rest.trim_start_matches('.').to_owned(),
        _ => error.place,
    };
    AskError { place, ..error }
}

/// A lease that is missing is a mistake; a text that is none is a lease that nobody knows.
fn there(lease: &str) -> Result<(), ApiError> {
    match lease {
        "" => Err(ApiError::at("lease", "expected the lease that an acquire returned")),
        _ => Ok(()),
    }
}
