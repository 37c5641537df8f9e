//! Any bytes as a sequence of timed requests; admitted units are counted again in the simplest way.
//!
//! ```text
//! four bytes a request    | account: 2 bits, limiter: 2 bits, time: 4 bits | hits | time | time |
//! ```

use std::collections::HashMap;
use std::sync::LazyLock;
use std::time::Duration;

use tollgate::clock::Timestamp;
use tollgate::descriptor::{Descriptor, Hits, Request};

use super::doors::Doors;

const SECOND: u64 = 1_000_000;

/// Numbers of the rules below.
const LIMIT: u64 = 7;
const WINDOW: u64 = 60 * SECOND;
const BURST: u64 = 5;
const REFILL: u64 = 10;
const SLOTS: usize = 2;
const LEASE: u64 = 300 * SECOND;

static DOORS: LazyLock<Doors> = LazyLock::new(|| {
    Doors::open(
        r#"
        [limiters]
        log = { algorithm = "sliding_window", limit = 7, window = "1m" }
        window = { algorithm = "fixed_window", limit = 7, window = "1m" }
        bucket = { algorithm = "token_bucket", limit = 10, window = "1m", burst = 5 }
        slots = { algorithm = "concurrency", max_concurrent = 2, lease = "5m" }
        everybody = { algorithm = "sliding_counter", limit = 7, window = "1m" }

        [[rules]]
        domain = "edge"
        name = "kinds"
        match = { kind = ["log", "window", "bucket", "slots"] }
        apply = [{ limiter = "{kind}", key = ["account"] }]

        [[rules]]
        domain = "edge"
        name = "everybody"
        match = { kind = "bucket" }
        apply = [{ limiter = "everybody", charge = "own" }]
        "#,
    )
});

pub fn run(data: &[u8]) {
    let doors = DOORS.forget();
    let mut admitted: HashMap<(&str, &str), Vec<(Timestamp, u64)>> = HashMap::new();
    for bytes in data.chunks_exact(4) {
        let account = ["a", "b", "A", ""][usize::from(bytes[0] & 3)];
        let kind = ["log", "window", "bucket", "slots"][usize::from(bytes[0] >> 2 & 3)];
        // Mostly less than a second, sometimes minutes.
        let step = u64::from(u16::from_le_bytes([bytes[2], bytes[3]])) << (bytes[0] >> 4);
        doors.advance(Duration::from_micros(step));
        let units = u64::from(bytes[1] % 9);
        let mut descriptor = Descriptor::of([("kind", kind), ("account", account)]);
        descriptor.hits = Hits::of(units, false);
        let request = Request { domain: "edge", descriptors: [descriptor].into_iter().collect() };
        let allowed = doors.decide(&request).allowed();
        let before = admitted.entry((kind, account)).or_default();
        if before.is_empty() && kind != "bucket" {
            assert_eq!(allowed, kind == "slots" || units <= LIMIT, "the first of {kind} has all of its limit");
        }
        // A peek charges nothing.
        if allowed && units > 0 {
            before.push((doors.now(), units));
            match kind {
                "log" => within(before, |last, moment| last - moment < WINDOW, LIMIT),
                "window" => within(before, |last, moment| last.micros() / WINDOW == moment.micros() / WINDOW, LIMIT),
                "slots" => {
                    let held = before.iter().filter(|(moment, _)| doors.now() - *moment < LEASE).count();
                    assert!(held <= SLOTS, "{held} slots are held");
                }
                _ => refilled(before),
            }
        }
    }
}

/// The units that count at the moment of the last request do not exceed the limit.
fn within(admitted: &[(Timestamp, u64)], counts: impl Fn(Timestamp, Timestamp) -> bool, limit: u64) {
    let last = admitted.last().expect("one was admitted").0;
    let counted: u64 = admitted.iter().filter(|(moment, _)| counts(last, *moment)).map(|(_, units)| units).sum();
    assert!(counted <= limit, "{counted} of {limit} were admitted");
}

/// From each request to the last, no more units than the burst and the refill in between.
fn refilled(admitted: &[(Timestamp, u64)]) {
    let last = admitted.last().expect("one was admitted").0;
    let mut taken = 0;
    for (moment, units) in admitted.iter().rev() {
        taken += units;
        let came = (last - *moment) * REFILL / WINDOW + 1;
        assert!(taken <= BURST + came, "{taken} in {} us", last - *moment);
    }
}
