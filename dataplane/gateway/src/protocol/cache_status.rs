//! The `Cache-Status` header (RFC 9211): which tier answered, whether the upstream was asked, and,
//! as a parameter of our own, whether the bytes were verified.
//!
//! Parameters stand in the order of the RFC. `verified` is always written with its value, `?1` or
//! `?0`, which every parser of structured fields takes and which can be searched for.

use std::fmt::Write as _;

use http::HeaderValue;

/// The name by which this cache calls itself.
pub const CACHE_NAME: &str = "outrider";

/// Where the bytes came from, or why they are as they are: the parameter `detail`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Detail {
    /// Memory.
    Ram,
    /// The SSD stripes.
    Ssd,
    /// The HDD stripes.
    Hdd,
    /// Pushed here.
    Hosted,
    /// Older than it should be, since the upstream cannot be asked.
    Stale,
    /// The upstream failed.
    UpstreamFailed,
    /// Every slot of memory is in use.
    Busy,
}

impl Detail {
    /// The token in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ram => "ram",
            Self::Ssd => "ssd",
            Self::Hdd => "hdd",
            Self::Hosted => "hosted",
            Self::Stale => "stale",
            Self::UpstreamFailed => "upstream-failed",
            Self::Busy => "busy",
        }
    }
}

/// Why the upstream was asked: the parameter `fwd` (RFC 9211, section 2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forward {
    /// Nothing is known of what was asked for.
    UriMiss,
    /// What is here is too old.
    Stale,
    /// Only a part is here.
    Partial,
    /// The client wanted it so.
    Request,
    /// This kind of request is never answered from here.
    Bypass,
}

impl Forward {
    /// The token in the header.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::UriMiss => "uri-miss",
            Self::Stale => "stale",
            Self::Partial => "partial",
            Self::Request => "request",
            Self::Bypass => "bypass",
        }
    }
}

/// One member of the header, built part by part. `Copy`, 32 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheStatus {
    /// None is a hit.
    forward: Option<Forward>,
    forward_status: Option<u16>,
    ttl_s: Option<i64>,
    stored: bool,
    collapsed: bool,
    detail: Option<Detail>,
    verified: Option<bool>,
}

impl CacheStatus {
    /// Answered from here.
    pub const fn hit() -> Self {
        Self {
            forward: None,
            forward_status: None,
            ttl_s: None,
            stored: false,
            collapsed: false,
            detail: None,
            verified: None,
        }
    }

    /// The upstream was asked.
    pub const fn forwarded(why: Forward) -> Self {
        let mut status = Self::hit();
        status.forward = Some(why);
        status
    }

    /// What the upstream answered. No part of a hit.
    #[must_use]
    pub const fn status(mut self, status: u16) -> Self {
        self.forward_status = Some(status);
        self
    }

    /// How many seconds the answer may still be used; below zero it is stale.
    #[must_use]
    pub const fn ttl_s(mut self, seconds: i64) -> Self {
        self.ttl_s = Some(seconds);
        self
    }

    /// The answer is being kept.
    #[must_use]
    pub const fn stored(mut self) -> Self {
        self.stored = true;
        self
    }

    /// The answer is shared with a request that was already on its way.
    #[must_use]
    pub const fn collapsed(mut self) -> Self {
        self.collapsed = true;
        self
    }

    /// Where from, or why.
    #[must_use]
    pub const fn detail(mut self, detail: Detail) -> Self {
        self.detail = Some(detail);
        self
    }

    /// Whether all of the content was hashed before these bytes go out.
    #[must_use]
    pub const fn verified(mut self, verified: bool) -> Self {
        self.verified = Some(verified);
        self
    }

    /// The header. Allocates, save for the answers that are given most.
    pub fn to_header(self) -> HeaderValue {
        const RAM: CacheStatus = CacheStatus::hit().detail(Detail::Ram).verified(true);
        const SSD: CacheStatus = CacheStatus::hit().detail(Detail::Ssd).verified(true);
        if self == RAM {
            return HeaderValue::from_static("outrider; hit; detail=ram; verified=?1");
        }
        if self == SSD {
            return HeaderValue::from_static("outrider; hit; detail=ssd; verified=?1");
        }
        HeaderValue::try_from(self.to_text()).expect("tokens and numbers are a header's value")
    }

    fn to_text(self) -> String {
        let mut text = String::with_capacity(96);
        text.push_str(CACHE_NAME);
        match self.forward {
            None => text.push_str("; hit"),
            Some(why) => {
                text.push_str("; fwd=");
                text.push_str(why.as_str());
                if let Some(status) = self.forward_status {
                    let _ = write!(text, "; fwd-status={status}");
                }
            }
        }
        if let Some(ttl_s) = self.ttl_s {
            // An integer of a structured field has at most 15 digits (RFC 8941, section 3.3.1).
            const INTEGER_MAX: i64 = 999_999_999_999_999;
            let _ = write!(text, "; ttl={}", ttl_s.clamp(-INTEGER_MAX, INTEGER_MAX));
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        if let Some(detail) = self.detail {
            text.push_str("; detail=");
            text.push_str(detail.as_str());
        }
        if let Some(verified) = self.verified {
            text.push_str(if verified { "; verified=?1" } else { "; verified=?0" });
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_answer_has_its_exact_header() {
        let hit = CacheStatus::hit();
        let miss = CacheStatus::forwarded(Forward::UriMiss);
        for (status, header) in [
            (hit, "outrider; hit"),
            (hit.detail(Detail::Ram), "outrider; hit; detail=ram"),
            (hit.detail(Detail::Ram).verified(true), "outrider; hit; detail=ram; verified=?1"),
            (hit.detail(Detail::Ssd).verified(true), "outrider; hit; detail=ssd; verified=?1"),
            (hit.detail(Detail::Ssd).verified(false), "outrider; hit; detail=ssd; verified=?0"),
            (hit.ttl_s(-30).detail(Detail::Stale), "outrider; hit; ttl=-30; detail=stale"),
            (hit.ttl_s(i64::MIN), "outrider; hit; ttl=-999999999999999"),
            (miss, "outrider; fwd=uri-miss"),
            (
                miss.status(200).stored().collapsed().verified(false),
                "outrider; fwd=uri-miss; fwd-status=200; stored; collapsed; verified=?0",
            ),
            (
                CacheStatus::forwarded(Forward::Stale).status(429).ttl_s(60),
                "outrider; fwd=stale; fwd-status=429; ttl=60",
            ),
            (
                CacheStatus::forwarded(Forward::Partial).status(206).stored(),
                "outrider; fwd=partial; fwd-status=206; stored",
            ),
            (hit.status(200), "outrider; hit"),
        ] {
            assert_eq!(status.to_header(), header);
        }
    }
}
