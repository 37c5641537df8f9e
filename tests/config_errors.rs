//! Every broken file of tests/config/broken with everything that is said about it.

use std::fmt::Write;
use std::path::Path;

use tollgate::config::{Config, Source};

fn variables(name: &str) -> Option<String> {
    match name {
        "PASSWORD" | "WORD" => Some("hunter2".to_owned()),
        _ => None,
    }
}

#[test]
fn each_broken_file_is_told_everything_that_is_wrong_with_it_at_once() {
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
        let source = Source { name, text };
        let errors = Config::read(std::slice::from_ref(&source), &variables);
        let errors = errors.expect_err(&source.name);
        writeln!(all, "{errors}\n").expect("writing to a text never fails");
    }
    assert!(!all.contains("hunter2"), "a secret is printed: {all}");
    insta::assert_snapshot!(all);
}
