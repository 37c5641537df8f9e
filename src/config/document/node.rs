//! A tree of keys and values with their positions, the same for TOML and YAML.

use std::borrow::Cow;
use std::fmt;

/// A place in a file, for errors.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub(crate) struct Position {
    /// The index of the file among those that were read.
    pub file: u16,
    /// The line, counted from one.
    pub line: u32,
    /// The column, counted in characters from one. Zero if only the line is known.
    pub column: u32,
}

impl Position {
    /// The beginning of a file.
    pub(crate) fn start(file: u16) -> Self {
        Self { file, line: 1, column: 1 }
    }

    /// Its file and line.
    pub(crate) fn file_and_line(self) -> (u16, u32) {
        (self.file, self.line)
    }
}

/// A value with its position.
#[derive(Clone, Debug)]
pub(crate) struct TreeNode {
    /// The value.
    pub value: Value,
    /// Its position.
    pub position: Position,
}

/// A value of either format.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// `null`, `~` or an empty value in YAML.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number.
    Number(WrittenNumber),
    /// A text.
    Text(WrittenText),
    /// A list.
    List(Vec<TreeNode>),
    /// A table in the order of the file. Keys are unique.
    Table(Vec<(Key, TreeNode)>),
    /// A value of a type that no setting has, such as a date or a tagged value, as written.
    Other(String),
    /// A text whose variables could not be expanded, which was reported.
    Unexpanded,
}

/// A number.
#[derive(Clone, Debug)]
pub(crate) struct WrittenNumber {
    /// The number as the file writes it.
    pub written: String,
    /// The value, if it is an integer that fits.
    pub whole: Option<i128>,
    /// The value, rounded if necessary.
    pub float: f64,
}

impl WrittenNumber {
    /// Parses a number of either format: signs, `_` between digits, `0x`, `0o`, `0b`, fractions and exponents.
    pub(crate) fn parse(written: &str) -> Option<Self> {
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

/// A text, before and after its variables were expanded.
#[derive(Clone, Debug)]
pub(crate) struct WrittenText {
    /// The expanded text.
    pub text: String,
    /// The text before expansion, if it had variables. Errors show this one, because the value of a variable may be a
    /// secret.
    pub written: Option<String>,
}

/// A key of a table.
#[derive(Clone, Debug)]
pub(crate) struct Key {
    /// Its name.
    pub text: String,
    /// Its position.
    pub position: Position,
}

/// Formats a value for an error: shortened, without the credentials of a URL, and without the values of variables.
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
            Value::Unexpanded => f.write_str("a text that cannot be expanded"),
        }
    }
}

/// The replacement for a secret.
pub(crate) const MASK: &str = "***";

/// Masks the credentials and options if a text is a URL: `redis://***:***@host:6379/0`. Only the scheme remains if the
/// credentials cannot be identified, for example if the `@` was forgotten.
pub(crate) fn masked(text: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = text.split_once("://") else { return text.into() };
    let (credentials, address) = match rest.rsplit_once('@') {
        Some((credentials, address)) => (Some(credentials), address),
        None => (None, rest),
    };
    let (address, options) = match address.split_once('?') {
        Some((address, _)) => (address, "?***"),
        None => (address, ""),
    };
    // With a question mark before the at sign, one of them is part of a password.
    if credentials.is_some_and(|credentials| credentials.contains('?')) || !is_plain_address(address) {
        return format!("{scheme}://{MASK}").into();
    }
    let credentials = match credentials {
        Some(credentials) if credentials.contains(':') => "***:***@",
        Some(_) => "***@",
        None => "",
    };
    format!("{scheme}://{credentials}{address}{options}").into()
}

/// Whether this is a list, perhaps empty, of `host`, `host:6379` or `[::1]:6379`, followed by a path, and nothing else.
fn is_plain_address(address: &str) -> bool {
    let plain = |text: &str| text.chars().all(|c| c.is_alphanumeric() || matches!(c, '.' | '-' | '_'));
    let (hosts, path) = address.split_once('/').unwrap_or((address, ""));
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
pub(crate) fn join(path: &str, key: &str) -> String {
    let bare = !key.is_empty() && key.chars().all(|c| c.is_alphanumeric() || matches!(c, '_' | '-' | '{' | '}'));
    let key = if bare { key.to_owned() } else { format!("{key:?}") };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}
