//! What a registry client does, by hand: for tests that need a step at a time, or a wrong one.

use std::io::{Error, Result};

use crate::content::sha256;
use crate::http::{Answer, Client, Request};
use crate::image::{DOCKER_LIST, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST, SmallImage};

/// The path of a blob.
pub fn blob_path(repository: &str, digest: &str) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// The path of a manifest.
pub fn manifest_path(repository: &str, reference: &str) -> String {
    format!("/v2/{repository}/manifests/{reference}")
}

/// Asks for a manifest as clients do, with the media types that they understand.
pub fn get_manifest(client: &Client, repository: &str, reference: &str) -> Answer {
    manifest_request(client, "GET", repository, reference).send()
}

/// The request for a manifest, for a test that does something else with it.
pub fn manifest_request(
    client: &Client,
    method: &str,
    repository: &str,
    reference: &str,
) -> Request {
    let accept = format!("{OCI_MANIFEST}, {OCI_INDEX}, {DOCKER_MANIFEST}, {DOCKER_LIST}, */*");
    client.request(method, &manifest_path(repository, reference)).header("Accept", &accept)
}

/// Opens an upload session; gives where to send the bytes (path and query).
pub fn begin_upload(client: &Client, repository: &str) -> Result<String> {
    let answer = client.request("POST", &format!("/v2/{repository}/blobs/uploads/")).try_send()?;
    if answer.status != 202 {
        return Err(refused("POST of an upload", &answer));
    }
    location(&answer)
}

/// Where an answer says to go on: the path and query of its Location.
pub fn location(answer: &Answer) -> Result<String> {
    let text = answer.header("location").ok_or_else(|| Error::other("no Location"))?;
    let path = match text.split_once("://") {
        Some((_, rest)) => rest.find('/').map(|at| rest[at..].to_owned()),
        None => Some(text.to_owned()),
    };
    path.ok_or_else(|| Error::other(format!("a Location without a path: {text}")))
}

/// `location` with one more query parameter.
pub fn with_query(location: &str, query: &str) -> String {
    let joint = if location.contains('?') { '&' } else { '?' };
    format!("{location}{joint}{query}")
}

/// Uploads a blob by POST and one PUT. Ok means that the registry acknowledged it (201).
pub fn try_push_blob(client: &Client, repository: &str, bytes: &[u8]) -> Result<String> {
    let digest = sha256(bytes);
    let at = begin_upload(client, repository)?;
    let put = client.request("PUT", &with_query(&at, &format!("digest={digest}")));
    let answer = put.header("Content-Type", "application/octet-stream").body(bytes).try_send()?;
    if answer.status == 201 { Ok(digest) } else { Err(refused("PUT of an upload", &answer)) }
}

/// Puts a manifest. Ok means that the registry acknowledged it (201).
pub fn try_push_manifest(
    client: &Client,
    repository: &str,
    reference: &str,
    media_type: &str,
    manifest: &[u8],
) -> Result<()> {
    let put = client.request("PUT", &manifest_path(repository, reference));
    let answer = put.header("Content-Type", media_type).body(manifest).try_send()?;
    if answer.status == 201 { Ok(()) } else { Err(refused("PUT of a manifest", &answer)) }
}

/// Pushes a whole image.
pub fn try_push(client: &Client, repository: &str, tag: &str, image: &SmallImage) -> Result<()> {
    for blob in image.blobs() {
        try_push_blob(client, repository, blob)?;
    }
    try_push_manifest(client, repository, tag, &image.media_type, &image.manifest)
}

/// Pushes a whole image to a registry that must take it.
pub fn push(client: &Client, repository: &str, tag: &str, image: &SmallImage) {
    try_push(client, repository, tag, image).unwrap_or_else(|error| panic!("push: {error}"));
}

/// Fails unless the image is served in full and right, by tag and by digest.
pub fn assert_served(client: &Client, repository: &str, reference: &str, image: &SmallImage) {
    for reference in [reference, &image.digest()] {
        let answer = get_manifest(client, repository, reference).expect(200);
        assert!(answer.body == image.manifest, "the manifest of {repository}:{reference}");
    }
    for blob in image.blobs() {
        let answer = client.get(&blob_path(repository, &sha256(blob))).expect(200);
        assert!(answer.body == *blob, "a blob of {repository}:{reference}");
    }
}

fn refused(what: &str, answer: &Answer) -> Error {
    Error::other(format!("{what}: {} {}", answer.status, answer.text()))
}
