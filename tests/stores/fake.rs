//! A shared store that keeps its counters in a memory store of this process, and fails or hangs when a test says so. It
//! tests the code between requests and any shared store.

use std::collections::HashSet;
use std::num::NonZeroU32;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tollgate::clock::{Clock, ManualClock, Timestamp};
use tollgate::limiter::{LeaseId, Limit, OnStoreError};
use tollgate::plan::{Applied, Charges, Check, CounterName, Fault, Plan};
use tollgate::store::{Backend, MemorySettings, MemoryStores};

use crate::support::reference::plans::START;

/// A check of one unit on a counter of the first store; without the store it is denied.
pub fn check(limit: Limit) -> Check {
    Check { on_store_error: OnStoreError::Deny, ..Check::charge(CounterName([1, 7]), limit, 1) }
}

/// A shared store with its counters in this process.
#[derive(Clone)]
pub struct FakeStore(Arc<Inside>);

pub struct Inside {
    memory: MemoryStores,
    /// The time of its decisions.
    clock: ManualClock,
    behaviour: AtomicU8,
    /// Notified when a call arrives while it hangs.
    called: Notify,
    /// Notified when the behaviour changes.
    changed: Notify,
    calls: AtomicUsize,
    /// The ids of plans that were executed.
    once: Mutex<HashSet<NonZeroU32>>,
}

pub const WELL: u8 = 0;
/// There is no connection to it.
pub const BROKEN: u8 = 1;
/// No call is answered until the behaviour changes.
pub const HANGING: u8 = 2;
/// Answers arrive after the deadline.
pub const LATE: u8 = 3;
/// It works again, but probes still fail.
pub const UNSEEN: u8 = 4;
/// It is being connected to.
pub const LINKING: u8 = 5;
/// Each connection breaks after the call was executed, before the answer.
pub const LOSING: u8 = 6;
/// The connection breaks after the next call was executed, before the answer. Then it is being connected to.
pub const LOSING_ONE: u8 = 7;
/// It answers each call with an error of its own.
pub const REFUSING: u8 = 8;

impl FakeStore {
    /// A store whose own clock shows the start time until a test sets it.
    pub fn new() -> Self {
        Self::with_clock(ManualClock::at(START))
    }

    /// A store that decides by this clock.
    pub fn with_clock(clock: ManualClock) -> Self {
        let memory = MemoryStores::new(&[MemorySettings::default(); 3]);
        let (behaviour, calls) = (AtomicU8::new(WELL), AtomicUsize::new(0));
        Self(Arc::new(Inside {
            memory,
            clock,
            behaviour,
            called: Notify::new(),
            changed: Notify::new(),
            calls,
            once: Mutex::default(),
        }))
    }

    /// The clock of its decisions, read once when a call begins.
    pub fn clock(&self) -> &ManualClock {
        &self.0.clock
    }

    pub fn be(&self, behaviour: u8) {
        self.0.behaviour.store(behaviour, Ordering::SeqCst);
        self.0.changed.notify_waiters();
    }

    /// The behaviour, as soon as it is no longer `HANGING`.
    async fn behaviour(&self) -> u8 {
        loop {
            let changed = self.0.changed.notified();
            match self.0.behaviour.load(Ordering::SeqCst) {
                HANGING => self.0.called.notify_one(),
                behaviour => return behaviour,
            }
            changed.await;
        }
    }

    /// Its counters.
    pub fn memory(&self) -> &MemoryStores {
        &self.0.memory
    }

    /// The number of calls so far.
    pub fn calls(&self) -> usize {
        self.0.calls.load(Ordering::SeqCst)
    }

    /// Waits for a call while it hangs.
    pub async fn called(&self) {
        self.0.called.notified().await;
    }

    /// Forgets the ids of plans that were executed, as stores do after a minute.
    pub fn forget_ids(&self) {
        self.0.once.lock().expect("nothing panics").clear();
    }

    /// Executes a plan, without what takes effect once if it has been.
    fn apply(&self, plan: &Plan, now: Timestamp) -> Applied {
        let again = plan.once.is_some_and(|id| !self.0.once.lock().expect("nothing panics").insert(id));
        let mut plan = plan.clone();
        for check in plan.checks.iter_mut().filter(|_| again) {
            check.refund = 0;
            if check.charges.refused > 0 {
                check.charges = Charges::default();
            }
        }
        self.0.memory.apply(&plan, now)
    }

    /// Units left on a check's counter at the start time.
    pub fn left(&self, check: &Check) -> u32 {
        let look = Check { charges: Charges::default(), refund: 0, ..*check };
        self.0.memory.apply(&one(look), START).answers[0].expect("it is in memory").remaining
    }
}

impl Backend for FakeStore {
    async fn execute(&self, plans: &[Plan]) -> Vec<Result<Applied, Fault>> {
        self.0.calls.fetch_add(1, Ordering::SeqCst);
        let now = self.0.clock.now();
        match self.behaviour().await {
            BROKEN => return plans.iter().map(|_| Err(Fault::Unreachable)).collect(),
            REFUSING => return plans.iter().map(|_| Err(Fault::Script)).collect(),
            LATE => return plans.iter().map(|_| Err(Fault::Timeout)).collect(),
            losing @ (LOSING | LOSING_ONE) => {
                if losing == LOSING_ONE {
                    self.be(LINKING);
                }
                plans.iter().for_each(|plan| drop(self.apply(plan, now)));
                return plans.iter().map(|_| Err(Fault::ConnectionLost)).collect();
            }
            _ => {}
        }
        plans.iter().map(|plan| Ok(self.apply(plan, now))).collect()
    }

    async fn linked(&self, _lane: usize) -> Result<(), Fault> {
        loop {
            let changed = self.0.changed.notified();
            if self.0.behaviour.load(Ordering::SeqCst) != LINKING {
                return Ok(());
            }
            changed.await;
        }
    }

    async fn forget(&self, counter: CounterName) -> Result<bool, Fault> {
        Ok(self.0.memory.forget(0, &counter))
    }

    async fn probe(&self) -> Result<(), Fault> {
        match self.0.behaviour.load(Ordering::SeqCst) {
            WELL | REFUSING => Ok(()),
            _ => Err(Fault::Unreachable),
        }
    }
}

/// A plan of one check.
pub fn one(check: Check) -> Plan {
    Plan { lease: LeaseId(1), ..Plan::of([check]) }
}
