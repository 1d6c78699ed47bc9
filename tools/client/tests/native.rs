//! The client over the native protocol, against a small server of it.

#![allow(clippy::unwrap_used)]

mod native_server;

use std::fs;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use native_server::{NativeServer, Reply, start};
use outrider_artifact::Digest;
use outrider_client::{
    Artifact, Client, ClientError, Options, Place, Protocol, Roots, Silent, Used,
};
use serde_json::json;

fn body(seed: u64, length: usize) -> Bytes {
    let mut random = fastrand::Rng::with_seed(seed);
    // Not a brace, which is what manifests begin with here.
    std::iter::once(0).chain((1..length).map(|_| random.u8(..))).collect::<Vec<_>>().into()
}

fn client(server: &NativeServer, folder: &tempfile::TempDir) -> Client {
    let ca = folder.path().join("ca.pem");
    fs::write(&ca, &server.certificate_pem).unwrap();
    let mut options = Options::new(format!("https://{}", server.address).parse().unwrap());
    options.protocol = Protocol::Native;
    options.roots = Roots::File(ca);
    options.attempts_max = 3;
    Client::new(options).unwrap()
}

fn place() -> Place {
    Place { repository: Some("team/app".parse().unwrap()), ns: None }
}

#[tokio::test]
async fn a_blob_comes_whole_resumed_and_in_part_in_one_frame_and_in_two() {
    let content = body(1, 1_000_000);
    let digest = Digest::sha256(&content);
    for reply in [(|_| Reply::Whole) as fn(u32) -> Reply, |_| Reply::InTwo] {
        let (server, folder) =
            (start(std::slice::from_ref(&content), reply), tempfile::tempdir().unwrap());
        let client = client(&server, &folder);
        let file = folder.path().join("a");
        let fetched = client.fetch(&place(), &digest, &file, &Silent).await.unwrap();
        assert_eq!(fetched.protocol, Some(Used::Native));
        assert_eq!(fs::read(&file).unwrap(), content);
        let file = folder.path().join("b");
        fs::write(folder.path().join("b.partial"), &content[..900_000]).unwrap();
        let fetched = client.fetch(&place(), &digest, &file, &Silent).await.unwrap();
        assert_eq!((fetched.size_bytes, fetched.received_bytes), (1_000_000, 100_000));
        assert_eq!(fs::read(&file).unwrap(), content);
        fs::write(folder.path().join("c.partial"), &content).unwrap();
        client.fetch(&place(), &digest, &folder.path().join("c"), &Silent).await.unwrap();
        let range = (10, Some(99));
        client.fetch_range(&place(), &digest, range, &file, &Silent).await.unwrap();
        assert_eq!(fs::read(&file).unwrap(), content[10..100]);
    }
}

#[tokio::test]
async fn a_stream_that_breaks_and_a_server_that_is_busy_are_tried_again() {
    let content = body(2, 800_000);
    let digest = Digest::sha256(&content);
    let server = start(std::slice::from_ref(&content), |n| match n {
        0 => Reply::Busy,
        1 | 2 => Reply::Cut,
        _ => Reply::Whole,
    });
    let folder = tempfile::tempdir().unwrap();
    let client = client(&server, &folder);
    let file = folder.path().join("a");
    let fetched = client.fetch(&place(), &digest, &file, &Silent).await.unwrap();
    assert_eq!((fetched.size_bytes, fetched.received_bytes), (800_000, 800_000));
    assert_eq!(fs::read(&file).unwrap(), content);
    assert_eq!(server.requests.load(Ordering::Relaxed), 4);
    // The next connection asks with its first packet.
    client.disconnect().await;
    client.fetch(&place(), &digest, &folder.path().join("b"), &Silent).await.unwrap();
    assert_eq!(client.early_connections(), 1);
}

#[tokio::test]
async fn an_image_by_digest_comes_and_what_is_not_there_is_said() {
    let layers = [body(3, 300_000), body(4, 70_000)];
    let config = body(5, 400);
    let descriptor = |bytes: &Bytes| json!({"mediaType": "x", "digest": Digest::sha256(bytes).to_string(), "size": bytes.len()});
    let manifest = Bytes::from(
        json!({"config": descriptor(&config), "layers": [descriptor(&layers[0]), descriptor(&layers[1])]})
            .to_string(),
    );
    let digest = Digest::sha256(&manifest);
    let all = [manifest, config, layers[0].clone(), layers[1].clone()];
    let (server, folder) = (start(&all, |_| Reply::Whole), tempfile::tempdir().unwrap());
    let client = client(&server, &folder);
    let Artifact::Image(image) = format!("team/app@{digest}").parse().unwrap() else { panic!() };
    let layout = folder.path().join("layout");
    let pulled = client.pull(&image, &layout, &Silent).await.unwrap();
    assert_eq!((pulled.digest, pulled.protocol), (digest, Used::Native));
    for bytes in &all {
        let file = layout.join("blobs/sha256").join(Digest::sha256(bytes).hex());
        assert_eq!(fs::read(file).unwrap(), *bytes);
    }
    let missing = Digest::sha256(b"nowhere");
    let file = folder.path().join("a");
    let error = client.fetch(&place(), &missing, &file, &Silent).await.unwrap_err();
    let ClientError::Status { status: 404, message, .. } = error else { panic!("{error}") };
    assert_eq!(message.as_deref(), Some("not here"));
}

#[tokio::test]
async fn many_come_in_one_round_trip_and_what_does_not_comes_alone() {
    let contents: Vec<Bytes> = (0..6).map(|n| body(20 + n, 1 + 40_000 * n as usize)).collect();
    let digests: Vec<Digest> = contents.iter().map(|bytes| Digest::sha256(bytes)).collect();
    let folder = tempfile::tempdir().unwrap();
    let files = |name: &str| -> Vec<_> {
        let file = |n: usize| folder.path().join(format!("{name}-{n}"));
        digests.iter().enumerate().map(|(n, digest)| (*digest, file(n))).collect()
    };
    // Whole; in two frames each; broken off in the second, so that the rest is asked for alone; refused.
    for (name, reply, requests) in [
        ("whole", (|_| Reply::Whole) as fn(u32) -> Reply, 1),
        ("two", |_| Reply::InTwo, 1),
        ("cut", |n| if n == 0 { Reply::Cut } else { Reply::Whole }, 7),
        ("busy", |n| if n == 0 { Reply::Busy } else { Reply::Whole }, 7),
    ] {
        let server = start(&contents, reply);
        let client = client(&server, &folder);
        let fetched = client.fetch_many(&place(), &files(name), &Silent).await.unwrap();
        for ((file, content), fetched) in files(name).iter().zip(&contents).zip(&fetched) {
            assert_eq!(fs::read(&file.1).unwrap(), *content, "{name}");
            assert_eq!(fetched.size_bytes, content.len() as u64, "{name}");
            assert_eq!(
                (fetched.received_bytes, fetched.protocol),
                (fetched.size_bytes, Some(Used::Native))
            );
        }
        assert_eq!(server.requests.load(Ordering::Relaxed), requests, "{name}");
    }
    // What is here is not asked for again, and what is begun goes on from where it was.
    let server = start(&contents, |_| Reply::Whole);
    let client = client(&server, &folder);
    let again = files("again");
    fs::write(&again[1].1, &contents[1]).unwrap();
    fs::write(folder.path().join("again-4.partial"), &contents[4][..100_000]).unwrap();
    let fetched = client.fetch_many(&place(), &again, &Silent).await.unwrap();
    assert_eq!(server.requests.load(Ordering::Relaxed), 2);
    assert_eq!((fetched[1].received_bytes, fetched[4].received_bytes), (0, 60_001));
    assert!(again.iter().zip(&contents).all(|(file, bytes)| fs::read(&file.1).unwrap() == *bytes));
    // One that is nowhere fails, and the others are there all the same.
    let mut missing = files("missing");
    missing[2].0 = Digest::sha256(b"nowhere");
    let error = client.fetch_many(&place(), &missing, &Silent).await.unwrap_err();
    assert!(matches!(error, ClientError::Status { status: 404, .. }), "{error}");
    assert_eq!(fs::read(&missing[5].1).unwrap(), contents[5]);
    assert!(!missing[2].1.exists());
}
