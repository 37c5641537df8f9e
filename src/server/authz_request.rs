//! What the doors of ext_authz read of a request.

use std::borrow::Cow;

use crate::settings::AuthzSettings;

/// A request to authorize, as a door received it.
pub(super) trait AuthzRequest {
    /// The method.
    fn method(&self) -> Option<Cow<'_, str>>;

    /// The target of the client's request: path and query, or an absolute URI that `origin_form` splits.
    fn target(&self) -> Option<Cow<'_, str>>;

    /// The host it is sent to.
    fn host(&self) -> Option<Cow<'_, str>>;

    /// The values of all headers with this lower-case name. Values that the gateway joined with commas are one value.
    fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>>;

    /// Whether the gateway joins several headers of a name with commas.
    fn joins_headers(&self) -> bool;

    /// The client's address, from the headers that this door trusts (semantics 34).
    fn remote_address(&self, settings: &AuthzSettings) -> Option<Cow<'_, str>>;

    /// A context extension of the route.
    fn context(&self, key: &str) -> Option<&str>;

    /// The values in the request's dynamic metadata: several if there is a list, none if there is nothing.
    fn metadata(&self, namespace: &str, path: &[String]) -> Vec<Cow<'_, str>>;

    /// The principal of the client's certificate.
    fn principal(&self) -> Option<&str>;

    /// The body, empty if none came. `None` if only a part of it came.
    fn body(&self) -> Option<&[u8]>;
}
