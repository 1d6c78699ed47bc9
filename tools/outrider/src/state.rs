//! `outrider state`: fragments of the replicated state.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use outrider_node::command::{AdminClient, Call, CommandError};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::at::{self, At};

/// What stands in a path or a query as it is.
const PLAIN: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
/// Rows of one page of a list.
const PAGE: usize = 10_000;
/// The largest value or batch that is read.
const INPUT_BYTES_MAX: u64 = 8 << 20;
/// A node says something every five seconds; what says nothing for so long is not there any more.
const SILENCE_MAX: Duration = Duration::from_secs(20);
/// Before a watch that broke off is begun again.
const AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug, Subcommand)]
pub(crate) enum StateCommand {
    /// Write the value of a key to stdout
    Get {
        key: String,
        #[command(flatten)]
        admin: At,
    },
    /// Set a key; prints its new version
    Put {
        key: String,
        /// The value; else --file
        #[arg(required_unless_present = "file", conflicts_with = "file")]
        value: Option<String>,
        /// The file that has the value; - for stdin
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
        #[command(flatten)]
        only: Only,
        #[command(flatten)]
        admin: At,
    },
    /// Remove a key
    Delete {
        key: String,
        #[command(flatten)]
        only: Only,
        #[command(flatten)]
        admin: At,
    },
    /// List keys: version, size, key
    List {
        /// How they begin
        #[arg(default_value = "")]
        prefix: String,
        /// As JSON, one key a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: At,
    },
    /// Print what changes, as JSON, one update a line, until interrupted
    Watch {
        /// Only keys that begin so; without it, everything that the control plane knows
        prefix: Option<String>,
        /// Begin behind this version, instead of now
        #[arg(long, value_name = "VERSION")]
        from: Option<u64>,
        #[command(flatten)]
        admin: At,
    },
    /// Write many keys or none: {"writes": [{"op": "put", "key": K, "value": BASE64, "expect": VERSION}, …]}
    Batch {
        /// The file that has the batch as JSON; - for stdin
        file: PathBuf,
        /// A text by which it is known when it is sent again
        #[arg(long, value_name = "TEXT")]
        idempotency_key: Option<String>,
        #[command(flatten)]
        admin: At,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Only {
    /// Only if it has this version
    #[arg(long, value_name = "N", conflicts_with = "if_absent")]
    if_version: Option<u64>,
    /// Only if there is none yet
    #[arg(long)]
    if_absent: bool,
    /// A text by which it is known when it is sent again
    #[arg(long, value_name = "TEXT")]
    idempotency_key: Option<String>,
}

impl Only {
    fn headers(self) -> Vec<(&'static str, String)> {
        let mut headers = Vec::new();
        headers.extend(self.if_version.map(|version| ("if-match", format!("\"{version}\""))));
        headers.extend(self.if_absent.then(|| ("if-none-match", "*".to_owned())));
        headers.extend(self.idempotency_key.map(|key| ("idempotency-key", key)));
        headers
    }
}

pub(crate) fn encoded(text: &str) -> String {
    utf8_percent_encode(text, PLAIN).to_string()
}

fn path_of(key: &str) -> String {
    format!("/v1/state/{}", encoded(key))
}

fn input(file: &Path) -> Result<Vec<u8>, CommandError> {
    let read = || {
        let mut bytes = Vec::new();
        match file.as_os_str() == "-" {
            true => std::io::stdin().take(INPUT_BYTES_MAX).read_to_end(&mut bytes)?,
            false => std::fs::File::open(file)?.take(INPUT_BYTES_MAX).read_to_end(&mut bytes)?,
        };
        Ok::<_, std::io::Error>(bytes)
    };
    read().map_err(|error| CommandError::Refused(format!("{}: {error}", file.display())))
}

/// Does it; gives what to print.
pub(crate) fn run(command: StateCommand) -> Result<Vec<u8>, CommandError> {
    at::run(carry_out(command))
}

async fn carry_out(command: StateCommand) -> Result<Vec<u8>, CommandError> {
    match command {
        StateCommand::Get { key, admin } => {
            let answer = admin.client().await?.call(Call::new(Method::GET, path_of(&key))).await?;
            answer.done().map(|()| answer.body.to_vec())
        }
        StateCommand::Put { key, value, file, only, admin } => {
            let body = match (value, file) {
                (_, Some(file)) => input(&file)?,
                (value, None) => value.unwrap_or_default().into_bytes(),
            };
            let headers = only.headers();
            let call = Call { headers, body: body.into(), ..Call::new(Method::PUT, path_of(&key)) };
            let answer = admin.client().await?.call(call).await?;
            answer.done()?;
            Ok(format!("{}\n", answer.version.unwrap_or(0)).into_bytes())
        }
        StateCommand::Delete { key, only, admin } => {
            let call = Call { headers: only.headers(), ..Call::new(Method::DELETE, path_of(&key)) };
            admin.client().await?.call(call).await?.done()?;
            Ok(Vec::new())
        }
        StateCommand::List { prefix, json, admin } => {
            let base = format!("/v1/state?prefix={}", encoded(&prefix));
            let client = admin.client().await?;
            let rows = pages(&client, &base, "fragments", |row| {
                row["key"].as_str().unwrap_or_default().to_owned()
            });
            let line = |row: &Value| match json {
                true => format!("{row}\n"),
                false => format!(
                    "{:>10} {:>9}  {}\n",
                    row["version"],
                    row["size"],
                    row["key"].as_str().unwrap_or_default()
                ),
            };
            Ok(rows.await?.iter().map(line).collect::<String>().into_bytes())
        }
        StateCommand::Watch { prefix, from, admin } => watch(&admin, prefix, from).await,
        StateCommand::Batch { file, idempotency_key, admin } => {
            let headers = idempotency_key.map(|key| ("idempotency-key", key));
            let call = Call {
                headers: headers.into_iter().collect(),
                body: input(&file)?.into(),
                ..Call::new(Method::POST, "/v1/batch")
            };
            let version = admin.client().await?.call(call).await?.json()?["version"].clone();
            Ok(format!("{version}\n").into_bytes())
        }
    }
}

/// All rows of a list, page by page.
pub(crate) async fn pages(
    client: &AdminClient,
    base: &str,
    name: &str,
    last: impl Fn(&Value) -> String,
) -> Result<Vec<Value>, CommandError> {
    let (mut all, mut after) = (Vec::new(), String::new());
    loop {
        let sign = if base.contains('?') { '&' } else { '?' };
        let mut path = format!("{base}{sign}limit={PAGE}");
        if !after.is_empty() {
            path.push_str(&format!("&after={}", encoded(&after)));
        }
        let mut page = client.call(Call::new(Method::GET, path)).await?.json()?;
        let rows = page[name].as_array_mut().map(std::mem::take).unwrap_or_default();
        after = rows.last().map(&last).unwrap_or_default();
        all.extend(rows);
        if page["more"] != true || after.is_empty() {
            return Ok(all);
        }
    }
}

/// Prints lines as they come, goes on behind the last one when the connection ends, and ends when that is not
/// possible.
async fn watch(
    admin: &At,
    prefix: Option<String>,
    mut from: Option<u64>,
) -> Result<Vec<u8>, CommandError> {
    let prefix = prefix.map(|prefix| format!("&prefix={}", encoded(&prefix))).unwrap_or_default();
    let mut watched = false;
    loop {
        let from_text = from.map(|from| format!("&from={from}")).unwrap_or_default();
        let call = Call::new(Method::GET, format!("/v1/watch?{}{prefix}", &from_text));
        let answer = async { admin.client().await?.send(call).await };
        let answer = tokio::time::timeout(SILENCE_MAX, answer).await;
        let silent = |_| Err(CommandError::Refused("the node does not answer".to_owned()));
        match answer.unwrap_or_else(silent) {
            Ok(answer) if answer.status() == StatusCode::OK => {
                watched = true;
                print_lines(answer.into_body(), &mut from).await?;
            }
            Ok(answer) => {
                let status = answer.status();
                let body = answer.into_body().collect().await.map(|body| body.to_bytes());
                let body = body.unwrap_or_default();
                if status != StatusCode::SERVICE_UNAVAILABLE || !watched {
                    return Err(CommandError::Refused(
                        String::from_utf8_lossy(&body).trim().to_owned(),
                    ));
                }
            }
            Err(error) if !watched => return Err(error),
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN).await;
    }
}

async fn print_lines(
    mut body: impl hyper::body::Body<Data = bytes::Bytes> + Unpin,
    from: &mut Option<u64>,
) -> Result<(), CommandError> {
    let mut rest = Vec::new();
    let mut out = std::io::stdout();
    // A node that lost its power says nothing any more, and ends nothing either.
    while let Ok(Some(Ok(frame))) = tokio::time::timeout(SILENCE_MAX, body.frame()).await {
        let Some(data) = frame.data_ref() else { continue };
        rest.extend_from_slice(data);
        while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let Ok(value) = serde_json::from_slice::<Value>(&line) else { return Ok(()) };
            if value.get("error").is_some() {
                let too_far = value.get("kept_after").is_some();
                let why = value["error"].as_str().unwrap_or_default().to_owned();
                return if too_far { Err(CommandError::Refused(why)) } else { Ok(()) };
            }
            *from = value["version"].as_u64().or(*from);
            let has_changes = value["changes"].as_array().is_some_and(|all| !all.is_empty());
            // Nobody who reads is a reason to end.
            if has_changes && out.write_all(&line).and_then(|()| out.flush()).is_err() {
                return Err(CommandError::Refused("nobody reads".to_owned()));
            }
        }
    }
    Ok(())
}
