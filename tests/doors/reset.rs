//! An acquired lease is undone if its response cannot be delivered (semantics 24).

use bytes::{BufMut, Bytes, BytesMut};
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Reason, SendStream};
use prost::Message;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tollgate::rules::RuleBook;
use tollgate::server::grpc::messages::extensions::common::ratelimit::v3::RateLimitDescriptor;

use crate::support::service::*;

fn exports() -> RuleBook {
    book([slots("exports", 2)], [rule("exports", &[("slot", "*")], &[("exports", &["slot"])])])
}

/// A connection whose flow control window is zero: no response body can be sent on it.
async fn deaf(service: &Doors) -> (SendRequest<Bytes>, JoinHandle<()>) {
    let stream = TcpStream::connect(service.grpc).await.expect("the door is open");
    let (client, connection) = client::Builder::new().initial_window_size(0).handshake(stream).await.expect("HTTP/2");
    (client, tokio::spawn(async move { drop(connection.await) }))
}

async fn acquire(client: &mut SendRequest<Bytes>) -> (ResponseFuture, SendStream<Bytes>) {
    let message = question("edge", [descriptor(&[("slot", "al")])]);
    let mut frame = BytesMut::new();
    frame.put_u8(0);
    frame.put_u32(message.encoded_len() as u32);
    message.encode(&mut frame).expect("it fits");
    let request = http::Request::post(format!("http://tollgate{SHOULD_RATE_LIMIT}"))
        .header("te", "trailers")
        .header("content-type", "application/grpc")
        .body(())
        .expect("a request");
    let mut client = client.clone().ready().await.expect("the connection stands");
    let (response, mut body) = client.send_request(request, false).expect("a stream");
    body.send_data(frame.freeze(), true).expect("it is sent");
    (response, body)
}

async fn remaining(rls: &Rls) -> u32 {
    let peek = RateLimitDescriptor { hits_addend: Some(0), ..descriptor(&[("slot", "al")]) };
    rls.ask(question("edge", [peek])).await.statuses[0].limit_remaining
}

/// Polls until this number of slots is free: a release runs concurrently with the calls.
async fn until_free(rls: &Rls, slots: u32) {
    for _ in 0..100_000 {
        if remaining(rls).await == slots {
            return;
        }
    }
    panic!("{slots} slots never became free: {} are", remaining(rls).await);
}

#[tokio::test]
async fn a_lease_is_undone_when_its_stream_is_reset_before_the_reply() {
    let service = Doors::start(exports()).await;
    let rls = service.rls().await;
    let (mut client, _connection) = deaf(&service).await;
    let (response, mut stream) = acquire(&mut client).await;
    // The response head needs no window. It shows that the slot is taken and that the response is being sent.
    let answer = response.await.expect("the head of an answer");
    assert_eq!(answer.status(), 200);
    assert_eq!(remaining(&rls).await, 1);
    // As Envoy does after its timeout.
    stream.send_reset(Reason::INTERNAL_ERROR);
    until_free(&rls, 2).await;
}

#[tokio::test]
async fn a_lease_is_undone_when_its_connection_breaks_before_the_reply() {
    let service = Doors::start(exports()).await;
    let rls = service.rls().await;
    let (mut client, connection) = deaf(&service).await;
    let (first, _stream) = acquire(&mut client).await;
    let (second, _stream) = acquire(&mut client).await;
    first.await.expect("the head of an answer");
    second.await.expect("the head of an answer");
    assert_eq!(remaining(&rls).await, 0);
    connection.abort();
    until_free(&rls, 2).await;
}

#[tokio::test]
async fn a_lease_that_was_delivered_stays() {
    let service = Doors::start(exports()).await;
    let rls = service.rls().await;
    assert!(lease(&rls.one(&[("slot", "al")]).await).is_some());
    drop(rls);
    let rls = service.rls().await;
    for _ in 0..100 {
        assert_eq!(remaining(&rls).await, 1);
    }
}
