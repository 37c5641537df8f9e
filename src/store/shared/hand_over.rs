//! The task that sends a store what the backlog holds, again and again. It makes calls of its own, so that decisions never
//! wait in a call for what is owed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use tokio::sync::watch;
use tokio::time::Instant;

use super::backlog::{Backlog, OwedPlan, Round};
use super::lane::QueueInner;
use super::metrics::DropReason;
use crate::plan::Plan;

/// The most plans that are taken from the backlog together.
const MAX_ROUND: usize = 256;

/// The most plans in one call: small, because decisions share the store with it.
const MAX_CALL: usize = 16;

/// The delay before what failed is sent again: the first, which doubles each time, and the last.
const MIN_DELAY: Duration = Duration::from_millis(10);
const MAX_DELAY: Duration = Duration::from_millis(500);

/// How long after a takeover everything is sent again that the server before has acknowledged: its last answers are there
/// by then.
const TAKEOVER_DELAY: Duration = Duration::from_millis(250);

/// How long a queue that was dropped tries to hand over what it owes.
const CLOSING_TIMEOUT: Duration = Duration::from_secs(5);

/// Sends what is owed, again and again. Returns when the queue is closed and owes nothing, or could not hand it over in
/// time, and when another queue takes the backlog over.
pub(super) async fn hand_over(inner: Arc<QueueInner>) {
    let mut delay = MIN_DELAY;
    let mut closing = None;
    let mut takeovers = inner.backend.takeovers();
    let mut send_again_at = None;
    loop {
        let backlog = inner.backlog();
        let closed = tokio::select! {
            biased;
            () = inner.replaced() => return,
            () = taken_over(&mut takeovers) => {
                send_again_at = Some(Instant::now() + TAKEOVER_DELAY);
                continue;
            }
            () = reached(send_again_at) => {
                send_again_at = None;
                backlog.owe_acknowledged();
                continue;
            }
            closed = backlog.filled() => closed,
        };
        if closed {
            if !Arc::ptr_eq(&backlog, &inner.backlog()) {
                // It took another one over.
                continue;
            }
            let closing: Instant = *closing.get_or_insert_with(Instant::now);
            if backlog.is_settled() || closing.elapsed() > CLOSING_TIMEOUT {
                break;
            }
        }
        if hand_over_round(&inner, &backlog).await {
            delay = MIN_DELAY;
            continue;
        }
        // A store that answers again wakes it.
        let _ = tokio::time::timeout(delay, backlog.store_recovered()).await;
        delay = (delay * 2).min(MAX_DELAY);
    }
    inner.drop_backlog();
}

/// Waits until another server has taken over.
async fn taken_over(takeovers: &mut Option<watch::Receiver<()>>) {
    if let Some(receiver) = takeovers
        && receiver.changed().await.is_ok()
    {
        return;
    }
    std::future::pending::<()>().await;
}

/// Waits until a moment, if there is one.
async fn reached(moment: Option<Instant>) {
    match moment {
        Some(moment) => tokio::time::sleep_until(moment).await,
        None => std::future::pending().await,
    }
}

/// Sends what can be sent now. Returns whether there was something, and the store answered all of it.
async fn hand_over_round(inner: &QueueInner, backlog: &Backlog) -> bool {
    // Without a lane that gets decisions a few are sent all the same: the probes may fail for reasons of their own.
    let (most, trial) = if inner.any_lane_usable() { (MAX_ROUND, false) } else { (MAX_CALL, true) };
    let usable = |plan: &Plan| trial || !inner.breaker_of(plan).circuit_open();
    let Round { plans, expired, unknown } = backlog.take(most, usable);
    inner.report_dropped(DropReason::Expired, expired);
    inner.report_dropped(DropReason::Unknown, unknown);
    let mut lanes: BTreeMap<usize, Vec<OwedPlan>> = BTreeMap::new();
    for owed in plans {
        lanes.entry(inner.backend.lane(&owed.plan)).or_default().push(owed);
    }
    let sending = lanes.into_iter().map(|(lane, plans)| send(inner, backlog, lane, plans));
    let answered = join_all(sending.collect::<Vec<_>>()).await;
    !answered.is_empty() && answered.into_iter().all(|answered| answered)
}

/// Sends plans to a lane until it fails, and puts back what it did not execute. Returns whether it answered all of them.
async fn send(inner: &QueueInner, backlog: &Backlog, lane: usize, plans: Vec<OwedPlan>) -> bool {
    let mut plans = plans.into_iter();
    loop {
        let call: Vec<OwedPlan> = plans.by_ref().take(MAX_CALL.min(inner.settings.max_batch)).collect();
        if call.is_empty() {
            return true;
        }
        let remaining: Vec<Plan> = call.iter().map(OwedPlan::remaining).collect();
        let begun = Instant::now();
        let answers = match inner.linked(lane).await {
            Ok(()) => inner.backend.execute(&remaining).await,
            Err(fault) => remaining.iter().map(|_| Err(fault)).collect(),
        };
        let mut all = true;
        if answers.iter().all(Result::is_ok) {
            inner.record_answer_after(lane, begun.elapsed());
        }
        for (owed, answer) in call.into_iter().zip(answers) {
            let dropped = match answer {
                Ok(_) => {
                    inner.report(|observer| observer.handed_over());
                    backlog.done(owed, inner.may_be_taken_over).and_then(|release| backlog.owe(release, false))
                }
                Err(fault) => {
                    all = false;
                    inner.report(|observer| observer.retried());
                    backlog.put_back(owed, fault)
                }
            };
            dropped.into_iter().for_each(|reason| inner.report_dropped(reason, 1));
        }
        if !all {
            plans.for_each(|owed| backlog.return_unsent(owed));
            return false;
        }
    }
}
