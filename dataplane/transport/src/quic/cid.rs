//! Connection IDs that say which shard they belong to.
//!
//! Eight bytes: the shard, four random ones, and a tag over both that only this process can make. The
//! first byte steers datagrams in the kernel (see [`super::steer`]); the tag tells an ID of another
//! shard from one that a client has made up, so that no shard answers for the connections of others. One
//! bit tells the IDs in Retry packets from those of connections: who sends to one has no connection yet.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use quinn_proto::{ConnectionId, ConnectionIdGenerator, InvalidCid};

/// The length of every ID that is made here, in bytes.
pub(crate) const CID_BYTES: usize = 8;

const NONCE: std::ops::Range<usize> = 1..5;

/// The bit of a Retry, in the first byte of the nonce.
const RETRY: u8 = 0x80;
const TAG: std::ops::Range<usize> = 5..CID_BYTES;

/// What the tags are made with: one for all shards of a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct CidKey(Arc<RandomState>);

impl CidKey {
    fn tag(&self, head: &[u8]) -> [u8; 3] {
        let hash = self.0.hash_one(head).to_le_bytes();
        [hash[0], hash[1], hash[2]]
    }

    /// The shard that has made this ID, if one of this process has. Costs a short hash.
    pub(crate) fn shard_of(&self, cid: &[u8]) -> Option<u8> {
        let ours = cid.len() == CID_BYTES && self.tag(&cid[..TAG.start]) == cid[TAG];
        ours.then(|| cid[0])
    }
}

/// Whether an ID that was made here was made for a Retry.
pub(crate) fn is_of_retry(cid: &[u8]) -> bool {
    cid.get(NONCE.start).is_some_and(|byte| byte & RETRY != 0)
}

/// What the IDs are made for that are made next: set while a Retry is.
#[derive(Clone, Debug, Default)]
pub(crate) struct ForRetry(Arc<AtomicBool>);

impl ForRetry {
    pub(crate) fn set(&self, retry: bool) {
        self.0.store(retry, Ordering::Relaxed);
    }
}

/// Makes the IDs of one shard, and knows them again.
#[derive(Debug)]
pub(crate) struct ShardCids {
    pub(crate) shard: u8,
    pub(crate) key: CidKey,
    pub(crate) for_retry: ForRetry,
}

impl ConnectionIdGenerator for ShardCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut cid = [0; CID_BYTES];
        cid[0] = self.shard;
        // Without randomness IDs would say who is who: better none at all.
        getrandom::fill(&mut cid[NONCE]).expect("the system has randomness");
        cid[NONCE.start] &= !RETRY;
        if self.for_retry.0.load(Ordering::Relaxed) {
            cid[NONCE.start] |= RETRY;
        }
        let tag = self.key.tag(&cid[..TAG.start]);
        cid[TAG].copy_from_slice(&tag);
        ConnectionId::new(&cid)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        match self.key.shard_of(cid) {
            Some(shard) if shard == self.shard => Ok(()),
            _ => Err(InvalidCid),
        }
    }

    fn cid_len(&self) -> usize {
        CID_BYTES
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// The destination ID of a datagram's first packet, where it could be one of ours: a long header may
/// have one of any length, a short header has what we have made. `None` for what is too short.
pub(crate) fn destination(datagram: &[u8]) -> Option<&[u8]> {
    /// Flags and version, then the length of the ID.
    const LENGTH_AT: usize = 5;
    if datagram.first()? & 0x80 == 0 {
        return datagram.get(1..1 + CID_BYTES);
    }
    let length = usize::from(*datagram.get(LENGTH_AT)?);
    datagram.get(LENGTH_AT + 1..LENGTH_AT + 1 + length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_knows_its_own_ids_and_refuses_those_of_others_and_made_up_ones() {
        let key = CidKey::default();
        let for_retry = ForRetry::default();
        let cids = |shard, key| ShardCids { shard, key, for_retry: for_retry.clone() };
        let [mut first, second] = [0, 1].map(|shard| cids(shard, key.clone()));
        let mut stranger = cids(0, CidKey::default());
        let mut foreign = 0;
        for n in 0..1000 {
            for_retry.set(n % 2 == 0);
            let cid = first.generate_cid();
            assert_eq!(is_of_retry(&cid), n % 2 == 0);
            assert!(first.validate(&cid).is_ok());
            assert!(second.validate(&cid).is_err());
            assert_eq!((cid[0], key.shard_of(&cid)), (0, Some(0)));
            foreign += usize::from(first.validate(&stranger.generate_cid()).is_ok());
        }
        assert!(foreign <= 1, "a tag of 24 bits is guessed {foreign} times in a thousand");
    }

    #[test]
    fn the_destination_is_found_in_long_and_short_headers() {
        let mut long = vec![0xc0, 0, 0, 0, 1, 9];
        long.extend(1..=20);
        assert_eq!(destination(&long), Some(&[1, 2, 3, 4, 5, 6, 7, 8, 9][..]));
        assert_eq!(destination(&long[..14]), None);
        let short = [0x40, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
        assert_eq!(destination(&short), Some(&[1, 2, 3, 4, 5, 6, 7, 8][..]));
        for length in 0..9 {
            assert_eq!(destination(&short[..length]), None);
        }
    }
}
