//! Heads of requests that were decoded before. With static QPACK a field section always means the same, and
//! clients of one kind ask for the same thing in the same words.

use std::cell::RefCell;
use std::fmt;
use std::hash::BuildHasher;
use std::rc::Rc;

use hashbrown::DefaultHashBuilder;
use http::header::{AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION};

use crate::head::Head;

/// The longest field section that is kept.
const SECTION_BYTES_MAX: usize = 1 << 10;

/// A bounded memory of decoded heads, for the connections of one thread, which must have the same
/// [`Limits`](crate::Limits). Clones are the same. A section is kept when it comes for the second time, in place of another one
/// with the same slot; one that says who the client is is never kept. Some 1.5 KiB for each slot at most.
#[derive(Clone)]
pub struct HeadMemo(Rc<RefCell<Slots>>);

struct Slots {
    slots: Box<[Slot]>,
    /// Seeded at random, so that nobody can choose sections that push out those of others.
    hasher: DefaultHashBuilder,
}

#[derive(Clone, Default)]
struct Slot {
    /// Of the section that came last.
    hash: u64,
    known: Option<(Box<[u8]>, Head)>,
}

impl HeadMemo {
    /// With `slots` slots, at least one.
    pub fn new(slots: usize) -> Self {
        let slots = vec![Slot::default(); slots.max(1)].into();
        Self(Rc::new(RefCell::new(Slots { slots, hasher: DefaultHashBuilder::default() })))
    }

    /// The head that this section is, if it is kept; else what [`Self::keep`] wants to know.
    pub(crate) fn find(&self, section: &[u8]) -> Result<Head, Option<u64>> {
        if section.len() > SECTION_BYTES_MAX {
            return Err(None);
        }
        let memo = self.0.borrow();
        let hash = memo.hasher.hash_one(section);
        match &memo.slots[memo.place(hash)].known {
            Some((known, head)) if **known == *section => Ok(head.clone()),
            _ => Err(Some(hash)),
        }
    }

    /// Keeps it if it has come before, and may be kept.
    pub(crate) fn keep(&self, hash: u64, section: &[u8], head: &Head) {
        let mut memo = self.0.borrow_mut();
        let place = memo.place(hash);
        let slot = &mut memo.slots[place];
        if slot.hash != hash {
            slot.hash = hash;
            return;
        }
        let headers = &head.parts.headers;
        if ![AUTHORIZATION, COOKIE, PROXY_AUTHORIZATION]
            .iter()
            .any(|name| headers.contains_key(name))
        {
            slot.known = Some((section.into(), head.clone()));
        }
    }
}

impl Slots {
    fn place(&self, hash: u64) -> usize {
        (hash % self.slots.len() as u64) as usize
    }
}

impl fmt::Debug for HeadMemo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HeadMemo").field("slots", &self.0.borrow().slots.len()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(cookie: Option<&str>) -> Head {
        let mut request = http::Request::builder().uri("https://edge.example/v2/");
        if let Some(cookie) = cookie {
            request = request.header(COOKIE, cookie);
        }
        let (parts, ()) = request.body(()).unwrap().into_parts();
        Head { parts: Rc::new(parts), content_length: None }
    }

    fn kept(memo: &HeadMemo, section: &[u8], head: &Head) -> bool {
        match memo.find(section) {
            Ok(found) => Rc::ptr_eq(&found.parts, &head.parts),
            Err(hash) => {
                memo.keep(hash.unwrap(), section, head);
                false
            }
        }
    }

    #[test]
    fn what_comes_again_is_kept_and_another_one_takes_its_place() {
        let (memo, head) = (HeadMemo::new(1), head(None));
        assert_eq!([1, 2, 3].map(|_| kept(&memo, b"one", &head)), [false, false, true]);
        assert!(!kept(&memo, b"two", &head), "it has come once");
        assert!(kept(&memo, b"one", &head), "and took nothing away");
        assert!(!kept(&memo, b"two", &head));
        assert!(kept(&memo, b"two", &head) && !kept(&memo, b"one", &head));
    }

    #[test]
    fn what_says_who_the_client_is_is_not_kept() {
        let (memo, head) = (HeadMemo::new(8), head(Some("a=b")));
        assert_eq!([1, 2, 3, 4].map(|_| kept(&memo, b"one", &head)), [false; 4]);
        assert!(matches!(memo.find(&[0; SECTION_BYTES_MAX + 1]), Err(None)));
    }
}
