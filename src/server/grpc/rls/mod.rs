//! Envoy's rate limit service: `envoy.service.ratelimit.v3.RateLimitService`.

use std::borrow::Cow;
use std::str::{self, Utf8Error};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use prost::Message;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};
use tonic::body::Body;

use super::frame::{RefusalFrame, frame};
use super::generated::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use super::generated::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride;
use super::generated::envoy::service::ratelimit::v3::rate_limit_response::Code;
use super::generated::envoy::service::ratelimit::v3::rate_limit_response::rate_limit::Unit;
use super::generated::envoy::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use super::generated::envoy::r#type::v3::RateLimitUnit;
use super::lease_guard::HandedOutLease;
use super::wire::{Writer, byte, part, text};
use super::{metadata, unary};
use crate::decision::{self, CheckStatus, Decision};
use crate::descriptor::{self, Descriptor, Entry, Hits, LimitOverride};
use crate::rules::RequestBounds;
use crate::server::headers;
use crate::service::Service;
use crate::settings::HeaderFamilies;
use crate::telemetry::Door;

const SECOND: u64 = 1;
const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;
const WEEK: u64 = 7 * DAY;
const MONTH: u64 = 30 * DAY;
const YEAR: u64 = 365 * DAY;

/// The refusal of a request that cannot be read.
pub(super) const UNREADABLE_REFUSAL: RefusalFrame =
    || frame(&RateLimitResponse { overall_code: Code::OverLimit.into(), ..Default::default() });

/// The rate limit service.
#[derive(Debug)]
pub(super) struct Rls {
    service: Arc<Service>,
}

impl Rls {
    pub(super) fn new(service: Arc<Service>) -> Self {
        Self { service }
    }

    /// Answers one request. `None` when it cannot be decoded.
    pub(super) async fn answer(&self, message: Bytes) -> Option<Response<Body>> {
        let current = self.service.current();
        let bounds = current.version.rules.bounds();
        let replaced;
        let request = match borrowed(&message, bounds).or_else(|| over_bounds(&message, bounds)) {
            Some(request) => request,
            None => {
                replaced = replace_invalid_utf8(RateLimitRequest::decode(message.clone()).ok()?);
                request_of(&replaced).expect("invalid UTF-8 was replaced")
            }
        };
        let decision = current.decide(Door::Rls, &request).await;
        let frame = Writer::frame(|writer| write(&decision, current.settings.rls_headers, writer));
        Some(unary::response(frame, decision.lease().map(|lease| HandedOutLease(lease.into()))))
    }
}

/// Reads a [`RateLimitRequest`] in place: the generated types make 2 lists and 9 counted references of it. `None` if it
/// has more than a domain, entries and hits for all descriptors, or is malformed: the generated types read that.
///
/// Reading stops at the bounds: one descriptor or entry too many suffices for a refusal, and two bytes of a message
/// become several hundred here.
fn borrowed(mut message: &[u8], bounds: RequestBounds) -> Option<descriptor::Request<'_>> {
    let mut request = descriptor::Request::default();
    let mut hits_addend = 0;
    while let Some(key) = byte(&mut message) {
        match key {
            DOMAIN => request.domain = text(&mut message)?,
            DESCRIPTORS => {
                let mut descriptor = part(&mut message)?;
                if request.descriptors.len() == bounds.descriptors {
                    return Some(descriptor::Request { domain: request.domain, ..too_many_descriptors(bounds) });
                }
                // Filled in place: a descriptor is several hundred bytes.
                request.descriptors.push(Descriptor::default());
                let entries = request.descriptors.last_mut().map(|descriptor| &mut descriptor.entries);
                let entries = entries.expect("one has just been pushed");
                while let Some(key) = byte(&mut descriptor) {
                    match key {
                        ENTRIES if entries.len() == bounds.entries => {
                            return Some(descriptor::Request { domain: request.domain, ..too_many_entries(bounds) });
                        }
                        ENTRIES => entries.push(borrowed_entry(part(&mut descriptor)?)?),
                        _ => return None,
                    }
                }
            }
            HITS_ADDEND => hits_addend = u32::try_from(decode_varint(&mut message).ok()?).ok()?,
            _ => return None,
        }
    }
    let hits = hits(&RateLimitDescriptor::default(), hits_addend);
    request.descriptors.iter_mut().for_each(|descriptor| descriptor.hits = hits);
    Some(request)
}

/// Returns a request to refuse if the message exceeds the bounds on descriptors or entries, as far as it can be read.
/// The generated types reject malformed ones.
fn over_bounds<'a>(message: &[u8], bounds: RequestBounds) -> Option<descriptor::Request<'a>> {
    if parts_of(message, 2).nth(bounds.descriptors).is_some() {
        return Some(too_many_descriptors(bounds));
    }
    let crowded = |descriptor| parts_of(descriptor, 1).nth(bounds.entries).is_some();
    parts_of(message, 2).any(crowded).then(|| too_many_entries(bounds))
}

/// The length-delimited values of the field of this number.
fn parts_of(mut message: &[u8], number: u32) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        while !message.is_empty() {
            let (tag, kind) = decode_key(&mut message).ok()?;
            match (tag == number, kind) {
                (true, WireType::LengthDelimited) => return part(&mut message),
                _ => skip_field(kind, tag, &mut message, DecodeContext::default()).ok()?,
            }
        }
        None
    })
}

/// A request that is refused for its number of descriptors.
fn too_many_descriptors<'a>(bounds: RequestBounds) -> descriptor::Request<'a> {
    let descriptors = std::iter::repeat_with(Descriptor::default).take(bounds.descriptors + 1);
    descriptor::Request { domain: "", descriptors: descriptors.collect() }
}

/// A request that is refused for its number of entries.
fn too_many_entries<'a>(bounds: RequestBounds) -> descriptor::Request<'a> {
    descriptor::Request::of("", std::iter::repeat_n(("", ""), bounds.entries + 1))
}

fn borrowed_entry(mut entry: &[u8]) -> Option<Entry<'_>> {
    let (mut key, mut value) = ("", "");
    while let Some(field) = byte(&mut entry) {
        match field {
            ENTRY_KEY => key = text(&mut entry)?,
            ENTRY_VALUE => value = text(&mut entry)?,
            _ => return None,
        }
    }
    Some(Entry { key, value: Cow::Borrowed(value) })
}

// The encoded keys of fields: number << 3 | wire type (0: varint, 2: length-delimited).
const DOMAIN: u8 = 1 << 3 | 2;
const DESCRIPTORS: u8 = 2 << 3 | 2;
const HITS_ADDEND: u8 = 3 << 3;
const ENTRIES: u8 = 1 << 3 | 2;
const ENTRY_KEY: u8 = 1 << 3 | 2;
const ENTRY_VALUE: u8 = 2 << 3 | 2;

/// Converts a decoded message. Fails on invalid UTF-8.
fn request_of(message: &RateLimitRequest) -> Result<descriptor::Request<'_>, Utf8Error> {
    // Filled in place: a descriptor is several hundred bytes, and every adaptor it is collected through copies it.
    let mut request = descriptor::Request { domain: str::from_utf8(&message.domain)?, ..Default::default() };
    for descriptor in &message.descriptors {
        request.descriptors.push(Descriptor {
            hits: hits(descriptor, message.hits_addend),
            limit: descriptor.limit.as_ref().and_then(limit_override),
            ..Default::default()
        });
        let entries = request.descriptors.last_mut().map(|descriptor| &mut descriptor.entries);
        let entries = entries.expect("one has just been pushed");
        for entry in &descriptor.entries {
            let value = Cow::Borrowed(str::from_utf8(&entry.value)?);
            entries.push(Entry { key: str::from_utf8(&entry.key)?, value });
        }
    }
    Ok(request)
}

/// Replaces invalid UTF-8, so the entry is still counted.
fn replace_invalid_utf8(mut message: RateLimitRequest) -> RateLimitRequest {
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
    message
}

/// The hits of a descriptor, else of the request, else one. Only a descriptor can ask for zero: in the request, zero
/// means absent.
fn hits(descriptor: &RateLimitDescriptor, of_request: u32) -> Hits {
    let addend = descriptor.hits_addend.unwrap_or(u64::from(of_request.max(1)));
    Hits::of(addend, descriptor.is_negative_hits)
}

/// The override of a descriptor. `None` without a known unit.
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

/// Writes a [`RateLimitResponse`], by the numbers of its fields.
fn write(decision: &Decision, families: HeaderFamilies, writer: &mut Writer) {
    writer.number(1, code(decision.allowed()) as u64);
    for status in decision.statuses() {
        writer.message(2, |writer| write_status(&status, writer));
    }
    let refusal = decision.refusal();
    let headers = headers::of(decision, refusal.as_ref(), families);
    let body = refusal.as_ref().and_then(|refusal| headers::body(refusal, families));
    let media_type = body.as_ref().map(|(_, media_type)| ("content-type", media_type.as_str()));
    let headers = headers.iter().map(|(name, value)| (*name, value.as_str()));
    for (name, value) in headers.chain(media_type) {
        writer.message(3, |header| {
            header.text(1, name.as_bytes());
            header.text(2, value.as_bytes());
        });
    }
    if let Some((body, _)) = &body {
        writer.text(5, body.as_bytes());
    }
    metadata::write(decision, refusal.as_ref(), 6, writer);
}

fn code(allowed: bool) -> Code {
    if allowed { Code::Ok } else { Code::OverLimit }
}

/// Writes a `DescriptorStatus`.
fn write_status(status: &decision::DescriptorVerdict<'_>, writer: &mut Writer) {
    writer.number(1, code(status.allowed) as u64);
    let Some(counted) = &status.check else { return };
    // The configured numbers: the largest unit that the window is whole numbers of.
    writer.message(2, |limit| {
        let (unit, multiplier) = counted.window.map_or((Unit::Unknown, 0), unit);
        limit.number(1, counted.limit.into());
        limit.number(2, unit as u64);
        limit.text(3, counted.limiter.as_bytes());
        if multiplier > 1 {
            limit.message(4, |wrapped| wrapped.number(1, multiplier.into()));
        }
    });
    writer.number(3, counted.remaining.into());
    writer.message(4, |duration| {
        let (seconds, nanos) = until(counted, status.allowed);
        duration.number(1, seconds);
        duration.number(2, nanos.into());
    });
}

/// Time until the reset. Envoy copies it to `retry-after` of a refusal in whole seconds, so that is rounded up.
fn until(counted: &CheckStatus<'_>, allowed: bool) -> (u64, u32) {
    let until = headers::until(counted);
    match allowed {
        true => (until.as_secs(), until.subsec_nanos()),
        false => (headers::seconds(until), 0),
    }
}

/// A window in Envoy's units. `Unknown` unless it is a whole number of seconds.
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

#[cfg(test)]
mod tests {
    use envoy_types::pb::google::protobuf::Struct;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;

    use super::super::generated::envoy::config::core::v3::HeaderValue;
    use super::super::generated::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry as RlsEntry;
    use super::super::generated::envoy::service::ratelimit::v3::rate_limit_response::{DescriptorStatus, RateLimit};
    use super::*;
    use crate::server::grpc::frame::fixtures::engine;

    /// The expected message, made of the generated types, without metadata.
    fn expected(decision: &Decision, families: HeaderFamilies) -> RateLimitResponse {
        let refusal = decision.refusal();
        let headers = headers::of(decision, refusal.as_ref(), families).into_iter();
        let mut headers: Vec<(String, String)> = headers.map(|(name, value)| (name.to_owned(), value)).collect();
        let body = refusal.and_then(|refusal| headers::body(&refusal, families));
        let raw_body = body.map_or_else(Bytes::new, |(body, media_type)| {
            headers.push(("content-type".to_owned(), media_type));
            body.into()
        });
        RateLimitResponse {
            overall_code: code(decision.allowed()).into(),
            statuses: decision.statuses().map(|status| meant_status(&status)).collect(),
            response_headers_to_add: headers
                .into_iter()
                .map(|(key, value)| HeaderValue { key, value, raw_value: Bytes::new() })
                .collect(),
            raw_body,
            ..Default::default()
        }
    }

    fn meant_status(status: &decision::DescriptorVerdict<'_>) -> DescriptorStatus {
        let code = code(status.allowed).into();
        let Some(counted) = status.check else { return DescriptorStatus { code, ..Default::default() } };
        let (unit, multiplier) = counted.window.map_or((Unit::Unknown, 0), unit);
        let (seconds, nanos) = until(&counted, status.allowed);
        DescriptorStatus {
            code,
            limit_remaining: counted.remaining,
            duration_until_reset: Some(prost_types::Duration { seconds: seconds as i64, nanos: nanos as i32 }),
            current_limit: Some(RateLimit {
                name: counted.limiter.to_owned(),
                requests_per_unit: counted.limit,
                unit: unit.into(),
                unit_multiplier: (multiplier > 1).then_some(multiplier),
            }),
            quota: None,
        }
    }

    #[tokio::test]
    async fn an_answer_is_written_as_the_generated_types_would_write_it() {
        let engine = engine();
        let long = format!("/{}", "l".repeat(200));
        let all = HeaderFamilies { x_ratelimit: true, ietf: true, retry_after: true, problem_json: true };
        let none = HeaderFamilies { x_ratelimit: false, ietf: false, retry_after: false, problem_json: false };
        let mut refused = 0;
        for paths in [&["/window"][..], &["/bucket", "/window"], &["/other"], &[&long], &[]] {
            for _ in 0..4 {
                let entries = |path| [("path", path), ("account", "a")];
                let descriptors = paths.iter().map(|path| Descriptor::of(entries(*path))).collect();
                let decision = engine.decide(&descriptor::Request { domain: "edge", descriptors }).await;
                refused += usize::from(!decision.allowed());
                for families in [all, none] {
                    let written = Writer::frame(|writer| write(&decision, families, writer));
                    let decoded = RateLimitResponse::decode(&written[5..]).expect("it can be read");
                    assert_eq!(frame(&decoded), written, "the bytes differ");
                    let facts = Some(&decoded.dynamic_metadata).filter(|bytes| !bytes.is_empty());
                    let facts = facts.map(|bytes| Struct::decode(bytes.clone()).expect("it can be read"));
                    assert_eq!(facts, metadata::message(&decision));
                    let decoded = RateLimitResponse { dynamic_metadata: Bytes::new(), ..decoded };
                    assert_eq!(decoded, expected(&decision, families), "{paths:?}");
                }
            }
        }
        assert_eq!(refused, 2 + 4 + 3, "answers of both kinds were compared");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(7), ..ProptestConfig::default() })]

        /// Includes invalid UTF-8, repeated fields and changed bytes.
        #[test]
        fn a_request_read_in_place_reads_the_same_as_the_generated_types(
            domain in "edge|\\PC{0,3}|[a-z]{200}",
            descriptors in prop::collection::vec(prop::collection::vec(("[a-z]{0,3}", "\\PC{0,3}|[a-z]{130}"), 0..8), 0..4),
            hits_addend in prop::sample::select(vec![0_u32, 1, 7, 300, u32::MAX]),
            negative in prop::bool::weighted(0.1),
            change in prop::option::of((any::<prop::sample::Index>(), any::<u8>(), any::<bool>())),
        ) {
            let entry = |(key, value): (String, String)| RlsEntry { key: key.into(), value: value.into() };
            let descriptor = |entries: Vec<(String, String)>| RateLimitDescriptor {
                entries: entries.into_iter().map(entry).collect(),
                is_negative_hits: negative,
                ..Default::default()
            };
            let descriptors: Vec<_> = descriptors.into_iter().map(descriptor).collect();
            let plain_enough = (!negative || descriptors.is_empty()) && change.is_none();
            let mut bytes = RateLimitRequest { domain: domain.into(), descriptors, hits_addend }.encode_to_vec();
            if let Some((place, byte, insert)) = change {
                let place = place.index(bytes.len() + 1);
                match insert || place == bytes.len() {
                    true => bytes.insert(place, byte),
                    false => bytes[place] = byte,
                }
            }
            let read = borrowed(&bytes, RequestBounds::MAX);
            prop_assert!(read.is_some() || !plain_enough, "most requests are read in place");
            if let Some(read) = read {
                let message = RateLimitRequest::decode(&*bytes).expect("a message read in place is valid");
                let expected = request_of(&message).expect("a message read in place is UTF-8");
                prop_assert_eq!(format!("{read:?}"), format!("{expected:?}"));
            }
        }
    }

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
