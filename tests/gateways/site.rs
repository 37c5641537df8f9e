//! A gateway that calls tollgate over plain HTTP, with an upstream behind it; and the requirements on every such
//! gateway, whatever its configuration looks like.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use tempfile::TempDir;

use crate::support::processes::{Answer, Ask, Ports, Process, Tollgate, Upstream, read};

/// The timeout for tollgate in the samples.
pub const TIMEOUT: Duration = Duration::from_millis(250);

/// Delay that a loaded machine may add to a timeout. It is far below every gateway's default timeout.
const SLACK: Duration = Duration::from_millis(700);

/// The gateway of a sample.
pub struct Sample {
    /// The name of the gateway.
    pub name: &'static str,
    /// The command that starts it, with its configuration in this directory. None when the gateway is not installed.
    pub command: fn(&Ports, &Path, Timeouts) -> Option<Command>,
    /// The status that a client gets when tollgate is gone.
    pub gone: u16,
    /// The status that a client gets when tollgate does not answer in time.
    pub slow: u16,
}

/// The gateway's timeout for tollgate.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Timeouts {
    /// As in the sample.
    Sample,
    /// So long that a loaded machine does not reach it.
    Long,
}

impl Timeouts {
    /// A configuration with these timeouts.
    pub fn apply(self, text: &str) -> String {
        assert!(text.contains("250ms"), "the sample waits 250 ms:\n{text}");
        match self {
            Self::Sample => text.to_owned(),
            Self::Long => text.replace("250ms", "10s").replace("100ms", "10s"),
        }
    }
}

/// Gateway, tollgate and upstream, running.
pub struct Site {
    /// The upstream.
    pub upstream: Upstream,
    tollgate: Option<Tollgate>,
    gateway: Process,
    port: u16,
    _directory: TempDir,
}

impl Site {
    /// A sample with the rules of `examples/nginx/tollgate.toml` and further ones. None when it is not installed.
    pub fn start(sample: &Sample, timeouts: Timeouts, rules: &str) -> Option<Self> {
        let ports = Ports::free();
        let directory = tempfile::tempdir().expect("a temporary directory");
        let mut command = (sample.command)(&ports, directory.path(), timeouts)?;
        let upstream = Upstream::start(ports.of(9_000));
        let tollgate = Tollgate::start(&format!("{}\n{rules}", read("examples/nginx/tollgate.toml")), &ports);
        let port = ports.of(8_000);
        let gateway = Process::start(sample.name, &mut command, directory.path())
            .ready(|| Ask::get("/").send(port).is_ok_and(|answer| answer.status == 200));
        Some(Self { upstream, tollgate: Some(tollgate), gateway, port, _directory: directory })
    }

    /// Sends a request through the gateway.
    pub fn ask(&self, ask: &Ask) -> Answer {
        self.ask_by(Ipv4Addr::LOCALHOST, ask)
    }

    /// Sends a request through the gateway, from this address.
    pub fn ask_by(&self, client: Ipv4Addr, ask: &Ask) -> Answer {
        ask.send_by(client, self.port).unwrap_or_else(|error| panic!("{ask:?}: {error}\n{}", self.gateway.log()))
    }

    /// The port of the gateway.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Makes tollgate hang.
    pub fn hang_tollgate(&self) {
        self.tollgate.as_ref().expect("it runs").hang();
    }

    /// Ends tollgate.
    pub fn stop_tollgate(&mut self) {
        self.tollgate = None;
    }

    /// Requests a page whose response must take at least `least`, and at most `most` plus the slack.
    fn page_within(&self, least: Duration, most: Duration) -> Answer {
        let began = Instant::now();
        let answer = self.ask(&Ask::get("/page"));
        let waited = began.elapsed();
        assert!(least <= waited && waited <= most + SLACK, "{waited:?}: {answer:?}");
        answer
    }

    /// How often a request with this method and target reached the upstream.
    pub fn reached(&self, method_and_path: &str) -> usize {
        self.upstream.seen().iter().filter(|seen| seen.line == method_and_path).count()
    }
}

/// Writes a file of the samples to the test's directory, with the test's ports and these timeouts.
pub fn write(directory: &Path, name: &str, text: &str) -> String {
    let file = directory.join(name);
    fs::write(&file, text).expect("a file in the test's directory");
    file.to_str().expect("a path in UTF-8").to_owned()
}

/// Of 20 parallel requests of one account, exactly the limit reaches the upstream; the others are refused.
pub fn admits_the_limit_exactly(sample: &Sample) -> Option<Vec<Answer>> {
    let site = Site::start(sample, Timeouts::Long, "")?;
    let login = Ask::post("/login").account("ada").body("guess");
    let answers: Vec<Answer> = thread::scope(|scope| {
        let clients: Vec<_> = (0..20).map(|_| scope.spawn(|| site.ask(&login))).collect();
        clients.into_iter().map(|client| client.join().expect("an answer")).collect()
    });
    let (refused, admitted): (Vec<_>, Vec<_>) = answers.into_iter().partition(|answer| answer.status != 401);
    assert_eq!((admitted.len(), site.reached("POST /login")), (5, 5), "{refused:?}");
    for answer in &refused {
        assert_eq!(answer.status, 429, "{answer:?}");
        assert!(matches!(answer.retry_after(), Some(290..=300)), "{answer:?}");
    }
    site.ask(&Ask::post("/login").account("bob").body("guess")).expect(401);
    Some(admitted.into_iter().chain(refused).collect())
}

/// Method, path, address and host are those of the request and its peer, whatever headers the client sends.
pub fn clients_choose_nothing(sample: &Sample) {
    let rule = "[[rules]]\ndomain = 'web'\nname = 'host'\nmatch = { host = 'gateway.test', path = '/hosted' }\n\
                action = 'deny'\nstatus = 404\n";
    let Some(site) = Site::start(sample, Timeouts::Long, rule) else { return };
    let claiming = |ask: Ask, n: usize| {
        ask.header("x-forwarded-for", &format!("198.51.100.{n}"))
            .header("x-real-ip", &format!("198.51.100.{n}"))
            .header("forwarded", &format!("for=198.51.100.{n}"))
            .header("x-forwarded-uri", "/claimed")
            .header("x-forwarded-method", "GET")
            .header("x-forwarded-host", "claimed.test")
            .header("x-original-uri", "/claimed")
            .header("x-original-url", "http://claimed.test/claimed")
            .header("x-original-method", "GET")
            .header("x-tollgate-answered", "yes")
    };
    for n in 0..30 {
        let login = Ask::post("/login").account(&format!("user{n}"));
        site.ask(&claiming(login, n)).expect(401);
    }
    site.ask(&claiming(Ask::post("/login").account("another"), 99)).expect(429);
    site.ask(&claiming(Ask::post("/x/..//%6Cogin?a=b").account("another"), 99)).expect(429);
    site.ask_by(Ipv4Addr::new(127, 0, 0, 2), &Ask::post("/login").account("another")).expect(401);
    let denied = |ask: &Ask| site.ask(ask).expect(404).header("x-tollgate-rule").map(str::to_owned);
    assert_eq!(denied(&claiming(Ask::get("/hosted"), 99)).as_deref(), Some("host"));
    assert_eq!(denied(&claiming(Ask::get("/internal/keys?a=b"), 99)).as_deref(), Some("internal"));
    assert_eq!(denied(&Ask::get("http://gateway.test/internal/keys")).as_deref(), Some("internal"));
    assert!(site.upstream.seen().iter().all(|seen| !seen.line.contains("internal")));
}

/// The entries of `[authz.entries]` arrive: headers, cookies and query parameters.
pub fn passes_on_what_rules_use(sample: &Sample) {
    let kinds = ["header", "cookie", "query"];
    let rules = kinds.map(|kind| {
        format!(
            "[authz.entries.by_{kind}]\n{kind} = 'key'\n\n[[rules]]\ndomain = 'web'\nname = 'by_{kind}'\n\
             match = {{ by_{kind} = 'stolen' }}\naction = 'deny'\nstatus = 404\n"
        )
    });
    let Some(site) = Site::start(sample, Timeouts::Long, &rules.concat()) else { return };
    for (key, status) in [("stolen", 404), ("mine", 200)] {
        site.ask(&Ask::get("/page").header("key", key)).expect(status);
        site.ask(&Ask::get("/page").header("cookie", &format!("a=b; key={key}"))).expect(status);
        site.ask(&Ask::get(&format!("/page?a=b&key={key}"))).expect(status);
        // Browsers escape these characters; other clients need not.
        site.ask(&Ask::get(&format!("/page?a=\"<>`&key={key}"))).expect(status);
    }
}

/// A request that names an account several times, in a header, a cookie or the query, goes no further.
pub fn refuses_repeats(sample: &Sample) {
    let kinds = ["header", "cookie", "query"];
    let entries = kinds.map(|kind| format!("[authz.entries.by_{kind}]\n{kind} = 'key'\n"));
    let keys = kinds.map(|kind| format!("{{ limiter = 'login_account', key = ['by_{kind}'] }}"));
    let rule = format!(
        "[[rules]]\ndomain = 'web'\nname = 'keys'\nmatch = {{ path = '/keys' }}\napply = [{}]\n",
        keys.join(", ")
    );
    let Some(site) = Site::start(sample, Timeouts::Long, &(entries.concat() + &rule)) else { return };
    let keys = || Ask::get("/keys");
    for n in 0..12 {
        let fake = format!("fake{n}");
        for ask in [
            keys().header("key", &fake).header("key", "bob"),
            keys().header("Key", "bob").header("kEY", "bob"),
            keys().header("key", "").header("key", "bob"),
            keys().header("cookie", &format!("key={fake}; key=bob")),
            keys().header("cookie", &format!("key={fake};\tkey\t=\tbob")),
            keys().header("cookie", &format!("key={fake}")).header("cookie", "key=bob"),
            Ask::get(&format!("/keys?key={fake}&key=bob")),
            Ask::get(&format!("/keys?a=b&k%65y={fake}&&key=bob")),
            Ask::post("/login").account(&fake).account("bob"),
        ] {
            let refused = site.ask(&ask);
            assert_eq!(refused.status, 400, "{ask:?} {refused:?}");
        }
    }
    let seen = site.upstream.seen();
    assert!(seen.iter().all(|seen| seen.line == "GET /"), "only the first request, which waits for the site: {seen:?}");
    for status in [200, 200, 200, 200, 200, 429] {
        site.ask(&keys().header("key", "bob")).expect(status);
    }
}

/// A request gets the documented status: after the sample's timeout when tollgate hangs, at once when it is gone.
pub fn fails_as_documented(sample: &Sample) {
    let Some(mut site) = Site::start(sample, Timeouts::Sample, "") else { return };
    site.hang_tollgate();
    let reached = site.reached("GET /page");
    // Half of it at least: a gateway's timer starts at the time of its last event, which a loaded machine makes old.
    site.page_within(TIMEOUT / 2, TIMEOUT).expect(sample.slow);
    // So does the next one, on the connection that hangs or on a new one.
    site.page_within(Duration::ZERO, TIMEOUT).expect(sample.slow);
    site.stop_tollgate();
    site.page_within(Duration::ZERO, Duration::ZERO).expect(sample.gone);
    assert_eq!(site.reached("GET /page"), reached, "a refused request goes no further");
}

/// A refusal reaches the client as tollgate wrote it: status, headers and body.
pub fn is_as_tollgate_wrote_it(refused: &Answer) {
    assert_eq!(refused.header("content-type"), Some("application/problem+json"));
    assert_eq!(refused.header("x-tollgate-rule"), Some("login"));
    assert_eq!(refused.header("x-tollgate-limiter"), Some("login_account"));
    assert_eq!(refused.remaining(), Some(0));
    assert!(refused.body.contains("\"retry_after\""), "{refused:?}");
}
