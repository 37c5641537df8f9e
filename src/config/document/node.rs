//! A configuration file as a tree in which every key and every value knows its place.
//!
//! TOML and YAML both become this tree; from here on nobody asks which of them it was.

use std::borrow::Cow;
use std::fmt;

/// A place in one of the files read: what an error points at.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Position {
    /// The place of the file among those read.
    pub file: u16,
    /// The line, counted from one.
    pub line: u32,
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub struct TreeNode {
    /// What is there.
    pub value: Value,
    /// Where.
    pub position: Position,
}

/// A value as both formats have it.
#[derive(Clone, Debug)]
pub enum Value {
    /// YAML's `null`, `~` and nothing.
    Null,
    /// A truth value.
    Bool(bool),
    /// A number.
    Number(WrittenNumber),
    /// A text.
    Text(WrittenText),
    /// A list.
    List(Vec<TreeNode>),
    /// A table, in the order of the file, each key once.
    Table(Vec<(Key, TreeNode)>),
    /// Something of one format that no setting takes: a date, a tagged value.
    Other(String),
    /// A text whose variables could not be expanded, which was told already.
    Lost,
}

/// A number as written.
#[derive(Clone, Debug)]
pub struct WrittenNumber {
    /// How the file has it.
    pub written: String,
    /// Its value when it is whole and fits.
    pub whole: Option<i128>,
    /// Its value, perhaps rounded.
    pub float: f64,
}

impl WrittenNumber {
    /// Reads the digits of both formats: signs, `_` between digits, `0x`, `0o`, `0b`, fractions and exponents.
    pub fn parse(written: &str) -> Option<Self> {
        let plain = written.replace('_', "");
        let (negative, digits) = match plain.strip_prefix(['+', '-']) {
            Some(digits) => (plain.starts_with('-'), digits),
            None => (false, plain.as_str()),
        };
        if !digits.starts_with(|first: char| first.is_ascii_digit() || first == '.') {
            return None;
        }
        let radix = match digits.get(..2) {
            Some("0x") => 16,
            Some("0o") => 8,
            Some("0b") => 2,
            _ => 10,
        };
        let sign = if negative { -1 } else { 1 };
        let digits = if radix == 10 { digits } else { &digits[2..] };
        let whole = i128::from_str_radix(digits, radix).ok().map(|value| sign * value);
        let float = match whole {
            Some(whole) => whole as f64,
            None if radix == 10 => digits.parse::<f64>().ok()? * f64::from(sign as i8),
            None => return None,
        };
        Some(Self { written: written.to_owned(), whole, float })
    }
}

/// A text, with how it was written where a variable was expanded in it.
#[derive(Clone, Debug)]
pub struct WrittenText {
    /// The text that counts.
    pub text: String,
    /// The text before its variables were expanded, when it had any. What came out of the environment may be a
    /// secret, so errors show this one.
    pub written: Option<String>,
}

/// A key of a table.
#[derive(Clone, Debug)]
pub struct Key {
    /// Its text.
    pub text: String,
    /// Where.
    pub position: Position,
}

/// Shows a value the way an error does: short, without the credentials of a URL, and never what came out of a variable.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Null => f.write_str("empty"),
            Value::Bool(value) => value.fmt(f),
            Value::Number(number) => f.write_str(&number.written),
            Value::Text(WrittenText { text, written }) => {
                let text = &masked(written.as_ref().unwrap_or(text));
                match text.char_indices().nth(60) {
                    Some((end, _)) => write!(f, "\"{}...\"", text[..end].escape_debug()),
                    None => write!(f, "{text:?}"),
                }
            }
            Value::List(_) => f.write_str("a list"),
            Value::Table(_) => f.write_str("a table"),
            Value::Other(written) => f.write_str(written),
            Value::Lost => f.write_str("lost"),
        }
    }
}

/// What stands where a secret was.
pub const MASK: &str = "***";

/// A text without the credentials and options of the URL that it may be: `redis://***@host:6379/0`. Where it cannot be
/// told what is a credential, as when the `@` was forgotten, only the scheme stays.
pub fn masked(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    let (credentials, place) = match rest.rsplit_once('@') {
        Some((credentials, place)) => (Some(credentials), place),
        None => (None, rest),
    };
    let (place, options) = match place.split_once('?') {
        Some((place, _)) => (place, "?***"),
        None => (place, ""),
    };
    // A question mark before the at sign: one of them is part of a password.
    if credentials.is_some_and(|credentials| credentials.contains('?')) || !is_place(place) {
        return format!("{scheme}://{MASK}").into();
    }
    let credentials = if credentials.is_some() { "***@" } else { "" };
    format!("{scheme}://{credentials}{place}{options}").into()
}

/// Whether this is plainly `host`, `host:6379`, `[::1]:6379`, several of them, or none, before a plain path.
fn is_place(place: &str) -> bool {
    let plain = |text: &str| text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let (hosts, path) = place.split_once('/').unwrap_or((place, ""));
    let host = |host: &str| {
        let end = host.find(']').map_or(0, |end| end + 1);
        let (host, port) = match host[end..].split_once(':') {
            Some((name, port)) => (&host[..end + name.len()], port),
            None => (host, "0"),
        };
        let inside = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let named = match inside {
            Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && plain(host),
        };
        named && port.parse::<u16>().is_ok()
    };
    (hosts.is_empty() || hosts.split(',').all(host)) && path.split('/').all(plain)
}

/// The path of a key inside a table: `limiters.login`, `limiters."a b"`.
pub fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '{' | '}'));
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
