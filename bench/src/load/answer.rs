//! One answer as it comes in, judged against what was expected of it. No I/O.

use outrider_artifact::ContentHasher;

use super::response::{Event, Head, ResponseReader};
use super::source::Expectation;
use super::tally::{Failure, FailureKind};

/// Reads answers one after another.
#[derive(Debug, Default)]
pub struct Answer {
    reader: ResponseReader,
    hasher: Option<ContentHasher>,
    expectation: Option<Expectation>,
    /// What was wrong with the head; the body is still read, so that the connection stays usable.
    wrong: Option<Failure>,
    judged: bool,
    complete: bool,
    body_bytes: u64,
}

impl Answer {
    /// Waits for the answer to a request from now on.
    pub fn expect(&mut self, expectation: Expectation) {
        self.reader.start(false);
        self.hasher = expectation.digest.map(|digest| ContentHasher::new(digest.algorithm()));
        self.expectation = Some(expectation);
        self.wrong = None;
        self.judged = false;
        self.complete = false;
    }

    /// Reads bytes of the answer.
    ///
    /// # Errors
    /// When the connection is of no use any more.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let Some(expectation) = self.expectation.as_ref().filter(|_| !self.complete) else {
            let text = format!("{} bytes that nothing was asked for", bytes.len());
            return Err(Failure::new(FailureKind::Protocol, text));
        };
        let (hasher, body_bytes) = (&mut self.hasher, &mut self.body_bytes);
        let event = self
            .reader
            .feed(bytes, |body| {
                *body_bytes += body.len() as u64;
                if let Some(hasher) = hasher {
                    hasher.update(body);
                }
            })
            .map_err(|error| Failure::new(FailureKind::Protocol, error.to_string()))?;
        if !self.judged
            && let Some(head) = self.reader.head()
        {
            self.judged = true;
            self.wrong = expectation.check_head(head.status, head.length).err();
        }
        if let Event::Complete(used) = event {
            if used < bytes.len() {
                let text = format!("{} bytes after the end of the answer", bytes.len() - used);
                return Err(Failure::new(FailureKind::Protocol, text));
            }
            if let Some(hasher) = self.hasher.take()
                && self.wrong.is_none()
            {
                self.wrong = expectation.check_digest(&hasher.finish()).err();
            }
            self.complete = true;
        }
        Ok(())
    }

    /// Whether the answer is complete.
    pub fn complete(&self) -> bool {
        self.complete
    }

    /// The head and the verdict of a complete answer.
    pub fn finish(&mut self) -> (Option<&Head>, Result<(), Failure>) {
        let verdict = self.wrong.take().map_or(Ok(()), Err);
        (self.reader.head(), verdict)
    }

    /// Which target was asked for last.
    pub fn target(&self) -> usize {
        self.expectation.as_ref().map_or(0, |expectation| expectation.target)
    }

    /// Bytes of bodies since the last call, of unfinished answers too.
    pub fn take_body_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.body_bytes)
    }

    /// The failure that the end of the connection is at this point.
    pub fn cut(&self) -> Failure {
        match self.reader.head() {
            Some(head) => Failure::new(
                FailureKind::ShortBody,
                format!(
                    "the body ended {} bytes short of {}",
                    self.reader.remaining(),
                    head.length
                ),
            ),
            None => {
                Failure::new(FailureKind::Closed, "the connection ended before the answer began")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrider_artifact::Digest;

    fn expectation(digest: Option<Digest>) -> Expectation {
        Expectation { target: 0, status: None, length: None, digest }
    }

    fn answer(digest: Option<Digest>, bytes: &[u8]) -> (Answer, Result<(), Failure>) {
        let mut answer = Answer::default();
        answer.expect(expectation(digest));
        let result = answer.feed(bytes);
        (answer, result)
    }

    const GOOD: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbody";

    #[test]
    fn a_body_with_the_expected_digest_is_good_and_any_other_is_not() {
        let (mut good, _) = answer(Some(Digest::sha256(b"body")), GOOD);
        assert_eq!(good.finish().1, Ok(()));
        assert_eq!(good.take_body_bytes(), 4);
        let (mut bad, _) = answer(Some(Digest::sha256(b"bodx")), GOOD);
        assert_eq!(bad.finish().1.unwrap_err().kind, FailureKind::Digest);
    }

    #[test]
    fn an_error_answer_is_a_failure_that_leaves_the_connection_usable() {
        let (mut answer, fed) = answer(None, b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno");
        assert!(fed.is_ok() && answer.complete());
        assert_eq!(answer.finish().1.unwrap_err().kind, FailureKind::Status);
        answer.expect(expectation(None));
        answer.feed(GOOD).unwrap();
        assert_eq!(answer.finish().1, Ok(()));
    }

    #[test]
    fn a_connection_that_ends_is_told_apart_by_how_far_the_answer_was() {
        let (cut, _) = answer(None, &GOOD[..GOOD.len() - 1]);
        assert_eq!(cut.cut().kind, FailureKind::ShortBody);
        let (cut, _) = answer(None, b"HTTP/1.1 200");
        assert_eq!(cut.cut().kind, FailureKind::Closed);
    }

    #[test]
    fn bytes_beyond_the_answer_end_the_connection() {
        let (_, fed) = answer(None, &[GOOD, b"x"].concat());
        assert_eq!(fed.unwrap_err().kind, FailureKind::Protocol);
        let (mut answer, _) = answer(None, GOOD);
        assert_eq!(answer.feed(b"x").unwrap_err().kind, FailureKind::Protocol);
    }
}
