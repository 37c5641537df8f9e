use super::*;
use crate::limiter::BucketLevel;

fn bucket(level: u64, at: Timestamp) -> State {
    State::Bucket(BucketLevel { level, at, unit: 1 })
}

/// Tables of a few to a few thousand places, whose counters lie around the end as often as anywhere else: whatever is
/// added, swept or shrunk, each counter is found with what it holds.
#[test]
fn a_table_that_grows_and_shrinks_where_it_is_loses_nobody() {
    let start = Timestamp::from_secs(1_800_000_000);
    let outcome = |reset| Outcome { passes: true, limit: 1000, remaining: 999, reset, retry_after: None };
    let mut random = 1_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut past_reserve = false;
    for round in 0..200 {
        // So small a share that large tables and many logs come to more than is reserved for them.
        let mut slots = Slots::new(Arc::new(Pool::new(1 << 20, 32)), usize::MAX, 1);
        let mut held: Vec<(CounterName, u64, u64)> = Vec::new();
        let mut now = start;
        for step in 1..=6_u64 {
            for _ in 0..next() % (4 << (round % 9)) {
                // Many near both ends of the table, where runs are long.
                let first = match next() % 4 {
                    0 => next() % (u64::MAX >> 8),
                    1 => u64::MAX - next() % (u64::MAX >> 8),
                    _ => next(),
                };
                let (name, seconds) = (CounterName([first, next()]), next() % 60);
                let grants = Grants::restore(vec![now; step as usize]).expect("they are in order");
                let (growth, state) = match next() % 2 {
                    0 => (Growth::default(), bucket(step, now)),
                    _ => (Growth { logs: 1, heap: grants.heap_bytes(), ..Growth::default() }, State::Grants(grants)),
                };
                assert!(slots.make_room(Growth { counters: 1, ..growth }, &name, &[], now));
                assert!(slots.bytes() + growth.heap <= slots.allowance);
                slots.put(&name, None, state, &outcome(seconds * 1_000_000), now);
                held.push((name, step, now.micros() / 1_000_000 + seconds));
            }
            if next() % 2 == 0 {
                now = now.plus(next() % 60 * 1_000_000);
                slots.sweep(now);
                held.retain(|(.., until)| *until > now.micros() / 1_000_000);
            }
            if next() % 4 == 0 {
                slots.table.shrink(places(slots.len()));
            }
            assert_eq!(slots.evictions, 0, "there is room for all");
            assert_eq!(slots.len(), held.len(), "round {round}");
            for (name, level, _) in &held {
                let place = slots.find(name).unwrap_or_else(|| panic!("{name:?} is lost in round {round}"));
                let slot = &slots.table[place];
                let kept = match slot.kind {
                    Kind::Grants => slots.beside.grants(slot).moments().count() as u64,
                    _ => slot.words[0],
                };
                assert_eq!(kept, *level);
            }
            past_reserve |= slots.table.places() > slots.reserved() && slots.beside.room_for_logs() > slots.reserved();
        }
    }
    assert!(past_reserve);
}

/// A full table of counters of two sizes, where each new one takes the place of whichever is used least.
#[test]
fn a_table_at_its_bound_seldom_grows_or_shrinks() {
    let now = Timestamp::from_secs(1_800_000_000);
    let mut slots = Slots::new(Arc::new(Pool::new(1 << 20, 1)), usize::MAX, 1);
    let mut name = 0_u64;
    let mut resized = 0;
    for number in 0..40_000 {
        name = name.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let grants = Grants::restore(vec![now]).expect("one is in order");
        let (growth, state, remaining) = match number % 10 {
            0 => (Growth { counters: 1, ..Growth::default() }, bucket(1, now), 999),
            _ => {
                let growth = Growth { counters: 1, logs: 1, heap: grants.heap_bytes(), ..Growth::default() };
                (growth, State::Grants(grants), 800)
            }
        };
        let outcome = Outcome { passes: true, limit: 1000, remaining, reset: 60_000_000, retry_after: None };
        let before = slots.table.places();
        let counter = CounterName([name, name]);
        assert!(slots.make_room(growth, &counter, &[], now));
        resized += u32::from(number >= 20_000 && slots.table.places() != before);
        slots.put(&counter, None, state, &outcome, now);
    }
    assert!(slots.evictions > 10_000, "it is full: {} went", slots.evictions);
    assert!(resized < 100, "{resized} times for 20 000 counters");
}
