//! What an operation takes. Pure.

use outrider_artifact::RepositoryName;
use outrider_tokens::{Actions, Scope, Target};

use crate::protocol::Operation;

/// What must be allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Needs<'a> {
    /// Nothing, and nobody is asked: where tokens are given.
    Nothing,
    /// That it is said who asks: what clients find out with how to log in.
    Identity,
    /// On a repository.
    Repository(&'a RepositoryName, Actions),
    /// The list of all of them.
    Catalog,
    /// Content by its digest alone, which nobody may who is asked who they are.
    Anything,
}

impl<'a> Needs<'a> {
    pub(crate) fn of(operation: &'a Operation) -> Self {
        match operation {
            Operation::Ping => Self::Identity,
            Operation::Token { .. } => Self::Nothing,
            Operation::BlobRead { name, .. }
            | Operation::ManifestRead { name, .. }
            | Operation::TagsList { name, .. }
            | Operation::Referrers { name, .. } => Self::Repository(name, Actions::PULL),
            Operation::ManifestPut { name, .. }
            | Operation::UploadStart { name, .. }
            | Operation::UploadChunk { name, .. }
            | Operation::UploadFinish { name, .. }
            | Operation::UploadStatus { name, .. }
            | Operation::UploadCancel { name, .. } => Self::Repository(name, Actions::PUSH),
            Operation::ManifestDelete { name, .. } | Operation::BlobDelete { name, .. } => {
                Self::Repository(name, Actions::DELETE)
            }
            Operation::Catalog { .. } => Self::Catalog,
            Operation::LayerUpload { image, .. } => Self::Repository(image, Actions::PUSH),
            Operation::LayerRequest { image: Some(image), .. } => {
                Self::Repository(image, Actions::PULL)
            }
            Operation::LayerRequest { image: None, .. } => Self::Anything,
        }
    }

    /// What is to be allowed, on the repository as it is called in full.
    pub(crate) fn target<'n>(&self, key: &'n str) -> Option<(Target<'n>, Actions)> {
        match self {
            Self::Nothing | Self::Identity | Self::Anything => None,
            Self::Repository(_, actions) => Some((Target::Repository(key), *actions)),
            Self::Catalog => Some((Target::Catalog, Actions::ALL)),
        }
    }

    /// What a client is told to get a token for. Who pushes also looks at what is there.
    pub(crate) fn scopes(&self, key: &str, operation: &Operation) -> Vec<Scope> {
        let mut scopes = match self {
            Self::Nothing | Self::Identity | Self::Anything => Vec::new(),
            Self::Repository(_, Actions::PUSH) => {
                vec![Scope::repository(key, Actions::PULL.and(Actions::PUSH))]
            }
            Self::Repository(_, actions) => vec![Scope::repository(key, *actions)],
            Self::Catalog => vec![Scope::Catalog],
        };
        if let Operation::UploadStart { mount: Some(mount), .. } = operation
            && let Some(from) = &mount.from
        {
            scopes.push(Scope::repository(from, Actions::PULL));
        }
        scopes
    }
}

#[cfg(test)]
mod tests {
    use http::Method;

    use super::*;
    use crate::protocol::route;

    fn scopes(method: &str, path: &str) -> Vec<String> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let operation = route::parse(&method, &path.parse().unwrap()).unwrap().operation;
        let needs = Needs::of(&operation);
        let key = match needs {
            Needs::Repository(name, _) => name.to_string(),
            _ => String::new(),
        };
        needs.scopes(&key, &operation).iter().map(Scope::to_string).collect()
    }

    #[test]
    fn each_operation_takes_its_scope() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let session = "0".repeat(32);
        let pull = ["repository:a/b:pull"];
        let push = ["repository:a/b:pull,push"];
        for (method, path, wanted) in [
            ("GET", "/v2/".to_owned(), &[][..]),
            ("GET", format!("/v2/a/b/blobs/{digest}"), &pull),
            ("HEAD", format!("/v2/a/b/blobs/{digest}"), &pull),
            ("GET", "/v2/a/b/manifests/v1".to_owned(), &pull),
            ("GET", "/v2/a/b/tags/list".to_owned(), &pull),
            ("GET", format!("/v2/a/b/referrers/{digest}"), &pull),
            ("PUT", "/v2/a/b/manifests/v1".to_owned(), &push),
            ("POST", "/v2/a/b/blobs/uploads/".to_owned(), &push),
            ("PATCH", format!("/v2/a/b/blobs/uploads/{session}"), &push),
            ("PUT", format!("/v2/a/b/blobs/uploads/{session}?digest={digest}"), &push),
            ("GET", format!("/v2/a/b/blobs/uploads/{session}"), &push),
            ("DELETE", format!("/v2/a/b/blobs/uploads/{session}"), &push),
            ("DELETE", "/v2/a/b/manifests/v1".to_owned(), &["repository:a/b:delete"]),
            ("DELETE", format!("/v2/a/b/blobs/{digest}"), &["repository:a/b:delete"]),
            ("GET", "/v2/_catalog".to_owned(), &["registry:catalog:*"]),
            (
                "POST",
                format!("/v2/a/b/blobs/uploads/?mount={digest}&from=c/d"),
                &["repository:a/b:pull,push", "repository:c/d:pull"],
            ),
            ("PUT", "/layer/upload?image=a/b&version=1".to_owned(), &push),
            ("GET", format!("/layer/request?digest={digest}&image=a/b"), &pull),
            ("GET", format!("/layer/request?digest={digest}"), &[]),
        ] {
            assert_eq!(scopes(method, &path), wanted, "{method} {path}");
        }
    }
}
