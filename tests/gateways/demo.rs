//! The demo that the README begins with.

use std::process::Command;

use crate::support::{project, servers};

#[test]
fn the_demo_tells_its_story_as_it_happens() {
    let (Some(envoy), Some(python)) = (servers::envoy(), servers::python()) else { return };
    let story = Command::new(python)
        .arg(project().join("examples/envoy/demo.py"))
        .args(["--tollgate", env!("CARGO_BIN_EXE_tollgate")])
        .env("TOLLGATE_ENVOY", envoy)
        .output()
        .expect("python runs");
    let told = String::from_utf8_lossy(&story.stdout);
    assert!(story.status.success(), "{told}{}", String::from_utf8_lossy(&story.stderr));
    for chapter in ["(a)", "(b)", "(c)", "(d)", "(e)", "Everything was as told"] {
        assert!(told.contains(chapter), "{chapter} is missing in {told}");
    }
}
