//! The content of the memory store, and which counters it evicts when it is full (semantics 30).

use tollgate::clock::Timestamp;
use tollgate::limiter::{
    Alignment, Concurrency, FixedWindow, LeaseId, LeaseStatus, Limit, MAX_SLOTS, OnStoreError, SlidingCounter,
    SlidingWindow, TokenBucket,
};
use tollgate::plan::{Applied, Charges, Check, CounterName, Fault, LeaseAction, LeaseChange, Needs, Plan};
use tollgate::store::{MemorySettings, MemoryStores};

const SECOND: u64 = 1_000_000;
const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);

/// The counter names of a flood: all different, distributed like hashes.
fn name(number: u64) -> CounterName {
    let mut mixed = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut mix = || {
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        mixed
    };
    CounterName([mix(), mix()])
}

const VICTIM: CounterName = CounterName([1, 2]);
const BYSTANDER: CounterName = CounterName([3, 4]);

fn window(limit: u32) -> Limit {
    Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::Epoch(3_600 * SECOND) })
}

fn log(limit: u32) -> Limit {
    Limit::SlidingWindow(SlidingWindow { limit, window: 3_600 * SECOND })
}

fn slots(max: u32) -> Limit {
    Limit::Concurrency(Concurrency { max, lease: 3_600 * SECOND })
}

fn bucket(limit: u32) -> Limit {
    Limit::TokenBucket(TokenBucket::new(limit.into(), 3_600 * SECOND, limit, 0).expect("it can be held"))
}

fn pair(limit: u32) -> Limit {
    Limit::SlidingCounter(SlidingCounter { limit, window: 3_600 * SECOND })
}

fn check(counter: CounterName, limit: Limit, cost: u32) -> Check {
    Check::charge(counter, limit, cost)
}

fn plan(lease: u64, checks: impl IntoIterator<Item = Check>) -> Plan {
    Plan { lease: LeaseId(lease.into()), ..Plan::of(checks) }
}

/// A check that charges nothing.
fn peek(counter: CounterName, limit: Limit) -> Check {
    Check {
        needs: Needs { one_left: true, ..Needs::default() },
        charges: Charges::default(),
        ..check(counter, limit, 0)
    }
}

/// A memory store with a limit of bytes or keys.
struct Small {
    memory: MemoryStores,
    settings: MemorySettings,
    applied_plans: u64,
}

impl Small {
    fn bytes(max_memory: usize) -> Self {
        Self::new(MemorySettings { max_memory, max_keys: None })
    }

    fn keys(max_keys: usize) -> Self {
        Self::new(MemorySettings { max_keys: Some(max_keys), ..MemorySettings::default() })
    }

    fn new(settings: MemorySettings) -> Self {
        Self { memory: MemoryStores::new(&[settings]), settings, applied_plans: 0 }
    }

    fn apply(&mut self, checks: impl IntoIterator<Item = Check>, now: Timestamp) -> Applied {
        self.applied_plans += 1;
        let applied = self.memory.apply(&plan(self.applied_plans, checks), now);
        self.stays_within();
        applied
    }

    fn stays_within(&self) {
        let usage = self.memory.usage()[0];
        let MemorySettings { max_memory, max_keys } = self.settings;
        assert!(usage.bytes <= max_memory, "{} bytes of {max_memory} after {} plans", usage.bytes, self.applied_plans);
        assert!(max_keys.is_none_or(|keys| usage.keys <= keys), "{} keys of {max_keys:?}", usage.keys);
    }

    /// The units left of a counter, by a peek.
    fn left(&mut self, counter: CounterName, limit: Limit) -> u32 {
        self.apply([peek(counter, limit)], NOW).answers[0].expect("a peek needs no room").remaining
    }
}

#[test]
fn semantics_30_a_flood_of_keys_erases_neither_the_attacked_account_nor_one_that_is_used_more() {
    for limit in [window(5), log(5), bucket(5), pair(5)] {
        for mut store in [Small::bytes(64 << 10), Small::bytes(600 << 10), Small::keys(500), Small::keys(5_000)] {
            for _ in 0..6 {
                store.apply([check(VICTIM, limit, 1)], NOW);
            }
            for _ in 0..3 {
                store.apply([check(BYSTANDER, limit, 1)], NOW);
            }
            for number in 0..30_000 {
                store.apply([check(name(number), limit, 1)], NOW);
            }
            assert!(store.memory.usage()[0].evictions > 0, "the flood did not fill the store");
            assert_eq!(store.left(VICTIM, limit), 0, "{limit:?}");
            assert_eq!(store.left(BYSTANDER, limit), 2, "{limit:?}");
        }
    }
}

#[test]
fn semantics_30_a_flood_through_an_attacked_account_does_not_free_it() {
    // Each request charges an address of its own and the attacked account, which refuses.
    let mut store = Small::bytes(64 << 10);
    for number in 0..20_000 {
        let applied = store.apply([check(name(number), window(30), 1), check(VICTIM, window(5), 1)], NOW);
        assert_eq!(applied.admitted, number < 5);
    }
}

#[test]
fn semantics_30_an_account_under_attack_has_its_limit_in_each_window_of_a_flood_and_no_more() {
    let five = Limit::SlidingWindow(SlidingWindow { limit: 5, window: 300 * SECOND });
    let mut store = Small::bytes(64 << 10);
    let mut admitted = Vec::new();
    for number in 0..30_000 {
        let now = NOW.plus(number * SECOND / 20);
        // The attacker's addresses are all different, and most requests are for other accounts.
        let account = if number % 10 == 0 { VICTIM } else { name(number) };
        let applied = store.apply([check(name(1 << 40 | number), window(30), 1), check(account, five, 1)], now);
        if applied.admitted && account == VICTIM {
            admitted.push(now);
        }
        if number % 100 == 0 {
            store.memory.sweep(now);
        }
    }
    assert!(store.memory.usage()[0].evictions > 0, "the flood did not fill the store");
    assert_eq!(admitted.len(), 5 * 5, "1500 seconds are five windows");
    assert!(admitted.windows(6).all(|six| six[5] - six[0] >= 300 * SECOND), "never six in a window");
}

#[test]
fn semantics_30_debts_rank_as_exhausted() {
    let owing = Limit::TokenBucket(TokenBucket::new(5, 3_600 * SECOND, 5, 100).expect("it can be held"));
    let mut store = Small::keys(100);
    let whole = Check { needs: Needs { one_left: true, ..Needs::default() }, ..check(VICTIM, owing, 50) };
    store.apply([whole], NOW);
    for number in 0..5_000 {
        store.apply([check(name(number), owing, 4)], NOW);
    }
    assert_eq!(store.left(VICTIM, owing), 0);
}

/// Weaknesses R15, A8: every identity is stored for ever.
#[test]
fn semantics_30_every_kind_of_counter_stays_within_the_bytes() {
    let kinds = [window(5), log(3), log(200), bucket(9), pair(7), slots(4)];
    for max_memory in [0, 1_000, 20_000, 64 << 10, 300 << 10, 1 << 20] {
        let mut store = Small::bytes(max_memory);
        for number in 0..20_000_u64 {
            let kind = |shift: u64| kinds[(name(number).0[1] >> shift) as usize % kinds.len()];
            let cost = |limit: Limit| match limit {
                Limit::SlidingWindow(SlidingWindow { limit: 200, .. }) => 1 + (number % 90) as u32,
                _ => 1,
            };
            // Some keys are new and some are repeated.
            let (first, second) = (name(number), name(1 << 40 | (number % 700)));
            let counters = [(first, kind(0)), (second, kinds[(number % 700) as usize % kinds.len()])];
            store.apply(counters.map(|(counter, limit)| check(counter, limit, cost(limit))), NOW.plus(number * 40_000));
        }
    }
}

#[test]
fn logs_that_grow_stay_within_the_bytes() {
    for max_memory in [20_000, 100_000, 300_000] {
        let mut store = Small::bytes(max_memory);
        for number in 0..20_000 {
            store.apply([check(name(number % 7), log(10_000), 3)], NOW.plus(number));
        }
    }
}

#[test]
fn leases_that_pile_up_on_one_counter_stay_within_the_bytes() {
    let mut store = Small::bytes(50_000);
    let admitted = (0..3_000).filter(|_| store.apply([check(VICTIM, slots(100_000), 1)], NOW).admitted).count();
    assert!((500..3_000).contains(&admitted), "{admitted} leases of 48 bytes in 50 000");
}

#[test]
fn keys_that_expire_and_come_back_stay_within_the_bytes() {
    let mut store = Small::bytes(64 << 10);
    let brief = Limit::FixedWindow(FixedWindow { limit: 2, alignment: Alignment::FirstHit(SECOND) });
    for number in 0..40_000 {
        let now = NOW.plus(number * 2_000);
        assert!(store.apply([check(name(number), brief, 1)], now).admitted);
        if number % 5_000 == 0 {
            store.memory.sweep(now);
            store.stays_within();
        }
    }
}

#[test]
fn a_store_full_of_busy_keys_still_uses_most_of_its_bytes() {
    let mut store = Small::bytes(1 << 20);
    for number in 0..100_000 {
        store.apply([check(name(number), window(5), 1)], NOW);
    }
    let usage = store.memory.usage()[0];
    assert!(usage.bytes > (1 << 20) * 7 / 10, "{} bytes are used of {}", usage.bytes, 1 << 20);
    assert!(usage.bytes / usage.keys <= 64, "{} bytes a key", usage.bytes / usage.keys);
}

#[test]
fn semantics_30_leases_are_never_evicted_and_the_policy_answers_when_nothing_can_go() {
    // When bytes run out, there may still be room for a count, but not for a lease.
    let short_of_keys = [slots(2), window(5), log(5), bucket(5), pair(5)];
    for (mut store, limits) in [(Small::keys(50), &short_of_keys[..]), (Small::bytes(20_000), &short_of_keys[..1])] {
        let taken = (0..500).take_while(|&number| store.apply([check(name(number), slots(2), 1)], NOW).admitted);
        let taken = taken.count() as u64;
        assert!((50..400).contains(&taken), "{taken} leases");
        for (policy, admitted) in
            [(OnStoreError::Local, false), (OnStoreError::Deny, false), (OnStoreError::Allow, true)]
        {
            for &limit in limits {
                let one_more = Check { on_store_error: policy, ..check(name(9_999), limit, 1) };
                let applied = store.apply([one_more], NOW);
                assert_eq!(applied.answers.as_slice(), [Err(Fault::Full)], "{policy:?}");
                assert_eq!(applied.admitted, admitted, "{policy:?}");
            }
        }
        for number in 0..taken {
            assert_eq!(store.left(name(number), slots(2)), 1, "every lease is still held");
        }

        let release = |number: u64| LeaseChange {
            counter: name(number),
            store: 0,
            lease: LeaseId((number + 1).into()),
            action: LeaseAction::Release,
        };
        let plan = Plan { changes: (0..2).map(release).collect(), ..Plan::default() };
        assert_eq!(store.memory.apply(&plan, NOW).statuses.as_slice(), [LeaseStatus::Done; 2]);
        assert!(store.apply([check(name(9_999), window(5), 1)], NOW).admitted, "what was given back is room");
    }
}

#[test]
fn semantics_30_counters_with_nothing_left_go_last() {
    let mut store = Small::keys(100);
    for number in 0..50 {
        assert!(store.apply([check(name(number), window(1), 1)], NOW).admitted);
        assert!(store.apply([check(name(1_000 + number), window(50), 49)], NOW).admitted);
    }
    for number in 2_000..2_050 {
        assert!(store.apply([check(name(number), window(1), 1)], NOW).admitted, "those with something left go");
    }
    assert!((0..50).all(|number| store.left(name(number), window(1)) == 0), "none with nothing left went");
    assert!(
        store.apply([check(name(3_000), window(1), 1)], NOW).admitted,
        "where nothing else can go, one of them does"
    );
    let left: u32 = (0..50).map(|number| store.left(name(number), window(1))).sum();
    assert!(left <= 1, "{left} went for one");
}

/// A bucket that is empty, and one in debt, keep their rank until they have a unit again.
#[test]
fn semantics_30_a_bucket_ranks_as_exhausted_until_it_has_a_unit_again() {
    let slow = Limit::TokenBucket(TokenBucket::new(1, 12 * SECOND, 1, 0).expect("it can be held"));
    let owing = Limit::TokenBucket(TokenBucket::new(1, 12 * SECOND, 1, 3).expect("it can be held"));
    let flood = Limit::TokenBucket(TokenBucket::new(10, 3_600 * SECOND, 10, 0).expect("it can be held"));
    for (limit, cost, free_after) in [(slow, 1, 12), (owing, 4, 48)] {
        let whole = Check { needs: Needs { one_left: true, ..Needs::default() }, ..check(VICTIM, limit, cost) };
        for after in [1, 7, free_after / 2, free_after - 1] {
            let mut store = Small::keys(16);
            assert!(store.apply([whole], NOW).admitted);
            let now = NOW.plus(after * SECOND);
            for number in 0..200 {
                store.apply([check(name(number), flood, 6)], now);
            }
            assert!(!store.apply([check(VICTIM, limit, 1)], now).admitted, "{limit:?} after {after} s");
        }
        let mut store = Small::keys(16);
        store.apply([whole], NOW);
        assert!(store.apply([check(VICTIM, limit, 1)], NOW.plus(free_after * SECOND)).admitted, "{limit:?}");
    }
}

/// An account that keeps trying, among counters that were used up once and last longer.
#[test]
fn semantics_30_a_counter_that_has_refused_outlasts_those_that_were_used_up_once() {
    let account = Limit::SlidingWindow(SlidingWindow { limit: 3, window: 30 * SECOND });
    let daily = Limit::FixedWindow(FixedWindow { limit: 1, alignment: Alignment::FirstHit(86_400 * SECOND) });
    for limit in [account, window(3), bucket(3), pair(3)] {
        let mut store = Small::keys(16);
        for _ in 0..4 {
            store.apply([check(VICTIM, limit, 1)], NOW);
        }
        for number in 0..60 {
            store.apply([check(name(number), daily, 1)], NOW);
            assert!(!store.apply([check(VICTIM, limit, 1)], NOW).admitted, "{limit:?} after {number}");
        }
    }
}

/// An account that has used its three tries and has not been refused yet.
#[test]
fn semantics_30_a_counter_that_several_requests_used_up_outlasts_those_that_one_did() {
    let account = Limit::SlidingWindow(SlidingWindow { limit: 3, window: 30 * SECOND });
    let daily = |limit| Limit::FixedWindow(FixedWindow { limit, alignment: Alignment::FirstHit(86_400 * SECOND) });
    for limit in [account, window(3), bucket(3), pair(3)] {
        for (flood, units) in [(daily(1), 1), (daily(5), 5)] {
            let mut store = Small::keys(16);
            for _ in 0..3 {
                assert!(store.apply([check(VICTIM, limit, 1)], NOW).admitted);
            }
            for number in 0..60 {
                store.apply([check(name(number), flood, units)], NOW);
            }
            assert!(!store.apply([check(VICTIM, limit, 1)], NOW).admitted, "{limit:?}");
        }
    }
}

/// Logs of every size are created, charged several units at a time, forgotten and created again.
#[test]
fn semantics_30_logs_that_grow_and_shrink_in_a_full_store_stay_within_its_bytes() {
    let mut store = Small::bytes(1 << 20);
    let mut now = NOW;
    for number in 0..120_000_u64 {
        let CounterName([draw, another]) = name(number);
        let key = draw % 30_000;
        let (limit, units) = (1 + (key % 13) as u32, 1 + (another % 5) as u32);
        let limit = Limit::SlidingWindow(SlidingWindow { limit, window: SECOND });
        store.apply([check(name(1 << 40 | key), limit, units)], now);
        now = now.plus(another % 60);
    }
    let usage = store.memory.usage()[0];
    assert!(usage.evictions > 10_000, "it was full: {} went", usage.evictions);
}

#[test]
fn a_bucket_that_has_drained_goes_before_one_that_has_not() {
    let mut store = Small::keys(64);
    for number in 0..32 {
        store.apply([check(name(number), bucket(10), 10)], NOW);
    }
    // Half an hour later the first buckets are half full; the new ones are empty.
    let later = NOW.plus(1_800 * SECOND);
    for number in 32..64 {
        store.apply([check(name(number), bucket(10), 10)], later);
    }
    for number in 100..116 {
        assert!(store.apply([check(name(number), bucket(10), 9)], later).admitted);
    }
    let held = |number: u64| store.memory.apply(&plan(0, [peek(name(number), bucket(10))]), later).answers[0];
    let full = (32..64).filter(|&number| held(number).is_ok_and(|outcome| outcome.remaining > 0)).count();
    assert_eq!(full, 0, "none with nothing left went");
}

#[test]
fn one_counter_may_take_as_many_slots_as_can_be_configured() {
    let memory = MemoryStores::new(&[MemorySettings::default()]);
    for lease in 0..u64::from(MAX_SLOTS) {
        assert!(memory.apply(&plan(lease, [check(VICTIM, slots(MAX_SLOTS), 1)]), NOW).admitted, "slot {lease}");
    }
    assert!(!memory.apply(&plan(u64::MAX, [check(VICTIM, slots(MAX_SLOTS), 1)]), NOW).admitted);
}

#[test]
fn logs_stay_while_the_store_has_room_wherever_they_lie() {
    let memory = MemoryStores::new(&[MemorySettings::default()]);
    for number in 0..1_000 {
        assert!(memory.apply(&plan(0, [check(name(number), log(10_000), 9_000)]), NOW).admitted);
    }
    let left = |number| memory.apply(&plan(0, [peek(name(number), log(10_000))]), NOW).answers[0];
    assert!((0..1_000).all(|number| left(number).is_ok_and(|outcome| outcome.remaining == 1_000)));
    assert_eq!(memory.usage()[0].evictions, 0, "72 MB of grants are far from 256 MiB");
}

#[test]
fn a_store_that_is_full_of_small_counters_still_takes_a_large_one() {
    let memory = MemoryStores::new(&[MemorySettings { max_memory: 8 << 20, max_keys: None }]);
    for number in 0..300_000 {
        memory.apply(&plan(0, [check(name(number), window(50), 1)]), NOW);
    }
    for lease in 0..5_000 {
        assert!(memory.apply(&plan(lease, [check(VICTIM, slots(5_000), 1)]), NOW).admitted, "slot {lease}");
    }
    assert!(memory.usage()[0].bytes <= 8 << 20);
}

#[test]
fn semantics_31_where_one_check_finds_no_room_the_others_still_decide() {
    let mut store = Small::keys(50);
    for number in 0..50 {
        store.apply([check(name(number), slots(2), 1)], NOW);
    }
    let nowhere = Check { on_store_error: OnStoreError::Allow, ..check(name(1_000), window(2), 1) };
    let refused = store.apply([nowhere, check(name(3), slots(1), 1)], NOW);
    assert!(!refused.admitted, "a limit that is used up refuses");
    assert_eq!(refused.answers[0], Err(Fault::Full));
    assert!(!refused.answers[1].expect("it is held").passes);
    let strict = Check { on_store_error: OnStoreError::Deny, ..nowhere };
    assert!(!store.apply([strict, check(name(3), slots(2), 1)], NOW).admitted);
    assert!(
        store.apply([nowhere, check(name(3), slots(2), 1)], NOW).admitted,
        "and allow lets pass what it cannot hold"
    );
}

#[test]
fn semantics_30_forgotten_counters_go_before_any_that_count() {
    let mut store = Small::keys(100);
    let brief = Limit::FixedWindow(FixedWindow { limit: 2, alignment: Alignment::FirstHit(SECOND) });
    for number in 0..50 {
        store.apply([check(name(number), brief, 2)], NOW);
        store.apply([check(name(1_000 + number), window(50), 1)], NOW);
    }
    let later = NOW.plus(2 * SECOND);
    store.memory.sweep(later);
    assert_eq!(store.memory.usage()[0].keys, 50);
    for number in 2_000..2_050 {
        assert!(store.apply([check(name(number), window(50), 1)], later).admitted);
    }
    assert_eq!(store.memory.usage()[0].evictions, 0);
    assert_eq!(store.left(name(1_007), window(50)), 49);
}

/// Weaknesses R15, A8: every identity is stored for ever.
#[test]
fn a_sweep_forgets_what_expired_and_gives_memory_back() {
    let mut store = Small::bytes(8 << 20);
    let kinds = [window(5), log(5), bucket(5), pair(5), slots(5)];
    for number in 0..20_000 {
        store.apply([check(name(number), kinds[number as usize % kinds.len()], 1)], NOW);
    }
    let full = store.memory.usage()[0];
    assert_eq!(full.keys, 20_000);
    store.memory.sweep(NOW.plus(SECOND));
    assert_eq!(store.memory.usage()[0].keys, 20_000, "all of it counts still");
    store.memory.sweep(NOW.plus(2 * 3_600 * SECOND));
    let swept = store.memory.usage()[0];
    assert_eq!(swept.keys, 0);
    assert!(swept.bytes < full.bytes / 10, "{} bytes of {}", swept.bytes, full.bytes);
}

#[test]
fn spaces_have_bounds_of_their_own() {
    let small = MemorySettings { max_keys: Some(20), ..MemorySettings::default() };
    let memory = MemoryStores::new(&[small, MemorySettings::default()]);
    for number in 0..1_000 {
        let both = [check(name(number), window(5), 1), Check { store: 1, ..check(name(number), window(5), 1) }];
        assert!(memory.apply(&plan(number, both), NOW).admitted);
    }
    let keys: Vec<usize> = memory.usage().iter().map(|usage| usage.keys).collect();
    assert_eq!(keys, [20, 1_000]);
}

#[test]
fn leases_that_expire_without_a_release_are_counted_once_when_removed() {
    let mut store = Small::bytes(1 << 20);
    let limit = Limit::Concurrency(Concurrency { max: 4, lease: 10 * SECOND });
    let expired = |store: &Small| store.memory.usage()[0].expired_leases;
    let release = |store: &Small, lease, now| {
        let change = LeaseChange { store: 0, counter: name(1), lease: LeaseId(lease), action: LeaseAction::Release };
        store.memory.apply(&Plan { changes: [change].into_iter().collect(), ..Plan::default() }, now).statuses[0]
    };
    // The first counter has the leases 1 to 4, the next 5 to 8, and so on.
    for counter in 1..=3 {
        assert_eq!((0..4).filter(|_| store.apply([check(name(counter), limit, 1)], NOW).admitted).count(), 4);
    }
    assert_eq!(release(&store, 1, NOW), LeaseStatus::Done);
    let late = NOW.plus(11 * SECOND);
    // A late release gets its status, and a peek removes no lease.
    assert_eq!(release(&store, 2, late), LeaseStatus::Expired);
    store.apply([peek(name(1), limit)], late);
    assert_eq!(expired(&store), 0);
    // The next acquire removes the two that are left.
    assert!(store.apply([check(name(1), limit, 1)], late).admitted);
    assert_eq!(expired(&store), 2);
    // Lifting a counter ends its leases.
    assert!(store.memory.forget(0, &name(2)));
    assert_eq!(expired(&store), 2);
    // The sweep removes the leases of counters that are no longer used.
    store.memory.sweep(late);
    assert_eq!(expired(&store), 6);
}
