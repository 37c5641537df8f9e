//! A client of RLS that sends a different message each time. h2load repeats one message.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use h2::client::SendRequest;
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tollgate::server::grpc::messages::service::ratelimit::v3::RateLimitResponse;

use crate::questions::RLS;

const CONNECTIONS: usize = 4;

/// Sends a number of requests, with `streams` in flight on each connection. `frame` makes a request from its number;
/// `answered` gets that number and whether the request was admitted.
pub fn ask(
    server: SocketAddr,
    streams: usize,
    questions: u64,
    frame: impl Fn(u64) -> Bytes + Send + Sync + 'static,
    answered: impl Fn(u64, bool) + Send + Sync + 'static,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let (next, both) = (Arc::new(AtomicU64::new(0)), Arc::new((frame, answered)));
    runtime.block_on(async {
        let mut asking = JoinSet::new();
        for _ in 0..CONNECTIONS {
            let stream = TcpStream::connect(server).await.expect("the door is open");
            stream.set_nodelay(true).expect("it is TCP");
            let (client, connection) = h2::client::handshake(stream).await.expect("it speaks HTTP/2");
            tokio::spawn(connection);
            for _ in 0..streams {
                let (client, next, both) = (client.clone(), next.clone(), both.clone());
                asking.spawn(async move {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= questions {
                            break;
                        }
                        let (frame, answered) = &*both;
                        answered(number, call(client.clone(), frame(number)).await);
                    }
                });
            }
        }
        while let Some(asked) = asking.join_next().await {
            asked.expect("no panic");
        }
    });
}

/// Sends one request and returns whether it is admitted.
async fn call(client: SendRequest<Bytes>, frame: Bytes) -> bool {
    let path = format!("http://tollgate{RLS}");
    let request = http::Request::post(path).header("content-type", "application/grpc").header("te", "trailers");
    let mut client = client.ready().await.expect("the connection stands");
    let (response, mut stream) = client.send_request(request.body(()).expect("a request"), false).expect("a stream");
    stream.send_data(frame, true).expect("it is sent");
    let mut body = response.await.expect("an answer").into_body();
    let mut answer = Vec::new();
    while let Some(part) = body.data().await {
        let part = part.expect("a whole answer");
        body.flow_control().release_capacity(part.len()).expect("it was received");
        answer.extend_from_slice(&part);
    }
    let trailers = body.trailers().await.expect("a whole answer").expect("trailers");
    assert_eq!(trailers.get("grpc-status").map(http::HeaderValue::as_bytes), Some(&b"0"[..]));
    RateLimitResponse::decode(&answer[5..]).expect("an answer is well formed").overall_code == 1
}
