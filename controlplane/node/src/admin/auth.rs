//! What each request of the API needs of an operator.

use std::net::IpAddr;

use http::header::{HOST, HeaderValue, ORIGIN, WWW_AUTHENTICATE};
use http::uri::Authority;
use http::{Method, Request};
use outrider_operators::{Needs, Refused};

use super::answer::{Answer, failure};
use super::is_read;
use super::route::Place;

pub(crate) fn needs(place: Place, method: &Method) -> Needs {
    match place {
        Place::Health | Place::Ready => Needs::Nothing,
        Place::ClusterToken | Place::ClusterLeave | Place::ClusterRemove => Needs::Admin,
        _ if is_read(method) => Needs::Read,
        _ => Needs::Write,
    }
}

/// Why a request may come from a page in a browser, which anybody may have made, and not from an operator. Asked where
/// no token says who it is.
pub(crate) fn why_a_page<B>(request: &Request<B>) -> Option<&'static str> {
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

pub(crate) fn refused(refused: &Refused) -> Box<Answer> {
    let mut answer = failure(refused.status, &refused.why);
    let challenge = HeaderValue::from_static(refused.challenge);
    answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
    Box::new(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_the_cluster_needs_more_than_what_changes_the_state() {
        assert_eq!(needs(Place::Health, &Method::GET), Needs::Nothing);
        assert_eq!(needs(Place::Fragment, &Method::HEAD), Needs::Read);
        assert_eq!(needs(Place::Fragment, &Method::PUT), Needs::Write);
        assert_eq!(needs(Place::Batch, &Method::POST), Needs::Write);
        assert_eq!(needs(Place::ClusterToken, &Method::POST), Needs::Admin);
    }

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
