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

    let (auth, has_changed) = auth.look().await;
    assert!(!has_changed);
    // Another key, and no secrets any more.
    fs::write(dir.path().join("key.pem"), format!("{}{}", key(), key())).unwrap();
    fs::write(dir.path().join("secrets"), "").unwrap();
    let (auth, has_changed) = auth.look().await;
    assert!(has_changed);
    let second = auth.tables();
    assert_eq!(second.verifier.issuers[1].keys.len(), 2);
    assert!(!second.secrets.is_of("acme", &secret));
    // What is wrong, and what is gone, leaves what there is.
    fs::write(dir.path().join("key.pem"), "no key").unwrap();
    fs::remove_file(dir.path().join("secrets")).unwrap();
    let (auth, has_changed) = auth.look().await;
    assert!(!has_changed);
    assert_eq!(auth.tables().verifier.issuers[1].keys.len(), 2);

    // The own key is the same after a restart.
    fs::write(dir.path().join("key.pem"), key()).unwrap();
    fs::write(dir.path().join("secrets"), &line).unwrap();
    let again = Auth::load(&section(dir.path()), &tls).unwrap().unwrap().tables();
    assert_eq!(again.verifier.issuers[0].keys, first.verifier.issuers[0].keys);
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
