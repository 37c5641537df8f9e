//! Reads the files of lists and tables. They are part of the configuration: they are watched, and one that is invalid
//! rejects a reload as a whole, so that what was read before stays.

use std::path::Path;

use crate::config::document::disk::Disk;
use crate::config::document::node::Position;
use crate::config::document::problem::{Location, Problems};
use crate::config::schema::decode::Located;
use crate::config::schema::values::shown_size;
use crate::rules::{DataFaults, DataSize};

/// The largest file, in bytes.
const MAX_BYTES: u64 = 256 << 20;

/// A file of data.
pub(super) struct DataFile {
    /// Its number, for errors.
    number: u16,
    /// Its content.
    pub(super) text: String,
}

impl DataFile {
    /// Reads the file of the list or table that is at `key`.
    pub(super) fn read(path: &Located<String>, key: &str, disk: &Disk, problems: &mut Problems) -> Option<Self> {
        let full = problems.directory(path.location.position).join(Path::new(&path.value));
        let bytes = match disk.read(&full, MAX_BYTES) {
            Ok(bytes) if bytes.len() as u64 > MAX_BYTES => {
                let most = shown_size(MAX_BYTES);
                problems.refuse(&path.location, format!("which is larger than {most}; split it"));
                return None;
            }
            Ok(bytes) => bytes,
            Err(error) => {
                problems.refuse(&path.location, format!("which cannot be read: {error}"));
                return None;
            }
        };
        let number = problems.add_file(full.display().to_string());
        match String::from_utf8(bytes) {
            Ok(text) => Some(Self { number, text }),
            Err(error) => {
                let valid = &error.as_bytes()[..error.utf8_error().valid_up_to()];
                let lines = u32::try_from(valid.iter().filter(|&&byte| byte == b'\n').count()).unwrap_or(u32::MAX);
                let place = DataPlace { file: number, line: lines.saturating_add(1) };
                place.error(key, "is not UTF-8 here; save the file as UTF-8", problems);
                None
            }
        }
    }

    /// The file as a whole.
    pub(super) fn whole(&self) -> DataPlace {
        DataPlace { file: self.number, line: 0 }
    }
}

/// A line of a file of data, or the whole file.
#[derive(Clone, Copy, Default)]
pub(super) struct DataPlace {
    file: u16,
    line: u32,
}

impl DataPlace {
    /// A line of the same file.
    pub(super) fn line(self, line: u32) -> Self {
        Self { line, ..self }
    }

    /// Reports an error about what is at `key`.
    pub(super) fn error(self, key: &str, sentence: &str, problems: &mut Problems) {
        let position = Position { file: self.file, line: self.line, column: 0 };
        problems.error(position, key, sentence);
    }

    /// Reports the faults of lines.
    pub(super) fn faults(self, key: &str, faults: &DataFaults, problems: &mut Problems) {
        for (line, sentence) in &faults.first {
            self.line(*line).error(key, sentence, problems);
        }
        if faults.more > 0 {
            self.line(0).error(key, &format!("has {} more such lines", faults.more), problems);
        }
    }
}

/// Notes the size of a list or table.
pub(super) fn note_size(size: &DataSize, noun: &str, user: &str, location: &Location, problems: &mut Problems) {
    let DataSize { rows, bytes, .. } = *size;
    let text = match bytes {
        0 => format!("has {rows} {noun}s, and no {user} names it"),
        _ => format!("has {rows} {noun}s in {bytes} bytes of memory: {} a {noun}", bytes.div_ceil(rows.max(1))),
    };
    problems.note(location.position, &location.path, text);
}
