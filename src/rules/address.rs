//! The one form of an address: the client that it stands for, in one spelling.
//!
//! Several ranges of IPv6 hold IPv4 addresses. A client in one of them is its IPv4 address: otherwise all clients behind
//! a translator would share one /64, and one client would have an address in each range.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// A range of IPv6 addresses that hold IPv4 addresses.
struct Embedding {
    /// The first address of the range.
    range: Ipv6Addr,
    /// The bits that all addresses of the range have in common.
    bits: u8,
    /// The bit at which the IPv4 address starts.
    at: u8,
    /// Whether its bits are inverted.
    inverted: bool,
    /// Whether only public IPv4 addresses can be in it. Hosts choose such addresses themselves: one of a private network
    /// must not pass as a host of that network.
    public: bool,
}

const fn embedding(range: [u16; 8], bits: u8, at: u8) -> Embedding {
    let [a, b, c, d, e, f, g, h] = range;
    Embedding { range: Ipv6Addr::new(a, b, c, d, e, f, g, h), bits, at, inverted: false, public: false }
}

const EMBEDDINGS: [Embedding; 6] = [
    // IPv4-mapped, RFC 4291 section 2.5.5.2.
    embedding([0, 0, 0, 0, 0, 0xffff, 0, 0], 96, 96),
    // NAT64, RFC 6052 section 2.1.
    embedding([0x64, 0xff9b, 0, 0, 0, 0, 0, 0], 96, 96),
    // IPv4-translated, RFC 7915 and RFC 2765.
    embedding([0, 0, 0, 0, 0xffff, 0, 0, 0], 96, 96),
    // 6to4, RFC 3056.
    Embedding { public: true, ..embedding([0x2002, 0, 0, 0, 0, 0, 0, 0], 16, 16) },
    // Teredo, RFC 4380 section 4: the client's address is obfuscated by inverting its bits.
    Embedding { public: true, inverted: true, ..embedding([0x2001, 0, 0, 0, 0, 0, 0, 0], 32, 96) },
    // IPv4-compatible, RFC 4291 section 2.5.5.1. `::` and `::1` are in this range and are none.
    embedding([0, 0, 0, 0, 0, 0, 0, 0], 96, 96),
];

/// NAT64 with a prefix of the operator's network, RFC 8215: any prefix of RFC 6052 inside this one.
const LOCAL_NAT64: Embedding = embedding([0x64, 0xff9b, 1, 0, 0, 0, 0, 0], 48, 96);

impl Embedding {
    fn contains(&self, address: Ipv6Addr) -> bool {
        (u128::from(address) ^ u128::from(self.range)) >> (128 - self.bits) == 0
    }

    /// The IPv4 address in an address of this range. None if it can be none.
    fn read(&self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let bits = (u128::from(address) >> (96 - self.at)) as u32;
        let found = Ipv4Addr::from_bits(if self.inverted { !bits } else { bits });
        let private = found.is_private() || found.is_link_local() || found.is_multicast() || found.is_broadcast();
        // 0.0.0.0/8 is never the address of a client (RFC 6890), and `::1` is not 0.0.0.1.
        let nobody = found.octets()[0] == 0 || found.is_loopback();
        let mapped = self.range == EMBEDDINGS[0].range;
        (mapped || !(nobody || self.public && private)).then_some(found)
    }
}

/// The IPv4 address behind NAT64 with a prefix of the operator's network.
///
/// ```text
///   RFC 6052, section 2.2, by the length of the prefix; u is zero
///    bits  48      56      64      72      80      88      96
///     /48  | v4 (16)       |   u   | v4 (16)       | zero
///     /56          |v4 (8) |   u   | v4 (24)               | zero
///     /64                  |   u   | v4 (32)                       | zero
///     /96                                                  | v4 (32)
/// ```
fn local_nat64(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let octets = address.octets();
    let v4 = match octets {
        [.., 0, 0, 0, 0] => match octets[11] {
            0 => [octets[6], octets[7], octets[9], octets[10]],
            _ => [octets[7], octets[9], octets[10], octets[11]],
        },
        [.., 0, 0, 0] if octets[9] != 0 => [octets[9], octets[10], octets[11], octets[12]],
        [.., a, b, c, d] => [a, b, c, d],
    };
    (v4[0] != 0 && v4[0] != 127).then(|| v4.into())
}

/// The address of the client: the IPv4 address in an IPv6 address that holds one, else the address itself.
pub(super) fn client(address: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = address else { return address };
    let found = match LOCAL_NAT64.contains(v6) {
        true => local_nat64(v6),
        false => EMBEDDINGS.iter().find(|known| known.contains(v6)).and_then(|known| known.read(v6)),
    };
    found.map_or(address, IpAddr::V4)
}

/// The block that the clients of a block are in. The error is the block of IPv4 addresses which only stands for *any*
/// address of a range: as a match it would mean something else than what was written.
pub(super) fn client_block(block: IpNet) -> Result<IpNet, IpNet> {
    let IpNet::V6(v6) = block.trunc() else { return Ok(block.trunc()) };
    let (first, length) = (v6.network(), v6.prefix_len());
    let all = net(Ipv4Addr::UNSPECIFIED, 0);
    if length == 128 {
        return Ok(IpNet::from(client(first.into())));
    }
    if LOCAL_NAT64.contains(first) && length >= LOCAL_NAT64.bits {
        // With shorter blocks it depends on each address where its IPv4 address is.
        return if length > 96 {
            Ok(net(Ipv4Addr::from_bits(u128::from(first) as u32), length - 96))
        } else {
            Err(all)
        };
    }
    let inside = |known: &&Embedding| known.contains(first) && length >= known.bits;
    let Some((index, known)) = EMBEDDINGS.iter().enumerate().find(|(_, known)| inside(known)) else {
        return Ok(IpNet::V6(v6));
    };
    let mapped = index == 0;
    if length <= known.at {
        // Every IPv4 address has an IPv4-mapped form, and no other client has.
        return if mapped { Ok(all) } else { Err(all) };
    }
    let length_of_v4 = (length - known.at).min(32);
    // The last address of an inverted block is the first.
    let address = if known.inverted { v6.broadcast() } else { first };
    match known.read(address) {
        Some(found) => Ok(net(found, length_of_v4)),
        None => Ok(IpNet::V6(v6)),
    }
}

fn net(address: Ipv4Addr, length: u8) -> IpNet {
    let block = Ipv4Net::new(address, length).expect("an IPv4 prefix has at most 32 bits");
    IpNet::V4(block.trunc())
}

/// The clients that a value names: one address or a block of them, such as Envoy's `masked_remote_address`. Brackets
/// around IPv6, as in a host, are ignored.
pub(super) fn clients(value: &str) -> Option<IpNet> {
    if value.contains('/') {
        return client_block(value.parse().ok()?).ok();
    }
    let bare = value.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(value);
    Some(IpNet::from(client(bare.parse().ok()?)))
}

/// Returns the canonical form of an address: the IPv4 address in an IPv6 address that holds one, else compressed IPv6 in
/// lower case. A block has its first address and its length; a block of one address is that address. Other text is
/// unchanged.
///
/// ```
/// use tollgate::rules::address;
///
/// assert_eq!(address("2001:DB8:0::1".into()), "2001:db8::1");
/// assert_eq!(address("::ffff:192.0.2.7".into()), "192.0.2.7");
/// assert_eq!(address("64:ff9b::c000:207".into()), "192.0.2.7");
/// assert_eq!(address("2001:DB8::7/32".into()), "2001:db8::/32");
/// ```
pub fn address(value: Cow<'_, str>) -> Cow<'_, str> {
    // An IPv4 address parses in one form only.
    if !may_be_ipv6(&value) && !may_be_block(&value) {
        return value;
    }
    let found = match value.contains('/') {
        true => value.parse().ok().and_then(|block| client_block(block).ok()),
        false => value.parse().ok().map(|address| IpNet::from(client(address))),
    };
    match found {
        Some(block) if block.prefix_len() == block.max_prefix_len() => Cow::Owned(block.addr().to_string()),
        Some(block) => Cow::Owned(block.to_string()),
        None => value,
    }
}

/// Whether a text can be an IPv6 address or a block of these: then a colon is in its first group, or in brackets.
fn may_be_ipv6(text: &str) -> bool {
    text.bytes().take(6).any(|byte| byte == b':')
}

/// Whether a text can be a block of IPv4 addresses: then at most two digits are behind the slash.
fn may_be_block(text: &str) -> bool {
    text.bytes().rev().take(3).any(|byte| byte == b'/')
}

/// Truncates an IPv6 address, or a smaller block, to its first `bits` bits. Other text is unchanged.
pub(super) fn cut(value: Cow<'_, str>, bits: u8) -> Cow<'_, str> {
    if !may_be_ipv6(&value) || bits >= 128 {
        return value;
    }
    match clients(&value) {
        Some(IpNet::V6(block)) if block.prefix_len() > bits => Cow::Owned(truncated(block, bits).to_string()),
        Some(IpNet::V4(block)) if block.prefix_len() == 32 => Cow::Owned(block.addr().to_string()),
        Some(IpNet::V6(_) | IpNet::V4(_)) | None => value,
    }
}

/// The block of this many bits around a block.
pub(super) fn truncated(block: Ipv6Net, bits: u8) -> Ipv6Net {
    let length = block.prefix_len().min(bits);
    Ipv6Net::new(block.addr(), length).expect("a prefix of a block is not longer than the block").trunc()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(text: &str) -> String {
        address(Cow::Borrowed(text)).into_owned()
    }

    #[test]
    fn semantics_27_an_ipv4_address_in_an_ipv6_address_is_the_client() {
        for spelling in [
            "192.0.2.33",
            "192.0.2.33/32",
            "::ffff:192.0.2.33",
            "::FFFF:C000:221",
            "::ffff:192.0.2.33/128",
            "64:ff9b::192.0.2.33",
            "64:FF9B:0::c000:0221",
            "64:ff9b:1::192.0.2.33",
            "64:ff9b:1:fffe::192.0.2.33",
            "64:ff9b:1:c000:2:2100::",
            "64:ff9b:1:aac0:0:221::",
            "64:ff9b:1:aaaa:c0:2:2100:0",
            "::ffff:0:192.0.2.33",
            "::192.0.2.33",
            "2002:c000:221::1",
            "2002:C000:0221:ffff::/64",
            // RFC 4380, section 4: the server 65.54.227.120, the client 192.0.2.45 of the example with another end.
            "2001:0:4136:e378:8000:63bf:3fff:fdde",
        ] {
            assert_eq!(form(spelling), "192.0.2.33", "{spelling}");
        }
    }

    #[test]
    fn semantics_27_an_address_that_holds_no_ipv4_address_stays() {
        for (text, expected) in [
            ("::1", "::1"),
            ("::", "::"),
            ("::7", "::7"),
            ("2001:DB8:0::1", "2001:db8::1"),
            ("2001:db8::192.0.2.1", "2001:db8::c000:201"),
            ("64:ff9b:2::192.0.2.1", "64:ff9b:2::c000:201"),
            // Hosts choose such an address themselves, and are not in that private network.
            ("2002:a00:1::1", "2002:a00:1::1"),
            ("2002:7f00:1::1", "2002:7f00:1::1"),
            ("2001:0:4136:e378:8000:63bf:f5ff:fffe", "2001:0:4136:e378:8000:63bf:f5ff:fffe"),
            ("::127.0.0.1", "::7f00:1"),
            ("64:ff9b::10.1.2.3", "10.1.2.3"),
            ("::ffff:127.0.0.1", "127.0.0.1"),
            ("10.1.2.3/24", "10.1.2.0/24"),
            ("2001:DB8:1:2::/64", "2001:db8:1:2::/64"),
            ("1.2.3.4:80", "1.2.3.4:80"),
            ("fe80::1%eth0", "fe80::1%eth0"),
            ("a:b", "a:b"),
            ("10.0.0.0/33", "10.0.0.0/33"),
            ("", ""),
        ] {
            assert_eq!(form(text), expected);
        }
    }

    #[test]
    fn a_block_of_addresses_that_hold_ipv4_addresses_is_a_block_of_these() {
        let block = |text: &str| client_block(text.parse().expect("a block")).map_err(|all| all.to_string());
        for (text, expected) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("64:ff9b::192.0.2.0/120", "192.0.2.0/24"),
            ("64:ff9b:1::192.0.2.0/120", "192.0.2.0/24"),
            ("2002:c000:200::/40", "192.0.2.0/24"),
            ("2002:c000:221:5::/64", "192.0.2.33/32"),
            ("2002:a00::/24", "2002:a00::/24"),
            ("::192.0.2.0/120", "192.0.2.0/24"),
            ("2001:0:4136:e378:8000:63bf:3fff:fd00/120", "192.0.2.0/24"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("2001:DB8::7/32", "2001:db8::/32"),
            ("::/0", "::/0"),
            ("::1/128", "::1/128"),
            ("2000::/3", "2000::/3"),
        ] {
            assert_eq!(block(text).map(|block| block.to_string()).as_deref(), Ok(expected), "{text}");
        }
        for whole in ["64:ff9b::/96", "64:ff9b:1::/48", "64:ff9b:1:5::/64", "2002::/16", "2001::/32", "::/96"] {
            assert_eq!(block(whole), Err("0.0.0.0/0".to_owned()), "{whole}");
        }
    }

    #[test]
    fn semantics_27_ipv6_is_cut_and_ipv4_and_other_text_stay() {
        let cut = |value: &'static str, bits| cut(Cow::Borrowed(value), bits).into_owned();
        assert_eq!(cut("2001:DB8:1:2:3:4:5:6", 64), "2001:db8:1:2::/64");
        assert_eq!(cut("2001:db8:1:2:3::/96", 64), "2001:db8:1:2::/64");
        assert_eq!(cut("2001:db8::/48", 64), "2001:db8::/48");
        assert_eq!(cut("::ffff:1.2.3.4", 64), "1.2.3.4");
        assert_eq!(cut("1.2.3.4", 64), "1.2.3.4");
        assert_eq!(cut("1.2.3.4:80", 64), "1.2.3.4:80");
        assert_eq!(cut("2001:db8::1", 128), "2001:db8::1");
    }
}
