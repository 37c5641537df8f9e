//! A list of values that rules match by its name: data, not rules (semantics 58).

use std::borrow::Cow;
use std::cell::{Cell, RefCell};
use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::form::Form;
use super::value_set::{MAX_SCANNED_PATTERNS, ValueSet};
use super::{Matcher, NeverMet};

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

    /// The list in the form of an entry's values. Made once for each form.
    pub(crate) fn set(&self, form: &Form) -> FormedSet {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = sets.iter().find(|(known, _)| known == form) {
            return known.clone();
        }
        let set = self.formed(form);
        sets.push((form.clone(), set.clone()));
        set
    }

    fn formed(&self, form: &Form) -> FormedSet {
        let lines = self.text.bytes().filter(|&byte| byte == b'\n').count();
        let mut set = ValueSet::with_capacity(self.text.len() + lines / 2, lines + 1);
        let mut faults = DataFaults::default();
        for (line, value) in self.values() {
            if let Err(reason) = add(&mut set, value, form) {
                faults.add(line, reason);
            }
        }
        if faults.first.is_empty() { Ok(Arc::new(set.finish())) } else { Err(Arc::new(faults)) }
    }
}

/// Adds a value in its form. The error is a sentence about its line without a subject, and without the value, which can be
/// an identity.
fn add(set: &mut ValueSet, value: &str, form: &Form) -> Result<(), String> {
    let never = |never: NeverMet| format!("has a literal {never}");
    let (star, address) = (value.contains('*'), form.is_address());
    let parsed = if star || address { Matcher::parse(value) } else { Matcher::Exact(String::new()) };
    let written = match parsed {
        // A block at an entry that holds no addresses is text.
        Matcher::Exact(_) if !star => Cow::Borrowed(value),
        Matcher::Exact(text) => Cow::Owned(text),
        Matcher::Cidr(block) if address => {
            if let Matcher::Cidr(block) = form.block(block).map_err(never)? {
                set.add_block(block);
            }
            return Ok(());
        }
        Matcher::Pattern(pattern) => {
            let has_room = match form.pattern(&pattern).map_err(never)? {
                Matcher::Pattern(pattern) => set.add_pattern(pattern),
                Matcher::Cidr(block) => {
                    set.add_block(block);
                    true
                }
                _ => true,
            };
            return match has_room {
                true => Ok(()),
                false => Err(format!(
                    "is beyond the {MAX_SCANNED_PATTERNS}th pattern that is neither \"prefix*\" nor \"*suffix\": \
                     such patterns are tested one by one; write values, or split the list"
                )),
            };
        }
        Matcher::Present => {
            return Err("is any value here, so that nothing is outside of the list; remove it, or write \\* for \
                        a star"
                .to_owned());
        }
        _ => Cow::Borrowed(value),
    };
    if address && written.parse::<IpAddr>().is_err() {
        return Err("is no address here; expected an address, a block such as 10.0.0.0/8, or a pattern".to_owned());
    }
    let value = form.exact_value(&written).map_err(never)?;
    set.add_exact(&value);
    Ok(())
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

    /// The same test of values in this form.
    pub(super) fn formed(&self, form: &Form) -> Result<Self, NeverMet> {
        let ListValues::Written(list) = &self.values else { return Ok(self.clone()) };
        let set = list.set(form).map_err(|faults| NeverMet::in_list(&self.name, &faults))?;
        Ok(Self { values: ListValues::Formed(set), ..self.clone() })
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
            ListValues::Written(list) => list.set(&Form::default()).is_ok_and(|set| set.contains(value)),
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
    use crate::rules::Normaliser;

    fn test_of(lines: &str, form: &Form) -> Matcher {
        let list = Arc::new(ValueList::new("a", lines.to_owned()));
        Matcher::List(ListTest::of(&list).formed(form).unwrap_or_else(|never| panic!("{never}")))
    }

    #[test]
    fn semantics_58_one_value_a_line_trimmed_and_comments_begin_in_the_first_column() {
        let test = test_of("\u{feff}a\r\n# b\r\n #c\r\n\td e \n\n#\nf#g\n# \n", &Form::default());
        for value in ["a", "#c", "d e", "f#g"] {
            assert!(test.matches(value), "{value}");
        }
        for value in ["\u{feff}a", "a\r", "b", "# b", "c", "d", "", "#", "f"] {
            assert!(!test.matches(value), "{value:?}");
        }
        // A byte order mark does not hide a comment.
        assert!(!test_of("\u{feff}# a\nb", &Form::default()).matches("# a"));
    }

    #[test]
    fn semantics_58_a_list_matches_what_its_lines_match_in_match() {
        let lines = [
            "a",
            "ab",
            "a*",
            "*ba",
            "ab*",
            "*b",
            "aba*",
            "*bba",
            "a*a",
            "*a*b*",
            r"c\*",
            r"c\**",
            r"\*c",
            "é*",
            "*é",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.0.2.7",
            "10.2.*",
            "2001:db8::/32",
            "2001:DB8::7",
            "::ffff:11.0.0.0/104",
        ];
        let values = [
            "",
            "a",
            "b",
            "ab",
            "ba",
            "aba",
            "abab",
            "abba",
            "bbb",
            "c*",
            "c*d",
            "*c",
            "cc",
            "é",
            "éa",
            "aé",
            "ea",
            "10.0.0.1",
            "10.1.2.3",
            "10.2.3.4",
            "11.1.1.1",
            "192.0.2.7",
            "192.0.2.8",
            "10.1.0.0/24",
            "10.0.0.0/7",
            "2001:db8::7",
            "2001:db9::7",
            "10.0.0.0/8",
            "2001:db8::/32",
        ];
        let forms = [
            Form::default(),
            Form::by(vec![Normaliser::Lowercase]),
            Form::by(vec![Normaliser::Trim, Normaliser::Host]),
        ];
        let mut met = 0;
        // Every pair of lines, so that what covers another stands before and behind it.
        let pairs: Vec<(&str, &str)> = lines.iter().flat_map(|a| lines.iter().map(move |b| (*a, *b))).collect();
        for (form, &(one, two)) in forms.iter().flat_map(|form| pairs.iter().map(move |pair| (form, pair))) {
            let literals = [one, two].map(|line| match Matcher::parse(line) {
                // At an entry that holds no addresses, a block is text.
                Matcher::Cidr(_) => Matcher::Exact(line.to_owned()),
                other => other,
            });
            let Ok(any) = form.literal(&Matcher::AnyOf(literals.to_vec())) else { continue };
            let list = test_of(&format!("{one}\n{two}"), form);
            for value in values {
                assert_eq!(list.matches(value), any.matches(value), "{one} and {two} against {value}");
                met += usize::from(list.matches(value));
            }
        }
        assert!(met > 3_000, "{met}");
    }

    #[test]
    fn semantics_58_blocks_and_addresses_are_met_at_an_entry_that_holds_addresses() {
        let lines = "10.0.0.0/8\n10.1.0.0/16\n192.0.2.7\n10.2.*\n2001:DB8::/32\n2001:db8:1::/48\n::ffff:11.0.0.0/104\n9.0.0.0/8";
        let form = Form::of_addresses();
        let list = test_of(lines, &form);
        let any = Matcher::AnyOf(lines.split('\n').map(Matcher::parse).collect());
        let any = form.literal(&any).expect("addresses");
        for value in [
            "10.0.0.1",
            "10.1.2.3",
            "9.255.255.255",
            "8.255.255.255",
            "11.1.1.1",
            "12.0.0.0",
            "192.0.2.7",
            "192.0.2.8",
            "10.1.0.0/24",
            "10.0.0.0/7",
            "2001:db8::7",
            "2001:db8:1::7",
            "2001:db9::7",
            "2001:db7::",
            "::1",
            "text",
            "",
        ] {
            assert_eq!(list.matches(value), any.matches(value), "{value}");
        }
        assert!(list.matches("11.1.1.1") && list.matches("2001:db8::7") && !list.matches("12.0.0.0"));
    }

    #[test]
    fn semantics_58_values_go_through_the_normalisers_of_each_entry_that_they_meet() {
        let list = Arc::new(ValueList::new("a", "Bob\n A*".to_owned()));
        let [lower, any] = [vec![Normaliser::Lowercase], vec![]]
            .map(|steps| Matcher::List(ListTest::of(&list).formed(&Form::by(steps)).expect("every form has these")));
        assert!(lower.matches("bob") && lower.matches("alice") && !lower.matches("Bob"));
        assert!(any.matches("Bob") && any.matches("Alice") && !any.matches("bob"));
    }

    #[test]
    fn semantics_58_faults_name_their_line_and_a_thousand_other_patterns_have_room() {
        let patterns = |count: usize| (0..count).map(|number| format!("a{number}*b\n")).collect::<String>();
        let list = |text: String| ValueList::new("a", text);
        list(patterns(1_000) + "a*\n*b\n").set(&Form::default()).expect("a thousand, and two that are looked up");
        let faults = list("# first\n".to_owned() + &patterns(1_022)).set(&Form::default()).expect_err("too many");
        assert_eq!((faults.first[0].0, faults.more), (1_002, 2));
        let faults = list("10.0.0.1\nhost\n\n10.0.0.0/33\n*".to_owned()).set(&Form::of_addresses()).expect_err("three");
        let lines: Vec<u32> = faults.first.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 4, 5]);
    }

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
