//! Tokens, key sets, scopes, rules and secrets, as they come from anybody. What is signed is signed right for a second
//! look, since no fuzzer guesses a signature.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use outrider_tokens::rules::granted;
use outrider_tokens::sign::Grant;
use outrider_tokens::{Issuer, KeySet, Rule, Scope, Secrets, SigningKey, Verifier};

const NOW: u64 = 1_800_000_000;
const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIJ1hsZ3v/VpguoRK9JLsLMREScVpezJpGXA7rAMcrn9g\n-----END PRIVATE KEY-----\n";

static OWN: LazyLock<(SigningKey, Verifier)> = LazyLock::new(|| {
    let key = SigningKey::from_pem(KEY.as_bytes()).expect("a key of RFC 8032");
    let issuer = Issuer {
        name: "own".into(),
        audience: "edge".into(),
        keys: key.public().clone(),
        nobody_too: true,
    };
    (key, Verifier { issuers: vec![issuer], leeway_s: 60 })
});

fuzz_target!(|bytes: &[u8]| {
    let (key, verifier) = &*OWN;
    let _ = KeySet::from_jwks(bytes);
    let _ = KeySet::from_pem(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // Nobody but the key's owner makes a token that is believed.
    assert!(verifier.verify(text, NOW).is_err());
    if let Ok(secrets) = Secrets::parse(text) {
        assert!(!secrets.is_of("acme", text));
    }
    let rule = text.parse::<Rule>();
    if let Ok(rule) = &rule {
        assert_eq!(rule.to_string().parse::<Rule>().as_ref(), Ok(rule));
    }
    let Ok(scope) = text.parse::<Scope>() else { return };
    if let Ok(rule) = "pull:acme/**".parse::<Rule>()
        && let Some(part) = granted(&[rule], &scope)
    {
        assert!(part.to_string().ends_with(":pull"));
    }
    // What is granted is what is read.
    let scopes = [scope];
    let grant = Grant {
        issuer: "own",
        audience: "edge",
        customer: None,
        access: Some(&scopes),
        now_unix_s: NOW,
        life_s: 60,
        id: "1",
    };
    let token = key.sign(&grant).expect("it signs");
    let proven = verifier.verify(&token, NOW).expect("its own token");
    assert_eq!(proven.access.as_deref(), Some(&scopes[..]));
    assert!(verifier.verify(&token, NOW + 3600).is_err());
});
