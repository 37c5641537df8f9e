//! The literals of tests and lists in the form of the entries that they are compared with.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::address::{client_block, truncated};
use super::form::{Form, MAX_ROUNDS};
use super::pattern::{Literal, PatternPart};
use super::value_list::{DataFaults, FormedSet, ListTest, ValueList};
use super::value_set::{MAX_SCANNED_PATTERNS, ValueSet};
use super::{Matcher, Normaliser, Pattern};

impl Form {
    /// The test with its literals in this form.
    pub(super) fn literal(&self, test: &Matcher) -> Result<Matcher, NeverMet> {
        Ok(match test {
            Matcher::Present => Matcher::Present,
            Matcher::Exact(text) => self.exact(text)?,
            Matcher::Pattern(pattern) => self.pattern(pattern)?,
            Matcher::Cidr(block) => self.block(*block)?,
            Matcher::List(list) => Matcher::List(self.listed(list)?),
            Matcher::AnyOf(any) => Matcher::AnyOf(any.iter().map(|test| self.literal(test)).collect::<Result<_, _>>()?),
            Matcher::Not(not) => Matcher::Not(Box::new(self.literal(not)?)),
        })
    }

    /// The test of a list with its values in this form.
    fn listed(&self, list: &ListTest) -> Result<ListTest, NeverMet> {
        let Some(values) = list.written() else { return Ok(list.clone()) };
        let set = self.set_of(values).map_err(|faults| NeverMet::in_list(list.name(), &faults))?;
        Ok(list.formed(set))
    }

    /// The set of a list's values in this form. Made once for each form.
    pub(crate) fn set_of(&self, list: &ValueList) -> FormedSet {
        list.set(self, |set, value| add(set, value, self))
    }

    fn exact(&self, text: &str) -> Result<Matcher, NeverMet> {
        Ok(Matcher::Exact(self.exact_value(text)?.into_owned()))
    }

    /// A literal in this form.
    fn exact_value<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, NeverMet> {
        let value = self.value(Cow::Borrowed(text));
        if self.steps.contains(&Normaliser::Host) && text.contains('/') {
            return Err(NeverMet::by(Normaliser::Host, text, &value));
        }
        Ok(value)
    }

    /// A block in this form.
    fn block(&self, block: IpNet) -> Result<Matcher, NeverMet> {
        let block = client_block(block).map_err(|all| {
            let reason = "its addresses are counted as the IPv4 addresses in them";
            NeverMet::new(&block.to_string(), &all.to_string(), reason, "write the block of these")
        })?;
        let cut = self.steps.iter().fold(block, |block, step| match (step, block) {
            (Normaliser::Ipv6Prefix(bits), IpNet::V6(block)) => IpNet::V6(truncated(block, *bits)),
            _ => block,
        });
        Ok(Matcher::Cidr(cut))
    }

    /// A pattern, each part of which is normalised alone.
    fn pattern(&self, pattern: &Pattern) -> Result<Matcher, NeverMet> {
        let mut parts: Vec<PatternPart> = pattern.parts().collect();
        let written: Vec<String> = parts.iter().map(|part| part.text.clone()).collect();
        for _ in 0..MAX_ROUNDS {
            let before = parts.clone();
            for step in &self.steps {
                for (part, written) in parts.iter_mut().zip(&written) {
                    part.text = part.normalised(*step).map_err(|form| NeverMet::by(*step, written, &form))?;
                }
            }
            if parts == before {
                break;
            }
        }
        let pattern = Pattern::of(parts.iter().map(|part| part.text.as_str()));
        match self.address {
            true => address_pattern(&pattern),
            false => Ok(Matcher::Pattern(pattern)),
        }
    }
}

/// Adds a value in its form. The error is a sentence about its line without a subject, and without the value, which can be
/// an identity.
fn add(set: &mut ValueSet, value: &str, form: &Form) -> Result<(), String> {
    let never = |never: NeverMet| format!("has a literal {never}");
    let (star, address) = (value.contains('*'), form.is_address());
    let parsed = if star || address { Literal::parse(value) } else { Literal::Exact(String::new()) };
    let written = match parsed {
        Literal::Exact(text) if star => Cow::Owned(text),
        // A block at an entry that holds no addresses is text.
        Literal::Exact(_) => Cow::Borrowed(value),
        Literal::Block(_) if !address => Cow::Borrowed(value),
        Literal::Block(block) => {
            if let Matcher::Cidr(block) = form.block(block).map_err(never)? {
                set.add_block(block);
            }
            return Ok(());
        }
        Literal::Pattern(pattern) => {
            let has_room = match form.pattern(&pattern).map_err(never)? {
                Matcher::Pattern(pattern) => set.add_pattern(pattern),
                Matcher::Cidr(block) => {
                    set.add_block(block);
                    true
                }
                _ => true,
            };
            return match has_room {
                true => Ok(()),
                false => Err(format!(
                    "is beyond the {MAX_SCANNED_PATTERNS}th pattern that is neither \"prefix*\" nor \"*suffix\": \
                     such patterns are tested one by one; write values, or split the list"
                )),
            };
        }
        Literal::Any => {
            return Err("is any value here, so that nothing is outside of the list; remove it, or write \\* for \
                        a star"
                .to_owned());
        }
    };
    if address && written.parse::<IpAddr>().is_err() {
        return Err("is no address here; expected an address, a block such as 10.0.0.0/8, or a pattern".to_owned());
    }
    let value = form.exact_value(&written).map_err(never)?;
    set.add_exact(&value);
    Ok(())
}

impl PatternPart {
    /// The part after one step. The error is what the step would make of it, where no value has this part.
    fn normalised(&self, step: Normaliser) -> Result<String, String> {
        let text = self.text.as_str();
        if text.is_empty() {
            return Ok(String::new());
        }
        let changed = match step {
            Normaliser::Lowercase | Normaliser::Method => step.apply(Cow::Borrowed(text)).into_owned(),
            #[cfg(feature = "unicode")]
            Normaliser::Nfkc => step.apply(Cow::Borrowed(text)).into_owned(),
            Normaliser::Trim => self.trimmed().to_owned(),
            Normaliser::Bearer => self.bearer(),
            Normaliser::Host => self.host()?,
            Normaliser::Path => self.path()?,
            // A pattern of cut addresses is a pattern of their text.
            Normaliser::Ipv6Prefix(_) => text.to_owned(),
        };
        if changed.is_empty() { Err(changed) } else { Ok(changed) }
    }

    fn trimmed(&self) -> &str {
        let text = if self.first { self.text.trim_start() } else { &self.text };
        if self.last { text.trim_end() } else { text }
    }

    fn bearer(&self) -> String {
        let text = self.trimmed();
        let kept = text.trim_end();
        match super::bearer(kept) {
            // The white space at the end may be before the token.
            "" => String::new(),
            token if self.first && token.len() < kept.len() => format!("{token}{}", &text[kept.len()..]),
            _ => text.to_owned(),
        }
    }

    fn host(&self) -> Result<String, String> {
        let lower = super::lowercase(self.trimmed()).into_owned();
        if lower.contains('/') {
            return Err(super::host(&self.text).into_owned());
        }
        // Only a part of an IPv6 address has a colon.
        if self.first && lower.starts_with('[') || lower.ends_with(']') {
            return Ok(lower);
        }
        if self.last {
            let (name, port) = lower.split_once(':').map_or((&*lower, None), |(name, port)| (name, Some(port)));
            return match port {
                Some(port) if port.contains(']') => Ok(lower),
                Some(_) | None => Ok(name.trim_end_matches('.').to_owned()),
            };
        }
        match lower.split_once(':') {
            Some((name, _)) => Err(name.to_owned()),
            None => Ok(lower),
        }
    }

    /// Normalises a part of a path as if letters were where the pattern has `*`.
    fn path(&self) -> Result<String, String> {
        const LETTERS: &str = "any-letters";
        // An escape whose end is behind the wildcard stays as it is.
        let open = |text: &str| {
            let start = text.rfind('%').filter(|start| !self.last && text.len() - start < 3);
            start.filter(|start| text[start + 1..].bytes().all(|byte| byte.is_ascii_hexdigit()))
        };
        let (text, escape) = self.text.split_at(open(&self.text).unwrap_or(self.text.len()));
        let before = if self.first { String::new() } else { format!("/{LETTERS}") };
        let after = if self.last { "" } else { LETTERS };
        let whole = super::path(&format!("{before}{text}{after}")).into_owned();
        let inside = whole.strip_prefix(&*before).and_then(|rest| rest.strip_suffix(after));
        match inside {
            Some(inside) => Ok(format!("{inside}{}", escape.to_ascii_uppercase())),
            None => Err(super::path(text).into_owned()),
        }
    }
}

/// A pattern of addresses. Whole groups of one are a block: `10.1.*` is 10.1.0.0/16.
fn address_pattern(pattern: &Pattern) -> Result<Matcher, NeverMet> {
    let never = |reason, remedy| NeverMet::new(&pattern.to_string(), &pattern.to_string(), reason, remedy);
    let lower = pattern.to_string().to_lowercase();
    if let Some(groups) = lower.strip_suffix('*').filter(|groups| !groups.contains('*'))
        && let Some(block) = whole_groups(groups)
    {
        return Form::default().block(block);
    }
    let foreign = |c: char| !c.is_ascii_hexdigit() && !matches!(c, '.' | ':' | '/');
    if pattern.parts().any(|part| part.text.contains(foreign)) {
        return Err(never("addresses do not have these characters", "write an address or a block"));
    }
    let zero = |group: &str| group.len() > 1 && group.starts_with('0');
    // A text with a colon is a part of an IPv6 address, whose spelling depends on the groups that are zero.
    if lower.contains("::") || lower.contains(':') && lower.split([':', '*']).any(zero) {
        return Err(never("IPv6 addresses are compared in their shortest spelling", "write a block"));
    }
    Ok(Matcher::Pattern(Pattern::of(pattern.parts().map(|part| part.text.to_lowercase()))))
}

/// The block of the addresses that begin with these groups, each followed by its separator.
fn whole_groups(text: &str) -> Option<IpNet> {
    let dotted = text.strip_prefix("::ffff:").unwrap_or(text);
    if let Some(groups) = dotted.strip_suffix('.') {
        let groups: Vec<&str> = groups.split('.').collect();
        let filled = (groups.len() < 4).then(|| format!("{}{}", groups.join("."), ".0".repeat(4 - groups.len())))?;
        return format!("{filled}/{}", 8 * groups.len()).parse().ok();
    }
    let groups: Vec<&str> = text.strip_suffix(':')?.split(':').collect();
    let whole = groups.len() < 8 && groups.iter().all(|group| !group.is_empty());
    whole.then(|| format!("{}::/{}", groups.join(":"), 16 * groups.len()).parse().ok()).flatten()
}

/// A literal that no value of its entry matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeverMet(String);

impl NeverMet {
    fn by(step: Normaliser, literal: &str, form: &str) -> Self {
        let (reason, remedy) = match step {
            Normaliser::Lowercase => ("\"lowercase\" changes it", "write it in lower case"),
            Normaliser::Trim => ("\"trim\" removes white space", "write it without"),
            Normaliser::Path => (
                "\"path\" removes the query, the fragment, parameters of segments and dot segments",
                "write a pattern of the path alone",
            ),
            Normaliser::Host => (
                "\"host\" removes the port and the trailing dot",
                "write a pattern of the name alone, or [2001:db8::7]",
            ),
            Normaliser::Method => ("\"method\" changes it", "write it in upper case"),
            Normaliser::Bearer => ("\"bearer\" removes the scheme", "write the token alone, or \"*\" for any"),
            #[cfg(feature = "unicode")]
            Normaliser::Nfkc => ("\"nfkc\" changes it", "write it in Unicode Normalization Form KC"),
            Normaliser::Ipv6Prefix(_) => ("IPv6 addresses are cut", "write a block"),
        };
        Self::new(literal, form, reason, remedy)
    }

    /// A literal, or a part of a pattern, and what values have instead of it.
    fn new(literal: &str, form: &str, reason: &str, remedy: &str) -> Self {
        Self(format!("which no value matches: {reason}, so that {literal:?} is {form:?}; {remedy}"))
    }

    /// A list with such literals.
    pub(super) fn in_list(list: &str, faults: &DataFaults) -> Self {
        let (line, sentence) = faults.first.first().map_or((0, ""), |(line, sentence)| (*line, sentence.as_str()));
        Self(format!("of list {list:?}, whose line {line} {sentence}"))
    }
}

impl fmt::Display for NeverMet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn test_of(lines: &str, form: &Form) -> Matcher {
        let list = Arc::new(ValueList::new("a", lines.to_owned()));
        Matcher::List(form.listed(&ListTest::of(&list)).unwrap_or_else(|never| panic!("{never}")))
    }

    #[test]
    fn semantics_58_one_value_a_line_trimmed_and_comments_begin_in_the_first_column() {
        let test = test_of("\u{feff}a\r\n# b\r\n #c\r\n\td e \n\n#\nf#g\n# \n", &Form::default());
        for value in ["a", "#c", "d e", "f#g"] {
            assert!(test.matches(value), "{value}");
        }
        for value in ["\u{feff}a", "a\r", "b", "# b", "c", "d", "", "#", "f"] {
            assert!(!test.matches(value), "{value:?}");
        }
        // A byte order mark does not hide a comment.
        assert!(!test_of("\u{feff}# a\nb", &Form::default()).matches("# a"));
    }

    #[test]
    fn semantics_58_a_list_matches_what_its_lines_match_in_match() {
        let lines = [
            "a",
            "ab",
            "a*",
            "*ba",
            "ab*",
            "*b",
            "aba*",
            "*bba",
            "a*a",
            "*a*b*",
            r"c\*",
            r"c\**",
            r"\*c",
            "é*",
            "*é",
            "10.0.0.0/8",
            "10.1.0.0/16",
            "192.0.2.7",
            "10.2.*",
            "2001:db8::/32",
            "2001:DB8::7",
            "::ffff:11.0.0.0/104",
        ];
        let values = [
            "",
            "a",
            "b",
            "ab",
            "ba",
            "aba",
            "abab",
            "abba",
            "bbb",
            "c*",
            "c*d",
            "*c",
            "cc",
            "é",
            "éa",
            "aé",
            "ea",
            "10.0.0.1",
            "10.1.2.3",
            "10.2.3.4",
            "11.1.1.1",
            "192.0.2.7",
            "192.0.2.8",
            "10.1.0.0/24",
            "10.0.0.0/7",
            "2001:db8::7",
            "2001:db9::7",
            "10.0.0.0/8",
            "2001:db8::/32",
        ];
        let forms = [
            Form::default(),
            Form::by(vec![Normaliser::Lowercase]),
            Form::by(vec![Normaliser::Trim, Normaliser::Host]),
        ];
        let mut met = 0;
        // Every pair of lines, so that what covers another stands before and behind it.
        let pairs: Vec<(&str, &str)> = lines.iter().flat_map(|a| lines.iter().map(move |b| (*a, *b))).collect();
        for (form, &(one, two)) in forms.iter().flat_map(|form| pairs.iter().map(move |pair| (form, pair))) {
            let literals = [one, two].map(|line| match Matcher::parse(line) {
                // At an entry that holds no addresses, a block is text.
                Matcher::Cidr(_) => Matcher::Exact(line.to_owned()),
                other => other,
            });
            let Ok(any) = form.literal(&Matcher::AnyOf(literals.to_vec())) else { continue };
            let list = test_of(&format!("{one}\n{two}"), form);
            for value in values {
                assert_eq!(list.matches(value), any.matches(value), "{one} and {two} against {value}");
                met += usize::from(list.matches(value));
            }
        }
        assert!(met > 3_000, "{met}");
    }

    #[test]
    fn semantics_58_blocks_and_addresses_are_met_at_an_entry_that_holds_addresses() {
        let lines = "10.0.0.0/8\n10.1.0.0/16\n192.0.2.7\n10.2.*\n2001:DB8::/32\n2001:db8:1::/48\n::ffff:11.0.0.0/104\n9.0.0.0/8";
        let form = Form::of_addresses();
        let list = test_of(lines, &form);
        let any = Matcher::AnyOf(lines.split('\n').map(Matcher::parse).collect());
        let any = form.literal(&any).expect("addresses");
        for value in [
            "10.0.0.1",
            "10.1.2.3",
            "9.255.255.255",
            "8.255.255.255",
            "11.1.1.1",
            "12.0.0.0",
            "192.0.2.7",
            "192.0.2.8",
            "10.1.0.0/24",
            "10.0.0.0/7",
            "2001:db8::7",
            "2001:db8:1::7",
            "2001:db9::7",
            "2001:db7::",
            "::1",
            "text",
            "",
        ] {
            assert_eq!(list.matches(value), any.matches(value), "{value}");
        }
        assert!(list.matches("11.1.1.1") && list.matches("2001:db8::7") && !list.matches("12.0.0.0"));
    }

    #[test]
    fn semantics_58_values_go_through_the_normalisers_of_each_entry_that_they_meet() {
        let list = Arc::new(ValueList::new("a", "Bob\n A*".to_owned()));
        let [lower, any] = [vec![Normaliser::Lowercase], vec![]]
            .map(|steps| Matcher::List(Form::by(steps).listed(&ListTest::of(&list)).expect("every form has these")));
        assert!(lower.matches("bob") && lower.matches("alice") && !lower.matches("Bob"));
        assert!(any.matches("Bob") && any.matches("Alice") && !any.matches("bob"));
    }

    #[test]
    fn semantics_58_faults_name_their_line_and_a_thousand_other_patterns_have_room() {
        let patterns = |count: usize| (0..count).map(|number| format!("a{number}*b\n")).collect::<String>();
        let list = |text: String| ValueList::new("a", text);
        Form::default().set_of(&list(patterns(1_000) + "a*\n*b\n")).expect("a thousand, and two that are looked up");
        let faults = Form::default().set_of(&list("# first\n".to_owned() + &patterns(1_022))).expect_err("too many");
        assert_eq!((faults.first[0].0, faults.more), (1_002, 2));
        let faults =
            Form::of_addresses().set_of(&list("10.0.0.1\nhost\n\n10.0.0.0/33\n*".to_owned())).expect_err("three");
        let lines: Vec<u32> = faults.first.iter().map(|(line, _)| *line).collect();
        assert_eq!(lines, [2, 4, 5]);
    }
}
