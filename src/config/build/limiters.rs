//! Builds the limiters: checks that each has the keys of its algorithm, and that their values can be counted.

use std::collections::HashMap;
use std::time::Duration;

use jiff::tz::TimeZone;

use super::key::entries;
use crate::config::document::problem::{Location, Problems, nearest, remedy};
use crate::config::rate_sync::is_rate_sync;
use crate::config::schema;
use crate::config::schema::decode::{Choice, Field, Located, SchemaTable};
use crate::config::schema::values::{Item, Positive, shown_duration};
use crate::limiter::{
    Algorithm, Calendar, CalendarUnit, Concurrency, Limiter, MAX_SLOTS, MAX_WINDOW, OnStoreError, Quota, Schedule,
    SpecError, WorkerSettings,
};
use crate::rules::{KeyEntry, LimiterValues};
use crate::settings::Bounds;

/// The default lease of a slot: the time after which it is free even if it is not released.
const DEFAULT_LEASE: Duration = Duration::from_secs(60);

/// The limiters of the files, including invalid ones, whose names rules may use without a second error.
#[derive(Debug)]
pub(in crate::config) struct Limiters {
    all: Vec<(String, Option<Limiter>)>,
    /// The index by name.
    indexes: HashMap<String, usize>,
    /// How limiters normalise the values that they count.
    values: Vec<LimiterValues>,
}

impl Limiters {
    /// The names, in the order of the files.
    pub(in crate::config) fn names(&self) -> impl Iterator<Item = &str> + Clone {
        self.all.iter().map(|(name, _)| name.as_str())
    }

    /// Whether a limiter has this name.
    pub(in crate::config) fn contains(&self, name: &str) -> bool {
        self.indexes.contains_key(name)
    }

    /// The limiter of this name, if it is valid.
    pub(in crate::config) fn get(&self, name: &str) -> Option<&Limiter> {
        self.all[*self.indexes.get(name)?].1.as_ref()
    }

    /// Whether workers can ask for this limiter by name although no rule applies it.
    pub(in crate::config) fn is_direct(&self, name: &str) -> bool {
        self.get(name).is_some_and(|limiter| limiter.workers.direct)
    }

    /// The valid limiters, and how they normalise the values that they count.
    pub(in crate::config) fn into_built(self) -> (Vec<Limiter>, Vec<LimiterValues>) {
        (self.all.into_iter().filter_map(|(_, limiter)| limiter).collect(), self.values)
    }
}

/// Builds all limiters. `stores` are the names of the stores, in order.
pub(in crate::config) fn limiters(
    file: &schema::File,
    stores: &[String],
    bounds: &Bounds,
    problems: &mut Problems,
) -> Limiters {
    let rate_sync = is_rate_sync(file);
    let mut values = Vec::new();
    let limiter = |item: &Item<schema::Limiter>| {
        let written = item.value.as_ref();
        let limiter = written.and_then(|written| {
            let mut of = Vec::new();
            let builder =
                LimiterBuilder { item, written, stores, bounds, rate_sync, of: &mut of, problems: &mut *problems };
            let limiter = builder.limiter();
            of.retain(|part| !part.normalise.is_empty());
            if !of.is_empty() {
                values.push(LimiterValues { limiter: item.name.clone(), of });
            }
            limiter
        });
        (item.name.clone(), limiter)
    };
    let all: Vec<(String, Option<Limiter>)> = file.limiters.named().iter().map(limiter).collect();
    let indexes = all.iter().enumerate().map(|(index, (name, _))| (name.clone(), index)).collect();
    Limiters { all, indexes, values }
}

/// Builds one limiter.
struct LimiterBuilder<'a> {
    item: &'a Item<schema::Limiter>,
    written: &'a schema::Limiter,
    stores: &'a [String],
    bounds: &'a Bounds,
    /// Whether it is in a file of rate-sync.
    rate_sync: bool,
    /// The entries whose different values it counts.
    of: &'a mut Vec<KeyEntry>,
    problems: &'a mut Problems,
}

impl<'a> LimiterBuilder<'a> {
    fn limiter(mut self) -> Option<Limiter> {
        if self.item.name.contains(['{', '}']) {
            let reason = "is a name, expected no braces: in rules they enclose the name of an entry";
            self.problems.error(self.item.location.position, &self.item.location.path, reason);
        }
        let store = self.store();
        let on_store_error = self.on_store_error();
        let concurrency = self.concurrency();
        let algorithm = self.algorithm()?;
        self.refuse_foreign_keys(algorithm);
        let quota = self.quota(algorithm);
        // The reason was reported.
        if quota.is_none() && concurrency.is_none() {
            return None;
        }
        let bucket_alone = concurrency.is_none()
            && quota.as_ref().is_some_and(|quota| matches!(quota.algorithm, Algorithm::TokenBucket { .. }));
        let workers = self.workers(bucket_alone);
        Some(Limiter {
            name: self.item.name.clone(),
            store: store?,
            quota,
            concurrency,
            on_store_error,
            overridable: self.written.overridable.copied().is_some_and(|switch| switch.0),
            workers,
        })
    }

    /// Reports a missing key.
    fn missing(&mut self, key: &str, expected: &str) {
        let path = format!("{}.{key}", self.item.location.path);
        self.problems.missing(self.item.location.position, &path, format!("is missing, expected {expected}"));
    }

    fn store(&mut self) -> Option<u16> {
        let index = match self.written.store.get() {
            Some(name) => {
                let index = self.stores.iter().position(|store| *store == **name);
                if index.is_none() && !self.problems.has_syntax_errors() {
                    let remedy = remedy(name, self.stores.iter().map(String::as_str), "stores");
                    self.problems.refuse(&name.location, format!("but no store has this name{remedy}"));
                }
                index?
            }
            None => self.stores.iter().position(|store| store == "main").unwrap_or(0),
        };
        u16::try_from(index).ok()
    }

    fn on_store_error(&mut self) -> OnStoreError {
        let closed = self.written.fail_closed.get();
        match (self.written.on_store_error.get(), closed) {
            (Some(chosen), closed) => {
                if let Some(closed) = closed {
                    self.problems.refuse(&closed.location, "but on_store_error is given too; expected one of them");
                }
                match chosen.value {
                    schema::OnStoreError::Allow => OnStoreError::Allow,
                    schema::OnStoreError::Deny => OnStoreError::Deny,
                    schema::OnStoreError::Local => OnStoreError::Local,
                }
            }
            (None, Some(closed)) if closed.0 => OnStoreError::Deny,
            (None, Some(_)) => OnStoreError::Allow,
            (None, None) => OnStoreError::default(),
        }
    }

    /// How workers acquire it. A limiter of rate-sync waits for ever by default, as long as it may.
    fn workers(&mut self, bucket_alone: bool) -> WorkerSettings {
        let (written, bounds) = (self.written, self.bounds);
        let mut workers = WorkerSettings::default();
        if self.rate_sync {
            let timeout = Some(bounds.max_wait);
            workers = WorkerSettings { direct: true, wait: bucket_alone, timeout, ..workers };
        }
        if let Some(timeout) = written.timeout.get() {
            if timeout.0 > bounds.max_wait {
                let reason =
                    format!("expected at most server.bounds.max_wait, which is {}", shown_duration(bounds.max_wait));
                self.problems.refuse(&timeout.location, reason);
            }
            workers.timeout = Some(timeout.0);
        }
        if let Some(queue) = written.queue.get() {
            if u32::from(queue.value) > bounds.waiters {
                let reason = format!("expected at most server.bounds.waiters, which is {}", bounds.waiters);
                self.problems.refuse(&queue.location, reason);
            }
            workers.queue = queue.value.into();
        }
        if let Some(wait) = written.wait.copied() {
            workers.wait = wait.0;
        }
        if let Some(direct) = written.direct.copied() {
            workers.direct = direct.0;
        }
        workers
    }

    fn concurrency(&mut self) -> Option<Concurrency> {
        if let (Some(lease), true) = (self.written.lease.get(), self.written.max_concurrent.is_absent()) {
            self.problems.refuse(&lease.location, "which needs max_concurrent: only slots have a lease");
        }
        let lease = match self.written.lease.get() {
            Some(lease) if lease.0 > MAX_WINDOW => {
                self.problems.refuse(&lease.location, "expected at most 3650d");
                DEFAULT_LEASE
            }
            Some(lease) => lease.0,
            None => DEFAULT_LEASE,
        };
        let max = self.written.max_concurrent.get()?;
        if max.0 > u64::from(MAX_SLOTS) {
            self.problems.refuse(&max.location, format!("expected at most {MAX_SLOTS}, because every slot is stored"));
            return None;
        }
        Some(Concurrency { max: u32::from(max.value), lease: u64::try_from(lease.as_micros()).unwrap_or(u64::MAX) })
    }

    /// The algorithm, as given or implied by other keys.
    fn algorithm(&mut self) -> Option<schema::Algorithm> {
        let written = self.written;
        match &written.algorithm {
            Field::Given(algorithm) => Some(algorithm.value),
            Field::Invalid => None,
            Field::Absent if !written.rate_per_second.is_absent() => Some(schema::Algorithm::TokenBucket),
            Field::Absent if !written.max_concurrent.is_absent() && !self.has_window() => {
                Some(schema::Algorithm::Concurrency)
            }
            Field::Absent => {
                let words = schema::Algorithm::WORDS.join(", ");
                self.missing("algorithm", &format!("one of {words}"));
                None
            }
        }
    }

    fn has_window(&self) -> bool {
        let written = self.written;
        !(written.limit.is_absent()
            && written.window.is_absent()
            && written.window_seconds.is_absent()
            && written.calendar.is_absent())
    }

    /// Refuses the keys of other algorithms.
    fn refuse_foreign_keys(&mut self, algorithm: schema::Algorithm) {
        let word = algorithm.word();
        for (key, location) in self.written.foreign(word) {
            let (key, owners) = (key.name, key.only.join(", "));
            self.problems.refuse(location, format!("but {word} has no {key}; it belongs to {owners}"));
        }
    }

    fn quota(&mut self, algorithm: schema::Algorithm) -> Option<Quota> {
        let written = self.written;
        match algorithm {
            schema::Algorithm::Concurrency => {
                if written.max_concurrent.is_absent() {
                    self.missing("max_concurrent", "a whole number more than zero");
                }
                None
            }
            schema::Algorithm::TokenBucket => self.bucket_quota(),
            schema::Algorithm::SlidingWindow => self.window_quota(Algorithm::SlidingWindow),
            schema::Algorithm::SlidingCounter => self.window_quota(Algorithm::SlidingCounter),
            schema::Algorithm::Distinct => self.distinct_quota(),
            schema::Algorithm::FixedWindow => {
                let schedule = self.schedule()?;
                self.window_quota(Algorithm::FixedWindow(schedule))
            }
        }
    }

    fn distinct_quota(&mut self) -> Option<Quota> {
        let written = self.written;
        if written.of.is_absent() {
            self.missing("of", "the entries whose different values are counted, such as [\"account\"]");
        }
        *self.of = entries(written.of.items(), "but the list already has this entry", self.problems, |_, _, _| {});
        let of: Vec<String> = self.of.iter().map(|part| part.entry.clone()).collect();
        written.of.get()?;
        self.window_quota(Algorithm::Distinct { of })
    }

    fn bucket_quota(&mut self) -> Option<Quota> {
        let written = self.written;
        let max_debt = written.max_debt.copied().map(|debt| debt.0);
        let burst = written.burst.copied().map(u32::from);
        if let Some(rate) = written.rate_per_second.get() {
            let windows = [written.limit.location(), written.window.location(), written.window_seconds.location()];
            if let Some(other) = windows.into_iter().flatten().next() {
                self.problems
                    .refuse(other, "but rate_per_second is given too; expected a rate, or a limit and a window");
                return None;
            }
            if rate.0 > f64::from(u32::MAX) {
                self.problems.refuse(&rate.location, format!("expected at most {}", u32::MAX));
                return None;
            }
            let (limit, window) = fraction(rate.value);
            // A tenth of a second: any second then admits at most a tenth more than the number says.
            let burst = burst.unwrap_or((rate.0 / 10.0).max(1.0) as u32);
            let algorithm = Algorithm::TokenBucket { burst: Some(burst), max_debt };
            return self.build_quota(limit, window, algorithm, &rate.location);
        }
        if !written.rate_per_second.is_absent() {
            return None;
        }
        // rate-sync has token buckets that limit only concurrency.
        if !self.has_window() && !written.max_concurrent.is_absent() {
            return None;
        }
        self.window_quota(Algorithm::TokenBucket { burst, max_debt })
    }

    fn schedule(&mut self) -> Option<Schedule> {
        let written = self.written;
        let Some(calendar) = written.calendar.get() else {
            if !written.calendar.is_absent() {
                return None;
            }
            if let Some(zone) = written.timezone.get() {
                self.problems.refuse(&zone.location, "which needs calendar: other windows have no time zone");
            }
            return match written.alignment.get() {
                Some(Located { value: schema::Alignment::FirstHit, .. }) => Some(Schedule::FirstHit),
                Some(Located { value: schema::Alignment::Epoch, .. }) | None => Some(Schedule::Epoch),
            };
        };
        if let Some(alignment) = written.alignment.get() {
            self.problems.refuse(&alignment.location, "but calendar is given too; expected one of them");
        }
        let zone = match written.timezone.get() {
            None => TimeZone::UTC,
            Some(name) => match TimeZone::get(name) {
                Ok(zone) => zone,
                Err(_) => {
                    let names: Vec<String> = jiff::tz::db().available().map(|name| name.to_string()).collect();
                    let near = nearest(name, names.iter().map(String::as_str));
                    let near = near.map_or(String::new(), |name| format!("; did you mean {name:?}?"));
                    self.problems
                        .refuse(&name.location, format!("expected a time zone such as \"Europe/Berlin\"{near}"));
                    return None;
                }
            },
        };
        let unit = match calendar.value {
            schema::Calendar::Hour => CalendarUnit::Hour,
            schema::Calendar::Day => CalendarUnit::Day,
            schema::Calendar::Week => CalendarUnit::Week,
            schema::Calendar::Month => CalendarUnit::Month,
            schema::Calendar::Year => CalendarUnit::Year,
        };
        Some(Schedule::Calendar(Calendar::of(unit, &zone)))
    }

    /// The quota of a `limit` in a window, which is given as a duration, in seconds or by a calendar.
    fn window_quota(&mut self, algorithm: Algorithm) -> Option<Quota> {
        let written = self.written;
        if written.limit.is_absent() {
            self.missing("limit", "a whole number more than zero");
        }
        let window = self.window_length(&algorithm);
        let limit = written.limit.get()?;
        let (window, location) = window?;
        let location = location.unwrap_or(&limit.location);
        self.build_quota(u32::from(limit.value), window, algorithm, location)
    }

    /// The window, and its location if it is given.
    fn window_length(&mut self, algorithm: &Algorithm) -> Option<(Duration, Option<&'a Location>)> {
        let written = self.written;
        if let (Some(window), Some(seconds)) = (written.window.get(), written.window_seconds.get()) {
            self.problems.refuse(
                &seconds.location,
                format!("but window is {} too; expected one of them", window.location.shown),
            );
        }
        let given = written.window.get().map(|window| (window.0, Some(&window.location)));
        let given = given.or_else(|| written.window_seconds.get().map(|seconds| (seconds.0, Some(&seconds.location))));
        if let Algorithm::FixedWindow(Schedule::Calendar(calendar)) = algorithm {
            if let Some((_, Some(location))) = given {
                self.problems.refuse(location, "but calendar is given too; expected one of them");
            }
            return Some((calendar.unit.nominal_length(), None));
        }
        if given.is_none() && written.window.is_absent() && written.window_seconds.is_absent() {
            let calendar = if matches!(algorithm, Algorithm::FixedWindow(_)) { ", or a calendar" } else { "" };
            self.missing("window", &format!("a duration such as \"1m\"{calendar}"));
        }
        given
    }

    /// Builds a quota. Reports at `location`, or at a more specific key, if it cannot be counted.
    fn build_quota(
        &mut self,
        limit: u32,
        window: Duration,
        algorithm: Algorithm,
        location: &Location,
    ) -> Option<Quota> {
        let written = self.written;
        let error = match Quota::new(limit, window, algorithm) {
            Ok(quota) => return Some(quota),
            Err(error) => error,
        };
        let numbers = written.burst.location().or(written.limit.location()).unwrap_or(location);
        let location = match error {
            SpecError::Zero | SpecError::WindowTooLong => location,
            SpecError::LogTooLarge | SpecError::TooManyValues => written.limit.location().unwrap_or(location),
            SpecError::NoEntry => written.of.location().unwrap_or(location),
            SpecError::Rate(_) => numbers,
        };
        let reason = match error {
            SpecError::Rate(0) => {
                "a bucket cannot represent so slow a rate within 1 %; expected a shorter window".to_owned()
            }
            error => error.to_string(),
        };
        self.problems.refuse(location, reason);
        None
    }
}

/// Converts a rate per second to a limit and a window: the shortest window, in whole seconds up to an hour, that
/// represents the rate within one in a million. If there is none, a rate up to 1 gets the window of one unit, and a
/// faster one the nearest limit in an hour.
fn fraction(rate: Positive) -> (u32, Duration) {
    const HOUR: u32 = 3_600;
    for seconds in 1..=HOUR {
        let units = rate.0 * f64::from(seconds);
        let whole = units.round();
        if whole >= 1.0 && whole <= f64::from(u32::MAX) && (units - whole).abs() <= whole * 1e-6 {
            return (whole as u32, Duration::from_secs(u64::from(seconds)));
        }
    }
    if rate.0 <= 1.0 {
        return (1, Duration::try_from_secs_f64(1.0 / rate.0).unwrap_or(Duration::MAX));
    }
    let seconds = HOUR.min((f64::from(u32::MAX) / rate.0) as u32).max(1);
    ((rate.0 * f64::from(seconds)).round() as u32, Duration::from_secs(u64::from(seconds)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_becomes_the_fraction_of_its_decimal_digits() {
        let cases = [
            (10.0, 10, 1_000_000),
            (0.5, 1, 2_000_000),
            (2.5, 5, 2_000_000),
            (0.016_666_666, 1, 60_000_000),
            (33.333_333_33, 100, 3_000_000),
            (0.0001, 1, 10_000_000_000),
            (1e6, 1_000_000, 1_000_000),
        ];
        for (rate, limit, micros) in cases {
            let (found, window) = fraction(Positive(rate));
            assert_eq!((found, window.as_micros()), (limit, micros), "{rate}");
        }
    }

    #[test]
    fn every_rate_is_met_within_one_percent() {
        for step in 1..2_000_u32 {
            let rate = f64::from(step).powf(2.7) * 1e-4;
            let (limit, window) = fraction(Positive(rate));
            let met = f64::from(limit) / window.as_secs_f64();
            assert!((met - rate).abs() <= rate * 0.01, "{rate} became {limit} in {window:?}");
        }
    }
}
