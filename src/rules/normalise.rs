//! Normalises values before they are matched or counted, so that one client has one counter.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

use percent_encoding::percent_decode_str;

/// The default prefix length by which IPv6 clients are counted: the usual network of one client.
pub(crate) const DEFAULT_IPV6_PREFIX: u8 = 64;

/// One normalisation of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Normaliser {
    /// Converts to Unicode lower case.
    Lowercase,
    /// Removes white space at both ends.
    Trim,
    /// Normalises a request path: see [`path`].
    Path,
    /// Truncates IPv6 addresses to this many bits. IPv4 addresses are unchanged.
    Ipv6Prefix(u8),
}

impl Normaliser {
    /// Returns the normalised value, borrowed where nothing changes.
    pub fn apply<'a>(self, value: Cow<'a, str>) -> Cow<'a, str> {
        match self {
            Normaliser::Lowercase if value.chars().any(char::is_uppercase) => Cow::Owned(value.to_lowercase()),
            Normaliser::Lowercase => value,
            Normaliser::Trim => trim(value),
            Normaliser::Path => match path(&value) {
                Cow::Borrowed(same) if same.len() == value.len() => value,
                rewritten => Cow::Owned(rewritten.into_owned()),
            },
            Normaliser::Ipv6Prefix(bits) => cut(value, bits),
        }
    }
}

fn trim(value: Cow<'_, str>) -> Cow<'_, str> {
    match value {
        Cow::Borrowed(text) => Cow::Borrowed(text.trim()),
        Cow::Owned(text) => Cow::Owned(text.trim().to_owned()),
    }
}

/// Returns the canonical form of an address: IPv4 for IPv4 mapped into IPv6, else compressed IPv6 in lower case. Other
/// text is unchanged.
pub fn address(value: Cow<'_, str>) -> Cow<'_, str> {
    // IPv4 addresses parse in one form only, so only a text with a colon can change.
    if !value.contains(':') {
        return value;
    }
    match value.parse::<IpAddr>() {
        Ok(address) => Cow::Owned(address.to_canonical().to_string()),
        Err(_) => value,
    }
}

/// Truncates an IPv6 address to its first `bits` bits. Other text is unchanged.
fn cut(value: Cow<'_, str>, bits: u8) -> Cow<'_, str> {
    if !value.contains(':') || bits >= 128 {
        return value;
    }
    match value.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V6(address)) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            Cow::Owned(format!("{}/{bits}", Ipv6Addr::from(u128::from(address) & mask)))
        }
        Ok(IpAddr::V4(address)) => Cow::Owned(address.to_string()),
        Err(_) => value,
    }
}

/// Returns a request path as an origin server would see it: without query, fragment and parameters of segments,
/// unreserved percent-escapes decoded, dot segments and double slashes resolved (RFC 3986, sections 6.2.2.2 and
/// 6.2.2.3). Paths that differ in case, in a trailing slash or in `%2F` stay different.
///
/// ```
/// use tollgate::rules::path;
///
/// for spelling in ["//login", "/%6Cogin", "/x/../login", "/login?next=/", "/./login", "login"] {
///     assert_eq!(path(spelling), "/login");
/// }
/// ```
pub fn path(value: &str) -> Cow<'_, str> {
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

    #[test]
    fn semantics_27_ipv6_is_cut_and_ipv4_and_other_text_stay() {
        let cut = |value: &'static str, bits| Normaliser::Ipv6Prefix(bits).apply(Cow::Borrowed(value)).into_owned();
        assert_eq!(cut("2001:DB8:1:2:3:4:5:6", 64), "2001:db8:1:2::/64");
        assert_eq!(cut("::ffff:1.2.3.4", 64), "1.2.3.4");
        assert_eq!(cut("1.2.3.4", 64), "1.2.3.4");
        assert_eq!(cut("1.2.3.4:80", 64), "1.2.3.4:80");
        assert_eq!(cut("2001:db8::1", 128), "2001:db8::1");
        assert_eq!(address(Cow::Borrowed("2001:DB8:0::1")), "2001:db8::1");
    }
}
