//! The plan of a request, with the descriptors and rules that its checks come from.

use smallvec::SmallVec;

use crate::descriptor::LimitOverride;
use crate::plan::{Applied, Plan};
use crate::settings::Bound;

/// A request turned into checks, and which rule requested for which.
#[derive(Debug, Default)]
pub struct Planned {
    /// What the store executes.
    pub plan: Plan,
    /// Which descriptor and rule requested for which check.
    pub sources: SmallVec<[CheckSource; 4]>,
    /// How the walk of each descriptor ended.
    pub ends: SmallVec<[DescriptorEnd; 2]>,
    /// Why the request is refused before any counter is requested.
    pub refused: Option<RefusedBy>,
    /// What was left out.
    pub notes: Notes,
    /// The number of the request's domain among the rules' domains.
    pub(crate) domain: Option<usize>,
    /// The answers of the stores, once applied. They are kept in this box so that a decision stays small to move.
    pub(crate) applied: Applied,
}

/// One descriptor and rule that requested for a check.
#[derive(Clone, Copy, Debug)]
pub struct CheckSource {
    /// The descriptor, in the request's order.
    pub descriptor: u16,
    /// The check, in the plan's order.
    pub check: u16,
    /// The rule, in the domain's order.
    pub rule: u32,
    /// The limiter as the rule reached it.
    pub(crate) target: u32,
    /// Whether it is the limiter's slots, not its quota.
    pub slots: bool,
    /// Counts and reports but never denies.
    pub shadow: bool,
    /// The limit that came with the request, if it was applied.
    pub applied_override: Option<LimitOverride>,
}

/// How the walk of one descriptor ended.
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
    /// It is refused, whatever the outcome of its checks.
    Refused,
}

/// Why a request is refused before any counter is requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusedBy {
    /// A rule denies it; nothing is charged.
    Denied {
        /// The rule.
        rule: u32,
    },
    /// No rule matches a descriptor and the domain denies those; nothing is charged.
    Unmatched,
    /// It exceeds this bound; nothing is charged (semantics 28).
    TooLarge(Bound),
    /// An entry of a key is not there; checks that charge on refusals still do.
    MissingKey {
        /// The rule.
        rule: u32,
    },
    /// No limiter has the name that a template was filled to; checks that charge on refusals still do.
    NoLimiter {
        /// The rule.
        rule: u32,
    },
}

/// What a plan left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Checks skipped because an entry of their key was missing (semantics 7).
    pub skipped: u32,
    /// Limits that came with the request and were ignored because configuration would refuse them (semantics 18).
    pub overrides_ignored: u32,
    /// Refusals that a rule in shadow would have made without asking a counter.
    pub shadow_refusals: u32,
}
