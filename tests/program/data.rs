//! Lists and tables of the real program: reloads, commands and what they say (semantics 58 and 59).

use std::fs;
use std::path::Path;
use std::process::{Output, Stdio};

use tempfile::TempDir;

use crate::support::binary::{DOORS, Served, tollgate};

/// A configuration with a list and a table, whose files are in this directory.
fn config(directory: &Path) -> String {
    let directory = directory.display();
    format!(
        "[lists.blocked]\nfile = '{directory}/blocked.txt'\n\
         [tables.keys]\nfile = '{directory}/keys.csv'\nby = 'api_key'\n\
         [domains.edge]\nnormalise = {{ api_key = ['lowercase'] }}\n\
         [domains.edge.derive]\naccount = {{ table = 'keys', from = 'api_key', column = 'account' }}\n\
         tier = {{ table = 'keys', from = 'api_key', column = 'tier', otherwise = 'free' }}\n\
         [limiters.login]\nalgorithm = 'sliding_window'\nlimit = 1\nwindow = '1h'\n\
         [[rules]]\ndomain = 'edge'\nname = 'blocked'\nmatch = {{ device = {{ list = 'blocked' }} }}\naction = 'deny'\n\
         [[rules]]\ndomain = 'edge'\nname = 'quota'\nmatch = {{ tier = 'gold' }}\n\
         apply = [{{ limiter = 'login', key = ['account'] }}]\n\
         [authz]\ndomain = 'edge'\n[authz.entries]\ndevice = {{ header = 'x-device' }}\n\
         api_key = {{ header = 'x-api-key' }}\n"
    )
}

fn files() -> TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    write(&directory, "blocked.txt", "d1\n");
    write(&directory, "keys.csv", "api_key,account,tier\nk1,acme,gold\n");
    directory
}

/// Replaces a file by a rename, as the page says.
fn write(directory: &TempDir, name: &str, content: &str) {
    let beside = directory.path().join("new");
    fs::write(&beside, content).expect("written");
    fs::rename(beside, directory.path().join(name)).expect("renamed");
}

fn run(directory: &TempDir, arguments: &[&str], input: &str) -> (Option<i32>, String, String) {
    use std::io::Write;
    let mut command = tollgate(directory.path());
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program starts");
    // A command that reads nothing may have ended.
    drop(child.stdin.take().expect("piped").write_all(input.as_bytes()));
    let Output { status, stdout, stderr } = child.wait_with_output().expect("it ends");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    (status.code(), text(stdout), text(stderr))
}

#[test]
fn semantics_58_and_59_files_are_watched_and_a_broken_one_keeps_the_old_and_says_so() {
    let files = files();
    let served = Served::start(&format!("{DOORS}{}", config(files.path())), &[]);
    assert!(served.said().contains("list loaded list=\"blocked\" values=1 bytes="), "{}", served.said());
    assert!(served.said().contains("table loaded table=\"keys\" rows=1 bytes="), "{}", served.said());
    let device = |device: &str| served.ask("GET /authz/envoy/", &format!("x-device: {device}\r\n"));
    let key = |key: &str| served.ask("GET /authz/envoy/", &format!("x-api-key: {key}\r\n"));
    assert_eq!([device("d1"), device("d2"), key("K1"), key("k1"), key("k2")], [403, 200, 200, 429, 200]);
    write(&files, "blocked.txt", "d2\n");
    served.until("version=2");
    assert_eq!([device("d1"), device("d2")], [200, 403]);
    write(&files, "keys.csv", "api_key,account,tier\nk2,acme,gold\n");
    served.until("version=3");
    // The account of the new key has used its one.
    assert_eq!([key("k1"), key("k2")], [200, 429]);
    for (name, content, said) in [
        ("blocked.txt", "# nobody\n", "blocked.txt: lists.blocked has no value; expected one on each line"),
        ("keys.csv", "api_key,account,tier\nk2\n", "keys.csv:2: tables.keys has 1 cells here, expected 3"),
    ] {
        let good = fs::read_to_string(files.path().join(name)).expect("it is there");
        write(&files, name, content);
        served.until(said);
        assert_eq!([device("d1"), device("d2"), key("k1"), key("k2")], [200, 403, 200, 429], "{name}");
        write(&files, name, &good);
        served.until("configuration unchanged");
    }
    assert!((served.metric("tollgate_list_values{list=\"blocked\"}") - 1.0).abs() < f64::EPSILON);
    assert!(served.metric("tollgate_list_bytes{list=\"blocked\"}") > 0.0);
    assert!((served.metric("tollgate_table_rows{table=\"keys\"}") - 1.0).abs() < f64::EPSILON);
    assert!(served.metric("tollgate_table_bytes{table=\"keys\"}") > 0.0);
}

#[test]
fn semantics_58_and_59_check_and_explain_say_which_list_has_a_value_and_what_was_derived() {
    let files = files();
    fs::write(files.path().join("tollgate.toml"), config(files.path())).expect("written");
    let (code, out, err) = run(&files, &["check", "--strict", "tollgate.toml"], "");
    assert_eq!((code, err.as_str()), (Some(0), ""));
    assert!(out.contains("tollgate.toml:1: note: lists.blocked has 1 values in "), "{out}");
    assert!(out.contains("tollgate.toml:3: note: tables.keys has 1 rows in "), "{out}");
    assert!(out.ends_with("good: 2 rules, 1 limiter, 1 store, 1 list, 1 table\n"), "{out}");
    let explain = |entries: &[&str]| run(&files, &[&["explain", "edge"], entries].concat(), "").1;
    let text = explain(&["device=d1", "api_key=K1", "tier=free"]);
    for part in [
        "  tier = \"free\": ignored, because the domain derives it\n",
        "  account = \"acme\": derived from api_key by table keys\n",
        "  tier = \"gold\": derived from api_key by table keys\n",
        "rule blocked matches\n  device is in list blocked\n",
        "rule quota would match, but an earlier rule ends the walk\n",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let text = explain(&["device=d2", "api_key=other"]);
    for part in [
        "  account is absent: derived from api_key, which is not in table keys\n",
        "  tier = \"free\": derived from api_key, which is not in table keys\n",
        "rule blocked nearly matches\n  device is \"d2\", expected { list = \"blocked\" }\n",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let without = config(files.path()).replace(", otherwise = 'free'", "");
    fs::write(files.path().join("tollgate.toml"), without).expect("written");
    let text = explain(&[]);
    for part in [
        "  tier is absent: derived from api_key, which is missing\n",
        "rule quota refuses: it names tier, which is derived and absent\n",
        "verdict: refused by rule quota, because tier is absent\n",
    ] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
}

#[test]
fn semantics_59_table_lookup_shows_the_row_of_a_value_and_what_is_derived() {
    let files = files();
    fs::write(files.path().join("tollgate.toml"), config(files.path())).expect("written");
    let found = "domain edge, api_key = \"k1\" in table keys\n  row in line 2\n    api_key \"k1\"\n    account \"acme\"\n    \
                 tier \"gold\"\n  derives account = \"acme\"\n  derives tier = \"gold\"\n";
    assert_eq!(run(&files, &["table", "lookup", "keys", "K1"], ""), (Some(0), found.to_owned(), String::new()));
    assert_eq!(run(&files, &["table", "lookup", "keys", "-"], "K1\n"), (Some(0), found.to_owned(), String::new()));
    let none = "domain edge, api_key = \"k9\" in table keys\n  no row\n  derives no account: it is absent\n  derives tier = \
                \"free\"\n";
    assert_eq!(run(&files, &["table", "lookup", "keys", "k9"], ""), (Some(1), none.to_owned(), String::new()));
    let (code, _, err) = run(&files, &["table", "lookup", "kees", "k1"], "");
    assert_eq!((code, err.as_str()), (Some(1), "tollgate: no table has the name \"kees\"; tables: keys\n"));
}
