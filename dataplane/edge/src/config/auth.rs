//! `[auth]`: who may do what.

use std::path::PathBuf;

use outrider_tokens::rules::Pattern;
use outrider_tokens::{Rule, is_customer};
use serde::{Deserialize, Serialize};
use url::Url;

use super::{Invalid, bounded};
use crate::units::{Size, Span};

/// The most issuers.
const ISSUERS_MAX: usize = 32;
/// The most customers with rules of their own.
const CUSTOMERS_MAX: usize = 10_000;
/// The most rules or patterns in one list.
const RULES_MAX: usize = 256;
/// The longest service, and the longest name of an issuer.
const NAME_BYTES_MAX: usize = 255;

/// Who may do what. Without `service` everybody who reaches the edge may do everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AuthSection {
    /// What the edge is called in tokens (`aud`), for example its host. With it, who asks is asked who they are.
    pub service: Option<String>,
    /// The address at which clients get tokens. Default: the edge's own, `/token`.
    pub realm: Option<String>,
    /// What anybody may do: rules such as `pull:library/**`. Default nothing.
    pub anonymous: Vec<String>,
    /// Whether requests that come from this machine without a token may do everything. A proxy on this machine
    /// makes everybody's requests such. Default false.
    pub loopback: bool,
    /// What the clocks of issuers may differ by. Default 60s.
    pub leeway: Span,
    /// How long the edge's own tokens last. Default 5m.
    pub token_life: Span,
    /// The secrets that customers log in with: a line each, as `outrider secret` writes them.
    pub secrets_file: Option<PathBuf>,
    /// How often it is looked whether files of keys and secrets have changed. Default 5s.
    pub reload: Span,
    /// How often keys are fetched from addresses. Default 5m.
    pub jwks_refresh: Span,
    /// Where decisions are written, a line of JSON each. Default: the log, with the target `audit`.
    pub audit_file: Option<PathBuf>,
    /// At this size a new file is begun. Default 64MiB.
    pub audit_file_max: Size,
    /// So many old ones are kept. Default 4.
    pub audit_files_kept: u32,
    /// `[[auth.issuer]]`: whose tokens are believed.
    pub issuer: Vec<IssuerSection>,
    /// `[[auth.customer]]`: what customers may do whose tokens do not say it.
    pub customer: Vec<CustomerSection>,
}

impl Default for AuthSection {
    fn default() -> Self {
        Self {
            service: None,
            realm: None,
            anonymous: Vec::new(),
            loopback: false,
            leeway: Span::s(60),
            token_life: Span::s(300),
            secrets_file: None,
            reload: Span::s(5),
            jwks_refresh: Span::s(300),
            audit_file: None,
            audit_file_max: Size::mib(64),
            audit_files_kept: 4,
            issuer: Vec::new(),
            customer: Vec::new(),
        }
    }
}

/// Whose tokens are believed. One of `key_file`, `jwks_file` and `jwks_url` says by which keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuerSection {
    /// The claim `iss`.
    pub name: String,
    /// What must be in the claim `aud`. Default `auth.service`.
    #[serde(default)]
    pub audience: Option<String>,
    /// Public keys in PEM.
    #[serde(default)]
    pub key_file: Option<PathBuf>,
    /// A key set in JSON.
    #[serde(default)]
    pub jwks_file: Option<PathBuf>,
    /// Where a key set is fetched.
    #[serde(default)]
    pub jwks_url: Option<Url>,
    /// Certificates (PEM) to trust there besides the system's.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
}

/// What a customer may do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CustomerSection {
    /// What it is called: the claim `customer`, or `sub`.
    pub name: String,
    /// Rules, such as `pull,push:acme/**`. Default none.
    #[serde(default)]
    pub allow: Vec<String>,
    /// Patterns of repositories whose anonymous requests are counted as its own. Default none.
    #[serde(default)]
    pub repositories: Vec<String>,
}

impl AuthSection {
    pub(super) fn check(&self) -> Result<(), Invalid> {
        let Some(service) = &self.service else {
            if *self == Self::default() {
                return Ok(());
            }
            return Err(Invalid::new(
                "auth.service",
                "",
                "there are other keys of [auth], and without it nobody is asked who they are",
                "write what the edge is called, for example \"edge.example.com\", or leave [auth] out",
            ));
        };
        let fits = |b: u8| b.is_ascii_alphanumeric() || b".-_:".contains(&b);
        if !(1..=NAME_BYTES_MAX).contains(&service.len()) || !service.bytes().all(fits) {
            return Err(Invalid::new(
                "auth.service",
                service,
                "it is 1 to 255 of the characters A-Z, a-z, 0-9, '.', '-', '_' and ':'",
                "write the edge's host, for example \"edge.example.com\"",
            ));
        }
        if let Some(realm) = &self.realm {
            check_address("auth.realm", &Url::parse(realm).ok(), realm)?;
        }
        bounded("auth.leeway", self.leeway, Span::s(0), Span::s(600))?;
        bounded("auth.token_life", self.token_life, Span::s(60), Span::s(86_400))?;
        bounded("auth.reload", self.reload, Span::ms(100), Span::s(3_600))?;
        bounded("auth.jwks_refresh", self.jwks_refresh, Span::s(1), Span::s(86_400))?;
        bounded("auth.audit_file_max", self.audit_file_max, Size(64 << 10), Size::gib(16))?;
        bounded("auth.audit_files_kept", self.audit_files_kept, 0, 1_000)?;
        check_rules("auth.anonymous", &self.anonymous)?;
        bounded("auth.issuer", self.issuer.len(), 0, ISSUERS_MAX)?;
        bounded("auth.customer", self.customer.len(), 0, CUSTOMERS_MAX)?;
        for (index, issuer) in self.issuer.iter().enumerate() {
            issuer.check(index)?;
            if self.issuer[..index].iter().any(|other| other.name == issuer.name) {
                return Err(twice(&format!("auth.issuer[{index}].name"), &issuer.name));
            }
        }
        let mut names = std::collections::HashSet::new();
        for (index, customer) in self.customer.iter().enumerate() {
            let key = |field: &str| format!("auth.customer[{index}].{field}");
            if !is_customer(&customer.name) {
                return Err(Invalid::new(
                    key("name"),
                    &customer.name,
                    "a customer is called by 1 to 128 bytes without spaces",
                    "write the subject of its tokens",
                ));
            }
            if !names.insert(&customer.name) {
                return Err(twice(&key("name"), &customer.name));
            }
            check_rules(&key("allow"), &customer.allow)?;
            bounded(&key("repositories"), customer.repositories.len(), 0, RULES_MAX)?;
            for pattern in &customer.repositories {
                pattern.parse::<Pattern>().map_err(|error| {
                    Invalid::new(
                        key("repositories"),
                        pattern,
                        error.to_string(),
                        "write for example \"acme/**\"",
                    )
                })?;
            }
        }
        Ok(())
    }

    /// The rules of a list that was checked.
    pub(crate) fn rules(texts: &[String]) -> Vec<Rule> {
        texts.iter().filter_map(|text| text.parse().ok()).collect()
    }
}

impl IssuerSection {
    fn check(&self, index: usize) -> Result<(), Invalid> {
        let key = |field: &str| format!("auth.issuer[{index}].{field}");
        let name = &self.name;
        let is_own = name.starts_with(outrider_gateway::access::OWN_ISSUER);
        if !(1..=NAME_BYTES_MAX).contains(&name.len()) || is_own {
            return Err(Invalid::new(
                key("name"),
                name,
                "it is 1 to 255 bytes and does not begin with \"outrider:\", as the edge's own tokens do",
                "write the claim iss of its tokens",
            ));
        }
        let given = [self.key_file.is_some(), self.jwks_file.is_some(), self.jwks_url.is_some()];
        if given.iter().filter(|given| **given).count() != 1 {
            return Err(Invalid::new(
                key("key_file"),
                name,
                "an issuer has its keys from one place",
                "write one of key_file, jwks_file and jwks_url",
            ));
        }
        if let Some(url) = &self.jwks_url {
            check_address(&key("jwks_url"), &Some(url.clone()), url.as_str())?;
        }
        if self.ca_file.is_some() && self.jwks_url.is_none() {
            return Err(Invalid::new(
                key("ca_file"),
                name,
                "it is for jwks_url, which is not there",
                "leave it out",
            ));
        }
        Ok(())
    }
}

fn twice(key: &str, name: &str) -> Invalid {
    Invalid::new(key.to_owned(), name, "it stands there twice", "write it once")
}

fn check_rules(key: &str, rules: &[String]) -> Result<(), Invalid> {
    bounded(key, rules.len(), 0, RULES_MAX)?;
    for rule in rules {
        rule.parse::<Rule>().map_err(|error| {
            Invalid::new(key, rule, error.to_string(), "write for example \"pull:library/**\"")
        })?;
    }
    Ok(())
}

/// What is not of this machine is reached by https alone: whoever is between could give other keys, or take secrets.
fn check_address(key: &str, url: &Option<Url>, shown: &str) -> Result<(), Invalid> {
    let is_fit = url.as_ref().is_some_and(|url| {
        let is_here = match url.host() {
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            Some(url::Host::Domain(name)) => name == "localhost",
            None => false,
        };
        let plain = url.username().is_empty() && url.password().is_none();
        plain && (url.scheme() == "https" || (url.scheme() == "http" && is_here))
    });
    if is_fit {
        return Ok(());
    }
    let shown = if shown.contains('@') { "the address" } else { shown };
    Err(Invalid::new(
        key.to_owned(),
        shown,
        "it is no https address (http is for this machine alone), or has a user's name in it",
        "write https://HOST/PATH",
    ))
}
