//! Decodes the reply to a batch of plans.

use redis::Value;
use smallvec::SmallVec;

use super::error::CommandError;
use crate::clock::Timestamp;
use crate::limiter::{BucketLevel, CounterPair, FixedCount, LeaseStatus, Limit, State};
use crate::plan::{Applied, Check, Outcome, Plan};

/// A reply to a call.
#[derive(Debug)]
pub(in crate::store::redis) enum Reply {
    /// The time of the server, and one answer for each plan.
    Answers(Timestamp, Vec<Result<Applied, CommandError>>),
    /// Nothing was executed, because the windows of a calendar do not contain the server's time, given here.
    OutsideCalendar(Timestamp),
}

/// Decodes the reply to a call.
pub(in crate::store::redis) fn decode(plans: &[Plan], reply: &Value) -> Result<Reply, CommandError> {
    let Value::Array(items) = reply else { return Err(CommandError::malformed_reply()) };
    let mut reader = ReplyReader { items: items.iter() };
    let now = reader.number().ok_or_else(CommandError::malformed_reply)?;
    let outside_calendar = now < 0;
    let now = Timestamp::from_micros(now.unsigned_abs());
    if outside_calendar {
        return Ok(Reply::OutsideCalendar(now));
    }
    Ok(Reply::Answers(now, plans.iter().map(|plan| reader.plan(plan, now)).collect()))
}

struct ReplyReader<'a> {
    items: std::slice::Iter<'a, Value>,
}

impl ReplyReader<'_> {
    fn number(&mut self) -> Option<i64> {
        match self.items.next() {
            Some(Value::Int(number)) => Some(*number),
            _ => None,
        }
    }

    /// A number that must not be negative.
    fn count(&mut self) -> Option<u64> {
        self.number().and_then(|number| u64::try_from(number).ok())
    }

    fn plan(&mut self, plan: &Plan, now: Timestamp) -> Result<Applied, CommandError> {
        if let Some(Value::BulkString(text)) = self.items.as_slice().first() {
            self.items.next();
            return Err(CommandError::from(&*String::from_utf8_lossy(text)));
        }
        let mut applied = Applied { admitted: !plan.refused, at: now, ..Applied::default() };
        for _ in 0..plan.changes.len() + plan.holds.len() {
            applied.statuses.push(match self.number() {
                Some(0) => LeaseStatus::Done,
                Some(1) => LeaseStatus::Expired,
                Some(2) => LeaseStatus::Unknown,
                Some(held @ 3..) => LeaseStatus::Held(held.abs_diff(3)),
                _ => return Err(CommandError::malformed_reply()),
            });
        }
        let looking = plan.found_held(&applied.statuses).then(|| plan.looking());
        for group in looking.as_ref().unwrap_or(plan).groups() {
            self.group(group, plan.refused, now, &mut applied).ok_or_else(CommandError::malformed_reply)?;
        }
        Ok(applied)
    }

    /// Adds the outcomes of a group. Returns `None` if they are malformed.
    fn group(&mut self, checks: &[Check], refused: bool, now: Timestamp, applied: &mut Applied) -> Option<()> {
        let first = applied.answers.len();
        let mut admitted = !refused;
        let mut all_charged = SmallVec::<[Option<u64>; 3]>::new();
        for check in checks {
            let (mut outcome, Counted { charged, holds, .. }) = self.outcome(check, now)?;
            admitted &= outcome.passes || check.shadow;
            all_charged.push(charged);
            if check.holding.holds() && outcome.passes {
                outcome.held = check.charges.admitted;
            }
            if let Some((first_end, says)) = holds {
                outcome.retry_after = outcome.retry_after.map(|wait| first_end.map_or(wait, |end| wait.min(end)));
                outcome.held = match says {
                    1.. if check.holding.holds() => check.charges.admitted,
                    says => says,
                };
            }
            applied.answers.push(Ok(outcome));
        }
        for ((check, outcome), charged) in
            checks.iter().zip(applied.answers[first..].iter_mut().flatten()).zip(all_charged)
        {
            outcome.charged = charged.unwrap_or_else(|| check.charged(admitted, outcome.passes));
        }
        applied.admitted &= admitted;
        Some(())
    }

    /// The outcome of a check, and what it charged if that is in the reply. Where the script returns the whole state,
    /// the outcome is computed from it.
    fn outcome(&mut self, check: &Check, now: Timestamp) -> Option<(Outcome, Counted)> {
        let first = self.counted()?;
        let Counted { passes, units: counted, lasts, .. } = first;
        let count = || u32::try_from(counted).ok();
        let state = match &check.limit {
            Limit::TokenBucket(bucket) => State::Bucket(BucketLevel { level: counted, at: now, unit: bucket.unit() }),
            Limit::FixedWindow(_) => {
                let end = Timestamp::from_micros(self.count()?);
                State::Fixed(FixedCount { start: now, end, count: count()? })
            }
            Limit::SlidingCounter(window) => {
                let start = Timestamp::from_micros(now.micros() - now.micros() % window.window);
                let previous = u32::try_from(self.count()?).ok()?;
                State::Pair(CounterPair { start, current: count()?, previous })
            }
            Limit::SlidingWindow(_) | Limit::Concurrency(_) | Limit::Distinct(_) => {
                let (reset, wait) = (self.count()?, self.number()?);
                return Some((outcome_of_counted(check, passes, count()?, reset, wait), first));
            }
        };
        let outcome = check.outcome(state, passes, now);
        let sooner = |micros: u64| lasts.map_or(micros, |lasts| micros.min(lasts));
        Some((Outcome { reset: sooner(outcome.reset), retry_after: outcome.retry_after.map(sooner), ..outcome }, first))
    }

    /// The counted units of a check: a number, or a list that says more.
    fn counted(&mut self) -> Option<Counted> {
        let (first, lasts, charged, holds) = match self.items.next()? {
            Value::Int(first) => (*first, None, None, None),
            Value::Array(list) => {
                let [Value::Int(first), Value::Int(lasts), Value::Int(charged), ref holds @ ..] = list[..] else {
                    return None;
                };
                let holds = match holds {
                    [] => None,
                    [Value::Int(end), Value::Int(says)] => Some((u64::try_from(*end).ok(), u32::try_from(*says).ok()?)),
                    _ => return None,
                };
                (first, u64::try_from(lasts).ok(), Some(u64::try_from(charged).ok()?), holds)
            }
            _ => return None,
        };
        let passes = first >= 0;
        let units = u64::try_from(if passes { first } else { -1 - first }).ok()?;
        Some(Counted { passes, units, lasts, charged, holds })
    }
}

/// What the script says first of a check.
#[derive(Clone, Copy)]
struct Counted {
    passes: bool,
    units: u64,
    /// Microseconds until the counter is empty for everybody, if that is sooner than the check's limit says.
    lasts: Option<u64>,
    /// What was charged, if less than the check asked for.
    charged: Option<u64>,
    /// Of a check that looks at holds: microseconds until the first one is given back, and whether its charge is held, or
    /// how many units are.
    holds: Option<(Option<u64>, u32)>,
}

/// The outcome of a check of a log or of leases, whose state is not in the reply.
fn outcome_of_counted(check: &Check, passes: bool, counted: u32, reset: u64, wait: i64) -> Outcome {
    let limit = match &check.limit {
        Limit::Concurrency(slots) => slots.max,
        Limit::SlidingWindow(window) => window.limit,
        Limit::Distinct(distinct) => distinct.limit,
        Limit::TokenBucket(_) | Limit::SlidingCounter(_) | Limit::FixedWindow(_) => 0,
    };
    match check.always_denied {
        true => Outcome { passes: false, limit: 0, remaining: 0, reset, retry_after: None, charged: 0, held: 0 },
        false => {
            let retry_after = if passes { None } else { u64::try_from(wait).ok() };
            Outcome { passes, limit, remaining: limit.saturating_sub(counted), reset, retry_after, charged: 0, held: 0 }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{Fault, LeaseAction, LeaseChange};

    fn release() -> Plan {
        let change = LeaseChange {
            counter: Default::default(),
            store: 0,
            lease: Default::default(),
            action: LeaseAction::Release,
        };
        Plan { changes: [change].into_iter().collect(), ..Plan::default() }
    }

    #[test]
    fn a_text_is_the_error_of_its_plan_alone() {
        let text = Value::BulkString(b"OOM no memory".to_vec());
        let reply = Value::Array(vec![Value::Int(5), Value::Int(0), text, Value::Int(2)]);
        let Ok(Reply::Answers(at, answers)) = decode(&[release(), release(), release()], &reply) else {
            panic!("there are answers")
        };
        assert_eq!(at, Timestamp::from_micros(5));
        assert_eq!(answers[0].as_ref().expect("it is answered").statuses[..], [LeaseStatus::Done]);
        assert_eq!(answers[0].as_ref().expect("it is answered").at, Timestamp::from_micros(5));
        assert_eq!(answers[1].as_ref().expect_err("it failed").fault, Fault::OutOfMemory);
        assert_eq!(answers[2].as_ref().expect("it is answered").statuses[..], [LeaseStatus::Unknown]);
    }

    #[test]
    fn a_reply_that_is_cut_short_answers_nothing_more() {
        for reply in [Value::Nil, Value::Array(vec![])] {
            let error = decode(&[release()], &reply).expect_err("it is malformed");
            assert_eq!(error.fault, Fault::Script, "{reply:?}");
        }
        let reply = Value::Array(vec![Value::Int(5), Value::Int(0)]);
        let Ok(Reply::Answers(_, answers)) = decode(&[release(), release()], &reply) else { panic!("one is there") };
        assert_eq!(answers[1].as_ref().expect_err("it is malformed").fault, Fault::Script);
    }

    #[test]
    fn a_negative_time_says_that_nothing_was_executed() {
        let reply = decode(&[release()], &Value::Array(vec![Value::Int(-5)]));
        assert!(matches!(reply, Ok(Reply::OutsideCalendar(at)) if at == Timestamp::from_micros(5)), "{reply:?}");
        // A plan of undos alone has no answer: it must not be executed again.
        let reply = decode(&[Plan::default()], &Value::Array(vec![Value::Int(5)]));
        assert!(matches!(reply, Ok(Reply::Answers(_, answers)) if answers.len() == 1 && answers[0].is_ok()));
    }
}
