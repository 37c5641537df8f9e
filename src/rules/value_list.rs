//! A list of values that rules match by its name: data, not rules (semantics 58).

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::{Arc, Mutex, PoisonError};

use super::form::Form;
use super::pattern::Literal;
use super::value_set::ValueSet;

/// The faults of a list that are reported; of more, only the number is.
const MAX_FAULTS: usize = 20;

/// A list as written: one value a line.
///
/// A line is trimmed. An empty one is no value, and neither is one that begins with `#` before any white space. A value
/// is written as in a `match`: a text, a pattern with `*`, or, at an entry that holds addresses, an address or a block.
///
/// ```
/// use tollgate::rules::{Matcher, ValueList};
///
/// let list = ValueList::new("tests", "# automatic\nhealth*\n*.internal\nprobe".to_owned());
/// let listed = Matcher::list(&list.into());
/// assert!(listed.matches("probe") && listed.matches("healthz") && listed.matches("a.internal"));
/// assert!(!listed.matches("# automatic"));
/// ```
pub struct ValueList {
    name: Arc<str>,
    text: String,
    /// The sets that were made of it, one for each form of the entries that meet it.
    sets: Mutex<Vec<(Form, FormedSet)>>,
}

/// A set in the form of an entry, or the faults that keep the list from being one.
pub(crate) type FormedSet = Result<Arc<ValueSet>, Arc<DataFaults>>;

impl ValueList {
    /// A list of the lines of a text.
    pub fn new(name: &str, text: String) -> Self {
        Self { name: name.into(), text, sets: Mutex::default() }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The number of its values.
    pub fn len(&self) -> usize {
        self.values().count()
    }

    /// Whether it has no value.
    pub fn is_empty(&self) -> bool {
        self.values().next().is_none()
    }

    /// The memory, in bytes, of all sets that were made of it.
    pub fn bytes(&self) -> usize {
        let sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        sets.iter().filter_map(|(_, set)| Some(set.as_ref().ok()?.bytes())).sum()
    }

    /// The values with the numbers of their lines.
    fn values(&self) -> impl Iterator<Item = (u32, &str)> {
        let lines = self.text.strip_prefix('\u{feff}').unwrap_or(&self.text).split('\n');
        let values = (1..).zip(lines).filter(|(_, line)| !line.starts_with('#'));
        values.map(|(number, line)| (number, line.trim())).filter(|(_, value)| !value.is_empty())
    }

    /// The list in the form of an entry's values, to which `add` adds them one by one. Made once for each form. The error
    /// of `add` is a sentence about a line without a subject.
    pub(super) fn set(&self, form: &Form, add: impl Fn(&mut ValueSet, &str) -> Result<(), String>) -> FormedSet {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = sets.iter().find(|(known, _)| known == form) {
            return known.clone();
        }
        let set = self.formed(add);
        sets.push((form.clone(), set.clone()));
        set
    }

    fn formed(&self, add: impl Fn(&mut ValueSet, &str) -> Result<(), String>) -> FormedSet {
        let lines = self.text.bytes().filter(|&byte| byte == b'\n').count();
        let mut set = ValueSet::with_capacity(self.text.len() + lines / 2, lines + 1);
        let mut faults = DataFaults::default();
        for (line, value) in self.values() {
            if let Err(reason) = add(&mut set, value) {
                faults.add(line, reason);
            }
        }
        if faults.first.is_empty() { Ok(Arc::new(set.finish())) } else { Err(Arc::new(faults)) }
    }
}

impl fmt::Debug for ValueList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the values: there can be millions, and they can be identities.
        f.debug_struct("ValueList").field("name", &self.name).finish_non_exhaustive()
    }
}

/// The faults of a list or a table at the entries of one form.
#[derive(Debug, Default)]
pub(crate) struct DataFaults {
    /// The first ones: the line, and a sentence about it without a subject.
    pub(crate) first: Vec<(u32, String)>,
    /// The number of others.
    pub(crate) more: usize,
}

impl DataFaults {
    pub(super) fn add(&mut self, line: u32, sentence: String) {
        match self.first.len() < MAX_FAULTS {
            true => self.first.push((line, sentence)),
            false => self.more += 1,
        }
    }
}

/// A test whether a list has a value.
#[derive(Clone)]
pub struct ListTest {
    name: Arc<str>,
    values: ListValues,
    /// Its number among the lists that the entries of a domain meet, by which an answer is kept.
    slot: u32,
}

#[derive(Clone)]
enum ListValues {
    /// As written, for values of any form.
    Written(Arc<ValueList>),
    /// In the form of an entry.
    Formed(Arc<ValueSet>),
}

/// The slot of a test whose answer is not kept.
const NO_SLOT: u32 = u32::MAX;

impl ListTest {
    pub(super) fn of(list: &Arc<ValueList>) -> Self {
        Self { name: list.name.clone(), values: ListValues::Written(list.clone()), slot: NO_SLOT }
    }

    /// The name of the list.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The list as written, if its values are in no form yet.
    pub(super) fn written(&self) -> Option<&Arc<ValueList>> {
        match &self.values {
            ListValues::Written(list) => Some(list),
            ListValues::Formed(_) => None,
        }
    }

    /// The same test with this set.
    pub(super) fn formed(&self, set: Arc<ValueSet>) -> Self {
        Self { values: ListValues::Formed(set), ..self.clone() }
    }

    pub(super) fn set_slot(&mut self, slot: u32) {
        self.slot = slot;
    }

    /// Whether the list has the value of an entry.
    pub(super) fn has(&self, value: &str, lookups: &ListLookups) -> bool {
        lookups.answer(self.slot, || self.contains(value))
    }

    /// Whether the list has any of the values of an entry.
    pub(super) fn contains_any(&self, values: &[Cow<'_, str>], lookups: &ListLookups) -> bool {
        lookups.answer(self.slot, || values.iter().any(|value| self.contains(value)))
    }

    /// Whether the list has the value.
    fn contains(&self, value: &str) -> bool {
        match &self.values {
            ListValues::Formed(set) => set.contains(value),
            // One by one: what rules look up is in a form.
            ListValues::Written(list) => list.values().any(|(_, line)| match Literal::parse(line) {
                Literal::Exact(text) => text == value,
                Literal::Pattern(pattern) => pattern.matches(value),
                // A block at an entry that holds no addresses is text.
                Literal::Block(_) => line == value,
                Literal::Any => true,
            }),
        }
    }
}

/// Two tests are one if their lists have one name.
impl PartialEq for ListTest {
    fn eq(&self, other: &Self) -> bool {
        self.name == other.name
    }
}

impl Eq for ListTest {}

impl Hash for ListTest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.name.hash(state);
    }
}

impl fmt::Debug for ListTest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("ListTest").field(&self.name).finish()
    }
}

/// The lists that the entries of one descriptor were looked up in, with the answers: each is looked up once, however many
/// rules name it.
#[derive(Debug, Default)]
pub(super) struct ListLookups {
    /// Those of the first 64 slots, as bits.
    first: Cell<Answers>,
    /// Those of the others.
    more: RefCell<Vec<Answers>>,
}

/// Which of 64 slots were looked up, and in which of these the value is.
#[derive(Clone, Copy, Debug, Default)]
struct Answers {
    known: u64,
    met: u64,
}

impl Answers {
    fn get(&mut self, slot: u32, look_up: impl FnOnce() -> bool) -> bool {
        let bit = 1 << (slot % 64);
        if self.known & bit == 0 {
            self.known |= bit;
            self.met |= if look_up() { bit } else { 0 };
        }
        self.met & bit != 0
    }
}

impl ListLookups {
    /// The answer for the list of this slot, looked up if it is not known.
    pub(super) fn answer(&self, slot: u32, look_up: impl FnOnce() -> bool) -> bool {
        if slot < 64 {
            let mut answers = self.first.get();
            let met = answers.get(slot, look_up);
            self.first.set(answers);
            return met;
        }
        if slot == NO_SLOT {
            return look_up();
        }
        let mut more = self.more.borrow_mut();
        let index = slot as usize / 64 - 1;
        if more.len() <= index {
            more.resize(index + 1, Answers::default());
        }
        more[index].get(slot, look_up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn semantics_58_a_list_is_looked_up_once_for_each_slot() {
        let lookups = ListLookups::default();
        let looked_up = Cell::new(0);
        let look_up = |met: bool| {
            looked_up.set(looked_up.get() + 1);
            met
        };
        for slot in [0, 1, 63, 64, 65, 200] {
            for _ in 0..3 {
                assert_eq!(lookups.answer(slot, || look_up(slot % 2 == 0)), slot % 2 == 0);
            }
        }
        assert_eq!(looked_up.get(), 6);
    }
}
