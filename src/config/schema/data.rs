//! The tables of files with data: lists of values, and tables that entries are derived from.

use super::decode::{choice, table};

table! {
    /// A list of values that rules match by its name: `{ list = "NAME" }`.
    ListFile {
        [required]
        /// The file: one value a line, as a `match` writes it. Lines that begin with `#` are comments. A relative path begins at the directory of this file. It is watched like the configuration.
        file: String,
    }
}

table! {
    /// A table from which domains derive entries: `domains.NAME.derive`.
    TableFile {
        [required]
        /// The file: CSV with the names of the columns in its first line. A relative path begins at the directory of this file. It is watched like the configuration.
        file: String,
        [required]
        /// The column by whose values rows are found. Each value is in one row.
        by: String,
        /// How the values of that column are hashed. Without it they are as clients send them.
        hashed: Hashed,
    }
}

choice! {
    /// How the values of a column are hashed.
    Hashed {
        /// The SHA-256 of the normalised value, as 64 lower-case hex digits. It protects random keys of 128 bits or more, and no others.
        "sha256" => Sha256,
    }
}

table! {
    /// Where the value of a derived entry comes from.
    DeriveFrom {
        [required]
        /// The table.
        table: String,
        [required]
        /// The entry whose value finds a row. It is not derived itself.
        from: String,
        [required]
        /// The column with the value.
        column: String,
        /// The value where `from` is absent, no row has its value, or the cell is empty. Without it the entry is absent then.
        otherwise: String,
    }
}
