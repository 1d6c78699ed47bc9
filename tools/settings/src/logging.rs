//! Logs go to stderr, so that what `outrider up` prints for its user stays alone on stdout.

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt;

/// What is logged to stderr.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Log {
    /// `error`, `warn`, `info`, `debug` or `trace`, or a filter such as `info,outrider_uplink=debug`.
    /// Default `info`. The environment variable `OUTRIDER_LOG` wins over it.
    pub level: String,
    /// `text` or `json`, one line an event. Default `text`.
    pub format: LogFormat,
}

impl Default for Log {
    fn default() -> Self {
        Log { level: "info".to_owned(), format: LogFormat::Text }
    }
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The environment variable that wins over `log.level`.
pub const LOG_VARIABLE: &str = "OUTRIDER_LOG";

/// Starts logging for the whole process. A second call changes nothing.
pub fn start(log: &Log) {
    let filter = std::env::var(LOG_VARIABLE)
        .ok()
        .and_then(|text| EnvFilter::try_new(text).ok())
        .or_else(|| EnvFilter::try_new(&log.level).ok())
        .unwrap_or_else(|| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false);
    // An error means that somebody (a test) has set a subscriber before: theirs stays.
    let _ = match log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}

/// Says why a filter cannot be used.
///
/// # Errors
/// The reason.
pub fn check_filter(level: &str) -> Result<(), String> {
    match EnvFilter::try_new(level) {
        Ok(_) if !level.trim().is_empty() => Ok(()),
        Ok(_) => Err("it is empty".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
