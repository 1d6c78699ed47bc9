//! Which upstream a repository name means. Pure: a name and `?ns=` in, a place out.
//!
//! A bare upstream is mirrored at the root; `NAME=URL` is reached as `/v2/NAME/…` and as
//! `?ns=NAME`. `ns` is a key into the configuration and never an address to dial.

use std::rc::Rc;
use std::time::Duration;

use outrider_artifact::RepositoryName;
use outrider_cache::Origin;
use outrider_uplink::{UpstreamId, Whom};

use crate::customers::minutes;
use crate::flight::Source;
use crate::protocol::ns;

/// One configured upstream, as the gateway needs it.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Its number at the uplink.
    pub id: UpstreamId,
    /// Its name; none for the one at the root.
    pub name: Option<String>,
    /// Host and, where it is given, port of its URL, in lower case.
    pub host: String,
    /// How long its tags are answered without asking it again, where that is not what all have.
    pub tag_ttl: Option<Duration>,
    /// How long its content stays without being used, where that has an end.
    pub content_ttl: Option<Duration>,
}

/// The configured upstreams.
#[derive(Clone, Debug)]
pub(crate) struct Upstreams(Vec<Upstream>);

/// A place at an upstream.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) source: Source,
    /// What the upstream is called in records: its name, or its host.
    pub(crate) upstream_name: Rc<str>,
    /// The key of the repository in the names database. One repository has one key, however it is
    /// reached.
    pub(crate) key: RepositoryName,
}

/// What a name and `?ns=` mean.
#[derive(Clone, Debug)]
pub(crate) enum Meaning {
    /// Content of an upstream, unless the repository is hosted here.
    Mirrored(Place),
    /// No upstream has it: it is hosted here or unknown.
    Local,
    /// `?ns=` names nothing that is configured.
    UnknownNamespace,
}

impl Upstreams {
    pub(crate) fn new(upstreams: Vec<Upstream>) -> Self {
        Self(upstreams)
    }

    /// What `repository` means.
    pub(crate) fn resolve(&self, repository: &str, namespace: Option<&str>) -> Meaning {
        if let Some(namespace) = namespace {
            return match self.of_namespace(namespace) {
                Some(upstream) => {
                    place(upstream, repository).map_or(Meaning::Local, Meaning::Mirrored)
                }
                None => Meaning::UnknownNamespace,
            };
        }
        let prefixed = self.0.iter().find_map(|upstream| {
            let rest = repository.strip_prefix(upstream.name.as_deref()?)?.strip_prefix('/')?;
            place(upstream, rest)
        });
        let at_root = || self.0.iter().find(|upstream| upstream.name.is_none());
        let place = prefixed.or_else(|| place(at_root()?, repository));
        place.map_or(Meaning::Local, Meaning::Mirrored)
    }

    /// How long tags of an upstream are answered without asking it again, by its name in records.
    pub(crate) fn tag_ttl(&self, upstream_name: &str) -> Option<Duration> {
        let called = |upstream: &&Upstream| {
            upstream.name.as_deref().unwrap_or(&upstream.host) == upstream_name
        };
        self.0.iter().find(called)?.tag_ttl
    }

    fn of_namespace(&self, namespace: &str) -> Option<&Upstream> {
        let same = |host: &str| ns::same_registry(host, namespace);
        let named = self.0.iter().find(|upstream| upstream.name.as_deref().is_some_and(same));
        named.or_else(|| {
            self.0.iter().find(|upstream| upstream.name.is_none() && same(&upstream.host))
        })
    }
}

/// None where the name is too long to be a key.
fn place(upstream: &Upstream, repository: &str) -> Option<Place> {
    let key = match &upstream.name {
        Some(name) => format!("{name}/{repository}").parse().ok()?,
        None => repository.parse().ok()?,
    };
    let upstream_name: Rc<str> = upstream.name.as_deref().unwrap_or(&upstream.host).into();
    let from = Whom::Upstream(upstream.id);
    let source = Source {
        from,
        repository: repository.into(),
        origin: origin(&upstream_name, repository),
        ttl_minutes: upstream.content_ttl.map(minutes),
    };
    Some(Place { source, upstream_name, key })
}

/// The place of a hosted repository at another edge that holds it.
pub(crate) fn place_at_edge(edge: u64, key: &RepositoryName) -> Place {
    // No upstream's name has a space in it.
    let upstream_name: Rc<str> = format!("edge {edge}").into();
    let source = Source {
        from: Whom::Peer(edge),
        repository: (&**key).into(),
        origin: origin(&upstream_name, key),
        ttl_minutes: None,
    };
    Place { source, upstream_name, key: key.clone() }
}

fn origin(upstream_name: &str, repository: &str) -> Origin {
    let marked =
        outrider_artifact::Digest::sha256(format!("{upstream_name}\n{repository}").as_bytes());
    let mut origin = [0; 8];
    origin.copy_from_slice(&marked.value()[..8]);
    Origin(u64::from_le_bytes(origin))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(id: u16, name: Option<&str>, host: &str) -> Upstream {
        Upstream {
            id: UpstreamId(id),
            name: name.map(str::to_owned),
            host: host.into(),
            tag_ttl: None,
            content_ttl: None,
        }
    }

    fn two() -> Upstreams {
        Upstreams::new(vec![
            upstream(0, None, "registry-1.docker.io"),
            upstream(1, Some("ghcr.io"), "ghcr.io"),
        ])
    }

    fn mirrored(meaning: Meaning) -> (u16, String, String) {
        match meaning {
            Meaning::Mirrored(place) => (
                match place.source.from {
                    Whom::Upstream(upstream) => upstream.0,
                    Whom::Peer(_) => panic!("an upstream is no edge"),
                },
                place.source.repository.to_string(),
                place.key.to_string(),
            ),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_bare_upstream_is_at_the_root() {
        let place = mirrored(two().resolve("library/alpine", None));
        assert_eq!(place, (0, "library/alpine".into(), "library/alpine".into()));
    }

    #[test]
    fn a_named_upstream_is_reached_by_prefix_and_by_namespace_as_one_repository() {
        let by_prefix = mirrored(two().resolve("ghcr.io/a/b", None));
        let by_namespace = mirrored(two().resolve("a/b", Some("ghcr.io")));
        assert_eq!(by_prefix, (1, "a/b".into(), "ghcr.io/a/b".into()));
        assert_eq!(by_prefix, by_namespace);
    }

    #[test]
    fn docker_hub_goes_by_several_names() {
        for namespace in ["docker.io", "index.docker.io", "registry-1.docker.io", "Docker.IO"] {
            assert_eq!(mirrored(two().resolve("library/alpine", Some(namespace))).0, 0);
        }
    }

    #[test]
    fn a_namespace_is_never_an_address() {
        for namespace in ["evil.test", "127.0.0.1:5000", "", "ghcr.io:443/x"] {
            assert!(matches!(two().resolve("a/b", Some(namespace)), Meaning::UnknownNamespace));
        }
    }

    #[test]
    fn without_upstreams_everything_is_local() {
        assert!(matches!(Upstreams::new(vec![]).resolve("a/b", None), Meaning::Local));
    }
}
