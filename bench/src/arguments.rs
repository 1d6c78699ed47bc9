//! The command line: verbs, options, their units and bounds. Parsing only; nothing is measured here.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use outrider_artifact::Digest;
use outrider_hostile::Attack;

use crate::load::quic::QuicOptions;
use crate::load::worker::Reading;

/// The longest run that one command may ask for.
pub const DURATION_MAX: Duration = Duration::from_secs(24 * 3600);
/// The most connections of one run.
pub const CONNECTIONS_MAX: u32 = 65_536;
/// The most requests a second that one run may be scheduled for.
pub const RATE_MAX: f64 = 10_000_000.0;

/// Measures Outrider, and other servers beside it.
#[derive(Debug, Parser)]
#[command(name = "outrider-bench", version, about, long_about = None)]
pub struct Arguments {
    /// What to measure.
    #[command(subcommand)]
    pub verb: Verb,
}

/// What can be measured.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Loads URLs over HTTP/1.1, 2 or 3: closed loop, or open loop at a rate.
    Load(Box<LoadArguments>),
    /// Reads stripes through the cache, against the device's own rate at the same depth.
    Disk(DiskArguments),
    /// Runs another server and Outrider side by side, in one run.
    #[command(subcommand)]
    Compare(Compare),
    /// Idle CPU and memory of a running server.
    Idle(IdleArguments),
    /// What hostile clients do to the latency of others, and to the server's memory.
    Abuse(AbuseArguments),
    /// How soon edges know what the control plane has written, and what they missed.
    Follow(FollowArguments),
}

/// What Outrider can be compared on.
#[derive(Debug, Subcommand)]
pub enum Compare {
    /// HTTPS downloads by server CPU, against nginx.
    Https(CompareHttpsArguments),
    /// HTTP/3 downloads by server CPU, against h3-quinn, Caddy, nginx, and the limit of quinn-proto.
    H3(CompareH3Arguments),
    /// HTTPS beside HTTP/3, and downloads beside new connections, against each alone.
    Mixed(CompareMixedArguments),
    /// One shard against several, by server CPU.
    Shards(CompareShardsArguments),
    /// Cold and warm pulls of an image, against two pull-through registries.
    Pull(ComparePullArguments),
    /// Committed writes of three control nodes, against three of etcd.
    Etcd(CompareEtcdArguments),
}

/// The protocol that requests are sent by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Protocol {
    /// HTTP/1.1, one request at a time on a connection.
    H1,
    /// HTTP/2, `--streams` requests at a time on a connection.
    H2,
    /// HTTP/3, `--streams` requests at a time on a connection.
    H3,
    /// Outrider's own protocol (docs/NATIVE.md), `--streams` requests at a time on a connection. The
    /// URLs are those of blobs and manifests by digest.
    Native,
}

impl Protocol {
    /// Whether it runs over QUIC.
    pub fn is_quic(self) -> bool {
        matches!(self, Self::H3 | Self::Native)
    }
}

/// The program part that sends requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Client {
    /// An own HTTP/1.1 reader, over large reads and without copies of bodies; with QUIC an own HTTP/3
    /// over quinn-proto.
    Lean,
    /// hyper on tokio: what HTTP/2 is measured with, and a check of the lean one.
    Hyper,
    /// The crates h3 and quinn on tokio, with their defaults: an ordinary HTTP/3 client.
    H3,
}

/// A pull-through cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Contender {
    /// Outrider.
    Outrider,
    /// Debian's docker-registry 2.8.
    DockerRegistry,
    /// distribution 3.
    Distribution,
}

impl Contender {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outrider => "outrider",
            Self::DockerRegistry => "docker-registry 2",
            Self::Distribution => "distribution 3",
        }
    }
}

/// A server of HTTP/3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuicServer {
    /// Outrider.
    Outrider,
    /// A minimal file server of the crates h3 and h3-quinn.
    H3Quinn,
    /// Caddy (quic-go).
    Caddy,
    /// nginx with HTTP/3.
    Nginx,
    /// quinn-proto and GSO alone.
    Limit,
}

impl QuicServer {
    /// All of them.
    pub const ALL: [Self; 5] =
        [Self::Outrider, Self::H3Quinn, Self::Caddy, Self::Nginx, Self::Limit];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Outrider => "outrider",
            Self::H3Quinn => "h3-quinn",
            Self::Caddy => "caddy",
            Self::Nginx => "nginx",
            Self::Limit => "limit",
        }
    }
}

/// What is downloaded over HTTP/3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum QuicCase {
    /// 4 KiB bodies, 64 at a time.
    Small,
    /// 1 MiB bodies, 16 at a time.
    Medium,
    /// 64 MiB bodies, 4 at a time, with a client that loses nothing.
    Large,
    /// The same with the client of the h3 crate and default buffers.
    LargeH3,
    /// 64 MiB bodies with jumbo frames, and without.
    Jumbo,
    /// 4 KiB bodies, one at a time over an open connection.
    Single,
}

/// Options of `load`.
#[derive(Debug, Args)]
pub struct LoadArguments {
    /// What to download; several are asked in turn.
    #[arg(required = true, num_args = 1..=64)]
    pub urls: Vec<String>,
    /// How many connections are open.
    #[arg(short = 'c', long, default_value_t = 8, value_parser = connections)]
    pub connections: u32,
    /// How long to measure, after the warm-up (for example 10s, 500ms, 2m). 10s unless --requests.
    #[arg(short = 'd', long, value_parser = duration)]
    pub duration: Option<Duration>,
    /// End after this many responses.
    #[arg(short = 'n', long)]
    pub requests: Option<u64>,
    /// Load before anything is counted.
    #[arg(long, default_value = "500ms", value_parser = duration)]
    pub warmup: Duration,
    /// Open loop: send this many requests a second whatever the server does; the latency of each
    /// counts from when it should have been sent.
    #[arg(short = 'r', long, value_parser = rate)]
    pub rate: Option<f64>,
    /// HTTP version.
    #[arg(long, value_enum, default_value_t = Protocol::H1)]
    pub protocol: Protocol,
    /// Requests at a time on each connection of HTTP/2 or QUIC.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub streams: u32,
    /// What sends the requests. The lean one, but for HTTP/2.
    #[arg(long, value_enum)]
    pub client: Option<Client>,
    /// An error when a request takes longer.
    #[arg(long, default_value = "30s", value_parser = duration)]
    pub timeout: Duration,
    /// Send this header, "Name: value"; may be given several times.
    #[arg(short = 'H', long = "header")]
    pub headers: Vec<String>,
    /// Every body must have this many bytes. Unless given, what the first response declares.
    #[arg(long, value_parser = size)]
    pub length: Option<u64>,
    /// Hash every body. Without a value, against the digest that stands in the URL.
    #[arg(long, num_args = 0..=1, require_equals = true, value_name = "DIGEST")]
    pub verify: Option<Option<Digest>>,
    #[command(flatten)]
    /// How the server's certificate is judged.
    pub trust: TrustArguments,
    /// Threads that share the connections and the rate.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: u32,
    /// Run the client on this CPU, further threads on the next ones.
    #[arg(long, value_name = "CPU")]
    pub pin: Option<usize>,
    #[command(flatten)]
    /// How the lean client reads.
    pub reading: ReadingArguments,
    #[command(flatten)]
    /// How QUIC is spoken.
    pub quic: QuicArguments,
    /// Read this process's CPU time (and its children's) before and after.
    #[arg(long, value_name = "PID")]
    pub server_pid: Option<u32>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// How the lean client reads and waits.
#[derive(Clone, Debug, Default, Args)]
pub struct ReadingArguments {
    /// The most that is read from a socket at once: a TLS record unless given, 32 KiB of plain HTTP.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub read_size: Option<u64>,
    /// The receive buffer of each socket; the kernel adapts it unless this is given.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub receive_buffer: Option<u64>,
    /// Never sleep, so that the server is not charged for waking the client. Needs a CPU for each
    /// thread.
    #[arg(long)]
    pub spin: bool,
}

impl ReadingArguments {
    /// Whether anything was asked for.
    pub fn given(&self) -> bool {
        self.read_size.is_some() || self.receive_buffer.is_some() || self.spin
    }

    /// The same in bytes of memory: at least 1 KiB, at most 16 MiB are read at once.
    pub fn reading(&self) -> Reading {
        let bytes = |size: u64| usize::try_from(size).unwrap_or(usize::MAX);
        Reading {
            read_bytes: self.read_size.map(|size| bytes(size.clamp(1 << 10, 16 << 20))),
            receive_buffer_bytes: self.receive_buffer.map(bytes),
            spin: self.spin,
        }
    }
}

/// How QUIC is spoken: --window by both clients, the others by the lean one.
#[derive(Clone, Debug, Default, Args)]
pub struct QuicArguments {
    /// The largest UDP payload that the server may send; 1472 unless given.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u16).range(1200..))]
    pub mtu: Option<u16>,
    /// What the server may send on one connection before it hears back; 1.5 MiB unless given, quinn's
    /// default with the h3 client.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub window: Option<u64>,
    /// Close a connection after so many answers, and open another.
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..))]
    pub requests_per_connection: Option<u64>,
}

impl QuicArguments {
    /// The same for the client.
    pub fn options(&self) -> QuicOptions {
        QuicOptions {
            mtu: self.mtu,
            window_bytes: self.window,
            requests_per_connection: self.requests_per_connection,
            hold: false,
        }
    }
}

/// How a server's certificate is judged.
#[derive(Clone, Debug, Default, Args)]
pub struct TrustArguments {
    /// Trust the certificates of this PEM file, and no others.
    #[arg(long, value_name = "FILE")]
    pub ca: Option<PathBuf>,
    /// Accept any certificate.
    #[arg(long, conflicts_with = "ca")]
    pub insecure: bool,
}

/// Options of `disk`.
#[derive(Clone, Debug, Args)]
pub struct DiskArguments {
    /// Where to make the stripes: a folder on the disk that is to be measured.
    #[arg(long, value_name = "DIR")]
    pub data: PathBuf,
    /// How much to write and then read at random.
    #[arg(long, default_value = "4GiB", value_parser = size)]
    pub size: u64,
    /// Reads in flight.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=256))]
    pub depth: u32,
    /// How long each half of a pair runs.
    #[arg(short = 'd', long, default_value = "3s", value_parser = duration)]
    pub duration: Duration,
    /// Pairs, interleaved.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub pairs: u32,
    /// The CPU of the reads; with --beside-serving of the server, 0 unless given.
    #[arg(long, value_name = "CPU")]
    pub pin: Option<usize>,
    /// Read through a running server while it serves downloads that saturate it.
    #[arg(long)]
    pub beside_serving: bool,
    /// The server's program, for --beside-serving.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// Memory of the server's arena, for --beside-serving; --size must be several times that.
    #[arg(long, default_value = "512MiB", value_parser = size)]
    pub ram: u64,
    /// How much of each cold chunk is asked for, for --beside-serving: 1 byte keeps the disk at work
    /// and serves next to nothing; 256KiB serves all that is read.
    #[arg(long, default_value = "1", value_parser = cold_range)]
    pub cold_range: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `follow`.
#[derive(Debug, Args)]
pub struct FollowArguments {
    /// The program of the nodes.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// Edges, each with a connection of its own.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub edges: u32,
    /// Nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=5))]
    pub nodes: u32,
    /// Values that are written; 0 leaves this part out.
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u64).range(..=1_000_000))]
    pub updates: u64,
    /// Writes a second, if the nodes keep up.
    #[arg(long, default_value_t = 100.0, value_parser = rate)]
    pub rate: f64,
    /// Updates that an edge missed; 0 leaves this part out.
    #[arg(long, default_value_t = 600_000, value_parser = clap::value_parser!(u64).range(..=4_000_000))]
    pub missed: u64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `compare etcd`.
#[derive(Debug, Args)]
pub struct CompareEtcdArguments {
    /// The program of the nodes.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// etcd.
    #[arg(long, default_value = "etcd", value_name = "FILE")]
    pub etcd: PathBuf,
    /// etcd's own load generator.
    #[arg(long, default_value = "etcd-benchmark", value_name = "FILE")]
    pub etcd_benchmark: PathBuf,
    /// Clients at a time; may be given several times.
    #[arg(long, default_values_t = [1, 64, 512], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub clients: Vec<u32>,
    /// Pairs, interleaved.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub pairs: u32,
    /// How long each half of a pair runs.
    #[arg(short = 'd', long, default_value = "2s", value_parser = duration)]
    pub duration: Duration,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `compare https`.
#[derive(Debug, Args)]
pub struct CompareHttpsArguments {
    /// The server's program.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// Pairs, interleaved.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub pairs: u32,
    /// How long each half of a pair runs.
    #[arg(short = 'd', long, default_value = "4s", value_parser = duration)]
    pub duration: Duration,
    /// The CPU of the servers.
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// The CPU of the load.
    #[arg(long, default_value_t = 1)]
    pub load_cpu: usize,
    /// What sends the requests.
    #[arg(long, value_enum, default_value_t = Client::Lean)]
    pub client: Client,
    #[command(flatten)]
    /// How the lean client reads.
    pub reading: ReadingArguments,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `compare h3`.
#[derive(Debug, Args)]
pub struct CompareH3Arguments {
    /// The server's program.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// An nginx that is built with HTTP/3.
    #[arg(long, default_value = "nginx", value_name = "FILE")]
    pub nginx: PathBuf,
    /// Only these servers; may be given several times.
    #[arg(long, value_enum)]
    pub only: Vec<QuicServer>,
    /// Only these downloads; may be given several times.
    #[arg(long, value_enum)]
    pub case: Vec<QuicCase>,
    /// Pairs, interleaved.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub pairs: u32,
    /// How long each server's part of a pair runs.
    #[arg(short = 'd', long, default_value = "4s", value_parser = duration)]
    pub duration: Duration,
    /// The CPU of the servers.
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// The CPU of the load.
    #[arg(long, default_value_t = 1)]
    pub load_cpu: usize,
    /// The UDP payload of jumbo frames.
    #[arg(long, default_value_t = 8952, value_parser = clap::value_parser!(u16).range(1453..=65000))]
    pub jumbo: u16,
    /// The windows of the h3 client, of streams and connection; quinn's defaults unless given.
    #[arg(long, value_parser = size, value_name = "SIZE")]
    pub h3_window: Option<u64>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// `compare shards`.
#[derive(Debug, Args)]
pub struct CompareShardsArguments {
    /// The server's program.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// How many shards are compared with one.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(2..=64))]
    pub shards: u32,
    /// Pairs, interleaved.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub pairs: u32,
    /// How long each half of a pair runs.
    #[arg(short = 'd', long, default_value = "3s", value_parser = duration)]
    pub duration: Duration,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `compare mixed`.
#[derive(Debug, Args)]
pub struct CompareMixedArguments {
    /// The server's program.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// Pairs, interleaved.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub pairs: u32,
    /// How long each half of a pair runs.
    #[arg(short = 'd', long, default_value = "4s", value_parser = duration)]
    pub duration: Duration,
    /// The CPU of the server.
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// The CPU of the load.
    #[arg(long, default_value_t = 1)]
    pub load_cpu: usize,
    /// The share of the server's CPU that HTTP/3 is to take.
    #[arg(long, default_value_t = 0.8, value_parser = share)]
    pub share: f64,
    /// HTTPS requests a second.
    #[arg(long, default_value_t = 500.0, value_parser = rate)]
    pub https_rate: f64,
    /// New connections a minute.
    #[arg(long, default_value_t = 20_000.0, value_parser = rate)]
    pub new_connections: f64,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `compare pull`.
#[derive(Debug, Args)]
pub struct ComparePullArguments {
    /// The server's program.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// Rounds, interleaved; each with empty caches.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub rounds: u32,
    /// The program of distribution 3.
    #[arg(long, default_value = "registry", value_name = "FILE")]
    pub distribution: PathBuf,
    /// Blobs that are downloaded at a time; containerd's own default is 3.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub parallel: u32,
    /// Bytes of the image.
    #[arg(long, default_value = "69MB", value_parser = size)]
    pub size: u64,
    /// Its layers.
    #[arg(long, default_value_t = 6, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub layers: u32,
    /// Only through this one; may be given several times.
    #[arg(long, value_enum)]
    pub only: Vec<Contender>,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `abuse`.
#[derive(Debug, Args)]
pub struct AbuseArguments {
    /// The server's program.
    #[arg(long, default_value = "outrider", value_name = "FILE")]
    pub outrider: PathBuf,
    /// Only these attacks; may be given several times.
    #[arg(long, value_parser = attack, value_name = "ATTACK")]
    pub only: Vec<Attack>,
    /// Pairs of each, interleaved.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=101))]
    pub pairs: u32,
    /// How long each half of a pair runs.
    #[arg(short = 'd', long, default_value = "3s", value_parser = duration)]
    pub duration: Duration,
    /// The CPU of the server.
    #[arg(long, default_value_t = 0)]
    pub server_cpu: usize,
    /// The CPU of the load and of the attacks.
    #[arg(long, default_value_t = 1)]
    pub load_cpu: usize,
    /// HTTP/3 requests a second of those that mean well.
    #[arg(long, default_value_t = 2000.0, value_parser = rate)]
    pub h3_rate: f64,
    /// HTTPS requests a second of those that mean well.
    #[arg(long, default_value_t = 500.0, value_parser = rate)]
    pub https_rate: f64,
    /// Strikes a second; each attack has its own unless this is given.
    #[arg(long, value_parser = rate)]
    pub attack_rate: Option<f64>,
    /// How many read slowly.
    #[arg(long, default_value_t = 1000)]
    pub readers: usize,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// Options of `idle`.
#[derive(Debug, Args)]
pub struct IdleArguments {
    /// The process.
    #[arg(long, value_name = "PID")]
    pub server_pid: u32,
    /// How long to watch it.
    #[arg(short = 'd', long, default_value = "10s", value_parser = duration)]
    pub duration: Duration,
    /// The size of its arena, which is taken off its memory.
    #[arg(long, value_parser = size)]
    pub arena: Option<u64>,
    /// The server's admin address; there must be a server there that is ready.
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<SocketAddr>,
    /// Open so many QUIC connections to --url before, one request each, and leave them open: their
    /// memory is what the server has more of than before. Its idle time must be longer than that takes.
    #[arg(long, value_name = "COUNT", value_parser = connections, requires = "url")]
    pub connections: Option<u32>,
    /// What is asked for on each of them.
    #[arg(long, value_name = "URL", requires = "connections")]
    pub url: Option<String>,
    /// How long they are opened before it is measured.
    #[arg(long, default_value = "15s", value_parser = duration)]
    pub opening: Duration,
    #[command(flatten)]
    /// How the server's certificate is judged.
    pub trust: TrustArguments,
    /// Print JSON.
    #[arg(long)]
    pub json: bool,
}

/// A time with its unit: `500ms`, `10s`, `2m`; a bare number is seconds.
///
/// # Errors
/// Says which form is accepted.
pub fn duration(text: &str) -> Result<Duration, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a time like 10s"))?;
    let seconds = match unit {
        "us" | "µs" => number / 1e6,
        "ms" => number / 1e3,
        "" | "s" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        _ => return Err(format!("`{unit}` is not a unit of time; use us, ms, s, m or h")),
    };
    let duration = Duration::try_from_secs_f64(seconds).map_err(|error| error.to_string())?;
    if duration > DURATION_MAX {
        return Err(format!("at most {} h", DURATION_MAX.as_secs() / 3600));
    }
    Ok(duration)
}

/// A number of bytes with its unit: `4096`, `64MiB`, `1.5GiB`, `69MB`.
///
/// # Errors
/// Says which form is accepted.
pub fn size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let scale: u64 = match unit.trim() {
        "" | "B" => 1,
        "kB" | "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "K" | "KiB" => 1 << 10,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => return Err(format!("`{unit}` is not a unit of size; use KiB, MiB, GiB, kB, MB, GB")),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(scale).ok_or_else(|| format!("`{text}` is too large"));
    }
    let number: f64 = number.parse().map_err(|_| format!("`{text}` is not a size like 64MiB"))?;
    let bytes = number * scale as f64;
    if bytes >= u64::MAX as f64 {
        return Err(format!("`{text}` is too large"));
    }
    Ok(bytes.round() as u64)
}

fn attack(text: &str) -> Result<Attack, String> {
    let known = |attack: &Attack| attack.key() == text;
    Attack::ALL.into_iter().find(known).ok_or_else(|| {
        let keys: Vec<&str> = Attack::ALL.iter().map(|attack| attack.key()).collect();
        format!("the attacks are {}", keys.join(", "))
    })
}

fn cold_range(text: &str) -> Result<u64, String> {
    match size(text)? {
        range @ 1..=outrider_cache::CHUNK_BYTES => Ok(range),
        _ => Err("from 1 byte to a chunk of 256KiB".to_owned()),
    }
}

fn rate(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(rate) if rate > 0.0 && rate <= RATE_MAX => Ok(rate),
        _ => {
            Err(format!("a rate is a number of requests a second, above 0 and at most {RATE_MAX}"))
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(share) if share > 0.0 && share < 1.0 => Ok(share),
        _ => Err("a share is above 0 and below 1".to_owned()),
    }
}

fn connections(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(count) if (1..=CONNECTIONS_MAX).contains(&count) => Ok(count),
        _ => Err(format!("from 1 to {CONNECTIONS_MAX}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Verb, clap::Error> {
        let words = std::iter::once("outrider-bench").chain(line.split_whitespace());
        Arguments::try_parse_from(words).map(|arguments| arguments.verb)
    }

    fn load(line: &str) -> LoadArguments {
        match parse(&format!("load {line}")) {
            Ok(Verb::Load(arguments)) => *arguments,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_definition_of_the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }

    #[test]
    fn times_have_units_and_a_bound() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(duration("2"), Ok(Duration::from_secs(2)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        for text in ["", "s", "-1s", "1 day", "25h", "1e400s", "1..5s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_tell_powers_of_two_from_powers_of_ten() {
        assert_eq!(size("64MiB"), Ok(64 << 20));
        assert_eq!(size("69MB"), Ok(69_000_000));
        assert_eq!(size("1.5GiB"), Ok(3 << 29));
        assert_eq!(size("4096"), Ok(4096));
        for text in ["", "MiB", "-1", "5 apples", "99999999999TiB", "1.2.3MiB"] {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn rates_and_connections_are_bounded() {
        for line in ["-r 0", "-r -5", "-r nan", "-r 1e9", "-c 0", "-c 70000", "--streams 0"] {
            assert!(parse(&format!("load http://127.0.0.1/ {line}")).is_err(), "{line}");
        }
        assert_eq!(load("http://127.0.0.1/ -r 2.5 -c 3").rate, Some(2.5));
    }

    #[test]
    fn a_body_is_verified_against_the_url_or_a_given_digest() {
        let given = Digest::sha256(b"x");
        assert_eq!(load("http://127.0.0.1/").verify, None);
        assert_eq!(load("--verify http://127.0.0.1/").verify, Some(None));
        let line = format!("--verify={given} http://127.0.0.1/");
        assert_eq!(load(&line).verify, Some(Some(given)));
        assert!(parse("load --verify=md5:00 http://127.0.0.1/").is_err());
    }

    #[test]
    fn a_certificate_is_judged_in_one_way() {
        assert!(parse("load https://127.0.0.1/ --insecure --ca file").is_err());
    }

    #[test]
    fn a_load_needs_a_url_and_a_verb_is_needed() {
        assert!(parse("load").is_err());
        assert!(parse("").is_err());
        assert!(parse("compare").is_err());
    }
}
