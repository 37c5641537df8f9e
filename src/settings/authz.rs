//! The settings of ext_authz: how a request becomes entries.

use std::borrow::Cow;

use smallvec::SmallVec;

use crate::descriptor::{Descriptor, Entry};

/// How a descriptor is made from an ext_authz request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthzSettings {
    /// The domain, unless the route's `context_extensions.domain` names another.
    pub domain: String,
    /// The entries in addition to the built-in `remote_address`, `method`, `path` and `host`.
    pub entries: Vec<(String, EntrySource)>,
    /// The number of addresses, from the right of `X-Forwarded-For`, that trusted proxies wrote. With zero the header
    /// is ignored and the address is that of the peer (semantics 34).
    pub trusted_hops: usize,
    /// Whether `x-envoy-external-address` overrides that address. Envoy sets this header only with
    /// `use_remote_address: true`, and only for clients with a public address; otherwise it forwards the client's own
    /// header. So it must be off unless no such client exists.
    pub trust_external_address: bool,
}

impl AuthzSettings {
    /// Whether an entry comes from the body.
    pub fn reads_bodies(&self) -> bool {
        self.entries.iter().any(|(_, source)| matches!(source.from, RequestPart::Body(_)))
    }

    /// The descriptor of a request with these entries, as ext_authz makes it: an entry that is named several times is
    /// what its `repeated` says. Of entries that are not configured, the first counts.
    pub fn descriptor<'a>(&self, named: &'a [(String, String)]) -> Descriptor<'a> {
        let mut descriptor = Descriptor::default();
        for (index, (key, value)) in named.iter().enumerate() {
            if named[..index].iter().any(|(known, _)| known == key) {
                continue;
            }
            let source = self.entries.iter().find(|(known, source)| known == key && source.from.repeats());
            match source {
                Some((_, source)) => {
                    let values = named.iter().filter(|(other, _)| other == key).map(|(_, value)| value.into());
                    source.repeated.push(&mut descriptor, key, values.collect());
                }
                None => descriptor.entries.push(Entry { key, value: value.into() }),
            }
        }
        descriptor
    }
}

impl Default for AuthzSettings {
    fn default() -> Self {
        Self { domain: "default".to_owned(), entries: Vec::new(), trusted_hops: 0, trust_external_address: false }
    }
}

/// The source of an entry. The entry is absent if the request has no value and there is no default.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EntrySource {
    /// The part of the request.
    pub from: RequestPart,
    /// The value if the request has none.
    pub default: Option<String>,
    /// What counts if the request names it several times.
    pub repeated: Repeated,
}

impl From<RequestPart> for EntrySource {
    /// A source without a default value, and with the default for repeats.
    fn from(from: RequestPart) -> Self {
        Self { from, default: None, repeated: Repeated::default() }
    }
}

/// What counts of an entry that a request names several times: a header in several lines, a cookie or a parameter of
/// the query several times (semantics 63).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Repeated {
    /// Nothing: a rule that needs the entry refuses the request.
    #[default]
    Deny,
    /// The first value.
    First,
    /// The last value.
    Last,
    /// All values, with commas between them.
    Join,
}

impl Repeated {
    /// Adds an entry with the values that a request has for it to a descriptor. Without any, the entry is absent.
    pub fn push<'a>(self, descriptor: &mut Descriptor<'a>, key: &'a str, mut values: SmallVec<[Cow<'a, str>; 2]>) {
        let last = values.len().checked_sub(1);
        let value = match (self, last) {
            (_, None) => return,
            (_, Some(0)) | (Repeated::First, _) => values.swap_remove(0),
            (Repeated::Last, Some(last)) => values.swap_remove(last),
            (Repeated::Join, _) => Cow::Owned(values.join(",")),
            (Repeated::Deny, _) => return descriptor.push_repeated(key, values.into_vec()),
        };
        descriptor.entries.push(Entry { key, value });
    }
}

/// A part of an ext_authz request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RequestPart {
    /// A request header, in lower case.
    Header(String),
    /// A cookie.
    Cookie(String),
    /// A query parameter.
    Query(String),
    /// A `context_extensions` key of the route.
    Context(String),
    /// A value in the dynamic metadata of the request.
    Metadata {
        /// The namespace of the filter.
        namespace: String,
        /// The path in it.
        path: Vec<String>,
    },
    /// The client certificate's principal (`source.principal`).
    Principal,
    /// A field of the body. The media type decides which of them.
    Body(Vec<BodyField>),
}

/// A field of the body of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BodyField {
    /// The format of the body, and the place in it.
    pub format: BodyFormat,
    /// Whether the entry is absent if the body cannot be read. Else a rule that needs the entry refuses the request.
    pub absent_if_unreadable: bool,
}

/// The format of a body, and the place of a field in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyFormat {
    /// JSON: the names and indexes that lead to the value (RFC 6901).
    Json(Vec<String>),
    /// A form, `application/x-www-form-urlencoded`: the name of the field.
    Form(String),
}

impl RequestPart {
    /// Whether a request can name the part several times.
    pub fn repeats(&self) -> bool {
        match self {
            RequestPart::Header(_) | RequestPart::Cookie(_) | RequestPart::Query(_) => true,
            RequestPart::Context(_) | RequestPart::Metadata { .. } | RequestPart::Principal | RequestPart::Body(_) => {
                false
            }
        }
    }
}
