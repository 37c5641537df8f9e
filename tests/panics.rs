//! A request that panics does not affect others. This is a binary of its own because a process has a single panic hook.

#![expect(
    clippy::disallowed_methods,
    unreachable_pub,
    reason = "a test: no other crate uses it, it waits for real servers"
)]

mod support;

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tollgate::app::App;
use tollgate::clock::{Clock, ManualClock, Timestamp};
use tollgate::rules::{RuleBook, Rules};
use tollgate::store::{MemorySettings, Stores};
use tracing_subscriber::fmt::MakeWriter;

use crate::support::service::*;

/// Two requests a minute of each account.
fn two() -> RuleBook {
    book([window("two", 2, 60)], [rule("two", &[("account", "*")], &[("two", &["account"])])])
}

/// A clock that panics on demand, with an identity in the panic message.
#[derive(Clone)]
struct Brittle {
    clock: ManualClock,
    breaks: Arc<AtomicBool>,
}

const PLANTED: &str = "al.planted@example.org";

impl Clock for Brittle {
    fn now(&self) -> Timestamp {
        if self.breaks.load(Ordering::SeqCst) {
            // As slicing a string inside a character does.
            panic!("byte index 1 is not a char boundary of `{PLANTED}`");
        }
        self.clock.now()
    }
}

/// The log of the process.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // Copied to the output of this test, for when it fails.
        eprint!("{}", String::from_utf8_lossy(bytes));
        self.0.lock().expect("nobody panics with it").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Log;

    fn make_writer(&'a self) -> Log {
        self.clone()
    }
}

/// Weakness D2: a failure inside a decision lets the request pass.
#[tokio::test]
async fn a_request_that_panics_answers_itself_alone_and_is_counted_and_logged_without_its_values() {
    let log = Log::default();
    tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).init();
    tollgate::server::log_panics();
    let clock = ManualClock::at(Timestamp::from_secs(1_700_000_000));
    let brittle = Brittle { clock: clock.clone(), breaks: Arc::default() };
    let rules = Rules::compile(two()).expect("the rules compile");
    let stores = Stores::memory(&[MemorySettings::default()]);
    let mut settings = settings();
    settings.authz.domain = "edge".into();
    let app = App::open_at(&settings, rules, stores, Arc::new(brittle.clone())).await.expect("the doors open");
    let service = Doors::serve(app, clock);
    let rls = service.rls().await;
    assert_eq!(rls.one(&[("account", PLANTED)]).await.overall_code, OK);

    // A request on the same connection is in flight when others panic.
    let client = connect(service.grpc).await;
    let (response, mut stream) = begin(&client, SHOULD_RATE_LIMIT, &[], framed_request()).await;
    let mut plain = TcpStream::connect(service.http).await.expect("the door is open");
    brittle.breaks.store(true, Ordering::SeqCst);
    for path in [SHOULD_RATE_LIMIT, CHECK] {
        let (response, mut stream) = begin(&client, path, &[], Bytes::from_static(&[0; 5])).await;
        stream.send_data(Bytes::new(), true).expect("it is sent");
        let response = timeout(WAIT_TIMEOUT, response).await.expect("in time").expect("an answer");
        let status = response.headers().get("grpc-status").expect("in the head: there is no message");
        assert_eq!((status.as_bytes(), response.body().is_end_stream()), (&b"13"[..], true));
        assert!(!format!("{:?}", response.headers()).contains(PLANTED));
    }
    plain.write_all(b"GET /authz/envoy/ HTTP/1.1\r\nhost: h\r\n\r\n").await.expect("it is sent");
    let mut begun = [0; 12];
    plain.read_exact(&mut begun).await.expect("an answer");
    assert_eq!(&begun, b"HTTP/1.1 500");
    assert_eq!(service.service.doors().panics.load(Ordering::Relaxed), 3);

    brittle.breaks.store(false, Ordering::SeqCst);
    stream.send_data(Bytes::new(), true).expect("the connection stands");
    assert!(!says_no(SHOULD_RATE_LIMIT, response).await);
    plain.write_all(b"GET /authz/envoy/ HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.expect("it stands");
    assert!(String::from_utf8_lossy(&closed(&mut plain).await).contains("HTTP/1.1 200"));
    // The panicked requests charged nothing, and nothing is blocked.
    assert_eq!(rls.one(&[("account", PLANTED)]).await.overall_code, OK);
    assert_eq!(rls.one(&[("account", PLANTED)]).await.overall_code, OVER_LIMIT);
    assert_eq!(service.service.doors().in_flight.load(Ordering::Relaxed), 0);

    // A message that is a literal of the code may be logged.
    assert!(std::panic::catch_unwind(|| panic!("as it stands in the code")).is_err());
    let log = String::from_utf8(log.0.lock().expect("nobody panics with it").clone()).expect("text");
    // The sweep reads the same clock, and may panic too.
    assert!(log.matches("ERROR").count() >= 4, "{log}");
    assert!(log.contains("tests/panics.rs:") && log.contains("as it stands in the code"), "{log}");
    assert!(!log.contains(PLANTED), "{log}");
}
