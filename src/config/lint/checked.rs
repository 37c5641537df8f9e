//! A configuration without errors: its tables with their locations, and what was built of them.

use std::collections::HashMap;

use crate::config::schema;
use crate::config::schema::decode::Located;
use crate::rules::{Domain, Forms, Rule, RuleBook};
use crate::settings::Settings;

/// A configuration without errors.
pub(super) struct Checked<'a> {
    /// Its tables, with their locations.
    pub(super) file: &'a schema::File,
    /// What was built of its settings.
    pub(super) settings: &'a Settings,
    /// What was built of its rules.
    pub(super) book: &'a RuleBook,
    /// The settings of domains as written, by name.
    domains: HashMap<&'a str, &'a schema::Domain>,
    /// The forms of entries, by domain.
    forms: HashMap<&'a str, Forms>,
    /// Those of domains without settings.
    other_forms: Forms,
}

impl<'a> Checked<'a> {
    /// The tables, and what was built of them.
    pub(super) fn of(file: &'a schema::File, settings: &'a Settings, book: &'a RuleBook) -> Self {
        let domains = file.domains.named().iter();
        let domains = domains.filter_map(|item| Some((item.name.as_str(), item.value.as_ref()?))).collect();
        let forms = book.domains.iter().map(|domain| (domain.name.as_str(), Forms::of(domain))).collect();
        Self { file, settings, book, domains, forms, other_forms: Forms::of(&Domain::default()) }
    }

    /// The rules, as written and as built.
    pub(super) fn rules(&self) -> impl Iterator<Item = (&'a Located<schema::Rule>, &'a Rule)> + use<'a> {
        self.file.rules.items().iter().zip(&self.book.rules)
    }

    /// The forms of the entries of a domain.
    pub(super) fn forms(&self, domain: &str) -> &Forms {
        self.forms.get(domain).unwrap_or(&self.other_forms)
    }

    /// The settings of a domain as written.
    pub(super) fn domain(&self, name: &str) -> Option<&'a schema::Domain> {
        self.domains.get(name).copied()
    }
}
