//! Checks the walls of `src/`: the order of rooms in `lib.rs`, the crates of each room, no circles, and one name for one
//! type.
//!
//! ```text
//!   cargo test --test tidy -- --nocapture       also prints what was counted
//! ```
//!
//! `walls.rs` has the rules. `broken.rs` breaks each of them in small trees, once for every kind of path.

#![expect(
    clippy::print_stdout,
    unreachable_pub,
    reason = "a test: no other crate uses it, what it measures is printed"
)]

mod broken;
mod paths;
mod tree;
mod walls;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use walls::{Wall, Walls, check, rows};

/// The external crates of each room.
const CRATES: &str = include_str!("crates.txt");

/// The most type names that may name more than one type, in percent.
const AMBIGUOUS_NAMES: &str = "4";

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

#[test]
fn every_wall_of_the_source_holds() {
    let mut files = Vec::new();
    read(&Path::new(ROOT).join("src"), "", &mut files);
    let (dependencies, dev_dependencies) = dependencies();
    let walls = Walls { crates: rows(CRATES), dependencies: &dependencies, dev_dependencies: &dev_dependencies };
    let report = check(&files, &walls);
    assert!(files.len() > 50 && report.paths > 5_000, "read {} paths of {} files", report.paths, files.len());
    println!(
        "{} files, {} paths; circles: {}, upward imports: {}",
        files.len(),
        report.paths,
        report.count(Wall::Circle),
        report.count(Wall::Order)
    );
    report.faults.iter().for_each(|fault| println!("{fault}"));
    if report.count(Wall::Crates) > 0 {
        println!("\nwhat the rows of tests/tidy/crates.txt would be:");
        for (row, crates) in &report.used {
            println!("{row}: {}", crates.iter().map(String::as_str).collect::<Vec<_>>().join(" "));
        }
    }
    assert!(report.faults.is_empty(), "{} faults, listed above", report.faults.len());
}

#[test]
fn few_type_names_name_more_than_one_type() {
    let script = Path::new(ROOT).join("scripts/ambiguous_names");
    let run = Command::new(&script).args(["--max", AMBIGUOUS_NAMES]).output();
    let run = run.unwrap_or_else(|error| panic!("{} needs python3: {error}", script.display()));
    let said = String::from_utf8_lossy(&run.stdout);
    println!("{said}");
    assert!(run.status.success(), "{said}{}", String::from_utf8_lossy(&run.stderr));
}

/// Every file below a directory, by its path.
fn read(directory: &Path, prefix: &str, files: &mut Vec<(String, String)>) {
    let entries = std::fs::read_dir(directory).expect("the source is there");
    let mut entries: Vec<_> = entries.map(|entry| entry.expect("an entry can be read").path()).collect();
    entries.sort();
    for entry in entries {
        let name = entry.file_name().and_then(|name| name.to_str()).expect("names are UTF-8");
        let path = format!("{prefix}{name}");
        if entry.is_dir() {
            read(&entry, &format!("{path}/"), files);
        } else if name.ends_with(".rs") {
            files.push((path, std::fs::read_to_string(&entry).expect("a source file can be read")));
        }
    }
}

/// The names of the normal and of the dev-dependencies, as paths have them.
fn dependencies() -> (BTreeSet<String>, BTreeSet<String>) {
    let text = std::fs::read_to_string(Path::new(ROOT).join("Cargo.toml")).expect("there is a Cargo.toml");
    let manifest: toml::Table = text.parse().expect("Cargo.toml is TOML");
    let of = |table: &str| {
        let table = manifest[table].as_table().unwrap_or_else(|| panic!("[{table}] is a table"));
        table.keys().map(|name| name.replace('-', "_")).collect::<BTreeSet<_>>()
    };
    assert!(!manifest.contains_key("target"), "dependencies of a target are not read here");
    (of("dependencies"), of("dev-dependencies"))
}
