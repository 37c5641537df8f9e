//! A copy of a descriptor, of bounded size, to be looked at off the path of its decision.

use crate::descriptor::Descriptor;

/// The longest key that is copied, in bytes.
const MAX_KEY_BYTES: usize = 64;

/// The longest value that is copied, in bytes.
const MAX_VALUE_BYTES: usize = 256;

/// The most entries, and the most values of a list, that are copied.
const MAX_PARTS: usize = 32;

/// The entries of a descriptor. It holds identities, so it has no `Debug` output.
#[derive(Clone)]
pub(super) struct Sample {
    entries: Vec<(Box<str>, Box<str>)>,
    /// Of each entry with several values: its key, the values, and whether it is repeated.
    lists: Vec<(Box<str>, Vec<Box<str>>, bool)>,
}

impl Sample {
    /// Copies a descriptor.
    pub(super) fn of(descriptor: &Descriptor<'_>) -> Self {
        let entries = descriptor.entries.iter().filter(|entry| descriptor.list(entry.key).is_none());
        let entries = entries.take(MAX_PARTS);
        let lists = descriptor.lists.iter().flat_map(|lists| &lists.0).take(MAX_PARTS);
        Self {
            entries: entries.map(|entry| (cut(entry.key, MAX_KEY_BYTES), cut(&entry.value, MAX_VALUE_BYTES))).collect(),
            lists: lists
                .map(|list| {
                    let values = list.values.iter().take(MAX_PARTS);
                    let values = values.map(|value| cut(value, MAX_VALUE_BYTES)).collect();
                    (cut(list.key, MAX_KEY_BYTES), values, list.repeated)
                })
                .collect(),
        }
    }

    /// Whether a copy of the descriptor has all its keys, and each as a whole.
    pub(super) fn has_keys_of(descriptor: &Descriptor<'_>) -> bool {
        let entries = &descriptor.entries;
        entries.len() <= MAX_PARTS && entries.iter().all(|entry| entry.key.len() <= MAX_KEY_BYTES)
    }

    /// Looks at the copy.
    pub(super) fn with<T>(&self, look: impl FnOnce(&Descriptor<'_>) -> T) -> T {
        let mut descriptor = Descriptor::of(self.entries.iter().map(|(key, value)| (&**key, &**value)));
        for (key, values, repeated) in &self.lists {
            let values = values.iter().map(|value| (&**value).into()).collect();
            match repeated {
                true => descriptor.push_repeated(key, values),
                false => descriptor.push_list(key, values),
            }
        }
        look(&descriptor)
    }
}

impl std::fmt::Debug for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sample")
    }
}

fn cut(text: &str, most: usize) -> Box<str> {
    start(text, most).into()
}

/// The start of a text: at most this many bytes, and whole characters.
pub(super) fn start(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_has_the_entries_and_lists_and_a_bounded_size() {
        let long = "é".repeat(1000);
        let mut descriptor = Descriptor::of([("path", "/login"), (&*long, &*long)]);
        descriptor.push_list("roles", vec!["admin".into(), "user".into()]);
        let sample = Sample::of(&descriptor);
        sample.with(|copy| {
            assert_eq!(copy.value("path"), Some("/login"));
            assert_eq!(copy.value("roles"), Some("admin,user"));
            assert_eq!(copy.list("roles").map(|list| list.values.len()), Some(2));
            assert_eq!(copy.entries.len(), 3);
            assert!(copy.entries.iter().all(|entry| entry.key.len() <= 64 && entry.value.len() <= 256));
        });
        assert!(!Sample::has_keys_of(&descriptor));
        assert!(Sample::has_keys_of(&Descriptor::of(std::iter::repeat_n(("path", "/"), MAX_PARTS))));
        let many = Descriptor::of(std::iter::repeat_n(("path", "/"), 5000));
        assert!(!Sample::has_keys_of(&many));
        assert_eq!(Sample::of(&many).with(|copy| copy.entries.len()), MAX_PARTS);
    }
}
