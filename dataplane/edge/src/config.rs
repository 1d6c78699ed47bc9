//! The configuration of an edge: what each key means, its default, its bounds, and the messages that
//! say what is wrong with it.
//!
//! Owns: the shape of the TOML file. Pure: reads no clock and opens no socket; the only I/O is reading
//! the file in [`Config::load`]. It must never accept a key that it does not know, since a misspelt
//! limit is a limit that is not there.
//!
//! Everything has a default, so that the empty file is a valid configuration. What depends on the
//! machine (`cache.ram`, `cache.ssd`, `cache.stripes`) is `None` here and decided by
//! [`crate::defaults`] at the start.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use outrider_cache::{ImportanceWeights, SsdConfig};
use serde::{Deserialize, Serialize};

use crate::units::{Size, Span};

mod auth;
mod control;
mod quic;
mod upstream;

pub use auth::{AuthSection, CustomerSection, IssuerSection};
pub use control::ControlSection;
pub use outrider_operators::AdminSection;
pub(crate) use outrider_settings::bounded;
pub use outrider_settings::{CONFIG_BYTES_MAX, ConfigError, Invalid, Listen, Log, LogFormat};
pub use quic::QuicSection;
pub use upstream::{Breaker, Upstream, UpstreamArgument};

/// The most upstreams that one edge has.
pub const UPSTREAMS_MAX: usize = 64;
/// The most shards.
pub const SHARDS_MAX: usize = 64;
/// The least RAM arena of one shard.
pub const SHARD_RAM_MIN: Size = Size::mib(32);
/// The least RAM arena: the pins of eight clients at their bound, and as much again.
pub const RAM_MIN: Size = Size::mib(64);
/// The least SSD tier: two stripes of the least size.
pub const SSD_MIN: Size = Size(2 * crate::defaults::STRIPE_MIN.0);
/// The longest region name.
pub const REGION_LENGTH_MAX: usize = 32;
/// The most names in the server's certificate.
pub const TLS_NAMES_MAX: usize = 64;

/// The whole configuration of one edge.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[site]`: where this edge stands.
    pub site: Site,
    /// `[data]`: what it keeps, and where.
    pub data: Data,
    /// `[listen]`: the addresses that it answers on.
    pub listen: Listeners,
    /// `[tls]`: the server's certificate.
    pub tls: Tls,
    /// `[shards]`: the threads that serve.
    pub shards: Shards,
    /// `[cache]`: the sizes of the tiers.
    pub cache: CacheSection,
    /// `[tags]`: how long a tag of an upstream is believed.
    pub tags: Tags,
    /// `[uploads]`: pushes that are under way.
    pub uploads: Uploads,
    /// `[names]`: the database of names.
    pub names: NamesSection,
    /// `[limits]`: what one client may take.
    pub limits: LimitsSection,
    /// `[quic]`: HTTP/3.
    pub quic: QuicSection,
    /// `[control]`: the control plane that it follows.
    pub control: ControlSection,
    /// `[auth]`: who may do what.
    pub auth: AuthSection,
    /// `[admin]`: who may use what is on `listen.admin`.
    pub admin: AdminSection,
    /// `[drain]`: how the edge stops.
    pub drain: DrainSection,
    /// `[log]`: what is logged to stderr.
    pub log: Log,
    /// `[[upstream]]`: the registries that are mirrored.
    pub upstream: Vec<Upstream>,
}

/// Where this edge stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Site {
    /// The region, `[a-z0-9-]{1,32}`. Default `local`. A `region=` of a request that is another one is
    /// refused.
    pub region: String,
}

impl Default for Site {
    fn default() -> Self {
        Site { region: "local".to_owned() }
    }
}

/// What the edge keeps, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// The data directory. Default `/var/lib/outrider`.
    pub dir: PathBuf,
}

impl Default for Data {
    fn default() -> Self {
        Data { dir: PathBuf::from("/var/lib/outrider") }
    }
}

/// The addresses that the edge answers on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listeners {
    /// HTTPS (HTTP/1.1 and HTTP/2), and HTTP/3 on the UDP port of the same number. Default `127.0.0.1:8443`; `off` for none.
    pub https: Listen,
    /// Plain HTTP, for this machine only: an address that is not loopback is refused. Default
    /// `127.0.0.1:8080`; `off` for none.
    pub http: Listen,
    /// Metrics, health and status, and the API of a node in the process. An address that is not loopback needs
    /// `[admin.auth]`, and is answered over TLS. Default `127.0.0.1:9180`; `off` for none.
    pub admin: Listen,
}

impl Default for Listeners {
    fn default() -> Self {
        let loopback = |port| Listen::At(SocketAddr::from(([127, 0, 0, 1], port)));
        Listeners { https: loopback(8443), http: loopback(8080), admin: loopback(9180) }
    }
}

/// The server's certificate.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tls {
    /// Names and addresses that the certificate is made out to, besides `localhost`, `127.0.0.1`, `::1`,
    /// the host's own name and the address of `listen.https`. Default none.
    pub names: Vec<String>,
}

/// The threads that serve.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shards {
    /// How many. Default: one for each CPU of the process's affinity mask, as far as each has 32 MiB of
    /// `cache.ram`. May be another at each start.
    pub count: Option<usize>,
    /// Whether each shard keeps to a CPU of its own, from the process's affinity mask. Default true.
    pub pin: bool,
    /// How long an idle shard may look for more work before it sleeps; it does so only while work comes
    /// in shorter gaps than that. At most 50us, which is the default; `0us` never.
    pub spin: Span,
}

impl Default for Shards {
    fn default() -> Self {
        Shards { count: None, pin: true, spin: Span(std::time::Duration::from_micros(50)) }
    }
}

/// The sizes of the tiers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CacheSection {
    /// The RAM arena of all shards together, resident from the start. Default: an eighth of the memory
    /// (of the cgroup, where that is less), at most 1 GiB.
    pub ram: Option<Size>,
    /// The SSD tier, allocated at the first start. Default: a tenth of what is free, at most 20 GiB,
    /// decided at the first start and kept in `format.toml`. `0B`: no disk is used, and pushes are
    /// refused.
    pub ssd: Option<Size>,
    /// How many stripe files the SSD tier has. Only taken at the first start. One content lies whole on
    /// one stripe, so they bound what can be pushed; and a shard beyond their number has no disk.
    /// Default: one for each CPU, as far as each has 1 GiB (128 MiB for the first four).
    pub stripes: Option<u32>,
    /// The share of the SSD tier that uploads may take before more are refused. Default 0.8.
    pub upload_share: f64,
    /// The largest object that is kept. Default 64GiB.
    pub object_max: Size,
    /// Reads of the SSD tier in flight. Default 64.
    pub queue_depth: u32,
    /// After how many errors of its disk a stripe is taken out of service. Default 16.
    pub stripe_errors_max: u32,
    /// `[cache.importance]`: what decides which content stays.
    pub importance: Importance,
}

impl Default for CacheSection {
    fn default() -> Self {
        let defaults = SsdConfig::new("", 0, 1);
        CacheSection {
            ram: None,
            ssd: None,
            stripes: None,
            upload_share: defaults.upload_share,
            object_max: Size(outrider_cache::config::OBJECT_BYTES_MAX),
            queue_depth: defaults.queue_depth,
            stripe_errors_max: defaults.stripe_errors_max,
            importance: Importance::default(),
        }
    }
}

/// The weights of `H = clock + class × frequency × (fetch + execute) × depth / size`: what has the lowest
/// score goes first. Each multiplies its term; all are 1.0 by default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Importance {
    /// Of the customer's class. Default 1.0.
    pub class: f64,
    /// Of how often it is asked for, in distinct customer-minutes. Default 1.0.
    pub frequency: f64,
    /// Of how long it took to fetch. Default 1.0.
    pub fetch: f64,
    /// Of how long it takes to compile or run. Default 1.0.
    pub execute: f64,
    /// Of how many artifacts depend on it. Default 1.0.
    pub depth: f64,
}

impl Importance {
    /// What the cache is told.
    #[must_use]
    pub fn weights(&self) -> ImportanceWeights {
        let Importance { class, frequency, fetch, execute, depth } = self.clone();
        ImportanceWeights { class, frequency, fetch, execute, depth }
    }
}

impl Default for Importance {
    fn default() -> Self {
        let ImportanceWeights { class, frequency, fetch, execute, depth } =
            ImportanceWeights::default();
        Importance { class, frequency, fetch, execute, depth }
    }
}

/// How long a tag of an upstream is believed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Tags {
    /// For how long a tag is answered without asking its upstream again. Default 60s.
    pub ttl: Span,
    /// For how long, after that, it is still answered when its upstream cannot be asked, and marked as
    /// stale. Default 7d.
    pub stale: Span,
}

impl Default for Tags {
    fn default() -> Self {
        Tags { ttl: Span::s(60), stale: Span::s(7 * 86_400) }
    }
}

/// Pushes that are under way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Uploads {
    /// How many upload sessions may be open; more are refused. Default 1024.
    pub sessions_max: usize,
    /// How long a session lives without a byte. Default 1h.
    pub idle: Span,
    /// How long a push waits for other edges, where the placement wants it on several; then it is answered 503, and
    /// goes on when it is repeated. Default 60s.
    pub replicas_time: Span,
}

impl Default for Uploads {
    fn default() -> Self {
        let settings = outrider_gateway::GatewaySettings::default();
        Uploads {
            sessions_max: settings.upload_sessions_max,
            idle: Span(settings.upload_idle),
            replicas_time: Span(settings.replicas_time_max),
        }
    }
}

/// The database of names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NamesSection {
    /// How many tags of upstreams are remembered; the one that was checked longest ago is forgotten
    /// first. Default 100000.
    pub mirrored_tags_max: usize,
    /// How many events of uploads wait to be taken over; after that the oldest is dropped, and counted.
    /// Default 100000.
    pub outbox_records_max: u64,
    /// Memory for the database's pages. Default 16MiB.
    pub page_cache: Size,
}

impl Default for NamesSection {
    fn default() -> Self {
        let limits = outrider_gateway::names::NamesLimits::default();
        NamesSection {
            mirrored_tags_max: limits.mirrored_tags_max,
            outbox_records_max: limits.outbox_records_max,
            page_cache: Size(limits.page_cache_bytes as u64),
        }
    }
}

/// What one client may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Connections of each listener; more are closed at once. Default 10000.
    pub connections: usize,
    /// Requests at a time on one connection of HTTP/2 or HTTP/3. Default 64.
    pub streams: u32,
    /// The head of one request. Default 32KiB.
    pub header_bytes: Size,
    /// From the first byte of a request's head to its last. Default 10s.
    pub header_time: Span,
    /// For a TLS handshake. Default 10s.
    pub handshake_time: Span,
    /// How long a connection without a request is kept. Default 75s.
    pub idle_time: Span,
    /// How long a request's body may bring no byte while it is waited for. Default 60s.
    pub body_idle_time: Span,
    /// What a request's body must bring a second, averaged over half a minute of waiting. Default 128B.
    pub body_bytes_per_second_min: Size,
    /// How long a client may take nothing of an answer that waits for it. Default 2m.
    pub stall_time: Span,
    /// What a client must take a second while clients hold too much of the RAM arena. Default 8KiB.
    pub pressed_bytes_per_second_min: Size,
    /// What one connection may hold of the RAM arena before its client has taken it. Default 4MiB. All
    /// together may hold half of the arena.
    pub pinned_connection: Size,
}

impl Default for LimitsSection {
    fn default() -> Self {
        let limits = outrider_transport::Limits::default();
        LimitsSection {
            connections: limits.connections_max,
            streams: limits.streams_max,
            header_bytes: Size(limits.header_bytes_max as u64),
            header_time: Span(limits.header_time),
            handshake_time: Span(limits.handshake_time),
            idle_time: Span(limits.idle_time),
            body_idle_time: Span(limits.body_idle_time),
            body_bytes_per_second_min: Size(limits.body_bytes_per_second_min),
            stall_time: Span(limits.stall_time),
            pressed_bytes_per_second_min: Size(limits.pressed_bytes_per_second_min),
            pinned_connection: Size::mib(4),
        }
    }
}

/// How the edge stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainSection {
    /// How long requests that are being answered may go on after SIGTERM or SIGINT. Default 20s.
    pub time: Span,
}

impl Default for DrainSection {
    fn default() -> Self {
        DrainSection { time: Span::s(20) }
    }
}

/// What `outrider up` lets its user say; all the rest is default.
#[derive(Debug, Clone, Default)]
pub struct UpOptions {
    /// `--data`.
    pub data: PathBuf,
    /// `--https`.
    pub https: Option<Listen>,
    /// `--http`.
    pub http: Option<Listen>,
    /// `--admin`.
    pub admin: Option<Listen>,
    /// `--shards`.
    pub shards: Option<usize>,
    /// `--ram`.
    pub ram: Option<Size>,
    /// `--ssd`.
    pub ssd: Option<Size>,
    /// `--tls-name`, repeated.
    pub tls_names: Vec<String>,
    /// `--upstream`, repeated.
    pub upstreams: Vec<UpstreamArgument>,
    /// Not `--no-control`.
    pub control: bool,
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// When it cannot be read, is not TOML, has an unknown key or a value of the wrong kind (with the
    /// line), or a value outside its bounds (with key, value, why and what to do, and the line where
    /// the key stands in the file).
    pub fn load(path: &Path) -> Result<Config, ConfigError> {
        let shown = path.display().to_string();
        Config::parse(&outrider_settings::read(path)?, &shown)
    }

    /// Like [`Config::load`], from a text; `file` is what messages call it.
    ///
    /// # Errors
    /// As [`Config::load`], without the reading.
    pub fn parse(text: &str, file: &str) -> Result<Config, ConfigError> {
        let config: Config =
            toml::from_str(text).map_err(|e| ConfigError::from_toml(&e, text, file))?;
        config.check().map_err(|invalid| ConfigError::from_invalid(invalid, text, file))?;
        Ok(config)
    }

    /// The defaults of `outrider up`: those of the file, except that the data directory is the user's
    /// own, that shards are not pinned (the machine is somebody's desktop), and that only warnings
    /// are logged.
    ///
    /// # Errors
    /// When a value is outside its bounds; keys are named as the command's options.
    pub fn for_up(options: UpOptions) -> Result<Config, Invalid> {
        let mut config = Config::default();
        config.data.dir = options.data;
        config.listen.https = options.https.unwrap_or(config.listen.https);
        config.listen.http = options.http.unwrap_or(config.listen.http);
        config.listen.admin = options.admin.unwrap_or(config.listen.admin);
        config.shards.count = options.shards;
        config.shards.pin = false;
        config.cache.ram = options.ram;
        config.cache.ssd = options.ssd;
        config.tls.names = options.tls_names;
        config.log.level = "warn".to_owned();
        config.control.embedded = options.control;
        config.upstream = options.upstreams.into_iter().map(Upstream::from).collect();
        config.check().map_err(for_command_line)?;
        Ok(config)
    }

    /// Where this edge's certificate of the control plane is, and what it knows of the state.
    pub fn control_dir(&self) -> PathBuf {
        let default = || self.data.dir.join(crate::data_dir::CONTROL);
        self.control.dir.clone().unwrap_or_else(default)
    }

    /// Where the node of this process has everything, if there is one.
    pub fn node_dir(&self) -> PathBuf {
        self.data.dir.join(crate::data_dir::NODE)
    }

    /// Checks every bound that one key alone, or two keys together, must keep.
    ///
    /// # Errors
    /// The first key that does not.
    pub fn check(&self) -> Result<(), Invalid> {
        self.check_site()?;
        self.check_listeners()?;
        self.check_shards()?;
        self.check_cache()?;
        self.check_limits()?;
        self.quic.check()?;
        self.control.check()?;
        self.auth.check()?;
        self.check_upstreams()
    }

    fn check_site(&self) -> Result<(), Invalid> {
        let region = &self.site.region;
        let fits = (1..=REGION_LENGTH_MAX).contains(&region.len());
        if !fits || !region.bytes().all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(Invalid::new(
                "site.region",
                region,
                "a region is 1 to 32 of the characters a-z, 0-9 and '-'",
                "write it in lower case, for example \"eu-west-1\"",
            ));
        }
        if self.data.dir.as_os_str().is_empty() {
            return Err(Invalid::new(
                "data.dir",
                "",
                "it is empty",
                "name the directory in which the edge keeps its data",
            ));
        }
        outrider_settings::logging::check_filter(&self.log.level).map_err(|why| {
            Invalid::new(
                "log.level",
                &self.log.level,
                why,
                "write error, warn, info, debug or trace, or a filter such as \"info,outrider_uplink=debug\"",
            )
        })
    }

    fn check_listeners(&self) -> Result<(), Invalid> {
        let listen = &self.listen;
        if let Listen::At(address) = listen.http
            && !address.ip().is_loopback()
        {
            return Err(Invalid::new(
                "listen.http",
                address,
                "plain HTTP is for this machine only, and this is not a loopback address",
                format!(
                    "listen on it with HTTPS (listen.https = \"{address}\"), or write \"127.0.0.1:{}\" here",
                    address.port()
                ),
            ));
        }
        if listen.https == Listen::Off && listen.http == Listen::Off {
            return Err(Invalid::new(
                "listen.https",
                "off",
                "listen.http is off too, so nobody could be served",
                "give one of them an address",
            ));
        }
        self.admin.check(listen.admin.address())?;
        let mut taken: Vec<(&str, SocketAddr)> = Vec::new();
        for (key, value) in [
            ("listen.https", listen.https),
            ("listen.http", listen.http),
            ("listen.admin", listen.admin),
        ] {
            let Listen::At(address) = value else { continue };
            if address.port() != 0
                && let Some((other, _)) = taken.iter().find(|(_, o)| collide(*o, address))
            {
                return Err(Invalid::new(
                    key,
                    address,
                    format!("{other} has that address already"),
                    "give each listener a port of its own",
                ));
            }
            taken.push((key, address));
        }
        if self.tls.names.len() > TLS_NAMES_MAX {
            return Err(Invalid::new(
                "tls.names",
                format!("{} names", self.tls.names.len()),
                format!("a certificate has at most {TLS_NAMES_MAX}"),
                "leave out those that clients do not use",
            ));
        }
        for name in &self.tls.names {
            if name.parse::<IpAddr>().is_err() && !upstream::is_host(name) {
                return Err(Invalid::new(
                    "tls.names",
                    name,
                    "it is neither a host name nor an IP address",
                    "write the name that clients use, without scheme and port, for example \"edge1.example.com\"",
                ));
            }
        }
        Ok(())
    }

    fn check_shards(&self) -> Result<(), Invalid> {
        let shards = &self.shards;
        if let Some(count) = shards.count
            && !(1..=SHARDS_MAX).contains(&count)
        {
            return Err(Invalid::new(
                "shards.count",
                count,
                format!("it must be 1 to {SHARDS_MAX}"),
                "leave it out, for one on each CPU",
            ));
        }
        bounded("shards.spin", shards.spin, Span::s(0), Span(std::time::Duration::from_micros(50)))
    }

    fn check_cache(&self) -> Result<(), Invalid> {
        let cache = &self.cache;
        if let Some(ram) = cache.ram
            && ram < RAM_MIN
        {
            return Err(Invalid::new(
                "cache.ram",
                ram,
                "the arena could not hold what a few clients are being sent",
                format!("give it {RAM_MIN} or more"),
            ));
        }
        if let Some(ssd) = cache.ssd
            && ssd != Size(0)
            && ssd < SSD_MIN
        {
            return Err(Invalid::new(
                "cache.ssd",
                ssd,
                "the stripes would have too few segments to be written in turn",
                format!("give it {SSD_MIN} or more, or \"0B\" to use no disk"),
            ));
        }
        if let Some(stripes) = cache.stripes {
            use crate::data_dir::{STRIPES_MAX, STRIPES_MIN};
            if !(STRIPES_MIN..=STRIPES_MAX).contains(&stripes) {
                return Err(Invalid::new(
                    "cache.stripes",
                    stripes,
                    format!("it must be {STRIPES_MIN} to {STRIPES_MAX}"),
                    "leave it out, unless there will be more shards than stripes",
                ));
            }
        }
        bounded("cache.object_max", cache.object_max, Size::mib(1), Size::gib(1 << 10))?;
        bounded("cache.queue_depth", cache.queue_depth, 1, 1_024)?;
        bounded("cache.stripe_errors_max", cache.stripe_errors_max, 1, 1_000_000)?;
        let Importance { class, frequency, fetch, execute, depth } = cache.importance;
        for (key, weight) in [
            ("class", class),
            ("frequency", frequency),
            ("fetch", fetch),
            ("execute", execute),
            ("depth", depth),
        ] {
            bounded(&format!("cache.importance.{key}"), weight, 0.0, 1_000.0)?;
        }
        if !(0.0..=0.95).contains(&cache.upload_share) {
            return Err(Invalid::new(
                "cache.upload_share",
                cache.upload_share,
                "it is a share of the SSD tier, and what is cached needs some room too",
                "write a number from 0.0 to 0.95",
            ));
        }
        Ok(())
    }

    fn check_limits(&self) -> Result<(), Invalid> {
        let limits = &self.limits;
        bounded("limits.connections", limits.connections, 1, 1_000_000)?;
        bounded("limits.streams", limits.streams, 1, 1_000)?;
        bounded("limits.header_bytes", limits.header_bytes, Size(8 << 10), Size::mib(1))?;
        bounded("limits.header_time", limits.header_time, Span::s(1), Span::s(600))?;
        bounded("limits.handshake_time", limits.handshake_time, Span::s(1), Span::s(600))?;
        for (key, time) in [
            ("limits.idle_time", limits.idle_time),
            ("limits.body_idle_time", limits.body_idle_time),
            ("limits.stall_time", limits.stall_time),
        ] {
            bounded(key, time, Span::s(1), Span::s(86_400))?;
        }
        for (key, rate) in [
            ("limits.body_bytes_per_second_min", limits.body_bytes_per_second_min),
            ("limits.pressed_bytes_per_second_min", limits.pressed_bytes_per_second_min),
        ] {
            bounded(key, rate, Size(0), Size::mib(1))?;
        }
        bounded("limits.pinned_connection", limits.pinned_connection, Size::mib(1), Size::gib(1))?;
        bounded("tags.ttl", self.tags.ttl, Span::s(0), Span::s(365 * 86_400))?;
        bounded("tags.stale", self.tags.stale, Span::s(0), Span::s(10 * 365 * 86_400))?;
        bounded("uploads.sessions_max", self.uploads.sessions_max, 1, 1_000_000)?;
        bounded("uploads.idle", self.uploads.idle, Span::s(1), Span::s(7 * 86_400))?;
        let replicas_time = self.uploads.replicas_time;
        bounded("uploads.replicas_time", replicas_time, Span::s(1), Span::s(3_600))?;
        let names = &self.names;
        bounded("names.mirrored_tags_max", names.mirrored_tags_max, 1, 100_000_000)?;
        bounded("names.outbox_records_max", names.outbox_records_max, 1, 100_000_000)?;
        bounded("names.page_cache", names.page_cache, Size::mib(1), Size::gib(16))?;
        bounded("drain.time", self.drain.time, Span::s(0), Span::s(3_600))
    }

    fn check_upstreams(&self) -> Result<(), Invalid> {
        if self.upstream.len() > UPSTREAMS_MAX {
            return Err(Invalid::new(
                "upstream",
                format!("{} tables", self.upstream.len()),
                format!("an edge has at most {UPSTREAMS_MAX}"),
                "leave some out",
            ));
        }
        let mut names = HashSet::new();
        for (index, upstream) in self.upstream.iter().enumerate() {
            upstream.check(index)?;
            if !names.insert(upstream.name.as_deref()) {
                let key = format!("upstream[{index}].name");
                return Err(match &upstream.name {
                    Some(name) => Invalid::new(
                        key,
                        name,
                        "another upstream has that name",
                        "give each upstream a name of its own",
                    ),
                    None => Invalid::new(
                        key,
                        "",
                        "another upstream has no name either, and only one can be mirrored at the root",
                        "give all but one a name",
                    ),
                });
            }
        }
        Ok(())
    }
}

/// Whether two listeners cannot both be bound: the same port on the same address, or on all of them.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    a.port() == b.port() && (a.ip() == b.ip() || a.ip().is_unspecified() || b.ip().is_unspecified())
}

/// The same, with the key named as the option of `outrider up` that sets it.
fn for_command_line(mut invalid: Invalid) -> Invalid {
    let option = match invalid.key.as_str() {
        "data.dir" => "--data",
        "listen.https" => "--https",
        "listen.http" => "--http",
        "listen.admin" => "--admin",
        "shards.count" => "--shards",
        "cache.ram" => "--ram",
        "cache.ssd" => "--ssd",
        "tls.names" => "--tls-name",
        key if key.starts_with("upstream") => "--upstream",
        _ => return invalid,
    };
    invalid.key = option.to_owned();
    for (key, option) in [
        ("listen.https = \"", "--https \""),
        ("listen.https", "--https"),
        ("listen.http", "--http"),
        ("listen.admin", "--admin"),
    ] {
        invalid.why = invalid.why.replace(key, option);
        invalid.remedy = invalid.remedy.replace(key, option);
    }
    invalid
}

#[cfg(test)]
mod tests;
