//! Nodes in one process, over real TLS connections and real files.

mod nodes;

use std::sync::Arc;
use std::time::Duration;

use nodes::{Cluster, run};
use outrider_raft::Unavailable;
use outrider_raft::rpc::frame::Kind;
use outrider_raft::rpc::{CallError, Lane};
use outrider_state::{Expect, Operation, Outcome, Request, RequestId, Write};

fn put(key: &str, value: &str, expect: Expect) -> Operation {
    Operation::Write(Write::Put { key: key.into(), value: value.into(), expect })
}

#[test]
fn any_node_takes_writes_and_reads_whoever_leads() {
    run(async {
        let cluster = Cluster::of(3).await;
        let mut version = 0;
        for round in 0..2 {
            for node in cluster.nodes() {
                let expect = if version == 0 { Expect::Absent } else { Expect::Version(version) };
                let value = format!("{round}-{}", node.id());
                match node.operate(put("k", &value, expect)).await.unwrap() {
                    Outcome::Done { version: new } => {
                        assert!(new > version);
                        version = new;
                    }
                    other => panic!("{other:?}"),
                }
                for reader in cluster.nodes() {
                    reader.read_barrier().await.unwrap();
                    let read = reader.shared().look(|k| k.state.fragment("k").cloned()).unwrap();
                    assert_eq!((read.version, read.value), (version, value.clone().into()));
                }
            }
        }
        let stale = cluster.node(2).operate(put("k", "x", Expect::Version(1))).await.unwrap();
        assert_eq!(stale, Outcome::Mismatch { current: version, index: 0 });
        let id = RequestId::Key { scope: String::new(), key: "once".into() };
        let request = Request { id, operation: put("k", "y", Expect::Any) };
        let first = cluster.node(1).write(request.clone()).await.unwrap();
        assert_eq!(cluster.node(3).write(request).await.unwrap(), first);
    });
}

#[test]
fn many_writes_at_once_share_log_entries_and_are_all_applied_once() {
    run(async {
        let cluster = Cluster::of(3).await;
        let before = cluster.node(1).status().last_log;
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..600_u64 {
            let node = Arc::clone(cluster.node(n % 3 + 1));
            tasks.spawn(
                async move { node.operate(put(&format!("k{n}"), "v", Expect::Absent)).await },
            );
        }
        while let Some(outcome) = tasks.join_next().await {
            assert!(outcome.unwrap().unwrap().is_done());
        }
        cluster.node(1).read_barrier().await.unwrap();
        let status = cluster.node(1).status();
        assert_eq!(status.progress.version, 600);
        let entries = status.last_log - before;
        assert!(entries < 300, "600 writes took {entries} entries");
    });
}

#[test]
fn a_node_that_was_away_catches_up_from_the_disk_and_from_the_others() {
    run(async {
        let mut cluster = Cluster::of(3).await;
        cluster.node(1).operate(put("a", "1", Expect::Any)).await.unwrap();
        let leader = cluster.leader().await;
        cluster.stop(leader).await;
        let left = (1..=3).find(|id| *id != leader).unwrap();
        let second = cluster.node(left).operate(put("a", "2", Expect::Any)).await.unwrap();
        assert!(second.is_done());
        cluster.start(leader).await;
        let back = cluster.node(leader);
        back.read_barrier().await.unwrap();
        assert_eq!(back.shared().look(|k| k.state.fragment("a").unwrap().value.clone()), "2");
    });
}

#[test]
fn a_leader_that_comes_back_leads_only_in_a_new_term_and_reads_nothing_of_the_past() {
    run(async {
        let mut cluster = Cluster::of(3).await;
        for value in 0..50 {
            let leader = cluster.leader().await;
            let term = cluster.node(leader).status().term;
            let write = put("a", &value.to_string(), Expect::Any);
            assert!(cluster.node(leader).operate(write).await.unwrap().is_done());
            if value % 10 == 9 {
                cluster.stop(leader).await;
                cluster.start(leader).await;
                let back = cluster.node(leader);
                back.read_barrier().await.unwrap();
                let read = back.shared().look(|k| k.state.fragment("a").unwrap().value.clone());
                assert_eq!(read, value.to_string());
                assert!(back.status().term > term, "it was leader of term {term}");
            }
        }
    });
}

#[test]
fn a_leader_whose_disk_is_slow_hands_on_and_acknowledges_nothing_before_it_has_it_itself() {
    run(async {
        let cluster = Cluster::of(3).await;
        loop {
            let leader = cluster.leader().await;
            let node = cluster.node(leader);
            assert!(node.operate(put("a", "1", Expect::Any)).await.unwrap().is_done());
            let before = node.status();
            let held = node.hold_disk();
            let write = {
                let node = Arc::clone(node);
                tokio::spawn(async move { node.operate(put("a", "2", Expect::Any)).await })
            };
            // Others have it on their disks while this one is still writing.
            for other in cluster.nodes().filter(|other| other.id() != leader) {
                while other.status().last_log <= before.last_log {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            }
            // Whatever would come of that has time to come.
            tokio::time::sleep(Duration::from_millis(300)).await;
            let acknowledged = write.is_finished();
            let after: Vec<_> = cluster.nodes().map(|node| node.status()).collect();
            drop(held);
            assert!(write.await.unwrap().unwrap().is_done());
            // On a busy machine another one may have been elected, which then acknowledges it.
            if after.iter().all(|status| status.term == before.term) {
                assert!(!acknowledged);
                let version = before.progress.version;
                assert!(after.iter().all(|status| status.progress.version <= version));
                return;
            }
        }
    });
}

#[test]
fn without_a_majority_nothing_is_acknowledged_and_nothing_is_read() {
    run(async {
        let mut cluster = Cluster::with_request_time(3, Duration::from_secs(2)).await;
        cluster.stop(1).await;
        cluster.stop(3).await;
        let alone = cluster.node(2);
        assert_eq!(alone.operate(put("a", "1", Expect::Any)).await, Err(Unavailable::NoMajority));
        assert_eq!(alone.read_barrier().await, Err(Unavailable::NoMajority));
    });
}

#[test]
fn a_node_that_leaves_is_in_no_majority_any_more() {
    run(async {
        let mut cluster = Cluster::of(3).await;
        cluster.node(2).remove(3).await.unwrap();
        cluster.stop(3).await;
        let nodes = cluster.node(1).status().nodes;
        assert_eq!(nodes.keys().copied().collect::<Vec<_>>(), [1, 2]);
        assert!(cluster.node(1).operate(put("a", "1", Expect::Any)).await.unwrap().is_done());
    });
}

#[test]
fn nobody_speaks_for_another_and_strangers_do_not_speak_at_all() {
    run(async {
        let cluster = Cluster::of(3).await;
        let own = cluster.pool(4);
        let refused = |result: Result<_, CallError>| match result {
            Err(CallError::Refused(reason)) => reason,
            other => panic!("{other:?}"),
        };
        // A vote of node 1, sent by node 4.
        let mut put = outrider_raft::codec::Put::default();
        put.u64(9).u64(1).bool(false).bool(false);
        let to = (2, cluster.address(2));
        let time = std::time::Duration::from_secs(20);
        let vote = own.call((to.0, &to.1), Lane::Raft, Kind::VOTE, put.0.into(), time).await;
        assert_eq!(refused(vote), "node 4 speaks for node 1");
        let garbage = own.call((to.0, &to.1), Lane::Raft, Kind::APPEND, "x".into(), time).await;
        assert_eq!(refused(garbage), "the message is cut off");
        // Node 2's address, but node 3 is wanted.
        let wrong = own.call((3, &to.1), Lane::Raft, Kind::VOTE, "".into(), time).await;
        assert!(matches!(wrong, Err(CallError::Unreachable { .. })), "{wrong:?}");
        let name = outrider_raft::rpc::tls::any_node_name();
        let stranger = |hash| {
            let (name, address) = (name.clone(), to.1.clone());
            async move {
                let tls = outrider_raft::rpc::tls::newcomer(hash).unwrap();
                let (kind, body) = (Kind::READ_INDEX, "".into());
                outrider_raft::rpc::pool::call_once(&tls, name, &address, kind, body, time).await
            }
        };
        let right = cluster.authority_sha256();
        assert_eq!(refused(stranger(right).await), "only members may ask this");
        let other = stranger([7; 32]).await;
        assert!(matches!(other, Err(CallError::Unreachable { .. })), "{other:?}");
    });
}
