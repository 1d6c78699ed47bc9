//! Authentication: tokens, Basic, and those who ask for too much.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::join_all;
use outrider_uplink::{FetchError, FetchRequest, UpstreamConfig};

use crate::origin::{Origin, Seen, Then, Wire, answer, raw};
use crate::shard::{blob, content, error, get, manifest, on_shard, start, upstream};

const CONTENT: &[u8] = b"0123456789";
const SCOPE: &str = "repository:library/alpine:pull";

/// A registry at `ip` that wants the token of `tokens`, given out at `/token` on the same port.
fn registry(ip: &str, tokens: impl Fn(&Seen, &mut Wire) -> Then + Send + Sync + 'static) -> Origin {
    Origin::start(ip, move |seen, wire| {
        if seen.path.starts_with("/token") {
            return tokens(seen, wire);
        }
        match seen.header("authorization") {
            Some(value) if value.starts_with("Bearer good") => answer(seen, wire, 200, "", CONTENT),
            _ => {
                let host = seen.header("host").unwrap();
                challenge(seen, wire, &format!("http://{host}/token"))
            }
        }
    })
}

fn challenge(seen: &Seen, wire: &mut Wire, realm: &str) -> Then {
    let header = format!(
        "www-authenticate: Bearer realm=\"{realm}\",service=\"the registry\",scope=\"{SCOPE}\"\r\n"
    );
    answer(seen, wire, 401, &header, b"{\"errors\":[]}")
}

fn good(seen: &Seen, wire: &mut Wire) -> Then {
    answer(seen, wire, 200, "", br#"{"token":"good","expires_in":300}"#)
}

fn token_requests(origin: &Origin) -> Vec<Seen> {
    origin.seen().into_iter().filter(|seen| seen.path.starts_with("/token")).collect()
}

fn with_password(config: UpstreamConfig, password: &str) -> (UpstreamConfig, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("password");
    std::fs::write(&file, password).unwrap();
    let config =
        UpstreamConfig { username: Some("me".into()), password_file: Some(file), ..config };
    (config, dir)
}

#[test]
fn a_token_is_asked_for_once_and_used_again() {
    let origin = registry("127.0.0.2", good);
    let uplink = start(upstream(&origin.url()));
    for _ in 0..3 {
        assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
    }
    let asked = token_requests(&origin);
    assert_eq!(asked.len(), 1);
    assert_eq!(
        asked[0].path,
        "/token?service=the+registry&scope=repository%3Alibrary%2Falpine%3Apull"
    );
    assert_eq!(asked[0].header("authorization"), None, "there are no credentials to send");
    assert_eq!(origin.seen().len(), 5, "a challenge, a token, three contents");
}

#[test]
fn each_repository_has_a_token_of_its_own() {
    let origin = registry("127.0.0.2", good);
    let uplink = start(upstream(&origin.url()));
    get(&uplink, manifest("v1")).unwrap();
    get(&uplink, FetchRequest { repository: "other".into(), ..manifest("v1") }).unwrap();
    assert_eq!(token_requests(&origin).len(), 2);
}

#[test]
fn user_and_password_go_to_the_token_service_and_not_to_the_registry() {
    let origin = registry("127.0.0.2", good);
    let (config, _dir) = with_password(upstream(&origin.url()), "hunter2\n");
    let uplink = start(config);
    get(&uplink, blob(CONTENT)).unwrap();
    let basic = "Basic bWU6aHVudGVyMg==";
    for seen in origin.seen() {
        let is_token = seen.path.starts_with("/token");
        assert_eq!(seen.header("authorization") == Some(basic), is_token, "{}", seen.path);
    }
}

#[test]
fn a_hundred_fetches_at_once_ask_for_one_token() {
    let origin = registry("127.0.0.2", |seen, wire| {
        // Long enough for the others to come and ask too.
        std::thread::sleep(Duration::from_millis(200));
        good(seen, wire)
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let all = (0..100).map(|_| content(&client, blob(CONTENT)));
        assert!(join_all(all).await.iter().all(|content| content == CONTENT));
    });
    assert_eq!(token_requests(&origin).len(), 1);
}

#[test]
fn a_challenge_that_comes_late_is_answered_with_the_token_that_is_there_by_then() {
    let given = Arc::new(AtomicUsize::new(0));
    let give = Arc::clone(&given);
    let origin = Origin::start("127.0.0.2", move |seen, wire| {
        if seen.path.starts_with("/token") {
            let then = good(seen, wire);
            give.fetch_add(1, Ordering::SeqCst);
            return then;
        }
        if seen.header("authorization") == Some("Bearer good") {
            give.fetch_add(1, Ordering::SeqCst);
            return answer(seen, wire, 200, "", CONTENT);
        }
        if seen.path.contains("/blobs/") {
            // Until the other one has its token, and its content too.
            while give.load(Ordering::SeqCst) < 2 {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        let host = seen.header("host").unwrap();
        challenge(seen, wire, &format!("http://{host}/token"))
    });
    let uplink = start(upstream(&origin.url()));
    on_shard(&uplink, |client| async move {
        let (one, two) = (content(&client, blob(CONTENT)), content(&client, manifest("v1")));
        futures_util::future::join(one, two).await;
    });
    assert_eq!(token_requests(&origin).len(), 1);
}

#[test]
fn a_token_that_is_over_is_replaced() {
    let origin = registry("127.0.0.2", |seen, wire| {
        answer(seen, wire, 200, "", br#"{"access_token":"good","expires_in":0}"#)
    });
    let uplink = start(upstream(&origin.url()));
    for _ in 0..3 {
        get(&uplink, blob(CONTENT)).unwrap();
    }
    assert_eq!(token_requests(&origin).len(), 3);
}

#[test]
fn a_token_that_is_revoked_is_replaced_once_however_many_use_it() {
    let good_token = Arc::new(AtomicUsize::new(1));
    let valid = Arc::clone(&good_token);
    let origin = Origin::start("127.0.0.2", move |seen, wire| {
        let number = valid.load(Ordering::SeqCst);
        if seen.path.starts_with("/token") {
            let body = format!("{{\"token\":\"t{number}\"}}");
            return answer(seen, wire, 200, "", body.as_bytes());
        }
        if seen.header("authorization") == Some(&format!("Bearer t{number}")) {
            return answer(seen, wire, 200, "", CONTENT);
        }
        let host = seen.header("host").unwrap();
        challenge(seen, wire, &format!("http://{host}/token"))
    });
    let uplink = start(upstream(&origin.url()));
    get(&uplink, blob(CONTENT)).unwrap();
    good_token.store(2, Ordering::SeqCst);
    on_shard(&uplink, |client| async move {
        let all = (0..50).map(|_| content(&client, blob(CONTENT)));
        assert!(join_all(all).await.iter().all(|content| content == CONTENT));
    });
    assert_eq!(token_requests(&origin).len(), 2);
}

#[test]
fn a_registry_that_never_likes_the_token_is_asked_twice() {
    let origin =
        registry("127.0.0.2", |seen, wire| answer(seen, wire, 200, "", br#"{"token":"bad"}"#));
    let uplink = start(upstream(&origin.url()));
    assert_eq!(error(&uplink, blob(CONTENT)), FetchError::Unauthorized);
    assert_eq!(origin.seen().len(), 3);
}

#[test]
fn the_token_services_refusals_become_ours() {
    let statuses = Mutex::new(vec![(401, ""), (403, ""), (503, ""), (400, "")].into_iter());
    let origin = registry("127.0.0.2", move |seen, wire| {
        let (status, headers) = statuses.lock().unwrap().next().unwrap();
        answer(seen, wire, status, headers, b"")
    });
    let uplink = start(upstream(&origin.url()));
    assert_eq!(error(&uplink, blob(CONTENT)), FetchError::Unauthorized);
    assert_eq!(error(&uplink, blob(CONTENT)), FetchError::Denied);
    assert_eq!(
        error(&uplink, blob(CONTENT)),
        FetchError::Unavailable { status: 503, retry_after: None }
    );
    assert!(matches!(error(&uplink, blob(CONTENT)), FetchError::Protocol(_)));
}

#[test]
fn an_answer_without_a_token_or_without_end_is_refused() {
    let origin = registry("127.0.0.2", |seen, wire| {
        if seen.number < 2 {
            return answer(seen, wire, 200, "content-type: text/html\r\n", b"<html>");
        }
        let _ = raw(wire, "HTTP/1.1 200 OK\r\n\r\n{\"token\":\"good\"", Then::Next);
        while std::io::Write::write_all(wire, &[b' '; 4096]).is_ok() {}
        Then::Close
    });
    let uplink = start(upstream(&origin.url()));
    let found = error(&uplink, blob(CONTENT));
    assert!(matches!(&found, FetchError::Protocol(text) if text.contains("no token")), "{found}");
    let found = error(&uplink, blob(CONTENT));
    assert!(matches!(&found, FetchError::Protocol(text) if text.contains("longer")), "{found}");
}

#[test]
fn a_token_service_that_is_silent_times_out() {
    let origin = registry("127.0.0.2", |_, _| Then::Silence);
    let mut config = upstream(&origin.url());
    config.head_timeout = Duration::from_millis(300);
    let found = error(&start(config), blob(CONTENT));
    assert!(matches!(found, FetchError::Timeout { .. }), "{found}");
}

/// A registry whose challenge names this realm.
fn names(ip: &str, realm: &str) -> Origin {
    let realm = realm.to_owned();
    Origin::start(ip, move |seen, wire| challenge(seen, wire, &realm))
}

#[test]
fn a_realm_elsewhere_without_tls_is_not_asked() {
    let thief = Origin::start("127.0.0.3", good);
    let origin = names("127.0.0.2", &format!("{}/token", thief.url()));
    let (config, _dir) = with_password(upstream(&origin.url()), "hunter2");
    let found = error(&start(config), blob(CONTENT));
    assert!(matches!(&found, FetchError::Redirect(text) if text.contains("realm")), "{found}");
    assert_eq!(thief.accepted(), 0);
    assert!(!format!("{found:?} {found}").contains("hunter2"));
}

#[test]
fn a_realm_in_our_own_networks_is_not_asked() {
    let inside = Origin::start("127.0.0.1", good);
    for realm in [
        format!("https://127.0.0.1:{}/token", inside.port()),
        format!("https://localhost:{}/token", inside.port()),
        "https://169.254.169.254/latest".to_owned(),
        "https://10.0.0.1/token".to_owned(),
    ] {
        let origin = names("127.0.0.2", &realm);
        let found = error(&start(upstream(&origin.url())), blob(CONTENT));
        assert!(matches!(found, FetchError::Redirect(_)), "{realm}: {found}");
    }
    assert_eq!(inside.accepted(), 0);
}

#[test]
fn a_realm_that_is_no_url_is_not_asked() {
    for realm in ["token", "/token", "ftp://127.0.0.2/", "https://me:pw@127.0.0.2/"] {
        let origin = names("127.0.0.2", realm);
        let found = error(&start(upstream(&origin.url())), blob(CONTENT));
        assert!(matches!(found, FetchError::Redirect(_)), "{realm}: {found}");
    }
}

#[test]
fn a_private_registry_may_have_its_token_service_at_another_port() {
    let tokens = Origin::start("127.0.0.4", good);
    let realm = format!("{}/token", tokens.url());
    let origin = Origin::start("127.0.0.4", move |seen, wire| {
        if seen.header("authorization") == Some("Bearer good") {
            return answer(seen, wire, 200, "", CONTENT);
        }
        challenge(seen, wire, &realm)
    });
    assert_eq!(get(&start(upstream(&origin.url())), blob(CONTENT)).unwrap(), CONTENT);
}

#[test]
fn a_token_service_may_redirect_but_the_password_stays_home() {
    let elsewhere = Origin::start("127.0.0.3", good);
    let location = format!("location: {}/token2\r\n", elsewhere.url());
    let origin = registry("127.0.0.2", move |seen, wire| answer(seen, wire, 307, &location, b""));
    let (config, _dir) = with_password(upstream(&origin.url()), "hunter2");
    assert_eq!(get(&start(config), blob(CONTENT)).unwrap(), CONTENT);
    assert!(elsewhere.seen()[0].path.starts_with("/token2"));
    assert_eq!(elsewhere.seen()[0].header("authorization"), None);
}

fn wants_basic(password: &'static str) -> Origin {
    use std::fmt::Write as _;
    Origin::start("127.0.0.2", move |seen, wire| {
        let mut expected = "Basic ".to_owned();
        write!(expected, "{}", base64(&format!("me:{password}"))).unwrap();
        if seen.header("authorization") == Some(&expected) {
            return answer(seen, wire, 200, "", CONTENT);
        }
        answer(seen, wire, 401, "www-authenticate: Basic realm=\"x\"\r\n", b"")
    })
}

/// Enough of base64 for a test.
fn base64(text: &str) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for three in text.as_bytes().chunks(3) {
        let bits = three
            .iter()
            .enumerate()
            .fold(0u32, |bits, (at, byte)| bits | u32::from(*byte) << (16 - 8 * at));
        for at in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * at) & 63) as usize];
            out.push(if at <= three.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

#[test]
fn basic_is_answered_once_and_then_sent_at_once() {
    let origin = wants_basic("hunter2");
    let (config, _dir) = with_password(upstream(&origin.url()), "hunter2");
    let uplink = start(config);
    for _ in 0..3 {
        assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT);
    }
    assert_eq!(origin.seen().len(), 4, "one challenge, three contents");
}

#[test]
fn without_credentials_or_with_wrong_ones_basic_ends_in_unauthorized() {
    let origin = wants_basic("hunter2");
    assert_eq!(error(&start(upstream(&origin.url())), blob(CONTENT)), FetchError::Unauthorized);
    assert_eq!(origin.seen().len(), 1);
    let (config, dir) = with_password(upstream(&origin.url()), "hunter1");
    let uplink = start(config);
    assert_eq!(error(&uplink, blob(CONTENT)), FetchError::Unauthorized);
    assert_eq!(origin.seen().len(), 3);
    assert_eq!(error(&uplink, blob(CONTENT)), FetchError::Unauthorized);
    assert_eq!(origin.seen().len(), 4, "the same password is not tried twice");
    std::fs::write(dir.path().join("password"), "hunter2\n").unwrap();
    assert_eq!(get(&uplink, blob(CONTENT)).unwrap(), CONTENT, "the password was rotated");
}

#[test]
fn a_missing_password_file_is_found_at_the_start() {
    let config = UpstreamConfig {
        username: Some("me".into()),
        password_file: Some("/does/not/exist".into()),
        ..upstream("http://127.0.0.2:1")
    };
    let text = match outrider_uplink::start(vec![config], crate::shard::options()) {
        Ok(_) => panic!("it started"),
        Err(error) => error.to_string(),
    };
    assert!(text.contains("/does/not/exist"), "{text}");
}

#[test]
fn two_upstreams_of_one_name_do_not_start() {
    for name in [None, Some("x")] {
        let config = UpstreamConfig::new(name, "http://127.0.0.2:1").unwrap();
        let twice = vec![config.clone(), config];
        assert!(outrider_uplink::start(twice, crate::shard::options()).is_err());
    }
}
