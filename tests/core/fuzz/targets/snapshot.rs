//! Any bytes as a snapshot file: it is loaded as a whole or rejected, and what was loaded is written the same.

use std::fs;
use std::hash::Hasher;
use std::path::PathBuf;

use siphasher::sip128::{Hasher128, SipHasher24};
use tempfile::TempDir;
use tollgate::clock::Timestamp;
use tollgate::limiter::{
    Alignment, Concurrency, FixedWindow, LeaseId, Limit, SlidingCounter, SlidingWindow, TokenBucket,
};
use tollgate::plan::{Check, CounterName, Plan};
use tollgate::store::{MemorySettings, MemoryStores, SnapshotError, SnapshotOwner};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const BYTES: usize = 256 << 10;

pub fn run(data: &[u8]) {
    assert!(load(data).1.is_none(), "random bytes have no valid checksum");
    let (memory, Some(loaded)) = load(&sealed(data)) else { return };
    let keys = memory.usage()[0].keys;
    assert!(keys <= loaded, "{keys} counters of {loaded}");

    // Writing and loading again preserves everything.
    let written = write(&memory);
    let (again, loaded) = load(&written);
    assert_eq!(loaded, Some(keys));
    let mut damaged = written.clone();
    let place = data.iter().fold(0, |sum: usize, &byte| sum.wrapping_mul(31) ^ usize::from(byte)) % damaged.len();
    damaged[place] ^= 1 << (place % 8);
    assert!(load(&damaged).1.is_none(), "byte {place} is damaged, and the file is accepted");

    // Whatever the states are, both stores decide alike.
    for (name, kind) in counters(&written) {
        let plan = plan(name, limit(kind));
        let (one, other) = (memory.apply(&plan, NOW), again.apply(&plan, NOW));
        assert_eq!(one.answers, other.answers, "{name:?} of kind {kind}");
    }
}

fn owner() -> SnapshotOwner {
    SnapshotOwner { fingerprint: [7; 16], store: "main".to_owned() }
}

/// A store that has loaded the file as far as it could; an empty one if the file was rejected.
fn load(bytes: &[u8]) -> (MemoryStores, Option<usize>) {
    let memory = MemoryStores::new(&[MemorySettings { max_memory: BYTES, max_keys: None }]);
    let path = path("read");
    fs::write(&path, bytes).expect("it is written");
    let loaded = match memory.load(0, &path, &owner(), NOW) {
        Ok(loaded) => Some(loaded.expect("the file is there")),
        Err(error @ SnapshotError::Io { .. }) => panic!("{error}"),
        Err(_) => None,
    };
    // A file that replaced this one, or the one that was moved aside, would be flushed to the disk.
    for file in [&path, &path.with_extension("refused")] {
        let _ = fs::remove_file(file);
    }
    let usage = memory.usage()[0];
    assert!(usage.bytes <= BYTES, "{usage:?}");
    assert!(loaded.is_some() || usage.keys == 0, "half of it was loaded");
    (memory, loaded)
}

/// Appends the checksum that a file ends with.
fn sealed(body: &[u8]) -> Vec<u8> {
    let mut checksum = SipHasher24::new_with_keys(0x746f_6c6c_6761_7465, 3);
    checksum.write(body);
    [body, &checksum.finish128().as_bytes()].concat()
}

fn write(memory: &MemoryStores) -> Vec<u8> {
    let path = path("written");
    memory.save(0, &path, &owner()).expect("it is written");
    fs::read(&path).expect("it was written")
}

/// The path of a file of this thread.
fn path(name: &str) -> PathBuf {
    thread_local! {
        static FOLDER: TempDir = tempfile::tempdir().expect("a folder");
    }
    FOLDER.with(|folder| folder.path().join(name))
}

/// The names and kinds of the counters in a file, by the layout in `src/store/memory/snapshot.rs`.
fn counters(file: &[u8]) -> Vec<(CounterName, u8)> {
    let number = |place: usize| u64::from_le_bytes(file[place..place + 8].try_into().expect("eight bytes"));
    let mut place = 18 + 4 + 16 + 4 + owner().store.len();
    let mut counters = Vec::new();
    while number(place) != u64::MAX || number(place + 8) != u64::MAX {
        let (name, kind) = (CounterName([number(place), number(place + 8)]), file[place + 21]);
        let count = number(place + 22) as u32 as usize;
        place += 22
            + match kind {
                16 => 4 + 8 * count,
                17 => 4 + 32 * count,
                _ => 24,
            };
        counters.push((name, kind));
    }
    counters
}

/// A limit whose counters have states of this kind.
fn limit(kind: u8) -> Limit {
    let window = 60_000_000;
    match kind {
        0 => Limit::TokenBucket(TokenBucket::new(10, window, 10, 5).expect("it can be held")),
        1 => Limit::SlidingCounter(SlidingCounter { limit: 10, window }),
        2 => Limit::FixedWindow(FixedWindow { limit: 10, alignment: Alignment::Epoch(window) }),
        16 => Limit::SlidingWindow(SlidingWindow { limit: 10, window }),
        17 => Limit::Concurrency(Concurrency { max: 10, lease: window }),
        other => panic!("{other} is no kind that is written"),
    }
}

fn plan(counter: CounterName, limit: Limit) -> Plan {
    let check = Check::charge(counter, limit, 1);
    Plan { lease: LeaseId(1 << 100), ..Plan::of([check]) }
}
