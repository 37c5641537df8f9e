//! The entries that come from the body of a request (semantics 62).
//!
//! A body is read as the strictest upstream reads it. Where two upstreams could read different values, or where one reads
//! a value and another fails, the entry is unreadable, and a rule that needs it refuses the request: what a limit does not
//! see must not reach the password check.

use std::borrow::Cow;
use std::fmt;

use percent_encoding::percent_decode_str;
use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::authz_request::AuthzRequest;
use super::named::is_alike;
use crate::settings::{BodyField, BodyFormat};

/// The deepest nesting of a JSON body.
const MAX_DEPTH: usize = 64;

/// The first integer whose neighbours a floating-point number cannot tell apart.
const FIRST_INEXACT: u64 = 1 << 53;

/// Why an entry cannot be read from a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unreadable {
    NotSent,
    NoMediaType,
    OtherMediaType,
    Encoded,
    OtherCharset,
    CutShort,
    TooLarge,
    TooDeep,
    NotUtf8,
    NotJson,
    NotForm,
    DoubtfulName,
    NoText,
}

impl Unreadable {
    /// What it is, for a log.
    pub(super) fn text(self) -> &'static str {
        match self {
            Self::NotSent => "announced by content-length and not sent",
            Self::NoMediaType => "sent without content-type",
            Self::OtherMediaType => "of another media type",
            Self::Encoded => "with a content-encoding",
            Self::OtherCharset => "in another charset than UTF-8",
            Self::CutShort => "cut short",
            Self::TooLarge => "larger than server.bounds.authz_body_bytes",
            Self::TooDeep => "nested deeper than 64 levels",
            Self::NotUtf8 => "no UTF-8",
            Self::NotJson => "no JSON",
            Self::NotForm => "with a malformed percent escape",
            Self::DoubtfulName => "with the field several times, or in another spelling",
            Self::NoText => "with a field that is no text or whole number",
        }
    }
}

/// What a body has for an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// The body, or the field, is not there.
    Absent,
    Value(Cow<'a, str>),
    Unreadable(Unreadable),
}

/// The value of an entry in the body of a request of at most `max_bytes`.
pub(super) fn field<'a>(request: &'a impl AuthzRequest, wanted: &[BodyField], max_bytes: usize) -> Field<'a> {
    let body = match body(request, max_bytes) {
        Ok(Some(body)) => body,
        Ok(None) => return Field::Absent,
        Err(reason) => return unreadable(wanted.iter(), reason),
    };
    let format = match format(request) {
        Ok(format) => format,
        Err(reason) => return unreadable(wanted.iter(), reason),
    };
    let found = wanted.iter().find_map(|field| match (&field.format, format) {
        (BodyFormat::Json(path), MediaType::Json) => Some((field, json(body, path))),
        (BodyFormat::Form(name), MediaType::Form) => Some((field, form(body, name))),
        (BodyFormat::Json(_), MediaType::Form) | (BodyFormat::Form(_), MediaType::Json) => None,
    });
    match found {
        None => unreadable(wanted.iter(), Unreadable::OtherMediaType),
        Some((field, Err(reason))) => unreadable([field].into_iter(), reason),
        Some((_, Ok(None))) => Field::Absent,
        Some((_, Ok(Some(value)))) => Field::Value(value),
    }
}

/// An entry is absent instead if each part of its list that this is about says so.
fn unreadable<'f>(mut of: impl Iterator<Item = &'f BodyField>, reason: Unreadable) -> Field<'static> {
    match of.all(|field| field.absent_if_unreadable) {
        true => Field::Absent,
        false => Field::Unreadable(reason),
    }
}

/// The whole body, `None` if the request has none.
fn body<R: AuthzRequest>(request: &R, max_bytes: usize) -> Result<Option<&str>, Unreadable> {
    let mut lengths = request.headers("content-length");
    let length = lengths.next();
    let length =
        length.as_deref().map(|text| text.trim().parse::<u64>().map_err(|_| Unreadable::CutShort)).transpose()?;
    let bytes = request.body().ok_or(Unreadable::CutShort)?;
    if bytes.is_empty() {
        let chunked = request.headers("transfer-encoding").next().is_some();
        let announced = length.is_some_and(|length| length > 0) || length.is_none() && chunked;
        return if announced { Err(Unreadable::NotSent) } else { Ok(None) };
    }
    if bytes.len() > max_bytes {
        return Err(Unreadable::TooLarge);
    }
    let partial = request.headers("x-envoy-auth-partial-body").any(|value| value.trim() == "true");
    if partial || length.is_some_and(|length| length != bytes.len() as u64) || lengths.next().is_some() {
        return Err(Unreadable::CutShort);
    }
    if request.headers("content-encoding").any(|value| !value.trim().eq_ignore_ascii_case("identity")) {
        return Err(Unreadable::Encoded);
    }
    std::str::from_utf8(bytes).map(Some).map_err(|_| Unreadable::NotUtf8)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MediaType {
    Json,
    Form,
}

fn format(request: &impl AuthzRequest) -> Result<MediaType, Unreadable> {
    let mut types = request.headers("content-type");
    let written = types.next().filter(|written| !written.trim().is_empty()).ok_or(Unreadable::NoMediaType)?;
    // A comma stands between two types that were joined.
    if types.next().is_some() || written.contains(',') {
        return Err(Unreadable::OtherMediaType);
    }
    let mut parts = written.split(';');
    let essence = parts.next().unwrap_or_default().trim().to_ascii_lowercase();
    for parameter in parts {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let value = value.trim().trim_matches('"');
        if name.trim().eq_ignore_ascii_case("charset")
            && !value.eq_ignore_ascii_case("utf-8")
            && !value.eq_ignore_ascii_case("utf8")
        {
            return Err(Unreadable::OtherCharset);
        }
    }
    match &*essence {
        "application/x-www-form-urlencoded" => Ok(MediaType::Form),
        "application/json" => Ok(MediaType::Json),
        other if other.starts_with("application/") && other.ends_with("+json") => Ok(MediaType::Json),
        _ => Err(Unreadable::OtherMediaType),
    }
}

/// The value at a path, which is a JSON pointer (RFC 6901) without its escapes.
fn json<'a>(text: &'a str, path: &[String]) -> Result<Option<Cow<'a, str>>, Unreadable> {
    if is_too_deep(text) {
        return Err(Unreadable::TooDeep);
    }
    let mut deserializer = serde_json::Deserializer::from_str(text);
    let found = At { path }.deserialize(&mut deserializer).map_err(|_| Unreadable::NotJson)?;
    deserializer.end().map_err(|_| Unreadable::NotJson)?;
    found
}

/// Whether brackets outside of strings are nested deeper than the bound.
fn is_too_deep(text: &str) -> bool {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    text.bytes().any(|byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth > MAX_DEPTH
    })
}

type Found<'a> = Result<Option<Cow<'a, str>>, Unreadable>;

/// Reads what is at the rest of a path.
struct At<'p> {
    path: &'p [String],
}

impl At<'_> {
    /// What a value means that is not an object or a list.
    fn scalar<'a>(&self, text: impl FnOnce() -> Option<Cow<'a, str>>) -> Found<'a> {
        match self.path {
            [] => text().map(Some).ok_or(Unreadable::NoText),
            _ => Ok(None),
        }
    }
}

impl<'de> DeserializeSeed<'de> for At<'_> {
    type Value = Found<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for At<'_> {
    type Value = Found<'de>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a value")
    }

    fn visit_borrowed_str<E: Error>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(self.scalar(|| Some(Cow::Borrowed(text))))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(self.scalar(|| Some(Cow::Owned(text.to_owned()))))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<Self::Value, E> {
        Ok(self.scalar(|| Some(Cow::Borrowed(if value { "true" } else { "false" }))))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(self.scalar(|| (number < FIRST_INEXACT).then(|| Cow::Owned(number.to_string()))))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(self.scalar(|| (number.unsigned_abs() < FIRST_INEXACT).then(|| Cow::Owned(number.to_string()))))
    }

    fn visit_f64<E: Error>(self, _: f64) -> Result<Self::Value, E> {
        Ok(self.scalar(|| None))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(self.scalar(|| None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let Some((token, path)) = self.path.split_first() else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
            return Ok(Err(Unreadable::NoText));
        };
        let is_index = token == "0" || !token.starts_with('0') && token.bytes().all(|byte| byte.is_ascii_digit());
        let wanted = token.parse::<usize>().ok().filter(|_| is_index);
        let (mut found, mut index) = (Ok(None), 0);
        loop {
            if Some(index) == wanted {
                match list.next_element_seed(At { path })? {
                    Some(value) => found = value,
                    None => return Ok(found),
                }
            } else if list.next_element::<IgnoredAny>()?.is_none() {
                return Ok(found);
            }
            index += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let Some((name, path)) = self.path.split_first() else {
            while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(Err(Unreadable::NoText));
        };
        let mut found = None;
        let mut doubtful = false;
        while let Some(key) = map.next_key_seed(KeyIs { name })? {
            match key {
                Key::Same => {
                    let value = map.next_value_seed(At { path })?;
                    doubtful |= found.replace(value).is_some();
                }
                Key::Alike | Key::Other => {
                    doubtful |= key == Key::Alike;
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        Ok(if doubtful { Err(Unreadable::DoubtfulName) } else { found.unwrap_or(Ok(None)) })
    }
}

/// How a key of an object compares with a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Key {
    Same,
    /// The same in another case, which some upstreams take for it.
    Alike,
    Other,
}

struct KeyIs<'n> {
    name: &'n str,
}

impl<'de> DeserializeSeed<'de> for KeyIs<'_> {
    type Value = Key;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Key, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for KeyIs<'_> {
    type Value = Key;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a key")
    }

    fn visit_str<E: Error>(self, key: &str) -> Result<Key, E> {
        Ok(match key == self.name {
            true => Key::Same,
            false if key.chars().map(folded).eq(self.name.chars().map(folded)) => Key::Alike,
            false => Key::Other,
        })
    }
}

/// A character in Unicode's simple case folding, without those that fold to several.
fn folded(c: char) -> char {
    fn single(c: char, mut cased: impl Iterator<Item = char>) -> char {
        match (cased.next(), cased.next()) {
            (Some(one), None) => one,
            _ => c,
        }
    }
    let upper = single(c, c.to_uppercase());
    single(upper, upper.to_lowercase())
}

/// The value of a field of a form (`application/x-www-form-urlencoded`).
fn form<'a>(text: &str, name: &str) -> Found<'a> {
    let folded_name: String = name.chars().map(folded).collect();
    let mut found = None;
    let mut doubtful = false;
    for pair in text.split('&') {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = unescaped(key)?;
        let value = unescaped(value)?;
        if key == name {
            doubtful |= pair.contains(';') || found.replace(value).is_some();
            continue;
        }
        // Rack 2 and Perl split pairs at semicolons too.
        for part in pair.split(';') {
            let key = unescaped(part.split_once('=').map_or(part, |(key, _)| key))?;
            doubtful |= is_alike(&key.chars().map(folded).collect::<String>(), &folded_name);
        }
    }
    if doubtful { Err(Unreadable::DoubtfulName) } else { Ok(found.map(Cow::Owned)) }
}

/// A part of a form without its escapes.
fn unescaped(text: &str) -> Result<String, Unreadable> {
    let mut escapes = text.split('%').skip(1);
    let is_escape = |rest: &str| rest.len() >= 2 && rest.as_bytes()[..2].iter().all(u8::is_ascii_hexdigit);
    if !escapes.all(is_escape) {
        return Err(Unreadable::NotForm);
    }
    let spaced = text.replace('+', " ");
    let text = percent_decode_str(&spaced).decode_utf8().map_err(|_| Unreadable::NotUtf8)?;
    Ok(text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::AuthzSettings;

    /// A request with a body.
    struct Posted<'a> {
        headers: Vec<(&'a str, &'a str)>,
        /// `None` if only a part of it came.
        body: Option<&'a [u8]>,
    }

    impl AuthzRequest for Posted<'_> {
        fn method(&self) -> Option<Cow<'_, str>> {
            Some("POST".into())
        }

        fn target(&self) -> Option<Cow<'_, str>> {
            Some("/login".into())
        }

        fn host(&self) -> Option<Cow<'_, str>> {
            None
        }

        fn headers<'a>(&'a self, name: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
            self.headers.iter().filter(move |(key, _)| *key == name).map(|(_, value)| Cow::Borrowed(*value))
        }

        fn joins_headers(&self) -> bool {
            true
        }

        fn remote_address(&self, _: &AuthzSettings) -> Option<Cow<'_, str>> {
            None
        }

        fn context(&self, _: &str) -> Option<&str> {
            None
        }

        fn metadata(&self, _: &str, _: &[String]) -> Vec<Cow<'_, str>> {
            Vec::new()
        }

        fn principal(&self) -> Option<&str> {
            None
        }

        fn body(&self) -> Option<&[u8]> {
            self.body
        }
    }

    const JSON: (&str, &str) = ("content-type", "application/json");
    const FORM: (&str, &str) = ("content-type", "application/x-www-form-urlencoded");

    fn fields(absent_if_unreadable: bool) -> [BodyField; 2] {
        let path = ["user", "name"].map(str::to_owned).to_vec();
        [BodyFormat::Json(path), BodyFormat::Form("user_name".to_owned())]
            .map(|format| BodyField { format, absent_if_unreadable })
    }

    fn read(headers: &[(&str, &str)], body: impl AsRef<[u8]>) -> Field<'static> {
        let request = Posted { headers: headers.to_vec(), body: Some(body.as_ref()) };
        match field(&request, &fields(false), 1_000) {
            Field::Absent => Field::Absent,
            Field::Value(value) => Field::Value(Cow::Owned(value.into_owned())),
            Field::Unreadable(reason) => {
                assert_eq!(field(&request, &fields(true), 1_000), Field::Absent, "unreadable = absent");
                Field::Unreadable(reason)
            }
        }
    }

    fn value(text: &str) -> Field<'static> {
        Field::Value(Cow::Owned(text.to_owned()))
    }

    #[test]
    fn semantics_62_the_value_of_a_json_field_has_one_form() {
        for (written, expected) in [
            (r#""bob""#, "bob"),
            (r#""b\u006fb \"x\" \ud83d\ude00""#, "bob \"x\" \u{1f600}"),
            ("17", "17"),
            ("-17", "-17"),
            ("9007199254740991", "9007199254740991"),
            ("true", "true"),
            ("false", "false"),
            (r#""""#, ""),
        ] {
            let body =
                format!(r#" {{"a": [1, {{"user": null}}], "user": {{"id": 4, "name": {written}}}, "z": {{}}}} "#);
            assert_eq!(read(&[JSON], body), value(expected), "{written}");
        }
        for media in ["application/json; charset=\"UTF-8\"", "Application/JSON;q=1", "application/problem+json"] {
            assert_eq!(read(&[("content-type", media)], r#"{"user":{"name":"bob"}}"#), value("bob"), "{media}");
        }
        for other in ["9007199254740992", "-9007199254740992", "1.0", "1e2", "-0", "null", "{}", "[]", "[\"bob\"]"] {
            let body = format!(r#"{{"user":{{"name":{other}}}}}"#);
            assert_eq!(read(&[JSON], body), Field::Unreadable(Unreadable::NoText), "{other}");
        }
        for absent in
            ["{}", "[]", "\"bob\"", r#"{"user":null}"#, r#"{"user":{}}"#, r#"{"user":["name"]}"#, r#"{"name":"bob"}"#]
        {
            assert_eq!(read(&[JSON], absent), Field::Absent, "{absent}");
        }
    }

    #[test]
    fn semantics_62_json_that_upstreams_read_differently_is_unreadable() {
        for doubtful in [
            r#"{"user":{"name":"a","name":"b"}}"#,
            r#"{"user":{"name":"a","name":"a"}}"#,
            r#"{"user":{"name":"a"},"user":{"name":"b"}}"#,
            r#"{"user":{"name":"a"},"User":{"name":"b"}}"#,
            r#"{"user":{"name":"a","NAME":"b"}}"#,
            r#"{"user":{"Name":"a"}}"#,
            r#"{"USER":{"name":"a"}}"#,
            r#"{"u\u017fer":{"name":"a"}}"#,
            r#"{"user":{"name":"a"},"\u0075ser":1}"#,
        ] {
            assert_eq!(read(&[JSON], doubtful), Field::Unreadable(Unreadable::DoubtfulName), "{doubtful}");
        }
        let name = r#"{"user":{"name":"a"}}"#;
        for broken in [
            &name[..name.len() - 1],
            "{'user':1}",
            "{\"user\":{\"name\":\"a\"}} x",
            "{\"user\":{\"name\":\"a\"},}",
            "\u{feff}{}",
            "{\"user\":{\"name\":\"\\ud800\"}}",
            "{\"user\":{\"name\":\"a\nb\"}}",
            "{\"user\":{\"name\":01}}",
            "NaN",
        ] {
            assert_eq!(read(&[JSON], broken), Field::Unreadable(Unreadable::NotJson), "{broken:?}");
        }
        assert_eq!(read(&[JSON], b"{\"user\":{\"name\":\"\xff\"}}"), Field::Unreadable(Unreadable::NotUtf8));
        let nested =
            |levels| format!("{{\"a\":{}{},\"user\":{{\"name\":\"]\"}}}}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(read(&[JSON], nested(MAX_DEPTH - 1)), value("]"));
        assert_eq!(read(&[JSON], nested(MAX_DEPTH)), Field::Unreadable(Unreadable::TooDeep));
    }

    #[test]
    fn semantics_62_a_pointer_leads_through_lists() {
        let body = r#"{"a/b":[{"m~n":"x"},"y"]}"#;
        let at = |path: &[&str]| json(body, &path.iter().map(|&part| part.to_owned()).collect::<Vec<_>>());
        assert_eq!(at(&["a/b", "0", "m~n"]), Ok(Some("x".into())));
        assert_eq!(at(&["a/b", "1"]), Ok(Some("y".into())));
        assert_eq!((at(&["a/b", "2"]), at(&["a/b", "01"]), at(&["a/b", "-"])), (Ok(None), Ok(None), Ok(None)));
        assert_eq!(at(&[]), Err(Unreadable::NoText));
    }

    #[test]
    fn semantics_62_the_value_of_a_form_field_has_no_escapes() {
        for (body, expected) in [
            ("user_name=bob", "bob"),
            ("password=x&user_name=b%6Fb+%26%c3%a9&next=%2F", "bob &\u{e9}"),
            ("user%5fname=bob", "bob"),
            ("user_name=a=b", "a=b"),
            ("user_name=", ""),
            ("user_name", ""),
        ] {
            assert_eq!(read(&[FORM], body), value(expected), "{body}");
        }
        for absent in ["name=bob", "username=bob", "user_names=bob", "&&", "x=user_name"] {
            assert_eq!(read(&[FORM], absent), Field::Absent, "{absent}");
        }
        for doubtful in [
            "user_name=a&user_name=b",
            "user_name=a&user_name=a",
            "User_Name=a",
            "user_name=a&USER_NAME=b",
            "user_name[]=a",
            "user_name[0]=a",
            "user_name%5B%5D=a",
            "user.name=a",
            "user%20name=a",
            "+user_name=a",
            "user_name%00=a",
            "u%C5%BFer_name=a",
            "x=1;user_name=a",
            "user_name=a;b",
        ] {
            assert_eq!(read(&[FORM], doubtful), Field::Unreadable(Unreadable::DoubtfulName), "{doubtful}");
        }
        for bad in ["user_name=%zz", "user_name=a%4", "user_name=a%", "x=%4g&user_name=a"] {
            assert_eq!(read(&[FORM], bad), Field::Unreadable(Unreadable::NotForm), "{bad}");
        }
        assert_eq!(read(&[FORM], "user_name=%ff"), Field::Unreadable(Unreadable::NotUtf8));
    }

    #[test]
    fn semantics_62_a_body_that_is_there_and_cannot_be_read_is_not_absent() {
        let json = r#"{"user":{"name":"bob"}}"#;
        let length = json.len().to_string();
        let types = |types: &'static str| ("content-type", types);
        let with = |more: &'static [(&'static str, &'static str)]| [&[JSON][..], more].concat();
        let reads = |headers: &[(&str, &str)], expected: Unreadable| {
            assert_eq!(read(headers, json), Field::Unreadable(expected), "{headers:?}");
        };
        assert_eq!(read(&[JSON, ("content-length", &length)], json), value("bob"));
        assert_eq!(read(&with(&[("content-encoding", "identity")]), json), value("bob"));
        assert_eq!(read(&with(&[("x-envoy-auth-partial-body", "false")]), json), value("bob"));
        reads(&[], Unreadable::NoMediaType);
        reads(&[types("")], Unreadable::NoMediaType);
        reads(&[types("text/plain")], Unreadable::OtherMediaType);
        reads(&[types("multipart/form-data; boundary=x")], Unreadable::OtherMediaType);
        reads(&[types("application/json, text/plain")], Unreadable::OtherMediaType);
        reads(&[JSON, JSON], Unreadable::OtherMediaType);
        reads(&[types("application/json; charset=utf-16")], Unreadable::OtherCharset);
        reads(&with(&[("content-encoding", "gzip")]), Unreadable::Encoded);
        reads(&with(&[("x-envoy-auth-partial-body", "true")]), Unreadable::CutShort);
        reads(&with(&[("content-length", "4000")]), Unreadable::CutShort);
        reads(&with(&[("content-length", "x")]), Unreadable::CutShort);
        assert_eq!(read(&[JSON], format!("{json}{}", " ".repeat(1_000))), Field::Unreadable(Unreadable::TooLarge));
        for announced in [("content-length", "23"), ("transfer-encoding", "chunked")] {
            assert_eq!(read(&[JSON, announced], ""), Field::Unreadable(Unreadable::NotSent));
        }
        assert_eq!(read(&[JSON, ("content-length", "0")], ""), Field::Absent);
        assert_eq!(read(&[], ""), Field::Absent);
        // Of a list with one format, the other is of another media type.
        let part = Posted { headers: vec![FORM], body: None };
        assert_eq!(field(&part, &fields(false), 1_000), Field::Unreadable(Unreadable::CutShort));
        let request = Posted { headers: vec![FORM], body: Some(b"user_name=bob") };
        let reason = Field::Unreadable(Unreadable::OtherMediaType);
        assert_eq!(field(&request, &fields(false)[..1], 1_000), reason);
    }
}
