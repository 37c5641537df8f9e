//! Checks that the committed code and descriptors match those generated from `proto/`.
//!
//! `REGENERATE=1 cargo test --test doors generated` writes them again.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};

/// The services that are served, except health and reflection.
const SERVED: [&str; 3] = ["envoy/service/ratelimit/v3/rls.proto", "envoy/service/auth/v3/external_auth.proto", LIMITS];

const LIMITS: &str = "tollgate/v1/limits.proto";

#[test]
fn the_rate_limit_service_is_generated_from_proto() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let mut set = protox::compile(["envoy/service/ratelimit/v3/rls.proto"], [root("proto")]).expect("proto/ compiles");
    make_texts_bytes(&mut set);
    leave_only_used_messages(&mut set);
    tonic_prost_build::configure()
        .build_client(false)
        .build_transport(false)
        .bytes(".envoy")
        .out_dir(directory.path())
        .compile_fds(set)
        .expect("the code is generated");
    let generated: BTreeMap<_, _> = fs::read_dir(directory.path())
        .expect("the directory is there")
        .map(|entry| entry.expect("an entry"))
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("envoy."))
        .map(|entry| (entry.file_name(), fs::read(entry.path()).expect("a generated file")))
        .collect();
    assert_eq!(generated.len(), 4, "one file for each package: {:?}", generated.keys());
    for (name, text) in generated {
        agrees(&root("src/server/grpc/generated").join(name), &text);
    }
}

/// Fields of the API whose JSON is not that of their type: how serde reads or writes them, by a function of
/// `server::api::forms`, and their schema there.
const FORMS: [(&str, &str, &str); 6] = [
    ("deserialize_with entries", "EntryMap", "AcquireRequest.key AcquireRequest.entries Ask.key Ask.entries"),
    (
        "deserialize_with duration",
        "DurationText",
        "AcquireRequest.hold AcquireRequest.max_wait AcquireRequest.lease Ask.hold RenewRequest.length",
    ),
    (
        "serialize_with duration",
        "DurationText",
        "AcquireResponse.lease_ends_in AcquireResponse.waited AcquireResponse.retry_after Limit.window Limit.reset \
         RenewResponse.lease_ends_in",
    ),
    ("deserialize_with units", "UnitCount", "AcquireRequest.cost Ask.cost"),
    ("deserialize_with asks", "", "AcquireRequest.asks"),
    ("", "LostWord", "AcquireRequest.lost Ask.lost"),
];

/// Requests: what the API reads as JSON.
const REQUESTS: [&str; 5] = ["AcquireRequest", "Ask", "RenewRequest", "ReleaseRequest", "SettleRequest"];

/// Answers: what it writes as JSON.
const RESPONSES: [&str; 8] = [
    "AcquireResponse",
    "Limit",
    "RenewResponse",
    "ReleaseResponse",
    "SettleResponse",
    "PeekResponse",
    "ListLimitersResponse",
    "Limiter",
];

/// The messages are also those of HTTP/JSON, and their comments the descriptions of the OpenAPI document.
#[test]
fn the_api_of_workers_is_generated_from_proto() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let set = protox::compile([LIMITS], [root("proto")]).expect("proto/ compiles");
    let message = |name: &str| format!(".tollgate.v1.{name}");
    let mut config = tonic_prost_build::configure()
        .build_client(false)
        .build_server(false)
        .build_transport(false)
        .btree_map(".tollgate")
        .out_dir(directory.path());
    for name in REQUESTS {
        config = config
            .message_attribute(message(name), "#[derive(::serde::Deserialize, ::schemars::JsonSchema)]")
            .message_attribute(message(name), "#[serde(default, deny_unknown_fields)]");
    }
    for name in RESPONSES {
        config = config.message_attribute(message(name), "#[derive(::serde::Serialize, ::schemars::JsonSchema)]");
    }
    for (form, schema, fields) in FORMS {
        for field in fields.split_whitespace().map(message) {
            if let Some((with, form)) = form.split_once(' ') {
                let function = with.trim_end_matches("_with");
                let attribute = format!("#[serde({with} = \"crate::server::api::forms::{form}::{function}\")]");
                config = config.field_attribute(&field, attribute);
            }
            if !schema.is_empty() {
                let attribute = format!("#[schemars(with = \"crate::server::api::forms::{schema}\")]");
                config = config.field_attribute(&field, attribute);
            }
        }
    }
    // JSON made from protobuf has lowerCamelCase.
    for (field, alias) in [("AcquireRequest.max_wait", "maxWait"), ("AcquireRequest.idempotency_key", "idempotencyKey")]
    {
        config = config.field_attribute(message(field), format!("#[serde(alias = \"{alias}\")]"));
    }
    config.compile_fds(set).expect("the code is generated");
    let text = fs::read(directory.path().join("tollgate.v1.rs")).expect("a generated file");
    agrees(&root("src/server/grpc/generated/tollgate.v1.rs"), &text);
}

#[test]
fn reflection_serves_the_published_types() {
    let set = protox::compile(SERVED, [root("proto")]).expect("proto/ compiles");
    agrees(&root("src/server/grpc/generated/descriptors.bin"), &without_comments(set).encode_to_vec());
}

#[test]
fn our_definitions_agree_with_the_published_ones() {
    // tonic-health contains the published definition of health; on the wire both are the same.
    let ours = protox::compile(["grpc/health/v1/health.proto"], [root("proto")]).expect("proto/ compiles");
    let theirs = FileDescriptorSet::decode(tonic_health::pb::FILE_DESCRIPTOR_SET).expect("a descriptor set");
    assert_eq!(fields(&ours.file[0].message_type), fields(&theirs.file[0].message_type));
}

/// A request may contain invalid UTF-8. Proto3 answers that with an error, and Envoy lets requests pass on errors, so
/// such fields are bytes here. Metadata is written directly as bytes, which saves a map of strings per response. The
/// encoding is the same.
fn make_texts_bytes(set: &mut FileDescriptorSet) {
    let bytes = [
        ("RateLimitRequest", "domain"),
        ("RateLimitDescriptor.Entry", "key"),
        ("RateLimitDescriptor.Entry", "value"),
        ("RateLimitResponse", "dynamic_metadata"),
    ];
    for (message, field) in bytes {
        let mut names = message.split('.');
        let outer = names.next().expect("a name");
        let mut found = set.file.iter_mut().flat_map(|file| &mut file.message_type).find(|m| m.name() == outer);
        if let Some(inner) = names.next() {
            found = found.and_then(|message| message.nested_type.iter_mut().find(|m| m.name() == inner));
        }
        let field = found.and_then(|message| message.field.iter_mut().find(|f| f.name() == field));
        let field = field.unwrap_or_else(|| panic!("{message} has the field"));
        field.set_type(Type::Bytes);
        field.type_name = None;
    }
}

fn leave_only_used_messages(set: &mut FileDescriptorSet) {
    for file in set.file.iter_mut().filter(|file| file.name().ends_with("core/v3/base.proto")) {
        file.message_type.retain(|message| message.name() == "HeaderValue");
    }
}

fn without_comments(mut set: FileDescriptorSet) -> FileDescriptorSet {
    set.file.iter_mut().for_each(|file| file.source_code_info = None);
    set
}

/// Names, numbers and types of the fields, ordered by number.
fn fields(messages: &[DescriptorProto]) -> Vec<(String, String, i32, i32)> {
    let of = |message: &DescriptorProto| {
        let name = message.name().to_owned();
        let fields = message.field.iter();
        fields.map(|f| (name.clone(), f.name().to_owned(), f.number(), f.r#type().into())).collect::<Vec<_>>()
    };
    let mut fields: Vec<_> = messages.iter().filter(|m| m.name() != "HealthListRequest").flat_map(of).collect();
    fields.sort();
    fields
}

fn agrees(path: &Path, expected: &[u8]) {
    if std::env::var_os("REGENERATE").is_some() {
        fs::create_dir_all(path.parent().expect("a directory")).expect("the directory is made");
        fs::write(path, expected).expect("the file is written");
    }
    let committed = fs::read(path).unwrap_or_default();
    assert!(committed == expected, "{} is not what proto/ says: run with REGENERATE=1", path.display());
}

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}
