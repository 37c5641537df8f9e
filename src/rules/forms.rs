//! The forms of the entries of a domain.

use std::borrow::Cow;

use super::book::Domain;
use super::form::Form;
use super::literal::NeverMet;
use super::{Matcher, Normaliser};

/// The entries that hold addresses in every domain: the names that Envoy gives them.
const ADDRESSES: [&str; 2] = ["remote_address", "masked_remote_address"];

/// The entry that holds an HTTP method in every domain.
const METHOD: &str = "method";

/// The forms of the entries of one domain. Other entries have any text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forms {
    forms: Vec<(String, Form)>,
    /// The bits of these entries, which skip most others without a comparison.
    bits: u64,
}

impl Forms {
    /// The forms of a domain's entries.
    pub(crate) fn of(domain: &Domain) -> Self {
        let mut forms = Self::default();
        for entry in ADDRESSES.into_iter().chain(domain.addresses.iter().map(String::as_str)) {
            forms.entry(entry).address = true;
        }
        forms.entry(METHOD).steps.push(Normaliser::Method);
        for (entry, steps) in &domain.normalise {
            forms.entry(entry).steps.extend(steps);
        }
        forms
    }

    fn entry(&mut self, name: &str) -> &mut Form {
        let known = self.forms.iter().position(|(known, _)| known == name);
        let index = known.unwrap_or_else(|| {
            self.bits |= bit(name);
            self.forms.push((name.to_owned(), Form::default()));
            self.forms.len() - 1
        });
        &mut self.forms[index].1
    }

    /// Whether an entry may have a form: of most that have none, this is false.
    #[inline]
    pub(super) fn may_have(&self, entry: &str) -> bool {
        self.bits & bit(entry) != 0
    }

    /// The form of an entry. None if it has any text.
    pub(crate) fn get(&self, entry: &str) -> Option<&Form> {
        if !self.may_have(entry) {
            return None;
        }
        self.forms.iter().find(|(known, _)| known == entry).map(|(_, form)| form)
    }

    /// The value of an entry in its form.
    pub(crate) fn value<'a>(&self, entry: &str, value: Cow<'a, str>) -> Cow<'a, str> {
        match self.get(entry) {
            Some(form) => form.value(value),
            None => value,
        }
    }

    /// The test of an entry, with its literals in the form of the values.
    ///
    /// # Errors
    ///
    /// A literal that no value matches.
    pub(crate) fn literal(&self, entry: &str, test: &Matcher) -> Result<Matcher, NeverMet> {
        match self.get(entry) {
            Some(form) => form.literal(test),
            None => Form::default().literal(test),
        }
    }
}

/// A bit for an entry, by its length and its first letter.
#[inline]
fn bit(entry: &str) -> u64 {
    1 << ((entry.len() + 7 * usize::from(entry.as_bytes().first().copied().unwrap_or(0))) % 64)
}
