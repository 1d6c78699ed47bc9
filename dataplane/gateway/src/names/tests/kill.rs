//! A process that is killed while it puts: all that it acknowledged is there.
//!
//! The child is this test binary, run again with one test picked and a variable set.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::*;

/// The directory of the child's database. Its presence makes the child.
const CHILD: &str = "OUTRIDER_NAMES_CHILD";

/// How often the process is killed.
const ROUNDS: u64 = 8;

/// Threads that put at the same time in the child.
const THREADS: u64 = 3;

/// The bound of what a round prints, should the kill be late.
const PUTS_MAX: u64 = 100_000;

#[test]
fn the_child_puts_until_it_is_killed() {
    let Ok(directory) = std::env::var(CHILD) else { return };
    let (directory, round) = directory.split_once('|').unwrap();
    let (_thread, client) =
        open(Path::new(directory), NamesLimits::default(), NamesMetrics::default()).unwrap();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let client = client.clone();
            scope.spawn(move || {
                let names = client.blocking();
                for number in 0..PUTS_MAX {
                    let line = put(&names, &format!("{round}-{thread}-{number}"), number);
                    // One write, so that lines of threads do not mix and none is printed by half.
                    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
                }
            });
        }
    });
}

/// Makes one change of several kinds; gives the line that acknowledges it.
fn put(names: &LocalNames, what: &str, number: u64) -> String {
    let name = format!("r{}", number % 7);
    match number % 4 {
        0 | 1 => {
            let put = PutBlob { event: Some(event(&name, what)), ..blob(&name, what, number) };
            block_on(names.put_blob(put)).unwrap();
            format!("\nACK blob {name} {what} {number}\n")
        }
        2 => {
            let put = manifest(&name, &[what], what, number);
            block_on(names.put_manifest(put)).unwrap();
            format!("\nACK manifest {name} {what} {number}\n")
        }
        _ => {
            let put = blob(&name, what, number);
            block_on(names.put_blob(put)).unwrap();
            block_on(names.delete_blob(&repository(&name), &digest(what))).unwrap().unwrap();
            format!("\nACK deleted {name} {what} {number}\n")
        }
    }
}

#[test]
fn after_a_kill_everything_that_was_acknowledged_is_there() {
    let directory = tempfile::tempdir().unwrap();
    let mut random = directory.path().as_os_str().len() as u64 ^ u64::from(std::process::id());
    let mut acknowledged = Vec::new();
    for round in 0..ROUNDS {
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let wait_for = random >> 33 & 127;
        let wait_us = random >> 40 & 4095;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "names::tests::kill::the_child_puts_until_it_is_killed",
                "--nocapture",
            ])
            .env(CHILD, format!("{}|{round}", directory.path().display()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acks = 0;
        while acks <= wait_for {
            let line = lines.next().expect("the child ended before it was killed").unwrap();
            if line.starts_with("ACK ") {
                acks += 1;
                acknowledged.push(line);
            }
        }
        std::thread::sleep(Duration::from_micros(wait_us));
        child.kill().unwrap();
        acknowledged.extend(lines.map(Result::unwrap).filter(|line| line.starts_with("ACK ")));
        child.wait().unwrap();
        check(directory.path(), &acknowledged);
    }
}

fn check(directory: &Path, acknowledged: &[String]) {
    let (thread, client) =
        open(directory, NamesLimits::default(), NamesMetrics::default()).unwrap();
    let names = client.blocking();
    let mut blobs = 0;
    for line in acknowledged {
        let parts: Vec<_> = line.split(' ').collect();
        let ["ACK", kind, name, what, number] = parts[..] else { panic!("{line}") };
        let link = block_on(names.link(&repository(name), &digest(what))).unwrap();
        let hosted = block_on(names.hosted(&digest(what))).unwrap();
        if kind == "deleted" {
            assert_eq!((link, hosted), (Link::default(), None), "{line}");
            continue;
        }
        let id = hosted.unwrap_or_else(|| panic!("lost: {line}")).upload_id;
        assert_eq!(id, upload(number.parse().unwrap()), "{line}");
        if kind == "blob" {
            assert!(link.blob.is_some(), "{line}");
            blobs += 1;
        } else {
            assert!(link.manifest.is_some(), "{line}");
            let record = block_on(names.tag(&repository(name), &tag(what))).unwrap().unwrap();
            assert_eq!(record.digest, digest(what), "{line}");
        }
    }
    let status = block_on(names.outbox_status()).unwrap();
    assert!(status.pending >= blobs, "{} events of {blobs} blobs", status.pending);
    thread.stop().unwrap();
}
