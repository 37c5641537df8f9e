//! The snapshot of a memory store: it preserves all counters at one moment, or none.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tollgate::clock::Timestamp;
use tollgate::limiter::{Algorithm, Concurrency, LeaseId, Limit, Quota, Schedule};
use tollgate::plan::{Check, CounterName, Outcome, Plan};
use tollgate::store::{MemorySettings, MemoryStores, SnapshotError, SnapshotOwner};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

fn owner() -> SnapshotOwner {
    SnapshotOwner { fingerprint: [7; 16], store: "main".into() }
}

fn quota(algorithm: Algorithm) -> Limit {
    Quota::new(10, Duration::from_secs(60), algorithm).expect("a valid quota").limit(0)
}

fn limits() -> Vec<Limit> {
    vec![
        quota(Algorithm::TokenBucket { burst: None, max_debt: None }),
        quota(Algorithm::SlidingWindow),
        quota(Algorithm::SlidingCounter),
        quota(Algorithm::FixedWindow(Schedule::Epoch)),
        Limit::Concurrency(Concurrency { max: 10, lease: 60_000_000 }),
    ]
}

fn check(counter: u64, limit: Limit) -> Check {
    Check::charge(CounterName([counter.wrapping_mul(0x9e37_79b9_7f4a_7c15), counter]), limit, 1)
}

fn plan(checks: impl IntoIterator<Item = Check>, lease: u128) -> Plan {
    Plan { lease: LeaseId(lease), ..Plan::of(checks) }
}

fn memory() -> MemoryStores {
    MemoryStores::new(&[MemorySettings::default()])
}

/// The outcome of one more charge to a counter.
fn ask(memory: &MemoryStores, counter: u64, limit: Limit, now: Timestamp, lease: u128) -> Outcome {
    memory.apply(&plan([check(counter, limit)], lease), now).answers[0].expect("there is room")
}

fn filled() -> MemoryStores {
    let memory = memory();
    for number in 0..1000 {
        for (kind, limit) in limits().into_iter().enumerate() {
            for unit in 0..=number % 10 {
                ask(&memory, number * 10 + kind as u64, limit, NOW.plus(number * 1000), u128::from(unit));
            }
        }
    }
    memory
}

fn saved() -> (tempfile::TempDir, std::path::PathBuf) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("main.snapshot");
    filled().save(0, &path, &owner()).expect("it is written");
    (folder, path)
}

fn load(path: &Path, owner: &SnapshotOwner) -> (MemoryStores, Result<Option<usize>, SnapshotError>) {
    let memory = memory();
    let loaded = memory.load(0, path, owner, NOW.plus(1_000_000));
    (memory, loaded)
}

#[test]
fn semantics_32_every_counter_is_as_it_was_minus_the_time_that_passed() {
    let (_folder, path) = saved();
    let (restored, loaded) = load(&path, &owner());
    assert_eq!(loaded.expect("it is read"), Some(5000));
    let original = filled();
    let later = NOW.plus(20_000_000);
    for number in 0..1000 {
        for (kind, limit) in limits().into_iter().enumerate() {
            let counter = number * 10 + kind as u64;
            let expected = ask(&original, counter, limit, later, 99);
            assert_eq!(ask(&restored, counter, limit, later, 99), expected, "counter {counter}");
        }
    }
}

#[test]
fn a_file_that_is_not_there_is_no_error() {
    let folder = tempfile::tempdir().expect("a folder");
    assert!(matches!(load(&folder.path().join("none"), &owner()), (_, Ok(None))));
}

#[test]
fn a_damaged_file_is_refused_kept_aside_and_never_half_loaded() {
    let (_folder, path) = saved();
    let whole = std::fs::read(&path).expect("it was written");
    let places = (0..whole.len()).step_by(whole.len() / 97 + 1);
    let flipped = places.map(|place| {
        let mut damaged = whole.clone();
        damaged[place] ^= 0x20;
        damaged
    });
    let cut = (0..whole.len()).step_by(whole.len() / 53 + 1).map(|end| whole[..end].to_vec());
    let longer = [[whole.as_slice(), b"x"].concat()];
    for damaged in flipped.chain(cut).chain(longer) {
        std::fs::write(&path, &damaged).expect("it is written");
        let (memory, loaded) = load(&path, &owner());
        let error = loaded.expect_err("it is damaged");
        assert!(matches!(error, SnapshotError::Damaged { .. } | SnapshotError::Version { .. }), "{error}");
        assert_eq!(memory.usage()[0].keys, 0);
        assert!(!path.exists(), "it was moved aside");
        assert_eq!(std::fs::read(path.with_file_name("main.snapshot.refused")).expect("it is kept"), damaged);
    }
}

#[test]
fn files_of_another_version_secret_or_store_are_rejected() {
    let (_folder, path) = saved();
    let whole = std::fs::read(&path).expect("it was written");
    let refused = |owner: &SnapshotOwner| load(&path, owner).1.expect_err("it is not ours").to_string();
    assert!(refused(&SnapshotOwner { fingerprint: [8; 16], ..owner() }).contains("another secret"));
    std::fs::write(&path, &whole).expect("it is written");
    assert!(refused(&SnapshotOwner { store: "other".into(), ..owner() }).contains("another store"));
    let mut newer = whole;
    newer[18] = 9;
    std::fs::write(&path, &newer).expect("it is written");
    assert!(refused(&owner()).contains("has version 9 and this tollgate reads at most 3"));
}

#[test]
fn semantics_32_a_plan_is_in_a_snapshot_whole_or_not_at_all() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("main.snapshot");
    let limit = Quota::new(u32::MAX, Duration::from_secs(3600), Algorithm::FixedWindow(Schedule::Epoch));
    let limit = limit.expect("a valid quota").limit(0);
    let (memory, done) = (memory(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        // Every plan charges both counters of a pair, which lie in different shards.
        scope.spawn(|| {
            for round in 0..200_000u64 {
                let pair = round % 100;
                memory.apply(&plan([check(pair, limit), check(pair + 1000, limit)], 0), NOW);
            }
            done.store(true, Ordering::SeqCst);
        });
        let mut snapshots = 0;
        while !done.load(Ordering::SeqCst) || snapshots == 0 {
            memory.save(0, &path, &owner()).expect("it is written");
            let (restored, loaded) = load(&path, &owner());
            loaded.expect("it is read");
            for pair in 0..100 {
                let left = |counter| ask(&restored, counter, limit, NOW, 0).remaining;
                assert_eq!(left(pair), left(pair + 1000), "pair {pair} in snapshot {snapshots}");
            }
            snapshots += 1;
        }
    });
}

#[test]
fn two_snapshots_at_the_same_time_are_both_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    let memory = filled();
    std::thread::scope(|scope| {
        for name in ["one", "other"] {
            let (memory, path) = (&memory, folder.path().join(name));
            scope.spawn(move || {
                for _ in 0..20 {
                    memory.save(0, &path, &owner()).expect("it is written");
                    assert_eq!(load(&path, &owner()).1.expect("it is read"), Some(5000));
                }
            });
        }
    });
}

#[test]
fn a_snapshot_is_readable_by_its_owner_only() {
    use std::os::unix::fs::PermissionsExt;
    let (_folder, path) = saved();
    assert_eq!(std::fs::metadata(&path).expect("it was written").permissions().mode() & 0o777, 0o600);
}
