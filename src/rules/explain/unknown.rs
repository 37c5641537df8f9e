//! The keys of a request that no rule uses, and those that were probably meant.

use super::explanation::UnknownKey;
use crate::descriptor::Descriptor;
use crate::rules::compiled::{CompiledDomain, CompiledRule, LeaseEntries};

/// The shortest key that another one can be similar to: of shorter ones, such as `id` and `ip`, both can be meant.
#[cfg(feature = "config")]
const SHORTEST: usize = 3;

impl CompiledDomain {
    /// The keys of a descriptor that no rule uses and the settings do not list, sorted. `leases` are the
    /// entries that release and settle leases, which no rule uses either.
    pub(super) fn unknown_keys(&self, descriptor: &Descriptor<'_>, leases: &LeaseEntries) -> Vec<UnknownKey> {
        let keys = sorted(descriptor.entries.iter().map(|entry| entry.key));
        let froms = self.derived.iter().map(|from| from.from.as_str());
        let used = sorted(self.rules.iter().flat_map(CompiledRule::entries).chain(froms));
        let is_known = |key: &str| leases.contains(key) || self.listed.iter().any(|listed| listed == key);
        let unknown = keys.iter().filter(|key| used.binary_search(key).is_err() && !is_known(key));
        let lacking: Vec<&str> = used.iter().copied().filter(|key| keys.binary_search(key).is_err()).collect();
        unknown.map(|key| UnknownKey { key: (*key).to_owned(), meant: meant(key, &lacking) }).collect()
    }
}

fn sorted<'a>(keys: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut keys: Vec<&str> = keys.collect();
    keys.sort_unstable();
    keys.dedup();
    keys
}

/// The one of the keys that an unknown one is similar to.
#[cfg(feature = "config")]
fn meant(unknown: &str, lacking: &[&str]) -> Option<String> {
    crate::rules::similar(unknown, lacking.iter().copied(), SHORTEST).map(str::to_owned)
}

/// Nothing: the core does without the comparison of names.
#[cfg(not(feature = "config"))]
fn meant(_: &str, _: &[&str]) -> Option<String> {
    None
}
