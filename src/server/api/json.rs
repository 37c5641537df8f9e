//! Reads a message from JSON. Errors name the place, and the name that a misspelt one was meant to be.

use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::forms::{ObjectOnly, shown};
use crate::rules::nearest;

/// Reads a message.
pub(super) fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map(|ObjectOnly(message)| message).map_err(|error| match error.is_data() {
        true => explained::<T>(bytes),
        false => ApiError::at("body", format!("no JSON: {error}")),
    })
}

/// Reads a message that is JSON of another form once more, following the place.
fn explained<T: DeserializeOwned>(bytes: &[u8]) -> ApiError {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let Err(error) = serde_path_to_error::deserialize::<_, ObjectOnly<T>>(&mut json) else {
        return ApiError::at("body", "no JSON of a call");
    };
    let place = match error.path().to_string() {
        place if place == "." => String::new(),
        place => place,
    };
    let cause = error.inner();
    let position = format!(" at line {} column {}", cause.line(), cause.column());
    let text = cause.to_string();
    let text = text.strip_suffix(&position).unwrap_or(&text);
    if let Some((name, known)) = unknown_field(text) {
        // The path of an unknown field can end at the object that has it, or at the field.
        let object = place.strip_suffix(name).unwrap_or(&place).trim_end_matches('.');
        let place = if object.is_empty() { shortened(name) } else { format!("{object}.{}", shortened(name)) };
        let meant = match nearest(&snake(name), known.iter().copied()) {
            Some(meant) => format!("did you mean {meant}?"),
            None => format!("expected one of {}", known.join(", ")),
        };
        return ApiError::at(place, format!("unknown field; {meant}"));
    }
    if let Some(name) = text.strip_prefix("duplicate field `").and_then(|rest| rest.strip_suffix('`')) {
        let object = place.strip_suffix(name).unwrap_or(&place).trim_end_matches('.');
        let place = if object.is_empty() { name.to_owned() } else { format!("{object}.{name}") };
        return ApiError::at(place, "is there twice");
    }
    let text = text.strip_prefix("invalid type: ").or_else(|| text.strip_prefix("invalid value: ")).unwrap_or(text);
    let text = match text.split_once(", expected ") {
        Some((value, expected)) => format!("{}, expected {}", cut(value), plain(expected)),
        None => cut(text),
    };
    ApiError::at(if place.is_empty() { "body".to_owned() } else { place }, text)
}

/// The name and the known names in serde's text about an unknown field.
fn unknown_field(text: &str) -> Option<(&str, Vec<&str>)> {
    let (name, known) = text.strip_prefix("unknown field `")?.rsplit_once("`, expected ")?;
    Some((name, known.split('`').skip(1).step_by(2).filter(|name| !name.contains(char::is_uppercase)).collect()))
}

/// A name in lowerCamelCase as its message has it.
fn snake(name: &str) -> String {
    let mut snake = String::with_capacity(name.len() + 4);
    for character in name.chars() {
        if character.is_uppercase() {
            snake.push('_');
        }
        snake.extend(character.to_lowercase());
    }
    snake
}

/// What serde expects, in the words of JSON.
fn plain(expected: &str) -> &str {
    match expected {
        "a string" => "a text",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "u64" => "a whole number that is not negative",
        other => other,
    }
}

/// A name of the client, bounded.
fn shortened(name: &str) -> String {
    let plain = name.len() <= 40 && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if plain { name.to_owned() } else { shown(name) }
}

/// A value of the client, bounded.
fn cut(value: &str) -> String {
    const MOST: usize = 80;
    match value.char_indices().nth(MOST) {
        Some((end, _)) => format!("{}...", &value[..end]),
        None => value.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::server::grpc::limits_messages::{AcquireRequest, RenewRequest, SettleRequest};

    fn complaint<T: DeserializeOwned + std::fmt::Debug>(json: &str) -> String {
        read::<T>(json.as_bytes()).expect_err(json).message()
    }

    #[test]
    fn an_error_names_the_place_and_the_nearest_name() {
        for (json, expected) in [
            (r#"{"lmiter": "a"}"#, "lmiter: unknown field; did you mean limiter?"),
            (r#"{"maxwait": "1s"}"#, "maxwait: unknown field; did you mean max_wait?"),
            (r#"{"maxWiat": "1s"}"#, "maxWiat: unknown field; did you mean max_wait?"),
            (
                r#"{"asks": [{}, {"zzz": 1}]}"#,
                "asks[1].zzz: unknown field; expected one of limiter, key, entries, cost, hold, lost",
            ),
            (r#"{"cost": -1}"#, "cost: integer `-1`, expected a whole number from 1 to 4294967295"),
            (r#"{"cost": "2"}"#, "cost: string \"2\", expected a whole number from 1 to 4294967295"),
            (r#"{"cost": 1.5}"#, "cost: floating point `1.5`, expected a whole number from 1 to 4294967295"),
            (r#"{"limiter": 7}"#, "limiter: integer `7`, expected a text"),
            (r#"{"any": 1}"#, "any: integer `1`, expected true or false"),
            (r#"{"asks": {}}"#, "asks: map, expected a list"),
            (r#"{"max_wait": 30}"#, "max_wait: integer `30`, expected a duration as text, such as \"1.5s\""),
            (r#"{"max_wait": "soon"}"#, "max_wait: \"soon\", expected a duration as text, such as \"1.5s\""),
            (r#"{"key": {"a": 1}}"#, "key.a: integer `1`, expected a text"),
            (r#"{"key": {"a": "1", "a": "2"}}"#, "key: \"a\" is there twice"),
            (r#"{"max_wait": "1s", "maxWait": "2s"}"#, "max_wait is there twice"),
            ("[1]", "body: sequence, expected an object"),
            ("[]", "body: sequence, expected an object"),
            (r#"{"asks": [["a"]]}"#, "asks[0]: sequence, expected an object"),
            ("7", "body: integer `7`, expected an object"),
        ] {
            let said = complaint::<AcquireRequest>(json);
            assert_eq!(said, expected, "{json}");
        }
        assert_eq!(complaint::<AcquireRequest>("{"), "body: no JSON: EOF while parsing an object at line 1 column 1");
        assert!(complaint::<AcquireRequest>("").starts_with("body: no JSON: "));
        assert!(complaint::<AcquireRequest>("{} x").starts_with("body: no JSON: trailing characters"));
        assert_eq!(complaint::<RenewRequest>(r#"{"lease": 1}"#), "lease: integer `1`, expected a text");
        let units = complaint::<SettleRequest>(r#"{"lease": "a", "units": {"tokens": -1}}"#);
        assert_eq!(units, "units.tokens: integer `-1`, expected a whole number that is not negative");
    }

    #[test]
    fn an_error_repeats_no_more_than_a_part_of_what_a_client_sent() {
        let long = "k".repeat(100_000);
        for json in [
            format!(r#"{{"limiter": {{"{long}": 1}}}}"#),
            format!(r#"{{"{long}": 1}}"#),
            format!(r#"{{"max_wait": "{long}"}}"#),
            format!(r#"{{"cost": "{long}"}}"#),
            format!(r#"{{"key": {{"{long}": "1", "{long}": "2"}}}}"#),
        ] {
            let said = complaint::<AcquireRequest>(&json);
            assert!(said.len() < 400, "{}: {said:.100}", said.len());
        }
    }

    #[test]
    fn every_name_of_several_words_is_read_in_both_spellings() {
        let both = r#"{"limiter": "a", "maxWait": "1s", "idempotencyKey": "k"}"#;
        let written = r#"{"limiter": "a", "max_wait": "1s", "idempotency_key": "k"}"#;
        let read = |json: &str| read::<AcquireRequest>(json.as_bytes()).expect("it is read");
        assert_eq!(read(both), read(written));
        assert_eq!(read(r#"{"limiter": null, "cost": null, "lease": null}"#), AcquireRequest::default());
    }
}
