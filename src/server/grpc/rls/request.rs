//! Reads requests of the rate limit service.

use std::borrow::Cow;
use std::str::{self, Utf8Error};
use std::time::Duration;

use bytes::Bytes;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use super::units::seconds;
use crate::descriptor::{self, Descriptor, Entry, Hits, LimitOverride};
use crate::rules::RequestBounds;
use crate::server::grpc::generated::envoy::extensions::common::ratelimit::v3::RateLimitDescriptor;
use crate::server::grpc::generated::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::RateLimitOverride;
use crate::server::grpc::generated::envoy::service::ratelimit::v3::RateLimitRequest;
use crate::server::grpc::generated::envoy::r#type::v3::RateLimitUnit;
use crate::server::grpc::wire::{byte, part, text};

/// Reads a [`RateLimitRequest`] in place: the generated types make 2 lists and 9 counted references of it. `None` if it
/// has more than a domain, entries and hits for all descriptors, or is malformed: the generated types read that.
///
/// Reading stops at the bounds: one descriptor or entry too many suffices for a refusal, and two bytes of a message
/// become several hundred here.
pub(super) fn borrowed(mut message: &[u8], bounds: RequestBounds) -> Option<descriptor::Request<'_>> {
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
pub(super) fn over_bounds<'a>(message: &[u8], bounds: RequestBounds) -> Option<descriptor::Request<'a>> {
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
pub(super) fn request_of(message: &RateLimitRequest) -> Result<descriptor::Request<'_>, Utf8Error> {
    // Filled in place: a descriptor is several hundred bytes, and every adaptor it is collected through copies it.
    let mut request = descriptor::Request { domain: str::from_utf8(&message.domain)?, ..Default::default() };
    for descriptor in &message.descriptors {
        request.descriptors.push(Descriptor {
            hits: hits(descriptor, message.hits_addend),
            own_hits: descriptor.hits_addend.is_some(),
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
pub(super) fn replace_invalid_utf8(mut message: RateLimitRequest) -> RateLimitRequest {
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
    let unit = seconds(RateLimitUnit::try_from(limit.unit).ok()?)?;
    // A year times `u32::MAX` is far from overflowing.
    let window = Duration::from_secs(unit * u64::from(limit.unit_multiplier.unwrap_or(1).max(1)));
    Some(LimitOverride { limit: limit.requests_per_unit, window })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use prost::Message;

    use super::*;
    use crate::server::grpc::generated::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry as RlsEntry;

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
            if let Some((index, byte, insert)) = change {
                let index = index.index(bytes.len() + 1);
                match insert || index == bytes.len() {
                    true => bytes.insert(index, byte),
                    false => bytes[index] = byte,
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
