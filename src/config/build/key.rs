//! The entries of keys, and those whose different values a limiter counts: both are written in one form.

use crate::config::document::problem::{Location, Problems};
use crate::config::schema;
use crate::config::schema::decode::Located;
use crate::rules::{KeyEntry, Normaliser};

/// Builds entries from a list. `twice` is the reason against one that is there already; `check` checks the name of each.
pub(super) fn entries(
    written: &[Located<schema::WrittenKeyEntry>],
    twice: &str,
    problems: &mut Problems,
    mut check: impl FnMut(&str, &Location, &mut Problems),
) -> Vec<KeyEntry> {
    let mut entries: Vec<KeyEntry> = Vec::new();
    for part in written {
        let (entry, normalise, location) = match &part.value {
            schema::WrittenKeyEntry::Name(entry) => (entry.clone(), Vec::new(), &part.location),
            schema::WrittenKeyEntry::Table(table) => {
                let Some(entry) = table.entry.get() else { continue };
                let mut normalise = normalisers(table.normalise.items());
                if let Some(bits) = table.ipv6_prefix.copied() {
                    normalise.push(Normaliser::Ipv6Prefix(u8::try_from(bits.0).unwrap_or(128)));
                }
                (entry.value.clone(), normalise, &entry.location)
            }
        };
        check(&entry, location, problems);
        if entry.is_empty() {
            problems.refuse(location, "expected the name of an entry");
        }
        if entries.iter().any(|part| part.entry == entry) {
            problems.refuse(location, twice);
        }
        entries.push(KeyEntry { entry, normalise });
    }
    entries
}

/// Builds normalisers from a list.
pub(super) fn normalisers(list: &[Located<schema::Normaliser>]) -> Vec<Normaliser> {
    let normaliser = |written: &Located<schema::Normaliser>| match written.value {
        schema::Normaliser::Lowercase => Normaliser::Lowercase,
        schema::Normaliser::Trim => Normaliser::Trim,
        schema::Normaliser::Path => Normaliser::Path,
        schema::Normaliser::Host => Normaliser::Host,
        schema::Normaliser::Method => Normaliser::Method,
        schema::Normaliser::Bearer => Normaliser::Bearer,
        schema::Normaliser::Nfkc => Normaliser::Nfkc,
    };
    list.iter().map(normaliser).collect()
}
