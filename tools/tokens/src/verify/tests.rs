//! Tokens of all three algorithms, made by another implementation, and all the ways in which one is wrong.

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use proptest::prelude::*;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256, PublicKeyData};
use serde_json::{Value, json};

use super::*;
use crate::scope::Actions;
use crate::sign::{Grant, SigningKey};

const NOW: u64 = 1_800_000_000;

struct Maker {
    pair: KeyPair,
    algorithm: Algorithm,
}

impl Maker {
    fn new(algorithm: Algorithm) -> Self {
        let pair = KeyPair::generate_for(match algorithm {
            Algorithm::EdDSA => &PKCS_ED25519,
            Algorithm::ES256 => &PKCS_ECDSA_P256_SHA256,
            _ => &PKCS_RSA_SHA256,
        });
        Self { pair: pair.unwrap(), algorithm }
    }

    fn all() -> [Self; 3] {
        [Algorithm::EdDSA, Algorithm::ES256, Algorithm::RS256].map(Self::new)
    }

    fn name(&self) -> &'static str {
        match self.algorithm {
            Algorithm::EdDSA => "EdDSA",
            Algorithm::ES256 => "ES256",
            _ => "RS256",
        }
    }

    fn keys(&self) -> KeySet {
        KeySet::from_pem(self.pair.public_key_pem().as_bytes()).unwrap()
    }

    fn sign(&self, head: &str, claims: &str) -> String {
        let message =
            format!("{}.{}", URL_SAFE_NO_PAD.encode(head), URL_SAFE_NO_PAD.encode(claims));
        let der = self.pair.serialize_der();
        let key = match self.algorithm {
            Algorithm::EdDSA => EncodingKey::from_ed_der(&der),
            Algorithm::ES256 => EncodingKey::from_ec_der(&der),
            _ => EncodingKey::from_rsa_der(&rsa_of_pkcs8(&der)),
        };
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }

    fn token(&self, claims: &Value) -> String {
        self.sign(&json!({ "alg": self.name() }).to_string(), &claims.to_string())
    }
}

/// aws-lc takes either.
fn rsa_of_pkcs8(der: &[u8]) -> Vec<u8> {
    // PrivateKeyInfo: version, algorithm, and the key as an octet string, which is the rest.
    let start = der.windows(2).skip(20).position(|two| two == [0x30, 0x82]).unwrap() + 20;
    der[start..].to_vec()
}

fn claims() -> Value {
    json!({ "iss": "https://issuer.test", "sub": "acme", "aud": "edge", "exp": NOW + 100 })
}

fn with(change: impl FnOnce(&mut Value)) -> Value {
    let mut claims = claims();
    change(&mut claims);
    claims
}

fn verifier(keys: KeySet) -> Verifier {
    let issuer = Issuer {
        name: "https://issuer.test".into(),
        audience: "edge".into(),
        keys,
        nobody_too: false,
    };
    Verifier { issuers: vec![issuer], leeway_s: 10 }
}

#[test]
fn tokens_of_all_algorithms_are_believed_by_pem_and_by_jwks() {
    for maker in Maker::all() {
        let token = maker.token(&claims());
        let proven = verifier(maker.keys()).verify(&token, NOW).unwrap();
        assert_eq!(proven.customer.as_deref(), Some("acme"));
        assert_eq!((proven.access, proven.until_unix_s), (None, NOW + 110));

        let jwks = json!({ "keys": [{ "kty": "oct", "k": "AAAA" }, jwk(&maker, Some("one"))] });
        let keys = KeySet::from_jwks(jwks.to_string().as_bytes()).unwrap();
        assert_eq!(keys.len(), 1);
        verifier(keys.clone()).verify(&token, NOW).unwrap();
        let named = |kid: &str| {
            let head = json!({ "alg": maker.name(), "kid": kid }).to_string();
            maker.sign(&head, &claims().to_string())
        };
        verifier(keys.clone()).verify(&named("one"), NOW).unwrap();
        assert_eq!(verifier(keys).verify(&named("two"), NOW), Err(TokenError::Key));
        // A single key is a set of one.
        let single = KeySet::from_jwks(jwk(&maker, None).to_string().as_bytes()).unwrap();
        verifier(single).verify(&named("two"), NOW).unwrap();
    }
}

fn jwk(maker: &Maker, kid: Option<&str>) -> Value {
    let raw = maker.pair.der_bytes();
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let mut jwk = match maker.algorithm {
        Algorithm::EdDSA => json!({ "kty": "OKP", "crv": "Ed25519", "x": encode(raw) }),
        Algorithm::ES256 => {
            json!({ "kty": "EC", "crv": "P-256", "x": encode(&raw[1..33]), "y": encode(&raw[33..]) })
        }
        _ => {
            // RSAPublicKey: a sequence of modulus and exponent, which is 65537.
            let modulus = &raw[raw.len() - 256 - 5..raw.len() - 5];
            json!({ "kty": "RSA", "n": encode(modulus), "e": "AQAB", "use": "sig" })
        }
    };
    if let Some(kid) = kid {
        jwk["kid"] = kid.into();
    }
    jwk
}

#[test]
fn a_key_is_only_for_its_own_algorithm() {
    let makers = Maker::all();
    for maker in &makers {
        for other in &makers {
            let head = json!({ "alg": other.name() }).to_string();
            // Signed with one, said to be another.
            let token = maker.sign(&head, &claims().to_string());
            let found = verifier(maker.keys()).verify(&token, NOW);
            assert_eq!(found.is_ok(), maker.algorithm == other.algorithm);
        }
        for none in ["none", "None", "", "HS256", "HS512", "PS256", "ES384", "RS512"] {
            let head = json!({ "alg": none }).to_string();
            let token = maker.sign(&head, &claims().to_string());
            assert_eq!(verifier(maker.keys()).verify(&token, NOW), Err(TokenError::Algorithm));
        }
        // The public key as the secret of an HMAC.
        let secret = EncodingKey::from_secret(maker.pair.public_key_pem().as_bytes());
        let head = jsonwebtoken::Header::new(Algorithm::HS256);
        let token = jsonwebtoken::encode(&head, &claims(), &secret).unwrap();
        assert_eq!(verifier(maker.keys()).verify(&token, NOW), Err(TokenError::Algorithm));
    }
}

#[test]
fn a_token_that_says_something_wrong_is_not_believed() {
    let maker = Maker::new(Algorithm::EdDSA);
    let verifier = verifier(maker.keys());
    let exp = NOW + 100;
    let cases: [(Value, TokenError); 17] = [
        (with(|c| c["iss"] = "https://other.test".into()), TokenError::Issuer),
        (with(|c| c["iss"] = Value::Null), TokenError::Issuer),
        (with(|c| c["aud"] = "other".into()), TokenError::Audience),
        (with(|c| c["aud"] = json!(["a", "b"])), TokenError::Audience),
        (with(|c| c["aud"] = json!(vec!["edge"; 17])), TokenError::Malformed),
        (with(|c| c["aud"] = json!([])), TokenError::Audience),
        (with(|c| c["exp"] = (NOW - 10).into()), TokenError::Expired),
        (with(|c| c["exp"] = Value::Null), TokenError::Malformed),
        (with(|c| c["exp"] = "soon".into()), TokenError::Malformed),
        (with(|c| c["exp"] = (-1).into()), TokenError::Malformed),
        (with(|c| c["exp"] = 1e300.into()), TokenError::Malformed),
        (with(|c| c["nbf"] = (NOW + 11).into()), TokenError::NotYet),
        (with(|c| c["sub"] = "".into()), TokenError::Customer),
        (with(|c| c["sub"] = "a b".into()), TokenError::Customer),
        (with(|c| c["sub"] = "a\n".into()), TokenError::Customer),
        (with(|c| c["sub"] = "x".repeat(129).into()), TokenError::Customer),
        (with(|c| c["access"] = "all".into()), TokenError::Malformed),
    ];
    for (claims, why) in cases {
        assert_eq!(verifier.verify(&maker.token(&claims), NOW), Err(why), "{claims}");
    }
    for claims in [
        with(|c| c["aud"] = json!(["a", "edge"])),
        with(|c| c["exp"] = (NOW - 9).into()),
        with(|c| c["exp"] = (exp as f64 + 0.5).into()),
        with(|c| c["nbf"] = (NOW + 10).into()),
        with(|c| c["customer"] = "other".into()),
    ] {
        verifier.verify(&maker.token(&claims), NOW).unwrap();
    }
}

#[test]
fn a_claim_that_stands_twice_makes_a_token_malformed() {
    let maker = Maker::new(Algorithm::EdDSA);
    let verifier = verifier(maker.keys());
    let head = r#"{"alg":"EdDSA"}"#;
    let exp = NOW + 100;
    let once = format!(r#"{{"iss":"https://issuer.test","sub":"acme","aud":"edge","exp":{exp}}}"#);
    verifier.verify(&maker.sign(head, &once), NOW).unwrap();
    for twice in [r#","sub":"admin""#, r#","exp":9999999999"#, r#","aud":"edge""#] {
        let claims = format!("{}{twice}}}", &once[..once.len() - 1]);
        let token = maker.sign(head, &claims);
        assert_eq!(verifier.verify(&token, NOW), Err(TokenError::Malformed), "{twice}");
    }
    let token = maker.sign(r#"{"alg":"EdDSA","alg":"EdDSA"}"#, &once);
    assert_eq!(verifier.verify(&token, NOW), Err(TokenError::Malformed));
    for head in [r#"{"alg":"EdDSA","crit":["x"]}"#, r#"{"alg":"EdDSA","b64":false}"#] {
        assert_eq!(verifier.verify(&maker.sign(head, &once), NOW), Err(TokenError::Algorithm));
    }
}

#[test]
fn what_is_no_token_is_not_believed() {
    let maker = Maker::new(Algorithm::EdDSA);
    let verifier = verifier(maker.keys());
    let good = maker.token(&claims());
    let (signed, signature) = good.rsplit_once('.').unwrap();
    for (token, why) in [
        (String::new(), TokenError::Malformed),
        ("a".into(), TokenError::Malformed),
        ("a.b".into(), TokenError::Malformed),
        ("..".into(), TokenError::Malformed),
        (format!("{good}.x"), TokenError::Malformed),
        (signed.into(), TokenError::Malformed),
        (format!("{signed}."), TokenError::Signature),
        (format!("{signed}.{}", &signature[1..]), TokenError::Signature),
        (format!("{signed}.{signature}="), TokenError::Signature),
        (STANDARD.encode(&good), TokenError::Malformed),
        ("x".repeat(TOKEN_BYTES_MAX + 1), TokenError::TooLarge),
        (format!("{}.e30.x", "x".repeat(HEAD_BYTES_MAX + 1)), TokenError::TooLarge),
    ] {
        assert_eq!(verifier.verify(&token, NOW), Err(why), "{token}");
    }
    // Another key's.
    let other = Maker::new(Algorithm::EdDSA).token(&claims());
    assert_eq!(verifier.verify(&other, NOW), Err(TokenError::Signature));
    // As deep as it may be long: what is not looked at is passed over without a stack, the rest is of no depth.
    let deep = format!("{}{}", "[".repeat(2900), "]".repeat(2900));
    for (name, why) in [("x", TokenError::Audience), ("aud", TokenError::Malformed)] {
        let claims = format!(r#"{{"iss":"https://issuer.test","{name}":{deep}}}"#);
        let found = verifier.verify(&maker.sign(r#"{"alg":"EdDSA"}"#, &claims), NOW);
        assert_eq!(found, Err(why), "{name}");
    }
}

#[test]
fn the_claim_access_grants_what_it_says() {
    let maker = Maker::new(Algorithm::ES256);
    let access = json!([
        { "type": "repository", "name": "acme/app", "actions": ["pull", "push", "fly"] },
        { "type": "repository", "name": "../etc", "actions": ["pull"] },
        { "type": "registry", "name": "catalog", "actions": ["*"] },
        { "type": "moon", "name": "x", "actions": ["*"] },
    ]);
    let token = maker.token(&with(|c| c["access"] = access));
    let proven = verifier(maker.keys()).verify(&token, NOW).unwrap();
    let scopes = proven.access.unwrap();
    assert!(scopes.contains(&Scope::repository("acme/app", Actions::PULL.and(Actions::PUSH))));
    assert!(scopes.contains(&Scope::Catalog));
    for none in [json!([]), json!(null)] {
        let token = maker.token(&with(|c| c["access"] = none.clone()));
        let access = verifier(maker.keys()).verify(&token, NOW).unwrap().access;
        // Nothing granted is not the same as nothing said.
        assert_eq!(access, Some(Vec::new()), "{none}");
    }
    let proven = verifier(maker.keys()).verify(&maker.token(&claims()), NOW).unwrap();
    assert_eq!(proven.access, None, "nothing said");
    let entry = json!({ "type": "repository", "name": "a", "actions": ["pull"] });
    let token = maker.token(&with(|c| c["access"] = json!(vec![entry; 65])));
    assert_eq!(verifier(maker.keys()).verify(&token, NOW), Err(TokenError::Malformed));
}

#[test]
fn what_is_signed_here_is_believed_here_and_by_others() {
    let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
    let key = SigningKey::from_pem(pair.serialize_pem().as_bytes()).unwrap();
    let scopes = [Scope::repository("acme/app", Actions::PULL)];
    let grant = Grant {
        issuer: "https://issuer.test",
        audience: "edge",
        customer: Some("acme"),
        access: Some(&scopes),
        now_unix_s: NOW,
        life_s: 300,
        id: "1",
    };
    let token = key.sign(&grant).unwrap();
    let proven = verifier(key.public().clone()).verify(&token, NOW).unwrap();
    assert_eq!(proven.customer.as_deref(), Some("acme"));
    assert_eq!(proven.access.as_deref(), Some(&scopes[..]));
    let mut validation = jsonwebtoken::Validation::new(Algorithm::EdDSA);
    validation.set_audience(&["edge"]);
    validation.validate_exp = false;
    let theirs = jsonwebtoken::DecodingKey::from_ed_der(pair.der_bytes());
    jsonwebtoken::decode::<Value>(&token, &theirs, &validation).unwrap();
    // Nobody's token is only taken of who may give such.
    let nobody = key.sign(&Grant { customer: None, ..grant }).unwrap();
    let mut verifier = verifier(key.public().clone());
    assert_eq!(verifier.verify(&nobody, NOW), Err(TokenError::Customer));
    verifier.issuers[0].nobody_too = true;
    assert_eq!(verifier.verify(&nobody, NOW).unwrap().customer, None);
}

#[test]
fn files_without_a_usable_key_are_refused() {
    let maker = Maker::new(Algorithm::EdDSA);
    let pem = |bytes: &str| KeySet::from_pem(bytes.as_bytes()).unwrap_err();
    assert_eq!(pem(""), crate::KeyError::NoKey);
    assert_eq!(pem(&maker.pair.serialize_pem()), crate::KeyError::Private);
    let other = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    assert!(matches!(pem(&other.public_key_pem()), crate::KeyError::Unsupported(_)));
    let jwks = |value: Value| KeySet::from_jwks(value.to_string().as_bytes()).unwrap_err();
    assert_eq!(jwks(json!({ "keys": [] })), crate::KeyError::NoKey);
    assert_eq!(jwks(json!({ "keys": [{ "kty": "oct", "k": "AA" }] })), crate::KeyError::NoKey);
    let mut private = jwk(&maker, None);
    private["d"] = "AA".into();
    assert_eq!(jwks(private), crate::KeyError::Private);
    let short = json!({ "kty": "RSA", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB" });
    assert!(matches!(jwks(short), crate::KeyError::Unsupported(_)));
    let mut damaged = jwk(&maker, None);
    damaged["x"] = "AA".into();
    assert_eq!(jwks(damaged), crate::KeyError::Damaged);
    let many = json!({ "keys": vec![jwk(&maker, None); 65] });
    assert_eq!(jwks(many), crate::KeyError::TooLarge);
    // More than are tried on one token that cannot say which.
    let pems = |count: usize| {
        let makers = (0..count).map(|_| Maker::new(Algorithm::EdDSA));
        makers.map(|maker| maker.pair.public_key_pem()).collect::<String>()
    };
    assert_eq!(KeySet::from_pem(pems(4).as_bytes()).unwrap().len(), 4);
    assert_eq!(pem(&pems(5)), crate::KeyError::Unnamed);
    let five = json!({ "keys": vec![jwk(&maker, None); 5] });
    let four = KeySet::from_jwks(five.to_string().as_bytes()).unwrap();
    assert_eq!((four.len(), four.passed_over().len()), (4, 1));
    let named = (0..64).map(|kid| jwk(&maker, Some(&kid.to_string()))).collect::<Vec<_>>();
    let named = KeySet::from_jwks(json!({ "keys": named }).to_string().as_bytes()).unwrap();
    assert_eq!(named.len(), 64);
    // For something else.
    let mut enc = jwk(&maker, None);
    enc["use"] = "enc".into();
    assert_eq!(jwks(enc), crate::KeyError::NoKey);
}

#[test]
fn keys_of_a_set_that_cannot_be_used_are_passed_over_and_said() {
    let maker = Maker::new(Algorithm::ES256);
    let short = json!({ "kty": "RSA", "kid": "old", "n": URL_SAFE_NO_PAD.encode([0xff; 128]), "e": "AQAB" });
    let mut damaged = jwk(&maker, None);
    damaged["x"] = "AA".into();
    let set = json!({ "keys": [short, jwk(&maker, Some("good")), damaged, { "kty": "oct" }] });
    let keys = KeySet::from_jwks(set.to_string().as_bytes()).unwrap();
    assert_eq!(keys.len(), 1);
    verifier(keys.clone()).verify(&maker.token(&claims()), NOW).unwrap();
    let said = keys.passed_over();
    assert_eq!(said.len(), 2, "what is of another kind is nobody's mistake: {said:?}");
    assert!(said[0].contains("\"old\"") && said[0].contains("too short"), "{said:?}");
    assert!(said[1].contains("number 3") && said[1].contains("damaged"), "{said:?}");
}

proptest! {
    #[test]
    fn one_changed_byte_is_noticed(at in 0_usize..400, to in any::<u8>()) {
        let pair = KeyPair::generate_for(&PKCS_ED25519).unwrap();
        let maker = Maker { pair, algorithm: Algorithm::EdDSA };
        let verifier = verifier(maker.keys());
        let good = maker.token(&claims());
        let mut bytes = good.clone().into_bytes();
        let at = at % bytes.len();
        bytes[at] = to;
        if let Ok(changed) = String::from_utf8(bytes) && changed != good {
            prop_assert!(verifier.verify(&changed, NOW).is_err());
        }
    }
}
