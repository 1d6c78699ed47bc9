//! What the command line does with a running node, over its admin API; and how it shows it.

use std::fmt::Write as _;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::ETAG;
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// The largest answer that is read.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// For one command: a change of the membership takes its time.
const TIME_MAX: Duration = Duration::from_secs(90);

/// Why a command was not done.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    /// The address is none.
    #[error("--admin {url}: {reason}; write http://HOST:PORT or https://HOST:PORT")]
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

/// One request of the admin API.
#[derive(Clone, Debug)]
pub struct Call {
    /// The method.
    pub method: Method,
    /// The path and the query, encoded.
    pub path: String,
    /// Headers beside those that every request has.
    pub headers: Vec<(&'static str, String)>,
    /// The body.
    pub body: Bytes,
}

impl Call {
    /// Without a body.
    pub fn new(method: Method, path: impl Into<String>) -> Self {
        Self { method, path: path.into(), headers: Vec::new(), body: Bytes::new() }
    }
}

/// An answer of any status.
#[derive(Clone, Debug)]
pub struct Answered {
    /// The status.
    pub status: StatusCode,
    /// The version in its `ETag`, if it has one.
    pub version: Option<u64>,
    /// The body.
    pub body: Bytes,
}

impl Answered {
    /// The body as JSON.
    ///
    /// # Errors
    /// [`CommandError::Refused`], in the words of the node where the status is no success.
    pub fn json(&self) -> Result<Value, CommandError> {
        if self.status.is_success() {
            return serde_json::from_slice(&self.body)
                .map_err(|_| CommandError::Refused(format!("{}, not in JSON", self.status)));
        }
        Err(self.refusal())
    }

    /// That it is a success.
    ///
    /// # Errors
    /// [`CommandError::Refused`]
    pub fn done(&self) -> Result<(), CommandError> {
        if self.status.is_success() { Ok(()) } else { Err(self.refusal()) }
    }

    fn refusal(&self) -> CommandError {
        let value: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let mut why =
            value["error"].as_str().map_or_else(|| self.status.to_string(), str::to_owned);
        if let Some(current) = value.get("current") {
            let _ = write!(why, " ({current})");
        }
        CommandError::Refused(why)
    }
}

/// How a node is reached that is not on this machine.
#[derive(Clone, Debug, Default)]
pub struct Secure {
    /// What is sent as bearer token.
    pub token: Option<String>,
    /// Certificates of authorities, PEM; needed for https.
    pub authorities_pem: Option<String>,
    /// The name in the node's certificate, where that is not the host of the URL.
    pub name: Option<String>,
}

/// The admin API of one node, or of an edge.
#[derive(Clone)]
pub struct AdminClient {
    url: String,
    host: String,
    token: Option<String>,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

/// Without the token.
impl std::fmt::Debug for AdminClient {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AdminClient of {}", self.url)
    }
}

fn connector(pem: &str) -> Result<TlsConnector, String> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
        let certificate = certificate.map_err(|error| error.to_string())?;
        roots.add(certificate).map_err(|error| error.to_string())?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(tls)))
}

impl AdminClient {
    /// Where the API is when nobody says: of a node, else of an edge with a node in it, whichever listens.
    pub const DEFAULTS: [&'static str; 2] = ["http://127.0.0.1:9190", "http://127.0.0.1:9180"];

    /// At this address, or at the first of [`AdminClient::DEFAULTS`] where somebody listens.
    ///
    /// # Errors
    /// [`CommandError::Url`]
    pub async fn at(url: Option<&str>, secure: &Secure) -> Result<Self, CommandError> {
        if let Some(url) = url {
            return Self::new(url, secure);
        }
        for url in Self::DEFAULTS {
            let client = Self::new(url, secure)?;
            if TcpStream::connect(&client.host).await.is_ok() {
                return Ok(client);
            }
        }
        Self::new(Self::DEFAULTS[0], secure)
    }

    /// `http://HOST:PORT` or `https://HOST:PORT`.
    ///
    /// # Errors
    /// [`CommandError::Url`]
    pub fn new(url: &str, secure: &Secure) -> Result<Self, CommandError> {
        let wrong =
            |reason: &str| CommandError::Url { url: url.to_owned(), reason: reason.to_owned() };
        let uri: Uri = url.parse().map_err(|_| wrong("it is not a URL"))?;
        let port = match uri.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => return Err(wrong("it is not the address of an admin API")),
        };
        if !matches!(uri.path(), "" | "/") {
            return Err(wrong("it is not the address of an admin API"));
        }
        let authority = uri.authority().ok_or_else(|| wrong("it has no host"))?;
        let host = match authority.port() {
            Some(_) => authority.to_string(),
            None => format!("{authority}:{port}"),
        };
        let tls = match port {
            80 => None,
            _ => {
                let pem = secure.authorities_pem.as_deref();
                let pem = pem.ok_or_else(|| wrong("https needs --ca FILE"))?;
                let connector = connector(pem).map_err(|why| wrong(&format!("--ca: {why}")))?;
                let name = secure.name.as_deref().unwrap_or(authority.host());
                let name = name.trim_start_matches('[').trim_end_matches(']').to_owned();
                let name = ServerName::try_from(name).map_err(|_| wrong("it has no host"))?;
                Some((connector, name))
            }
        };
        // A token goes to this machine alone, or encrypted.
        let is_local = authority.host() == "localhost"
            || authority
                .host()
                .trim_matches(['[', ']'])
                .parse::<IpAddr>()
                .is_ok_and(|ip| ip.is_loopback());
        if secure.token.is_some() && tls.is_none() && !is_local {
            return Err(wrong("a token is sent over https alone"));
        }
        Ok(Self { url: url.to_owned(), host, token: secure.token.clone(), tls })
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

    /// Any request, and the whole answer.
    ///
    /// # Errors
    /// [`CommandError::Unreachable`]
    pub async fn call(&self, call: Call) -> Result<Answered, CommandError> {
        let work = async {
            let answer = self.send(call).await?;
            let status = answer.status();
            let version = answer.headers().get(ETAG).and_then(|tag| tag.to_str().ok());
            let version = version.and_then(|tag| tag.trim_matches('"').parse().ok());
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX).collect().await;
            let body = body.map_err(|error| self.unreachable(error))?.to_bytes();
            Ok(Answered { status, version, body })
        };
        match tokio::time::timeout(TIME_MAX, work).await {
            Ok(result) => result,
            Err(_) => Err(self.unreachable(format!("no answer for {TIME_MAX:?}"))),
        }
    }

    /// Any request; the answer's body may take as long as it does.
    ///
    /// # Errors
    /// [`CommandError::Unreachable`]
    pub async fn send(&self, call: Call) -> Result<Response<Incoming>, CommandError> {
        let stream = TcpStream::connect(&self.host).await.map_err(|e| self.unreachable(e))?;
        match &self.tls {
            None => self.send_over(stream, call).await,
            Some((connector, name)) => {
                let stream = connector.connect(name.clone(), stream).await;
                self.send_over(stream.map_err(|e| self.unreachable(e))?, call).await
            }
        }
    }

    async fn send_over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        call: Call,
    ) -> Result<Response<Incoming>, CommandError> {
        let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|e| self.unreachable(e))?;
        tokio::spawn(connection);
        let mut request =
            Request::builder().method(call.method).uri(call.path).header("host", &self.host);
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        for (name, value) in call.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(call.body)).map_err(|e| self.unreachable(e))?;
        sender.send_request(request).await.map_err(|e| self.unreachable(e))
    }

    fn unreachable(&self, reason: impl std::fmt::Display) -> CommandError {
        CommandError::Unreachable { url: self.url.clone(), reason: reason.to_string() }
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Value>,
    ) -> Result<Value, CommandError> {
        let headers = vec![("content-type", "application/json".to_owned())];
        let body = body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()));
        self.call(Call { method, path: path.to_owned(), headers, body }).await?.json()
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
