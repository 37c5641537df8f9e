//! The values that the checks of a plan ask for.

use smallvec::SmallVec;

use crate::limiter::Asked;

/// The values that checks of distinct ones ask for, each at the place that its limit says. Most plans have none, and pay
/// for a pointer.
#[derive(Clone, PartialEq, Eq, Debug, Default, Hash)]
pub struct Values(Option<Box<Several>>);

/// At least one value.
type Several = SmallVec<[u64; 3]>;

impl Values {
    /// All values of the plan.
    pub fn as_slice(&self) -> &[u64] {
        self.0.as_deref().map(SmallVec::as_slice).unwrap_or_default()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_none()
    }

    /// Adds the values of a check, each once, and returns their place. `None` if they are more than a check can ask for.
    pub fn ask(&mut self, values: impl IntoIterator<Item = u64>) -> Option<Asked> {
        let mut own = Several::new();
        for value in values {
            if !own.contains(&value) {
                own.push(value);
            }
        }
        if own.is_empty() {
            return Some(Asked::default());
        }
        let asked = Asked::place(self.as_slice().len(), own.len())?;
        self.0.get_or_insert_default().extend(own);
        Some(asked)
    }

    /// The place of the values at both places.
    pub(crate) fn ask_both(&mut self, one: Asked, other: Asked) -> Option<Asked> {
        let all = self.as_slice();
        let is_new = |value: &u64| !one.of(all).contains(value);
        if !other.of(all).iter().any(is_new) {
            return Some(one);
        }
        let both: Several = one.of(all).iter().chain(other.of(all)).copied().collect();
        self.ask(both)
    }
}
