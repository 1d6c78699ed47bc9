//! Where an upstream may send us: the next step of a redirect, and the realm of a token service.
//!
//! Pure, and only about URLs: which addresses may be connected to is the business of
//! [`address`](crate::address). Error texts name scheme and host alone, since the query of a
//! redirect is often a signature.

use url::Url;

use crate::config::authority;
use crate::error::FetchError;

/// How many redirects one request may follow.
pub const REDIRECTS_MAX: usize = 5;

/// The longest `Location` that is followed. Signed URLs of object storage have 1 to 3 KiB.
pub const LOCATION_BYTES_MAX: usize = 8 << 10;

/// Whether the status is one of the redirects that are followed.
pub const fn is_redirect(status: u16) -> bool {
    matches!(status, 301 | 302 | 303 | 307 | 308)
}

/// The next URL of a chain of redirects.
///
/// `visited` is the chain so far: not empty, the last one is where the redirect came from.
///
/// # Errors
/// [`FetchError::Redirect`] with the reason for which it is not followed.
pub fn follow(visited: &[Url], location: Option<&str>) -> Result<Url, FetchError> {
    let current = visited.last().ok_or_else(|| refuse("a redirect from nowhere"))?;
    let location = location.ok_or_else(|| refuse("a redirect that does not say where to"))?;
    if visited.len() > REDIRECTS_MAX {
        return Err(refuse(format!("more than {REDIRECTS_MAX} redirects")));
    }
    if location.len() > LOCATION_BYTES_MAX {
        return Err(refuse(format!("a redirect of {} bytes", location.len())));
    }
    let mut next =
        current.join(location).map_err(|error| refuse(format!("a redirect to no URL: {error}")))?;
    next.set_fragment(None);
    check(&next, "a redirect")?;
    if current.scheme() == "https" && next.scheme() == "http" {
        return Err(refuse(format!("a redirect from https to {}", place(&next))));
    }
    if visited.contains(&next) {
        return Err(refuse(format!("a redirect in a circle at {}", place(&next))));
    }
    Ok(next)
}

/// The URL of a token service that an upstream named. It is https; or http on the upstream's own
/// host, when the upstream itself is spoken to over http.
///
/// # Errors
/// [`FetchError::Redirect`] with the reason for which it is not asked.
pub fn realm(upstream: &Url, realm: &str) -> Result<Url, FetchError> {
    if realm.len() > LOCATION_BYTES_MAX {
        return Err(refuse(format!("a token realm of {} bytes", realm.len())));
    }
    let mut realm = Url::parse(realm)
        .map_err(|error| refuse(format!("a token realm that is no URL: {error}")))?;
    realm.set_fragment(None);
    check(&realm, "a token realm")?;
    let own_host = upstream.scheme() == "http" && realm.host() == upstream.host();
    if realm.scheme() == "http" && !own_host {
        return Err(refuse(format!(
            "the token realm {} is neither https nor the upstream's own host",
            place(&realm)
        )));
    }
    Ok(realm)
}

/// Whether two URLs have the same scheme, host and port, so that credentials for one are
/// credentials for the other.
pub fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}

/// The URL as far as it may stand in a message.
pub(crate) fn place(url: &Url) -> String {
    format!("{}://{}", url.scheme(), authority(url))
}

fn check(url: &Url, what: &str) -> Result<(), FetchError> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(refuse(format!("{what} that is not http or https")));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err(refuse(format!("{what} with a user or a password in it")));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(refuse(format!("{what} without a host")));
    }
    Ok(())
}

fn refuse(reason: impl Into<String>) -> FetchError {
    FetchError::Redirect(reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn url(text: &str) -> Url {
        Url::parse(text).unwrap()
    }

    fn step(from: &str, location: &str) -> Result<String, FetchError> {
        follow(&[url(from)], Some(location)).map(Into::into)
    }

    #[test]
    fn redirects_are_absolute_or_relative() {
        assert_eq!(step("https://a.b/v2/x", "https://c.d/e?f=g#h").unwrap(), "https://c.d/e?f=g");
        assert_eq!(step("https://a.b/v2/x", "/y").unwrap(), "https://a.b/y");
        assert_eq!(step("https://a.b/v2/x", "//c.d/y").unwrap(), "https://c.d/y");
        assert_eq!(step("http://a.b/v2/x", "https://a.b/v2/x").unwrap(), "https://a.b/v2/x");
    }

    #[test]
    fn redirects_that_are_not_followed_say_why_and_hide_the_query() {
        for (location, reason) in [
            ("http://a.b/?secret", "from https to http://a.b"),
            ("ftp://a.b/secret", "not http"),
            ("file:///etc/secret", "not http"),
            ("data:text/html,secret", "not http"),
            ("https://me:secret@a.b/", "password"),
            ("https://", "no URL"),
            ("", "circle"),
            ("https://a.b/v2/x", "circle"),
            ("https://a.b/v2/x#secret", "circle"),
        ] {
            let error = step("https://a.b/v2/x", location).unwrap_err().to_string();
            assert!(error.contains(reason), "{location}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
        assert!(follow(&[url("https://a.b")], None).is_err());
        assert!(step("https://a.b", &format!("/{}", "x".repeat(LOCATION_BYTES_MAX))).is_err());
    }

    #[test]
    fn five_redirects_are_followed_and_a_sixth_is_not() {
        let mut visited = vec![url("https://a.b/0")];
        for n in 1..=5 {
            visited.push(follow(&visited, Some(&format!("/{n}"))).unwrap());
        }
        assert!(follow(&visited, Some("/6")).unwrap_err().to_string().contains("more than 5"));
    }

    #[test]
    fn a_circle_of_two_is_seen() {
        let visited = [url("https://a.b/0"), url("https://c.d/1")];
        assert!(follow(&visited, Some("https://a.b/0")).is_err());
    }

    #[test]
    fn a_realm_is_https_or_at_home() {
        let secure = url("https://registry.example");
        assert!(realm(&secure, "https://auth.example/token").is_ok());
        assert!(realm(&secure, "http://auth.example/token").is_err());
        assert!(realm(&secure, "http://registry.example/token").is_err(), "a step down from https");
        let plain = url("http://registry.example:5000");
        assert!(realm(&plain, "http://registry.example:5001/token").is_ok());
        assert!(realm(&plain, "http://auth.example/token").is_err());
        assert!(realm(&plain, "https://auth.example/token").is_ok());
        for wrong in ["", "/token", "ftp://a.b", "https://me:pw@a.b/", "javascript:alert(1)"] {
            assert!(realm(&plain, wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn credentials_belong_to_scheme_host_and_port() {
        let home = url("https://a.b/x");
        assert!(same_origin(&home, &url("https://a.b:443/y")));
        assert!(same_origin(&home, &url("https://A.B/y")));
        for other in ["http://a.b/", "https://a.b:444/", "https://x.a.b/", "https://a.b.c/"] {
            assert!(!same_origin(&home, &url(other)), "{other}");
        }
    }

    proptest! {
        #[test]
        fn whatever_location_says_the_next_step_keeps_the_rules(location in ".{0,120}", secure: bool) {
            let home = url(if secure { "https://a.b/v2/x" } else { "http://a.b/v2/x" });
            if let Ok(next) = follow(std::slice::from_ref(&home), Some(&location)) {
                prop_assert!(matches!(next.scheme(), "http" | "https"));
                prop_assert!(!secure || next.scheme() == "https");
                prop_assert!(next != home && next.username().is_empty() && next.host().is_some());
            }
            let _ = realm(&home, &location);
        }
    }
}
