//! A reload that gives a store other credentials, while what was answered without it waits to be handed over.

use std::time::{Duration, Instant};

use super::three_instances::{YEAR, decided, of, service};
use crate::support::binary::{Served, WAIT_TIMEOUT};
use crate::support::processes::redis::Setup;
use crate::support::service::{Rls, descriptor, lease, question};

/// Three slots are released while the password that the process knows is wrong. All are free once it has the right one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_a_store_whose_password_was_withdrawn_is_handed_over_once_a_reload_has_the_new_one() {
    let _others = crate::MACHINE.read().await;
    let Some(server) = Setup::redis().map(|setup| setup.password("before").start()) else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("password");
    std::fs::write(&file, "before").expect("a file in the test's directory");
    let store = format!(
        "engine = 'redis'\nurl = 'redis://127.0.0.1:{}'\npassword = '${{file:{}}}'",
        server.port,
        file.display()
    );
    let served = Served::start(&service(&store, &format!("max_concurrent = 3\nlease = '{YEAR}'")), &[]).ready();
    let door = Rls::at(&served.grpc).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(lease(&decided(&door, &of("a")).await).expect("a slot"));
    }
    // An authenticated connection stays authenticated.
    let mut inside = server.connection().expect("it is let in");
    for words in [["CONFIG", "SET", "requirepass", "after"], ["CLIENT", "KILL", "SKIPME", "yes"]] {
        redis::cmd(words[0]).arg(&words[1..]).exec(&mut inside).expect("it is done");
    }
    for slot in &held {
        door.ask(question("edge", [descriptor(&[("release", slot)])])).await;
    }
    std::fs::write(&file, "after").expect("a file in the test's directory");
    served.until("configuration applied");
    let began = Instant::now();
    let mut free = 0;
    while free < 3 {
        assert!(began.elapsed() < WAIT_TIMEOUT, "{free} of 3 slots are free: {}", served.said());
        free += usize::from(lease(&door.ask(of("a")).await).is_some());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
