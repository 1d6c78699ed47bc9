//! `kill -9` at random moments: nothing that was acknowledged is lost, and nothing wrong is served.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use outrider_e2e::content::Random;
use outrider_e2e::registry::*;
use outrider_e2e::*;

const ROUNDS: u64 = 50;
/// The longest that a round runs before it is killed.
const ROUND_MS_MAX: u64 = 400;
/// How many images that were acknowledged in earlier rounds are looked at in each round.
const SAMPLE: usize = 6;

struct Pushed {
    tag: String,
    image: SmallImage,
}

#[test]
fn fifty_kills_at_random_moments_lose_nothing_that_was_acknowledged() {
    let seed = Random::seed_of_this_run();
    eprintln!("OUTRIDER_SEED={seed}");
    let mut random = Random::new(seed);
    let upstream = FakeUpstream::start();
    let mirrored = SmallImage::new(1, &[5_000_000, 300_000, 1]);
    upstream.image("team/app", "v1", &mirrored);
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()).ssd("1GiB"));
    let client = outrider.client();
    let acknowledged: Mutex<Vec<Pushed>> = Mutex::default();
    let attempted: Mutex<Vec<Pushed>> = Mutex::default();

    for round in 0..ROUNDS {
        let over = AtomicBool::new(false);
        let pause = Duration::from_millis(random.below(ROUND_MS_MAX));
        let sizes = [random.below(400_000) as usize, random.below(3000) as usize];
        thread::scope(|scope| {
            for writer in 0..2_u64 {
                let (over, acknowledged, attempted) = (&over, &acknowledged, &attempted);
                scope.spawn(move || {
                    for n in 0.. {
                        if over.load(Ordering::SeqCst) {
                            return;
                        }
                        let tag = format!("r{round}-w{writer}-n{n}");
                        let image =
                            SmallImage::new(1_000_000 + round * 1000 + writer * 500 + n, &sizes);
                        let pushed = Pushed { tag, image };
                        let result = try_push(&client, "own/app", &pushed.tag, &pushed.image);
                        let list = if result.is_ok() { acknowledged } else { attempted };
                        list.lock().expect("no writer panics").push(pushed);
                    }
                });
            }
            // A reader of mirrored content: what comes in full is right.
            scope.spawn(|| {
                while !over.load(Ordering::SeqCst) {
                    for blob in mirrored.blobs() {
                        let path = blob_path("team/app", &sha256(blob));
                        match client.request("GET", &path).try_send() {
                            Ok(answer) if answer.status == 200 => assert!(answer.body == *blob),
                            _ => {}
                        }
                    }
                }
            });
            thread::sleep(pause);
            outrider.kill9();
            over.store(true, Ordering::SeqCst);
        });
        outrider.resume();

        let acknowledged = acknowledged.lock().expect("no writer panics");
        let newest = acknowledged.iter().rev().take(SAMPLE);
        let others = (0..SAMPLE)
            .filter_map(|_| acknowledged.get(random.below(acknowledged.len() as u64) as usize));
        for pushed in newest.chain(others) {
            assert_served(&client, "own/app", &pushed.tag, &pushed.image);
        }
        for pushed in attempted.lock().expect("no writer panics").drain(..) {
            assert_whole_or_absent(&client, &pushed);
        }
        assert_served(&client, "team/app", "v1", &mirrored);
    }

    let acknowledged = acknowledged.into_inner().expect("no writer panics");
    eprintln!("{} images were acknowledged in {ROUNDS} rounds", acknowledged.len());
    assert!(acknowledged.len() as u64 > ROUNDS / 5, "the rounds were long enough to push in");
    for pushed in &acknowledged {
        assert_served(&client, "own/app", &pushed.tag, &pushed.image);
    }
}

/// What was under way may be there or not; what is served is whole and right.
fn assert_whole_or_absent(client: &Client, pushed: &Pushed) {
    let answer = get_manifest(client, "own/app", &pushed.tag);
    match answer.status {
        404 => {}
        200 => assert_served(client, "own/app", &pushed.tag, &pushed.image),
        status => panic!("{status}: {}", answer.text()),
    }
    for blob in pushed.image.blobs() {
        let answer = client.get(&blob_path("own/app", &sha256(blob)));
        assert!(answer.status == 404 || (answer.status == 200 && answer.body == *blob));
    }
}

#[test]
fn a_kill_in_the_middle_of_an_upload_leaves_a_registry_that_takes_it_again() {
    let mut outrider = Outrider::start(Options::default());
    let client = outrider.client();
    let content = bytes(2, 20_000_000);
    for cut in [1, 300_000, 10_000_000, 19_999_999] {
        let at = begin_upload(&client, "own/app").expect("a session");
        let mut patch =
            client.request("PATCH", &at).begin(Some(content.len() as u64)).expect("begun");
        patch.write(&content[..cut]).expect("sent");
        outrider.crash_and_restart();
        drop(patch);
        client.get(&blob_path("own/app", &sha256(&content))).expect(404);
    }
    try_push_blob(&client, "own/app", &content).expect("taken");
    outrider.crash_and_restart();
    assert!(client.get(&blob_path("own/app", &sha256(&content))).expect(200).body == content);
}

#[test]
fn content_that_was_cached_and_synced_survives_a_kill_and_is_verified() {
    let upstream = FakeUpstream::start();
    let image = SmallImage::new(3, &[3_000_000, 900_000]);
    upstream.image("team/app", "v1", &image);
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    assert_served(&client, "team/app", "v1", &image);
    outrider.restart();
    let fetched = upstream.count("GET", "/blobs/");
    for _ in 0..5 {
        outrider.crash_and_restart();
        assert_served(&client, "team/app", "v1", &image);
    }
    assert_eq!(upstream.count("GET", "/blobs/"), fetched, "nothing had to be fetched again");
}

#[test]
fn a_kill_in_the_middle_of_a_fill_never_serves_half_of_it_as_whole() {
    let upstream = FakeUpstream::start();
    let content = bytes(4, 16_000_000);
    let path = blob_path("team/app", &upstream.blob(&content));
    let mut outrider = Outrider::start(Options::with_upstream(&upstream.url()));
    let client = outrider.client();
    for held in [1_000_000, 5_000_000, 15_999_999] {
        let gate = Gate::shut();
        upstream.script(1, "GET", "/blobs/", &[Fault::Hold(held, gate.clone())]);
        if let Ok(mut incoming) = client.request("GET", &path).try_open() {
            let _ = incoming.take(500_000);
            outrider.kill9();
            gate.open();
            outrider.resume();
        }
        upstream.behave();
    }
    assert!(client.get(&path).expect(200).body == content);
    outrider.restart();
    assert!(client.get(&path).expect(200).body == content);
}
