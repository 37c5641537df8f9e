//! The demo that the README begins with.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::processes::{installed, project};

#[test]
fn the_demo_runs_as_described() {
    tells_its_story(&[]);
}

#[test]
fn the_demo_runs_as_described_with_two_instances_that_share_a_redis() {
    if installed::redis().is_some() {
        tells_its_story(&["--store", "redis"]);
    }
}

#[test]
fn the_demo_runs_as_described_with_two_instances_that_share_a_postgresql() {
    if installed::postgres().is_some() {
        tells_its_story(&["--store", "postgres"]);
    }
}

fn tells_its_story(arguments: &[&str]) {
    let (Some(envoy), Some(python)) = (installed::envoy(), installed::python()) else { return };
    let story = demo(&python, &envoy).args(arguments).output().expect("python runs");
    let printed = String::from_utf8_lossy(&story.stdout);
    assert!(story.status.success(), "{printed}{}", String::from_utf8_lossy(&story.stderr));
    for chapter in ["(a)", "(b)", "(c)", "(d)", "(e) gRPC", "(e) HTTP", "Everything was as expected"] {
        assert!(printed.contains(chapter), "{chapter} is missing in {printed}");
    }
}

#[test]
fn the_demo_leaves_nothing_behind_when_its_terminal_closes() {
    let (Some(envoy), Some(python)) = (installed::envoy(), installed::python()) else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut demo = demo(&python, &envoy)
        .arg("--up")
        .env("TMPDIR", directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .expect("python runs");
    let mut lines = BufReader::new(demo.stdout.take().expect("a pipe")).lines().map_while(Result::ok);
    let address = lines.by_ref().find_map(|line| Some(line.split_once("admin page is at http://")?.1.to_owned()));
    let address = address.expect("the demo says where Envoy is");
    let address = address.split_once(". ").map_or(&*address, |(address, _)| address);
    TcpStream::connect(address).expect("Envoy is up");

    let hang_up = format!("kill -HUP {0}; kill -INT {0}", demo.id());
    assert!(Command::new("sh").args(["-c", &hang_up]).status().expect("sh runs").success());
    let status = demo.wait().expect("the demo ends");
    assert!(status.success(), "{status}: {:?}", lines.collect::<Vec<_>>());
    assert!(TcpStream::connect(address).is_err(), "Envoy is still there");
    assert_eq!(fs::read_dir(directory.path()).expect("its directory").count(), 0);
}

#[test]
fn the_demo_says_in_one_line_what_it_lacks() {
    let Some(python) = installed::python() else { return };
    let ended = demo(&python, Path::new("/nowhere/envoy")).output().expect("python runs");
    assert_eq!(ended.status.code(), Some(1));
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert_eq!(said, "demo: /nowhere/envoy is no Envoy that can be run: TOLLGATE_ENVOY names it\n");
}

fn demo(python: &Path, envoy: &Path) -> Command {
    let mut demo = Command::new(python);
    demo.arg(project().join("examples/envoy/demo.py"))
        .args(["--tollgate", env!("CARGO_BIN_EXE_tollgate")])
        .env("TOLLGATE_ENVOY", envoy);
    demo
}
