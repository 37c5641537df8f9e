//! `examples/haproxy/`, run by a real HAProxy.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::site::{self, Sample, Site, Timeouts};
use crate::support::processes::{Ask, Ports, installed, read};

const HAPROXY: Sample = Sample { name: "haproxy", command, gone: 503, slow: 504 };

fn command(ports: &Ports, directory: &Path, timeouts: Timeouts) -> Option<Command> {
    configured(ports, directory, timeouts, &[])
}

/// The sample with some lines replaced.
fn configured(ports: &Ports, directory: &Path, timeouts: Timeouts, edits: &[(&str, &str)]) -> Option<Command> {
    let binary = installed::haproxy()?;
    let mut text = ports.rewrite(&read("examples/haproxy/haproxy.cfg"));
    for (line, other) in edits {
        assert!(text.contains(line), "the sample has no line {line}");
        text = text.replace(line, other);
    }
    // Abstract socket names are shared by every HAProxy on a machine.
    let socket = format!("abns@tollgate-{}", ports.of(8_000));
    let renamed = |text: &str| text.replace("abns@tollgate", &socket);
    let script = site::write(directory, "tollgate.lua", &renamed(&read("examples/haproxy/tollgate.lua")));
    let text = timeouts.apply(&renamed(&text)).replace("examples/haproxy/tollgate.lua", &script);
    let file = site::write(directory, "haproxy.cfg", &text);
    let mut command = Command::new(binary);
    command.args(["-db", "-f", &file]);
    Some(command)
}

#[test]
fn haproxy_admits_the_limit_exactly_and_passes_answers_on() {
    let Some(answers) = site::admits_the_limit_exactly(&HAPROXY) else { return };
    let mut remaining = Vec::new();
    for answer in answers {
        assert_eq!(answer.header("x-tollgate-answered"), None, "it is for the script alone");
        match answer.status {
            429 => site::is_as_tollgate_wrote_it(&answer),
            _ => {
                assert_eq!(answer.header("x-ratelimit-limit"), Some("5"));
                assert!(answer.header("x-ratelimit-reset").is_some(), "{answer:?}");
                remaining.extend(answer.remaining());
            }
        }
    }
    remaining.sort_unstable();
    assert_eq!(remaining, [0, 1, 2, 3, 4]);
}

#[test]
fn clients_of_haproxy_choose_nothing() {
    site::clients_choose_nothing(&HAPROXY);
}

#[test]
fn haproxy_and_tollgate_refuse_repeats() {
    site::refuses_repeats(&HAPROXY);
}

#[test]
fn haproxy_passes_on_what_rules_use() {
    site::passes_on_what_rules_use(&HAPROXY);
}

#[test]
fn haproxy_refuses_with_504_when_tollgate_hangs_and_503_when_it_is_gone() {
    site::fails_as_documented(&HAPROXY);
}

#[test]
fn haproxy_admits_if_configured_when_tollgate_hangs_or_is_gone() {
    let command = |ports: &Ports, directory: &Path, timeouts| {
        let admit = ("    # http-request lua.tollgate admit\n", "    http-request lua.tollgate admit\n");
        configured(ports, directory, timeouts, &[("    http-request lua.tollgate refuse\n", ""), admit])
    };
    let Some(mut site) = Site::start(&Sample { command, ..HAPROXY }, Timeouts::Sample, "") else { return };
    let denied = Ask::get("/internal/keys");
    site.ask(&denied).expect(404);
    site.ask(&Ask::new("OPTIONS", "*")).expect(400);
    site.hang_tollgate();
    let began = Instant::now();
    site.ask(&denied).expect(200);
    let waited = began.elapsed();
    assert!(site::TIMEOUT <= waited && waited < 3 * site::TIMEOUT, "one timeout, not four: {waited:?}");
    site.stop_tollgate();
    site.ask(&denied).expect(200);
}

#[test]
fn haproxy_takes_the_address_from_a_load_balancer_if_configured() {
    let command = |ports: &Ports, directory: &Path, timeouts| {
        configured(ports, directory, timeouts, &[("# http-request set-src", "http-request set-src")])
    };
    let Some(site) = Site::start(&Sample { command, ..HAPROXY }, Timeouts::Long, "") else { return };
    for n in 0..30 {
        let login = Ask::post("/login").account(&format!("user{n}"));
        site.ask(&login.from(&format!("198.51.100.{n}, 203.0.113.1"))).expect(401);
    }
    site.ask(&Ask::post("/login").account("another").from("203.0.113.1")).expect(429);
    site.ask(&Ask::post("/login").account("another").from("203.0.113.2")).expect(401);
}
