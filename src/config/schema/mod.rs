//! Everything that a configuration can hold: the one schema of TOML and YAML.
//!
//! The documentation of each key is what `tollgate schema` prints.

pub(super) mod decode;
pub(super) mod values;

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::document::node::{TreeNode, Value};
use super::document::problem::{Location, Problems};
use super::schema::decode::{Decode, Field, Located, choice, entries, field, key, known_keys, table};
use super::schema::values::{
    Amount, BodyBytes, ByName, Checks, Connections, Count, Descriptors, Entries, HeaderBytes, HeaderCount, Hidden,
    Lines, List, Memory, MessageBytes, Pause, Percent, Positive, PrefixLength, Seconds, Span, SpanOrOff, Status,
    Streams, Switch, UnfinishedBytes, Units,
};

table! {
    /// The configuration of tollgate: one file, or a directory of files whose tables are put together.
    File {
        /// Where tollgate listens, and what holds for the whole process.
        server: Server,
        /// Where counters are kept, by name. Without any there is one store in this process's memory.
        stores: ByName<Store>,
        /// Named algorithms with their numbers, by name.
        limiters: ByName<Limiter>,
        /// Settings of domains, by name. A domain without any has the defaults.
        domains: ByName<Domain>,
        /// Which descriptors are matched and which limiters apply to them. Files in name order, then order in the file.
        rules: List<Rule>,
        /// How ext_authz, which has no descriptors, makes entries of a request.
        authz: Authz,
        /// What is logged, to standard error. How much of it, `RUST_LOG` says.
        log: Log,
        /// Of rate-sync files. Accepted and of no effect: trust in addresses is set by `authz.trusted_hops`.
        fastapi: Fastapi,
    }
}

table! {
    /// Where tollgate listens, and what holds for the whole process.
    Server {
        /// The address of RLS, ext_authz, health and reflection: `0.0.0.0:8081` (the default), `[::]:8081` or `unix:/run/tollgate.sock`. Port 0 takes a free one.
        grpc: ListenAddress,
        /// The address of ext_authz over plain HTTP and of `/healthcheck`: `0.0.0.0:8080` by default.
        http: ListenAddress,
        /// The address of metrics, health, and of what `tollgate state`, `lift` and `explain --server` ask: `127.0.0.1:9090` by default, which is done without when it is taken. `off` opens none. Wherever others can reach it, `admin_token` is needed.
        admin: AdminListen,
        /// What has to be shown, as a bearer token, to ask about identities or to lift their limits. Metrics and health are open. Keep it in a file: `${file:/run/secrets/tollgate-admin}`.
        admin_token: Hidden,
        /// The deployment's secret, with which identities are hashed and leases are sealed. Instances that share a store must share it; changing it starts all counters afresh. Without one a public constant is used, with a warning. Keep it in a file: `${file:/run/secrets/tollgate}`.
        secret: Hidden,
        /// `shadow` counts and reports but never denies, whatever the rules say: the kill switch. `enforce` by default.
        mode: Mode,
        /// A descriptor whose only entry has this key gives the lease back that the value names. `release` by default.
        release_entry: String,
        /// How long a process that was told to stop answers on as before, while it says that it stops (gRPC health, `/readyz`, `/healthcheck`): as long as whoever sends requests needs to notice. `3s` by default; `0s` closes connections at once.
        drain_delay: Pause,
        /// How long requests under way may take after that: `10s` by default.
        drain_timeout: Pause,
        /// Which headers answers carry.
        headers: Headers,
        /// What clients may take at most.
        bounds: Bounds,
    }
}

table! {
    /// What is logged.
    Log {
        /// `text` for people, the default, or `json`: one object a line.
        format: LogFormat,
        /// The most refusals that are logged in a second: 10 by default, 0 for none. Those left out are counted in the next line.
        refusals_per_second: Lines,
    }
}

choice! {
    /// How a line of the log looks.
    LogFormat {
        /// For people.
        "text" => Text,
        /// One JSON object a line, for machines.
        "json" => Json,
    }
}

table! {
    /// Which headers answers carry, by door.
    Headers {
        /// Of RLS answers. By default only `retry_after`, since Envoy can add its own `x-ratelimit-*` and would show both.
        rls: HeaderFamilies,
        /// Of ext_authz answers, gRPC and HTTP. By default all.
        authz: HeaderFamilies,
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
        /// A problem+json body on refusals for which the rule chose no body.
        problem_json: Switch,
    }
}

table! {
    /// What clients may take at most. A request past it is refused, never answered with an error; `docs/limits.md` has the whole table. Those below `checks` hold from start to stop: a reload does not change them.
    Bounds {
        /// Descriptors in a request: 100 by default, 1000 at most.
        descriptors: Descriptors,
        /// Entries in a descriptor: 64 by default, 1000 at most.
        entries: Entries,
        /// Checks that all descriptors of a request make together: 256 by default, 4096 at most.
        checks: Checks,
        /// A gRPC message, and with it every key and value: `1MiB` by default.
        message_bytes: MessageBytes,
        /// Headers of a request: 512 by default.
        headers: HeaderCount,
        /// The path and all headers of a request: `256KiB` by default, `8KiB` at least.
        header_bytes: HeaderBytes,
        /// A body that the HTTP door passes over to keep the connection: `64KiB` by default. The question before a larger one is answered, and the connection closed.
        body_bytes: BodyBytes,
        /// What is kept of a connection's requests that are not finished: `8MiB` by default, `message_bytes` at least.
        unfinished_bytes_per_connection: UnfinishedBytes,
        /// What is kept of all requests that are not finished: `128MiB` by default.
        unfinished_bytes: UnfinishedBytes,
        /// Requests under way at a time: 200000 by default, more than `unfinished_bytes` has room for.
        requests: Count,
        /// Connections of each door: 10000 by default. Further ones wait until one ends.
        connections: Connections,
        /// Streams of a connection of HTTP/2 at a time: 4096 by default. Clients are told and wait.
        streams: Streams,
        /// The time for the first words of a connection, and for each head from its first byte: `10s` by default. A connection in the middle of one is closed then.
        head_timeout: Span,
        /// The time for the rest of a request after its head: `10s` by default.
        request_timeout: Span,
        /// How long a connection stays open without a request under way: `1h` by default, or `off`.
        idle_timeout: SpanOrOff,
    }
}

table! {
    /// A place where counters are kept.
    Store {
        /// What keeps them: `memory`, or what several instances share.
        [required] engine: StoreKind,
        /// Where the server is, of redis and postgres: `redis://user:password@host:6379/0`, `rediss://` for TLS, `redis+unix:///run/redis.sock`, `postgres://user:password@host/database`. Sentinels and nodes of a cluster are named one after the other: `redis://a:26379,b:26379`.
        url: Hidden,
        /// How long a decision waits for this store: a duration, or a bare number of seconds. `10ms` by default: Envoy waits 20 ms for us.
        timeout: Seconds,
        /// How many instances share this store. While it is away each of them keeps this part of a limit that says `on_store_error = "local"`. `1` by default: each keeps the whole limit.
        instances: Count,
        /// Whether `/readyz` and gRPC health wait until this store has answered once. `false` by default: without the store every limiter does what its `on_store_error` says.
        required: Switch,
        /// The most requests that one call of this store decides. `64` by default; `1` sends each by itself.
        max_batch: Count,
        /// The most calls of this store under way. What comes meanwhile shares the next one. `2` by default.
        max_calls: Count,
        /// How long a refusal may be answered here, without asking the store, while time alone can end it. Off by default. Other instances' refunds and lifts are seen that much later.
        refusal_cache: Span,
        /// Units of a hot counter that are charged at once and handed out here, at most. Off by default. Other instances may be refused while units lie here unused; no more than the limit ever passes.
        quota_lease: Count,
        /// Memory that the counters of a memory store may take: `256MiB` by default, `1MiB` at least.
        max_memory: Memory,
        /// How many counters a memory store holds at most. No bound beside `max_memory` by default.
        max_keys: Count,
        /// A file that the counters of a memory store survive a restart in: written whole at shutdown and now and then, read at start. It holds no identity.
        snapshot: String,
        /// How often that file is written: `1m` by default. What happened since is forgotten when the process dies.
        snapshot_interval: Span,
        /// How Redis is spread: `standalone` by default.
        mode: RedisMode,
        /// What the sentinels call the server they watch: `mymaster` by default.
        sentinel_master: String,
        /// The ACL user of the sentinels, where they want one.
        sentinel_username: String,
        /// The password of the sentinels, where they want one.
        sentinel_password: Hidden,
        /// The entry whose value says in which slot of a cluster a counter lives, where its key has it; else the first entry of the key by name says. Limits of one request that live in one slot are decided together.
        hash_tag: String,
        /// The number of the Redis database.
        db: Amount,
        /// The ACL user of Redis, where the URL names none.
        username: String,
        /// The password of Redis, where the URL holds none.
        password: Hidden,
        /// What the names of all counters in Redis begin with: `tollgate:` by default.
        key_prefix: String,
        /// A file of certificates (PEM) that the server's is signed by. Those of the system by default.
        tls_ca: String,
        /// A file with the certificate (PEM) that Redis is shown of us.
        tls_certificate: String,
        /// The file of its private key (PEM).
        tls_key: String,
        /// The name that the certificate of Redis must carry, where it is not the host's.
        tls_server_name: String,
        /// Of rate-sync: connections held open at least.
        pool_min_size: Amount,
        /// Connections to PostgreSQL held open at most: `8` by default. Of no effect on Redis, which needs one.
        pool_max_size: Count,
        /// Of rate-sync: of no effect, because the store's own clock decides.
        timing_margin_ms: IgnoredNumber,
        /// Of rate-sync: of no effect, because `timeout` says how long a decision waits.
        socket_timeout: Seconds,
        /// How long connecting to Redis may take, in seconds: `0.25` by default.
        socket_connect_timeout: Seconds,
        /// What the names of the tables in PostgreSQL begin with. Nothing by default.
        table_name: String,
        /// The schema that these tables are in: `tollgate` by default.
        schema_name: String,
        /// Whether the tables are created and upgraded when a connection is made: `true` by default. Otherwise `tollgate store migrate` has to.
        auto_create: Switch,
        /// Whether PostgreSQL keeps the tables out of its log: half the work, nothing on replicas, and all limits start afresh after a crash of the server. `false` by default.
        unlogged: Switch,
        /// Whether a decision waits until it is on PostgreSQL's disk, as the server is configured to. `true` by default; with `false` a crash of the server forgets the last moments.
        synchronous_commit: Switch,
    }
}

choice! {
    /// How a Redis is spread.
    RedisMode {
        /// One server.
        "standalone" => Standalone,
        /// One server that sentinels watch, which the URL names.
        "sentinel" => Sentinel,
        /// A cluster, of which the URL names some nodes.
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

table! {
    /// A named algorithm with its numbers, its store and what happens when the store cannot answer. A rate or a window, a number of concurrent requests, or both.
    Limiter {
        /// How units are counted. May be left out with `rate_per_second` (token_bucket) or with `max_concurrent` alone (concurrency).
        algorithm: Algorithm,
        /// Units per window.
        limit: Units,
        /// The length of the window, such as `1m`.
        window: Span,
        /// Of rate-sync: the length of the window in seconds.
        window_seconds: Seconds,
        /// Tokens that a token_bucket holds when full. The limit by default; `rate_per_second` holds one second's worth. In any time t a bucket admits at most burst + rate x t.
        burst: Units,
        /// The rate of a token_bucket, instead of `limit` and `window`.
        rate_per_second: Positive,
        /// Requests that hold a slot at the same time.
        max_concurrent: Units,
        /// How long a slot is held when nobody releases it: `1m` by default.
        lease: Span,
        /// Tokens that a token_bucket may owe. By default none; as many as its `limit` where a rule charges `always`; unbounded where a rule overdraws.
        max_debt: Amount,
        /// What to answer when the store cannot: `local` by default. A memory store cannot when it is full and nothing can go.
        on_store_error: OnStoreError,
        /// Whether a limit that comes with a request replaces this one. False by default.
        overridable as "override": Switch,
        /// Where the windows of a fixed_window start: `epoch` by default.
        alignment: Alignment,
        /// Windows of a fixed_window that follow the calendar, instead of `window`.
        calendar: Calendar,
        /// The time zone of `calendar`, such as `Europe/Berlin`. UTC by default.
        timezone: String,
        /// The name of the store that keeps its counters. By default the only one, else the one named `main`, else the first.
        store: String,
        /// Of rate-sync: how long its callers wait. Nothing waits at a gateway.
        timeout: Seconds,
        /// Of rate-sync: true is `on_store_error = "deny"`, false is `"allow"`.
        fail_closed: Switch,
    }
}

choice! {
    /// How units are counted.
    Algorithm {
        /// Tokens refill steadily; unused ones are held up to `burst`.
        "token_bucket" => TokenBucket,
        /// At most `limit` in any window of that length, exactly; every grant is remembered.
        "sliding_window" => SlidingWindow,
        /// About `limit` in any window, from two counts.
        "sliding_counter" => SlidingCounter,
        /// At most `limit` in each window, from one count.
        "fixed_window" => FixedWindow,
        /// At most `max_concurrent` at the same time.
        "concurrency" => Concurrency,
    }
}

choice! {
    /// What to answer when the store cannot.
    OnStoreError {
        /// Let it pass.
        "allow" => Allow,
        /// Refuse it.
        "deny" => Deny,
        /// Decide in this process's memory with the same limiter until the store is back. Where the store is this process's memory, refuse.
        "local" => Local,
    }
}

choice! {
    /// Where windows start.
    Alignment {
        /// At whole multiples of the window since 1970, UTC.
        "epoch" => Epoch,
        /// At the first hit.
        "first_hit" => FirstHit,
    }
}

choice! {
    /// A unit of the calendar.
    Calendar {
        /// From the full hour.
        "hour" => Hour,
        /// From midnight.
        "day" => Day,
        /// From midnight before Monday.
        "week" => Week,
        /// From midnight before the first.
        "month" => Month,
        /// From midnight before the first of January.
        "year" => Year,
    }
}

table! {
    /// The settings of a domain.
    Domain {
        /// The answer for a descriptor that no rule matches: `allow` by default.
        unmatched: Verdict,
        /// `shadow` counts and reports but never denies.
        mode: Mode,
        /// Rewritings of entries before they are matched and counted: `{ path = ["path"], account = ["lowercase", "trim"] }`.
        normalise: ByName<List<Normaliser>>,
        /// Entries that are addresses, beside `remote_address`.
        addresses: List<String>,
        /// All entries that clients of this domain send. When given, a rule that names any other is refused.
        entries: List<String>,
    }
}

choice! {
    /// Whether a request passes.
    Verdict {
        /// It passes.
        "allow" => Allow,
        /// It is refused, and nothing is charged.
        "deny" => Deny,
    }
}

choice! {
    /// Whether refusals count.
    Mode {
        /// They do.
        "enforce" => Enforce,
        /// They are counted and reported, and the request passes.
        "shadow" => Shadow,
    }
}

choice! {
    /// A rewriting of a value, so that one client has one counter.
    Normaliser {
        /// Unicode lower case.
        "lowercase" => Lowercase,
        /// Without white space at the ends.
        "trim" => Trim,
        /// A request path as an origin server sees it: query off, escapes decoded, dot segments resolved.
        "path" => Path,
    }
}

table! {
    /// In a domain: which descriptors are matched, and what is done with them. All rules that match apply together.
    Rule {
        /// The domain it stands in.
        [required] domain: String,
        /// What refusals, metrics and logs call it; once a domain.
        [required] name: String,
        /// The entries that must be there, each with its test: a text, `"*"` for any, a pattern such as `"/api/*"`, a block of addresses, a list of these, or `{ not = ... }`. Without any, every descriptor matches.
        matches as "match": ByName<Match>,
        /// The limiters that apply.
        apply: List<Apply>,
        /// `allow` ends the walk and keeps the checks found before; `deny` refuses and charges nothing. Instead of `apply`.
        action: Verdict,
        /// Ends the walk of a descriptor that it matches. False by default.
        last as "final": Switch,
        /// `shadow` counts and reports but never denies, and never ends the walk.
        mode: Mode,
        /// Enforces for this many of a hundred keys, always the same ones; for the others it is in shadow.
        enforce_percent: Percent,
        /// The HTTP status of its refusals: 429 by default, 403 for `action = "deny"`.
        status: Status,
        /// The body of its refusals.
        body: String,
        /// The media type of that body: `text/plain` by default.
        content_type: String,
    }
}

table! {
    /// One limiter applied by a rule.
    Apply {
        /// The limiter's name. It may hold entries, `api_{tier}`, which are filled from the descriptor.
        [required] limiter: String,
        /// The limiter for a filled name that no limiter has. Without it such a request is refused.
        otherwise: String,
        /// The entries whose values identify the counter. Without any there is one counter for all.
        key: List<KeyEntry>,
        /// When it is charged.
        charge: Charge,
        /// Passes as long as one whole unit is left, and charges the whole cost. False by default.
        overdraw: Switch,
        /// What to do when an entry of the key or of the limiter's name is not there.
        missing: Missing,
    }
}

choice! {
    /// When a check is charged.
    Charge {
        /// When the whole request is admitted: the default.
        "admitted" => Admitted,
        /// When this check itself passes, whoever else refuses.
        "own" => Own,
        /// Whatever the verdict: who keeps trying stays out.
        "always" => Always,
    }
}

choice! {
    /// What to do when an entry is not there.
    Missing {
        /// Leave the check out; the rule's others stay: the default.
        "skip" => Skip,
        /// Refuse.
        "deny" => Deny,
        /// Count it as the empty value.
        "empty" => Empty,
    }
}

table! {
    /// An entry of a key with rewritings of its value.
    KeyTable {
        /// Which entry.
        [required] entry: String,
        /// Rewritings of its value, for this key only.
        normalise: List<Normaliser>,
        /// The leading bits by which IPv6 addresses are told apart: 64 by default.
        ipv6_prefix: PrefixLength,
    }
}

/// An entry of a key: its name, or a table that says more.
#[derive(Clone, Debug)]
pub enum KeyEntry {
    /// Only the name.
    Entry(String),
    /// With rewritings.
    Table(Box<KeyTable>),
}

impl Decode for KeyEntry {
    fn expected() -> String {
        "the name of an entry or { entry = ..., normalise = [...] }".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(KeyEntry::Entry(text.text.clone())),
            Value::Table(_) => KeyTable::decode(node, location, problems).map(|table| KeyEntry::Table(Box::new(table))),
            _ => {
                problems.refuse(location, format!("expected {}", Self::expected()));
                None
            }
        }
    }
}

impl JsonSchema for KeyEntry {
    fn schema_name() -> Cow<'static, str> {
        "KeyEntry".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({
            "description": "An entry of a key: its name, or a table that says more.",
            "anyOf": [{ "type": "string" }, generator.subschema_for::<KeyTable>()],
        })
    }
}

/// A test of one entry's value.
#[derive(Clone, Debug)]
pub enum Match {
    /// A text, a pattern or a block of addresses.
    Text(String),
    /// Any of these.
    Any(Vec<Located<Match>>),
    /// None of this.
    Not(Box<Located<Match>>),
}

impl Decode for Match {
    fn expected() -> String {
        "a text, a list of texts or { not = ... }".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(_) | Value::Number(_) | Value::Bool(_) => {
                String::decode(node, location, problems).map(Match::Text)
            }
            Value::List(items) if items.is_empty() => {
                problems.refuse(location, "expected at least one item: an empty list matches nothing");
                None
            }
            Value::List(items) => {
                let mut any = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    match field(item, format!("{}[{index}]", location.path), problems) {
                        Field::Given(item) => any.push(item),
                        Field::Absent | Field::Refused => {}
                    }
                }
                Some(Match::Any(any))
            }
            Value::Table(_) => {
                let entries = entries(node, location, problems)?;
                known_keys(entries, location, &["not"], problems);
                match key::<Match>(entries, "not", true, location, problems) {
                    Field::Given(inner) => Some(Match::Not(Box::new(inner))),
                    Field::Absent | Field::Refused => None,
                }
            }
            Value::Null | Value::Other(_) | Value::Lost => {
                problems.refuse(location, format!("expected {}", Self::expected()));
                None
            }
        }
    }
}

impl JsonSchema for Match {
    fn schema_name() -> Cow<'static, str> {
        "Match".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let inner = generator.subschema_for::<Match>();
        schemars::json_schema!({
            "description": "A test of one entry's value: a text, \"*\", a pattern, a block of addresses, a list of these, or { not = ... }.",
            "anyOf": [
                { "type": "string" },
                { "type": "array", "minItems": 1, "items": inner.clone() },
                {
                    "type": "object",
                    "additionalProperties": false,
                    "required": ["not"],
                    "properties": { "not": inner },
                },
            ],
        })
    }
}

table! {
    /// How ext_authz, which has no descriptors, makes entries of a request. Always there are `remote_address`, `method`, `path` and `host`.
    Authz {
        /// The domain asked, unless the route's `context_extensions.domain` names another: `default` by default.
        domain: String,
        /// How many addresses, counted from the right of `X-Forwarded-For`, were written by proxies that we trust. Zero, the default, believes no such header.
        trusted_hops: Amount,
        /// Whether an address in `x-envoy-external-address` wins over that; off by default. Envoy writes that header with `use_remote_address: true`, for clients with a public address; what others send in it, it passes on. Switch it on only where every client has a public address, or clients choose theirs.
        trust_external_address: Switch,
        /// More entries, by name, each from one place of the request. An entry that cannot be had is absent.
        entries: ByName<EntrySource>,
    }
}

table! {
    /// Where an entry's value comes from: exactly one location, and perhaps a default.
    EntrySource {
        /// A request header; of several with the name, the first. Over gRPC Envoy sends several as one, with commas, unless its filter has `encode_raw_headers: true`.
        header: String,
        /// A cookie; of several with the name, the first.
        cookie: String,
        /// A parameter of the query.
        query: String,
        /// A key of the route's `context_extensions`.
        context: String,
        /// A value of the request's dynamic metadata: the filter's namespace, a colon, and the path inside it: `envoy.filters.http.jwt_authn:payload.sub`.
        metadata: String,
        /// The client certificate's principal.
        principal: Switch,
        /// The value when the place has none.
        default: String,
    }
}

table! {
    /// Of rate-sync files. Accepted and of no effect.
    Fastapi {
        /// Blocks of addresses that rate-sync believed.
        trusted_proxy_networks: List<String>,
    }
}

/// An address to listen on.
#[derive(Clone, Debug)]
pub struct ListenAddress(pub crate::settings::Listen);

impl Decode for ListenAddress {
    fn expected() -> String {
        "an address such as 0.0.0.0:8081, [::]:8081 or unix:/run/tollgate.sock".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        address(node, location, problems, &Self::expected()).map(ListenAddress)
    }
}

/// Reads where to listen.
fn address(
    node: &TreeNode,
    location: &Location,
    problems: &mut Problems,
    expected: &str,
) -> Option<crate::settings::Listen> {
    use crate::settings::Listen as Address;
    let text = match &node.value {
        Value::Text(text) => &*text.text,
        _ => "",
    };
    let address = match text.strip_prefix("unix:") {
        Some("") => None,
        Some(path) => Some(Address::Unix(path.into())),
        None => text.parse().ok().map(Address::Tcp),
    };
    if address.is_none() {
        let port = text.rsplit_once(':').filter(|(host, port)| {
            let digits = !port.is_empty() && port.chars().all(|c| c.is_ascii_digit());
            digits && format!("{host}:0").parse::<std::net::SocketAddr>().is_ok()
        });
        match port {
            Some((_, port)) => problems.refuse(location, format!("but a port is at most 65535, and {port} is more")),
            None => problems.refuse(location, format!("expected {expected}")),
        }
    }
    address
}

impl JsonSchema for ListenAddress {
    fn schema_name() -> Cow<'static, str> {
        "ListenAddress".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "pattern": "\\$|^unix:.|:[0-9]+$" })
    }
}

/// Where the admin port listens, if anywhere.
#[derive(Clone, Debug)]
pub struct AdminListen(pub Option<crate::settings::Listen>);

impl Decode for AdminListen {
    fn expected() -> String {
        "an address such as 127.0.0.1:9090 or unix:/run/tollgate-admin.sock, or off".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(text) if *text.text == *"off" => Some(Self(None)),
            _ => address(node, location, problems, &Self::expected()).map(|listen| Self(Some(listen))),
        }
    }
}

impl JsonSchema for AdminListen {
    fn schema_name() -> Cow<'static, str> {
        "AdminListen".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "pattern": "\\$|^off$|^unix:.|:[0-9]+$" })
    }
}

/// A number of rate-sync's that has no effect here.
#[derive(Clone, Copy, Debug)]
pub struct IgnoredNumber;

impl Decode for IgnoredNumber {
    fn expected() -> String {
        "a number".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Number(number) if number.float >= 0.0 => Some(IgnoredNumber),
            Value::Text(text) if text.text.parse::<f64>().is_ok() => Some(IgnoredNumber),
            _ => {
                problems.refuse(location, "expected a number, zero or more");
                None
            }
        }
    }
}

impl JsonSchema for IgnoredNumber {
    fn schema_name() -> Cow<'static, str> {
        "IgnoredNumber".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "anyOf": [{ "type": "number", "minimum": 0 }, { "type": "string", "pattern": "\\$|^[0-9.]" }] })
    }
}

/// The JSON Schema (draft 2020-12) of a configuration, made from the tables that read it.
pub fn json_schema() -> serde_json::Value {
    let mut schema = schemars::generate::SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<File>();
    schema.insert("title".to_owned(), "tollgate configuration".into());
    schema.to_value()
}
