//! The limiters that a worker can ask for by name.

use super::compiled::{CompiledAction, CompiledApply, Rules};

/// A limiter as a worker asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AskableLimiter<'r> {
    /// The domain. `None` for one that no rule applies and that can be asked for in any domain.
    pub(crate) domain: Option<&'r str>,
    /// Its name as the rule writes it.
    pub(crate) limiter: &'r str,
    /// The rule that applies it.
    pub(crate) rule: Option<&'r str>,
    /// The entries of its key.
    pub(crate) key: Vec<&'r str>,
    /// The entries that fill its name.
    pub(crate) fills: Vec<&'r str>,
}

impl Rules {
    /// The limiters that rules apply, in the order of domains and rules, then those that can be asked for directly.
    pub(crate) fn askable_limiters(&self) -> impl Iterator<Item = AskableLimiter<'_>> {
        let rules = self.domains.iter().flat_map(|domain| domain.rules.iter().map(move |rule| (domain, rule)));
        let applied = rules.flat_map(|(domain, rule)| {
            let applies: &[CompiledApply] = match &rule.action {
                CompiledAction::Apply(applies) => applies,
                CompiledAction::Allow | CompiledAction::Deny => &[],
            };
            applies.iter().map(move |apply| AskableLimiter {
                domain: Some(&domain.name),
                limiter: &apply.reference,
                rule: Some(&rule.name),
                key: apply.key.iter().map(|entry| entry.entry.as_str()).collect(),
                fills: apply.template.entries().collect(),
            })
        });
        let direct = self.limiters.iter().filter(|limiter| limiter.workers.direct);
        applied.chain(direct.map(|limiter| AskableLimiter {
            domain: None,
            limiter: &limiter.name,
            rule: None,
            key: Vec::new(),
            fills: Vec::new(),
        }))
    }
}
