//! Builds the domains and rules: checks that the names in them exist and that their keys fit together.

use std::borrow::Cow;
use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::Duration;

use super::key::{entries, normalisers};
use super::limiters::Limiters;
use super::lists::Lists;
use super::server::FIXED_ENTRIES;
use super::tables::Tables;
use super::values::{counted, refuse_impossible};
use crate::config::document::node::join;
use crate::config::document::problem::{Location, Problems, nearest, remedy};
use crate::config::document::warning::WarningKind;
use crate::config::schema;
use crate::config::schema::decode::Located;
use crate::config::schema::values::{Item, name};
use crate::limiter::{Algorithm, Limiter, Lost, MAX_HOLD, Quota};
use crate::rules::{
    Action, Apply, Charge, Derive, Domain, Form, Forms, HoldFor, KeyEntry, Matcher, Missing, Normaliser, RefusalText,
    Rule, RuleHeaders, Unmatched,
};
use crate::settings::{AuthzSettings, Settings};

/// The entries that ext_authz normalises itself. Others in its domain, from RLS, get the same form.
const AUTHZ_FORMS: [(&str, Normaliser); 2] = [("path", Normaliser::Path), ("host", Normaliser::Host)];

/// Builds the domains and the rules.
pub(in crate::config) fn rules(
    file: &schema::File,
    limiters: &Limiters,
    lists: &Lists<'_>,
    tables: &Tables<'_>,
    server: &Settings,
    problems: &mut Problems,
) -> (Vec<Domain>, Vec<Rule>) {
    let mut domains = Vec::new();
    let authz = KnownEntries::of_authz(server, file);
    let mut known = HashMap::from([(authz.domain.as_str(), &authz)]);
    let declared: Vec<KnownEntries> =
        file.domains.named().iter().filter_map(|item| KnownEntries::declared(item, &authz)).collect();
    known.extend(declared.iter().map(|entries| (entries.domain.as_str(), entries)));
    for item in file.domains.named() {
        let Some(written) = &item.value else { continue };
        domains.push(domain(item, written, known.get(item.name.as_str()).copied(), problems));
    }
    let ruled =
        |name: &str| file.rules.items().iter().any(|rule| rule.domain.get().is_some_and(|domain| **domain == name));
    // Limiters that workers can ask for by name are in the domain of calls that name none, even without rules there.
    let direct = limiters.names().any(|name| limiters.is_direct(name));
    for (name, used) in [(&authz.domain, ruled(&authz.domain)), (&server.api.domain, direct)] {
        if used && !domains.iter().any(|domain| domain.name == *name) {
            domains.push(Domain { name: name.clone(), ..Domain::default() });
        }
    }
    for domain in domains.iter_mut().filter(|domain| domain.name == authz.domain) {
        set_authz_forms(&mut domain.normalise);
    }
    for domain in &mut domains {
        if let Some(written) = file.domains.named().iter().find(|item| item.name == domain.name)
            && let Some(written) = &written.value
        {
            let entries = known.get(domain.name.as_str()).copied();
            for from in written.derive.named().iter().filter_map(|derive| derive.value.as_ref()?.from.get()) {
                check_entry(from, &from.location, entries, problems);
            }
            domain.derive = tables.derive(written, &Forms::of(domain), problems);
        }
    }
    let derived: HashMap<&str, &[Derive]> =
        domains.iter().map(|domain| (domain.name.as_str(), domain.derive.as_slice())).collect();
    let forms: HashMap<&str, Forms> = domains.iter().map(|domain| (domain.name.as_str(), Forms::of(domain))).collect();
    let any_domain = Forms::of(&Domain::default());
    let fixed = fixed_limiters(file);
    let mut first: HashMap<(&str, &str), &Located<schema::Rule>> = HashMap::new();
    let mut rules = Vec::new();
    for written in file.rules.items() {
        if let (Some(domain), Some(name)) = (written.domain.get(), written.name.get())
            && let Some(first) = first.insert((domain, name), written)
        {
            let first = problems.locate(first.name.location().unwrap_or(&first.location).position);
            let reason = format!("but the domain {:?} already has a rule of this name, at {first}", domain.value);
            problems.refuse(&name.location, reason);
        }
        let domain = written.domain.get().map_or("", |domain| domain.value.as_str());
        let entries = known.get(domain).copied();
        let forms = forms.get(domain).unwrap_or(&any_domain);
        let derived = derived.get(domain).copied().unwrap_or_default();
        let other_domain_of_authz = server.authz != AuthzSettings::default() && domain != authz.domain;
        let mut builder = RuleBuilder {
            written,
            limiters,
            lists,
            fixed: &fixed,
            entries,
            forms,
            derived,
            other_domain_of_authz,
            problems,
        };
        rules.extend(builder.rule());
    }
    warn_of_missing_rules(file, server, limiters, &domains, &rules, problems);
    (domains, rules)
}

/// Puts the normalisers of ext_authz first: its entries have passed them when the others are applied.
fn set_authz_forms(normalise: &mut Vec<(String, Vec<Normaliser>)>) {
    for (entry, normaliser) in AUTHZ_FORMS {
        match normalise.iter_mut().find(|(known, _)| known == entry) {
            Some((_, steps)) if steps.first() == Some(&normaliser) => {}
            Some((_, steps)) => steps.insert(0, normaliser),
            None => normalise.push((entry.to_owned(), vec![normaliser])),
        }
    }
}

/// The limiters that rules name without entries in braces.
fn fixed_limiters(file: &schema::File) -> BTreeSet<&str> {
    let applies = file.rules.items().iter().flat_map(|rule| rule.apply.items());
    applies.flat_map(|apply| [apply.limiter.get(), apply.otherwise.get()]).flatten().map(|name| name.as_str()).collect()
}

/// Warns if there are no rules, or none in the domain of ext_authz, so that nothing is ever refused.
fn warn_of_missing_rules(
    file: &schema::File,
    server: &Settings,
    limiters: &Limiters,
    domains: &[Domain],
    rules: &[Rule],
    problems: &mut Problems,
) {
    let refuses = |name: &str| domains.iter().any(|known| known.name == name && known.unmatched == Unmatched::Deny);
    if rules.is_empty() {
        // Without any file this is intended, and `serve` prints a notice.
        if problems.has_files() && !domains.iter().any(|domain| refuses(&domain.name)) {
            warn_of_no_rules(file, limiters, problems);
        }
        return;
    }
    let authz_domain = server.authz.domain.as_str();
    // With only defaults in [authz], as `check --print` writes them, the configuration may be for RLS alone.
    let Some(authz) = file.authz.get().filter(|_| server.authz != AuthzSettings::default()) else { return };
    if refuses(authz_domain) || rules.iter().any(|rule| rule.domain == authz_domain) {
        return;
    }
    let ruled: BTreeSet<&str> = rules.iter().map(|rule| rule.domain.as_str()).collect();
    let remedy = match nearest(authz_domain, ruled.iter().copied()) {
        Some(near) => format!("; did you mean {near:?} here, or {authz_domain:?} in its rules?"),
        None => remedy(authz_domain, ruled, "domains with rules"),
    };
    let reason =
        format!("which has no rules, so every ext_authz request passes unless its route names another domain{remedy}");
    match authz.domain.location() {
        Some(location) => problems.warn(WarningKind::AuthzWithoutRules, location, reason),
        None => {
            let path = join(&authz.location.path, "domain");
            let location = Location { path, ..authz.location.clone() };
            let reason = format!("is {authz_domain:?} by default, {reason}");
            problems.warn_of(WarningKind::AuthzWithoutRules, &location, reason);
        }
    }
}

/// Warns that nothing is ever refused, unless there are only limiters that workers ask for by name.
fn warn_of_no_rules(file: &schema::File, limiters: &Limiters, problems: &mut Problems) {
    let mut items = file.limiters.named().iter();
    if items.len() == 0 {
        return problems.warn_of_all(WarningKind::NoRules, "there are no rules, so every request passes");
    }
    // Workers ask for the others by name.
    let Some(limiter) = items.find(|item| !limiters.is_direct(&item.name)) else { return };
    let name = &limiter.name;
    let reason = format!(
        "is applied by no rule: there are no rules, so every request passes; add one: [[rules]] with domain = \"edge\", \
         name = {name:?} and apply = [{{ limiter = {name:?}, key = [\"remote_address\"] }}], or, if workers ask for it by \
         name, direct = true"
    );
    problems.warn_of(WarningKind::NoRules, &limiter.location, reason);
}

/// The entries that requests of a domain can have, as far as the configuration lists them.
struct KnownEntries {
    domain: String,
    names: Vec<String>,
    unlisted: UnlistedEntries,
}

/// Whether requests can have entries that are not listed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum UnlistedEntries {
    /// No: the domain declares all its entries.
    Never,
    /// ext_authz requests have no others, but RLS clients may send them.
    OnlyFromRls,
    /// Unknown, so only a name that is similar to a listed one causes a warning.
    Unknown,
}

impl KnownEntries {
    /// The entries of ext_authz requests, in the domain of ext_authz.
    fn of_authz(server: &Settings, file: &schema::File) -> Self {
        let fixed = FIXED_ENTRIES.into_iter().map(str::to_owned);
        let domain = file.domains.named().iter().find(|item| item.name == server.authz.domain);
        let derived = domain.and_then(|item| item.value.as_ref()).into_iter().flat_map(derived_names);
        Self {
            domain: server.authz.domain.clone(),
            names: fixed.chain(server.authz.entries.iter().map(|(name, _)| name.clone())).chain(derived).collect(),
            unlisted: if server.authz.entries.is_empty() {
                UnlistedEntries::Unknown
            } else {
                UnlistedEntries::OnlyFromRls
            },
        }
    }

    /// The entries that a domain declares, including those of ext_authz in its domain. None if it declares none.
    fn declared(item: &Item<schema::Domain>, authz: &Self) -> Option<Self> {
        let written = item.value.as_ref().filter(|written| !written.entries.is_absent())?;
        let mut names: Vec<String> = written.entries.items().iter().map(|entry| entry.value.clone()).collect();
        names.extend(derived_names(written));
        if authz.domain == item.name {
            names.extend(authz.names.iter().cloned());
        }
        Some(Self { domain: item.name.clone(), names, unlisted: UnlistedEntries::Never })
    }
}

/// The entries that a domain derives.
fn derived_names(domain: &schema::Domain) -> impl Iterator<Item = String> {
    domain.derive.named().iter().map(|item| item.name.clone())
}

fn domain(
    item: &Item<schema::Domain>,
    written: &schema::Domain,
    entries: Option<&KnownEntries>,
    problems: &mut Problems,
) -> Domain {
    let mut normalise = Vec::new();
    for rewriting in written.normalise.named() {
        check_entry(&rewriting.name, &rewriting.location, entries, problems);
        if let Some(list) = &rewriting.value {
            normalise.push((rewriting.name.clone(), normalisers(&list.items)));
        }
    }
    for address in written.addresses.items() {
        check_entry(address, &address.location, entries, problems);
    }
    Domain {
        name: item.name.clone(),
        unmatched: match written.unmatched.copied() {
            Some(schema::Verdict::Deny) => Unmatched::Deny,
            Some(schema::Verdict::Allow) | None => Unmatched::Allow,
        },
        shadow: written.mode.copied() == Some(schema::Mode::Shadow),
        normalise,
        derive: Vec::new(),
        addresses: written.addresses.items().iter().map(|address| address.value.clone()).collect(),
        entries: written.entries.get().map(|list| list.items.iter().map(|entry| entry.value.clone()).collect()),
    }
}

/// Refuses an entry that its domain does not declare, and warns of one that ext_authz requests do not have.
fn check_entry(entry: &str, location: &Location, entries: Option<&KnownEntries>, problems: &mut Problems) {
    let Some(entries) = entries.filter(|entries| !entries.names.iter().any(|known| known == entry)) else { return };
    let names = entries.names.iter().map(String::as_str);
    let named = format!("names the entry {entry:?}, which");
    if entries.unlisted == UnlistedEntries::Never {
        let remedy = remedy(entry, names, "known entries");
        problems.error(location.position, &location.path, format_args!("{named} the domain does not declare{remedy}"));
    } else if entries.unlisted == UnlistedEntries::OnlyFromRls || nearest(entry, names.clone()).is_some() {
        let remedy = remedy(entry, names, "known entries");
        let domain = &entries.domain;
        let reason = format!("{named} ext_authz requests do not have{remedy}");
        let silence = format!("RLS clients send it, list all their entries in domains.{domain}.entries");
        let join = if remedy.ends_with('?') { " If" } else { "; if" };
        problems.warn_of(WarningKind::UnknownEntry, location, format_args!("{reason}{join} {silence}"));
    }
}

/// Builds one rule.
struct RuleBuilder<'a> {
    written: &'a Located<schema::Rule>,
    limiters: &'a Limiters,
    lists: &'a Lists<'a>,
    /// The limiters that some rule names without entries in braces.
    fixed: &'a BTreeSet<&'a str>,
    /// The known entries of its domain.
    entries: Option<&'a KnownEntries>,
    /// The forms of the entries of its domain.
    forms: &'a Forms,
    /// The entries that its domain derives.
    derived: &'a [Derive],
    /// Whether ext_authz is configured for another domain.
    other_domain_of_authz: bool,
    problems: &'a mut Problems,
}

impl<'a> RuleBuilder<'a> {
    fn rule(&mut self) -> Option<Rule> {
        let written = self.written;
        for text in [written.domain.get(), written.name.get()].into_iter().flatten() {
            if let Err(reason) = name(text) {
                self.problems.refuse(&text.location, reason);
            }
        }
        let mut matches = Vec::new();
        for item in written.matches.named() {
            check_entry(&item.name, &item.location, self.entries, self.problems);
            let Some(test) = &item.value else { continue };
            let test = Located { value: test.clone(), location: item.location.clone() };
            matches.push((item.name.clone(), self.matcher(&item.name, &test)));
        }
        self.note_absent(&matches);
        let action = self.action();
        let refusal = self.refusal();
        let enforce_percent = written.enforce_percent.get();
        let shadow = written.mode.copied() == Some(schema::Mode::Shadow);
        if let Some(percent) = enforce_percent {
            if shadow {
                self.problems
                    .refuse(&percent.location, "but mode is \"shadow\", which enforces nothing; expected one of them");
            }
            if !written.action.is_absent() {
                self.problems.refuse(&percent.location, "which needs apply: it selects by the keys of limiters");
            }
        }
        if shadow {
            const REASON: &str = "which has no effect in a rule with mode = \"shadow\": later rules still apply";
            if let Some(allow) = written.action.get().filter(|action| action.value == schema::Verdict::Allow) {
                self.problems.warn(WarningKind::NoEffectInShadow, &allow.location, REASON);
            }
            if let Some(last) = written.last.get().filter(|switch| switch.0) {
                self.problems.warn(WarningKind::NoEffectInShadow, &last.location, REASON);
            }
        }
        Some(Rule {
            domain: written.domain.get()?.value.clone(),
            name: written.name.get()?.value.clone(),
            matches,
            action: action?,
            last: written.last.copied().is_some_and(|switch| switch.0),
            shadow,
            enforce_percent: enforce_percent.and_then(|percent| u8::try_from(percent.0).ok()),
            refusal,
            headers: match written.headers.copied() {
                Some(schema::RuleHeaders::None) => RuleHeaders::None,
                Some(schema::RuleHeaders::RetryAfter) => RuleHeaders::RetryAfter,
                Some(schema::RuleHeaders::All) | None => RuleHeaders::All,
            },
            skip_absent: written.missing.copied() == Some(schema::AbsentDerived::Skip),
        })
    }

    /// Notes what the rule does where a derived entry that it matches is absent, unless it says so itself.
    fn note_absent(&mut self, matches: &[(String, Matcher)]) {
        let of_derived = |entry: &str| self.derived.iter().find(|derive| derive.entry == *entry);
        if let Some(missing) = self.written.missing.get() {
            if !matches.iter().any(|(entry, _)| of_derived(entry).is_some()) {
                let reason = "but match names no derived entry, so it has no effect; remove it";
                self.problems.refuse(&missing.location, reason);
            }
            return;
        }
        for item in self.written.matches.named() {
            let absent = matches.iter().any(|(entry, test)| *entry == item.name && test.matches_absent());
            if let Some(derive) = of_derived(&item.name).filter(|derive| derive.otherwise.is_none() && !absent) {
                let text = format!(
                    "is derived: without a row of table {:?} for {}, this rule refuses what its other entries match \
                     (missing_key); with missing = \"skip\" it does not match",
                    derive.table.name(),
                    derive.from
                );
                self.problems.note(item.location.position, &item.location.path, text);
            }
        }
    }

    fn matcher(&mut self, entry: &str, test: &Located<schema::Match>) -> Matcher {
        match &test.value {
            schema::Match::Text(text) => {
                let matcher = Matcher::parse(text);
                let address = self.forms.get(entry).is_some_and(Form::is_address);
                if address && matches!(matcher, Matcher::Exact(_)) && text.parse::<IpAddr>().is_err() {
                    let example = "\"10.1.2.3\", a block such as \"10.0.0.0/8\" or a pattern";
                    self.problems.refuse(&test.location, format!("expected an address such as {example}"));
                } else if let Err(never) = self.forms.literal(entry, &matcher) {
                    self.problems.refuse(&test.location, never);
                } else if self.other_domain_of_authz {
                    self.warn_of_authz_form(entry, test, &matcher);
                }
                matcher
            }
            schema::Match::List(name) => self.list(entry, name),
            schema::Match::Any(any) => Matcher::AnyOf(any.iter().map(|item| self.matcher(entry, item)).collect()),
            schema::Match::Not(not) => Matcher::Not(Box::new(self.matcher(entry, not))),
        }
    }

    /// The test of a list, whose values have to be in the form of the entry.
    fn list(&mut self, entry: &str, name: &Located<String>) -> Matcher {
        match self.lists.get(name) {
            Err(known) => {
                if !self.problems.has_syntax_errors() {
                    let remedy = remedy(name, known, "lists");
                    self.problems.refuse(&name.location, format!("but no list has this name{remedy}"));
                }
                Matcher::Present
            }
            Ok(None) => Matcher::Present,
            Ok(Some(list)) => {
                let any = Form::default();
                self.lists.check(name, self.forms.get(entry).unwrap_or(&any), self.problems);
                Matcher::list(list)
            }
        }
    }

    /// Warns of a literal that ext_authz requests never have: a route can name this domain, and their path and host are
    /// normalised in every domain.
    fn warn_of_authz_form(&mut self, entry: &str, test: &Located<schema::Match>, matcher: &Matcher) {
        let Some((_, normaliser)) = AUTHZ_FORMS.iter().find(|(known, _)| *known == entry) else { return };
        let normalise = vec![(entry.to_owned(), vec![*normaliser])];
        let sent = Forms::of(&Domain { normalise, ..Domain::default() }).literal(entry, matcher);
        let theirs = match sent {
            Ok(sent) if sent == *matcher || self.forms.get(entry).is_some() => return,
            // The value of a variable may be a secret.
            Ok(sent) if test.location.shown == matcher.to_string() => format!(": theirs is {sent}; write that, or"),
            Ok(_) | Err(_) => "; write it as they do, or".to_owned(),
        };
        let domain = self.written.domain.get().map_or("", |domain| domain.value.as_str());
        let remedy = format!("set domains.{domain}.normalise.{entry} = [{:?}]", normaliser.word());
        let reason = format!("which ext_authz requests never have{theirs} {remedy}");
        self.problems.warn(WarningKind::ForeignForm, &test.location, reason);
    }

    fn action(&mut self) -> Option<Action> {
        let written = self.written;
        let Some(action) = written.action.get() else {
            if written.apply.is_absent() && written.action.is_absent() {
                let path = &written.location.path;
                let expected = "a list of limiters, or action = \"allow\" or \"deny\"";
                self.problems.missing(
                    written.location.position,
                    &format!("{path}.apply"),
                    format!("is missing, expected {expected}"),
                );
            }
            let list = written.apply.get()?;
            if list.is_empty && !self.problems.has_syntax_errors() {
                let reason = "is empty, expected at least one limiter";
                self.problems.error(list.location.position, &list.location.path, reason);
            }
            let applies: Vec<Option<Apply>> = list.items.iter().map(|apply| self.apply(apply)).collect();
            return applies.into_iter().collect::<Option<Vec<Apply>>>().map(Action::Apply);
        };
        if !written.apply.is_absent() {
            let reason = "but the rule applies limiters too; leave one out";
            self.problems.refuse(&action.location, reason);
        }
        Some(match action.value {
            schema::Verdict::Allow => Action::Allow,
            schema::Verdict::Deny => Action::Deny,
        })
    }

    fn refusal(&mut self) -> RefusalText {
        let written = self.written;
        if written.action.copied() == Some(schema::Verdict::Allow) {
            let texts = [
                written.status.location(),
                written.body.location(),
                written.content_type.location(),
                written.headers.location(),
            ];
            for location in texts.into_iter().flatten() {
                self.problems.refuse(location, "but a rule with action = \"allow\" refuses nothing");
            }
        }
        if let Some(kind) = written.content_type.get()
            && !(kind.contains('/') && kind.chars().all(|c| c.is_ascii_graphic() || c == ' '))
        {
            self.problems.refuse(&kind.location, "expected a media type such as \"application/json\"");
        }
        RefusalText {
            status: written.status.copied().and_then(|status| u16::try_from(status.0).ok()),
            body: written.body.get().map(|body| body.value.clone()),
            content_type: written.content_type.get().map(|kind| kind.value.clone()),
        }
    }

    fn apply(&mut self, written: &Located<schema::Apply>) -> Option<Apply> {
        let limiters = self.reachable_limiters(written);
        let charge = match written.charge.copied() {
            Some(schema::Charge::Own) => Charge::Own,
            Some(schema::Charge::Always) => Charge::Always,
            Some(schema::Charge::Admitted) | None => Charge::Admitted,
        };
        let overdraw = written.overdraw.get().filter(|switch| switch.0);
        for limiter in &limiters {
            let name = &limiter.name;
            if limiter.concurrency.is_some() {
                let reason = format!("but {name:?} holds slots, which refused requests never release");
                if let Some(charge) = written.charge.get().filter(|charge| charge.value != schema::Charge::Admitted) {
                    self.problems.refuse(&charge.location, format!("{reason}; expected \"admitted\""));
                }
                if let Some(overdraw) = overdraw {
                    self.problems.refuse(
                        &overdraw.location,
                        format!("but {name:?} holds slots, which cannot be overdrawn; expected false"),
                    );
                }
            }
            let exact = limiter.quota.as_ref().is_some_and(|quota| matches!(quota.algorithm, Algorithm::SlidingWindow));
            if let (Some(overdraw), true) = (overdraw, exact) {
                let reason = format!("but {name:?} is a sliding_window, which stores no more grants than its limit");
                self.problems.refuse(&overdraw.location, format!("{reason}; expected false, or another algorithm"));
            }
        }
        let key = self.key(written);
        let template = written.limiter.get().and_then(|reference| NameTemplate::parse(reference));
        let filling = template.iter().flat_map(|template| &template.entries);
        let derived = key
            .iter()
            .map(|part| &part.entry)
            .chain(filling)
            .chain(limiters.iter().flat_map(|limiter| counted(limiter)))
            .any(|entry| self.derived.iter().any(|derive| derive.entry == *entry));
        let hold = self.hold(written, &limiters);
        let known = self.entries;
        for limiter in &limiters {
            refuse_impossible(written, limiter, &key, self.problems, |entry, location, problems| {
                check_entry(entry, location, known, problems);
            });
        }
        Some(Apply {
            limiter: written.limiter.get()?.value.clone(),
            otherwise: written.otherwise.get().map(|otherwise| otherwise.value.clone()),
            key,
            charge,
            overdraw: overdraw.is_some(),
            missing: match written.missing.copied() {
                Some(schema::Missing::Deny) => Missing::Deny,
                Some(schema::Missing::Empty) => Missing::Empty,
                // An unknown key is no way around a limit (semantics 59).
                None if derived => Missing::Deny,
                Some(schema::Missing::Skip) | None => Missing::Skip,
            },
            hold,
        })
    }

    fn hold(&mut self, written: &schema::Apply, limiters: &[&Limiter]) -> Option<HoldFor> {
        let Some(hold) = written.hold.get() else {
            if let Some(lost) = written.lost.get() {
                self.problems.refuse(&lost.location, "which needs hold: only what is held can be lost");
            }
            return None;
        };
        let length = hold.0;
        if length > Duration::from_micros(MAX_HOLD) {
            self.problems.refuse(&hold.location, "expected at most 1d");
        } else if length.subsec_micros() % 1_000 != 0 {
            self.problems.refuse(&hold.location, "expected whole milliseconds");
        }
        for limiter in limiters.iter().filter(|limiter| limiter.quota.is_none()) {
            let reason = format!("but {:?} has only slots, which are held by their lease; remove it", limiter.name);
            self.problems.refuse(&hold.location, reason);
        }
        let lost = match written.lost.copied() {
            Some(schema::Lost::Release) => Lost::Release,
            Some(schema::Lost::Charge) | None => Lost::Charge,
        };
        Some(HoldFor { length, lost })
    }

    fn key(&mut self, written: &schema::Apply) -> Vec<KeyEntry> {
        let known = self.entries;
        entries(
            written.key.items(),
            "but the key already has this entry",
            self.problems,
            |entry, location, problems| {
                check_entry(entry, location, known, problems);
            },
        )
    }

    /// The limiters that an apply can select. Reports names that do not exist.
    fn reachable_limiters(&mut self, written: &schema::Apply) -> Vec<&'a Limiter> {
        let limiters = self.limiters;
        let Some(reference) = written.limiter.get() else { return Vec::new() };
        let otherwise = written.otherwise.get();
        if let Some(otherwise) = otherwise.filter(|name| !limiters.contains(name)) {
            self.report_unknown(otherwise);
        }
        let Some(template) = self.template(reference) else {
            return Vec::new();
        };
        if template.entries.is_empty() {
            if let Some(otherwise) = otherwise {
                let reason = format!(
                    "but limiter is {}, which has no {{entry}}: otherwise is never used",
                    reference.location.shown
                );
                self.problems.refuse(&otherwise.location, reason);
            }
            if !limiters.contains(reference) {
                self.report_unknown(reference);
            }
            return limiters.get(reference).into_iter().collect();
        }
        for entry in &template.entries {
            check_entry(entry, &reference.location, self.entries, self.problems);
        }
        let matching: Vec<&str> = limiters.names().filter(|name| template.matches(name)).collect();
        if matching.is_empty() {
            if self.problems.has_syntax_errors() {
                return Vec::new();
            }
            let remedy = remedy(reference, limiters.names(), "limiters");
            self.problems.refuse(&reference.location, format!("which matches no limiter{remedy}"));
        } else {
            self.check_values(&template, reference, otherwise);
            self.refuse_hidden(&template, &matching, reference);
            self.warn_of_different_kinds(&matching, reference);
        }
        let otherwise = otherwise.map(|otherwise| otherwise.value.as_str());
        matching.into_iter().chain(otherwise).filter_map(|name| limiters.get(name)).collect()
    }

    fn report_unknown(&mut self, name: &Located<String>) {
        if self.problems.has_syntax_errors() {
            return;
        }
        let remedy = remedy(name, self.limiters.names(), "limiters");
        self.problems.refuse(&name.location, format!("but no limiter has this name{remedy}"));
    }

    fn template(&mut self, reference: &Located<String>) -> Option<NameTemplate> {
        let template = NameTemplate::parse(reference);
        if template.is_none() {
            self.problems
                .refuse(&reference.location, "expected the name of a limiter, or a template such as \"api_{tier}\"");
        }
        template
    }

    /// Refuses a template without `otherwise` if a value that the rule matches selects no limiter. Warns if the rule
    /// does not restrict the values.
    fn check_values(
        &mut self,
        template: &NameTemplate,
        reference: &Located<String>,
        otherwise: Option<&Located<String>>,
    ) {
        if otherwise.is_some() {
            return;
        }
        let single = match &template.entries[..] {
            [entry] => self.written.matches.named().iter().find(|item| item.name == *entry),
            _ => None,
        };
        let Some(exact) = single.and_then(|item| exact_values(item.value.as_ref()?)) else {
            let entries = template.entries.join("} and {");
            let reason = format!("and has no otherwise: a request whose {{{entries}}} matches no limiter is refused");
            self.problems.warn(WarningKind::UnmatchedTier, &reference.location, reason);
            return;
        };
        for (value, location) in exact {
            let form = self.forms.value(&template.entries[0], Cow::Borrowed(&value));
            let name = template.fill(&form);
            let selects = |name: &str| self.filled(template, name).is_some_and(|(_, filled)| filled == form);
            if !self.limiters.names().any(selects) && !self.problems.has_syntax_errors() {
                let reason = match location {
                    Some(location) => format!("{} is {}", location.path, location.shown),
                    None => format!("match admits {value:?}"),
                };
                let reason = if form == value { reason } else { format!("{reason}, normalised to {form:?},") };
                let remedy = remedy(&name, self.limiters.names(), "limiters");
                self.problems
                    .refuse(&reference.location, format!("but {reason} and no limiter is named {name:?}{remedy}"));
            }
        }
    }

    /// The value that makes this name of a template with one entry: as written, and in its form.
    fn filled<'n>(&self, template: &NameTemplate, name: &'n str) -> Option<(&'n str, Cow<'n, str>)> {
        let ([entry], [before, after]) = (&template.entries[..], &template.texts[..]) else { return None };
        let value = name.strip_prefix(before.as_str())?.strip_suffix(after.as_str())?;
        Some((value, self.forms.value(entry, Cow::Borrowed(value))))
    }

    /// Refuses a limiter that no value selects, because the normalised value selects another one. It can still be named
    /// by a rule.
    fn refuse_hidden(&mut self, template: &NameTemplate, matching: &[&str], reference: &Located<String>) {
        let forms = matching.iter().filter_map(|name| Some((*name, self.filled(template, name)?)));
        let forms: Vec<(&str, (&str, Cow<'_, str>))> = forms.collect();
        for (index, (name, (value, form))) in forms.iter().enumerate() {
            let before = |other: usize, written: &str| match (value == form, written == form) {
                (false, true) => true,
                (true, _) => false,
                (false, false) => other < index,
            };
            let selected = forms.iter().enumerate().find(|(other, (_, (written, other_form)))| {
                *other != index && other_form == form && before(*other, written)
            });
            if let Some((_, (selected, _))) = selected.filter(|_| !self.fixed.contains(name)) {
                let entry = &template.entries[0];
                let reason = format!(
                    "but never selects {name:?}: {entry} {value:?} is normalised to {form:?}, which selects {selected:?}; \
                     rename one of them"
                );
                self.problems.refuse(&reference.location, reason);
            }
        }
    }

    /// Warns if the limiters of a template cannot share a counter: only those with the same algorithm, window and store
    /// do (semantics 1).
    fn warn_of_different_kinds(&mut self, matching: &[&str], reference: &Located<String>) {
        let mut kinds = matching.iter().filter_map(|name| {
            let limiter = self.limiters.get(name)?;
            let quota = limiter.quota.as_ref().map(Quota::kind);
            Some((*name, (quota, limiter.concurrency.is_some(), limiter.store)))
        });
        let Some((first, kind)) = kinds.next() else { return };
        if let Some((other, _)) = kinds.find(|(_, other)| *other != kind) {
            let reason = format!(
                "but {first:?} and {other:?} differ in algorithm, window or store: a client that moves between them \
                 gets a new counter"
            );
            self.problems.warn(WarningKind::TiersDiffer, &reference.location, reason);
        }
    }
}

/// The values that a test matches. None if it matches more than exact values.
fn exact_values(test: &schema::Match) -> Option<Vec<(String, Option<Location>)>> {
    match test {
        schema::Match::Text(text) => match Matcher::parse(text) {
            Matcher::Exact(value) => Some(vec![(value, None)]),
            _ => None,
        },
        schema::Match::Any(any) => any
            .iter()
            .map(|item| match &item.value {
                schema::Match::Text(text) => match Matcher::parse(text) {
                    Matcher::Exact(value) => Some((value, Some(item.location.clone()))),
                    _ => None,
                },
                schema::Match::Any(_) | schema::Match::List(_) | schema::Match::Not(_) => None,
            })
            .collect(),
        schema::Match::List(_) | schema::Match::Not(_) => None,
    }
}

/// The name of a limiter with entries in braces.
pub(in crate::config) struct NameTemplate {
    /// The texts around the entries: one more than there are entries.
    texts: Vec<String>,
    /// The entries.
    pub(in crate::config) entries: Vec<String>,
}

impl NameTemplate {
    /// Reads a reference to a limiter. None if its braces do not enclose names.
    pub(in crate::config) fn parse(reference: &str) -> Option<Self> {
        let mut texts = vec![];
        let mut entries = vec![];
        let mut rest = reference;
        while let Some((before, after)) = rest.split_once('{') {
            let (entry, after) = after.split_once('}')?;
            if entry.is_empty() || entry.contains('{') || before.contains('}') {
                return None;
            }
            texts.push(before.to_owned());
            entries.push(entry.to_owned());
            rest = after;
        }
        texts.push(rest.to_owned());
        (!reference.is_empty() && !rest.contains('}')).then_some(Self { texts, entries })
    }

    /// Whether some values of the entries produce this name.
    pub(in crate::config) fn matches(&self, name: &str) -> bool {
        let (first, last) = (&self.texts[0], &self.texts[self.texts.len() - 1]);
        let Some(rest) = name.strip_prefix(&**first) else { return false };
        let Some(mut rest) = rest.strip_suffix(&**last) else { return false };
        for text in &self.texts[1..self.texts.len() - 1] {
            match rest.find(&**text) {
                Some(offset) => rest = &rest[offset + text.len()..],
                None => return false,
            }
        }
        true
    }

    /// The name that a template with one entry produces for a value.
    fn fill(&self, value: &str) -> String {
        self.texts.join(value)
    }
}
