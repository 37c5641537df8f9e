//! Tests of one entry's value.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use ipnet::IpNet;

use super::address::clients;
use super::pattern::{Literal, Pattern};
use super::value_list::{ListLookups, ListTest, ValueList};

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
    /// An address in this block, or a smaller block inside it.
    Cidr(IpNet),
    /// A value of a list.
    List(ListTest),
    /// Any of these.
    AnyOf(Vec<Matcher>),
    /// Any value that this does not match. The opposite of any value is that the entry is absent.
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
        match Literal::parse(text) {
            Literal::Any => Matcher::Present,
            Literal::Exact(text) => Matcher::Exact(text),
            Literal::Pattern(pattern) => Matcher::Pattern(pattern),
            Literal::Block(block) => Matcher::Cidr(block),
        }
    }

    /// The test whether a list has the value.
    pub fn list(list: &Arc<ValueList>) -> Self {
        Matcher::List(ListTest::of(list))
    }

    /// Whether `value` passes the test.
    pub fn matches(&self, value: &str) -> bool {
        self.passes(value, &ListLookups::default())
    }

    /// Whether the value of an entry passes the test, with the answers of the lists that its descriptor was looked up in.
    pub(super) fn passes(&self, value: &str, lookups: &ListLookups) -> bool {
        match self {
            Matcher::Present => true,
            Matcher::Exact(text) => text == value,
            Matcher::Pattern(pattern) => pattern.matches(value),
            Matcher::Cidr(block) => clients(value).is_some_and(|clients| block.contains(&clients)),
            Matcher::List(list) => list.has(value, lookups),
            Matcher::AnyOf(any) => any.iter().any(|matcher| matcher.passes(value, lookups)),
            Matcher::Not(not) => !not.passes(value, lookups),
        }
    }

    /// Whether an entry with several values passes the test: if any of its values does, or with `not` if none does.
    pub fn matches_any(&self, values: &[Cow<'_, str>]) -> bool {
        self.passes_any(values, &ListLookups::default())
    }

    pub(super) fn passes_any(&self, values: &[Cow<'_, str>], lookups: &ListLookups) -> bool {
        match self {
            Matcher::AnyOf(any) => any.iter().any(|matcher| matcher.passes_any(values, lookups)),
            Matcher::Not(not) => !not.passes_any(values, lookups),
            Matcher::List(list) => list.contains_any(values, lookups),
            Matcher::Present | Matcher::Exact(_) | Matcher::Pattern(_) | Matcher::Cidr(_) => {
                values.iter().any(|value| self.passes(value, lookups))
            }
        }
    }

    /// The lists of the test.
    pub(crate) fn lists(&self) -> Vec<&ListTest> {
        match self {
            Matcher::List(list) => vec![list],
            Matcher::AnyOf(any) => any.iter().flat_map(Matcher::lists).collect(),
            Matcher::Not(not) => not.lists(),
            Matcher::Present | Matcher::Exact(_) | Matcher::Pattern(_) | Matcher::Cidr(_) => Vec::new(),
        }
    }

    /// Visits the lists of the test.
    pub(super) fn lists_mut(&mut self, each: &mut impl FnMut(&mut ListTest)) {
        match self {
            Matcher::List(list) => each(list),
            Matcher::AnyOf(any) => any.iter_mut().for_each(|matcher| matcher.lists_mut(each)),
            Matcher::Not(not) => not.lists_mut(each),
            Matcher::Present | Matcher::Exact(_) | Matcher::Pattern(_) | Matcher::Cidr(_) => {}
        }
    }

    /// Whether an absent entry passes the test. Only `{ not = "*" }` asks for one.
    ///
    /// ```
    /// use tollgate::rules::Matcher;
    ///
    /// let absent = Matcher::Not(Box::new(Matcher::Present));
    /// assert!(absent.matches_absent() && !absent.matches(""));
    /// assert!(!Matcher::Not(Box::new(Matcher::parse("a"))).matches_absent());
    /// ```
    pub fn matches_absent(&self) -> bool {
        match self {
            Matcher::AnyOf(any) => any.iter().any(Matcher::matches_absent),
            Matcher::Not(not) => not.matches_all() && !not.matches_absent(),
            Matcher::Present | Matcher::Exact(_) | Matcher::Pattern(_) | Matcher::Cidr(_) | Matcher::List(_) => false,
        }
    }

    /// Whether no value passes the test: it only asks for an absent entry.
    pub(super) fn matches_none(&self) -> bool {
        match self {
            Matcher::AnyOf(any) => any.iter().all(Matcher::matches_none),
            Matcher::Not(not) => not.matches_all(),
            Matcher::Present | Matcher::Exact(_) | Matcher::Pattern(_) | Matcher::Cidr(_) | Matcher::List(_) => false,
        }
    }

    /// Whether every value passes the test.
    fn matches_all(&self) -> bool {
        match self {
            Matcher::Present => true,
            Matcher::AnyOf(any) => any.iter().any(Matcher::matches_all),
            Matcher::Exact(_) | Matcher::Pattern(_) | Matcher::Cidr(_) | Matcher::List(_) | Matcher::Not(_) => false,
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
            Matcher::List(list) => write!(f, "{{ list = {:?} }}", list.name()),
            Matcher::AnyOf(any) => {
                let any: Vec<String> = any.iter().map(Matcher::to_string).collect();
                write!(f, "[{}]", any.join(", "))
            }
            Matcher::Not(not) => write!(f, "{{ not = {not} }}"),
        }
    }
}

/// A test of one entry.
#[derive(Debug)]
pub(super) struct EntryTest {
    pub(super) entry: String,
    /// The test, with its literals in the form of the entry's values.
    pub(super) test: Matcher,
    /// The test as configured, if that is another one.
    pub(super) written: Option<Matcher>,
    /// Whether the entry can be absent.
    pub(super) absent: bool,
    /// Whether the entry is derived, and the rule refuses where it is absent.
    pub(super) derived: bool,
}

impl EntryTest {
    pub(super) fn new(entry: String, test: Matcher, written: Option<Matcher>) -> Self {
        let absent = test.matches_absent();
        Self { entry, test, written, absent, derived: false }
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
    fn semantics_27_a_block_matches_a_block_inside_it() {
        let block = Matcher::parse("10.0.0.0/8");
        for inside in ["10.1.2.0/24", "10.0.0.0/8", "10.1.2.3/32", "::ffff:10.1.2.0/120", "64:ff9b::10.1.2.0/120"] {
            assert!(block.matches(inside), "{inside}");
        }
        for outside in ["0.0.0.0/0", "10.0.0.0/7", "11.0.0.0/24", "10.1.2.0/33", "10.1.2.0/", "10.1.2/24", "::/0"] {
            assert!(!block.matches(outside), "{outside}");
        }
        assert!(Matcher::parse("2001:db8::/32").matches("2001:db8:1::/64"));
        assert!(Matcher::parse("2001:db8::/32").matches("[2001:db8:1::7]"), "an address as a host has it");
        assert!(!Matcher::parse("2001:db8::/32").matches("2001::/16"));
    }

    #[test]
    fn semantics_07_only_the_opposite_of_any_value_matches_an_absent_entry() {
        let not = |matcher| Matcher::Not(Box::new(matcher));
        let absent = not(Matcher::Present);
        let any = |matchers: &[Matcher]| Matcher::AnyOf(matchers.to_vec());
        assert!(absent.matches_absent() && !absent.matches("") && !absent.matches("a"));
        assert!(any(&[Matcher::parse("a"), absent.clone()]).matches_absent());
        assert!(not(any(&[Matcher::parse("a"), Matcher::Present])).matches_absent());
        for present in [
            Matcher::Present,
            Matcher::parse("a"),
            not(Matcher::parse("a")),
            not(absent.clone()),
            not(any(&[Matcher::parse("a"), absent])),
        ] {
            assert!(!present.matches_absent(), "{present}");
            assert!(present.matches("a") || present.matches("b"), "{present}");
        }
    }

    #[test]
    fn a_list_of_values_matches_if_any_does_and_with_not_if_none_does() {
        let roles = ["user", "admin"].map(Cow::Borrowed);
        let matches = |matcher: &Matcher| matcher.matches_any(&roles);
        let not = |matcher| Matcher::Not(Box::new(matcher));
        for (text, expected) in [("admin", true), ("adm*", true), ("*", true), ("root", false), ("10.0.0.0/8", false)] {
            let matcher = Matcher::parse(text);
            assert_eq!(matches(&matcher), expected, "{text}");
            assert_eq!(matches(&not(matcher.clone())), !expected, "not {text}");
            assert_eq!(matches(&Matcher::AnyOf(vec![Matcher::parse("root"), matcher.clone()])), expected, "{text}");
            assert_eq!(matches(&not(not(matcher))), expected, "not not {text}");
        }
    }

    #[test]
    fn not_takes_a_list_and_anything_else_that_is_present() {
        let not = Matcher::Not(Box::new(Matcher::AnyOf(vec![Matcher::parse("a"), Matcher::parse("b*")])));
        assert!(not.matches("c"));
        assert!(!not.matches("a"));
        assert!(!not.matches("bc"));
    }
}
