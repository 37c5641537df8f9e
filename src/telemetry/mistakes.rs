//! Mistakes in the configuration of a gateway that nobody would notice, because requests pass: each is counted, and
//! logged at most once a minute.
//!
//! ```text
//!   a decision, a connection -> Mistakes::record   a count and some examples, in bounded memory
//!   once a second            -> Mistakes::report   the lines that are due
//! ```
//!
//! A line has a bounded number of examples of bounded length, without control characters: clients choose some of them.

use std::fmt::Write;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::sample::start;
use crate::clock::{Notice, Timestamp};

/// The shortest time between two lines about one mistake.
const MINUTE: Duration = Duration::from_secs(60);

/// The same for a domain in which nothing matches: that can also mean that nobody has asked for what is limited.
const HOUR: Duration = Duration::from_secs(3600);

/// The most examples in a line.
const MAX_EXAMPLES: usize = 8;

/// The longest example that comes from a client, in bytes.
const MAX_EXAMPLE_BYTES: usize = 64;

/// The longest list of examples in a line, in bytes.
const MAX_LINE_BYTES: usize = 2048;

/// A mistake.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mistake {
    /// A request of a domain that is not configured.
    UnknownDomain,
    /// A request without a domain.
    EmptyDomain,
    /// A request without descriptors.
    NoDescriptors,
    /// A descriptor with a key that no rule uses and that seems misspelt.
    UnknownKeys,
    /// A descriptor of a domain of which no rule has matched since the rules came into use.
    NothingMatched,
    /// A connection of HTTP/1 to the gRPC port.
    Http1AtGrpcPort,
    /// gRPC at the HTTP port, or HTTP/2 at the admin port.
    GrpcAtOtherPort,
    /// A connection of TLS: no port has TLS.
    Tls,
    /// A connection that begins with the PROXY protocol: no port reads it.
    ProxyProtocol,
    /// A gRPC method that is not served.
    UnknownMethod,
    /// A gRPC message in an encoding that is not supported.
    Encoding,
    /// A request head that is not valid HTTP.
    UnreadableHead,
    /// A body from which an entry cannot be read.
    UnreadableBody,
}

impl Mistake {
    /// All of them.
    pub const ALL: [Mistake; 13] = [
        Mistake::UnknownDomain,
        Mistake::EmptyDomain,
        Mistake::NoDescriptors,
        Mistake::UnknownKeys,
        Mistake::NothingMatched,
        Mistake::Http1AtGrpcPort,
        Mistake::GrpcAtOtherPort,
        Mistake::Tls,
        Mistake::ProxyProtocol,
        Mistake::UnknownMethod,
        Mistake::Encoding,
        Mistake::UnreadableHead,
        Mistake::UnreadableBody,
    ];

    /// The value of labels and log fields.
    pub fn name(self) -> &'static str {
        match self {
            Mistake::UnknownDomain => "unknown_domain",
            Mistake::EmptyDomain => "empty_domain",
            Mistake::NoDescriptors => "no_descriptors",
            Mistake::UnknownKeys => "unknown_keys",
            Mistake::NothingMatched => "nothing_matched",
            Mistake::Http1AtGrpcPort => "http1_at_grpc_port",
            Mistake::GrpcAtOtherPort => "grpc_at_other_port",
            Mistake::Tls => "tls",
            Mistake::ProxyProtocol => "proxy_protocol",
            Mistake::UnknownMethod => "unknown_method",
            Mistake::Encoding => "encoding",
            Mistake::UnreadableHead => "unreadable_head",
            Mistake::UnreadableBody => "unreadable_body",
        }
    }

    /// What it is, and the remedy.
    pub fn text(self) -> &'static str {
        match self {
            Mistake::UnknownDomain => {
                "requests of unknown domains pass without a limit: correct the domain in the gateway or in [authz], or add rules for it"
            }
            Mistake::EmptyDomain => {
                "requests without a domain pass without a limit: set the domain of the gateway's rate limit filter, or of [authz]"
            }
            Mistake::NoDescriptors => {
                "requests without descriptors pass without a limit: set rate_limits with actions in the gateway"
            }
            Mistake::UnknownKeys => {
                "descriptors have misspelt keys, which no rule uses: correct descriptor_key in the gateway, or the rule; if a key is meant, list it with all others in domains.NAME.entries"
            }
            Mistake::NothingMatched => {
                "no rule of a domain has matched a request since the rules came into use: tollgate explain --server HOST:PORT shows why"
            }
            Mistake::Http1AtGrpcPort => {
                "HTTP/1.1 at the gRPC port: set http2_protocol_options (Envoy: in explicit_http_config of the cluster's typed_extension_protocol_options), or send plain HTTP to server.http"
            }
            Mistake::GrpcAtOtherPort => {
                "gRPC at a port that does not serve it: point the gateway's cluster to server.grpc"
            }
            Mistake::Tls => {
                "TLS at a port without TLS: remove the transport_socket of the gateway's cluster, or end TLS in front of tollgate"
            }
            Mistake::ProxyProtocol => {
                "PROXY protocol at a port that does not read it: turn it off in the gateway (Envoy: upstream_proxy_protocol, HAProxy: send-proxy)"
            }
            Mistake::UnknownMethod => {
                "gRPC methods that are not served: set transport_api_version: V3 in the gateway, or send plain HTTP to server.http"
            }
            Mistake::Encoding => {
                "gRPC requests refused: grpc-encoding is not supported; let the client send gzip or no compression"
            }
            Mistake::UnreadableHead => "HTTP requests refused: request heads are not valid HTTP",
            Mistake::UnreadableBody => {
                "an entry of [authz.entries] cannot be read from bodies, so rules that need it refuse the requests; in Envoy's ext_authz filter, with_request_body sends bodies and its max_request_bytes has to be large enough, and over raw HTTP allowed_headers has to list content-type and content-encoding. The bodies are"
            }
        }
    }

    fn interval(self) -> Duration {
        match self {
            Mistake::NothingMatched => HOUR,
            _ => MINUTE,
        }
    }
}

/// The mistakes of a process, with examples of those that were not logged yet.
#[derive(Debug)]
pub struct Mistakes([Tally; Mistake::ALL.len()]);

#[derive(Debug)]
struct Tally {
    /// Occurrences since the start.
    total: AtomicU64,
    notice: Notice,
    /// Whether the report before this one saw occurrences. A line waits for one second, so that it has more than the
    /// first.
    collecting: AtomicBool,
    /// When a report last saw new occurrences, in microseconds, and how many there were since the start.
    last_seen: AtomicU64,
    seen: AtomicU64,
    /// Examples with their occurrences.
    examples: Mutex<Vec<(Box<str>, u64)>>,
}

impl Mistakes {
    /// Counts an occurrence. Of the example the log has a bounded length, without control characters.
    pub fn record(&self, mistake: Mistake, example: &str) {
        self.add(mistake, 1, start(example, MAX_EXAMPLE_BYTES));
    }

    /// Counts occurrences, with an example whose length is bounded.
    pub(super) fn add(&self, mistake: Mistake, occurrences: u64, example: &str) {
        let tally = &self.0[mistake as usize];
        tally.total.fetch_add(occurrences, Ordering::Relaxed);
        tally.notice.count(occurrences);
        // An example is left out rather than waited for.
        let Some(mut examples) = tally.examples.try_lock() else { return };
        if let Some((_, count)) = examples.iter_mut().find(|(known, _)| **known == *example) {
            *count += occurrences;
        } else if examples.len() < MAX_EXAMPLES {
            examples.push((example.into(), occurrences));
        }
    }

    /// The occurrences of each mistake since the start, zeros included.
    pub fn counts(&self) -> impl Iterator<Item = (Mistake, u64)> + '_ {
        Mistake::ALL.into_iter().map(|mistake| (mistake, self.0[mistake as usize].total.load(Ordering::Relaxed)))
    }

    /// The mistakes that were seen since a moment, with their occurrences since the start.
    pub fn seen_since(&self, moment: Timestamp) -> impl Iterator<Item = (Mistake, u64)> + '_ {
        let seen = move |mistake: Mistake| self.0[mistake as usize].last_seen.load(Ordering::Relaxed);
        self.counts().filter(move |(mistake, count)| *count > 0 && seen(*mistake) >= moment.micros())
    }

    /// Logs the mistakes that are due: each at most once a minute, with the occurrences since its last line. `meant` gives
    /// the known domain that an unknown one may stand for. Called once a second.
    pub(super) fn report<'a>(&self, now: Timestamp, meant: impl Fn(&str) -> Option<&'a str>) {
        for (mistake, count, examples) in self.due(now, &meant) {
            let (name, text) = (mistake.name(), mistake.text());
            match mistake {
                Mistake::Encoding => tracing::warn!(mistake = name, count, encoding = examples, "{text}"),
                Mistake::UnreadableHead => tracing::warn!(mistake = name, count, error = examples, "{text}"),
                _ if examples.is_empty() => tracing::warn!(mistake = name, count, "{text}"),
                _ => tracing::warn!(mistake = name, count, "{text}: {examples}"),
            }
        }
    }

    /// The mistakes that are due, each with its occurrences and examples.
    fn due<'a>(&self, now: Timestamp, meant: &impl Fn(&str) -> Option<&'a str>) -> Vec<(Mistake, u64, String)> {
        let due = |mistake: Mistake| {
            let tally = &self.0[mistake as usize];
            let total = tally.total.load(Ordering::Relaxed);
            if tally.seen.swap(total, Ordering::Relaxed) != total {
                tally.last_seen.store(now.micros(), Ordering::Relaxed);
            }
            let waits = tally.notice.counted() > 0;
            if !tally.collecting.swap(waits, Ordering::Relaxed) {
                return None;
            }
            let count = tally.notice.due(now)?;
            let examples = std::mem::take(&mut *tally.examples.lock());
            Some((mistake, count, listed(mistake, &examples, count, meant)))
        };
        Mistake::ALL.into_iter().filter_map(due).collect()
    }
}

impl Default for Mistakes {
    fn default() -> Self {
        Self(Mistake::ALL.map(|mistake| Tally {
            total: AtomicU64::new(0),
            notice: Notice::every(mistake.interval()),
            collecting: AtomicBool::new(false),
            last_seen: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            examples: Mutex::default(),
        }))
    }
}

/// Lists examples, each with its occurrences unless it has all of them.
fn listed<'a>(
    mistake: Mistake,
    examples: &[(Box<str>, u64)],
    count: u64,
    meant: &impl Fn(&str) -> Option<&'a str>,
) -> String {
    let mut line = String::new();
    for (example, occurrences) in examples.iter().filter(|(example, _)| !example.is_empty()) {
        if !line.is_empty() {
            line += "; ";
        }
        match mistake {
            Mistake::UnknownDomain => write!(line, "\"{}\"", printable(example)),
            _ => write!(line, "{}", printable(example)),
        }
        .expect("a string takes any text");
        if *occurrences < count {
            write!(line, " ({occurrences} of {count})").expect("a string takes any text");
        }
        if mistake == Mistake::UnknownDomain
            && let Some(meant) = meant(example)
        {
            write!(line, ", did you mean {meant:?}?").expect("a string takes any text");
        }
    }
    if line.len() > MAX_LINE_BYTES {
        line.truncate(start(&line, MAX_LINE_BYTES).len());
        line += "...";
    }
    line
}

/// A text without characters that a terminal or another line of the log could take for something else.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '"' | '\'' => shown.push(letter),
            _ => shown.extend(letter.escape_debug()),
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(mistake: Mistake, mistakes: &Mistakes, count: u64) -> String {
        let examples = mistakes.0[mistake as usize].examples.lock();
        listed(mistake, &examples, count, &|domain| (domain == "egde").then_some("edge"))
    }

    #[test]
    fn every_mistake_has_a_name_and_a_place_of_its_own() {
        let mut names: Vec<&str> = Mistake::ALL.iter().map(|mistake| mistake.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), Mistake::ALL.len());
        assert!(Mistake::ALL.iter().enumerate().all(|(index, mistake)| *mistake as usize == index));
    }

    #[test]
    fn an_unknown_domain_is_shown_with_the_nearest_known_one() {
        let mistakes = Mistakes::default();
        (0..9).for_each(|_| mistakes.record(Mistake::UnknownDomain, "egde"));
        assert_eq!(list(Mistake::UnknownDomain, &mistakes, 9), r#""egde", did you mean "edge"?"#);
        mistakes.record(Mistake::UnknownDomain, "shop");
        assert_eq!(
            list(Mistake::UnknownDomain, &mistakes, 10),
            r#""egde" (9 of 10), did you mean "edge"?; "shop" (1 of 10)"#
        );
    }

    #[test]
    fn random_names_take_neither_memory_nor_the_log() {
        let mistakes = Mistakes::default();
        for number in 0..100_000 {
            mistakes.record(Mistake::UnknownDomain, &format!("{number}\r\n\u{1b}[2J\u{202e}{}", "\u{0}é".repeat(500)));
        }
        let examples = mistakes.0[Mistake::UnknownDomain as usize].examples.lock().clone();
        assert_eq!(examples.len(), MAX_EXAMPLES);
        assert!(examples.iter().all(|(example, _)| example.len() <= MAX_EXAMPLE_BYTES));
        let line = list(Mistake::UnknownDomain, &mistakes, 100_000);
        assert!(line.len() <= MAX_LINE_BYTES + 3, "{}", line.len());
        assert!(line.starts_with(r#""0\r\n\u{1b}[2J\u{202e}\0é"#), "{line}");
        assert!(!line.chars().any(|letter| letter.is_control() || letter == '\u{202e}'), "{line}");
        assert_eq!(mistakes.counts().next(), Some((Mistake::UnknownDomain, 100_000)));
    }

    #[test]
    fn each_mistake_has_one_line_a_minute_with_all_occurrences_since_the_last() {
        let mistakes = Mistakes::default();
        let due = |second| mistakes.due(Timestamp::from_secs(second), &|_| None);
        let domain = |second, count, examples: &str| {
            assert_eq!(due(second), [(Mistake::UnknownDomain, count, examples.to_owned())]);
        };
        (0..4).for_each(|_| mistakes.record(Mistake::UnknownDomain, "egde"));
        assert_eq!(due(100), []);
        (0..5).for_each(|_| mistakes.record(Mistake::UnknownDomain, "egde"));
        domain(101, 9, r#""egde""#);
        mistakes.record(Mistake::UnknownDomain, "shop");
        mistakes.record(Mistake::Tls, "gRPC port, from 10.0.0.7");
        assert_eq!(due(102), []);
        assert_eq!(due(103), [(Mistake::Tls, 1, "gRPC port, from 10.0.0.7".to_owned())]);
        assert_eq!(due(160), []);
        // A line comes although nobody asks any more.
        domain(161, 1, r#""shop""#);
        assert_eq!((161..400).flat_map(due).count(), 0);
    }

    #[test]
    fn a_domain_in_which_nothing_matches_has_one_line_an_hour() {
        let mistakes = Mistakes::default();
        let lines = (0..7200).filter(|second| {
            mistakes.add(Mistake::NothingMatched, 1, "domain");
            !mistakes.due(Timestamp::from_secs(100_000 + second), &|_| None).is_empty()
        });
        assert_eq!(lines.collect::<Vec<_>>(), [1, 3601]);
    }

    #[test]
    fn mistakes_are_seen_as_long_as_they_happen() {
        let mistakes = Mistakes::default();
        let at = Timestamp::from_secs;
        let report = |second| mistakes.report(at(second), |_| None);
        let seen = |second| mistakes.seen_since(at(second)).collect::<Vec<_>>();
        mistakes.record(Mistake::Tls, "gRPC port from 10.0.0.7");
        report(100);
        report(101);
        assert_eq!(seen(50), [(Mistake::Tls, 1)]);
        assert_eq!(seen(101), []);
        mistakes.record(Mistake::Tls, "");
        report(200);
        assert_eq!(seen(150), [(Mistake::Tls, 2)]);
    }
}
