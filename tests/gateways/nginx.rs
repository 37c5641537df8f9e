//! `examples/nginx/`, run by a real nginx.

use std::path::Path;
use std::process::Command;

use super::site::{self, Sample, Site, Timeouts};
use crate::support::processes::{Ask, Ports, installed, read};

const NGINX: Sample = Sample { name: "nginx", command, gone: 500, slow: 500 };

fn command(ports: &Ports, directory: &Path, timeouts: Timeouts) -> Option<Command> {
    let binary = installed::nginx()?;
    let text = timeouts.apply(&ports.rewrite(&read("examples/nginx/tollgate.conf")));
    let file = site::write(directory, "nginx.conf", &configuration(&text));
    let mut command = Command::new(binary);
    command.arg("-p").arg(directory).args(["-c", &file, "-e", "stderr"]);
    Some(command)
}

#[test]
fn nginx_asks_and_restores_the_refusal() {
    let Some(mut site) = Site::start(&NGINX, Timeouts::Long, "") else { return };
    let ask = |ask: &Ask| site.ask(ask);

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
    // Other spellings of account and path, and another address, share the account's counter.
    ask(&Ask::post("/login").account(" Ada").from("203.0.113.2")).expect(429);
    ask(&Ask::post("/x/..//%6Cogin?a=b").account("ada").from("203.0.113.3")).expect(429);

    // The load balancer's header sets the address, whatever else the client sends.
    for n in 0..30 {
        ask(&Ask::post("/login").account(&format!("user{n}")).from("203.0.113.9")).expect(401);
    }
    let spoofed = Ask::post("/login").header("x-real-ip", "198.51.100.1").from("198.51.100.1, 203.0.113.9");
    ask(&spoofed).expect(429);
    ask(&spoofed.header("x-original-uri", "/").header("x-original-method", "GET")).expect(429);

    ask(&Ask::get("/internal/keys").from("203.0.113.4")).expect(404);
    ask(&Ask::get("http://gateway.test/internal/keys").from("203.0.113.4")).expect(404);
    assert!(
        site.upstream.seen().iter().all(|seen| !seen.line.contains("internal")),
        "a denied request went no further"
    );
    ask(&Ask::get("/page").from("203.0.113.9")).expect(200);

    site.stop_tollgate();
    site.ask(&Ask::get("/page").from("203.0.113.9")).expect(500);
}

#[test]
fn nginx_admits_the_limit_exactly() {
    let Some(answers) = site::admits_the_limit_exactly(&NGINX) else { return };
    assert!(answers.iter().all(|answer| answer.header("x-ratelimit-limit") == Some("5")), "{answers:?}");
}

#[test]
fn nginx_passes_on_what_rules_use() {
    site::passes_on_what_rules_use(&NGINX);
}

#[test]
fn nginx_refuses_with_500_when_tollgate_hangs_and_when_it_is_gone() {
    site::fails_as_documented(&NGINX);
}

/// The main configuration around a file in `conf.d`: one process in the foreground that writes only below its prefix.
fn configuration(site: &str) -> String {
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let places: String = places.iter().map(|place| format!("{place}_temp_path {place};\n")).collect();
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{site}\n}}\n"
    )
}
