//! `examples/traefik/`, run by a real Traefik.

use std::path::Path;
use std::process::Command;

use super::site::{self, Sample, Timeouts};
use crate::support::processes::{Ports, installed, read};

const TRAEFIK: Sample = Sample { name: "traefik", command, gone: 502, slow: 504 };

fn command(ports: &Ports, directory: &Path, timeouts: Timeouts) -> Option<Command> {
    let binary = installed::traefik()?;
    let routes = timeouts.apply(&ports.rewrite(&read("examples/traefik/tollgate.yaml")));
    let routes = site::write(directory, "tollgate.yaml", &routes);
    let install = ports.rewrite(&read("examples/traefik/traefik.yaml"));
    let file = site::write(directory, "traefik.yaml", &install.replace("examples/traefik/tollgate.yaml", &routes));
    let mut command = Command::new(binary);
    command.arg(format!("--configFile={file}")).current_dir(directory);
    Some(command)
}

#[test]
fn traefik_admits_the_limit_exactly_and_passes_a_refusal_on() {
    let Some(answers) = site::admits_the_limit_exactly(&TRAEFIK) else { return };
    for answer in answers {
        match answer.status {
            429 => site::is_as_tollgate_wrote_it(&answer),
            _ => assert_eq!(answer.header("x-ratelimit-limit"), None, "{answer:?}"),
        }
    }
}

#[test]
fn clients_of_traefik_choose_nothing() {
    site::clients_choose_nothing(&TRAEFIK);
}

#[test]
fn traefik_and_tollgate_refuse_repeats() {
    site::refuses_repeats(&TRAEFIK);
}

#[test]
fn traefik_passes_on_what_rules_use() {
    site::passes_on_what_rules_use(&TRAEFIK);
}

#[test]
fn traefik_refuses_with_504_when_tollgate_hangs_and_502_when_it_is_gone() {
    site::fails_as_documented(&TRAEFIK);
}
