//! Redis URLs.

use percent_encoding::percent_decode_str;

use crate::store::Address;

/// The default port of Redis.
const REDIS_PORT: u16 = 6379;

/// The parts of a Redis URL.
#[derive(Debug, Default)]
pub(super) struct RedisUrl {
    pub(super) tls: bool,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) addresses: Vec<Address>,
    pub(super) db: Option<u32>,
}

/// Reads `redis://user:password@host:port,host:port/db`, the same with `rediss://`, or `redis+unix:///path?db=0`.
/// An error continues the name of the key and quotes nothing of the URL, which may hold a password.
pub(super) fn read(url: &str) -> Result<RedisUrl, String> {
    let (scheme, rest) = url.split_once("://").ok_or("is not a URL")?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let mut read = RedisUrl { tls: scheme == "rediss", ..RedisUrl::default() };
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        match pair.split_once('=') {
            Some(("db", db)) => read.db = Some(number(db)?),
            Some(("user" | "username", user)) => read.user = Some(decoded(user)?),
            Some(("pass" | "password", password)) => read.password = Some(decoded(password)?),
            // Options of other clients do not concern the counters.
            _ => {}
        }
    }
    if scheme == "redis+unix" {
        if !rest.starts_with('/') {
            return Err("expected three slashes before the path of a socket: redis+unix:///run/redis.sock".to_owned());
        }
        read.addresses.push(Address::Unix(decoded(rest)?.into()));
        return Ok(read);
    }
    // A password may hold anything but an @, so the hosts begin at the last one.
    let (authority, path) = match rest.rfind('@') {
        Some(at) => match rest[at..].find('/') {
            Some(slash) => rest.split_at(at + slash),
            None => (rest, ""),
        },
        None => rest.find('/').map_or((rest, ""), |slash| rest.split_at(slash)),
    };
    let hosts = match authority.rsplit_once('@') {
        Some((who, hosts)) => {
            let (user, password) = who.split_once(':').map_or((who, None), |(user, password)| (user, Some(password)));
            read.user = Some(decoded(user)?).filter(|user| !user.is_empty()).or(read.user);
            read.password = password.map(decoded).transpose()?.or(read.password);
            hosts
        }
        None => authority,
    };
    let db = path.trim_matches('/');
    if !db.is_empty() {
        read.db = Some(number(db)?);
    }
    read.addresses = hosts.split(',').map(address).collect::<Result<_, _>>()?;
    Ok(read)
}

fn address(host: &str) -> Result<Address, String> {
    // An IPv6 address is in brackets, and nothing but a port comes after them.
    let (name, port) = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').unwrap_or_default(),
        None => host.find(':').map_or((host, ""), |colon| host.split_at(colon)),
    };
    let port = if port.is_empty() { Some("") } else { port.strip_prefix(':') };
    let (false, Some(port)) = (name.is_empty() || name.contains(['[', ']']), port) else {
        return Err("names no host, expected one such as \"redis://host:6379/0\"".to_owned());
    };
    let port = match port {
        "" => REDIS_PORT,
        port => match port.parse() {
            Ok(0) | Err(_) => return Err("has an invalid port, expected 1 to 65535".to_owned()),
            Ok(port) => port,
        },
    };
    Ok(Address::Tcp(name.to_owned(), port))
}

fn number(text: &str) -> Result<u32, String> {
    text.parse()
        .map_err(|_| "has a database that is not a number, expected one such as \"redis://host:6379/0\"".to_owned())
}

fn decoded(text: &str) -> Result<String, String> {
    let text = percent_decode_str(text).decode_utf8();
    text.map(|text| text.into_owned()).map_err(|_| "is not UTF-8 once its percent escapes are decoded".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tcp(host: &str, port: u16) -> Address {
        Address::Tcp(host.to_owned(), port)
    }

    #[test]
    fn a_redis_url_says_who_where_and_which() {
        let read = |url| read(url).expect("it can be read");
        let whole = read("rediss://me:s%40cret@h.example:1234/3");
        assert!(whole.tls);
        assert_eq!((whole.user.as_deref(), whole.password.as_deref(), whole.db), (Some("me"), Some("s@cret"), Some(3)));
        assert_eq!(whole.addresses, [tcp("h.example", 1234)]);
        let slash = read("redis://:a/b@c@h");
        assert_eq!((slash.user, slash.password.as_deref()), (None, Some("a/b@c")));
        assert_eq!(read("redis://[::1]:7,b,c:9/").addresses, [tcp("::1", 7), tcp("b", 6379), tcp("c", 9)]);
        let unix = read("redis+unix:///run/a%20b.sock?db=2&pass=x");
        assert_eq!((unix.db, unix.password.as_deref()), (Some(2), Some("x")));
        assert_eq!(unix.addresses, [Address::Unix("/run/a b.sock".into())]);
    }

    #[test]
    fn a_redis_url_that_cannot_be_read_shows_nothing_of_itself() {
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
            let error = read(url).expect_err(url);
            assert!(!error.contains("hush"), "{url}: {error}");
        }
    }
}
