//! The named queries, and the rows that answer them: the same rows in the same order from every store.
//!
//! Every query is bounded: by its limit, by how far it goes through indexes, and by how many versions it looks
//! at. Rows are in the order of their serials unless the query says otherwise.

use outrider_artifact::{Digest, Reference, RepositoryName};
use serde::{Deserialize, Serialize};

use crate::node::{Kind, is_customer};

/// Rows where no limit is given.
pub const LIMIT_DEFAULT: usize = 100;
/// The most rows of each kind.
pub const LIMIT_MAX: usize = 1000;
/// How far through indexes of indexes is gone.
pub const INDEX_DEPTH_MAX: usize = 8;
/// The most versions that indexes are followed to, for one version.
pub const REACH_MAX: usize = 4096;
/// Neighbours are counted over this many versions of the layer, the newest ones.
pub const CO_USE_VERSIONS_MAX: usize = 1024;

/// The most contents whose dependants are asked for at once.
pub const DEPENDANTS_ASKED_MAX: usize = crate::batch::BATCH_CONTENTS_MAX;

/// A named query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Query {
    /// `images`: which images use a layer, in how many versions each.
    Images {
        /// The layer.
        layer: Digest,
    },
    /// `shared`: the layers that two images have in common.
    SharedByImages {
        /// Both.
        images: [RepositoryName; 2],
    },
    /// `shared`: the layers that two customers have in common.
    SharedByCustomers {
        /// Both.
        customers: [String; 2],
    },
    /// `depth`: how many layers a layer needs under it at most, how many lie on it, and how many versions have
    /// it.
    LayerDepth {
        /// The layer.
        layer: Digest,
    },
    /// `depth`: how many layers lie on each other in the deepest version of an image.
    ImageDepth {
        /// The image.
        image: RepositoryName,
    },
    /// `added`: the layers of a version that another one does not have, through indexes on both sides.
    Added {
        /// The image.
        image: RepositoryName,
        /// The version: a tag means what it was last given to.
        version: Reference,
        /// The other one; without it the predecessor.
        since: Option<Reference>,
    },
    /// `neighbours`: the layers that are most often in one version with this one. In the order of how often.
    Neighbours {
        /// The layer.
        layer: Digest,
    },
    /// `affected`: what a bad layer affects: customers, images, versions (the newest first), and the indexes
    /// through which those versions are had (the newest first). Each kind has the limit for itself; indexes are
    /// those of the versions that are listed.
    Affected {
        /// The layer.
        layer: Digest,
    },
}

/// The names of the queries.
pub const NAMES: [&str; 6] = ["images", "shared", "depth", "added", "neighbours", "affected"];

/// A query with its limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// The query.
    pub query: Query,
    /// The most rows: 1 to [`LIMIT_MAX`].
    pub limit: usize,
}

/// One node of an answer. What does not belong to the query is absent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// What it is.
    pub kind: Kind,
    /// Digest or name.
    pub name: String,
    /// Of a version: its image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// Of a version: the first tag that it had.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Of a content: its length.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// When it was first seen, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_unix_ms: Option<u64>,
    /// How often it was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accesses: Option<u64>,
    /// When it was last asked for, in milliseconds since 1970; 0 for never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_unix_ms: Option<u64>,
    /// How many versions: of the image that have the layer, or all that have it, or all of the image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub versions: Option<u64>,
    /// The most layers that it needs under it in one version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub below: Option<u64>,
    /// The most layers that lie on it in one version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub above: Option<u64>,
    /// Of an image: the most layers in one version.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub depth: Option<u64>,
    /// Of a content: how many versions depend on it, of which at most four of one customer are counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dependants: Option<u64>,
    /// Of a neighbour: in how many versions the two are together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub together: Option<u64>,
}

impl Row {
    /// A row with nothing but kind and name.
    pub fn new(kind: Kind, name: impl Into<String>) -> Self {
        Self {
            kind,
            name: name.into(),
            image: None,
            tag: None,
            bytes: None,
            first_unix_ms: None,
            accesses: None,
            last_unix_ms: None,
            versions: None,
            below: None,
            above: None,
            depth: None,
            dependants: None,
            together: None,
        }
    }
}

/// What a store answers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Answer {
    /// What was asked about, as it was found: the layer, both images, the version and what it is compared with.
    pub about: Vec<Row>,
    /// The rows.
    pub rows: Vec<Row>,
    /// Whether there are more.
    pub more: bool,
}

impl Query {
    /// Its name.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Images { .. } => "images",
            Self::SharedByImages { .. } | Self::SharedByCustomers { .. } => "shared",
            Self::LayerDepth { .. } | Self::ImageDepth { .. } => "depth",
            Self::Added { .. } => "added",
            Self::Neighbours { .. } => "neighbours",
            Self::Affected { .. } => "affected",
        }
    }

    /// Its parameters, as [`Asked::parse`] reads them.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Images { layer }
            | Self::LayerDepth { layer }
            | Self::Neighbours { layer }
            | Self::Affected { layer } => vec![("layer", layer.to_string())],
            Self::SharedByImages { images } => {
                images.iter().map(|image| ("image", image.to_string())).collect()
            }
            Self::SharedByCustomers { customers } => {
                customers.iter().map(|customer| ("customer", customer.clone())).collect()
            }
            Self::ImageDepth { image } => vec![("image", image.to_string())],
            Self::Added { image, version, since } => {
                let mut all = vec![("image", image.to_string()), ("version", version.to_string())];
                all.extend(since.iter().map(|since| ("since", since.to_string())));
                all
            }
        }
    }
}

#[derive(Default)]
struct Parameters {
    layers: Vec<Digest>,
    images: Vec<RepositoryName>,
    customers: Vec<String>,
    versions: Vec<Reference>,
    since: Vec<Reference>,
}

impl Asked {
    /// Reads a query by its name and parameters: `layer`, `image`, `customer`, `version`, `since`, `limit`.
    ///
    /// # Errors
    /// Says what is wrong, and what is wanted.
    pub fn parse<'a>(
        name: &str,
        parameters: impl IntoIterator<Item = (&'a str, &'a str)>,
    ) -> Result<Self, String> {
        let mut given = Parameters::default();
        let mut limit = LIMIT_DEFAULT;
        for (at, (parameter, value)) in parameters.into_iter().enumerate() {
            // No query has more, and lists are not to grow by what a client sends.
            if at >= 8 {
                return Err("too many parameters".to_owned());
            }
            let wrong = |error: &dyn std::fmt::Display| format!("{parameter}={value}: {error}");
            match parameter {
                "layer" => given.layers.push(value.parse().map_err(|e| wrong(&e))?),
                "image" => given.images.push(value.parse().map_err(|e| wrong(&e))?),
                "version" => given.versions.push(value.parse().map_err(|e| wrong(&e))?),
                "since" => given.since.push(value.parse().map_err(|e| wrong(&e))?),
                "customer" if is_customer(value) => given.customers.push(value.to_owned()),
                "customer" => return Err(wrong(&"it is no name of a customer")),
                "limit" => match value.parse() {
                    Ok(number @ 1..=LIMIT_MAX) => limit = number,
                    _ => return Err(format!("limit is 1 to {LIMIT_MAX}")),
                },
                other => {
                    let all = "layer, image, customer, version, since, limit";
                    return Err(format!("{other:?} is none of {all}"));
                }
            }
        }
        Ok(Self { query: given.query(name)?, limit })
    }
}

impl Parameters {
    fn query(self, name: &str) -> Result<Query, String> {
        let Self { layers, images, customers, versions, since } = self;
        let wants = |what| Err(format!("{name} wants {what}, and nothing else"));
        let plain = versions.is_empty() && since.is_empty();
        let layer = match &*layers {
            [layer] if images.is_empty() && customers.is_empty() && plain => Some(*layer),
            _ => None,
        };
        let no_layer = layers.is_empty();
        match (name, layer) {
            ("images", Some(layer)) => Ok(Query::Images { layer }),
            ("neighbours", Some(layer)) => Ok(Query::Neighbours { layer }),
            ("affected", Some(layer)) => Ok(Query::Affected { layer }),
            ("depth", Some(layer)) => Ok(Query::LayerDepth { layer }),
            ("depth", None) => match <[_; 1]>::try_from(images) {
                Ok([image]) if no_layer && customers.is_empty() && plain => {
                    Ok(Query::ImageDepth { image })
                }
                _ => wants("either one layer or one image"),
            },
            ("shared", None) if no_layer && plain => {
                match (<[_; 2]>::try_from(images), <[_; 2]>::try_from(customers)) {
                    (Ok(images), Err(none)) if none.is_empty() => {
                        Ok(Query::SharedByImages { images })
                    }
                    (Err(none), Ok(customers)) if none.is_empty() => {
                        Ok(Query::SharedByCustomers { customers })
                    }
                    _ => wants("either two images or two customers"),
                }
            }
            ("added", None) if no_layer && customers.is_empty() && since.len() <= 1 => {
                match (<[_; 1]>::try_from(images), <[_; 1]>::try_from(versions)) {
                    (Ok([image]), Ok([version])) => {
                        Ok(Query::Added { image, version, since: since.into_iter().next() })
                    }
                    _ => wants("one image, one version, and perhaps one since"),
                }
            }
            ("images" | "neighbours" | "affected", _) => wants("one layer"),
            ("shared", _) => wants("either two images or two customers"),
            ("added", _) => wants("one image, one version, and perhaps one since"),
            _ => Err(format!("there is no query {name:?}; there are {}", NAMES.join(", "))),
        }
    }
}

/// Cuts off what is beyond the limit, and says whether there was something.
pub(crate) fn cut<T>(all: &mut Vec<T>, limit: usize) -> bool {
    let more = all.len() > limit;
    all.truncate(limit);
    more
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_query_is_read_as_it_is_written() {
        let layer = Digest::sha256(b"a");
        let image: RepositoryName = "library/a".parse().unwrap();
        let version: Reference = "v1".parse().unwrap();
        let since = Some(Reference::Digest(layer));
        for query in [
            Query::Images { layer },
            Query::SharedByImages { images: [image.clone(), "b".parse().unwrap()] },
            Query::SharedByCustomers { customers: ["x y".into(), "é".into()] },
            Query::LayerDepth { layer },
            Query::ImageDepth { image: image.clone() },
            Query::Added { image: image.clone(), version: version.clone(), since: None },
            Query::Added { image, version, since },
            Query::Neighbours { layer },
            Query::Affected { layer },
        ] {
            let parameters = query.parameters();
            let mut pairs: Vec<_> =
                parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
            let asked = Asked::parse(query.name(), pairs.clone()).unwrap();
            assert_eq!(asked, Asked { query: query.clone(), limit: LIMIT_DEFAULT });
            assert!(NAMES.contains(&query.name()));
            pairs.push(("limit", "7"));
            assert_eq!(Asked::parse(query.name(), pairs).unwrap().limit, 7);
        }
    }

    #[test]
    fn what_is_asked_wrongly_is_said() {
        let digest = Digest::sha256(b"a").to_string();
        let d = digest.as_str();
        for (name, parameters, wanted) in [
            ("images", vec![], "wants one layer"),
            ("images", vec![("layer", d), ("image", "a")], "wants one layer"),
            ("images", vec![("layer", d), ("layer", d)], "wants one layer"),
            ("images", vec![("layer", "x")], "layer=x: a digest is written"),
            ("images", vec![("layer", d), ("limit", "0")], "limit is 1 to 1000"),
            ("images", vec![("layer", d), ("limit", "1001")], "limit is 1 to 1000"),
            ("images", vec![("colour", "red")], "\"colour\" is none of"),
            ("images", vec![("limit", "1"); 9], "too many parameters"),
            ("shared", vec![("image", "a")], "two images or two customers"),
            ("shared", vec![("image", "a"), ("image", "b"), ("customer", "c")], "two images or"),
            ("shared", vec![("layer", d)], "two images or two customers"),
            ("shared", vec![("customer", ""), ("customer", "b")], "no name of a customer"),
            ("depth", vec![("layer", d), ("image", "a")], "one layer or one image"),
            ("added", vec![("image", "a")], "one image, one version"),
            ("added", vec![("image", "a"), ("version", "v"), ("layer", d)], "one image, one"),
            ("nothing", vec![], "there is no query \"nothing\"; there are images, shared"),
        ] {
            let error = Asked::parse(name, parameters).unwrap_err();
            assert!(error.contains(wanted), "{name}: {error}");
        }
    }
}
