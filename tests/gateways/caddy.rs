//! `examples/caddy/`, run by a real Caddy.

use std::path::Path;
use std::process::Command;

use super::site::{self, Sample, Timeouts};
use crate::support::processes::{Ports, installed, read};

const CADDY: Sample = Sample { name: "caddy", command, gone: 502, slow: 504 };

fn command(ports: &Ports, directory: &Path, timeouts: Timeouts) -> Option<Command> {
    let binary = installed::caddy()?;
    let text = timeouts.apply(&ports.rewrite(&read("examples/caddy/Caddyfile")));
    // The default port of the admin endpoint is the same for every Caddy on a machine.
    let file = site::write(directory, "Caddyfile", &format!("{{\n\tadmin off\n}}\n{text}"));
    let mut command = Command::new(binary);
    command.args(["run", "--adapter", "caddyfile", "--config", &file]);
    command.env("XDG_CONFIG_HOME", directory).env("XDG_DATA_HOME", directory).env("HOME", directory);
    Some(command)
}

#[test]
fn caddy_admits_the_limit_exactly_and_passes_a_refusal_on() {
    let Some(answers) = site::admits_the_limit_exactly(&CADDY) else { return };
    for answer in answers {
        match answer.status {
            429 => site::is_as_tollgate_wrote_it(&answer),
            _ => assert_eq!(answer.header("x-ratelimit-limit"), None, "{answer:?}"),
        }
    }
}

#[test]
fn clients_of_caddy_choose_nothing() {
    site::clients_choose_nothing(&CADDY);
}

#[test]
fn caddy_and_tollgate_refuse_repeats() {
    site::refuses_repeats(&CADDY);
}

#[test]
fn caddy_passes_on_what_rules_use() {
    site::passes_on_what_rules_use(&CADDY);
}

#[test]
fn caddy_refuses_with_504_when_tollgate_hangs_and_502_when_it_is_gone() {
    site::fails_as_documented(&CADDY);
}
