//! One answer on a QUIC stream, judged against what was expected of it. No I/O.

use bytes::Bytes;
use outrider_artifact::ContentHasher;
use outrider_http3::client::{self, RequestHead, Response};

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

/// An answer that is awaited or coming in.
#[derive(Debug)]
pub struct Answer {
    response: Response,
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
    /// Waits for the answer to a GET.
    pub fn expect(expectation: Expectation) -> Self {
        let hasher = expectation.digest.map(|digest| ContentHasher::new(digest.algorithm()));
        Self { response: Response::new(false, SECTION_BYTES_MAX), expectation, hasher }
    }

    /// Reads bytes of the stream. Returns how many were of the body.
    ///
    /// # Errors
    /// When this is not HTTP/3.
    pub fn feed(&mut self, bytes: Bytes) -> Result<u64, Failure> {
        let (hasher, mut count) = (&mut self.hasher, 0);
        self.response
            .on_data(bytes, |body| {
                count += body.len() as u64;
                if let Some(hasher) = hasher {
                    hasher.update(&body);
                }
            })
            .map_err(|error| Failure::new(FailureKind::Protocol, error.to_string()))?;
        Ok(count)
    }

    /// The stream has ended as it should.
    pub fn finish(mut self) -> Verdict {
        let result = self.judge();
        let status = self.response.head().map_or(0, |head| head.status);
        let length = self.response.body_bytes();
        Verdict { status, length, target: self.expectation.target, result }
    }

    fn judge(&mut self) -> Result<(), Failure> {
        // Also compares the body with what the head declared.
        self.response.on_end().map_err(|error| {
            let kind = match self.response.head() {
                Some(_) => FailureKind::ShortBody,
                None => FailureKind::Closed,
            };
            Failure::new(kind, error.to_string())
        })?;
        let status = self.response.head().map_or(0, |head| head.status);
        self.expectation.check_head(status, self.response.body_bytes())?;
        match self.hasher.take() {
            Some(hasher) => self.expectation.check_digest(&hasher.finish()),
            None => Ok(()),
        }
    }

    /// The failure that the end of the stream or of the connection is at this point.
    pub fn cut(&self, why: &str) -> Failure {
        match self.response.head() {
            Some(_) => Failure::new(
                FailureKind::ShortBody,
                format!("the body ended after {} bytes: {why}", self.response.body_bytes()),
            ),
            None => Failure::new(FailureKind::Closed, format!("no answer: {why}")),
        }
    }
}
