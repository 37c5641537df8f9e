//! Token buckets of several tiers on one counter (semantics 20): what was used under one tier counts for the others, and
//! no sequence of tiers admits more than the largest burst and the highest rate of those that asked.

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use tollgate::descriptor::{Descriptor, Hits};
use tollgate::limiter::Limiter;

use super::world::World;
use crate::support::fixtures::{applies, apply, bucket, quota, secs};
use crate::support::reference::plans::always;

/// The numbers of a tier: tokens per window, the window in milliseconds, and the burst.
type Tier = (u32, u64, u32);

const NAMES: [&str; 3] = ["a", "b", "c"];

fn world(tiers: &[Tier]) -> World {
    let limiter = |(name, &(tokens, millis, burst)): (&str, &Tier)| -> Limiter {
        quota(&format!("api_{name}"), tokens, Duration::from_millis(millis), bucket(Some(burst)))
    };
    let limiters = NAMES.into_iter().zip(tiers).map(limiter).collect();
    World::new(limiters, vec![applies("tiers", [apply("api_{tier}", &["account"])])])
}

fn of(tier: usize) -> [(&'static str, &'static str); 2] {
    [("tier", NAMES[tier]), ("account", "bob")]
}

/// Whether a request with this number of hits passes.
fn passes(world: &World, tier: usize, cost: u32) -> bool {
    world.decide([Descriptor { hits: Hits::Charge(cost), ..Descriptor::of(of(tier)) }]).allowed()
}

fn left(world: &World, tier: usize) -> u32 {
    let decision = world.decide([Descriptor { hits: Hits::Charge(0), ..Descriptor::of(of(tier)) }]);
    decision.tightest().expect("it applies").remaining
}

#[test]
fn semantics_20_a_request_of_a_small_tier_gives_a_large_one_nothing_back() {
    // Case 5: 575 in 3 s where 100 an hour are sold.
    let world = world(&[(100, 3_600_000, 100), (5, 1_000, 5)]);
    assert_eq!(world.admits(200, &of(0)), 100);
    let mut admitted = 100;
    for _ in 0..5 {
        world.wait(Duration::from_millis(600));
        let small = world.admits(2, &of(1));
        let large = world.admits(200, &of(0));
        assert!(large <= 3, "{large} more, where 5 a second drain in 0.6 s");
        admitted += small + large;
    }
    assert!(admitted <= 100 + 5 * 3, "{admitted} in 3 s");
    assert!(admitted > 100, "the small tier is not locked out");
}

#[test]
fn semantics_20_tiers_of_one_rate_and_different_bursts_share_what_was_used() {
    let world = world(&[(60, 60_000, 50), (60, 60_000, 2)]);
    assert_eq!(world.admits(60, &of(0)), 50);
    world.wait(secs(2));
    assert_eq!(world.admits(2, &of(1)), 1, "nothing but what its own bucket refilled, and 48 beyond it");
    assert_eq!(left(&world, 0), 1);
    world.wait(secs(49));
    assert_eq!(left(&world, 0), 50, "empty for all when empty for the one that charged last");
}

#[test]
fn semantics_20_a_bucket_that_is_full_again_counts_as_unused_for_every_tier() {
    // Also with rates that are no whole number of microseconds a token.
    for fast in [(5, 1_000, 5), (3, 1_000, 3), (90, 1_000, 90), (7, 1_000, 7)] {
        for slow in [(10, 120_000, 10), (9, 70_000, 10), (1, 3_600_000, 10)] {
            let world = world(&[fast, slow]);
            assert_eq!(world.admits(200, &of(0)), fast.2 as usize);
            world.wait(Duration::from_micros(999_999));
            assert!(left(&world, 1) < 10, "{fast:?} is not full yet, and {slow:?} counts what it used");
            world.wait(Duration::from_micros(1));
            assert!(passes(&world, 1, 1));
            assert_eq!(left(&world, 1), 9, "{fast:?} is full, asked by {slow:?}");
        }
    }
}

#[test]
fn semantics_11_a_refund_to_a_small_tier_takes_from_all_that_was_used() {
    let world = world(&[(100, 3_600_000, 100), (5, 1_000, 5)]);
    assert_eq!(world.admits(100, &of(0)), 100);
    let refund = |units| Descriptor { hits: Hits::Refund(units), ..Descriptor::of(of(1)) };
    world.decide([refund(4)]);
    assert_eq!((left(&world, 0), left(&world, 1)), (4, 0));
    world.wait(Duration::from_millis(400));
    assert_eq!(left(&world, 1), 2, "a refund locks nobody out who had something left");
    world.decide([refund(5)]);
    assert_eq!(left(&world, 1), 2);
}

/// A step: microseconds before it, the tier that asks, its cost, and how often it asks.
fn steps() -> impl Strategy<Value = Vec<(u64, usize, u32, usize)>> {
    let wait = prop_oneof![3 => Just(0), 3 => 0..300_000_u64, 2 => 0..3_000_000_u64, 1 => 0..90_000_000_u64];
    vec((wait, 0..3_usize, 1..4_u32, 1..30_usize), 60)
}

fn tiers() -> impl Strategy<Value = Vec<Tier>> {
    let tier = prop_oneof![
        (1..200_u32, prop::sample::select(vec![1_000_u64, 60_000, 3_600_000]), 1..120_u32),
        (1..12_u32, prop::sample::select(vec![700_u64, 1_000, 13_000]), 1..12_u32),
    ];
    vec(tier, 3)
}

#[test]
fn semantics_20_no_sequence_of_tiers_admits_more_than_the_largest_burst_and_the_highest_rate() {
    always(400, (tiers(), steps()), |(tiers, steps)| {
        let world = world(&tiers);
        let mut now: u64 = 0;
        // When a tier asked, and what was admitted.
        let mut asked: Vec<(u64, usize, u64)> = Vec::new();
        for (wait, tier, cost, tries) in steps {
            world.wait(Duration::from_micros(wait));
            now += wait;
            let admitted = (0..tries).filter(|_| passes(&world, tier, cost)).count() as u64 * u64::from(cost);
            asked.push((now, tier, admitted));
        }
        for first in 0..asked.len() {
            let (mut burst, mut sum) = (0, 0);
            let mut rates: Vec<(u64, u64)> = Vec::new();
            for &(at, tier, admitted) in &asked[first..] {
                let (tokens, millis, holds) = tiers[tier];
                burst = burst.max(u64::from(holds));
                rates.push((tokens.into(), millis * 1_000));
                sum += admitted;
                let t = at - asked[first].0;
                let refilled = rates.iter().map(|(tokens, window)| tokens * t / window).max().unwrap_or(0);
                assert!(sum <= burst + refilled, "{sum} in {t} us: at most {burst} and {refilled}");
            }
        }
    });
}
