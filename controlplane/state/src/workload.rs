//! Seeded random batches for simulations and property tests: few keys, so that conditions meet and fail,
//! and requests that come twice. The same seed gives the same batches.

use crate::events::EventRecord;
use crate::members::Role;
use crate::request::{
    Batch, Customer, Expect, Invalidation, Operation, Placement, Request, RequestId, TagRecord,
    Weights, Write,
};

/// Makes batches.
#[derive(Debug)]
pub struct Workload {
    random: fastrand::Rng,
    time_ms: u64,
    sequence: u64,
    /// Requests that may come again.
    recent: Vec<Request>,
}

impl Workload {
    /// One that is decided by this seed.
    pub fn new(seed: u64) -> Self {
        let random = fastrand::Rng::with_seed(seed);
        Self { random, time_ms: 0, sequence: 0, recent: Vec::new() }
    }

    /// The next log entry, of 0 to 6 requests.
    pub fn batch(&mut self) -> Batch {
        self.time_ms += self.random.u64(0..5_000);
        if self.random.u8(0..30) == 0 {
            // Tags of upstreams that nobody confirms go after thirty days.
            self.time_ms += self.random.u64(0..40 * 24 * 3_600 * 1_000);
        }
        let requests = (0..self.random.usize(0..7)).map(|_| self.request()).collect();
        Batch { time_ms: self.time_ms, requests }
    }

    /// The next request. One in five is one that came before.
    pub fn request(&mut self) -> Request {
        if !self.recent.is_empty() && self.random.u8(0..5) == 0 {
            return self.recent[self.random.usize(0..self.recent.len())].clone();
        }
        let id = match self.random.u8(0..4) {
            0 => RequestId::None,
            1 => RequestId::Key {
                scope: "s".to_owned(),
                key: format!("k{}", self.random.u16(0..300)),
            },
            _ => {
                self.sequence += 1;
                let settled = self.sequence.saturating_sub(self.random.u64(0..40));
                RequestId::Session {
                    client: [self.random.u8(0..3); 16],
                    sequence: self.sequence,
                    settled,
                }
            }
        };
        let request = Request { id, operation: self.operation() };
        if self.recent.len() < 64 {
            self.recent.push(request.clone());
        } else {
            let place = self.random.usize(0..self.recent.len());
            self.recent[place] = request.clone();
        }
        request
    }

    /// A random operation, within all bounds.
    pub fn operation(&mut self) -> Operation {
        match self.random.u8(0..22) {
            20 => {
                let through = self.random.u64(1..9);
                let record = vec![self.random.u8(..); self.random.usize(1..40)];
                let (edge, epoch) = (self.random.u64(1..4), self.random.u64(1..3));
                Operation::Events(vec![EventRecord { edge, epoch, through, record }])
            }
            21 => Operation::Placement {
                prefix: ["", "library", "library/r1"][self.random.usize(0..3)].to_owned(),
                placement: self.random.bool().then(|| Placement {
                    replicas: self.random.u8(1..6),
                    regions: (0..self.random.u8(0..3)).map(|n| format!("r{n}")).collect(),
                }),
            },
            0 => Operation::Invalidate(match self.random.u8(0..4) {
                0 => Invalidation::Repository(self.repository()),
                _ => Invalidation::Digest(self.digest()),
            }),
            1 => Operation::Customer {
                name: format!("c{}", self.random.u8(0..4)),
                customer: self.random.bool().then(|| Customer {
                    class: f64::from(self.random.u8(0..9)),
                    guaranteed_bytes: self.random.u64(..),
                    stored_bytes_max: 0,
                    requests_per_second_max: 0,
                    content_ttl_s: self.random.u32(..1_000),
                }),
            },
            2 => Operation::Weights(Weights { depth: self.random.f64(), ..Weights::default() }),
            3 => Operation::IssueToken {
                secret_sha256: [self.random.u8(0..5); 32],
                role: if self.random.bool() { Role::Node } else { Role::Edge },
                region: "local".to_owned(),
                ttl_ms: self.random.u64(1..200_000),
            },
            4 => Operation::SpendToken {
                secret_sha256: [self.random.u8(0..5); 32],
                key_sha256: [self.random.u8(0..3); 32],
                name: "m".to_owned(),
            },
            5 if self.random.bool() => Operation::Announce {
                member: self.random.u64(0..4),
                address: format!("e{}:8443", self.random.u8(0..3)),
                token_key: self.random.bool().then(|| [self.random.u8(0..3); 32]),
            },
            5 => Operation::Revoke { member: self.random.u64(0..4) },
            6..=8 => Operation::Tag {
                repository: self.repository(),
                tag: format!("t{}", self.random.u8(0..3)),
                expect: self.expect(),
                record: (self.random.u8(0..4) > 0).then(|| self.tag_record()),
            },
            9..=11 => {
                let count = self.random.usize(1..4);
                // Different keys: each has a range of its own.
                let keys = (0..count).map(|n| format!("batch/{}", n * 4 + self.random.usize(0..4)));
                let keys: Vec<String> = keys.collect();
                Operation::Batch(keys.into_iter().map(|key| self.write(key)).collect())
            }
            _ => {
                let key = format!("key/{}", self.random.u8(0..12));
                Operation::Write(self.write(key))
            }
        }
    }

    fn write(&mut self, key: String) -> Write {
        let expect = self.expect();
        match self.random.u8(0..8) {
            0 => Write::Check { key, expect },
            1 | 2 => Write::Delete { key, expect },
            _ => {
                let length = self.random.usize(0..40);
                let value = (0..length).map(|_| self.random.u8(..)).collect();
                Write::Put { key, value, expect }
            }
        }
    }

    fn expect(&mut self) -> Expect {
        match self.random.u8(0..8) {
            0 => Expect::Absent,
            1 => Expect::Present,
            2 => Expect::Version(self.random.u64(0..60)),
            _ => Expect::Any,
        }
    }

    fn repository(&mut self) -> String {
        format!("library/r{}", self.random.u8(0..3))
    }

    fn digest(&mut self) -> String {
        outrider_artifact::Digest::sha256(&[self.random.u8(0..6)]).to_string()
    }

    fn tag_record(&mut self) -> TagRecord {
        TagRecord {
            digest: self.digest(),
            size_bytes: 7,
            media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
            holders: vec![self.random.u64(1..9)],
            upstream: self.random.bool().then(|| "ghcr.io".to_owned()),
        }
    }
}
