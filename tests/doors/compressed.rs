//! gRPC requests whose message is compressed.

use std::io::Write;

use bytes::{BufMut, Bytes, BytesMut};
use flate2::Compression;
use flate2::write::{GzEncoder, ZlibEncoder};
use h2::client::SendRequest;
use prost::Message;
use tollgate::settings::{Bound, Bounds, Settings};

use crate::support::service::*;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn zlib(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).expect("memory");
    encoder.finish().expect("memory")
}

fn frame(flag: u8, message: &[u8]) -> Bytes {
    let mut frame = BytesMut::new();
    frame.put_u8(flag);
    frame.put_u32(message.len() as u32);
    frame.put_slice(message);
    frame.freeze()
}

fn asked_by(account: &str) -> Vec<u8> {
    question("edge", [descriptor(&[("account", account)])]).encode_to_vec()
}

async fn start() -> Doors {
    let rules = [rule("once", &[("account", "*")], &[("once", &["account"])])];
    let bounds = Bounds { message_bytes: 64 << 10, ..Bounds::default() };
    Doors::start_with(Settings { bounds, ..settings() }, book([window("once", 1, 60)], rules)).await
}

/// Whether RLS refuses a request with these headers and this frame.
async fn refused(client: &SendRequest<Bytes>, headers: &[(&str, &str)], frame: Bytes) -> bool {
    let (response, mut stream) = begin(client, SHOULD_RATE_LIMIT, headers, frame).await;
    let _ = stream.send_data(Bytes::new(), true);
    says_no(SHOULD_RATE_LIMIT, response).await
}

#[tokio::test]
async fn a_message_compressed_with_gzip_is_decided_like_any_other() {
    let service = start().await;
    let client = connect(service.grpc).await;
    let headers = [("grpc-encoding", "gzip")];
    assert!(!refused(&client, &headers, frame(1, &gzip(&asked_by("ada")))).await);
    assert!(refused(&client, &headers, frame(1, &gzip(&asked_by("ada")))).await);
    assert!(refused(&client, &[], frame(0, &asked_by("ada"))).await, "one counter, however it is encoded");
    // Clients leave short messages uncompressed.
    for encoding in ["gzip", "identity", "deflate", "snappy"] {
        let message = asked_by(encoding);
        assert!(!refused(&client, &[("grpc-encoding", encoding)], frame(0, &message)).await, "{encoding}");
        assert!(refused(&client, &[("grpc-encoding", encoding)], frame(0, &message)).await, "{encoding}");
    }
}

#[tokio::test]
async fn a_message_in_an_encoding_that_is_not_known_or_not_kept_is_refused() {
    let service = start().await;
    let client = connect(service.grpc).await;
    let message = asked_by("bob");
    let compressed = gzip(&message);
    let cases = [
        (Some("deflate"), frame(1, &zlib(&message))),
        (Some("zstd"), frame(1, &compressed)),
        (Some("\u{e9}"), frame(1, &compressed)),
        (Some("identity"), frame(1, &message)),
        (None, frame(1, &message)),
        (None, frame(1, &compressed)),
        (Some("gzip"), frame(2, &compressed)),
        (Some("gzip"), frame(1, &message)),
        (Some("gzip"), frame(1, &compressed[..compressed.len() - 1])),
        (Some("gzip"), frame(1, &[&compressed[..], b"x"].concat())),
        (Some("gzip"), frame(1, b"")),
    ];
    for (encoding, frame) in cases {
        let headers: Vec<_> = encoding.map(|encoding| ("grpc-encoding", encoding)).into_iter().collect();
        assert!(refused(&client, &headers, frame.clone()).await, "{encoding:?} {frame:?}");
    }
    assert_eq!(service.met(Bound::MessageBytes), 0);
    assert!(!refused(&client, &[], frame(0, &message)).await, "nothing was charged");
}

#[tokio::test]
async fn semantics_28_a_message_too_large_when_decompressed_is_refused() {
    let service = start().await;
    let client = connect(service.grpc).await;
    let headers = [("grpc-encoding", "gzip")];
    // A field that is not known, so it would be skipped.
    let padded = |bytes: usize| {
        let mut message = asked_by("eve");
        prost::encoding::bytes::encode(15, &vec![0; bytes], &mut message);
        frame(1, &gzip(&message))
    };
    assert!(!refused(&client, &headers, padded(60_000)).await);
    assert!(padded(50_000_000).len() < 64 << 10, "only its content is large");
    assert!(refused(&client, &headers, padded(50_000_000)).await);
    assert_eq!(service.met(Bound::MessageBytes), 1);
}
