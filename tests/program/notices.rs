//! Warnings about requests that the doors cannot read: each at most once a minute, with the reason and the remedy.

use bytes::Bytes;

use crate::support::binary::{DOORS, Served, exchange};
use crate::support::service::{SHOULD_RATE_LIMIT, begin, connect, says_no};

fn warnings(served: &Served, text: &str) -> usize {
    served.said().lines().filter(|line| line.contains("WARN") && line.contains(text)).count()
}

#[test]
fn an_http_head_that_cannot_be_read_is_refused_and_warned_of_once_a_minute() {
    let served = Served::start(DOORS, &[]);
    let last = b"GET /healthcheck HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n";
    for _ in 0..3 {
        // A target with a character that hyper rejects is read only where nothing is pipelined.
        let two = b"GET /authz/envoy/ HTTP/1.1\r\nhost: h\r\n\r\nGET /authz/envoy/< HTTP/1.1\r\nhost: h\r\n\r\n";
        assert!(exchange(&served.http, two).contains("HTTP/1.1 400"));
        assert!(exchange(&served.http, b"GET /authz/envoy/ nonsense\r\n\r\n").starts_with("HTTP/1.1 400"));
    }
    served.until("HTTP requests refused");
    assert!(exchange(&served.http, last).starts_with("HTTP/1.1 200"));
    assert_eq!(warnings(&served, "HTTP requests refused"), 1, "{}", served.said());
    let unreadable = "tollgate_requests_total{door=\"ext_authz_http\",result=\"unreadable\"}";
    while served.metric(unreadable) < 6.0 {
        std::thread::yield_now();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_encoding_that_is_not_supported_is_refused_and_warned_of_once_a_minute() {
    let served = Served::start(DOORS, &[]);
    let client = connect(served.grpc.parse().expect("an address")).await;
    for _ in 0..3 {
        let headers = [("grpc-encoding", "zstd")];
        let (response, mut stream) =
            begin(&client, SHOULD_RATE_LIMIT, &headers, Bytes::from_static(&[1, 0, 0, 0, 1, 0])).await;
        let _ = stream.send_data(Bytes::new(), true);
        assert!(says_no(SHOULD_RATE_LIMIT, response).await);
    }
    served.until("grpc-encoding is not supported");
    assert_eq!(warnings(&served, "grpc-encoding"), 1, "{}", served.said());
    assert!(served.said().contains("encoding=\"zstd\""), "{}", served.said());
    assert_eq!(served.metric("tollgate_requests_total{door=\"rls\",result=\"unreadable\"}"), 3.0);
}
