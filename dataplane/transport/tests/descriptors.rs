//! Without descriptors nothing can be accepted. A process of its own: the limit is the process's.

#![allow(clippy::unwrap_used)]

mod common;

use std::net::TcpStream;

use common::{Server, eventually, get, pattern};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

#[test]
fn without_descriptors_accepting_rests_and_goes_on_when_there_are_some() {
    let server = Server::start();
    let mut before = server.plain();
    assert_eq!(get(&mut before, "/bytes/1").body, pattern(1));

    let old = getrlimit(Resource::Nofile);
    let used = std::fs::read_dir("/proc/self/fd").unwrap().count() as u64;
    // Two more: the client's ends take them, and nothing is left for the server's.
    setrlimit(Resource::Nofile, Rlimit { current: Some(used + 1), maximum: old.maximum }).unwrap();
    let mut waiting: Vec<TcpStream> = Vec::new();
    while let Ok(client) = TcpStream::connect(server.http) {
        waiting.push(client);
    }
    assert!(!waiting.is_empty());
    eventually("it is counted", || server.metric("transport_accept_errors_total") > 0);
    let turns = server.shard.handle().stats().turns();
    std::thread::sleep(std::time::Duration::from_millis(500));
    let spun = server.shard.handle().stats().turns() - turns;
    assert!(spun < 200, "{spun} turns in half a second");
    assert_eq!(get(&mut before, "/bytes/1").body, pattern(1), "who is connected is served");

    setrlimit(Resource::Nofile, old).unwrap();
    for client in &mut waiting {
        assert_eq!(get(client, "/bytes/7").body, pattern(7));
    }
    drop((waiting, before));
    server.stop();
}
