//! The table of a limiter.

use super::decode::{choice, table};
use super::rule::WrittenKeyEntry;
use super::values::{Amount, List, Positive, Seconds, Span, Switch, Units, Wait};

table! {
    /// A named algorithm with its numbers, its store, and its answer when the store cannot decide. A rate or a window, a number of concurrent requests, or both.
    Limiter {
        /// How units are counted. Optional with `rate_per_second` (token_bucket) and with `max_concurrent` alone (concurrency).
        algorithm: Algorithm,
        [only(WINDOWED)]
        /// Units per window.
        limit: Units,
        [only(WINDOWED)]
        /// The length of the window, such as `1m`.
        window: Span,
        [only(&["distinct"])]
        /// The entries whose different values `distinct` counts, such as `["account"]`: as in a key, names or tables with normalisers. Several count together: two accounts on two devices are up to four values.
        of: List<WrittenKeyEntry>,
        [only(WINDOWED), unprinted("printed as window")]
        /// For rate-sync files: the length of the window in seconds.
        window_seconds: Seconds,
        [only(&["token_bucket"])]
        /// Tokens that a token_bucket holds when full: `limit` by default; with `rate_per_second`, the tokens of a tenth of a second, at least one. In any time t a bucket admits at most burst + rate x t.
        burst: Units,
        [only(&["token_bucket"]), unprinted("printed as limit and window")]
        /// The rate of a token_bucket, instead of `limit` and `window`.
        rate_per_second: Positive,
        /// Requests that hold a slot at the same time.
        max_concurrent: Units,
        /// How long a slot is held if it is not released: `1m` by default.
        lease: Span,
        [only(&["token_bucket"])]
        /// Tokens that a token_bucket may owe. None by default; `limit` where a rule charges `always`; unbounded where a rule overdraws.
        max_debt: Amount,
        /// The answer when the store cannot decide: `local` by default. A memory store cannot when it is full and no counter can be evicted.
        on_store_error: OnStoreError,
        [only(WINDOWED)]
        /// Whether a limit that comes with a request overrides this one. `false` by default.
        overridable as "override": Switch,
        [only(&["fixed_window"])]
        /// Where the windows of a fixed_window start: `epoch` by default.
        alignment: Alignment,
        [only(&["fixed_window"])]
        /// The calendar unit whose windows a fixed_window follows, instead of `window`.
        calendar: Calendar,
        [only(&["fixed_window"])]
        /// The time zone of `calendar`, such as `Europe/Berlin`. UTC by default.
        timezone: String,
        /// The name of the store that keeps the counters. By default the only one, else the one named `main`, else the first.
        store: String,
        /// How long workers wait that do not say `max_wait`: a duration, or a number of seconds as in rate-sync files. Without it they do not wait; 0 says so. At most `server.bounds.max_wait`. Requests at a gateway never wait.
        timeout: Wait,
        /// Whether workers that wait are granted ahead: charged at once, and answered at the moment at which the bucket has their tokens. So they are served in order over all instances, and who does not wait comes behind them. Only for a token_bucket without `max_concurrent`; others queue in each instance. `false` by default.
        wait: Switch,
        /// The most workers that wait for one counter in one instance: 1000 by default. A further one is refused.
        queue: Units,
        /// Whether workers can ask for it by name with any key although no rule applies it. `false` by default; `true` in a rate-sync file.
        direct: Switch,
        [unprinted("printed as on_store_error")]
        /// For rate-sync files: `true` is `on_store_error = "deny"`, `false` is `"allow"`.
        fail_closed: Switch,
    }
}

/// The algorithms that count in windows.
const WINDOWED: &[&str] = &["token_bucket", "sliding_window", "sliding_counter", "fixed_window", "distinct"];

choice! {
    /// How units are counted.
    Algorithm {
        /// Tokens refill steadily; unused ones are held up to `burst`.
        "token_bucket" => TokenBucket,
        /// At most `limit` in any window of that length, exactly; every grant is remembered.
        "sliding_window" => SlidingWindow,
        /// About `limit` in any window, from two counts.
        "sliding_counter" => SlidingCounter,
        /// At most `limit` in each window, from one count.
        "fixed_window" => FixedWindow,
        /// At most `limit` different values of `of` in any window, exactly; every value is remembered, as a hash.
        "distinct" => Distinct,
        /// At most `max_concurrent` at the same time.
        "concurrency" => Concurrency,
    }
}

choice! {
    /// The answer when the store cannot decide.
    OnStoreError {
        /// Admit the request.
        "allow" => Allow,
        /// Refuse the request.
        "deny" => Deny,
        /// Fall back to this process's memory, with the same limiter, until the store is back. If the store is this process's memory, refuse.
        "local" => Local,
    }
}

choice! {
    /// Where windows start.
    Alignment {
        /// At whole multiples of the window since 1970, UTC.
        "epoch" => Epoch,
        /// At the first hit.
        "first_hit" => FirstHit,
    }
}

choice! {
    /// A unit of the calendar.
    Calendar {
        /// From the full hour.
        "hour" => Hour,
        /// From midnight.
        "day" => Day,
        /// From midnight before Monday.
        "week" => Week,
        /// From midnight before the first of the month.
        "month" => Month,
        /// From midnight before the first of January.
        "year" => Year,
    }
}
