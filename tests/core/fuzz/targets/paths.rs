//! Any text as a path, a host, an address or an account: normalising is idempotent.

use std::borrow::Cow;

use tollgate::rules::{Normaliser, address, path};

pub fn run(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let one = path(&text);
    assert_eq!(path(&one), one, "{text:?}");
    assert!(one.starts_with('/') && !one.contains(['?', '#', '\\', ';']) && !one.contains("//"), "{one:?} of {text:?}");
    assert!(one.split('/').all(|segment| segment != "." && segment != ".."), "{one:?} of {text:?}");

    let one = address(text.clone());
    assert_eq!(address(one.clone()), one, "{text:?}");
    let all = [
        Normaliser::Lowercase,
        Normaliser::Trim,
        Normaliser::Path,
        Normaliser::Host,
        Normaliser::Method,
        Normaliser::Bearer,
        Normaliser::Nfkc,
        Normaliser::Ipv6Prefix(data.len() as u8 & 127),
    ];
    for normaliser in all {
        let one = normaliser.apply(Cow::Borrowed(&text)).into_owned();
        let owned = normaliser.apply(Cow::Owned(text.clone().into_owned())).into_owned();
        assert_eq!(one, owned, "{normaliser:?} of {text:?}, borrowed and owned");
        assert_eq!(normaliser.apply(Cow::Borrowed(&one)), one, "{normaliser:?} of {text:?}");
    }
}
