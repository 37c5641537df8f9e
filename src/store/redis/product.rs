//! What a server says it is, in its answer to `HELLO`: proxies and products that cannot decide exactly are refused.
//!
//! A proxy sends a call to the server of its first key. If there are several servers, the counters of a batch are then
//! on one and on another from call to call, and nobody notices. `HELLO` needs no permission.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};

use super::dial::{Driver, ask};
use super::wire::CommandError;
use crate::plan::Fault;

/// How the settings say that the server is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UsedAs {
    /// It has all counters.
    Whole,
    /// It is a node of a cluster.
    ClusterNode,
}

/// Asks a server what it is.
///
/// # Errors
///
/// Why it is not used, with the remedy.
pub(super) async fn check(
    connection: &mut MultiplexedConnection,
    driver: &mut Driver,
    used_as: UsedAs,
) -> Result<(), CommandError> {
    let refused = |text| CommandError { fault: Fault::Unreachable, text };
    match ask(connection, driver, &hello()).await.map_err(CommandError::from) {
        Ok(answer) => match Product::of(&answer).refusal(used_as) {
            Some(text) => Err(refused(text)),
            None => Ok(()),
        },
        Err(error) => Err(match error.fault {
            Fault::Script => refused(format!(
                "it does not know HELLO, so it is a proxy, or older than Redis 6.2: connect to Redis or Valkey itself \
                 ({})",
                error.text
            )),
            Fault::ConnectionLost if driver.cause().is_some() => driver.broken().into(),
            // A connection that was cut off by chance stays one, so that the attempt is repeated.
            Fault::ConnectionLost => CommandError {
                text: format!(
                    "the connection broke at HELLO, as proxies break it that do not know the command: connect to Redis \
                     or Valkey itself ({})",
                    error.text
                ),
                ..error
            },
            _ => error,
        }),
    }
}

fn hello() -> Cmd {
    redis::cmd("HELLO").arg(2).take()
}

/// A server, in its own words. What it does not say is empty.
#[derive(Debug, Default, PartialEq, Eq)]
struct Product {
    server: String,
    version: String,
    mode: String,
}

impl Product {
    fn of(answer: &Value) -> Self {
        let mut product = Self::default();
        let Value::Array(words) = answer else { return product };
        for pair in words.chunks_exact(2) {
            let [name, value] = pair else { continue };
            match text(name).as_str() {
                "server" => product.server = text(value),
                "version" => product.version = text(value),
                "mode" => product.mode = text(value),
                _ => (),
            }
        }
        product
    }

    /// Why it cannot be used, with the remedy.
    fn refusal(&self, used_as: UsedAs) -> Option<String> {
        let Self { server, version, mode } = self;
        if server.contains("proxy") {
            return Some(format!(
                "it is a proxy ({server}), which may spread the counters of one request over several servers: connect to \
                 Redis or Valkey itself"
            ));
        }
        // Dragonfly says that it is Redis, and has versions such as df-v1.40.1.
        if version.starts_with("df-") {
            return Some(format!("it is Dragonfly {version}, which is not supported: use Redis or Valkey"));
        }
        match (mode.as_str(), used_as) {
            ("sentinel", _) => Some(
                "it is a sentinel: set mode = \"sentinel\", and sentinel_master to the name of its master".to_owned(),
            ),
            ("cluster", UsedAs::Whole) => Some("it is a node of a Redis Cluster: set mode = \"cluster\"".to_owned()),
            _ => None,
        }
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::BulkString(bytes) => String::from_utf8_lossy(bytes).into_owned(),
        Value::SimpleString(text) => text.clone(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(server: &str, version: &str, mode: &str) -> Value {
        let words = ["server", server, "version", version, "proto", "", "mode", mode, "role", "master"];
        let mut words: Vec<Value> = words.map(|word| Value::BulkString(word.into())).into();
        words[5] = Value::Int(2);
        Value::Array(words)
    }

    fn refusal(server: &str, version: &str, mode: &str, used_as: UsedAs) -> Option<String> {
        Product::of(&answer(server, version, mode)).refusal(used_as)
    }

    #[test]
    fn servers_that_decide_exactly_are_used() {
        for (server, version) in [("redis", "6.2.14"), ("redis", "7.0.15"), ("valkey", "9.1.2"), ("redict", "7.3.0")] {
            assert_eq!(refusal(server, version, "standalone", UsedAs::Whole), None, "{server}");
            assert_eq!(refusal(server, version, "cluster", UsedAs::ClusterNode), None, "{server}");
        }
        assert_eq!(Product::of(&Value::Nil).refusal(UsedAs::Whole), None, "a server that says nothing");
    }

    #[test]
    fn others_are_refused_by_name_with_the_remedy() {
        let cases = [
            (("envoy-redis-proxy", "6.0.0", ""), "it is a proxy (envoy-redis-proxy), which"),
            (("redis", "df-v1.40.1", "standalone"), "it is Dragonfly df-v1.40.1, which is not supported: use Redis"),
            (("redis", "7.0.15", "sentinel"), "it is a sentinel: set mode = \"sentinel\""),
            (("valkey", "9.1.2", "cluster"), "it is a node of a Redis Cluster: set mode = \"cluster\""),
        ];
        for ((server, version, mode), expected) in cases {
            let found = refusal(server, version, mode, UsedAs::Whole).expect("it is refused");
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
