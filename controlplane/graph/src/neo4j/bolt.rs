//! A connection over Bolt 5.1 to 5.4 ("Bolt Protocol", Neo4j): statements with parameters go in, rows come out.
//! Statements are sent together and answered in order; after the first failure the rest is ignored, and the
//! connection is given up.

use std::time::Duration;

use tokio::io::{
    AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadHalf, WriteHalf,
};

use super::packstream::Value;

/// The longest message that is read.
const MESSAGE_BYTES_MAX: usize = 16 << 20;
/// The most rows of one statement.
const ROWS_MAX: usize = 200_000;
/// The longest chunk that is written.
const CHUNK_BYTES_MAX: usize = 32 << 10;
const MAGIC: [u8; 4] = [0x60, 0x60, 0xB0, 0x17];
/// 5.4 and the three before it, and nothing else.
const VERSIONS: [u8; 16] = [0, 3, 4, 5, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

const HELLO: u8 = 0x01;
const LOGON: u8 = 0x6A;
const BEGIN: u8 = 0x11;
const RUN: u8 = 0x10;
const PULL: u8 = 0x3F;
const COMMIT: u8 = 0x12;
const SUCCESS: u8 = 0x70;
const RECORD: u8 = 0x71;
const IGNORED: u8 = 0x7E;
const FAILURE: u8 = 0x7F;

/// What a connection is over.
pub(super) trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// Why a connection is given up.
#[derive(Debug, thiserror::Error)]
pub(super) enum BoltError {
    #[error("{0}")]
    Io(#[from] std::io::Error),
    #[error("it does not speak Bolt 5.1 to 5.4")]
    Version,
    #[error("it sent what is not Bolt")]
    Protocol,
    /// The server says no: code and message.
    #[error("{code}: {message}")]
    Server { code: String, message: String },
}

/// A statement with its parameters.
#[derive(Clone, Debug)]
pub(super) struct Statement {
    pub(super) cypher: &'static str,
    pub(super) parameters: Vec<(&'static str, Value)>,
}

impl Statement {
    pub(super) fn new(cypher: &'static str) -> Self {
        Self { cypher, parameters: Vec::new() }
    }

    pub(super) fn with(mut self, name: &'static str, value: impl Into<Value>) -> Self {
        self.parameters.push((name, value.into()));
        self
    }
}

/// The fields of one row.
pub(super) type Fields = Vec<Value>;

/// User and password.
#[derive(Clone)]
pub(super) struct Login {
    pub(super) user: String,
    pub(super) password: String,
}

/// Where a transaction runs, and how.
#[derive(Clone, Debug)]
pub(super) struct Begin<'a> {
    pub(super) database: Option<&'a str>,
    pub(super) read_only: bool,
    /// The server ends it after this.
    pub(super) time_max: Duration,
}

/// One connection.
pub(super) struct Connection {
    reader: Reader,
    writer: WriteHalf<Box<dyn Stream>>,
    /// What waits to be sent.
    out: Vec<u8>,
}

struct Reader {
    stream: ReadHalf<Box<dyn Stream>>,
    input: Vec<u8>,
}

fn text_map(all: &[(&str, &str)]) -> Value {
    Value::Map(all.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect())
}

impl Connection {
    /// Agrees on a version and logs on.
    pub(super) async fn open(
        stream: Box<dyn Stream>,
        login: Option<&Login>,
    ) -> Result<Self, BoltError> {
        let (reader, writer) = tokio::io::split(stream);
        let reader = Reader { stream: reader, input: Vec::new() };
        let mut connection = Self { reader, writer, out: Vec::new() };
        connection.out.extend_from_slice(&MAGIC);
        connection.out.extend_from_slice(&VERSIONS);
        connection.flush().await?;
        let mut version = [0; 4];
        connection.reader.stream.read_exact(&mut version).await?;
        if !matches!(version, [0, 0, 1..=4, 5]) {
            return Err(BoltError::Version);
        }
        let agent = concat!("outrider/", env!("CARGO_PKG_VERSION"));
        let product = text_map(&[("product", agent)]);
        let hello =
            vec![("user_agent".to_owned(), agent.into()), ("bolt_agent".to_owned(), product)];
        connection.send(HELLO, vec![Value::Map(hello)]);
        connection.send(
            LOGON,
            vec![match login {
                None => text_map(&[("scheme", "none")]),
                Some(Login { user, password }) => {
                    text_map(&[("scheme", "basic"), ("principal", user), ("credentials", password)])
                }
            }],
        );
        connection.flush().await?;
        connection.reader.success().await?;
        connection.reader.success().await?;
        Ok(connection)
    }

    /// Begins a transaction, runs the statements and reads their rows.
    pub(super) async fn begin(
        &mut self,
        begin: &Begin<'_>,
        statements: &[Statement],
    ) -> Result<Vec<Vec<Fields>>, BoltError> {
        let time_ms = u64::try_from(begin.time_max.as_millis()).unwrap_or(u64::MAX);
        let mut extra = vec![("tx_timeout".to_owned(), time_ms.into())];
        if begin.read_only {
            extra.push(("mode".to_owned(), "r".into()));
        }
        if let Some(database) = begin.database {
            extra.push(("db".to_owned(), database.into()));
        }
        self.send(BEGIN, vec![Value::Map(extra)]);
        self.queue(statements);
        self.exchange(true, statements.len(), false).await
    }

    /// Runs further statements in the transaction.
    pub(super) async fn run(
        &mut self,
        statements: &[Statement],
    ) -> Result<Vec<Vec<Fields>>, BoltError> {
        self.queue(statements);
        self.exchange(false, statements.len(), false).await
    }

    /// Runs the last statements and commits.
    pub(super) async fn commit(&mut self, statements: &[Statement]) -> Result<(), BoltError> {
        self.queue(statements);
        self.send(COMMIT, Vec::new());
        self.exchange(false, statements.len(), true).await.map(drop)
    }

    /// One statement in a transaction of its own: changes of the schema.
    pub(super) async fn alone(
        &mut self,
        database: Option<&str>,
        cypher: &str,
    ) -> Result<(), BoltError> {
        let extra = database.map(|database| ("db".to_owned(), database.into()));
        let fields =
            vec![cypher.into(), Value::Map(vec![]), Value::Map(extra.into_iter().collect())];
        self.send(RUN, fields);
        self.send(PULL, vec![Value::Map(vec![("n".to_owned(), Value::Int(-1))])]);
        self.exchange(false, 1, false).await.map(drop)
    }

    fn queue(&mut self, statements: &[Statement]) {
        for Statement { cypher, parameters } in statements {
            let parameters =
                parameters.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
            let fields =
                vec![(*cypher).into(), Value::Map(parameters.collect()), Value::Map(Vec::new())];
            self.send(RUN, fields);
            self.send(PULL, vec![Value::Map(vec![("n".to_owned(), Value::Int(-1))])]);
        }
    }

    fn send(&mut self, tag: u8, fields: Vec<Value>) {
        let mut message = Vec::new();
        Value::Struct(tag, fields).write(&mut message);
        for chunk in message.chunks(CHUNK_BYTES_MAX) {
            // Chunks are shorter than 64 KiB.
            self.out.extend_from_slice(&(chunk.len() as u16).to_be_bytes());
            self.out.extend_from_slice(chunk);
        }
        self.out.extend_from_slice(&[0, 0]);
    }

    async fn flush(&mut self) -> Result<(), BoltError> {
        self.writer.write_all(&self.out).await?;
        self.writer.flush().await?;
        self.out.clear();
        Ok(())
    }

    /// Sends what waits and reads the answers at once: a server whose answers are not read stops reading.
    async fn exchange(
        &mut self,
        begins: bool,
        statements: usize,
        commits: bool,
    ) -> Result<Vec<Vec<Fields>>, BoltError> {
        let Self { reader, writer, out } = self;
        let sending = async {
            writer.write_all(out).await?;
            writer.flush().await?;
            Ok(())
        };
        let reading = async {
            if begins {
                reader.success().await?;
            }
            let rows = reader.rows(statements).await?;
            if commits {
                reader.success().await?;
            }
            Ok::<_, BoltError>(rows)
        };
        let ((), rows) = tokio::try_join!(sending, reading)?;
        out.clear();
        Ok(rows)
    }
}

impl Reader {
    /// One message: its tag and its fields.
    async fn receive(&mut self) -> Result<(u8, Vec<Value>), BoltError> {
        self.input.clear();
        loop {
            let length = usize::from(self.stream.read_u16().await?);
            if length == 0 {
                // An empty message is a sign of life.
                if self.input.is_empty() {
                    continue;
                }
                break;
            }
            let start = self.input.len();
            if start + length > MESSAGE_BYTES_MAX {
                return Err(BoltError::Protocol);
            }
            self.input.resize(start + length, 0);
            self.stream.read_exact(&mut self.input[start..]).await?;
        }
        match Value::read(&self.input) {
            Ok(Value::Struct(tag, fields)) => Ok((tag, fields)),
            _ => Err(BoltError::Protocol),
        }
    }

    async fn success(&mut self) -> Result<Value, BoltError> {
        let (tag, mut fields) = self.receive().await?;
        let first = if fields.is_empty() { Value::Null } else { fields.swap_remove(0) };
        match tag {
            SUCCESS => Ok(first),
            FAILURE => {
                let member = |name| first.get(name).and_then(Value::as_str).unwrap_or_default();
                Err(BoltError::Server {
                    code: member("code").to_owned(),
                    message: member("message").to_owned(),
                })
            }
            // Only what follows a failure, and that was reported.
            IGNORED => Err(BoltError::Protocol),
            _ => Err(BoltError::Protocol),
        }
    }

    /// The rows of so many statements.
    async fn rows(&mut self, statements: usize) -> Result<Vec<Vec<Fields>>, BoltError> {
        let mut all = Vec::with_capacity(statements);
        for _ in 0..statements {
            self.success().await?;
            let mut rows = Vec::new();
            loop {
                let (tag, fields) = self.receive().await?;
                match (tag, <[Value; 1]>::try_from(fields)) {
                    (RECORD, Ok([Value::List(fields)])) if rows.len() < ROWS_MAX => {
                        rows.push(fields)
                    }
                    (SUCCESS, Ok(_)) => break,
                    (FAILURE, Ok([details])) => {
                        let member =
                            |name| details.get(name).and_then(Value::as_str).unwrap_or_default();
                        return Err(BoltError::Server {
                            code: member("code").to_owned(),
                            message: member("message").to_owned(),
                        });
                    }
                    _ => return Err(BoltError::Protocol),
                }
            }
            all.push(rows);
        }
        Ok(all)
    }
}
