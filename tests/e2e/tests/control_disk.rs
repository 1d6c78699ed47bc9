//! A node whose disk is full: it stops, the others go on, and nothing that was acknowledged is lost.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::process::Command;

use outrider_e2e::control::Control;
use outrider_e2e::process::run;
use outrider_e2e::*;

const MIB: usize = 1 << 20;

/// A file system of so many MiB on a folder (as root); `remount` for another size.
fn mount(folder: &std::path::Path, how: &str, mib: usize) {
    let mut command = Command::new(tools::program("mount"));
    command.args(["-t", "tmpfs", "-o", &format!("{how}size={mib}m,mode=0700"), "tmpfs"]);
    run({
        command.arg(folder);
        command
    })
    .ok();
}

fn value(n: usize) -> Vec<u8> {
    bytes(n as u64, MIB)
}

/// Three nodes, of which this one has a small disk.
fn cluster(small: usize) -> Control {
    let mut control = Control::start(0, "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"");
    for place in 0..3 {
        control.add();
        if place == small {
            std::fs::create_dir(control.dir(place)).unwrap();
            mount(&control.dir(place), "", 40);
        }
        control.enter(place);
    }
    control
}

/// Writes until the disk is full. Where that node leads, what is under way then is lost with it, or is not: it is
/// asked again elsewhere, under the same key.
fn fill(control: &mut Control, small: usize, asked: usize) -> usize {
    let mut written = 0;
    while !control.log(small).contains("No space left on device") {
        assert!(written < 200, "more than its disk can hold:\n{}", control.log(small));
        put(control, asked, written);
        written += 1;
    }
    assert_eq!(control.wait_end(small).code(), Some(1));
    for n in written..written + 5 {
        put(control, asked, n);
    }
    written + 5
}

fn put(control: &Control, asked: usize, n: usize) {
    let key = format!("large/{n}");
    until("a majority has written it", || {
        let put = control.state(asked, "PUT", &key).header("Idempotency-Key", &key);
        put.body(&value(n)).send().status == 204
    });
}

#[test]
fn a_full_disk_stops_one_node_and_loses_nothing() {
    // A node that follows, then the one that leads.
    for small in [1, 0] {
        let mut control = cluster(small);
        let led = control.leader(2) == Some(small);
        let others: Vec<usize> = (0..3).filter(|place| *place != small).collect();
        let written = fill(&mut control, small, others[0]);
        println!("node {small} (it led: {led}) could store {} values", written - 5);
        for place in &others {
            for n in 0..written {
                let read = control.state(*place, "GET", &format!("large/{n}")).send().expect(200);
                assert!(read.body == value(n), "{n}");
            }
        }

        // With room it comes back, with everything.
        mount(&control.dir(small), "remount,", 1_000);
        control.resume(small);
        control.wait_ready(small);
        control.kill9(others[0]);
        for n in 0..written {
            let mut read = Vec::new();
            until("a majority is there", || {
                let answer = control.state(small, "GET", &format!("large/{n}")).send();
                read.clone_from(&answer.body);
                answer.status == 200
            });
            assert!(read == value(n), "{n}");
        }
    }
}
