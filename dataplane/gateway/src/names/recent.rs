//! What a shard was answered a short while ago, so that a pull asks the database once and not for
//! each of its requests.
//!
//! It is never stale: repositories are spread over a table of generations that all threads share,
//! and each change of a repository advances its generation before the change is answered. An answer
//! is used while the generation is the one that was read before it was asked for.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hashbrown::HashMap;
use outrider_artifact::{Digest, RepositoryName, Tag};

use super::model::{Link, Repository, TagRecord};

/// Generations. Repositories that share one cost each other a question after a change.
const GENERATIONS: usize = 4096;

/// Answers that a shard remembers, about 250 bytes each. Twice as many are held for a while.
const ANSWERS_MAX: usize = 16_384;

/// The generation of every repository.
#[derive(Debug)]
pub(super) struct Generations {
    slots: Box<[AtomicU64]>,
    hasher: RandomState,
}

impl Generations {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..GENERATIONS).map(|_| AtomicU64::new(0)).collect(),
            hasher: RandomState::new(),
        }
    }

    fn slot(&self, repository: &str) -> &AtomicU64 {
        &self.slots[(self.hasher.hash_one(repository) % GENERATIONS as u64) as usize]
    }

    pub(super) fn of(&self, repository: &str) -> u64 {
        self.slot(repository).load(Ordering::Acquire)
    }

    pub(super) fn bump<'a>(&self, repositories: impl Iterator<Item = &'a str>) {
        for repository in repositories {
            self.slot(repository).fetch_add(1, Ordering::AcqRel);
        }
    }

    pub(super) fn bump_all(&self) {
        for slot in &self.slots {
            slot.fetch_add(1, Ordering::AcqRel);
        }
    }
}

/// What is remembered of one repository.
#[derive(Debug, Default)]
struct Answers {
    generation: u64,
    state: Option<Repository>,
    tags: HashMap<Tag, Option<Arc<TagRecord>>>,
    links: HashMap<Digest, Link>,
}

/// The answers of one shard. When the young half is full, the old half is dropped.
#[derive(Debug, Default)]
pub(super) struct Recent {
    young: HashMap<RepositoryName, Answers>,
    young_answers: usize,
    old: HashMap<RepositoryName, Answers>,
}

impl Recent {
    fn get(
        &self,
        repository: &RepositoryName,
        generation: u64,
    ) -> Option<(&Answers, Option<&Answers>)> {
        let current = |half: &'_ HashMap<RepositoryName, Answers>| -> bool {
            half.get(repository).is_some_and(|answers| answers.generation == generation)
        };
        let young = current(&self.young).then(|| &self.young[repository]);
        let old = current(&self.old).then(|| &self.old[repository]);
        match (young, old) {
            (Some(young), old) => Some((young, old)),
            (None, Some(old)) => Some((old, None)),
            (None, None) => None,
        }
    }

    fn find<T>(
        &self,
        repository: &RepositoryName,
        generation: u64,
        pick: impl Fn(&Answers) -> Option<&T>,
    ) -> Option<&T> {
        let (first, second) = self.get(repository, generation)?;
        pick(first).or_else(|| pick(second?))
    }

    pub(super) fn state(
        &self,
        repository: &RepositoryName,
        generation: u64,
    ) -> Option<&Repository> {
        self.find(repository, generation, |answers| answers.state.as_ref())
    }

    pub(super) fn tag(
        &self,
        repository: &RepositoryName,
        generation: u64,
        tag: &Tag,
    ) -> Option<&Option<Arc<TagRecord>>> {
        self.find(repository, generation, |answers| answers.tags.get(tag))
    }

    pub(super) fn link(
        &self,
        repository: &RepositoryName,
        generation: u64,
        digest: &Digest,
    ) -> Option<&Link> {
        self.find(repository, generation, |answers| answers.links.get(digest))
    }

    /// Where an answer that was asked for at this generation is to be kept. None if a newer one is
    /// known already.
    fn keep(&mut self, repository: &RepositoryName, generation: u64) -> Option<&mut Answers> {
        if self.young_answers >= ANSWERS_MAX {
            self.old = std::mem::take(&mut self.young);
            self.young_answers = 0;
        }
        self.young_answers += 1;
        let answers = self.young.entry_ref(repository).or_default();
        if answers.generation < generation {
            *answers = Answers { generation, ..Answers::default() };
        }
        (answers.generation == generation).then_some(answers)
    }

    pub(super) fn keep_state(
        &mut self,
        repository: &RepositoryName,
        generation: u64,
        state: &Repository,
    ) {
        if let Some(answers) = self.keep(repository, generation) {
            answers.state = Some(state.clone());
        }
    }

    pub(super) fn keep_tag(
        &mut self,
        repository: &RepositoryName,
        generation: u64,
        tag: &Tag,
        record: &Option<Arc<TagRecord>>,
    ) {
        if let Some(answers) = self.keep(repository, generation) {
            answers.tags.insert(tag.clone(), record.clone());
        }
    }

    pub(super) fn keep_link(
        &mut self,
        repository: &RepositoryName,
        generation: u64,
        digest: &Digest,
        link: &Link,
    ) {
        if let Some(answers) = self.keep(repository, generation) {
            answers.links.insert(*digest, link.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> RepositoryName {
        text.parse().unwrap()
    }

    #[test]
    fn an_answer_is_used_until_its_repository_changes() {
        let (generations, mut recent) = (Generations::new(), Recent::default());
        let repository = name("a");
        let before = generations.of("a");
        recent.keep_state(&repository, before, &Repository::Hosted);
        assert_eq!(recent.state(&repository, before), Some(&Repository::Hosted));
        generations.bump(["a"].into_iter());
        assert_eq!(recent.state(&repository, generations.of("a")), None);
    }

    #[test]
    fn an_answer_that_was_overtaken_by_a_change_is_not_kept() {
        let mut recent = Recent::default();
        let repository = name("a");
        recent.keep_state(&repository, 2, &Repository::Hosted);
        recent.keep_state(&repository, 1, &Repository::Unknown);
        assert_eq!(recent.state(&repository, 2), Some(&Repository::Hosted));
        assert_eq!(recent.state(&repository, 1), None);
    }

    #[test]
    fn a_new_generation_drops_all_answers_of_the_old_one() {
        let mut recent = Recent::default();
        let (repository, tag): (_, Tag) = (name("a"), "v1".parse().unwrap());
        recent.keep_tag(&repository, 1, &tag, &None);
        recent.keep_state(&repository, 2, &Repository::Hosted);
        assert_eq!(recent.tag(&repository, 1, &tag), None);
        assert_eq!(recent.tag(&repository, 2, &tag), None);
    }

    #[test]
    fn what_is_remembered_is_bounded_and_the_latest_stays() {
        let mut recent = Recent::default();
        let repository = name("a");
        for i in 0..5 * ANSWERS_MAX {
            let tag: Tag = format!("v{i}").parse().unwrap();
            recent.keep_tag(&repository, 1, &tag, &None);
            if i > 0 {
                let before = format!("v{}", i - 1).parse().unwrap();
                assert!(recent.tag(&repository, 1, &before).is_some(), "{i}");
            }
        }
        let held: usize = recent
            .young
            .values()
            .chain(recent.old.values())
            .map(|answers| answers.tags.len())
            .sum();
        assert!(held <= 2 * ANSWERS_MAX, "{held}");
    }
}
