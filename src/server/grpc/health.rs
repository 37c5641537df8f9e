//! gRPC health checks: `grpc.health.v1.Health`.
//!
//! All services of a process have one status. tonic-health's own service ends a watch of an unknown service with
//! NOT_FOUND, where the protocol keeps the stream open.

use std::pin::Pin;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::SERVICE_NAME as AUTHZ;
use futures_util::stream::{self, Stream};
use tokio::sync::watch;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use super::generated::envoy::service::ratelimit::v3::rate_limit_service_server::SERVICE_NAME as RLS;
use super::limits::SERVICE_NAME as LIMITS;

/// The names whose status is known. The empty one is the whole process; `ratelimit` is what envoyproxy/ratelimit calls
/// itself, so configurations made for it have that name.
const NAMES: [&str; 5] = ["", RLS, AUTHZ, LIMITS, "ratelimit"];

/// The health of the process, as clients see it.
#[derive(Clone, Debug)]
pub(super) struct HealthService {
    serving: watch::Receiver<bool>,
}

impl HealthService {
    /// Reports what `serving` says. Watches end when its sender is dropped.
    pub(super) fn new(serving: watch::Receiver<bool>) -> Self {
        Self { serving }
    }
}

fn status(serving: bool) -> ServingStatus {
    if serving { ServingStatus::Serving } else { ServingStatus::NotServing }
}

fn response(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse { status: status.into() }
}

#[tonic::async_trait]
impl Health for HealthService {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        match NAMES.contains(&&*request.get_ref().service) {
            true => Ok(Response::new(response(status(*self.serving.borrow())))),
            false => Err(Status::not_found("no such service here")),
        }
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<HealthCheckResponse, Status>> + Send>>;

    /// "If the service name is not known, the server should respond with SERVICE_UNKNOWN [...] but keep the stream open."
    async fn watch(&self, request: Request<HealthCheckRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let known = NAMES.contains(&&*request.get_ref().service);
        let updates = stream::unfold((self.serving.clone(), None), move |(mut serving, last)| async move {
            loop {
                let now = match known {
                    true => status(*serving.borrow_and_update()),
                    false => ServingStatus::ServiceUnknown,
                };
                if last != Some(now) {
                    return Some((Ok(response(now)), (serving, Some(now))));
                }
                serving.changed().await.ok()?;
            }
        });
        Ok(Response::new(Box::pin(updates)))
    }
}
