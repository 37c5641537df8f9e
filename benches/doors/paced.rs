//! Requests at an even pace: each is sent when it is due, however long the others take.
//!
//! ```text
//!   due              0     1/r    2/r    3/r         32/r
//!   by connection    1st   2nd    3rd    4th   ...   1st   ...
//! ```
//!
//! h2load cannot do this: with `--rps`, its connections all send at the same moment, and all requests due within ten
//! milliseconds go out at once.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// Connections, each on its own thread: a thread sleeps to within some microseconds, tokio to within a millisecond.
const CONNECTIONS: usize = 32;

/// Sends `rate` requests per second for `length`. Returns the microseconds from each request to the end of its
/// response.
pub fn latencies(address: SocketAddr, request: &str, rate: f64, length: Duration) -> Vec<f64> {
    let requests = (rate * length.as_secs_f64()) as usize;
    // All connections are open by then.
    let begin = Instant::now() + Duration::from_millis(100);
    let connection = |first| {
        let mut stream = TcpStream::connect(address).expect("it listens");
        stream.set_nodelay(true).expect("it is TCP");
        let answered = |number| {
            let due = begin + Duration::from_secs_f64(number as f64 / rate);
            let sent = match due.checked_duration_since(Instant::now()) {
                Some(early) => {
                    std::thread::sleep(early);
                    Instant::now()
                }
                // The connection was busy: a client would have waited since the request was due.
                None => due,
            };
            // All must be admitted: a gateway refuses faster than it forwards.
            assert_eq!(ask(&mut stream, request), 200);
            sent.elapsed().as_secs_f64() * 1e6
        };
        (first..requests).step_by(CONNECTIONS).map(answered).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let connections: Vec<_> = (0..CONNECTIONS).map(|first| scope.spawn(move || connection(first))).collect();
        connections.into_iter().flat_map(|connection| connection.join().expect("all passed")).collect()
    })
}

/// Sends a request, reads its response, which has no body, and returns the status.
pub fn ask(stream: &mut TcpStream, request: &str) -> u16 {
    stream.write_all(request.as_bytes()).expect("it reads");
    let (mut answer, mut length) = ([0; 1024], 0);
    while !answer[..length].ends_with(b"\r\n\r\n") {
        let read = stream.read(&mut answer[length..]).expect("it answers");
        assert!(read > 0, "it ended before its answer did");
        length += read;
    }
    let answer = String::from_utf8_lossy(&answer[..length]);
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status follows the version")
}
