//! Warnings about lists and tables.

use std::collections::BTreeSet;

use super::checked::Checked;
use crate::config::document::problem::{Problems, nearest};
use crate::config::document::warning::WarningKind;
use crate::rules::{Action, ListTest, Matcher};

/// Warns of lists that no rule names.
pub(super) fn unused_list(checked: &Checked<'_>, problems: &mut Problems) {
    let tests = checked.book.rules.iter().flat_map(|rule| &rule.matches);
    let used: BTreeSet<&str> = tests.flat_map(|(_, test)| test.lists()).map(ListTest::name).collect();
    for item in checked.file.lists.named().iter().filter(|item| !used.contains(item.name.as_str())) {
        let remedy = match nearest(&item.name, used.iter().copied()) {
            Some(near) => format!("rules name {near:?}"),
            None => format!("match it, {{ list = {:?} }}, or remove it", item.name),
        };
        problems.warn_of(WarningKind::UnusedList, &item.location, format!("is a list that no rule names; {remedy}"));
    }
}

/// Warns of tables that no domain derives an entry from.
pub(super) fn unused_table(checked: &Checked<'_>, problems: &mut Problems) {
    let derives = checked.book.domains.iter().flat_map(|domain| &domain.derive);
    let used: BTreeSet<&str> = derives.map(|derive| derive.table.name()).collect();
    for item in checked.file.tables.named().iter().filter(|item| !used.contains(item.name.as_str())) {
        let remedy = match nearest(&item.name, used.iter().copied()) {
            Some(near) => format!("domains name {near:?}"),
            None => "name it in domains.NAME.derive, or remove it".to_owned(),
        };
        let reason = format!("is a table that no domain derives an entry from; {remedy}");
        problems.warn_of(WarningKind::UnusedTable, &item.location, reason);
    }
}

/// Warns of rules that deny who is not in a list, and let those pass who send no such entry (semantics 58).
pub(super) fn absent_passes(checked: &Checked<'_>, problems: &mut Problems) {
    for (written, rule) in checked.rules().filter(|(_, rule)| matches!(rule.action, Action::Deny)) {
        for ((entry, test), item) in rule.matches.iter().zip(written.matches.named()) {
            if let (Some(list), false) = (outside_of(test), test.matches_absent()) {
                let reason = format!(
                    "denies who is not in list {list:?}, but not who sends no {entry}; write [{{ not = {{ list = {list:?} }} }}, \
                     {{ not = \"*\" }}] to deny both, or deny the others in a rule of their own"
                );
                problems.warn_of(WarningKind::AbsentPasses, &item.location, reason);
            }
        }
    }
}

/// The list that a value has to be outside of to pass the test, if there is one.
fn outside_of(test: &Matcher) -> Option<&str> {
    match test {
        Matcher::Not(not) => not.lists().first().map(|list| list.name()),
        Matcher::AnyOf(any) => any.iter().find_map(outside_of),
        _ => None,
    }
}
