//! The configuration of a node of the control plane: what each key means, its default, its bounds.
//!
//! Everything has a default, so that the empty file is a valid configuration, of a cluster that is all on
//! this machine.

mod events;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub use events::{EventsSection, KafkaSection, QueueKind, RabbitmqSection};
pub use outrider_operators::{AdminSection, AuthSection, TlsSection};
use outrider_settings::units::{Size, Span};
use outrider_settings::{ConfigError, Invalid, Log, bounded, is_host_and_port};
use serde::{Deserialize, Serialize};

/// The whole configuration.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// `[data]`: what the node keeps, and where.
    pub data: Data,
    /// `[node]`: what it is to the others.
    pub node: Node,
    /// `[listen]`: the addresses that it answers on.
    pub listen: Listeners,
    /// `[consensus]`: how soon a silent leader is replaced.
    pub consensus: ConsensusSection,
    /// `[admin]`: who may use the API.
    pub admin: AdminSection,
    /// `[certificates]`: of this node and of who joins.
    pub certificates: CertificatesSection,
    /// `[graph]`: where the dependency graph is.
    pub graph: GraphSection,
    /// `[history]`: how much of the recent past is kept for those who follow.
    pub history: HistorySection,
    /// `[events]`: the queue that events of edges are put into.
    pub events: EventsSection,
    /// `[limits]`: what clients of the admin API may take.
    pub limits: LimitsSection,
    /// `[drain]`: how the node stops.
    pub drain: DrainSection,
    /// `[log]`: what is logged to stderr.
    pub log: Log,
}

/// What the node keeps, and where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Data {
    /// The node's own folder. Default `/var/lib/outrider/control`.
    pub dir: PathBuf,
}

impl Default for Data {
    fn default() -> Self {
        Self { dir: PathBuf::from("/var/lib/outrider/control") }
    }
}

/// What the node is to the others.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Node {
    /// How it calls itself. Default: the host's name.
    pub name: Option<String>,
    /// `HOST:PORT` by which other nodes and edges reach it. Default: `listen.peers`, which must then be one
    /// address and not all.
    pub advertise: Option<String>,
}

/// The addresses that the node answers on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listeners {
    /// Other nodes and edges, over mutual TLS. Default `127.0.0.1:9191`. Calls to other nodes come from this
    /// address too, where it is one and not all.
    pub peers: SocketAddr,
    /// The admin API. An address that is not loopback needs `[admin.auth]`, and is answered over TLS. Default
    /// `127.0.0.1:9190`.
    pub admin: SocketAddr,
}

impl Default for Listeners {
    fn default() -> Self {
        let loopback = |port| SocketAddr::from(([127, 0, 0, 1], port));
        Self { peers: loopback(9191), admin: loopback(9190) }
    }
}

/// How soon a silent leader is replaced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsensusSection {
    /// Between two signs of life of the leader; also the longest that one of its messages may take. Default
    /// 100ms.
    pub heartbeat: Span,
    /// After three to four times this without one, another node wants to lead: twice as long its followers
    /// are bound to it, and then each waits for a time of its own. At least four times the heartbeat. Default
    /// 500ms.
    pub election: Span,
    /// For one write or read, however often it has to be tried. Default 10s.
    pub request_time: Span,
}

impl Default for ConsensusSection {
    fn default() -> Self {
        Self { heartbeat: Span::ms(100), election: Span::ms(500), request_time: Span::s(10) }
    }
}

/// Certificates of members.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CertificatesSection {
    /// How long those last that this node signs. They are made anew when a third of that is left. Default 397d.
    pub lifetime: Span,
}

impl Default for CertificatesSection {
    fn default() -> Self {
        Self { lifetime: Span(crate::pki::MEMBER_TIME) }
    }
}

/// Which store the dependency graph has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum GraphStore {
    /// A file in the node's folder.
    #[default]
    Embedded,
    /// A Neo4j.
    Neo4j,
}

/// Where the dependency graph is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct GraphSection {
    /// `embedded`, a file in `data.dir`, or `neo4j`. Default `embedded`.
    pub store: GraphStore,
    /// `bolt://HOST:PORT` of the Neo4j, or `bolt+s://HOST:PORT` for TLS.
    pub url: Option<String>,
    /// Certificates (PEM) of the authorities that are trusted over TLS. Default: the system's.
    pub ca: Option<PathBuf>,
    /// Its user. Default: none, for a server that wants none.
    pub user: Option<String>,
    /// The file with that user's password, of which the first line counts.
    pub password_file: Option<PathBuf>,
    /// The database in it. Default: the server's own default.
    pub database: Option<String>,
    /// Memory for pages of the embedded store. Default 64MiB.
    pub memory: Size,
    /// The longest that the store is waited for, by one batch or query. Default 10s.
    pub request_time: Span,
}

impl Default for GraphSection {
    fn default() -> Self {
        Self {
            store: GraphStore::default(),
            url: None,
            ca: None,
            user: None,
            password_file: None,
            database: None,
            memory: Size::mib(64),
            request_time: Span::s(10),
        }
    }
}

impl GraphSection {
    fn check(&self) -> Result<(), Invalid> {
        let Self { store, url, ca, user, password_file, database, .. } = self;
        let needs_neo4j = |key, given: bool| match given && *store == GraphStore::Embedded {
            true => Err(Invalid::new(
                key,
                "",
                "the embedded store has none",
                "write store = \"neo4j\", or leave it out",
            )),
            false => Ok(()),
        };
        needs_neo4j("graph.url", url.is_some())?;
        needs_neo4j("graph.ca", ca.is_some())?;
        needs_neo4j("graph.user", user.is_some())?;
        needs_neo4j("graph.password_file", password_file.is_some())?;
        needs_neo4j("graph.database", database.is_some())?;
        if user.is_some() != password_file.is_some() {
            return Err(Invalid::new(
                "graph.user",
                user.as_deref().unwrap_or(""),
                "a user and a file with the password go together",
                "give both, or none for a server that wants none",
            ));
        }
        if *store == GraphStore::Neo4j {
            let url = url.as_deref().unwrap_or("");
            outrider_graph::neo4j::check_url(url).map_err(|why| {
                Invalid::new("graph.url", "", why, "for example \"bolt://127.0.0.1:7687\"")
            })?;
        }
        Ok(())
    }
}

/// How much of the recent past is kept for those who follow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HistorySection {
    /// Updates. Who has missed more gets a snapshot. Default 1000000.
    pub updates: usize,
    /// Memory for them. Default 256MiB.
    pub memory: Size,
}

impl Default for HistorySection {
    fn default() -> Self {
        Self { updates: 1_000_000, memory: Size::mib(256) }
    }
}

/// What clients of the admin API may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsSection {
    /// Connections; more wait. Default 1024.
    pub connections: usize,
    /// How long a connection without a request is kept, and how long a body may take. Default 60s.
    pub idle_time: Span,
}

impl Default for LimitsSection {
    fn default() -> Self {
        Self { connections: 1_024, idle_time: Span::s(60) }
    }
}

/// How the node stops.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DrainSection {
    /// How long requests that are being answered may go on after SIGTERM or SIGINT. Default 5s.
    pub time: Span,
}

impl Default for DrainSection {
    fn default() -> Self {
        Self { time: Span::s(5) }
    }
}

impl Config {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// With file, line, key and what to do.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&outrider_settings::read(path)?, &path.display().to_string())
    }

    /// Like [`Config::load`], from a text; `file` is what messages call it.
    ///
    /// # Errors
    /// As [`Config::load`].
    pub fn parse(text: &str, file: &str) -> Result<Self, ConfigError> {
        let config: Self =
            toml::from_str(text).map_err(|e| ConfigError::from_toml(&e, text, file))?;
        config.check().map_err(|invalid| ConfigError::from_invalid(invalid, text, file))?;
        Ok(config)
    }

    /// Where other nodes reach this one, which listens there.
    pub fn advertised(&self, listened: std::net::SocketAddr) -> String {
        self.node.advertise.clone().unwrap_or_else(|| listened.to_string())
    }

    /// How it calls itself.
    pub fn name(&self) -> String {
        self.node
            .name
            .clone()
            .unwrap_or_else(|| rustix::system::uname().nodename().to_string_lossy().into_owned())
    }

    fn check(&self) -> Result<(), Invalid> {
        if self.data.dir.as_os_str().is_empty() {
            return Err(Invalid::new("data.dir", "", "it is empty", "name the node's own folder"));
        }
        let Listeners { peers, admin } = self.listen;
        self.admin.check(Some(admin))?;
        if peers == admin && peers.port() != 0 {
            return Err(Invalid::new(
                "listen.admin",
                admin,
                "listen.peers has that address already",
                "give each listener a port of its own",
            ));
        }
        if self.node.advertise.is_none() && (peers.ip().is_unspecified() || peers.port() == 0) {
            return Err(Invalid::new(
                "node.advertise",
                "",
                "listen.peers does not say where other nodes reach this one",
                "write HOST:PORT, for example \"control1.example.com:9191\"",
            ));
        }
        if let Some(advertise) = &self.node.advertise
            && !is_host_and_port(advertise)
        {
            return Err(Invalid::new(
                "node.advertise",
                advertise,
                "it is not a host and a port",
                "write HOST:PORT, for example \"control1.example.com:9191\"",
            ));
        }
        if let Some(name) = &self.node.name
            && (name.is_empty() || name.len() > 64 || name.chars().any(char::is_control))
        {
            return Err(Invalid::new(
                "node.name",
                name,
                "a name has 1 to 64 bytes and no control characters",
                "leave it out, for the host's name",
            ));
        }
        let consensus = &self.consensus;
        bounded("consensus.heartbeat", consensus.heartbeat, Span::ms(20), Span::s(10))?;
        let least = Span(consensus.heartbeat.0 * 4);
        bounded("consensus.election", consensus.election, least, Span::s(60))?;
        bounded("consensus.request_time", consensus.request_time, Span::ms(100), Span::s(300))?;
        let (least, most) = (Span::s(10), Span::s(10 * 365 * 24 * 3_600));
        bounded("certificates.lifetime", self.certificates.lifetime, least, most)?;
        self.graph.check()?;
        bounded("graph.memory", self.graph.memory, Size::mib(1), Size::gib(64))?;
        bounded("graph.request_time", self.graph.request_time, Span::ms(100), Span::s(300))?;
        self.events.check()?;
        bounded("history.updates", self.history.updates, 1, 100_000_000)?;
        bounded("history.memory", self.history.memory, Size::mib(1), Size::gib(64))?;
        bounded("limits.connections", self.limits.connections, 1, 100_000)?;
        bounded("limits.idle_time", self.limits.idle_time, Span::s(1), Span::s(3_600))?;
        bounded("drain.time", self.drain.time, Span::s(0), Span::s(3_600))?;
        outrider_settings::logging::check_filter(&self.log.level).map_err(|why| {
            let remedy = "write error, warn, info, debug or trace, or a filter such as \"info,openraft=warn\"";
            Invalid::new("log.level", &self.log.level, why, remedy)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_empty_file_is_valid_and_an_unknown_key_is_refused_with_its_line() {
        assert_eq!(Config::parse("", "f").unwrap(), Config::default());
        let error = Config::parse("[data]\ndri = \"x\"\n", "control.toml").unwrap_err().to_string();
        assert!(error.starts_with("control.toml:2:1: unknown key `dri`"), "{error}");
    }

    #[test]
    fn what_cannot_be_is_said_with_what_to_write() {
        for (text, wanted) in [
            (
                "[listen]\nadmin = \"0.0.0.0:9190\"",
                "f:2: listen.admin = \"0.0.0.0:9190\": without admin.auth",
            ),
            (
                "[listen]\npeers = \"0.0.0.0:9191\"",
                "node.advertise = \"\": listen.peers does not say",
            ),
            ("[node]\nadvertise = \"host\"", "it is not a host and a port"),
            ("[listen]\npeers = \"127.0.0.1:9190\"", "listen.peers has that address already"),
            (
                "[consensus]\nelection = \"300ms\"",
                "f:2: consensus.election = \"300ms\": it must be 400ms to 1m",
            ),
            ("[graph]\nurl = \"bolt://h:1\"", "graph.url = \"\": the embedded store has none"),
            ("[graph]\nstore = \"neo4j\"", "graph.url = \"\": write bolt://HOST:PORT"),
            (
                "[graph]\nstore = \"neo4j\"\nurl = \"bolt://h\"\nuser = \"u\"",
                "a user and a file with the password go together",
            ),
            ("[graph]\nstore = \"other\"", "unknown variant `other`"),
            ("[history]\nupdates = 0", "it must be 1 to 100000000"),
            ("[node]\nname = \"\"", "a name has 1 to 64 bytes"),
        ] {
            let error = Config::parse(text, "f").unwrap_err().to_string();
            assert!(error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn all_addresses_are_fine_when_it_is_said_which_one_to_use() {
        let text =
            "[listen]\npeers = \"0.0.0.0:9191\"\n[node]\nadvertise = \"c1.example.com:9191\"";
        let listened = "10.0.0.1:1".parse().unwrap();
        let advertised = Config::parse(text, "f").unwrap().advertised(listened);
        assert_eq!(advertised, "c1.example.com:9191");
    }
}
