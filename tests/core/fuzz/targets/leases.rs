//! Any text as a lease: only the lease that was handed out releases its slot.

use std::sync::LazyLock;

use tollgate::descriptor::{Descriptor, Request};
use tollgate::lease::LeaseToken;

use super::doors::Doors;

static DOORS: LazyLock<Doors> = LazyLock::new(|| {
    Doors::open(
        r#"
        [limiters]
        slots = { algorithm = "concurrency", max_concurrent = 1, lease = "1h" }

        [[rules]]
        domain = "edge"
        name = "slots"
        match = { account = "*" }
        apply = [{ limiter = "slots", key = ["account"] }]
        "#,
    )
});

/// The first byte selects where the others replace a part of a genuine lease. If it is zero, the others are the whole
/// text.
pub fn run(data: &[u8]) {
    let doors = DOORS.forget();
    let ask = |key: &str, value: &str| {
        let request = Request { domain: "edge", descriptors: [Descriptor::of([(key, value)])].into_iter().collect() };
        doors.decide(&request)
    };
    let genuine = ask("account", "al").lease().expect("a slot is held").to_owned();
    let forged = match data.split_first() {
        None | Some((0, _)) => data.get(1..).unwrap_or_default().to_vec(),
        Some((place, bytes)) => {
            let place = usize::from(place - 1).min(genuine.len());
            let end = (place + bytes.len()).min(genuine.len());
            [&genuine.as_bytes()[..place], bytes, &genuine.as_bytes()[end..]].concat()
        }
    };
    let Ok(forged) = String::from_utf8(forged) else { return };
    let opened = LeaseToken::open(&forged, doors.rules().secret(), doors.rules().stores());
    assert_eq!(opened.is_some(), forged == genuine, "{forged}");
    ask("release", &forged);
    assert_eq!(ask("account", "al").allowed(), forged == genuine, "the slot is given back by its own lease alone");
}
