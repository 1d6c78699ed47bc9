//! The embedded queue of a cluster: accesses stay in the log of the node that took them; uploads go through
//! consensus, and each node copies them from its state into its own log. So what was acknowledged outlives the loss
//! of one node, and every node's log has all uploads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use outrider_events::queue::embedded::Embedded;
use outrider_events::queue::{Extent, Page, Pending, Position, Queue, QueueError};
use outrider_events::{Entry, Lane, Mark, Marks};
use outrider_raft::Consensus;
use outrider_state::events::{EVENT_RECORDS_MAX, EVENT_REQUEST_BYTES_MAX};
use outrider_state::{EventRecord, Operation, Outcome};

/// Bytes of records that are copied in one transaction.
const COPY_BYTES_MAX: usize = 4 << 20;
/// After the disk failed.
const PAUSE: Duration = Duration::from_secs(1);

/// The queue of one node.
pub(crate) struct Replicated {
    consensus: Arc<Consensus>,
    log: Embedded,
    /// Uploads that this node was away for too long to copy, in records.
    missed: Arc<AtomicU64>,
}

impl Replicated {
    /// Starts the task that copies.
    pub(crate) fn start(consensus: Arc<Consensus>, log: Embedded) -> Self {
        let missed = Arc::new(AtomicU64::new(0));
        tokio::spawn(copy(Arc::clone(&consensus), log.clone(), Arc::clone(&missed)));
        Self { consensus, log, missed }
    }

    /// Records that were forgotten before this node could copy them, since its start.
    pub(crate) fn missed(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.missed)
    }

    async fn agree(&self, uploads: Vec<EventRecord>) -> Result<(), QueueError> {
        let unavailable = |error: String| QueueError::Unavailable(error);
        let outcome = self.consensus.operate(Operation::Events(uploads)).await;
        match outcome.map_err(|error| unavailable(error.to_string()))? {
            Outcome::Done { .. } => Ok(()),
            other => Err(unavailable(format!("an outcome {other:?}"))),
        }
    }
}

/// Copies uploads into the log as they are applied, one transaction after the other.
async fn copy(consensus: Arc<Consensus>, log: Embedded, missed: Arc<AtomicU64>) {
    let mut progress = consensus.shared().watch();
    let mut marks = log.marks();
    let mut copied = log.copied();
    loop {
        let records: Vec<_> = consensus.shared().look(|known| {
            let mut bytes = 0;
            let fits = |(_, record): &(u64, &bytes::Bytes)| {
                bytes += record.len();
                bytes <= COPY_BYTES_MAX || bytes == record.len()
            };
            let new = known.state.events().after(copied).take_while(fits);
            new.map(|(number, record)| (number, record.clone())).collect()
        });
        let Some((first, last)) = records.first().zip(records.last()).map(|(f, l)| (f.0, l.0))
        else {
            if progress.changed().await.is_err() {
                return;
            }
            continue;
        };
        if first > copied + 1 {
            let lost = first - copied - 1;
            tracing::error!(
                records = lost,
                "this node was away for too long and lacks events of uploads"
            );
            missed.fetch_add(lost, Ordering::Relaxed);
        }
        let mut entries = Vec::with_capacity(records.len());
        for (number, record) in records {
            match Entry::from_record(&record) {
                Ok(mut entry) => {
                    // What an edge sent in other batches before is cut off.
                    marks.take(&mut entry);
                    if !entry.batch.events.is_empty() {
                        entries.push(entry);
                    }
                }
                // Who put it there has checked it.
                Err(error) => tracing::error!(number, %error, "a record of events is left out"),
            }
        }
        while let Err(error) = log.append_copies(entries.clone(), last).await {
            tracing::error!(%error, "events of uploads cannot be copied");
            tokio::time::sleep(PAUSE).await;
        }
        copied = last;
    }
}

impl Queue for Replicated {
    fn name(&self) -> &'static str {
        "embedded"
    }

    fn identity(&self) -> [u8; 16] {
        self.log.identity()
    }

    /// Of accesses; of uploads the state knows.
    fn marks(&self) -> Marks {
        let of_log = self.log.marks();
        let accesses = of_log.iter().filter(|(_, lane, _)| *lane == Lane::Accesses);
        let state = self.consensus.shared();
        let uploads: Vec<_> = state.look(|known| {
            let edges = known.state.events().marks();
            let mark = |(edge, (epoch, through))| (edge, Lane::Uploads, Mark { epoch, through });
            edges.map(mark).collect()
        });
        accesses.chain(uploads).collect()
    }

    fn append(&self, entries: Arc<Vec<Entry>>) -> Pending<'_, ()> {
        Box::pin(async move {
            let (mut accesses, mut uploads, mut bytes) = (Vec::new(), Vec::new(), 0);
            for entry in entries.iter() {
                if entry.batch.lane == Lane::Accesses {
                    accesses.push(entry.clone());
                    continue;
                }
                let record =
                    entry.to_record().map_err(|e| QueueError::Unavailable(e.to_string()))?;
                if uploads.len() == EVENT_RECORDS_MAX
                    || bytes + record.len() > EVENT_REQUEST_BYTES_MAX
                {
                    self.agree(std::mem::take(&mut uploads)).await?;
                    bytes = 0;
                }
                bytes += record.len();
                let Mark { epoch, through } = entry.batch.mark();
                uploads.push(EventRecord { edge: entry.edge, epoch, through, record });
            }
            if !uploads.is_empty() {
                self.agree(uploads).await?;
            }
            if accesses.is_empty() { Ok(()) } else { self.log.append(Arc::new(accesses)).await }
        })
    }

    fn read(&self, after: Position, entries_max: usize) -> Pending<'_, Page> {
        self.log.read(after, entries_max)
    }

    fn extent(&self) -> Pending<'_, Extent> {
        self.log.extent()
    }
}
