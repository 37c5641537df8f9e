//! Why a store could not answer.

/// Why a check could not be answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
pub enum Fault {
    /// The memory store is full and nothing in it can go (semantics 30).
    #[error("the memory store is full")]
    Full,
    /// The store did not answer within its deadline. What it was asked may have happened.
    #[error("the store did not answer in time")]
    Timeout,
    /// There is no connection to the store, or it broke. What it was asked may have happened.
    #[error("the store cannot be reached")]
    Unreachable,
    /// The store failed too often just now and is not asked until it answers again.
    #[error("the store is left alone until it answers again")]
    CircuitOpen,
    /// The store has no memory left to write to.
    #[error("the store is out of memory")]
    OutOfMemory,
    /// The store cannot be written to: it is a replica, or its disk is full.
    #[error("the store cannot be written to")]
    ReadOnly,
    /// The store does not know us, or does not let us.
    #[error("the store denies access")]
    Denied,
    /// The store refuses what it was asked for another reason, which the log tells.
    #[error("the store reported an error")]
    Script,
}

impl Fault {
    /// All of them, in the order they are declared.
    pub const ALL: [Fault; 8] = [
        Fault::Full,
        Fault::Timeout,
        Fault::Unreachable,
        Fault::CircuitOpen,
        Fault::OutOfMemory,
        Fault::ReadOnly,
        Fault::Denied,
        Fault::Script,
    ];

    /// One word for labels.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Full => "full",
            Fault::Timeout => "timeout",
            Fault::Unreachable => "unreachable",
            Fault::CircuitOpen => "suspended",
            Fault::OutOfMemory => "out_of_memory",
            Fault::ReadOnly => "read_only",
            Fault::Denied => "denied",
            Fault::Script => "script",
        }
    }
}
