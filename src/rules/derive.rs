//! Derives entries of a descriptor from tables (semantics 59).
//!
//! ```text
//!   Request -> normalise -> derive -> index: candidates -> ...
//! ```

use std::borrow::Cow;

use super::compiled::{CompiledDomain, DerivedEntry, DerivedFrom};
use crate::descriptor::{Descriptor, Entry};

impl DerivedEntry {
    /// The value that a row gives it.
    fn value(&self, row: Option<u32>) -> Option<&str> {
        row.and_then(|row| self.values.value(row)).or(self.otherwise.as_deref())
    }
}

/// Whether entries are kept that a descriptor has and that its domain derives.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum GivenEntries {
    /// No: they are a client's.
    Dropped,
    /// Yes: an operator names an identity by them.
    Kept,
}

impl CompiledDomain {
    /// The derivation of an entry.
    pub(super) fn derivation(&self, entry: &str) -> Option<&DerivedFrom> {
        self.derived.iter().find(|from| from.entries.iter().any(|derived| derived.entry == entry))
    }

    /// The entry that a value has to be sent with: what an entry is derived from, or else the entry itself.
    pub(super) fn sent<'e>(&'e self, entry: &'e str) -> &'e str {
        self.derivation(entry).map_or(entry, |from| &from.from)
    }

    /// The descriptor, which is normalised, with the entries that are derived.
    #[cold]
    pub(super) fn derive<'a>(&'a self, normalised: &'a Descriptor<'_>, given: GivenEntries) -> Descriptor<'a> {
        let kept = |entry: &str| given == GivenEntries::Kept || self.derivation(entry).is_none();
        let mut descriptor = normalised.with_entries(kept);
        for from in &self.derived {
            let found = descriptor.list(&from.from).map(|list| {
                let rows: Vec<Option<u32>> = list.values.iter().map(|value| from.rows.find(value)).collect();
                (rows, list.repeated)
            });
            let row = descriptor.value(&from.from).filter(|_| found.is_none()).and_then(|value| from.rows.find(value));
            let unreadable = descriptor.list(&from.from).is_some_and(|list| list.unreadable);
            for derived in &from.entries {
                if unreadable {
                    // It may be any value of the table.
                    descriptor.push_unreadable(&derived.entry);
                    continue;
                }
                if given == GivenEntries::Kept && descriptor.value(&derived.entry).is_some() {
                    continue;
                }
                match &found {
                    None => {
                        if let Some(value) = derived.value(row) {
                            descriptor.entries.push(Entry { key: &derived.entry, value: Cow::Borrowed(value) });
                        }
                    }
                    // A list gives a list. Of one that is in doubt, what is derived is in doubt too.
                    Some((rows, repeated)) => {
                        let mut values: Vec<Cow<'a, str>> =
                            rows.iter().filter_map(|row| derived.value(*row)).map(Cow::Borrowed).collect();
                        values.sort_unstable();
                        values.dedup();
                        match (values.is_empty(), repeated) {
                            (true, _) => {}
                            (false, true) => descriptor.push_repeated(&derived.entry, values),
                            (false, false) => descriptor.push_list(&derived.entry, values),
                        }
                    }
                }
            }
        }
        descriptor
    }
}
