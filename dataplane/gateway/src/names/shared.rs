//! The names of an edge that may be in a fleet. Content is each edge's own, and named in its own database. A tag is
//! the fleet's: it is read from what this edge was told, and changed by a proposal to the control plane.
//!
//! Without a fleet every call goes through to the database as it is. Tags that were pushed before the edge joined
//! are handed over to the fleet, and answered from the database until then.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;

use hashbrown::HashMap;
use outrider_artifact::event::UploadEvent;
use outrider_artifact::{Digest, RepositoryName, Tag};

use super::fleet::{Entry, Fleet, FleetRecord, Proposal, ProposalError};
use super::recent::Recent;
use super::{
    Hosted, Link, LocalNames, MirroredTag, Mounted, Names, NamesError, OutboxRecord, OutboxStatus,
    Placed, Put, PutBlob, PutManifest, ReferrersPage, Removed, Repository, SharedTags, TagOrigin,
    TagRecord, TagsPage,
};

/// How often a tag is proposed again when somebody else was faster.
const PROPOSALS_MAX: usize = 16;
/// Edges that a tag names.
const HOLDERS_MAX: usize = 16;
/// Repositories whose holders a shard remembers; beyond it all are forgotten.
const HOLDERS_KNOWN_MAX: usize = 1024;

/// Repositories, and tags, that are looked at together when they are handed over.
const HAND_OVER_PAGE: usize = 256;

/// What became of the tags of the time before the fleet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HandedOver {
    /// They are the fleet's now.
    pub tags: usize,
    /// The fleet has others of the same name.
    pub hidden: usize,
}

/// Names for one shard. Clones share what was answered a short while ago. Not `Send`.
#[derive(Clone, Debug)]
pub struct FleetNames {
    local: LocalNames,
    fleet: Option<Rc<Shared>>,
}

#[derive(Debug)]
struct Shared {
    fleet: Arc<Fleet>,
    recent: RefCell<Recent>,
    holders: RefCell<HashMap<RepositoryName, Holders>>,
}

/// Who holds a repository, and the generation at which that was looked up.
type Holders = (u64, Arc<[u64]>);

impl FleetNames {
    /// With the database of this box, and the fleet that it is in.
    pub fn new(local: LocalNames, fleet: Option<Arc<Fleet>>) -> Self {
        let shared = |fleet| {
            Rc::new(Shared { fleet, recent: RefCell::default(), holders: RefCell::default() })
        };
        Self { local, fleet: fleet.map(shared) }
    }

    /// The fleet's word on the repository.
    fn shared(&self, repository: &RepositoryName) -> Option<Repository> {
        let shared = self.fleet.as_ref()?;
        let generation = shared.fleet.generations.of(repository);
        if let Some(state) = shared.recent.borrow().state(repository, generation) {
            return (*state != Repository::Unknown).then(|| state.clone());
        }
        let state = shared.fleet.repository(repository);
        let known = state.clone().unwrap_or(Repository::Unknown);
        shared.recent.borrow_mut().keep_state(repository, generation, &known);
        state
    }

    /// Refuses a push to what is mirrored anywhere in the fleet.
    fn check_pushable(&self, repository: &RepositoryName) -> Result<(), NamesError> {
        match self.shared(repository) {
            Some(Repository::Mirrored { upstream }) => Err(NamesError::Mirrored {
                repository: repository.clone(),
                upstream: upstream.to_string(),
            }),
            _ => Ok(()),
        }
    }

    async fn propose(&self, fleet: &Fleet, proposal: Proposal) -> Result<(), ProposalError> {
        let (reply, answer) = self.local.channel();
        fleet.propose(proposal, Box::new(|result| reply.complete(result)));
        let gone = || Err(ProposalError::Unavailable("this edge stops".to_owned()));
        answer.take().await.unwrap_or_else(gone)
    }

    /// Sets a tag, or takes it away, whatever it stands for now; false when there was nothing to take away.
    async fn set(
        &self,
        fleet: &Fleet,
        repository: &RepositoryName,
        tag: &str,
        record: Option<&FleetRecord>,
    ) -> Result<bool, NamesError> {
        let mut known = fleet.tag(repository, tag);
        let mut expected = known.as_ref().map_or(0, |entry| entry.version);
        for _ in 0..PROPOSALS_MAX {
            let mut record = record.cloned();
            // Also where it seems that nothing has to be changed: this edge may know less than there is.
            if let (Some(record), Some(entry)) = (&mut record, &known) {
                add_holders(record, entry);
            }
            let was_there = expected != 0;
            let is_set = record.is_some();
            let proposal = Proposal {
                repository: repository.to_string(),
                tag: tag.to_owned(),
                expected,
                record,
            };
            match self.propose(fleet, proposal).await {
                Ok(()) => return Ok(is_set || was_there),
                Err(ProposalError::Mismatch(current)) => {
                    // What this edge was told may be older than what it was just told of.
                    known = fleet.tag(repository, tag).filter(|entry| entry.version == current);
                    expected = current;
                }
                Err(ProposalError::Refused(why)) => return Err(NamesError::FleetRefused(why)),
                Err(ProposalError::Unavailable(why)) => return Err(NamesError::Fleet(why)),
            }
        }
        Err(NamesError::Fleet("others change this tag all the time".to_owned()))
    }

    /// Gives the fleet the tags that were pushed before this edge was in it. Those of which the fleet has others
    /// stay hidden behind them. One pass; to be made again after an error.
    ///
    /// # Errors
    /// [`NamesError::Fleet`] without a majority, and those of the database.
    pub async fn hand_over(&self) -> Result<HandedOver, NamesError> {
        let mut done = HandedOver::default();
        let Some(shared) = &self.fleet else { return Ok(done) };
        let mut last = None;
        loop {
            let page = self.local.repositories(last.as_deref(), HAND_OVER_PAGE).await?;
            for name in &page {
                let Ok(repository) = name.parse::<RepositoryName>() else { continue };
                if self.local.repository(&repository).await? == Repository::Hosted {
                    self.hand_over_repository(&shared.fleet, &repository, &mut done).await?;
                }
            }
            match page.last() {
                Some(name) if page.len() == HAND_OVER_PAGE => last = Some(name.clone()),
                _ => return Ok(done),
            }
        }
    }

    async fn hand_over_repository(
        &self,
        fleet: &Fleet,
        repository: &RepositoryName,
        done: &mut HandedOver,
    ) -> Result<(), NamesError> {
        let mut last: Option<String> = None;
        loop {
            let page = self.local.tags(repository, last.as_deref(), HAND_OVER_PAGE).await?;
            for name in &page.tags {
                let Ok(tag) = name.parse::<Tag>() else { continue };
                let Some(record) = self.local.tag(repository, &tag).await? else { continue };
                let record = FleetRecord {
                    digest: record.digest.to_string(),
                    size_bytes: record.size_bytes,
                    media_type: record.media_type.to_string(),
                    holders: vec![fleet.own()],
                    upstream: None,
                };
                let proposal = Proposal {
                    repository: repository.to_string(),
                    tag: name.clone(),
                    expected: 0,
                    record: Some(record),
                };
                match self.propose(fleet, proposal).await {
                    Ok(()) => {
                        self.local.delete_tag(repository, &tag).await?;
                        done.tags += 1;
                    }
                    Err(ProposalError::Unavailable(why)) => return Err(NamesError::Fleet(why)),
                    Err(ProposalError::Mismatch(_)) => done.hidden += 1,
                    Err(ProposalError::Refused(why)) => {
                        tracing::warn!(%repository, tag = name, why, "the fleet does not take a tag");
                        done.hidden += 1;
                    }
                }
            }
            match page.tags.last() {
                Some(name) if page.more => last = Some(name.clone()),
                _ => return Ok(()),
            }
        }
    }

    /// What an upstream said is told to the fleet; nobody waits for that. Who is slower asks the upstream again
    /// when it hears what the others were told.
    fn tell(&self, fleet: &Fleet, proposal: Proposal) {
        fleet.propose(
            proposal,
            Box::new(|result| {
                if let Err(error) = result {
                    tracing::debug!(
                        ?error,
                        "the fleet does not take what an upstream says of a tag"
                    );
                }
            }),
        );
    }
}

/// Those who hold the same already hold it still.
fn add_holders(record: &mut FleetRecord, entry: &Entry) {
    if entry.is_hosted() && entry.record.digest.to_string() == record.digest {
        let others: Vec<u64> = entry
            .holders
            .iter()
            .filter(|holder| !record.holders.contains(holder))
            .copied()
            .collect();
        record.holders.extend(others);
        record.holders.truncate(HOLDERS_MAX);
    }
}

impl Names for FleetNames {
    async fn repository(&self, repository: &RepositoryName) -> Result<Repository, NamesError> {
        match self.shared(repository) {
            Some(Repository::Hosted) => Ok(Repository::Hosted),
            shared => {
                let local = self.local.repository(repository).await?;
                // What was pushed here before the fleet had it is hosted here all the same.
                Ok(if local == Repository::Unknown { shared.unwrap_or(local) } else { local })
            }
        }
    }

    async fn tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<Option<Arc<TagRecord>>, NamesError> {
        let Some(shared) = &self.fleet else { return self.local.tag(repository, tag).await };
        let generation = shared.fleet.generations.of(repository);
        if let Some(Some(record)) = shared.recent.borrow().tag(repository, generation, tag) {
            return Ok(Some(record.clone()));
        }
        let entry = shared.fleet.tag(repository, tag);
        if let Some(entry) = entry.as_ref().filter(|entry| entry.is_hosted()) {
            let record = Some(entry.record.clone());
            shared.recent.borrow_mut().keep_tag(repository, generation, tag, &record);
            return Ok(record);
        }
        let local = self.local.tag(repository, tag).await?;
        let Some(record) = &local else { return Ok(local) };
        let TagOrigin::Mirrored { upstream, checked_unix_ms, etag, .. } = &record.origin else {
            return Ok(local);
        };
        let others_know =
            entry.is_some_and(|entry| entry.record.digest != record.digest && !entry.is_checked());
        if !others_know && !shared.fleet.is_void(repository, tag) {
            return Ok(local);
        }
        let origin = TagOrigin::Mirrored {
            upstream: upstream.clone(),
            checked_unix_ms: *checked_unix_ms,
            etag: etag.clone(),
            overtaken: true,
        };
        Ok(Some(Arc::new(TagRecord { origin, ..(**record).clone() })))
    }

    async fn link(&self, repository: &RepositoryName, digest: &Digest) -> Result<Link, NamesError> {
        self.local.link(repository, digest).await
    }

    fn link_known(&self, repository: &RepositoryName, digest: &Digest) -> Option<Link> {
        self.local.link_known(repository, digest)
    }

    async fn hosted(&self, digest: &Digest) -> Result<Option<Hosted>, NamesError> {
        self.local.hosted(digest).await
    }

    async fn hosted_after(
        &self,
        last: Option<Digest>,
        entries_max: usize,
    ) -> Result<Vec<Hosted>, NamesError> {
        self.local.hosted_after(last, entries_max).await
    }

    async fn tags(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        entries_max: usize,
    ) -> Result<TagsPage, NamesError> {
        let mut page = self.local.tags(repository, last, entries_max).await?;
        let (Some(shared), Some(state)) = (&self.fleet, self.shared(repository)) else {
            return Ok(page);
        };
        if page.repository == Repository::Unknown || state == Repository::Hosted {
            page.repository = state;
        }
        let theirs = shared.fleet.tags(repository, last, entries_max.saturating_add(1));
        (page.tags, page.more) = merged(page.tags, page.more, theirs, entries_max);
        Ok(page)
    }

    async fn repositories(
        &self,
        last: Option<&str>,
        entries_max: usize,
    ) -> Result<Vec<String>, NamesError> {
        let own = self.local.repositories(last, entries_max).await?;
        let Some(shared) = &self.fleet else { return Ok(own) };
        let theirs = shared.fleet.repositories(last, entries_max);
        Ok(merged(own, false, theirs, entries_max).0)
    }

    async fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
        artifact_type: Option<&str>,
        last: Option<Digest>,
        entries_max: usize,
    ) -> Result<ReferrersPage, NamesError> {
        self.local.referrers(repository, subject, artifact_type, last, entries_max).await
    }

    async fn put_manifest(&self, put: PutManifest) -> Result<Put, NamesError> {
        self.check_pushable(&put.repository)?;
        debug_assert!(self.fleet.is_none() || put.tags.is_empty(), "tags are shared");
        self.local.put_manifest(put).await
    }

    async fn put_blob(&self, put: PutBlob) -> Result<Put, NamesError> {
        self.check_pushable(&put.repository)?;
        self.local.put_blob(put).await
    }

    async fn mount(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> Result<Option<Mounted>, NamesError> {
        self.check_pushable(repository)?;
        self.local.mount(repository, digest, from).await
    }

    async fn remember_mirrored_tag(&self, tag: MirroredTag) -> Result<(), NamesError> {
        let Some(shared) = &self.fleet else { return self.local.remember_mirrored_tag(tag).await };
        if self.shared(&tag.repository) == Some(Repository::Hosted) {
            return Err(NamesError::Hosted { repository: tag.repository });
        }
        let entry = shared.fleet.tag(&tag.repository, &tag.tag);
        let record = FleetRecord {
            digest: tag.digest.to_string(),
            size_bytes: tag.size_bytes,
            media_type: tag.media_type.clone(),
            holders: vec![shared.fleet.own()],
            upstream: Some(tag.upstream.clone()),
        };
        let (repository, name) = (tag.repository.to_string(), tag.tag.to_string());
        let digest = tag.digest;
        self.local.remember_mirrored_tag(tag).await?;
        shared.fleet.set_checked(&repository, &name);
        if let Some(entry) = &entry {
            entry.set_checked();
        }
        if entry.as_ref().is_none_or(|entry| entry.record.digest != digest) {
            let expected = entry.map_or(0, |entry| entry.version);
            let record = Some(record);
            self.tell(&shared.fleet, Proposal { repository, tag: name, expected, record });
        }
        Ok(())
    }

    async fn touch_mirrored_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
        digest: &Digest,
        checked_unix_ms: u64,
    ) -> Result<bool, NamesError> {
        let entry = self.fleet.as_ref().and_then(|shared| shared.fleet.tag(repository, tag));
        let touched =
            self.local.touch_mirrored_tag(repository, tag, digest, checked_unix_ms).await?;
        if let Some(shared) = self.fleet.as_ref().filter(|_| touched) {
            shared.fleet.set_checked(repository, tag);
        }
        if let Some(entry) = entry.filter(|_| touched) {
            entry.set_checked();
        }
        Ok(touched)
    }

    async fn forget_mirrored_tag(
        &self,
        repository: &RepositoryName,
        tag: &Tag,
    ) -> Result<bool, NamesError> {
        let forgotten = self.local.forget_mirrored_tag(repository, tag).await?;
        if let Some(shared) = &self.fleet
            && let Some(entry) = shared.fleet.tag(repository, tag)
            && !entry.is_hosted()
        {
            let (repository, tag) = (repository.to_string(), tag.to_string());
            let proposal = Proposal { repository, tag, expected: entry.version, record: None };
            self.tell(&shared.fleet, proposal);
        }
        Ok(forgotten)
    }

    async fn delete_tag(&self, repository: &RepositoryName, tag: &Tag) -> Result<bool, NamesError> {
        let shared = match &self.fleet {
            Some(shared) => self.set(&shared.fleet, repository, tag, None).await?,
            None => false,
        };
        Ok(self.local.delete_tag(repository, tag).await? || shared)
    }

    async fn delete_manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Removed>, NamesError> {
        let mut tags = 0;
        if let Some(shared) = &self.fleet {
            for (tag, entry) in shared.fleet.tags_of(repository, digest) {
                let (repository, expected) = (repository.to_string(), entry.version);
                let proposal = Proposal { repository, tag, expected, record: None };
                match self.propose(&shared.fleet, proposal).await {
                    Ok(()) => tags += 1,
                    // It stands for something else by now.
                    Err(ProposalError::Mismatch(_)) => {}
                    Err(ProposalError::Refused(why)) => return Err(NamesError::FleetRefused(why)),
                    Err(ProposalError::Unavailable(why)) => return Err(NamesError::Fleet(why)),
                }
            }
        }
        let removed = self.local.delete_manifest(repository, digest).await?;
        Ok(match removed {
            Some(removed) => Some(Removed { tags: removed.tags + tags, ..removed }),
            None => (tags > 0).then_some(Removed { unreferenced: None, tags }),
        })
    }

    async fn delete_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> Result<Option<Removed>, NamesError> {
        self.local.delete_blob(repository, digest).await
    }

    fn tags_are_shared(&self) -> bool {
        self.fleet.is_some()
    }

    async fn share_tags(&self, tags: SharedTags) -> Result<(), NamesError> {
        let Some(shared) = &self.fleet else { return Ok(()) };
        let mut holders = vec![shared.fleet.own()];
        holders.extend(tags.others);
        let record = FleetRecord {
            digest: tags.digest.to_string(),
            size_bytes: tags.size_bytes,
            media_type: tags.media_type,
            holders,
            upstream: None,
        };
        for tag in &tags.tags {
            self.set(&shared.fleet, &tags.repository, tag, Some(&record)).await?;
            // One of the time before this edge was in the fleet would come back when the fleet's is deleted.
            if self.local.tag(&tags.repository, tag).await?.is_some() {
                self.local.delete_tag(&tags.repository, tag).await?;
            }
        }
        Ok(())
    }

    fn holders(&self, repository: &RepositoryName) -> Arc<[u64]> {
        let Some(shared) = &self.fleet else { return Arc::default() };
        let generation = shared.fleet.generations.of(repository);
        let mut known = shared.holders.borrow_mut();
        if let Some((of, holders)) = known.get(repository)
            && *of == generation
        {
            return holders.clone();
        }
        let holders = shared.fleet.holders(repository);
        if known.len() >= HOLDERS_KNOWN_MAX {
            known.clear();
        }
        known.insert(repository.clone(), (generation, holders.clone()));
        holders
    }

    fn placed(&self, repository: &RepositoryName) -> Option<Placed> {
        self.fleet.as_ref()?.fleet.placed(repository)
    }

    fn is_edge(&self, number: u64) -> bool {
        self.fleet.as_ref().is_some_and(|shared| shared.fleet.is_edge(number))
    }

    async fn outbox_status(&self) -> Result<OutboxStatus, NamesError> {
        self.local.outbox_status().await
    }

    async fn outbox_read(
        &self,
        from: u64,
        entries_max: usize,
    ) -> Result<Vec<OutboxRecord>, NamesError> {
        self.local.outbox_read(from, entries_max).await
    }

    async fn note_event(&self, event: UploadEvent) -> Result<bool, NamesError> {
        self.local.note_event(event).await
    }

    async fn outbox_acknowledge(&self, through: u64) -> Result<(), NamesError> {
        self.local.outbox_acknowledge(through).await
    }
}

/// Both lists in order, each name once, at most so many; and whether there are more.
fn merged(
    own: Vec<String>,
    more: bool,
    theirs: Vec<String>,
    entries_max: usize,
) -> (Vec<String>, bool) {
    if theirs.is_empty() {
        return (own, more);
    }
    // Behind the last of a page that goes on, the other list may skip some of the first.
    let end = if more { own.last().cloned() } else { None };
    let all: BTreeSet<String> = own.into_iter().chain(theirs).collect();
    let known = all.into_iter().filter(|name| end.as_ref().is_none_or(|end| name <= end));
    let mut known: Vec<String> = known.collect();
    let more = more || known.len() > entries_max;
    known.truncate(entries_max);
    (known, more)
}
