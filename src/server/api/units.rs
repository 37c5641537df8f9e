//! The units of a settle as JSON: a number, or an object of one for each limiter.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

use super::forms::{MAX_COST, unique};
use crate::server::grpc::limits_messages::Units;

impl<'de> Deserialize<'de> for Units {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(SettleVisitor)
    }
}

struct SettleVisitor;

impl<'de> Visitor<'de> for SettleVisitor {
    type Value = Units;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a whole number from 0 to {MAX_COST}, or an object of one for each limiter")
    }

    fn visit_u64<E: Error>(self, each: u64) -> Result<Units, E> {
        Ok(Units { each: Some(each), ..Units::default() })
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Units, A::Error> {
        Ok(Units { each: None, by_limiter: unique(map)? })
    }
}

impl JsonSchema for Units {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        "Units".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let number = json_schema!({ "type": "integer", "minimum": 0, "maximum": MAX_COST });
        json_schema!({ "oneOf": [number, { "type": "object", "additionalProperties": number }] })
    }
}
