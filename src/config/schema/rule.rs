//! The tables of domains and rules.

use super::data::DeriveFrom;
use super::decode::{Decode, Field, Located, choice, entries, field, key, known_keys, table};
use super::key::KeyInfo;
use super::values::{ByName, List, Percent, PrefixLength, Span, Status, Switch};
use crate::config::document::node::{TreeNode, Value};
use crate::config::document::problem::{Location, Problems};

table! {
    /// The settings of a domain.
    Domain {
        /// The answer for a descriptor that no rule matches: `allow` by default.
        unmatched: Verdict,
        /// `shadow` counts and reports but never denies.
        mode: Mode,
        /// Normalisers of entries, applied in this order to values before they are matched and counted, and to what rules compare them with: `{ path = ["path"], account = ["nfkc", "trim", "lowercase"] }`. `method` is in upper case without any. In the domain of `[authz]`, so are `path` and `host` normalised.
        normalise: ByName<List<Normaliser>>,
        /// Entries that hold addresses, besides `remote_address` and `masked_remote_address`.
        addresses: List<String>,
        /// Entries that are derived from tables, by name. They are never the client's: what it sends by such a name is ignored.
        derive: ByName<DeriveFrom>,
        /// All entries that clients of this domain send. If given, a rule that names another entry is an error.
        entries: List<String>,
    }
}

choice! {
    /// Whether a request passes.
    Verdict {
        /// It passes.
        "allow" => Allow,
        /// It is refused, and nothing is charged.
        "deny" => Deny,
    }
}

choice! {
    /// Whether refusals are enforced.
    Mode {
        /// They are.
        "enforce" => Enforce,
        /// They are counted and reported, and the request passes.
        "shadow" => Shadow,
    }
}

choice! {
    /// A rewriting of a value, so that each client has one counter.
    Normaliser {
        /// Unicode lower case.
        "lowercase" => Lowercase,
        /// Without white space at the ends.
        "trim" => Trim,
        /// A request path as an origin server sees it: query removed, escapes decoded, dot segments resolved.
        "path" => Path,
        /// A host in lower case, without user, port and trailing dot; IPv6 compressed and in brackets.
        "host" => Host,
        /// Upper case, for an HTTP method.
        "method" => Method,
        /// Credentials without the scheme `Bearer`, in any case, and the white space around it.
        "bearer" => Bearer,
        /// Unicode Normalization Form KC: full-width and other forms of a letter become that letter.
        "nfkc" => Nfkc,
    }
}

table! {
    /// Which descriptors of a domain are matched, and which limiters apply to them. All matching rules apply together.
    Rule {
        [required]
        /// The domain of the rule.
        domain: String,
        [required]
        /// The rule's name in refusals, metrics and logs; unique in its domain.
        name: String,
        /// The entries that a descriptor must have, each with its test: a text, `"*"` for any, a pattern such as `"/api/*"`, a block of addresses, `{ list = "NAME" }` for the values of a list, a list of these, or `{ not = ... }`. `{ not = "*" }` matches if the entry is absent. Without any, every descriptor matches.
        matches as "match": ByName<Match>,
        /// The limiters that apply.
        apply: List<Apply>,
        /// Instead of `apply`: `allow` ends the walk and keeps the checks found before; `deny` refuses and charges nothing.
        action: Verdict,
        /// Whether the walk of a descriptor ends when this rule matches it. `false` by default.
        last as "final": Switch,
        /// `shadow` counts and reports but never denies, and never ends the walk.
        mode: Mode,
        /// Enforces the rule for this percentage of keys, the same ones for all its limiters; for the others it is in shadow mode, and `final` does not end the walk.
        enforce_percent: Percent,
        /// The HTTP status of its refusals: 429 by default, 403 for `action = "deny"`.
        status: Status,
        /// The body of its refusals.
        body: String,
        /// The media type of that body: `text/plain` by default.
        content_type: String,
        /// What responses show of this rule to clients: `all` by default.
        headers: RuleHeaders,
        /// What to do if a derived entry that `match` names is absent, and the others match.
        missing: AbsentDerived,
    }
}

choice! {
    /// What to do if a derived entry that a `match` names is absent.
    AbsentDerived {
        /// Refuse: the default. An unknown key is no way around a rule.
        "deny" => Deny,
        /// The rule does not match.
        "skip" => Skip,
    }
}

choice! {
    /// What responses show of a rule to clients.
    RuleHeaders {
        /// Neither numbers nor names.
        "none" => None,
        /// Only `Retry-After`, on refusals.
        "retry_after" => RetryAfter,
        /// The headers that `server.headers` selects: the default.
        "all" => All,
    }
}

table! {
    /// One limiter applied by a rule.
    Apply {
        [required]
        /// The limiter's name. It may hold entries, `api_{tier}`, which are filled from the descriptor.
        limiter: String,
        /// The limiter to use if no limiter has the filled name. Without it such a request is refused.
        otherwise: String,
        /// The entries whose values identify the counter. Without any there is one counter for all.
        key: List<WrittenKeyEntry>,
        /// When it is charged.
        charge: Charge,
        /// Whether a request passes as long as one whole unit is left, and then charges its whole cost. `false` by default.
        overdraw: Switch,
        /// What to do if an entry of the key or of the limiter's name is absent: `skip` by default, `deny` if one of them is derived.
        missing: Missing,
        /// For how long a lease can correct what is charged when the request is admitted, such as `"5m"`; at most `1d`. Longer than the longest answer: afterwards `lost` takes effect. Without it nothing can be corrected.
        hold: Span,
        /// What becomes of a hold that no lease ends in time.
        lost: Lost,
    }
}

choice! {
    /// What becomes of a hold that no lease ends in time.
    Lost {
        /// It stays charged: the default. Who hangs up before the end does not go free.
        "charge" => Charge,
        /// It is given back at its end, so a client that breaks a request off pays nothing.
        "release" => Release,
    }
}

choice! {
    /// When a check is charged.
    Charge {
        /// When the whole request is admitted: the default.
        "admitted" => Admitted,
        /// When this check itself passes, even if another refuses the request.
        "own" => Own,
        /// Always, so that a client that keeps trying stays locked out.
        "always" => Always,
    }
}

choice! {
    /// What to do if an entry is absent.
    Missing {
        /// Skip the check; the rule's others stay: the default, unless an entry is derived.
        "skip" => Skip,
        /// Refuse.
        "deny" => Deny,
        /// Count it as the empty value.
        "empty" => Empty,
    }
}

table! {
    /// An entry of a key with normalisers of its value.
    KeyTable {
        [required]
        /// The name of the entry.
        entry: String,
        /// Normalisers of its value, for this key only.
        normalise: List<Normaliser>,
        /// The number of leading bits of an IPv6 address that identify a client: 64 by default.
        ipv6_prefix: PrefixLength,
    }
}

/// An entry of a key as written: its name, or a table that says more.
#[derive(Clone, Debug)]
pub(crate) enum WrittenKeyEntry {
    /// Only the name.
    Name(String),
    /// With normalisers.
    Table(Box<KeyTable>),
}

impl Decode for WrittenKeyEntry {
    fn expected() -> String {
        "the name of an entry or { entry = ..., normalise = [...] }".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(WrittenKeyEntry::Name(text.text.clone())),
            Value::Table(_) => {
                KeyTable::decode(node, location, problems).map(|table| WrittenKeyEntry::Table(Box::new(table)))
            }
            _ => {
                problems.refuse(location, format!("expected {}", Self::expected()));
                None
            }
        }
    }

    fn keys(path: &str, keys: &mut Vec<(String, KeyInfo)>) {
        KeyTable::keys(path, keys);
    }
}

/// A test of one entry's value.
#[derive(Clone, Debug)]
pub(crate) enum Match {
    /// A text, a pattern or a block of addresses.
    Text(String),
    /// Any of these.
    Any(Vec<Located<Match>>),
    /// A value of the list of this name.
    List(Located<String>),
    /// The opposite of this.
    Not(Box<Located<Match>>),
}

impl Decode for Match {
    fn expected() -> String {
        "a text, a list of texts, { list = ... } or { not = ... }".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        const NOT: KeyInfo = KeyInfo::named("not").required();
        const LIST: KeyInfo = KeyInfo::named("list");
        match &node.value {
            Value::Text(_) | Value::Number(_) | Value::Bool(_) => {
                String::decode(node, location, problems).map(Match::Text)
            }
            Value::List(items) if items.is_empty() => {
                problems.refuse(location, "expected at least one item: an empty list matches nothing");
                None
            }
            Value::List(items) => {
                let mut any = Vec::with_capacity(items.len());
                for (index, item) in items.iter().enumerate() {
                    match field(item, format!("{}[{index}]", location.path), problems) {
                        Field::Given(item) => any.push(item),
                        Field::Absent | Field::Invalid => {}
                    }
                }
                Some(Match::Any(any))
            }
            Value::Table(_) => {
                let entries = entries(node, location, problems)?;
                known_keys(entries, location, &[NOT, LIST], problems);
                let has = |info: &KeyInfo| entries.iter().any(|(key, _)| key.text == info.name);
                if has(&LIST) {
                    if has(&NOT) {
                        let reason = "has list and not; expected one of them, such as { not = { list = ... } }";
                        problems.error(location.position, &location.path, reason);
                    }
                    let list = key::<String>(entries, &LIST, location, problems);
                    return list.get().cloned().map(Match::List);
                }
                match key::<Match>(entries, &NOT, location, problems) {
                    Field::Given(inner) => Some(Match::Not(Box::new(inner))),
                    Field::Absent | Field::Invalid => None,
                }
            }
            Value::Null | Value::Other(_) | Value::Unexpanded => {
                problems.refuse(location, format!("expected {}", Self::expected()));
                None
            }
        }
    }
}
