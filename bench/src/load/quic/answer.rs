//! One answer on a QUIC stream, judged against what was expected of it. No I/O.

use bytes::Bytes;
use outrider_artifact::ContentHasher;
use outrider_http3::client::{self, RequestHead, Response};

use super::native;
use crate::arguments::Protocol;
use crate::load::source::Expectation;
use crate::load::tally::{Failure, FailureKind};
use crate::load::target::Server;

/// The longest head of a response that is read, encoded.
const SECTION_BYTES_MAX: usize = 64 << 10;

/// The bytes of a GET, which are a whole request when the stream is finished behind them.
pub fn request(server: &Server, path: &str, headers: &[(String, String)]) -> Bytes {
    let lower: Vec<(String, &str)> =
        headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.as_str())).collect();
    let fields: Vec<(&str, &str)> =
        lower.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    client::encode_head(&RequestHead {
        fields: &fields,
        ..RequestHead::get(&server.authority, path)
    })
}

/// What a client writes on its control stream.
pub fn preface() -> Bytes {
    client::control_preface()
}

/// Reads an answer in one of the protocols.
#[derive(Debug)]
enum Reader {
    Http3(Box<Response>),
    Native(Box<native::Response>),
}

/// An answer that is awaited or coming in.
#[derive(Debug)]
pub struct Answer {
    reader: Reader,
    expectation: Expectation,
    hasher: Option<ContentHasher>,
}

/// What was right and wrong with an answer that has ended.
#[derive(Debug)]
pub struct Verdict {
    /// Its status; 0 when there was none.
    pub status: u16,
    /// Bytes of its body.
    pub length: u64,
    /// Which target it answers.
    pub target: usize,
    /// The failure that it is, if it is one.
    pub result: Result<(), Failure>,
}

impl Answer {
    /// Waits for the answer to a request.
    pub fn expect(expectation: Expectation, protocol: Protocol) -> Self {
        let hasher = expectation.digest.map(|digest| ContentHasher::new(digest.algorithm()));
        let reader = match protocol {
            Protocol::Native => Reader::Native(Box::default()),
            _ => Reader::Http3(Box::new(Response::new(false, SECTION_BYTES_MAX))),
        };
        Self { reader, expectation, hasher }
    }

    /// Reads bytes of the stream. Returns how many were of the body.
    ///
    /// # Errors
    /// When this is not the protocol.
    pub fn feed(&mut self, bytes: Bytes) -> Result<u64, Failure> {
        let (hasher, mut count) = (&mut self.hasher, 0);
        let mut body = |body: &[u8]| {
            count += body.len() as u64;
            if let Some(hasher) = hasher {
                hasher.update(body);
            }
        };
        match &mut self.reader {
            Reader::Http3(response) => response
                .on_data(bytes, |piece| body(&piece))
                .map_err(|error| Failure::new(FailureKind::Protocol, error.to_string()))?,
            Reader::Native(response) => response
                .on_data(&bytes, body)
                .map_err(|error| Failure::new(FailureKind::Protocol, error.to_string()))?,
        }
        Ok(count)
    }

    /// The stream has ended as it should.
    pub fn finish(mut self) -> Verdict {
        let result = self.judge();
        let status = self.status().unwrap_or(0);
        let length = self.body_bytes();
        Verdict { status, length, target: self.expectation.target, result }
    }

    fn status(&self) -> Option<u16> {
        match &self.reader {
            Reader::Http3(response) => response.head().map(|head| head.status),
            Reader::Native(response) => response.status(),
        }
    }

    fn body_bytes(&self) -> u64 {
        match &self.reader {
            Reader::Http3(response) => response.body_bytes(),
            Reader::Native(response) => response.body_bytes(),
        }
    }

    fn judge(&mut self) -> Result<(), Failure> {
        // Also compares the body with what the head declared.
        let ended = match &mut self.reader {
            Reader::Http3(response) => response.on_end().map_err(|error| error.to_string()),
            Reader::Native(response) => response.on_end(),
        };
        ended.map_err(|text| {
            let kind = match self.status() {
                Some(_) => FailureKind::ShortBody,
                None => FailureKind::Closed,
            };
            Failure::new(kind, text)
        })?;
        self.expectation.check_head(self.status().unwrap_or(0), self.body_bytes())?;
        match self.hasher.take() {
            Some(hasher) => self.expectation.check_digest(&hasher.finish()),
            None => Ok(()),
        }
    }

    /// The failure that the end of the stream or of the connection is at this point.
    pub fn cut(&self, why: &str) -> Failure {
        match self.status() {
            Some(_) => Failure::new(
                FailureKind::ShortBody,
                format!("the body ended after {} bytes: {why}", self.body_bytes()),
            ),
            None => Failure::new(FailureKind::Closed, format!("no answer: {why}")),
        }
    }
}
