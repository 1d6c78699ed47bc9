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

#[test]
fn a_full_disk_stops_one_node_and_loses_nothing() {
    let mut control = Control::start(1, "[consensus]\nheartbeat = \"100ms\"\nelection = \"500ms\"");
    for place in 1..3 {
        control.add();
        if place == 1 {
            std::fs::create_dir(control.dir(place)).unwrap();
            mount(&control.dir(place), "", 40);
        }
        control.join(place);
        control.resume(place);
        control.wait_ready(place);
    }
    // Nobody waits for a node whose disk is full.
    let put = |control: &Control, n: usize| {
        let key = format!("large/{n}");
        control.state(0, "PUT", &key).header("Idempotency-Key", &key).body(&value(n)).send()
    };
    let mut written = 0;
    while !control.log(1).contains("No space left on device") {
        assert!(written < 200, "more than its disk can hold:\n{}", control.log(1));
        put(&control, written).expect(204);
        written += 1;
    }
    assert_eq!(control.wait_end(1).code(), Some(1));
    for n in written..written + 5 {
        put(&control, n).expect(204);
    }
    let status = control.cluster(0, &["status"]).ok();
    assert!(status.contains("n1"), "{status}");
    println!("{status}");
    for place in [0, 2] {
        for n in 0..written + 5 {
            let read = control.state(place, "GET", &format!("large/{n}")).send().expect(200);
            assert!(read.body == value(n), "{n}");
        }
    }

    // With room it comes back, with everything.
    mount(&control.dir(1), "remount,", 1_000);
    control.resume(1);
    control.wait_ready(1);
    control.kill9(0);
    for n in 0..written + 5 {
        let mut read = Vec::new();
        until("a majority of the others is there", || {
            let answer = control.state(1, "GET", &format!("large/{n}")).send();
            read.clone_from(&answer.body);
            answer.status == 200
        });
        assert!(read == value(n), "{n}");
    }
}
