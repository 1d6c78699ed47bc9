//! Which paths there are, and what may be done with each. One table, which answers requests and which the
//! description of the API ([`super::openapi`]) is compared with.

/// What is at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    Fragments,
    Fragment,
    Batch,
    Watch,
    Tags,
    Tag,
    Customers,
    Customer,
    Weights,
    Placements,
    Placement,
    Invalidations,
    Cluster,
    ClusterToken,
    ClusterLeave,
    ClusterRemove,
    Graph,
    GraphManifests,
    GraphQuery,
    Prefetch,
    Events,
    OpenApi,
    Metrics,
    Health,
    Ready,
    Status,
}

impl Place {
    /// Whether it is one of the pages for supervisors and for those who measure, which tell nothing that is stored.
    pub(crate) fn is_page(self) -> bool {
        matches!(self, Self::Metrics | Self::Health | Self::Ready | Self::Status | Self::OpenApi)
    }
}

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Route {
    /// The path; a name in braces at its end stands for all that follows, slashes too.
    pub(crate) template: &'static str,
    /// In the form of an `Allow`. HEAD is answered wherever GET is.
    pub(crate) methods: &'static str,
    pub(crate) place: Place,
    /// How metrics call it.
    pub(crate) label: &'static str,
}

const fn route(
    template: &'static str,
    methods: &'static str,
    place: Place,
    label: &'static str,
) -> Route {
    Route { template, methods, place, label }
}

const READ: &str = "GET, HEAD";
const SET: &str = "GET, HEAD, PUT, DELETE";

/// Paths without a name stand before those with one that begin alike.
pub(crate) const ROUTES: &[Route] = &[
    route("/v1/state", READ, Place::Fragments, "states"),
    route("/v1/state/{key}", SET, Place::Fragment, "state"),
    route("/v1/batch", "POST", Place::Batch, "batch"),
    route("/v1/watch", READ, Place::Watch, "watch"),
    route("/v1/tags", READ, Place::Tags, "tags"),
    route("/v1/tags/{name}", SET, Place::Tag, "tag"),
    route("/v1/customers", READ, Place::Customers, "customers"),
    route("/v1/customers/{name}", SET, Place::Customer, "customer"),
    route("/v1/weights", "GET, HEAD, PUT", Place::Weights, "weights"),
    route("/v1/placement", READ, Place::Placements, "placements"),
    route("/v1/placement/{prefix}", SET, Place::Placement, "placement"),
    route("/v1/invalidations", "POST", Place::Invalidations, "invalidations"),
    route("/v1/cluster", READ, Place::Cluster, "cluster"),
    route("/v1/cluster/token", "POST", Place::ClusterToken, "cluster"),
    route("/v1/cluster/leave", "POST", Place::ClusterLeave, "cluster"),
    route("/v1/cluster/remove", "POST", Place::ClusterRemove, "cluster"),
    route("/v1/graph", READ, Place::Graph, "graph"),
    route("/v1/graph/manifests", "POST", Place::GraphManifests, "graph"),
    route("/v1/graph/{query}", READ, Place::GraphQuery, "graph"),
    route("/v1/prefetch", "POST", Place::Prefetch, "prefetch"),
    route("/v1/events", READ, Place::Events, "events"),
    route("/v1/openapi.json", READ, Place::OpenApi, "openapi"),
    route("/metrics", READ, Place::Metrics, "metrics"),
    route("/healthz", READ, Place::Health, "health"),
    route("/readyz", READ, Place::Ready, "ready"),
    route("/status", READ, Place::Status, "status"),
];

impl Route {
    /// What stands in the path for the name, as it is there; `""` for a path without one.
    fn takes<'a>(&self, path: &'a str) -> Option<&'a str> {
        match self.template.split_once('{') {
            None => (self.template == path).then_some(""),
            Some((head, _)) => path.strip_prefix(head),
        }
    }

    pub(crate) fn allows(&self, method: &http::Method) -> bool {
        self.methods.split(", ").any(|allowed| allowed == method.as_str())
    }
}

/// The row of a path, and its name, still percent-encoded.
pub(crate) fn find(path: &str) -> Option<(&'static Route, &str)> {
    ROUTES.iter().find_map(|route| Some((route, route.takes(path)?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_found_with_what_follows() {
        for (path, wanted) in [
            ("/v1/state", Some((Place::Fragments, ""))),
            ("/v1/state/a/b", Some((Place::Fragment, "a/b"))),
            ("/v1/state/", Some((Place::Fragment, ""))),
            ("/v1/graph/manifests", Some((Place::GraphManifests, ""))),
            ("/v1/graph/depth", Some((Place::GraphQuery, "depth"))),
            ("/v1/placement/", Some((Place::Placement, ""))),
            ("/v1/statement", None),
            ("/v1/cluster/", None),
            ("/", None),
        ] {
            assert_eq!(find(path).map(|(route, name)| (route.place, name)), wanted, "{path}");
        }
    }
}
