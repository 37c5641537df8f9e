//! `examples/nginx/`, run by a real nginx.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use super::site::{self, Sample, Site, Timeouts};
use crate::support::processes::{Ask, Ports, WAIT_TIMEOUT, installed, read};

const NGINX: Sample = Sample { name: "nginx", command, gone: 500, slow: 500 };

/// The sample without the line that removes `Content-Length` from auth requests.
const ANNOUNCING: Sample = Sample {
    command: |ports, directory, timeouts| {
        changed(ports, directory, timeouts, &[("        proxy_set_header Content-Length \"\";\n", "")])
    },
    ..NGINX
};

/// The same, where nginx would send bodies on as they come.
const UNBUFFERED: Sample = Sample {
    command: |ports, directory, timeouts| {
        let changes = [
            ("        proxy_pass_request_body off;\n        proxy_set_header Content-Length \"\";\n", ""),
            (
                "    location / {\n",
                "    location / {\n        proxy_request_buffering off;\n        proxy_http_version 1.1;\n",
            ),
            (
                "        internal;\n        proxy_pass http",
                "        internal;\n        proxy_request_buffering off;\n        proxy_pass http",
            ),
        ];
        changed(ports, directory, timeouts, &changes)
    },
    ..NGINX
};

/// The sample with the auth request of ingress-nginx.
const INGRESS: Sample = Sample {
    command: |ports, directory, timeouts| {
        let url = "X-Original-URL    $scheme://$http_host$request_uri;\n";
        let changes = [
            ("        proxy_set_header X-Original-URL    \"\";\n", ""),
            ("X-Original-URI    $request_uri;\n", url),
            ("proxy_set_header Host              $host;", "proxy_set_header Host tollgate.default.svc.cluster.local;"),
        ];
        changed(ports, directory, timeouts, &changes)
    },
    ..NGINX
};

fn command(ports: &Ports, directory: &Path, timeouts: Timeouts) -> Option<Command> {
    changed(ports, directory, timeouts, &[])
}

/// The sample with these parts replaced.
fn changed(ports: &Ports, directory: &Path, timeouts: Timeouts, changes: &[(&str, &str)]) -> Option<Command> {
    let binary = installed::nginx()?;
    let mut text = read("examples/nginx/tollgate.conf");
    for (part, other) in changes {
        assert_eq!(text.matches(part).count(), 1, "{part:?} in\n{text}");
        text = text.replace(part, other);
    }
    let text = timeouts.apply(&ports.rewrite(&text));
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
fn nginx_and_tollgate_refuse_repeats() {
    site::refuses_repeats(&NGINX);
}

#[test]
fn nginx_passes_on_what_rules_use() {
    site::passes_on_what_rules_use(&NGINX);
}

#[test]
fn nginx_refuses_with_500_when_tollgate_hangs_and_when_it_is_gone() {
    site::fails_as_documented(&NGINX);
}

/// A door that would wait an hour for a body if it waited at all.
const PATIENT: &str = "[server.bounds]\nrequest_timeout = '1h'\n";

/// nginx keeps its connection to tollgate and announces bodies that it never sends.
#[test]
fn nginx_that_announces_bodies_is_answered_at_once_and_its_kept_connection_stays_in_step() {
    [&ANNOUNCING, &UNBUFFERED].into_iter().for_each(stays_in_step);
}

fn stays_in_step(sample: &Sample) {
    let Some(site) = Site::start(sample, Timeouts::Long, PATIENT) else { return };
    let smuggled = "GET /authz/nginx HTTP/1.1\r\nHost: h\r\nX-Original-URI: /page\r\nX-Original-Method: GET\r\n\r\n";
    let bodies = ["guess", smuggled, &smuggled.repeat(20), &"x".repeat(100_000)];
    for round in 0..5 {
        for (n, body) in bodies.iter().enumerate() {
            let account = format!("{round}-{n}");
            let login = Ask::post("/login").account(&account).from("203.0.113.1").body(body);
            site.ask(&Ask::post("/page").body(body).from("203.0.113.2")).expect(200);
            site.ask(&Ask::post("/internal/keys").body(body).from("203.0.113.2")).expect(404);
            site.ask(&Ask::get("/internal/keys").from("203.0.113.2")).expect(404);
            site.ask(&Ask::get("/page").from("203.0.113.2")).expect(200);
            assert_eq!(site.ask(&login).expect(401).remaining(), Some(4));
        }
    }
    assert_eq!(site.reached("POST /login"), 20);
    assert!(site.upstream.seen().iter().all(|seen| !seen.line.contains("internal")));
}

/// The same with a body in chunks, and several requests on one connection of the client.
#[test]
fn nginx_with_a_chunked_body_is_answered_at_once() {
    for sample in [&NGINX, &ANNOUNCING, &UNBUFFERED] {
        let Some(site) = Site::start(sample, Timeouts::Long, PATIENT) else { return };
        let chunked = "5\r\nguess\r\n0\r\n\r\n";
        let request = |line: &str, more: &str| format!("{line} HTTP/1.1\r\nhost: gateway.test\r\n{more}\r\n");
        let body = "transfer-encoding: chunked\r\n";
        let all = [
            request("POST /page", body) + chunked,
            request("GET /internal/keys", ""),
            request("POST /page", body) + chunked,
            request("POST /internal/keys", body) + chunked,
            request("GET /page", "connection: close\r\n"),
        ];
        let mut stream = TcpStream::connect(("127.0.0.1", site.port())).expect("nginx accepts");
        stream.set_read_timeout(Some(WAIT_TIMEOUT)).expect("a timeout");
        stream.write_all(all.concat().as_bytes()).expect("it is sent");
        let mut read = String::new();
        stream.read_to_string(&mut read).expect("answers");
        let statuses: Vec<_> = read.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect();
        assert_eq!(statuses, ["200", "404", "200", "404", "200"], "{read}");
    }
}

/// Requests as ingress-nginx sends them, from a client that sends the headers of the other configuration.
#[test]
fn ingress_nginx_is_understood_and_its_clients_cannot_name_another_request() {
    let rule = "[[rules]]\ndomain = 'web'\nname = 'host'\nmatch = { host = 'gateway.test', path = '/hosted' }\n\
                action = 'deny'\nstatus = 404\n";
    let Some(site) = Site::start(&INGRESS, Timeouts::Long, rule) else { return };
    let from = |ask: Ask| ask.from("203.0.113.1");
    for left in (0..5).rev() {
        assert_eq!(site.ask(&from(Ask::post("/login?a=b").account("ada"))).expect(401).remaining(), Some(left));
    }
    site.ask(&from(Ask::post("/login").account("ada"))).expect(429);
    for target in ["/internal/keys", "//internal/keys?a=b", "http://gateway.test/internal/keys", "/hosted"] {
        site.ask(&from(Ask::get(target))).expect(404);
        for claimed in ["/page", "http://gateway.test/page", "/claimed"] {
            let answer = site.ask(&from(Ask::get(target).header("x-original-uri", claimed)));
            assert_eq!(answer.status, 500, "tollgate answers 400 to two requests: {answer:?}");
        }
        site.ask(&from(Ask::get(target).header("x-original-url", "http://gateway.test/page"))).expect(404);
        // The same path is the same request, and the host is still the one of the URL.
        let path = target.strip_prefix("http://gateway.test").unwrap_or(target);
        let answer = site.ask(&from(Ask::get(target).header("x-original-uri", path)));
        assert!(matches!(answer.status, 404 | 500), "{answer:?}");
    }
    site.ask(&from(Ask::get("/page"))).expect(200);
    assert!(site.upstream.seen().iter().all(|seen| !seen.line.contains("internal") && !seen.line.contains("hosted")));
}

/// The main configuration around a file in `conf.d`: one process in the foreground that writes only below its prefix.
fn configuration(site: &str) -> String {
    let places = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    let places: String = places.iter().map(|place| format!("{place}_temp_path {place};\n")).collect();
    format!(
        "daemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\nhttp {{\naccess_log off;\n{places}{site}\n}}\n"
    )
}
