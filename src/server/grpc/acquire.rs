//! An acquire, read in place and answered straight into its frame.
//!
//! Nearly every call asks for one limiter, or for entries, and what it asks for is read without the generated message.
//! Any other call, and one that makes no sense, is read by the generated types.

use std::time::Duration;

use prost::encoding::decode_varint;

use super::wire::{MessageWriter, byte, part, text};
use crate::ask::{Acquire, Ask, Subject};
use crate::decision::CheckStatus;
use crate::server::api::{Refused, millis};
use crate::service::Acquisition;

// The encoded keys of fields: number << 3 | wire type (0: varint, 2: length-delimited).
const DOMAIN: u8 = 1 << 3 | 2;
const LIMITER: u8 = 2 << 3 | 2;
const KEY: u8 = 3 << 3 | 2;
const ENTRIES: u8 = 4 << 3 | 2;
const COST: u8 = 5 << 3;
const MAX_WAIT: u8 = 10 << 3 | 2;
const LEASE: u8 = 11 << 3 | 2;
const PARTIAL: u8 = 12 << 3;
const IDEMPOTENCY_KEY: u8 = 13 << 3 | 2;
const ENTRY_NAME: u8 = 1 << 3 | 2;
const ENTRY_VALUE: u8 = 2 << 3 | 2;
const SECONDS: u8 = 1 << 3;
const NANOS: u8 = 2 << 3;

/// The most entries that are read in place, one after the other into their order. A call with more has a map of the
/// generated types, which does not take longer and longer for each of them.
const MAX_ENTRIES: usize = 16;

/// Reads a call of one ask without a hold. `None` for any other call.
pub(super) fn borrowed(mut message: &[u8]) -> Option<Acquire> {
    let mut acquire = Acquire::default();
    let (mut limiter, mut key, mut entries, mut cost) = (None, Vec::new(), Vec::new(), 1);
    while let Some(field) = byte(&mut message) {
        match field {
            DOMAIN => acquire.domain = Some(text(&mut message)?.to_owned()),
            LIMITER => limiter = Some(text(&mut message)?.to_owned()),
            KEY => push_entry(&mut key, part(&mut message)?)?,
            ENTRIES => push_entry(&mut entries, part(&mut message)?)?,
            COST => cost = u32::try_from(decode_varint(&mut message).ok()?).ok().filter(|cost| *cost > 0)?,
            MAX_WAIT if acquire.max_wait.is_none() => acquire.max_wait = Some(duration(part(&mut message)?)?),
            LEASE if acquire.lease.is_none() => acquire.lease = Some(duration(part(&mut message)?)?),
            PARTIAL => acquire.partial = decode_varint(&mut message).ok()? != 0,
            IDEMPOTENCY_KEY => acquire.idempotency_key = Some(text(&mut message)?.to_owned()),
            _ => return None,
        }
    }
    let subject = match (limiter, entries.is_empty()) {
        (Some(limiter), true) => Subject::Limiter { limiter, key },
        (None, false) if key.is_empty() => Subject::Entries(entries),
        _ => return None,
    };
    acquire.asks.push(Ask { subject, cost, hold: None, release_lost: false });
    Some(acquire)
}

/// Adds an entry in the order of the names, in which the generated types have them. `None` for a second one of its name, and
/// for one too many.
fn push_entry(entries: &mut Vec<(String, String)>, mut entry: &[u8]) -> Option<()> {
    let (mut name, mut value) = ("", "");
    while let Some(field) = byte(&mut entry) {
        match field {
            ENTRY_NAME => name = text(&mut entry)?,
            ENTRY_VALUE => value = text(&mut entry)?,
            _ => return None,
        }
    }
    let place = entries.iter().position(|(known, _)| known.as_str() >= name).unwrap_or(entries.len());
    if entries.len() == MAX_ENTRIES || entries.get(place).is_some_and(|(known, _)| known == name) {
        return None;
    }
    entries.insert(place, (name.to_owned(), value.to_owned()));
    Some(())
}

/// Reads a duration that is not negative.
fn duration(mut message: &[u8]) -> Option<Duration> {
    let (mut seconds, mut nanos) = (0, 0);
    while let Some(field) = byte(&mut message) {
        match field {
            SECONDS => seconds = decode_varint(&mut message).ok().filter(|seconds| *seconds <= i64::MAX as u64)?,
            NANOS => nanos = u32::try_from(decode_varint(&mut message).ok()?).ok().filter(|nanos| *nanos < NANO)?,
            _ => return None,
        }
    }
    Some(Duration::new(seconds, nanos))
}

const NANO: u32 = 1_000_000_000;

/// Writes an `AcquireResponse`, by the numbers of its fields.
pub(super) fn write(acquisition: &Acquisition, writer: &mut MessageWriter) {
    let Acquisition { decision, ask, units, waited, lease, refused } = acquisition;
    writer.number(1, refused.is_none().into());
    if let Some(lease) = lease {
        writer.oneof_text(2, lease.text.as_bytes());
        if !lease.ends_in.is_zero() {
            write_duration(3, lease.ends_in, writer);
        }
    }
    write_duration(4, *waited, writer);
    writer.number(5, (*units).into());
    writer.number(6, *ask as u64);
    if let Some(reason) = refused {
        writer.oneof_text(7, reason.name().as_bytes());
        let Refused { limiter, rule, retry_after } = Refused::of(acquisition);
        if let Some(limiter) = limiter {
            writer.oneof_text(8, limiter.as_bytes());
        }
        if let Some(rule) = rule {
            writer.oneof_text(9, rule.as_bytes());
        }
        if let Some(wait) = retry_after {
            write_duration(10, wait, writer);
            writer.oneof_number(11, millis(wait));
        }
    }
    writer.number(12, decision.degraded().into());
    decision.checks().for_each(|status| writer.message(14, |writer| write_limit(&status, writer)));
}

fn write_limit(status: &CheckStatus<'_>, writer: &mut MessageWriter) {
    writer.text(1, status.limiter.as_bytes());
    if let Some(rule) = status.rule {
        writer.oneof_text(2, rule.as_bytes());
    }
    writer.number(3, status.limit.into());
    if let Some(window) = status.window {
        write_duration(4, window, writer);
    }
    writer.number(5, status.remaining.into());
    write_duration(6, status.reset, writer);
}

/// Writes a duration in whole microseconds.
fn write_duration(field: u32, duration: Duration, writer: &mut MessageWriter) {
    writer.message(field, |writer| {
        writer.number(1, duration.as_secs());
        writer.number(2, u64::from(duration.subsec_micros()) * 1_000);
    });
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use futures_util::FutureExt;
    use proptest::prelude::*;
    use proptest::test_runner::RngSeed;
    use prost::Message;

    use super::*;
    use crate::decision::Reason;
    use crate::descriptor::Request;
    use crate::server::api;
    use crate::server::grpc::frame::{fixtures, frame};
    use crate::server::grpc::limits_messages::AcquireRequest;
    use crate::service::Lease;

    fn entries() -> impl Strategy<Value = BTreeMap<String, String>> {
        prop::collection::btree_map("[a-z]{0,3}", "\\PC{0,3}|[a-z]{130}", 0..4)
    }

    fn length() -> impl Strategy<Value = Option<prost_types::Duration>> {
        let nanos = prop::sample::select(vec![-1, 0, 500, 999_999_999, 1_000_000_000]);
        let seconds = prop::sample::select(vec![-1, 0, 1, 86_400, i64::MAX]);
        prop::option::of((seconds, nanos).prop_map(|(seconds, nanos)| prost_types::Duration { seconds, nanos }))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, rng_seed: RngSeed::Fixed(11), ..ProptestConfig::default() })]

        /// Includes calls that make no sense, fields that are there twice, and changed bytes.
        #[test]
        fn an_acquire_read_in_place_reads_the_same_as_the_generated_types(
            (domain, limiter) in (prop::option::of("[a-z]{0,3}"), prop::option::of("[a-z]{1,3}|[a-z]{200}")),
            (key, entries, again) in (entries(), entries(), entries()),
            cost in prop::option::of(prop::sample::select(vec![0, 1, 300, u64::from(u32::MAX), 1 << 32, u64::MAX])),
            (max_wait, lease) in (length(), length()),
            (partial, any) in (any::<bool>(), prop::bool::weighted(0.1)),
            idempotency_key in prop::option::of("[a-z]{0,5}"),
            change in prop::option::of((any::<prop::sample::Index>(), any::<u8>(), any::<bool>())),
        ) {
            let message = AcquireRequest {
                domain, limiter, key, entries, cost, max_wait, lease, partial, any, idempotency_key,
                ..AcquireRequest::default()
            };
            let mut bytes = message.encode_to_vec();
            // A map whose names may be there already.
            bytes.extend(AcquireRequest { entries: again, ..AcquireRequest::default() }.encode_to_vec());
            if let Some((index, byte, insert)) = change {
                let index = index.index(bytes.len() + 1);
                match insert || index == bytes.len() {
                    true => bytes.insert(index, byte),
                    false => bytes[index] = byte,
                }
            }
            if let Some(read) = borrowed(&bytes) {
                let message = AcquireRequest::decode(&*bytes).expect("a message read in place is valid");
                let expected = api::asked(message).expect("a message read in place makes sense");
                prop_assert_eq!(read, expected);
            }
        }
    }

    #[test]
    fn the_usual_calls_are_read_in_place() {
        let entries =
            || BTreeMap::from([("path".to_owned(), "/x".to_owned()), ("account".to_owned(), "al".to_owned())]);
        let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
        let by_entries = AcquireRequest { domain: Some("edge".into()), entries: entries(), ..Default::default() };
        let by_limiter = AcquireRequest {
            limiter: Some("stripe_api".into()),
            key: entries(),
            cost: Some(300),
            max_wait: seconds(30),
            lease: seconds(15),
            idempotency_key: Some("k".into()),
            ..Default::default()
        };
        for message in [by_entries, by_limiter] {
            let read = borrowed(&message.encode_to_vec()).expect("nothing in it is unusual");
            assert_eq!(read, api::asked(message).expect("it makes sense"));
        }
        let holds = AcquireRequest { limiter: Some("a".into()), hold: seconds(1), ..Default::default() };
        assert_eq!(borrowed(&holds.encode_to_vec()), None);
    }

    #[test]
    fn a_call_of_very_many_entries_is_left_to_the_generated_types() {
        let many = |count| (0..count).map(|number: usize| (format!("{number:05}"), String::new())).collect();
        let limiter = |count| AcquireRequest { limiter: Some("a".into()), key: many(count), ..Default::default() };
        let entries = |count| AcquireRequest { entries: many(count), ..Default::default() };
        for message in [limiter(MAX_ENTRIES), entries(MAX_ENTRIES)] {
            assert!(borrowed(&message.encode_to_vec()).is_some());
        }
        for message in [limiter(MAX_ENTRIES + 1), entries(MAX_ENTRIES + 1), limiter(100_000), entries(100_000)] {
            assert_eq!(borrowed(&message.encode_to_vec()), None);
        }
    }

    #[test]
    fn an_answer_is_written_as_the_generated_types_encode_it() {
        let engine = fixtures::engine();
        let slots = "l".repeat(200);
        let paths = ["/window", "/window", "/window", "/bucket", "/quiet", "/nothing"].map(str::to_owned);
        for path in paths.into_iter().chain([format!("/{slots}"), format!("/{slots}")]) {
            let request = Request::of("edge", [("path", path.as_str()), ("account", "al")]);
            let decision = engine.decide(&request).now_or_never().expect("the memory store never waits");
            let refused = decision.refusal().map(|refusal| refusal.reason);
            let lease = decision.lease().map(str::to_owned);
            let mut acquisition = Acquisition {
                decision,
                ask: 0,
                units: 1,
                waited: Duration::from_micros(1_234_567),
                lease: lease.map(|text| Lease { text, ends_in: Duration::from_millis(15_250) }),
                refused,
            };
            let same = |acquisition: &Acquisition| {
                let expected = frame(&api::acquired(acquisition));
                assert_eq!(MessageWriter::frame(|writer| write(acquisition, writer)), expected, "{acquisition:?}");
            };
            same(&acquisition);
            acquisition = Acquisition { ask: 300, units: 0, waited: Duration::ZERO, ..acquisition };
            same(&acquisition);
            same(&Acquisition { refused: Some(Reason::QueueFull), ..acquisition });
        }
    }
}
