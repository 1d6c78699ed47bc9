//! Manifests: what is taken has digests and sizes that were understood, within the bounds.
#![no_main]

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use outrider_artifact::Digest;
use outrider_gateway::protocol::header::{DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
use outrider_gateway::protocol::manifest::{self, DESCRIPTORS_MAX};

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
});
