//! A registry that is mirrored: `[[upstream]]` in the file, `--upstream` on the command line.

use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, de};
use url::Url;

use outrider_uplink::{BreakerConfig, UpstreamConfig, WINDOW_BYTES_RANGE};

use super::Invalid;
use super::bounded;
use crate::units::{Size, Span};

/// The longest NAME of an upstream: the longest host name of DNS.
const UPSTREAM_NAME_LENGTH_MAX: usize = 253;
/// The most fetches, and the most waiters, that may be configured.
const CONCURRENCY_MAX: usize = 65_536;

/// One `[[upstream]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Upstream {
    /// Under which name it is reached, as `/v2/NAME/…` and as `?ns=NAME`. Without one it is mirrored at
    /// the root; at most one upstream is.
    #[serde(default)]
    pub name: Option<String>,
    /// Where it is: `https://HOST` or `http://HOST`, with a port if need be, and a path if its API is not
    /// at the root of its host (`/v2/…` follows it).
    #[serde(deserialize_with = "deserialize_url")]
    pub url: Url,
    /// Certificates (PEM) to trust besides the system's. Default none.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The user to log in as. Default none: anonymous.
    #[serde(default)]
    pub username: Option<String>,
    /// A file with the password (or access token) on its first line.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// How long one connection may take, name lookup and TLS included. Default 3s.
    #[serde(default = "connect_timeout")]
    pub connect_timeout: Span,
    /// From a request to the head of its answer. Default 10s.
    #[serde(default = "head_timeout")]
    pub head_timeout: Span,
    /// How long no byte of a body may come, while somebody wants more of it. Default 15s.
    #[serde(default = "idle_timeout")]
    pub idle_timeout: Span,
    /// Blobs fetched from it at a time; manifests have a lane of their own. Default 64.
    #[serde(default = "fetches_max")]
    pub fetches_max: usize,
    /// Fetches that may wait for a place in each lane; more are refused as busy. Default 256.
    #[serde(default = "waiters_max")]
    pub waiters_max: usize,
    /// How much of one body may be under way between it and its reader. Default 1MiB.
    #[serde(default = "window_bytes")]
    pub window_bytes: Size,
    /// How long its tags are answered without asking it again. Default `tags.ttl`.
    #[serde(default)]
    pub tag_ttl: Option<Span>,
    /// How long its content stays without being used: what is older goes first. 1m to 30d. Default none: it stays
    /// while there is room.
    #[serde(default)]
    pub content_ttl: Option<Span>,
    /// `[upstream.breaker]`: when it is left alone.
    #[serde(default)]
    pub breaker: Breaker,
}

/// When an upstream that fails is left alone, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Breaker {
    /// Failures in a row after which it is. Default 5.
    pub failures_max: u32,
    /// For how long at first; twice as long each time that it fails again. Default 1s.
    pub open_min: Span,
    /// For how long at most. Default 1m.
    pub open_max: Span,
    /// The longest `Retry-After` of its that is respected. Default 5m.
    pub retry_after_max: Span,
}

impl Default for Breaker {
    fn default() -> Self {
        let defaults = BreakerConfig::default();
        Breaker {
            failures_max: defaults.failures_max,
            open_min: Span(defaults.open_min),
            open_max: Span(defaults.open_max),
            retry_after_max: Span(defaults.retry_after_max),
        }
    }
}

const fn connect_timeout() -> Span {
    Span(outrider_uplink::CONNECT_TIMEOUT)
}
const fn head_timeout() -> Span {
    Span(outrider_uplink::HEAD_TIMEOUT)
}
const fn idle_timeout() -> Span {
    Span(outrider_uplink::IDLE_TIMEOUT)
}
const fn fetches_max() -> usize {
    outrider_uplink::FETCHES_MAX
}
const fn waiters_max() -> usize {
    outrider_uplink::WAITERS_MAX
}
const fn window_bytes() -> Size {
    Size(outrider_uplink::WINDOW_BYTES as u64)
}

/// One `--upstream URL` or `--upstream NAME=URL`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UpstreamArgument {
    /// NAME, if given.
    pub name: Option<String>,
    /// URL.
    pub url: Url,
}

impl FromStr for UpstreamArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<UpstreamArgument, String> {
        let (name, address) = match text.split_once('=') {
            // A '=' inside of the URL is part of it, and refused there with a better reason.
            Some((name, address)) if !name.contains("://") => (Some(name), address),
            _ => (None, text),
        };
        if let Some(name) = name {
            check_name(name)
                .map_err(|(why, remedy)| format!("the name {name:?}: {why}; {remedy}"))?;
        }
        if !address.contains("://") {
            let example = address.is_empty() || may_be_secret(address);
            let host = if example { "registry.example.com" } else { address };
            let (name, shown) = (name.map(|n| format!("{n}=")).unwrap_or_default(), shown(address));
            return Err(format!("{shown} has no scheme; write {name}https://{host}"));
        }
        let url = parse_url(address)?;
        check_url(&url).map_err(|(why, remedy)| format!("{why}; {remedy}"))?;
        Ok(UpstreamArgument { name: name.map(str::to_owned), url })
    }
}

/// What stands before an '@' may be a password, which must not end up on a screen or in a log.
fn may_be_secret(address: &str) -> bool {
    address.contains('@')
}

fn shown(address: &str) -> String {
    if may_be_secret(address) { "the address".to_owned() } else { format!("{address:?}") }
}

fn parse_url(address: &str) -> Result<Url, String> {
    Url::parse(address).map_err(|error| {
        let shown = shown(address);
        format!("{shown} is not a URL ({error}); write for example https://registry.example.com")
    })
}

fn deserialize_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    parse_url(&String::deserialize(deserializer)?).map_err(de::Error::custom)
}

impl From<UpstreamArgument> for Upstream {
    fn from(argument: UpstreamArgument) -> Upstream {
        Upstream {
            name: argument.name,
            url: argument.url,
            ca_file: None,
            username: None,
            password_file: None,
            connect_timeout: connect_timeout(),
            head_timeout: head_timeout(),
            idle_timeout: idle_timeout(),
            fetches_max: fetches_max(),
            waiters_max: waiters_max(),
            window_bytes: window_bytes(),
            tag_ttl: None,
            content_ttl: None,
            breaker: Breaker::default(),
        }
    }
}

impl Upstream {
    pub(super) fn check(&self, index: usize) -> Result<(), Invalid> {
        let key = |field: &str| format!("upstream[{index}].{field}");
        if let Some(name) = &self.name {
            check_name(name)
                .map_err(|(why, remedy)| Invalid::new(key("name"), name, why, remedy))?;
        }
        check_url(&self.url).map_err(|(why, remedy)| {
            let shown = match self.url.host_str() {
                Some(host) => format!("{}://{host}", self.url.scheme()),
                None => shown(self.url.as_str()),
            };
            Invalid::new(key("url"), shown, why, remedy)
        })?;
        match (&self.username, &self.password_file) {
            (Some(username), None) => {
                return Err(Invalid::new(
                    key("username"),
                    username,
                    "there is no password_file beside it",
                    "name a file with the password on its first line",
                ));
            }
            (None, Some(file)) => {
                return Err(Invalid::new(
                    key("password_file"),
                    file.display(),
                    "there is no username beside it",
                    "name the user whose password it is",
                ));
            }
            _ => {}
        }
        if let Some(username) = &self.username
            && (username.is_empty() || username.contains(':'))
        {
            return Err(Invalid::new(
                key("username"),
                username,
                "a user's name is not empty and has no colon",
                "write the name alone; the password stands in password_file",
            ));
        }
        let (least, most) = (Span::ms(1), Span::s(3_600));
        bounded(&key("connect_timeout"), self.connect_timeout, least, most)?;
        bounded(&key("head_timeout"), self.head_timeout, least, most)?;
        bounded(&key("idle_timeout"), self.idle_timeout, least, most)?;
        bounded(&key("fetches_max"), self.fetches_max, 1, CONCURRENCY_MAX)?;
        bounded(&key("waiters_max"), self.waiters_max, 0, CONCURRENCY_MAX)?;
        let window = (*WINDOW_BYTES_RANGE.start() as u64, *WINDOW_BYTES_RANGE.end() as u64);
        bounded(&key("window_bytes"), self.window_bytes, Size(window.0), Size(window.1))?;
        if let Some(ttl) = self.tag_ttl {
            bounded(&key("tag_ttl"), ttl, Span::s(0), Span::s(365 * 86_400))?;
        }
        if let Some(ttl) = self.content_ttl {
            bounded(&key("content_ttl"), ttl, Span::s(60), Span::s(30 * 86_400))?;
        }
        let breaker = &self.breaker;
        bounded(&key("breaker.failures_max"), breaker.failures_max, 1, u32::MAX)?;
        bounded(&key("breaker.open_min"), breaker.open_min, least, most)?;
        bounded(&key("breaker.open_max"), breaker.open_max, breaker.open_min, most)?;
        bounded(&key("breaker.retry_after_max"), breaker.retry_after_max, Span::s(0), most)
    }

    /// Host, and port where it is not the scheme's own.
    #[must_use]
    pub fn host(&self) -> String {
        let host = self.url.host_str().unwrap_or_default().to_ascii_lowercase();
        match self.url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host,
        }
    }

    /// What the uplink is told.
    #[must_use]
    pub fn to_uplink(&self) -> UpstreamConfig {
        UpstreamConfig {
            name: self.name.clone(),
            url: self.url.clone(),
            ca_file: self.ca_file.clone(),
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            connect_timeout: self.connect_timeout.0,
            head_timeout: self.head_timeout.0,
            idle_timeout: self.idle_timeout.0,
            fetches_max: self.fetches_max,
            waiters_max: self.waiters_max,
            // Bounded by WINDOW_BYTES_RANGE, which is made of usize.
            window_bytes: usize::try_from(self.window_bytes.0).unwrap_or(usize::MAX),
            breaker: BreakerConfig {
                failures_max: self.breaker.failures_max,
                open_min: self.breaker.open_min.0,
                open_max: self.breaker.open_max.0,
                retry_after_max: self.breaker.retry_after_max.0,
            },
        }
    }
}

/// NAME is a host, with a port if it has one (what containerd sends as `?ns=`), or one component of a
/// repository's path.
fn check_name(name: &str) -> Result<(), (&'static str, &'static str)> {
    if name.is_empty() {
        return Err(("it is empty", "write NAME=URL, or only URL to mirror at the root"));
    }
    let (host, port) = match name.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (name, None),
    };
    let port_fits = port.is_none_or(|p| p.parse::<u16>().is_ok_and(|p| p > 0));
    if name.len() > UPSTREAM_NAME_LENGTH_MAX || !port_fits || !(is_component(host) || is_host(host))
    {
        return Err((
            "a name is a host such as \"registry.example.com\" or \"localhost:5000\", or one component of \
             a repository such as \"hub\": a-z, 0-9, and '.', '_' or '-' between them",
            "write it in lower case, without scheme and without '/'",
        ));
    }
    Ok(())
}

/// One component of a repository name, by the grammar of the OCI distribution specification.
fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let alphanumeric = |b: &u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !bytes.first().is_some_and(alphanumeric) || !bytes.last().is_some_and(alphanumeric) {
        return false;
    }
    // Between two runs of letters and digits: one '.', one or two '_', or any number of '-'.
    bytes.split(alphanumeric).all(|separator| match separator {
        b"" | b"." | b"_" | b"__" => true,
        dashes => dashes.iter().all(|b| *b == b'-'),
    })
}

/// A host name as DNS has them, in lower case.
pub(super) fn is_host(text: &str) -> bool {
    (1..=253).contains(&text.len())
        && text.split('.').all(|label| {
            (1..=63).contains(&label.len())
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-'))
        })
}

/// What the URL of an upstream may be; the reason and the remedy otherwise.
pub(super) fn check_url(url: &Url) -> Result<(), (&'static str, &'static str)> {
    if !matches!(url.scheme(), "http" | "https") {
        return Err(("the scheme must be https or http", "write https://HOST"));
    }
    if url.host_str().is_none_or(str::is_empty) {
        return Err(("it has no host", "write https://HOST"));
    }
    if !url.username().is_empty() || url.password().is_some() {
        return Err((
            "a user name or password does not belong into a URL",
            "use username and password_file of [[upstream]] in a configuration file (outrider edge --config)",
        ));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err((
            "it has a query or a fragment",
            "write only https://HOST, with a port if need be",
        ));
    }
    if matches!(url.host_str(), Some("docker.io" | "index.docker.io" | "hub.docker.com")) {
        return Err((
            "Docker Hub's registry has another host",
            "write https://registry-1.docker.io (with the name docker.io, if it has one)",
        ));
    }
    Ok(())
}
