//! Hash slots of a cluster: the slot of a key, and the ranges that `CLUSTER SLOTS` reports.

use redis::Value;

use super::settings::Address;

/// The number of hash slots of a cluster.
pub(super) const HASH_SLOTS: usize = 16_384;

/// The first and last hash slot of a range, and the address of its node.
pub(super) type SlotRanges = Vec<(u16, u16, Address)>;

/// The hash slot of a key: of the text between its first braces, if there is any, or else of the whole key.
pub(super) fn hash_slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|&byte| byte == b'{').and_then(|open| {
        let rest = &key[open + 1..];
        let close = rest.iter().position(|&byte| byte == b'}')?;
        (close > 0).then(|| &rest[..close])
    });
    crc16::State::<crc16::XMODEM>::calculate(tag.unwrap_or(key)) % HASH_SLOTS as u16
}

/// Reads the reply of `CLUSTER SLOTS` from the node at `by`:
///
/// ```text
///   [[first, last, [host, port, id, ..], replica, ..], ..]
/// ```
pub(super) fn slot_ranges(reply: &Value, by: &Address) -> Option<SlotRanges> {
    let Value::Array(ranges) = reply else { return None };
    let range = |range: &Value| {
        let Value::Array(parts) = range else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(primary), ..] = &parts[..] else { return None };
        let [host, Value::Int(port), ..] = &primary[..] else { return None };
        let host = match host {
            Value::BulkString(host) => std::str::from_utf8(host).ok()?,
            Value::SimpleString(host) => host,
            // The node does not know its own address; the caller's is right.
            Value::Nil => "",
            _ => return None,
        };
        let slot = |slot: i64| u16::try_from(slot).ok().filter(|&slot| usize::from(slot) < HASH_SLOTS);
        Some((slot(*first)?, slot(*last)?, node_address(host, u16::try_from(*port).ok()?, by)?))
    };
    // A node without a known address is left out. Its slots have no node until the cluster learns the address.
    Some(ranges.iter().filter_map(range).collect())
}

/// An address as the node at `by` reports it. An empty host means the host of that node.
pub(super) fn node_address(host: &str, port: u16, by: &Address) -> Option<Address> {
    match (host, by) {
        ("?", _) | ("", Address::Unix(_)) => None,
        ("", Address::Tcp(host, _)) => Some(Address::Tcp(host.clone(), port)),
        (host, _) => Some(Address::Tcp(host.to_owned(), port)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Address {
        Address::Tcp("10.0.0.1".to_owned(), 6379)
    }

    #[test]
    fn a_hash_slot_is_that_of_the_tag() {
        // From the specification of Redis Cluster, and `CLUSTER KEYSLOT`.
        assert_eq!(hash_slot(b"123456789"), 0x31c3);
        assert_eq!(hash_slot(b"{user1000}.following"), hash_slot(b"{user1000}.followers"));
        assert_eq!(hash_slot(b"foo{}{bar}"), hash_slot(b"foo{}{bar}"));
        assert_ne!(hash_slot(b"foo{}{bar}"), hash_slot(b"bar"));
        assert_eq!(hash_slot(b"foo{{bar}}zap"), hash_slot(b"{bar"));
        assert_eq!(hash_slot(b"foo{bar}{zap}"), hash_slot(b"bar"));
    }

    #[test]
    fn a_node_without_an_address_has_that_of_the_node_that_reports_it() {
        let text = |text: &str| Value::BulkString(text.into());
        let range = |first, last, host| {
            Value::Array(vec![
                Value::Int(first),
                Value::Int(last),
                Value::Array(vec![host, Value::Int(7000), text("id")]),
                Value::Array(vec![text("10.0.0.9"), Value::Int(7001), text("replica")]),
            ])
        };
        let reply = Value::Array(vec![
            range(0, 99, text("10.0.0.2")),
            range(100, 199, Value::Nil),
            range(200, 299, text("")),
            range(300, 399, text("?")),
        ]);
        let at = |host: &str| Address::Tcp(host.to_owned(), 7000);
        let expected = vec![(0, 99, at("10.0.0.2")), (100, 199, at("10.0.0.1")), (200, 299, at("10.0.0.1"))];
        assert_eq!(slot_ranges(&reply, &node()), Some(expected));
        assert_eq!(slot_ranges(&Value::Okay, &node()), None);
    }
}
