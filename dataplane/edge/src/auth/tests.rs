//! Keys and secrets that change, and the file of the audit.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use rcgen::{KeyPair, PKCS_ED25519};

use super::writer::Log;
use super::*;
use crate::config::IssuerSection;

fn section(dir: &Path) -> AuthSection {
    AuthSection {
        service: Some("edge.test".into()),
        secrets_file: Some(dir.join("secrets")),
        issuer: vec![IssuerSection {
            name: "https://issuer.test".into(),
            audience: None,
            key_file: Some(dir.join("key.pem")),
            jwks_file: None,
            jwks_url: None,
            ca_file: None,
        }],
        ..AuthSection::default()
    }
}

fn key() -> String {
    KeyPair::generate_for(&PKCS_ED25519).unwrap().public_key_pem()
}

#[tokio::test]
async fn keys_and_secrets_are_read_again_and_stay_when_they_are_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let secret = outrider_tokens::secret::secret(&[7; 32]);
    let line = outrider_tokens::secret::line("acme", &secret);
    fs::write(dir.path().join("secrets"), &line).unwrap();
    fs::write(dir.path().join("key.pem"), key()).unwrap();
    let tls = dir.path().join("tls");
    let auth = Auth::load(&section(dir.path()), &tls).unwrap().unwrap();
    let first = auth.tables();
    assert!(first.secrets.is_of("acme", &secret));
    let own = tls.join(TOKEN_KEY);
    assert_eq!(fs::metadata(&own).unwrap().permissions().mode() & 0o777, 0o600);

    let (auth, has_changed) = auth.look(&[false]).await;
    assert!(!has_changed);
    // Another key, and no secrets any more.
    fs::write(dir.path().join("key.pem"), format!("{}{}", key(), key())).unwrap();
    fs::write(dir.path().join("secrets"), "").unwrap();
    let (auth, has_changed) = auth.look(&[false]).await;
    assert!(has_changed);
    let second = auth.tables();
    assert_eq!(second.verifier.issuers[1].keys.len(), 2);
    assert!(!second.secrets.is_of("acme", &secret));
    // What is wrong, and what is gone, leaves what there is.
    fs::write(dir.path().join("key.pem"), "no key").unwrap();
    fs::remove_file(dir.path().join("secrets")).unwrap();
    let (auth, has_changed) = auth.look(&[false]).await;
    assert!(!has_changed);
    assert_eq!(auth.tables().verifier.issuers[1].keys.len(), 2);

    // The own key is the same after a restart.
    fs::write(dir.path().join("key.pem"), key()).unwrap();
    fs::write(dir.path().join("secrets"), &line).unwrap();
    let again = Auth::load(&section(dir.path()), &tls).unwrap().unwrap().tables();
    assert_eq!(again.verifier.issuers[0].keys, first.verifier.issuers[0].keys);
}

/// Answers so many requests with this, then is gone.
fn serve(listener: std::net::TcpListener, answers: Vec<String>) -> std::thread::JoinHandle<()> {
    use std::io::{Read as _, Write as _};
    std::thread::spawn(move || {
        for body in answers {
            let (mut stream, _) = listener.accept().unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                let mut byte = [0];
                stream.read_exact(&mut byte).unwrap();
                head.push(byte[0]);
            }
            let length = body.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            stream.write_all(format!("{head}{body}").as_bytes()).unwrap();
        }
    })
}

#[tokio::test]
async fn keys_are_fetched_and_stay_when_the_address_is_dead_also_over_a_start() {
    let dir = tempfile::tempdir().unwrap();
    let jwks = |x: &str| format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","x":"{x}"}}]}}"#);
    let one = jwks("11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo");
    let two = jwks("PUAXw-hDiVqStwqnTRt-vJyYLM8uxJaMwM1V8Sr0Zgw");
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/keys", listener.local_addr().unwrap());
    let long = "x".repeat(300 << 10);
    let server = serve(listener, vec![one.clone(), one.clone(), "no keys".into(), long, two]);
    let mut section = section(dir.path());
    section.secrets_file = None;
    section.jwks_refresh = crate::units::Span::ms(0);
    section.issuer[0].key_file = None;
    section.issuer[0].jwks_url = Some(url.parse().unwrap());
    let mut auth = Auth::load(&section, dir.path()).unwrap().unwrap();
    let keys = |auth: &Auth| auth.tables().verifier.issuers[1].keys.clone();
    assert!(keys(&auth).is_empty());
    let mut seen = Vec::new();
    for wanted in [true, false, false, false, true, false] {
        let (next, has_changed) = auth.look(&[false]).await;
        auth = next;
        assert_eq!(has_changed, wanted, "after {} answers", seen.len());
        seen.push(keys(&auth));
    }
    server.join().unwrap();
    assert_eq!(seen[0].len(), 1);
    assert_eq!(seen[0], seen[3]);
    assert_ne!(seen[3], seen[4]);
    assert_eq!(seen[4], seen[5], "the address is dead, and they stay");
    let again = Auth::load(&section, dir.path()).unwrap().unwrap();
    assert_eq!(keys(&again), seen[5]);
}

#[tokio::test]
async fn a_dead_address_keeps_neither_secrets_nor_other_addresses() {
    use std::io::{Read as _, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let secret = outrider_tokens::secret::secret(&[7; 32]);
    let secrets = dir.path().join("secrets");
    fs::write(&secrets, outrider_tokens::secret::line("acme", &secret)).unwrap();
    let mut section = section(dir.path());
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    let issuer = section.issuer.remove(0);
    section.issuer = listeners
        .iter()
        .map(|listener| IssuerSection {
            name: format!("https://{}", listener.local_addr().unwrap()),
            key_file: None,
            jwks_url: format!("http://{}/keys", listener.local_addr().unwrap()).parse().ok(),
            ..issuer.clone()
        })
        .collect();
    let mut auth = Auth::load(&section, dir.path()).unwrap().unwrap();
    let shared = auth.share(Counter::default()).unwrap();
    assert!(shared.tables().secrets.is_of("acme", &secret));
    fs::write(&secrets, "").unwrap();
    let look = tokio::spawn(async move { auth.look(&[false; 16]).await });
    while shared.tables().secrets.is_of("acme", &secret) {
        assert!(!look.is_finished(), "the secret outlives a look");
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    // Neither answers before both are asked.
    assert!(!look.is_finished());
    let answer = std::thread::spawn(move || {
        for mut stream in listeners.map(|listener| listener.accept().unwrap().0) {
            assert!(stream.read(&mut [0; 4096]).unwrap() > 0);
            let keys = r#"{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;
            let length = keys.len();
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n");
            stream.write_all(format!("{head}{keys}").as_bytes()).unwrap();
        }
    });
    let (auth, has_changed) = look.await.unwrap();
    answer.join().unwrap();
    assert!(has_changed);
    let issuers = auth.tables().verifier.issuers;
    assert!(issuers[1..].iter().all(|issuer| issuer.keys.len() == 1), "{issuers:?}");
}

#[test]
fn a_start_says_which_file_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let load = || Auth::load(&section(dir.path()), dir.path());
    let failed = |part: &str| {
        let error = load().err().unwrap().to_string();
        assert!(error.contains(part), "{error}");
    };
    failed("key.pem");
    fs::write(dir.path().join("key.pem"), "-----BEGIN").unwrap();
    failed("key.pem");
    fs::write(dir.path().join("key.pem"), key()).unwrap();
    failed("secrets");
    fs::write(dir.path().join("secrets"), "acme password").unwrap();
    failed("line 1");
    fs::write(dir.path().join("secrets"), "").unwrap();
    load().unwrap();
    fs::write(dir.path().join(TOKEN_KEY), "damaged").unwrap();
    failed(TOKEN_KEY);
    assert!(Auth::load(&AuthSection::default(), dir.path()).unwrap().is_none());
}

#[test]
fn the_audit_begins_a_new_file_at_its_size_and_keeps_some() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let mut log = Log::open(path.clone(), 100, 2).unwrap();
    for number in 0..100 {
        log.write(&format!("line {number:03}")).unwrap();
    }
    drop(log);
    // It goes on where it was.
    let mut log = Log::open(path.clone(), 100, 2).unwrap();
    log.write("line 100").unwrap();
    let names = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names.count(), 3);
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
    let all = format!("{}{}{}", read("audit.2"), read("audit.1"), read("audit"));
    let lines: Vec<&str> = all.lines().collect();
    let first = 101 - lines.len();
    let wanted: Vec<String> = (first..101).map(|number| format!("line {number:03}")).collect();
    assert_eq!(lines, wanted);
    assert!([&*read("audit"), &*read("audit.1"), &*read("audit.2")].iter().all(|f| f.len() <= 100));
}

#[test]
fn an_audit_whose_file_is_gone_goes_on_and_loses_none_of_the_older_ones() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit");
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap_or_default();
    for kept in [0, 2] {
        let mut log = Log::open(path.clone(), 10, kept).unwrap();
        for line in ["line 1", "line 2", "line 3"] {
            log.write(line).unwrap();
        }
        let before = [read("audit.1"), read("audit.2")];
        fs::remove_file(&path).unwrap();
        // No file can be opened in its place as long as the folder is gone.
        let away = dir.path().with_extension("away");
        fs::rename(dir.path(), &away).unwrap();
        for _ in 0..3 {
            log.write("lost").unwrap_err();
        }
        fs::rename(&away, dir.path()).unwrap();
        log.write("line 4").unwrap();
        assert_eq!(read("audit"), "line 4\n");
        assert_eq!([read("audit.1"), read("audit.2")], before);
        log.write("line 5").unwrap();
        assert_eq!(read("audit"), "line 5\n");
        assert_eq!(read("audit.1") == "line 4\n", kept > 0);
        fs::remove_file(&path).unwrap();
    }
}
