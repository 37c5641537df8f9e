//! The tables of the ports and of the log.

use super::address::{AdminListen, ListenAddress};
use super::decode::{choice, table};
use super::rule::Mode;
use super::values::{
    BodyBytes, Checks, Connections, Count, Descriptors, Entries, HeaderBytes, HeaderCount, Hidden, Lines, MessageBytes,
    OneOrTwo, Pause, Span, SpanOrOff, Streams, Switch, UnfinishedBytes, Units,
};

table! {
    /// The addresses to listen on, and settings of the whole process.
    Server {
        [restart]
        /// The address of RLS, ext_authz, health and reflection: `0.0.0.0:8081` (the default), `[::]:8081` or `unix:/run/tollgate.sock`. Port 0 takes a free port.
        grpc: ListenAddress,
        [restart]
        /// The address of ext_authz over plain HTTP and of `/healthcheck`: `0.0.0.0:8080` by default.
        http: ListenAddress,
        [restart]
        /// The address of metrics, health, and the requests of `tollgate state`, `lift`, `top` and `explain --server`: `127.0.0.1:9090` by default. If that default address is taken, tollgate starts without the admin port. `off` opens none. An address that other machines can reach needs `admin_token`.
        admin: AdminListen,
        /// `accepted` says that clear text is meant on addresses that other machines can reach, because only gateways can read that network. Without it `check` warns of such addresses.
        clear_text: ClearText,
        /// The bearer token that requests about identities, such as `state` and `lift`, need. Metrics and health are open. Keep it in a file: `${file:/run/secrets/tollgate-admin}`.
        admin_token: Hidden,
        [restart]
        /// An address of its own for the API of workers, gRPC and HTTP/JSON. By default the API is at `grpc` and `http`. An address that other machines can reach needs `api_token`.
        api: ListenAddress,
        /// The bearer token of the API of workers, or a list of two, so that callers can move from one to the other. Without it the API answers only where its address is loopback or a Unix socket. Keep it in a file: `${file:/run/secrets/tollgate-api}`.
        api_token: OneOrTwo<Hidden>,
        /// The domain of calls of the API that name none: `default` by default.
        api_domain: String,
        /// The deployment's secret: hashes identities and seals leases. Instances that share a store must share it. A change starts all counters at zero. Without it a public constant is used, with a warning. Keep it in a file: `${file:/run/secrets/tollgate}`.
        secret: Hidden,
        /// `shadow` counts and reports but never denies, whatever the rules say: the kill switch. `enforce` by default.
        mode: Mode,
        /// A descriptor with an entry of this key releases the lease that the value names. `release` by default.
        release_entry: String,
        /// A descriptor with an entry of this key settles the lease that the value names: what was held is corrected to the `hits_addend` of the descriptor. Without one it stays as it was charged. `settle` by default.
        settle_entry: String,
        /// How long to keep serving after SIGTERM while reporting not ready (gRPC health, `/readyz`, `/healthcheck`), so that load balancers notice: `3s` by default; `0s` closes connections at once.
        drain_delay: Pause,
        /// How long requests in flight may take after `drain_delay`: `10s` by default.
        drain_timeout: Pause,
        /// Which headers responses carry.
        headers: Headers,
        /// Bounds of requests and connections.
        bounds: Bounds,
    }
}

choice! {
    /// Whether clear text is meant.
    ClearText {
        /// It is.
        "accepted" => Accepted,
    }
}

table! {
    /// What is logged.
    Log {
        [restart]
        /// `text` for people, the default, or `json`: one object a line.
        format: LogFormat,
        /// The most refusals logged in a second: 10 by default, 0 for none. The next line says how many were left out.
        refusals_per_second: Lines,
    }
}

choice! {
    /// The format of a log line.
    LogFormat {
        /// For people.
        "text" => Text,
        /// One JSON object a line, for machines.
        "json" => Json,
    }
}

table! {
    /// Which headers responses carry, for each protocol.
    Headers {
        /// Responses of RLS. By default only `retry_after`, since Envoy can add its own `x-ratelimit-*` and would show both.
        rls: HeaderFamilies,
        /// Responses of ext_authz, gRPC and HTTP. By default all.
        authz: HeaderFamilies,
        /// Whether clients see the names of rules, limiters and tiers, in headers and problem+json bodies: `true` by default. Envoy's dynamic metadata has them in any case.
        names: Switch,
    }
}

table! {
    /// Families of headers, each on or off.
    HeaderFamilies {
        /// `X-RateLimit-Limit`, `-Remaining` and `-Reset`.
        x_ratelimit: Switch,
        /// `RateLimit` and `RateLimit-Policy` of the IETF draft.
        ietf: Switch,
        /// `Retry-After` on refusals.
        retry_after: Switch,
        /// A problem+json body on refusals whose rule sets no body.
        problem_json: Switch,
    }
}

table! {
    /// Bounds of requests and connections. A request that exceeds one is refused and never answered with an error; `docs/limits.md` has the whole table. Those of requests and of waiting (`descriptors`, `entries`, `checks`, `max_wait`, `waiters`) change with a reload; the others need a restart.
    Bounds {
        /// Descriptors in a request: 100 by default, 1000 at most.
        descriptors: Descriptors,
        /// Entries in a descriptor: 64 by default, 1000 at most.
        entries: Entries,
        /// Checks that all descriptors of a request make together: 256 by default, 4096 at most.
        checks: Checks,
        [restart]
        /// Size of a gRPC message, which also bounds every key and value: `1MiB` by default.
        message_bytes: MessageBytes,
        [restart]
        /// Headers of a request: 512 by default.
        headers: HeaderCount,
        [restart]
        /// Size of the path and all headers of a request: `256KiB` by default, `8KiB` at least.
        header_bytes: HeaderBytes,
        [restart]
        /// Size of a request body that the HTTP port reads and drops to keep the connection open: `64KiB` by default. A request with a larger body is answered, and its connection closed.
        body_bytes: BodyBytes,
        /// Size of a body from which ext_authz reads entries: `64KiB` by default. From a larger one they cannot be read.
        authz_body_bytes: MessageBytes,
        [restart]
        /// Memory for the unfinished requests of one connection: `8MiB` by default, `message_bytes` at least.
        unfinished_bytes_per_connection: UnfinishedBytes,
        [restart]
        /// Memory for all unfinished requests: `128MiB` by default.
        unfinished_bytes: UnfinishedBytes,
        [restart]
        /// Requests in flight at the same time: 200000 by default, which is more than `unfinished_bytes` has room for.
        requests: Count,
        [restart]
        /// Connections to each port: 10000 by default. Further ones wait until one ends.
        connections: Connections,
        [restart]
        /// Concurrent streams of an HTTP/2 connection: 4096 by default. Announced to clients, which then wait.
        streams: Streams,
        [restart]
        /// Timeout for the first bytes of a connection, and for each head from its first byte: `10s` by default. Closes the connection.
        head_timeout: Span,
        [restart]
        /// Timeout for the rest of a request after its head: `10s` by default.
        request_timeout: Span,
        [restart]
        /// How long a connection stays open without a request in flight: `1h` by default, or `off`.
        idle_timeout: SpanOrOff,
        /// The longest wait that a worker may ask for: `10m` by default.
        max_wait: Span,
        /// Workers that wait at the same time: 10000 by default. A further one is refused.
        waiters: Units,
    }
}
