//! Errors of Redis, classified as faults.

use redis::{ErrorKind, RedisError};

use crate::plan::Fault;

/// A failed command: its fault, and the text of the error, which is empty where the supervisor of the connection has
/// logged it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::store::redis) struct CommandError {
    pub(in crate::store::redis) fault: Fault,
    pub(in crate::store::redis) text: String,
}

impl CommandError {
    /// The error of an attempt to connect: nothing was executed, and no plan is at fault.
    pub(in crate::store::redis) fn while_connecting(self) -> Self {
        match self.fault == Fault::Script || self.fault.may_be_executed() {
            true => Self { fault: Fault::Unreachable, ..self },
            false => self,
        }
    }

    pub(super) fn malformed_reply() -> Self {
        Self { fault: Fault::Script, text: "the script's reply is malformed".to_owned() }
    }
}

impl From<&str> for CommandError {
    fn from(text: &str) -> Self {
        Self { fault: fault(text), text: text.to_owned() }
    }
}

impl From<RedisError> for CommandError {
    fn from(error: RedisError) -> Self {
        let text = match (error.code(), error.detail()) {
            (Some(code), Some(detail)) => format!("{code} {detail}"),
            _ => error.to_string(),
        };
        let fault = match error.kind() {
            _ if error.is_timeout() => Fault::Timeout,
            ErrorKind::Io if error.is_connection_refusal() => Fault::Unreachable,
            ErrorKind::Io => Fault::ConnectionLost,
            ErrorKind::ClusterConnectionNotFound => Fault::Unreachable,
            ErrorKind::AuthenticationFailed => Fault::Denied,
            _ => fault(&text),
        };
        Self { fault, text }
    }
}

/// The fault of an error text, by its first word.
fn fault(text: &str) -> Fault {
    match text.split(' ').next().unwrap_or_default() {
        "OOM" => Fault::OutOfMemory,
        "READONLY" | "MISCONF" | "NOREPLICAS" => Fault::ReadOnly,
        "NOAUTH" | "WRONGPASS" | "NOPERM" => Fault::Denied,
        "LOADING" | "CLUSTERDOWN" | "MASTERDOWN" | "TRYAGAIN" | "MOVED" | "ASK" | "BUSY" => Fault::Unreachable,
        // The user has no password, or needs none.
        _ if text.starts_with("ERR AUTH ") => Fault::Denied,
        _ if text.contains("can't run this command") || text.contains("can't access at least one of the keys") => {
            Fault::Denied
        }
        _ => Fault::Script,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_text_is_classified_by_its_first_word() {
        let cases = [
            ("OOM command not allowed when used memory > 'maxmemory'.", Fault::OutOfMemory),
            ("READONLY You can't write against a read only replica.", Fault::ReadOnly),
            ("MISCONF Errors writing to the AOF file", Fault::ReadOnly),
            ("NOREPLICAS Not enough good replicas to write.", Fault::ReadOnly),
            ("NOAUTH Authentication required.", Fault::Denied),
            ("WRONGPASS invalid username-password pair", Fault::Denied),
            ("NOPERM this user has no permissions", Fault::Denied),
            ("ERR The user executing the script can't run this command or subcommand", Fault::Denied),
            ("ERR AUTH <password> called without any password configured for the default user.", Fault::Denied),
            ("LOADING Redis is loading the dataset in memory", Fault::Unreachable),
            ("CLUSTERDOWN Hash slot not served", Fault::Unreachable),
            ("MASTERDOWN Link with MASTER is down", Fault::Unreachable),
            ("TRYAGAIN Multiple keys request during rehashing of slot", Fault::Unreachable),
            ("WRONGTYPE Operation against a key holding the wrong kind of value", Fault::Script),
            ("", Fault::Script),
        ];
        for (text, expected) in cases {
            assert_eq!(CommandError::from(text).fault, expected, "{text}");
        }
    }
    #[test]
    fn an_attempt_to_connect_fails_without_a_plan_that_could_be_at_fault() {
        let cases = [
            ("ERR max number of clients reached", Fault::Unreachable),
            ("ERR DB index is out of range", Fault::Unreachable),
            ("LOADING Redis is loading the dataset in memory", Fault::Unreachable),
            ("WRONGPASS invalid username-password pair", Fault::Denied),
        ];
        for (text, expected) in cases {
            let error = CommandError::from(text).while_connecting();
            assert_eq!((error.fault, &*error.text), (expected, text));
        }
    }
}
