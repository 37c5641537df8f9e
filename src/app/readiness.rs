//! Readiness that follows the required stores.

use std::sync::Arc;
use std::time::Duration;

use super::StorePlan;
use crate::server::grpc::Grpc;
use crate::service::Service;

/// The interval at which readiness is decided.
const INTERVAL: Duration = Duration::from_millis(100);

/// A store without an answer for this long is asked for one.
const ASK_AFTER: Duration = Duration::from_secs(1);

/// A store that readiness follows.
#[derive(Clone, Debug)]
pub(super) struct RequiredStore {
    name: String,
    /// How long it may be without an answer. `None` ends the wait with its first answer.
    unready_after: Option<Duration>,
}

impl RequiredStore {
    /// The required stores of a configuration.
    pub(super) fn all(plan: &StorePlan) -> Vec<Self> {
        let of = |(name, unready_after): (&str, _)| Self { name: name.to_owned(), unready_after };
        plan.required().map(of).collect()
    }

    /// Whether it does not answer. One that a reload has removed is not required any more.
    async fn is_silent(&self, service: &Service) -> bool {
        let version = service.current().version.clone();
        let Some(index) = version.rules.stores().iter().position(|name| *name == self.name) else { return false };
        let silent = |allowed: Duration| version.stores.silent_for(index).is_none_or(|silent| silent > allowed);
        let allowed = self.unready_after.unwrap_or(Duration::MAX);
        if silent(ASK_AFTER.min(allowed / 2)) {
            // An answer ends the silence.
            let _ = version.stores.answers(index).await;
        }
        silent(allowed)
    }
}

/// Reports ready while each of these stores answers.
pub(super) async fn follow_stores(service: Arc<Service>, grpc: Grpc, stores: Vec<RequiredStore>) {
    let mut ready = false;
    loop {
        let mut silent = Vec::new();
        for store in &stores {
            if store.is_silent(&service).await {
                silent.push(store.name.as_str());
            }
        }
        match (silent.is_empty(), ready) {
            (true, false) => {
                grpc.set_serving();
                tracing::info!("all required stores answer: ready for requests");
            }
            (false, true) => {
                grpc.set_not_serving();
                tracing::warn!(stores = ?silent, "required stores do not answer: not ready until they do");
            }
            _ => {}
        }
        ready = silent.is_empty();
        tokio::time::sleep(INTERVAL).await;
    }
}
