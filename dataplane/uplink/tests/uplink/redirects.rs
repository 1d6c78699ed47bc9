//! Where an upstream may send us, and what goes along.

use std::sync::Arc;

use outrider_uplink::FetchError;

use crate::origin::{Origin, Then, answer};
use crate::shard::{blob, error, get, manifest, start, upstream};

const CONTENT: &[u8] = b"0123456789";

/// Answers everything with a redirect to `location`.
fn sends_to(ip: &str, location: impl Fn(usize) -> String + Send + Sync + 'static) -> Origin {
    Origin::start(ip, move |seen, wire| {
        let location = format!("location: {}\r\n", location(seen.number));
        answer(seen, wire, 307, &location, b"moved")
    })
}

fn serves(ip: &str) -> Origin {
    Origin::start(ip, |seen, wire| answer(seen, wire, 200, "", CONTENT))
}

fn refused(origin: &Origin) -> String {
    match error(&start(upstream(&origin.url())), blob(CONTENT)) {
        FetchError::Redirect(text) => text,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_kind_of_redirect_is_followed_by_the_same_method() {
    let storage = serves("127.0.0.3");
    let url = storage.url();
    let origin = Origin::start("127.0.0.2", move |seen, wire| {
        let status = [301, 302, 303, 307, 308][seen.number % 5];
        let location = format!("location: {url}/storage?signature=secret\r\n");
        answer(seen, wire, status, &location, b"")
    });
    let uplink = start(upstream(&origin.url()));
    for _ in 0..5 {
        assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
    }
    assert!(get(&uplink, crate::shard::head("v1")).is_ok());
    let seen = storage.seen();
    assert!(seen.iter().all(|seen| seen.path == "/storage?signature=secret"));
    assert_eq!(seen[5].method, "HEAD");
    assert_eq!(seen[0].header("host"), Some(storage.authority().as_str()));
}

#[test]
fn a_part_is_asked_for_at_the_new_place_too() {
    let storage = Origin::start("127.0.0.3", |seen, wire| {
        assert_eq!(seen.header("range"), Some("bytes=3-"));
        answer(seen, wire, 206, "content-range: bytes 3-9/10\r\n", &CONTENT[3..])
    });
    let url = storage.url();
    let origin = sends_to("127.0.0.2", move |_| url.clone());
    let uplink = start(upstream(&origin.url()));
    assert_eq!(get(&uplink, crate::shard::part(CONTENT, 3, None)).unwrap(), &CONTENT[3..]);
}

#[test]
fn a_redirect_at_home_keeps_the_token_and_one_away_drops_it_for_good() {
    let storage = Arc::new(std::sync::OnceLock::<String>::new());
    let place = Arc::clone(&storage);
    let home = Origin::start("127.0.0.2", move |seen, wire| match seen.path.as_str() {
        path if path.starts_with("/token") => answer(seen, wire, 200, "", br#"{"token":"t0k"}"#),
        path if path.starts_with("/v2/") && seen.header("authorization").is_none() => {
            let host = seen.header("host").unwrap();
            let challenge =
                format!("www-authenticate: Bearer realm=\"http://{host}/token\",service=\"s\"\r\n");
            answer(seen, wire, 401, &challenge, b"")
        }
        path if path.starts_with("/v2/") => answer(seen, wire, 302, "location: /here\r\n", b""),
        "/here" => {
            let location = format!("location: {}/there\r\n", place.get().unwrap());
            answer(seen, wire, 302, &location, b"")
        }
        _ => answer(seen, wire, 200, "", CONTENT),
    });
    let back = format!("location: {}/back\r\n", home.url());
    let away = Origin::start("127.0.0.3", move |seen, wire| answer(seen, wire, 302, &back, b""));
    storage.set(away.url()).unwrap();
    let uplink = start(upstream(&home.url()));
    assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
    let authorization = |origin: &Origin, path: &str| {
        let seen = origin.seen();
        let seen = seen.iter().rfind(|seen| seen.path == path).unwrap();
        seen.header("authorization").map(str::to_owned)
    };
    assert_eq!(authorization(&home, "/here").as_deref(), Some("Bearer t0k"));
    assert_eq!(authorization(&away, "/there"), None);
    assert_eq!(authorization(&home, "/back"), None);
}

#[test]
fn the_same_host_at_another_port_gets_no_token() {
    let storage = serves("127.0.0.2");
    let url = storage.url();
    let home = Origin::start("127.0.0.2", move |seen, wire| {
        if seen.path.starts_with("/token") {
            return answer(seen, wire, 200, "", br#"{"token":"t0k"}"#);
        }
        if seen.header("authorization").is_none() {
            let host = seen.header("host").unwrap();
            let challenge = format!("www-authenticate: Bearer realm=\"http://{host}/token\"\r\n");
            return answer(seen, wire, 401, &challenge, b"");
        }
        answer(seen, wire, 302, &format!("location: {url}/x\r\n"), b"")
    });
    let uplink = start(upstream(&home.url()));
    assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
    assert_eq!(storage.seen()[0].header("authorization"), None);
}

#[test]
fn circles_and_endless_chains_end() {
    let itself = sends_to("127.0.0.2", |_| String::new());
    assert!(refused(&itself).contains("circle"));
    assert_eq!(itself.seen().len(), 1);
    let pair = sends_to("127.0.0.2", |number| format!("/{}", number % 2));
    assert!(refused(&pair).contains("circle"));
    let endless = sends_to("127.0.0.2", |number| format!("/{number}"));
    assert!(refused(&endless).contains("more than 5"));
    assert_eq!(endless.seen().len(), 6);
}

#[test]
fn a_redirect_to_nowhere_is_not_followed() {
    for location in ["ftp://127.0.0.3/", "http://", "http://user:secret@127.0.0.3/", "file:///x"] {
        let text = refused(&sends_to("127.0.0.2", move |_| location.to_owned()));
        assert!(!text.contains("secret"), "{text}");
    }
    let origin = Origin::start("127.0.0.2", |seen, wire| answer(seen, wire, 307, "", b""));
    assert!(refused(&origin).contains("where to"));
}

#[test]
fn who_is_on_the_internet_may_not_send_us_into_our_own_networks() {
    let private = serves("127.0.0.4");
    let loopback = serves("127.0.0.1");
    let (private_url, port) = (private.url(), loopback.port());
    let mapped = format!("http://[::ffff:127.0.0.1]:{port}/");
    for (location, class) in [
        (private_url, "private"),
        (format!("http://127.0.0.1:{port}/"), "loopback"),
        (format!("http://localhost:{port}/"), "loopback"),
        (format!("http://2130706433:{port}/"), "loopback"),
        (format!("http://0x7f.1:{port}/"), "loopback"),
        (mapped, "loopback"),
        (format!("http://[::1]:{port}/"), "loopback"),
        (format!("http://0.0.0.0:{port}/"), "unusable"),
        (format!("http://[::]:{port}/"), "unusable"),
        ("http://10.0.0.1/".to_owned(), "private"),
        ("http://100.64.0.1/".to_owned(), "private"),
        ("http://[fc00::1]/".to_owned(), "private"),
        ("http://169.254.1.1/".to_owned(), "link-local"),
        ("http://[fe80::1]/".to_owned(), "link-local"),
        ("http://169.254.169.254/latest/meta-data/".to_owned(), "metadata"),
        ("http://224.0.0.1/".to_owned(), "unusable"),
        ("http://255.255.255.255/".to_owned(), "unusable"),
    ] {
        let text = refused(&sends_to("127.0.0.2", {
            let location = location.clone();
            move |_| location.clone()
        }));
        assert!(text.contains(class), "{location}: {text}");
    }
    assert!(private.seen().is_empty() && loopback.seen().is_empty());
    assert_eq!(private.accepted() + loopback.accepted(), 0);
}

#[test]
fn a_detour_over_the_internet_changes_nothing() {
    let private = serves("127.0.0.4");
    let url = private.url();
    let relay = sends_to("127.0.0.3", move |_| url.clone());
    let url = relay.url();
    let origin = sends_to("127.0.0.2", move |_| url.clone());
    assert!(refused(&origin).contains("private"));
    assert_eq!(private.accepted(), 0);
}

#[test]
fn a_neighbour_may_send_us_to_its_neighbours_but_not_to_ourselves() {
    let neighbour = serves("127.0.0.5");
    let url = neighbour.url();
    let origin = sends_to("127.0.0.4", move |_| url.clone());
    assert_eq!(get(&start(upstream(&origin.url())), blob(CONTENT)).unwrap(), CONTENT);
    let ourselves = serves("127.0.0.1");
    let url = ourselves.url();
    let origin = sends_to("127.0.0.4", move |_| url.clone());
    assert!(refused(&origin).contains("loopback"));
    let origin = sends_to("127.0.0.4", |_| "http://169.254.169.254/".to_owned());
    assert!(refused(&origin).contains("metadata"));
}

#[test]
fn a_configured_upstream_may_be_anywhere_and_send_us_back_to_itself() {
    let origin = Origin::start("127.0.0.1", |seen, wire| {
        if seen.path == "/storage" {
            return answer(seen, wire, 200, "", CONTENT);
        }
        answer(seen, wire, 302, "location: /storage\r\n", b"")
    });
    assert_eq!(get(&start(upstream(&origin.url())), blob(CONTENT)).unwrap(), CONTENT);
    // Under its name it is the same host, whatever the name means.
    let uplink = start(upstream(&format!("http://localhost:{}", origin.port())));
    assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
}

#[test]
fn a_refused_redirect_does_not_shut_the_upstream_off() {
    let origin = Origin::start("127.0.0.2", |seen, wire| {
        if seen.path.contains("blobs") {
            return answer(seen, wire, 307, "location: http://10.0.0.1/\r\n", b"");
        }
        answer(seen, wire, 200, "", CONTENT)
    });
    let uplink = start(upstream(&origin.url()));
    for _ in 0..8 {
        assert!(matches!(error(&uplink, blob(CONTENT)), FetchError::Redirect(_)));
    }
    assert_eq!(get(&uplink, manifest("v1")).unwrap(), CONTENT);
    assert_eq!(origin.seen().len(), 9);
}

#[test]
fn what_a_redirect_leads_to_is_checked_like_any_answer() {
    let portal = Origin::start("127.0.0.3", |seen, wire| {
        answer(seen, wire, 200, "content-type: text/html\r\n", b"<html>")
    });
    let url = portal.url();
    let origin = sends_to("127.0.0.2", move |_| url.clone());
    let found = error(&start(upstream(&origin.url())), blob(CONTENT));
    assert!(matches!(found, FetchError::Protocol(_)), "{found}");
    // A 401 from elsewhere is nothing that a token of this upstream could mend.
    let elsewhere = Origin::start("127.0.0.3", |seen, wire| {
        let challenge = "www-authenticate: Bearer realm=\"https://127.0.0.3/token\"\r\n";
        let then = answer(seen, wire, 401, challenge, b"");
        assert!(matches!(then, Then::Next | Then::Close));
        then
    });
    let url = elsewhere.url();
    let origin = sends_to("127.0.0.2", move |_| url.clone());
    let found = error(&start(upstream(&origin.url())), blob(CONTENT));
    assert_eq!(found, FetchError::Unauthorized);
    assert_eq!(elsewhere.seen().len(), 1);
}
