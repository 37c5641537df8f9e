//! `examples/nginx/`, run by a real nginx.

use std::fs;
use std::process::Command;

use crate::support::processes::{Ask, Ports, Process, Tollgate, Upstream, installed, read};

#[test]
fn nginx_asks_and_restores_the_refusal() {
    let Some(binary) = installed::nginx() else { return };
    let ports = Ports::free();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let upstream = Upstream::start(ports.of(9_000));
    let tollgate = Tollgate::start(&read("examples/nginx/tollgate.toml"), &ports);
    // A machine that does other things at the same time may be slow to ask.
    let site = ports.rewrite(&read("examples/nginx/tollgate.conf")).replace("250ms", "10s");
    let file = directory.path().join("nginx.conf");
    fs::write(&file, configuration(&site)).expect("a file in the test's directory");
    let mut command = Command::new(binary);
    command.arg("-p").arg(directory.path()).arg("-c").arg(&file).args(["-e", "stderr"]);
    let port = ports.of(8_000);
    let nginx = Process::start("nginx", &mut command, directory.path())
        .ready(|| Ask::get("/").send(port).is_ok_and(|answer| answer.status == 200));
    let ask = |ask: &Ask| ask.send(port).unwrap_or_else(|error| panic!("{ask:?}: {error}\n{}", nginx.log()));

    let login = Ask::post("/login").account("ada").from("203.0.113.1");
    for left in (0..5).rev() {
        let answer = ask(&login).expect(401);
        assert_eq!(answer.remaining(), Some(left));
        assert_eq!(answer.header("x-ratelimit-limit"), Some("5"));
    }
    let refused = ask(&login).expect(429);
    assert!(matches!(refused.retry_after(), Some(290..=300)), "{refused:?}");
    assert_eq!(refused.remaining(), Some(0));
    assert_eq!(refused.body, "too many requests\n");
    // Other spellings of account and path, and another address, are the same account.
    ask(&Ask::post("/login").account(" Ada").from("203.0.113.2")).expect(429);
    ask(&Ask::post("/x/..//%6Cogin?a=b").account("ada").from("203.0.113.3")).expect(429);

    // The address is who the load balancer says it is, whatever else the client claims.
    for n in 0..30 {
        ask(&Ask::post("/login").account(&format!("user{n}")).from("203.0.113.9")).expect(401);
    }
    let spoofed = Ask::post("/login").header("x-real-ip", "198.51.100.1").from("198.51.100.1, 203.0.113.9");
    ask(&spoofed).expect(429);
    ask(&spoofed.header("x-original-uri", "/").header("x-original-method", "GET")).expect(429);

    ask(&Ask::get("/internal/keys").from("203.0.113.4")).expect(404);
    assert!(upstream.seen().iter().all(|seen| !seen.line.contains("internal")), "a denied request went no further");
    ask(&Ask::get("/page").from("203.0.113.9")).expect(200);

    drop(tollgate);
    ask(&Ask::get("/page").from("203.0.113.9")).expect(500);
}

/// What stands around a file in `conf.d`: one process in the foreground that writes nowhere but below its prefix.
fn configuration(site: &str) -> String {
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let places: String = places.iter().map(|place| format!("{place}_temp_path {place};\n")).collect();
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{site}\n}}\n"
    )
}
