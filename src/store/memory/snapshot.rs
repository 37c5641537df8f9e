//! Snapshot files of a memory store. A file is written atomically, and read completely or not at all.
//!
//! ```text
//!   "tollgate snapshot\n" | version u32 | secret's fingerprint 16 | name length u32, store's name
//!   | records: name 16, expiry u32, used share u8, kind u8, then by kind:
//!   |     bucket, pair, fixed: three u64     grants: count u32, u64 each     leases: count u32, 32 bytes each
//!   |     holds, after their counter (version 2): count u32, 73 bytes each
//!   |     remembered values (version 3): count u32, three u64 each
//!   | 0xff x 16 (never the name of a record) | SipHash-2-4-128 of everything before
//! ```
//!
//! All numbers are little-endian. Moments are Unix microseconds, so time passes for counters during a restart (semantics
//! 32). The name of a counter is a keyed hash, so the file contains no identity. With another secret all counters have
//! other names, so a file of another secret is rejected.

use std::fs::{self, File, OpenOptions};
use std::hash::Hasher;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use siphasher::sip128::{Hasher128, SipHasher24};

use crate::clock::Timestamp;
use crate::limiter::{Grants, Hold, Lease, LeaseId, Leases, Lost, MAX_HOLD, Remembered, RememberedValue};
use crate::plan::CounterName;

const SNAPSHOT_MAGIC: &[u8] = b"tollgate snapshot\n";
/// The newest version that this release reads.
const SNAPSHOT_VERSION: u32 = FileVersion::Values as u32;
/// The name that marks the end of the records.
const END_NAME: CounterName = CounterName([u64::MAX; 2]);
const CHECKSUM_BYTES: usize = 16;

/// The reason why a snapshot was not read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system fails.
    #[error("{path}: {error}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Its error.
        error: io::Error,
    },
    /// The content is invalid.
    #[error("{path} is damaged ({what}); nothing was loaded from it, and it was moved to {moved_to}", path = path.display(), moved_to = moved_to.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        what: &'static str,
        /// Where the file is now.
        moved_to: PathBuf,
    },
    /// Another version of tollgate wrote it.
    #[error("{path} has version {found} and this tollgate reads at most {SNAPSHOT_VERSION}; nothing was loaded from it, and it was moved to {moved_to}", path = path.display(), moved_to = moved_to.display())]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Where the file is now.
        moved_to: PathBuf,
    },
    /// It was written under another secret or for another store.
    #[error("{path} belongs to {what}; nothing was loaded from it, and it was moved to {moved_to}", path = path.display(), moved_to = moved_to.display())]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Its owner.
        what: &'static str,
        /// Where the file is now.
        moved_to: PathBuf,
    },
}

/// The versions of a file. Each is written only if it has what the one before cannot have, so that older releases read all
/// that they know.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum FileVersion {
    /// Counters of rates, windows and slots.
    Counters = 1,
    /// Some counters have holds.
    Holds = 2,
    /// Some counters remember values.
    Values = 3,
}

/// The store and secret that the counters of a file belong to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotOwner {
    /// A fingerprint of the secret that does not reveal it.
    pub fingerprint: [u8; 16],
    /// The store's name.
    pub store: String,
}

/// A counter in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SnapshotRecord {
    pub(super) name: CounterName,
    pub(super) expires_secs: u32,
    pub(super) used_share: u8,
    pub(super) value: SnapshotValue,
}

/// The state of a counter in a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum SnapshotValue {
    /// The kind and the words of a bucket, a pair of counts or a fixed count.
    Packed(u8, [u64; 3]),
    Grants(Grants),
    Leases(Leases),
    Remembered(Remembered),
    /// The holds of the counter of this name, whose state is in the record before.
    Holds(Vec<Hold>),
}

pub(super) const BUCKET_KIND: u8 = 0;
pub(super) const PAIR_KIND: u8 = 1;
pub(super) const FIXED_KIND: u8 = 2;
/// Kinds below this are packed into three words.
const PACKED_KINDS: u8 = 3;
const LOG_KIND: u8 = 16;
const LEASES_KIND: u8 = 17;
const HOLDS_KIND: u8 = 18;
const VALUES_KIND: u8 = 19;

impl SnapshotRecord {
    pub(super) fn write(&self, into: &mut Vec<u8>) {
        write_name(into, &self.name);
        into.extend(self.expires_secs.to_le_bytes());
        into.push(self.used_share);
        match &self.value {
            SnapshotValue::Packed(kind, words) => {
                into.push(*kind);
                into.extend(words.iter().flat_map(|word| word.to_le_bytes()));
            }
            SnapshotValue::Grants(grants) => {
                into.push(LOG_KIND);
                write_count(into, grants.moments().count());
                into.extend(grants.moments().flat_map(|moment| moment.micros().to_le_bytes()));
            }
            SnapshotValue::Leases(leases) => {
                into.push(LEASES_KIND);
                write_count(into, leases.iter().count());
                for lease in leases.iter() {
                    into.extend(lease.id.0.to_le_bytes());
                    into.extend(lease.acquired.micros().to_le_bytes());
                    into.extend(lease.expires.micros().to_le_bytes());
                }
            }
            SnapshotValue::Remembered(values) => {
                into.push(VALUES_KIND);
                write_count(into, values.count());
                for RememberedValue { value, at, earlier } in values.iter() {
                    into.extend([*value, at.micros(), earlier.micros()].iter().flat_map(|word| word.to_le_bytes()));
                }
            }
            SnapshotValue::Holds(holds) => {
                into.push(HOLDS_KIND);
                write_count(into, holds.len());
                holds.iter().for_each(|hold| write_hold(into, hold));
            }
        }
    }
}

/// Writes a file atomically: to a temporary file next to it, which is flushed to the disk and renamed. Each chunk of
/// records is requested only after the chunk before it was written and freed, so that not all are in memory.
pub(super) fn write(
    path: &Path,
    owner: &SnapshotOwner,
    version: FileVersion,
    records: impl IntoIterator<Item = Vec<u8>>,
) -> Result<(), SnapshotError> {
    let failed = |error| SnapshotError::Io { path: path.to_owned(), error };
    let mut head = Vec::with_capacity(128);
    head.extend(SNAPSHOT_MAGIC);
    head.extend((version as u32).to_le_bytes());
    head.extend(owner.fingerprint);
    write_count(&mut head, owner.store.len());
    head.extend(owner.store.as_bytes());
    let mut end = Vec::with_capacity(16);
    write_name(&mut end, &END_NAME);
    let temporary = sibling(path, "writing");
    let written = (|| {
        // Names are hashes, but other users need not read even these.
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        let mut checksum = checksum_hasher();
        for chunk in std::iter::once(head).chain(records).chain(std::iter::once(end)) {
            checksum.write(&chunk);
            file.write_all(&chunk)?;
        }
        file.write_all(&checksum.finish128().as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    })();
    written.map_err(|error| {
        let _ = fs::remove_file(&temporary);
        failed(error)
    })
}

/// Reads a file. Returns `None` if there is no file. A rejected file is moved aside.
pub(super) fn read(path: &Path, owner: &SnapshotOwner) -> Result<Option<Vec<SnapshotRecord>>, SnapshotError> {
    let bytes = match fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(SnapshotError::Io { path: path.to_owned(), error }),
    };
    parse(&bytes, owner).map(Some).map_err(|rejection| {
        let moved_to = sibling(path, "refused");
        if let Err(error) = fs::rename(path, &moved_to) {
            return SnapshotError::Io { path: path.to_owned(), error };
        }
        let path = path.to_owned();
        match rejection {
            Rejection::Damaged(what) => SnapshotError::Damaged { path, what, moved_to },
            Rejection::Version(found) => SnapshotError::Version { path, found, moved_to },
            Rejection::Foreign(what) => SnapshotError::Foreign { path, what, moved_to },
        }
    })
}

/// The reason why the bytes of a file are rejected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rejection {
    Damaged(&'static str),
    Version(u32),
    Foreign(&'static str),
}

/// Parses the bytes of a file. Never panics.
fn parse(bytes: &[u8], owner: &SnapshotOwner) -> Result<Vec<SnapshotRecord>, Rejection> {
    let Some(rest) = bytes.strip_prefix(SNAPSHOT_MAGIC) else {
        return Err(Rejection::Damaged("it does not begin like a snapshot"));
    };
    let mut reader = SnapshotReader { rest };
    // The version is checked before the checksum, so that a newer file is not reported as damaged.
    let version = u32::from_le_bytes(reader.take()?);
    if !(FileVersion::Counters as u32..=SNAPSHOT_VERSION).contains(&version) {
        return Err(Rejection::Version(version));
    }
    let Some((body, checksum)) = bytes.split_last_chunk::<CHECKSUM_BYTES>() else {
        return Err(Rejection::Damaged("it is too short"));
    };
    let mut computed = checksum_hasher();
    computed.write(body);
    if computed.finish128().as_bytes() != *checksum {
        return Err(Rejection::Damaged("its checksum does not match"));
    }
    if reader.take::<16>()? != owner.fingerprint {
        return Err(Rejection::Foreign("another secret"));
    }
    let length = u32::from_le_bytes(reader.take()?) as usize;
    if reader.slice(length)? != owner.store.as_bytes() {
        return Err(Rejection::Foreign("another store"));
    }
    let mut records = Vec::new();
    loop {
        let name = CounterName([u64::from_le_bytes(reader.take()?), u64::from_le_bytes(reader.take()?)]);
        if name == END_NAME {
            break;
        }
        records.push(reader.record(name)?);
    }
    match reader.rest.len() {
        CHECKSUM_BYTES => Ok(records),
        _ => Err(Rejection::Damaged("bytes follow its end")),
    }
}

struct SnapshotReader<'a> {
    rest: &'a [u8],
}

impl<'a> SnapshotReader<'a> {
    fn take<const N: usize>(&mut self) -> Result<[u8; N], Rejection> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(Rejection::Damaged("it ends early"))?;
        self.rest = rest;
        Ok(*taken)
    }

    fn slice(&mut self, length: usize) -> Result<&'a [u8], Rejection> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Rejection::Damaged("it ends early"))?;
        self.rest = rest;
        Ok(taken)
    }

    fn moment(&mut self) -> Result<Timestamp, Rejection> {
        Ok(Timestamp::from_micros(u64::from_le_bytes(self.take()?)))
    }

    fn hold(&mut self) -> Result<Hold, Rejection> {
        let id = LeaseId(u128::from_le_bytes(self.take()?));
        let mut next = || Ok(self.moment()?.micros());
        let [charged, at, reset, unit, drain, since, length] =
            [next()?, next()?, next()?, next()?, next()?, next()?, next()?];
        let [flags] = self.take()?;
        if (unit == 0) != (drain == 0) || length > 2 * MAX_HOLD {
            return Err(Rejection::Damaged("a hold has impossible numbers"));
        }
        let [at, since] = [at, since].map(Timestamp::from_micros);
        let lost = if flags & LOST_RELEASE > 0 { Lost::Release } else { Lost::Charge };
        Ok(Hold { id, charged, at, reset, rate: (unit, drain), since, length, lost, ended: flags & HOLD_ENDED > 0 })
    }

    fn record(&mut self, name: CounterName) -> Result<SnapshotRecord, Rejection> {
        let expires_secs = u32::from_le_bytes(self.take()?);
        let [used_share, kind] = self.take()?;
        let value = match kind {
            LOG_KIND => {
                let count = u32::from_le_bytes(self.take()?);
                let moments: Result<Vec<_>, _> = (0..count).map(|_| self.moment()).collect();
                SnapshotValue::Grants(Grants::restore(moments?).ok_or(Rejection::Damaged("a log is out of order"))?)
            }
            LEASES_KIND => {
                let count = u32::from_le_bytes(self.take()?);
                let leases: Result<Vec<_>, Rejection> = (0..count)
                    .map(|_| {
                        let id = LeaseId(u128::from_le_bytes(self.take()?));
                        Ok(Lease { id, acquired: self.moment()?, expires: self.moment()? })
                    })
                    .collect();
                SnapshotValue::Leases(Leases::restore(leases?))
            }
            VALUES_KIND => {
                let count = u32::from_le_bytes(self.take()?);
                let values: Result<Vec<_>, Rejection> = (0..count)
                    .map(|_| {
                        let value = u64::from_le_bytes(self.take()?);
                        Ok(RememberedValue { value, at: self.moment()?, earlier: self.moment()? })
                    })
                    .collect();
                let restored = Remembered::restore(values?);
                SnapshotValue::Remembered(restored.ok_or(Rejection::Damaged("values are out of order"))?)
            }
            HOLDS_KIND => {
                let count = u32::from_le_bytes(self.take()?);
                SnapshotValue::Holds((0..count).map(|_| self.hold()).collect::<Result<_, Rejection>>()?)
            }
            kind @ 0..PACKED_KINDS => {
                let words = [self.moment()?, self.moment()?, self.moment()?].map(Timestamp::micros);
                // The level is divided by the units per token, so zero is invalid.
                if let (BUCKET_KIND, [(1..), _, 0]) = (kind, words) {
                    return Err(Rejection::Damaged("a bucket has zero units per token"));
                }
                SnapshotValue::Packed(kind, words)
            }
            _ => return Err(Rejection::Damaged("the kind of a counter is unknown")),
        };
        Ok(SnapshotRecord { name, expires_secs, used_share, value })
    }
}

fn write_name(into: &mut Vec<u8>, name: &CounterName) {
    into.extend(name.0.iter().flat_map(|half| half.to_le_bytes()));
}

const LOST_RELEASE: u8 = 1;
const HOLD_ENDED: u8 = 2;

fn write_hold(into: &mut Vec<u8>, hold: &Hold) {
    let Hold { id, charged, at, reset, rate: (unit, drain), since, length, lost, ended } = *hold;
    into.extend(id.0.to_le_bytes());
    let numbers = [charged, at.micros(), reset, unit, drain, since.micros(), length];
    into.extend(numbers.iter().flat_map(|number| number.to_le_bytes()));
    let lost = if lost == Lost::Release { LOST_RELEASE } else { 0 };
    into.push(lost | if ended { HOLD_ENDED } else { 0 });
}

fn write_count(into: &mut Vec<u8>, count: usize) {
    into.extend(u32::try_from(count).unwrap_or(u32::MAX).to_le_bytes());
}

/// The hasher of the checksum. It detects damage, not forgery: its key is public.
fn checksum_hasher() -> SipHasher24 {
    SipHasher24::new_with_keys(0x746f_6c6c_6761_7465, 3)
}

/// The path with `.{extension}` appended. It is in the same folder, so that a rename is atomic.
fn sibling(path: &Path, extension: &str) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{extension}"));
    path.with_file_name(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_requested_after_those_before_it_are_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("main");
        let owner = SnapshotOwner { fingerprint: [7; 16], store: "main".into() };
        let mut requested = 0;
        let chunks = (0..4_u64).map(|before| {
            let written = fs::metadata(sibling(&path, "writing")).expect("it is being written").len();
            assert!((before * 1000..(before + 1) * 1000).contains(&written), "{written} bytes before chunk {before}");
            requested += 1;
            vec![0; 1000]
        });
        write(&path, &owner, FileVersion::Counters, chunks).expect("it is written");
        assert_eq!(requested, 4);
    }
}
