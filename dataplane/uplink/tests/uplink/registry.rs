//! Debian's docker-registry as the upstream.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use outrider_artifact::{Digest, Reference};
use outrider_uplink::{FetchError, FetchRequest, Target};

use crate::shard::{
    blob, content, drain, error, head, manifest, on_shard, part, start, upstream, wait_until_idle,
};

const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

struct Registry {
    child: Child,
    port: u16,
    _dir: tempfile::TempDir,
}

impl Registry {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Free a moment ago; nothing else here takes ports of this address.
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let config = format!(
            "version: 0.1\nstorage:\n  filesystem: {{rootdirectory: {}/data}}\nhttp:\n  addr: 127.0.0.1:{port}\n",
            dir.path().display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(file)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(20));
        }
        Self { child, port, _dir: dir }
    }

    fn ask(&self, method: &str, target: &str, media_type: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        let head = format!(
            "{method} {target} HTTP/1.1\r\nhost: 127.0.0.1:{}\r\nconnection: close\r\n\
             content-type: {media_type}\r\ncontent-length: {}\r\n\r\n",
            self.port,
            body.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(body).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    fn push_blob(&self, content: &[u8]) {
        let answer = self.ask("POST", "/v2/library/alpine/blobs/uploads/", "", b"");
        let location = answer.lines().find_map(|line| {
            line.split_once(": ").filter(|(name, _)| name.eq_ignore_ascii_case("location"))
        });
        let location = location.unwrap().1.trim();
        let base = format!("http://127.0.0.1:{}", self.port);
        let path = location.strip_prefix(&base).unwrap();
        let target = format!("{path}&digest={}", Digest::sha256(content));
        let answer = self.ask("PUT", &target, "application/octet-stream", content);
        assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_registry_is_a_good_upstream_until_it_is_gone() {
    let registry = Registry::start();
    let mut layer = vec![0u8; 20 << 20];
    for (at, byte) in layer.iter_mut().enumerate() {
        *byte = ((at * 2_654_435_761) >> 13) as u8;
    }
    let config = b"{}".to_vec();
    registry.push_blob(&layer);
    registry.push_blob(&config);
    let descriptor = |media_type: &str, content: &[u8]| {
        let (digest, size) = (Digest::sha256(content), content.len());
        format!("{{\"mediaType\":\"{media_type}\",\"digest\":\"{digest}\",\"size\":{size}}}")
    };
    let text = format!(
        "{{\"schemaVersion\":2,\"mediaType\":\"{MANIFEST_TYPE}\",\"config\":{},\"layers\":[{}]}}",
        descriptor("application/vnd.oci.image.config.v1+json", &config),
        descriptor("application/vnd.oci.image.layer.v1.tar", &layer),
    );
    let path = "/v2/library/alpine/manifests/v1";
    let answer = registry.ask("PUT", path, MANIFEST_TYPE, text.as_bytes());
    assert!(answer.starts_with("HTTP/1.1 201"), "{answer}");

    let uplink = start(upstream(&format!("http://127.0.0.1:{}", registry.port)));
    let digest = Digest::sha256(text.as_bytes());
    on_shard(&uplink, move |client| async move {
        let accept = vec![MANIFEST_TYPE.to_owned()];
        let fetch =
            client.fetch(FetchRequest { accept: accept.clone(), ..head("v1") }).await.unwrap();
        assert_eq!(fetch.head.digest, Some(digest));
        assert_eq!(fetch.head.length, Some(text.len() as u64));
        assert_eq!(fetch.head.media_type.as_deref(), Some(MANIFEST_TYPE));

        let target = Target::Manifest(Reference::Digest(digest));
        let request = FetchRequest { accept, target, ..manifest("v1") };
        assert_eq!(content(&client, request).await, text.as_bytes());
        assert_eq!(content(&client, blob(&layer)).await, layer);

        let fetch = client.fetch(part(&layer, 7_000_001, Some(9_000_000))).await.unwrap();
        let range = fetch.head.range.unwrap();
        assert_eq!((range.first, range.last, range.total), (7_000_001, 9_000_000, Some(20 << 20)));
        let (bytes, error) = drain(fetch).await;
        assert_eq!((bytes.as_slice(), error), (&layer[7_000_001..=9_000_000], None));

        // Dropped early, as containerd does with its ranges.
        for first in 0..20 {
            let mut fetch = client.fetch(part(&layer, first << 20, None)).await.unwrap();
            let data = fetch.body.next().await.unwrap().unwrap();
            assert_eq!(data, layer[usize::try_from(first << 20).unwrap()..][..data.len()]);
        }
        let found = client.fetch(part(&layer, 21 << 20, None)).await.unwrap_err();
        assert!(matches!(found, FetchError::RangeNotSatisfiable { .. }), "{found}");
        assert_eq!(client.fetch(head("v2")).await.unwrap_err(), FetchError::NotFound);
        assert_eq!(client.fetch(blob(b"nothing")).await.unwrap_err(), FetchError::NotFound);
    });
    wait_until_idle(&uplink);
    drop(registry);
    assert!(error(&uplink, head("v1")).is_upstream_down());
}
