//! Small trees, each broken once. Every wall fails for every way to write a path, at the line where it is written.

use std::collections::BTreeSet;

use crate::walls::{Wall, Walls, check, rows};

/// Ways to write a path, and the line that has it. ROOT is where NAME is.
const WAYS: [(&str, &str, usize); 46] = [
    ("import", "use ROOT::NAME;", 1),
    ("grouped import", "use {\n    crate::ground::Base,\n    ROOT::{NAME},\n};", 3),
    ("renamed import", "use ROOT::NAME as Other;", 1),
    ("import for its trait", "use ROOT::NAME as _;", 1),
    ("glob", "use ROOT::*;", 1),
    ("glob in a group", "use {\n    ROOT::{*},\n};", 2),
    ("re-export", "pub use ROOT::NAME;", 1),
    ("re-export in the crate", "pub(crate) use ROOT::NAME as Other;", 1),
    ("type", "fn f(_: ROOT::NAME) {}", 1),
    ("generic argument", "fn f(_: Vec<Option<\n    ROOT::NAME>>) {}", 2),
    ("field", "struct S {\n    x: ROOT::NAME,\n}", 2),
    ("alias", "type T = ROOT::NAME;", 1),
    ("trait that is implemented", "impl ROOT::NAME for u8 {}", 1),
    ("bound", "fn f<T>(_: T)\nwhere\n    T: ROOT::NAME,\n{\n}", 3),
    ("default of a parameter", "struct S<T = ROOT::NAME>(T);", 1),
    ("associated type", "impl Iterator for S {\n    type Item = ROOT::NAME;\n}\nstruct S;", 2),
    ("trait of an associated item", "fn f() {\n    <u8 as ROOT::NAME>::f();\n}", 2),
    ("type that a trait is implemented for", "fn f() {\n    <ROOT::NAME as Default>::default();\n}", 2),
    ("expression", "fn f() {\n    let _ = ROOT::NAME::new();\n}", 2),
    ("closure", "fn f() {\n    let _ = || async { ROOT::NAME };\n}", 2),
    ("turbofish", "fn f() {\n    let _ = g::<ROOT::NAME>();\n}\nfn g<T>() {}", 2),
    ("pattern", "fn f(x: u8) {\n    match x {\n        ROOT::NAME { .. } => {}\n        _ => {}\n    }\n}", 3),
    ("constant", "const C: usize = size_of::<u8>() + ROOT::NAME;", 1),
    ("body of a method", "struct S;\nimpl S {\n    fn f() {\n        ROOT::NAME::new();\n    }\n}", 4),
    ("import in a function", "fn f() {\n    use ROOT::NAME;\n}", 2),
    ("import in a block", "fn f() {\n    if true {\n        use ROOT::{NAME as Other};\n    }\n}", 3),
    ("function in a function", "fn f() {\n    fn g(_: ROOT::NAME) {}\n}", 2),
    ("module in a module", "mod a {\n    mod b {\n        use ROOT::NAME;\n    }\n}", 3),
    ("module in a function", "fn f() {\n    mod a {\n        use ROOT::NAME;\n    }\n}", 3),
    ("argument of a macro", "fn f() {\n    println!(\"{}\", ROOT::NAME::new());\n}", 2),
    ("nested argument", "fn f() {\n    json!({ \"a\": [{ \"b\":\n        ROOT::NAME }] });\n}", 3),
    ("branch of a macro", "fn f() {\n    select! {\n        x = ROOT::NAME.recv() => x,\n    }\n}", 3),
    ("turbofish in a macro", "fn f() {\n    assert!(x.parse::<ROOT::NAME>().is_ok());\n}", 2),
    ("macro in a macro", "fn f() {\n    assert!(matches!(x, 0..=ROOT::NAME));\n}", 2),
    ("import in a macro", "items! {\n    use ROOT::{NAME as Other};\n}", 2),
    ("glob in a macro", "items! {\n    use ROOT::*;\n}", 2),
    ("definition of a macro", "macro_rules! m {\n    ($x:ident) => {\n        ROOT::NAME::new($x)\n    };\n}", 3),
    ("macro that is called", "fn f() {\n    ROOT::NAME!();\n}", 2),
    ("attribute", "#[ROOT::NAME]\nfn f() {}", 1),
    ("derive", "#[derive(Clone, ROOT::NAME)]\nstruct S;", 1),
    ("derive under cfg", "#[cfg_attr(feature = \"never\", derive(ROOT::NAME))]\nstruct S;", 1),
    ("text of an attribute", "struct S {\n    #[serde(with = \"ROOT::NAME\")]\n    x: u8,\n}", 2),
    ("under cfg(test)", "#[cfg(test)]\nmod tests {\n    use ROOT::NAME;\n}", 3),
    ("under cfg of a feature", "#[cfg(feature = \"never\")]\nuse ROOT::NAME;", 2),
    ("under cfg of a platform", "#[cfg(not(unix))]\nfn f() {\n    ROOT::NAME::new();\n}", 3),
    ("raw identifier", "use ROOT::r#NAME;", 1),
];

const LIBRARY: &str = "\
//! | room | its noun |
//! |---|---|
//! | [`ground`] | nothing below |
//! | [`low`] | one |
//! | [`high`] | another |
pub mod ground;
pub mod high;
pub mod low;
";

/// A correct tree, in which these files replace its own.
fn tree(replaced: &[(&str, &str)]) -> Vec<(String, String)> {
    let ours = [
        ("ground.rs", "pub struct Base;"),
        ("high/mod.rs", "mod part;\npub use self::part::{NAME, Part};\npub use crate::ground::Base as Lent;"),
        ("high/part.rs", "use crate::ground::Base;\npub struct NAME;\npub struct Part(Base);"),
        ("lib.rs", LIBRARY),
        ("low/mod.rs", "mod a;\nmod b;\npub use self::b::B;\npub struct Own;"),
        ("low/a.rs", "use super::B;\npub struct A(B);"),
        ("low/b.rs", "use bytes::Bytes;\npub struct B(Bytes);"),
        ("main.rs", "mod cli;\nfn main() {\n    cli::run();\n}"),
        ("cli/mod.rs", "mod run;\npub use self::run::run;"),
        ("cli/run.rs", "use tollgate::high::Part;\npub fn run() {\n    Part::new();\n}"),
    ];
    let kept = ours.iter().filter(|(path, _)| replaced.iter().all(|(other, _)| path != other));
    kept.chain(replaced).map(|(path, text)| ((*path).into(), text.replace("NAME", "Name"))).collect()
}

/// The wall, file and line of each fault.
fn faults(files: &[(String, String)]) -> BTreeSet<(Wall, String, usize)> {
    faults_with(files, "low: bytes")
}

fn faults_with(files: &[(String, String)], crates: &str) -> BTreeSet<(Wall, String, usize)> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
    let (dependencies, dev_dependencies) = (names(&["bytes", "hyper"]), names(&["proptest"]));
    let walls = Walls { crates: rows(crates), dependencies: &dependencies, dev_dependencies: &dev_dependencies };
    let report = check(files, &walls);
    report.faults.into_iter().map(|fault| (fault.wall, fault.file, fault.line)).collect()
}

fn one(wall: Wall, file: &str, line: usize) -> BTreeSet<(Wall, String, usize)> {
    BTreeSet::from([(wall, file.to_owned(), line)])
}

#[track_caller]
fn assert_one(replaced: &[(&str, &str)], wall: Wall, file: &str, line: usize) {
    assert_eq!(faults(&tree(replaced)), one(wall, file, line), "{replaced:?}");
}

#[test]
fn a_tree_that_is_right_has_no_fault() {
    assert_eq!(faults(&tree(&[])), BTreeSet::new());
}

#[test]
fn a_room_that_uses_a_higher_one_is_found_however_the_path_is_written() {
    for (way, text, line) in WAYS {
        let text = text.replace("ROOT", "crate::high");
        let found = faults(&tree(&[("low/a.rs", &text)]));
        assert_eq!(found, one(Wall::Order, "low/a.rs", line), "{way}: {text}");
    }
}

#[test]
fn a_crate_that_a_room_may_not_use_is_found_however_the_path_is_written() {
    for (way, text, line) in WAYS {
        for root in ["hyper", "::hyper::body"] {
            // In an attribute a path has no `::` in front.
            if root.starts_with("::") && (text.starts_with('#') || text.contains("\"ROOT")) && !text.contains("use ") {
                continue;
            }
            let text = text.replace("ROOT", root);
            let found = faults(&tree(&[("low/a.rs", &text)]));
            assert_eq!(found, one(Wall::Crates, "low/a.rs", line), "{way}: {text}");
        }
    }
    for text in
        ["extern crate hyper;", "extern crate hyper as other;", "#[cfg(feature = \"never\")] extern crate hyper;"]
    {
        assert_one(&[("low/a.rs", text)], Wall::Crates, "low/a.rs", 1);
    }
}

#[test]
fn what_the_parent_defines_is_found_however_the_path_is_written() {
    let parent = "mod a;\nmod b;\npub use self::b::B;\npub struct NAME;";
    for (way, text, line) in WAYS {
        let text = text.replace("ROOT", "crate::low");
        let found = faults(&tree(&[("low/mod.rs", parent), ("low/a.rs", &text)]));
        assert_eq!(found, one(Wall::Parent, "low/a.rs", line), "{way}: {text}");
    }
    for text in
        ["use super::NAME;", "fn f() -> super::NAME {}", "mod m {\n    use super::super::NAME;\n}", "use super::*;"]
    {
        let found = faults(&tree(&[("low/mod.rs", parent), ("low/a.rs", text)]));
        assert_eq!(found, one(Wall::Parent, "low/a.rs", text.lines().count().div_ceil(2)), "{text}");
    }
}

#[test]
fn a_circle_is_found_however_the_path_is_written() {
    let other = "use bytes::Bytes;\nuse super::a::A;\npub struct NAME(Bytes, A);\npub struct B;";
    for (way, text, line) in WAYS {
        let text = format!("{}\npub struct A;", text.replace("ROOT", "crate::low::b"));
        let found = faults(&tree(&[("low/a.rs", &text), ("low/b.rs", other)]));
        assert_eq!(found, one(Wall::Circle, "low/a.rs", line), "{way}: {text}");
    }
}

#[test]
fn a_path_by_super_is_followed() {
    assert_one(&[("low/a.rs", "use super::super::high::NAME;")], Wall::Order, "low/a.rs", 1);
    assert_one(&[("low/a.rs", "mod m {\n    use super::super::super::high;\n}")], Wall::Order, "low/a.rs", 2);
    assert_one(
        &[("low/b.rs", "pub struct B(super::super::high::NAME);\nuse bytes::Bytes;")],
        Wall::Order,
        "low/b.rs",
        1,
    );
}

#[test]
fn a_path_that_begins_with_a_module_in_scope_is_followed() {
    let through = "use crate as all;\nfn f(_: all::high::NAME) {}";
    assert_one(&[("low/a.rs", through)], Wall::Order, "low/a.rs", 2);
    // The import of a module is reported; uses of it are not reported again.
    assert_one(&[("low/a.rs", "use crate::high;\nfn f(_: high::NAME) {}")], Wall::Order, "low/a.rs", 1);
    assert_one(&[("low/a.rs", "use crate::*;\nfn f() {\n    g!(high::NAME);\n}")], Wall::Order, "low/a.rs", 3);
    assert_one(
        &[("low/a.rs", "use super::b;\nuse b::*;\nextern crate self as us;\nuse us::high::NAME;")],
        Wall::Order,
        "low/a.rs",
        4,
    );
}

#[test]
fn a_macro_names_its_crate_by_a_variable() {
    let text = "macro_rules! m {\n    ($a:path) => {\n        $crate::high::NAME::from($a::new())\n    };\n}";
    assert_one(&[("low/a.rs", text)], Wall::Order, "low/a.rs", 3);
}

#[test]
fn a_re_export_hides_nothing() {
    // From the ground, but through a room that is higher.
    assert_one(&[("low/a.rs", "use crate::high::Lent;")], Wall::Order, "low/a.rs", 1);
    // From a higher room, but through one that is lower.
    let lends = "pub struct Base;\npub use crate::high::Part;";
    let found = faults(&tree(&[("ground.rs", lends), ("low/a.rs", "use crate::ground::Part;")]));
    let both =
        [one(Wall::Order, "ground.rs", 2), one(Wall::Order, "low/a.rs", 1), one(Wall::Circle, "high/part.rs", 1)];
    assert_eq!(found, both.concat_sets());
    // A crate, through a room that may use it.
    let crates = "ground: hyper\nlow: bytes";
    let lends = "pub struct Base;\npub use hyper::Body;";
    let found = faults_with(&tree(&[("ground.rs", lends), ("low/a.rs", "use crate::ground::Body;")]), crates);
    assert_eq!(found, one(Wall::Crates, "low/a.rs", 1));
    // A circle, through the parent of both.
    let [a, b] = ["use super::B;\npub struct A;", "use bytes::Bytes;\nuse super::A;\npub struct B(Bytes);"];
    let parent = "mod a;\nmod b;\npub use self::a::A;\npub use self::b::B;";
    let files = [("low/mod.rs", parent), ("low/a.rs", a), ("low/b.rs", b)];
    assert_one(&files, Wall::Circle, "low/a.rs", 1);
}

#[test]
fn a_parent_that_uses_what_it_re_exports_depends_on_it() {
    let parent = "mod a;\nmod b;\npub use self::b::B;\npub mod kept {\n    pub struct Kept(super::B);\n}";
    let b = "use bytes::Bytes;\npub struct B(Bytes);\nuse super::kept::Kept;";
    let found = faults(&tree(&[("low/mod.rs", parent), ("low/b.rs", b)]));
    let both = [one(Wall::Parent, "low/b.rs", 3), one(Wall::Circle, "low/mod.rs", 5)];
    assert_eq!(found, both.concat_sets());
}

#[test]
fn a_circle_of_three_files_is_one() {
    let [a, b] = ["use super::b::B;\npub struct A;", "use bytes::Bytes;\nuse super::c::C;\npub struct B(Bytes);"];
    let c = "fn f() {\n    super::a::A::new();\n}\npub struct C;";
    let parent = "mod a;\nmod b;\nmod c;";
    let files = [("low/mod.rs", parent), ("low/a.rs", a), ("low/b.rs", b), ("low/c.rs", c)];
    assert_one(&files, Wall::Circle, "low/a.rs", 1);
}

#[test]
fn a_test_module_in_its_own_file_is_a_part_of_its_module() {
    let parent = "mod a;\nmod b;\npub use self::b::B;\npub struct Own;\n#[cfg(test)]\nmod tests;";
    let tests = "use super::*;\nuse super::Own;\nuse proptest::prelude::*;\nfn f(_: Own) {}";
    assert_eq!(faults(&tree(&[("low/mod.rs", parent), ("low/tests.rs", tests)])), BTreeSet::new());
    // The order applies to them, too.
    let tests = "use super::*;\nuse crate::high::NAME;";
    assert_one(&[("low/mod.rs", parent), ("low/tests.rs", tests)], Wall::Order, "low/tests.rs", 2);
    // A module that is not for tests alone is not exempt.
    let parent = parent.replace("cfg(test)", "cfg(any(test, unix))");
    assert_one(&[("low/mod.rs", &parent), ("low/tests.rs", "use super::Own;")], Wall::Parent, "low/tests.rs", 1);
}

#[test]
fn a_dev_dependency_is_for_tests_alone() {
    let inside = "#[cfg(test)]\nmod tests {\n    use proptest::prelude::*;\n}";
    assert_eq!(faults(&tree(&[("low/a.rs", inside)])), BTreeSet::new());
    let all = "#[cfg(all(test, unix))]\nuse proptest::prelude::*;";
    assert_eq!(faults(&tree(&[("low/a.rs", all)])), BTreeSet::new());
    for cfg in ["unix", "not(test)", "any(test, unix)"] {
        let outside = format!("#[cfg({cfg})]\nuse proptest::prelude::*;");
        assert_one(&[("low/a.rs", &outside)], Wall::Crates, "low/a.rs", 2);
    }
}

#[test]
fn a_crate_that_is_listed_and_not_used_is_a_fault() {
    let found = faults_with(&tree(&[]), "low: bytes hyper");
    assert_eq!(found, one(Wall::Crates, "../tests/tidy/crates.txt", 1));
    let found = faults_with(&tree(&[]), "# comment\nlow: bytes\ngone:");
    assert_eq!(found, one(Wall::Crates, "../tests/tidy/crates.txt", 3));
}

#[test]
fn the_longest_row_of_the_table_of_crates_holds() {
    let crates = "low: bytes\nlow::a: hyper";
    assert_eq!(faults_with(&tree(&[("low/a.rs", "use hyper::Body;")]), crates), BTreeSet::new());
    let found = faults_with(&tree(&[("low/a.rs", "use hyper::Body;\nuse bytes::Bytes;")]), crates);
    assert_eq!(found, one(Wall::Crates, "low/a.rs", 2));
}

#[test]
fn the_table_of_rooms_names_every_module_once() {
    let without = LIBRARY.replace("//! | [`low`] | one |\n", "");
    let found = faults(&tree(&[("lib.rs", &without)]));
    assert!(found.contains(&(Wall::Table, "lib.rs".into(), 7)), "{found:?}");
    let twice = LIBRARY.replace("| one |\n", "| one |\n//! | [`low`] | one |\n");
    assert_one(&[("lib.rs", &twice)], Wall::Table, "lib.rs", 9);
    let more = LIBRARY.replace("| one |\n", "| one |\n//! | [`middle`] | none |\n");
    assert_one(&[("lib.rs", &more)], Wall::Table, "lib.rs", 1);
    // Another order is another set of rules.
    let turned = LIBRARY.replace("[`low`]", "[`x`]").replace("[`high`]", "[`low`]").replace("[`x`]", "[`high`]");
    assert_eq!(faults(&tree(&[("lib.rs", &turned), ("low/a.rs", "use crate::high::NAME;")])), BTreeSet::new());
}

#[test]
fn the_command_line_is_above_every_room_and_below_the_program() {
    assert_one(
        &[("main.rs", "mod cli;\nmod extra;"), ("extra.rs", "use tollgate::high::Part;")],
        Wall::Order,
        "extra.rs",
        1,
    );
    let main = "mod cli;\npub struct Own;";
    let found = faults(&tree(&[("main.rs", main), ("cli/run.rs", "use crate::Own;\npub fn run() {}")]));
    assert_eq!(found, [one(Wall::Parent, "cli/run.rs", 1), one(Wall::Order, "cli/run.rs", 1)].concat_sets());
    let main = "mod cli;\nuse tollgate::high::Name;\nuse hyper::Body;";
    assert_one(&[("main.rs", main)], Wall::Crates, "main.rs", 3);
}

#[test]
fn what_cannot_be_read_is_a_fault() {
    assert_one(&[("low/c.rs", "")], Wall::Unread, "low/c.rs", 1);
    assert_one(&[("ground.rs", "pub struct Base;\nmod missing;")], Wall::Unread, "ground.rs", 2);
    assert_one(&[("ground.rs", "pub struct Base;\ninclude!(\"missing.rs\");")], Wall::Unread, "ground.rs", 2);
    assert_one(&[("ground.rs", "pub struct Base;\nuse unheard::Of;")], Wall::Unread, "ground.rs", 2);
    assert_one(&[("low/a.rs", "use super::b::Missing;")], Wall::Unread, "low/a.rs", 1);
    let found = faults(&tree(&[("low/a.rs", "pub struct A;\nfn (")]));
    assert!(found.contains(&(Wall::Unread, "low/a.rs".into(), 2)), "{found:?}");
}

#[test]
fn a_file_that_is_named_or_included_is_read() {
    let named = "mod a;\nmod b;\npub use self::b::B;\n#[path = \"elsewhere/odd.rs\"]\nmod c;";
    let odd = ("low/elsewhere/odd.rs", "use crate::high::NAME;");
    assert_one(&[("low/mod.rs", named), odd], Wall::Order, "low/elsewhere/odd.rs", 1);
    let included = "mod a;\nmod b;\npub use self::b::B;\ninclude!(\"odd.rs\");";
    assert_one(&[("low/mod.rs", included), ("low/odd.rs", "use crate::high::NAME;")], Wall::Order, "low/odd.rs", 1);
}

#[test]
fn a_macro_of_the_parent_is_its_own_definition() {
    let parent = "macro_rules! ours {\n    () => {};\n}\nmod a;\nmod b;\npub use self::b::B;";
    assert_one(&[("low/mod.rs", parent), ("low/a.rs", "fn f() {\n    ours!();\n}")], Wall::Parent, "low/a.rs", 2);
}

#[test]
fn what_is_no_import_is_no_fault() {
    let text = "\
/// As [`crate::high::NAME`] does.
#[doc = \"crate::high::NAME\"]
#[expect(clippy::unwrap_used, reason = \"crate::high::NAME\")]
pub(in crate::low) fn f<T: Default>(high: u8) -> T {
    println!(\"crate::high::NAME {high}\");
    // crate::high::NAME
    let hyper = high.hyper;
    T::default()
}";
    assert_eq!(faults(&tree(&[("low/a.rs", text)])), BTreeSet::new());
}

trait ConcatSets {
    fn concat_sets(self) -> BTreeSet<(Wall, String, usize)>;
}

impl<const N: usize> ConcatSets for [BTreeSet<(Wall, String, usize)>; N] {
    fn concat_sets(self) -> BTreeSet<(Wall, String, usize)> {
        self.into_iter().flatten().collect()
    }
}
