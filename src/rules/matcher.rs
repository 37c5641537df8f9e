//! Tests of one entry's value.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

/// A test of one value.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Matcher {
    /// Any value.
    Present,
    /// This value.
    Exact(String),
    /// A pattern with `*` as wildcard.
    Pattern(Pattern),
    /// An address in this block.
    Cidr(IpNet),
    /// Any of these.
    AnyOf(Vec<Matcher>),
    /// Any value that this does not match.
    Not(Box<Matcher>),
}

impl Matcher {
    /// Reads a `match` value: `"*"`, `"/api/*"`, `"10.0.0.0/8"`, or an exact text. A backslash before `*` makes
    /// it literal.
    ///
    /// ```
    /// use tollgate::rules::Matcher;
    ///
    /// assert!(Matcher::parse("*").matches("anything"));
    /// assert!(Matcher::parse("/api/*").matches("/api/v1"));
    /// assert!(Matcher::parse("10.0.0.0/8").matches("10.1.2.3"));
    /// assert!(!Matcher::parse("/login").matches("/login/"));
    /// ```
    pub fn parse(text: &str) -> Self {
        if text == "*" {
            return Matcher::Present;
        }
        if let (true, Ok(block)) = (text.contains('/'), text.parse::<IpNet>()) {
            return Matcher::Cidr(block.trunc());
        }
        Pattern::parse(text)
    }

    /// Whether `value` passes the test.
    pub fn matches(&self, value: &str) -> bool {
        match self {
            Matcher::Present => true,
            Matcher::Exact(text) => text == value,
            Matcher::Pattern(pattern) => pattern.matches(value),
            Matcher::Cidr(block) => {
                value.parse::<IpAddr>().is_ok_and(|address| block.contains(&address.to_canonical()))
            }
            Matcher::AnyOf(any) => any.iter().any(|matcher| matcher.matches(value)),
            Matcher::Not(not) => !not.matches(value),
        }
    }
}

impl fmt::Display for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Matcher::Present => write!(f, "\"*\""),
            Matcher::Exact(text) => write!(f, "{text:?}"),
            Matcher::Pattern(pattern) => write!(f, "{:?}", pattern.to_string()),
            Matcher::Cidr(block) => write!(f, "\"{block}\""),
            Matcher::AnyOf(any) => {
                let any: Vec<String> = any.iter().map(Matcher::to_string).collect();
                write!(f, "[{}]", any.join(", "))
            }
            Matcher::Not(not) => write!(f, "{{ not = {not} }}"),
        }
    }
}

/// A text with at least one `*`, each of which matches any number of characters, including none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// The start of the value.
    pub(super) prefix: String,
    /// The parts between, in this order.
    middle: Vec<String>,
    /// The end of the value.
    pub(super) suffix: String,
}

impl Pattern {
    fn parse(text: &str) -> Matcher {
        let mut parts = vec![String::new()];
        let mut characters = text.chars().peekable();
        while let Some(character) = characters.next() {
            match character {
                '\\' if characters.peek() == Some(&'*') => {
                    characters.next();
                    parts.last_mut().expect("there is always a part").push('*');
                }
                '*' => parts.push(String::new()),
                other => parts.last_mut().expect("there is always a part").push(other),
            }
        }
        let suffix = parts.pop().expect("there is always a part");
        if parts.is_empty() {
            return Matcher::Exact(suffix);
        }
        let prefix = parts.remove(0);
        parts.retain(|part| !part.is_empty());
        if prefix.is_empty() && parts.is_empty() && suffix.is_empty() {
            return Matcher::Present;
        }
        Matcher::Pattern(Pattern { prefix, middle: parts, suffix })
    }

    /// Whether `value` matches the pattern.
    pub fn matches(&self, value: &str) -> bool {
        let Some(rest) = value.strip_prefix(&*self.prefix) else { return false };
        let Some(mut rest) = rest.strip_suffix(&*self.suffix) else { return false };
        for part in &self.middle {
            match rest.find(&**part) {
                Some(start) => rest = &rest[start + part.len()..],
                None => return false,
            }
        }
        true
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A literal star has a backslash before it.
        let literal = |part: &str| part.replace('*', r"\*");
        write!(f, "{}*", literal(&self.prefix))?;
        for part in &self.middle {
            write!(f, "{}*", literal(part))?;
        }
        f.write_str(&literal(&self.suffix))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_takes_its_parts_in_order_and_never_overlapping() {
        let cases = [
            ("/api/*", "/api/", true),
            ("/api/*", "/ap", false),
            ("*.css", "a.css", true),
            ("*.css", "a.css.map", false),
            ("a*b*c", "a-b-c", true),
            ("a*b*c", "a-c-b", false),
            ("ab*ba", "aba", false),
            ("*x*", "axb", true),
            (r"a\*", "a*", true),
            (r"a\*", "ab", false),
        ];
        for (pattern, value, expected) in cases {
            assert_eq!(Matcher::parse(pattern).matches(value), expected, "{pattern} against {value}");
        }
    }

    #[test]
    fn a_pattern_is_shown_as_it_is_read() {
        for text in ["/api/*", "*.css", "a*b*c", r"/a\*b*", r"*\*\**\*"] {
            let Matcher::Pattern(pattern) = Matcher::parse(text) else { panic!("{text} is a pattern") };
            assert_eq!(pattern.to_string(), text);
        }
    }

    #[test]
    fn semantics_27_a_cidr_sees_an_ipv4_address_mapped_into_ipv6() {
        let block = Matcher::parse("10.0.0.0/8");
        assert!(block.matches("::ffff:10.1.2.3"));
        assert!(!block.matches("11.0.0.1"));
        assert!(!block.matches("not an address"));
        assert!(Matcher::parse("2001:db8::/32").matches("2001:db8:1::7"));
    }

    #[test]
    fn not_takes_a_list_and_anything_else_that_is_present() {
        let not = Matcher::Not(Box::new(Matcher::AnyOf(vec![Matcher::parse("a"), Matcher::parse("b*")])));
        assert!(not.matches("c"));
        assert!(!not.matches("a"));
        assert!(!not.matches("bc"));
    }
}
