//! What a worker asks for: slots and units, of entries of a domain or of a limiter by name (semantics 50).
//!
//! The API converts its messages into an [`Acquire`]; nothing past it knows protobuf or JSON.

use std::fmt;
use std::time::Duration;

/// A call of a worker. Several asks are all or nothing, unless `any` is set.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Acquire {
    /// The domain; `None` is the one that the settings of the API name.
    pub domain: Option<String>,
    /// What is asked for, at least one.
    pub asks: Vec<Ask>,
    /// Tries the asks in order, and takes the first that is admitted.
    pub any: bool,
    /// The longest wait. `None` is that of the limiters; zero does not wait.
    pub max_wait: Option<Duration>,
    /// How long slots and holds are held. `None` is as the limiters and rules say.
    pub lease: Option<Duration>,
    /// Takes fewer units if not all fit, at least one. Only for a single ask.
    pub partial: bool,
    /// Makes a repeated call return the lease of the first one.
    pub idempotency_key: Option<String>,
}

/// One thing that a worker asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// What is asked for.
    pub subject: Subject,
    /// The units, at least one. Of a limiter's slots one is taken, whatever the units.
    pub cost: u32,
    /// The length of a hold. Only for a limiter with `direct = true`; elsewhere the rule says it.
    pub hold: Option<Duration>,
    /// Whether a hold that nobody ends is given back. Only with `hold`.
    pub release_lost: bool,
}

/// What an ask names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// Entries, which the rules of the domain decide.
    Entries(Vec<(String, String)>),
    /// A limiter as rules write it, and the entries of its key.
    Limiter {
        /// The reference, such as `api_{tier}`.
        limiter: String,
        /// The entries of the key, and those that fill the reference.
        key: Vec<(String, String)>,
    },
}

/// The place of an ask in a call, such as `asks[1]`. A text is made of it only for an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(pub(crate) usize);

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "asks[{}]", self.0)
    }
}

/// Why a call makes no sense: nothing was charged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskError {
    /// The kind, from which a door makes its status.
    pub kind: AskErrorKind,
    /// The place in the call, such as `asks[1].limiter`.
    pub place: String,
    /// What is wrong there, and the nearest that would be right.
    pub message: String,
}

/// The kind of an [`AskError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AskErrorKind {
    /// A domain, a limiter or entries that no rule knows.
    NotFound,
    /// A value that makes no sense.
    Invalid,
    /// Only a part of what an idempotency key names is still held.
    Conflict,
}

impl AskError {
    /// An error of a value that makes no sense.
    pub(crate) fn invalid(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: AskErrorKind::Invalid, place: place.into(), message: message.into() }
    }

    /// An error of a name that is not known.
    pub(crate) fn not_found(place: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: AskErrorKind::NotFound, place: place.into(), message: message.into() }
    }
}

impl fmt::Display for AskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.message)
    }
}

impl std::error::Error for AskError {}
