//! Ranges of a blob: on a miss, from memory, and from the disk.

use std::thread;

use outrider_e2e::registry::*;
use outrider_e2e::*;

const MIB: usize = 1 << 20;
const SIZE: usize = 20 * MIB + 12_345;

/// Ranges at the edges of what a cache could cut content into, with what they mean.
fn ranges() -> Vec<(String, std::ops::Range<usize>)> {
    let whole = [
        (0, 0),
        (0, 1),
        (1, 262_143),
        (262_143, 262_144),
        (262_144, 524_287),
        (16 * MIB - 1, 16 * MIB),
        (16 * MIB - 300_000, 16 * MIB + 300_000),
        (SIZE - 1, SIZE - 1),
        (SIZE - 1, SIZE + 1_000_000),
        (5, usize::MAX / 4),
    ];
    let mut all: Vec<_> = whole
        .iter()
        .map(|(first, last)| (format!("bytes={first}-{last}"), *first..(last + 1).min(SIZE)))
        .collect();
    all.push(("bytes=12345678-".into(), 12_345_678..SIZE));
    all.push((format!("bytes={}-", SIZE - 1), SIZE - 1..SIZE));
    all.push(("bytes=-1".into(), SIZE - 1..SIZE));
    all.push(("bytes=-300000".into(), SIZE - 300_000..SIZE));
    all.push((format!("bytes=-{}", SIZE * 2), 0..SIZE));
    all
}

fn assert_ranges(client: &Client, path: &str, content: &[u8]) {
    for (asked, means) in ranges() {
        let answer = client.request("GET", path).header("Range", &asked).send().expect(206);
        let says = format!("bytes {}-{}/{SIZE}", means.start, means.end - 1);
        assert_eq!(answer.header("content-range"), Some(says.as_str()), "{asked}");
        assert_eq!(answer.header("content-length"), Some(means.len().to_string().as_str()));
        assert!(answer.body == content[means], "{asked}");
    }
}

#[test]
fn every_range_is_right_from_the_upstream_from_memory_and_from_the_disk() {
    let upstream = FakeUpstream::start();
    let content = bytes(1, SIZE);
    let path = blob_path("team/app", &upstream.blob(&content));
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    assert_ranges(&client, &path, &content);
    assert!(client.get(&path).expect(200).body == content);
    assert_ranges(&client, &path, &content);
    outrider.restart();
    assert_ranges(&client, &path, &content);
    assert!(client.get(&path).expect(200).body == content);
}

#[test]
fn a_range_of_a_cold_blob_does_not_wait_for_what_is_before_it() {
    let upstream = FakeUpstream::start();
    let content = bytes(2, 64 * MIB);
    let path = blob_path("team/app", &upstream.blob(&content));
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    // Somebody reads from the front, which the upstream holds up. Ranges elsewhere do not stand behind that.
    let gate = Gate::shut();
    upstream.script(1, "GET", "/blobs/", &[Fault::Hold(MIB as u64, gate.clone())]);
    let mut from_the_front = client.request("GET", &path).open();
    from_the_front.take(MIB / 2).expect("the first bytes");
    let far = 50 * MIB..50 * MIB + 100_000;
    let asked = format!("bytes={}-{}", far.start, far.end - 1);
    let answer = client.request("GET", &path).header("Range", &asked).send().expect(206);
    assert!(answer.body == content[far]);
    assert!(!gate.is_open());
    gate.open();
    assert!(from_the_front.finish().expect("the rest").body == content[MIB / 2..]);
}

#[test]
fn a_range_of_a_cold_blob_causes_no_second_full_fetch() {
    let upstream = FakeUpstream::start();
    let content = bytes(3, 64 * MIB);
    let path = blob_path("team/app", &upstream.blob(&content));
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let asked = "bytes=33554432-33654431";
    let answer = client.request("GET", &path).header("Range", asked).send().expect(206);
    assert!(answer.body == content[33_554_432..33_654_432]);
    assert!(client.get(&path).expect(200).body == content);
    let again = client.request("GET", &path).header("Range", asked).send().expect(206);
    assert!(again.body == content[33_554_432..33_654_432]);
    // What a cancelled request had in the sockets' buffers counts as sent.
    let sent = upstream.bytes_sent("/blobs/") as usize;
    assert!(sent < content.len() + 16 * MIB, "{sent} bytes left the upstream");
}

#[test]
fn parallel_open_ended_ranges_that_are_left_early_are_right() {
    // As containerd's parallel downloads do: each part asks to the end and leaves at its own.
    let upstream = FakeUpstream::start();
    let content = bytes(4, 32 * MIB);
    let path = blob_path("team/app", &upstream.blob(&content));
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let parts = 8;
    let step = content.len() / parts;
    thread::scope(|scope| {
        for part in 0..parts {
            let (content, path) = (&content, &path);
            scope.spawn(move || {
                let asked = format!("bytes={}-", part * step);
                let mut incoming = client.request("GET", path).header("Range", &asked).open();
                assert_eq!(incoming.status, 206);
                let mine = incoming.take(step).expect("a part");
                assert!(mine == content[part * step..(part + 1) * step], "part {part}");
            });
        }
    });
    assert!(client.get(&path).expect(200).body == content);
    let sent = upstream.bytes_sent("/blobs/") as usize;
    assert!(sent < 2 * content.len(), "{sent} bytes left the upstream for {}", content.len());
}

#[test]
fn ranges_that_cannot_be_served_are_refused_or_ignored_as_the_rfc_says() {
    let upstream = FakeUpstream::start();
    let content = bytes(5, 100_000);
    let path = blob_path("team/app", &upstream.blob(&content));
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    for state in ["cold", "warm"] {
        for asked in ["bytes=100000-", "bytes=100000-100001", "bytes=999999999-", "bytes=-0"] {
            let answer = client.request("GET", &path).header("Range", asked).send();
            assert_eq!(answer.status, 416, "{state} {asked}");
            assert_eq!(answer.header("content-range"), Some("bytes */100000"), "{state} {asked}");
        }
        for ignored in ["lines=1-2", "bytes=a-b", "bytes", "bytes=0-1,5-6", "bytes=1-2-3", ""] {
            let answer = client.request("GET", &path).header("Range", ignored).send();
            assert_eq!(answer.status, 200, "{state} {ignored:?}");
            assert!(answer.body == content);
        }
    }
}

#[test]
fn an_upstream_that_ignores_ranges_still_gives_right_ranges() {
    let upstream = FakeUpstream::start();
    let content = bytes(6, 12 * MIB);
    let path = blob_path("team/app", &upstream.blob(&content));
    upstream.always("GET", "/blobs/", &[Fault::IgnoreRange]);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let answer = client.request("GET", &path).header("Range", "bytes=9000000-9000099").send();
    assert!(answer.expect(206).body == content[9_000_000..9_000_100]);
    assert!(client.get(&path).expect(200).body == content);
}
