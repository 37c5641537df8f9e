//! The one form of an entry's values, and of everything that they are compared with.
//!
//! A [`Form`] belongs to an entry of a domain. The values of requests go through it, and so does, once, when rules are
//! compiled, each literal that the entry is compared with: in tests, lists, patterns, blocks, and in the part of a
//! limiter's name that the entry fills.

use std::borrow::Cow;
use std::fmt;

use ipnet::IpNet;

use super::address::{address, client_block, truncated};
use super::book::Domain;
use super::matcher::PatternPart;
use super::value_list::DataFaults;
use super::{Matcher, Normaliser, Pattern};

/// The entries that hold addresses in every domain: the names that Envoy gives them.
const ADDRESSES: [&str; 2] = ["remote_address", "masked_remote_address"];

/// The entry that holds an HTTP method in every domain.
const METHOD: &str = "method";

/// The forms of the entries of one domain. Other entries have any text.
#[derive(Clone, Debug, Default)]
pub(crate) struct Forms {
    forms: Vec<(String, Form)>,
    /// The bits of these entries, which skip most others without a comparison.
    bits: u64,
}

impl Forms {
    /// The forms of a domain's entries.
    pub(crate) fn of(domain: &Domain) -> Self {
        let mut forms = Self::default();
        for entry in ADDRESSES.into_iter().chain(domain.addresses.iter().map(String::as_str)) {
            forms.entry(entry).address = true;
        }
        forms.entry(METHOD).steps.push(Normaliser::Method);
        for (entry, steps) in &domain.normalise {
            forms.entry(entry).steps.extend(steps);
        }
        forms
    }

    fn entry(&mut self, name: &str) -> &mut Form {
        let known = self.forms.iter().position(|(known, _)| known == name);
        let index = known.unwrap_or_else(|| {
            self.bits |= bit(name);
            self.forms.push((name.to_owned(), Form::default()));
            self.forms.len() - 1
        });
        &mut self.forms[index].1
    }

    /// Whether an entry may have a form: of most that have none, this is false.
    #[inline]
    pub(super) fn may_have(&self, entry: &str) -> bool {
        self.bits & bit(entry) != 0
    }

    /// The form of an entry. None if it has any text.
    pub(crate) fn get(&self, entry: &str) -> Option<&Form> {
        if !self.may_have(entry) {
            return None;
        }
        self.forms.iter().find(|(known, _)| known == entry).map(|(_, form)| form)
    }

    /// The value of an entry in its form.
    pub(crate) fn value<'a>(&self, entry: &str, value: Cow<'a, str>) -> Cow<'a, str> {
        match self.get(entry) {
            Some(form) => form.value(value),
            None => value,
        }
    }

    /// The test of an entry, with its literals in the form of the values.
    ///
    /// # Errors
    ///
    /// A literal that no value matches.
    pub(crate) fn literal(&self, entry: &str, test: &Matcher) -> Result<Matcher, NeverMet> {
        match self.get(entry) {
            Some(form) => form.literal(test),
            None => Form::default().literal(test),
        }
    }
}

/// A bit for an entry, by its length and its first letter.
#[inline]
fn bit(entry: &str) -> u64 {
    1 << ((entry.len() + 7 * usize::from(entry.as_bytes().first().copied().unwrap_or(0))) % 64)
}

/// The form of one entry's values.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Form {
    steps: Vec<Normaliser>,
    /// Whether the values are addresses.
    address: bool,
}

/// Rounds of all steps after which a value is taken as it is. Steps that undo each other would go on.
const MAX_ROUNDS: usize = 8;

impl Form {
    /// The form of values that are no addresses.
    pub(super) fn by(steps: Vec<Normaliser>) -> Self {
        Self { steps, address: false }
    }

    /// Whether any text is in this form.
    #[inline]
    pub(super) fn is_any(&self) -> bool {
        self.steps.is_empty() && !self.address
    }

    /// Whether the values pass this normaliser.
    #[cfg(feature = "config")]
    pub(crate) fn has(&self, step: Normaliser) -> bool {
        self.steps.contains(&step)
    }

    /// Whether the values are addresses.
    pub(crate) fn is_address(&self) -> bool {
        self.address
    }

    /// The form of a value, borrowed where nothing changes.
    ///
    /// Several steps are repeated until nothing changes, because one can undo what another did: the lower case of `J` and
    /// a combining caron is two characters, which NFKC composes. So the form of a form is the same.
    pub(crate) fn value<'a>(&self, mut value: Cow<'a, str>) -> Cow<'a, str> {
        match self.steps[..] {
            [] => {}
            [step] => value = step.apply(value),
            _ => value = self.repeated(value),
        }
        match self.address {
            true => address(value),
            false => value,
        }
    }

    /// The value after all steps, repeated until nothing changes.
    fn repeated<'a>(&self, mut value: Cow<'a, str>) -> Cow<'a, str> {
        for _ in 0..MAX_ROUNDS {
            let mut changed = false;
            for step in &self.steps {
                let next = match &value {
                    Cow::Borrowed(text) => differing(step.apply(Cow::Borrowed(text)), text),
                    Cow::Owned(text) => {
                        differing(step.apply(Cow::Borrowed(text)), text).map(|next| Cow::Owned(next.into_owned()))
                    }
                };
                if let Some(next) = next {
                    value = next;
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
        value
    }

    /// The form of addresses that no normaliser changes.
    #[cfg(test)]
    pub(super) fn of_addresses() -> Self {
        Self { steps: Vec::new(), address: true }
    }

    /// The test with its literals in this form.
    pub(super) fn literal(&self, test: &Matcher) -> Result<Matcher, NeverMet> {
        Ok(match test {
            Matcher::Present => Matcher::Present,
            Matcher::Exact(text) => self.exact(text)?,
            Matcher::Pattern(pattern) => self.pattern(pattern)?,
            Matcher::Cidr(block) => self.block(*block)?,
            Matcher::List(list) => Matcher::List(list.formed(self)?),
            Matcher::AnyOf(any) => Matcher::AnyOf(any.iter().map(|test| self.literal(test)).collect::<Result<_, _>>()?),
            Matcher::Not(not) => Matcher::Not(Box::new(self.literal(not)?)),
        })
    }

    fn exact(&self, text: &str) -> Result<Matcher, NeverMet> {
        Ok(Matcher::Exact(self.exact_value(text)?.into_owned()))
    }

    /// A literal in this form.
    pub(super) fn exact_value<'a>(&self, text: &'a str) -> Result<Cow<'a, str>, NeverMet> {
        let value = self.value(Cow::Borrowed(text));
        if self.steps.contains(&Normaliser::Host) && text.contains('/') {
            return Err(NeverMet::by(Normaliser::Host, text, &value));
        }
        Ok(value)
    }

    /// A block in this form.
    pub(super) fn block(&self, block: IpNet) -> Result<Matcher, NeverMet> {
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
    pub(super) fn pattern(&self, pattern: &Pattern) -> Result<Matcher, NeverMet> {
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

/// What a step returned, if it changed the text: a part of it, or another text.
pub(super) fn differing<'a>(next: Cow<'a, str>, text: &str) -> Option<Cow<'a, str>> {
    let changed = next.len() != text.len() || matches!(&next, Cow::Owned(next) if next != text);
    changed.then_some(next)
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
