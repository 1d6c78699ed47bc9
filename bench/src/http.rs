//! A small blocking HTTP/1.1 client, for what is not the load: readiness, uploads, pulls. Plain HTTP
//! on loopback; every wait has a limit.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::BenchError;
use crate::load::response::{Event, Head, ResponseReader};

/// The longest wait for bytes.
const TIMEOUT: Duration = Duration::from_secs(60);
/// The longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// What is read at once.
const READ_BYTES: usize = 256 << 10;

/// A connection that is kept from request to request.
#[derive(Debug)]
pub struct HttpClient {
    address: SocketAddr,
    stream: Option<TcpStream>,
    reader: ResponseReader,
    buffer: Vec<u8>,
}

impl HttpClient {
    /// A client of the server at `address`; it connects with its first request.
    pub fn new(address: SocketAddr) -> Self {
        Self {
            address,
            stream: None,
            reader: ResponseReader::default(),
            buffer: vec![0; READ_BYTES],
        }
    }

    /// Sends one request and hands the body of its answer to `sink` as it comes in. Connects again
    /// once if a kept connection turns out to be closed before the answer begins.
    ///
    /// # Errors
    /// When there is no answer, or none that can be read. Its status is the caller's to judge.
    pub fn request(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        mut sink: impl FnMut(&[u8]),
    ) -> Result<Head, BenchError> {
        let mut head =
            format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nAccept: */*\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() || matches!(method, "POST" | "PUT" | "PATCH") {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        let kept = self.stream.is_some();
        match self.exchange(method == "HEAD", head.as_bytes(), body, &mut sink) {
            Err((_, true)) if kept => {
                self.exchange(method == "HEAD", head.as_bytes(), body, &mut sink)
            }
            result => result,
        }
        .map_err(|(reason, _)| {
            self.stream = None;
            BenchError::Protocol(format!("{method} http://{}{path}: {reason}", self.address))
        })
    }

    /// As [`HttpClient::request`], with the body of the answer in memory.
    ///
    /// # Errors
    /// As [`HttpClient::request`].
    pub fn request_all(
        &mut self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(Head, Vec<u8>), BenchError> {
        let mut answer = Vec::new();
        let head =
            self.request(method, path, headers, body, |bytes| answer.extend_from_slice(bytes))?;
        Ok((head, answer))
    }

    /// The error says whether the answer had not begun.
    fn exchange(
        &mut self,
        without_body: bool,
        head: &[u8],
        body: &[u8],
        sink: &mut impl FnMut(&[u8]),
    ) -> Result<Head, (String, bool)> {
        let before = |error: std::io::Error| (error.to_string(), true);
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => {
                let stream =
                    TcpStream::connect_timeout(&self.address, CONNECT_TIMEOUT).map_err(before)?;
                stream.set_nodelay(true).map_err(before)?;
                stream.set_read_timeout(Some(TIMEOUT)).map_err(before)?;
                stream.set_write_timeout(Some(TIMEOUT)).map_err(before)?;
                stream
            }
        };
        stream.write_all(head).and_then(|()| stream.write_all(body)).map_err(before)?;
        self.reader.start(without_body);
        let mut begun = false;
        loop {
            let read = match stream.read(&mut self.buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err((error.to_string(), !begun)),
            };
            if read == 0 {
                let left = self.reader.remaining();
                let reason = format!("the connection ended, {left} bytes of body were to come");
                return Err((reason, !begun));
            }
            begun = true;
            match self.reader.feed(&self.buffer[..read], &mut *sink) {
                Err(error) => return Err((error.to_string(), false)),
                Ok(Event::NeedMore) => {}
                Ok(Event::Complete(used)) => {
                    let head = self
                        .reader
                        .head()
                        .cloned()
                        .unwrap_or_else(|| unreachable!("a complete response has a head"));
                    if head.keep_alive && used == read {
                        self.stream = Some(stream);
                    }
                    return Ok(head);
                }
            }
        }
    }
}

/// Whether a server answers there, with anything but an error of its own.
pub fn answers(address: SocketAddr, path: &str) -> bool {
    HttpClient::new(address)
        .request("GET", path, &[("Connection", "close")], &[], |_| ())
        .is_ok_and(|head| head.status < 500)
}

/// Path and query of a `Location`, which may be a whole URL.
///
/// # Errors
/// When it is neither.
pub fn path_of(location: &str) -> Result<String, BenchError> {
    if location.starts_with('/') {
        return Ok(location.to_owned());
    }
    let url = url::Url::parse(location)
        .map_err(|error| BenchError::Protocol(format!("Location {location:?}: {error}")))?;
    Ok(match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    /// Answers each connection with the next of `answers`, one for each request on it.
    fn server(connections: Vec<Vec<&'static str>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for answers in connections {
                let (mut stream, _) = listener.accept().unwrap();
                for answer in answers {
                    let mut request = Vec::new();
                    while !request.ends_with(b"\r\n\r\n") {
                        let mut byte = [0];
                        if stream.read(&mut byte).unwrap() == 0 {
                            return;
                        }
                        request.push(byte[0]);
                    }
                    stream.write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        address
    }

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

    #[test]
    fn a_connection_is_kept_and_opened_again_once_when_it_was_closed() {
        let mut client = HttpClient::new(server(vec![vec![OK, OK], vec![OK]]));
        for _ in 0..3 {
            let (head, body) = client.request_all("GET", "/", &[], &[]).unwrap();
            assert_eq!((head.status, body.as_slice()), (200, b"ok".as_slice()));
        }
    }

    #[test]
    fn a_body_that_is_cut_off_is_an_error_and_not_asked_for_again() {
        let cut = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nok";
        let mut client = HttpClient::new(server(vec![vec![OK, cut], vec![OK]]));
        assert!(client.request_all("GET", "/", &[], &[]).is_ok());
        let error = client.request_all("GET", "/", &[], &[]).unwrap_err().to_string();
        assert!(error.contains("3 bytes of body were to come"), "{error}");
    }

    #[test]
    fn a_location_is_a_path_or_a_url() {
        assert_eq!(path_of("/a?b=c").unwrap(), "/a?b=c");
        assert_eq!(path_of("http://127.0.0.1:5/a/b?c=d").unwrap(), "/a/b?c=d");
        assert!(path_of("a/b").is_err());
    }
}
