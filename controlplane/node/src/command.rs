//! What the command line does with a running node, over its admin API; and how it shows it.

use std::fmt::Write as _;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// For one command: a change of the membership takes its time.
const TIME_MAX: Duration = Duration::from_secs(90);

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The address is none.
    #[error("--admin {url}: {reason}; write http://HOST:PORT")]
    Url {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// Nobody answers there.
    #[error("the node at {url} cannot be reached: {reason}")]
    Unreachable {
        /// The address.
        url: String,
        /// Why.
        reason: String,
    },
    /// The node says no.
    #[error("the node says: {0}")]
    Refused(String),
}

/// The admin API of one node.
#[derive(Clone, Debug)]
pub struct AdminClient {
    url: String,
    host: String,
}

impl AdminClient {
    /// `http://HOST:PORT`.
    ///
    /// # Errors
    /// [`CommandError::Url`]
    pub fn new(url: &str) -> Result<Self, CommandError> {
        let wrong =
            |reason: &str| CommandError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        if uri.scheme_str() != Some("http") || !matches!(uri.path(), "" | "/") {
            return Err(wrong("it is not the address of an admin API"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        let host = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:80"),
        };
        Ok(Self { url: url.to_owned(), host })
    }

    /// Status, as JSON.
    ///
    /// # Errors
    /// [`CommandError`]
    pub async fn status(&self) -> Result<Value, CommandError> {
        self.ask(Method::GET, "/v1/cluster", None).await
    }

    /// A join token.
    ///
    /// # Errors
    /// [`CommandError`]
    pub async fn token(
        &self,
        role: &str,
        region: &str,
        ttl: Duration,
    ) -> Result<String, CommandError> {
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let wanted = json!({ "role": role, "region": region, "ttl_ms": ttl_ms });
        let answer = self.ask(Method::POST, "/v1/cluster/token", Some(wanted)).await?;
        let token = answer["token"].as_str().map(str::to_owned);
        token.ok_or_else(|| CommandError::Refused("an answer without a token".to_owned()))
    }

    /// Takes this node out of its cluster.
    ///
    /// # Errors
    /// [`CommandError`]
    pub async fn leave(&self) -> Result<(), CommandError> {
        self.ask(Method::POST, "/v1/cluster/leave", None).await.map(drop)
    }

    /// Takes another node out of the cluster, for good.
    ///
    /// # Errors
    /// [`CommandError`]
    pub async fn remove(&self, node: u64) -> Result<(), CommandError> {
        self.ask(Method::POST, "/v1/cluster/remove", Some(json!({ "node": node }))).await.map(drop)
    }

    /// What is under `/v1/graph`: `""` for the status, or `/QUERY?PARAMETERS`.
    ///
    /// # Errors
    /// [`CommandError`]
    pub async fn graph(&self, path: &str) -> Result<Value, CommandError> {
        self.ask(Method::GET, &format!("/v1/graph{path}"), None).await
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, CommandError> {
        let unreachable =
            |reason: String| CommandError::Unreachable { url: self.url.clone(), reason };
        let work = async {
            let stream = TcpStream::connect(&self.host).await.map_err(|e| e.to_string())?;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(TokioIo::new(stream))
                    .await
                    .map_err(|e| e.to_string())?;
            tokio::spawn(connection);
            let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
            let request = Request::builder()
                .method(method)
                .uri(path)
                .header("host", &self.host)
                .header("content-type", "application/json")
                .body(Full::new(body))
                .map_err(|e| e.to_string())?;
            let answer = sender.send_request(request).await.map_err(|e| e.to_string())?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            Ok::<_, String>((status, body.map_err(|e| e.to_string())?.to_bytes()))
        };
        let (status, body) = match tokio::time::timeout(TIME_MAX, work).await {
            Ok(result) => result.map_err(unreachable)?,
            Err(_) => return Err(unreachable(format!("no answer for {TIME_MAX:?}"))),
        };
        let value: Value = serde_json::from_slice(&body)
            .map_err(|_| CommandError::Refused(format!("{status}, not in JSON")))?;
        if status == StatusCode::OK {
            return Ok(value);
        }
        let error = value["error"].as_str().map_or_else(|| status.to_string(), str::to_owned);
        Err(CommandError::Refused(error))
    }
}

/// The status as a table. Pure.
pub fn status_text(status: &Value) -> String {
    let mut out = String::new();
    let text = |value: &Value| match value {
        Value::String(text) => text.clone(),
        Value::Null => "-".to_owned(),
        other => other.to_string(),
    };
    // Writing into a String cannot fail.
    let _ = writeln!(
        out,
        "node {} is {}; leader {}, term {}, applied {} of {}, version {}",
        text(&status["node"]),
        text(&status["state"]),
        text(&status["leader"]),
        text(&status["term"]),
        text(&status["applied"]),
        text(&status["log"]),
        text(&status["version"]),
    );
    let rows = status["nodes"].as_array().map_or(&[][..], Vec::as_slice);
    for node in rows {
        let role = match (node["leader"] == true, node["voter"] == true) {
            (true, _) => "leader",
            (_, true) => "voter",
            _ => "learner",
        };
        let _ = writeln!(
            out,
            "  {:>4}  {:<8} {:<24} {:<24} has {}",
            text(&node["node"]),
            role,
            text(&node["address"]),
            text(&node["name"]),
            text(&node["matched"]),
        );
    }
    let edges = status["members"].as_array().map_or(&[][..], Vec::as_slice);
    for edge in edges.iter().filter(|member| member["role"] == "edge") {
        let state = if edge["revoked"] == true { "revoked" } else { "edge" };
        let _ = writeln!(
            out,
            "  {:>4}  {:<8} {:<24} {:<24} {}",
            text(&edge["member"]),
            state,
            text(&edge["region"]),
            text(&edge["name"]),
            match edge["follows"].as_u64() {
                Some(node) => format!(
                    "follows {node}, applied {}, lag {}",
                    text(&edge["applied"]),
                    text(&edge["lag"])
                ),
                None => "does not follow".to_owned(),
            }
        );
    }
    if status["graph"]["state"] == "down" {
        let (store, why) = (text(&status["graph"]["store"]), text(&status["graph"]["error"]));
        let _ = writeln!(out, "the graph's store ({store}) is down: {why}");
    }
    if let Some(why) = status["graph"]["events"]["failure"].as_str() {
        let lag = text(&status["events"]["lag"]["graph"]);
        let _ = writeln!(out, "events do not get into the graph, it lags {lag} entries: {why}");
    }
    let events = &status["events"];
    let (queue, waiting) = (text(&events["queue"]), text(&events["waiting"]));
    match events["failure"].as_str() {
        Some(why) => {
            let _ = writeln!(out, "events: the {queue} queue fails, {waiting} wait: {why}");
        }
        None => {
            let (uploads, accesses) = (&events["events"]["uploads"], &events["events"]["accesses"]);
            let (uploads, accesses) = (text(uploads), text(accesses));
            let _ = writeln!(
                out,
                "events: {uploads} uploads, {accesses} accesses into the {queue} queue, {waiting} wait",
            );
        }
    }
    if let Some(failure) = status["failure"].as_str() {
        let _ = writeln!(out, "stopped: {failure}");
    }
    out
}
