//! A request that names an entry several times, at each door of ext_authz (semantics 63).

use envoy_types::pb::envoy::config::core::v3::{HeaderMap, HeaderValue};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::check_response::HttpResponse;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest, CheckResponse};
use envoy_types::pb::google::protobuf::value::Kind as Value;
use tollgate::config::{Config, SourceText};
use tollgate::settings::Settings;

use crate::support::dice::Dice;
use crate::support::service::*;

/// A service with this configuration.
pub(super) async fn start(text: &str) -> Doors {
    let source = SourceText { name: "a.toml".to_owned(), text: text.to_owned() };
    let config = Config::read(&[source], &|_| None).unwrap_or_else(|errors| panic!("{errors}"));
    Doors::start_with(Settings { authz: config.server.authz, ..settings() }, config.book).await
}

/// One request of each account, header, cookie and parameter. `MORE` stands for more keys of the entries, and of the
/// rules.
pub(super) fn once(entries: &str, rule: &str) -> String {
    format!(
        "limiters.once = {{ algorithm = 'sliding_window', limit = 1, window = '5m' }}\n\
         [authz]\ndomain = 'edge'\n\
         entries.header = {{ header = 'x-account'{entries} }}\n\
         entries.cookie = {{ cookie = 'account'{entries} }}\n\
         entries.query = {{ query = 'account'{entries} }}\n\
         [[rules]]\ndomain = 'edge'\nname = 'login'\nmatch = {{ path = '/login' }}\n{rule}\n\
         apply = [{{ limiter = 'once', key = ['header'] }}, {{ limiter = 'once', key = ['cookie'] }}, \
         {{ limiter = 'once', key = ['query'] }}]\n"
    )
}

/// A door of ext_authz.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Door {
    /// gRPC with `encode_raw_headers`.
    Raw,
    /// gRPC with a map, whose values Envoy joined.
    Map,
    /// Envoy over plain HTTP, which joins headers too.
    Envoy,
    Nginx,
    Forward,
}

impl Door {
    pub(super) const ALL: [Door; 5] = [Door::Raw, Door::Map, Door::Envoy, Door::Nginx, Door::Forward];

    /// Whether the gateway joins headers with commas.
    fn joins(self) -> bool {
        matches!(self, Door::Map | Door::Envoy)
    }
}

/// A client's request.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) target: String,
    pub(super) headers: Vec<(String, String)>,
}

impl Asked {
    pub(super) fn new(target: &str, headers: &[(&str, &str)]) -> Self {
        let headers = headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Self { target: target.to_owned(), headers }
    }

    /// The headers as a gateway sends them that joins them.
    fn joined(&self) -> Vec<(String, String)> {
        let mut joined: Vec<(String, String)> = Vec::new();
        for (name, value) in &self.headers {
            let name = name.to_lowercase();
            match joined.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => *values += &format!(",{value}"),
                None => joined.push((name, value.clone())),
            }
        }
        joined
    }

    pub(super) fn check(&self, door: Door) -> CheckRequest {
        let raw = |(name, value): &(String, String)| HeaderValue {
            key: name.to_lowercase(),
            raw_value: value.as_bytes().to_vec(),
            ..HeaderValue::default()
        };
        let mut http = HttpRequest { method: "POST".into(), path: self.target.clone(), ..HttpRequest::default() };
        match door {
            Door::Raw => http.header_map = Some(HeaderMap { headers: self.headers.iter().map(raw).collect() }),
            _ => http.headers = self.joined().into_iter().collect(),
        }
        let request = Some(Request { http: Some(http), time: None });
        CheckRequest { attributes: Some(AttributeContext { request, ..AttributeContext::default() }) }
    }

    /// The status and the reason of the answer.
    pub(super) async fn at(&self, door: Door, service: &Doors) -> (u16, Option<String>) {
        let Self { target, .. } = self;
        let head = match door {
            Door::Raw | Door::Map => return self.over_grpc(door, service).await,
            Door::Envoy => format!("POST /authz/envoy{target} HTTP/1.1\r\nhost: h\r\ncontent-length: 0"),
            Door::Nginx => {
                format!("GET /authz/nginx HTTP/1.1\r\nhost: h\r\nx-original-method: POST\r\nx-original-uri: {target}")
            }
            Door::Forward => format!(
                "GET /authz/forward HTTP/1.1\r\nhost: t\r\nx-forwarded-method: POST\r\nx-forwarded-uri: {target}\r\n\
                 x-forwarded-host: h"
            ),
        };
        let headers = if door.joins() { self.joined() } else { self.headers.clone() };
        let headers: String = headers.iter().map(|(name, value)| format!("\r\n{name}: {value}")).collect();
        let answer = service.ask(&(head + &headers)).await;
        let status =
            answer.header("x-tollgate-status").map_or(answer.status, |status| status.parse().expect("a status"));
        (status, answer.header("x-tollgate-reason").map(str::to_owned))
    }

    async fn over_grpc(&self, door: Door, service: &Doors) -> (u16, Option<String>) {
        let rls = service.rls().await;
        let answer: CheckResponse = rls.call(CHECK, self.check(door)).await.expect("never an error of gRPC");
        let status = match &answer.http_response {
            Some(HttpResponse::DeniedResponse(denied)) => denied.status.as_ref().expect("a status").code as u16,
            _ => 200,
        };
        if status == 400 {
            assert_eq!(answer.status.map(|status| status.code), Some(3), "INVALID_ARGUMENT");
        }
        let reason = answer.dynamic_metadata.and_then(|facts| facts.fields.get("reason")?.kind.clone());
        let reason = reason.map(|reason| match reason {
            Value::StringValue(text) => text,
            other => panic!("{other:?} is no text"),
        });
        (status, reason)
    }
}

fn header(values: &[&str]) -> Asked {
    Asked::new("/login", &values.iter().map(|value| ("X-Account", *value)).collect::<Vec<_>>())
}

pub(super) fn cookie(lines: &[&str]) -> Asked {
    Asked::new("/login", &lines.iter().map(|line| ("cookie", *line)).collect::<Vec<_>>())
}

pub(super) fn query(query: &str) -> Asked {
    Asked::new(&format!("/login?{query}"), &[])
}

pub(super) const REPEATED: (u16, Option<&str>) = (400, Some("repeated"));

pub(super) async fn is_refused_as_repeated(asked: &Asked, service: &Doors) {
    for door in Door::ALL {
        let (status, reason) = asked.at(door, service).await;
        assert_eq!((status, reason.as_deref()), REPEATED, "{door:?} {asked:?}");
    }
}

#[tokio::test]
async fn semantics_63_an_entry_that_is_named_twice_is_refused_at_every_door() {
    let service = start(&once("", "")).await;
    for asked in [
        header(&["fake7", "bob"]),
        header(&["bob", "bob"]),
        header(&["", "bob"]),
        header(&["bob", ""]),
        header(&["bob", "c", "d"]),
        Asked::new("/login", &[("x-account", "fake7"), ("a", "b"), ("X-ACCOUNT", "bob")]),
        query("account=a&account=bob"),
        query("account=a&b=c&acc%6funt=bob"),
        query("%61%63%63%6f%75%6e%74=a&account"),
        query("account=bob&account=bob"),
        query("account&account"),
        query("&&=&account=&account=bob#account=c"),
        cookie(&["account=a; account=bob"]),
        cookie(&["account=a;account=bob"]),
        cookie(&["account=a;\taccount\t=\tbob"]),
        cookie(&["account=a; b=c; account=\"a\""]),
        cookie(&["account=a", "account=bob"]),
        cookie(&["b=c", "d=e; account=a", "account=bob"]),
    ] {
        is_refused_as_repeated(&asked, &service).await;
        // On another path no rule needs the entry.
        let elsewhere = Asked { target: asked.target.replace("/login", "/page"), ..asked };
        for door in Door::ALL {
            assert_eq!(elsewhere.at(door, &service).await, (200, None), "{door:?} {elsewhere:?}");
        }
    }
    // Nothing was charged.
    for door in Door::ALL {
        let value = format!("bob{}", door as u8);
        assert_eq!(header(&[&value]).at(door, &service).await, (200, None));
    }
}

#[tokio::test]
async fn semantics_63_names_that_are_others_are_no_repeat() {
    let service = start(&once("", "")).await;
    for (n, door) in Door::ALL.into_iter().enumerate() {
        for asked in [
            Asked::new("/login", &[("x-account", &format!("a{n}")), ("x-account-2", "b")]),
            cookie(&[&format!("account=a{n}; Account=b; xaccount=c; account ")]),
            query(&format!("account=a{n}&Account=b&account%3D=c&accounts=d&=e&q=a;b&return=/x;y=1&f[account]=f")),
        ] {
            assert_eq!(asked.at(door, &service).await, (200, None), "{door:?} {asked:?}");
        }
    }
}

#[tokio::test]
async fn cookies_are_read_without_spaces_and_tabs_around_them() {
    let service = start(&once("", "")).await;
    for (n, door) in Door::ALL.into_iter().enumerate() {
        let spelled =
            ["account=N", "a=b;\taccount=N", "account= N", " \t account \t=\t N \t;a", "a=b;account=\"N\" ; c"];
        for (index, cookies) in spelled.iter().enumerate() {
            let asked = cookie(&[&cookies.replace('N', &format!("abc{n}"))]);
            let expected = if index == 0 { 200 } else { 429 };
            assert_eq!(asked.at(door, &service).await.0, expected, "{door:?} {asked:?}");
        }
    }
}

/// Of a header that Envoy joined nobody knows whether its comma is one of the client.
#[tokio::test]
async fn semantics_63_a_comma_counts_as_a_repeat_where_envoy_joins_headers() {
    let service = start(&once("", "")).await;
    for door in Door::ALL {
        let expected = if door.joins() { 400 } else { 200 };
        let name = format!("Doe, John {door:?}");
        assert_eq!(header(&[&name]).at(door, &service).await.0, expected, "{door:?}");
        for cookies in ["account=DOOR,b=c", "a=b,account=x; account=DOOR1", "a=b,account=c"] {
            let asked = cookie(&[&cookies.replace("DOOR", &format!("{door:?}"))]);
            assert_eq!(asked.at(door, &service).await.0, expected, "{door:?} {asked:?}");
        }
        // A comma in another cookie changes nothing.
        let asked = cookie(&[&format!("a=b,c; account=d{door:?}; e=f,g")]);
        assert_eq!(asked.at(door, &service).await.0, 200, "{door:?}");
    }
}

/// The upstream gets these as one header too.
#[tokio::test]
async fn headers_that_envoy_itself_makes_one_of_are_no_repeat() {
    let text = once("", "").replace("'x-account'", "'user-agent'");
    let service = start(&text).await;
    for door in [Door::Map, Door::Envoy] {
        let agent = format!("Mozilla/5.0 (KHTML, like Gecko) {door:?}");
        let asked = Asked::new("/login", &[("user-agent", &agent)]);
        assert_eq!(asked.at(door, &service).await.0, 200, "{door:?}");
        assert_eq!(asked.at(door, &service).await.0, 429, "{door:?}");
    }
}

#[tokio::test]
async fn semantics_63_first_last_and_join_count_what_the_upstream_is_said_to_read() {
    for (word, first, last, joined) in [("first", 429, 200, 200), ("last", 200, 429, 200), ("join", 200, 200, 429)] {
        let service = start(&once(&format!(", repeated = '{word}'"), "")).await;
        for door in Door::ALL {
            let of = |which: &str| format!("{which}{door:?}");
            let (one, two) = (of("a"), of("b"));
            let both: [Asked; 3] = [
                header(&[&one, &two]),
                cookie(&[&format!("account={one}; x=y; account={two}")]),
                query(&format!("account={one}&acc%6funt={two}")),
            ];
            for asked in &both {
                assert_eq!(asked.at(door, &service).await.0, 200, "{word} {door:?} {asked:?}");
                assert_eq!(asked.at(door, &service).await.0, 429, "{word} {door:?} {asked:?}");
            }
            let alone = |value: &str| {
                [header(&[value]), cookie(&[&format!("account={value}")]), query(&format!("account={value}"))]
            };
            for (value, expected) in [(&one, first), (&two, last)] {
                for asked in alone(value) {
                    assert_eq!(asked.at(door, &service).await.0, expected, "{word} {door:?} {asked:?}");
                }
            }
            let joint = query(&format!("account={one},{two}")).at(door, &service).await.0;
            assert_eq!(joint, joined, "{word} {door:?}");
        }
        // Cookies of several lines, joined by a comma: which comes first cannot be known.
        for door in [Door::Map, Door::Envoy] {
            let asked = cookie(&["a=b", "account=x; account=y"]);
            assert_eq!(asked.at(door, &service).await, (400, Some("repeated".to_owned())), "{word} {door:?}");
        }
    }
}

#[tokio::test]
async fn semantics_63_a_rule_chooses_the_answer_and_shadow_refuses_nobody() {
    let service = start(&once("", "status = 422\nbody = 'one account, please'")).await;
    for door in Door::ALL {
        assert_eq!(header(&["a", "b"]).at(door, &service).await.0, 422, "{door:?}");
    }
    let service = start(&once("", "mode = 'shadow'")).await;
    for door in Door::ALL {
        assert_eq!(header(&["a", "b"]).at(door, &service).await, (200, None), "{door:?}");
    }
    let answer = service
        .ask("GET /authz/nginx HTTP/1.1\r\nhost: h\r\nx-original-method: POST\r\nx-original-uri: /login?account=a&account=b")
        .await;
    assert_eq!((answer.status, answer.header("x-tollgate-would-refuse")), (200, Some("login")));
    let metrics = exchange(service.admin, b"GET /metrics HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.body;
    for line in [
        "tollgate_repeated_entries_total{domain=\"edge\",entry=\"header\"} 5",
        "tollgate_repeated_entries_total{domain=\"edge\",entry=\"query\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in\n{metrics}");
    }
}

#[tokio::test]
async fn a_refused_repeat_says_what_is_wrong_in_the_words_of_the_client() {
    let service = start(&once("", "")).await;
    let head = "POST /authz/envoy/login?account=a&account=b HTTP/1.1\r\nhost: h\r\ncontent-length: 0";
    let answer = service.ask(head).await;
    assert_eq!(answer.status, 400);
    assert_eq!(answer.header("content-type"), Some("application/problem+json"));
    assert!(answer.body.contains("gives several values where its limit needs one"), "{}", answer.body);
    assert_eq!(answer.header("retry-after"), None);
    let answer = service.ask(&format!("{head}\r\ncontent-type: application/grpc")).await;
    assert_eq!((answer.header("grpc-status"), answer.body.as_str()), (Some("3"), ""));
}

#[tokio::test]
async fn headers_that_this_door_reads_itself_must_not_differ() {
    let service = start(&once("", "")).await;
    let forward = "GET /authz/forward HTTP/1.1\r\nhost: t\r\nx-forwarded-method: GET\r\nx-forwarded-uri: /page";
    let nginx = "GET /authz/nginx HTTP/1.1\r\nx-original-method: GET\r\nx-original-uri: /page";
    for (head, name) in [(forward, "x-forwarded-host"), (nginx, "host")] {
        let with = |first: &str, second: &str| format!("{head}\r\n{name}: {first}\r\n{name}: {second}");
        assert_eq!(service.ask(&with("a", "a")).await.status, 200, "{name}");
        let answer = service.ask(&with("a", "b")).await;
        assert_eq!(answer.status, 400, "{name}");
    }
    let answer = service.ask(&format!("{forward}\r\nx-forwarded-host: a\r\nx-forwarded-host: b")).await;
    assert_eq!(answer.body, "the headers x-forwarded-host differ: expected one request\n");
}

/// The part of a request that names the account.
#[derive(Clone, Copy, Debug)]
enum Part {
    Header,
    Cookie,
    Query,
}

/// Spellings that a client can choose.
struct Speller(Dice);

impl Speller {
    /// A text with some characters escaped.
    fn escaped(&mut self, text: &str) -> String {
        let spelled = text.bytes().map(|byte| match self.0.below(3) {
            _ if byte.is_ascii_control() => format!("%{byte:02x}"),
            0 => format!("%{byte:02x}"),
            1 => format!("%{byte:02X}"),
            _ => char::from(byte).to_string(),
        });
        spelled.collect()
    }

    fn blank(&mut self) -> &'static str {
        let blank: &&str = self.0.pick(&["", " ", "\t", " \t "]);
        blank
    }

    /// A name that some upstreams read as the account.
    fn alike(&mut self) -> &'static str {
        let name: &&str = self.0.pick(&["account", "account[]", "account[0]", "[account]", "account\0x"]);
        name
    }

    /// A name in any letters.
    fn cased(&mut self, name: &str) -> String {
        let letter = |letter: char| if self.0.below(2) == 0 { letter.to_ascii_uppercase() } else { letter };
        name.chars().map(letter).collect()
    }

    /// A request that names these accounts in one part of it.
    fn asked(&mut self, door: Door, part: Part, accounts: &[String]) -> Asked {
        let mut asked = Asked::new("/login", &[("accept", "*/*")]);
        match part {
            Part::Header => {
                for account in accounts {
                    let name = self.cased("x-account");
                    asked.headers.push((name, account.clone()));
                    if self.0.below(2) == 0 {
                        asked.headers.push(("x-other".to_owned(), "b".to_owned()));
                    }
                }
            }
            Part::Query => {
                let mut pairs = Vec::new();
                for account in accounts {
                    pairs.push(self.0.pick(&["", "=", "a=b", "Account=c", "account%3d=d", "a+c"]).to_string());
                    let name = if accounts.len() > 1 { self.alike() } else { "account" };
                    pairs.push(format!("{}={}", self.escaped(name), self.escaped(account)));
                }
                let separator = if accounts.len() > 1 { *self.0.pick(&["&", ";"]) } else { "&" };
                asked.target =
                    format!("/login?{}{}", pairs.join(separator), self.0.pick(&["", "&", "&x", "#account=e"]));
            }
            Part::Cookie => {
                // Two lines that a gateway joins are in doubt even if they name one account.
                let may_split = !door.joins() || accounts.len() > 1;
                let mut lines = vec![Vec::new()];
                for account in accounts {
                    let quote = self.0.pick(&["", "\""]);
                    let blanks = [self.blank(), self.blank(), self.blank(), self.blank()];
                    let [a, b, c, d] = blanks;
                    let name = if accounts.len() > 1 { self.alike() } else { "account" };
                    let name = name.replace('\0', "%00");
                    let account = self.escaped(account);
                    let pair = format!("{a}{name}{b}={c}{quote}{account}{quote}{d}");
                    lines.last_mut().expect("a line").push(pair);
                    lines.last_mut().expect("a line").push(self.0.pick(&["a=b", "", "Account=c", "a"]).to_string());
                    if may_split && self.0.below(2) == 0 {
                        lines.push(vec!["d=e".to_owned()]);
                    }
                }
                asked.headers.extend(lines.into_iter().map(|line| ("cookie".to_owned(), line.join(";"))));
            }
        }
        asked
    }
}

/// However a client names an account, it is counted for that account; however it names two, it is refused. So the
/// upstream never reads another account than the one that is counted, whichever of the values it reads.
#[tokio::test]
async fn semantics_63_in_any_spelling_one_account_has_one_counter_and_two_are_refused() {
    let service = start(&once("", "")).await;
    let mut speller = Speller(Dice(37));
    for round in 0..400 {
        let door = *speller.0.pick(&Door::ALL);
        let part = *speller.0.pick(&[Part::Header, Part::Cookie, Part::Query]);
        let victim = format!("victim{round}");
        let mut accounts: Vec<String> = (0..=speller.0.below(3)).map(|n| format!("fake{round}-{n}")).collect();
        accounts.insert(speller.0.below(accounts.len() + 1), victim.clone());
        let several = speller.asked(door, part, &accounts);
        let twice = speller.asked(door, part, &[victim.clone(), victim.clone()]);
        for asked in [&several, &twice] {
            let (status, reason) = asked.at(door, &service).await;
            assert_eq!((status, reason.as_deref()), REPEATED, "round {round} {door:?} {asked:?}");
        }
        for expected in [200, 429] {
            let one = speller.asked(door, part, std::slice::from_ref(&victim));
            assert_eq!(one.at(door, &service).await.0, expected, "round {round} {door:?} {one:?}");
        }
    }
}
