//! The cookies and query parameters that name an entry, under each way in which upstreams read them (semantics 63).
//!
//! A pair that only some upstreams read as the entry, or whose value they read differently, is in doubt.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use smallvec::SmallVec;

use crate::settings::Repeated;

/// The values of an entry in a request: several if the request names it several times, or has a list.
pub(super) type Values<'a> = SmallVec<[Cow<'a, str>; 2]>;

/// What a text has for a name.
#[derive(Default)]
pub(super) struct Named<'a> {
    /// The values of the pairs with exactly this name.
    pub(super) values: Values<'a>,
    /// A value for each pair in doubt.
    pub(super) doubtful: Values<'a>,
}

impl<'a> Named<'a> {
    /// Adds what another text has for the name.
    pub(super) fn extend(&mut self, other: Self) {
        self.values.extend(other.values);
        self.doubtful.extend(other.doubtful);
    }

    /// The values that count. With `deny`, those in doubt make it a repeat; the other words choose among exact names.
    pub(super) fn counted(self, repeated: Repeated) -> Values<'a> {
        match repeated == Repeated::Deny && !self.doubtful.is_empty() {
            true => self.in_doubt(),
            false => self.values,
        }
    }

    /// All values, and at least two: of none and one it is in doubt whether there is any.
    pub(super) fn in_doubt(self) -> Values<'a> {
        let mut values = self.values;
        values.extend(self.doubtful);
        while values.len() < 2 {
            values.push(Cow::Borrowed(""));
        }
        values
    }
}

/// The cookies with this name, among pairs of a `Cookie` header. "Remove any leading or trailing WSP characters from the
/// name string and the value string" (RFC 6265, section 5.2), where WSP is a space or a tab.
pub(super) fn cookies<'t, 'v>(pairs: impl Iterator<Item = &'t str>, name: &str) -> Named<'v> {
    let mut named = Named::default();
    for (key, value) in pairs.filter_map(|pair| pair.split_once('=')) {
        let exact = trimmed(key) == name;
        if !exact && !is_alike(&unescaped(key), name) {
            continue;
        }
        let value = fully_unescaped(value);
        let value = trimmed(&value);
        let is_quoted = value.starts_with('"') || value.ends_with('"');
        let bare: Cow<'v, str> = Cow::Owned(value.trim_matches([' ', '\t', '"']).to_owned());
        // Python's http.cookies reads "\141" as a, others do not.
        if !exact || is_quoted && value.contains('\\') {
            named.doubtful.push(bare.clone());
        }
        if exact {
            named.values.push(bare);
        }
    }
    named
}

/// The parameters with this name in the query of a target, however it is escaped.
pub(super) fn query<'a>(target: &str, name: &str) -> Named<'a> {
    let mut named = Named::default();
    let Some((_, query)) = target.split_once('?') else { return named };
    let (query, fragment) = query.split_once('#').unwrap_or((query, ""));
    for pair in query.split('&') {
        let (key, value) = key_and_value(pair);
        if unescaped(key) == name {
            let value: Cow<'a, str> = Cow::Owned(unescaped(value));
            if pair.contains(';') {
                named.doubtful.push(value.clone());
            }
            named.values.push(value);
        } else {
            named.doubtful.extend(alike(pair, name));
        }
    }
    // Go does not end a query at a fragment.
    for pair in fragment.split('&').skip(1) {
        named.doubtful.extend(alike(pair, name));
    }
    named
}

/// The values of what upstreams that split at semicolons, such as Rack 2 and Perl, find for a name in a pair.
fn alike<'a>(pair: &str, name: &str) -> impl Iterator<Item = Cow<'a, str>> {
    let parts = pair.split(';').map(key_and_value);
    parts.filter(|(key, _)| is_alike(&unescaped(key), name)).map(|(_, value)| Cow::Owned(unescaped(value)))
}

/// Whether some upstream reads a key as this name.
///
/// PHP removes spaces in front, ends a key at a NUL, and reads spaces, dots and an open bracket as underscores. PHP, Rack
/// and qs read `account[]` and `account[0]` as values of `account`, Rack and qs also `[account]`.
pub(super) fn is_alike(key: &str, name: &str) -> bool {
    let folded = |c: char| if matches!(c, ' ' | '.' | '[') { '_' } else { c };
    let key = key.split('\0').next().unwrap_or(key);
    let key = key.trim_start_matches(|c: char| c.is_whitespace() || matches!(c, '[' | ']'));
    let mut rest = key.chars();
    name.chars().all(|c| rest.next().map(folded) == Some(folded(c))) && matches!(rest.next(), None | Some('[' | ']'))
}

fn key_and_value(pair: &str) -> (&str, &str) {
    pair.split_once('=').unwrap_or((pair, ""))
}

/// A text without spaces and tabs around it.
pub(super) fn trimmed(text: &str) -> &str {
    text.trim_matches([' ', '\t'])
}

/// A part of a query without its escapes.
fn unescaped(text: &str) -> String {
    percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
}

/// A text without percent escapes, and without those that come out of escapes: all spellings of a text have one form,
/// whether an upstream decodes them or not.
fn fully_unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    for byte in text.bytes() {
        bytes.push(byte);
        while let [.., b'%', high, low] = *bytes
            && let (Some(high), Some(low)) = (char::from(high).to_digit(16), char::from(low).to_digit(16))
        {
            bytes.truncate(bytes.len() - 3);
            bytes.push((high * 16 + low) as u8);
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(values: Values<'_>) -> Vec<String> {
        values.into_iter().map(Cow::into_owned).collect()
    }

    #[test]
    fn a_parameter_is_found_by_its_decoded_name() {
        let query = |target, name| texts(query(target, name).values);
        assert_eq!(query("/p?a=1&account=al%20b+c", "account"), ["al b c"]);
        assert_eq!(query("/p?%61ccount=x#account=y", "account"), ["x"]);
        assert_eq!(query("/p?flag", "flag"), [""]);
        assert_eq!(query("/p?a=%ff", "a"), ["\u{fffd}"]);
        assert_eq!(query("/p", "a"), [""; 0]);
        assert_eq!(query("/p?a=1&=2&&acc%6funt=3&Account=4&account&account=%2", "account"), ["3", "", "%2"]);
        assert_eq!(query("/p?a+b=1&a%20b=2&a%2bb=3", "a b"), ["1", "2"]);
    }

    #[test]
    fn names_that_php_rewrites_are_alike_in_both_directions() {
        for (key, name) in [("a.b", "a_b"), ("a b", "a_b"), ("a[b", "a_b"), ("a_b", "a.b"), (" .a[]", "_a")] {
            assert!(is_alike(key, name), "{key} {name}");
        }
        for key in ["filter[user]", "filter[user][]", "filter[user]\0x"] {
            assert!(is_alike(key, "filter[user]"), "{key}");
        }
        for key in ["filter", "filter[other]", "filter[users]", "", "[", "\0filter[user]"] {
            assert!(!is_alike(key, "filter[user]"), "{key}");
        }
    }

    #[test]
    fn all_escapes_of_a_text_are_one_text() {
        for spelling in ["a%b", "a%25b", "a%2525b", "%61%25%62", "%2561%%2562", "%%361%25b"] {
            assert_eq!(fully_unescaped(spelling), "a%b", "{spelling}");
        }
        assert_eq!(fully_unescaped("%%34%31"), "A");
        for plain in ["%", "%4", "%4g", "%+1", "é%é"] {
            assert_eq!(fully_unescaped(plain), plain);
        }
        // In linear time, or this does not end.
        let nested = format!("%{}41", "25".repeat(500_000));
        assert_eq!(fully_unescaped(&nested), "A");
    }
}
