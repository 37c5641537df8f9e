//! Entries on the command line.

/// Parses `ENTRY=VALUE`.
pub(super) fn entry(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected ENTRY=VALUE, such as account=bob".to_owned()),
    }
}
