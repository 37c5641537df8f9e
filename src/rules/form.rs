//! The one form of an entry's values, and of everything that they are compared with.
//!
//! A [`Form`] belongs to an entry of a domain. The values of requests go through it, and so does, once, when rules are
//! compiled, each literal that the entry is compared with (`literal.rs`): in tests, lists, patterns, blocks, and in the
//! part of a limiter's name that the entry fills.

use std::borrow::Cow;

use super::Normaliser;
use super::address::address;

/// The form of one entry's values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    pub(super) steps: Vec<Normaliser>,
    /// Whether the values are addresses.
    pub(super) address: bool,
}

/// Rounds of all steps after which a value is taken as it is. Steps that undo each other would go on.
pub(super) const MAX_ROUNDS: usize = 8;

impl Form {
    /// The form of values that are no addresses.
    pub(super) fn by(steps: Vec<Normaliser>) -> Self {
        Self { steps, address: false }
    }

    /// Whether any text is in this form.
    #[inline]
    pub(super) fn is_any(&self) -> bool {
        self.steps.is_empty() && !self.address
    }

    /// Whether the values pass this normaliser.
    #[cfg(feature = "config")]
    pub(crate) fn has(&self, step: Normaliser) -> bool {
        self.steps.contains(&step)
    }

    /// Whether the values are addresses.
    pub(crate) fn is_address(&self) -> bool {
        self.address
    }

    /// The form of a value, borrowed where nothing changes.
    ///
    /// Several steps are repeated until nothing changes, because one can undo what another did: the lower case of `J` and
    /// a combining caron is two characters, which NFKC composes. So the form of a form is the same.
    pub(crate) fn value<'a>(&self, mut value: Cow<'a, str>) -> Cow<'a, str> {
        match self.steps[..] {
            [] => {}
            [step] => value = step.apply(value),
            _ => value = self.repeated(value),
        }
        match self.address {
            true => address(value),
            false => value,
        }
    }

    /// The value after all steps, repeated until nothing changes.
    fn repeated<'a>(&self, mut value: Cow<'a, str>) -> Cow<'a, str> {
        for _ in 0..MAX_ROUNDS {
            let mut changed = false;
            for step in &self.steps {
                let next = match &value {
                    Cow::Borrowed(text) => differing(step.apply(Cow::Borrowed(text)), text),
                    Cow::Owned(text) => {
                        differing(step.apply(Cow::Borrowed(text)), text).map(|next| Cow::Owned(next.into_owned()))
                    }
                };
                if let Some(next) = next {
                    value = next;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        value
    }

    /// The form of addresses that no normaliser changes.
    #[cfg(test)]
    pub(super) fn of_addresses() -> Self {
        Self { steps: Vec::new(), address: true }
    }
}

/// What a step returned, if it changed the text: a part of it, or another text.
pub(super) fn differing<'a>(next: Cow<'a, str>, text: &str) -> Option<Cow<'a, str>> {
    let changed = next.len() != text.len() || matches!(&next, Cow::Owned(next) if next != text);
    changed.then_some(next)
}
