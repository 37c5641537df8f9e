//! Distinct values: at most `limit` different ones in any window, such as the accounts that one address tries.
//!
//! ```text
//!            |<------- window ------->|
//!   a     b  | c       d    a         | now      c, d and a are remembered: three
//!   expired    oldest       newest
//! ```
//!
//! A value that is charged at `t` is remembered until just before `t + window`, and one that is charged again from then
//! on anew. A remembered value passes whatever is left; a new one passes while fewer than `limit` are remembered.
//!
//! Each value is a keyed hash with two moments: of its last charge, and of the one before that, which comes back when the
//! last one is taken back. A value that is charged twice at one moment has that moment twice, and no undo forgets it then:
//! it does not know which of the two is taken back.

use super::{Arithmetic, LeaseId, Need, Report, ReportedCharge, Wait};
use crate::clock::Timestamp;

/// The most values that a limit of `distinct` allows: every one is stored.
pub const MAX_DISTINCT: u32 = 1_000;

/// The most values that the checks of one counter in a group ask for.
pub const MAX_ASKED: usize = 8;

/// The parameters of a limit of distinct values, and where the values are that a check asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub struct Distinct {
    /// Maximum values in any window. At most [`MAX_DISTINCT`].
    pub limit: u32,
    /// The window, in microseconds.
    pub window: u64,
    /// The values of the check. None for a peek, which asks for room for any new value.
    pub asked: Asked,
}

/// The place of a check's values among those of its plan: a check is copied, and the values of most would not fit.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub struct Asked {
    first: u16,
    count: u8,
}

impl Asked {
    /// The place from `first` on of at most [`MAX_ASKED`] values. `None` if it cannot be counted.
    pub(crate) fn place(first: usize, count: usize) -> Option<Self> {
        let count = u8::try_from(count).ok().filter(|count| usize::from(*count) <= MAX_ASKED)?;
        Some(Self { first: u16::try_from(first).ok()?, count })
    }

    /// The values at this place.
    pub fn of(self, values: &[u64]) -> &[u64] {
        let first = usize::from(self.first);
        values.get(first..first + self.count()).unwrap_or_default()
    }

    /// The index of the first value.
    pub(crate) fn first(self) -> usize {
        self.first.into()
    }

    /// The number of values.
    pub fn count(self) -> usize {
        self.count.into()
    }
}

/// A value that a counter remembers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RememberedValue {
    /// Its keyed hash.
    pub value: u64,
    /// The moment of its last charge.
    pub at: Timestamp,
    /// The moment of the charge before that, if the value was remembered then; else [`Timestamp::EPOCH`].
    pub earlier: Timestamp,
}

impl RememberedValue {
    /// The order in which they are kept: of one moment the smaller hash first, as every store sorts them.
    fn order(&self) -> (Timestamp, u64) {
        (self.at, self.value)
    }
}

/// The values that a counter remembers, oldest first.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Remembered {
    values: Vec<RememberedValue>,
}

impl Remembered {
    /// The values, oldest first. Expired ones may be among them until the next charge.
    pub fn iter(&self) -> impl Iterator<Item = &RememberedValue> {
        self.values.iter()
    }

    /// Restores a set; `None` when its values are not in order.
    pub(crate) fn restore(values: Vec<RememberedValue>) -> Option<Self> {
        values.iter().is_sorted_by_key(RememberedValue::order).then_some(Self { values })
    }

    /// A set of at most one value.
    pub(crate) fn of_one(value: Option<RememberedValue>) -> Self {
        let mut values = Vec::with_capacity(grown_capacity(0));
        values.extend(value);
        Self { values }
    }

    /// The number of stored values. The next charge drops those that have expired.
    pub(crate) fn count(&self) -> usize {
        self.values.len()
    }

    /// Bytes held on the heap.
    pub(crate) fn heap_bytes(&self) -> usize {
        self.values.capacity() * size_of::<RememberedValue>()
    }

    /// The most bytes on the heap that a charge of this number of values adds.
    pub(crate) fn growth(&self, values: usize) -> usize {
        let mut capacity = self.values.capacity();
        while capacity < self.values.len() + values {
            capacity = grown_capacity(capacity);
        }
        (capacity - self.values.capacity()) * size_of::<RememberedValue>()
    }

    fn position(&self, value: u64) -> Option<usize> {
        self.values.iter().position(|known| known.value == value)
    }

    fn insert(&mut self, value: RememberedValue) {
        if self.values.len() == self.values.capacity() {
            self.values.reserve_exact(grown_capacity(self.values.len()) - self.values.len());
        }
        let index = self.values.partition_point(|known| known.order() < value.order());
        self.values.insert(index, value);
    }
}

/// The capacity to which a full allocation grows: it doubles at first, and later grows by a quarter.
fn grown_capacity(capacity: usize) -> usize {
    match capacity {
        0..2 => 2,
        2..64 => capacity * 2,
        _ => capacity + capacity / 4,
    }
}

/// A limit with the values that a check asks for.
pub(crate) struct Asking<'p> {
    limit: &'p Distinct,
    values: &'p [u64],
}

impl Distinct {
    /// The limit with its check's values among those of a plan.
    pub(crate) fn asking<'p>(&'p self, values: &'p [u64]) -> Asking<'p> {
        Asking { limit: self, values: self.asked.of(values) }
    }

    fn expires(&self, at: Timestamp) -> Timestamp {
        at.plus(self.window)
    }

    /// The values that are remembered now, oldest first.
    fn remembered<'r>(&self, state: &'r Remembered, now: Timestamp) -> &'r [RememberedValue] {
        let expired = state.values.partition_point(|known| self.expires(known.at) <= now);
        &state.values[expired..]
    }

    /// The time until there is room for this number of new values beside the `others`, which are oldest first.
    fn wait_beside<'r>(
        &self,
        mut others: impl ExactSizeIterator<Item = &'r RememberedValue>,
        room: usize,
        now: Timestamp,
    ) -> Wait {
        match (others.len() + room).saturating_sub(self.limit as usize) {
            0 => Wait::Met,
            // The over-th oldest has to expire.
            over => others.nth(over - 1).map_or(Wait::Never, |known| Wait::For(self.expires(known.at) - now)),
        }
    }
}

impl Arithmetic for Asking<'_> {
    type State = Remembered;

    fn correct(&self, state: &mut Remembered, now: Timestamp) -> bool {
        let mut ahead = false;
        for known in state.values.iter_mut().rev().take_while(|known| known.at > now) {
            (known.at, known.earlier) = (now, known.earlier.min(now));
            ahead = true;
        }
        if ahead {
            state.values.sort_unstable_by_key(RememberedValue::order);
        }
        ahead
    }

    /// Does nothing: no request gives back what another has tried.
    fn refund(&self, _: &mut Remembered, _: Timestamp, _: u32) -> bool {
        false
    }

    /// Forgets the values that the charge has made known, and gives the others their earlier moments back. One that was
    /// charged again since stays as it is.
    fn undo(&self, state: &mut Remembered, now: Timestamp, charged: &ReportedCharge, _: LeaseId) -> bool {
        let mut undone = false;
        for value in self.values {
            let Some(index) = state.position(*value) else { continue };
            let RememberedValue { at, earlier, .. } = state.values[index];
            if at != charged.at || earlier == at {
                continue;
            }
            let known = state.values.remove(index);
            if earlier > Timestamp::EPOCH && self.limit.expires(earlier) > now {
                state.insert(RememberedValue { at: earlier, earlier: Timestamp::EPOCH, ..known });
            }
            undone = true;
        }
        undone
    }

    fn wait(&self, state: &Remembered, now: Timestamp, need: Need) -> Wait {
        let remembered = self.limit.remembered(state, now);
        // Until then all values of the check are remembered.
        let known_for = self.values.iter().map(|value| {
            let known = remembered.iter().find(|known| known.value == *value);
            known.map_or(0, |known| self.limit.expires(known.at) - now)
        });
        let known_for = known_for.min().unwrap_or_default();
        // Those that are asked for take their room whether they are remembered or not.
        let for_all = || {
            let others: Vec<&RememberedValue> =
                remembered.iter().filter(|known| !self.values.contains(&known.value)).collect();
            self.limit.wait_beside(others.into_iter(), self.values.len(), now)
        };
        let for_one = || self.limit.wait_beside(remembered.iter(), 1, now);
        match (need, self.values) {
            (Need::OneLeft, []) | (Need::Fits(_), []) => for_one(),
            (Need::Fits(_), _) if known_for > 0 => Wait::Met,
            (Need::Fits(_), _) => for_all(),
            // A peek that is merged with a charge: the values can be forgotten before there is room for another one.
            (Need::OneLeft, _) => match for_one() {
                Wait::For(wait) if wait >= known_for => Wait::For(wait).max(for_all()),
                wait => wait,
            },
        }
    }

    /// Remembers each value, or a known one anew. Beyond the limit, the oldest values are forgotten for the newest; a set
    /// that is larger than a limit that was lowered keeps its size.
    fn charge(&self, state: &mut Remembered, now: Timestamp, _: u32, _: LeaseId) -> u64 {
        let expired = state.values.len() - self.limit.remembered(state, now).len();
        state.values.drain(..expired);
        let full = state.values.len().max(self.limit.limit as usize);
        for &value in self.values {
            let known = state.position(value).map(|index| state.values.remove(index));
            let earlier = known.map_or(Timestamp::EPOCH, |known| known.at);
            state.insert(RememberedValue { value, at: now, earlier });
        }
        let beyond = state.values.len().saturating_sub(full);
        state.values.drain(..beyond);
        self.values.len() as u64
    }

    fn report(&self, state: &Remembered, now: Timestamp) -> Report {
        let remembered = self.limit.remembered(state, now);
        let counted = u32::try_from(remembered.len()).unwrap_or(u32::MAX);
        let reset = remembered.last().map_or(0, |newest| self.limit.expires(newest.at) - now);
        Report { limit: self.limit.limit, remaining: self.limit.limit.saturating_sub(counted), reset }
    }
}
