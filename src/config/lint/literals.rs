//! Warnings about the literals that rules compare values with.

use std::borrow::Cow;

use ipnet::IpNet;

use super::checked::Checked;
use crate::config::document::problem::{Location, Problems, nearest};
use crate::config::document::warning::WarningKind;
use crate::config::schema;
use crate::config::schema::decode::Located;
use crate::rules::{Form, Forms, Matcher, Normaliser};

/// A literal in the `match` of a rule.
struct Literal<'a> {
    entry: &'a str,
    text: &'a str,
    location: &'a Location,
    forms: &'a Forms,
}

/// A kind of warning and the reason that follows the literal.
type Found = Option<(WarningKind, String)>;

/// The warnings about one literal. Only the first that is due is given.
const WARNINGS: [fn(&Literal<'_>) -> Found; 9] = [
    outer_space,
    query_in_path,
    regular_expression,
    path_template,
    relative_path,
    unknown_method,
    host_bits,
    unicode_host,
    loose_host,
];

/// Warns of literals that are probably not meant.
pub(super) fn literals(checked: &Checked<'_>, problems: &mut Problems) {
    for (written, rule) in checked.rules() {
        let forms = checked.forms(&rule.domain);
        for item in written.matches.named() {
            let Some(test) = &item.value else { continue };
            visit(test, &item.location, &mut |text, location| {
                let literal = Literal { entry: &item.name, text, location, forms };
                if let Some((kind, reason)) = WARNINGS.iter().find_map(|warning| warning(&literal)) {
                    problems.warn(kind, location, reason);
                }
            });
        }
    }
}

/// Visits the literals of a test, also in lists and below `not`.
fn visit(test: &schema::Match, location: &Location, each: &mut impl FnMut(&str, &Location)) {
    match test {
        schema::Match::Text(text) => each(text, location),
        schema::Match::Any(any) => any.iter().for_each(|Located { value, location }| visit(value, location, each)),
        schema::Match::List(_) => {}
        schema::Match::Not(not) => visit(&not.value, &not.location, each),
    }
}

impl Literal<'_> {
    /// Whether the values have this form, or the name of an entry that has it.
    fn is(&self, name: &str, step: Normaliser) -> bool {
        self.entry.trim_start_matches(':') == name || self.forms.get(self.entry).is_some_and(|form| form.has(step))
    }

    fn is_path(&self) -> bool {
        self.is("path", Normaliser::Path)
    }

    fn is_host(&self) -> bool {
        self.is("host", Normaliser::Host) || self.entry.trim_start_matches(':') == "authority"
    }

    fn is_method(&self) -> bool {
        self.is("method", Normaliser::Method)
    }

    /// The end of a reason: what to write instead. It is left out if the literal came from a variable, whose value may
    /// be a secret.
    fn instead(&self, text: &str) -> String {
        match self.location.shown == format!("{:?}", self.text) {
            true => format!("; write {text:?}"),
            false => String::new(),
        }
    }
}

/// White space around a literal whose values keep theirs.
fn outer_space(literal: &Literal<'_>) -> Found {
    let trimmed = literal.text.trim();
    let form = |text: &str| literal.forms.literal(literal.entry, &Matcher::parse(text)).ok();
    if trimmed == literal.text || form(trimmed) == form(literal.text) {
        return None;
    }
    let instead = literal.instead(trimmed);
    Some((WarningKind::OuterSpace, format!("with white space at an end, which few values have{instead}")))
}

/// A path with a query or a fragment, which normalising removes.
fn query_in_path(literal: &Literal<'_>) -> Found {
    let normalised = literal.forms.get(literal.entry).is_some_and(|form| form.has(Normaliser::Path));
    if !normalised || !literal.text.contains(['?', '#']) || literal.text.starts_with('^') || literal.text.contains("(?")
    {
        return None;
    }
    let instead = literal.instead(&crate::rules::path(literal.text));
    let reason = format!("whose query is removed, so that it matches the path with any query{instead}");
    Some((WarningKind::QueryInPath, reason))
}

fn regular_expression(literal: &Literal<'_>) -> Found {
    if literal.forms.get(literal.entry).is_some_and(Form::is_address) {
        return None;
    }
    let path = literal.is_path();
    let plain = path || literal.is_host() || literal.is_method();
    let sign = regular_sign(literal.text, plain, path)?;
    let pattern = as_pattern(literal.text);
    // What is left of an expression would still be compared as text.
    let rest = pattern.contains(['(', ')', '[', ']', '?', '+', '^', '$', '|', '\\']);
    let instead = match regular_sign(&pattern, plain, path) {
        None if pattern != literal.text && !rest => literal.instead(&pattern),
        _ => "; write a pattern such as \"/api/*\", or a list".to_owned(),
    };
    let reason = format!("which looks like a regular expression for its {sign:?}: only * is special here{instead}");
    Some((WarningKind::RegularExpression, reason))
}

/// What makes a text look like a regular expression. Some signs count only where values have no such characters, or in
/// paths: `api.*` is a pattern of hosts.
fn regular_sign(text: &str, plain: bool, path: bool) -> Option<&'static str> {
    const ESCAPES: [&str; 8] = [r"\.", r"\/", r"\-", r"\(", r"\)", r"\?", r"\+", r"\["];
    const CLASSES: [&str; 4] = [r"\d", r"\w", r"\s", r"\b"];
    let letter = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    // Whether a sign occurs with these neighbours.
    let occurs = |sign: &str, fits: &dyn Fn(Option<char>, Option<char>) -> bool| {
        text.match_indices(sign)
            .any(|(start, _)| fits(text[..start].chars().next_back(), text[start + sign.len()..].chars().next()))
    };
    if text.starts_with('^') {
        return Some("^");
    }
    if text.contains("(?") {
        return Some("(?");
    }
    if let Some(escape) = ESCAPES.into_iter().find(|escape| text.contains(escape)) {
        return Some(escape);
    }
    // `DOMAIN\dave` is an account.
    if let Some(class) = CLASSES.into_iter().find(|class| occurs(class, &|_, after| !letter(after))) {
        return Some(class);
    }
    if has_character_class(text) {
        return Some("[]");
    }
    let group =
        text.split_once('(').and_then(|(_, rest)| rest.split_once(')')).is_some_and(|(inside, _)| inside.contains('|'));
    if group || plain && text.contains('|') {
        return Some("|");
    }
    // `*.*` is a pattern, and `/index.**` is how one says that `/index.*` is meant.
    let star = |before: Option<char>, after: Option<char>| {
        before != Some('*') && after != Some('*') && (path || !letter(before))
    };
    if occurs(".*", &star) {
        return Some(".*");
    }
    if occurs(".+", &|before, after| !letter(after) && (plain || !letter(before))) {
        return Some(".+");
    }
    (plain && text.len() > 1 && text.ends_with('$')).then_some("$")
}

/// Whether a text has a range or a negated set in brackets: `[a-z]`, `[^/]`. An IPv6 address in brackets has neither.
fn has_character_class(text: &str) -> bool {
    let Some((_, inside)) = text.split_once('[') else { return false };
    let Some((inside, _)) = inside.split_once(']') else { return false };
    let characters: Vec<char> = inside.chars().collect();
    let range = |range: &[char]| range[1] == '-' && range[0].is_alphanumeric() && range[2].is_alphanumeric();
    characters.first() == Some(&'^') || characters.windows(3).any(range)
}

/// The pattern that is probably meant by a regular expression.
fn as_pattern(text: &str) -> String {
    let text = text.strip_prefix('^').unwrap_or(text);
    let text = text.strip_suffix('$').unwrap_or(text);
    let wild = [".*", ".+", "[^/]*", "[^/]+", r"\d+", r"\w+"];
    let text = wild.iter().fold(text.to_owned(), |text, wild| text.replace(wild, "*"));
    text.replace(r"\.", ".").replace(r"\/", "/").replace(r"\-", "-")
}

/// A path with `{id}`, `:id` or `<id>` for a part.
fn path_template(literal: &Literal<'_>) -> Found {
    let placeholder = |part: &&str| {
        let named = |rest: &str| rest.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
        let inside = |open, close| part.strip_prefix(open).and_then(|rest: &str| rest.strip_suffix(close));
        part.strip_prefix(':').or_else(|| inside('{', '}')).or_else(|| inside('<', '>')).is_some_and(named)
    };
    let part = literal.text.split('/').find(placeholder).filter(|_| literal.is_path())?;
    let pattern = match part.strip_prefix('{').and_then(|part| part.strip_suffix('}')) {
        Some(several) if several.contains(',') => {
            let each = several.split(',').map(|one| literal.text.replace(part, one.trim()));
            format!("{:?}", each.collect::<Vec<_>>())
        }
        _ => {
            let parts = literal.text.split('/').map(|part| if placeholder(&part) { "*" } else { part });
            format!("{:?}", parts.collect::<Vec<_>>().join("/"))
        }
    };
    let instead = match literal.instead("").is_empty() {
        true => String::new(),
        // Every path matches this.
        false if pattern == "\"/*\"" => "; write the paths that are meant".to_owned(),
        false => format!("; write {pattern}"),
    };
    let part = if instead.is_empty() { "a part" } else { part };
    Some((WarningKind::PathTemplate, format!("where {part} is compared as text: only * is special here{instead}")))
}

fn relative_path(literal: &Literal<'_>) -> Found {
    let text = literal.text;
    if !literal.is_path() || text.starts_with(['/', '*']) || text.starts_with(r"\*") {
        return None;
    }
    let normalised = literal.forms.get(literal.entry).is_some_and(|form| form.has(Normaliser::Path));
    let pattern = text.contains('*');
    let path = if pattern { Cow::Owned(format!("/{text}")) } else { crate::rules::path(text) };
    let instead = literal.instead(&path);
    let reason = match normalised {
        true => format!("which is compared as if it began with a slash, since every path does{instead}"),
        false => format!("which no path is: every path begins with a slash{instead}"),
    };
    Some((WarningKind::RelativePath, reason))
}

/// The methods of HTTP and WebDAV, and those of caches and of UPnP.
const METHODS: [&str; 31] = [
    "GET",
    "HEAD",
    "POST",
    "PUT",
    "DELETE",
    "CONNECT",
    "OPTIONS",
    "TRACE",
    "PATCH",
    "QUERY",
    "PROPFIND",
    "PROPPATCH",
    "MKCOL",
    "COPY",
    "MOVE",
    "LOCK",
    "UNLOCK",
    "REPORT",
    "SEARCH",
    "MKCALENDAR",
    "ACL",
    "BIND",
    "LINK",
    "UNLINK",
    "PURGE",
    "BAN",
    "REFRESH",
    "NOTIFY",
    "SUBSCRIBE",
    "UNSUBSCRIBE",
    "M-SEARCH",
];

fn unknown_method(literal: &Literal<'_>) -> Found {
    if !literal.is_method() || literal.text.contains('*') {
        return None;
    }
    let method = literal.text.trim().to_uppercase();
    if METHODS.contains(&method.as_str()) {
        return None;
    }
    if method.contains([',', ' ', '|', '/', ';']) {
        let list: Vec<&str> = method.split([',', ' ', '|', '/', ';']).filter(|part| !part.is_empty()).collect();
        let instead =
            if literal.instead("").is_empty() { "; write a list".to_owned() } else { format!("; write {list:?}") };
        return Some((WarningKind::UnknownMethod, format!("which no method is{instead}")));
    }
    let near = nearest(&method, METHODS)?;
    Some((WarningKind::UnknownMethod, format!("which is no usual method; did you mean {near:?}?")))
}

/// A block of addresses with bits after its prefix.
fn host_bits(literal: &Literal<'_>) -> Found {
    let block: IpNet = literal.text.parse().ok().filter(|_| literal.text.contains('/'))?;
    let whole = block.trunc();
    let instead = literal.instead(&whole.to_string());
    let reason = format!("with bits after its length, which counts as the whole block{instead}, or correct the length");
    (block != whole).then_some((WarningKind::HostBits, reason))
}

/// A host with letters outside ASCII, which clients send in another form.
fn unicode_host(literal: &Literal<'_>) -> Found {
    let unicode = literal.is_host() && !literal.text.is_ascii();
    unicode.then(|| {
        let reason = "with letters that clients send in ASCII form; write that, which begins with \"xn--\"";
        (WarningKind::UnicodeHost, reason.to_owned())
    })
}

/// A pattern of hosts without the dot between a name and the wildcard.
fn loose_host(literal: &Literal<'_>) -> Found {
    if !literal.is_host() {
        return None;
    }
    let name = |text: &str| text.contains('.') && !text.contains('*');
    let text = literal.text;
    let (known, other) = if let Some(name) = text.strip_prefix('*').filter(|rest| name(rest)) {
        let first = name.starts_with(char::is_alphanumeric);
        (name, first.then(|| format!("other{name}"))?)
    } else {
        let name = text.strip_suffix('*').filter(|rest| name(rest))?;
        let last = name.rsplit('.').next().is_some_and(|last| last.len() >= 2 && last.chars().all(char::is_alphabetic));
        (name, last.then(|| format!("{name}.other.example"))?)
    };
    let instead = match (literal.instead("").is_empty(), text.starts_with('*')) {
        (true, _) => String::new(),
        (false, true) => format!(", such as {other:?}; write [{known:?}, \"*.{known}\"]"),
        (false, false) => format!(", such as {other:?}; write {known:?}"),
    };
    Some((WarningKind::LooseHost, format!("which other domains match too{instead}")))
}
