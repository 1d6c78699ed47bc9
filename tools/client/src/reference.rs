//! What can be asked for: a digest, or an image as container tools write it. Pure.

use std::fmt;
use std::str::FromStr;

use outrider_artifact::{Digest, NameError, Reference, RepositoryName, Tag};

use crate::error::ClientError;

/// What Docker Hub is called in references.
const DOCKER_HUB: &str = "docker.io";

/// What is asked for.
#[derive(Clone, Debug)]
pub enum Artifact {
    /// Content, by its digest.
    Digest(Digest),
    /// An image.
    Image(Image),
}

/// An image: `[HOST[:PORT]/]NAME[:TAG][@DIGEST]`.
#[derive(Clone, Debug)]
pub struct Image {
    /// The registry that stands before the name. It is the edge itself unless another one is named.
    pub host: Option<String>,
    /// Where it is in there.
    pub repository: RepositoryName,
    /// Tag or digest; with both, the digest.
    pub reference: Reference,
}

/// Where content is found at an edge.
#[derive(Clone, Debug, Default)]
pub struct Place {
    /// Its repository. Without one only what the edge holds is found.
    pub repository: Option<RepositoryName>,
    /// The registry whose mirror the edge is asked to be (`?ns=`).
    pub ns: Option<String>,
}

impl Place {
    /// The path of a blob there.
    pub fn blob(&self, digest: &Digest) -> String {
        match &self.repository {
            Some(repository) => {
                format!("/v2/{repository}/blobs/{digest}{}", self.query())
            }
            None => format!("/layer/request?digest={digest}"),
        }
    }

    /// The path of a manifest there; content without a repository has none.
    pub fn manifest(&self, reference: &str) -> Option<String> {
        let repository = self.repository.as_ref()?;
        Some(format!("/v2/{repository}/manifests/{reference}{}", self.query()))
    }

    fn query(&self) -> String {
        // A host is letters, digits, dots, hyphens, a colon and brackets: nothing to escape.
        self.ns.as_ref().map_or_else(String::new, |ns| format!("?ns={ns}"))
    }
}

impl FromStr for Artifact {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        if let Ok(digest) = text.parse() {
            return Ok(Self::Digest(digest));
        }
        text.parse().map(Self::Image)
    }
}

impl FromStr for Image {
    type Err = ClientError;

    fn from_str(text: &str) -> Result<Self, ClientError> {
        let wrong = |why: NameError| ClientError::Reference { text: text.to_owned(), why };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest: Digest =
                    digest.parse().map_err(|error| wrong(NameError::Digest(error)))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        let (host, rest) = match rest.split_once('/') {
            Some((first, name)) if is_host(first) => (Some(first), name),
            _ => (None, rest),
        };
        let (name, tag) = match rest.split_once(':') {
            Some((name, tag)) => (name, tag),
            None => (rest, "latest"),
        };
        // As every container tool reads it: `docker.io/alpine` is `docker.io/library/alpine`.
        let library = host == Some(DOCKER_HUB) && !name.contains('/');
        let name = if library { format!("library/{name}") } else { name.to_owned() };
        let tag: Tag = tag.parse().map_err(wrong)?;
        Ok(Self {
            host: host.map(str::to_owned),
            repository: name.parse().map_err(wrong)?,
            reference: digest.map_or(Reference::Tag(tag), Reference::Digest),
        })
    }
}

impl Image {
    /// Where its manifests and blobs are, at an edge that is not named in the reference itself.
    pub fn place(&self, host_is_edge: bool) -> Place {
        Place {
            repository: Some(self.repository.clone()),
            ns: self.host.clone().filter(|_| !host_is_edge),
        }
    }
}

impl fmt::Display for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(host) = &self.host {
            write!(f, "{host}/")?;
        }
        match &self.reference {
            Reference::Tag(tag) => write!(f, "{}:{tag}", self.repository),
            Reference::Digest(digest) => write!(f, "{}@{digest}", self.repository),
        }
    }
}

/// Whether the first part of a reference is a registry: as container tools tell it, by a dot, a port or
/// the name `localhost`.
fn is_host(part: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-:[]".contains(c);
    part.chars().all(allowed) && (part.contains('.') || part.contains(':') || part == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(text: &str) -> Image {
        text.parse().unwrap()
    }

    #[test]
    fn a_reference_is_taken_apart_as_container_tools_do() {
        for (text, host, name, shown) in [
            ("alpine", None, "alpine", "alpine:latest"),
            ("team/app:v1", None, "team/app", "team/app:v1"),
            (
                "docker.io/alpine:3",
                Some("docker.io"),
                "library/alpine",
                "docker.io/library/alpine:3",
            ),
            ("localhost/a", Some("localhost"), "a", "localhost/a:latest"),
            ("edge:8443/team/app", Some("edge:8443"), "team/app", "edge:8443/team/app:latest"),
            ("[::1]:8443/a:b", Some("[::1]:8443"), "a", "[::1]:8443/a:b"),
        ] {
            let image = image(text);
            assert_eq!(image.host.as_deref(), host, "{text}");
            assert_eq!(&*image.repository, name, "{text}");
            assert_eq!(image.to_string(), shown);
        }
    }

    #[test]
    fn a_digest_wins_over_a_tag() {
        let digest = Digest::sha256(b"x");
        let image = image(&format!("team/app:v1@{digest}"));
        assert_eq!(image.reference, Reference::Digest(digest));
        assert!(
            matches!(digest.to_string().parse(), Ok(Artifact::Digest(found)) if found == digest)
        );
    }

    #[test]
    fn what_is_no_reference_says_why() {
        for text in ["", "UPPER", "a:", "a@sha256:00", "a b", "a/../b", "a:b:c", "ex?.ample/a"] {
            assert!(text.parse::<Artifact>().is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_place_says_whose_mirror_is_meant_unless_it_is_the_edge() {
        let image = image("docker.io/alpine");
        assert_eq!(
            image.place(false).manifest("latest").unwrap(),
            "/v2/library/alpine/manifests/latest?ns=docker.io"
        );
        assert_eq!(image.place(true).manifest("3").unwrap(), "/v2/library/alpine/manifests/3");
        let digest = Digest::sha256(b"x");
        assert_eq!(Place::default().blob(&digest), format!("/layer/request?digest={digest}"));
    }
}
