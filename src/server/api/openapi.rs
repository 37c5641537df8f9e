//! The OpenAPI document (3.1), made of the types that are read and written.

use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::problem::{ErrorProblem, RefusalProblem};
use crate::server::grpc::limits_messages::{
    AcquireRequest, AcquireResponse, ListLimitersResponse, PeekResponse, ReleaseRequest, ReleaseResponse, RenewRequest,
    RenewResponse, SettleRequest, SettleResponse,
};

/// The document of a server that needs a token, or of one that does not, made when it is first asked for.
pub(super) fn document(needs_token: bool) -> &'static Value {
    static OPEN: LazyLock<Value> = LazyLock::new(|| make(&json!([])));
    static CLOSED: LazyLock<Value> = LazyLock::new(|| make(&json!([{ "token": [] }])));
    if needs_token { &CLOSED } else { &OPEN }
}

const PARTLY_HELD: &str = "The idempotency key has a lease of which a part is gone.";
const UNANSWERED: &str = "A store did not answer, so it is not known what became of the lease. Try again.";

/// A method as a path of the document.
struct Operation {
    path: &'static str,
    method: &'static str,
    name: &'static str,
    summary: &'static str,
    description: &'static str,
    /// The name of its request's schema, and an example.
    request: Option<(Value, Value)>,
    /// The status, the description, the media type and the schema of each answer of its own.
    answers: Vec<(&'static str, &'static str, Value)>,
}

fn make(security: &Value) -> Value {
    let settings = || {
        SchemaSettings::draft2020_12().with(|settings| {
            settings.definitions_path = "/components/schemas".into();
            settings.meta_schema = None;
        })
    };
    let mut requests = SchemaGenerator::new(settings());
    let mut responses = SchemaGenerator::new(settings().for_serialize());
    let operations = operations(&mut requests, &mut responses);
    let error = reference::<ErrorProblem>(&mut responses);
    let mut paths = Map::new();
    for operation in operations {
        paths.insert(operation.path.to_owned(), json!({ operation.method: operation.json(&error) }));
    }
    let mut schemas = Map::new();
    for generator in [&mut requests, &mut responses] {
        schemas.extend(generator.take_definitions(true));
    }
    require_lease(&mut schemas);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "tollgate",
            "summary": "Limits for workers and programs",
            "description": "Take units and slots, wait for a turn, hold a slot for as long as the work runs, and settle a \
                            cost that is known later. The same methods are served over gRPC as `tollgate.v1.Limits`.",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache 2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "tags": [{ "name": "limits", "description": "Limits of workers." }],
        "security": security,
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "A token of `server.api_token`. Without one, only a listener of loopback or a Unix \
                                    socket is open.",
                },
            },
        },
    })
}

/// The reference to the schema of a type.
fn reference<T: JsonSchema>(generator: &mut SchemaGenerator) -> Value {
    generator.subschema_for::<T>().to_value()
}

fn operations(requests: &mut SchemaGenerator, responses: &mut SchemaGenerator) -> Vec<Operation> {
    let acquire = reference::<AcquireRequest>(requests);
    let lease = "AQAB";
    let asked =
        json!({ "domain": "jobs", "limiter": "stripe_api", "key": { "endpoint": "charges" }, "max_wait": "30s" });
    let post = |path, name, summary, description, request, answers| Operation {
        path,
        method: "post",
        name,
        summary,
        description,
        request: Some(request),
        answers,
    };
    vec![
        post(
            "/v1/acquire",
            "acquire",
            "Take units and slots",
            "Waits for them if `max_wait` or the limiter says so. A connection that ends before the answer ends the wait, \
             and nothing is taken.",
            (acquire.clone(), asked.clone()),
            vec![
                ("200", "It was granted.", reference::<AcquireResponse>(responses)),
                ("429", "It was refused. Nothing is taken.", reference::<RefusalProblem>(responses)),
                ("404", "No such domain or limiter, or entries that no rule matches.", Value::Null),
                ("409", PARTLY_HELD, Value::Null),
                ("503", "A store did not answer, or the server is stopping. Nothing is taken.", Value::Null),
            ],
        ),
        post(
            "/v1/peek",
            "peek",
            "Look whether it would be granted",
            "Takes nothing and does not wait.",
            (acquire, asked),
            vec![
                ("200", "Whether it would be granted now.", reference::<PeekResponse>(responses)),
                ("404", "No such domain or limiter, or entries that no rule matches.", Value::Null),
                ("409", PARTLY_HELD, Value::Null),
                ("503", "A store did not answer.", Value::Null),
            ],
        ),
        post(
            "/v1/renew",
            "renew",
            "Hold a lease for longer",
            "Lets every slot and hold of a lease end its own length from now.",
            (reference::<RenewRequest>(requests), json!({ "lease": lease, "length": "15s" })),
            vec![
                ("200", "What became of the lease.", reference::<RenewResponse>(responses)),
                ("503", UNANSWERED, Value::Null),
            ],
        ),
        post(
            "/v1/release",
            "release",
            "End a lease",
            "Its slots are free, and what it held is given back. Again or late is no error.",
            (reference::<ReleaseRequest>(requests), json!({ "lease": lease })),
            vec![
                ("200", "What became of the lease.", reference::<ReleaseResponse>(responses)),
                ("503", UNANSWERED, Value::Null),
            ],
        ),
        post(
            "/v1/settle",
            "settle",
            "End a lease with what was used",
            "Corrects what the lease charged. Its slots are free.",
            (reference::<SettleRequest>(requests), json!({ "lease": lease, "units": 150 })),
            vec![
                ("200", "What became of the lease.", reference::<SettleResponse>(responses)),
                ("503", UNANSWERED, Value::Null),
            ],
        ),
        Operation {
            path: "/v1/limiters",
            method: "get",
            name: "listLimiters",
            summary: "List what can be asked for",
            description: "The limiters that rules apply, by domain, and those with `direct = true`.",
            request: None,
            answers: vec![("200", "The limiters.", reference::<ListLimitersResponse>(responses))],
        },
        Operation {
            path: "/v1/openapi.json",
            method: "get",
            name: "openapi",
            summary: "This document",
            description: "The OpenAPI document of this version.",
            request: None,
            answers: vec![("200", "The document.", json!({ "type": "object" }))],
        },
    ]
}

impl Operation {
    fn json(self, error: &Value) -> Value {
        let mut answers = Map::new();
        for (status, description, schema) in self.answers {
            let (media_type, schema) = match (status, schema) {
                ("200", schema) => ("application/json", schema),
                (_, Value::Null) => ("application/problem+json", error.clone()),
                (_, schema) => ("application/problem+json", schema),
            };
            let mut answer = json!({ "description": description, "content": { media_type: { "schema": schema } } });
            if matches!(status, "429" | "503") {
                answer["headers"] = json!({
                    "Retry-After": {
                        "description": "Seconds until it is worth another try.",
                        "schema": { "type": "integer", "minimum": 1 },
                    },
                });
            }
            answers.insert(status.to_owned(), answer);
        }
        let mut errors =
            vec![("401", "No token, or another one."), ("403", "The API is not open here, or a browser asks.")];
        if self.request.is_some() {
            errors.extend([
                ("400", "The call makes no sense. `place` says where."),
                ("408", "The body did not arrive in time."),
                ("413", "The body is larger than a bound of the server."),
                ("415", "The media type of the body is not `application/json`."),
            ]);
        }
        for (status, description) in errors {
            let answer =
                json!({ "description": description, "content": { "application/problem+json": { "schema": error } } });
            answers.insert(status.to_owned(), answer);
        }
        let mut operation = json!({
            "operationId": self.name,
            "tags": ["limits"],
            "summary": self.summary,
            "description": self.description,
        });
        if let Some((schema, example)) = self.request {
            operation["requestBody"] = json!({
                "required": true,
                "content": { "application/json": { "schema": schema, "example": example } },
            });
        }
        operation["responses"] = answers.into();
        operation
    }
}

/// A lease is the one field without which a call makes no sense by itself.
fn require_lease(schemas: &mut Map<String, Value>) {
    for name in ["RenewRequest", "ReleaseRequest", "SettleRequest"] {
        if let Some(schema) = schemas.get_mut(name) {
            schema["required"] = json!(["lease"]);
            schema["properties"]["lease"] = json!({ "type": "string", "minLength": 1, "description": "The lease." });
        }
    }
}
