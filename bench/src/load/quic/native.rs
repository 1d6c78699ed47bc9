//! Requests and answers of the native protocol (docs/NATIVE.md), one digest at a time. No I/O.

use bytes::Bytes;
use outrider_artifact::Digest;
use outrider_artifact::native::{Item, NativeError, Reader, Request, Want, WantKind};

use crate::BenchError;

/// The request for what a path names: `/v2/NAME/blobs/DIGEST`, `/v2/NAME/manifests/DIGEST`, or
/// `/layer/request?digest=DIGEST`.
///
/// # Errors
/// When the path names nothing by digest.
pub fn request(path: &str) -> Result<Bytes, BenchError> {
    let wrong = |why: &str| BenchError::Argument(format!("{path}: {why}"));
    let by_digest = || {
        wrong("the native protocol asks by digest: /v2/NAME/blobs/DIGEST, /layer/request?digest=…")
    };
    let (before, query) = path.split_once('?').unwrap_or((path, ""));
    let parameter = |name: &str| {
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('=')).unwrap_or("")
    };
    let (repository, kind, digest) = match before.strip_prefix("/v2/") {
        None => (parameter("image"), WantKind::Blob, parameter("digest")),
        Some(rest) => {
            let blob =
                rest.rsplit_once("/blobs/").map(|(name, digest)| (name, WantKind::Blob, digest));
            let manifest = rest
                .rsplit_once("/manifests/")
                .map(|(name, digest)| (name, WantKind::Manifest, digest));
            blob.or(manifest).ok_or_else(by_digest)?
        }
    };
    let digest: Digest = digest.parse().map_err(|_| by_digest())?;
    let request = Request {
        customer: String::new(),
        region: String::new(),
        repository: repository.to_owned(),
        upstream: parameter("ns").to_owned(),
        wants: vec![Want { kind, ..Want::whole(digest) }],
    };
    request.encode().map(Bytes::from).map_err(|error| wrong(&error.to_string()))
}

/// The answer to one want, as its bytes come.
#[derive(Debug)]
pub struct Response {
    reader: Reader,
    status: Option<u16>,
    /// Bytes of the body that were announced.
    announced: u64,
    body_bytes: u64,
    /// Another answer for the same want follows.
    more: bool,
    refused: Option<String>,
}

impl Default for Response {
    fn default() -> Self {
        Self {
            reader: Reader::client(),
            status: None,
            announced: 0,
            body_bytes: 0,
            more: false,
            refused: None,
        }
    }
}

impl Response {
    /// Reads bytes of the stream; `body` gets the pieces of the body in it.
    ///
    /// # Errors
    /// When this is not the protocol.
    pub fn on_data(
        &mut self,
        mut bytes: &[u8],
        mut body: impl FnMut(&[u8]),
    ) -> Result<(), NativeError> {
        while !bytes.is_empty() {
            let (taken, item) = self.reader.read(bytes)?;
            match item {
                Some(Item::Answer(answer)) => {
                    self.status.get_or_insert(answer.status);
                    self.announced += answer.body_len;
                    self.more = answer.more;
                }
                Some(Item::Body) => {
                    self.body_bytes += taken as u64;
                    body(&bytes[..taken]);
                }
                Some(Item::Refusal(refusal)) => {
                    self.refused = Some(format!("{}: {}", refusal.code.0, refusal.text));
                }
                Some(Item::Request(_) | Item::Credential(_)) => {
                    return Err(NativeError::Kind { found: 1 });
                }
                None if taken == 0 => break,
                None => {}
            }
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// The stream has ended.
    ///
    /// # Errors
    /// Says what is missing, or how the server refused.
    pub fn on_end(&self) -> Result<(), String> {
        if let Some(text) = &self.refused {
            return Err(format!("refused with {text}"));
        }
        if self.status.is_none() || self.more || !self.reader.is_at_boundary() {
            return Err(format!("{} of {} bytes came", self.body_bytes, self.announced));
        }
        Ok(())
    }

    /// Its status, once it is there.
    pub fn status(&self) -> Option<u16> {
        self.status
    }

    /// Bytes of the body so far.
    pub fn body_bytes(&self) -> u64 {
        self.body_bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use outrider_artifact::native::{Answer, Tier};

    fn answer(body_len: u64, more: bool) -> Vec<u8> {
        Answer {
            want: 0,
            status: 200,
            digest: Digest::sha256(b"x"),
            total: 10,
            start: 0,
            len: 10,
            body_len,
            more,
            verified: true,
            tier: Tier::Ram,
            media_type: String::new(),
            error: String::new(),
        }
        .encode()
        .unwrap()
    }

    #[test]
    fn a_url_of_the_registry_is_a_want() {
        let digest = Digest::sha256(b"x");
        for path in [
            format!("/v2/team/app/blobs/{digest}?ns=docker.io"),
            format!("/layer/request?digest={digest}&image=team/app&ns=docker.io"),
        ] {
            let bytes = request(&path).unwrap();
            let mut reader = Reader::server();
            let (taken, item) = reader.read(&bytes).unwrap();
            let Some(Item::Request(request)) = item else { panic!("{path}") };
            assert_eq!(taken, bytes.len());
            assert_eq!((&*request.repository, &*request.upstream), ("team/app", "docker.io"));
            assert_eq!(request.wants, [Want::whole(digest)]);
        }
        for path in ["/", "/v2/a/manifests/latest", "/v2/a/blobs/x", "/layer/request"] {
            assert!(request(path).is_err(), "{path}");
        }
    }

    #[test]
    fn an_answer_is_read_however_its_bytes_are_cut() {
        let mut whole = answer(4, true);
        whole.extend_from_slice(b"0123");
        whole.extend(answer(6, false));
        whole.extend_from_slice(b"456789");
        for size in [1, 7, whole.len()] {
            let (mut response, mut body) = (Response::default(), Vec::new());
            let mut kept = Vec::new();
            for piece in whole.chunks(size) {
                kept.extend_from_slice(piece);
                response.on_data(piece, |bytes| body.extend_from_slice(bytes)).unwrap();
            }
            assert_eq!(response.on_end(), Ok(()), "{size}");
            assert_eq!((response.status(), response.body_bytes()), (Some(200), 10));
            assert_eq!(body, b"0123456789");
        }
        let mut response = Response::default();
        response.on_data(&whole[..whole.len() - 1], |_| ()).unwrap();
        assert!(response.on_end().is_err());
        assert!(Response::default().on_end().is_err());
    }
}
