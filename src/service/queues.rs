//! Who waits for which counter, in the order of arrival (semantics 47).
//!
//! ```text
//!   counter A   first 3   then 5, 9        a caller has one ticket, and stands in the queue of each counter that
//!   counter B   first 5                    refused it when it was asked last
//! ```
//!
//! Only the first of a queue asks the stores again. It takes something only if nobody who came before it waits for any
//! of the counters of its plan, so a queue is served in order even where its callers want several counters.

use std::collections::BTreeMap;
use std::collections::hash_map::{Entry, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use smallvec::SmallVec;
use tokio::sync::Notify;

use crate::plan::CounterName;
use crate::store::{HearHint, Stores};
use crate::telemetry::DoorMetrics;

/// The queues of all counters of this process that somebody waits for.
#[derive(Debug)]
pub(super) struct WaitQueues {
    queues: Mutex<Queues>,
    /// Callers that may wait. While there are none, nothing has to be looked up for what is given back.
    present: AtomicUsize,
    draining: AtomicBool,
    /// Notifies all callers that wait when the process stops.
    stop: Notify,
    doors: Arc<DoorMetrics>,
}

#[derive(Debug, Default)]
struct Queues {
    by_counter: HashMap<CounterName, Queue, RandomState>,
    next_ticket: u64,
}

/// The queue of one counter.
#[derive(Debug, Default)]
struct Queue {
    /// Those who wait, by ticket.
    waiters: BTreeMap<u64, Arc<Notify>>,
    /// Callers that were granted ahead and wait for their moment.
    ahead: usize,
    /// Callers that watch it while the stores are asked.
    watching: usize,
    /// The number of times that something was given back while somebody watched or waited.
    given_back: u64,
}

impl Queue {
    fn is_unused(&self) -> bool {
        self.waiters.is_empty() && self.ahead == 0 && self.watching == 0
    }

    fn notify_first(&self) {
        if let Some(first) = self.waiters.values().next() {
            first.notify_one();
        }
    }
}

/// The queue of a counter, or the process, has as many callers as it may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct QueueFull;

/// A counter to wait for, with the most callers that may.
pub(super) type Wanted = (CounterName, u32);

impl WaitQueues {
    pub(super) fn new(doors: Arc<DoorMetrics>) -> Self {
        Self {
            queues: Mutex::default(),
            present: AtomicUsize::new(0),
            draining: AtomicBool::new(false),
            stop: Notify::new(),
            doors,
        }
    }

    /// Wakes those who wait for what other instances give back, as far as they say so.
    pub(super) fn hear_hints(self: &Arc<Self>, stores: &Stores) {
        let queues = Arc::downgrade(self);
        let hear: HearHint = Arc::new(move |counter| {
            if let Some(queues) = queues.upgrade() {
                queues.wake(counter);
            }
        });
        stores.hear_hints(&hear);
    }

    /// Wakes those who wait for a counter of which something was given back, here and in other instances.
    pub(super) fn given_back(&self, stores: &Stores, store: u16, counter: CounterName) {
        if self.present.load(Ordering::Relaxed) > 0 {
            self.wake(counter);
        }
        stores.hint_freed(store, counter);
    }

    /// The place of a caller that comes now.
    pub(super) fn arrive(&self) -> Place<'_> {
        self.present.fetch_add(1, Ordering::Relaxed);
        let mut queues = self.queues.lock();
        queues.next_ticket += 1;
        Place {
            queues: self,
            ticket: queues.next_ticket,
            notify: Arc::default(),
            stands: SmallVec::new(),
            watched: SmallVec::new(),
            ahead: None,
            counted: false,
        }
    }

    /// Wakes the first who waits for a counter, because something of it was given back.
    pub(super) fn wake(&self, counter: CounterName) {
        if let Some(queue) = self.queues.lock().by_counter.get_mut(&counter) {
            queue.given_back += 1;
            queue.notify_first();
        }
    }

    /// Wakes the first of every queue.
    pub(super) fn wake_all(&self) {
        self.queues.lock().by_counter.values().for_each(Queue::notify_first);
    }

    /// Answers everybody who waits, and everybody who would have to.
    pub(super) fn drain(&self) {
        self.draining.store(true, Ordering::SeqCst);
        self.stop.notify_waiters();
    }

    /// Whether nobody may wait any more, because the process stops.
    pub(super) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::SeqCst)
    }

    /// Notified when the process stops.
    pub(super) fn stop(&self) -> &Notify {
        &self.stop
    }
}

/// The place of one caller in the queues. It leaves them when dropped.
#[derive(Debug)]
pub(super) struct Place<'q> {
    queues: &'q WaitQueues,
    ticket: u64,
    notify: Arc<Notify>,
    /// The counters in whose queues it stands.
    stands: SmallVec<[CounterName; 2]>,
    /// The counters that it watches, with what had been given back when it began to.
    watched: SmallVec<[(CounterName, u64); 1]>,
    /// The counter on which it was granted ahead.
    ahead: Option<CounterName>,
    /// Whether it is counted among those who wait.
    counted: bool,
}

impl Place<'_> {
    /// Notified when something changed for this caller.
    pub(super) fn notify(&self) -> &Notify {
        &self.notify
    }

    /// Watches what is given back of these counters from now on.
    pub(super) fn watch(&mut self, counters: impl Iterator<Item = CounterName>) {
        let mut queues = self.queues.queues.lock();
        queues.unwatch(&mut self.watched);
        for counter in counters {
            let queue = queues.by_counter.entry(counter).or_default();
            queue.watching += 1;
            self.watched.push((counter, queue.given_back));
        }
    }

    /// Whether something was given back of a watched counter.
    pub(super) fn missed(&self) -> bool {
        let queues = self.queues.queues.lock();
        let changed = |(counter, before): &(CounterName, u64)| {
            queues.by_counter.get(counter).is_some_and(|queue| queue.given_back != *before)
        };
        self.watched.iter().any(changed)
    }

    /// The counters for which somebody waits who came before.
    pub(super) fn behind(&self, counters: impl Iterator<Item = CounterName>) -> SmallVec<[CounterName; 2]> {
        let queues = self.queues.queues.lock();
        let is_behind = |counter: &CounterName| {
            let first = queues.by_counter.get(counter).and_then(|queue| queue.waiters.keys().next());
            first.is_some_and(|first| *first < self.ticket)
        };
        counters.filter(is_behind).collect()
    }

    /// The counters of whose queues this caller is the first.
    pub(super) fn leads(&self) -> SmallVec<[CounterName; 2]> {
        let queues = self.queues.queues.lock();
        let is_first = |counter: &&CounterName| {
            let first = queues.by_counter.get(*counter).and_then(|queue| queue.waiters.keys().next());
            first == Some(&self.ticket)
        };
        self.stands.iter().filter(is_first).copied().collect()
    }

    /// Stands in the queues of these counters, and in no others. At most `total` callers wait in the process.
    pub(super) fn stand(&mut self, wanted: &[Wanted], total: u32) -> Result<(), QueueFull> {
        let mut queues = self.queues.queues.lock();
        let (stays, leaves): (SmallVec<[CounterName; 2]>, SmallVec<[CounterName; 2]>) =
            self.stands.iter().copied().partition(|counter| wanted.iter().any(|(known, _)| known == counter));
        let joins = || wanted.iter().filter(|(counter, _)| !stays.contains(counter));
        let is_full = |(counter, most): &Wanted| {
            let queue = queues.by_counter.get(counter);
            queue.is_some_and(|queue| queue.waiters.len() + queue.ahead >= *most as usize) || *most == 0
        };
        if joins().any(is_full) || !self.count(total) {
            return Err(QueueFull);
        }
        for (counter, _) in joins() {
            queues.by_counter.entry(*counter).or_default().waiters.insert(self.ticket, self.notify.clone());
        }
        for counter in &leaves {
            queues.leave(*counter, self.ticket);
        }
        self.stands = wanted.iter().map(|(counter, _)| *counter).collect();
        Ok(())
    }

    /// Counts this caller among those who are granted ahead on a counter.
    pub(super) fn go_ahead(&mut self, (counter, most): Wanted, total: u32) -> Result<(), QueueFull> {
        if self.ahead == Some(counter) {
            return Ok(());
        }
        let mut queues = self.queues.queues.lock();
        let queue = queues.by_counter.entry(counter).or_default();
        let full = queue.waiters.len() + queue.ahead >= most as usize;
        if !full && self.count(total) {
            queue.ahead += 1;
            self.ahead = Some(counter);
            return Ok(());
        }
        queues.tidy(counter);
        Err(QueueFull)
    }

    /// Counts this caller among those who wait in the process. Returns whether it may.
    fn count(&mut self, total: u32) -> bool {
        if !self.counted {
            let waiting = &self.queues.doors.waiting;
            let counted = waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |waiting| {
                (waiting < u64::from(total)).then_some(waiting + 1)
            });
            self.counted = counted.is_ok();
        }
        self.counted
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut queues = self.queues.queues.lock();
        queues.unwatch(&mut self.watched);
        for counter in self.stands.drain(..) {
            queues.leave(counter, self.ticket);
        }
        if let Some(counter) = self.ahead
            && let Some(queue) = queues.by_counter.get_mut(&counter)
        {
            queue.ahead -= 1;
            queues.tidy(counter);
        }
        drop(queues);
        if self.counted {
            self.queues.doors.waiting.fetch_sub(1, Ordering::Relaxed);
        }
        self.queues.present.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Queues {
    /// Removes a caller from the queue of a counter. The next one then is the first.
    fn leave(&mut self, counter: CounterName, ticket: u64) {
        let Some(queue) = self.by_counter.get_mut(&counter) else { return };
        let was_first = queue.waiters.keys().next() == Some(&ticket);
        queue.waiters.remove(&ticket);
        if was_first {
            queue.notify_first();
        }
        self.tidy(counter);
    }

    fn unwatch(&mut self, watched: &mut SmallVec<[(CounterName, u64); 1]>) {
        // Taken whole: who waits keeps no memory for it.
        for (counter, _) in std::mem::take(watched) {
            if let Some(queue) = self.by_counter.get_mut(&counter) {
                queue.watching -= 1;
            }
            self.tidy(counter);
        }
    }

    /// Removes the queue of a counter if nobody uses it.
    fn tidy(&mut self, counter: CounterName) {
        if let Entry::Occupied(queue) = self.by_counter.entry(counter)
            && queue.get().is_unused()
        {
            queue.remove();
        }
    }
}
