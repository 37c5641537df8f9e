//! What a lease is settled with.

/// What was used of what a lease holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Units {
    /// What was charged.
    Charged,
    /// This much, for each hold alike.
    Each(u64),
    /// This much by the name of each limiter. One that is not named keeps what it charged.
    ByLimiter(Vec<(String, u64)>),
}
