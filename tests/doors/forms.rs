//! One form of a value at every door: what one door counts and matches, the others do too (semantics 27).

use envoy_types::pb::envoy::config::core::v3::address::Address as Kind;
use envoy_types::pb::envoy::config::core::v3::{Address, Metadata, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Peer, Request};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind as Value;
use envoy_types::pb::google::protobuf::{self, ListValue, Struct};
use tollgate::config::{Config, SourceText};
use tollgate::settings::Settings;

use crate::support::service::*;

/// A service with this configuration.
async fn start(text: &str) -> Doors {
    let source = SourceText { name: "a.toml".to_owned(), text: text.to_owned() };
    let config = Config::read(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    Doors::start_with(Settings { authz: config.server.authz, ..settings() }, config.book).await
}

/// A request as ext_authz describes it.
#[derive(Clone, Debug)]
struct Asked<'a> {
    method: &'a str,
    path: &'a str,
    host: &'a str,
    address: &'a str,
}

const ASKED: Asked<'static> = Asked { method: "GET", path: "/", host: "h", address: "192.0.2.1" };

impl Asked<'_> {
    fn check(&self) -> CheckRequest {
        let http = HttpRequest {
            method: self.method.into(),
            path: self.path.into(),
            host: self.host.into(),
            ..HttpRequest::default()
        };
        let socket = SocketAddress { address: self.address.into(), ..SocketAddress::default() };
        let address = Address { address: Some(Kind::SocketAddress(socket)) };
        let attributes = AttributeContext {
            source: Some(Peer { address: Some(address), ..Peer::default() }),
            request: Some(Request { http: Some(http), time: None }),
            ..AttributeContext::default()
        };
        CheckRequest { attributes: Some(attributes) }
    }

    /// Whether the request passes at each door: ext_authz over gRPC, `/authz/nginx`, `/authz/forward`, and RLS with
    /// what Envoy puts into these entries.
    async fn passes(&self, service: &Doors) -> [bool; 4] {
        let Self { method, path, host, address } = self;
        let rls = service.rls().await;
        let grpc = admitted(&rls, self.check()).await;
        let nginx = format!(
            "GET /authz/nginx HTTP/1.1\r\nhost: {host}\r\nx-original-method: {method}\r\nx-original-uri: {path}\r\n\
             x-real-ip: {address}"
        );
        let forward = format!(
            "GET /authz/forward HTTP/1.1\r\nhost: t\r\nx-forwarded-host: {host}\r\nx-forwarded-method: {method}\r\n\
             x-forwarded-uri: {path}\r\nx-forwarded-for: {address}"
        );
        let entries = [("method", *method), ("path", *path), ("host", *host), ("remote_address", *address)];
        let descriptor = question("edge", [descriptor(&entries)]);
        [
            grpc,
            service.ask(&nginx).await.status == 200,
            service.ask(&forward).await.status == 200,
            rls.ask(descriptor).await.overall_code == 1,
        ]
    }
}

async fn admitted(rls: &Rls, check: CheckRequest) -> bool {
    let answer: CheckResponse = rls.call(CHECK, check).await.expect("never an error of gRPC");
    matches!(answer.http_response, Some(HttpResponse::OkResponse(_)))
}

fn deny(test: &str) -> String {
    format!(
        "[authz]\ndomain = 'edge'\n[[rules]]\ndomain = 'edge'\nname = 'wall'\nmatch = {{ {test} }}\naction = 'deny'\n"
    )
}

#[tokio::test]
async fn semantics_27_a_literal_matches_every_spelling_of_its_value_at_every_door() {
    for (test, asked) in [
        ("method = 'POST'", Asked { method: "post", ..ASKED }),
        ("method = 'post'", Asked { method: "POST", ..ASKED }),
        ("method = ['pOsT', 'PUT']", Asked { method: "Post", ..ASKED }),
        ("host = 'Admin.Example.com'", Asked { host: "admin.example.com", ..ASKED }),
        ("host = 'admin.example.com:443'", Asked { host: "ADMIN.example.com.:8443", ..ASKED }),
        ("host = '*.Example.com'", Asked { host: "a.example.COM", ..ASKED }),
        ("path = '/legacy//admin'", Asked { path: "/legacy/admin", ..ASKED }),
        ("path = '/legacy//admin'", Asked { path: "/x/../legacy/%61dmin?a=b", ..ASKED }),
        ("path = '/Legacy//*'", Asked { path: "/Legacy/admin", ..ASKED }),
        ("path = '/login'", Asked { path: "http://x/login", ..ASKED }),
        ("remote_address = '2001:DB8::7'", Asked { address: "2001:db8:0::7", ..ASKED }),
        ("remote_address = '::ffff:192.0.2.9'", Asked { address: "192.0.2.9", ..ASKED }),
        ("remote_address = '192.0.2.0/24'", Asked { address: "64:ff9b::192.0.2.9", ..ASKED }),
        ("remote_address = '192.0.2.0/24'", Asked { address: "2002:c000:209::1", ..ASKED }),
    ] {
        let service = start(&deny(test)).await;
        assert_eq!(asked.passes(&service).await, [false; 4], "{test} and {asked:?}");
        let not = test.split_once(" = ").map(|(entry, literal)| format!("{entry} = {{ not = {literal} }}"));
        let service = start(&deny(&not.expect("an entry and its test"))).await;
        assert_eq!(asked.passes(&service).await, [true; 4], "not {test} and {asked:?}");
    }
}

#[tokio::test]
async fn semantics_27_doors_count_spellings_of_one_value_together() {
    let limiter = "[limiters.four]\nalgorithm = 'fixed_window'\nlimit = 4\nwindow = '1h'\n";
    for (entry, one, other) in [
        ("method", Asked { method: "post", ..ASKED }, Asked { method: "POST", ..ASKED }),
        ("host", Asked { host: "Api.example.com:443", ..ASKED }, Asked { host: "api.example.com.", ..ASKED }),
        ("path", Asked { path: "/login?a=b", ..ASKED }, Asked { path: "//login", ..ASKED }),
        ("remote_address", ASKED, Asked { address: "64:ff9b::c000:201", ..ASKED }),
        ("remote_address", ASKED, Asked { address: "::ffff:192.0.2.1", ..ASKED }),
    ] {
        let rule =
            format!("[[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{{ limiter = 'four', key = ['{entry}'] }}]\n");
        let service = start(&format!("[authz]\ndomain = 'edge'\n{limiter}{rule}")).await;
        assert_eq!(one.passes(&service).await, [true; 4], "{entry}");
        assert_eq!(other.passes(&service).await, [false; 4], "{entry}: {one:?} and {other:?} have two counters");
    }
}

fn text(text: &str) -> protobuf::Value {
    protobuf::Value { kind: Some(Value::StringValue(text.to_owned())) }
}

fn list(values: Vec<protobuf::Value>) -> protobuf::Value {
    protobuf::Value { kind: Some(Value::ListValue(ListValue { values })) }
}

/// A check with these claims, as `jwt_authn` writes them.
fn with_claims(claims: &[(&str, protobuf::Value)]) -> CheckRequest {
    let claims = claims.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
    let payload = protobuf::Value { kind: Some(Value::StructValue(Struct { fields: claims })) };
    let outer = Struct { fields: [("payload".to_owned(), payload)].into() };
    let metadata = Metadata { filter_metadata: [("jwt".to_owned(), outer)].into(), ..Metadata::default() };
    let mut check = ASKED.check();
    check.attributes.as_mut().expect("attributes").metadata_context = Some(metadata);
    check
}

#[tokio::test]
async fn a_claim_with_dots_in_its_name_is_an_entry() {
    let service = start(
        "[authz]\ndomain = 'edge'\n[authz.entries]\n\
         plan = { metadata = { namespace = 'jwt', path = ['payload', 'https://x.example/plan'] }, default = 'none' }\n\
         [[rules]]\ndomain = 'edge'\nname = 'wall'\nmatch = { plan = { not = 'pro' } }\naction = 'deny'\n",
    )
    .await;
    let rls = service.rls().await;
    assert!(admitted(&rls, with_claims(&[("https://x.example/plan", text("pro"))])).await);
    assert!(!admitted(&rls, with_claims(&[("https://x.example/plan", text("free"))])).await);
    assert!(!admitted(&rls, with_claims(&[("plan", text("pro"))])).await);
}

#[tokio::test]
async fn semantics_27_a_claim_that_is_a_list_matches_if_any_of_its_values_does() {
    let entries =
        "[authz]\ndomain = 'edge'\n[authz.entries]\nroles = { metadata = 'jwt:payload.roles', default = 'none' }\n";
    let wall = |test: &str| {
        format!("{entries}[[rules]]\ndomain = 'edge'\nname = 'wall'\nmatch = {{ roles = {test} }}\naction = 'deny'\n")
    };
    let two = || list(vec![text("user"), text("admin")]);
    let nothing = protobuf::Value { kind: Some(Value::StructValue(Struct::default())) };
    for (test, roles, denied) in [
        ("'admin'", two(), true),
        ("'user'", two(), true),
        ("'root'", two(), false),
        ("{ not = 'admin' }", two(), false),
        ("{ not = 'root' }", two(), true),
        ("'admin'", list(vec![text("admin")]), true),
        ("'42'", list(vec![protobuf::Value { kind: Some(Value::NumberValue(42.0)) }, text("a")]), true),
        ("'none'", list(Vec::new()), true),
        ("'none'", list(vec![nothing.clone()]), true),
        ("'a'", list(vec![nothing, text("a")]), true),
    ] {
        let service = start(&wall(test)).await;
        let rls = service.rls().await;
        assert_eq!(!admitted(&rls, with_claims(&[("roles", roles.clone())])).await, denied, "{test} and {roles:?}");
    }

    let limiter = "[limiters.one]\nalgorithm = 'fixed_window'\nlimit = 1\nwindow = '1h'\n";
    let rule = "[[rules]]\ndomain = 'edge'\nname = 'a'\napply = [{ limiter = 'one', key = ['roles'] }]\n";
    let service = start(&format!("{limiter}{entries}{rule}")).await;
    let rls = service.rls().await;
    let other_order = list(vec![text("admin"), text("user"), text("admin")]);
    assert!(admitted(&rls, with_claims(&[("roles", two())])).await);
    assert!(!admitted(&rls, with_claims(&[("roles", other_order)])).await, "neither order nor repetition counts anew");
    assert!(admitted(&rls, with_claims(&[("roles", list(vec![text("admin")]))])).await);
}
