use super::*;
use crate::limiter::{BucketLevel, Grants};

fn bucket(level: u64, at: Timestamp) -> State {
    State::Bucket(BucketLevel { level, at, unit: 1 })
}

/// Tables of a few to a few thousand entries, many of them around the end of the table. After every insertion, sweep or
/// shrink each counter is found with its state.
#[test]
fn a_table_resized_in_place_loses_no_counter() {
    let start = Timestamp::from_secs(1_800_000_000);
    let outcome =
        |reset| Outcome { passes: true, limit: 1000, remaining: 999, reset, retry_after: None, charged: 0, held: 0 };
    let mut random = 1_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut past_reserve = false;
    for round in 0..200 {
        // The share of a shard is so small that large tables and many logs exceed the reserved entries.
        let mut shard = Shard::new(Arc::new(BytePool::new(1 << 20, 32)), usize::MAX, 1);
        let mut held: Vec<(CounterName, u64, u64)> = Vec::new();
        let mut now = start;
        for step in 1..=9_u64 {
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
                    _ => (shard.overflow.log_growth(None, step as u32, 1000), State::Grants(grants)),
                };
                assert!(shard.make_room(Growth { counters: 1, ..growth }, &name, &[], now));
                assert!(shard.bytes() + growth.heap_bytes <= shard.allowance);
                shard.put(&name, None, state, &outcome(seconds * 1_000_000), outcome(seconds * 1_000_000).reset, now);
                held.push((name, step, now.micros() / 1_000_000 + seconds));
            }
            if next() % 2 == 0 {
                now = now.plus(next() % 60 * 1_000_000);
                shard.sweep(now);
                held.retain(|(.., until)| *until > now.micros() / 1_000_000);
            }
            if next() % 4 == 0 {
                shard.table.shrink(capacity_for(shard.len()));
            }
            assert_eq!(shard.evictions, 0, "there is room for all counters");
            assert_eq!(shard.len(), held.len(), "round {round}");
            for (name, level, _) in &held {
                let index = shard.find(name).unwrap_or_else(|| panic!("{name:?} is lost in round {round}"));
                let entry = &shard.table[index];
                let found = match shard.overflow.snapshot_value(entry) {
                    SnapshotValue::Grants(grants) => grants.count() as u64,
                    _ => entry.words[0],
                };
                assert_eq!(found, *level);
            }
            past_reserve |= shard.table.capacity() > shard.reserved_entries()
                && shard.overflow.allotted_logs() > shard.reserved_entries();
        }
    }
    assert!(past_reserve);
}

/// A log gains and loses grants, so that it moves from its entry to the slab and back several times. The reserved growth
/// is enough, and nothing is left in the slab.
#[test]
fn a_log_moves_between_its_entry_and_the_slab_with_all_its_grants() {
    let start = Timestamp::from_secs(1_800_000_000);
    let outcome =
        Outcome { passes: true, limit: 1000, remaining: 9, reset: 60_000_000, retry_after: None, charged: 0, held: 0 };
    let mut shard = Shard::new(Arc::new(BytePool::new(1 << 20, 1)), usize::MAX, 1);
    let name = CounterName([7, 7]);
    let mut expected: Vec<Timestamp> = Vec::new();
    let steps =
        [(1, 0), (2, 0), (0, 1), (1, 0), (1, 0), (5, 0), (0, 6), (0, 0), (1, 3), (9, 0), (0, 8), (4, 0), (0, 5)];
    for (step, (added, removed)) in steps.into_iter().enumerate() {
        let now = start.plus(step as u64);
        let index = shard.find(&name);
        let held = index.map(|index| &shard.table[index]);
        let growth = Growth { counters: usize::from(index.is_none()), ..shard.overflow.log_growth(held, added, 1000) };
        assert!(shard.make_room(growth, &name, &[name], now));
        let allowed = shard.bytes() + growth.heap_bytes;
        let index = shard.find(&name);
        let mut grants = match shard.take(index) {
            State::Grants(grants) => grants,
            _ => Grants::default(),
        };
        assert_eq!(grants.moments().collect::<Vec<_>>(), expected, "before step {step}");
        expected.drain(..removed);
        expected.extend((0..added).map(|_| now));
        let same = (added, removed) == (0, 0);
        grants.refill(expected.iter().copied());
        match same {
            true => shard.put_back(index, State::Grants(grants)),
            false => shard.put(&name, index, State::Grants(grants), &outcome, outcome.reset, now),
        }
        assert!(shard.bytes() <= allowed, "step {step}: {} of {allowed} bytes", shard.bytes());
        let (copies, copied) = std::sync::mpsc::channel();
        shard.pending_snapshot = Some(copies);
        shard.copy_to_snapshot();
        assert!(!copied.recv().expect("it is copied").is_empty());
    }
    assert_eq!(expected.len(), 1);
    assert!(shard.forget(&name));
    assert_eq!((shard.len(), shard.overflow.logs()), (0, 0), "nothing is left in the overflow");
}

/// The growth of an inline log is computed as that of a new log, so a log that was taken out of an entry must have the
/// allocation of a new one.
#[test]
fn a_log_taken_out_of_its_entry_grows_like_a_new_one() {
    let now = Timestamp::from_secs(1_800_000_000);
    let mut overflow = Overflow::default();
    for count in [1, 3, 4, 5, 8, 100] {
        let mut grants = Grants::restore(vec![now; count]).expect("they are in order");
        grants.refill([now]);
        let (kind, words) = overflow.pack(State::Grants(grants), None);
        let entry = TableEntry {
            name: CounterName([7, 7]),
            words,
            expires_secs: 0,
            exhausted_for: CoarseSeconds::of(0),
            used_share: 0,
            kind,
        };
        let State::Grants(taken) = overflow.take(&entry) else { panic!("it is a log") };
        assert_eq!(taken.heap_bytes(), Grants::default().growth(1, 1000), "after a log of {count} grants");
    }
}

/// A full table of counters of two sizes, in which each new counter evicts one with a small used share.
#[test]
fn a_full_table_seldom_grows_or_shrinks() {
    let now = Timestamp::from_secs(1_800_000_000);
    let mut shard = Shard::new(Arc::new(BytePool::new(1 << 20, 1)), usize::MAX, 1);
    let mut name = 0_u64;
    let mut resized = 0;
    for number in 0..40_000 {
        name = name.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let grants = Grants::restore(vec![now; 4]).expect("they are in order");
        let (growth, state, remaining) = match number % 10 {
            0 => (Growth { counters: 1, ..Growth::default() }, bucket(1, now), 999),
            _ => {
                let growth = Growth { counters: 1, ..shard.overflow.log_growth(None, 4, 1000) };
                (growth, State::Grants(grants), 800)
            }
        };
        let outcome =
            Outcome { passes: true, limit: 1000, remaining, reset: 60_000_000, retry_after: None, charged: 0, held: 0 };
        let before = shard.table.capacity();
        let counter = CounterName([name, name]);
        assert!(shard.make_room(growth, &counter, &[], now));
        resized += u32::from(number >= 20_000 && shard.table.capacity() != before);
        shard.put(&counter, None, state, &outcome, outcome.reset, now);
    }
    assert!(shard.evictions > 10_000, "it is full: {} evictions", shard.evictions);
    assert!(resized < 100, "{resized} resizes for 20 000 counters");
}
