//! The upstream behind the gateway: an HTTP/1.1 server that answers as its test needs and records the requests that
//! reach it.
//!
//! ```text
//!   POST /login              200 where x-password is "secret", 500 where it is "broken", else 401
//!   GET  /slow               answers when the test opens the gate
//!   any  /v1/chat?tokens=N   a JSON body that says it used N tokens, of the type in x-answer-type, with x-tokens if the
//!                            request has x-answer-tokens
//!   any  /v1/stream?tokens=N the same as two server-sent events; the second, with the usage, waits for the gate
//!   anything else            200 and the target
//! ```
//!
//! A request with the header `x-wait: gate` waits at the gate like a slow one. The first N requests with
//! `x-unavailable: N` are answered 503.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::WAIT_TIMEOUT;

/// A running upstream.
#[derive(Debug)]
pub struct Upstream {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Vec<Seen>>,
    open: Mutex<bool>,
    opened: Condvar,
    held: AtomicUsize,
    stopped: AtomicBool,
}

/// A request that reached the upstream.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// Method and target.
    pub line: String,
    /// Headers, names in lower case.
    pub headers: Vec<(String, String)>,
}

impl Seen {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| &**value)
    }
}

impl Upstream {
    /// Starts an upstream on this port.
    pub fn start(port: u16) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).expect("a free port");
        let shared = Arc::new(Shared::default());
        let server = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if server.stopped.load(Ordering::Relaxed) {
                    break;
                }
                let server = Arc::clone(&server);
                // An error means that the client has disconnected.
                thread::spawn(move || server.answer(stream).ok());
            }
        });
        Self { port, shared }
    }

    /// The requests that have reached it.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The number of slow requests that wait at the gate.
    pub fn held(&self) -> usize {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// Lets the waiting slow requests go, and later ones.
    pub fn open_gate(&self) {
        self.shared.set_gate(true);
    }

    /// Holds later slow requests.
    pub fn close_gate(&self) {
        self.shared.set_gate(false);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        self.open_gate();
        // Wakes the listener, so that it notices the stop.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
    }
}

impl Shared {
    fn set_gate(&self, open: bool) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) = open;
        self.opened.notify_all();
    }

    fn wait_at_gate(&self) {
        self.held.fetch_add(1, Ordering::SeqCst);
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.opened.wait_timeout_while(open, WAIT_TIMEOUT, |open| !*open);
        drop(waited);
        self.held.fetch_sub(1, Ordering::SeqCst);
    }

    /// Records a request. Returns whether it is one of those to be answered 503.
    fn remember(&self, request: &Seen) -> bool {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let first = request.header("x-unavailable").and_then(|first| first.parse().ok()).unwrap_or(0);
        let before = seen.iter().filter(|seen| seen.header("x-unavailable").is_some()).count();
        seen.push(request.clone());
        before < first
    }

    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(WAIT_TIMEOUT))?;
        let Some(request) = read_request(&stream)? else { return Ok(()) };
        let unavailable = self.remember(&request);
        let (method, target) = request.line.split_once(' ').unwrap_or_default();
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        if request.header("x-wait") == Some("gate") {
            self.wait_at_gate();
        }
        let (status, kind, body) = match (method, path) {
            _ if unavailable => ("503 Service Unavailable", "text/plain", "try again".into()),
            ("POST", "/login") if request.header("x-password") == Some("secret") => {
                ("200 OK", "text/plain", "welcome".into())
            }
            ("POST", "/login") if request.header("x-password") == Some("broken") => {
                ("500 Internal Server Error", "text/plain", "broken".into())
            }
            ("POST", "/login") => ("401 Unauthorized", "text/plain", "wrong password".into()),
            (_, "/slow") => {
                self.wait_at_gate();
                ("200 OK", "text/plain", "done".into())
            }
            (_, "/v1/chat") => {
                let tokens = query.strip_prefix("tokens=").unwrap_or("100");
                let kind = request.header("x-answer-type").unwrap_or("application/json");
                ("200 OK", kind, format!("{{\"usage\": {{\"total_tokens\": {tokens}}}}}"))
            }
            (_, "/v1/stream") => return self.stream(&mut stream, query.strip_prefix("tokens=").unwrap_or("100")),
            _ => ("200 OK", "text/plain", request.line.clone()),
        };
        let length = body.len();
        let used =
            request.header("x-answer-tokens").map(|tokens| format!("x-tokens: {tokens}\r\n")).unwrap_or_default();
        write!(
            stream,
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{used}content-length: {length}\r\nconnection: close\r\n\r\n{body}"
        )
    }

    fn stream(&self, stream: &mut TcpStream, tokens: &str) -> io::Result<()> {
        let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
        write!(stream, "{head}data: {{\"choices\": [\"Certainly\"]}}\n\n")?;
        self.wait_at_gate();
        write!(stream, "data: {{\"usage\": {{\"total_tokens\": {tokens}}}}}\n\ndata: [DONE]\n\n")
    }
}

fn read_request(stream: &TcpStream) -> io::Result<Option<Seen>> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let Some((request_line, _)) = line.trim_end().rsplit_once(' ') else { return Ok(None) };
    let mut seen = Seen { line: request_line.to_owned(), headers: Vec::new() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => seen.headers.push((name.to_ascii_lowercase(), value.trim().to_owned())),
            None => break,
        }
    }
    let length = seen.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    reader.take(length).read_to_end(&mut Vec::new())?;
    Ok(Some(seen))
}
