//! The store in a Neo4j of the operator's (5.7 or newer), over Bolt, with a client of our own: the crates that
//! there are bring a second provider of TLS (`docs/decisions/0009`).
//!
//! - [`address`]: where the server is; TCP and TLS.
//! - [`packstream`]: how values are written.
//! - [`bolt`]: one connection.
//! - [`write`]: applying a batch.
//! - [`read`]: the queries.
//!
//! Connections are made when they are needed, and one that failed, or whose answer was not waited for, is not
//! used again: the server then rolls its transaction back.

mod address;
mod bolt;
mod packstream;
mod read;
mod write;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use outrider_artifact::Digest;
use tokio::sync::Semaphore;

use crate::batch::Batch;
use crate::query::{Answer, Asked, DEPENDANTS_ASKED_MAX};
use crate::store::{Applied, Graph, GraphError, Pending, Progress, Stats};
pub use address::check_url;

use address::Address;
use bolt::{Begin, BoltError, Connection, Login, Statement};
use write::{FORMAT, Fault};

/// Queries that are answered at a time; more wait.
const READS_MAX: usize = 8;

/// Names and serials are unique; the statements find nodes by these.
const SCHEMA: [&str; 12] = [
    "CREATE CONSTRAINT outrider_node IF NOT EXISTS FOR (n:Node) REQUIRE n.serial IS UNIQUE",
    "CREATE CONSTRAINT outrider_image IF NOT EXISTS FOR (n:Image) REQUIRE n.name IS UNIQUE",
    "CREATE CONSTRAINT outrider_customer IF NOT EXISTS FOR (n:Customer) REQUIRE n.name IS UNIQUE",
    "CREATE CONSTRAINT outrider_content IF NOT EXISTS FOR (n:Content) REQUIRE n.digest IS UNIQUE",
    "CREATE CONSTRAINT outrider_version IF NOT EXISTS FOR (n:Version) REQUIRE n.key IS UNIQUE",
    "CREATE CONSTRAINT outrider_source IF NOT EXISTS FOR (n:OutriderSource) REQUIRE n.name IS UNIQUE",
    "CREATE CONSTRAINT outrider_mark IF NOT EXISTS FOR (n:OutriderMark) REQUIRE n.key IS UNIQUE",
    "CREATE INDEX outrider_mark_source IF NOT EXISTS FOR (n:OutriderMark) ON (n.source)",
    "CREATE CONSTRAINT outrider_early IF NOT EXISTS FOR (n:OutriderEarly) REQUIRE n.key IS UNIQUE",
    "CREATE INDEX outrider_early_digest IF NOT EXISTS FOR (n:OutriderEarly) ON (n.digest)",
    "CREATE INDEX outrider_early_order IF NOT EXISTS FOR (n:OutriderEarly) ON (n.order)",
    "CREATE CONSTRAINT outrider_graph IF NOT EXISTS FOR (n:OutriderGraph) REQUIRE n.id IS UNIQUE",
];
const FOUND: &str = "MERGE (g:OutriderGraph {id: 1}) \
    ON CREATE SET g.format = $format, g.last = 0, g.contains = 0";

/// Where the server is and how it is used.
#[derive(Clone)]
pub struct Options {
    /// `bolt://HOST:PORT`, or `bolt+s://HOST:PORT` for TLS.
    pub url: String,
    /// The authorities that are trusted, instead of the system's.
    pub ca: Option<PathBuf>,
    /// User and password, unless the server wants none.
    pub login: Option<(String, String)>,
    /// The database, or the server's default one.
    pub database: Option<String>,
    /// After this the server ends a transaction.
    pub time_max: Duration,
}

/// A graph in a Neo4j.
pub struct Neo4j {
    address: Address,
    login: Option<Login>,
    database: Option<String>,
    time_max: Duration,
    /// Whether the schema was looked at since this process started.
    prepared: AtomicBool,
    idle: Mutex<Vec<Connection>>,
    writer: Semaphore,
    readers: Semaphore,
}

impl Neo4j {
    /// A graph there. Nobody is called before it is used.
    ///
    /// # Errors
    /// When the address is none, or the authorities cannot be read.
    pub fn new(options: Options) -> Result<Self, String> {
        let Options { url, ca, login, database, time_max } = options;
        Ok(Self {
            address: Address::new(&url, ca.as_deref())?,
            login: login.map(|(user, password)| Login { user, password }),
            database,
            time_max,
            prepared: AtomicBool::new(false),
            idle: Mutex::new(Vec::new()),
            writer: Semaphore::new(1),
            readers: Semaphore::new(READS_MAX),
        })
    }

    /// Forgets the whole graph. For tests.
    ///
    /// # Errors
    /// [`GraphError::Unavailable`]
    pub async fn forget(&self) -> Result<(), GraphError> {
        let work = async {
            let mut lease = self.connection().await?;
            let connection = lease.get()?;
            let all = [
                Statement::new("MATCH (n:Node) DETACH DELETE n"),
                Statement::new("MATCH (s:OutriderSource) DELETE s"),
                Statement::new("MATCH (m:OutriderMark) DELETE m"),
                Statement::new("MATCH (e:OutriderEarly) DELETE e"),
                Statement::new(
                    "MATCH (g:OutriderGraph) SET g.last = 0, g.contains = 0, g.early_last = 0",
                ),
            ];
            connection.begin(&self.begin(false), &all).await?;
            connection.commit(&[]).await?;
            lease.keep();
            Ok(())
        };
        work.await.map_err(|error: BoltError| self.error(Fault::Bolt(error)))
    }

    fn begin(&self, read_only: bool) -> Begin<'_> {
        Begin { database: self.database.as_deref(), read_only, time_max: self.time_max }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Connection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connection(&self) -> Result<Lease<'_>, BoltError> {
        let idle = self.idle().pop();
        let mut lease = Lease { neo4j: self, connection: idle };
        if lease.connection.is_none() {
            let stream = self.address.connect().await?;
            lease.connection = Some(Connection::open(stream, self.login.as_ref()).await?);
        }
        if !self.prepared.load(Ordering::Acquire) {
            let connection = lease.get()?;
            for cypher in SCHEMA {
                connection.alone(self.database.as_deref(), cypher).await?;
            }
            let found = Statement::new(FOUND).with("format", FORMAT);
            connection.begin(&self.begin(false), &[found]).await?;
            connection.commit(&[]).await?;
            self.prepared.store(true, Ordering::Release);
        }
        Ok(lease)
    }

    fn error(&self, fault: Fault) -> GraphError {
        match fault {
            Fault::Refused(error) => error,
            Fault::Bolt(error) => {
                GraphError::Unavailable(format!("{}: {error}", self.address.host))
            }
        }
    }

    async fn apply_checked(&self, batch: &Batch) -> Result<Applied, Fault> {
        let mut lease = self.connection().await?;
        let applied = write::apply(lease.get()?, &self.begin(false), batch).await?;
        lease.keep();
        Ok(applied)
    }

    async fn read(&self, asked: &Asked) -> Result<Answer, Fault> {
        let mut lease = self.connection().await?;
        let connection = lease.get()?;
        connection.begin(&self.begin(true), &[]).await?;
        let answer = read::Reader { connection }.answer(asked).await;
        // What was asked wrongly is no fault of the connection.
        if let Ok(_) | Err(Fault::Refused(_)) = &answer {
            lease.get()?.commit(&[]).await?;
            lease.keep();
        }
        answer
    }

    async fn read_progress(&self, source: &str) -> Result<Progress, Fault> {
        let mut lease = self.connection().await?;
        let connection = lease.get()?;
        connection.begin(&self.begin(true), &[]).await?;
        let progress = read::Reader { connection }.progress(source).await?;
        lease.get()?.commit(&[]).await?;
        lease.keep();
        Ok(progress)
    }

    async fn read_dependants(&self, contents: &[Digest]) -> Result<Vec<u64>, Fault> {
        let mut lease = self.connection().await?;
        let connection = lease.get()?;
        connection.begin(&self.begin(true), &[]).await?;
        let dependants = read::Reader { connection }.dependants(contents).await?;
        lease.get()?.commit(&[]).await?;
        lease.keep();
        Ok(dependants)
    }

    async fn read_stats(&self) -> Result<Stats, Fault> {
        let mut lease = self.connection().await?;
        let connection = lease.get()?;
        connection.begin(&self.begin(true), &[]).await?;
        let stats = read::Reader { connection }.stats().await?;
        lease.get()?.commit(&[]).await?;
        lease.keep();
        Ok(stats)
    }
}

/// A connection that is used. One that is not kept, since it failed or its answer was not waited for any more, is
/// closed, and so are the idle ones: they are most likely as dead.
struct Lease<'a> {
    neo4j: &'a Neo4j,
    connection: Option<Connection>,
}

impl Lease<'_> {
    fn get(&mut self) -> Result<&mut Connection, BoltError> {
        self.connection.as_mut().ok_or(BoltError::Protocol)
    }

    fn keep(mut self) {
        let connection = self.connection.take();
        let mut idle = self.neo4j.idle();
        // As many as there are users at a time.
        if idle.len() <= READS_MAX {
            idle.extend(connection);
        }
    }
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if self.connection.is_some() {
            self.neo4j.idle().clear();
        }
    }
}

fn stopped(_: tokio::sync::AcquireError) -> GraphError {
    GraphError::Unavailable("the process ends".to_owned())
}

impl Graph for Neo4j {
    fn apply(&self, batch: Batch) -> Pending<'_, Applied> {
        Box::pin(async move {
            batch.check()?;
            let _place = self.writer.acquire().await.map_err(stopped)?;
            self.apply_checked(&batch).await.map_err(|fault| self.error(fault))
        })
    }

    fn ask(&self, asked: Asked) -> Pending<'_, Answer> {
        Box::pin(async move {
            let _place = self.readers.acquire().await.map_err(stopped)?;
            self.read(&asked).await.map_err(|fault| self.error(fault))
        })
    }

    fn stats(&self) -> Pending<'_, Stats> {
        Box::pin(async move {
            let _place = self.readers.acquire().await.map_err(stopped)?;
            self.read_stats().await.map_err(|fault| self.error(fault))
        })
    }

    fn progress(&self, source: String) -> Pending<'_, Progress> {
        Box::pin(async move {
            let _place = self.readers.acquire().await.map_err(stopped)?;
            self.read_progress(&source).await.map_err(|fault| self.error(fault))
        })
    }

    fn dependants(&self, mut contents: Vec<Digest>) -> Pending<'_, Vec<u64>> {
        contents.truncate(DEPENDANTS_ASKED_MAX);
        Box::pin(async move {
            let _place = self.readers.acquire().await.map_err(stopped)?;
            self.read_dependants(&contents).await.map_err(|fault| self.error(fault))
        })
    }
}
