//! A limiter as configured, and its [`Limit`].

use std::time::Duration;

use super::{
    Alignment, Asked, Calendar, Concurrency, Distinct, FixedWindow, Limit, MAX_DISTINCT, SlidingCounter, SlidingWindow,
    TokenBucket,
};

/// The largest `limit` of an exact sliding window: every grant is stored.
pub const MAX_LOG_LIMIT: u32 = 10_000;

/// The longest window: ten years.
pub const MAX_WINDOW: Duration = Duration::from_secs(10 * 365 * 86_400);

/// Maximum slots of a concurrency limit: every lease is stored.
pub const MAX_SLOTS: u32 = 10_000;

/// A named limiter: a rate or a window, a concurrency limit, or both.
#[derive(Clone, Debug)]
pub struct Limiter {
    /// The name by which rules apply it.
    pub name: String,
    /// The index of its store among the configured ones.
    pub store: u16,
    /// The rate or window.
    pub quota: Option<Quota>,
    /// The slots.
    pub concurrency: Option<Concurrency>,
    /// The policy when the store does not answer.
    pub on_store_error: OnStoreError,
    /// Whether a limit that comes with a request replaces the configured one (semantics 18).
    pub overridable: bool,
    /// How workers acquire it.
    pub workers: WorkerSettings,
}

/// How workers acquire a limiter (semantics 45 to 50).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerSettings {
    /// Whether it can be asked for by name with any key although no rule applies it.
    pub direct: bool,
    /// Whether waiters on a bucket are granted ahead: charged at once, and answered at their moment.
    pub wait: bool,
    /// The longest wait of an acquire that does not say one.
    pub timeout: Option<Duration>,
    /// The most waiters on one counter in one instance.
    pub queue: u32,
}

impl Default for WorkerSettings {
    fn default() -> Self {
        Self { direct: false, wait: false, timeout: None, queue: 1000 }
    }
}

/// The policy when a store does not answer (semantics 31).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
#[non_exhaustive]
pub enum OnStoreError {
    /// Admit.
    Allow,
    /// Refuse.
    Deny,
    /// Decide in this process's memory until the store is back. Where the store is this process's memory, refuse.
    #[default]
    Local,
}

/// `limit` units per `window`, counted by an algorithm.
#[derive(Clone, Debug)]
pub struct Quota {
    /// Units per window, as configured.
    pub limit: u32,
    /// The window, as configured; the nominal length for a calendar.
    pub window: Duration,
    /// The counting algorithm.
    pub algorithm: Algorithm,
}

/// The counting algorithm of a quota.
#[derive(Clone, Debug)]
pub enum Algorithm {
    /// `limit` tokens refill per window, and at most `burst` are held.
    TokenBucket {
        /// Tokens in a full bucket; `limit` if unset.
        burst: Option<u32>,
        /// Maximum debt in tokens, if configured.
        max_debt: Option<u64>,
    },
    /// An exact log of grants.
    SlidingWindow,
    /// Two counts.
    SlidingCounter,
    /// One count.
    FixedWindow(Schedule),
    /// The different values of these entries together, in order of their names: at least one, and each once.
    Distinct {
        /// The names of the entries.
        of: Vec<String>,
    },
}

/// Where the windows of a fixed window start.
#[derive(Clone, Debug)]
pub enum Schedule {
    /// At whole multiples of the window since the Unix epoch.
    Epoch,
    /// At the first hit.
    FirstHit,
    /// At the boundaries of a calendar in a time zone.
    Calendar(&'static Calendar),
}

/// Why a quota is invalid. Its text continues a path: `limiters.login.limit is 20000, ...`.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SpecError {
    /// The limit, the window or the burst is zero.
    #[error("expected more than zero")]
    Zero,
    /// The limit of an exact window exceeds [`MAX_LOG_LIMIT`].
    #[error(
        "expected at most {MAX_LOG_LIMIT}, because sliding_window remembers every grant; sliding_counter has no such bound"
    )]
    LogTooLarge,
    /// The limit of distinct values exceeds [`MAX_DISTINCT`].
    #[error("expected at most {MAX_DISTINCT}, because distinct remembers every value")]
    TooManyValues,
    /// A limit of distinct values names no entry whose values it counts.
    #[error("expected at least one entry, whose different values are counted")]
    NoEntry,
    /// The window exceeds [`MAX_WINDOW`].
    #[error("expected at most 3650d")]
    WindowTooLong,
    /// No bucket represents the rate within 1 %. Contains the largest burst with which one would.
    #[error("expected at most {0}, so that a bucket can represent the rate within 1 %")]
    Rate(u32),
}

impl Quota {
    /// A quota with these parameters.
    ///
    /// # Errors
    ///
    /// [`SpecError`] names the bound that is exceeded.
    pub fn new(limit: u32, window: Duration, algorithm: Algorithm) -> Result<Self, SpecError> {
        if limit == 0 || window.as_micros() == 0 {
            return Err(SpecError::Zero);
        }
        if window > MAX_WINDOW {
            return Err(SpecError::WindowTooLong);
        }
        let mut quota = Self { limit, window, algorithm };
        if let Algorithm::Distinct { of } = &mut quota.algorithm {
            // Their order makes no other counter.
            of.sort_unstable();
            of.dedup();
        }
        match &quota.algorithm {
            Algorithm::TokenBucket { burst: Some(0), .. } => return Err(SpecError::Zero),
            Algorithm::TokenBucket { .. } => quota.bucket(0).map(drop)?,
            Algorithm::SlidingWindow if limit > MAX_LOG_LIMIT => return Err(SpecError::LogTooLarge),
            Algorithm::Distinct { of } if of.is_empty() => return Err(SpecError::NoEntry),
            Algorithm::Distinct { .. } if limit > MAX_DISTINCT => return Err(SpecError::TooManyValues),
            Algorithm::SlidingWindow
            | Algorithm::SlidingCounter
            | Algorithm::FixedWindow(_)
            | Algorithm::Distinct { .. } => {}
        }
        Ok(quota)
    }

    /// This quota with the limit and window of an override (semantics 18). An explicit burst stays; a calendar is
    /// replaced by the window of the override.
    ///
    /// # Errors
    ///
    /// [`SpecError`] when configuration would reject those numbers.
    pub(crate) fn overridden(&self, limit: u32, window: Duration) -> Result<Self, SpecError> {
        let algorithm = match &self.algorithm {
            Algorithm::FixedWindow(Schedule::Calendar(_)) if window != self.window => {
                Algorithm::FixedWindow(Schedule::Epoch)
            }
            algorithm => algorithm.clone(),
        };
        Self::new(limit, window, algorithm)
    }

    /// The limit. `max_debt` is the maximum debt of a bucket for which none is configured.
    #[expect(clippy::missing_panics_doc, reason = "`new` rejects the rates that panic")]
    pub fn limit(&self, max_debt: u64) -> Limit {
        let window = micros(self.window);
        match &self.algorithm {
            Algorithm::TokenBucket { .. } => {
                Limit::TokenBucket(self.bucket(max_debt).expect("`new` rejects rates that a bucket cannot represent"))
            }
            Algorithm::SlidingWindow => Limit::SlidingWindow(SlidingWindow { limit: self.limit, window }),
            Algorithm::SlidingCounter => Limit::SlidingCounter(SlidingCounter { limit: self.limit, window }),
            Algorithm::Distinct { .. } => {
                Limit::Distinct(Distinct { limit: self.limit, window, asked: Asked::default() })
            }
            Algorithm::FixedWindow(schedule) => Limit::FixedWindow(FixedWindow {
                limit: self.limit,
                alignment: match schedule {
                    Schedule::Epoch => Alignment::Epoch(window),
                    Schedule::FirstHit => Alignment::FirstHit(window),
                    Schedule::Calendar(calendar) => Alignment::Calendar(calendar),
                },
            }),
        }
    }

    /// Whether the windows follow a calendar.
    pub(crate) fn follows_calendar(&self) -> bool {
        matches!(self.algorithm, Algorithm::FixedWindow(Schedule::Calendar(_)))
    }

    /// The kind of state in a counter's name (semantics 1): the algorithm, window and alignment. The window of a bucket
    /// is left out, because its state carries over. Of distinct values, also the entries that have them.
    pub(crate) fn kind(&self) -> String {
        let window = micros(self.window);
        match &self.algorithm {
            Algorithm::TokenBucket { .. } => "token_bucket".to_owned(),
            Algorithm::SlidingWindow => format!("sliding_window/{window}"),
            Algorithm::SlidingCounter => format!("sliding_counter/{window}"),
            Algorithm::FixedWindow(Schedule::Epoch) => format!("fixed_window/{window}"),
            Algorithm::FixedWindow(Schedule::FirstHit) => format!("fixed_window/{window}/first_hit"),
            Algorithm::FixedWindow(Schedule::Calendar(calendar)) => format!("fixed_window/{calendar:?}"),
            Algorithm::Distinct { of } => format!("distinct/{window}/{of:?}"),
        }
    }

    fn bucket(&self, default_debt: u64) -> Result<TokenBucket, SpecError> {
        let Algorithm::TokenBucket { burst, max_debt } = self.algorithm else {
            unreachable!("only called for a token bucket")
        };
        let debt = max_debt.unwrap_or(default_debt);
        TokenBucket::new(u64::from(self.limit), micros(self.window), burst.unwrap_or(self.limit), debt)
            .map_err(|error| SpecError::Rate(error.largest_burst))
    }
}

/// Microseconds of a duration that [`Quota::new`] accepted.
fn micros(window: Duration) -> u64 {
    u64::try_from(window.as_micros()).unwrap_or(u64::MAX)
}
