//! Which request comes next, and what its answer must be. No I/O.

use outrider_artifact::Digest;

use super::tally::{Failure, FailureKind};
use super::target::{Server, Target, request_lines};

/// What the answer to a request must be.
#[derive(Clone, Debug)]
pub struct Expectation {
    /// Which target was asked for.
    pub target: usize,
    /// The status; any of 200 to 299 when there is none.
    pub status: Option<u16>,
    /// The length of the body; any when it is not known yet.
    pub length: Option<u64>,
    /// The digest of the body, when it is to be hashed.
    pub digest: Option<Digest>,
}

impl Expectation {
    /// Judges a head.
    ///
    /// # Errors
    /// The failure that it is.
    pub fn check_head(&self, status: u16, length: u64) -> Result<(), Failure> {
        let expected = self.status.map_or(200..=299, |status| status..=status);
        if !expected.contains(&status) {
            return Err(Failure::new(FailureKind::Status, format!("status {status}")));
        }
        match self.length.filter(|expected| *expected != length) {
            Some(expected) => Err(Failure::new(
                FailureKind::Length,
                format!("a body of {length} bytes, {expected} were expected"),
            )),
            None => Ok(()),
        }
    }

    /// Judges the digest of a body.
    ///
    /// # Errors
    /// The failure that it is.
    pub fn check_digest(&self, found: &Digest) -> Result<(), Failure> {
        match self.digest.filter(|expected| expected != found) {
            Some(expected) => Err(Failure::new(
                FailureKind::Digest,
                format!("a body with the digest {found}, {expected} was expected"),
            )),
            None => Ok(()),
        }
    }
}

/// A blob of which ranges are asked for.
#[derive(Clone, Debug)]
pub struct RangedBlob {
    /// Path and query.
    pub path: String,
    /// Its length.
    pub size_bytes: u64,
}

/// Makes requests without end.
#[derive(Clone, Debug)]
pub enum Source {
    /// Whole bodies, one URL after the other.
    RoundRobin(RoundRobin),
    /// The first bytes of chunks at random.
    RandomRanges(RandomRanges),
}

/// See [`Source::RoundRobin`].
#[derive(Clone, Debug)]
pub struct RoundRobin {
    requests: Vec<(Vec<u8>, Expectation)>,
    paths: Vec<String>,
    next: usize,
}

/// See [`Source::RandomRanges`].
#[derive(Clone, Debug)]
pub struct RandomRanges {
    blobs: Vec<RangedBlob>,
    prefixes: Vec<String>,
    chunk_bytes: u64,
    range_bytes: u64,
    random: fastrand::Rng,
}

impl Source {
    /// Downloads of `targets` in turn. `length` must be every body's, if it is given; `digest` says
    /// how each is verified.
    pub fn round_robin(
        server: &Server,
        targets: &[Target],
        headers: &[(String, String)],
        length: Option<u64>,
        digest: impl Fn(&Target) -> Option<Digest>,
    ) -> Self {
        let requests = targets
            .iter()
            .enumerate()
            .map(|(index, target)| {
                let text = request_lines(server, &target.path, headers) + "\r\n";
                let digest = digest(target);
                let expectation = Expectation { target: index, status: None, length, digest };
                (text.into_bytes(), expectation)
            })
            .collect();
        let paths = targets.iter().map(|target| target.path.clone()).collect();
        Self::RoundRobin(RoundRobin { requests, paths, next: 0 })
    }

    /// Requests for the first `range_bytes` of chunks of `chunk_bytes`, each chosen at random from
    /// all chunks of `blobs`. A server that caches by chunk reads all of it for each.
    pub fn random_ranges(
        server: &Server,
        blobs: Vec<RangedBlob>,
        chunk_bytes: u64,
        range_bytes: u64,
        seed: u64,
    ) -> Self {
        assert!(!blobs.is_empty() && chunk_bytes > 0 && (1..=chunk_bytes).contains(&range_bytes));
        assert!(blobs.iter().all(|blob| blob.size_bytes >= chunk_bytes), "every blob has a chunk");
        let prefixes = blobs.iter().map(|blob| request_lines(server, &blob.path, &[])).collect();
        let random = fastrand::Rng::with_seed(seed);
        Self::RandomRanges(RandomRanges { blobs, prefixes, chunk_bytes, range_bytes, random })
    }

    /// Adds the next request's bytes to `out`, and says what its answer must be.
    pub fn next(&mut self, out: &mut Vec<u8>) -> Expectation {
        match self {
            Self::RoundRobin(source) => {
                let (bytes, expectation) = &source.requests[source.next];
                source.next = (source.next + 1) % source.requests.len();
                out.extend_from_slice(bytes);
                expectation.clone()
            }
            Self::RandomRanges(source) => source.next(out),
        }
    }

    /// The next request as its path and what its answer must be; for a client that writes requests
    /// itself. Only whole bodies are asked for in this way.
    pub fn next_path(&mut self) -> Option<(String, Expectation)> {
        let Self::RoundRobin(source) = self else { return None };
        let index = source.next;
        source.next = (index + 1) % source.requests.len();
        Some((source.paths[index].clone(), source.requests[index].1.clone()))
    }

    /// As [`Source::next_path`], for a client that has made the requests of all targets before: the
    /// target is the index of its path in [`RoundRobin::paths`].
    pub fn next_target(&mut self) -> Option<Expectation> {
        let Self::RoundRobin(source) = self else { return None };
        let index = source.next;
        source.next = (index + 1) % source.requests.len();
        Some(source.requests[index].1.clone())
    }

    /// Takes the length of the first good answer as what all answers of that target must have.
    pub fn learn(&mut self, target: usize, length: u64) {
        if let Self::RoundRobin(source) = self {
            source.requests[target].1.length.get_or_insert(length);
        }
    }

    /// Starts with another request than the other threads of the same load.
    pub fn offset(&mut self, part: usize) {
        match self {
            Self::RoundRobin(source) => source.next = part % source.requests.len(),
            Self::RandomRanges(source) => {
                source.random.seed(source.random.get_seed() ^ part as u64)
            }
        }
    }
}

impl RoundRobin {
    /// Path and query of each target.
    pub fn paths(&self) -> &[String] {
        &self.paths
    }
}

impl RandomRanges {
    fn next(&mut self, out: &mut Vec<u8>) -> Expectation {
        let target = self.random.usize(..self.blobs.len());
        let chunks = self.blobs[target].size_bytes / self.chunk_bytes;
        let first = self.random.u64(..chunks) * self.chunk_bytes;
        let last = first + self.range_bytes - 1;
        out.extend_from_slice(self.prefixes[target].as_bytes());
        out.extend_from_slice(format!("Range: bytes={first}-{last}\r\n\r\n").as_bytes());
        Expectation { target, status: Some(206), length: Some(self.range_bytes), digest: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::target;

    fn round_robin(urls: &[&str]) -> Source {
        let urls: Vec<String> = urls.iter().map(ToString::to_string).collect();
        let (server, targets) = target::parse_all(&urls).unwrap();
        Source::round_robin(&server, &targets, &[], None, |_| None)
    }

    #[test]
    fn urls_are_asked_in_turn() {
        let mut source = round_robin(&["http://127.0.0.1/a", "http://127.0.0.1/b"]);
        let mut asked = Vec::new();
        for _ in 0..3 {
            let mut bytes = Vec::new();
            source.next(&mut bytes);
            asked.push(bytes[4..6].to_vec());
        }
        assert_eq!(asked, [b"/a", b"/b", b"/a"]);
    }

    #[test]
    fn a_length_once_learnt_is_expected_from_then_on() {
        let mut source = round_robin(&["http://127.0.0.1/a"]);
        assert!(source.next(&mut Vec::new()).check_head(200, 5).is_ok());
        source.learn(0, 5);
        let expectation = source.next(&mut Vec::new());
        assert!(expectation.check_head(200, 5).is_ok());
        assert_eq!(expectation.check_head(200, 4).unwrap_err().kind, FailureKind::Length);
        assert_eq!(expectation.check_head(404, 5).unwrap_err().kind, FailureKind::Status);
    }

    #[test]
    fn a_whole_body_is_no_answer_to_a_range() {
        let (server, _) = target::parse("http://127.0.0.1/").unwrap();
        let blob = RangedBlob { path: "/b".into(), size_bytes: 10_000 };
        let mut source = Source::random_ranges(&server, vec![blob], 4096, 100, 1);
        let expectation = source.next(&mut Vec::new());
        assert_eq!(expectation.check_head(200, 100).unwrap_err().kind, FailureKind::Status);
        assert!(expectation.check_head(206, 100).is_ok());
    }

    #[test]
    fn ranges_begin_at_every_whole_chunk_and_nowhere_else() {
        let (server, _) = target::parse("http://127.0.0.1/").unwrap();
        let blob = RangedBlob { path: "/b".into(), size_bytes: 4 * 4096 + 1 };
        let mut source = Source::random_ranges(&server, vec![blob], 4096, 1, 7);
        let mut firsts = std::collections::BTreeSet::new();
        for _ in 0..200 {
            let mut bytes = Vec::new();
            source.next(&mut bytes);
            let text = String::from_utf8(bytes).unwrap();
            let range = text.split("bytes=").nth(1).unwrap();
            firsts.insert(range.split('-').next().unwrap().parse::<u64>().unwrap());
        }
        assert_eq!(firsts.into_iter().collect::<Vec<_>>(), [0, 4096, 8192, 12288]);
    }
}
