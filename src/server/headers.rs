//! Headers and bodies of answers: what remains, until when, and why a request is refused.
//!
//! ```text
//!   X-RateLimit-Limit: 30                          RateLimit-Policy: "login_ip";q=30;w=60
//!   X-RateLimit-Remaining: 0                       RateLimit: "login_ip";r=0;t=12
//!   X-RateLimit-Reset: 12                          Retry-After: 12
//! ```
//!
//! The left column is custom; the right column is draft-ietf-httpapi-ratelimit-headers-11 and RFC 9110. All describe the
//! deciding check: the refusing check with the longest wait, else the check with the lowest remaining. Times are seconds
//! from now, rounded up, so a client that waits that long is not refused again for being early.

use std::borrow::Cow;
use std::fmt::Write;
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::decision::{CheckStatus, Decision, Reason, Refusal};
use crate::rules::RuleHeaders;
use crate::settings::HeaderFamilies;

/// A header: its name in lower case, and a value that [`clean`] accepts.
pub(super) type Header = (&'static str, String);

/// The headers of a decision and its refusal, of the enabled families.
pub(super) fn of(decision: &Decision, refusal: Option<&Refusal<'_>>, families: HeaderFamilies) -> Vec<Header> {
    let mut headers = Vec::new();
    if (families.x_ratelimit || families.ietf)
        && let Some(deciding) = decision.tightest_shown()
    {
        if families.x_ratelimit {
            headers.push(("x-ratelimit-limit", deciding.capacity.to_string()));
            headers.push(("x-ratelimit-remaining", deciding.remaining.to_string()));
            headers.push(("x-ratelimit-reset", seconds(until(&deciding)).to_string()));
        }
        if families.ietf {
            let policies = Policies::of(decision, families.names);
            headers.push(("ratelimit-policy", policies.text()));
            headers.push(("ratelimit", policies.service_limit(&deciding)));
        }
    }
    if families.retry_after
        && let Some(wait) = refusal.and_then(shown_wait)
    {
        headers.push(("retry-after", seconds(wait).max(1).to_string()));
    }
    headers
}

/// The reset time of a status: until the check would pass, else until the counter is empty (semantics 17).
pub(super) fn until(counted: &CheckStatus<'_>) -> Duration {
    counted.retry_after.unwrap_or(counted.reset)
}

/// Whole seconds, rounded up.
pub(super) fn seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

/// The policies of a response: one for each limiter that counted the request and is shown. A limiter with two keys is
/// one policy.
struct Policies<'a> {
    checks: Vec<CheckStatus<'a>>,
    /// Whether a policy has the limiter's name. Otherwise it has its number in the response.
    names: bool,
}

impl<'a> Policies<'a> {
    fn of(decision: &'a Decision, names: bool) -> Self {
        let mut checks: Vec<CheckStatus<'a>> = Vec::new();
        for counted in decision.checks().filter(|counted| counted.headers == RuleHeaders::All) {
            if !checks.iter().any(|listed| listed.limiter == counted.limiter) {
                checks.push(counted);
            }
        }
        Self { checks, names }
    }

    fn text(&self) -> String {
        let mut text = String::new();
        for counted in &self.checks {
            if !text.is_empty() {
                text.push_str(", ");
            }
            self.name(counted, &mut text);
            let _ = match counted.window {
                Some(window) => write!(text, ";q={};w={}", counted.limit, seconds(window)),
                None => write!(text, ";q={};qu=\"concurrent-requests\"", counted.limit),
            };
        }
        text
    }

    fn service_limit(&self, counted: &CheckStatus<'_>) -> String {
        let mut text = String::new();
        self.name(counted, &mut text);
        let _ = write!(text, ";r={};t={}", counted.remaining, seconds(until(counted)));
        text
    }

    fn name(&self, counted: &CheckStatus<'_>, text: &mut String) {
        if self.names {
            return quote(text, counted.limiter);
        }
        let number = self.checks.iter().position(|listed| listed.limiter == counted.limiter);
        quote(text, &number.map_or(0, |index| index + 1).to_string());
    }
}

/// The wait that the client is shown.
fn shown_wait(refusal: &Refusal<'_>) -> Option<Duration> {
    refusal.retry_after.filter(|_| refusal.headers != RuleHeaders::None)
}

/// The rule and the limiter that the client is shown.
fn shown_names<'a>(refusal: &Refusal<'a>, families: HeaderFamilies) -> (Option<&'a str>, Option<&'a str>) {
    match families.names && refusal.headers == RuleHeaders::All {
        true => (refusal.rule, refusal.limiter),
        false => (None, None),
    }
}

/// Appends a string of structured fields (RFC 9651, section 3.3.3).
fn quote(into: &mut String, text: &str) {
    into.push('"');
    for character in clean(text).chars() {
        if matches!(character, '"' | '\\') {
            into.push('\\');
        }
        into.push(character);
    }
    into.push('"');
}

/// A text as the value of a header: all characters but visible ASCII and inner spaces become `?`.
///
/// Envoy copies some headers of an answer to the client unchanged, so a line break would add a second header. Every
/// header value that is not made from numbers goes through here.
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    let text = text.trim_matches(' ');
    if text.bytes().all(|byte| matches!(byte, b' '..=b'~')) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.chars().map(|character| if matches!(character, ' '..='~') { character } else { '?' }).collect())
}

/// The body of a refusal and its media type: the body of its rule, else a problem (RFC 9457) if enabled.
pub(super) fn body(refusal: &Refusal<'_>, families: HeaderFamilies) -> Option<(String, String)> {
    if let Some(text) = refusal.text
        && let Some(body) = &text.body
    {
        let media_type = text.content_type.as_deref().unwrap_or("text/plain");
        return Some((body.clone(), clean(media_type).into_owned()));
    }
    families.problem_json.then(|| (problem(refusal, families), "application/problem+json".to_owned()))
}

/// The HTTP status of a refusal: the status of its rule, else the one for its reason.
pub(super) fn status(refusal: &Refusal<'_>) -> u16 {
    let chosen = refusal.text.and_then(|text| text.status);
    // Gateways allow the request on 2xx.
    if let Some(status) = chosen.filter(|status| (300..=599).contains(status)) {
        return status;
    }
    match refusal.reason {
        Reason::Limit | Reason::MissingKey | Reason::NoLimiter | Reason::TooLarge | Reason::QueueFull => 429,
        Reason::Repeated | Reason::Unreadable => 400,
        Reason::Denied | Reason::Unmatched => 403,
        Reason::StoreError | Reason::Draining => 503,
    }
}

fn problem(refusal: &Refusal<'_>, families: HeaderFamilies) -> String {
    let status = status(refusal);
    let title = ::http::StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let mut problem = Map::new();
    let mut set = |name: &str, value: Value| problem.insert(name.to_owned(), value);
    // "about:blank": the problem has no meaning beyond its status.
    set("type", json!("about:blank"));
    set("title", json!(title.unwrap_or("Refused")));
    set("status", json!(status));
    set("detail", json!(detail(refusal)));
    let (rule, limiter) = shown_names(refusal, families);
    for (name, value) in [("rule", rule), ("limiter", limiter)] {
        if let Some(value) = value {
            set(name, json!(value));
        }
    }
    if let Some(wait) = shown_wait(refusal) {
        set("retry_after", json!(seconds(wait).max(1)));
    }
    Value::Object(problem).to_string()
}

/// The reason, for the client.
pub(super) fn detail(refusal: &Refusal<'_>) -> &'static str {
    match (refusal.reason, refusal.retry_after) {
        (Reason::Limit, Some(_)) => "limit exceeded; try again later",
        (Reason::Limit, None) => "this request asks for more than the limit ever allows; do not retry",
        (Reason::Denied, _) => "this request is not allowed",
        (Reason::Unmatched, _) => "no rule allows this request",
        (Reason::Repeated, _) => "this request gives several values where its limit needs one",
        (Reason::Unreadable, _) => "the body of this request cannot be read, and its limit needs a value in it",
        (Reason::MissingKey, _) => "this request lacks a value that its limit needs",
        (Reason::NoLimiter, _) => "no limit is configured for this kind of client",
        (Reason::StoreError, _) => "rate limiting is temporarily unavailable; try again later",
        (Reason::TooLarge, _) => "this request is too large to be checked",
        (Reason::QueueFull, _) => "too many callers wait for this limit already; try again later",
        (Reason::Draining, _) => "this instance is stopping; try again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_are_rounded_up() {
        assert_eq!(seconds(Duration::ZERO), 0);
        assert_eq!(seconds(Duration::from_micros(1)), 1);
        assert_eq!(seconds(Duration::from_secs(12)), 12);
        assert_eq!(seconds(Duration::from_millis(12_001)), 13);
    }

    #[test]
    fn nothing_that_is_emitted_breaks_a_line() {
        assert_eq!(clean("api_pro"), "api_pro");
        assert_eq!(clean("a\r\nset-cookie: b"), "a??set-cookie: b");
        assert_eq!(clean("\0\u{7f}é "), "???");
        let mut quoted = String::new();
        quote(&mut quoted, "a\"b\\c\n");
        assert_eq!(quoted, r#""a\"b\\c?""#);
    }
}
