//! Method and target of a request, as they come from the network: first line the method, second the
//! target.
#![no_main]

use http::{Method, Uri};
use libfuzzer_sys::fuzz_target;
use outrider_gateway::protocol::route::{self, Operation};

fuzz_target!(|text: &str| {
    let (method, target) = text.split_once('\n').unwrap_or(("GET", text));
    let Ok(method) = Method::from_bytes(method.as_bytes()) else { return };
    let Ok(uri) = target.parse::<Uri>() else { return };
    match route::parse(&method, &uri) {
        Ok(request) => {
            // The paths of answers mean what they were made from.
            let path = match &request.operation {
                Operation::BlobRead { name, digest, .. } => route::blob_path(name, digest),
                Operation::ManifestRead { name, reference, .. } => {
                    route::manifest_path(name, reference)
                }
                Operation::UploadStatus { name, session } => route::upload_path(name, *session),
                _ => return,
            };
            let again = route::parse(&method, &path.parse().expect("a path is a URI"));
            assert_eq!(again.expect("its own path").operation, request.operation);
        }
        Err(error) => {
            let status = error.status();
            assert!(status.is_client_error(), "{status}");
            let (head, body) = error.into_parts();
            assert_eq!(head.status, status);
            // HEAD has no body; everything else has a bounded one.
            assert!(body.len() < 16 << 10);
        }
    }
});
