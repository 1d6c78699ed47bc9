//! What an operator says about an upstream, with the defaults, and what is refused of it.
//!
//! Owns no connection and reads no file but the password's; secrets never appear in its `Debug`.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};
use url::Url;

use crate::error::UplinkError;

/// How many upstreams there may be: an [`UpstreamId`] has 16 bits, and each has pools of its own.
pub const UPSTREAMS_MAX: usize = 1024;

/// Default of [`UpstreamConfig::connect_timeout`].
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Default of [`UpstreamConfig::head_timeout`].
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// Default of [`UpstreamConfig::idle_timeout`].
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// Default of [`UpstreamConfig::fetches_max`].
pub const FETCHES_MAX: usize = 64;

/// Default of [`UpstreamConfig::waiters_max`].
pub const WAITERS_MAX: usize = 256;

/// Default of [`UpstreamConfig::window_bytes`].
pub const WINDOW_BYTES: usize = 1 << 20;

/// What [`UpstreamConfig::window_bytes`] may be. The lower end lets a TLS record of 16 KiB and the
/// next one be under way; the upper end keeps `fetches_max` windows within what an edge box has.
pub const WINDOW_BYTES_RANGE: std::ops::RangeInclusive<usize> = (64 << 10)..=(16 << 20);

/// The longest that any of the time limits may be.
const TIMEOUT_MAX: Duration = Duration::from_secs(3600);

/// The most of [`UpstreamConfig::fetches_max`] and [`UpstreamConfig::waiters_max`].
const CONCURRENCY_MAX: usize = 65_536;

/// The index of an upstream in the list that [`start`](crate::start) was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub u16);

/// One upstream registry. In TOML, durations are texts such as `"3s"` or `"500ms"`.
#[derive(Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpstreamConfig {
    /// Under which name clients reach it; `None` is the bare upstream, mirrored at the root.
    #[serde(default)]
    pub name: Option<String>,
    /// `http://` or `https://`, a host, perhaps a port and a path prefix (`/v2/…` follows it). User
    /// information, a query and a fragment are refused.
    #[serde(deserialize_with = "deserialize_url")]
    pub url: Url,
    /// Certificates (PEM) that are trusted for this upstream besides the system's own.
    #[serde(default)]
    pub ca_file: Option<PathBuf>,
    /// The user for Basic authentication and for token requests. Needs `password_file`.
    #[serde(default)]
    pub username: Option<String>,
    /// A file whose first line is the password. It is read again for each token request, so that
    /// it may be rotated. Needs `username`.
    #[serde(default)]
    pub password_file: Option<PathBuf>,
    /// Time for the name lookup, TCP and TLS of one connection (3 s).
    #[serde(default = "connect_timeout", deserialize_with = "deserialize_duration")]
    pub connect_timeout: Duration,
    /// Time from a request to the head of its answer (10 s), on top of `connect_timeout` when a
    /// connection has to be made. A whole fetch, with its tokens and redirects, has three times
    /// both together.
    #[serde(default = "head_timeout", deserialize_with = "deserialize_duration")]
    pub head_timeout: Duration,
    /// The longest silence inside a body (15 s). Time in which the reader takes nothing does not
    /// count.
    #[serde(default = "idle_timeout", deserialize_with = "deserialize_duration")]
    pub idle_timeout: Duration,
    /// How many blobs are fetched at a time (64). Manifests have a lane of their own, a quarter as
    /// wide and at least four, so that they never wait behind blobs.
    #[serde(default = "fetches_max")]
    pub fetches_max: usize,
    /// How many fetches may wait for a place in each lane (256); more are refused as busy.
    #[serde(default = "waiters_max")]
    pub waiters_max: usize,
    /// How much of one body may be under way between the origin's socket and the reader (1 MiB).
    #[serde(default = "window_bytes")]
    pub window_bytes: usize,
    /// When to stop asking an upstream that fails.
    #[serde(default)]
    pub breaker: BreakerConfig,
}

/// When a circuit breaker opens, and for how long. There is one for the manifests of an upstream
/// and one for its blobs.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakerConfig {
    /// Failures in a row that open it (5).
    #[serde(default = "failures_max")]
    pub failures_max: u32,
    /// How long it is open at first (1 s); doubled each time that the probe fails.
    #[serde(default = "open_min", deserialize_with = "deserialize_duration")]
    pub open_min: Duration,
    /// How long it is open at most (60 s).
    #[serde(default = "open_max", deserialize_with = "deserialize_duration")]
    pub open_max: Duration,
    /// The longest `Retry-After` that is respected (5 min).
    #[serde(default = "retry_after_max", deserialize_with = "deserialize_duration")]
    pub retry_after_max: Duration,
}

impl Default for BreakerConfig {
    fn default() -> Self {
        Self {
            failures_max: failures_max(),
            open_min: open_min(),
            open_max: open_max(),
            retry_after_max: retry_after_max(),
        }
    }
}

const fn failures_max() -> u32 {
    5
}
const fn open_min() -> Duration {
    Duration::from_secs(1)
}
const fn open_max() -> Duration {
    Duration::from_secs(60)
}
const fn retry_after_max() -> Duration {
    Duration::from_secs(300)
}
const fn connect_timeout() -> Duration {
    CONNECT_TIMEOUT
}
const fn head_timeout() -> Duration {
    HEAD_TIMEOUT
}
const fn idle_timeout() -> Duration {
    IDLE_TIMEOUT
}
const fn fetches_max() -> usize {
    FETCHES_MAX
}
const fn waiters_max() -> usize {
    WAITERS_MAX
}
const fn window_bytes() -> usize {
    WINDOW_BYTES
}

impl UpstreamConfig {
    /// An upstream with the defaults.
    ///
    /// # Errors
    /// [`UplinkError::Url`] as by [`parse_url`].
    pub fn new(name: Option<&str>, url: &str) -> Result<Self, UplinkError> {
        Ok(Self {
            name: name.map(str::to_owned),
            url: parse_url(url)?,
            ca_file: None,
            username: None,
            password_file: None,
            connect_timeout: CONNECT_TIMEOUT,
            head_timeout: HEAD_TIMEOUT,
            idle_timeout: IDLE_TIMEOUT,
            fetches_max: FETCHES_MAX,
            waiters_max: WAITERS_MAX,
            window_bytes: WINDOW_BYTES,
            breaker: BreakerConfig::default(),
        })
    }

    /// What it is called in messages, metrics and the status: its name, or the host (and port) of
    /// the bare upstream.
    pub fn label(&self) -> String {
        match &self.name {
            Some(name) => name.clone(),
            None => authority(&self.url),
        }
    }

    /// Checks what the types do not: [`start`](crate::start) does this too.
    ///
    /// # Errors
    /// [`UplinkError::Url`] and [`UplinkError::Setting`], naming the upstream and the key.
    pub fn check(&self) -> Result<(), UplinkError> {
        check_url(&self.url)?;
        let wrong = |key: &'static str, reason: &str| UplinkError::Setting {
            upstream: self.label(),
            key,
            reason: reason.to_owned(),
        };
        if self.username.is_some() != self.password_file.is_some() {
            return Err(wrong("username", "username and password_file are given both or neither"));
        }
        if self.username.as_ref().is_some_and(|user| user.contains(':') || user.is_empty()) {
            return Err(wrong("username", "a user's name is not empty and has no colon"));
        }
        for (key, value) in [
            ("connect_timeout", self.connect_timeout),
            ("head_timeout", self.head_timeout),
            ("idle_timeout", self.idle_timeout),
            ("breaker.open_min", self.breaker.open_min),
            ("breaker.open_max", self.breaker.open_max),
        ] {
            if value.is_zero() || value > TIMEOUT_MAX {
                return Err(wrong(key, "a time limit is longer than nothing and at most one hour"));
            }
        }
        if self.breaker.open_max < self.breaker.open_min {
            return Err(wrong("breaker.open_max", "it is less than open_min"));
        }
        if self.breaker.retry_after_max > TIMEOUT_MAX {
            return Err(wrong("breaker.retry_after_max", "it is at most one hour"));
        }
        if self.breaker.failures_max == 0 {
            return Err(wrong("breaker.failures_max", "it is at least 1"));
        }
        if !(1..=CONCURRENCY_MAX).contains(&self.fetches_max) {
            return Err(wrong("fetches_max", "it is between 1 and 65536"));
        }
        if self.waiters_max > CONCURRENCY_MAX {
            return Err(wrong("waiters_max", "it is at most 65536"));
        }
        if !WINDOW_BYTES_RANGE.contains(&self.window_bytes) {
            return Err(wrong("window_bytes", "it is between 65536 and 16777216"));
        }
        Ok(())
    }
}

/// The URL without what may be secret in it.
fn redacted(url: &Url) -> String {
    format!("{}://{}{}", url.scheme(), authority(url), url.path())
}

/// Host, and port where it is not the scheme's own.
pub(crate) fn authority(url: &Url) -> String {
    match (url.host_str(), url.port()) {
        (Some(host), Some(port)) => format!("{host}:{port}"),
        (Some(host), None) => host.to_owned(),
        (None, _) => String::new(),
    }
}

impl fmt::Debug for UpstreamConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamConfig")
            .field("name", &self.name)
            .field("url", &redacted(&self.url))
            .field("ca_file", &self.ca_file)
            .field("username", &self.username)
            .field("password_file", &self.password_file)
            .field("connect_timeout", &self.connect_timeout)
            .field("head_timeout", &self.head_timeout)
            .field("idle_timeout", &self.idle_timeout)
            .field("fetches_max", &self.fetches_max)
            .field("waiters_max", &self.waiters_max)
            .field("window_bytes", &self.window_bytes)
            .field("breaker", &self.breaker)
            .finish()
    }
}

/// Reads the URL of an upstream.
///
/// # Errors
/// [`UplinkError::Url`], whose text never repeats the URL when it might hold a password.
pub fn parse_url(text: &str) -> Result<Url, UplinkError> {
    let url = Url::parse(text).map_err(|error| UplinkError::Url(error.to_string()))?;
    check_url(&url)?;
    Ok(url)
}

fn check_url(url: &Url) -> Result<(), UplinkError> {
    let refuse = |reason: &str| Err(UplinkError::Url(reason.to_owned()));
    if !url.username().is_empty() || url.password().is_some() {
        return refuse(
            "it holds a user or a password, which would end up in logs: \
             use the keys username and password_file",
        );
    }
    if !matches!(url.scheme(), "http" | "https") {
        return refuse("it begins with http:// or https://");
    }
    if url.host_str().is_none_or(str::is_empty) {
        return refuse("it has no host");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("it has a query or a fragment");
    }
    Ok(())
}

fn deserialize_url<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Url, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_url(&text).map_err(de::Error::custom)
}

fn deserialize_duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(deserializer)?;
    parse_duration(&text).ok_or_else(|| {
        de::Error::custom(format!(
            "{text:?} is not a duration: write a number and a unit (ms, s, m, h), for example \"3s\""
        ))
    })
}

/// `"500ms"`, `"3s"`, `"5m"`, `"1h"`.
fn parse_duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    // `ms` before `m` and `s`, since it ends like them.
    [("ms", 1), ("s", 1_000), ("m", 60_000), ("h", 3_600_000)].iter().find_map(|(suffix, ms)| {
        let number = text.strip_suffix(suffix)?.trim_end();
        let digits = !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit());
        let count: u64 = digits.then(|| number.parse().ok()).flatten()?;
        Some(Duration::from_millis(count.checked_mul(*ms)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_alone_is_an_upstream_with_the_documented_defaults() {
        let config: UpstreamConfig = toml::from_str("url = 'https://ghcr.io'").unwrap();
        config.check().unwrap();
        assert_eq!(config.label(), "ghcr.io");
        assert_eq!(config.connect_timeout, Duration::from_secs(3));
        assert_eq!(config.head_timeout, Duration::from_secs(10));
        assert_eq!(config.idle_timeout, Duration::from_secs(15));
        assert_eq!(config.breaker.failures_max, 5);
        assert_eq!(config.breaker.open_min, Duration::from_secs(1));
        assert_eq!(config.breaker.open_max, Duration::from_secs(60));
        assert_eq!(config.breaker.retry_after_max, Duration::from_secs(300));
        let built = UpstreamConfig::new(None, "https://ghcr.io").unwrap();
        assert_eq!(format!("{built:?}"), format!("{config:?}"));
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let error = toml::from_str::<UpstreamConfig>("url = 'https://a.b'\nurll = 1").unwrap_err();
        assert!(error.to_string().contains("urll"), "{error}");
        let error = toml::from_str::<UpstreamConfig>("url = 'https://a.b'\nbreaker.opn = 1");
        assert!(error.unwrap_err().to_string().contains("opn"));
    }

    #[test]
    fn a_password_in_the_url_is_refused_without_being_repeated() {
        let error = toml::from_str::<UpstreamConfig>("url = 'https://me:hunter2@a.b'").unwrap_err();
        assert!(error.message().contains("password_file"), "{error}");
        assert!(!error.message().contains("hunter2"), "{error}");
        for text in ["https://me:hunter2@a.b", "https://me@a.b", "https://:hunter2@a.b"] {
            let error = parse_url(text).unwrap_err().to_string();
            assert!(error.contains("password_file") && !error.contains("hunter2"), "{error}");
        }
        let mut config = UpstreamConfig::new(None, "https://a.b").unwrap();
        config.url.set_password(Some("hunter2")).unwrap();
        assert!(config.check().is_err());
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn urls_that_cannot_be_an_upstream_are_refused() {
        for text in
            ["ftp://a.b", "a.b", "https://", "https://a.b/?x", "https://a.b/#x", "http:///x"]
        {
            // `http:///x` is read as the host `x`, by the URL standard.
            assert_eq!(parse_url(text).is_ok(), text == "http:///x", "{text}");
        }
        assert!(parse_url("http://127.0.0.1:5000/mirror/").is_ok());
    }

    #[test]
    fn durations_have_a_unit() {
        assert_eq!(parse_duration("500ms"), Some(Duration::from_millis(500)));
        assert_eq!(parse_duration(" 3 s"), Some(Duration::from_secs(3)));
        assert_eq!(parse_duration("5m"), Some(Duration::from_secs(300)));
        for wrong in ["", "s", "3", "-3s", "3.5s", "3 days", "99999999999999999999s", "+3s"] {
            assert_eq!(parse_duration(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn settings_out_of_range_name_their_key() {
        let good = UpstreamConfig::new(Some("x"), "https://a.b").unwrap();
        let wrong = |change: fn(&mut UpstreamConfig)| {
            let mut config = good.clone();
            change(&mut config);
            config.check().unwrap_err().to_string()
        };
        assert!(wrong(|c| c.username = Some("me".into())).contains("password_file"));
        assert!(wrong(|c| c.fetches_max = 0).contains("fetches_max"));
        assert!(wrong(|c| c.idle_timeout = Duration::ZERO).contains("idle_timeout"));
        assert!(wrong(|c| c.window_bytes = 1).contains("window_bytes"));
        assert!(wrong(|c| c.breaker.failures_max = 0).contains("failures_max"));
        assert!(wrong(|c| c.breaker.open_max = Duration::from_millis(1)).contains("open_max"));
    }
}
