//! The operator's command line, against the real program.

use crate::support::binary::{DOORS, Served, both, complaint, exchange, tollgate};

const LOGIN: &str = r#"
[log]
refusals_per_second = 100

[limiters.login_account]
algorithm = "sliding_window"
limit = 2
window = "1h"

[limiters.exports]
max_concurrent = 1
lease = "1h"

[[rules]]
domain = "edge"
name = "login"
match = { path = "/login" }
apply = [{ limiter = "login_account", key = ["account"] }]

[[rules]]
domain = "edge"
name = "exports"
match = { path = "/export" }
apply = [{ limiter = "exports", key = ["account"] }]

[authz]
domain = "edge"

[authz.entries]
account = { header = "x-account" }
"#;

/// Doors with a secret, as in a deployment.
fn login() -> String {
    format!("{DOORS}secret = 'of this test, and no other'\n{LOGIN}")
}

fn sign_in(served: &Served, account: &str) -> u16 {
    served.ask("POST /authz/envoy/login", &format!("x-account: {account}\r\n"))
}

/// The cells of a table's rows below its header.
fn cells(table: &str) -> Vec<Vec<&str>> {
    let rows = table.lines().skip(1).take_while(|line| !line.is_empty() && !line.starts_with("tollgate: "));
    rows.map(|row| row.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).collect()).collect()
}

#[test]
fn an_identity_that_is_locked_out_is_found_and_lifted() {
    let served = Served::start(&login(), &[]);
    for account in ["bob", "bob", "eve", "eve"] {
        assert_eq!(sign_in(&served, account), 200);
    }
    assert_eq!((sign_in(&served, "bob"), sign_in(&served, "eve")), (429, 429));

    // Offline, with the secret of the configuration: the name in the log.
    let key = served.run(&["key", "edge", "account=bob"]);
    let rows = cells(&key);
    let [hashed, "login_account", "login", "account"] = rows[0][..] else { panic!("{key}") };
    served.until(&format!("key={hashed}"));
    let top = served.run(&["top"]);
    assert!(top.contains(hashed), "{top}");

    let state = served.run(&["state", "edge", "account=bob"]);
    let rows = cells(&state);
    assert_eq!(rows[0][..5], ["login_account", "login", "account", "2 of 2", "0"], "{state}");
    assert!(rows[0][5].starts_with("refused for "), "{state}");
    assert_eq!(rows[0][7], hashed);
    assert_eq!(rows[1], ["exports", "exports", "account", "0 of 1 slots", "1", "passes", "-", rows[1][7]]);
    let json: serde_json::Value =
        serde_json::from_str(&served.run(&["state", "--json", "edge", "account=bob"])).expect("JSON");
    assert_eq!((&json[0]["key"], &json[0]["holds"]["used"]), (&hashed.into(), &2.into()));

    let lifted = served.run(&["lift", "edge", "account=bob", "--why", "ticket 4711"]);
    assert_eq!(cells(&lifted)[0], ["login_account", "yes", hashed]);
    assert_eq!(cells(&lifted)[1][1], "held nothing");
    assert!(lifted.ends_with("tollgate: recorded in the server's audit log, by ann: ticket 4711\n"), "{lifted}");
    assert_eq!((sign_in(&served, "bob"), sign_in(&served, "eve")), (200, 429));

    served.until("held=false");
    let audit: Vec<String> =
        served.said().lines().filter(|line| line.contains("tollgate::audit")).map(str::to_owned).collect();
    assert_eq!(audit.len(), 2, "one for each counter: {audit:?}");
    for part in
        ["who=\"ann\"", "why=\"ticket 4711\"", "domain=\"edge\"", "limiter=\"login_account\"", hashed, "held=true"]
    {
        assert!(audit[0].contains(part), "{part}: {}", audit[0]);
    }
    assert!(!served.said().contains("bob") && !served.said().contains("eve"), "{}", served.said());
}

#[test]
fn state_says_where_to_look_when_no_limit_refuses() {
    let served = Served::start(&login(), &[]);
    let state = served.run(&["state", "edge", "account=bob"]);
    let hint = "tollgate: none of these refuses; tollgate explain --server HOST:PORT shows how the rules treat a whole request\n";
    assert!(state.ends_with(hint), "{state}");
    sign_in(&served, "bob");
    sign_in(&served, "bob");
    assert!(!served.run(&["state", "edge", "account=bob"]).contains("none of these"));
    let explained = served.run(&["explain", "--server", &served.admin, "edge", "path=/login", "account=bob"]);
    assert!(explained.contains("rule login matches\n  login_account: one counter for account=bob\n"), "{explained}");
    let now = explained.split_once("\nnow\n").expect("what its counters hold").1;
    assert_eq!(cells(now)[0][3], "2 of 2");
    // The setting of a server for other commands is ignored.
    let offline = served.run(&["explain", "edge", "path=/login", "account=bob"]);
    assert!(!offline.contains("\nnow\n"), "{offline}");
}

#[test]
fn a_wrong_name_is_answered_with_the_valid_ones() {
    let served = Served::start(&login(), &[]);
    let admin = &served.admin;
    let counted = "its limiters count by: account (login_account, exports)";
    for (arguments, expected) in [
        (
            &["state", "egde", "account=bob"][..],
            format!("{admin}: no domain \"egde\" is configured; domains with rules: edge"),
        ),
        (
            &["state", "edge", "acount=bob"],
            format!("{admin}: no limiter of domain \"edge\" counts by acount alone; {counted}"),
        ),
        (&["key", "edge", "acount=bob"], format!("no limiter of domain \"edge\" counts by acount alone; {counted}")),
        (&["key", "egde", "account=bob"], "no domain \"egde\" is configured; domains with rules: edge".to_owned()),
        (
            &["lift", "edge", "account=bob", "--why", "x", "--limiter", "login"],
            format!(
                "{admin}: no limiter \"login\" has a key of these entries, expected one of: login_account, exports"
            ),
        ),
        (
            &["lift", "edge", "account=bob", "--why", "Bob called"],
            format!("{admin}: why contains the value of account, which must not reach the audit log: write it without"),
        ),
        (
            &["lift", "edge", "account=bob", "--why", ""],
            format!("{admin}: why is empty, expected a text for the audit log"),
        ),
    ] {
        assert_eq!(served.complaint(arguments), format!("tollgate: {expected}\n"), "{arguments:?}");
    }
    assert_eq!(served.run(&["top"]), "nothing was refused in the last 5m\n");
}

#[test]
fn the_author_of_a_lift_is_recorded_where_no_user_has_a_name() {
    let served = Served::start(&login(), &[]);
    let lift = ["lift", "edge", "account=bob", "--why", "ticket"];
    let by = |command: &mut std::process::Command| {
        let output = command.output().expect("the program runs");
        assert!(output.status.success(), "{}", both(&output));
        let said = both(&output);
        said.split_once("audit log, by ")
            .and_then(|(_, rest)| rest.split_once(": ticket"))
            .expect("by whom")
            .0
            .to_owned()
    };
    assert_eq!(by(&mut served.command(&lift)), "ann");
    assert_eq!(by(served.command(&lift).env("SUDO_USER", "sue").env("USER", "root")), "sue");
    assert_eq!(by(served.command(&lift).env("USER", "").env("LOGNAME", "lea")), "lea");
    assert_eq!(by(served.command(&lift).args(["--who", "the robot"])), "the robot");
    let nobody = by(served.command(&lift).env_remove("USER"));
    let number = nobody.strip_prefix("user ").and_then(|rest| rest.split_once(" on ")).expect("a user on a host").0;
    assert!(number.parse::<u32>().is_ok(), "{nobody}");
    served.until(&format!("who=\"{nobody}\""));
}

#[test]
fn a_server_is_named_by_flag_variable_or_configuration() {
    let served = Served::start(&login(), &[]);
    let by_name = format!("localhost:{}", served.admin.rsplit_once(':').expect("a port").1);
    for address in [&by_name, &served.admin, &format!("http://{}/", served.admin)] {
        served.run(&["state", "--server", address, "edge", "account=bob"]);
    }
    let directory = tempfile::tempdir().expect("a directory");
    let run = |toml: &str, arguments: &[&str]| {
        std::fs::write(directory.path().join("tollgate.toml"), toml).expect("written");
        tollgate(directory.path()).args(arguments).output().expect("the program runs")
    };
    let written = run(&format!("[server]\nadmin = '{}'\n", served.admin), &["top"]);
    assert_eq!(both(&written), "nothing was refused in the last 5m\n");
    for (toml, arguments, expected) in [
        (
            "[server]\nadmin = 'off'\n",
            &["top"][..],
            "tollgate: server.admin is \"off\" in the configuration: the server has no admin port\n",
        ),
        (
            "[server]\nadmin = '127.0.0.1:0'\n",
            &["top"],
            "tollgate: server.admin has port 0 in the configuration, so the port is unknown: name it with --server\n",
        ),
        (
            "",
            &["top", "--server", "somewhere"],
            "tollgate: the server is \"somewhere\", expected a host and a port such as 127.0.0.1:9090, or unix:/path\n",
        ),
        (
            "",
            &["top", "--server", "unix:gone.sock"],
            "tollgate: cannot reach the admin port at unix:gone.sock; is tollgate running there? name its admin port with --server: No such file or directory (os error 2)\n",
        ),
        ("[server\n", &["top"], "\nthe configuration has the address of the server; name it with --server instead\n"),
    ] {
        let output = run(toml, arguments);
        assert_eq!(output.status.code(), Some(1));
        assert!(both(&output).ends_with(expected), "{arguments:?}: {}", both(&output));
    }
    let http = served.complaint(&["top", "--server", &served.http]);
    assert_eq!(http, format!("tollgate: {}: 404 Not Found: is this the admin port?\n", served.http));
    let grpc = served.complaint(&["top", "--server", &served.grpc]);
    assert!(grpc.starts_with(&format!("tollgate: {} does not answer as an admin port", served.grpc)), "{grpc}");
}

#[test]
fn a_token_is_shown_from_a_file_a_variable_or_the_configuration() {
    let token = "correct horse battery staple";
    let served = Served::start(&format!("{DOORS}admin_token = '{token}'\n{LOGIN}"), &[]);
    let state = ["state", "edge", "account=bob"];
    let wants = |what: &str| {
        format!(
            "tollgate: {} needs {what}: name its file with --token-file, or set TOLLGATE_ADMIN_TOKEN\n",
            served.admin
        )
    };
    assert_eq!(complaint(&mut served.command(&state)), wants("a token"));
    assert_eq!(complaint(served.command(&state).env("TOLLGATE_ADMIN_TOKEN", "guessed")), wants("another token"));
    let worked = |command: &mut std::process::Command| {
        let output = command.output().expect("the program runs");
        assert!(output.status.success() && both(&output).contains("login_account"), "{}", both(&output));
    };
    worked(served.command(&state).env("TOLLGATE_ADMIN_TOKEN", token));
    worked(served.command(&state).args(["--config", "tollgate.toml"]));
    // Text files end with a newline.
    std::fs::write(served.directory.path().join("token"), format!("{token}\n")).expect("written");
    worked(served.command(&state).args(["--token-file", "token"]).env("TOLLGATE_ADMIN_TOKEN", "guessed"));
    let gone = served.command(&state).args(["--token-file", "gone"]).output().expect("the program runs");
    assert_eq!(both(&gone), "tollgate: gone: No such file or directory (os error 2)\n");
    let metrics = exchange(&served.admin, b"GET /metrics HTTP/1.0\r\n\r\n");
    assert!(metrics.contains("tollgate_ready 1"), "{metrics}");
}

/// A text without durations, which change, and without the column widths that depend on them.
fn timeless(text: &str) -> String {
    let is_span = |word: &str| {
        let number = word.trim_end_matches(char::is_alphabetic);
        !number.is_empty() && number.len() < word.len() && number.parse::<u32>().is_ok() && word.len() < 6
    };
    let line = |line: &str| line.split_whitespace().filter(|word| !is_span(word)).collect::<Vec<_>>().join(" ");
    text.trim().lines().map(line).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_transcript_of_the_page_for_operators_is_what_happens() {
    let page = include_str!("../../docs/operating.md");
    let blocks = |language: &str| {
        let fence = format!("```{language}\n");
        let rest = page.split(fence.as_str()).skip(1).map(|rest| rest.split("```").next().unwrap_or_default());
        rest.map(str::to_owned).collect::<Vec<_>>()
    };
    let rules =
        blocks("toml").into_iter().find(|block| block.contains("[[rules]]")).expect("the rules that lock bob out");
    let doors = rules.replace("127.0.0.1:8081", "127.0.0.1:0").replace("127.0.0.1:8080", "127.0.0.1:0");
    let served = Served::start(&doors.replacen("[server]", "[server]\nadmin = '127.0.0.1:0'", 1), &[]);
    let statuses: Vec<u16> = (0..8).map(|_| sign_in(&served, "bob")).collect();
    assert_eq!(statuses, [200, 200, 200, 200, 200, 429, 429, 429]);
    let texts = blocks("text");
    let transcript = texts.iter().find(|text| text.starts_with("$ tollgate state")).expect("a transcript");
    let mut played = 0;
    for (command, expected) in transcript.split("$ tollgate ").skip(1).filter_map(|step| step.split_once('\n')) {
        // Splits it as a shell would.
        let quoted = command.split('"').enumerate();
        let arguments: Vec<&str> = quoted
            .flat_map(|(number, text)| match number % 2 {
                0 => text.split_whitespace().collect(),
                _ => vec![text],
            })
            .collect();
        assert_eq!(timeless(&served.run(&arguments)), timeless(expected), "$ tollgate {command}");
        played += 1;
    }
    assert_eq!(played, 4);
    let logged = texts.iter().find(|text| text.contains("tollgate::audit")).expect("a line of the log");
    served.until(logged.trim());
    assert_eq!(sign_in(&served, "bob"), 200);
}

#[test]
fn lifts_are_logged_at_every_log_level() {
    for filter in ["off", "tollgate::audit=off", "error"] {
        let served = Served::start(&login(), &[("RUST_LOG", filter)]);
        served.run(&["lift", "edge", "account=bob", "--why", "ticket"]);
        served.until("why=\"ticket\"");
    }
    let served = Served::start(&login(), &[("RUST_LOG", "tollgate=loud")]);
    served.until("RUST_LOG is invalid, using \"info\"");
    sign_in(&served, "bob");
    sign_in(&served, "bob");
    sign_in(&served, "bob");
    served.until("refused");
}

#[test]
fn no_refusal_is_logged_if_their_number_is_zero() {
    let quiet = login().replace("refusals_per_second = 100", "refusals_per_second = 0");
    let served = Served::start(&quiet, &[]);
    for _ in 0..5 {
        sign_in(&served, "bob");
    }
    served.run(&["lift", "edge", "account=bob", "--why", "ticket"]);
    // The lift was logged after them.
    served.until("tollgate::audit");
    assert!(!served.said().contains("tollgate::refusals"), "{}", served.said());
    assert!(served.run(&["top"]).contains("login_account"), "they are counted all the same");
}
