//! `WWW-Authenticate`: what a client is told that lacks a token (RFC 6750, and the distribution's token specification).

use std::fmt::Write as _;

use crate::scope::Scope;

/// Why a client is asked for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// It has shown none.
    Missing,
    /// The one that it has shown is not believed.
    Invalid,
    /// It does not grant what is asked for.
    Insufficient,
}

/// The value of the header. `realm`: where tokens are given; `service`: for whom.
///
/// Quotes and backslashes of the two are left out: they are neither in addresses nor in names.
pub fn challenge(realm: &str, service: &str, scopes: &[Scope], why: Why) -> String {
    let mut text = String::with_capacity(128);
    text.push_str("Bearer realm=\"");
    push(&mut text, realm);
    text.push_str("\",service=\"");
    push(&mut text, service);
    text.push('"');
    if !scopes.is_empty() {
        text.push_str(",scope=\"");
        for (index, scope) in scopes.iter().enumerate() {
            // Writing into a text cannot fail.
            let _ = write!(text, "{}{scope}", if index > 0 { " " } else { "" });
        }
        text.push('"');
    }
    match why {
        Why::Missing => {}
        Why::Invalid => text.push_str(",error=\"invalid_token\""),
        Why::Insufficient => text.push_str(",error=\"insufficient_scope\""),
    }
    text
}

fn push(text: &mut String, value: &str) {
    text.extend(value.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_is_as_clients_read_it() {
        let scopes =
            ["repository:a/b:pull,push".parse().unwrap(), "repository:c:pull".parse().unwrap()];
        assert_eq!(
            challenge("https://e.test/token", "e.test", &scopes, Why::Insufficient),
            "Bearer realm=\"https://e.test/token\",service=\"e.test\",\
             scope=\"repository:a/b:pull,push repository:c:pull\",error=\"insufficient_scope\""
        );
        assert_eq!(
            challenge("https://e.test/t\"o\r\n", "s", &[], Why::Missing),
            "Bearer realm=\"https://e.test/to\",service=\"s\""
        );
    }
}
