//! The task that sends a store what the backlog holds, again and again.

use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::time::Instant;

use super::backlog::{OwedPlan, Round};
use super::lane::{Lanes, QueueInner};
use super::metrics::DropReason;
use crate::plan::{Applied, Fault};

/// The most plans that are sent together, so that decisions need not wait behind many.
const MAX_ROUND: usize = 256;

/// The delay before what failed is sent again: the first, which doubles each time, and the last.
const MIN_DELAY: Duration = Duration::from_millis(10);
const MAX_DELAY: Duration = Duration::from_millis(500);

/// How long a queue that was dropped tries to hand over what it owes.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends what is owed, again and again. Returns when the backlog is closed and empty, or could not be emptied in time.
pub(super) async fn hand_over(inner: Arc<QueueInner>, lanes: Arc<Lanes>) {
    let mut delay = MIN_DELAY;
    let mut closing = None;
    loop {
        if inner.backlog.filled().await {
            let closing: Instant = *closing.get_or_insert_with(Instant::now);
            if inner.backlog.waiting() == 0 || closing.elapsed() > CLOSING_TIMEOUT {
                break;
            }
        }
        let usable = |plan: &_| !inner.breaker_of(plan).circuit_open();
        let Round { plans, expired } = inner.backlog.take(MAX_ROUND, usable);
        inner.report_dropped(DropReason::Expired, expired);
        let handed_over = !plans.is_empty() && send(&inner, &lanes, plans).await;
        inner.report_backlog();
        if handed_over {
            delay = MIN_DELAY;
            continue;
        }
        // A store that answers again wakes it.
        let _ = tokio::time::timeout(delay, inner.backlog.store_recovered()).await;
        delay = (delay * 2).min(MAX_DELAY);
    }
    inner.drop_backlog();
}

/// Sends plans, and puts back those that failed. Returns whether the store answered all of them.
async fn send(inner: &QueueInner, lanes: &Lanes, plans: Vec<OwedPlan>) -> bool {
    let answers = plans.iter().map(|owed| lanes.hand_over(inner, owed.remaining()));
    // A lane whose task has ended drops its sender.
    let answers = join_all(answers.collect::<Vec<_>>()).await;
    let mut all = true;
    for (owed, answer) in plans.into_iter().zip(answers) {
        let answer: Result<Applied, Fault> = answer.unwrap_or(Err(Fault::Unreachable));
        let dropped = match answer {
            Ok(_) => {
                inner.report(|observer| observer.handed_over());
                inner.backlog.done(&owed).and_then(|release| inner.backlog.owe(release, false))
            }
            Err(Fault::Script) => {
                inner.backlog.done(&owed);
                Some(DropReason::Refused)
            }
            Err(fault) => {
                all = false;
                inner.report(|observer| observer.retried());
                inner.backlog.put_back(owed, fault.may_be_executed())
            }
        };
        if let Some(reason) = dropped {
            inner.report_dropped(reason, 1);
        }
    }
    all
}
