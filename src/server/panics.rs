//! A panic ends the request that caused it and nothing else.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;

use futures_util::FutureExt;

use crate::telemetry::DoorMetrics;

/// Runs a request. `None` when it panicked.
///
/// State stays consistent: counters change under locks that do not poison, and only as a whole.
pub(super) async fn catch<F: Future>(doors: &DoorMetrics, request: F) -> Option<F::Output> {
    let run = AssertUnwindSafe(request).catch_unwind().await;
    if run.is_err() {
        doors.panics.fetch_add(1, Ordering::Relaxed);
    }
    run.ok()
}

/// Logs panics, replacing Rust's default report.
///
/// A formatted message may contain what a client sent: slicing a string at a wrong index shows the string. So only a
/// message that is a literal in the code is logged.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "unknown location".to_owned(), ToString::to_string);
        let said = panic.payload().downcast_ref::<&str>().copied();
        let said = said.unwrap_or("(not shown: it may hold values of a request)");
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => tracing::error!(place, said, %backtrace, "panicked"),
            _ => tracing::error!(place, said, "panicked; set RUST_BACKTRACE=1 for a backtrace"),
        }
    }));
}
