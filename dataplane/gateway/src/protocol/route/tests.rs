use super::*;
use proptest::prelude::*;

const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const SESSION: &str = "00030102030405060708090a0b0c0d0e";

fn parsed(method: &str, uri: &str) -> Result<Operation, ApiError> {
    let uri = uri.replace("DIGEST", DIGEST).replace("SESSION", SESSION);
    parse(&method.parse().unwrap(), &uri.parse().unwrap()).map(|request| request.operation)
}

fn name(text: &str) -> RepositoryName {
    text.parse().unwrap()
}

fn digest() -> Digest {
    DIGEST.parse().unwrap()
}

fn session() -> UploadSession {
    SESSION.parse().unwrap()
}

fn everything() -> Page {
    Page { entries_max: PAGE_ENTRIES_MAX, last: None }
}

#[test]
fn every_route_is_recognised() {
    let tag = |text: &str| Reference::Tag(text.parse().unwrap());
    let read = |reference, method| Operation::ManifestRead { name: name("a/b"), reference, method };
    for (method, uri, operation) in [
        ("GET", "/v2/", Operation::Ping),
        ("GET", "/v2", Operation::Ping),
        ("HEAD", "/v2/", Operation::Ping),
        ("GET", "/v2/a/b/manifests/latest", read(tag("latest"), Read::Get)),
        ("HEAD", "/v2/a/b/manifests/latest", read(tag("latest"), Read::Head)),
        ("GET", "/v2/a/b/manifests/DIGEST", read(Reference::Digest(digest()), Read::Get)),
        (
            "PUT",
            "/v2/a/manifests/DIGEST?tag=x&tag=y&tag=x",
            Operation::ManifestPut {
                name: name("a"),
                reference: Reference::Digest(digest()),
                tags: vec!["x".parse().unwrap(), "y".parse().unwrap()],
            },
        ),
        (
            "DELETE",
            "/v2/a/manifests/v1",
            Operation::ManifestDelete { name: name("a"), reference: tag("v1") },
        ),
        (
            "GET",
            "/v2/a/b/c/blobs/DIGEST",
            Operation::BlobRead { name: name("a/b/c"), digest: digest(), method: Read::Get },
        ),
        (
            "DELETE",
            "/v2/a/blobs/DIGEST",
            Operation::BlobDelete { name: name("a"), digest: digest() },
        ),
        (
            "PATCH",
            "/v2/a/blobs/uploads/SESSION",
            Operation::UploadChunk { name: name("a"), session: session() },
        ),
        (
            "PUT",
            "/v2/a/blobs/uploads/SESSION?digest=DIGEST",
            Operation::UploadFinish { name: name("a"), session: session(), digest: digest() },
        ),
        (
            "GET",
            "/v2/a/blobs/uploads/SESSION",
            Operation::UploadStatus { name: name("a"), session: session() },
        ),
        (
            "DELETE",
            "/v2/a/blobs/uploads/SESSION",
            Operation::UploadCancel { name: name("a"), session: session() },
        ),
        ("GET", "/v2/a/tags/list", Operation::TagsList { name: name("a"), page: everything() }),
        (
            "GET",
            "/v2/a/tags/list?n=2&last=v1",
            Operation::TagsList {
                name: name("a"),
                page: Page { entries_max: 2, last: Some("v1".into()) },
            },
        ),
        (
            "GET",
            "/v2/a/referrers/DIGEST?artifactType=application%2Fvnd.x%2Bjson",
            Operation::Referrers {
                name: name("a"),
                digest: digest(),
                artifact_type: Some("application/vnd.x+json".into()),
                page: everything(),
            },
        ),
        ("GET", "/v2/_catalog", Operation::Catalog { page: everything() }),
        (
            "PUT",
            "/layer/upload?image=a/b&version=v1&customer=acme&digest=DIGEST",
            Operation::LayerUpload {
                image: name("a/b"),
                version: "v1".parse().unwrap(),
                customer: Some("acme".into()),
                digest: Some(digest()),
            },
        ),
        (
            "GET",
            "/layer/request?digest=DIGEST&customer=acme&region=eu-1&image=a%2Fb",
            Operation::LayerRequest {
                digest: digest(),
                customer: Some("acme".into()),
                region: Some("eu-1".into()),
                image: Some(name("a/b")),
                method: Read::Get,
            },
        ),
    ] {
        assert_eq!(parsed(method, uri).unwrap(), operation, "{method} {uri}");
    }
}

#[test]
fn an_upload_begins_in_several_ways() {
    let start = |digest, mount, algorithm| Operation::UploadStart {
        name: name("a/b"),
        digest,
        mount,
        algorithm,
    };
    let from = |from: &str| Some(Mount { digest: digest(), from: Some(name(from)) });
    for (query, operation) in [
        ("", start(None, None, None)),
        ("?digest=DIGEST", start(Some(digest()), None, None)),
        ("?mount=DIGEST&from=c/d", start(None, from("c/d"), None)),
        ("?mount=DIGEST", start(None, Some(Mount { digest: digest(), from: None }), None)),
        ("?mount=DIGEST&from=", start(None, Some(Mount { digest: digest(), from: None }), None)),
        ("?digest-algorithm=sha512", start(None, None, Some(Algorithm::Sha512))),
    ] {
        for path in ["/v2/a/b/blobs/uploads/", "/v2/a/b/blobs/uploads"] {
            assert_eq!(parsed("POST", &format!("{path}{query}")).unwrap(), operation, "{query}");
        }
    }
}

#[test]
fn names_may_contain_the_words_of_routes() {
    for (uri, repository) in [
        ("/v2/a/manifests/b/manifests/latest", "a/manifests/b"),
        ("/v2/manifests/manifests/latest", "manifests"),
        ("/v2/blobs/uploads/manifests/latest", "blobs/uploads"),
        ("/v2/v2/manifests/latest", "v2"),
    ] {
        let Operation::ManifestRead { name, .. } = parsed("GET", uri).unwrap() else {
            panic!("{uri}")
        };
        assert_eq!(&*name, repository, "{uri}");
    }
    let Operation::TagsList { name, .. } = parsed("GET", "/v2/a/tags/tags/list").unwrap() else {
        panic!()
    };
    assert_eq!(&*name, "a/tags");
}

#[test]
fn each_malformed_request_gets_its_own_error() {
    let long_name = format!("/v2/{}/manifests/latest", "a".repeat(256));
    let long_path = format!("/v2/{}/manifests/latest", "a/".repeat(PATH_BYTES_MAX));
    let long_query = format!("/v2/a/tags/list?last={}", "a".repeat(5000));
    let long_last = format!("/v2/a/tags/list?last={}", "a".repeat(256));
    let many_tags = (0..=TAGS_MAX).map(|i| format!("tag=v{i}&")).collect::<String>();
    let many_tags = format!("/v2/a/manifests/DIGEST?{many_tags}");
    for (method, uri, status, code) in [
        ("GET", "/", 404, Code::Unsupported),
        ("GET", "/v1/", 404, Code::Unsupported),
        ("GET", "/v2/a", 404, Code::Unsupported),
        ("GET", "/v2/a/b", 404, Code::Unsupported),
        ("GET", "/v2/manifests/latest", 404, Code::Unsupported),
        ("GET", "/v2/a/tags/other", 404, Code::Unsupported),
        ("GET", "/v2/a/uploads/SESSION", 404, Code::Unsupported),
        ("GET", "/layer/", 404, Code::Unsupported),
        ("GET", "/v2//manifests/latest", 400, Code::NameInvalid),
        ("GET", "/v2/A/manifests/latest", 400, Code::NameInvalid),
        ("GET", "/v2/a//b/manifests/latest", 400, Code::NameInvalid),
        ("GET", "/v2/a/../b/manifests/latest", 400, Code::NameInvalid),
        ("GET", "/v2/a%2Fb/manifests/latest", 400, Code::NameInvalid),
        ("GET", "/v2/a%2F..%2Fb/manifests/latest", 400, Code::NameInvalid),
        ("GET", "/v2/a%00b/manifests/latest", 400, Code::NameInvalid),
        ("GET", "/v2/%FF/manifests/latest", 400, Code::NameInvalid),
        ("GET", "/v2/%2e%2e/manifests/latest", 400, Code::NameInvalid),
        ("GET", &long_name, 400, Code::NameInvalid),
        ("GET", "/v2/a/manifests/.INVALID_MANIFEST_NAME", 404, Code::ManifestUnknown),
        ("HEAD", "/v2/a/manifests/.INVALID_MANIFEST_NAME", 404, Code::ManifestUnknown),
        ("GET", "/v2/a/manifests/", 404, Code::ManifestUnknown),
        ("GET", "/v2/a/manifests/a%2Fb", 404, Code::ManifestUnknown),
        ("PUT", "/v2/a/manifests/.INVALID_MANIFEST_NAME", 400, Code::TagInvalid),
        ("PUT", "/v2/a/manifests/sha256:totallywrong", 400, Code::DigestInvalid),
        ("GET", "/v2/a/manifests/sha256:baddigeststring", 400, Code::DigestInvalid),
        ("GET", "/v2/a/manifests/md5:d41d8cd98f00b204e9800998ecf8427e", 400, Code::DigestInvalid),
        ("PUT", "/v2/a/manifests/DIGEST?tag=.x", 400, Code::TagInvalid),
        ("GET", "/v2/a/blobs/sha256:abc", 400, Code::DigestInvalid),
        ("GET", "/v2/a/blobs/", 400, Code::DigestInvalid),
        ("GET", "/v2/a/referrers/latest", 400, Code::DigestInvalid),
        ("POST", "/v2/a/blobs/uploads/?digest=x", 400, Code::DigestInvalid),
        ("POST", "/v2/a/blobs/uploads/?mount=x&from=a", 400, Code::DigestInvalid),
        ("POST", "/v2/a/blobs/uploads/?mount=DIGEST&from=A", 400, Code::NameInvalid),
        ("POST", "/v2/a/blobs/uploads/?digest-algorithm=md5", 400, Code::DigestInvalid),
        ("POST", "/v2/a/blobs/uploads/?digest=DIGEST&digest=DIGEST", 400, Code::Unsupported),
        ("PATCH", "/v2/a/blobs/uploads/nonsense", 404, Code::BlobUploadUnknown),
        ("PUT", "/v2/a/blobs/uploads/SESSION", 400, Code::DigestInvalid),
        ("PUT", "/v2/a/blobs/uploads/SESSION?digest=x", 400, Code::DigestInvalid),
        ("GET", "/v2/a/tags/list?n=x", 400, Code::PaginationNumberInvalid),
        ("GET", "/v2/a/tags/list?n=-1", 400, Code::PaginationNumberInvalid),
        ("GET", "/v2/a/tags/list?n=", 400, Code::PaginationNumberInvalid),
        ("GET", &long_last, 414, Code::Unsupported),
        ("GET", &long_query, 414, Code::Unsupported),
        ("GET", &long_path, 414, Code::Unsupported),
        ("PUT", &many_tags, 414, Code::Unsupported),
        ("PUT", "/layer/upload?version=v1", 400, Code::NameInvalid),
        ("PUT", "/layer/upload?image=a", 400, Code::TagInvalid),
        ("PUT", "/layer/upload?image=a&version=.v", 400, Code::TagInvalid),
        ("PUT", "/layer/upload?image=a&version=v&customer=-", 400, Code::NameInvalid),
        ("PUT", "/layer/upload?image=a&version=v&digest=x", 400, Code::DigestInvalid),
        ("GET", "/layer/request", 400, Code::DigestInvalid),
        ("GET", "/layer/request?digest=DIGEST&region=EU", 400, Code::NameInvalid),
        ("GET", "/layer/request?digest=DIGEST&customer=", 400, Code::NameInvalid),
        ("GET", "/v2/?ns=http://a", 404, Code::NameUnknown),
        ("GET", "/v2/?ns=a&ns=b", 400, Code::Unsupported),
    ] {
        let error = parsed(method, uri).expect_err(uri);
        assert_eq!((error.status().as_u16(), error.code()), (status, code), "{method} {uri}");
    }
}

#[test]
fn a_wrong_method_is_told_the_right_ones() {
    for (method, uri, allow) in [
        ("POST", "/v2/", "GET, HEAD"),
        ("POST", "/v2/_catalog", "GET, HEAD"),
        ("POST", "/v2/a/manifests/latest", "GET, HEAD, PUT, DELETE"),
        ("PATCH", "/v2/a/manifests/.wrong", "GET, HEAD, PUT, DELETE"),
        ("PUT", "/v2/a/blobs/DIGEST", "GET, HEAD, DELETE"),
        ("GET", "/v2/a/blobs/uploads/", "POST"),
        ("POST", "/v2/a/blobs/uploads/SESSION", "GET, HEAD, PATCH, PUT, DELETE"),
        ("DELETE", "/v2/a/tags/list", "GET, HEAD"),
        ("PUT", "/v2/a/referrers/DIGEST", "GET, HEAD"),
        ("GET", "/layer/upload", "PUT"),
        ("PUT", "/layer/request", "GET, HEAD"),
    ] {
        let error = parsed(method, uri).expect_err(uri);
        assert_eq!((error.status().as_u16(), error.code()), (405, Code::Unsupported), "{uri}");
        assert_eq!(error.headers()["allow"], allow, "{uri}");
    }
}

#[test]
fn percent_encoding_is_undone_within_a_part() {
    let encoded = DIGEST.replace(':', "%3A");
    assert_eq!(
        parsed("GET", &format!("/v2/a/blobs/{encoded}")).unwrap(),
        parsed("GET", "/v2/a/blobs/DIGEST").unwrap()
    );
    assert_eq!(
        parsed("GET", "/v2/%61/b/manifests/v%31").unwrap(),
        parsed("GET", "/v2/a/b/manifests/v1").unwrap()
    );
}

#[test]
fn the_number_of_entries_is_bounded() {
    for (n, entries_max) in [
        ("0", 0),
        ("7", 7),
        ("10001", PAGE_ENTRIES_MAX),
        ("99999999999999999999999999", PAGE_ENTRIES_MAX),
    ] {
        let operation = parsed("GET", &format!("/v2/_catalog?n={n}")).unwrap();
        assert_eq!(operation, Operation::Catalog { page: Page { entries_max, last: None } });
    }
}

#[test]
fn the_registry_that_is_meant_is_passed_on() {
    let uri = "/v2/library/alpine/manifests/latest?ns=docker.io".parse().unwrap();
    let request = parse(&Method::GET, &uri).unwrap();
    assert_eq!(request.ns.as_deref(), Some("docker.io"));
}

#[test]
fn a_registry_is_only_meant_where_its_mirror_is_read() {
    for (method, uri, is_meant) in [
        ("GET", "/v2/a/manifests/latest", true),
        ("HEAD", "/v2/a/blobs/DIGEST", true),
        ("GET", "/v2/a/tags/list", true),
        ("GET", "/v2/a/referrers/DIGEST", true),
        ("PUT", "/v2/a/manifests/latest", false),
        ("DELETE", "/v2/a/blobs/DIGEST", false),
        ("POST", "/v2/a/blobs/uploads/", false),
        ("GET", "/v2/_catalog", false),
        ("GET", "/v2/", false),
        ("GET", "/layer/request?digest=DIGEST&image=a", false),
        ("PUT", "/layer/upload?image=a&version=1", false),
    ] {
        let sign = if uri.contains('?') { '&' } else { '?' };
        let uri = format!("{uri}{sign}ns=ghcr.io").replace("DIGEST", DIGEST).parse().unwrap();
        let ns = parse(&method.parse().unwrap(), &uri).unwrap().ns;
        assert_eq!(ns.is_some(), is_meant, "{method} {uri}");
    }
}

#[test]
fn a_session_carries_its_shard() {
    let session = UploadSession::new(3, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    assert_eq!(session.to_string(), SESSION);
    assert_eq!(SESSION.parse(), Ok(session));
    assert_eq!(session.shard(), 3);
    assert_eq!(session.bytes()[2..], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14]);
    for wrong in ["", "0", &SESSION.to_uppercase(), &format!("{SESSION}00"), &"é".repeat(16)] {
        assert_eq!(wrong.parse::<UploadSession>(), Err(()), "{wrong}");
    }
}

#[test]
fn the_paths_of_answers_are_routes() {
    let name = name("a/b");
    let reference = Reference::Digest(digest());
    assert_eq!(
        parsed("GET", &manifest_path(&name, &reference)).unwrap(),
        Operation::ManifestRead { name: name.clone(), reference, method: Read::Get }
    );
    assert_eq!(
        parsed("GET", &blob_path(&name, &digest())).unwrap(),
        Operation::BlobRead { name: name.clone(), digest: digest(), method: Read::Get }
    );
    assert_eq!(
        parsed("PATCH", &upload_path(&name, session())).unwrap(),
        Operation::UploadChunk { name, session: session() }
    );
}

fn any_method() -> impl Strategy<Value = Method> {
    proptest::sample::select(vec![
        Method::GET,
        Method::HEAD,
        Method::PUT,
        Method::POST,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
    ])
}

proptest! {
    #[test]
    fn no_uri_makes_the_parser_panic(method in any_method(), text in "/[ -~]{0,200}") {
        if let Ok(uri) = text.parse::<Uri>() {
            let _ = parse(&method, &uri);
        }
    }

    #[test]
    fn a_path_that_is_taken_is_made_of_valid_names(
        method in any_method(),
        parts in proptest::collection::vec(
            prop_oneof![
                Just("manifests".to_owned()), Just("blobs".to_owned()), Just("uploads".to_owned()),
                Just("tags".to_owned()), Just("list".to_owned()), Just("referrers".to_owned()),
                Just(DIGEST.to_owned()), Just(SESSION.to_owned()), "[a-z%.]{0,4}",
            ],
            0..6,
        ),
        query in proptest::option::of("(n|last|digest|mount|from|tag|ns)=[a-z0-9:%&=]{0,20}"),
    ) {
        let query = query.map(|query| format!("?{query}")).unwrap_or_default();
        let text = format!("/v2/{}{query}", parts.join("/"));
        if let Ok(uri) = text.parse::<Uri>()
            && let Ok(Request { operation: Operation::ManifestRead { name, .. }, .. }) =
                parse(&method, &uri)
        {
            prop_assert!(name.parse::<RepositoryName>().is_ok());
            prop_assert!(uri.path().contains("/manifests/"));
        }
    }
}
