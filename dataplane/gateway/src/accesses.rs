//! What was asked for and answered, until somebody takes it: a ring of bytes for each shard, written by the requests of
//! that shard alone, so without lock and without allocation. When it is full the oldest go first, and are counted.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use outrider_artifact::event::{AccessEvent, AccessTier};
use outrider_artifact::{Algorithm, Digest, RepositoryName};
use outrider_metrics::Counter;
use prometheus_client::encoding::EncodeLabelSet;

use crate::access::asker::Asker;
use crate::gateway::unix_ms;
use crate::metrics::GatewayMetrics;
use crate::protocol::{Operation, header};
use crate::uploads::ANONYMOUS;

/// The longest record: its numbers, the longest digest, the longest customer and image.
const RECORD_BYTES_MAX: usize = HEAD_BYTES + 64 + 255 + 255;
/// Length of the record (u16), milliseconds, microseconds, bytes (u64 each), status (u16), tier, algorithm, and the
/// length of the customer (u8 each).
const HEAD_BYTES: usize = 2 + 3 * 8 + 2 + 3;

/// Why an access is not told of.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct DropLabels {
    /// `ring` (nobody took it in time) or `long` (it does not fit into a record).
    pub reason: &'static str,
}

/// The accesses of one shard.
pub struct Accesses {
    ring: RefCell<VecDeque<u8>>,
    bytes_max: usize,
    waiting: Cell<u64>,
    counted: Counter,
    ring_full: Counter,
    too_long: Counter,
}

/// One access, all of it that is not the same for the whole edge.
pub(crate) struct Access<'a> {
    pub(crate) customer: &'a str,
    pub(crate) image: &'a str,
    pub(crate) digest: &'a Digest,
    pub(crate) unix_ms: u64,
    pub(crate) tier: AccessTier,
    pub(crate) status: u16,
    pub(crate) bytes: u64,
    pub(crate) latency_us: u64,
}

impl Accesses {
    /// With room for so many bytes, which are allocated here.
    pub(crate) fn new(bytes_max: usize, metrics: &GatewayMetrics) -> Self {
        let dropped = |reason| metrics.accesses_dropped.get_or_create_owned(&DropLabels { reason });
        Self {
            ring: RefCell::new(VecDeque::with_capacity(bytes_max)),
            bytes_max,
            waiting: Cell::new(0),
            counted: metrics.accesses.clone(),
            ring_full: dropped("ring"),
            too_long: dropped("long"),
        }
    }

    /// Notes an access. Copies at most some 600 bytes.
    pub(crate) fn note(&self, access: &Access<'_>) {
        let Access { customer, image, digest, .. } = access;
        let length = HEAD_BYTES + digest.value().len() + customer.len() + image.len();
        let (Ok(customer_length), true) =
            (u8::try_from(customer.len()), length <= RECORD_BYTES_MAX.min(self.bytes_max))
        else {
            self.too_long.inc();
            return;
        };
        // The longest record fits into 16 bits.
        let [low, high, ..] = length.to_le_bytes();
        let mut ring = self.ring.borrow_mut();
        let mut dropped = 0;
        while ring.len() + length > self.bytes_max {
            drop_first(&mut ring);
            dropped += 1;
        }
        ring.extend([low, high]);
        for number in [access.unix_ms, access.latency_us, access.bytes] {
            ring.extend(number.to_le_bytes());
        }
        ring.extend(access.status.to_le_bytes());
        ring.extend([access.tier as u8, digest.algorithm() as u8, customer_length]);
        ring.extend(digest.value());
        ring.extend(customer.as_bytes());
        ring.extend(image.as_bytes());
        self.counted.inc();
        self.waiting.set(self.waiting.get() + 1 - dropped);
        if dropped > 0 {
            self.ring_full.inc_by(dropped);
        }
    }

    /// How many wait.
    pub fn waiting(&self) -> u64 {
        self.waiting.get()
    }

    /// Takes the oldest, up to so many bytes; nothing when there are none. Allocates once.
    pub fn take(&self, bytes_max: usize) -> Option<Taken> {
        let mut ring = self.ring.borrow_mut();
        let (mut end, mut count) = (0, 0);
        while let Some(length) = length_at(&ring, end) {
            if end + length > bytes_max && end > 0 {
                break;
            }
            end += length;
            count += 1;
        }
        if count == 0 {
            return None;
        }
        let (first, second) = ring.as_slices();
        let from_first = end.min(first.len());
        let mut bytes = Vec::with_capacity(end);
        bytes.extend_from_slice(&first[..from_first]);
        bytes.extend_from_slice(&second[..end - from_first]);
        ring.drain(..end);
        self.waiting.set(self.waiting.get() - count);
        Some(Taken(bytes.into()))
    }
}

fn length_at(ring: &VecDeque<u8>, at: usize) -> Option<usize> {
    Some(usize::from(u16::from_le_bytes([*ring.get(at)?, *ring.get(at + 1)?])))
}

fn drop_first(ring: &mut VecDeque<u8>) {
    let length = length_at(ring, 0).unwrap_or(ring.len());
    ring.drain(..length);
}

/// Accesses that were taken out of a ring, as they lay there.
#[derive(Debug)]
pub struct Taken(Bytes);

impl Taken {
    /// The events. Each is made when it is asked for, and allocates.
    pub fn events(self, region: std::sync::Arc<str>) -> impl Iterator<Item = AccessEvent> + Send {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_le_bytes([*rest.first()?, *rest.get(1)?]));
            let record = rest.split_to(length.min(rest.len()));
            read(&record, &region)
        })
    }
}

fn read(record: &[u8], region: &str) -> Option<AccessEvent> {
    let number = |at: usize| Some(u64::from_le_bytes(record.get(at..at + 8)?.try_into().ok()?));
    let status = u16::from_le_bytes(record.get(26..28)?.try_into().ok()?);
    let &[tier, algorithm, customer_length] = record.get(28..HEAD_BYTES)? else { return None };
    let tier = [AccessTier::Ram, AccessTier::Ssd, AccessTier::Origin]
        .into_iter()
        .find(|known| *known as u8 == tier)?;
    let algorithm = [Algorithm::Sha256, Algorithm::Sha512]
        .into_iter()
        .find(|known| *known as u8 == algorithm)?;
    let (digest, names) = record[HEAD_BYTES..].split_at_checked(algorithm.bytes())?;
    let (customer, image) = names.split_at_checked(usize::from(customer_length))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some(AccessEvent {
        customer: text(customer),
        region: region.to_owned(),
        image: text(image),
        digest: Digest::from_value(algorithm, digest).ok()?.to_string(),
        unix_ms: number(2)?,
        tier,
        status,
        bytes: number(18)?,
        latency_us: number(10)?,
    })
}

/// Who asks for which content, from the head of a request on.
pub(crate) struct Asked {
    started: Instant,
    unix_ms: u64,
    customer: Option<String>,
    image: Option<RepositoryName>,
    digest: Option<Digest>,
}

impl Asked {
    /// Of an operation that reads a content.
    pub(crate) fn by(operation: &Operation, asker: &Asker) -> Option<Self> {
        let (customer, image, digest) = match operation {
            Operation::BlobRead { name, digest, .. } => (None, Some(name), Some(*digest)),
            Operation::ManifestRead { name, .. } => (None, Some(name), None),
            Operation::LayerRequest { digest, customer, image, .. } => {
                (customer.clone(), image.as_ref(), Some(*digest))
            }
            _ => return None,
        };
        let (started, unix_ms) = (Instant::now(), unix_ms());
        // Who is asked who they are speaks for themselves alone.
        let customer =
            if asker.is_asked() { asker.customer.as_deref().map(Into::into) } else { customer };
        Some(Self { started, unix_ms, customer, image: image.cloned(), digest })
    }

    /// What is noted at the end of an answer with this head; nothing for errors.
    pub(crate) fn answered(
        self,
        status: StatusCode,
        headers: &HeaderMap,
        accesses: &Rc<Accesses>,
    ) -> Option<Box<Answered>> {
        if status.is_client_error() || status.is_server_error() {
            return None;
        }
        let said = || headers.get(header::DOCKER_CONTENT_DIGEST)?.to_str().ok()?.parse().ok();
        let digest = self.digest.or_else(said)?;
        let tier = tier_of(headers);
        let accesses = Rc::clone(accesses);
        let status = status.as_u16();
        Some(Box::new(Answered { asked: self, digest, tier, status, bytes: 0, accesses }))
    }
}

/// As the answer's `Cache-Status` has it.
fn tier_of(headers: &HeaderMap) -> AccessTier {
    let text = headers.get(header::CACHE_STATUS).map_or(&b""[..], |value| value.as_bytes());
    let has = |part: &[u8]| text.windows(part.len()).any(|window| window == part);
    match () {
        () if has(b"; fwd=") => AccessTier::Origin,
        () if has(b"; detail=ssd") => AccessTier::Ssd,
        () => AccessTier::Ram,
    }
}

/// An answer on its way to the client. Noted when it is dropped, so with its body.
pub(crate) struct Answered {
    asked: Asked,
    digest: Digest,
    tier: AccessTier,
    status: u16,
    pub(crate) bytes: u64,
    accesses: Rc<Accesses>,
}

impl Drop for Answered {
    fn drop(&mut self) {
        let Asked { started, unix_ms, customer, image, .. } = &self.asked;
        self.accesses.note(&Access {
            customer: customer.as_deref().unwrap_or(ANONYMOUS),
            image: image.as_deref().unwrap_or_default(),
            digest: &self.digest,
            unix_ms: *unix_ms,
            tier: self.tier,
            status: self.status,
            bytes: self.bytes,
            latency_us: u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(accesses: &Accesses, number: u64, image: &str) {
        accesses.note(&Access {
            customer: "anonymous",
            image,
            digest: &Digest::sha256(&number.to_le_bytes()),
            unix_ms: number,
            tier: AccessTier::Ssd,
            status: 206,
            bytes: number * 2,
            latency_us: number * 3,
        });
    }

    fn all(accesses: &Accesses, bytes_max: usize) -> Vec<AccessEvent> {
        let taken = std::iter::from_fn(|| accesses.take(bytes_max));
        taken.flat_map(|taken| taken.events("r".into())).collect()
    }

    #[test]
    fn accesses_come_out_as_they_went_in_however_the_ring_lies() {
        let metrics = GatewayMetrics::default();
        let accesses = Accesses::new(1_000, &metrics);
        for number in 0..1_000 {
            note(&accesses, number, &"i".repeat((number % 200) as usize));
            if number % 3 == 2 {
                let events = all(&accesses, 100);
                assert_eq!(events.len(), 3);
                for (event, number) in events.iter().zip(number - 2..) {
                    assert_eq!(event.image.len() as u64, number % 200);
                    let numbers = (event.unix_ms, event.bytes, event.latency_us, event.status);
                    assert_eq!(numbers, (number, number * 2, number * 3, 206));
                    let digest = Digest::sha256(&number.to_le_bytes()).to_string();
                    assert_eq!((&event.digest, event.tier), (&digest, AccessTier::Ssd));
                    assert_eq!((&*event.customer, &*event.region), ("anonymous", "r"));
                }
            }
        }
        assert_eq!(accesses.waiting(), 1);
    }

    #[test]
    fn the_oldest_go_first_and_are_counted_and_the_memory_stays() {
        let metrics = GatewayMetrics::default();
        let accesses = Accesses::new(1_000, &metrics);
        let capacity = accesses.ring.borrow().capacity();
        for number in 0..100 {
            note(&accesses, number, "library/alpine");
        }
        let waiting = accesses.waiting();
        let dropped = DropLabels { reason: "ring" };
        assert_eq!(metrics.accesses_dropped.get_or_create_owned(&dropped).get(), 100 - waiting);
        let events = all(&accesses, usize::MAX);
        assert_eq!(
            events.iter().map(|e| e.unix_ms).collect::<Vec<_>>(),
            (100 - waiting..100).collect::<Vec<_>>()
        );
        assert_eq!(accesses.ring.borrow().capacity(), capacity);
        note(&accesses, 1, &"i".repeat(600));
        assert!(accesses.take(10).is_none());
        let long = DropLabels { reason: "long" };
        assert_eq!(metrics.accesses_dropped.get_or_create_owned(&long).get(), 1);
    }
}
