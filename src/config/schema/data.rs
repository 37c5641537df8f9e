//! The tables of data files: lists of values.

use super::decode::table;

table! {
    /// A list of values that rules match by its name: `{ list = "NAME" }`.
    ListFile {
        [required]
        /// The file: one value a line, as a `match` writes it. Lines that begin with `#` are comments. A relative path begins at the directory of this file. It is watched like the configuration.
        file: String,
    }
}
