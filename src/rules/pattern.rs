//! A literal as it is written: a text, a pattern or a block of addresses.

use std::fmt;

use ipnet::IpNet;

/// What a written literal is.
pub(super) enum Literal {
    /// Any value.
    Any,
    Exact(String),
    Pattern(Pattern),
    Block(IpNet),
}

impl Literal {
    /// Reads `"*"`, `"/api/*"`, `"10.0.0.0/8"`, or an exact text. A backslash before `*` makes it literal.
    pub(super) fn parse(text: &str) -> Self {
        if text == "*" {
            return Literal::Any;
        }
        if let (true, Ok(block)) = (text.contains('/'), text.parse::<IpNet>()) {
            return Literal::Block(block.trunc());
        }
        Pattern::parse(text)
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
    fn parse(text: &str) -> Literal {
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
            return Literal::Exact(suffix);
        }
        let prefix = parts.remove(0);
        parts.retain(|part| !part.is_empty());
        if prefix.is_empty() && parts.is_empty() && suffix.is_empty() {
            return Literal::Any;
        }
        Literal::Pattern(Pattern { prefix, middle: parts, suffix })
    }

    /// A pattern of these parts, with a `*` between two.
    pub(super) fn of<T: Into<String>>(parts: impl Iterator<Item = T>) -> Self {
        let mut parts: Vec<String> = parts.map(Into::into).collect();
        let suffix = parts.pop().unwrap_or_default();
        let prefix = if parts.is_empty() { String::new() } else { parts.remove(0) };
        Self { prefix, middle: parts, suffix }
    }

    /// Its prefix and suffix, if nothing else is between them.
    pub(super) fn affix(&self) -> Option<(&str, &str)> {
        self.middle.is_empty().then_some((&self.prefix, &self.suffix))
    }

    /// Its parts: the first and the last can be empty.
    pub(super) fn parts(&self) -> impl Iterator<Item = PatternPart> {
        let part = |text: &String, first, last| PatternPart { text: text.clone(), first, last };
        let middle = self.middle.iter().map(move |text| part(text, false, false));
        std::iter::once(part(&self.prefix, true, false)).chain(middle).chain(std::iter::once(part(
            &self.suffix,
            false,
            true,
        )))
    }

    /// Whether every value that matches `other` matches this pattern. `false` also where that is not known.
    #[cfg(feature = "config")]
    pub(super) fn covers(&self, other: &Pattern) -> bool {
        self.middle.is_empty() && other.prefix.starts_with(&*self.prefix) && other.suffix.ends_with(&*self.suffix)
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

/// A part of a pattern: the text between two `*`, or before the first or after the last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct PatternPart {
    pub(super) text: String,
    /// Whether values start with it.
    pub(super) first: bool,
    /// Whether values end with it.
    pub(super) last: bool,
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
