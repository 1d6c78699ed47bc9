//! openraft's own types as bytes, little-endian, for the log and the network. Lengths are bounded by what
//! there is to read, so that no hostile length allocates.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf, Bytes};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, VoteRequest, VoteResponse,
};
use openraft::{CommittedLeaderId, EntryPayload};

use crate::types::{
    Entry, LogId, Membership, Payload, Peer, SnapshotMeta, StoredMembership, Types, Vote,
};

/// Why bytes are not what they should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// There are fewer than their lengths say.
    #[error("the message is cut off")]
    Short,
    /// There are more than belong to it.
    #[error("something stands behind the message")]
    Rest,
    /// A mark that stands for nothing.
    #[error("{0} is unknown")]
    Mark(&'static str),
    /// A text that is not UTF-8.
    #[error("a text is not UTF-8")]
    Text,
}

/// Writes one message.
#[derive(Debug, Default)]
pub struct Put(pub Vec<u8>);

impl Put {
    /// One byte.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.0.push(value);
        self
    }

    /// A flag.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.u8(u8::from(value))
    }

    /// Four bytes.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Eight bytes.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.0.extend_from_slice(&value.to_le_bytes());
        self
    }

    /// Bytes behind their number, which is below 4 GiB.
    pub fn bytes(&mut self, value: &[u8]) -> &mut Self {
        self.count(value.len());
        self.0.extend_from_slice(value);
        self
    }

    fn count(&mut self, count: usize) -> &mut Self {
        // What is longer is cut off, which the reader notices; nothing here comes near.
        self.u32(u32::try_from(count).unwrap_or(u32::MAX))
    }

    fn some<T>(&mut self, value: Option<&T>, put: impl FnOnce(&mut Self, &T)) -> &mut Self {
        self.bool(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
        self
    }

    /// A log id.
    pub fn log_id(&mut self, id: &LogId) -> &mut Self {
        self.u64(id.leader_id.term).u64(id.leader_id.node_id).u64(id.index)
    }

    /// A log id or none.
    pub fn log_id_or_none(&mut self, id: Option<&LogId>) -> &mut Self {
        self.some(id, |put, id| _ = put.log_id(id))
    }

    /// A vote.
    pub fn vote(&mut self, vote: &Vote) -> &mut Self {
        self.u64(vote.leader_id.term).u64(vote.leader_id.node_id).bool(vote.committed)
    }

    /// A peer.
    pub fn peer(&mut self, peer: &Peer) -> &mut Self {
        self.bytes(peer.name.as_bytes());
        self.bytes(peer.address.as_bytes());
        self.bytes(peer.admin.as_bytes())
    }

    fn membership(&mut self, membership: &Membership) -> &mut Self {
        let configs = membership.get_joint_config();
        self.count(configs.len());
        for config in configs {
            self.count(config.len());
            config.iter().for_each(|id| _ = self.u64(*id));
        }
        self.count(membership.nodes().count());
        for (id, peer) in membership.nodes() {
            self.u64(*id).peer(peer);
        }
        self
    }

    /// What a snapshot is of.
    pub fn meta(&mut self, meta: &SnapshotMeta) -> &mut Self {
        self.log_id_or_none(meta.last_log_id.as_ref());
        self.log_id_or_none(meta.last_membership.log_id().as_ref());
        self.membership(meta.last_membership.membership());
        self.bytes(meta.snapshot_id.as_bytes())
    }

    /// A log entry.
    pub fn entry(&mut self, entry: &Entry) -> &mut Self {
        self.log_id(&entry.log_id);
        match &entry.payload {
            EntryPayload::Blank => self.u8(0),
            EntryPayload::Normal(payload) => self.u8(1).bytes(&payload.0),
            EntryPayload::Membership(membership) => self.u8(2).membership(membership),
        }
    }

    /// Entries, or a heartbeat.
    pub fn append(&mut self, request: &AppendEntriesRequest<Types>) -> &mut Self {
        self.vote(&request.vote);
        self.log_id_or_none(request.prev_log_id.as_ref());
        self.log_id_or_none(request.leader_commit.as_ref());
        self.count(request.entries.len());
        request.entries.iter().for_each(|entry| _ = self.entry(entry));
        self
    }

    /// The answer to it.
    pub fn appended(&mut self, response: &AppendEntriesResponse<u64>) -> &mut Self {
        match response {
            AppendEntriesResponse::Success => self.u8(0),
            AppendEntriesResponse::PartialSuccess(id) => self.u8(1).log_id_or_none(id.as_ref()),
            AppendEntriesResponse::Conflict => self.u8(2),
            AppendEntriesResponse::HigherVote(vote) => self.u8(3).vote(vote),
        }
    }

    /// A request for a vote.
    pub fn vote_request(&mut self, request: &VoteRequest<u64>) -> &mut Self {
        self.vote(&request.vote).log_id_or_none(request.last_log_id.as_ref())
    }

    /// The answer to it.
    pub fn vote_response(&mut self, response: &VoteResponse<u64>) -> &mut Self {
        self.vote(&response.vote).bool(response.vote_granted);
        self.log_id_or_none(response.last_log_id.as_ref())
    }

    /// A part of a snapshot.
    pub fn snapshot(&mut self, request: &InstallSnapshotRequest<Types>) -> &mut Self {
        self.vote(&request.vote).meta(&request.meta);
        self.u64(request.offset).bool(request.done).bytes(&request.data)
    }
}

/// Reads one message. What it gives shares the bytes.
#[derive(Debug)]
pub struct Take(Bytes);

impl Take {
    /// Reads from these.
    pub fn new(bytes: Bytes) -> Self {
        Self(bytes)
    }

    /// Nothing may be left.
    ///
    /// # Errors
    /// [`CodecError::Rest`]
    pub fn end(self) -> Result<(), CodecError> {
        if self.0.is_empty() { Ok(()) } else { Err(CodecError::Rest) }
    }

    /// One byte.
    ///
    /// # Errors
    /// [`CodecError::Short`], as for all that follow.
    pub fn u8(&mut self) -> Result<u8, CodecError> {
        self.0.try_get_u8().map_err(|_| CodecError::Short)
    }

    /// A flag.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn bool(&mut self) -> Result<bool, CodecError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(CodecError::Mark("a flag")),
        }
    }

    /// Four bytes.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn u32(&mut self) -> Result<u32, CodecError> {
        self.0.try_get_u32_le().map_err(|_| CodecError::Short)
    }

    /// Eight bytes.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn u64(&mut self) -> Result<u64, CodecError> {
        self.0.try_get_u64_le().map_err(|_| CodecError::Short)
    }

    /// Bytes behind their number.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn bytes(&mut self) -> Result<Bytes, CodecError> {
        let length = self.u32()? as usize;
        if length > self.0.len() {
            return Err(CodecError::Short);
        }
        Ok(self.0.split_to(length))
    }

    /// A text.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn text(&mut self) -> Result<String, CodecError> {
        String::from_utf8(self.bytes()?.to_vec()).map_err(|_| CodecError::Text)
    }

    /// How many things of at least so many bytes follow.
    fn count(&mut self, bytes_min: usize) -> Result<usize, CodecError> {
        let count = self.u32()? as usize;
        if count.saturating_mul(bytes_min) > self.0.len() {
            Err(CodecError::Short)
        } else {
            Ok(count)
        }
    }

    fn some<T>(
        &mut self,
        take: impl FnOnce(&mut Self) -> Result<T, CodecError>,
    ) -> Result<Option<T>, CodecError> {
        if self.bool()? { take(self).map(Some) } else { Ok(None) }
    }

    /// A log id.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn log_id(&mut self) -> Result<LogId, CodecError> {
        let leader = CommittedLeaderId::new(self.u64()?, self.u64()?);
        Ok(LogId::new(leader, self.u64()?))
    }

    /// A log id or none.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn log_id_or_none(&mut self) -> Result<Option<LogId>, CodecError> {
        self.some(Self::log_id)
    }

    /// A vote.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn vote(&mut self) -> Result<Vote, CodecError> {
        let mut vote = Vote::new(self.u64()?, self.u64()?);
        vote.committed = self.bool()?;
        Ok(vote)
    }

    /// A peer.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn peer(&mut self) -> Result<Peer, CodecError> {
        Ok(Peer { name: self.text()?, address: self.text()?, admin: self.text()? })
    }

    fn membership(&mut self) -> Result<Membership, CodecError> {
        let mut configs = Vec::new();
        for _ in 0..self.count(4)? {
            let config: Result<BTreeSet<u64>, _> =
                (0..self.count(8)?).map(|_| self.u64()).collect();
            configs.push(config?);
        }
        let mut nodes = BTreeMap::new();
        for _ in 0..self.count(20)? {
            nodes.insert(self.u64()?, self.peer()?);
        }
        Ok(Membership::new(configs, nodes))
    }

    /// What a snapshot is of.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn meta(&mut self) -> Result<SnapshotMeta, CodecError> {
        let last_log_id = self.log_id_or_none()?;
        let last_membership = StoredMembership::new(self.log_id_or_none()?, self.membership()?);
        Ok(SnapshotMeta { last_log_id, last_membership, snapshot_id: self.text()? })
    }

    /// A log entry.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn entry(&mut self) -> Result<Entry, CodecError> {
        let log_id = self.log_id()?;
        let payload = match self.u8()? {
            0 => EntryPayload::Blank,
            1 => EntryPayload::Normal(Payload(self.bytes()?)),
            2 => EntryPayload::Membership(self.membership()?),
            _ => return Err(CodecError::Mark("the kind of an entry")),
        };
        Ok(Entry { log_id, payload })
    }

    /// Entries, or a heartbeat.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn append(&mut self) -> Result<AppendEntriesRequest<Types>, CodecError> {
        let vote = self.vote()?;
        let prev_log_id = self.log_id_or_none()?;
        let leader_commit = self.log_id_or_none()?;
        let entries: Result<Vec<Entry>, _> = (0..self.count(25)?).map(|_| self.entry()).collect();
        Ok(AppendEntriesRequest { vote, prev_log_id, entries: entries?, leader_commit })
    }

    /// The answer to it.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn appended(&mut self) -> Result<AppendEntriesResponse<u64>, CodecError> {
        Ok(match self.u8()? {
            0 => AppendEntriesResponse::Success,
            1 => AppendEntriesResponse::PartialSuccess(self.log_id_or_none()?),
            2 => AppendEntriesResponse::Conflict,
            3 => AppendEntriesResponse::HigherVote(self.vote()?),
            _ => return Err(CodecError::Mark("the kind of an answer")),
        })
    }

    /// A request for a vote.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn vote_request(&mut self) -> Result<VoteRequest<u64>, CodecError> {
        Ok(VoteRequest { vote: self.vote()?, last_log_id: self.log_id_or_none()? })
    }

    /// The answer to it.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn vote_response(&mut self) -> Result<VoteResponse<u64>, CodecError> {
        let (vote, vote_granted) = (self.vote()?, self.bool()?);
        Ok(VoteResponse { vote, vote_granted, last_log_id: self.log_id_or_none()? })
    }

    /// A part of a snapshot.
    ///
    /// # Errors
    /// [`CodecError`]
    pub fn snapshot(&mut self) -> Result<InstallSnapshotRequest<Types>, CodecError> {
        let (vote, meta) = (self.vote()?, self.meta()?);
        let (offset, done) = (self.u64()?, self.bool()?);
        Ok(InstallSnapshotRequest { vote, meta, offset, data: self.bytes()?.to_vec(), done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries() -> Vec<Entry> {
        let id = |index| LogId::new(CommittedLeaderId::new(3, 2), index);
        let peer = |n: u64| Peer {
            name: format!("n{n}"),
            address: format!("10.0.0.{n}:9191"),
            admin: String::new(),
        };
        let nodes: BTreeMap<u64, Peer> = [(1, peer(1)), (2, peer(2))].into();
        let membership = Membership::new(vec![[1].into(), [1, 2].into()], nodes);
        vec![
            Entry { log_id: id(7), payload: EntryPayload::Blank },
            Entry {
                log_id: id(8),
                payload: EntryPayload::Normal(Payload(Bytes::from_static(b"x"))),
            },
            Entry { log_id: id(9), payload: EntryPayload::Membership(membership) },
        ]
    }

    fn request() -> AppendEntriesRequest<Types> {
        AppendEntriesRequest {
            vote: Vote::new_committed(3, 2),
            prev_log_id: None,
            leader_commit: Some(entries()[0].log_id),
            entries: entries(),
        }
    }

    #[test]
    fn a_message_is_read_as_it_was_written_and_not_when_it_is_cut_off() {
        let mut put = Put::default();
        put.append(&request());
        let bytes = Bytes::from(put.0);
        let mut take = Take::new(bytes.clone());
        let read = take.append().unwrap();
        take.end().unwrap();
        assert_eq!(format!("{read:?}"), format!("{:?}", request()));
        for length in 0..bytes.len() {
            let mut take = Take::new(bytes.slice(..length));
            assert_eq!(take.append().unwrap_err(), CodecError::Short, "{length}");
        }
    }

    #[test]
    fn a_hostile_length_allocates_nothing() {
        let mut put = Put::default();
        put.vote(&Vote::new(1, 1)).bool(false).bool(false).u32(u32::MAX);
        assert_eq!(Take::new(put.0.into()).append().unwrap_err(), CodecError::Short);
    }
}
