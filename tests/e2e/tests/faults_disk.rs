//! Disks that are full, damaged or missing: a cache may forget, and must never lie; what was pushed
//! is refused or kept, never half.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use outrider_e2e::content::Random;
use outrider_e2e::registry::*;
use outrider_e2e::*;

const MIB: usize = 1 << 20;

fn stripes(outrider: &Outrider) -> Vec<PathBuf> {
    let dir = fs::read_dir(outrider.data_dir().join("ssd")).expect("DIR/ssd");
    let mut files: Vec<_> =
        dir.map(|entry| entry.expect("an entry").path()).filter(|path| path.is_file()).collect();
    files.sort();
    assert!(!files.is_empty());
    files
}

/// Flips a bit in each of many places of the file that are not zero.
fn damage(file: &PathBuf, random: &mut Random, every: u64) -> usize {
    let open = OpenOptions::new().read(true).write(true).open(file).expect("a stripe opens");
    let size = open.metadata().expect("metadata").len();
    let mut damaged = 0;
    let mut at = random.below(every);
    while at < size {
        let mut byte = [0];
        open.read_exact_at(&mut byte, at).expect("a byte is read");
        if byte[0] != 0 {
            byte[0] ^= 1 << random.below(8);
            open.write_all_at(&byte, at).expect("a byte is written");
            damaged += 1;
        }
        at += 1 + random.below(2 * every);
    }
    damaged
}

#[test]
fn a_full_disk_refuses_uploads_with_the_registrys_error_and_loses_nothing() {
    let upstream = FakeUpstream::start();
    let mirrored = SmallImage::new(1, &[2_000_000]);
    upstream.image("team/app", "v1", &mirrored);
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()).ssd("256MiB"));
    let client = outrider.client();
    let image = SmallImage::new(2, &[1000]);
    push(&client, "own/app", "v1", &image);

    // Each shard has a part of the disk, and connections come to either: it is full when many in a row
    // are refused.
    let mut kept = Vec::new();
    let mut refusals: Vec<Answer> = Vec::new();
    while refusals.len() < 16 {
        assert!(kept.len() * 8 * MIB <= 256 * MIB, "more than the disk holds");
        let content = bytes(100 + kept.len() as u64, 8 * MIB);
        let digest = sha256(&content);
        let start = client.request("POST", "/v2/own/app/blobs/uploads/").send();
        if start.status != 202 {
            refusals.push(start);
            continue;
        }
        let at = location(&start).expect("a location");
        let put = client.request("PUT", &with_query(&at, &format!("digest={digest}")));
        let answer = put.body(&content).send();
        if answer.status != 201 {
            refusals.push(answer);
            continue;
        }
        kept.push(digest);
        refusals.clear();
    }
    for refusal in refusals {
        assert!(matches!(refusal.status, 413 | 507), "{} {}", refusal.status, refusal.text());
        assert!(refusal.json()["errors"][0]["code"].is_string(), "{}", refusal.text());
    }
    assert!(kept.len() * 8 * MIB >= 64 * MIB, "uploads may have a good part of the disk");

    for state in ["full", "after a restart", "after a crash"] {
        match state {
            "after a restart" => outrider.restart(),
            "after a crash" => outrider.crash_and_restart(),
            _ => {}
        }
        for (n, digest) in kept.iter().enumerate() {
            let answer = client.get(&blob_path("own/app", digest)).expect(200);
            assert!(answer.body == bytes(100 + n as u64, 8 * MIB), "{state}: {digest}");
        }
        assert_served(&client, "own/app", "v1", &image);
        // A full store only means that less is cached.
        assert_served(&client, "team/app", "v1", &mirrored);
        let again = try_push_blob(&client, "own/app", &bytes(99, 8 * MIB));
        assert!(again.is_err(), "{state}: still full");
    }
}

#[test]
fn what_is_deleted_makes_room_for_more() {
    let outrider = Outrider::start(Options::default().ssd("256MiB"));
    let client = outrider.client();
    // Three times what the disk holds, never more than a part of it at a time.
    for n in 0..24 {
        let image = SmallImage::new(200 + n, &[30 * MIB]);
        push(&client, "own/app", "v1", &image);
        assert_served(&client, "own/app", "v1", &image);
        let digest = image.digest();
        client.request("DELETE", &manifest_path("own/app", &digest)).send().expect(202);
        for blob in image.blobs() {
            let answer = client.request("DELETE", &blob_path("own/app", &sha256(blob))).send();
            assert!(matches!(answer.status, 202 | 404), "{}", answer.status);
        }
    }
}

#[test]
fn more_than_the_cache_holds_is_served_right_and_the_disk_does_not_fill() {
    let upstream = FakeUpstream::start();
    let digests: Vec<_> = (0..12).map(|n| upstream.blob(&bytes(300 + n, 32 * MIB))).collect();
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).ssd("256MiB"));
    let client = outrider.client();
    for _twice in 0..2 {
        for (n, digest) in digests.iter().enumerate() {
            let answer = client.get(&blob_path("team/app", digest)).expect(200);
            assert!(answer.body == bytes(300 + n as u64, 32 * MIB), "{n}");
        }
    }
    push(&client, "own/app", "v1", &SmallImage::new(3, &[MIB]));
}

#[test]
fn damaged_bytes_of_cached_content_are_never_served_and_are_fetched_again() {
    let seed = Random::seed_of_this_run();
    eprintln!("OUTRIDER_SEED={seed}");
    let mut random = Random::new(seed);
    let upstream = FakeUpstream::start();
    let images: Vec<_> = (0..4).map(|n| SmallImage::new(400 + n, &[6 * MIB, 50_000])).collect();
    for (n, image) in images.iter().enumerate() {
        upstream.image("team/app", &format!("v{n}"), image);
    }
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let all = |client: &Client| {
        for (n, image) in images.iter().enumerate() {
            assert_served(client, "team/app", &format!("v{n}"), image);
        }
    };
    all(&client);
    for every in [64 << 10, 4 << 10, 1 << 20] {
        outrider.terminate();
        let damaged: usize =
            stripes(&outrider).iter().map(|file| damage(file, &mut random, every)).sum();
        assert!(damaged > 10, "there was something to damage: {damaged}");
        outrider.resume();
        all(&client);
        all(&client);
        let metrics = outrider.metrics();
        let noticed = metrics.sum("outrider_cache_damaged_records_total", &[])
            + metrics.sum("outrider_cache_scan_damaged_blocks_total", &[]);
        assert!(noticed > 0.0, "the damage is counted");
    }
}

#[test]
fn a_damaged_manifest_is_fetched_again_before_it_is_answered() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(410, &[1000]);
    upstream.image("team/app", "v1", &image);
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    // Twice, since the disk is for what is asked for more than once.
    assert_served(&client, "team/app", "v1", &image);
    assert_served(&client, "team/app", "v1", &image);
    outrider.terminate();
    let mut random = Random::new(1);
    let damaged: usize = stripes(&outrider)
        .iter()
        .map(|file| damage_content(file, &image.manifest, &mut random))
        .sum();
    assert!(damaged > 0, "the manifest is on a stripe");
    outrider.resume();
    assert_served(&client, "team/app", "v1", &image);
}

/// Flips a bit in every copy of `content` in the file.
fn damage_content(file: &PathBuf, content: &[u8], random: &mut Random) -> usize {
    let bytes = fs::read(file).expect("a stripe is read");
    let open = OpenOptions::new().write(true).open(file).expect("a stripe opens");
    // Records begin at blocks of 4 KiB, their payload 512 bytes further on.
    let places = (512..bytes.len()).step_by(4096).filter(|at| bytes[*at..].starts_with(content));
    places
        .map(|at| {
            let hit = at + random.below(content.len() as u64) as usize;
            open.write_all_at(&[bytes[hit] ^ 4], hit as u64).expect("a byte is written");
        })
        .count()
}

#[test]
fn damaged_bytes_of_pushed_content_are_an_error_and_never_wrong_content() {
    let seed = Random::seed_of_this_run();
    eprintln!("OUTRIDER_SEED={seed}");
    let mut random = Random::new(seed);
    let mut outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let blobs: Vec<_> = (0..6).map(|n| bytes(500 + n, 3 * MIB)).collect();
    for blob in &blobs {
        try_push_blob(&client, "own/app", blob).expect("pushed");
    }
    outrider.terminate();
    let damaged: usize =
        stripes(&outrider).iter().map(|file| damage(file, &mut random, 1 << 20)).sum();
    assert!(damaged > 3, "there was something to damage: {damaged}");
    outrider.resume();
    let mut whole = 0;
    for blob in &blobs {
        let request = client.request("GET", &blob_path("own/app", &sha256(blob)));
        let Ok(mut incoming) = request.try_open() else { continue };
        let status = incoming.status;
        let (body, end) = incoming.drain();
        if status == 200 && end.is_ok() {
            assert!(body == *blob, "whole means right");
            whole += 1;
        }
        assert!(matches!(status, 200 | 404 | 500..=504), "{status}");
    }
    eprintln!("{whole} of {} blobs were not hit", blobs.len());
    push(&client, "own/other", "v1", &SmallImage::new(4, &[1000]));
}

/// Fills a cache, does something to its first stripe while it is stopped, and wants everything served.
fn assert_costs_only_misses(harm: impl FnOnce(&PathBuf)) {
    let upstream = FakeUpstream::start();
    let images: Vec<_> = (0..4).map(|n| SmallImage::new(600 + n, &[5 * MIB])).collect();
    for (n, image) in images.iter().enumerate() {
        upstream.image("team/app", &format!("v{n}"), image);
    }
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    let all = || {
        for (n, image) in images.iter().enumerate() {
            assert_served(&client, "team/app", &format!("v{n}"), image);
        }
    };
    all();
    outrider.terminate();
    harm(&stripes(&outrider)[0]);
    outrider.resume();
    all();
    push(&client, "own/app", "v1", &SmallImage::new(610, &[MIB]));
}

#[test]
fn a_stripe_that_is_gone_costs_misses_and_nothing_else() {
    assert_costs_only_misses(|file| fs::remove_file(file).expect("removed"));
}

#[test]
fn a_stripe_that_is_empty_costs_misses_and_nothing_else() {
    assert_costs_only_misses(|file| {
        OpenOptions::new().write(true).truncate(true).open(file).expect("emptied");
    });
}

#[test]
fn a_stripe_that_was_cut_in_half_costs_misses_and_nothing_else() {
    assert_costs_only_misses(|file| {
        let half = file.metadata().expect("metadata").len() / 2;
        let open = OpenOptions::new().write(true).open(file).expect("a stripe opens");
        open.set_len(half).expect("cut");
    });
}

#[test]
fn a_stripe_that_was_overwritten_costs_misses_and_nothing_else() {
    assert_costs_only_misses(|file| {
        let open = OpenOptions::new().write(true).open(file).expect("a stripe opens");
        open.write_all_at(&bytes(7, MIB), 0).expect("overwritten");
    });
}

#[test]
fn without_a_disk_pulls_work_and_pushes_are_refused() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(5, &[3 * MIB]);
    upstream.image("team/app", "v1", &image);
    let outrider = Outrider::start(Options::with_upstream(&upstream.url()).ssd("0B"));
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &image);
    assert_served(&client, "team/app", "v1", &image);
    let post = client.request("POST", "/v2/own/app/blobs/uploads/").send();
    let answer = if post.status == 202 {
        let at =
            with_query(&location(&post).expect("a location"), &format!("digest={}", sha256(b"x")));
        client.request("PUT", &at).body(b"x").send()
    } else {
        post
    };
    assert!(answer.status >= 400, "{}", answer.status);
    assert!(answer.json()["errors"][0]["code"].is_string());
}

#[test]
fn data_of_a_newer_version_is_refused_and_left_alone() {
    let mut outrider = Outrider::start(Options::default());
    push(&outrider.client(), "own/app", "v1", &SmallImage::new(6, &[1000]));
    outrider.terminate();
    let file = outrider.data_dir().join("format.toml");
    let right = fs::read_to_string(&file).expect("DIR/format.toml");
    let newer = right.lines().map(|line| match line.split_once('=') {
        Some((key, _)) if key.trim() == "version" => format!("{key}= 999\n"),
        _ => format!("{line}\n"),
    });
    let newer: String = newer.collect();
    assert_ne!(newer, right, "there is a version in {right}");
    fs::write(&file, &newer).expect("a small file");
    let said = process::run(outrider.command()).refused();
    assert!(said.contains("999") && !said.contains("panicked"), "{said}");
    fs::write(&file, right).expect("a small file");
    outrider.resume();
    assert_served(&outrider.client(), "own/app", "v1", &SmallImage::new(6, &[1000]));
}
