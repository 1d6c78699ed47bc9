//! An upstream registry inside the test process. It serves what it was given, counts every request,
//! and misbehaves on request: slow, silent, cut off, lying about length, digest or range, asking for
//! tokens, redirecting. Written on plain sockets, since an HTTP library would refuse to lie.

use std::collections::HashMap;
use std::io::{BufRead as _, BufReader, Read as _, Result, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;

use base64::Engine as _;

use crate::content::sha256;
use crate::gate::Gate;
use crate::image::SmallImage;
use crate::ports;

/// How much is written at once, so that a cut or a hold is exact.
const WRITE_BYTES: usize = 64 << 10;

/// The kernel's buffer for each connection: what it holds may be dropped when the other side leaves.
const SEND_BUFFER_BYTES: usize = 128 << 10;

/// What goes wrong with an answer. Faults of one request add up.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Sends this many bytes of the body, then waits for the gate.
    Hold(u64, Gate),
    /// Waits for the gate before the head.
    HoldHead(Gate),
    /// Waits this long before the head.
    Delay(Duration),
    /// Sends this many bytes of the body, then nothing more, with the connection open.
    Stall(u64),
    /// Sends this many bytes, then closes in order.
    Close(u64),
    /// Sends this many bytes, then resets the connection.
    Reset(u64),
    /// Pauses this long after every 64 KiB.
    Slow(Duration),
    /// Says this length, whatever is sent (all of the body, then the connection closes).
    SayLength(u64),
    /// No length: the body ends with the connection.
    NoLength,
    /// Chunked transfer coding.
    Chunked,
    /// Flips a bit of the byte at this place of the whole content.
    Flip(u64),
    /// Answers 200 with everything to a request for a range.
    IgnoreRange,
    /// Says this Content-Range.
    SayRange(String),
    /// Adds or replaces a header of an otherwise right answer.
    Header(String, String),
    /// Answers this instead: status, headers, body.
    Answer(u16, Vec<(String, String)>, Vec<u8>),
}

impl Fault {
    /// An answer of `status` with no more to say.
    pub fn status(status: u16) -> Self {
        Self::Answer(
            status,
            Vec::new(),
            b"{\"errors\":[{\"code\":\"UNKNOWN\",\"message\":\"\"}]}".into(),
        )
    }

    /// 429 with Retry-After.
    pub fn too_many(retry_after_s: u32) -> Self {
        Self::Answer(429, vec![("Retry-After".into(), retry_after_s.to_string())], Vec::new())
    }

    /// A redirect to `location`.
    pub fn redirect(location: &str) -> Self {
        Self::Answer(307, vec![("Location".into(), location.into())], Vec::new())
    }

    /// What a captive portal says.
    pub fn login_page() -> Self {
        let page = b"<html><body>Please log in to the network</body></html>";
        Self::Answer(200, vec![("Content-Type".into(), "text/html".into())], page.to_vec())
    }
}

/// A request that came in.
#[derive(Clone, Debug)]
pub struct Seen {
    /// GET, HEAD, …
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The query, without its question mark.
    pub query: String,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    /// Bytes of the body sent so far.
    pub sent: Arc<AtomicU64>,
    /// Set when the answer was sent to its last byte.
    pub whole: Arc<AtomicBool>,
}

impl Seen {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

#[derive(Debug)]
struct Rule {
    method: String,
    path_part: String,
    left: u64,
    faults: Vec<Fault>,
}

#[derive(Clone, Debug)]
struct TokenAuth {
    realm: Option<String>,
    user: Option<(String, String)>,
}

#[derive(Clone, Debug)]
struct Stored {
    media_type: String,
    bytes: Arc<Vec<u8>>,
}

#[derive(Debug, Default)]
struct Inner {
    blobs: HashMap<String, Arc<Vec<u8>>>,
    /// By repository and tag or digest.
    manifests: HashMap<(String, String), Stored>,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    /// Weak, so that a connection's end is decided by its own thread.
    streams: Vec<Weak<TcpStream>>,
    tokens: Option<TokenAuth>,
    tokens_given: u64,
}

#[derive(Debug)]
struct Shared {
    host: String,
    port: u16,
    inner: Mutex<Inner>,
    stopping: AtomicBool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The registry. Stops when dropped.
#[derive(Debug)]
pub struct FakeUpstream {
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

impl Default for FakeUpstream {
    fn default() -> Self {
        Self::start()
    }
}

impl FakeUpstream {
    /// An empty registry on a free port of 127.0.0.1.
    pub fn start() -> Self {
        Self::start_on("127.0.0.1")
    }

    /// An empty registry on a free port of another address of this machine.
    pub fn start_on(host: &str) -> Self {
        let port = ports::free();
        let shared = Shared {
            host: host.to_owned(),
            port,
            inner: Mutex::default(),
            stopping: AtomicBool::new(false),
        };
        let mut upstream = Self { shared: Arc::new(shared), acceptor: None };
        upstream.resume();
        upstream
    }

    /// Its address as a URL.
    pub fn url(&self) -> String {
        format!("http://{}:{}", self.shared.host, self.shared.port)
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.shared.port
    }

    /// Listens again on the same port after [`FakeUpstream::stop`].
    pub fn resume(&mut self) {
        if self.acceptor.is_some() {
            return;
        }
        self.shared.stopping.store(false, Ordering::SeqCst);
        let address = (self.shared.host.as_str(), self.shared.port);
        let listener = TcpListener::bind(address).expect("the port is free");
        let shared = Arc::clone(&self.shared);
        self.acceptor = Some(std::thread::spawn(move || {
            for stream in listener.incoming() {
                if shared.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream.map(Arc::new) else { continue };
                shared.lock().streams.push(Arc::downgrade(&stream));
                let shared = Arc::clone(&shared);
                // The other side may leave at any time, so what this returns says nothing.
                std::thread::spawn(move || serve(&shared, &stream));
            }
        }));
    }

    /// Goes away: nobody listens any more, and open connections end.
    pub fn stop(&mut self) {
        let Some(acceptor) = self.acceptor.take() else { return };
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor, which then sees the flag and drops its listener.
        let _ = TcpStream::connect((self.shared.host.as_str(), self.shared.port));
        let _ = acceptor.join();
        for stream in self.shared.lock().streams.drain(..).filter_map(|weak| weak.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// Adds a blob, visible in every repository; gives its digest.
    pub fn blob(&self, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        self.shared.lock().blobs.insert(digest.clone(), Arc::new(bytes.to_vec()));
        digest
    }

    /// Adds a manifest under `tag` and its digest; gives its digest.
    pub fn manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) -> String {
        let digest = sha256(bytes);
        let mut inner = self.shared.lock();
        for reference in [tag, &digest] {
            let stored =
                Stored { media_type: media_type.to_owned(), bytes: Arc::new(bytes.to_vec()) };
            inner.manifests.insert((repository.to_owned(), reference.to_owned()), stored);
        }
        digest
    }

    /// Adds an image with all its blobs; gives the digest of its manifest.
    pub fn image(&self, repository: &str, tag: &str, image: &SmallImage) -> String {
        for blob in image.blobs() {
            self.blob(blob);
        }
        self.manifest(repository, tag, &image.media_type, &image.manifest)
    }

    /// The next `times` requests of `method` ("" for any) whose path contains `path_part` get `faults`.
    /// The oldest rule that fits is used up first.
    pub fn script(&self, times: u64, method: &str, path_part: &str, faults: &[Fault]) {
        self.shared.lock().rules.push(Rule {
            method: method.to_owned(),
            path_part: path_part.to_owned(),
            left: times,
            faults: faults.to_vec(),
        });
    }

    /// Like [`FakeUpstream::script`], until [`FakeUpstream::behave`].
    pub fn always(&self, method: &str, path_part: &str, faults: &[Fault]) {
        self.script(u64::MAX, method, path_part, faults);
    }

    /// Forgets all rules.
    pub fn behave(&self) {
        self.shared.lock().rules.clear();
    }

    /// Asks for bearer tokens from now on, given by `/token` here, or by `realm`.
    pub fn require_tokens(&self, realm: Option<&str>, user: Option<(&str, &str)>) {
        let user = user.map(|(name, password)| (name.to_owned(), password.to_owned()));
        self.shared.lock().tokens = Some(TokenAuth { realm: realm.map(str::to_owned), user });
    }

    /// Everything asked so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.shared.lock().seen.clone()
    }

    /// Requests of `method` ("" for any) whose path contains `path_part`.
    pub fn seen_of(&self, method: &str, path_part: &str) -> Vec<Seen> {
        let fits = |seen: &Seen| {
            (method.is_empty() || seen.method == method) && seen.path.contains(path_part)
        };
        self.seen().into_iter().filter(fits).collect()
    }

    /// How many those are.
    pub fn count(&self, method: &str, path_part: &str) -> usize {
        self.seen_of(method, path_part).len()
    }

    /// Bytes of bodies sent for requests whose path contains `path_part`.
    pub fn bytes_sent(&self, path_part: &str) -> u64 {
        self.seen_of("GET", path_part).iter().map(|seen| seen.sent.load(Ordering::SeqCst)).sum()
    }
}

impl Drop for FakeUpstream {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("---- what the upstream was asked for:");
            for seen in self.seen() {
                let sent = seen.sent.load(Ordering::SeqCst);
                let range = seen.header("range").unwrap_or_default();
                eprintln!(
                    "    {} {}?{} {range} ({sent} bytes sent)",
                    seen.method, seen.path, seen.query
                );
            }
        }
    }
}

fn serve(shared: &Shared, stream: &TcpStream) -> Result<()> {
    stream.set_nodelay(true)?;
    // So that what counts as sent was nearly all received.
    rustix::net::sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER_BYTES)?;
    let mut reader = BufReader::new(stream);
    while let Some(seen) = read_request(&mut reader)? {
        let faults = {
            let mut inner = shared.lock();
            inner.seen.push(seen.clone());
            take_faults(&mut inner, &seen)
        };
        let keep_open = answer(shared, stream, &seen, &faults)?;
        if !keep_open || shared.stopping.load(Ordering::SeqCst) {
            return Ok(());
        }
    }
    Ok(())
}

fn take_faults(inner: &mut Inner, seen: &Seen) -> Vec<Fault> {
    let fits = |rule: &&mut Rule| {
        rule.left > 0
            && (rule.method.is_empty() || rule.method == seen.method)
            && seen.path.contains(&rule.path_part)
    };
    let Some(rule) = inner.rules.iter_mut().find(fits) else { return Vec::new() };
    rule.left -= 1;
    rule.faults.clone()
}

fn read_request(reader: &mut BufReader<&TcpStream>) -> Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let method = words.next().unwrap_or_default().to_owned();
    let target = words.next().unwrap_or_default().to_owned();
    let (path, query) = target.split_once('?').unwrap_or((&target, ""));
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(None);
        }
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length = length.and_then(|(_, value)| value.parse().ok()).unwrap_or(0);
    std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
    Ok(Some(Seen {
        method,
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        sent: Arc::default(),
        whole: Arc::default(),
    }))
}

/// What an honest registry would say.
struct Honest {
    status: u16,
    headers: Vec<(String, String)>,
    content: Arc<Vec<u8>>,
    is_blob: bool,
}

impl Honest {
    fn plain(status: u16, content: &str) -> Self {
        let headers = vec![("Content-Type".to_owned(), "application/json".to_owned())];
        Self { status, headers, content: Arc::new(content.as_bytes().to_vec()), is_blob: false }
    }

    fn error(status: u16, code: &str) -> Self {
        Self::plain(status, &format!("{{\"errors\":[{{\"code\":\"{code}\",\"message\":\"no\"}}]}}"))
    }
}

fn honest(shared: &Shared, seen: &Seen) -> Honest {
    let mut inner = shared.lock();
    if seen.path == "/token" {
        return token(&mut inner, seen);
    }
    if let Some(auth) = &inner.tokens
        && !seen.header("authorization").is_some_and(|v| v.starts_with("Bearer given-"))
    {
        let realm =
            auth.realm.clone().unwrap_or(format!("http://{}:{}/token", shared.host, shared.port));
        let name = parts(&seen.path).map_or("", |(name, ..)| name);
        let mut refused = Honest::error(401, "UNAUTHORIZED");
        refused.headers.push((
            "WWW-Authenticate".into(),
            format!("Bearer realm=\"{realm}\",service=\"fake\",scope=\"repository:{name}:pull\""),
        ));
        return refused;
    }
    match parts(&seen.path) {
        _ if seen.path == "/v2/" => Honest::plain(200, "{}"),
        Some((_, "blobs", digest)) => match inner.blobs.get(digest) {
            Some(content) => Honest {
                status: 200,
                headers: vec![
                    ("Content-Type".into(), "application/octet-stream".into()),
                    ("Docker-Content-Digest".into(), digest.into()),
                ],
                content: Arc::clone(content),
                is_blob: true,
            },
            None => Honest::error(404, "BLOB_UNKNOWN"),
        },
        Some((name, "manifests", reference)) => {
            match inner.manifests.get(&(name.to_owned(), reference.to_owned())) {
                Some(Stored { media_type, bytes: content }) => Honest {
                    status: 200,
                    headers: vec![
                        ("Content-Type".into(), media_type.clone()),
                        ("Docker-Content-Digest".into(), sha256(content)),
                    ],
                    content: Arc::clone(content),
                    is_blob: false,
                },
                None => Honest::error(404, "MANIFEST_UNKNOWN"),
            }
        }
        _ => Honest::error(404, "NAME_UNKNOWN"),
    }
}

fn token(inner: &mut Inner, seen: &Seen) -> Honest {
    let wanted = inner.tokens.as_ref().and_then(|auth| auth.user.clone());
    if let Some((name, password)) = wanted {
        let pair = base64::engine::general_purpose::STANDARD.encode(format!("{name}:{password}"));
        if seen.header("authorization") != Some(&format!("Basic {pair}")) {
            return Honest::error(401, "UNAUTHORIZED");
        }
    }
    inner.tokens_given += 1;
    Honest::plain(
        200,
        &format!("{{\"token\":\"given-{}\",\"expires_in\":300}}", inner.tokens_given),
    )
}

/// `/v2/NAME/KIND/LAST` in its parts.
fn parts(path: &str) -> Option<(&str, &str, &str)> {
    let (front, last) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
    let (name, kind) = front.rsplit_once('/')?;
    Some((name, kind, last))
}

fn answer(shared: &Shared, mut stream: &TcpStream, seen: &Seen, faults: &[Fault]) -> Result<bool> {
    let mut honest = honest(shared, seen);
    let mut body = Arc::clone(&honest.content);
    let mut say_length = None;
    let mut framing_ends_with_connection = false;
    let mut chunked = false;
    let mut ignore_range = false;
    let mut overriding = Vec::new();
    for fault in faults {
        match fault {
            Fault::HoldHead(gate) => {
                gate.pass();
            }
            Fault::Delay(pause) => std::thread::sleep(*pause),
            Fault::Answer(status, headers, content) => {
                honest.status = *status;
                honest.headers = headers.clone();
                honest.is_blob = false;
                body = Arc::new(content.clone());
            }
            Fault::Flip(at) => {
                let mut wrong = body.to_vec();
                let place = usize::try_from(*at).unwrap_or(usize::MAX).min(wrong.len() - 1);
                wrong[place] ^= 1;
                body = Arc::new(wrong);
            }
            Fault::SayLength(length) => say_length = Some(*length),
            Fault::NoLength => framing_ends_with_connection = true,
            Fault::Chunked => chunked = true,
            Fault::IgnoreRange => ignore_range = true,
            Fault::SayRange(range) => overriding.push(("Content-Range".to_owned(), range.clone())),
            Fault::Header(name, value) => overriding.push((name.clone(), value.clone())),
            _ => {}
        }
    }

    let whole = body.len() as u64;
    let mut window = 0..whole;
    if honest.is_blob
        && !ignore_range
        && let Some(range) = seen.header("range")
    {
        match parse_range(range, whole) {
            Some(asked) => {
                let said = format!("bytes {}-{}/{whole}", asked.start, asked.end - 1);
                honest.status = 206;
                honest.headers.push(("Content-Range".into(), said));
                window = asked;
            }
            None => {
                honest.status = 416;
                honest.headers.push(("Content-Range".into(), format!("bytes */{whole}")));
                window = 0..0;
            }
        }
    }
    for (name, value) in overriding {
        honest.headers.retain(|(n, _)| !n.eq_ignore_ascii_case(&name));
        honest.headers.push((name, value));
    }
    let length = window.end - window.start;
    let mut head = format!("HTTP/1.1 {} X\r\n", honest.status);
    for (name, value) in &honest.headers {
        head += &format!("{name}: {value}\r\n");
    }
    head += &if chunked {
        "Transfer-Encoding: chunked\r\n".to_owned()
    } else if framing_ends_with_connection {
        "Connection: close\r\n".to_owned()
    } else {
        format!("Content-Length: {}\r\n", say_length.unwrap_or(length))
    };
    head += "\r\n";
    stream.write_all(head.as_bytes())?;
    if seen.method == "HEAD" {
        seen.whole.store(true, Ordering::SeqCst);
        return Ok(!framing_ends_with_connection);
    }

    let mut sent = 0;
    while sent < length {
        let mut step = (length - sent).min(WRITE_BYTES as u64);
        let mut cut = None;
        for fault in faults {
            match fault {
                Fault::Hold(at, gate) if sent <= *at && *at < sent + step => {
                    if *at == sent {
                        gate.pass();
                    } else {
                        step = at - sent;
                    }
                }
                Fault::Stall(at) | Fault::Close(at) | Fault::Reset(at) if *at <= sent + step => {
                    step = at.saturating_sub(sent);
                    cut = Some(fault.clone());
                }
                _ => {}
            }
        }
        let from = usize::try_from(window.start + sent).expect("content fits in memory");
        let to = from + usize::try_from(step).expect("content fits in memory");
        if step > 0 {
            if chunked {
                stream.write_all(format!("{step:x}\r\n").as_bytes())?;
            }
            stream.write_all(&body[from..to])?;
            if chunked {
                stream.write_all(b"\r\n")?;
            }
        }
        sent += step;
        seen.sent.store(sent, Ordering::SeqCst);
        match cut {
            Some(Fault::Stall(_)) => {
                // Until the other side leaves, or this registry stops.
                let _ = stream.read(&mut [0]);
                return Ok(false);
            }
            Some(Fault::Reset(_)) => {
                // Closing a socket that lingers for no time sends a reset instead of an end.
                rustix::net::sockopt::set_socket_linger(stream, Some(Duration::ZERO))?;
                return Ok(false);
            }
            Some(_) => return Ok(false),
            None => {}
        }
        for fault in faults {
            if let Fault::Slow(pause) = fault {
                std::thread::sleep(*pause);
            }
        }
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n")?;
    }
    seen.whole.store(true, Ordering::SeqCst);
    Ok(!framing_ends_with_connection && say_length.is_none_or(|said| said == length))
}

/// `bytes=a-b`, `bytes=a-` or `bytes=-n` of content of `whole` bytes.
fn parse_range(text: &str, whole: u64) -> Option<std::ops::Range<u64>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    let range = match (first, last) {
        ("", last) => whole.saturating_sub(last.parse().ok()?)..whole,
        (first, "") => first.parse().ok()?..whole,
        (first, last) => first.parse().ok()?..(last.parse::<u64>().ok()? + 1).min(whole),
    };
    (range.start < range.end).then_some(range)
}
