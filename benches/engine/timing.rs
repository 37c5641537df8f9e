//! CPU time of contenders that take turns.

use std::time::Duration;

/// Turns of each contender.
pub const ROUNDS: usize = 7;

/// The turn of a contender: a number of operations that are already prepared.
pub type Turn<'a> = &'a mut dyn FnMut();

/// Nanoseconds of CPU per operation of each contender: the median over its turns.
///
/// The contenders take turns, so that a slow minute of the machine slows all of them. `prepare` runs before every turn
/// and is not measured.
pub fn compare(operations: usize, prepare: &mut dyn FnMut(), contenders: &mut [Turn<'_>]) -> Vec<f64> {
    let mut turns: Vec<Vec<f64>> = contenders.iter().map(|_| Vec::new()).collect();
    for _ in 0..ROUNDS {
        for (contender, turns) in contenders.iter_mut().zip(&mut turns) {
            prepare();
            let before = cpu();
            contender();
            turns.push((cpu() - before).as_nanos() as f64 / operations as f64);
        }
    }
    turns.into_iter().map(median).collect()
}

fn median(mut turns: Vec<f64>) -> f64 {
    turns.sort_by(f64::total_cmp);
    turns[turns.len() / 2]
}

/// CPU time of this thread. The kernel updates it at its ticks, so a turn should last a tenth of a second.
fn cpu() -> Duration {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux with scheduler statistics");
    let nanoseconds = text.split_whitespace().next().and_then(|first| first.parse().ok());
    Duration::from_nanos(nanoseconds.expect("schedstat begins with the time on the CPU"))
}

/// Pseudorandom numbers, the same in every run (xorshift64).
pub struct Draws(pub u64);

impl Draws {
    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((u128::from(self.0) * end as u128) >> 64) as usize
    }
}

/// Prints a row of a table: the case, its result, and the goal.
pub fn line(what: &str, measured: &str, goal: &str) {
    println!("  {what:<58} {measured:>22}   {goal}");
}
