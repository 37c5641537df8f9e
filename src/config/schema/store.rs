//! The table of a store.

use super::decode::{choice, table};
use super::values::{Amount, Count, Hidden, IgnoredNumber, Memory, Seconds, Span, SpanOrOff, Switch};

table! {
    /// A place where counters are kept.
    Store {
        [required]
        /// What keeps the counters: `memory` of this process, or a server that several instances share.
        engine: StoreKind,
        [only(&["redis", "postgres"])]
        /// The server's address: `redis://user:password@host:6379/0`, `rediss://` for TLS, `redis+unix:///run/redis.sock`, `postgres://user:password@host/database`. Several sentinels or cluster nodes are separated by commas: `redis://a:26379,b:26379`.
        url: Hidden,
        /// How long a decision waits for this store: a duration, or a bare number of seconds. `10ms` by default, because Envoy's own timeout is 20 ms; `50ms` for PostgreSQL, which commits to disk, so set Envoy's timeout above it.
        timeout: Seconds,
        [only(&["redis", "postgres"])]
        /// How many instances share this store. While it is away, each instance enforces its share of a limit with `on_store_error = "local"`. `1` by default: each enforces the whole limit.
        instances: Count,
        [only(&["redis", "postgres"]), restart]
        /// Whether `/readyz` and gRPC health follow this store: not ready until it has answered, nor after `unready_after` without an answer. `false` by default: without the store, every limiter does what its `on_store_error` says.
        required: Switch,
        [only(&["redis", "postgres"]), restart]
        /// How long a required store may be without an answer before `/readyz` and gRPC health report not ready, until it answers again. `5s` by default; `off` to be ready for good after its first answer.
        unready_after: SpanOrOff,
        [only(&["redis", "postgres"])]
        /// The most requests that one call to this store decides. `64` by default; `1` sends each request in its own call.
        max_batch: Count,
        [only(&["redis", "postgres"])]
        /// The most calls to this store in flight. Requests that arrive meanwhile share the next call. `2` by default.
        max_calls: Count,
        [only(&["redis", "postgres"])]
        /// How long a refusal may be repeated from memory without a call to the store, if only time can end it. Off by default. Refunds and lifts by other instances take effect up to that much later.
        refusal_cache: Span,
        [only(&["redis", "postgres"])]
        /// The most units of a hot counter that are charged at once and then handed out in this process. Off by default. Other instances may be refused while units lie unused here; the limit is never exceeded.
        quota_lease: Count,
        [only(&["memory"]), restart_of_store]
        /// Memory for the counters of a memory store: `256MiB` by default, `1MiB` at least.
        max_memory: Memory,
        [only(&["memory"]), restart_of_store]
        /// The most counters that a memory store holds. By default only `max_memory` bounds them.
        max_keys: Count,
        [only(&["memory"]), restart]
        /// A file in which the counters of a memory store survive a restart: written every `snapshot_interval` and at shutdown, read at start. It holds no identity.
        snapshot: String,
        [only(&["memory"]), restart]
        /// How often the snapshot is written: `1m` by default. If the process dies, what was counted since is lost.
        snapshot_interval: Span,
        [only(&["redis"])]
        /// The topology of Redis: `standalone` by default.
        mode: RedisMode,
        [only(&["redis"]), in_mode("sentinel")]
        /// The name under which the sentinels know the server: `mymaster` by default.
        sentinel_master: String,
        [only(&["redis"]), in_mode("sentinel")]
        /// The ACL user of the sentinels, if they require one.
        sentinel_username: String,
        [only(&["redis"]), in_mode("sentinel")]
        /// The password of the sentinels, if they require one.
        sentinel_password: Hidden,
        [only(&["redis"]), in_mode("cluster")]
        /// The entry whose value selects the hash slot of a counter, if the counter's key has it; otherwise the first entry of the key by name does. Limits of one request in the same hash slot are decided together.
        hash_tag: String,
        [only(&["redis"])]
        /// The number of the Redis database.
        db: Amount,
        [only(&["redis", "postgres"])]
        /// The user: an ACL user of Redis, or a role of PostgreSQL. Here or in the URL; here it may have any characters.
        username: String,
        [only(&["redis", "postgres"])]
        /// The password, such as `${file:/run/secrets/store}`, which is read again when the file changes. Here or in the URL; here it may have any characters.
        password: Hidden,
        [only(&["redis"])]
        /// The prefix of all names of counters in Redis: `tollgate:` by default.
        key_prefix: String,
        [only(&["redis", "postgres"])]
        /// A file of CA certificates (PEM) that the server's certificate is verified with. Those of the system by default. It is read again when it changes, as are `tls_certificate` and `tls_key`.
        tls_ca: String,
        [only(&["redis", "postgres"])]
        /// A file with the client certificate (PEM), and its chain.
        tls_certificate: String,
        [only(&["redis", "postgres"])]
        /// The file of the client certificate's private key (PEM, without a passphrase).
        tls_key: String,
        [only(&["redis", "postgres"])]
        /// The name that the server's certificate must carry, if it differs from the host in the URL.
        tls_server_name: String,
        [only(&["redis", "postgres"])]
        /// For rate-sync files: without effect. Connections are opened when they are needed.
        pool_min_size: Amount,
        [only(&["redis", "postgres"])]
        /// The most connections to PostgreSQL: `8` by default. Without effect on Redis, which needs one.
        pool_max_size: Count,
        [only(&["redis", "postgres"])]
        /// For rate-sync files: without effect, because the store's own clock decides.
        timing_margin_ms: IgnoredNumber,
        [only(&["redis"])]
        /// For rate-sync files: without effect. `timeout` says how long a decision waits.
        socket_timeout: Seconds,
        [only(&["redis"])]
        /// Timeout for connecting to Redis: a duration, or a bare number of seconds. `0.25` by default.
        socket_connect_timeout: Seconds,
        [only(&["postgres"])]
        /// The prefix of the names of the tables in PostgreSQL. Empty by default.
        table_name: String,
        [only(&["postgres"])]
        /// The PostgreSQL schema that holds the tables: `tollgate` by default.
        schema_name: String,
        [only(&["postgres"])]
        /// Whether connecting creates and upgrades the tables: `true` by default. With `false`, run `tollgate store migrate`.
        auto_create: Switch,
        [only(&["postgres"])]
        /// Whether the tables are UNLOGGED: half the work for PostgreSQL, but replicas have no counters, and a crash of the server sets all of them to zero. `false` by default.
        unlogged: Switch,
        [only(&["postgres"])]
        /// Whether a decision waits for PostgreSQL's commit to be durable, as the server is configured. `true` by default; with `false` a crash of the server loses the last moments.
        synchronous_commit: Switch,
    }
}

choice! {
    /// The topology of Redis.
    RedisMode {
        /// One server.
        "standalone" => Standalone,
        /// One server that sentinels watch. The URL names the sentinels.
        "sentinel" => Sentinel,
        /// A cluster. The URL names some of its nodes.
        "cluster" => Cluster,
    }
}

choice! {
    /// What keeps counters.
    StoreKind {
        /// This process.
        "memory" => Memory,
        /// Redis or Valkey.
        "redis" => Redis,
        /// PostgreSQL.
        "postgres" => Postgres,
    }
}
