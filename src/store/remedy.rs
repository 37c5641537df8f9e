//! What an operator can do about the errors of a shared store that come from its configuration.

/// Words of an error, and what to do about it. The keys have the same names for every store.
const REMEDIES: [(&[&str], &str); 7] = [
    (
        &["UnknownIssuer", "BadSignature"],
        "set tls_ca to a file with the authority that signed the server's certificate",
    ),
    (&["not valid for name", "NotValidForName"], "set tls_server_name to a name in the server's certificate"),
    (&["certificate expired", "CertificateExpired"], "renew the certificate"),
    (
        &["CertificateRequired", "requires a valid client certificate"],
        "set tls_certificate and tls_key to files of a client certificate that the server trusts",
    ),
    (&["WRONGPASS", "ERR AUTH ", "password authentication failed"], "check username and password"),
    (&["max number of clients reached"], "raise maxclients of the server, or close connections of other clients"),
    (&["NOAUTH"], "set password, and username if it is not the default user's"),
];

/// A text with what to do about it, if that is known.
pub(super) fn with_remedy(text: String) -> String {
    let known = |words: &[&str]| words.iter().any(|words| text.contains(words));
    match REMEDIES.iter().find(|(words, _)| known(words)) {
        Some((_, remedy)) if !text.contains(remedy) => format!("{text}; {remedy}"),
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_of_the_configuration_gets_its_remedy_once() {
        let text = "connecting to a:1 failed, retrying: WRONGPASS invalid username-password pair or user is disabled.";
        let whole = with_remedy(text.to_owned());
        assert_eq!(whole, format!("{text}; check username and password"));
        assert_eq!(with_remedy(whole.clone()), whole);
        assert_eq!(with_remedy("connection refused".to_owned()), "connection refused");
    }
}
