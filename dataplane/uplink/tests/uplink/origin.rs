//! An origin that does what its script says, byte by byte, one thread per connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

/// A request as it came in.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query.
    pub(crate) path: String,
    headers: Vec<(String, String)>,
    /// How many requests this origin had before.
    pub(crate) number: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let found = self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

/// What the script did.
pub(crate) enum Then {
    /// The answer is complete: the next request may come.
    Next,
    /// The connection is closed, in the regular way.
    Close,
    /// The connection is reset.
    Reset,
    /// Nothing more is said; the connection stays until the other side closes it.
    Silence,
}

/// Where a script writes its answer.
pub(crate) type Wire = TcpStream;

struct Shared {
    seen: Mutex<Vec<Seen>>,
    open: AtomicUsize,
    accepted: AtomicUsize,
    requests: AtomicUsize,
    ended: AtomicBool,
    changed: Condvar,
}

impl Shared {
    fn change(&self) {
        // Under the lock, so that nobody looks before the change and waits after it.
        let _seen = self.seen.lock().unwrap();
        self.changed.notify_all();
    }
}

pub(crate) struct Origin {
    address: SocketAddr,
    shared: Arc<Shared>,
}

impl Origin {
    /// Listens at a free port of `ip`.
    pub(crate) fn start(
        ip: &str,
        script: impl Fn(&Seen, &mut Wire) -> Then + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind((ip, 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            seen: Mutex::new(Vec::new()),
            open: AtomicUsize::new(0),
            accepted: AtomicUsize::new(0),
            requests: AtomicUsize::new(0),
            ended: AtomicBool::new(false),
            changed: Condvar::new(),
        });
        let script = Arc::new(script);
        let inside = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming() {
                if inside.ended.load(Ordering::SeqCst) {
                    return;
                }
                let Ok(stream) = stream else { continue };
                inside.open.fetch_add(1, Ordering::SeqCst);
                inside.accepted.fetch_add(1, Ordering::SeqCst);
                let (shared, script) = (Arc::clone(&inside), Arc::clone(&script));
                thread::spawn(move || {
                    converse(stream, &shared, &*script);
                    shared.open.fetch_sub(1, Ordering::SeqCst);
                    shared.change();
                });
            }
        });
        Self { address, shared }
    }

    /// Its address as `host:port`.
    pub(crate) fn authority(&self) -> String {
        self.address.to_string()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.shared.seen.lock().unwrap().clone()
    }

    /// How many connections it has had.
    pub(crate) fn accepted(&self) -> usize {
        self.shared.accepted.load(Ordering::SeqCst)
    }

    /// Waits until so many requests have come.
    pub(crate) fn wait_for_requests(&self, count: usize) {
        let mut seen = self.shared.seen.lock().unwrap();
        while seen.len() < count {
            seen = self.shared.changed.wait(seen).unwrap();
        }
    }

    /// Waits until no connection is open.
    pub(crate) fn wait_until_left_alone(&self) {
        let mut seen = self.shared.seen.lock().unwrap();
        while self.shared.open.load(Ordering::SeqCst) > 0 {
            seen = self.shared.changed.wait(seen).unwrap();
        }
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
    }
}

fn converse(
    stream: TcpStream,
    shared: &Shared,
    script: &(impl Fn(&Seen, &mut Wire) -> Then + ?Sized),
) {
    stream.set_nodelay(true).unwrap();
    let mut wire = stream.try_clone().unwrap();
    let mut reader = BufReader::new(stream);
    while let Some(mut seen) = read_request(&mut reader) {
        seen.number = shared.requests.fetch_add(1, Ordering::SeqCst);
        shared.seen.lock().unwrap().push(seen.clone());
        shared.change();
        match script(&seen, &mut wire) {
            Then::Next => {}
            Then::Close => {
                // Written, then closed for writing: what was written is not lost to a reset.
                let _ = wire.shutdown(Shutdown::Write);
                let _ = reader.read_to_end(&mut Vec::new());
                return;
            }
            Then::Reset => {
                // A socket that may not linger at all is closed by a reset.
                rustix::net::sockopt::set_socket_linger(&wire, Some(Duration::ZERO)).unwrap();
                return;
            }
            Then::Silence => {
                let _ = reader.read_to_end(&mut Vec::new());
                return;
            }
        }
    }
}

fn read_request(reader: &mut BufReader<TcpStream>) -> Option<Seen> {
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if line.is_empty() {
            break;
        }
        lines.push(line.to_owned());
    }
    let mut words = lines.first()?.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let headers = lines[1..]
        .iter()
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_owned(), value.trim().to_owned()))
        .collect();
    Some(Seen { method, path, headers, number: 0 })
}

/// Writes a whole answer with its `Content-Length`; no body for HEAD.
pub(crate) fn answer(
    seen: &Seen,
    wire: &mut Wire,
    status: u16,
    headers: &str,
    body: &[u8],
) -> Then {
    let head =
        format!("HTTP/1.1 {status} Because\r\ncontent-length: {}\r\n{headers}\r\n", body.len());
    let mut bytes = head.into_bytes();
    if seen.method != "HEAD" {
        bytes.extend_from_slice(body);
    }
    match wire.write_all(&bytes) {
        Ok(()) => Then::Next,
        Err(_) => Then::Close,
    }
}

/// Writes text as it stands.
pub(crate) fn raw(wire: &mut Wire, text: &str, then: Then) -> Then {
    let _ = wire.write_all(text.as_bytes());
    then
}
