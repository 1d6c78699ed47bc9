//! Manifests: what is taken has digests and sizes that were understood, within the bounds; what is taken into the
//! dependency graph is within the graph's.
#![no_main]

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use outrider_artifact::Digest;
use outrider_gateway::protocol::header::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use outrider_gateway::protocol::manifest::{self, DESCRIPTORS_MAX};
use outrider_graph::batch::LAYERS_MAX;
use outrider_graph::{Seen, analyse};

fuzz_target!(|bytes: &[u8]| {
    for stated in [None, Some(OCI_MANIFEST), Some(OCI_INDEX), Some(DOCKER_MANIFEST)] {
        let stated = stated.map(HeaderValue::from_static);
        match manifest::parse(bytes, stated.as_ref()) {
            Ok(manifest) => {
                assert!(manifest.descriptors.len() <= 2 * DESCRIPTORS_MAX);
                assert!(manifest.required().count() <= manifest.descriptors.len());
                assert!(HeaderValue::from_str(&manifest.media_type).is_ok());
                manifest.referrer_descriptor(&Digest::sha256(bytes), bytes.len() as u64);
            }
            Err(error) => assert!(error.status().is_client_error()),
        }
    }
    let seen = Seen {
        image: "library/app".parse().expect("a name"),
        tag: None,
        customer: "customer".to_owned(),
        unix_ms: 1,
        digest: None,
    };
    if let Ok(found) = analyse(bytes, None, seen) {
        assert_eq!(found.check(), Ok(()));
        assert_eq!(found.digest, Digest::sha256(bytes));
        assert!(found.contents.len() <= LAYERS_MAX);
    }
});
