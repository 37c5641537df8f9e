//! Warnings about the names of entries.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};

use super::checked::Checked;
use crate::config::build::rules::NameTemplate;
use crate::config::build::server::FIXED_ENTRIES;
use crate::config::build::values::counted;
use crate::config::document::node::join;
use crate::config::document::problem::{Location, Problems, nearest};
use crate::config::document::warning::WarningKind;
use crate::config::schema;
use crate::config::schema::decode::Located;
use crate::config::schema::values::Item;
use crate::config::schema::{WrittenEntry, WrittenKeyEntry};
use crate::rules::{Action, Matcher, Missing, Normaliser, similar};

/// The names that Envoy gives to the entries of its rate limit actions, besides those of ext_authz.
const ENVOY_ENTRIES: [&str; 6] =
    ["masked_remote_address", "generic_key", "header_match", "query_match", "source_cluster", "destination_cluster"];

/// Other names that people give to what Envoy and ext_authz call otherwise.
const ALIASES: [(&str, &[&str]); 4] = [
    (
        "remote_address",
        &[
            "ip",
            "addr",
            "address",
            "client",
            "client_ip",
            "client_address",
            "remote_ip",
            "remote_addr",
            "source_ip",
            "ip_address",
        ],
    ),
    ("method", &["verb", "http_method", "request_method"]),
    ("path", &["uri", "url", "request_path", "request_uri"]),
    ("host", &["authority", "hostname", "http_host", "server_name"]),
];

/// The shortest name that a single letter makes another one, rather than a misspelling.
const LONG_NAME: usize = 6;

/// A place where a rule names an entry.
struct Use<'a> {
    entry: Cow<'a, str>,
    location: &'a Location,
    place: Place<'a>,
}

#[derive(Clone, Copy)]
enum Place<'a> {
    Match,
    /// In a test whether a list has its value.
    List,
    /// In a key, with the normalisers there.
    Key(&'a [Located<schema::Normaliser>]),
    Template,
}

/// The places where a rule names entries.
fn uses<'a>(rule: &'a Located<schema::Rule>) -> Vec<Use<'a>> {
    let tests = rule.matches.named().iter();
    let mut uses: Vec<Use<'a>> = tests
        .map(|item| Use { entry: Cow::Borrowed(item.name.as_str()), location: &item.location, place: place_of(item) })
        .collect();
    for apply in rule.apply.items() {
        if let Some((reference, template)) =
            apply.limiter.get().and_then(|reference| Some((reference, NameTemplate::parse(reference)?)))
        {
            let location = &reference.location;
            let entries = template.entries.into_iter();
            uses.extend(entries.map(|entry| Use { entry: Cow::Owned(entry), location, place: Place::Template }));
        }
        for part in apply.key.items() {
            let (entry, location, normalise) = match &part.value {
                WrittenKeyEntry::Name(name) => (name, &part.location, &[][..]),
                WrittenKeyEntry::Table(table) => match table.entry.get() {
                    Some(entry) => (&entry.value, &entry.location, table.normalise.items()),
                    None => continue,
                },
            };
            uses.push(Use { entry: Cow::Borrowed(entry), location, place: Place::Key(normalise) });
        }
    }
    uses
}

/// The place of a test.
fn place_of(item: &Item<schema::Match>) -> Place<'static> {
    fn has_list(test: &schema::Match) -> bool {
        match test {
            schema::Match::List(_) => true,
            schema::Match::Any(any) => any.iter().any(|test| has_list(&test.value)),
            schema::Match::Not(not) => has_list(&not.value),
            schema::Match::Text(_) => false,
        }
    }
    if item.value.as_ref().is_some_and(has_list) { Place::List } else { Place::Match }
}

/// The entries that a domain's settings name in `normalise` and `addresses`, and where.
fn settings(domain: &schema::Domain) -> impl Iterator<Item = (&str, &Location)> {
    let normalised = domain.normalise.named().iter().map(|item| (item.name.as_str(), &item.location));
    normalised.chain(domain.addresses.items().iter().map(|item| (item.value.as_str(), &item.location)))
}

/// The entries that a domain derives, and where.
fn derived(domain: &schema::Domain) -> impl Iterator<Item = (&str, &Location)> {
    domain.derive.named().iter().map(|item| (item.name.as_str(), &item.location))
}

/// The entries that a domain derives others from, each in the place of a key.
fn sources(domain: &schema::Domain) -> impl Iterator<Item = Use<'_>> {
    let from = domain.derive.named().iter().filter_map(|item| item.value.as_ref()?.from.get());
    from.map(|from| Use { entry: Cow::Borrowed(&from.value), location: &from.location, place: Place::Key(&[]) })
}

/// The entries that gateways are known to send: Envoy's, and those of `[authz]`.
fn known_entries<'a>(checked: &Checked<'a>) -> BTreeSet<&'a str> {
    let authz = checked.settings.authz.entries.iter().map(|(name, _)| name.as_str());
    FIXED_ENTRIES.into_iter().chain(ENVOY_ENTRIES).chain(authz).collect()
}

/// Warns of entries whose name is almost that of a known one, and of keys and lists with an entry that nothing else names.
/// For domains that declare their entries, both are errors.
pub(super) fn misnamed(checked: &Checked<'_>, problems: &mut Problems) {
    let known = known_entries(checked);
    // For the domain of ext_authz, building the rules warns of similar names, and of all if [authz.entries] is given.
    let of_authz = |domain: &str| domain == checked.settings.authz.domain;
    let listed = !checked.settings.authz.entries.is_empty();
    for (written, rule) in checked.rules() {
        let domain = checked.domain(&rule.domain);
        if domain.is_some_and(|domain| !domain.entries.is_absent()) {
            continue;
        }
        let named: BTreeSet<&str> = domain
            .map(|domain| settings(domain).chain(derived(domain)).map(|(name, _)| name).collect())
            .unwrap_or_default();
        for Use { entry, location, place } in uses(written).into_iter().chain(domain.into_iter().flat_map(sources)) {
            if known.contains(&*entry) || named.contains(&*entry) {
                continue;
            }
            let list = format!("list all entries of clients in {}.entries", join("domains", &rule.domain));
            if let Some(near) = similar(&entry, known.iter().copied(), LONG_NAME) {
                if !of_authz(&rule.domain) {
                    let reason = format!("names the entry {entry:?}; did you mean {near:?}? Otherwise {list}");
                    problems.warn_of(WarningKind::SimilarEntry, location, reason);
                }
            } else if matches!(place, Place::Key(_) | Place::List)
                && !(of_authz(&rule.domain) && (listed || near(&entry)))
            {
                let alias = ALIASES.iter().find(|(_, aliases)| aliases.contains(&&*entry));
                let meant = match alias {
                    Some((meant, _)) => format!("; did you mean {meant:?}? If"),
                    None => "; if".to_owned(),
                };
                let reason = format!(
                    "names the entry {entry:?}, which neither [authz] nor the domain lists{meant} clients send it, {list}"
                );
                problems.warn_of(WarningKind::UnknownEntry, location, reason);
            }
        }
    }
    for item in checked.file.domains.named() {
        let Some(domain) = item.value.as_ref().filter(|domain| domain.entries.is_absent()) else { continue };
        for (entry, location) in settings(domain).filter(|(entry, _)| !known.contains(entry) && !of_authz(&item.name)) {
            if let Some(near) = similar(entry, known.iter().copied(), LONG_NAME) {
                let list = format!("list all entries of clients in {}.entries", item.location.path);
                let reason = format!("names the entry {entry:?}; did you mean {near:?}? Otherwise {list}");
                problems.warn_of(WarningKind::SimilarEntry, location, reason);
            }
        }
    }
}

/// Whether building the rules has warned of this name in the domain of ext_authz.
fn near(entry: &str) -> bool {
    nearest(entry, FIXED_ENTRIES).is_some()
}

/// Warns of paths and hosts that are matched or counted as clients spell them.
pub(super) fn not_normalised(checked: &Checked<'_>, problems: &mut Problems) {
    const SPELLINGS: [(&str, Normaliser, schema::Normaliser, &str); 2] = [
        ("path", Normaliser::Path, schema::Normaliser::Path, "\"//login\" and \"/login?x\" are not \"/login\""),
        ("host", Normaliser::Host, schema::Normaliser::Host, "\"A.example:443\" is not \"a.example\""),
    ];
    for (written, rule) in checked.rules() {
        let forms = checked.forms(&rule.domain);
        for (entry, step, in_key, example) in SPELLINGS {
            if forms.get(entry).is_some_and(|form| form.has(step)) {
                continue;
            }
            let any = |place: Place<'_>| match place {
                Place::Match | Place::List => {
                    let test = rule.matches.iter().find(|(name, _)| name == entry).map(|(_, test)| test);
                    test.is_none_or(|test| *test == Matcher::Present || test.matches_absent())
                }
                Place::Key(normalise) => normalise.iter().any(|step| step.value == in_key),
                Place::Template => true,
            };
            // One warning for a rule.
            let spelt = uses(written).into_iter().find(|found| found.entry == entry && !any(found.place));
            if let Some(Use { location, .. }) = spelt {
                let reason = format!(
                    "uses {entry} as clients spell it: {example}; set {}.normalise.{entry} = [{:?}]",
                    join("domains", &rule.domain),
                    step.word()
                );
                problems.warn_of(WarningKind::NotNormalised, location, reason);
            }
        }
    }
}

/// Warns of settings for entries that no rule of the domain uses.
pub(super) fn unused(checked: &Checked<'_>, problems: &mut Problems) {
    let mut by_domain: HashMap<&str, BTreeSet<String>> = HashMap::new();
    for (written, rule) in checked.rules() {
        let used = by_domain.entry(rule.domain.as_str()).or_default();
        used.extend(uses(written).into_iter().map(|found| found.entry.into_owned()));
    }
    let counted: BTreeSet<&str> = checked.book.limiters.iter().flat_map(counted).map(String::as_str).collect();
    for item in checked.file.domains.named() {
        // For a domain without rules there is another warning.
        let (Some(domain), Some(used)) = (&item.value, by_domain.get(item.name.as_str())) else { continue };
        let known = known_entries(checked);
        // A normaliser of what every gateway sends is no mistake: it is ready for the next rule.
        let is_used = |entry: &str| used.contains(entry) || counted.contains(entry);
        let froms: BTreeSet<String> = sources(domain).map(|found| found.entry.into_owned()).collect();
        let normal = settings(domain).filter(|(entry, _)| !known.contains(entry) && !froms.contains(*entry));
        for (entry, location) in normal.chain(derived(domain)).filter(|(entry, _)| !is_used(entry)) {
            let near = nearest(entry, used.iter().map(String::as_str));
            let meant = near.map_or("remove it".to_owned(), |near| format!("did you mean {near:?}?"));
            let reason = format!("is about the entry {entry:?}, which no rule of the domain uses; {meant}");
            problems.warn_of(WarningKind::UnusedEntry, location, reason);
        }
    }
}

/// Warns of keys with an entry that the rule requires to be absent: their checks are always skipped.
pub(super) fn absent_key(checked: &Checked<'_>, problems: &mut Problems) {
    let absent = Matcher::Not(Box::new(Matcher::Present));
    for (written, rule) in checked.rules() {
        let Action::Apply(applies) = &rule.action else { continue };
        for (written, apply) in written.apply.items().iter().zip(applies) {
            if apply.missing != Missing::Skip {
                continue;
            }
            let never = apply
                .key
                .iter()
                .zip(written.key.items())
                .find(|(part, _)| rule.matches.iter().any(|(entry, test)| *entry == part.entry && *test == absent));
            if let Some((part, written)) = never {
                let entry = &part.entry;
                let reason = format!(
                    "names the entry {entry:?}, which the rule requires to be absent, so nothing is counted; correct the \
                     match, or the key"
                );
                problems.warn_of(WarningKind::AbsentKey, &written.location, reason);
            }
        }
    }
}

/// Warns of headers that gateways drop.
pub(super) fn header_underscore(checked: &Checked<'_>, problems: &mut Problems) {
    let Some(authz) = checked.file.authz.get() else { return };
    for item in authz.entries.named() {
        let Some(WrittenEntry::Source(source)) = &item.value else { continue };
        let Some(header) = source.header.get() else { continue };
        if header.value.contains('_') {
            let reason = "which nginx drops, and Envoy with headers_with_underscores_action: name a header with dashes";
            problems.warn(WarningKind::HeaderUnderscore, &header.location, reason);
        }
    }
}
