//! What is asked for: a URL, taken apart once, and the bytes of its request.

use std::net::{SocketAddr, ToSocketAddrs};

use outrider_artifact::Digest;
use rustls::pki_types::ServerName;
use url::Url;

use crate::BenchError;

/// A server and how it is spoken to. All URLs of one load share it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Server {
    /// True for `https`.
    pub secure: bool,
    /// Where to connect.
    pub address: SocketAddr,
    /// The `Host` header: name, and the port unless it is the scheme's own.
    pub authority: String,
    /// The name that its certificate must carry.
    pub name: ServerName<'static>,
}

/// One thing to download.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The URL as it was given.
    pub url: String,
    /// Path and query.
    pub path: String,
    /// The digest that stands in the path, if one does.
    pub digest: Option<Digest>,
}

/// Takes a URL apart, and resolves its host.
///
/// # Errors
/// Says what is wrong with the URL.
pub fn parse(text: &str) -> Result<(Server, Target), BenchError> {
    let wrong = |why: &str| BenchError::Argument(format!("{text}: {why}"));
    let url = Url::parse(text).map_err(|error| wrong(&error.to_string()))?;
    let secure = match url.scheme() {
        "http" => false,
        "https" => true,
        _ => return Err(wrong("a URL here starts with http:// or https://")),
    };
    let host = url.host_str().ok_or_else(|| wrong("there is no host in it"))?;
    let port = url.port_or_known_default().ok_or_else(|| wrong("there is no port in it"))?;
    let bare_host = host.trim_start_matches('[').trim_end_matches(']');
    let address = (bare_host, port)
        .to_socket_addrs()
        .map_err(BenchError::io(format!("resolving {host}")))?
        .next()
        .ok_or_else(|| wrong("its host has no address"))?;
    let name = ServerName::try_from(bare_host.to_owned())
        .map_err(|error| wrong(&format!("its host cannot be in a certificate: {error}")))?;
    let authority = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let digest = digest_in(&path);
    Ok((Server { secure, address, authority, name }, Target { url: text.to_owned(), path, digest }))
}

/// Takes several URLs apart, which must be of one server.
///
/// # Errors
/// As [`parse`], and when they are of several servers.
pub fn parse_all(urls: &[String]) -> Result<(Server, Vec<Target>), BenchError> {
    let mut server = None;
    let mut targets = Vec::with_capacity(urls.len());
    for url in urls {
        let (of, target) = parse(url)?;
        if *server.get_or_insert_with(|| of.clone()) != of {
            return Err(BenchError::Argument(format!("{url} is on another server than the first")));
        }
        targets.push(target);
    }
    let server = server.ok_or_else(|| BenchError::Argument("no URL was given".to_owned()))?;
    Ok((server, targets))
}

/// The first digest in a text: `…/blobs/sha256:HEX`, `…?digest=sha256%3AHEX`.
fn digest_in(text: &str) -> Option<Digest> {
    let text = text.replace("%3A", ":").replace("%3a", ":");
    text.split(['/', '=', '&', '?', '@']).find_map(|part| part.parse().ok())
}

/// The header lines of an HTTP/1.1 GET, without the empty line at their end.
pub fn request_lines(server: &Server, path: &str, headers: &[(String, String)]) -> String {
    let mut text = format!("GET {path} HTTP/1.1\r\nHost: {}\r\n", server.authority);
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("accept")) {
        text.push_str("Accept: */*\r\n");
    }
    for (name, value) in headers {
        text.push_str(name);
        text.push_str(": ");
        text.push_str(value);
        text.push_str("\r\n");
    }
    text
}

/// A header as it is given on the command line: `Name: value`.
///
/// # Errors
/// Says what is wrong with it; a line break would be a second header.
pub fn header(text: &str) -> Result<(String, String), BenchError> {
    let wrong =
        || BenchError::Argument(format!("{text:?} is not a header like \"Accept: text/plain\""));
    let (name, value) = text.split_once(':').ok_or_else(wrong)?;
    let token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    if name.is_empty() || !name.bytes().all(token) || value.bytes().any(|byte| byte < b' ') {
        return Err(wrong());
    }
    Ok((name.to_owned(), value.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let (server, target) = parse("https://127.0.0.1:8443/a/b?c=d").unwrap();
        assert!(server.secure);
        assert_eq!(server.address, "127.0.0.1:8443".parse::<SocketAddr>().unwrap());
        assert_eq!(server.authority, "127.0.0.1:8443");
        assert_eq!(target.path, "/a/b?c=d");
        let (server, target) = parse("http://[::1]").unwrap();
        assert_eq!((server.authority.as_str(), target.path.as_str()), ("[::1]", "/"));
        assert_eq!(server.address, "[::1]:80".parse::<SocketAddr>().unwrap());
    }

    #[test]
    fn a_url_that_cannot_be_loaded_says_why() {
        for url in ["", "127.0.0.1:80", "ftp://127.0.0.1/", "http://"] {
            assert!(parse(url).is_err(), "{url}");
        }
    }

    #[test]
    fn urls_of_two_servers_are_not_one_load() {
        let same = ["http://127.0.0.1:1/a".to_owned(), "http://127.0.0.1:1/b".to_owned()];
        assert_eq!(parse_all(&same).unwrap().1.len(), 2);
        let other = ["http://127.0.0.1:1/a".to_owned(), "http://127.0.0.1:2/a".to_owned()];
        assert!(parse_all(&other).is_err());
    }

    #[test]
    fn the_digest_in_a_url_is_found_where_registries_and_outrider_put_it() {
        let hex = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let expected = format!("sha256:{hex}").parse::<Digest>().unwrap();
        for url in [
            format!("http://127.0.0.1/v2/x/blobs/sha256:{hex}"),
            format!("http://127.0.0.1/layer/request?customer=a&digest=sha256:{hex}"),
            format!("http://127.0.0.1/layer/request?digest=sha256%3A{hex}&image=x"),
        ] {
            assert_eq!(parse(&url).unwrap().1.digest, Some(expected), "{url}");
        }
        assert_eq!(parse("http://127.0.0.1/v2/x/manifests/latest").unwrap().1.digest, None);
    }

    #[test]
    fn a_header_cannot_smuggle_another() {
        assert_eq!(header("Accept: a").unwrap(), ("Accept".to_owned(), "a".to_owned()));
        for text in ["Accept", ": a", "A b: c", "A: b\r\nC: d", "A\n: b"] {
            assert!(header(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_request_names_its_host_and_keeps_an_accept_of_its_own() {
        let (server, target) = parse("http://127.0.0.1:81/a").unwrap();
        let text = request_lines(&server, &target.path, &[("accept".into(), "x/y".into())]);
        assert_eq!(text, "GET /a HTTP/1.1\r\nHost: 127.0.0.1:81\r\naccept: x/y\r\n");
    }
}
