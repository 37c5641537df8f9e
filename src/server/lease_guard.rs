//! Releases a lease whose response did not reach the client.
//!
//! Envoy resets a call that timed out and forgets it: it will never release the lease of that call. A response lost
//! later, between our kernel and the client, leaves a lease that expires.

use std::sync::Arc;

use crate::service::Service;

/// The lease that a response hands out; among the extensions of the response.
#[derive(Clone, Debug)]
pub(in crate::server) struct HandedOutLease(pub(in crate::server) Arc<str>);

/// Releases a lease when dropped.
#[derive(Debug)]
pub(in crate::server) struct LeaseGuard(Option<(Arc<Service>, Arc<str>)>);

impl LeaseGuard {
    pub(in crate::server) fn new(service: Arc<Service>, lease: HandedOutLease) -> Self {
        Self(Some((service, lease.0)))
    }

    /// Keeps the lease: its response was sent.
    pub(in crate::server) fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for LeaseGuard {
    fn drop(&mut self) {
        // Without a runtime the process is ending, and the lease expires.
        if let Some((service, lease)) = self.0.take()
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            runtime.spawn(async move { service.release(&lease).await });
        }
    }
}
