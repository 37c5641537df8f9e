//! Warnings about a configuration that is valid and probably not meant so.
//!
//! Each kind of warning is one function, in the file of its subject. It reads the tables with their locations and what
//! was built of them, and only for a configuration without errors. [`WarningKind`] has the names of the kinds, and
//! `docs/check.md` lists them.
//!
//! [`WarningKind`]: crate::config::WarningKind

mod checked;
mod data;
mod domains;
mod entries;
mod limiters;
mod literals;
mod rules;
mod server;

use self::checked::Checked;
use super::document::problem::Problems;
use super::schema;
use crate::rules::RuleBook;
use crate::settings::Settings;

/// Reports all warnings of a configuration, unless it has errors.
pub(super) fn warn(file: &schema::File, settings: &Settings, book: &RuleBook, problems: &mut Problems) {
    // Without errors each written rule was built.
    if problems.has_errors() || file.rules.items().len() != book.rules.len() {
        return;
    }
    let checked = Checked::of(file, settings, book);
    server::clear_text(&checked, problems);
    server::api_domain(&checked, problems);
    limiters::unused(&checked, problems);
    limiters::large_burst(&checked, problems);
    limiters::long_window(&checked, problems);
    limiters::ignored_key(&checked, problems);
    limiters::queued_wait(&checked, problems);
    limiters::direct_applied(&checked, problems);
    data::unused_list(&checked, problems);
    data::unused_table(&checked, problems);
    data::absent_passes(&checked, problems);
    domains::unused(&checked, problems);
    domains::similar(&checked, problems);
    entries::misnamed(&checked, problems);
    entries::not_normalised(&checked, problems);
    entries::unused(&checked, problems);
    entries::absent_key(&checked, problems);
    entries::header_underscore(&checked, problems);
    literals::literals(&checked, problems);
    rules::redirect(&checked, problems);
    rules::lost_release(&checked, problems);
    rules::without_effect(&checked, problems);
}
