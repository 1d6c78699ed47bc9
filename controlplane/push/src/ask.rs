//! What an edge wants to have written, and what came of it. Each stands on a stream of its own beside the push
//! stream, and may be asked again, at any node, until its outcome is known: its number makes that safe.

// rkyv's derive makes structs of the variants, whose fields have no documentation.
#![allow(missing_docs)]

use outrider_state::record::{Kind, RecordError, decode, encode};
use outrider_state::request::{Expect, TagRecord};
use outrider_state::{Operation, Outcome, Request, RequestId};
use rkyv::{Archive, Deserialize, Serialize};

/// The largest of either, as a record.
pub const ASK_BYTES_MAX: usize = 16 << 10;

/// What an edge may want.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Wish {
    /// That a tag stands for something else, or for nothing.
    Tag {
        /// The repository.
        repository: String,
        /// The tag.
        tag: String,
        /// What must hold of the tag's version.
        expect: Expect,
        /// What it stands for from then on. It names the edge that asks among its holders.
        record: Option<TagRecord>,
    },
    /// That others know where it is reached, and its tokens.
    Announce {
        /// `HOST:PORT`, or empty for nowhere.
        address: String,
        /// The public key (Ed25519) of its tokens.
        token_key: Option<[u8; 32]>,
    },
    /// A new certificate of the key that it joined with. Nothing is written, and asking again gives another one.
    Renew {
        /// The key: SubjectPublicKeyInfo, DER.
        public_key: Vec<u8>,
    },
}

/// What is asked.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Ask {
    /// Random, made once for each process.
    pub client: [u8; 8],
    /// The number of the wish: one that comes again is granted once.
    pub sequence: u64,
    /// The edge will not ask again for any below this number.
    pub settled: u64,
    /// The wish.
    pub wish: Wish,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub enum Reply {
    /// It is committed; what it wrote has this version, or 0 when nothing had to be written.
    Done {
        /// The version.
        version: u64,
    },
    /// What must hold does not.
    Mismatch {
        /// The version that there is, 0 for none.
        current: u64,
    },
    /// It will not be done, however often it is asked.
    Refused(String),
    /// It may be done later, and was perhaps done.
    Unavailable(String),
    /// A certificate, PEM.
    Certificate(String),
}

impl Ask {
    /// The request of this edge.
    ///
    /// # Errors
    /// Why an edge may not have that.
    pub fn into_request(self, edge: u64) -> Result<Request, String> {
        let operation = match self.wish {
            Wish::Tag { repository, tag, expect, record } => {
                if record.as_ref().is_some_and(|record| !record.holders.contains(&edge)) {
                    return Err("an edge that sets a tag holds what it stands for".to_owned());
                }
                Operation::Tag { repository, tag, expect, record }
            }
            Wish::Announce { address, token_key } => {
                Operation::Announce { member: edge, address, token_key }
            }
            Wish::Renew { .. } => return Err("a certificate is not written".to_owned()),
        };
        // No edge speaks for another.
        let mut client = [0; 16];
        client[..8].copy_from_slice(&edge.to_le_bytes());
        client[8..].copy_from_slice(&self.client);
        let (sequence, settled) = (self.sequence, self.settled);
        let request = Request { id: RequestId::Session { client, sequence, settled }, operation };
        request.check().map_err(|error| error.to_string())?;
        Ok(request)
    }

    /// As a record. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        encode(Kind::Ask, self)
    }

    /// Reads a record of at most [`ASK_BYTES_MAX`].
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        decode(Kind::Ask, bytes)
    }
}

impl Reply {
    /// What an outcome is to an edge.
    pub fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Done { version } => Self::Done { version: *version },
            Outcome::Mismatch { current, .. } => Self::Mismatch { current: *current },
            Outcome::Full => Self::Refused("the state of the cluster is full".to_owned()),
            Outcome::NoMember => Self::Refused("this edge is not a member".to_owned()),
            Outcome::Settled => Self::Refused("it was settled before".to_owned()),
            Outcome::Reused | Outcome::Joined { .. } | Outcome::NoToken => {
                Self::Refused("the cluster answers something else".to_owned())
            }
        }
    }

    /// As a record. Allocates.
    ///
    /// # Errors
    /// As [`encode`].
    pub fn to_record(&self) -> Result<Vec<u8>, RecordError> {
        encode(Kind::Reply, self)
    }

    /// Reads a record of at most [`ASK_BYTES_MAX`].
    ///
    /// # Errors
    /// [`RecordError`]
    pub fn from_record(bytes: &[u8]) -> Result<Self, RecordError> {
        decode(Kind::Reply, bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(holders: &[u64]) -> Ask {
        let record = TagRecord {
            digest: "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
                .to_owned(),
            size_bytes: 0,
            media_type: String::new(),
            holders: holders.to_vec(),
            upstream: None,
        };
        let wish = Wish::Tag {
            repository: "app".to_owned(),
            tag: "v1".to_owned(),
            expect: Expect::Absent,
            record: Some(record),
        };
        Ask { client: [7; 8], sequence: 3, settled: 2, wish }
    }

    #[test]
    fn an_edge_asks_for_itself_and_within_the_bounds_of_requests() {
        let request = tag(&[4, 5]).into_request(4).unwrap();
        let RequestId::Session { client, sequence: 3, settled: 2 } = request.id else { panic!() };
        assert_eq!(client, [4, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7, 7, 7, 7, 7, 7]);
        assert!(tag(&[5]).into_request(4).unwrap_err().contains("holds"));
        let many: Vec<u64> = (1..=17).collect();
        assert!(tag(&many).into_request(4).unwrap_err().contains("holders"));
        let wish = Wish::Announce { address: "x".repeat(260), token_key: None };
        assert!(Ask { wish, ..tag(&[]) }.into_request(4).unwrap_err().contains("address"));
        let (address, token_key) = ("e:1".to_owned(), Some([7; 32]));
        let wish = Wish::Announce { address: address.clone(), token_key };
        let request = Ask { wish, ..tag(&[]) }.into_request(9).unwrap();
        assert_eq!(request.operation, Operation::Announce { member: 9, address, token_key });
    }

    #[test]
    fn both_are_read_as_they_were_written_and_nothing_else_is() {
        let ask = tag(&[4]);
        let record = ask.to_record().unwrap();
        assert_eq!(Ask::from_record(&record).unwrap(), ask);
        assert!(Reply::from_record(&record).is_err());
        for end in 0..record.len() {
            assert!(Ask::from_record(&record[..end]).is_err());
        }
        for reply in [Reply::Done { version: 7 }, Reply::Unavailable("later".to_owned())] {
            assert_eq!(Reply::from_record(&reply.to_record().unwrap()).unwrap(), reply);
        }
    }
}
