//! A call of the stores that outlives its caller.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use super::current::{Current, Service};
use crate::clock::{Clock, Timestamp};
use crate::plan::Applied;
use crate::rules::Planned;

/// What a try does in the stores.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Purpose {
    /// Takes what it asks for, if it is there. A refusal charges what rules charge on refusals.
    Take,
    /// Takes what it asks for, if it is there, and else nothing: it may be tried again.
    TakeOrWait,
    /// Takes nothing.
    Look,
}

/// What ends with a plan and the stores' answers.
trait Answering: Future<Output = (Box<Planned>, Applied)> + Send {}
impl<F: Future<Output = (Box<Planned>, Applied)> + Send> Answering for F {}

/// A plan in the hands of the stores. Dropped before their answer, it is still awaited, and what it took is given back. What
/// it took under an idempotency key stays: a repeated call may have found it already.
pub(super) struct InFlight {
    answer: Option<Pin<Box<dyn Answering>>>,
    current: Arc<Current>,
    clock: Arc<dyn Clock>,
    takes: bool,
}

impl InFlight {
    pub(super) fn new(
        service: &Service,
        current: &Arc<Current>,
        planned: Box<Planned>,
        now: Timestamp,
        purpose: Purpose,
    ) -> Self {
        let version = current.version.clone();
        let takes = purpose != Purpose::Look && !planned.plan.has_named_lease();
        let answer = async move {
            let applied = version.apply(&planned.plan, now).await;
            (planned, applied)
        };
        let (current, clock) = (current.clone(), service.clock.clone());
        Self { answer: Some(Box::pin(answer)), current, clock, takes }
    }
}

impl Future for InFlight {
    type Output = (Box<Planned>, Applied);

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = self.answer.as_mut().expect("it is not polled after its end");
        let polled = answer.as_mut().poll(context);
        if polled.is_ready() {
            self.answer = None;
        }
        polled
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let Some(answer) = self.answer.take().filter(|_| self.takes) else { return };
        // Without a runtime the process is ending.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (current, clock) = (self.current.clone(), self.clock.clone());
        runtime.spawn(async move {
            let (planned, applied) = answer.await;
            if applied.admitted && planned.refused.is_none() {
                current.version.stores.take_back(&planned.plan, &applied, false, clock.now());
            }
        });
    }
}
