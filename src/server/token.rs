//! Bearer tokens of requests.

use crate::settings::Token;

/// Whether an `authorization` header has this token. Compares all bytes, so the time reveals nothing but the length.
pub(super) fn is_bearer(authorization: &[u8], token: &Token) -> bool {
    let bytes = match authorization.split_at_checked(b"Bearer ".len()) {
        Some((scheme, bytes)) if scheme.eq_ignore_ascii_case(b"Bearer ") => bytes,
        _ => b"",
    };
    let differ = bytes.iter().zip(token.0.as_bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    bytes.len() == token.0.len() && differ == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_whole_token_of_a_bearer_is_right() {
        let token = Token("of sixteen chars".to_owned());
        assert!(is_bearer(b"Bearer of sixteen chars", &token));
        assert!(is_bearer(b"bearer of sixteen chars", &token));
        for wrong in ["", "Bearer ", "Bearer of sixteen char", "Bearer of sixteen charss", "Basic of sixteen chars"] {
            assert!(!is_bearer(wrong.as_bytes(), &token), "{wrong}");
        }
        assert!(!is_bearer(b"of sixteen chars", &token));
    }
}
