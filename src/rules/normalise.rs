//! Rewriting a value before it is matched or counted, so that one client has one counter.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv6Addr};

use percent_encoding::percent_decode_str;

/// The default prefix length by which IPv6 clients are counted: the network that one client usually has.
pub const DEFAULT_IPV6_PREFIX: u8 = 64;

/// One rewriting of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Normaliser {
    /// Unicode lower case.
    Lowercase,
    /// Without white space at the ends.
    Trim,
    /// As an origin server sees it: see [`path`].
    Path,
    /// IPv6 addresses cut to this many bits; IPv4 addresses stay whole.
    Ipv6Prefix(u8),
}

impl Normaliser {
    /// Returns the normalised value; borrowed where nothing changes.
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

/// An address in its one spelling: IPv4 mapped into IPv6 is IPv4, IPv6 is compressed lower case. Other text stays.
pub fn address(value: Cow<'_, str>) -> Cow<'_, str> {
    // IPv4 has one spelling that parses, so only a colon can need rewriting.
    if !value.contains(':') {
        return value;
    }
    match value.parse::<IpAddr>() {
        Ok(address) => Cow::Owned(address.to_canonical().to_string()),
        Err(_) => value,
    }
}

/// Cuts an IPv6 address to its first `bits` bits; other text stays.
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

/// A request path as an origin server would see it: query, fragment and the parameters of segments off, unreserved
/// percent-escapes decoded, dot segments and double slashes resolved (RFC 3986, sections 6.2.2.2 and 6.2.2.3). What
/// differs in case, in a slash at the end or in `%2F` stays different.
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
        // Parameters of a segment are for the one who serves it: many take them off before they look at the path.
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

/// Decodes `%41` where it stands for a letter, a digit, `-`, `.`, `_`, `~` or a backslash; other escapes get upper-case digits.
fn decode_unreserved(raw: &str) -> String {
    let mut decoded = String::with_capacity(raw.len());
    let mut rest = raw;
    while let Some(place) = rest.find('%') {
        decoded.push_str(&rest[..place]);
        let escape = rest.get(place..place + 3);
        match escape.map(|escape| percent_decode_str(escape).collect::<Vec<u8>>()).as_deref() {
            Some(&[byte]) if byte.is_ascii_alphanumeric() || b"-._~\\".contains(&byte) => {
                decoded.push(char::from(byte))
            }
            Some(&[byte]) => decoded.push_str(&format!("%{byte:02X}")),
            // No escape, so it stands for itself: in its one spelling what follows cannot make it one.
            _ => {
                decoded.push_str("%25");
                rest = &rest[place + 1..];
                continue;
            }
        }
        rest = &rest[place + 3..];
    }
    decoded.push_str(rest);
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_has_one_spelling() {
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
