//! Callers of instances on one store while something happens to it, and what they saw of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tollgate::limiter::OnStoreError;
use tollgate::plan::{Applied, Check, Fault};

use super::in_process::{Instance, one, rand_base, slots};

/// Requests in flight.
pub const CALLERS: usize = 8;

/// Workers that hold a slot.
const WORKERS: u32 = 12;

/// How long slots may take to be free once all are released. Their leases are longer.
const FREED_WITHIN: Duration = Duration::from_secs(10);

/// Something that happened to the store.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    began: Instant,
    ended: Instant,
    /// Whether the store could not answer until it ended.
    outage: bool,
}

impl Moment {
    pub fn of(happens: impl FnOnce()) -> Self {
        let began = Instant::now();
        happens();
        Self { began, ended: Instant::now(), outage: false }
    }

    /// The end of an outage.
    pub fn outage_until(heal: impl FnOnce()) -> Self {
        Self { outage: true, ..Self::of(heal) }
    }
}

/// A decision, as its caller saw it.
struct Seen {
    ended: Instant,
    took: Duration,
    applied: Applied,
}

/// What all callers saw.
pub struct Load {
    seen: Vec<Seen>,
    moments: Vec<Moment>,
}

impl Load {
    /// Lets callers ask for a check on all instances, each pausing after its answer, until `happens` has ended.
    pub async fn through(
        instances: &[Arc<Instance>],
        check: Check,
        pause: Option<Duration>,
        happens: impl AsyncFnOnce(&mut Vec<Moment>),
    ) -> Self {
        let call = move |instance: Arc<Instance>| async move {
            let (seen, _) = ask(&instance, check).await;
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                // An answer by policy waits for nothing, and would keep the store's tasks from running.
                None => tokio::task::yield_now().await,
            }
            seen
        };
        Self::of(CALLERS, instances, call, happens).await
    }

    async fn of<C, F>(
        callers: usize,
        instances: &[Arc<Instance>],
        call: C,
        happens: impl AsyncFnOnce(&mut Vec<Moment>),
    ) -> Self
    where
        C: Fn(Arc<Instance>) -> F + Copy + Send + Sync + 'static,
        F: Future<Output = Seen> + Send + 'static,
    {
        let enough = Arc::new(AtomicBool::new(false));
        let mut calling = JoinSet::new();
        for number in 0..callers {
            let (instance, enough) = (instances[number % instances.len()].clone(), enough.clone());
            calling.spawn(async move {
                let mut seen = Vec::new();
                while !enough.load(Ordering::SeqCst) {
                    seen.push(call(instance.clone()).await);
                }
                seen
            });
        }
        let mut moments = Vec::new();
        happens(&mut moments).await;
        enough.store(true, Ordering::SeqCst);
        Self { seen: calling.join_all().await.into_iter().flatten().collect(), moments }
    }

    pub fn answers(&self) -> usize {
        self.seen.len()
    }

    pub fn admitted(&self) -> usize {
        self.seen.iter().filter(|seen| seen.applied.admitted).count()
    }

    /// The decisions that the store did not answer.
    pub fn by_policy(&self) -> usize {
        self.seen.iter().filter(|seen| seen.applied.degraded).count()
    }

    /// Why the store did not answer, each cause once.
    pub fn faults(&self) -> BTreeSet<&'static str> {
        let answers = self.seen.iter().flat_map(|seen| &seen.applied.answers);
        answers.filter_map(|answer| answer.err()).map(Fault::name).collect()
    }

    pub fn longest(&self) -> Duration {
        self.seen.iter().map(|seen| seen.took).max().expect("decisions")
    }

    /// The longest time from the end of an outage to the next answer by the store, or without an answer by the store
    /// around another moment.
    pub fn recovery(&self) -> Duration {
        let mut answers: Vec<Instant> =
            self.seen.iter().filter(|seen| !seen.applied.degraded).map(|seen| seen.ended).collect();
        answers.sort_unstable();
        let of = |moment: &Moment| {
            if moment.outage {
                let next = answers.iter().find(|answer| **answer >= moment.ended);
                return next.map(|next| *next - moment.ended);
            }
            let pauses = answers.windows(2).filter(|pair| pair[1] >= moment.began && pair[0] <= moment.ended);
            pauses.map(|pair| pair[1] - pair[0]).max()
        };
        self.moments.iter().filter_map(of).max().expect("the store answers after each moment")
    }

    /// The row of the table of faults, without slots.
    pub fn row(&self, moment: &str, over: usize) -> Row {
        let (by_policy, answers) = (self.by_policy(), self.answers());
        let (longest, recovery) = (self.longest(), Some(self.recovery()));
        Row { moment: moment.to_owned(), by_policy, answers, over, leaked: None, longest, recovery }
    }
}

/// Asks for a check. Returns the lease with what was seen.
async fn ask(instance: &Instance, check: Check) -> (Seen, u128) {
    let began = Instant::now();
    let (applied, lease) = instance.ask(check).await;
    (Seen { ended: Instant::now(), took: began.elapsed(), applied }, lease)
}

/// Lets workers take one of `max` slots, hold it for a moment and release it, until `happens` has ended. Prints and returns what it
/// cost.
pub async fn slots_through(
    moment: &str,
    instances: &[Arc<Instance>],
    max: u32,
    happens: impl AsyncFnOnce(&mut Vec<Moment>),
) -> Row {
    let check = one(rand_base(), slots(max), OnStoreError::Local);
    let call = move |instance: Arc<Instance>| async move {
        let (seen, lease) = ask(&instance, check).await;
        tokio::time::sleep(Duration::from_millis(10)).await;
        if seen.applied.admitted {
            instance.release(&check, lease).await;
        }
        seen
    };
    let load = Load::of(WORKERS as usize, instances, call, happens).await;
    let left = instances[0].comes_to_have_left(check, max, FREED_WITHIN).await.expect("the store answers");
    // There are more slots than workers.
    let row = Row { leaked: Some(max - left), ..load.row(moment, 0) };
    row.print();
    row
}

/// A row of the table of faults in docs/stores.md.
#[derive(Debug)]
pub struct Row {
    pub moment: String,
    pub by_policy: usize,
    pub answers: usize,
    /// Units admitted over the limit.
    pub over: usize,
    /// Slots that were not free although all were released.
    pub leaked: Option<u32>,
    /// The longest decision.
    pub longest: Duration,
    /// None where the store answered all the time.
    pub recovery: Option<Duration>,
}

impl Row {
    pub fn print(&self) {
        let Self { moment, by_policy, answers, over, leaked, longest, recovery } = self;
        let milliseconds = |time: &Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
        let leaked = leaked.map_or("-".to_owned(), |leaked| leaked.to_string());
        let recovery = recovery.as_ref().map_or("-".to_owned(), milliseconds);
        let longest = milliseconds(longest);
        println!("| {moment} | {by_policy} of {answers} | {over} | {leaked} | {longest} | {recovery} |");
    }
}
