//! Parses Redis URLs.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;

use crate::store::Address;

/// The default port of Redis.
const REDIS_PORT: u16 = 6379;

/// The options of a URL.
const OPTIONS: [&str; 5] = ["db", "user", "username", "pass", "password"];

/// The parts of a Redis URL.
#[derive(Debug, Default)]
pub(super) struct RedisUrl {
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) addresses: Vec<Address>,
    pub(super) db: Option<u32>,
}

/// Parses `redis://user:password@host:port,host:port/db`, the same with `rediss://`, or `redis+unix:///path?db=0`.
/// Errors never quote the URL, which may contain a password.
pub(super) fn parse(url: &str) -> Result<RedisUrl, String> {
    let (scheme, rest) = url.split_once("://").ok_or("which is not a URL")?;
    let (rest, query) = split_query(rest);
    let mut parsed = RedisUrl { tls: scheme == "rediss", ..RedisUrl::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("db", db)) => parsed.db = Some(number(db)?),
            Some(("user" | "username", user)) => parsed.user = Some(decoded(user)?),
            Some(("pass" | "password", password)) => parsed.password = Some(decoded(password)?),
            Some(("tls" | "ssl", _)) => return Err("expected no option for TLS: it begins with rediss://".to_owned()),
            Some((name, _)) if name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_') => {
                return Err(format!("with the unknown option {name:?}, expected db, user or password"));
            }
            Some(_) | None => return Err("with an unknown option, expected db, user or password".to_owned()),
        }
    }
    if scheme == "redis+unix" {
        if !rest.starts_with('/') {
            return Err("expected three slashes before the path of a socket: redis+unix:///run/redis.sock".to_owned());
        }
        parsed.addresses.push(Address::Unix(decoded(rest)?.into()));
        return Ok(parsed);
    }
    // A password may contain any character, so the hosts begin after the last @.
    let (authority, path) = match rest.rfind('@') {
        Some(at) => match rest[at..].find('/') {
            Some(slash) => rest.split_at(at + slash),
            None => (rest, ""),
        },
        None => rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash)),
    };
    let hosts = match authority.rsplit_once('@') {
        Some((credentials, hosts)) => {
            let (user, password) =
                credentials.split_once(':').map_or((credentials, None), |(user, password)| (user, Some(password)));
            parsed.user = Some(decoded(user)?).filter(|user| !user.is_empty()).or(parsed.user);
            parsed.password = password.map(decoded).transpose()?.or(parsed.password);
            hosts
        }
        None => authority,
    };
    let db = path.trim_matches('/');
    if !db.is_empty() {
        parsed.db = Some(number(db)?);
    }
    parsed.addresses = hosts.split(',').map(address).collect::<Result<_, _>>()?;
    Ok(parsed)
}

/// Splits the query off the rest of a URL. A question mark in front of the hosts belongs to the password, unless a known
/// option follows it, whose value may have an @.
fn split_query(rest: &str) -> (&str, &str) {
    let known =
        |query: &str| OPTIONS.iter().any(|option| query.strip_prefix(option).is_some_and(|q| q.starts_with('=')));
    let hosts = rest.rfind('@').unwrap_or(0);
    let mark = rest.match_indices('?').map(|(mark, _)| mark).find(|mark| *mark > hosts || known(&rest[mark + 1..]));
    mark.map_or((rest, ""), |mark| (&rest[..mark], &rest[mark + 1..]))
}

fn address(host: &str) -> Result<Address, String> {
    // An IPv6 address is in brackets. Only a port may follow them.
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.find(':').map_or((host, ""), |colon| host.split_at(colon)),
    };
    let port = if port.is_empty() { Some("") } else { port.strip_prefix(':') };
    let (false, Some(port)) = (name.is_empty() || name.contains(['[', ']']), port) else {
        return Err("expected a host, as in \"redis://host:6379/0\"".to_owned());
    };
    let port = match port {
        "" => REDIS_PORT,
        port => match port.parse() {
            Ok(0) | Err(_) => return Err("expected a port from 1 to 65535".to_owned()),
            Ok(port) => port,
        },
    };
    Ok(Address::Tcp(name.to_owned(), port))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| "expected a number as the database, as in \"redis://host:6379/0\"".to_owned())
}

fn decoded(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(Cow::into_owned).map_err(|_| "which is not UTF-8 after percent decoding".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    #[test]
    fn a_redis_url_has_credentials_addresses_and_a_database() {
        let parse = |url| parse(url).expect("it is valid");
        let full = parse("rediss://me:s%40cret@h.example:1234/3");
        assert!(full.tls);
        assert_eq!((full.user.as_deref(), full.password.as_deref(), full.db), (Some("me"), Some("s@cret"), Some(3)));
        assert_eq!(full.addresses, [tcp("h.example", 1234)]);
        let slash = parse("redis://:a/b@c@h");
        assert_eq!((slash.user, slash.password.as_deref()), (None, Some("a/b@c")));
        for (url, password) in [
            ("redis://:a?b@h", "a?b"),
            ("redis://:?@h/2?db=2", "?"),
            ("redis://:a?b@c?d=e@h?db=2", "a?b@c?d=e"),
            ("redis://h?password=a@b", "a@b"),
            ("redis://u:old@h/2?db=2&pass=a?b@c", "old"),
        ] {
            let parsed = parse(url);
            assert_eq!(
                (parsed.password.as_deref(), &parsed.addresses[..]),
                (Some(password), &[tcp("h", 6379)][..]),
                "{url}"
            );
        }
        assert_eq!(parse("redis://[::1]:7,b,c:9/").addresses, [tcp("::1", 7), tcp("b", 6379), tcp("c", 9)]);
        let unix = parse("redis+unix:///run/a%20b.sock?db=2&pass=x");
        assert_eq!((unix.db, unix.password.as_deref()), (Some(2), Some("x")));
        assert_eq!(unix.addresses, [Address::Unix("/run/a b.sock".into())]);
    }

    #[test]
    fn an_unknown_option_is_named_and_one_for_tls_is_not_ignored() {
        for (url, expected) in [
            ("redis://h?tls=true", "expected no option for TLS: it begins with rediss://"),
            ("rediss://h/0?ssl=1&db=1", "expected no option for TLS: it begins with rediss://"),
            ("redis://h/0?protocol=resp3", "with the unknown option \"protocol\", expected db, user or password"),
            ("redis://h?db=1&Db=2", "with the unknown option \"Db\", expected db, user or password"),
            ("redis+unix:///s?hush", "with an unknown option, expected db, user or password"),
        ] {
            assert_eq!(parse(url).expect_err(url), expected);
        }
    }

    #[test]
    fn errors_do_not_quote_the_url() {
        for url in [
            "redis://",
            "redis://hush:hush@",
            "redis://[hush",
            "redis://[::1]hush",
            "redis://hush:0",
            "redis://h:hush",
            "redis://h/hush",
            "redis+unix://hush",
            "hush",
            "redis://h,,i",
        ] {
            let error = parse(url).expect_err(url);
            assert!(!error.contains("hush"), "{url}: {error}");
        }
    }
}
