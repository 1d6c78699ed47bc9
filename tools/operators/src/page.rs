//! Requests of pages in a browser. Where no token says who asks, whoever is on this machine may do everything, but a page
//! that somebody else made is not.

use std::net::IpAddr;

use http::Request;
use http::header::{HOST, ORIGIN};
use http::uri::Authority;

/// Why a request may come from such a page.
pub fn why_a_page<B>(request: &Request<B>) -> Option<&'static str> {
    if request.headers().contains_key(ORIGIN) {
        return Some("a request of a page in a browser needs admin.auth");
    }
    let named = request.headers().get(HOST).map(|host| host.to_str().unwrap_or(""));
    let authority = named.and_then(|host| host.parse::<Authority>().ok());
    let host = match (named, &authority) {
        (None, _) => request.uri().host()?,
        (Some(_), None) => "",
        (Some(_), Some(authority)) => authority.host(),
    };
    let is_address = host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_local = host == "localhost" || host.ends_with(".localhost");
    // Any name may be made to mean this machine by whoever owns it.
    (!is_address && !is_local).then_some("without admin.auth, ask by an address, or as localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_tokens_a_page_in_a_browser_may_ask_nothing() {
        let asked = |headers: &[(&str, &str)]| {
            let mut request = Request::post("/v1/batch");
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            why_a_page(&request.body(()).unwrap()).is_none()
        };
        for host in ["127.0.0.1:9190", "localhost:9190", "[::1]:9180", "10.0.0.1", "a.localhost"] {
            assert!(asked(&[("host", host)]), "{host}");
        }
        assert!(asked(&[]));
        for host in ["evil.example:9190", "localhost.evil.example", "", "127.0.0.1.evil.example"] {
            assert!(!asked(&[("host", host)]), "{host}");
        }
        assert!(!asked(&[("host", "localhost"), ("origin", "https://evil.example")]));
        assert!(!asked(&[("host", "localhost"), ("origin", "null")]));
    }
}
