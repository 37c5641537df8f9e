//! Tables in files, from which entries are derived: what they mean in a configuration (semantics 59).

use tollgate::decision::Reason;
use tollgate::descriptor::{Descriptor, Request};
use tollgate::engine::Engine;
use tollgate::rules::Rules;

use super::lists::{Files, passes, passes_all};
use futures_util::FutureExt;

/// Accounts and tiers by API keys. The second key has no tier.
const KEYS: &[u8] = b"api_key,account,tier\nAK1,ACME,gold\nak2,zeta,\nak3,acme,gold\n";

/// Limiters by tier, and a domain that derives `account` and `tier` from `api_key`.
const TIERS: &str = "
    [limiters.api_free]
    algorithm = 'sliding_window'
    limit = 1
    window = '1h'
    [limiters.api_gold]
    algorithm = 'sliding_window'
    limit = 2
    window = '1h'
    [tables.keys]
    file = 'keys.csv'
    by = 'api_key'
    [domains.edge]
    entries = ['api_key', 'path']
    normalise = { api_key = ['bearer', 'lowercase'], account = ['lowercase'] }
    [domains.edge.derive]
    account = { table = 'keys', from = 'api_key', column = 'account' }
    tier = { table = 'keys', from = 'api_key', column = 'tier', otherwise = 'free' }
";

const QUOTA: &str = "
    [[rules]]
    domain = 'edge'
    name = 'quota'
    apply = [{ limiter = 'api_{tier}', key = ['account'] }]
";

fn engine(toml: &str) -> Engine {
    Files::of(toml, &[("keys.csv", KEYS)]).engine()
}

fn tiers(rules: &str) -> Engine {
    engine(&format!("{TIERS}{rules}"))
}

fn deny(test: &str, more: &str) -> String {
    format!("[[rules]]\ndomain = 'edge'\nname = 'r'\nmatch = {{ {test} }}\naction = 'deny'\n{more}\n")
}

/// Why a request is refused, if it is.
fn refusal(engine: &Engine, entries: &[(&str, &str)]) -> Option<Reason> {
    let request =
        Request { domain: "edge", descriptors: [Descriptor::of(entries.iter().copied())].into_iter().collect() };
    let decision = engine.decide(&request).now_or_never().expect("the memory store never waits");
    decision.refusal().map(|refusal| refusal.reason)
}

#[test]
fn semantics_59_an_account_and_its_tier_are_derived_from_a_key() {
    let engine = tiers(QUOTA);
    // Two of the gold account, whichever of its keys it uses, in any spelling.
    assert!(passes(&engine, &[("api_key", "Bearer AK1")]) && passes(&engine, &[("api_key", "ak3")]));
    assert_eq!(refusal(&engine, &[("api_key", "ak1")]), Some(Reason::Limit));
    // An empty cell is no tier: otherwise.
    assert!(passes(&engine, &[("api_key", "ak2")]));
    assert_eq!(refusal(&engine, &[("api_key", "ak2")]), Some(Reason::Limit));
}

#[test]
fn semantics_59_a_derived_entry_is_never_the_clients() {
    let rules = deny("tier = 'gold'", "");
    let engine = tiers(&rules);
    assert!(!passes(&engine, &[("api_key", "ak1"), ("tier", "free")]));
    assert!(passes(&engine, &[("api_key", "ak2"), ("tier", "gold")]));
    assert!(passes(&engine, &[("tier", "gold")]));
    let engine = tiers(QUOTA);
    assert_eq!(refusal(&engine, &[("account", "acme"), ("tier", "gold")]), Some(Reason::MissingKey));
    // Nor is a list of them.
    let mut listed = Descriptor::of([("api_key", "ak2")]);
    listed.push_list("tier", vec!["gold".into()]);
    assert!(passes_all(&tiers(&rules), vec![listed]));
}

#[test]
fn semantics_59_what_comes_out_is_normalised_as_its_entry_is() {
    let engine = tiers(&deny("account = 'acme'", "missing = 'skip'"));
    assert!(!passes(&engine, &[("api_key", "ak1")]) && passes(&engine, &[("api_key", "ak2")]));
    let otherwise = TIERS.replace("column = 'account' }", "column = 'account', otherwise = 'NOBODY' }");
    let engine = self::engine(&format!("{otherwise}{}", deny("account = 'nobody'", "")));
    assert!(
        !passes(&engine, &[("api_key", "other")]) && !passes(&engine, &[]) && passes(&engine, &[("api_key", "ak2")])
    );
}

#[test]
fn semantics_59_a_counted_value_that_cannot_be_derived_is_denied() {
    let limiter = "[limiters.spread]\nalgorithm = 'distinct'\nof = ['account']\nlimit = 9\nwindow = '1h'\n";
    let rule = "[[rules]]\ndomain = 'edge'\nname = 'spread'\napply = [{ limiter = 'spread', key = ['path'] }]\n";
    let engine = engine(&format!("{TIERS}{limiter}{rule}"));
    assert!(passes(&engine, &[("api_key", "ak1"), ("path", "/")]));
    assert_eq!(refusal(&engine, &[("api_key", "other"), ("path", "/")]), Some(Reason::MissingKey));
}

#[test]
fn semantics_59_each_descriptor_is_derived_by_itself() {
    let engine = tiers(&deny("tier = 'gold', path = '/a'", ""));
    let with = |key, path| Descriptor::of([("api_key", key), ("path", path)]);
    assert!(passes_all(&engine, vec![with("ak1", "/b"), with("ak2", "/a")]));
    assert!(!passes_all(&engine, vec![with("ak2", "/a"), with("ak1", "/a")]));
    // The key of one descriptor is not that of another.
    let paths = Descriptor::of([("path", "/a")]);
    assert!(passes_all(&engine, vec![Descriptor::of([("api_key", "ak1")]), paths]));
}

#[test]
fn semantics_59_a_key_that_is_not_there_or_not_found_is_denied_by_key_and_by_template() {
    let by_key = "[[rules]]\ndomain = 'edge'\nname = 'q'\napply = [{ limiter = 'api_free', key = ['account'] }]\n";
    let without = TIERS.replace(", otherwise = 'free'", "");
    let by_template = "[[rules]]\ndomain = 'edge'\nname = 'q'\napply = [{ limiter = 'api_{tier}', key = ['path'] }]\n";
    for (toml, unknown) in [
        (format!("{TIERS}{by_key}"), &[("api_key", "other")][..]),
        (format!("{TIERS}{by_key}"), &[]),
        (format!("{without}{by_template}"), &[("api_key", "other"), ("path", "/")]),
        (format!("{without}{by_template}"), &[("path", "/")]),
        // An empty cell is no value.
        (format!("{without}{by_template}"), &[("api_key", "ak2"), ("path", "/")]),
    ] {
        assert_eq!(refusal(&engine(&toml), unknown), Some(Reason::MissingKey), "{unknown:?}");
        let said = toml.replace("apply = [{ ", "apply = [{ missing = 'skip', ");
        assert_eq!(refusal(&engine(&said), unknown), None, "{unknown:?}");
    }
    let said = format!("{TIERS}{by_key}").replace("apply = [{ ", "apply = [{ missing = 'empty', ");
    let engine = engine(&said);
    assert_eq!(refusal(&engine, &[]), None);
    assert_eq!(refusal(&engine, &[("api_key", "other")]), Some(Reason::Limit), "one counter for all unknown");
}

#[test]
fn semantics_59_nor_is_not_matching_a_way_around() {
    let unknown: &[&[(&str, &str)]] = &[&[("path", "/a")], &[("path", "/a"), ("api_key", "other")]];
    for test in [
        "path = '/a', account = 'acme'",
        "path = '/a', account = { not = 'acme' }",
        "path = '/a', account = '*'",
        "account = ['acme', 'x*']",
        "account = '*'",
    ] {
        for action in ["action = 'deny'", "action = 'allow'", "apply = [{ limiter = 'api_free', key = ['path'] }]"] {
            let rule = deny(test, "").replace("action = 'deny'", action);
            for entries in unknown {
                assert_eq!(refusal(&tiers(&rule), entries), Some(Reason::MissingKey), "{test} {action} {entries:?}");
                let said = tiers(&format!("{rule}missing = 'skip'\n"));
                assert_eq!(refusal(&said, entries), None, "{test} {action} {entries:?}");
                let shadow = tiers(&format!("{rule}mode = 'shadow'\n"));
                assert_eq!(refusal(&shadow, entries), None, "{test} {action} {entries:?}");
            }
            // Where the other entries do not match, it does not concern the request.
            if test.contains("path") {
                assert_eq!(refusal(&tiers(&rule), &[("path", "/b")]), None, "{test} {action}");
            }
        }
    }
    // A rule that asks for absence matches it.
    for test in ["account = { not = '*' }", "account = ['acme', { not = '*' }]"] {
        assert_eq!(refusal(&tiers(&deny(test, "")), &[]), Some(Reason::Denied), "{test}");
    }
    // `otherwise` is there.
    assert_eq!(refusal(&tiers(&deny("tier = 'gold'", "")), &[]), None);
    // A rule before it that ends the walk is asked first.
    let first = "[[rules]]\ndomain = 'edge'\nname = 'open'\nmatch = { path = '/a' }\naction = 'allow'\n";
    let rules = format!("{first}{}", deny("account = 'acme'", ""));
    assert_eq!(refusal(&tiers(&rules), &[("path", "/a")]), None);
    assert_eq!(refusal(&tiers(&rules), &[("path", "/b")]), Some(Reason::MissingKey));
}

#[test]
fn semantics_59_a_repeated_key_is_in_doubt_and_a_list_of_keys_gives_a_list() {
    let values = |values: &[&'static str]| values.iter().map(|value| (*value).into()).collect::<Vec<_>>();
    let engine = tiers(&deny("tier = 'gold'", ""));
    for (keys, by_list) in [(["ak1", "ak2"], false), (["ak2", "other"], true)] {
        let mut listed = Descriptor::default();
        listed.push_list("api_key", values(&keys));
        assert_eq!(passes_all(&engine, vec![listed]), by_list, "{keys:?}");
        let mut repeated = Descriptor::default();
        repeated.push_repeated("api_key", values(&keys));
        assert!(!passes_all(&engine, vec![repeated]), "{keys:?}");
    }
    // What cannot be read may be any key.
    let mut unreadable = Descriptor::default();
    unreadable.push_unreadable("api_key");
    assert!(!passes_all(&engine, vec![unreadable]));
    // Neither key has an account, whichever is meant.
    let engine = tiers(&deny("account = 'acme'", ""));
    let mut repeated = Descriptor::default();
    repeated.push_repeated("api_key", values(&["x", "y"]));
    assert!(!passes_all(&engine, vec![repeated]));
}

#[test]
fn semantics_59_digests_are_of_the_normalised_value() {
    let real = sha256("ak1");
    let toml =
        format!("{TIERS}{}", deny("tier = 'gold'", "")).replace("by = 'api_key'", "by = 'api_key'\nhashed = 'sha256'");
    let keys = format!("api_key,account,tier\n{real},acme,gold\n");
    let engine = Files::of(&toml, &[("keys.csv", keys.as_bytes())]).engine();
    for spelling in ["ak1", "AK1", "Bearer Ak1"] {
        assert!(!passes(&engine, &[("api_key", spelling)]), "{spelling}");
    }
    assert!(passes(&engine, &[("api_key", &real)]) && passes(&engine, &[("api_key", "ak2")]));
    let keys = keys.replace(&real, &real.to_uppercase());
    let errors = Files::of(&toml, &[("keys.csv", keys.as_bytes())]).errors();
    assert_eq!(
        errors,
        [
            "keys.csv:2: tables.keys has no digest of \"api_key\" here; expected 64 lower-case hex digits, the SHA-256 of the \
          value, or leave hashed out"
        ]
    );
}

/// The SHA-256 of a text by a program of the system.
fn sha256(text: &str) -> String {
    use std::io::Write;
    use std::process::{Command, Stdio};
    let mut child = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("sha256sum");
    child.stdin.take().expect("piped").write_all(text.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("it ends").stdout;
    String::from_utf8(output).expect("text").split(' ').next().expect("a digest").to_owned()
}

#[test]
fn semantics_59_errors_name_the_file_the_line_and_the_remedy() {
    let cases: &[(&str, &[u8], &[&str])] = &[
        (
            "",
            b"api_key,account,tier\na,x,\nb,y,\nA,z,\n",
            &["keys.csv:4: tables.keys has the value of \"api_key\" of line 2 here again; remove one of these rows"],
        ),
        (
            "",
            b"api_key,account,tier\na,x\n",
            &["keys.csv:2: tables.keys has 2 cells here, expected 3 as in the first line; put a cell with a comma in \
               quotes"],
        ),
        (
            "",
            b"api_key,account,tier\n,x,\n",
            &["keys.csv:2: tables.keys has a row without a value of \"api_key\" here; \
                                              remove it, or write the value"],
        ),
        (
            "",
            b"api_key,account,tier\n",
            &["keys.csv: tables.keys has no row; expected the names of the columns in the \
                                         first line, and rows below"],
        ),
        (
            "",
            b"api_key,account,tier\n\xff,x,\n",
            &["keys.csv:2: tables.keys is not UTF-8 here; save the file as UTF-8"],
        ),
        (
            "",
            b"api_key,account,account\na,b,c\n",
            &["keys.csv:1: tables.keys has the column \"account\" twice; rename one"],
        ),
        (
            "",
            b"key,account,tier\na,x,\n",
            &["tollgate.toml:12: tables.keys.by is \"api_key\", but the first line of the file has no such column; \
               columns: key, account, tier"],
        ),
        (
            "",
            b"api_key,account,plan\na,x,\n",
            &["tollgate.toml:18: domains.edge.derive.tier.column is \"tier\", but table \"keys\" has no such column; \
               columns: api_key, account, plan"],
        ),
        (
            "from = 'account'",
            KEYS,
            &[
                "tollgate.toml:18: domains.edge.derive.tier.from is \"account\", but that is derived itself; name an entry \
               that clients send",
            ],
        ),
        (
            "table = 'kees'",
            KEYS,
            &[
                "tollgate.toml:18: domains.edge.derive.tier.table is \"kees\", but no table has this name; did you mean \
               \"keys\"?",
            ],
        ),
        (
            "from = 'apikey'",
            KEYS,
            &["tollgate.toml:18: domains.edge.derive.tier.from names the entry \"apikey\", which the domain does not \
               declare; did you mean \"api_key\"?"],
        ),
    ];
    for (with, file, expected) in cases {
        let toml = match with.split_once(" = ") {
            None => format!("{TIERS}{QUOTA}"),
            Some((key, _)) => {
                let before =
                    if key == "from" { "tier = { table = 'keys', from = 'api_key'" } else { "tier = { table = 'keys'" };
                let after = if key == "from" {
                    format!("tier = {{ table = 'keys', {with}")
                } else {
                    format!("tier = {{ {with}")
                };
                format!("{}{QUOTA}", TIERS.replace(before, &after))
            }
        };
        assert_eq!(Files::of(&toml, &[("keys.csv", file)]).errors(), *expected, "{with}");
    }
    // No error shows a credential.
    let secret = b"api_key,account,tier\nvery-secret,x,\nvery-secret,y,\n";
    let errors = Files::of(&format!("{TIERS}{QUOTA}"), &[("keys.csv", secret)]).errors();
    assert!(!errors.concat().contains("very-secret"), "{errors:?}");
    let no_effect = format!("{TIERS}{}", deny("path = '/a'", "missing = 'skip'"));
    let errors = Files::of(&no_effect, &[("keys.csv", KEYS)]).errors();
    assert!(errors[0].ends_with("but match names no derived entry, so it has no effect; remove it"), "{errors:?}");
}

#[test]
fn semantics_59_bom_crlf_quotes_and_spaces_are_those_of_csv() {
    let keys = "\u{feff}api_key , account,tier\r\n\"a,b\", acme ,\"gold\"\r\n".as_bytes();
    let engine =
        Files::of(&format!("{TIERS}{}", deny("account = 'acme', tier = 'gold'", "")), &[("keys.csv", keys)]).engine();
    assert!(!passes(&engine, &[("api_key", "a,b")]));
}

#[test]
fn semantics_59_check_says_what_refuses_without_a_row_and_warns_of_what_nothing_uses() {
    let noted = |rule: &str| {
        let config = Files::of(&format!("{TIERS}{rule}"), &[("keys.csv", KEYS)]).config();
        config
            .notes
            .iter()
            .filter(|note| note.path.starts_with("rules"))
            .map(|note| note.text.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(
        noted(&deny("account = 'acme', tier = 'gold'", "")),
        [
            "rules[0].match.account is derived: without a row of table \"keys\" for api_key, this rule refuses what its other \
          entries match (missing_key); with missing = \"skip\" it does not match"
        ]
    );
    assert!(noted(&deny("account = 'acme'", "missing = 'skip'")).is_empty());
    assert!(noted(&deny("account = { not = '*' }", "")).is_empty());
    assert!(noted(&deny("path = '/a'", "")).is_empty());
    let kinds = |toml: &str| {
        let warnings = Files::of(toml, &[("keys.csv", KEYS)]).warnings();
        warnings.into_iter().map(|(kind, line, _)| (kind, line)).collect::<Vec<_>>()
    };
    let unused = "[tables.keys]\nfile = 'keys.csv'\nby = 'api_key'\n".to_owned() + &deny("path = '/a'", "");
    assert!(kinds(&unused).contains(&("unused_table".to_owned(), 1)));
    let tier = format!("{TIERS}{QUOTA}").replace("'api_{tier}'", "'api_free'");
    assert!(kinds(&tier).contains(&("unused_entry".to_owned(), 18)), "{:?}", kinds(&tier));
    // `from` is what neither the gateway nor the domain is known to send.
    let unknown = format!("{TIERS}{QUOTA}").replace("entries = ['api_key', 'path']\n", "\n");
    let unknown = unknown.replace("api_key = ['bearer', 'lowercase'], ", "");
    assert!(kinds(&unknown).contains(&("unknown_entry".to_owned(), 17)), "{:?}", kinds(&unknown));
    // Only that of the template without `otherwise`.
    assert_eq!(kinds(&format!("{TIERS}{QUOTA}")), [("unmatched_tier".to_owned(), 23)]);
}

#[test]
fn semantics_59_check_print_is_the_same_configuration() {
    let rules = format!("{TIERS}{QUOTA}{}", deny("account = 'acme'", "missing = 'skip'"));
    let files = Files::of(&rules, &[("keys.csv", KEYS)]);
    let printed = files.config().effective();
    for part in [
        "tables:\n  keys:\n    file: keys.csv\n    by: api_key\n",
        "      account:\n        table: keys\n        from: api_key\n        column: account\n",
        "        otherwise: free\n",
        "missing: skip\n",
        "missing: deny\n",
    ] {
        assert!(printed.contains(part), "{part} in {printed}");
    }
    assert!(!printed.contains("AK1"), "{printed}");
    files.write("printed.yaml", printed.as_bytes());
    let again = tollgate::config::Config::load(Some(&files.path("printed.yaml"))).expect("it is a configuration");
    assert_eq!(again.effective(), printed);
}

#[test]
fn semantics_59_a_change_of_the_table_is_a_change_of_the_configuration_and_a_broken_one_is_an_error() {
    let files = Files::of(&format!("{TIERS}{QUOTA}"), &[("keys.csv", KEYS)]);
    let (origin, config) = files.read();
    config.expect("it is good");
    assert!(origin.paths().any(|path| path == files.path("keys.csv")));
    for broken in [&b""[..], b"api_key,account,tier\na,b,c\na,b,c\n", b"api_key,account,tier\na"] {
        files.write("keys.csv", broken);
        let (changed, config) = origin.read_again();
        assert_ne!(origin, changed);
        config.expect_err("it is broken");
    }
}

#[test]
fn semantics_59_a_value_is_looked_up_as_a_request_looks_it_up() {
    let book = Files::of(&format!("{TIERS}{QUOTA}"), &[("keys.csv", KEYS)]).config().book;
    let found = book.look_up("keys", "Bearer AK1").expect("the table");
    assert_eq!(found.len(), 1);
    assert_eq!(found[0].by, Some(("edge".to_owned(), "api_key".to_owned())));
    assert_eq!((found[0].value.as_str(), found[0].row.as_ref().map(|(line, _)| *line)), ("ak1", Some(2)));
    let derived = |entry: &str, value: Option<&str>| (entry.to_owned(), value.map(str::to_owned));
    assert_eq!(found[0].derived, [derived("account", Some("acme")), derived("tier", Some("gold"))]);
    let none = book.look_up("keys", "other").expect("the table");
    assert_eq!(
        (none[0].row.is_none(), &none[0].derived[..]),
        (true, &[derived("account", None), derived("tier", Some("free"))][..])
    );
    assert!(book.look_up("kees", "ak1").is_none());
}

#[test]
fn semantics_59_a_million_rows_are_found_in_bounded_memory() {
    let mut rows = "api_key,account,tier\n".to_owned();
    for number in 0..1_000_000_u32 {
        let scattered = number.wrapping_mul(2_654_435_761);
        rows += &format!(
            "{scattered:08x}{number:08x}{scattered:08x}{number:08x}{scattered:08x}{number:08x}{scattered:08x}{number:08x},\
                          account{number},{}\n",
            if number % 9 == 0 { "gold" } else { "free" }
        );
    }
    let hashed = TIERS.replace("by = 'api_key'", "by = 'api_key'\nhashed = 'sha256'");
    for toml in [TIERS, &hashed] {
        let files = Files::of(&format!("{toml}{QUOTA}"), &[("keys.csv", rows.as_bytes())]);
        let rules = Rules::compile(files.config().book).expect("it compiles");
        assert_eq!(rules.tables()[0].rows, 1_000_000);
        assert!(rules.tables()[0].bytes < 120 * 1_000_000, "{}", rules.tables()[0].bytes);
    }
}
