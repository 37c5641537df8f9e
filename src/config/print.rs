//! Prints the effective configuration for `check --print`, with defaults and without secrets.

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::configuration::{Config, NamedStore, NamedTable};
use super::document::node::{MASK, masked};
use super::schema::values::shown_duration;
use crate::limiter::{Algorithm, CalendarUnit, Limiter, Lost, OnStoreError, Schedule, WorkerSettings};
use crate::rules::{
    Action, Apply, Charge, Derive, Domain, KeyEntry, LimiterValues, Matcher, Missing, Normaliser, RequestBounds, Rule,
    RuleHeaders, Unmatched,
};
use crate::settings::{BodyField, BodyFormat, Bounds, EntrySource, HeaderFamilies, Repeated, RequestPart};
use crate::store::StoreConfig;

impl Config {
    /// Returns the effective configuration as YAML, with defaults written out and secrets masked. It is a valid
    /// configuration itself.
    #[expect(clippy::missing_panics_doc, reason = "a tree of texts and numbers is always YAML")]
    pub fn effective(&self) -> String {
        let mut tree = tree(self);
        escape(&mut tree);
        let yaml = serde_yaml::to_string(&tree).expect("a tree of texts and numbers is always YAML");
        unmark(&yaml)
    }
}

/// The effective configuration as a tree.
pub(super) fn tree(config: &Config) -> Value {
    let book = &config.book;
    let mut server = json!({
        "grpc": config.server.grpc.to_string(),
        "http": config.server.http.to_string(),
        "admin": config.server.admin.listen.as_ref().map_or("off".to_owned(), ToString::to_string),
        "api_domain": config.server.api.domain,
        "mode": mode(book.shadow),
        "release_entry": book.release_entry,
        "settle_entry": book.settle_entry,
        "drain_delay": shown_duration(config.server.drain.delay),
        "drain_timeout": shown_duration(config.server.drain.timeout),
        "headers": { "rls": families(config.server.rls_headers), "authz": families(config.server.authz_headers), "names": config.server.authz_headers.names },
        "bounds": bounds(&book.bounds, &config.server.bounds),
    });
    if !book.secret.is_development() {
        server["secret"] = MASK.into();
    }
    if config.clear_text_accepted {
        server["clear_text"] = "accepted".into();
    }
    if config.server.admin.token.is_some() {
        server["admin_token"] = MASK.into();
    }
    let api = &config.server.api;
    if let Some(listen) = &api.listen {
        server["api"] = listen.to_string().into();
    }
    match &api.tokens[..] {
        [] => {}
        [_] => server["api_token"] = MASK.into(),
        tokens => server["api_token"] = vec![MASK; tokens.len()].into(),
    }
    let log = &config.server.log;
    let authz = &config.server.authz;
    let entries: Map<String, Value> =
        authz.entries.iter().map(|(name, source)| (name.clone(), entry_source(source))).collect();
    let accepted: Vec<&str> = config.accepted_warnings.iter().map(|kind| kind.name()).collect();
    json!({
        "server": server,
        "stores": named(config.stores.iter().map(|written| (written.name.clone(), store(written)))),
        "limiters": named(book.limiters.iter().map(|written| (written.name.clone(), limiter(written, &book.values, &config.stores)))),
        "lists": named(config.lists.iter().map(|(name, file)| (name.clone(), json!({ "file": file.to_string_lossy() })))),
        "tables": named(config.tables.iter().map(|written| (written.name.clone(), table(written)))),
        "domains": named(book.domains.iter().map(|written| (written.name.clone(), domain(written)))),
        "rules": book.rules.iter().map(rule).collect::<Vec<Value>>(),
        "authz": {
            "domain": authz.domain,
            "trusted_hops": authz.trusted_hops,
            "trust_external_address": authz.trust_external_address,
            "entries": entries,
        },
        "log": {
            "format": if log.json { "json" } else { "text" },
            "refusals_per_second": log.refusals_per_second,
        },
        "check": { "accept": accepted },
    })
}

fn named(entries: impl Iterator<Item = (String, Value)>) -> Value {
    Value::Object(entries.collect())
}

fn mode(shadow: bool) -> &'static str {
    if shadow { "shadow" } else { "enforce" }
}

fn bounds(of_request: &RequestBounds, bounds: &Bounds) -> Value {
    json!({
        "descriptors": of_request.descriptors,
        "entries": of_request.entries,
        "checks": of_request.checks,
        "message_bytes": bounds.message_bytes,
        "headers": bounds.headers,
        "header_bytes": bounds.header_bytes,
        "body_bytes": bounds.body_bytes,
        "authz_body_bytes": bounds.authz_body_bytes,
        "unfinished_bytes_per_connection": bounds.unfinished_bytes_per_connection,
        "unfinished_bytes": bounds.unfinished_bytes,
        "requests": bounds.requests,
        "connections": bounds.connections,
        "streams": bounds.streams,
        "head_timeout": shown_duration(bounds.head_timeout),
        "request_timeout": shown_duration(bounds.request_timeout),
        "idle_timeout": bounds.idle_timeout.map_or("off".to_owned(), shown_duration),
        "max_wait": shown_duration(bounds.max_wait),
        "waiters": bounds.waiters,
    })
}

fn families(families: HeaderFamilies) -> Value {
    json!({
        "x_ratelimit": families.x_ratelimit,
        "ietf": families.ietf,
        "retry_after": families.retry_after,
        "problem_json": families.problem_json,
    })
}

fn entry_source(source: &EntrySource) -> Value {
    let mut table = match &source.from {
        RequestPart::Header(name) => json!({ "header": name }),
        RequestPart::Cookie(name) => json!({ "cookie": name }),
        RequestPart::Query(name) => json!({ "query": name }),
        RequestPart::Context(name) => json!({ "context": name }),
        RequestPart::Metadata { namespace, path } => {
            let short = !namespace.contains(':') && !path.iter().any(|key| key.contains('.'));
            match short {
                true => json!({ "metadata": format!("{namespace}:{}", path.join(".")) }),
                false => json!({ "metadata": { "namespace": namespace, "path": path } }),
            }
        }
        RequestPart::Principal => json!({ "principal": true }),
        RequestPart::Body(fields) if source.default.is_none() => return fields.iter().map(body_field).collect(),
        RequestPart::Body(fields) => fields.first().map_or_else(|| json!({}), body_field),
    };
    if let Some(default) = &source.default {
        table["default"] = default.as_str().into();
    }
    if source.from.repeats() {
        let word = match source.repeated {
            Repeated::Deny => "deny",
            Repeated::First => "first",
            Repeated::Last => "last",
            Repeated::Join => "join",
        };
        table["repeated"] = word.into();
    }
    table
}

fn body_field(field: &BodyField) -> Value {
    let mut table = match &field.format {
        BodyFormat::Json(path) => {
            let escaped = path.iter().map(|name| format!("/{}", name.replace('~', "~0").replace('/', "~1")));
            json!({ "json": escaped.collect::<String>() })
        }
        BodyFormat::Form(name) => json!({ "form": name }),
    };
    if field.absent_if_unreadable {
        table["unreadable"] = "absent".into();
    }
    table
}

fn store(store: &NamedStore) -> Value {
    let mut table = json!({ "engine": store.config.kind(), "timeout": shown_duration(store.timeout) });
    if let StoreConfig::Memory(settings) = &store.config {
        table["max_memory"] = settings.max_memory.into();
        if let Some(keys) = settings.max_keys {
            table["max_keys"] = keys.into();
        }
        if let Some(snapshot) = &store.snapshot {
            table["snapshot"] = snapshot.path.to_string_lossy().into();
            table["snapshot_interval"] = shown_duration(snapshot.interval).into();
        }
    }
    if let Some(url) = &store.url {
        table["url"] = shown(&url.0).into();
    }
    for (key, written) in &store.options {
        // As written: a number, a boolean, or a text in quotes.
        table[*key] = serde_json::from_str(written).unwrap_or_else(|_| written.as_str().into());
    }
    table
}

/// A URL without its credentials. A text that is not a URL may be a secret, so all of it is masked.
fn shown(url: &str) -> Cow<'_, str> {
    if url.contains("://") { masked(url) } else { MASK.into() }
}

fn limiter(limiter: &Limiter, values: &[LimiterValues], stores: &[NamedStore]) -> Value {
    let values = values.iter().find(|values| values.limiter == limiter.name).map_or(&[][..], |values| &values.of);
    let mut table = Map::new();
    let mut set = |key: &str, value: Value| table.insert(key.to_owned(), value);
    match &limiter.quota {
        None => {
            set("algorithm", "concurrency".into());
        }
        Some(quota) => {
            let algorithm = match &quota.algorithm {
                Algorithm::TokenBucket { .. } => "token_bucket",
                Algorithm::SlidingWindow => "sliding_window",
                Algorithm::SlidingCounter => "sliding_counter",
                Algorithm::FixedWindow(_) => "fixed_window",
                Algorithm::Distinct { .. } => "distinct",
            };
            set("algorithm", algorithm.into());
            set("limit", quota.limit.into());
            if !quota.follows_calendar() {
                set("window", shown_duration(quota.window).into());
            }
            match &quota.algorithm {
                Algorithm::TokenBucket { burst, max_debt } => {
                    set("burst", burst.unwrap_or(quota.limit).into());
                    if let Some(debt) = max_debt {
                        set("max_debt", (*debt).into());
                    }
                }
                Algorithm::FixedWindow(Schedule::Epoch) => {
                    set("alignment", "epoch".into());
                }
                Algorithm::FixedWindow(Schedule::FirstHit) => {
                    set("alignment", "first_hit".into());
                }
                Algorithm::FixedWindow(Schedule::Calendar(calendar)) => {
                    let unit = match calendar.unit {
                        CalendarUnit::Hour => "hour",
                        CalendarUnit::Day => "day",
                        CalendarUnit::Week => "week",
                        CalendarUnit::Month => "month",
                        CalendarUnit::Year => "year",
                    };
                    set("calendar", unit.into());
                    set("timezone", calendar.zone.iana_name().unwrap_or("UTC").into());
                }
                Algorithm::Distinct { of } => {
                    let written = |entry: &String| values.iter().find(|part| part.entry == *entry);
                    let part = |entry: &String| written(entry).map_or_else(|| entry.as_str().into(), key_part);
                    set("of", of.iter().map(part).collect::<Vec<Value>>().into());
                }
                Algorithm::SlidingWindow | Algorithm::SlidingCounter => {}
            }
            set("override", limiter.overridable.into());
        }
    }
    if let Some(slots) = limiter.concurrency {
        set("max_concurrent", slots.max.into());
        set("lease", shown_duration(Duration::from_micros(slots.lease)).into());
    }
    let on_store_error = match limiter.on_store_error {
        OnStoreError::Allow => "allow",
        OnStoreError::Deny => "deny",
        OnStoreError::Local => "local",
    };
    set("on_store_error", on_store_error.into());
    let WorkerSettings { direct, wait, timeout, queue } = limiter.workers;
    set("direct", direct.into());
    set("wait", wait.into());
    set("queue", queue.into());
    if let Some(timeout) = timeout {
        set("timeout", shown_duration(timeout).into());
    }
    if let Some(store) = stores.get(usize::from(limiter.store)) {
        set("store", store.name.as_str().into());
    }
    Value::Object(table)
}

fn domain(domain: &Domain) -> Value {
    let rewritings = domain.normalise.iter().map(|(entry, list)| (entry.clone(), words(list).into()));
    let mut table = json!({
        "unmatched": match domain.unmatched { Unmatched::Allow => "allow", Unmatched::Deny => "deny" },
        "mode": mode(domain.shadow),
        "normalise": named(rewritings),
        "addresses": domain.addresses,
    });
    if !domain.derive.is_empty() {
        table["derive"] = named(domain.derive.iter().map(|written| (written.entry.clone(), derive(written))));
    }
    if let Some(entries) = &domain.entries {
        table["entries"] = entries.as_slice().into();
    }
    table
}

fn table(written: &NamedTable) -> Value {
    let mut table = json!({ "file": written.file.to_string_lossy(), "by": written.by });
    if written.hashed {
        table["hashed"] = "sha256".into();
    }
    table
}

fn derive(derive: &Derive) -> Value {
    let mut table = json!({ "table": derive.table.name(), "from": derive.from, "column": derive.column });
    if let Some(otherwise) = &derive.otherwise {
        table["otherwise"] = otherwise.as_str().into();
    }
    table
}

fn words(list: &[Normaliser]) -> Vec<&'static str> {
    // The cut of addresses has a key of its own.
    list.iter().filter(|step| !matches!(step, Normaliser::Ipv6Prefix(_))).map(|step| step.word()).collect()
}

fn rule(rule: &Rule) -> Value {
    let mut table = json!({
        "domain": rule.domain,
        "name": rule.name,
        "match": named(rule.matches.iter().map(|(entry, test)| (entry.clone(), matcher(test)))),
    });
    match &rule.action {
        Action::Apply(applies) => table["apply"] = applies.iter().map(apply).collect::<Vec<Value>>().into(),
        Action::Allow => table["action"] = "allow".into(),
        Action::Deny => table["action"] = "deny".into(),
    }
    if rule.skip_absent {
        table["missing"] = "skip".into();
    }
    table["final"] = rule.last.into();
    match rule.enforce_percent {
        Some(percent) => table["enforce_percent"] = percent.into(),
        None => table["mode"] = mode(rule.shadow).into(),
    }
    if let Some(status) = rule.refusal.status {
        table["status"] = status.into();
    }
    if let Some(body) = &rule.refusal.body {
        table["body"] = body.as_str().into();
    }
    if let Some(kind) = &rule.refusal.content_type {
        table["content_type"] = kind.as_str().into();
    }
    // An allowing rule has nothing to show.
    if !matches!(rule.action, Action::Allow) {
        table["headers"] = match rule.headers {
            RuleHeaders::None => "none",
            RuleHeaders::RetryAfter => "retry_after",
            RuleHeaders::All => "all",
        }
        .into();
    }
    table
}

fn matcher(matcher: &Matcher) -> Value {
    match matcher {
        Matcher::Present => "*".into(),
        Matcher::Exact(text) => text.replace('*', "\\*").into(),
        Matcher::Pattern(pattern) => pattern.to_string().into(),
        Matcher::Cidr(block) => block.to_string().into(),
        Matcher::List(list) => json!({ "list": list.name() }),
        Matcher::AnyOf(any) => any.iter().map(self::matcher).collect::<Vec<Value>>().into(),
        Matcher::Not(not) => json!({ "not": self::matcher(not) }),
    }
}

/// Marks, characters and YAML escapes. The writer follows YAML 1.1, in which some of these characters break lines; the
/// parser follows YAML 1.2, in which they do not. Each is written as DEL and a mark, because DEL makes the writer quote
/// and escape the text. DEL and backslash are marked too, so that no other text looks like a mark.
const MARKED: [(char, char, &str); 5] = [
    ('N', '\u{85}', r"\N"),
    ('L', '\u{2028}', r"\L"),
    ('P', '\u{2029}', r"\P"),
    ('D', '\u{7f}', r"\x7F"),
    ('B', '\\', r"\\"),
];

/// Escapes texts and keys, so that they are not expanded when the file is read.
fn escape(value: &mut Value) {
    match value {
        // A file has two dollar signs for one.
        Value::String(text) => *text = marked(&text.replace('$', "$$")),
        Value::Array(items) => items.iter_mut().for_each(escape),
        Value::Object(entries) => {
            let escaped = std::mem::take(entries).into_iter().map(|(key, mut value)| {
                escape(&mut value);
                // In keys, only ${ is expanded.
                let key = if key.contains("${") { key.replace('$', "$$") } else { key };
                (marked(&key), value)
            });
            *entries = escaped.collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

fn marked(text: &str) -> String {
    let mark = |c| MARKED.iter().find(|(_, character, _)| c == *character).map(|(mark, ..)| ['\u{7f}', *mark]);
    text.chars().fold(String::with_capacity(text.len()), |mut marked, c| {
        match mark(c) {
            Some(mark) => marked.extend(mark),
            None => marked.push(c),
        }
        marked
    })
}

fn unmark(yaml: &str) -> String {
    let mut parts = yaml.split(r"\x7F");
    let mut unmarked = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let found = MARKED.iter().find_map(|(mark, _, escape)| Some((part.strip_prefix(*mark)?, escape)));
        let (rest, escape) = found.expect("a mark follows every DEL");
        unmarked.push_str(escape);
        unmarked.push_str(rest);
    }
    unmarked
}

fn apply(apply: &Apply) -> Value {
    let mut table = json!({
        "limiter": apply.limiter,
        "key": apply.key.iter().map(key_part).collect::<Vec<Value>>(),
        "charge": match apply.charge {
            Charge::Admitted => "admitted",
            Charge::Own => "own",
            Charge::Always => "always",
        },
        "overdraw": apply.overdraw,
        "missing": match apply.missing {
            Missing::Skip => "skip",
            Missing::Deny => "deny",
            Missing::Empty => "empty",
        },
    });
    if let Some(hold) = apply.hold {
        table["hold"] = shown_duration(hold.length).into();
        table["lost"] = if hold.lost == Lost::Release { "release" } else { "charge" }.into();
    }
    if let Some(otherwise) = &apply.otherwise {
        table["otherwise"] = otherwise.as_str().into();
    }
    table
}

fn key_part(part: &KeyEntry) -> Value {
    if part.normalise.is_empty() {
        return part.entry.as_str().into();
    }
    let mut table = json!({ "entry": part.entry, "normalise": words(&part.normalise) });
    let prefix = part.normalise.iter().find_map(|normaliser| match normaliser {
        Normaliser::Ipv6Prefix(bits) => Some(*bits),
        _ => None,
    });
    if let Some(bits) = prefix {
        table["ipv6_prefix"] = bits.into();
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::config::SourceText;
    use crate::config::schema::File;
    use crate::config::schema::decode::Decode;

    #[test]
    fn unusual_line_breaks_survive_printing_and_reading() {
        let text = "a\u{2028}b\u{7f}N\u{85}c\u{2029}$\\x7FL \u{7f}";
        let read = |name: &str, text: String| {
            let source = SourceText { name: name.to_owned(), text };
            Config::read(&[source], &|_| None).expect("it is accepted")
        };
        let rule = json!([{ "domain": "edge", "name": "odd", "action": "deny", "body": text.replace('$', "$$") }]);
        let config = read("odd.yaml", format!("rules: {rule}"));
        assert_eq!(config.book.rules[0].refusal.body.as_deref(), Some(text));
        assert_eq!(read("printed.yaml", config.effective()).book.rules[0].refusal.body.as_deref(), Some(text));
    }

    /// Configurations that have all keys of the schema together.
    const EVERY_KEY: [&str; 5] = [
        "server:
  secret: sixteen letters and more
  clear_text: accepted
  admin_token: sixteen letters and more
  api: 127.0.0.1:9091
  api_token: sixteen letters and more
check: { accept: [unused_limiter] }
authz:
  entries:
    a: { header: x-a, default: none }
    b: { cookie: b }
    c: { query: c }
    d: { context: d }
    e: { metadata: 'f:g' }
    g: { metadata: { namespace: f, path: [a.b] } }
    h: { principal: true }
domains:
  edge: { entries: [tier, account, remote_address] }
stores:
  main: { engine: memory, max_keys: 7, snapshot: kept }
limiters:
  api_free: { algorithm: token_bucket, limit: 5, window: 1m, max_debt: 3, max_concurrent: 2, timeout: 5 }
  first: { algorithm: fixed_window, limit: 5, window: 1m, alignment: first_hit }
  days: { algorithm: fixed_window, limit: 5, calendar: day, timezone: Europe/Berlin }
rules:
  - domain: edge
    name: all
    match: { tier: '*' }
    apply: [{ limiter: 'api_{tier}', otherwise: api_free, key: [{ entry: remote_address, ipv6_prefix: 56 }], hold: 5m, lost: release }]
    status: 430
    body: stop
    content_type: text/plain
  - { domain: edge, name: some, enforce_percent: 5, apply: [{ limiter: days }] }
  - { domain: edge, name: none, action: deny, match: { tier: gone } }
",
        "stores:
  main:
    engine: redis
    url: rediss://sentinel
    instances: 2
    required: true
    unready_after: 6s
    max_batch: 3
    max_calls: 3
    refusal_cache: 1s
    quota_lease: 5
    mode: sentinel
    sentinel_master: m
    sentinel_username: u
    sentinel_password: p
    db: 3
    username: u
    password: p
    key_prefix: 'k:'
    tls_ca: CERTIFICATE
    tls_certificate: CERTIFICATE
    tls_key: PRIVATE_KEY
    tls_server_name: n
    pool_min_size: 1
    pool_max_size: 9
    timing_margin_ms: 5
    socket_timeout: 1
    socket_connect_timeout: 1
",
        "stores: { main: { engine: redis, url: 'redis://node', mode: cluster, hash_tag: account } }\n",
        "stores:
  main:
    engine: postgres
    url: postgres://u@h/d
    table_name: a
    schema_name: b
    auto_create: false
    unlogged: true
    synchronous_commit: false
",
        "lists: { office: { file: LIST } }
tables: { keys: { file: TABLE, by: api_key, hashed: sha256 } }
authz:
  domain: edge
  entries:
    api_key: { header: x-api-key }
    i: { json: /user/name, unreadable: absent }
    j: { form: username }
domains:
  edge: { derive: { account: { table: keys, from: api_key, column: account, otherwise: none } } }
limiters:
  accounts:
    algorithm: distinct
    of: [{ entry: i, normalise: [lowercase] }, { entry: remote_address, ipv6_prefix: 56 }]
    limit: 5
    window: 1m
rules:
  - { domain: edge, name: a, match: { account: a }, action: deny, missing: skip }
",
    ];

    /// Collects the paths of all keys in a tree, with `*` for names and `[]` for list items.
    fn paths(path: &str, value: &Value, found: &mut BTreeSet<String>) {
        let named = [
            "stores",
            "limiters",
            "lists",
            "tables",
            "domains",
            "authz.entries",
            "rules[].match",
            "domains.*.normalise",
            "domains.*.derive",
        ];
        match value {
            Value::Object(entries) => {
                for (key, value) in entries {
                    let key = if named.contains(&path) { "*" } else { key };
                    let path = if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") };
                    found.insert(path.clone());
                    paths(&path, value, found);
                }
            }
            // An entry has one source or several.
            Value::Array(items) if path == "authz.entries.*" => items.iter().for_each(|item| paths(path, item, found)),
            Value::Array(items) => items.iter().for_each(|item| paths(&format!("{path}[]"), item, found)),
            _ => {}
        }
    }

    #[test]
    fn exactly_the_keys_of_the_schema_are_printed_except_those_marked_as_unprinted() {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = |name: &str, content: String| {
            let path = directory.path().join(name);
            std::fs::write(&path, content).expect("a file in the test's directory");
            path.display().to_string()
        };
        let key = rcgen::KeyPair::generate().expect("a key");
        let certificate = rcgen::CertificateParams::default().self_signed(&key).expect("a certificate");
        let (certificate, key) = (file("c.pem", certificate.pem()), file("k.pem", key.serialize_pem()));
        let list = file("list.txt", "192.0.2.7".to_owned());
        let table = file("table.csv", format!("api_key,account\n{},a\n", "0123456789abcdef".repeat(4)));
        let mut printed = BTreeSet::new();
        for text in EVERY_KEY {
            let text = text.replace("CERTIFICATE", &certificate).replace("PRIVATE_KEY", &key);
            let text = text.replace("LIST", &list).replace("TABLE", &table);
            let source = SourceText { name: "every_key.yaml".to_owned(), text };
            paths("", &tree(&Config::read(&[source], &|_| None).expect("it is accepted")), &mut printed);
        }
        printed.retain(|path| !path.ends_with('*'));
        let mut keys = Vec::new();
        File::keys("", &mut keys);
        let declared = keys.into_iter().filter(|(_, key)| key.unprinted.is_none());
        let declared: BTreeSet<String> = declared.map(|(path, _)| path).collect();
        let both = |found: &BTreeSet<String>, other: &BTreeSet<String>| -> Vec<String> {
            found.difference(other).cloned().collect()
        };
        assert_eq!(both(&declared, &printed), [""; 0], "keys that are not printed");
        assert_eq!(both(&printed, &declared), [""; 0], "printed keys that the schema does not have");
    }
}
