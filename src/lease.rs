//! Leases: the ids under which slots and held units are taken, and the sealed text that a client receives.
//!
//! ```text
//!   lease    = base64url( version | id | place x 1..8 | SipHash-2-4-128 of all before )        semantics 24 and 38
//!
//!   place    version 1, slots only:  store u32 | counter 16
//!            version 2:              store u32 | counter 16 | limiter u32 | kind u8, then by kind the numbers of the
//!                                    limit that charged:
//!       0 slot: none                           4, 5 fixed window (epoch, first hit): limit u32, window u64
//!       1 bucket: four u64                     6 fixed window of a calendar: limit u32, unit u8, length u8, zone
//!       2, 3 log, counter: limit u32, window u64
//! ```
//!
//! A request that holds no units writes version 1, which releases before holds read too.

use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use smallvec::SmallVec;

use crate::limiter::{
    Alignment, Calendar, FixedWindow, LeaseId, Limit, MAX_EXACT_INTEGER, MAX_HOLD, SlidingCounter, SlidingWindow,
    TokenBucket,
};
use crate::plan::{CounterName, HoldAction, HoldChange, LeaseAction, LeaseChange, Plan};
use crate::secret::Secret;

/// Maximum number of slots and holds under one lease.
pub(crate) const MAX_PLACES_PER_LEASE: usize = 8;

/// A generator of lease ids, unique across all instances: each generator adds its own 64 random bits.
#[derive(Debug)]
pub(crate) struct LeaseIds {
    instance: u64,
    next: AtomicU64,
}

impl LeaseIds {
    /// Creates a generator with new random bits.
    pub(crate) fn new() -> Self {
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the operating system has random numbers");
        Self { instance: u64::from_le_bytes(random), next: AtomicU64::new(1) }
    }

    /// Returns a new, unique id.
    pub(crate) fn next_id(&self) -> LeaseId {
        let count = self.next.fetch_add(1, Ordering::Relaxed);
        LeaseId(u128::from(self.instance) << 64 | u128::from(count))
    }
}

impl Default for LeaseIds {
    fn default() -> Self {
        Self::new()
    }
}

/// The contents of a sealed lease: its id, and what it took.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeaseToken {
    /// The id under which everything is held.
    pub id: LeaseId,
    /// The slots and held units.
    pub places: SmallVec<[LeasePlace; 2]>,
}

/// A slot, or units that are held, under a lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasePlace {
    /// The index of the store among the configured ones.
    pub store: u16,
    /// The counter.
    pub counter: CounterName,
    /// A hash of the limiter's name as rules write it, zero in a lease of a release that did not write it.
    pub(crate) limiter: u32,
    /// The limit by which units were charged. `None` for a slot.
    pub charged_by: Option<Limit>,
}

const SLOTS_VERSION: u8 = 1;
const PLACES_VERSION: u8 = 2;
const SLOT_BYTES: usize = 20;
const SEAL_BYTES: usize = 16;
/// The longest place: the window of a calendar in a zone with the longest name.
const MAX_PLACE_BYTES: usize = 4 + 16 + 4 + 1 + 4 + 1 + 1 + MAX_ZONE_BYTES;
const MAX_ZONE_BYTES: usize = 64;

impl LeaseToken {
    /// The changes that carry out a command.
    ///
    /// # Errors
    ///
    /// [`UnknownLimiter`] if units are given for a limiter of which the lease holds nothing.
    pub(crate) fn changes(&self, command: &LeaseCommand, secret: &Secret) -> Result<Plan, UnknownLimiter> {
        if let LeaseCommand::Settle(Units::ByLimiter(units)) = command {
            let known = |name: &str| self.places.iter().any(|place| place.limiter == secret.limiter_tag(name));
            if let Some((name, _)) = units.iter().find(|(name, _)| !known(name)) {
                return Err(UnknownLimiter(name.clone()));
            }
        }
        let mut plan = Plan::default();
        for place in &self.places {
            let &LeasePlace { store, counter, charged_by, .. } = place;
            match charged_by {
                Some(limit) => {
                    let action = command.of_hold(place, secret);
                    plan.holds.push(HoldChange { counter, store, limit, lease: self.id, action });
                }
                None => {
                    let action = match command {
                        LeaseCommand::Release | LeaseCommand::Settle(_) => LeaseAction::Release,
                        LeaseCommand::Renew(Some(length)) => LeaseAction::Renew(*length),
                        LeaseCommand::Renew(None) => LeaseAction::RenewOwn,
                    };
                    plan.changes.push(LeaseChange { counter, store, lease: self.id, action });
                }
            }
        }
        Ok(plan)
    }

    /// Returns the sealed text, in base64url.
    pub(crate) fn seal(&self, secret: &Secret, stores: &[String]) -> String {
        let holds = self.places.iter().any(|place| place.charged_by.is_some());
        let mut bytes = Vec::with_capacity(17 + self.places.len() * SLOT_BYTES + SEAL_BYTES);
        bytes.push(if holds { PLACES_VERSION } else { SLOTS_VERSION });
        bytes.extend(self.id.0.to_le_bytes());
        for place in &self.places {
            let name = stores.get(usize::from(place.store)).map_or("", String::as_str);
            bytes.extend(secret.store_tag(name).to_le_bytes());
            bytes.extend(place.counter.0.iter().flat_map(|half| half.to_le_bytes()));
            if holds {
                bytes.extend(place.limiter.to_le_bytes());
                write_limit(&mut bytes, place.charged_by.as_ref());
            }
        }
        let seal = secret.seal(&bytes);
        bytes.extend(seal);
        URL_SAFE_NO_PAD.encode(bytes)
    }

    /// Opens a lease that this deployment sealed; returns `None` for any other text. A place in a store that is no
    /// longer configured is left out; its lease expires.
    pub fn open(text: &str, secret: &Secret, stores: &[String]) -> Option<Self> {
        let longest = (17 + MAX_PLACES_PER_LEASE * MAX_PLACE_BYTES + SEAL_BYTES).div_ceil(3) * 4;
        if text.len() > longest {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (body, seal) = bytes.split_at_checked(bytes.len().checked_sub(SEAL_BYTES)?)?;
        if secret.seal(body) != seal {
            return None;
        }
        let mut reader = PlaceReader { rest: body };
        let [version] = reader.take()?;
        let id = LeaseId(u128::from_le_bytes(reader.take()?));
        let mut places = SmallVec::new();
        while !reader.rest.is_empty() {
            let tag = u32::from_le_bytes(reader.take()?);
            let counter = CounterName([reader.number()?, reader.number()?]);
            let (limiter, charged_by) = match version {
                SLOTS_VERSION => (0, None),
                PLACES_VERSION => (u32::from_le_bytes(reader.take()?), reader.limit()?),
                _ => return None,
            };
            let store = stores.iter().position(|store| secret.store_tag(store) == tag);
            if let Some(store) = store.and_then(|store| u16::try_from(store).ok()) {
                places.push(LeasePlace { store, counter, limiter, charged_by });
            }
        }
        Some(Self { id, places })
    }
}

/// What to do with everything that a lease took.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseCommand {
    /// Gives slots and units back: the same as settling zero units.
    Release,
    /// Makes slots and holds end after this many microseconds from now, or each after its own length.
    Renew(Option<u64>),
    /// Gives slots back, and corrects what was charged to what was used (semantics 39).
    Settle(Units),
}

/// The units that were used.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Units {
    /// Those that were charged.
    Charged,
    /// This many, of each hold alike.
    Each(u32),
    /// For each limiter, named as rules write it, this many. One that is not named keeps what it charged.
    ByLimiter(Vec<(String, u32)>),
}

/// Units are given for a limiter of which the lease holds nothing.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("the lease holds no units of limiter {0:?}")]
pub struct UnknownLimiter(pub String);

impl LeaseCommand {
    fn of_hold(&self, place: &LeasePlace, secret: &Secret) -> HoldAction {
        match self {
            LeaseCommand::Release => HoldAction::Settle(Some(0)),
            LeaseCommand::Renew(length) => HoldAction::Renew(length.map(|length| length.min(MAX_HOLD))),
            LeaseCommand::Settle(Units::Charged) => HoldAction::Settle(None),
            LeaseCommand::Settle(Units::Each(units)) => HoldAction::Settle(Some(*units)),
            LeaseCommand::Settle(Units::ByLimiter(units)) => {
                let named = units.iter().find(|(name, _)| secret.limiter_tag(name) == place.limiter);
                HoldAction::Settle(named.map(|(_, units)| *units))
            }
        }
    }
}

const SLOT: u8 = 0;
const BUCKET: u8 = 1;
const LOG: u8 = 2;
const COUNTER: u8 = 3;
const EPOCH: u8 = 4;
const FIRST_HIT: u8 = 5;
const CALENDAR: u8 = 6;

fn write_limit(into: &mut Vec<u8>, limit: Option<&Limit>) {
    let window = |into: &mut Vec<u8>, kind: u8, limit: u32, window: u64| {
        into.push(kind);
        into.extend(limit.to_le_bytes());
        into.extend(window.to_le_bytes());
    };
    match limit {
        // Values cannot be held.
        None | Some(Limit::Concurrency(_) | Limit::Distinct(_)) => into.push(SLOT),
        Some(Limit::TokenBucket(bucket)) => {
            into.push(BUCKET);
            into.extend(bucket.numbers().iter().flat_map(|number| number.to_le_bytes()));
        }
        Some(Limit::SlidingWindow(log)) => window(into, LOG, log.limit, log.window),
        Some(Limit::SlidingCounter(counter)) => window(into, COUNTER, counter.limit, counter.window),
        Some(Limit::FixedWindow(fixed)) => match fixed.alignment {
            Alignment::Epoch(length) => window(into, EPOCH, fixed.limit, length),
            Alignment::FirstHit(length) => window(into, FIRST_HIT, fixed.limit, length),
            Alignment::Calendar(calendar) => {
                let zone = calendar.zone_name();
                into.push(CALENDAR);
                into.extend(fixed.limit.to_le_bytes());
                into.push(calendar.unit as u8);
                into.push(u8::try_from(zone.len()).unwrap_or(u8::MAX));
                into.extend(zone.as_bytes());
            }
        },
    }
}

/// Reads the places of a lease, which is genuine. `None` where a later release wrote something else.
struct PlaceReader<'a> {
    rest: &'a [u8],
}

impl PlaceReader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.rest.split_first_chunk()?;
        self.rest = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    /// The limit by which units were charged; inside, `None` for a slot.
    fn limit(&mut self) -> Option<Option<Limit>> {
        let [kind] = self.take()?;
        Some(Some(match kind {
            SLOT => return Some(None),
            BUCKET => {
                let numbers = [self.number()?, self.number()?, self.number()?, self.number()?];
                Limit::TokenBucket(TokenBucket::of_numbers(numbers)?)
            }
            LOG => Limit::SlidingWindow(SlidingWindow { limit: self.units()?, window: self.window()? }),
            COUNTER => Limit::SlidingCounter(SlidingCounter { limit: self.units()?, window: self.window()? }),
            EPOCH | FIRST_HIT => {
                let (limit, window) = (self.units()?, self.window()?);
                let alignment = if kind == EPOCH { Alignment::Epoch(window) } else { Alignment::FirstHit(window) };
                Limit::FixedWindow(FixedWindow { limit, alignment })
            }
            CALENDAR => {
                let limit = self.units()?;
                let [unit, length] = self.take()?;
                let (zone, rest) = self.rest.split_at_checked(length.into())?;
                self.rest = rest;
                let calendar = Calendar::named(unit, std::str::from_utf8(zone).ok()?)?;
                Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::Calendar(calendar) })
            }
            _ => return None,
        }))
    }

    fn units(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    fn window(&mut self) -> Option<u64> {
        self.number().filter(|window| (1..MAX_EXACT_INTEGER).contains(window))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(store: u16, name: u64, charged_by: Option<Limit>) -> LeasePlace {
        LeasePlace { store, counter: CounterName([name, name + 1]), limiter: 0, charged_by }
    }

    fn stores() -> [String; 2] {
        ["main".to_owned(), "other".to_owned()]
    }

    fn only_the_genuine_text_opens(token: &LeaseToken) {
        let (secret, stores) = (Secret::new("s"), stores());
        let text = token.seal(&secret, &stores);
        assert_eq!(LeaseToken::open(&text, &secret, &stores).as_ref(), Some(token));
        assert_eq!(LeaseToken::open(&text, &Secret::new("t"), &stores), None);
        for index in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[index] = if forged[index] == b'A' { b'B' } else { b'A' };
            let forged = String::from_utf8(forged).expect("ascii");
            // The last character has unused bits; the decoder rejects a text in which they are set.
            assert_eq!(LeaseToken::open(&forged, &secret, &stores), None, "character {index}");
        }
    }

    #[test]
    fn semantics_24_only_a_genuine_lease_opens() {
        let places = [place(1, 7, None), place(0, 9, None)].into_iter().collect();
        only_the_genuine_text_opens(&LeaseToken { id: LeaseIds::new().next_id(), places });
        for junk in ["", "L17", "AQ", "\u{1F600}", &"A".repeat(100_000)] {
            assert_eq!(LeaseToken::open(junk, &Secret::new("s"), &stores()), None);
        }
    }

    fn limits() -> [Option<Limit>; 8] {
        let calendar = Calendar::named(2, "America/Argentina/ComodRivadavia").expect("the longest name of a zone");
        let fixed = |alignment| Some(Limit::FixedWindow(FixedWindow { limit: 5, alignment }));
        let bucket = TokenBucket::new(100, 3_600_000_000, 100, u64::MAX).expect("it can be held");
        [
            None,
            Some(Limit::TokenBucket(bucket)),
            Some(Limit::SlidingWindow(SlidingWindow { limit: 5, window: 9 })),
            Some(Limit::SlidingCounter(SlidingCounter { limit: 6, window: 10 })),
            fixed(Alignment::Epoch(11)),
            fixed(Alignment::FirstHit(12)),
            fixed(Alignment::Calendar(calendar)),
            fixed(Alignment::Calendar(Calendar::named(0, "").expect("UTC"))),
        ]
    }

    #[test]
    fn semantics_38_a_lease_names_the_numbers_of_each_hold_and_takes_at_most_a_kibibyte() {
        let places =
            limits().into_iter().zip(0..).map(|(limit, name)| LeasePlace { limiter: 3, ..place(1, name, limit) });
        only_the_genuine_text_opens(&LeaseToken { id: LeaseIds::new().next_id(), places: places.collect() });
        let longest = LeasePlace { limiter: 3, ..place(1, 2, limits()[6]) };
        let token = LeaseToken { id: LeaseId(u128::MAX), places: std::iter::repeat_n(longest, 8).collect() };
        let text = token.seal(&Secret::new("s"), &stores());
        assert!(text.len() <= 1024, "{} characters", text.len());
    }

    #[test]
    fn semantics_38_a_lease_of_slots_alone_is_a_text_that_releases_before_holds_read() {
        let token = LeaseToken { id: LeaseId(5), places: [place(0, 7, None)].into_iter().collect() };
        let bytes = URL_SAFE_NO_PAD.decode(token.seal(&Secret::new("s"), &stores())).expect("base64");
        assert_eq!(bytes[0], 1);
        assert_eq!(bytes.len(), 17 + SLOT_BYTES + SEAL_BYTES);
    }

    #[test]
    fn semantics_39_units_for_a_limiter_that_the_lease_does_not_hold_are_an_error() {
        let secret = Secret::new("s");
        let named = |name, limit| LeasePlace { limiter: secret.limiter_tag(name), ..place(0, 7, limit) };
        let places = [named("tokens", limits()[1]), named("requests", limits()[2]), named("calls", None)];
        let token = LeaseToken { id: LeaseId(5), places: places.into_iter().collect() };
        let settle = |units: &[(&str, u32)]| {
            let units = units.iter().map(|(name, units)| ((*name).to_owned(), *units)).collect();
            token.changes(&LeaseCommand::Settle(Units::ByLimiter(units)), &secret)
        };
        let plan = settle(&[("tokens", 150), ("calls", 1)]).expect("it holds both");
        let actions: Vec<HoldAction> = plan.holds.iter().map(|change| change.action).collect();
        assert_eq!(actions, [HoldAction::Settle(Some(150)), HoldAction::Settle(None)]);
        assert_eq!(plan.changes[0].action, LeaseAction::Release);
        assert_eq!(settle(&[("tokens", 1), ("token", 1)]), Err(UnknownLimiter("token".into())));
    }
}
