//! The rules: which limiters apply to a request.
//!
//! A [`RuleBook`] is the configuration of rules and limiters; [`Rules`] is its compiled form, immutable and replaced as
//! a whole. [`Rules::plan`] turns a request into checks. Nothing here awaits or counts.
//!
//! ```text
//!   Request -> normalise, derive -> index: candidates -> matchers: rules in order -> limiters and keys -> merged checks
//! ```
//!
//! `Rules::plan_asks` does the same for what a worker asks for.
//!
//! The cost of planning grows with the number of rules that match, not with the number of rules.

mod address;
#[cfg(feature = "server")]
mod ask;
#[cfg(feature = "server")]
mod askable;
mod book;
mod compile;
mod compiled;
#[cfg(feature = "config")]
mod coverage;
mod derive;
mod explain;
mod form;
mod forms;
mod index;
mod literal;
mod lookup_table;
mod matcher;
#[cfg(feature = "config")]
mod nearest;
mod normalise;
mod pattern;
mod plan;
mod planned;
mod resolve;
mod table_lookup;
mod terms;
mod value_list;
mod value_set;

pub use self::address::address;
#[cfg(feature = "server")]
pub(crate) use self::askable::AskableLimiter;
pub use self::book::{
    Action, Apply, Charge, Derive, Domain, HoldFor, KeyEntry, LimiterValues, Missing, PartitionedStore, RefusalText,
    RequestBounds, Rule, RuleBook, RuleHeaders, Unmatched,
};
pub use self::compile::CompileError;
#[cfg(feature = "server")]
pub(crate) use self::compiled::RuleLabel;
pub use self::compiled::{DataSize, Rules};
pub use self::explain::{KnownCounter, NotCounted};
pub use self::literal::NeverMet;
pub use self::lookup_table::{Digest, LookupTable, MAX_TABLE_VALUE_BYTES};
pub use self::matcher::Matcher;
#[cfg(feature = "config")]
pub(crate) use self::nearest::{nearest, similar};
pub(crate) use self::normalise::DEFAULT_IPV6_PREFIX;
#[cfg(feature = "server")]
pub(crate) use self::normalise::split_target;
pub use self::normalise::{Normaliser, bearer, host, lowercase, path};
pub use self::pattern::Pattern;
pub use self::planned::{CheckSource, DescriptorEnd, Notes, Planned, RefusedBy};
pub use self::table_lookup::TableLookup;
#[cfg(feature = "config")]
pub(crate) use self::value_list::DataFaults;
pub use self::value_list::{ListTest, ValueList};
#[cfg(feature = "config")]
pub(crate) use self::{form::Form, forms::Forms};
