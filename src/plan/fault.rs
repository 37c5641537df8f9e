//! Why a store does not answer.

/// Why a store did not answer a check.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// The memory store is full and nothing in it can be evicted (semantics 30).
    #[error("the memory store is full")]
    Full,
    /// The store did not answer within its deadline. The charge may have been made.
    #[error("the store did not answer in time")]
    Timeout,
    /// The store had no lock or connection free in time. Nothing was executed.
    #[error("the store is busy")]
    Busy,
    /// There is no connection to the store, or it does not serve yet. Nothing was executed.
    #[error("the store cannot be reached")]
    Unreachable,
    /// The connection broke before the answer. The charge may have been made.
    #[error("the connection to the store broke before the answer")]
    ConnectionLost,
    /// The circuit breaker of the store is open: the store is not called until a probe succeeds.
    #[error("the circuit breaker of the store is open")]
    CircuitOpen,
    /// The store is out of memory for writes.
    #[error("the store is out of memory")]
    OutOfMemory,
    /// The store cannot be written to: it is a replica, or its disk is full.
    #[error("the store cannot be written to")]
    ReadOnly,
    /// The store rejected the credentials, or they lack a permission.
    #[error("the store denies access")]
    Denied,
    /// The store reported another error, which is in the log.
    #[error("the store reported an error")]
    Script,
}

impl Fault {
    /// Every fault, in the order of declaration.
    pub const ALL: [Fault; 10] = [
        Fault::Full,
        Fault::Timeout,
        Fault::Busy,
        Fault::Unreachable,
        Fault::ConnectionLost,
        Fault::CircuitOpen,
        Fault::OutOfMemory,
        Fault::ReadOnly,
        Fault::Denied,
        Fault::Script,
    ];

    /// Whether the plan may have been executed all the same.
    pub fn may_be_executed(self) -> bool {
        matches!(self, Fault::Timeout | Fault::ConnectionLost)
    }

    /// The value of labels.
    pub fn name(self) -> &'static str {
        match self {
            Fault::Full => "full",
            Fault::Timeout => "timeout",
            Fault::Busy => "busy",
            Fault::Unreachable => "unreachable",
            Fault::ConnectionLost => "connection_lost",
            Fault::CircuitOpen => "suspended",
            Fault::OutOfMemory => "out_of_memory",
            Fault::ReadOnly => "read_only",
            Fault::Denied => "denied",
            Fault::Script => "script",
        }
    }
}
