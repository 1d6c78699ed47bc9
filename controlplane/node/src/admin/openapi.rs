//! `GET /v1/openapi.json`: the description of the whole API, as it stands in `docs/`. A test compares it with the
//! table of routes.

/// OpenAPI 3.1.
pub(crate) const DOCUMENT: &str =
    include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/openapi.json"));

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::DOCUMENT;
    use crate::admin::route::ROUTES;

    #[test]
    fn every_route_is_described_and_everything_described_is_a_route() {
        let document: Value = serde_json::from_str(DOCUMENT).unwrap();
        let paths = document["paths"].as_object().unwrap();
        let described: BTreeSet<(String, String)> = paths
            .iter()
            .flat_map(|(path, item)| {
                let methods = item.as_object().unwrap().keys().filter(|key| *key != "parameters");
                methods.map(move |method| (path.clone(), method.to_uppercase()))
            })
            .collect();
        let routes = ROUTES.iter().flat_map(|route| {
            let methods = route.methods.split(", ").filter(|method| *method != "HEAD");
            methods.map(|method| (route.template.to_owned(), method.to_owned()))
        });
        assert_eq!(routes.collect::<BTreeSet<_>>(), described);
    }
}
