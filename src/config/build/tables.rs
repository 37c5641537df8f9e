//! Builds the tables that entries are derived from, and the derived entries of domains.

use std::collections::HashMap;
use std::sync::Arc;

use super::data_file::{DataFile, DataPlace, note_size};
use crate::config::document::disk::Disk;
use crate::config::document::problem::{Location, Problems, remedy};
use crate::config::schema;
use crate::config::schema::values::Item;
#[cfg(feature = "server")]
use crate::rules::Digest;
use crate::rules::{DataSize, Derive, Form, Forms, LookupTable};

/// The tables of a configuration.
pub(in crate::config) struct Tables<'a> {
    /// In the order of the configuration.
    tables: Vec<WrittenTable<'a>>,
    by_name: HashMap<&'a str, usize>,
}

struct WrittenTable<'a> {
    name: &'a str,
    location: &'a Location,
    place: DataPlace,
    /// None if it could not be read, which was reported.
    table: Option<Arc<LookupTable>>,
}

/// Reads the files of the tables.
pub(in crate::config) fn tables<'a>(file: &'a schema::File, disk: &Disk, problems: &mut Problems) -> Tables<'a> {
    let mut tables = Vec::new();
    for item in file.tables.named() {
        let read = item.value.as_ref().and_then(|written| {
            let file = DataFile::read(written.file.get()?, &item.location.path, disk, problems)?;
            Some((file.whole(), table(item, written, &file, problems)))
        });
        let (place, table) = read.unwrap_or_default();
        tables.push(WrittenTable { name: &item.name, location: &item.location, place, table: table.map(Arc::new) });
    }
    let by_name = tables.iter().enumerate().map(|(index, table)| (table.name, index)).collect();
    Tables { tables, by_name }
}

#[cfg(not(feature = "server"))]
fn table(
    item: &Item<schema::TableFile>,
    _: &schema::TableFile,
    _: &DataFile,
    problems: &mut Problems,
) -> Option<LookupTable> {
    let reason = "is a table, which this build cannot read; build tollgate with the cargo feature \"server\"";
    problems.error(item.location.position, &item.location.path, reason);
    None
}

/// Reads the rows of a table.
#[cfg(feature = "server")]
fn table(
    item: &Item<schema::TableFile>,
    written: &schema::TableFile,
    file: &DataFile,
    problems: &mut Problems,
) -> Option<LookupTable> {
    use sha2::Digest as _;

    let (place, key) = (file.whole(), item.location.path.as_str());
    let by = written.by.get()?;
    let mut reader = csv::ReaderBuilder::new()
        .trim(csv::Trim::All)
        .from_reader(file.text.strip_prefix('\u{feff}').unwrap_or(&file.text).as_bytes());
    let mut unreadable = |error: &csv::Error| {
        let line = error.position().map_or(0, |position| u32::try_from(position.line()).unwrap_or(u32::MAX));
        let sentence = match error.kind() {
            csv::ErrorKind::UnequalLengths { expected_len, len, .. } => format!(
                "has {len} cells here, expected {expected_len} as in the first line; put a cell with a comma in quotes"
            ),
            _ => format!("is no CSV here: {error}"),
        };
        place.line(line).error(key, &sentence, problems);
    };
    let columns: Vec<String> = match reader.headers() {
        Ok(columns) => columns.iter().map(str::to_owned).collect(),
        Err(error) => {
            unreadable(&error);
            return None;
        }
    };
    let position = columns.iter().position(|column| *column == by.value);
    let sha256: Digest = |value| sha2::Sha256::digest(value).into();
    let digest = written.hashed.get().map(|_| sha256);
    let mut table = LookupTable::new(&item.name, columns.clone(), position.unwrap_or_default(), digest);
    let mut record = csv::StringRecord::new();
    loop {
        match reader.read_record(&mut record) {
            Ok(true) => {
                let line = record.position().map_or(0, csv::Position::line);
                table.push(u32::try_from(line).unwrap_or(u32::MAX), &record);
            }
            Ok(false) => break,
            Err(error) => {
                unreadable(&error);
                return None;
            }
        }
    }
    if let Some(again) = (1..columns.len()).find(|&index| columns[..index].contains(&columns[index])) {
        place.line(1).error(key, &format!("has the column {:?} twice; rename one", columns[again]), problems);
        return None;
    }
    if position.is_none() {
        let remedy = remedy(by, columns.iter().map(String::as_str), "columns");
        problems.refuse(&by.location, format!("but the first line of the file has no such column{remedy}"));
        return None;
    }
    if table.is_empty() {
        place.error(key, "has no row; expected the names of the columns in the first line, and rows below", problems);
    }
    Some(table)
}

impl Tables<'_> {
    /// The entries that a domain derives, whose values have these forms.
    pub(in crate::config) fn derive(
        &self,
        written: &schema::Domain,
        forms: &Forms,
        problems: &mut Problems,
    ) -> Vec<Derive> {
        let mut derived = Vec::new();
        for item in written.derive.named() {
            let Some(derive) = &item.value else { continue };
            let (Some(name), Some(from), Some(column)) = (derive.table.get(), derive.from.get(), derive.column.get())
            else {
                continue;
            };
            if written.derive.named().iter().any(|other| other.name == from.value) {
                let reason = "but that is derived itself; name an entry that clients send";
                problems.refuse(&from.location, reason);
                continue;
            }
            let Some(&index) = self.by_name.get(name.as_str()) else {
                if !problems.has_syntax_errors() {
                    let remedy = remedy(name, self.tables.iter().map(|table| table.name), "tables");
                    problems.refuse(&name.location, format!("but no table has this name{remedy}"));
                }
                continue;
            };
            let WrittenTable { location, place, table: Some(table), .. } = &self.tables[index] else { continue };
            let Some(position) = table.column(column) else {
                let remedy = remedy(column, table.columns().iter().map(String::as_str), "columns");
                problems.refuse(&column.location, format!("but table {:?} has no such column{remedy}", name.value));
                continue;
            };
            let any = Form::default();
            let form = |entry: &str| forms.get(entry).unwrap_or(&any);
            if let Err(faults) = table.prepare(position, form(from), form(&item.name)) {
                place.faults(&location.path, &faults, problems);
            }
            derived.push(Derive {
                entry: item.name.clone(),
                from: from.value.clone(),
                table: table.clone(),
                column: column.value.clone(),
                otherwise: derive.otherwise.get().map(|otherwise| otherwise.value.clone()),
            });
        }
        derived
    }

    /// Notes the size of each table, and returns them.
    pub(in crate::config) fn finish(self, problems: &mut Problems) -> Vec<Arc<LookupTable>> {
        for WrittenTable { location, table, .. } in &self.tables {
            if let Some(table) = table {
                note_size(&DataSize::of_table(table), "row", "domain", location, problems);
            }
        }
        self.tables.into_iter().filter_map(|written| written.table).collect()
    }
}
