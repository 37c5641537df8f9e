//! A panic is an error of ours: it ends the request that met it and nothing else.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::future::Future;
use std::panic::{self, AssertUnwindSafe};
use std::sync::atomic::Ordering;

use futures_util::FutureExt;

use crate::telemetry::DoorMetrics;

/// Runs a request. None when it panicked.
///
/// What it leaves behind is sound: counters change under locks that do not poison, and only as a whole.
pub(super) async fn catch<F: Future>(doors: &DoorMetrics, request: F) -> Option<F::Output> {
    let run = AssertUnwindSafe(request).catch_unwind().await;
    if run.is_err() {
        doors.panics.fetch_add(1, Ordering::Relaxed);
    }
    run.ok()
}

/// Lets panics go to the log, in the place of Rust's own report.
///
/// A message that was put together may hold what a client sent: slicing a text at the wrong place shows the text. So
/// only one that stands in the code as it is goes to the log.
pub fn log_panics() {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_owned(), ToString::to_string);
        let said = panic.payload().downcast_ref::<&str>().copied();
        let said = said.unwrap_or("(not shown: it may hold values of a request)");
        let backtrace = Backtrace::capture();
        match backtrace.status() {
            BacktraceStatus::Captured => tracing::error!(place, said, %backtrace, "panicked"),
            _ => tracing::error!(place, said, "panicked; RUST_BACKTRACE=1 shows the way there"),
        }
    }));
}
