//! Warnings about rules that have no effect.

use std::collections::HashMap;

use super::checked::Checked;
use crate::config::document::problem::Problems;
use crate::config::document::warning::WarningKind;
use crate::config::schema::Lost;
use crate::rules::{Action, Matcher, Rule};

/// The rules of a domain that end the walk and are filed under no exact value: more are not compared with the others.
const MAX_GENERAL: usize = 500;

/// Warns of a redirect as the status of refusals.
pub(super) fn redirect(checked: &Checked<'_>, problems: &mut Problems) {
    for (written, _) in checked.rules() {
        if let Some(status) = written.status.get().filter(|status| status.0 < 400) {
            let reason =
                "a redirect without a location: no rule can set that header; expected a status from 400 to 599";
            problems.warn(WarningKind::RedirectWithoutLocation, &status.location, reason);
        }
    }
}

/// Warns of holds that are given back if nobody settles them (semantics 40).
pub(super) fn lost_release(checked: &Checked<'_>, problems: &mut Problems) {
    for (written, _) in checked.rules() {
        for apply in written.apply.items() {
            if let Some(lost) = apply.value.lost.get().filter(|lost| lost.value == Lost::Release) {
                let reason =
                    "a client that breaks a request off pays nothing: expected \"charge\", unless that is meant";
                problems.warn(WarningKind::LostRelease, &lost.location, reason);
            }
        }
    }
}

/// Warns of rules that no request reaches, and of rules that do what an earlier one does.
pub(super) fn without_effect(checked: &Checked<'_>, problems: &mut Problems) {
    let mut domains: HashMap<&str, Earlier<'_>> = HashMap::new();
    for (number, (written, rule)) in checked.rules().enumerate() {
        let tests = tests(checked, rule);
        let earlier = domains.entry(rule.domain.as_str()).or_default();
        let rules = checked.file.rules.items();
        let shown = |number: usize, problems: &Problems| {
            let written = &rules[number];
            let name = &checked.book.rules[number].name;
            format!("{name:?} at {}", problems.locate(written.location.position))
        };
        if let Some(ending) = earlier.covering(&tests) {
            let ending = shown(ending, problems);
            let reason = format!(
                "is never reached: rule {ending} matches all its requests and ends the walk; move it before that"
            );
            problems.warn_of(WarningKind::UnreachableRule, &written.location, reason);
        } else if let Some(same) = earlier.same(&tests, rule) {
            let same = shown(same, problems);
            let reason = format!("matches and does the same as rule {same}; remove one, or correct its match or apply");
            problems.warn_of(WarningKind::DuplicateRule, &written.location, reason);
        }
        earlier.add(number, rule, tests);
    }
}

/// The tests of a rule, with literals in the form of the values, sorted by entry.
type Tests = Vec<(String, Matcher)>;

fn tests(checked: &Checked<'_>, rule: &Rule) -> Tests {
    let forms = checked.forms(&rule.domain);
    let form = |(entry, test): &(String, Matcher)| {
        (entry.clone(), forms.literal(entry, test).unwrap_or_else(|_| test.clone()))
    };
    let mut tests: Tests = rule.matches.iter().map(form).collect();
    tests.sort_by(|(a, _), (b, _)| a.cmp(b));
    tests
}

/// Whether every descriptor that the rule matches ends its walk there.
fn ends_walk(rule: &Rule) -> bool {
    let ends = rule.last || matches!(rule.action, Action::Allow | Action::Deny);
    ends && !rule.shadow && rule.enforce_percent.is_none_or(|percent| percent == 100)
}

/// The earlier rules of a domain, by their numbers.
#[derive(Default)]
struct Earlier<'a> {
    /// Rules that end the walk, by an exact value that they require.
    exact: HashMap<(String, String), Vec<(usize, Tests)>>,
    /// Other rules that end the walk.
    general: Vec<(usize, Tests)>,
    /// All rules, by their tests.
    by_tests: HashMap<String, Vec<(usize, &'a Rule)>>,
}

impl<'a> Earlier<'a> {
    /// The first rule that ends the walk of everything that passes these tests.
    fn covering(&self, tests: &Tests) -> Option<usize> {
        let exact = tests.iter().filter_map(|test| self.exact.get(&exact_value(test)?));
        let candidates = self.general.iter().chain(exact.flatten());
        let covers = |ending: &Tests| {
            ending.iter().all(|(entry, test)| {
                let own = tests.iter().find(|(own, _)| own == entry);
                own.is_some_and(|(_, own)| test.covers(own))
            })
        };
        candidates.filter(|(_, ending)| covers(ending)).map(|(number, _)| *number).min()
    }

    /// The first rule with the same tests, action and mode.
    fn same(&self, tests: &Tests, rule: &Rule) -> Option<usize> {
        let mode = |rule: &Rule| (rule.shadow, rule.enforce_percent, rule.last);
        let same =
            |other: &&(usize, &'a Rule)| mode(other.1) == mode(rule) && normal(&other.1.action) == normal(&rule.action);
        self.by_tests.get(&format!("{tests:?}"))?.iter().find(same).map(|(number, _)| *number)
    }

    fn add(&mut self, number: usize, rule: &'a Rule, tests: Tests) {
        self.by_tests.entry(format!("{tests:?}")).or_default().push((number, rule));
        if !ends_walk(rule) {
            return;
        }
        match tests.iter().find_map(exact_value) {
            Some(value) => self.exact.entry(value).or_default().push((number, tests)),
            None if self.general.len() < MAX_GENERAL => self.general.push((number, tests)),
            None => {}
        }
    }
}

/// The entry and the value, if a test has one value.
fn exact_value((entry, test): &(String, Matcher)) -> Option<(String, String)> {
    match test {
        Matcher::Exact(value) => Some((entry.clone(), value.clone())),
        _ => None,
    }
}

/// An action with its limiters and keys in order.
fn normal(action: &Action) -> Vec<String> {
    match action {
        Action::Apply(applies) => {
            let mut applies: Vec<String> = applies
                .iter()
                .map(|apply| {
                    let mut apply = apply.clone();
                    apply.key.sort_by(|a, b| a.entry.cmp(&b.entry));
                    format!("{apply:?}")
                })
                .collect();
            applies.sort();
            applies
        }
        Action::Allow => vec!["allow".to_owned()],
        Action::Deny => vec!["deny".to_owned()],
    }
}
