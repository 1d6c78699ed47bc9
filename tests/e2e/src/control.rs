//! Nodes of the control plane: real processes, joined by tokens as an operator would.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use rustix::process::Signal;

use crate::clock::Clock;
use crate::cut::Cuts;
use crate::http::{Client, Request};
use crate::outrider::Outrider;
use crate::ports;
use crate::process::{Output, Process, run};
use crate::scratch::Scratch;

/// The third number of a cluster's addresses, 127.0.N.x: clusters of one process do not meet.
static NETWORK: AtomicU8 = AtomicU8::new(1);

#[derive(Debug)]
struct Node {
    process: Option<Process>,
    /// Its own address of 127.0.0.0/8: calls to others come from it.
    address: IpAddr,
    peers: u16,
    admin: u16,
    /// Where others reach it, if not there.
    advertise: Option<String>,
    /// The clock that it goes by, if not the machine's.
    clock: Option<Arc<Clock>>,
}

/// A cluster. Nodes are named by their place, from 0; their numbers in the cluster differ once one was
/// replaced.
#[derive(Debug)]
pub struct Control {
    // In this order: the processes end before their folder is removed.
    nodes: Vec<Node>,
    cuts: Option<Cuts>,
    network: u8,
    more: String,
    scratch: Scratch,
}

impl Control {
    /// So many nodes, all of them voters. `more` is added to the configuration of each.
    pub fn start(count: usize, more: &str) -> Self {
        Self::start_with(count, more, None)
    }

    /// The same, with everything between the nodes going through `cuts`.
    pub fn start_with(count: usize, more: &str, cuts: Option<Cuts>) -> Self {
        let network = NETWORK.fetch_add(1, Ordering::Relaxed);
        let more = more.to_owned();
        let mut control = Self { nodes: Vec::new(), cuts, network, more, scratch: Scratch::new() };
        for place in 0..count {
            control.add();
            control.enter(place);
        }
        control
    }

    /// Begins the cluster with a new node, or lets it join, and waits until it is a voter.
    pub fn enter(&mut self, place: usize) {
        if place == 0 {
            self.command(place, &["cluster", "init"]).ok();
        } else {
            self.join(place);
        }
        self.resume(place);
        self.wait_ready(place);
    }

    /// A new node that is in no cluster and does not run; gives its place.
    pub fn add(&mut self) -> usize {
        let place = self.nodes.len();
        let host = u8::try_from(place + 1).expect("few nodes");
        let address = IpAddr::from(Ipv4Addr::new(127, 0, self.network, host));
        let (peers, admin) = (ports::free(), ports::free());
        let advertise =
            self.cuts.as_ref().map(|cuts| cuts.proxy(address, (address, peers).into()).to_string());
        self.nodes.push(Node { process: None, address, peers, admin, advertise, clock: None });
        self.write_config(place);
        place
    }

    /// Gives a node that does not run another configuration, instead of what was added to it.
    pub fn reconfigure(&mut self, place: usize, more: &str) {
        more.clone_into(&mut self.more);
        self.write_config(place);
    }

    fn write_config(&self, place: usize) {
        let node = &self.nodes[place];
        let Node { address, peers, admin, .. } = node;
        let advertise =
            node.advertise.as_ref().map_or_else(String::new, |at| format!("advertise = {at:?}\n"));
        let config = format!(
            "[data]\ndir = {:?}\n[node]\nname = \"n{place}\"\n{advertise}\
             [listen]\npeers = \"{address}:{peers}\"\nadmin = \"127.0.0.1:{admin}\"\n{}\n",
            self.dir(place),
            self.more
        );
        std::fs::write(self.config(place), config).expect("a small file");
    }

    /// Its folder. May be mounted before it joins.
    pub fn dir(&self, place: usize) -> PathBuf {
        self.scratch.path().join(format!("n{place}"))
    }

    fn config(&self, place: usize) -> PathBuf {
        self.scratch.path().join(format!("n{place}.toml"))
    }

    /// The address of the admin API.
    pub fn admin_url(&self, place: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[place].admin)
    }

    /// Runs `outrider ARGUMENTS --config FILE` of this node.
    pub fn command(&self, place: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(Outrider::program());
        let (verb, rest) = arguments.split_at(arguments.len().min(2));
        command.args(verb).arg("--config").arg(self.config(place)).args(rest);
        run(command)
    }

    /// Runs `outrider cluster ARGUMENTS --admin URL` at a running node.
    pub fn cluster(&self, place: usize, arguments: &[&str]) -> Output {
        let mut command = Command::new(Outrider::program());
        command.arg("cluster").args(arguments).arg("--admin").arg(self.admin_url(place));
        run(command)
    }

    /// A token of the first node lets this one in.
    pub fn join(&self, place: usize) {
        let token = self.cluster(0, &["token", "--role", "node", "--ttl", "1m"]).ok();
        self.command(place, &["cluster", "join", token.trim()]).ok();
    }

    /// Has a node go by a clock from its next start on.
    pub fn set_clock(&mut self, place: usize, clock: Arc<Clock>) {
        self.nodes[place].clock = Some(clock);
    }

    /// Starts a node again; does not wait.
    pub fn resume(&mut self, place: usize) {
        let mut command = Command::new(Outrider::program());
        command.arg("control").arg("--config").arg(self.config(place));
        let log = self.scratch.path().join(format!("n{place}.log"));
        let node = &mut self.nodes[place];
        assert!(node.process.is_none(), "it is stopped");
        if let Some(clock) = &node.clock {
            clock.before(&mut command);
        }
        node.process = Some(Process::start(&format!("control {place}"), command, &log));
    }

    /// Waits until a node is a voter and knows a leader.
    pub fn wait_ready(&mut self, place: usize) {
        let client = self.client(place);
        let node = &mut self.nodes[place];
        let process = node.process.as_mut().expect("it runs");
        process.wait_until("/readyz answers 200", || {
            client.request("GET", "/readyz").try_send().is_ok_and(|answer| answer.status == 200)
        });
    }

    /// Ends a node at once.
    pub fn kill9(&mut self, place: usize) {
        self.nodes[place].process.as_mut().expect("it runs").kill();
        self.nodes[place].process = None;
    }

    /// Waits until a node has ended by itself; how.
    pub fn wait_end(&mut self, place: usize) -> ExitStatus {
        let mut process = self.nodes[place].process.take().expect("it runs");
        process.wait_end(crate::wait::WAIT_MAX).expect("it ends")
    }

    /// All that a node printed.
    pub fn log(&self, place: usize) -> String {
        let log = self.scratch.path().join(format!("n{place}.log"));
        String::from_utf8_lossy(&std::fs::read(log).unwrap_or_default()).into_owned()
    }

    /// Ends a node in order, with success.
    pub fn terminate(&mut self, place: usize) {
        let status = self.nodes[place].process.take().expect("it runs").terminate();
        assert!(status.success(), "SIGTERM ends it with success, not {status}");
    }

    /// Sends a signal.
    pub fn signal(&self, place: usize, signal: Signal) {
        self.nodes[place].process.as_ref().expect("it runs").signal(signal);
    }

    /// What lies between the nodes.
    pub fn cuts(&self) -> &Cuts {
        self.cuts.as_ref().expect("it was started with cuts")
    }

    /// The address that a node's calls come from.
    pub fn address(&self, place: usize) -> IpAddr {
        self.nodes[place].address
    }

    /// A client of the admin API.
    pub fn client(&self, place: usize) -> Client {
        Client::new(self.nodes[place].admin)
    }

    /// All that is in a node's queue of events, a line for each. None while the queue does not answer.
    pub fn events(&self, place: usize) -> Option<Vec<serde_json::Value>> {
        const LIMIT: usize = 500;
        let (mut all, mut after) = (Vec::new(), String::new());
        loop {
            let target = format!("/v1/events?limit={LIMIT}&after={after}");
            let answer = self.client(place).request("GET", &target).try_send().ok()?;
            if answer.status != 200 {
                return None;
            }
            let text = answer.text();
            let lines = text.lines().map(|line| serde_json::from_str(line).expect("JSON"));
            let before = all.len();
            all.extend(lines);
            answer.header("outrider-position")?.clone_into(&mut after);
            // Nobody waits for what comes meanwhile.
            if all.len() < before + LIMIT {
                return Some(all);
            }
        }
    }

    /// How many nodes there are.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// A request for a fragment.
    pub fn state(&self, place: usize, method: &str, key: &str) -> Request {
        self.client(place).request(method, &format!("/v1/state/{key}"))
    }

    /// The place of the node that leads, as a running node sees it; nothing while none does.
    pub fn leader(&self, asked: usize) -> Option<usize> {
        let answer = self.client(asked).request("GET", "/v1/cluster").try_send().ok()?.json();
        let leader = answer["nodes"].as_array()?.iter().find(|node| node["leader"] == true)?;
        let name = leader["name"].as_str()?;
        name.strip_prefix('n')?.parse().ok()
    }
}
