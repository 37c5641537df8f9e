//! The fuzz targets on stable Rust: each runs over its corpus, then over a bounded number of inputs derived from it.
//!
//! The same seed makes the same inputs. A failure prints the seed and saves the input to a file. `TOLLGATE_FUZZ_SEED`
//! sets the first seed, `TOLLGATE_FUZZ_ROUNDS` the number of inputs, and `TOLLGATE_FUZZ_INPUT` names files to run
//! instead. `make fuzz` runs the targets for longer, guided by coverage.

mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use crate::support::dice::Dice;

#[test]
fn a_configuration_is_refused_with_a_location_or_prints_an_equivalent_one() {
    let samples = ["config", "tests/config/broken", "examples/envoy", "benches/doors"];
    fuzz("configuration", &samples, targets::configuration::run, 2_000);
}

#[test]
fn a_request_to_rls_is_answered_and_never_admitted_past_a_limit_or_a_bound() {
    fuzz("descriptors", &[], targets::descriptors::run, 10_000);
}

#[test]
fn a_request_to_ext_authz_is_answered_and_never_admitted_past_a_limit() {
    fuzz("authz", &[], targets::authz::run, 10_000);
}

#[test]
fn a_run_of_requests_is_never_admitted_past_a_limit() {
    fuzz("decisions", &[], targets::decisions::run, 10_000);
}

#[test]
fn no_text_but_its_own_lease_releases_a_slot() {
    fuzz("leases", &[], targets::leases::run, 10_000);
}

#[test]
fn no_head_of_a_request_is_a_way_around_the_limit_of_its_client() {
    fuzz("http", &[], targets::http::run, 5_000);
}

#[test]
fn normalising_a_path_an_address_or_an_account_twice_gives_the_same_as_once() {
    fuzz("paths", &[], targets::paths::run, 50_000);
}

#[test]
fn a_snapshot_is_read_whole_or_not_at_all() {
    fuzz("snapshot", &[], targets::snapshot::run, 5_000);
}

#[test]
fn a_call_of_a_worker_is_answered_and_what_makes_no_sense_charges_nothing() {
    fuzz("workers", &[], targets::workers::run, 10_000);
}

/// The longest input, in bytes.
const LONGEST: usize = 32 << 10;

fn fuzz(name: &str, samples: &[&str], target: fn(&[u8]), rounds: u64) {
    if let Some(files) = std::env::var_os("TOLLGATE_FUZZ_INPUT") {
        std::env::split_paths(&files).for_each(|file| target(&read(&file)));
        return;
    }
    let own = format!("fuzz/corpus/{name}");
    let mut files: Vec<PathBuf> =
        std::iter::once(own.as_str()).chain(samples.iter().copied()).flat_map(folder).collect();
    files.sort();
    let corpus: Vec<Vec<u8>> = files.iter().map(|file| read(file)).collect();
    assert!(corpus.len() > 2, "{own} holds next to nothing");
    for (file, input) in files.iter().zip(&corpus) {
        if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
            panic!("{name} fails over {}", file.display());
        }
    }
    let first = number("TOLLGATE_FUZZ_SEED").unwrap_or(0);
    for seed in (first..).take(number("TOLLGATE_FUZZ_ROUNDS").unwrap_or(rounds) as usize) {
        let input = Dice(seed).input(&corpus);
        if catch_unwind(AssertUnwindSafe(|| target(&input))).is_err() {
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{name}-{seed}"));
            fs::write(&kept, &input).expect("the input is kept");
            panic!("{name} fails at TOLLGATE_FUZZ_SEED={seed}, over {}", kept.display());
        }
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable} is no number")))
}

fn folder(path: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let files = entries.map(|entry| entry.expect("an entry").path());
    files.filter(|path| path.is_file()).collect()
}

fn read(file: &Path) -> Vec<u8> {
    fs::read(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

impl Dice {
    /// A slice of some bytes, more often a short one: short slices are words.
    fn part<'a>(&mut self, of: &'a [u8]) -> &'a [u8] {
        let longest = [4, 16, 64, 1024][self.below(4)];
        let start = self.below(of.len());
        let end = (start + 1 + self.below(longest)).min(of.len());
        &of[start..end]
    }

    /// A file of the corpus with some bytes changed, some removed, and parts of other files inserted.
    fn input(&mut self, corpus: &[Vec<u8>]) -> Vec<u8> {
        const ODD: [&[u8]; 12] =
            [b"0", b"-1", b"4294967296", b"18446744073709551615", b"\xff", b"\0", b"%", b"\"", b"$", b"*", b"{", b"\n"];
        let mut input = self.pick(corpus).clone();
        for _ in 0..=self.below(6) {
            let place = self.below(input.len() + 1);
            let end = (place + self.part(&input).len()).min(input.len());
            match self.below(8) {
                0 if place < input.len() => input[place] ^= 1 << self.below(8),
                1 if place < input.len() => input[place] = self.roll() as u8,
                2 => input.truncate(place),
                3 => drop(input.drain(place..end)),
                4 => drop(input.splice(place..place, ODD[self.below(ODD.len())].iter().copied())),
                5 => input.extend_from_within(place..end),
                _ => {
                    let other = self.pick(corpus);
                    let part = self.part(other);
                    drop(input.splice(place..if self.roll() & 1 == 0 { place } else { end }, part.iter().copied()));
                }
            }
        }
        input.truncate(LONGEST);
        input
    }
}
