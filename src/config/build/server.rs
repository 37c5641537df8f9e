//! Builds the settings of the ports, of ext_authz, of the log and of the whole process.

use crate::config::document::problem::{Location, Problems};
use crate::config::document::warning::WarningKind;
use crate::config::schema;
use crate::config::schema::decode::{Field, Located, SchemaTable};
use crate::config::schema::values::{Hidden, Item, Switch, shown_size};
use crate::rules::{RequestBounds, RuleBook};
use crate::secret::Secret;
use crate::settings::{
    AuthzSettings, BodyField, BodyFormat, Bounds, EntrySource, HeaderFamilies, Listen, Log, Repeated, RequestPart,
    Settings, Token,
};

/// The entries that ext_authz requests have without configuration.
pub(in crate::config) const FIXED_ENTRIES: [&str; 4] = ["remote_address", "method", "path", "host"];

/// Builds the settings.
pub(in crate::config) fn server(file: &schema::File, problems: &mut Problems) -> Settings {
    let mut settings = Settings::default();
    if let Some(server) = file.server.get() {
        if let Some(grpc) = server.grpc.get() {
            settings.grpc = grpc.0.clone();
        }
        if let Some(http) = server.http.get() {
            settings.http = http.0.clone();
            if settings.http == settings.grpc && !takes_any_port(&http.0) {
                problems.refuse(&http.location, "but server.grpc has the same address; expected another address");
            }
        }
        set_admin(&mut settings, server, problems);
        set_api(&mut settings, server, problems);
        if let Some(delay) = server.drain_delay.copied() {
            settings.drain.delay = delay.0;
        }
        if let Some(timeout) = server.drain_timeout.copied() {
            settings.drain.timeout = timeout.0;
        }
        if let Some(headers) = server.headers.get() {
            set_families(&mut settings.rls_headers, &headers.rls);
            set_families(&mut settings.authz_headers, &headers.authz);
            if let Some(names) = headers.names.copied() {
                settings.rls_headers.names = names.0;
                settings.authz_headers.names = names.0;
            }
        }
    }
    if let Some(written) = file.server.get().and_then(|server| server.bounds.get()) {
        settings.bounds = bounds(written, problems);
    }
    settings.log = log(file);
    if let Some(written) = file.authz.get() {
        settings.authz = authz(written, problems);
    }
    settings
}

/// Sets the admin port. It must not reveal identities to other machines without a token.
fn set_admin(settings: &mut Settings, server: &schema::Server, problems: &mut Problems) {
    settings.admin.token = server.admin_token.get().map(|written| token(written, problems));
    let Some(written) = server.admin.get() else { return };
    settings.admin.listen.clone_from(&written.0);
    settings.admin.chosen = true;
    let Some(listen) = &written.0 else { return };
    if !takes_any_port(listen) && [&settings.grpc, &settings.http].contains(&listen) {
        problems
            .refuse(&written.location, "but server.grpc or server.http has the same address; expected another address");
    }
    needs_token(listen, &written.location, &server.admin_token, "server.admin_token", problems);
}

/// Sets the API of workers. It must not let other machines charge limits without a token.
fn set_api(settings: &mut Settings, server: &schema::Server, problems: &mut Problems) {
    if let Some(written) = server.api_token.get() {
        settings.api.tokens = written.0.iter().map(|written| token(written, problems)).collect();
    }
    if let Some(domain) = server.api_domain.get() {
        if domain.is_empty() {
            problems.refuse(&domain.location, "expected the name of a domain");
        }
        settings.api.domain.clone_from(&domain.value);
    }
    let Some(written) = server.api.get() else { return };
    let listen = &written.0;
    settings.api.listen = Some(listen.clone());
    let others = [
        (Some(&settings.grpc), "server.grpc"),
        (Some(&settings.http), "server.http"),
        (settings.admin.listen.as_ref(), "server.admin"),
    ];
    if let Some((_, key)) = others.into_iter().find(|(other, _)| *other == Some(listen) && !takes_any_port(listen)) {
        // Without an address of its own the API is at the gRPC and HTTP ports.
        let remedy = if key == "server.admin" { "" } else { ", or no such key: without it the API is there" };
        problems.refuse(&written.location, format!("but {key} has the same address; expected another address{remedy}"));
    }
    needs_token(listen, &written.location, &server.api_token, "server.api_token", problems);
}

/// Whether each listener on this address gets a port of its own.
fn takes_any_port(listen: &Listen) -> bool {
    matches!(listen, Listen::Tcp(address) if address.port() == 0)
}

/// Refuses an address that other machines can reach without a token.
fn needs_token<T>(listen: &Listen, location: &Location, token: &Field<T>, key: &str, problems: &mut Problems) {
    let open = matches!(listen, Listen::Tcp(address) if !address.ip().to_canonical().is_loopback());
    if open && token.is_absent() {
        problems.refuse(location, format!("expected {key} too, because other machines can reach this address"));
    }
}

/// Checks a token, which is sent in a header.
fn token(written: &Located<Hidden>, problems: &mut Problems) -> Token {
    let text = &written.0;
    match text.chars().count() {
        0 => problems.refuse(&written.location, "expected at least one character"),
        _ if text.trim() != text || text.chars().any(|letter| !letter.is_ascii_graphic() && letter != ' ') => {
            problems.refuse(&written.location, "expected ASCII without surrounding spaces: it is sent in a header");
        }
        1..16 => {
            let reason = "shorter than 16 characters: it can be guessed";
            problems.warn(WarningKind::WeakSecret, &written.location, reason);
        }
        _ => {}
    }
    Token(text.clone())
}

fn log(file: &schema::File) -> Log {
    let mut log = Log::default();
    if let Some(written) = file.log.get() {
        log.json = written.format.copied() == Some(schema::LogFormat::Json);
        if let Some(lines) = written.refusals_per_second.copied() {
            log.refusals_per_second = u32::try_from(lines.0).unwrap_or(u32::MAX);
        }
    }
    log
}

fn set_families(families: &mut HeaderFamilies, written: &Field<schema::HeaderFamilies>) {
    let Some(written) = written.get() else { return };
    let set = |family: &mut bool, switch: &Field<Switch>| {
        if let Some(switch) = switch.copied() {
            *family = switch.0;
        }
    };
    set(&mut families.x_ratelimit, &written.x_ratelimit);
    set(&mut families.ietf, &written.ietf);
    set(&mut families.retry_after, &written.retry_after);
    set(&mut families.problem_json, &written.problem_json);
}

fn bounds(written: &schema::Bounds, problems: &mut Problems) -> Bounds {
    let default = Bounds::default();
    let bounds = Bounds {
        message_bytes: written.message_bytes.copied().map_or(default.message_bytes, usize::from),
        headers: written.headers.copied().map_or(default.headers, usize::from),
        header_bytes: written.header_bytes.copied().map_or(default.header_bytes, usize::from),
        body_bytes: written.body_bytes.copied().map_or(default.body_bytes, |bytes| bytes.0),
        authz_body_bytes: written.authz_body_bytes.copied().map_or(default.authz_body_bytes, usize::from),
        unfinished_bytes_per_connection: written
            .unfinished_bytes_per_connection
            .copied()
            .map_or(default.unfinished_bytes_per_connection, usize::from),
        unfinished_bytes: written.unfinished_bytes.copied().map_or(default.unfinished_bytes, usize::from),
        requests: written.requests.copied().map_or(default.requests, |count| count.0),
        connections: written.connections.copied().map_or(default.connections, u32::from),
        streams: written.streams.copied().map_or(default.streams, u32::from),
        head_timeout: written.head_timeout.copied().map_or(default.head_timeout, |span| span.0),
        request_timeout: written.request_timeout.copied().map_or(default.request_timeout, |span| span.0),
        idle_timeout: written.idle_timeout.copied().map_or(default.idle_timeout, |span| span.0),
        max_wait: written.max_wait.copied().map_or(default.max_wait, |span| span.0),
        waiters: written.waiters.copied().map_or(default.waiters, u32::from),
    };
    // Each of these bounds must be at least as large as the one before it.
    let [message, connection, all] = [
        (bounds.message_bytes, "message_bytes", &written.message_bytes.location()),
        (
            bounds.unfinished_bytes_per_connection,
            "unfinished_bytes_per_connection",
            &written.unfinished_bytes_per_connection.location(),
        ),
        (bounds.unfinished_bytes, "unfinished_bytes", &written.unfinished_bytes.location()),
    ];
    for ((inner, inner_key, inner_location), (outer, outer_key, outer_location)) in
        [(message, connection), (connection, all)]
    {
        if inner <= outer {
            continue;
        }
        if let Some(location) = outer_location {
            problems.refuse(location, format!("expected at least {inner_key}, which is {}", shown_size(inner as u64)));
        } else if let Some(location) = inner_location {
            problems.refuse(location, format!("expected at most {outer_key}, which is {}", shown_size(outer as u64)));
        }
    }
    bounds
}

fn authz(written: &schema::Authz, problems: &mut Problems) -> AuthzSettings {
    let mut authz = AuthzSettings::default();
    if let Some(domain) = written.domain.get() {
        authz.domain.clone_from(&domain.value);
    }
    if let Some(hops) = written.trusted_hops.copied() {
        authz.trusted_hops = usize::try_from(hops.0).unwrap_or(usize::MAX);
    }
    if let Some(trust) = written.trust_external_address.copied() {
        authz.trust_external_address = trust.0;
    }
    for item in written.entries.named() {
        if FIXED_ENTRIES.contains(&&*item.name) {
            problems.error(item.location.position, &item.location.path, "is a built-in entry, expected another name");
        }
        if let Some(source) = item.value.as_ref().and_then(|written| written_entry(item, written, problems)) {
            authz.entries.push((item.name.clone(), source));
        }
    }
    authz
}

fn written_entry(
    item: &Item<schema::WrittenEntry>,
    written: &schema::WrittenEntry,
    problems: &mut Problems,
) -> Option<EntrySource> {
    let list = match written {
        schema::WrittenEntry::Source(source) => return entry_source(&item.location, source, problems),
        schema::WrittenEntry::Fields(list) => list,
    };
    if list.is_empty {
        problems.refuse(&item.location, "expected { json = ... } or { form = ... } in the list");
    }
    let mut fields: Vec<BodyField> = Vec::new();
    for part in &list.items {
        let source = entry_source(&part.location, part, problems)?;
        let RequestPart::Body(mut more) = source.from else {
            problems.refuse(&part.location, "but only json and form can be in a list; expected one table");
            return None;
        };
        if let Some(default) = part.default.get() {
            problems.refuse(&default.location, "but an entry with a list has no default; expected no such key");
        }
        fields.append(&mut more);
    }
    let is_json = |field: &&BodyField| matches!(field.format, BodyFormat::Json(_));
    if fields.iter().filter(is_json).count() > 1 || fields.iter().filter(|field| !is_json(field)).count() > 1 {
        problems.refuse(&item.location, "expected at most one json and one form: a body has one format");
    }
    (!fields.is_empty()).then(|| EntrySource::from(RequestPart::Body(fields)))
}

fn entry_source(location: &Location, written: &schema::EntrySource, problems: &mut Problems) -> Option<EntrySource> {
    const PARTS: &str = "header, cookie, query, context, metadata, principal, json or form";
    let parts: Vec<_> = written
        .given()
        .into_iter()
        .filter(|(key, _)| !["default", "repeated", "unreadable"].contains(&key.name))
        .collect();
    let fields = [&written.header, &written.cookie, &written.query, &written.context, &written.json, &written.form];
    match parts[..] {
        [_] => {}
        [] => {
            let others_absent = written.metadata.is_absent() && written.principal.is_absent();
            if fields.iter().all(|field| field.is_absent()) && others_absent {
                problems.missing(
                    location.position,
                    &location.path,
                    format!("names no part of the request, expected {PARTS}"),
                );
            }
            return None;
        }
        [(first, _), .., (_, last)] => {
            problems.refuse(last, format!("but {} is given too; expected one of them", first.name));
            return None;
        }
    }
    let named = |field: &Field<String>, problems: &mut Problems| {
        let name = field.get()?;
        if name.is_empty() {
            problems.refuse(&name.location, "expected a name");
        }
        Some(name.value.clone())
    };
    let from = if let Some(header) = written.header.get() {
        let valid = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~:".contains(c);
        if header.is_empty() || !header.chars().all(valid) {
            problems.refuse(&header.location, "expected the name of a header");
        }
        RequestPart::Header(header.to_lowercase())
    } else if let Some(cookie) = named(&written.cookie, problems) {
        RequestPart::Cookie(cookie)
    } else if let Some(query) = named(&written.query, problems) {
        RequestPart::Query(query)
    } else if let Some(context) = named(&written.context, problems) {
        RequestPart::Context(context)
    } else if let Some(metadata) = written.metadata.get() {
        metadata_source(metadata, problems)?
    } else if let Some(pointer) = written.json.get() {
        body_field(BodyFormat::Json(json_path(pointer, problems)), written)
    } else if let Some(name) = named(&written.form, problems) {
        body_field(BodyFormat::Form(name), written)
    } else {
        let principal = written.principal.get()?;
        if !principal.0 {
            problems.refuse(&principal.location, "expected true, or another key");
        }
        RequestPart::Principal
    };
    if let (Some(word), false) = (written.unreadable.get(), matches!(from, RequestPart::Body(_))) {
        problems.refuse(&word.location, "but only json and form can be unreadable; expected no such key");
    }
    let repeated = repeated(&from, &written.repeated, problems);
    Some(EntrySource { from, default: written.default.get().map(|default| default.value.clone()), repeated })
}

fn body_field(format: BodyFormat, written: &schema::EntrySource) -> RequestPart {
    let absent_if_unreadable =
        written.unreadable.get().is_some_and(|word| word.value == schema::UnreadableBody::Absent);
    RequestPart::Body(vec![BodyField { format, absent_if_unreadable }])
}

/// The names that a JSON pointer consists of (RFC 6901).
fn json_path(pointer: &Located<String>, problems: &mut Problems) -> Vec<String> {
    let mut parts = pointer.value.split('/');
    let is_escape = |rest: &str| rest.starts_with(['0', '1']);
    let escaped_well = pointer.value.split('~').skip(1).all(is_escape);
    if parts.next() != Some("") || pointer.value.is_empty() || !escaped_well {
        problems.refuse(&pointer.location, "expected a JSON pointer, such as \"/user/name\"");
    }
    parts.map(|part| part.replace("~1", "/").replace("~0", "~")).collect()
}

/// What counts if a request names the part several times, where it can.
fn repeated(from: &RequestPart, written: &Field<schema::Repeated>, problems: &mut Problems) -> Repeated {
    let Some(word) = written.get() else { return Repeated::default() };
    if !from.repeats() {
        problems.refuse(&word.location, "but only a header, a cookie or a query can be repeated; expected no such key");
    }
    match word.value {
        schema::Repeated::Deny => Repeated::Deny,
        schema::Repeated::First => Repeated::First,
        schema::Repeated::Last => Repeated::Last,
        schema::Repeated::Join => Repeated::Join,
    }
}

fn metadata_source(metadata: &Located<schema::WrittenMetadata>, problems: &mut Problems) -> Option<RequestPart> {
    let text = match &metadata.value {
        schema::WrittenMetadata::Text(text) => text,
        schema::WrittenMetadata::Table(table) => {
            let (namespace, list) = (table.namespace.get()?, table.path.get()?);
            if namespace.is_empty() {
                problems.refuse(&namespace.location, "expected the namespace of a filter");
            }
            if list.items.is_empty() {
                problems.refuse(&list.location, "expected at least one key");
            }
            for key in list.items.iter().filter(|key| key.is_empty()) {
                problems.refuse(&key.location, "expected a key");
            }
            let path = list.items.iter().map(|key| key.value.clone()).collect();
            return Some(RequestPart::Metadata { namespace: namespace.value.clone(), path });
        }
    };
    let split = text.split_once(':').filter(|(namespace, path)| !namespace.is_empty() && !path.is_empty());
    let Some((namespace, path)) = split else {
        problems.refuse(&metadata.location, "expected \"namespace:path.to.value\"");
        return None;
    };
    let path: Vec<String> = path.split('.').map(str::to_owned).collect();
    if path.iter().any(String::is_empty) {
        problems.refuse(&metadata.location, "expected a path without empty parts after the colon");
    }
    Some(RequestPart::Metadata { namespace: namespace.to_owned(), path })
}

/// Builds the rule book with the settings of the whole process, still without limiters and rules.
pub(in crate::config) fn book(file: &schema::File, problems: &mut Problems) -> RuleBook {
    let mut book = RuleBook::default();
    let Some(server) = file.server.get() else { return book };
    if let Some(secret) = server.secret.get() {
        match secret.0.chars().count() {
            0 => problems
                .refuse(&secret.location, "expected at least one character; leave it out for the development default"),
            1..16 => problems.warn(
                WarningKind::WeakSecret,
                &secret.location,
                "shorter than 16 characters: it can be guessed",
            ),
            _ => {}
        }
        book.secret = Secret::new(&secret.0);
    }
    book.shadow = server.mode.copied() == Some(schema::Mode::Shadow);
    for (written, entry) in
        [(&server.release_entry, &mut book.release_entry), (&server.settle_entry, &mut book.settle_entry)]
    {
        let Some(written) = written.get() else { continue };
        if written.is_empty() {
            problems.refuse(&written.location, "expected the name of an entry");
        }
        entry.clone_from(&written.value);
    }
    if let Some(written) = server.settle_entry.get().or(server.release_entry.get())
        && book.release_entry == book.settle_entry
    {
        problems.refuse(&written.location, "but release_entry and settle_entry are the same; expected two names");
    }
    if let Some(bounds) = server.bounds.get() {
        let default = RequestBounds::default();
        book.bounds = RequestBounds {
            descriptors: bounds.descriptors.copied().map_or(default.descriptors, usize::from),
            entries: bounds.entries.copied().map_or(default.entries, usize::from),
            checks: bounds.checks.copied().map_or(default.checks, usize::from),
        };
    }
    book
}
