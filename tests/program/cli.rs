//! The real program: its output and its exit codes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::support::processes::Certificates;

/// The program in a directory of its own, without the caller's environment variables.
fn tollgate(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_tollgate"));
    command.current_dir(directory).env_remove("TOLLGATE_CONFIG").env_remove("RUST_LOG").env("COLUMNS", "100");
    command
}

fn written(files: &[(&str, &str)]) -> tempfile::TempDir {
    let directory = tempfile::tempdir().expect("a directory");
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().expect("inside")).expect("created");
        std::fs::write(path, text).expect("written");
    }
    directory
}

fn run(directory: &Path, arguments: &[&str]) -> Output {
    tollgate(directory).args(arguments).output().expect("the program runs")
}

fn out(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("text")
}

fn err(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).expect("text")
}

const GOOD: &str = r#"
[limiters.login]
algorithm = "sliding_window"
limit = 5
window = "5m"

[limiters.api_free]
algorithm = "token_bucket"
limit = 100
window = "1h"
burst = 20

[domains.edge]
entries = ["remote_address", "path", "method", "account", "device", "tier", "plan", "region"]
normalise = { path = ["path"], account = ["lowercase", "trim"] }

[[rules]]
domain = "edge"
name = "office"
match = { remote_address = "10.0.0.0/8" }
action = "allow"

[[rules]]
domain = "edge"
name = "login"
match = { path = "/login", method = "POST" }
apply = [{ limiter = "login", key = ["account"] }, { limiter = "login", key = ["device"], charge = "own" }]

[[rules]]
domain = "edge"
name = "quota"
match = { account = "*" }
apply = [{ limiter = "api_{tier}", otherwise = "api_free", key = ["account"] }]

[[rules]]
domain = "edge"
name = "exports"
match = { path = "/export", plan = "pro", region = "eu" }
apply = [{ limiter = "login", key = ["account"] }]
"#;

const BAD: &str = "[limiters.login]\nalgorithm = 'sliding_window'\nlimit = 0\nwindow = '0s'\n";

#[test]
fn check_passes_a_good_file_and_refuses_a_bad_one_with_all_its_errors() {
    let directory = written(&[("good.toml", GOOD), ("bad.toml", BAD)]);
    let good = run(directory.path(), &["check", "good.toml"]);
    assert_eq!((out(&good).as_str(), err(&good).as_str()), ("good.toml: good: 4 rules, 2 limiters, 1 store\n", ""));
    assert_eq!(good.status.code(), Some(0));
    let bad = run(directory.path(), &["check", "bad.toml", "good.toml"]);
    assert_eq!(
        err(&bad),
        "bad.toml:3: limiters.login.limit is 0, expected more than zero\n\
         bad.toml:4: limiters.login.window is \"0s\", expected more than zero\n"
    );
    assert_eq!(out(&bad), "good.toml: good: 4 rules, 2 limiters, 1 store\n");
    assert_eq!(bad.status.code(), Some(1));
    let missing = run(directory.path(), &["check", "none.toml"]);
    assert_eq!((err(&missing).as_str(), missing.status.code()), ("none.toml: no such file or directory\n", Some(1)));
}

#[test]
fn check_print_shows_what_takes_effect_and_masks_secrets() {
    let text = "[server]\nsecret = '${SECRET}'\n[stores.a]\nengine = 'redis'\nurl = 'redis://me:${SECRET}@host/0'\n";
    let directory = written(&[("a.toml", text)]);
    let output = tollgate(directory.path())
        .args(["check", "--print", "a.toml"])
        .env("SECRET", "hunter2hunter2hunter2")
        .output()
        .expect("the program runs");
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!(out(&output) + &err(&output));
}

#[test]
fn explain_says_which_rules_match_which_nearly_match_and_what_is_charged() {
    let directory = written(&[("tollgate.toml", GOOD)]);
    let entries = ["path=/login", "method=POST", "remote_address=192.0.2.7", "account= Bob", "tier=gold"];
    let output = run(directory.path(), &[&["explain", "edge"][..], &entries].concat());
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
    insta::assert_snapshot!("explain", out(&output));
    let bare = out(&run(directory.path(), &["explain", "edge"]));
    let exports = "rule exports does not match: expected path \"/export\", plan \"pro\", region \"eu\"\n";
    assert!(bare.contains(exports), "{bare}");
    let nothing = run(directory.path(), &["explain", "--config", "tollgate.toml", "egde", "path=/login"]);
    insta::assert_snapshot!("explain_unknown_domain", out(&nothing));
    let usage = run(directory.path(), &["explain", "edge", "path"]);
    assert_eq!(usage.status.code(), Some(2));
    assert!(err(&usage).contains("expected ENTRY=VALUE, such as account=bob"), "{}", err(&usage));
}

#[test]
fn explain_shows_what_a_misspelt_key_means() {
    let directory = written(&[("tollgate.toml", GOOD)]);
    let entries = ["pth=/login", "method=POST", "acount=bob", "region-code=eu", "release=x"];
    let text = out(&run(directory.path(), &[&["explain", "edge"][..], &entries].concat()));
    let unknown = "\n\nno rule uses acount, did you mean account?\nno rule uses pth, did you mean path?\nno rule uses region-code\n\n";
    assert!(text.contains(unknown), "{text}");
    assert!(text.contains("rule login nearly matches\n  path is missing"), "{text}");
}

#[test]
fn semantics_63_explain_shows_what_a_repeated_entry_does() {
    let entries = "\n[authz]\ndomain = 'edge'\n[authz.entries]\naccount = { header = 'x-account'MORE }\n";
    let explained = |more: &str| {
        let text = format!("{GOOD}{}", entries.replace("MORE", more));
        let directory = written(&[("tollgate.toml", &text)]);
        let output = run(directory.path(), &["explain", "edge", "path=/x", "account=a", "tier=free", "account=bob"]);
        assert_eq!(output.status.code(), Some(0), "{}", err(&output));
        out(&output)
    };
    let denied = explained("");
    for part in [
        "  account = \"a\" or \"bob\": repeated, so its value is in doubt\n",
        "rule quota matches\n  refuses, because it needs account: the request charges nothing\n",
        "verdict: refused by rule quota, because account is repeated\n",
    ] {
        assert!(denied.contains(part), "{part} in\n{denied}");
    }
    for (word, value) in [("first", "a"), ("last", "bob"), ("join", "a,bob")] {
        let text = explained(&format!(", repeated = '{word}'"));
        assert!(text.contains(&format!("  account = {value:?}\n")), "{text}");
        assert!(!text.contains("repeated"), "{text}");
    }
}

#[test]
fn rules_are_not_explained_where_there_is_no_configuration() {
    let directory = written(&[]);
    for command in ["explain", "key"] {
        let output = run(directory.path(), &[command, "edge", "account=bob"]);
        assert_eq!((output.status.code(), out(&output).as_str()), (Some(1), ""), "{command}");
        let said = err(&output);
        assert!(
            said.contains("no configuration found; looked at TOLLGATE_CONFIG (not set), ./tollgate.toml"),
            "{said}"
        );
    }
}

/// The output of `explain` for a descriptor `a=b`: all lines but the last, and the last.
fn explained(text: &str) -> (String, String) {
    let directory = written(&[("tollgate.toml", text)]);
    let output = run(directory.path(), &["explain", "edge", "a=b"]);
    assert_eq!((output.status.code(), err(&output).as_str()), (Some(0), ""));
    let said = out(&output);
    let (rest, verdict) = said.trim_end().rsplit_once('\n').expect("several lines");
    (rest.to_owned(), verdict.to_owned())
}

#[test]
fn explain_lets_a_rule_in_shadow_change_neither_verdict_nor_walk() {
    let limiter = "[limiters.a]\nmax_concurrent = 1\n";
    let rule = |name: &str, keys: &str| format!("[[rules]]\ndomain = 'edge'\nname = '{name}'\n{keys}\n");
    let apply = "apply = [{ limiter = 'a' }]";
    let shadow = |keys: &str| format!("mode = 'shadow'\n{keys}");
    for keys in ["action = 'allow'", "action = 'deny'", "final = true\naction = 'deny'"] {
        let text = limiter.to_owned() + &rule("trial", &shadow(keys)) + &rule("real", apply);
        let (rest, verdict) = explained(&text);
        assert!(rest.contains("rule trial matches, in shadow") && rest.contains("rule real matches\n"), "{rest}");
        assert!(rest.contains("but is in shadow: the walk continues"), "{rest}");
        assert_eq!(verdict, "verdict: passes if its counter has room", "{keys}");
    }
    let counted = shadow(apply);
    let (_, verdict) = explained(&(limiter.to_owned() + &rule("trial", &counted)));
    assert_eq!(verdict, "verdict: only rules in shadow match, so it passes (unmatched = \"allow\")");
    let deny = "[domains.edge]\nunmatched = 'deny'\n";
    let (_, verdict) = explained(&(limiter.to_owned() + deny + &rule("trial", &counted)));
    assert_eq!(verdict, "verdict: only rules in shadow match, so it is refused (unmatched = \"deny\")");
    let (_, verdict) = explained(&format!("{deny}mode = 'shadow'\n"));
    assert_eq!(verdict, "verdict: no rule matches, but it passes, because the whole domain is in shadow");
    let (_, verdict) = explained(&(limiter.to_owned() + deny + "mode = 'shadow'\n" + &rule("real", apply)));
    assert_eq!(verdict, "verdict: passes, because everything that is counted is in shadow");
}

#[test]
fn usage_errors_end_with_two_and_help_and_version_with_zero() {
    let directory = written(&[]);
    for arguments in [&[][..], &["serv"], &["check"], &["serve", "--port", "1"], &["completions", "fsh"]] {
        assert_eq!(run(directory.path(), arguments).status.code(), Some(2), "{arguments:?}");
    }
    let help = run(directory.path(), &["--help"]);
    assert_eq!(help.status.code(), Some(0));
    insta::assert_snapshot!("help", out(&help));
    let version = run(directory.path(), &["--version"]);
    assert_eq!(out(&version), format!("tollgate {}\n", env!("CARGO_PKG_VERSION")));
    for command in ["serve", "check", "explain", "completions"] {
        assert!(out(&run(directory.path(), &[command, "--help"])).contains("Examples:"), "{command}");
    }
}

#[test]
fn schema_and_completions_print() {
    let directory = written(&[]);
    let schema = run(directory.path(), &["schema"]);
    let committed = Path::new(env!("CARGO_MANIFEST_DIR")).join("config/tollgate.schema.json");
    assert!(out(&schema) == std::fs::read_to_string(committed).expect("the schema is there"));
    for shell in ["bash", "zsh", "fish"] {
        let script = run(directory.path(), &["completions", shell]);
        assert_eq!(script.status.code(), Some(0));
        assert!(out(&script).contains("explain"), "{shell}");
    }
}

/// Starts `serve`, waits until it reports that it listens, and returns its output until then.
fn serve(command: &mut Command) -> (std::process::Child, String) {
    let mut child = command.stderr(Stdio::piped()).spawn().expect("the program runs");
    let mut said = String::new();
    for line in BufReader::new(child.stderr.take().expect("piped")).lines() {
        let line = line.expect("text");
        said += &line;
        said.push('\n');
        if line.contains("gRPC on ") {
            break;
        }
    }
    (child, said)
}

fn signal(child: &std::process::Child, name: &str) {
    let sent = Command::new("kill").args([name, &child.id().to_string()]).status().expect("kill runs");
    assert!(sent.success());
}

#[test]
fn the_first_signal_lets_requests_finish_and_the_second_ends_at_once() {
    let directory = written(&[("tollgate.toml", &format!("{ANY_PORT}{RULE}"))]);
    let mut command = tollgate(directory.path());
    let mut child =
        command.arg("serve").env("RUST_LOG", "trace").stderr(Stdio::piped()).spawn().expect("the program runs");
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map(|line| line.expect("text"));
    let mut until = |text: &str| {
        let found = lines.by_ref().inspect(|line| said += line).find(|line| line.contains(text));
        found.unwrap_or_else(|| panic!("it never said {text:?}"))
    };
    let open = until("HTTP on ");
    let (_, address) = open.rsplit_once(' ').expect("an address");
    let mut half = TcpStream::connect(address).expect("connected");
    half.write_all(b"GET /authz/envoy/ HTTP/1.1\r\nHost: a\r\n").expect("sent");
    // Connections are accepted in order, so the unfinished request is in flight once a later one has its response.
    let mut whole = TcpStream::connect(address).expect("connected");
    whole.write_all(b"GET /healthcheck HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    whole.read_to_string(&mut answer).expect("answered");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    signal(&child, "-INT");
    until("tollgate: stopping: waiting for requests in flight; send the signal again to stop at once");
    signal(&child, "-TERM");
    assert_eq!(child.wait().expect("ended").code(), Some(130));
    assert!(!said.contains('\u{1b}'), "colours in a pipe: {said}");
    drop(half);
}

fn stop(mut child: std::process::Child) {
    child.kill().expect("still there");
    child.wait().expect("ended");
}

const RULE: &str = "[[rules]]\ndomain = 'edge'\nname = 'all'\naction = 'deny'\n";
const ANY_PORT: &str = "[server]\ngrpc = '127.0.0.1:0'\nhttp = '127.0.0.1:0'\nadmin = 'off'\ndrain_delay = '0s'\n";

#[test]
fn serve_takes_the_first_configuration_in_the_order_of_search() {
    let bad = |name: &str| format!("{ANY_PORT}{name} = 1\n");
    let directory = written(&[
        ("named.toml", &bad("named")),
        ("variable.toml", &bad("variable")),
        ("tollgate.toml", &bad("first")),
        ("tollgate.yaml", "second: 1\n"),
        ("tollgate.yml", "third: 1\n"),
        ("config/tollgate.toml", &bad("fourth")),
        ("config/tollgate.yaml", "fifth: 1\n"),
        ("config/tollgate.yml", "sixth: 1\n"),
    ]);
    let path = directory.path();
    let said = |command: &mut Command| err(&command.output().expect("the program runs"));
    let named = said(tollgate(path).args(["serve", "--config", "named.toml"]).env("TOLLGATE_CONFIG", "variable.toml"));
    assert!(named.starts_with("named.toml:6: server.named is not a known key"), "{named}");
    let variable = said(tollgate(path).arg("serve").env("TOLLGATE_CONFIG", "variable.toml"));
    assert!(variable.starts_with("variable.toml:6: server.variable"), "{variable}");
    for (file, key) in [
        ("./tollgate.toml", "first"),
        ("./tollgate.yaml", "second"),
        ("./tollgate.yml", "third"),
        ("./config/tollgate.toml", "fourth"),
        ("./config/tollgate.yaml", "fifth"),
        ("./config/tollgate.yml", "sixth"),
    ] {
        let found = said(tollgate(path).arg("serve"));
        assert!(found.starts_with(file) && found.contains(&format!("{key} is not a known key")), "{found}");
        std::fs::remove_file(path.join(file)).expect("removed");
    }
}

#[test]
fn a_named_path_that_is_missing_is_an_error_and_never_a_fall_through() {
    let directory = written(&[("tollgate.toml", ANY_PORT)]);
    let named = run(directory.path(), &["serve", "--config", "other.toml"]);
    assert_eq!((err(&named).as_str(), named.status.code()), ("other.toml: no such file or directory\n", Some(1)));
    let output = tollgate(directory.path()).arg("serve").env("TOLLGATE_CONFIG", "gone.toml").output();
    let variable = output.expect("the program runs");
    let expected = "gone.toml: no such file or directory; TOLLGATE_CONFIG names it\n";
    assert_eq!((err(&variable).as_str(), variable.status.code()), (expected, Some(1)));
}

/// The kernel would keep two megabytes for one byte, and more over time, which `make soak` saw as growth.
#[test]
fn serve_takes_no_huge_pages() {
    let directory = written(&[("tollgate.toml", &format!("{ANY_PORT}{RULE}"))]);
    let (child, _) = serve(tollgate(directory.path()).arg("serve"));
    let proc_file = |file| std::fs::read_to_string(format!("/proc/{}/{file}", child.id())).expect("Linux has the file");
    let (status, maps) = (proc_file("status"), proc_file("smaps"));
    stop(child);
    // A kernel without huge pages has no such line.
    let enabled = status.lines().find(|line| line.starts_with("THP_enabled:"));
    assert!(enabled.is_none_or(|line| line.ends_with('0')), "{enabled:?}");
    // Memory that the allocator took before `main` as well, because the advice is given at once.
    let advised = maps.lines().filter(|line| line.starts_with("VmFlags:") && line.split(' ').any(|flag| flag == "hg"));
    assert_eq!(advised.count(), 0);
}

#[test]
fn serve_without_a_secret_warns_and_with_one_does_not() {
    let with = format!("{ANY_PORT}secret = 'a long enough secret'\n");
    let directory = written(&[("without.toml", ANY_PORT), ("with.toml", &with)]);
    let (child, said) = serve(tollgate(directory.path()).args(["serve", "--config", "without.toml"]));
    stop(child);
    assert!(said.contains("warning: server.secret is not set"), "{said}");
    let (child, said) = serve(tollgate(directory.path()).args(["serve", "--config", "with.toml"]));
    stop(child);
    assert!(!said.contains("secret"), "{said}");
}

#[test]
fn files_for_tls_that_cannot_be_used_are_refused_by_check_and_serve_with_the_key_that_names_them() {
    let directory = written(&[("empty.pem", "no PEM"), ("half.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n")]);
    let files = Certificates::make(directory.path());
    let others = tempfile::tempdir().expect("a directory");
    let other_key = Certificates::make(others.path()).client_key;
    let ca = format!("tls_ca = '{}'", files.authority.display());
    let own = format!("tls_certificate = '{}'", files.client.display());
    let missing = "which cannot be read: No such file or directory";
    let postgres = "postgres://me@127.0.0.1/limits";
    let cases = [
        ("tls_ca = 'no/such.pem'".to_owned(), "tls_ca is \"no/such.pem\"", missing),
        ("tls_ca = 'empty.pem'".to_owned(), "tls_ca is \"empty.pem\"", "which holds no certificate, expected PEM"),
        ("tls_ca = 'half.pem'".to_owned(), "tls_ca is \"half.pem\"", "which is not valid PEM: "),
        ("tls_ca = '.'".to_owned(), "tls_ca is \".\"", "which cannot be read: Is a directory"),
        (format!("{ca}\n{own}\ntls_key = 'no/such.key'"), "tls_key is \"no/such.key\"", missing),
        (
            format!("{ca}\n{own}\ntls_key = 'empty.pem'"),
            "tls_key is \"empty.pem\"",
            "which holds no private key, expected PEM",
        ),
        (
            format!("{ca}\n{own}\ntls_key = '{}'", other_key.display()),
            "tls_certificate is ",
            "which cannot be used with the key in ",
        ),
        (format!("{ca}\n{own}"), "tls_certificate is ", "but there is no tls_key; expected both or neither"),
        (
            format!("{ca}\ntls_server_name = 'no name'"),
            "tls_server_name is \"no name\"",
            "expected a DNS name or an IP address",
        ),
    ];
    let stores =
        ["engine = 'redis'\nurl = 'rediss://127.0.0.1:1/0'", &format!("engine = 'postgres'\nurl = '{postgres}'")];
    let mut texts = Vec::new();
    for store in stores {
        for (keys, what, reason) in &cases {
            texts.push((format!("{store}\n{keys}"), *what, *reason));
        }
    }
    // Those that the URL names.
    let in_url = |parameters: &str| format!("engine = 'postgres'\nurl = '{postgres}?{parameters}'");
    texts.push((
        in_url("sslrootcert=no/such.pem"),
        "url is \"***\"",
        "which names no/such.pem, which cannot be read: No such file",
    ));
    texts.push((
        in_url("sslcert=empty.pem&sslkey=empty.pem&sslrootcert=authority.pem"),
        "url is \"***\"",
        "which names empty.pem, which holds no certificate",
    ));
    for (text, what, reason) in texts {
        let file = directory.path().join("tollgate.toml");
        std::fs::write(&file, format!("{ANY_PORT}[stores.main]\n{text}\n")).expect("a file in the test's directory");
        for arguments in [&["check", "tollgate.toml"][..], &["serve"]] {
            let output = run(directory.path(), arguments);
            assert_eq!(output.status.code(), Some(1), "{arguments:?} {text}");
            let said = err(&output);
            let line = said.lines().find(|line| line.contains(&format!("stores.main.{what}")));
            let line = line.unwrap_or_else(|| panic!("{arguments:?} {text}: {said}"));
            assert!(line.contains("tollgate.toml:") && line.contains(reason), "{text}: {line}");
            assert!(!said.contains("gRPC on"), "{said}");
        }
    }
}

#[test]
fn a_busy_port_is_one_clear_line() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("an address").to_string();
    let directory =
        written(&[("tollgate.toml", &format!("[server]\ngrpc = '{address}'\nhttp = '127.0.0.1:0'\n{RULE}"))]);
    let output = run(directory.path(), &["serve"]);
    let said = err(&output);
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.starts_with("tollgate: server.grpc: ") && said.contains(&address), "{said}");
}

/// The first configuration that `serve` suggests, extracted from its output.
fn suggested(said: &str) -> String {
    said.lines().filter_map(|line| line.strip_prefix("    ")).map(|line| format!("{line}\n")).collect()
}

#[test]
fn serve_starts_with_the_file_it_finds() {
    let directory = written(&[("tollgate.toml", ANY_PORT)]);
    let (child, said) = serve(tollgate(directory.path()).arg("serve"));
    stop(child);
    assert!(said.contains("tollgate: gRPC on 127.0.0.1:"), "{said}");
    assert!(!said.contains("no configuration found"), "{said}");
}

#[test]
fn serve_with_no_file_at_all_starts_and_says_what_to_write_first() {
    // Without a configuration it needs the default ports: where they are taken, this test is skipped.
    let free = |port: u16| std::net::TcpListener::bind(("0.0.0.0", port)).is_ok();
    if !free(8080) || !free(8081) {
        return;
    }
    let directory = written(&[]);
    let (mut child, output) = serve(tollgate(directory.path()).arg("serve"));
    drop(child.kill());
    child.wait().expect("ended");
    assert!(output.contains("tollgate: gRPC on ") || output.contains("tollgate: server."), "{output}");
    assert!(output.contains("no configuration found, so there are no rules and every request passes"), "{output}");
    assert!(output.contains("it listens on this machine only"), "{output}");
    if let Some(addresses) = output.lines().find_map(|line| line.strip_prefix("tollgate: gRPC on ")) {
        let (doors, admin) = addresses.split_once(", admin on ").unwrap_or((addresses, "127.0.0.1:9090"));
        assert_eq!((doors, admin), ("127.0.0.1:8081, HTTP on 127.0.0.1:8080", "127.0.0.1:9090"));
    }
    assert!(output.contains("looked at TOLLGATE_CONFIG (not set), ./tollgate.toml, ./tollgate.yaml"), "{output}");
    std::fs::write(directory.path().join("tollgate.toml"), suggested(&output)).expect("written");
    let check = run(directory.path(), &["check", "tollgate.toml"]);
    assert_eq!(out(&check), "tollgate.toml: good: 1 rule, 1 limiter, 1 store\n", "{}", err(&check));
}
