//! Envoy's rate limit service: `envoy.service.ratelimit.v3.RateLimitService`.

use std::borrow::Cow;
use std::str::{self, Utf8Error};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::{Request, Response, Status};

use super::generated::envoy::config::core::v3::HeaderValue;
use super::generated::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use super::generated::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride;
use super::generated::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use super::generated::envoy::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus, RateLimit};
use super::generated::envoy::service::ratelimit::v3::rate_limit_service_server::RateLimitService;
use super::generated::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use super::generated::envoy::r#type::v3::RateLimitUnit;
use super::undo::Acquired;
use super::{Refused, frame, metadata};
use crate::decision::{self, Counted, Decision};
use crate::descriptor::{self, Descriptor, Entry, Hits, LimitOverride};
use crate::server::desk::Desk;
use crate::server::headers;
use crate::server::settings::HeaderFamilies;
use crate::telemetry::Door;

const SECOND: u64 = 1;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
const MONTH: u64 = 30 * DAY;
const YEAR: u64 = 365 * DAY;

/// The answer to a question that cannot be read.
pub(super) const UNREAD: Refused =
    || frame(&RateLimitResponse { overall_code: Code::OverLimit.into(), ..Default::default() });

/// The service.
#[derive(Debug)]
pub(super) struct Rls {
    desk: Arc<Desk>,
}

impl Rls {
    pub(super) fn new(desk: Arc<Desk>) -> Self {
        Self { desk }
    }
}

#[tonic::async_trait]
impl RateLimitService for Rls {
    async fn should_rate_limit(
        &self,
        request: Request<RateLimitRequest>,
    ) -> Result<Response<RateLimitResponse>, Status> {
        let mut message = request.into_inner();
        mend(&mut message);
        let asked = asked(&message).expect("what was no text has been mended");
        let in_use = self.desk.in_use();
        let decision = self.desk.decide(&in_use, Door::Rls, &asked).await;
        let mut response = Response::new(answer(&decision, in_use.settings.rls_headers));
        if let Some(lease) = decision.lease() {
            response.extensions_mut().insert(Acquired(lease.into()));
        }
        Ok(response)
    }
}

/// The question that a message asks. Fails when a text of it is no UTF-8.
fn asked(message: &RateLimitRequest) -> Result<descriptor::Request<'_>, Utf8Error> {
    // Filled in place: a descriptor is several hundred bytes, and every adaptor it is collected through copies it.
    let mut asked = descriptor::Request { domain: str::from_utf8(&message.domain)?, ..Default::default() };
    for told in &message.descriptors {
        asked.descriptors.push(Descriptor {
            hits: hits(told, message.hits_addend),
            limit: told.limit.as_ref().and_then(limit_override),
            ..Default::default()
        });
        let entries = asked.descriptors.last_mut().map(|descriptor| &mut descriptor.entries);
        let entries = entries.expect("one has just been pushed");
        for entry in &told.entries {
            let value = Cow::Borrowed(str::from_utf8(&entry.value)?);
            entries.push(Entry { key: str::from_utf8(&entry.key)?, value });
        }
    }
    Ok(asked)
}

/// Makes every text UTF-8: what is none is replaced, so that it still counts as something.
fn mend(message: &mut RateLimitRequest) {
    let mend = |text: &mut Bytes| {
        if let Cow::Owned(mended) = String::from_utf8_lossy(text) {
            *text = mended.into();
        }
    };
    mend(&mut message.domain);
    for entry in message.descriptors.iter_mut().flat_map(|descriptor| &mut descriptor.entries) {
        mend(&mut entry.key);
        mend(&mut entry.value);
    }
}

/// The hits of a descriptor, or else of the request, or else one. Only a descriptor can say zero: of the request
/// that cannot be told from nothing said.
fn hits(descriptor: &RateLimitDescriptor, of_request: u32) -> Hits {
    let addend = descriptor.hits_addend.unwrap_or(u64::from(of_request.max(1)));
    Hits::of(addend, descriptor.is_negative_hits)
}

/// A limit that came along; one without a known unit is none.
fn limit_override(limit: &RateLimitOverride) -> Option<LimitOverride> {
    let unit = match RateLimitUnit::try_from(limit.unit).ok()? {
        RateLimitUnit::Unknown => return None,
        RateLimitUnit::Second => SECOND,
        RateLimitUnit::Minute => MINUTE,
        RateLimitUnit::Hour => HOUR,
        RateLimitUnit::Day => DAY,
        RateLimitUnit::Month => MONTH,
        RateLimitUnit::Year => YEAR,
    };
    // A year times `u32::MAX` is far from overflowing.
    let window = Duration::from_secs(unit * u64::from(limit.unit_multiplier.unwrap_or(1).max(1)));
    Some(LimitOverride { limit: limit.requests_per_unit, window })
}

fn answer(decision: &Decision, families: HeaderFamilies) -> RateLimitResponse {
    let mut headers = headers::of(decision, families);
    let body = decision.refusal().and_then(|refusal| headers::body(&refusal, families));
    let raw_body = body.map_or_else(Bytes::new, |(body, media_type)| {
        headers.push(("content-type", media_type));
        body.into()
    });
    RateLimitResponse {
        overall_code: code(decision.allowed()).into(),
        statuses: decision.statuses().map(status).collect(),
        response_headers_to_add: headers.into_iter().map(header).collect(),
        raw_body,
        dynamic_metadata: metadata::encoded(decision),
        ..Default::default()
    }
}

fn code(allowed: bool) -> Code {
    if allowed { Code::Ok } else { Code::OverLimit }
}

fn status(status: decision::Status<'_>) -> DescriptorStatus {
    let code = code(status.allowed).into();
    let Some(counted) = status.counted else { return DescriptorStatus { code, ..Default::default() } };
    DescriptorStatus {
        code,
        limit_remaining: counted.remaining,
        duration_until_reset: Some(until(&counted, status.allowed)),
        current_limit: Some(current_limit(&counted)),
        quota: None,
    }
}

/// Envoy copies the time of a refusal to `retry-after` in whole seconds, so that is rounded up.
fn until(counted: &Counted<'_>, allowed: bool) -> prost_types::Duration {
    let until = headers::until(counted);
    let (seconds, nanos) = match allowed {
        true => (until.as_secs(), until.subsec_nanos()),
        false => (headers::seconds(until), 0),
    };
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    prost_types::Duration { seconds, nanos: i32::try_from(nanos).unwrap_or(0) }
}

/// The configured numbers: the largest unit that the window is whole numbers of.
fn current_limit(counted: &Counted<'_>) -> RateLimit {
    let (unit, multiplier) = counted.window.map_or((Unit::Unknown, 0), unit);
    RateLimit {
        name: counted.limiter.to_owned(),
        requests_per_unit: counted.limit,
        unit: unit.into(),
        unit_multiplier: (multiplier > 1).then_some(multiplier),
    }
}

/// A window in Envoy's units. One that is no whole number of seconds has none.
fn unit(window: Duration) -> (Unit, u32) {
    let units = [
        (YEAR, Unit::Year),
        (MONTH, Unit::Month),
        (WEEK, Unit::Week),
        (DAY, Unit::Day),
        (HOUR, Unit::Hour),
        (MINUTE, Unit::Minute),
        (SECOND, Unit::Second),
    ];
    let seconds = window.as_secs();
    let whole = units.into_iter().find(|(unit, _)| seconds >= *unit && seconds.is_multiple_of(*unit));
    match whole.filter(|_| window.subsec_nanos() == 0) {
        Some((length, unit)) => (unit, u32::try_from(seconds / length).unwrap_or(u32::MAX)),
        None => (Unit::Unknown, 0),
    }
}

fn header((name, value): headers::Header) -> HeaderValue {
    HeaderValue { key: name.to_owned(), value, raw_value: Bytes::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantics_17_a_window_is_told_in_the_largest_unit_that_it_is_made_of() {
        let cases = [
            (1, Unit::Second, 1),
            (90, Unit::Second, 90),
            (300, Unit::Minute, 5),
            (3600, Unit::Hour, 1),
            (86_400, Unit::Day, 1),
            (14 * 86_400, Unit::Week, 2),
            (30 * 86_400, Unit::Month, 1),
            (365 * 86_400, Unit::Year, 1),
        ];
        for (seconds, expected, multiplier) in cases {
            assert_eq!(unit(Duration::from_secs(seconds)), (expected, multiplier), "{seconds} s");
        }
        assert_eq!(unit(Duration::from_millis(1500)), (Unit::Unknown, 0));
    }

    #[test]
    fn hits_of_the_descriptor_win_and_only_it_can_ask_without_charging() {
        let descriptor =
            |hits_addend, is_negative_hits| RateLimitDescriptor { hits_addend, is_negative_hits, ..Default::default() };
        assert_eq!(hits(&descriptor(None, false), 0), Hits::Charge(1));
        assert_eq!(hits(&descriptor(None, false), 7), Hits::Charge(7));
        assert_eq!(hits(&descriptor(Some(3), false), 7), Hits::Charge(3));
        assert_eq!(hits(&descriptor(Some(0), false), 7), Hits::Peek);
        assert_eq!(hits(&descriptor(Some(2), true), 7), Hits::Refund(2));
        assert_eq!(hits(&descriptor(Some(u64::MAX), false), 0), Hits::Charge(u32::MAX));
    }

    #[test]
    fn semantics_18_an_override_without_a_known_unit_is_none() {
        let limit =
            |unit, unit_multiplier| limit_override(&RateLimitOverride { requests_per_unit: 9, unit, unit_multiplier });
        let nine_in = |seconds| Some(LimitOverride { limit: 9, window: Duration::from_secs(seconds) });
        assert_eq!(limit(RateLimitUnit::Minute.into(), None), nine_in(60));
        assert_eq!(limit(RateLimitUnit::Month.into(), Some(2)), nine_in(60 * 86_400));
        assert_eq!(limit(RateLimitUnit::Year.into(), Some(u32::MAX)), nine_in(u64::from(u32::MAX) * 365 * 86_400));
        assert_eq!(limit(RateLimitUnit::Unknown.into(), None), None);
        assert_eq!(limit(77, None), None);
    }
}
