//! The table of ext_authz.

use super::decode::{Decode, choice, table};
use super::key::KeyInfo;
use super::values::{Amount, ByName, List, Switch};
use crate::config::document::node::{TreeNode, Value};
use crate::config::document::problem::{Location, Problems};

table! {
    /// How ext_authz, which sends no descriptors, makes entries of a request. It always makes `remote_address`, `method`, `path` and `host`.
    Authz {
        /// The domain of the request, unless the route's `context_extensions.domain` names another: `default` by default.
        domain: String,
        /// How many addresses, counted from the right of `X-Forwarded-For`, were written by trusted proxies. Zero, the default, trusts no such header.
        trusted_hops: Amount,
        /// Whether the address in `x-envoy-external-address` overrides the one of `X-Forwarded-For`; `false` by default. Envoy writes that header with `use_remote_address: true` for clients with a public address; for other clients it passes on what they sent. Set it only if every client has a public address: other clients could choose theirs.
        trust_external_address: Switch,
        /// More entries, by name, each from one place of the request. If the place has no value, the entry is absent. A list names fields of bodies, of which the media type of the body selects one: `[{ json = "/user/name" }, { form = "username" }]`.
        entries: ByName<WrittenEntry>,
    }
}

table! {
    /// Where an entry's value comes from: exactly one place, and an optional default.
    EntrySource {
        /// A request header. Over gRPC Envoy joins several lines with commas, unless its filter has `encode_raw_headers: true`; without it, a value with a comma counts as several.
        header: String,
        /// A cookie.
        cookie: String,
        /// A parameter of the query.
        query: String,
        /// A key of the route's `context_extensions`.
        context: String,
        /// A value of the request's dynamic metadata: the filter's namespace, a colon, and the path inside it, `envoy.filters.http.jwt_authn:payload.sub`; or `{ namespace = ..., path = [...] }`, whose keys can contain dots. A list matches if any of its values does; it is counted as its values in order, each once.
        metadata: WrittenMetadata,
        /// The client certificate's principal.
        principal: Switch,
        /// A field of a JSON body that Envoy sends (`with_request_body`), as a JSON pointer: `/user/name`. Text, whole numbers below 2^53, true and false have a value; a body or a field that cannot be read refuses the request if a rule needs the entry.
        json: String,
        /// A field of an HTML form (`application/x-www-form-urlencoded`) that Envoy sends (`with_request_body`).
        form: String,
        /// What a body that cannot be read means: `refuse` by default.
        unreadable: UnreadableBody,
        /// The value if the place has none.
        default: String,
        /// What counts if the request names the header, cookie or parameter several times: `deny` by default.
        repeated: Repeated,
    }
}

choice! {
    /// What counts of an entry that a request names several times.
    Repeated {
        /// Nothing: a rule that needs the entry refuses the request, with status 400 unless the rule sets another. Choose another word only if every upstream reads that value.
        "deny" => Deny,
        /// The first value.
        "first" => First,
        /// The last value.
        "last" => Last,
        /// All values with commas between them.
        "join" => Join,
    }
}

choice! {
    /// What a body means from which an entry cannot be read.
    UnreadableBody {
        /// The entry may have any value: a rule that needs it refuses the request, with status 400 unless the rule sets another.
        "refuse" => Refuse,
        /// The request does not have the entry.
        "absent" => Absent,
    }
}

/// An entry as written: one place, or a list of fields of bodies.
#[derive(Clone, Debug)]
pub(crate) enum WrittenEntry {
    /// One place.
    Source(Box<EntrySource>),
    /// Fields of bodies of several formats.
    Fields(List<EntrySource>),
}

impl Decode for WrittenEntry {
    fn expected() -> String {
        "a table, or a list of { json = ... } and { form = ... }".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::List(_) => List::decode(node, location, problems).map(WrittenEntry::Fields),
            Value::Table(_) => {
                EntrySource::decode(node, location, problems).map(|source| WrittenEntry::Source(Box::new(source)))
            }
            _ => {
                problems.refuse(location, format!("expected {}", Self::expected()));
                None
            }
        }
    }

    fn keys(path: &str, keys: &mut Vec<(String, KeyInfo)>) {
        EntrySource::keys(path, keys);
    }
}

table! {
    /// A value in dynamic metadata.
    MetadataTable {
        [required]
        /// The filter's namespace: `envoy.filters.http.jwt_authn`.
        namespace: String,
        [required]
        /// The keys that lead to the value, from the outermost: `["payload", "https://x.example/plan"]`.
        path: List<String>,
    }
}

/// A value in dynamic metadata as written: in one text, or a table.
#[derive(Clone, Debug)]
pub(crate) enum WrittenMetadata {
    /// `namespace:path.to.value`.
    Text(String),
    /// With a list of keys.
    Table(Box<MetadataTable>),
}

impl Decode for WrittenMetadata {
    fn expected() -> String {
        "\"namespace:path.to.value\" or { namespace = ..., path = [...] }".to_owned()
    }

    fn decode(node: &TreeNode, location: &Location, problems: &mut Problems) -> Option<Self> {
        match &node.value {
            Value::Text(text) => Some(WrittenMetadata::Text(text.text.clone())),
            Value::Table(_) => {
                MetadataTable::decode(node, location, problems).map(|table| WrittenMetadata::Table(Box::new(table)))
            }
            _ => {
                problems.refuse(location, format!("expected {}", Self::expected()));
                None
            }
        }
    }

    fn keys(path: &str, keys: &mut Vec<(String, KeyInfo)>) {
        MetadataTable::keys(path, keys);
    }
}
