//! Chunks through the cache's public interface, as the server reads them: on a shard, whose driver
//! turns the cache's ring, by `depth` tasks that each want one chunk after the other.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use outrider_artifact::Digest;
use outrider_cache::{CHUNK_BYTES, Cache, CacheConfig, CacheMetrics, SsdConfig, Tier, UploadId};
use outrider_shard::{ShardConfig, ShardContext, ShardHandle, ShardThread, Source, channel, task};

use super::{RECORD_BYTES, Reads, store_bytes};
use crate::BenchError;
use crate::image::random_bytes;
use crate::load::latency::Latency;
use crate::load::window::thread_cpu;

/// The size of each object. An object lies whole on one stripe: so that the stripes get about the same
/// share, there have to be many.
const OBJECT_BYTES: u64 = 16 << 20;
/// Memory of the cache: far less than what is read, so that nearly all comes from the stripes.
const ARENA_BYTES: usize = 96 << 20;
/// Stripes of the store.
const STRIPES: u16 = 4;
/// Orders that may wait for the shard.
const ORDERS_MAX: usize = 4;
const MEDIA_TYPE: &str = "application/octet-stream";
/// Bytes at the start of each chunk that say which one it is.
const STAMP_BYTES: usize = 16;

/// An order to the shard.
enum Order {
    /// Read for so long.
    Read { depth: u32, duration: Duration, seed: u64 },
    /// End.
    End,
}

/// A shard with a cache that was filled for this run.
pub struct StripeReader {
    orders: channel::Sender<Order>,
    results: mpsc::Receiver<Result<ReadResult, BenchError>>,
    shard: ShardThread,
}

/// What the cache gave.
#[derive(Clone, Debug)]
pub struct ReadResult {
    /// Reads that came from the stripes.
    pub reads: Reads,
    /// Reads that were answered from memory, which count for nothing.
    pub from_memory: u64,
}

/// How the store is made.
#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// The folder of the stripes.
    pub folder: PathBuf,
    /// How much is written.
    pub size_bytes: u64,
    /// The CPU of the shard.
    pub cpu: Option<usize>,
}

struct Turn(Cache);

impl Source for Turn {
    fn turn(&mut self) -> bool {
        self.0.turn()
    }

    fn in_flight(&self) -> bool {
        self.0.in_flight()
    }
}

impl StripeReader {
    /// Starts the shard, makes the store and fills it; returns when all of it is on the disk.
    ///
    /// # Errors
    /// When the shard does not start or the cache refuses.
    pub fn start(config: StoreConfig) -> Result<Self, BenchError> {
        let (result_sender, results) = mpsc::channel();
        let (handle_sender, handles) = mpsc::channel();
        let shard_config = ShardConfig { cpu: config.cpu, ..ShardConfig::new(0) };
        let shard = outrider_shard::start(shard_config, move |context| {
            let (orders, inbox) = channel::bounded(ORDERS_MAX, &context.handle());
            // Whoever waits for it is `start`, below.
            let _ = handle_sender.send(orders);
            serve(context, config, inbox, result_sender)
        })
        .map_err(|error| BenchError::Cache(error.to_string()))?;
        let gone = || BenchError::Cache("the shard ended early".to_owned());
        let orders = handles.recv().map_err(|_| gone())?;
        // The first result says that the store is filled.
        results.recv().map_err(|_| gone())??;
        Ok(Self { orders, results, shard })
    }

    /// Reads random chunks, `depth` at a time, for `duration`.
    ///
    /// # Errors
    /// When a chunk is missing or is not the one that was asked for.
    pub fn read(
        &self,
        depth: u32,
        duration: Duration,
        seed: u64,
    ) -> Result<ReadResult, BenchError> {
        let gone = || BenchError::Cache("the shard is gone".to_owned());
        self.orders.try_send(Order::Read { depth, duration, seed }).map_err(|_| gone())?;
        self.results.recv().map_err(|_| gone())?
    }

    /// Ends the shard.
    ///
    /// # Errors
    /// When it panicked.
    pub fn end(self) -> Result<(), BenchError> {
        let _ = self.orders.try_send(Order::End);
        self.shard.join().map_err(|error| BenchError::Cache(error.to_string()))
    }
}

async fn serve(
    context: ShardContext,
    config: StoreConfig,
    mut orders: channel::Receiver<Order>,
    results: mpsc::Sender<Result<ReadResult, BenchError>>,
) {
    let handle = context.handle();
    let store = match open(&context, &handle, &config).await {
        Ok(store) => store,
        Err(error) => {
            let _ = results.send(Err(error));
            return;
        }
    };
    let nothing = ReadResult {
        reads: Reads { count: 0, bytes: 0, seconds: 0.0, cpu_s: 0.0, latency: Latency::new() },
        from_memory: 0,
    };
    let _ = results.send(Ok(nothing));
    while let Some(Order::Read { depth, duration, seed }) = orders.recv().await {
        let _ = results.send(read(&handle, &store, depth, duration, seed).await);
    }
}

/// The cache and what is in it.
struct Store {
    cache: Cache,
    objects: Rc<Vec<Digest>>,
}

fn refused(error: &outrider_cache::CacheError) -> BenchError {
    BenchError::Cache(error.to_string())
}

async fn open(
    context: &ShardContext,
    handle: &ShardHandle,
    config: &StoreConfig,
) -> Result<Store, BenchError> {
    let ssd = SsdConfig::new(&config.folder, store_bytes(config.size_bytes), STRIPES);
    let metrics = CacheMetrics::register(&mut prometheus_client::registry::Registry::default());
    let cache =
        Cache::open(CacheConfig::with_ssd(ARENA_BYTES, ssd), Some(handle.doorbell()), metrics)
            .map_err(|error| refused(&error))?;
    context.add_source(Box::new(Turn(cache.clone())));

    // Uploads are on the disk when they are finished; what is only cached might not be.
    let mut objects = Vec::new();
    for number in 0..(config.size_bytes / OBJECT_BYTES).max(1) {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&number.to_le_bytes());
        let mut upload = cache.upload(UploadId(id)).map_err(|error| refused(&error))?;
        let digest = Digest::sha256(&number.to_le_bytes());
        let mut chunk_bytes = random_bytes(number, CHUNK_BYTES as usize);
        for chunk in 0..OBJECT_BYTES / CHUNK_BYTES {
            chunk_bytes[..STAMP_BYTES].copy_from_slice(&stamp(number, chunk));
            upload.append(&chunk_bytes).await.map_err(|error| refused(&error))?;
        }
        let stored = upload.finish().await.map_err(|error| refused(&error))?;
        cache.host(stored, &digest, MEDIA_TYPE);
        objects.push(digest);
    }
    Ok(Store { cache, objects: Rc::new(objects) })
}

fn stamp(object: u64, chunk: u64) -> [u8; STAMP_BYTES] {
    let mut stamp = [0; STAMP_BYTES];
    stamp[..8].copy_from_slice(&object.to_le_bytes());
    stamp[8..].copy_from_slice(&chunk.to_le_bytes());
    stamp
}

struct Progress {
    result: ReadResult,
    running: u32,
    error: Option<BenchError>,
}

impl Progress {
    fn count(&mut self, tier: Tier, asked: Instant) {
        match tier {
            Tier::Ssd => {
                let reads = &mut self.result.reads;
                reads.count += 1;
                reads.bytes += RECORD_BYTES;
                reads.latency.record_ns(asked.elapsed().as_nanos() as u64);
            }
            _ => self.result.from_memory += 1,
        }
    }
}

async fn read(
    handle: &ShardHandle,
    store: &Store,
    depth: u32,
    duration: Duration,
    seed: u64,
) -> Result<ReadResult, BenchError> {
    let (start, cpu) = (Instant::now(), thread_cpu());
    let reads = Reads { count: 0, bytes: 0, seconds: 0.0, cpu_s: 0.0, latency: Latency::new() };
    let progress = Rc::new(RefCell::new(Progress {
        result: ReadResult { reads, from_memory: 0 },
        running: depth,
        error: None,
    }));
    let (done, all_done) = channel::oneshot(handle);
    let done = Rc::new(RefCell::new(Some(done)));
    for index in 0..depth {
        let (cache, objects) = (store.cache.clone(), Rc::clone(&store.objects));
        let (progress, done) = (Rc::clone(&progress), Rc::clone(&done));
        task::spawn(async move {
            let random = fastrand::Rng::with_seed(seed ^ u64::from(index) << 32);
            if let Err(error) = reader(&cache, &objects, &progress, start + duration, random).await
            {
                progress.borrow_mut().error = Some(error);
            }
            let running = {
                let mut progress = progress.borrow_mut();
                progress.running -= 1;
                progress.running
            };
            if running == 0
                && let Some(done) = done.borrow_mut().take()
            {
                done.complete(());
            }
        });
    }
    let _ = all_done.await;
    let seconds = start.elapsed().as_secs_f64();
    let cpu_s = thread_cpu().saturating_sub(cpu).as_secs_f64();
    let mut progress = progress.borrow_mut();
    if let Some(error) = progress.error.take() {
        return Err(error);
    }
    progress.result.reads.seconds = seconds;
    progress.result.reads.cpu_s = cpu_s;
    Ok(progress.result.clone())
}

async fn reader(
    cache: &Cache,
    objects: &[Digest],
    progress: &RefCell<Progress>,
    until: Instant,
    mut random: fastrand::Rng,
) -> Result<(), BenchError> {
    while Instant::now() < until {
        let number = random.usize(..objects.len());
        let chunk = random.u64(..OBJECT_BYTES / CHUNK_BYTES);
        let asked = Instant::now();
        let found = cache
            .read(&objects[number], u32::try_from(chunk).unwrap_or(u32::MAX))
            .await
            .map_err(|error| refused(&error))?
            .ok_or_else(|| BenchError::Cache("a stored chunk is missing".to_owned()))?;
        if found.bytes.len() as u64 != CHUNK_BYTES
            || !found.bytes.starts_with(&stamp(number as u64, chunk))
        {
            return Err(BenchError::Cache("the cache gave another chunk".to_owned()));
        }
        progress.borrow_mut().count(found.tier, asked);
        // What came from memory did not wait for anything.
        task::yield_if_needed().await;
    }
    Ok(())
}
