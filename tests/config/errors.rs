//! The errors of every file in tests/config/broken.

use std::fmt::Write;
use std::path::Path;

use tollgate::config::{Config, SourceText};

fn variables(name: &str) -> Option<String> {
    match name {
        "PASSWORD" | "WORD" => Some("hunter2".to_owned()),
        _ => None,
    }
}

/// Pseudorandom numbers, the same in every run (xorshift64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

#[test]
fn a_mutilated_file_never_causes_a_panic() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut random = Random(0x7011_6a7e);
    for directory in ["config", "examples/envoy", "examples/nginx", "examples/workers", "tests/config/broken"] {
        for entry in std::fs::read_dir(root.join(directory)).expect("the directory is there") {
            let path = entry.expect("readable").path();
            let name = path.file_name().expect("a file").to_string_lossy().into_owned();
            // An alias bomb is slow by design, and a schema is not a configuration.
            if name.starts_with("alias_bomb") || !(name.ends_with(".toml") || name.ends_with(".yaml")) {
                continue;
            }
            let whole: Vec<char> = std::fs::read_to_string(&path).expect("text").chars().collect();
            for _ in 0..60 {
                let mut text = whole.clone();
                for _ in 0..=random.below(4) {
                    let offset = random.below(text.len());
                    match random.below(4) {
                        0 => text.truncate(offset),
                        1 => text.insert(
                            offset,
                            ['{', '}', '[', ']', '"', '\n', '$', '-', ':', '\u{e9}', '\t'][random.below(11)],
                        ),
                        2 if offset < text.len() => drop(text.remove(offset)),
                        _ => text.rotate_left(random.below(8).min(offset)),
                    }
                }
                let source = SourceText { name: name.clone(), text: text.into_iter().collect() };
                drop(Config::read(&[source], &variables));
            }
        }
    }
}

/// Weakness R23: types and words are not checked.
/// Weakness R28: a rule may name a limiter that does not exist.
#[test]
fn all_errors_of_a_file_are_reported_at_once() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/config/broken");
    let mut names: Vec<String> = std::fs::read_dir(&directory)
        .expect("the directory is there")
        .map(|entry| entry.expect("readable").file_name().into_string().expect("a plain name"))
        .collect();
    names.sort();
    assert!(names.len() >= 40, "only {} broken files", names.len());
    let mut all = String::new();
    for name in names {
        let text = std::fs::read_to_string(directory.join(&name)).expect("readable");
        let source = SourceText { name, text };
        let errors = Config::read(std::slice::from_ref(&source), &variables);
        let errors = errors.expect_err(&source.name);
        writeln!(all, "{errors}\n").expect("writing to a text never fails");
    }
    assert!(!all.contains("hunter2"), "a secret is printed: {all}");
    insta::assert_snapshot!(all);
}
