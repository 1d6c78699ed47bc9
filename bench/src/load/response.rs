//! Reads HTTP/1.1 responses with a declared length, as their bytes come in. Pure, no I/O, and no copy
//! of a body: it is handed on as the slice that it came in as.
//!
//! It reads what this benchmark asks for: answers to GET and HEAD. A body in chunks, or one that
//! ends with the connection, is refused by name; hyper reads those.

/// The most bytes of one response head.
pub const HEAD_BYTES_MAX: usize = 64 << 10;

/// What the head of a response says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Head {
    /// The status code.
    pub status: u16,
    /// How many bytes of body follow.
    pub length: u64,
    /// False when the server closes the connection after this response.
    pub keep_alive: bool,
    /// The value of `Location`.
    pub location: Option<String>,
    /// The value of `Docker-Content-Digest`.
    pub digest: Option<String>,
    /// The value of `Content-Type`.
    pub content_type: Option<String>,
}

/// Why bytes are not a response that can be read here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResponseError {
    /// The first line is not `HTTP/1.x CODE …`.
    #[error("not an HTTP/1 response: it starts with {0:?}")]
    StatusLine(String),
    /// A header is not `Name: value`.
    #[error("a header line without a colon: {0:?}")]
    Header(String),
    /// The length is not a number, or is given twice with different values.
    #[error("a Content-Length that is none: {0:?}")]
    Length(String),
    /// The body has no declared length.
    #[error("a body without a Content-Length ({0}); use --client hyper")]
    Undeclared(&'static str),
    /// The head does not end.
    #[error("a response head of more than {HEAD_BYTES_MAX} bytes")]
    HeadTooLong,
    /// More bytes came than the response has.
    #[error("{0} bytes after the end of the response")]
    Excess(usize),
}

/// What a part of the input was.
#[derive(Debug, PartialEq, Eq)]
pub enum Event {
    /// All of the input was used, and the response goes on.
    NeedMore,
    /// The response is complete, after this many bytes of the input.
    Complete(usize),
}

/// Reads one response after another.
#[derive(Debug, Default)]
pub struct ResponseReader {
    /// The start of a head that has not ended yet.
    partial: Vec<u8>,
    head: Option<Head>,
    remaining: u64,
    without_body: bool,
}

impl ResponseReader {
    /// Prepares for the next response. `without_body`: it answers a HEAD.
    pub fn start(&mut self, without_body: bool) {
        self.partial.clear();
        self.head = None;
        self.remaining = 0;
        self.without_body = without_body;
    }

    /// The head, once it is in.
    pub fn head(&self) -> Option<&Head> {
        self.head.as_ref()
    }

    /// How many bytes of the body are still to come; 0 before the head is in.
    pub fn remaining(&self) -> u64 {
        self.remaining
    }

    /// Reads `input`, and hands its bytes of body to `body`.
    ///
    /// # Errors
    /// When the bytes are not a response that can be read here. The connection is of no use then.
    pub fn feed(
        &mut self,
        input: &[u8],
        mut body: impl FnMut(&[u8]),
    ) -> Result<Event, ResponseError> {
        let mut used = 0;
        while self.head.is_none() {
            match self.feed_head(&input[used..])? {
                Some(bytes) => used += bytes,
                None => return Ok(Event::NeedMore),
            }
        }
        let here = usize::try_from(self.remaining).unwrap_or(usize::MAX).min(input.len() - used);
        if here > 0 {
            body(&input[used..used + here]);
            self.remaining -= here as u64;
            used += here;
        }
        Ok(if self.remaining == 0 { Event::Complete(used) } else { Event::NeedMore })
    }

    /// How many bytes of `input` belonged to the head, when it ends in them.
    fn feed_head(&mut self, input: &[u8]) -> Result<Option<usize>, ResponseError> {
        if self.partial.is_empty()
            && let Some(end) = end_of_head(input)
        {
            // The usual case: the whole head in one piece, parsed where it is.
            self.take_head(&input[..end])?;
            return Ok(Some(end));
        }
        let before = self.partial.len();
        self.partial.extend_from_slice(&input[..input.len().min(HEAD_BYTES_MAX + 1)]);
        match end_of_head(&self.partial) {
            Some(end) if end <= HEAD_BYTES_MAX => {
                let partial = std::mem::take(&mut self.partial);
                self.take_head(&partial[..end])?;
                Ok(Some(end - before))
            }
            None if self.partial.len() <= HEAD_BYTES_MAX => Ok(None),
            _ => Err(ResponseError::HeadTooLong),
        }
    }

    fn take_head(&mut self, bytes: &[u8]) -> Result<(), ResponseError> {
        let head = parse_head(bytes, self.without_body)?;
        if (100..200).contains(&head.status) {
            // An interim response; the final one follows.
            return Ok(());
        }
        self.remaining = head.length;
        self.head = Some(head);
        Ok(())
    }
}

/// The length of a head with the empty line that ends it.
fn end_of_head(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|start| start + 4)
}

/// Parses a whole head: the status line, header lines, the empty line.
///
/// # Errors
/// As [`ResponseReader::feed`].
pub fn parse_head(bytes: &[u8], without_body: bool) -> Result<Head, ResponseError> {
    let text = String::from_utf8_lossy(bytes);
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let (status, version_minor) = parse_status_line(first)?;

    let mut length = None;
    let mut chunked = false;
    let mut keep_alive = version_minor == 1;
    let (mut location, mut digest, mut content_type) = (None, None, None);
    for line in lines.take_while(|line| !line.is_empty()) {
        let (name, value) =
            line.split_once(':').ok_or_else(|| ResponseError::Header(shortened(line)))?;
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") {
            let declared = value
                .bytes()
                .all(|byte| byte.is_ascii_digit())
                .then(|| value.parse::<u64>().ok())
                .flatten()
                .filter(|declared| length.is_none_or(|before| before == *declared))
                .ok_or_else(|| ResponseError::Length(shortened(value)))?;
            length = Some(declared);
        } else if name.eq_ignore_ascii_case("transfer-encoding") {
            chunked = true;
        } else if name.eq_ignore_ascii_case("connection") {
            for option in value.split(',').map(str::trim) {
                if option.eq_ignore_ascii_case("close") {
                    keep_alive = false;
                } else if option.eq_ignore_ascii_case("keep-alive") {
                    keep_alive = true;
                }
            }
        } else if name.eq_ignore_ascii_case("location") {
            location = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case("docker-content-digest") {
            digest = Some(value.to_owned());
        } else if name.eq_ignore_ascii_case("content-type") {
            content_type = Some(value.to_owned());
        }
    }

    let length = if without_body || (100..200).contains(&status) || matches!(status, 204 | 304) {
        0
    } else if chunked {
        return Err(ResponseError::Undeclared("it comes in chunks"));
    } else {
        length.ok_or(ResponseError::Undeclared("it ends with the connection"))?
    };
    Ok(Head { status, length, keep_alive, location, digest, content_type })
}

fn parse_status_line(line: &str) -> Result<(u16, u8), ResponseError> {
    let wrong = || ResponseError::StatusLine(shortened(line));
    let rest = line.strip_prefix("HTTP/1.").ok_or_else(wrong)?;
    let (minor, rest) = rest.split_once(' ').ok_or_else(wrong)?;
    let minor = match minor {
        "0" => 0,
        "1" => 1,
        _ => return Err(wrong()),
    };
    let code = rest.get(..3).filter(|_| matches!(rest.as_bytes().get(3), None | Some(b' ')));
    let code = code.and_then(|code| code.parse::<u16>().ok()).filter(|code| *code >= 100);
    Ok((code.ok_or_else(wrong)?, minor))
}

fn shortened(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &[u8] =
        b"HTTP/1.1 200 OK\r\nContent-Length: 11\r\nServer: x\r\n\r\nhello world";

    fn read(pieces: &[&[u8]]) -> Result<(Vec<u8>, Event), ResponseError> {
        let mut reader = ResponseReader::default();
        reader.start(false);
        let mut body = Vec::new();
        let mut event = Event::NeedMore;
        for piece in pieces {
            event = reader.feed(piece, |bytes| body.extend_from_slice(bytes))?;
        }
        Ok((body, event))
    }

    #[test]
    fn a_response_reads_the_same_however_it_is_cut() {
        for cut in 0..RESPONSE.len() {
            let (body, event) = read(&[&RESPONSE[..cut], &RESPONSE[cut..]]).unwrap();
            assert_eq!(body, b"hello world", "cut at {cut}");
            assert_eq!(event, Event::Complete(RESPONSE.len() - cut), "cut at {cut}");
        }
        let bytes: Vec<&[u8]> = RESPONSE.chunks(1).collect();
        assert_eq!(read(&bytes).unwrap().0, b"hello world");
    }

    #[test]
    fn a_body_that_is_cut_off_is_not_complete() {
        let (body, event) = read(&[&RESPONSE[..RESPONSE.len() - 1]]).unwrap();
        assert_eq!((body.len(), event), (10, Event::NeedMore));
    }

    #[test]
    fn bytes_after_a_response_are_left_to_the_caller() {
        let doubled = [RESPONSE, RESPONSE].concat();
        assert_eq!(read(&[&doubled]).unwrap().1, Event::Complete(RESPONSE.len()));
    }

    #[test]
    fn an_interim_response_is_passed_over() {
        let input = [b"HTTP/1.1 100 Continue\r\n\r\n", RESPONSE].concat();
        for cut in 0..input.len() {
            let (body, _) = read(&[&input[..cut], &input[cut..]]).unwrap();
            assert_eq!(body, b"hello world", "cut at {cut}");
        }
    }

    #[test]
    fn a_head_answer_has_no_body_whatever_it_declares() {
        let mut reader = ResponseReader::default();
        reader.start(true);
        let head = &RESPONSE[..RESPONSE.len() - 11];
        assert_eq!(reader.feed(head, |_| panic!("no body")).unwrap(), Event::Complete(head.len()));
        assert_eq!(reader.head().map(|head| head.length), Some(0));
    }

    #[test]
    fn a_body_without_a_length_is_refused_by_name() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert!(matches!(read(&[chunked]), Err(ResponseError::Undeclared(_))));
        let open = b"HTTP/1.1 200 OK\r\nServer: x\r\n\r\n";
        assert!(matches!(read(&[open]), Err(ResponseError::Undeclared(_))));
    }

    #[test]
    fn statuses_that_have_no_body_need_no_length() {
        for status in ["204 No Content", "304 Not Modified"] {
            let input = format!("HTTP/1.1 {status}\r\n\r\n");
            assert_eq!(read(&[input.as_bytes()]).unwrap().1, Event::Complete(input.len()));
        }
    }

    #[test]
    fn a_length_that_is_no_length_is_an_error() {
        for value in ["", "-1", "+5", "1e3", "18446744073709551616", "5, 5"] {
            let input = format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\n");
            let error = read(&[input.as_bytes()]).unwrap_err();
            assert!(matches!(error, ResponseError::Length(_)), "{value:?}: {error}");
        }
        let two = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n";
        assert!(matches!(read(&[two]), Err(ResponseError::Length(_))));
    }

    #[test]
    fn what_is_not_http_is_an_error() {
        for input in
            ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 2xx OK\r\n\r\n", "HTTP/2 200\r\n\r\n", "\r\n\r\n"]
        {
            assert!(read(&[input.as_bytes()]).is_err(), "{input:?}");
        }
    }

    #[test]
    fn a_head_without_end_is_refused_at_the_bound() {
        let mut reader = ResponseReader::default();
        reader.start(false);
        let line = [b'x'; 1000];
        let mut fed = 0;
        let error = loop {
            match reader.feed(&line, |_| ()) {
                Ok(_) => fed += line.len(),
                Err(error) => break error,
            }
            assert!(fed <= HEAD_BYTES_MAX);
        };
        assert_eq!(error, ResponseError::HeadTooLong);
    }

    #[test]
    fn the_connection_ends_where_the_server_says_so() {
        let head = |text: &str| parse_head(text.as_bytes(), true).unwrap().keep_alive;
        assert!(head("HTTP/1.1 200 OK\r\n\r\n"));
        assert!(!head("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n"));
        assert!(!head("HTTP/1.0 200 OK\r\n\r\n"));
        assert!(head("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n"));
    }
}
