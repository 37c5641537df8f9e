//! A rate limit service that decides nothing: one OK status for every request.

use tollgate::server::grpc::messages::service::ratelimit::v3::rate_limit_response::{Code, DescriptorStatus};
use tollgate::server::grpc::messages::service::ratelimit::v3::rate_limit_service_server::{
    RateLimitService, RateLimitServiceServer,
};
use tollgate::server::grpc::messages::service::ratelimit::v3::{RateLimitRequest, RateLimitResponse};
use tonic::{Request, Response, Status};

pub struct Noop;

#[tonic::async_trait]
impl RateLimitService for Noop {
    async fn should_rate_limit(&self, _: Request<RateLimitRequest>) -> Result<Response<RateLimitResponse>, Status> {
        let ok = DescriptorStatus { code: Code::Ok.into(), ..DescriptorStatus::default() };
        let overall_code = Code::Ok.into();
        Ok(Response::new(RateLimitResponse { overall_code, statuses: vec![ok], ..RateLimitResponse::default() }))
    }
}

/// The generated service around it.
pub fn service() -> RateLimitServiceServer<Noop> {
    RateLimitServiceServer::new(Noop)
}

/// Prints the address in the form of the real program.
pub fn announce(address: std::net::SocketAddr) {
    eprintln!("noop: gRPC on {address}");
}
