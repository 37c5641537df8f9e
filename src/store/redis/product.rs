//! What a server says it is, in its answer to `HELLO`: proxies and products that cannot decide exactly are refused.
//!
//! A proxy sends a call to the server of its first key. If there are several servers, the counters of a batch are then
//! on one and on another from call to call, and nobody notices. `HELLO` needs no permission.

use redis::aio::MultiplexedConnection;
use redis::{Cmd, Value};

use super::dial::{Driver, ask};
use super::wire::CommandError;
use crate::plan::Fault;

/// The first two numbers of the oldest version of Redis that the tests run on.
const OLDEST_REDIS: (u32, u32) = (6, 2);

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
        Err(error) if does_not_know(&error.text) => Err(refused(format!(
            "it does not know HELLO, so it is a proxy, or older than Redis 6.2: connect to Redis or Valkey itself ({})",
            error.text
        ))),
        Err(error) => Err(error),
    }
}

/// Whether an error text says that the server does not have the command. Redis and most proxies say `ERR unknown
/// command`, Envoy said `unsupported command` and Redis's own cluster proxy says `ERR unsupported command`.
fn does_not_know(text: &str) -> bool {
    let words = text.strip_prefix("ERR ").unwrap_or(text);
    words.starts_with("unknown command") || words.starts_with("unsupported command")
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
        // Other servers count their versions in their own way.
        if server == "redis" && numbers(version).is_some_and(|numbers| numbers < OLDEST_REDIS) {
            let (major, minor) = OLDEST_REDIS;
            return Some(format!(
                "it is Redis {version}, which is too old: use Redis {major}.{minor} or newer, or Valkey"
            ));
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

/// The first two numbers of a version.
fn numbers(version: &str) -> Option<(u32, u32)> {
    let mut numbers = version.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
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
    use redis::RedisError;

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
        for (server, version) in [
            ("redis", "6.2.0"),
            ("redis", "7.0.15"),
            ("redis", "10.0.0"),
            ("redis", "255.255.255"),
            ("redis", "unstable"),
            ("valkey", "9.1.2"),
            ("valkey", "1.0.0"),
            ("redict", "7.3.0"),
        ] {
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
            (
                ("redis", "6.0.16", "standalone"),
                "it is Redis 6.0.16, which is too old: use Redis 6.2 or newer, or Valkey",
            ),
            (("redis", "6.1.240", "standalone"), "it is Redis 6.1.240, which is too old: use Redis 6.2 or newer"),
            (("redis", "5.9", "cluster"), "it is Redis 5.9, which is too old: use Redis 6.2 or newer"),
            (("redis", "7.0.15", "sentinel"), "it is a sentinel: set mode = \"sentinel\""),
            (("valkey", "9.1.2", "cluster"), "it is a node of a Redis Cluster: set mode = \"cluster\""),
        ];
        for ((server, version, mode), expected) in cases {
            let found = refusal(server, version, mode, UsedAs::Whole).expect("it is refused");
            assert!(found.starts_with(expected), "{found}");
        }
    }
    #[test]
    fn only_a_server_that_does_not_know_the_command_is_called_a_proxy() {
        let cases = [
            ("-ERR unknown command `HELLO`, with args beginning with: `2`, \r\n", true),
            ("-ERR unknown command 'hello'\r\n", true),
            ("-ERR unknown command\r\n", true),
            ("-unsupported command 'HELLO'\r\n", true),
            ("-ERR unsupported command `hello`\r\n", true),
            ("-ERR max number of clients reached\r\n", false),
            ("-ERR Protocol version is not an integer or out of range\r\n", false),
            ("-NOAUTH HELLO must be called with the client already authenticated\r\n", false),
            ("-NOPROTO unsupported protocol version\r\n", false),
            ("-LOADING Redis is loading the dataset in memory\r\n", false),
        ];
        for (reply, expected) in cases {
            let reply = redis::parse_redis_value(reply.as_bytes()).expect("a reply");
            let error = RedisError::from(match reply {
                Value::ServerError(error) => error,
                other => unreachable!("{other:?}"),
            });
            let CommandError { text, .. } = error.into();
            assert_eq!(does_not_know(&text), expected, "{text}");
        }
    }
}
