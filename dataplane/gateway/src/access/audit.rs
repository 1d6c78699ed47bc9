//! What was decided: a line of JSON for each refusal, and for each push, deletion and token that was granted. Lines wait
//! in a bounded queue for whoever writes them; a shard never waits, and what does not fit is counted. There is no secret
//! in a line, and nothing of a token.

use std::sync::mpsc::{self, Receiver, SyncSender};

use outrider_metrics::Counter;
use serde::Serialize;

/// Lines that wait.
pub const AUDIT_WAITING_MAX: usize = 8192;

/// Where lines go.
#[derive(Clone, Debug)]
pub struct AuditSender {
    lines: SyncSender<String>,
    dropped: Counter,
}

impl AuditSender {
    /// A queue; `dropped` counts what does not fit.
    pub fn new(dropped: Counter) -> (Self, Receiver<String>) {
        let (lines, waiting) = mpsc::sync_channel(AUDIT_WAITING_MAX);
        (Self { lines, dropped }, waiting)
    }

    pub(crate) fn tell(&self, line: &Line<'_>) {
        // Texts and numbers are always JSON.
        let Ok(line) = serde_json::to_string(line) else { return };
        if self.lines.try_send(line).is_err() {
            self.dropped.inc();
        }
    }
}

/// One decision.
#[derive(Debug, Serialize)]
pub(crate) struct Line<'a> {
    pub(crate) unix_ms: u64,
    /// `granted` or `refused`.
    pub(crate) outcome: &'static str,
    /// Why it was refused; for what was granted, `ok`.
    pub(crate) reason: &'static str,
    /// `pull`, `push`, `delete`, `catalog`, `token`, `login`.
    pub(crate) action: &'static str,
    pub(crate) customer: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) repository: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) reference: Option<&'a str>,
    /// What a token was asked and given for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) scopes: Option<String>,
    /// The status of the answer.
    pub(crate) status: u16,
    pub(crate) remote: std::net::SocketAddr,
    pub(crate) protocol: &'static str,
}
