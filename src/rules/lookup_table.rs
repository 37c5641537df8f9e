//! A table of values, from which entries are derived: data, not rules (semantics 59).

use std::fmt;
use std::hash::BuildHasher;
use std::sync::{Arc, Mutex, PoisonError};

use foldhash::quality::RandomState;
use hashbrown::HashTable;

use super::form::Form;
use super::value_list::DataFaults;
use super::value_set::Texts;

/// The longest value that a table has, in bytes. Longer ones are not hashed either.
pub const MAX_TABLE_VALUE_BYTES: usize = 1 << 10;

/// A digest of a value, such as SHA-256. The core has none itself.
pub type Digest = fn(&[u8]) -> [u8; 32];

/// A table as written: rows of one cell for each column. One column has the values by which a row is found.
pub struct LookupTable {
    name: Arc<str>,
    columns: Vec<String>,
    by: usize,
    digest: Option<Digest>,
    cells: Texts,
    /// Where the cells are, row by row.
    at: Vec<u32>,
    /// The line of each row.
    lines: Vec<u32>,
    formed: Mutex<Formed>,
}

/// What was made of a table, once for each form.
#[derive(Default)]
struct Formed {
    rows: Vec<(Form, FormedRows)>,
    columns: Vec<(usize, Form, Arc<Column>)>,
}

/// The rows by values in the form of an entry, or the faults that keep them from being found.
pub(super) type FormedRows = Result<Arc<RowIndex>, Arc<DataFaults>>;

impl LookupTable {
    /// A table without rows, whose rows are found by the values of the column with the index `by`. With a digest, that
    /// column has the digests of the values in lower-case hex.
    pub fn new(name: &str, columns: Vec<String>, by: usize, digest: Option<Digest>) -> Self {
        Self {
            name: name.into(),
            columns,
            by,
            digest,
            cells: Texts::default(),
            at: Vec::new(),
            lines: Vec::new(),
            formed: Mutex::default(),
        }
    }

    /// Adds a row, which is in this line of its file. Cells that are missing are empty.
    pub fn push<'c>(&mut self, line: u32, cells: impl IntoIterator<Item = &'c str>) {
        let mut cells = cells.into_iter();
        for _ in &self.columns {
            self.at.push(self.cells.push(cells.next().unwrap_or_default().trim().as_bytes()));
        }
        self.lines.push(line);
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The names of its columns.
    pub fn columns(&self) -> &[String] {
        &self.columns
    }

    /// The number of its rows.
    pub fn len(&self) -> usize {
        self.lines.len()
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.lines.is_empty()
    }

    /// The memory, in bytes, of everything that was made of it.
    pub fn bytes(&self) -> usize {
        let formed = self.formed.lock().unwrap_or_else(PoisonError::into_inner);
        let rows = formed.rows.iter().filter_map(|(_, rows)| Some(rows.as_ref().ok()?.bytes()));
        rows.sum::<usize>() + formed.columns.iter().map(|(.., column)| column.bytes()).sum::<usize>()
    }

    /// The index of a column.
    pub(crate) fn column(&self, name: &str) -> Option<usize> {
        self.columns.iter().position(|known| known == name)
    }

    /// The line of a row, and its cells.
    pub(super) fn row(&self, row: u32) -> (u32, impl Iterator<Item = (&str, &str)>) {
        let row = row as usize;
        let cells =
            self.columns.iter().enumerate().map(move |(index, column)| (column.as_str(), self.cell(row, index)));
        (self.lines[row], cells)
    }

    fn cell(&self, row: usize, column: usize) -> &str {
        self.cells.text(self.at[row * self.columns.len() + column])
    }

    /// The rows by values in the form of an entry. Made once for each form.
    pub(super) fn rows(&self, form: &Form) -> FormedRows {
        let mut formed = self.formed.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, known)) = formed.rows.iter().find(|(known, _)| known == form) {
            return known.clone();
        }
        let rows = self.formed_rows(form);
        formed.rows.push((form.clone(), rows.clone()));
        rows
    }

    /// Makes what deriving an entry needs: the rows in the form of the entry that finds them, and a column in the form of the
    /// derived entry.
    #[cfg(feature = "config")]
    pub(crate) fn prepare(&self, column: usize, from: &Form, entry: &Form) -> Result<(), Arc<DataFaults>> {
        self.values(column, entry);
        self.rows(from).map(drop)
    }

    /// A column with its values in the form of an entry. Made once for each form.
    pub(super) fn values(&self, column: usize, form: &Form) -> Arc<Column> {
        let mut formed = self.formed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = formed.columns.iter().find(|(known, known_form, _)| *known == column && known_form == form);
        if let Some((.., known)) = known {
            return known.clone();
        }
        let cells = (0..self.len()).map(|row| self.cell(row, column));
        let column_values = Arc::new(Column::of(cells, form));
        formed.columns.push((column, form.clone(), column_values.clone()));
        column_values
    }

    fn formed_rows(&self, form: &Form) -> FormedRows {
        let mut index = RowIndex::with_capacity(self.digest, self.len());
        let mut faults = DataFaults::default();
        for (row, &line) in self.lines.iter().enumerate() {
            if let Err(fault) = index.add(self.cell(row, self.by), form) {
                faults.add(line, fault.sentence(&self.columns[self.by], &self.lines));
            }
        }
        if faults.first.is_empty() { Ok(Arc::new(index.finish())) } else { Err(Arc::new(faults)) }
    }
}

impl fmt::Debug for LookupTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Not the rows: there can be millions, and they can be credentials.
        f.debug_struct("LookupTable").field("name", &self.name).field("columns", &self.columns).finish_non_exhaustive()
    }
}

/// Why a row cannot be found.
enum RowFault {
    Empty,
    TooLong,
    NoDigest,
    /// This earlier row has the same value.
    Again(u32),
}

impl RowFault {
    /// A sentence without a subject, and without the value, which can be a credential.
    fn sentence(&self, column: &str, lines: &[u32]) -> String {
        match self {
            RowFault::Empty => format!("has a row without a value of {column:?} here; remove it, or write the value"),
            RowFault::TooLong => {
                format!(
                    "has a value of {column:?} of more than {MAX_TABLE_VALUE_BYTES} bytes here, which no row is found by"
                )
            }
            RowFault::NoDigest => format!(
                "has no digest of {column:?} here; expected 64 lower-case hex digits, the SHA-256 of the value, or leave \
                 hashed out"
            ),
            RowFault::Again(row) => {
                let first = lines.get(*row as usize).copied().unwrap_or_default();
                format!("has the value of {column:?} of line {first} here again; remove one of these rows")
            }
        }
    }
}

/// The rows of a table by values in the form of an entry.
pub(super) struct RowIndex {
    keys: Keys,
    rows: HashTable<u32>,
    hasher: RandomState,
}

/// The values by which rows are found, in the order of the rows.
enum Keys {
    Texts { texts: Texts, at: Vec<u32> },
    Digests { digest: Digest, digests: Vec<[u8; 32]> },
}

impl Keys {
    fn at(&self, row: u32) -> &[u8] {
        match self {
            Keys::Texts { texts, at } => texts.at(at[row as usize]),
            Keys::Digests { digests, .. } => &digests[row as usize],
        }
    }
}

impl RowIndex {
    fn with_capacity(digest: Option<Digest>, rows: usize) -> Self {
        let keys = match digest {
            None => Keys::Texts { texts: Texts::default(), at: Vec::with_capacity(rows) },
            Some(digest) => Keys::Digests { digest, digests: Vec::with_capacity(rows) },
        };
        Self { keys, rows: HashTable::with_capacity(rows), hasher: RandomState::default() }
    }

    /// Adds the next row. One with a fault is never found.
    fn add(&mut self, cell: &str, form: &Form) -> Result<(), RowFault> {
        let digest;
        let value;
        let key = match &self.keys {
            _ if cell.is_empty() => Err(RowFault::Empty),
            Keys::Digests { .. } => {
                digest = hex(cell);
                digest.as_ref().map(|digest| &digest[..]).ok_or(RowFault::NoDigest)
            }
            Keys::Texts { .. } => {
                value = form.value(cell.into());
                match value.len() <= MAX_TABLE_VALUE_BYTES {
                    true => Ok(value.as_bytes()),
                    false => Err(RowFault::TooLong),
                }
            }
        };
        let same = key.as_ref().ok().and_then(|key| self.position(key));
        let row = match &mut self.keys {
            Keys::Texts { texts, at } => {
                at.push(texts.push(key.as_ref().map_or(&[], |key| key)));
                at.len() - 1
            }
            Keys::Digests { digests, .. } => {
                digests.push(key.as_ref().ok().and_then(|key| (*key).try_into().ok()).unwrap_or_default());
                digests.len() - 1
            }
        };
        let key = key?;
        if let Some(same) = same {
            return Err(RowFault::Again(same));
        }
        let row = u32::try_from(row).expect("a file has fewer than 2^32 lines");
        let Self { keys, rows, hasher } = self;
        rows.insert_unique(hasher.hash_one(key), row, |&row| hasher.hash_one(keys.at(row)));
        Ok(())
    }

    fn finish(mut self) -> Self {
        let Self { keys, rows, hasher } = &mut self;
        rows.shrink_to_fit(|&row| hasher.hash_one(keys.at(row)));
        if let Keys::Texts { texts, .. } = keys {
            texts.shrink();
        }
        self
    }

    fn position(&self, key: &[u8]) -> Option<u32> {
        self.rows.find(self.hasher.hash_one(key), |&row| self.keys.at(row) == key).copied()
    }

    /// The row of a value in the form of the entry.
    pub(super) fn find(&self, value: &str) -> Option<u32> {
        if value.len() > MAX_TABLE_VALUE_BYTES {
            return None;
        }
        match &self.keys {
            Keys::Texts { .. } => self.position(value.as_bytes()),
            Keys::Digests { digest, .. } => self.position(&digest(value.as_bytes())),
        }
    }

    /// The digest of a value, if rows are found by digests.
    pub(super) fn digest(&self, value: &str) -> Option<[u8; 32]> {
        match &self.keys {
            Keys::Digests { digest, .. } if value.len() <= MAX_TABLE_VALUE_BYTES => Some(digest(value.as_bytes())),
            Keys::Digests { .. } | Keys::Texts { .. } => None,
        }
    }

    /// The memory that it takes, in bytes.
    fn bytes(&self) -> usize {
        let keys = match &self.keys {
            Keys::Texts { texts, at } => texts.bytes() + at.capacity() * size_of::<u32>(),
            Keys::Digests { digests, .. } => digests.capacity() * size_of::<[u8; 32]>(),
        };
        size_of::<Self>() + keys + self.rows.allocation_size()
    }
}

impl fmt::Debug for RowIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RowIndex").field("rows", &self.rows.len()).finish_non_exhaustive()
    }
}

/// The bytes of 64 lower-case hex digits.
fn hex(text: &str) -> Option<[u8; 32]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let digits: &[u8; 64] = text.as_bytes().try_into().ok()?;
    let mut bytes = [0; 32];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// The values of a column in the form of an entry, each text once.
pub(super) struct Column {
    texts: Texts,
    /// Where the value of each row is.
    at: Vec<u32>,
}

impl Column {
    fn of<'c>(cells: impl ExactSizeIterator<Item = &'c str>, form: &Form) -> Self {
        let mut column = Self { texts: Texts::default(), at: Vec::with_capacity(cells.len()) };
        let (hasher, mut known) = (RandomState::default(), HashTable::<u32>::new());
        for cell in cells {
            let value = form.value(cell.into());
            let (value, texts) = (value.as_bytes(), &mut column.texts);
            let hash = hasher.hash_one(value);
            let at = match known.find(hash, |&at| texts.at(at) == value) {
                Some(&at) => at,
                None => {
                    let at = texts.push(value);
                    known.insert_unique(hash, at, |&at| hasher.hash_one(texts.at(at)));
                    at
                }
            };
            column.at.push(at);
        }
        column.texts.shrink();
        column
    }

    /// The value of a row. An empty cell is none.
    pub(super) fn value(&self, row: u32) -> Option<&str> {
        Some(self.texts.text(self.at[row as usize])).filter(|value| !value.is_empty())
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.texts.bytes() + self.at.capacity() * size_of::<u32>()
    }
}

impl fmt::Debug for Column {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Column").field("rows", &self.at.len()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::Normaliser;

    fn table(rows: &[[&str; 3]], digest: Option<Digest>) -> LookupTable {
        let mut table = LookupTable::new("keys", ["key", "account", "tier"].map(str::to_owned).to_vec(), 0, digest);
        (2..).zip(rows).for_each(|(line, row)| table.push(line, row.iter().copied()));
        table
    }

    #[test]
    fn semantics_59_rows_are_found_by_values_in_the_form_of_the_entry() {
        let table = table(&[["Ab", "ACME", "gold"], ["cd ", "Zeta", "gold"], ["ef", "", ""]], None);
        let lower = Form::by(vec![Normaliser::Lowercase]);
        let rows = table.rows(&lower).expect("no row twice");
        assert_eq!((rows.find("ab"), rows.find("Ab"), rows.find("cd"), rows.find("")), (Some(0), None, Some(1), None));
        let accounts = table.values(1, &lower);
        assert_eq!([0, 1, 2].map(|row| accounts.value(row)), [Some("acme"), Some("zeta"), None]);
        let tiers = table.values(2, &Form::default());
        assert_eq!(tiers.value(0), Some("gold"));
        assert!(tiers.texts.bytes() < 2 * "gold".len(), "each text once");
    }

    #[test]
    fn semantics_59_two_rows_of_one_value_are_a_fault_by_line_also_where_normalising_makes_them_one() {
        let rows = [["Ab", "", ""], ["x", "", ""], ["ab", "", ""], ["", "", ""], [&"k".repeat(1_025), "", ""]];
        let table = table(&rows, None);
        let lines = |form: &Form| {
            let faults = table.rows(form).expect_err("faults");
            faults.first.iter().map(|(line, _)| *line).collect::<Vec<u32>>()
        };
        assert_eq!(lines(&Form::default()), [5, 6]);
        assert_eq!(lines(&Form::by(vec![Normaliser::Lowercase])), [4, 5, 6]);
    }

    #[test]
    fn semantics_59_a_value_above_1_kib_is_in_no_table_and_is_not_hashed() {
        fn refuses_long(value: &[u8]) -> [u8; 32] {
            assert!(value.len() <= MAX_TABLE_VALUE_BYTES, "it must not be hashed");
            [7; 32]
        }
        let sevens = "07".repeat(32);
        let table = table(&[[&sevens, "acme", "gold"]], Some(refuses_long));
        let rows = table.rows(&Form::default()).expect("a digest");
        assert_eq!(rows.find(&"k".repeat(MAX_TABLE_VALUE_BYTES)), Some(0));
        assert_eq!(rows.find(&"k".repeat(MAX_TABLE_VALUE_BYTES + 1)), None);
    }

    #[test]
    fn semantics_59_digests_are_lower_case_hex() {
        let none = |_: &[u8]| [0; 32];
        for (cell, good) in [
            ("0123456789abcdef".repeat(4), true),
            ("0123456789ABCDEF".repeat(4), false),
            ("0".repeat(63), false),
            ("0".repeat(65), false),
            ("g".repeat(64), false),
        ] {
            assert_eq!(table(&[[&cell, "", ""]], Some(none)).rows(&Form::default()).is_ok(), good, "{cell}");
        }
    }
}
