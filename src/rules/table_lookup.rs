//! What a table has for a value, for an operator.

use std::borrow::Cow;

use super::book::{Derive, RuleBook};
use super::form::Form;
use super::forms::Forms;
use super::lookup_table::LookupTable;

/// What a table has for a value, as one domain looks it up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableLookup {
    /// The domain, and the entry whose value is looked up. None if no domain derives an entry from the table.
    pub by: Option<(String, String)>,
    /// The value in the form of that entry.
    pub value: String,
    /// Its digest in lower-case hex, if the table has digests.
    pub digest: Option<String>,
    /// The line of the row, and its cells by column.
    pub row: Option<(u32, Vec<(String, String)>)>,
    /// The entries that the domain derives, with their values.
    pub derived: Vec<(String, Option<String>)>,
}

impl RuleBook {
    /// Looks a value up in a table, in each way in which a domain does. None if there is no such table.
    pub fn look_up(&self, table: &str, value: &str) -> Option<Vec<TableLookup>> {
        let table = self.tables.iter().find(|known| known.name() == table)?;
        let mut found = Vec::new();
        for domain in &self.domains {
            let forms = Forms::of(domain);
            let of_table = || domain.derive.iter().filter(|derive| derive.table.name() == table.name());
            let mut froms: Vec<&str> = of_table().map(|derive| derive.from.as_str()).collect();
            froms.dedup();
            for from in froms {
                let derives: Vec<&Derive> = of_table().filter(|derive| derive.from == from).collect();
                let by = Some((domain.name.clone(), from.to_owned()));
                found.push(look_up(table, by, value, &forms, &derives));
            }
        }
        if found.is_empty() {
            found.push(look_up(table, None, value, &Forms::default(), &[]));
        }
        Some(found)
    }
}

fn look_up(
    table: &LookupTable,
    by: Option<(String, String)>,
    value: &str,
    forms: &Forms,
    derives: &[&Derive],
) -> TableLookup {
    let any = Form::default();
    let form = by.as_ref().and_then(|(_, from)| forms.get(from)).unwrap_or(&any);
    let value = form.value(Cow::Borrowed(value)).into_owned();
    let rows = table.rows(form).ok();
    let row = rows.as_ref().and_then(|rows| rows.find(&value));
    let derived = derives.iter().map(|derive| {
        let cell = row.and_then(|row| {
            let (_, mut cells) = table.row(row);
            cells.find(|(column, cell)| *column == derive.column && !cell.is_empty()).map(|(_, cell)| cell)
        });
        let value = cell.or(derive.otherwise.as_deref());
        (derive.entry.clone(), value.map(|value| forms.value(&derive.entry, value.into()).into_owned()))
    });
    let derived = derived.collect();
    let digest = rows
        .and_then(|rows| rows.digest(&value))
        .map(|digest| digest.iter().map(|byte| format!("{byte:02x}")).collect());
    let row = row.map(|row| {
        let (line, cells) = table.row(row);
        (line, cells.map(|(column, cell)| (column.to_owned(), cell.to_owned())).collect())
    });
    TableLookup { by, value, digest, row, derived }
}
