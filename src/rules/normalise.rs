//! Normalises values before they are matched or counted, so that one client has one counter.

use std::borrow::Cow;
use std::net::Ipv6Addr;

use percent_encoding::percent_decode_str;

use super::address::cut;

/// The default prefix length by which IPv6 clients are counted: the usual network of one client.
pub(crate) const DEFAULT_IPV6_PREFIX: u8 = 64;

/// One normalisation of a value. Each is idempotent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Normaliser {
    /// Converts to Unicode lower case: see [`lowercase`].
    Lowercase,
    /// Removes white space at both ends.
    Trim,
    /// Normalises a request path: see [`path`].
    Path,
    /// Normalises a host: see [`host`].
    Host,
    /// Converts an HTTP method to upper case.
    Method,
    /// Removes the scheme from `Bearer` credentials: see [`bearer`].
    Bearer,
    /// Converts to Unicode Normalization Form KC, in which letters that look alike, such as full-width ones, are one.
    #[cfg(feature = "unicode")]
    Nfkc,
    /// Truncates IPv6 addresses to this many bits. IPv4 addresses are unchanged.
    Ipv6Prefix(u8),
}

impl Normaliser {
    /// Its word in the configuration.
    pub fn word(self) -> &'static str {
        match self {
            Normaliser::Lowercase => "lowercase",
            Normaliser::Trim => "trim",
            Normaliser::Path => "path",
            Normaliser::Host => "host",
            Normaliser::Method => "method",
            Normaliser::Bearer => "bearer",
            #[cfg(feature = "unicode")]
            Normaliser::Nfkc => "nfkc",
            Normaliser::Ipv6Prefix(_) => "ipv6_prefix",
        }
    }

    /// Returns the normalised value, borrowed where nothing changes.
    pub fn apply<'a>(self, value: Cow<'a, str>) -> Cow<'a, str> {
        match self {
            Normaliser::Lowercase => by(value, lowercase),
            Normaliser::Trim => by(value, |text| Cow::Borrowed(text.trim())),
            Normaliser::Path => by(value, path),
            Normaliser::Host => by(value, host),
            Normaliser::Method => by(value, method),
            Normaliser::Bearer => by(value, |text| Cow::Borrowed(bearer(text))),
            #[cfg(feature = "unicode")]
            Normaliser::Nfkc => by(value, nfkc),
            Normaliser::Ipv6Prefix(bits) => cut(value, bits),
        }
    }
}

/// Rewrites a value by a function of its text.
pub(super) fn by<'a>(value: Cow<'a, str>, rewrite: impl for<'t> Fn(&'t str) -> Cow<'t, str>) -> Cow<'a, str> {
    match value {
        Cow::Borrowed(text) => rewrite(text),
        Cow::Owned(text) => match rewrite(&text) {
            Cow::Borrowed(same) if same.len() == text.len() => Cow::Owned(text),
            changed => Cow::Owned(changed.into_owned()),
        },
    }
}

/// Returns a text in Unicode lower case. Each letter is converted alone, so that the parts of a pattern are converted as
/// in a whole value; a Greek sigma has one form at the end of a word and elsewhere.
pub fn lowercase(text: &str) -> Cow<'_, str> {
    if text.is_ascii() {
        return match text.bytes().any(|byte| byte.is_ascii_uppercase()) {
            true => Cow::Owned(text.to_ascii_lowercase()),
            false => Cow::Borrowed(text),
        };
    }
    let lowered: String = text.chars().flat_map(char::to_lowercase).map(|c| if c == 'ς' { 'σ' } else { c }).collect();
    if lowered == text { Cow::Borrowed(text) } else { Cow::Owned(lowered) }
}

/// Returns a method in upper case. HTTP's methods are case-sensitive, but many servers take `post` for `POST`.
fn method(text: &str) -> Cow<'_, str> {
    match text.bytes().any(|byte| byte.is_ascii_lowercase()) {
        true => Cow::Owned(text.to_ascii_uppercase()),
        false => Cow::Borrowed(text),
    }
}

/// Returns credentials without the scheme `Bearer`, in any case, and without white space around them. Credentials of
/// another scheme keep it.
///
/// ```
/// use tollgate::rules::bearer;
///
/// for spelling in ["Bearer t", "bearer t", "Bearer  t", "BEARER\tt ", "t"] {
///     assert_eq!(bearer(spelling), "t");
/// }
/// assert_eq!(bearer("Basic dTpw"), "Basic dTpw");
/// ```
pub fn bearer(text: &str) -> &str {
    const SCHEME: &str = "bearer";
    let mut text = text.trim();
    while let Some((scheme, rest)) = text.split_at_checked(SCHEME.len())
        && scheme.eq_ignore_ascii_case(SCHEME)
        && (rest.is_empty() || rest.starts_with(char::is_whitespace))
    {
        text = rest.trim_start();
    }
    text
}

/// Returns a host in lower case, without user, port and trailing dots. An IPv6 address is compressed and in brackets.
///
/// ```
/// use tollgate::rules::host;
///
/// for spelling in ["API.example.com:443", "api.example.com.", "api.example.com.:80", "u:p@Api.example.com"] {
///     assert_eq!(host(spelling), "api.example.com");
/// }
/// for spelling in ["[2001:DB8::7]:443", "[2001:db8:0::7]", "2001:DB8::7"] {
///     assert_eq!(host(spelling), "[2001:db8::7]");
/// }
/// ```
pub fn host(text: &str) -> Cow<'_, str> {
    let clean = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-');
    if text.bytes().all(clean) && !text.ends_with('.') {
        return Cow::Borrowed(text);
    }
    let trimmed = text.rsplit_once('@').map_or(text, |(_, host)| host).trim();
    if let Ok(address) = trimmed.parse::<Ipv6Addr>() {
        return Cow::Owned(format!("[{address}]"));
    }
    if let Some((address, _)) = trimmed.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        return match address.parse::<Ipv6Addr>() {
            Ok(address) => changed(text, format!("[{address}]")),
            Err(_) => changed(text, format!("[{}]", lowercase(address))),
        };
    }
    let name = trimmed.split_once(':').map_or(trimmed, |(name, _)| name);
    lowercase(name.trim_end_matches(|end: char| end == '.' || end.is_whitespace()))
}

fn changed(text: &str, form: String) -> Cow<'_, str> {
    if form == text { Cow::Borrowed(text) } else { Cow::Owned(form) }
}

#[cfg(feature = "unicode")]
fn nfkc(text: &str) -> Cow<'_, str> {
    use unicode_normalization::{IsNormalized, UnicodeNormalization, is_nfkc_quick};
    if text.is_ascii() || is_nfkc_quick(text.chars()) == IsNormalized::Yes {
        return Cow::Borrowed(text);
    }
    changed(text, text.nfkc().collect())
}

/// Returns a request path as an origin server would see it: without query, fragment and parameters of segments,
/// unreserved percent-escapes decoded, dot segments and double slashes resolved (RFC 3986, sections 6.2.2.2 and
/// 6.2.2.3). Of an absolute URI it is the path. Paths that differ in case, in a trailing slash or in `%2F` stay different.
///
/// ```
/// use tollgate::rules::path;
///
/// for spelling in ["//login", "/%6Cogin", "/x/../login", "/login?next=/", "/./login", "login", "http://x/login"] {
///     assert_eq!(path(spelling), "/login");
/// }
/// ```
pub fn path(value: &str) -> Cow<'_, str> {
    let (_, value) = split_target(value);
    let end = value.find(['?', '#']).unwrap_or(value.len());
    let raw = &value[..end];
    let clean = raw.starts_with('/') && !raw.contains(['%', '\\', ';']) && !raw.contains("//") && !raw.contains("/.");
    if clean {
        return Cow::Borrowed(raw);
    }
    let decoded = decode_unreserved(raw);
    let mut segments: Vec<&str> = Vec::new();
    let mut last = "";
    // Many origins read a backslash as a slash.
    for segment in decoded.split(['/', '\\']) {
        // Many origins remove the parameters of segments before they route by path.
        let segment = segment.split_once(';').map_or(segment, |(segment, _)| segment);
        last = segment;
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    let mut path = String::with_capacity(decoded.len() + 1);
    for segment in &segments {
        path.push('/');
        path.push_str(segment);
    }
    if path.is_empty() || matches!(last, "" | "." | "..") {
        path.push('/');
    }
    Cow::Owned(path)
}

/// Splits a request target into the host and port of an absolute one, if it has them, and path and query.
///
/// As many servers do, this accepts any scheme, a backslash for a slash, and `http:/path`. A target that begins with a
/// slash is never absolute, not even `//host/path`.
pub(crate) fn split_target(target: &str) -> (Option<&str>, &str) {
    const SLASHES: [char; 2] = ['/', '\\'];
    if target.starts_with('/') {
        return (None, target);
    }
    let Some((_, rest)) = target.split_once(':').filter(|(scheme, _)| is_scheme(scheme)) else {
        return (None, target);
    };
    match rest.strip_prefix(SLASHES).map(|rest| rest.strip_prefix(SLASHES)) {
        // A scheme without a slash is something else, such as the host and port of CONNECT.
        None => (None, target),
        Some(None) => (None, rest),
        Some(Some(rest)) => {
            let end = rest.find(['/', '\\', '?', '#']).unwrap_or(rest.len());
            let (authority, path) = rest.split_at(end);
            let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
            (Some(host).filter(|host| !host.is_empty()), path)
        }
    }
}

fn is_scheme(text: &str) -> bool {
    let letter = text.starts_with(|first: char| first.is_ascii_alphabetic());
    letter && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// Decodes `%41` where it stands for a letter, a digit, `-`, `.`, `_`, `~` or a backslash; other escapes get upper-case
/// digits.
fn decode_unreserved(raw: &str) -> String {
    let mut decoded = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(start) = rest.find('%') {
        decoded.push_str(&rest[..start]);
        let escape = rest.get(start..start + 3);
        match escape.map(|escape| percent_decode_str(escape).collect::<Vec<u8>>()).as_deref() {
            Some(&[byte]) if byte.is_ascii_alphanumeric() || b"-._~\\".contains(&byte) => {
                decoded.push(char::from(byte));
            }
            Some(&[byte]) => decoded.push_str(&format!("%{byte:02X}")),
            // Not an escape: encoded, so that the text after it cannot make it one.
            _ => {
                decoded.push_str("%25");
                rest = &rest[start + 1..];
                continue;
            }
        }
        rest = &rest[start + 3..];
    }
    decoded.push_str(rest);
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equivalent_paths_become_one() {
        let cases = [
            ("/login", "/login"),
            ("/login/", "/login/"),
            ("/a//b///c", "/a/b/c"),
            ("/a/./b/../c", "/a/c"),
            ("/../../etc", "/etc"),
            ("/a/..", "/"),
            ("", "/"),
            ("/%2e%2e/login", "/login"),
            ("/a%2fb", "/a%2Fb"),
            ("/%zz%", "/%25zz%25"),
            ("/%%34%31", "/%2541"),
            ("/lo%67in#x", "/login"),
            ("/\\login", "/login"),
            ("/x%5c..%5Clogin", "/login"),
            ("/login;x=1", "/login"),
            ("/a;x/b;y=1;z/;/", "/a/b/"),
            ("/x/..;a/login", "/login"),
            ("/;", "/"),
            ("/ü%c3%bc", "/ü%C3%BC"),
        ];
        for (raw, expected) in cases {
            assert_eq!(path(raw), expected, "{raw}");
        }
    }
}
