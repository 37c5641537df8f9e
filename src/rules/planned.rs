//! The plan of a request, with the descriptors and rules that its checks come from.

use smallvec::SmallVec;

use crate::descriptor::LimitOverride;
use crate::plan::{Applied, Plan};
use crate::settings::Bound;

/// A request turned into checks, with the descriptor and rule that each check comes from.
#[derive(Debug, Default)]
pub struct Planned {
    /// The plan that the stores execute.
    pub plan: Plan,
    /// The descriptors and rules that the checks come from.
    pub sources: SmallVec<[CheckSource; 4]>,
    /// How the walk of each descriptor ended.
    pub ends: SmallVec<[DescriptorEnd; 2]>,
    /// Why the request is refused, regardless of its counters.
    pub refused: Option<RefusedBy>,
    /// What the plan leaves out.
    pub notes: Notes,
    /// The entries that the request repeats and that a rule needed, each once.
    pub(crate) repeated: Option<Box<RepeatedEntries>>,
    /// The first rule in shadow mode that would refuse, regardless of its counters.
    pub(crate) shadow_refused_by: Option<u32>,
    /// The index of the request's domain in the rules.
    pub(crate) domain: Option<usize>,
    /// The answers of the stores, once applied. They are here, in a box, so that a decision is cheap to move.
    pub(crate) applied: Applied,
}

/// The names of entries that a request repeats. In a box of their own: few requests repeat any.
#[derive(Debug, Default)]
pub(crate) struct RepeatedEntries(pub(crate) Vec<String>);

/// A descriptor and a rule from which a check comes.
#[derive(Clone, Copy, Debug)]
pub struct CheckSource {
    /// The descriptor, in the request's order.
    pub descriptor: u16,
    /// The check, in the plan's order.
    pub check: u16,
    /// The rule, in the domain's order. [`CheckSource::NO_RULE`] if a worker asked for a limiter that no rule applies.
    pub rule: u32,
    /// The limiter that the rule's reference resolved to, as an index into the targets of the rules.
    pub(crate) target: u32,
    /// Whether the check is of the limiter's slots, not of its quota.
    pub slots: bool,
    /// Counts and reports but never denies.
    pub shadow: bool,
    /// The limit that came with the request, if it was applied.
    pub applied_override: Option<LimitOverride>,
}

impl CheckSource {
    /// The rule of a limiter that no rule applies.
    pub const NO_RULE: u32 = u32::MAX;
}

/// How the walk of a descriptor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DescriptorEnd {
    /// No rule matched it.
    Unmatched,
    /// Its checks decide it.
    Checked,
    /// A rule let it pass.
    Allowed,
    /// It released a lease.
    Released,
    /// It is refused, regardless of its checks.
    Refused,
}

/// Why a request is refused, regardless of its counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    /// A rule denies it. Nothing is charged.
    Denied {
        /// The rule.
        rule: u32,
    },
    /// No rule matches a descriptor, and the domain denies those. Nothing is charged.
    Unmatched,
    /// It exceeds this bound. Nothing is charged (semantics 28).
    TooLarge(Bound),
    /// It names an entry that a rule needs several times. Nothing is charged (semantics 63).
    Repeated {
        /// The rule.
        rule: u32,
    },
    /// An entry that a rule needs cannot be read. Nothing is charged (semantics 62).
    Unreadable {
        /// The rule.
        rule: u32,
    },
    /// An entry of a key is missing. Checks that charge on refusals still do.
    MissingKey {
        /// The rule.
        rule: u32,
    },
    /// No limiter has the name that a template resulted in. Checks that charge on refusals still do.
    NoLimiter {
        /// The rule.
        rule: u32,
    },
}

/// What a plan leaves out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Checks skipped because an entry of their key was missing (semantics 7).
    pub skipped: u32,
    /// Overrides ignored because configuration would reject their numbers (semantics 18).
    pub overrides_ignored: u32,
    /// Refusals, regardless of counters, that shadow mode prevented.
    pub shadow_refusals: u32,
}
