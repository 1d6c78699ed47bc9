//! Method and URI to a [`Request`], and the paths that answers point to.
//!
//! Repository names contain slashes, so a path is read from its end: what stands last says what is
//! asked for, the rest is the name. Percent-encoding is undone part by part, after the path was cut
//! at its slashes; an encoded slash therefore never makes a part, and is refused as part of a name.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use http::{Method, StatusCode, Uri};
use outrider_artifact::{
    Algorithm, Digest, DigestError, NameError, Reference, RepositoryName, Tag,
};

use super::error::{ApiError, Code};
use super::ns;
use super::query::{Query, too_long};

/// The longest path, in bytes: a name of 255 and a sha512 digest, all of it percent-encoded.
pub const PATH_BYTES_MAX: usize = 2048;

/// The most entries of one page of a list, and what is answered when no number is asked for.
pub const PAGE_ENTRIES_MAX: usize = 10_000;

/// The longest `last` of a list, in bytes.
pub const LAST_BYTES_MAX: usize = 255;

/// The most `?tag=` parameters of one manifest. The specification asks for at least ten.
pub const TAGS_MAX: usize = 16;

/// The longest `customer`, in bytes.
pub const CUSTOMER_BYTES_MAX: usize = 128;

/// The longest `region`, in bytes.
pub const REGION_BYTES_MAX: usize = 32;

/// The longest `artifactType`, in bytes.
pub const ARTIFACT_TYPE_BYTES_MAX: usize = 255;

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What is to be done.
    pub operation: Operation,
    /// `?ns=`: the registry whose mirror this is asked to be, as it was sent. A key into the
    /// configuration; compare it by [`ns::same_registry`]. Only where a mirror is read.
    pub ns: Option<String>,
}

/// GET or HEAD.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Read {
    /// With the content.
    Get,
    /// Without it.
    Head,
}

/// One of the operations that are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// `GET /v2/`
    Ping,
    /// `GET, POST /token`
    Token {
        /// Each `scope`, as it was sent.
        scopes: Vec<String>,
        /// `service`, as it was sent.
        service: Option<String>,
    },
    /// `GET, HEAD /v2/NAME/manifests/REFERENCE`
    ManifestRead {
        /// The repository.
        name: RepositoryName,
        /// Tag or digest.
        reference: Reference,
        /// With content or without.
        method: Read,
    },
    /// `PUT /v2/NAME/manifests/REFERENCE[?tag=…]…`
    ManifestPut {
        /// The repository.
        name: RepositoryName,
        /// Tag or digest.
        reference: Reference,
        /// Tags beside the reference, at most [`TAGS_MAX`], each once.
        tags: Vec<Tag>,
    },
    /// `DELETE /v2/NAME/manifests/REFERENCE`
    ManifestDelete {
        /// The repository.
        name: RepositoryName,
        /// A tag alone goes, or a manifest with all its tags.
        reference: Reference,
    },
    /// `GET, HEAD /v2/NAME/blobs/DIGEST`
    BlobRead {
        /// The repository.
        name: RepositoryName,
        /// The content.
        digest: Digest,
        /// With content or without.
        method: Read,
    },
    /// `DELETE /v2/NAME/blobs/DIGEST`
    BlobDelete {
        /// The repository.
        name: RepositoryName,
        /// The content.
        digest: Digest,
    },
    /// `POST /v2/NAME/blobs/uploads/`
    UploadStart {
        /// The repository.
        name: RepositoryName,
        /// The body is the whole blob, and this is its digest.
        digest: Option<Digest>,
        /// The blob may be here already.
        mount: Option<Mount>,
        /// What the digest will be made with; nothing said is sha256.
        algorithm: Option<Algorithm>,
    },
    /// `PATCH /v2/NAME/blobs/uploads/SESSION`
    UploadChunk {
        /// The repository.
        name: RepositoryName,
        /// The session.
        session: UploadSession,
    },
    /// `PUT /v2/NAME/blobs/uploads/SESSION?digest=…`
    UploadFinish {
        /// The repository.
        name: RepositoryName,
        /// The session.
        session: UploadSession,
        /// What all of it must hash to.
        digest: Digest,
    },
    /// `GET /v2/NAME/blobs/uploads/SESSION`
    UploadStatus {
        /// The repository.
        name: RepositoryName,
        /// The session.
        session: UploadSession,
    },
    /// `DELETE /v2/NAME/blobs/uploads/SESSION`
    UploadCancel {
        /// The repository.
        name: RepositoryName,
        /// The session.
        session: UploadSession,
    },
    /// `GET /v2/NAME/tags/list`
    TagsList {
        /// The repository.
        name: RepositoryName,
        /// Which part of the list.
        page: Page,
    },
    /// `GET /v2/NAME/referrers/DIGEST`
    Referrers {
        /// The repository.
        name: RepositoryName,
        /// The subject.
        digest: Digest,
        /// Only those of this type.
        artifact_type: Option<String>,
        /// Which part of the list: `last` is the digest of the last referrer that was listed.
        page: Page,
    },
    /// `GET /v2/_catalog`
    Catalog {
        /// Which part of the list.
        page: Page,
    },
    /// `PUT /layer/upload?image=…&version=…&customer=…[&digest=…]`
    LayerUpload {
        /// The image that the layer belongs to: its repository.
        image: RepositoryName,
        /// The version of the image.
        version: Tag,
        /// Who uploads.
        customer: Option<String>,
        /// What the body must hash to.
        digest: Option<Digest>,
    },
    /// `GET, HEAD /layer/request?digest=…&customer=…&region=…&image=…`
    LayerRequest {
        /// The content.
        digest: Digest,
        /// Who asks.
        customer: Option<String>,
        /// Where.
        region: Option<String>,
        /// Where the origin has it; without it only what is here is answered.
        image: Option<RepositoryName>,
        /// With content or without.
        method: Read,
    },
}

impl Operation {
    /// Whether `?ns=` says where to read. Everything else is about the repository of its name alone, so that what is
    /// allowed and what is done are about the same one.
    fn is_read_by_namespace(&self) -> bool {
        matches!(
            self,
            Self::BlobRead { .. }
                | Self::ManifestRead { .. }
                | Self::TagsList { .. }
                | Self::Referrers { .. }
        )
    }
}

/// `?mount=DIGEST[&from=NAME]`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The blob.
    pub digest: Digest,
    /// The repository that has it; none means any.
    pub from: Option<RepositoryName>,
}

/// `?n=…&last=…`
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// How many entries are answered at the most, 0 to [`PAGE_ENTRIES_MAX`].
    pub entries_max: usize,
    /// The answer begins behind this entry.
    pub last: Option<String>,
}

/// The id of an upload session: the shard that holds it, and 14 random bytes. 16 bytes, written as
/// 32 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UploadSession([u8; 16]);

impl UploadSession {
    /// A session of this shard.
    pub fn new(shard: u16, random: [u8; 14]) -> Self {
        let mut id = [0; 16];
        id[..2].copy_from_slice(&shard.to_be_bytes());
        id[2..].copy_from_slice(&random);
        Self(id)
    }

    /// The shard that holds it.
    pub fn shard(&self) -> u16 {
        u16::from_be_bytes([self.0[0], self.0[1]])
    }

    /// The id as bytes, as the cache knows the upload.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }
}

impl FromStr for UploadSession {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let nibble = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(()),
        };
        if text.len() != 32 {
            return Err(());
        }
        let mut id = [0; 16];
        for (byte, digits) in id.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
            *byte = nibble(digits[0])? << 4 | nibble(digits[1])?;
        }
        Ok(Self(id))
    }
}

impl fmt::Display for UploadSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for UploadSession {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Where a manifest is read.
pub fn manifest_path(name: &RepositoryName, reference: &Reference) -> String {
    format!("/v2/{name}/manifests/{reference}")
}

/// Where a blob is read.
pub fn blob_path(name: &RepositoryName, digest: &Digest) -> String {
    format!("/v2/{name}/blobs/{digest}")
}

/// Where an upload goes on.
pub fn upload_path(name: &RepositoryName, session: UploadSession) -> String {
    format!("/v2/{name}/blobs/uploads/{session}")
}

/// What a request asks for. Allocates the names that it finds.
///
/// # Errors
/// - 404 for a path that is not served, 405 with `Allow` for a method that its path does not have;
/// - `NAME_INVALID`, `DIGEST_INVALID`, `TAG_INVALID` (400) for what is malformed. A malformed tag
///   that is read or deleted cannot exist, and is `MANIFEST_UNKNOWN` (404); an upload session
///   likewise is `BLOB_UPLOAD_UNKNOWN`;
/// - 414 for a path or query beyond its bound.
pub fn parse(method: &Method, uri: &Uri) -> Result<Request, ApiError> {
    let path = uri.path();
    if path.len() > PATH_BYTES_MAX {
        return Err(too_long(format!(
            "the path has {} bytes; {PATH_BYTES_MAX} are taken",
            path.len()
        )));
    }
    let query = Query::parse(uri.query())?;
    let ns = match query.one("ns")? {
        None => None,
        Some(ns) if ns::is_well_formed(ns) => Some(ns.to_owned()),
        Some(_) => {
            return Err(ApiError::new(
                Code::NameUnknown,
                "the parameter ns is not the host of a registry",
            )
            .with_status(StatusCode::NOT_FOUND));
        }
    };
    let operation = match path {
        "/v2" | "/v2/" => {
            only(method, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            Operation::Ping
        }
        "/token" => {
            only(method, &[Method::GET, Method::POST], "GET, POST")?;
            Operation::Token {
                scopes: query.all("scope").map(str::to_owned).collect(),
                service: query.one("service")?.map(str::to_owned),
            }
        }
        "/v2/_catalog" => {
            only(method, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            Operation::Catalog { page: page(&query)? }
        }
        "/layer/upload" => layer_upload(method, &query)?,
        "/layer/request" => layer_request(method, &query)?,
        _ => match path.strip_prefix("/v2/") {
            Some(rest) => in_repository(method, rest, &query)?,
            None => return Err(unknown_path()),
        },
    };
    let ns = ns.filter(|_| operation.is_read_by_namespace());
    Ok(Request { operation, ns })
}

/// What is asked of a repository: the path behind `/v2/`, read from its end.
fn in_repository(method: &Method, rest: &str, query: &Query<'_>) -> Result<Operation, ApiError> {
    let (rest, last) = cut(rest)?;
    let (rest, kind) = cut(rest)?;
    match (kind, last) {
        ("manifests", reference) => manifest(method, rest, &decoded(reference)?, query),
        ("tags", "list") => {
            let name = repository(rest)?;
            only(method, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            Ok(Operation::TagsList { name, page: page(query)? })
        }
        ("referrers", digest) => {
            let name = repository(rest)?;
            only(method, &[Method::GET, Method::HEAD], "GET, HEAD")?;
            let digest = self::digest(&decoded(digest)?, "behind /referrers/")?;
            let artifact_type = artifact_type(query)?;
            Ok(Operation::Referrers { name, digest, artifact_type, page: page(query)? })
        }
        ("blobs", "uploads") => upload_start(method, rest, query),
        ("blobs", digest) => blob(method, rest, &decoded(digest)?),
        ("uploads", session) => {
            let (rest, kind) = cut(rest)?;
            match (kind, session) {
                ("blobs", "") => upload_start(method, rest, query),
                ("blobs", session) => upload(method, rest, session, query),
                _ => Err(unknown_path()),
            }
        }
        _ => Err(unknown_path()),
    }
}

/// Cuts off the last part of a path.
fn cut(path: &str) -> Result<(&str, &str), ApiError> {
    path.rsplit_once('/').ok_or_else(unknown_path)
}

pub(crate) fn unknown_path() -> ApiError {
    ApiError::new(
        Code::Unsupported,
        "this path is not served; a registry client begins at /v2/, and layers are at /layer/upload \
         and /layer/request",
    )
    .with_status(StatusCode::NOT_FOUND)
}

fn only(method: &Method, allowed: &[Method], allow: &'static str) -> Result<(), ApiError> {
    if allowed.contains(method) {
        return Ok(());
    }
    let message = format!("this path is served for {allow}, not for {method}");
    Err(ApiError::new(Code::Unsupported, message).with_allow(allow))
}

fn read(method: &Method) -> Read {
    if *method == Method::HEAD { Read::Head } else { Read::Get }
}

/// Undoes the percent-encoding of one part of a path. Allocates only if there is some.
fn decoded(part: &str) -> Result<Cow<'_, str>, ApiError> {
    percent_encoding::percent_decode_str(part).decode_utf8().map_err(|_| {
        ApiError::new(Code::NameInvalid, "the path is percent-encoded and is not UTF-8 within")
    })
}

/// A repository name from the parts of a path.
fn repository(path: &str) -> Result<RepositoryName, ApiError> {
    if !path.contains('%') {
        return name(path);
    }
    let mut whole = String::with_capacity(path.len());
    for part in path.split('/') {
        let part = decoded(part)?;
        if part.contains('/') {
            return Err(ApiError::new(
                Code::NameInvalid,
                "the repository name has an encoded slash; write the slash itself",
            ));
        }
        if !whole.is_empty() {
            whole.push('/');
        }
        whole.push_str(&part);
    }
    name(&whole)
}

fn name(text: &str) -> Result<RepositoryName, ApiError> {
    text.parse().map_err(|error: NameError| ApiError::new(Code::NameInvalid, error.to_string()))
}

fn digest(text: &str, whence: &'static str) -> Result<Digest, ApiError> {
    text.parse().map_err(|error: DigestError| {
        ApiError::new(Code::DigestInvalid, format!("the digest {whence} is malformed: {error}"))
    })
}

fn digest_parameter(
    query: &Query<'_>,
    parameter: &'static str,
    whence: &'static str,
) -> Result<Option<Digest>, ApiError> {
    query.one(parameter)?.map(|text| digest(text, whence)).transpose()
}

fn tag(text: &str, whence: &'static str) -> Result<Tag, ApiError> {
    text.parse().map_err(|error: NameError| {
        ApiError::new(Code::TagInvalid, format!("the tag {whence} is malformed: {error}"))
    })
}

fn page(query: &Query<'_>) -> Result<Page, ApiError> {
    let entries_max = match query.one("n")? {
        None => PAGE_ENTRIES_MAX,
        Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            text.parse().map_or(PAGE_ENTRIES_MAX, |n: usize| n.min(PAGE_ENTRIES_MAX))
        }
        Some(_) => {
            return Err(ApiError::new(
                Code::PaginationNumberInvalid,
                "the parameter n is the number of entries wanted, in decimal digits",
            ));
        }
    };
    let last = query.one("last")?;
    if last.is_some_and(|last| last.len() > LAST_BYTES_MAX) {
        return Err(too_long(format!("the parameter last has more than {LAST_BYTES_MAX} bytes")));
    }
    Ok(Page { entries_max, last: last.map(str::to_owned) })
}

fn artifact_type(query: &Query<'_>) -> Result<Option<String>, ApiError> {
    let artifact_type = query.one("artifactType")?;
    if artifact_type.is_some_and(|text| text.len() > ARTIFACT_TYPE_BYTES_MAX) {
        return Err(too_long(format!(
            "the parameter artifactType has more than {ARTIFACT_TYPE_BYTES_MAX} bytes"
        )));
    }
    Ok(artifact_type.map(str::to_owned))
}

fn manifest(
    method: &Method,
    rest: &str,
    reference: &str,
    query: &Query<'_>,
) -> Result<Operation, ApiError> {
    let name = repository(rest)?;
    let allowed = [Method::GET, Method::HEAD, Method::PUT, Method::DELETE];
    only(method, &allowed, "GET, HEAD, PUT, DELETE")?;
    let reference = match reference.parse() {
        Ok(reference) => reference,
        Err(NameError::Digest(error)) => {
            let message = format!("the digest behind /manifests/ is malformed: {error}");
            return Err(ApiError::new(Code::DigestInvalid, message));
        }
        Err(error) if *method == Method::PUT => {
            let message = format!("the tag behind /manifests/ is malformed: {error}");
            return Err(ApiError::new(Code::TagInvalid, message));
        }
        Err(error) => {
            let message = format!("there is no such manifest, since {error}");
            return Err(ApiError::new(Code::ManifestUnknown, message));
        }
    };
    Ok(match *method {
        Method::PUT => Operation::ManifestPut { name, reference, tags: tags(query)? },
        Method::DELETE => Operation::ManifestDelete { name, reference },
        _ => Operation::ManifestRead { name, reference, method: read(method) },
    })
}

/// The `?tag=` parameters of a manifest, each once.
fn tags(query: &Query<'_>) -> Result<Vec<Tag>, ApiError> {
    let mut tags = Vec::new();
    for text in query.all("tag") {
        let tag = tag(text, "in the query")?;
        if tags.contains(&tag) {
            continue;
        }
        if tags.len() == TAGS_MAX {
            return Err(too_long(format!("the query has more than {TAGS_MAX} tags")));
        }
        tags.push(tag);
    }
    Ok(tags)
}

fn blob(method: &Method, rest: &str, text: &str) -> Result<Operation, ApiError> {
    let name = repository(rest)?;
    only(method, &[Method::GET, Method::HEAD, Method::DELETE], "GET, HEAD, DELETE")?;
    let digest = digest(text, "behind /blobs/")?;
    Ok(match *method {
        Method::DELETE => Operation::BlobDelete { name, digest },
        _ => Operation::BlobRead { name, digest, method: read(method) },
    })
}

fn upload_start(method: &Method, rest: &str, query: &Query<'_>) -> Result<Operation, ApiError> {
    let name = repository(rest)?;
    only(method, &[Method::POST], "POST")?;
    let mount = match digest_parameter(query, "mount", "to mount")? {
        None => None,
        Some(digest) => {
            let from = query.one("from")?.filter(|from| !from.is_empty());
            Some(Mount { digest, from: from.map(self::name).transpose()? })
        }
    };
    let algorithm = match query.one("digest-algorithm")? {
        None => None,
        Some("sha256") => Some(Algorithm::Sha256),
        Some("sha512") => Some(Algorithm::Sha512),
        Some(_) => {
            return Err(ApiError::new(
                Code::DigestInvalid,
                "the parameter digest-algorithm is not sha256 or sha512",
            ));
        }
    };
    let digest = digest_parameter(query, "digest", "in the query")?;
    Ok(Operation::UploadStart { name, digest, mount, algorithm })
}

fn upload(
    method: &Method,
    rest: &str,
    session: &str,
    query: &Query<'_>,
) -> Result<Operation, ApiError> {
    let name = repository(rest)?;
    let allowed = [Method::GET, Method::HEAD, Method::PATCH, Method::PUT, Method::DELETE];
    only(method, &allowed, "GET, HEAD, PATCH, PUT, DELETE")?;
    let session = session.parse().map_err(|()| {
        ApiError::new(
            Code::BlobUploadUnknown,
            "there is no such upload session; use the Location of the last answer as it is",
        )
    })?;
    Ok(match *method {
        Method::PATCH => Operation::UploadChunk { name, session },
        Method::DELETE => Operation::UploadCancel { name, session },
        Method::PUT => {
            let digest = digest_parameter(query, "digest", "in the query")?.ok_or_else(|| {
                ApiError::new(
                    Code::DigestInvalid,
                    "an upload is finished with ?digest=, and there is none in the query",
                )
            })?;
            Operation::UploadFinish { name, session, digest }
        }
        _ => Operation::UploadStatus { name, session },
    })
}

fn layer_upload(method: &Method, query: &Query<'_>) -> Result<Operation, ApiError> {
    only(method, &[Method::PUT], "PUT")?;
    let image = query.one("image")?.ok_or_else(|| missing(Code::NameInvalid, "image"))?;
    let version = query.one("version")?.ok_or_else(|| missing(Code::TagInvalid, "version"))?;
    Ok(Operation::LayerUpload {
        image: name(image)?,
        version: tag(version, "given as version")?,
        customer: customer(query)?,
        digest: digest_parameter(query, "digest", "in the query")?,
    })
}

fn layer_request(method: &Method, query: &Query<'_>) -> Result<Operation, ApiError> {
    only(method, &[Method::GET, Method::HEAD], "GET, HEAD")?;
    let digest = digest_parameter(query, "digest", "in the query")?
        .ok_or_else(|| missing(Code::DigestInvalid, "digest"))?;
    Ok(Operation::LayerRequest {
        digest,
        customer: customer(query)?,
        region: region(query)?,
        image: query.one("image")?.map(name).transpose()?,
        method: read(method),
    })
}

fn missing(code: Code, parameter: &'static str) -> ApiError {
    ApiError::new(code, format!("the parameter {parameter} is missing in the query"))
}

/// `[A-Za-z0-9][A-Za-z0-9._@:-]*`
fn customer(query: &Query<'_>) -> Result<Option<String>, ApiError> {
    let Some(text) = query.one("customer")? else { return Ok(None) };
    let right = (1..=CUSTOMER_BYTES_MAX).contains(&text.len())
        && text.as_bytes()[0].is_ascii_alphanumeric()
        && text.bytes().all(|byte| {
            byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'@' | b':' | b'-')
        });
    if !right {
        let message = format!(
            "the parameter customer has 1 to {CUSTOMER_BYTES_MAX} of A-Z a-z 0-9 . _ @ : - and \
             begins with a letter or digit"
        );
        return Err(ApiError::new(Code::NameInvalid, message));
    }
    Ok(Some(text.to_owned()))
}

/// `[a-z0-9-]{1,32}`
fn region(query: &Query<'_>) -> Result<Option<String>, ApiError> {
    let Some(text) = query.one("region")? else { return Ok(None) };
    let right = (1..=REGION_BYTES_MAX).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
    if !right {
        let message = format!("the parameter region has 1 to {REGION_BYTES_MAX} of a-z 0-9 and -");
        return Err(ApiError::new(Code::NameInvalid, message));
    }
    Ok(Some(text.to_owned()))
}

#[cfg(test)]
mod tests;
