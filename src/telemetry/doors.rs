//! What clients take of the doors, and what was turned away: counts that the doors keep.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crate::settings::Bound;
use crate::telemetry::DoorFact;

/// How often each bound was met.
#[derive(Debug, Default)]
pub struct Exceeded([AtomicU64; Bound::ALL.len()]);

impl Exceeded {
    /// Counts one more.
    pub fn count(&self, bound: Bound) {
        self.0[bound as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// All of them, also those that nobody met.
    pub fn counts(&self) -> impl Iterator<Item = (Bound, u64)> + '_ {
        Bound::ALL.into_iter().map(|bound| (bound, self.0[bound as usize].load(Ordering::Relaxed)))
    }
}

/// What clients take at the moment, and what was turned away since the start: one for all doors of a process.
#[derive(Debug, Default)]
pub struct DoorMetrics {
    /// How often each bound was met.
    pub exceeded: Exceeded,
    /// Requests that panicked.
    pub panics: AtomicU64,
    /// Requests under way.
    pub in_flight: AtomicU64,
    /// Bytes kept of requests that have begun and not ended.
    pub unfinished_bytes: AtomicUsize,
    /// Open connections of the gRPC door.
    pub grpc_connections: AtomicU64,
    /// Open connections of the HTTP door.
    pub http_connections: AtomicU64,
    /// Open connections of the admin port.
    pub admin_connections: AtomicU64,
}

impl DoorMetrics {
    /// The same for the metrics.
    pub fn facts(&self) -> Vec<DoorFact> {
        let now = |count: &AtomicU64| count.load(Ordering::Relaxed);
        let fact = |name, text, label, counts, gauge| DoorFact { name, text, label, counts, gauge };
        let exceeded = self.exceeded.counts().map(|(bound, count)| (bound.name(), count)).collect();
        let open = [
            ("grpc", now(&self.grpc_connections)),
            ("http", now(&self.http_connections)),
            ("admin", now(&self.admin_connections)),
        ];
        let one = |count| vec![("", count)];
        let unfinished = self.unfinished_bytes.load(Ordering::Relaxed) as u64;
        vec![
            fact(EXCEEDED, "Times that a client exceeded a bound of server.bounds.", Some("bound"), exceeded, false),
            fact(PANICS, "Requests that panicked.", None, one(now(&self.panics)), false),
            fact(CONNECTIONS, "Open connections by door.", Some("door"), open.into(), true),
            fact(UNDER_WAY, "Requests in flight.", None, one(now(&self.in_flight)), true),
            fact(UNFINISHED, "Memory held for unfinished requests.", None, one(unfinished), true),
        ]
    }
}

const EXCEEDED: &str = "tollgate_bounds_exceeded_total";
const PANICS: &str = "tollgate_panics_total";
const CONNECTIONS: &str = "tollgate_connections";
const UNDER_WAY: &str = "tollgate_requests_under_way";
const UNFINISHED: &str = "tollgate_unfinished_bytes";

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
