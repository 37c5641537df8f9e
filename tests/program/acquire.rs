//! `tollgate acquire`, `release` and `peek`: limits for shell scripts, against a real server.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use crate::support::binary::{DOORS, Served, WAIT_TIMEOUT, both, exchange};
use crate::support::processes::redis::Redis;

const JOBS: &str = r#"
[limiters.one]
max_concurrent = 1
lease = "5m"
direct = true

[limiters.uploads]
max_concurrent = 1
lease = "5m"

[limiters.stripe_api]
algorithm = "fixed_window"
limit = 2
window = "1h"
direct = true

[[rules]]
domain = "jobs"
name = "uploads"
match = { kind = "upload" }
apply = [{ limiter = "uploads", key = ["account"] }]
"#;

fn served() -> Served {
    Served::start(&format!("{DOORS}{JOBS}"), &[])
}

fn command(served: &Served, arguments: &[&str]) -> Command {
    let mut command = served.command(arguments);
    command.env("TOLLGATE_API", &served.http);
    command
}

fn run(served: &Served, arguments: &[&str]) -> Output {
    command(served, arguments).output().expect("the program runs")
}

/// A command under a lease, which has said "ready".
struct Shell {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Shell {
    fn start(served: &Served, arguments: &[&str], script: &str) -> Self {
        let mut command = command(served, arguments);
        command.args(["--", "sh", "-c", script]);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let output = BufReader::new(child.stdout.take().expect("it was piped"));
        Self { child, output }
    }

    /// Waits until the command says so.
    fn until(&mut self, text: &str) {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("it can be read");
        assert_eq!(line.trim_end(), text);
    }

    /// Ends the input of the command.
    fn let_end(&mut self) {
        drop(self.child.stdin.take());
    }

    fn signal(&self, name: &str) {
        let sent = Command::new("kill").args([name, &self.child.id().to_string()]).status().expect("kill runs");
        assert!(sent.success());
    }

    /// Its exit code and standard error.
    fn wait(mut self) -> (Option<i32>, String) {
        // Waiting for a child would end its input.
        let _input = self.child.stdin.take();
        let output = self.child.wait_with_output().expect("it ends");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// Says that it runs, and runs until its input ends.
const UNTIL_INPUT_ENDS: &str = "echo ready; while read line; do :; done";

const ONE: [&str; 6] = ["acquire", "jobs", "--limiter", "one", "--wait", "0s"];

/// Whether the slot is free.
fn is_free(served: &Served) -> bool {
    match run(served, &["peek", "jobs", "--limiter", "one"]).status.code() {
        Some(0) => true,
        Some(75) => false,
        other => panic!("{other:?}"),
    }
}

fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < WAIT_TIMEOUT, "it is never so that {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn of_two_shells_one_runs_its_command_and_the_other_is_refused_until_it_ends() {
    let served = served();
    let mut first = Shell::start(&served, &ONE, UNTIL_INPUT_ENDS);
    first.until("ready");
    let second = run(&served, &[&ONE[..], &["--", "echo", "second"]].concat());
    assert_eq!(second.status.code(), Some(75), "{}", both(&second));
    let said = both(&second);
    assert!(said.starts_with("tollgate: refused: limit of one; try again in "), "{said}");
    first.let_end();
    assert_eq!(first.wait(), (Some(0), String::new()));
    // The lease was released, although it is held for minutes.
    let second = run(&served, &[&ONE[..], &["--", "echo", "second"]].concat());
    assert_eq!((second.status.code(), both(&second).as_str()), (Some(0), "second\n"));
}

#[test]
fn the_exit_code_of_the_command_is_passed_on() {
    let served = served();
    for (script, code) in [("exit 0", 0), ("exit 7", 7), ("kill -TERM $$", 143), ("kill -KILL $$", 137)] {
        let output = run(&served, &[&ONE[..], &["--", "sh", "-c", script]].concat());
        assert_eq!(output.status.code(), Some(code), "{script}: {}", both(&output));
        assert!(is_free(&served), "{script}");
    }
    let missing = run(&served, &[&ONE[..], &["--", "no-such-command"]].concat());
    assert_eq!(missing.status.code(), Some(127), "{}", both(&missing));
    let file = served.directory.path().join("tollgate.toml");
    let no_program = run(&served, &[&ONE[..], &["--", file.to_str().expect("UTF-8")]].concat());
    assert_eq!(no_program.status.code(), Some(126), "{}", both(&no_program));
    assert!(is_free(&served), "a command that never ran holds nothing");
}

#[test]
fn signals_are_passed_on_to_the_command() {
    let served = served();
    for signal in ["TERM", "INT", "HUP", "USR1"] {
        let script = format!("trap 'exit 9' {signal}; echo ready; while :; do sleep 0.01; done");
        let mut shell = Shell::start(&served, &ONE, &script);
        shell.until("ready");
        shell.signal(&format!("-{signal}"));
        assert_eq!(shell.wait(), (Some(9), String::new()), "{signal}");
        assert!(is_free(&served), "{signal}");
    }
}

#[test]
fn a_lease_is_renewed_while_its_command_runs() {
    let served = served();
    let mut shell = Shell::start(&served, &[&ONE[..], &["--lease", "900ms"]].concat(), UNTIL_INPUT_ENDS);
    shell.until("ready");
    let answered = || served.metric("tollgate_requests_total{door=\"api\",result=\"allowed\"}");
    // Four renewals take longer than the lease.
    let before = answered();
    until("it is renewed", || answered() >= before + 4.0);
    assert!(!is_free(&served));
    shell.let_end();
    assert_eq!(shell.wait(), (Some(0), String::new()));
    assert!(is_free(&served));
}

#[test]
fn a_command_whose_lease_cannot_be_renewed_is_stopped_before_the_lease_ends() {
    // SIGKILL comes for a command that does not stop.
    for (script, code) in
        [("echo ready; exec sleep 60", 143), ("trap '' TERM; echo ready; while :; do sleep 0.01; done", 137)]
    {
        let served = served();
        let began = Instant::now();
        let mut shell = Shell::start(&served, &[&ONE[..], &["--lease", "2s"]].concat(), script);
        shell.until("ready");
        drop(served);
        let (ended, said) = shell.wait();
        assert_eq!(ended, Some(code), "{said}");
        assert!(said.contains("the lease is not renewed yet, trying again"), "{said}");
        assert!(said.contains("the lease could not be renewed: the command is stopped before it ends"), "{said}");
        // The start of the processes counts too.
        assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    }
}

/// Leases on a Redis whose silence is noticed at once.
fn served_by(redis: &Redis) -> Served {
    let store = format!(
        "secret = 'of this test, and no other'\n\n[stores.main]\nengine = 'redis'\nurl = 'redis://127.0.0.1:{}'\n\
         timeout = '100ms'\n",
        redis.port
    );
    Served::start(&format!("{DOORS}{store}{JOBS}"), &[]).ready()
}

#[test]
fn a_command_runs_on_through_a_stall_of_the_store_that_is_shorter_than_its_lease() {
    let Some(redis) = Redis::start() else { return };
    let served = served_by(&redis);
    let mut shell = Shell::start(&served, &[&ONE[..], &["--lease", "60s"]].concat(), UNTIL_INPUT_ENDS);
    shell.until("ready");
    let mut brief = Shell::start(
        &served,
        &["acquire", "jobs", "kind=upload", "account=al", "--lease", "6s", "--on-lost", "kill"],
        UNTIL_INPUT_ENDS,
    );
    brief.until("ready");
    redis.freeze();
    let mut errors = BufReader::new(brief.child.stderr.take().expect("it was piped"));
    let mut said = String::new();
    errors.read_line(&mut said).expect("it is read");
    redis.thaw();
    assert!(said.starts_with("tollgate: the lease is not renewed yet, trying again: "), "{said}");
    assert!(said.contains("did not answer"), "it has the text of the server: {said}");
    let answered = || served.metric("tollgate_requests_total{door=\"api\",result=\"allowed\"}");
    let before = answered();
    until("it is renewed again", || answered() > before);
    for held in [brief, shell] {
        let mut held = held;
        held.let_end();
        assert_eq!(held.wait().0, Some(0));
    }
    assert!(is_free(&served));
}

#[test]
fn semantics_51_a_lease_of_a_store_that_does_not_answer_is_503_and_not_unknown() {
    let Some(redis) = Redis::start() else { return };
    let served = served_by(&redis);
    let lease = both(&run(&served, &ONE));
    let lease = lease.trim_end();
    let change = |method: &str, more: &str| {
        let body = format!("{{\"lease\": \"{lease}\"{more}}}");
        let head = format!("POST /v1/{method} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json");
        let length = body.len();
        exchange(
            &served.http,
            format!("{head}\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}").as_bytes(),
        )
    };
    redis.freeze();
    for (method, more) in
        [("renew", ", \"length\": \"60s\""), ("renew", ""), ("settle", ", \"units\": 1"), ("release", "")]
    {
        let answer = change(method, more);
        assert!(answer.starts_with("HTTP/1.1 503 "), "{method}: {answer}");
        assert!(answer.contains("retry-after: 1\r\n"), "{method}: {answer}");
        assert!(answer.contains("application/problem+json"), "{method}: {answer}");
    }
    redis.thaw();
    // It is released at last: by the call that was answered 503, which is sent again, or by this one.
    until("it is released", || change("release", "").contains("\"unknown\""));
    assert!(is_free(&served));
}

#[test]
fn a_command_whose_lease_has_ended_is_stopped_or_kept_as_the_caller_says() {
    for on_lost in ["kill", "keep"] {
        let served = served();
        let arguments = ["acquire", "jobs", "kind=upload", "account=al", "--lease", "2s", "--on-lost", on_lost];
        let mut shell = Shell::start(&served, &arguments, UNTIL_INPUT_ENDS);
        shell.until("ready");
        // An operator frees the slot, so the next renewal finds that the lease has ended.
        served.run(&["lift", "jobs", "account=al", "--why", "a test"]);
        let mut errors = BufReader::new(shell.child.stderr.take().expect("it was piped"));
        let mut said = String::new();
        errors.read_line(&mut said).expect("it is read");
        let expected = if on_lost == "kill" { "the command is stopped" } else { "the command runs on" };
        assert_eq!(said.trim_end(), format!("tollgate: the lease is not held any more (unknown): {expected}"));
        if on_lost == "keep" {
            shell.let_end();
        }
        assert_eq!(shell.wait().0, Some(if on_lost == "kill" { 143 } else { 0 }));
    }
}

#[test]
fn a_lease_is_printed_for_a_script_that_releases_it() {
    let served = served();
    let lease = both(&run(&served, &ONE));
    let lease = lease.strip_suffix('\n').expect("one line");
    assert!(lease.len() > 30 && !lease.contains(char::is_whitespace), "{lease}");
    assert!(!is_free(&served));
    assert_eq!(both(&run(&served, &["release", lease])), "done\n");
    assert_eq!(both(&run(&served, &["release", lease])), "unknown\n");
    assert!(is_free(&served));
    // A rate has no lease.
    let rate = run(&served, &["acquire", "jobs", "--limiter", "stripe_api", "account=al"]);
    assert_eq!((rate.status.code(), both(&rate).as_str()), (Some(0), ""));
    let json = both(&run(&served, &["acquire", "jobs", "--limiter", "stripe_api", "account=al", "--json"]));
    assert!(json.starts_with("{\"granted\":true,") && json.contains("\"remaining\":0"), "{json}");
}

#[test]
fn peek_shows_what_is_left_and_takes_nothing() {
    let served = served();
    let peek = ["peek", "jobs", "--limiter", "stripe_api", "account=al"];
    for _ in 0..3 {
        let output = run(&served, &peek);
        let table = "LIMITER     RULE  LIMIT         LEFT  RESET\nstripe_api  -     2 in 3600s    2     0s\n";
        let squeezed = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!((output.status.code(), squeezed(&both(&output))), (Some(0), squeezed(table)));
    }
    let never = run(&served, &[&peek[..], &["--cost", "3"]].concat());
    assert_eq!(never.status.code(), Some(75));
    assert!(both(&never).ends_with("tollgate: refused: limit of stripe_api\n"), "{}", both(&never));
}

#[test]
fn rules_decide_entries_and_errors_say_what_is_wrong() {
    let served = served();
    let upload = ["acquire", "jobs", "kind=upload", "account=al", "--wait", "0s"];
    assert_eq!(run(&served, &upload).status.code(), Some(0));
    assert_eq!(run(&served, &upload).status.code(), Some(75));
    for (arguments, says) in [
        (&["acquire", "jobs", "--limiter", "on"][..], "limiter: "),
        (&["acquire", "job", "--limiter", "one"], "jobs"),
        (&["acquire", "jobs", "kind=download"], "entries: "),
        (&["acquire", "jobs", "--limiter", "one", "--cost", "0"], "cost: 0, expected"),
        (&["acquire", "jobs", "--limiter", "one", "--wait", "365d"], "max_wait"),
    ] {
        let output = run(&served, arguments);
        let said = both(&output);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.starts_with("tollgate: ") && said.contains(says), "{arguments:?}: {said}");
    }
    for arguments in [&["acquire"][..], &["acquire", "jobs", "x"], &["acquire", "jobs", "--wait", "soon"]] {
        assert_eq!(run(&served, arguments).status.code(), Some(2), "{arguments:?}");
    }
    let nobody = command(&served, &ONE).env("TOLLGATE_API", "127.0.0.1:1").output().expect("it runs");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(
        both(&nobody).contains("cannot reach the API at 127.0.0.1:1; is tollgate running there?"),
        "{}",
        both(&nobody)
    );
}

#[test]
fn semantics_52_the_command_line_sends_a_token() {
    let config = format!("{DOORS}api_token = 'a token of sixteen'\n{JOBS}");
    let served = Served::start(&config, &[]);
    let without = command(&served, &ONE).output().expect("it runs");
    assert!(both(&without).contains("needs a token: name its file with --token-file"), "{}", both(&without));
    let file = served.directory.path().join("token");
    std::fs::write(&file, "a token of sixteen\n").expect("written");
    let file = file.to_str().expect("UTF-8");
    assert_eq!(run(&served, &[&ONE[..], &["--token-file", file]].concat()).status.code(), Some(0));
    let variable = command(&served, &["peek", "jobs", "--limiter", "one"])
        .env("TOLLGATE_API_TOKEN", "a token of sixteen")
        .output()
        .expect("it runs");
    assert_eq!(variable.status.code(), Some(75));
    // The configuration has the token too.
    let configured = ["peek", "jobs", "--limiter", "one", "--config", "tollgate.toml"];
    assert_eq!(run(&served, &configured).status.code(), Some(75));
}
