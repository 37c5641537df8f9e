//! Counters that the doors keep: connections, requests in flight, and exceeded bounds.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::settings::Bound;
use crate::telemetry::{MetricFamily, Mistakes, RejectedTokens};

/// How often each bound was exceeded.
#[derive(Debug, Default)]
pub struct Exceeded([AtomicU64; Bound::ALL.len()]);

impl Exceeded {
    /// Counts one more excess of a bound.
    pub fn count(&self, bound: Bound) {
        self.0[bound as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// The counts of all bounds, zeros included.
    pub fn counts(&self) -> impl Iterator<Item = (Bound, u64)> + '_ {
        Bound::ALL.into_iter().map(|bound| (bound, self.0[bound as usize].load(Ordering::Relaxed)))
    }
}

/// Resources that clients use now, and requests rejected since the start. Shared by all doors of a process.
#[derive(Debug, Default)]
pub struct DoorMetrics {
    /// How often each bound was exceeded.
    pub exceeded: Exceeded,
    /// Mistakes of gateways.
    pub mistakes: Mistakes,
    /// Requests that panicked.
    pub panics: AtomicU64,
    /// Requests in flight.
    pub in_flight: AtomicU64,
    /// Workers that wait.
    pub waiting: AtomicU64,
    /// Memory held for unfinished requests, in bytes.
    pub unfinished_bytes: AtomicUsize,
    /// Open connections of the gRPC door.
    pub grpc_connections: AtomicU64,
    /// Open connections of the HTTP door.
    pub http_connections: AtomicU64,
    /// Open connections of the admin port.
    pub admin_connections: AtomicU64,
    /// Open connections of the API's own port.
    pub api_connections: AtomicU64,
    /// Calls of the API that were rejected for their token.
    pub rejected_tokens: RejectedTokens,
}

impl DoorMetrics {
    /// These counters as metrics.
    pub fn families(&self) -> Vec<MetricFamily> {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let family = |name, help, label, counts, gauge| MetricFamily { name, help, label, counts, gauge };
        let exceeded = self.exceeded.counts().map(|(bound, count)| (bound.name(), count)).collect();
        let open = [
            ("grpc", now(&self.grpc_connections)),
            ("http", now(&self.http_connections)),
            ("admin", now(&self.admin_connections)),
            ("api", now(&self.api_connections)),
        ];
        let one = |count| vec![("", count)];
        let unfinished = self.unfinished_bytes.load(Ordering::Relaxed) as u64;
        vec![
            family(
                BOUNDS_EXCEEDED,
                "Times that a client exceeded a bound of server.bounds.",
                Some("bound"),
                exceeded,
                false,
            ),
            family(
                GATEWAY_MISTAKES,
                "Requests, descriptors and connections that look like a mistake in the configuration of a gateway. The log has examples.",
                Some("mistake"),
                self.mistakes.counts().map(|(mistake, count)| (mistake.name(), count)).collect(),
                false,
            ),
            family(
                REJECTED_TOKENS,
                "Calls of the API that were rejected because they had no token of server.api_token.",
                None,
                one(self.rejected_tokens.counted()),
                false,
            ),
            family(REQUEST_PANICS, "Requests that panicked.", None, one(now(&self.panics)), false),
            family(OPEN_CONNECTIONS, "Open connections by door.", Some("door"), open.into(), true),
            family(REQUESTS_IN_FLIGHT, "Requests in flight.", None, one(now(&self.in_flight)), true),
            family(
                WAITING,
                "Workers that wait, those who were granted ahead included.",
                None,
                one(now(&self.waiting)),
                true,
            ),
            family(UNFINISHED_BYTES, "Memory held for unfinished requests.", None, one(unfinished), true),
        ]
    }
}

const BOUNDS_EXCEEDED: &str = "tollgate_bounds_exceeded_total";
const GATEWAY_MISTAKES: &str = "tollgate_gateway_mistakes_total";
const REJECTED_TOKENS: &str = "tollgate_api_rejected_tokens_total";
const REQUEST_PANICS: &str = "tollgate_panics_total";
const OPEN_CONNECTIONS: &str = "tollgate_connections";
const REQUESTS_IN_FLIGHT: &str = "tollgate_requests_under_way";
const WAITING: &str = "tollgate_waiting_callers";
const UNFINISHED_BYTES: &str = "tollgate_unfinished_bytes";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bound_is_counted_under_its_own_name() {
        let exceeded = Exceeded::default();
        exceeded.count(Bound::Headers);
        exceeded.count(Bound::IdleTimeout);
        exceeded.count(Bound::IdleTimeout);
        let counted: Vec<_> = exceeded.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(Bound::Headers, 1), (Bound::IdleTimeout, 2)]);
        let mut names: Vec<_> = Bound::ALL.iter().map(|bound| bound.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Bound::ALL.len());
    }
}
