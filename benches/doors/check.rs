//! Checks the answers before anything is measured: every door admits three requests under a limit of three.

use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use http::uri::PathAndQuery;
use prost::Message;
use tollgate::server::grpc::messages::service::ratelimit::v3::rate_limit_response::Code;
use tollgate::server::grpc::messages::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use crate::questions::{ADDRESS, AUTHZ, RLS, authz, authz_headers, rls};
use crate::server::Server;

/// Sends four requests to each door.
pub fn verdicts(server: &Server) {
    const EXPECTED: [bool; 4] = [true, true, true, false];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let address = format!("http://{}", server.grpc);
        let channel = Channel::from_shared(address).expect("an address").connect().await.expect("it listens");
        let mut client = Grpc::new(channel);
        for expected in EXPECTED {
            let answer: RateLimitResponse =
                ask::<RateLimitRequest, _>(&mut client, RLS, rls("two", "/check", "rls", ADDRESS)).await;
            assert_eq!(answer.overall_code() == Code::Ok, expected, "RLS: {answer:?}");
            assert_eq!(answer.statuses.len(), 1, "RLS: {answer:?}");
        }
        for expected in EXPECTED {
            let answer: CheckResponse = ask::<CheckRequest, _>(&mut client, AUTHZ, authz("/check", "grpc")).await;
            assert_eq!(answer.status.as_ref().is_some_and(|status| status.code == 0), expected, "authz: {answer:?}");
        }
    });
    for expected in EXPECTED {
        let headers = authz_headers("http");
        let headers: Vec<_> = headers.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        let status = server.get("/authz/envoy/check", &headers);
        assert_eq!(status, if expected { 200 } else { 429 }, "authz over HTTP");
    }
}

async fn ask<Q, A>(client: &mut Grpc<Channel>, path: &'static str, question: Q) -> A
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    client.ready().await.expect("it is there");
    let path = PathAndQuery::from_static(path);
    let codec = ProstCodec::<Q, A>::default();
    client.unary(tonic::Request::new(question), path, codec).await.expect("no error of gRPC").into_inner()
}
