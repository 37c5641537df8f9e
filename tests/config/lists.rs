//! Lists of values in files: what they mean in a configuration (semantics 58).

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::FutureExt;
use tempfile::TempDir;
use tollgate::clock::{ManualClock, Timestamp};
use tollgate::config::{Config, Errors, Origin};
use tollgate::descriptor::{Descriptor, Request};
use tollgate::engine::Engine;
use tollgate::rules::Rules;
use tollgate::store::{MemorySettings, Stores};

/// The files of a configuration.
pub struct Files(TempDir);

impl Files {
    /// `tollgate.toml` and files beside it.
    pub fn of(toml: &str, others: &[(&str, &[u8])]) -> Self {
        let files = Self(tempfile::tempdir().expect("a directory"));
        files.write("tollgate.toml", toml.as_bytes());
        others.iter().for_each(|(name, content)| files.write(name, content));
        files
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        fs::write(self.path(name), content).expect("a file in the test's directory");
    }

    pub fn read(&self) -> (Origin, Result<Config, Errors>) {
        Origin::read(Some(&self.path("tollgate.toml")))
    }

    pub fn config(&self) -> Config {
        self.read().1.unwrap_or_else(|errors| panic!("{errors}"))
    }

    /// The errors, without the path of the directory.
    pub fn errors(&self) -> Vec<String> {
        let errors = self.read().1.expect_err("it has errors");
        let directory = format!("{}/", self.0.path().display());
        errors.iter().map(|error| error.to_string().replace(&directory, "")).collect()
    }

    /// The warnings, each with its kind and the line.
    pub fn warnings(&self) -> Vec<(String, u32, String)> {
        let warning = |warning: &tollgate::config::Problem| {
            let kind = warning.warning.expect("a warning has a kind").name().to_owned();
            (kind, warning.line.unwrap_or_default(), warning.text.clone())
        };
        self.config().warnings.iter().map(warning).collect()
    }

    pub fn engine(&self) -> Engine {
        let rules = Rules::compile(self.config().book).expect("it compiles");
        let clock = ManualClock::at(Timestamp::from_secs(1_800_000_000));
        Engine::new(rules, Stores::memory(&[MemorySettings::default()]), Arc::new(clock))
    }
}

/// Whether a request of domain `edge` passes.
pub fn passes(engine: &Engine, entries: &[(&str, &str)]) -> bool {
    passes_all(engine, vec![Descriptor::of(entries.iter().copied())])
}

pub fn passes_all(engine: &Engine, descriptors: Vec<Descriptor<'_>>) -> bool {
    let request = Request { domain: "edge", descriptors: descriptors.into_iter().collect() };
    engine.decide(&request).now_or_never().expect("the memory store never waits").allowed()
}

/// A configuration with list `a` in `a.txt`, and one deny rule with this `match`.
fn denying(test: &str) -> String {
    format!(
        "[lists.a]\nfile = 'a.txt'\n[[rules]]\ndomain = 'edge'\nname = 'r'\nmatch = {{ {test} }}\naction = 'deny'\n"
    )
}

#[test]
fn semantics_58_a_list_is_used_wherever_match_takes_a_value() {
    let list: &[(&str, &[u8])] = &[("a.txt", b"bob\nalice*\n*.test")];
    // Whether each is refused: bob, alice2, x.test, carol, root, and a request without the entry.
    for (test, refused) in [
        ("account = { list = 'a' }", [true, true, true, false, false, false]),
        ("account = { not = { list = 'a' } }", [false, false, false, true, true, false]),
        ("account = ['root', { list = 'a' }]", [true, true, true, false, true, false]),
        ("account = [{ not = { list = 'a' } }, { not = '*' }]", [false, false, false, true, true, true]),
        ("account = { not = ['root', { list = 'a' }] }", [false, false, false, true, false, false]),
        ("account = { not = { not = { list = 'a' } } }", [true, true, true, false, false, false]),
    ] {
        let engine = Files::of(&denying(test), list).engine();
        for (value, refused) in ["bob", "alice2", "x.test", "carol", "root"].iter().zip(refused) {
            assert_eq!(passes(&engine, &[("account", value)]), !refused, "{test} with {value}");
        }
        assert_eq!(passes(&engine, &[]), !refused[5], "{test} without the entry");
    }
}

#[test]
fn semantics_58_an_entry_that_is_not_there_matches_neither_form() {
    for test in ["account = { list = 'a' }", "account = { not = { list = 'a' } }"] {
        let engine = Files::of(&denying(test), &[("a.txt", b"bob")]).engine();
        assert!(passes(&engine, &[("other", "bob")]), "{test}");
    }
}

#[test]
fn semantics_58_values_go_through_the_normalisers_of_each_entry_that_they_meet() {
    let toml =
        "[domains.edge]\nnormalise = { account = ['trim', 'lowercase'], host = ['host'] }\naddresses = ['peer']\n"
            .to_owned()
            + &denying("account = { list = 'a' }")
            + "[[rules]]\ndomain = 'edge'\nname = 'raw'\nmatch = { raw = { list = 'a' } }\naction = 'deny'\n\
           [lists.blocks]\nfile = 'blocks.txt'\n\
           [[rules]]\ndomain = 'edge'\nname = 'peer'\nmatch = { peer = { list = 'blocks' } }\naction = 'deny'\n\
           [[rules]]\ndomain = 'edge'\nname = 'text'\nmatch = { text = { list = 'blocks' } }\naction = 'deny'\n";
    let blocks: &[u8] = b"10.0.0.0/8\n2001:DB8::/32\n192.0.2.7\n";
    let engine = Files::of(&toml, &[("a.txt", b"Bob\nExample.COM"), ("blocks.txt", blocks)]).engine();
    assert!(!passes(&engine, &[("account", " BOB ")]) && passes(&engine, &[("raw", "bob")]));
    assert!(!passes(&engine, &[("raw", "Bob")]) && !passes(&engine, &[("account", "example.com")]));
    for (address, refused) in [
        ("10.1.2.3", true),
        ("::ffff:10.1.2.3", true),
        ("11.0.0.1", false),
        ("2001:db8:7::1", true),
        ("192.0.2.7", true),
    ] {
        assert_eq!(passes(&engine, &[("peer", address)]), !refused, "{address}");
    }
    // A block at an entry that holds no addresses is text.
    assert!(passes(&engine, &[("text", "10.1.2.3")]) && !passes(&engine, &[("text", "10.0.0.0/8")]));
    assert!(passes(&engine, &[("text", "2001:db8::/32")]) && !passes(&engine, &[("text", "2001:DB8::/32")]));
}

#[test]
fn semantics_58_a_list_of_values_meets_a_list_by_any_of_them_and_one_that_is_repeated_is_in_doubt() {
    let values = |values: &[&'static str]| values.iter().map(|value| (*value).into()).collect::<Vec<_>>();
    for (test, met, unmet) in
        [("roles = { list = 'a' }", false, true), ("roles = { not = { list = 'a' } }", true, false)]
    {
        let engine = Files::of(&denying(test), &[("a.txt", b"admin")]).engine();
        for (roles, passed) in [(["user", "admin"], met), (["user", "guest"], unmet)] {
            let mut descriptor = Descriptor::default();
            descriptor.push_list("roles", values(&roles));
            assert_eq!(passes_all(&engine, vec![descriptor]), passed, "{test} {roles:?}");
            let mut repeated = Descriptor::default();
            repeated.push_repeated("roles", values(&roles));
            assert!(!passes_all(&engine, vec![repeated]), "{test} {roles:?}");
        }
    }
}

#[test]
fn semantics_58_lines_are_trimmed_and_bom_crlf_and_comments_go() {
    let file = "\u{feff}bob\r\n  carol\t\r\n# dave\r\n # eve\r\n\r\nfrank # no comment\r\n".as_bytes();
    let engine = Files::of(&denying("account = { list = 'a' }"), &[("a.txt", file)]).engine();
    for (value, refused) in [
        ("bob", true),
        ("carol", true),
        ("# dave", false),
        ("dave", false),
        ("# eve", true),
        ("frank", false),
        ("frank # no comment", true),
        ("", false),
    ] {
        assert_eq!(passes(&engine, &[("account", value)]), !refused, "{value}");
    }
}

#[test]
fn semantics_58_errors_name_the_file_the_line_and_the_remedy() {
    let cases: &[(&str, &[u8], &[&str])] = &[
        (
            "account = { list = 'b' }",
            b"bob",
            &["tollgate.toml:6: rules[0].match.account.list is \"b\", but no list has this name; did you mean \"a\"?"],
        ),
        ("account = { list = 'a' }", b"# nobody\n\n", &["a.txt: lists.a has no value; expected one on each line"]),
        ("account = { list = 'a' }", b"bob\n\xff\n", &["a.txt:2: lists.a is not UTF-8 here; save the file as UTF-8"]),
        (
            "account = { list = 'a' }",
            b"bob\n*\n",
            &["a.txt:2: lists.a is any value here, so that nothing is outside of the list; remove it, or write \
               \\* for a star"],
        ),
        (
            "remote_address = { list = 'a' }",
            b"10.0.0.1\n\nhost.test\n10.0.0.0/33\n64:ff9b::/96",
            &[
                "a.txt:3: lists.a is no address here; expected an address, a block such as 10.0.0.0/8, or a pattern",
                "a.txt:4: lists.a is no address here; expected an address, a block such as 10.0.0.0/8, or a pattern",
                "a.txt:5: lists.a has a literal which no value matches: its addresses are counted as the IPv4 \
                 addresses in them, so that \"64:ff9b::/96\" is \"0.0.0.0/0\"; write the block of these",
            ],
        ),
        (
            "account = { list = 'a', not = 'b' }",
            b"bob",
            &["tollgate.toml:6: rules[0].match.account has list and not; expected one of them, such as \
               { not = { list = ... } }"],
        ),
    ];
    for (test, file, expected) in cases {
        assert_eq!(Files::of(&denying(test), &[("a.txt", file)]).errors(), *expected, "{test}");
    }
    let missing = Files::of(&denying("account = { list = 'a' }"), &[]).errors();
    assert_eq!(
        missing,
        ["tollgate.toml:2: lists.a.file is \"a.txt\", which cannot be read: No such file or directory (os error 2)"]
    );
    let many: String = (0..1_025).map(|number| format!("a*{number}*b\n")).collect();
    let errors = Files::of(&denying("account = { list = 'a' }"), &[("a.txt", many.as_bytes())]).errors();
    assert_eq!(errors.len(), 21, "{errors:?}");
    assert_eq!(errors[0], "a.txt: lists.a has 5 more such lines");
    assert!(errors[1].starts_with("a.txt:1001: lists.a is beyond the 1000th pattern"), "{errors:?}");
}

#[test]
fn semantics_58_check_tells_the_size_and_warns_of_lists_that_nothing_meets() {
    let lines: String = (0..10_000).map(|number| format!("user{number}@example.test\n")).collect();
    let files = Files::of(&denying("account = { list = 'a' }"), &[("a.txt", lines.as_bytes())]);
    let config = files.config();
    let note = &config.notes[0];
    assert_eq!((note.line, note.path.as_str()), (Some(1), "lists.a"));
    let bytes: usize = note.text.split(' ').nth(5).expect("a number").parse().expect("a number");
    assert!(note.text.starts_with("lists.a has 10000 values in "), "{}", note.text);
    // The text, its length, and a slot of 4 bytes and one of control in a table that is at most 7/8 full.
    let text = lines.len();
    assert!((text + 5 * 10_000..text + 12 * 10_000).contains(&bytes), "{bytes}");
    let rules = Rules::compile(config.book).expect("it compiles");
    assert_eq!((rules.lists()[0].rows, rules.lists()[0].bytes), (10_000, bytes));

    let unused = denying("account = 'bob'");
    let warnings = Files::of(&unused, &[("a.txt", b"bob")]).warnings();
    let unused = |(kind, line, _): &(String, u32, String)| kind == "unused_list" && *line == 1;
    assert!(warnings.iter().any(unused), "{warnings:?}");
    // An entry that neither the gateway nor the domain is known to send.
    let warnings = Files::of(&denying("account = { list = 'a' }"), &[("a.txt", b"bob")]).warnings();
    assert_eq!((warnings[0].0.as_str(), warnings[0].1), ("unknown_entry", 6), "{warnings:?}");
    let declared = "[domains.edge]\nentries = ['account']\n";
    let good = declared.to_owned() + &denying("account = { list = 'a' }");
    assert!(Files::of(&good, &[("a.txt", b"bob")]).warnings().is_empty());
    let bad = declared.to_owned() + &denying("acount = { list = 'a' }");
    let errors = Files::of(&bad, &[("a.txt", b"bob")]).errors();
    assert!(errors[0].contains("which the domain does not declare"), "{errors:?}");
}

#[test]
fn semantics_58_check_warns_of_a_deny_rule_that_lets_those_without_the_entry_pass() {
    let warned = |test: &str| {
        let toml = "[domains.edge]\nentries = ['account']\n".to_owned() + &denying(test);
        let warnings = Files::of(&toml, &[("a.txt", b"bob")]).warnings();
        warnings.iter().any(|(kind, line, _)| kind == "absent_passes" && *line == 8)
    };
    assert!(warned("account = { not = { list = 'a' } }"));
    assert!(warned("account = ['x', { not = { list = 'a' } }]"));
    assert!(!warned("account = [{ not = { list = 'a' } }, { not = '*' }]"));
    assert!(!warned("account = { list = 'a' }"));
    assert!(!warned("account = { not = 'bob' }"));
}

#[test]
fn semantics_58_a_list_is_data_and_no_reason_for_a_warning_about_rules() {
    let toml = "[domains.edge]\nentries = ['account']\n".to_owned()
        + &denying("account = { list = 'a' }")
        + "[[rules]]\ndomain = 'edge'\nname = 'bob'\nmatch = { account = 'bob' }\naction = 'deny'\n";
    // Tomorrow, bob may not be in the list.
    assert!(Files::of(&toml, &[("a.txt", b"bob")]).warnings().is_empty());
    let same = toml.replace("account = 'bob'", "account = { list = 'a' }");
    let warnings = Files::of(&same, &[("a.txt", b"bob")]).warnings();
    assert_eq!(warnings[0].0, "unreachable_rule");
}

#[test]
fn semantics_58_check_print_prints_the_list_and_not_its_values() {
    let files = Files::of(&denying("account = { not = { list = 'a' } }"), &[("a.txt", b"bob")]);
    let printed = files.config().effective();
    assert!(printed.contains("lists:\n  a:\n    file: a.txt\n"), "{printed}");
    assert!(
        printed.contains("        not:\n          list: a\n") || printed.contains("not:\n        list: a\n"),
        "{printed}"
    );
    assert!(!printed.contains("bob"), "{printed}");
}

#[test]
fn semantics_58_a_change_of_the_file_is_a_change_of_the_configuration_and_a_broken_one_is_an_error() {
    let files = Files::of(&denying("account = { list = 'a' }"), &[("a.txt", b"bob")]);
    let (origin, config) = files.read();
    config.expect("it is good");
    assert!(origin.paths().any(|path| path == files.path("a.txt")));
    let (again, _) = origin.read_again();
    assert_eq!(origin, again);
    files.write("a.txt", b"bob\ncarol");
    let (changed, config) = origin.read_again();
    assert_ne!(origin, changed);
    config.expect("it is good");
    for broken in [&b""[..], b"\xff", b"bob\n*"] {
        files.write("a.txt", broken);
        let (changed, config) = origin.read_again();
        assert_ne!(origin, changed);
        config.expect_err("it is broken");
    }
    fs::remove_file(files.path("a.txt")).expect("it was there");
    let (gone, config) = origin.read_again();
    config.expect_err("it is gone");
    // It is watched, so that it is read when it is there again.
    assert!(gone.paths().any(|path| path == files.path("a.txt")));
}

#[test]
fn semantics_58_a_million_lines_are_looked_up() {
    let mut lines = String::new();
    for number in 0..1_000_000_u32 {
        let scattered = number.wrapping_mul(2_654_435_761);
        match number % 4 {
            0 => lines += &format!("{}.{}.0.0/16\n", scattered >> 24, (scattered >> 16) & 255),
            1 => lines += &format!("{}\n", std::net::Ipv4Addr::from(scattered)),
            2 => lines += &format!("2001:db8:{:x}:{:x}::/64\n", scattered >> 16, scattered & 0xffff),
            _ => lines += &format!("2001:db8::{:x}:{:x}\n", scattered >> 16, scattered & 0xffff),
        }
    }
    let accounts: String = (0..1_000_000_u32)
        .map(|number| format!("user{:x}@example.test\n", number.wrapping_mul(2_654_435_761)))
        .collect();
    for (test, lines) in [("remote_address = { list = 'a' }", lines), ("account = { list = 'a' }", accounts)] {
        let files = Files::of(&denying(test), &[("a.txt", lines.as_bytes())]);
        let config = files.config();
        let rules = Rules::compile(config.book).expect("it compiles");
        assert_eq!(rules.lists()[0].rows, 1_000_000);
    }
}
