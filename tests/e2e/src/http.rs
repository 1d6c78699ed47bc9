//! A blocking HTTP/1.1 client on a plain socket, a connection for each request. It can stop reading,
//! leave in the middle, send half a body, or send bytes that are no HTTP at all.

use std::io::{BufRead as _, BufReader, Error, ErrorKind, Read, Result, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::wait::WAIT_MAX;

/// The longest silence before a read fails, so that a hang becomes a failure.
const SILENCE_MAX: Duration = WAIT_MAX;

/// A response head has at most this many bytes.
const HEAD_BYTES_MAX: u64 = 256 << 10;

/// Where requests go.
#[derive(Clone, Copy, Debug)]
pub struct Client {
    address: SocketAddr,
}

impl Client {
    /// A client of 127.0.0.1:`port`.
    pub fn new(port: u16) -> Self {
        Self { address: ([127, 0, 0, 1], port).into() }
    }

    /// A request of `method` for `target`.
    pub fn request(&self, method: &str, target: &str) -> Request {
        Request {
            address: self.address,
            method: method.to_owned(),
            target: target.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
        }
    }

    /// GET, to the last byte.
    pub fn get(&self, target: &str) -> Answer {
        self.request("GET", target).send()
    }

    /// HEAD.
    pub fn head(&self, target: &str) -> Answer {
        self.request("HEAD", target).send()
    }

    /// Sends `bytes` as they are and no more, and returns all that comes back until the other side closes.
    pub fn raw(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = connect(self.address).expect("the server accepts connections");
        // A server may answer and close before it has read everything.
        let _ = stream.write_all(bytes);
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        answer
    }

    /// Sends `bytes` as they are, stays, and returns all that comes until the other side closes.
    pub fn raw_and_stay(&self, bytes: &[u8]) -> Vec<u8> {
        let mut stream = connect(self.address).expect("the server accepts connections");
        stream.write_all(bytes).expect("the server reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the server closes");
        answer
    }

    /// A bare connection.
    pub fn connect(&self) -> Result<TcpStream> {
        connect(self.address)
    }
}

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_write_timeout(Some(SILENCE_MAX))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

/// A request being put together.
#[derive(Clone, Debug)]
#[must_use]
pub struct Request {
    address: SocketAddr,
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The whole body, sent with its length.
    pub fn body(mut self, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self
    }

    fn head(&self, framing: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head += &format!("Host: {}\r\n", self.address);
        }
        for (name, value) in &self.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += framing;
        head += "Connection: close\r\n\r\n";
        head.into_bytes()
    }

    /// Sends it and reads the head of the answer; the body is read as the test wants it.
    pub fn try_open(&self) -> Result<Incoming> {
        let mut stream = connect(self.address)?;
        let empty =
            self.body.is_empty() && matches!(self.method.as_str(), "GET" | "HEAD" | "DELETE");
        let framing =
            if empty { String::new() } else { format!("Content-Length: {}\r\n", self.body.len()) };
        stream.write_all(&self.head(&framing))?;
        // A refusal may come, and the connection end, before all of a body is taken.
        let written = stream.write_all(&self.body);
        match Incoming::read_head(stream, self.method == "HEAD") {
            Ok(incoming) => Ok(incoming),
            Err(error) => Err(written.err().unwrap_or(error)),
        }
    }

    /// Like [`Request::try_open`], for a server that must answer.
    pub fn open(&self) -> Incoming {
        self.try_open().unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.target))
    }

    /// Sends it and reads everything; an error when the answer is cut off.
    pub fn try_send(&self) -> Result<Answer> {
        self.try_open()?.finish()
    }

    /// Like [`Request::try_send`], for a server that must answer in full.
    pub fn send(&self) -> Answer {
        self.try_send().unwrap_or_else(|error| panic!("{} {}: {error}", self.method, self.target))
    }

    /// Sends the head alone, announcing a body of `length` bytes, or a chunked one.
    pub fn begin(&self, length: Option<u64>) -> Result<Outgoing> {
        let mut stream = connect(self.address)?;
        let framing = match length {
            Some(length) => format!("Content-Length: {length}\r\n"),
            None => "Transfer-Encoding: chunked\r\n".to_owned(),
        };
        stream.write_all(&self.head(&framing))?;
        Ok(Outgoing { stream, chunked: length.is_none() })
    }
}

/// A request whose body is being sent.
#[derive(Debug)]
pub struct Outgoing {
    stream: TcpStream,
    chunked: bool,
}

impl Outgoing {
    /// Sends the next bytes of the body.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if !self.chunked {
            return self.stream.write_all(bytes);
        }
        self.stream.write_all(format!("{:x}\r\n", bytes.len()).as_bytes())?;
        self.stream.write_all(bytes)?;
        self.stream.write_all(b"\r\n")
    }

    /// Ends the body and reads the answer.
    pub fn finish(mut self) -> Result<Answer> {
        if self.chunked {
            self.stream.write_all(b"0\r\n\r\n")?;
        }
        Incoming::read_head(self.stream, false)?.finish()
    }

    /// Leaves without ending the body; the connection is reset or closed.
    pub fn abandon(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case, in order.
    pub headers: Vec<(String, String)>,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("no JSON ({error}) in {}: {}", self.status, self.text()))
    }

    /// The Cache-Status header (RFC 9211), which every answer has.
    #[track_caller]
    pub fn cache_status(&self) -> CacheStatus {
        let text = self.header("cache-status");
        CacheStatus(
            text.unwrap_or_else(|| panic!("no Cache-Status: {:?}", self.headers)).to_owned(),
        )
    }

    /// Fails unless the status is `status`.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        assert_eq!(self.status, status, "{:?}\n{}", self.headers, short(&self.text()));
        self
    }

    /// Fails unless this is a registry error: `status`, JSON, and `code` as its first error's code.
    #[track_caller]
    pub fn expect_error(self, status: u16, code: &str) -> Self {
        let answer = self.expect(status);
        let json = answer.json();
        assert_eq!(json["errors"][0]["code"], code, "{}", answer.text());
        assert!(json["errors"][0]["message"].is_string(), "an error has a message: {json}");
        answer
    }
}

/// A Cache-Status header with one member.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheStatus(String);

impl CacheStatus {
    /// The value of a parameter (RFC 8941 item as it stands, or `?1` for a bare one).
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.split(';').skip(1).map(str::trim).find_map(|parameter| {
            match parameter.split_once('=') {
                Some((k, value)) => (k == key).then_some(value),
                None => (parameter == key).then_some("?1"),
            }
        })
    }

    /// Whether it was answered without the upstream.
    pub fn is_hit(&self) -> bool {
        self.get("hit") == Some("?1")
    }

    /// Whether all of the content had been hashed.
    pub fn is_verified(&self) -> bool {
        self.get("verified") == Some("?1")
    }
}

fn short(text: &str) -> String {
    text.chars().take(2000).collect()
}

fn find<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
}

#[derive(Debug)]
enum Framing {
    Length(u64),
    Chunked { left: u64, ended: bool },
    UntilClose,
}

/// An answer whose head was read.
#[derive(Debug)]
pub struct Incoming {
    /// The status code.
    pub status: u16,
    /// The headers, names in lower case.
    pub headers: Vec<(String, String)>,
    reader: BufReader<TcpStream>,
    framing: Framing,
}

impl Incoming {
    fn read_head(stream: TcpStream, is_head: bool) -> Result<Self> {
        let mut reader = BufReader::with_capacity(64 << 10, stream);
        loop {
            let (status, headers) = read_head(&mut reader)?;
            if status / 100 == 1 {
                continue;
            }
            let chunked = find(&headers, "transfer-encoding")
                .is_some_and(|v| v.eq_ignore_ascii_case("chunked"));
            let length = find(&headers, "content-length").map(|text| {
                text.parse().map_err(|_| invalid(format!("a content-length of {text:?}")))
            });
            let framing = match length.transpose()? {
                _ if is_head || status == 204 || status == 304 => Framing::Length(0),
                _ if chunked => Framing::Chunked { left: 0, ended: false },
                Some(length) => Framing::Length(length),
                None => Framing::UntilClose,
            };
            return Ok(Self { status, headers, reader, framing });
        }
    }

    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    /// The next bytes of the body, at most `buffer.len()`; 0 at its end. An error when it is cut off.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize> {
        let cut = || Error::new(ErrorKind::UnexpectedEof, "the body was cut off");
        match &mut self.framing {
            Framing::UntilClose => self.reader.read(buffer),
            Framing::Length(0) | Framing::Chunked { ended: true, .. } => Ok(0),
            Framing::Length(left) => {
                let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let got = self.reader.read(&mut buffer[..most])?;
                *left -= got as u64;
                if got == 0 && most > 0 { Err(cut()) } else { Ok(got) }
            }
            Framing::Chunked { left, ended } => {
                if *left == 0 {
                    *left = read_chunk_size(&mut self.reader)?;
                    if *left == 0 {
                        while !read_line(&mut self.reader)?.is_empty() {}
                        *ended = true;
                        return Ok(0);
                    }
                }
                let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                let got = self.reader.read(&mut buffer[..most])?;
                *left -= got as u64;
                if got == 0 {
                    return Err(cut());
                }
                if *left == 0 {
                    read_line(&mut self.reader)?;
                }
                Ok(got)
            }
        }
    }

    /// Exactly the next `count` bytes of the body.
    pub fn take(&mut self, count: usize) -> Result<Vec<u8>> {
        let mut out = vec![0; count];
        let mut filled = 0;
        while filled < count {
            match self.read(&mut out[filled..])? {
                0 => return Err(Error::new(ErrorKind::UnexpectedEof, "the body ended")),
                got => filled += got,
            }
        }
        Ok(out)
    }

    /// All that is left, and whether the body ended as it should.
    pub fn drain(&mut self) -> (Vec<u8>, Result<()>) {
        let mut out = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return (out, Ok(())),
                Ok(got) => out.extend_from_slice(&buffer[..got]),
                Err(error) => return (out, Err(error)),
            }
        }
    }

    /// Reads the rest; an error when it is cut off.
    pub fn finish(mut self) -> Result<Answer> {
        let (body, end) = self.drain();
        end?;
        Ok(Answer { status: self.status, headers: self.headers, body })
    }
}

fn invalid(message: String) -> Error {
    Error::new(ErrorKind::InvalidData, message)
}

fn read_line(reader: &mut BufReader<TcpStream>) -> Result<String> {
    let mut line = Vec::new();
    reader.take(HEAD_BYTES_MAX).read_until(b'\n', &mut line)?;
    if line.pop() != Some(b'\n') {
        return Err(Error::new(ErrorKind::UnexpectedEof, "the connection ended within the head"));
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).map_err(|_| invalid("a line that is not text".to_owned()))
}

fn read_chunk_size(reader: &mut BufReader<TcpStream>) -> Result<u64> {
    let line = read_line(reader)?;
    let size = line.split(';').next().unwrap_or_default().trim();
    u64::from_str_radix(size, 16).map_err(|_| invalid(format!("a chunk size of {line:?}")))
}

fn read_head(reader: &mut BufReader<TcpStream>) -> Result<(u16, Vec<(String, String)>)> {
    let line = read_line(reader)?;
    let status = line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.get(2..5))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| invalid(format!("a status line of {line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok((status, headers));
        }
        let (name, value) =
            line.split_once(':').ok_or_else(|| invalid(format!("a header of {line:?}")))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}
