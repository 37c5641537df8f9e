//! Hints between instances: that somebody waits for a counter, and that something of it was given back (semantics 47).
//!
//! ```text
//!   A: a caller waits for C    -> "wanted C" to all, again each second
//!   B: a slot of C is released -> "freed C" to all, if C is wanted       A: its first caller asks at once
//! ```
//!
//! They go through the store, apart from decisions, and nothing depends on them: without one, who waits asks again a
//! little later. A store that sends none is as right.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use foldhash::quality::RandomState;
use parking_lot::Mutex;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::queue::Queue;
use crate::plan::CounterName;

/// The shortest time between two hints of one counter.
const HINT_INTERVAL: Duration = Duration::from_millis(10);

/// How often an instance repeats that it waits for a counter.
const WANTED_INTERVAL: Duration = Duration::from_secs(1);

/// How long others believe that somebody waits for a counter.
const WANTED_FOR: Duration = Duration::from_secs(5);

/// The most counters that are remembered as wanted.
const MAX_WANTED: usize = 100_000;

/// Takes a hint of another instance.
pub(crate) type HearHint = Arc<dyn Fn(CounterName) + Send + Sync>;

/// The hints of one store.
pub(super) struct Hints {
    /// Tells the messages of this instance from those of others.
    instance: u64,
    state: Arc<Mutex<HintState>>,
    listener: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct HintState {
    /// Until when others wait for these counters.
    wanted: HashMap<CounterName, Instant, RandomState>,
    /// When this instance said that it waits for these counters.
    announced: HashMap<CounterName, Instant, RandomState>,
    /// When the next hint of a counter may be sent, or will be.
    next: HashMap<CounterName, Instant, RandomState>,
    hear: Option<HearHint>,
}

/// What a message says of a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Hint {
    Wanted,
    Freed,
}

impl Hints {
    pub(super) fn new() -> Self {
        let mut instance = [0; 8];
        getrandom::fill(&mut instance).expect("the operating system has random numbers");
        Self { instance: u64::from_le_bytes(instance), state: Arc::default(), listener: Mutex::default() }
    }

    /// Sends the hints of other instances here.
    pub(super) fn hear(&self, hear: HearHint) {
        self.state.lock().hear = Some(hear);
    }

    /// Begins to listen, unless it does already. Called when a worker first asks this instance for something.
    pub(super) fn listen(&self, queue: &Queue) {
        let mut listener = self.listener.lock();
        if listener.is_none() {
            let (own, state) = (self.instance, self.state.clone());
            *listener = Some(queue.listen(Arc::new(move |message: &str| {
                if let Some((instance, hint, counter)) = decode(message)
                    && instance != own
                {
                    receive(&state, hint, counter);
                }
            })));
        }
    }

    /// Says that a caller of this instance waits for a counter.
    pub(super) fn want(&self, queue: &Queue, counter: CounterName) {
        self.listen(queue);
        let now = Instant::now();
        let due = self.state.lock().announced.insert(counter, now);
        match due {
            Some(said) if now - said < WANTED_INTERVAL => {
                self.state.lock().announced.insert(counter, said);
            }
            _ => queue.publish(encode(self.instance, Hint::Wanted, counter), Duration::ZERO),
        }
    }

    /// Says that something of a counter was given back, if another instance waits for it.
    pub(super) fn free(&self, queue: &Queue, counter: CounterName) {
        self.listen(queue);
        let now = Instant::now();
        let mut state = self.state.lock();
        if state.wanted.get(&counter).is_none_or(|until| *until <= now) {
            return;
        }
        let next = state.next.get(&counter).copied().unwrap_or(now);
        // One is on its way already that is sent after this.
        if next > now + HINT_INTERVAL {
            return;
        }
        let moment = next.max(now);
        state.next.insert(counter, moment + HINT_INTERVAL);
        drop(state);
        queue.publish(encode(self.instance, Hint::Freed, counter), moment - now);
    }

    /// Forgets what is over.
    pub(super) fn sweep(&self) {
        let now = Instant::now();
        let mut state = self.state.lock();
        state.wanted.retain(|_, until| *until > now);
        state.announced.retain(|_, said| now - *said < WANTED_INTERVAL);
        state.next.retain(|_, next| *next > now);
    }
}

impl Drop for Hints {
    fn drop(&mut self) {
        if let Some(listener) = self.listener.get_mut().take() {
            listener.abort();
        }
    }
}

impl std::fmt::Debug for Hints {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hints").finish_non_exhaustive()
    }
}

fn receive(state: &Mutex<HintState>, hint: Hint, counter: CounterName) {
    let mut state = state.lock();
    match hint {
        Hint::Wanted => {
            if state.wanted.len() < MAX_WANTED || state.wanted.contains_key(&counter) {
                state.wanted.insert(counter, Instant::now() + WANTED_FOR);
            }
        }
        Hint::Freed => {
            let hear = state.hear.clone();
            drop(state);
            if let Some(hear) = hear {
                hear(counter);
            }
        }
    }
}

/// A message: the instance in hexadecimal, `w` or `f`, and the counter.
fn encode(instance: u64, hint: Hint, counter: CounterName) -> String {
    let letter = match hint {
        Hint::Wanted => 'w',
        Hint::Freed => 'f',
    };
    format!("{instance:016x}{letter}{counter}")
}

fn decode(message: &str) -> Option<(u64, Hint, CounterName)> {
    let number = |from: usize| u64::from_str_radix(message.get(from..from + 16)?, 16).ok();
    let hint = match message.as_bytes().get(16)? {
        b'w' => Hint::Wanted,
        b'f' => Hint::Freed,
        _ => return None,
    };
    let counter = CounterName([number(17)?, number(33)?]);
    (message.len() == 49).then_some((number(0)?, hint, counter))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_read_as_it_was_written_and_others_are_not() {
        let counter = CounterName([0x0123_4567_89ab_cdef, 7]);
        for hint in [Hint::Wanted, Hint::Freed] {
            assert_eq!(decode(&encode(9, hint, counter)), Some((9, hint, counter)));
        }
        for junk in ["", "w", &"x".repeat(49), &encode(9, Hint::Freed, counter)[1..], "\u{1F600}0123456789abcdef"] {
            assert_eq!(decode(junk), None, "{junk}");
        }
    }
}
