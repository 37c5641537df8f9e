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
const SERVED: [&str; 2] = ["envoy/service/ratelimit/v3/rls.proto", "envoy/service/auth/v3/external_auth.proto"];

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
