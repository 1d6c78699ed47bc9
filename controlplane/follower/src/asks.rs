//! What the edge wants to have written. A wish goes to the node that is followed, and again to the next one until
//! its outcome is known or its time is over; who wanted it is told once the edge knows the state with it.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use outrider_link::Asked;
use outrider_push::{Ask, Reply, Wish};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout_at};

/// Wishes that wait or are under way; more are refused.
const WISHES_MAX: usize = 1024;
/// For one wish, however often it is asked.
pub const ASK_TIME_MAX: Duration = Duration::from_secs(5);
/// Before it is asked again.
const PAUSE: Duration = Duration::from_millis(50);

/// Why a wish was not granted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// What must hold does not: there is another version, 0 for none.
    #[error("there is another version: {current}")]
    Mismatch {
        /// Which one.
        current: u64,
    },
    /// It will not be granted.
    #[error("the control plane refuses it: {0}")]
    Refused(String),
    /// No majority, or no node. It was perhaps granted.
    #[error("the control plane is not available: {0}")]
    Unavailable(String),
}

/// Where the outcome goes: the version with which the wish was granted, 0 when nothing had to be written.
type Done = Box<dyn FnOnce(Result<u64, AskError>) + Send>;

struct Wanted {
    wish: Wish,
    done: Done,
}

/// Asks, from any thread, without waiting.
#[derive(Clone)]
pub struct Asker(mpsc::Sender<Wanted>);

/// The other end, for the follower.
pub struct Asks(mpsc::Receiver<Wanted>);

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asker")
    }
}

impl fmt::Debug for Asks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Asks")
    }
}

/// Both ends.
pub fn asks() -> (Asker, Asks) {
    let (sender, receiver) = mpsc::channel(WISHES_MAX);
    (Asker(sender), Asks(receiver))
}

impl Asker {
    /// Asks. `done` is called once, on the follower's thread or this one, and must not block.
    pub fn ask(&self, wish: Wish, done: impl FnOnce(Result<u64, AskError>) + Send + 'static) {
        if let Err(error) = self.0.try_send(Wanted { wish, done: Box::new(done) }) {
            let (why, wanted) = match error {
                mpsc::error::TrySendError::Full(wanted) => ("too much waits for it", wanted),
                mpsc::error::TrySendError::Closed(wanted) => ("this edge stops", wanted),
            };
            (wanted.done)(Err(AskError::Unavailable(why.to_owned())));
        }
    }
}

/// How many wishes came to which end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AskCounts {
    /// Granted.
    pub granted: u64,
    /// Somebody else was faster, or it was refused.
    pub refused: u64,
    /// No outcome in time.
    pub unavailable: u64,
}

/// Numbers of wishes, and which of them are under way.
#[derive(Debug, Default)]
struct Numbers {
    next: u64,
    under_way: BTreeSet<u64>,
}

/// Takes wishes until nobody can ask any more. Dropping the future drops those under way.
pub(crate) async fn run(
    mut wanted: Asks,
    link: mpsc::Sender<Asked>,
    position: watch::Receiver<u64>,
    count: impl Fn(&dyn Fn(&mut AskCounts)) + Clone + Send + 'static,
) {
    let mut client = [0; 8];
    client.copy_from_slice(&fastrand::u64(..).to_le_bytes());
    let numbers = Arc::new(Mutex::new(Numbers::default()));
    let mut under_way = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            next = wanted.0.recv(), if under_way.len() < WISHES_MAX => {
                let Some(Wanted { wish, done }) = next else { return };
                let (link, position, count) = (link.clone(), position.clone(), count.clone());
                let numbers = Arc::clone(&numbers);
                under_way.spawn(async move {
                    let (sequence, settled) = begin(&numbers);
                    let ask = Ask { client, sequence, settled, wish };
                    let result = grant(ask, &link, position).await;
                    lock(&numbers).under_way.remove(&sequence);
                    count(&|counts| match &result {
                        Ok(_) => counts.granted += 1,
                        Err(AskError::Unavailable(_)) => counts.unavailable += 1,
                        Err(_) => counts.refused += 1,
                    });
                    done(result);
                });
            }
            Some(_) = under_way.join_next() => {}
        }
    }
}

fn lock(numbers: &Mutex<Numbers>) -> std::sync::MutexGuard<'_, Numbers> {
    numbers.lock().unwrap_or_else(PoisonError::into_inner)
}

fn begin(numbers: &Mutex<Numbers>) -> (u64, u64) {
    let mut numbers = lock(numbers);
    let number = numbers.next;
    numbers.next += 1;
    numbers.under_way.insert(number);
    (number, numbers.under_way.first().copied().unwrap_or(number))
}

/// Asks until there is an outcome, and until the edge knows the state with it.
async fn grant(
    ask: Ask,
    link: &mpsc::Sender<Asked>,
    mut position: watch::Receiver<u64>,
) -> Result<u64, AskError> {
    let unavailable = |why: &str| AskError::Unavailable(why.to_owned());
    let until = Instant::now() + ASK_TIME_MAX;
    let late = || unavailable("no node answered in time");
    let version = loop {
        let (reply, answer) = oneshot::channel();
        let asked = Asked { ask: ask.clone(), reply };
        timeout_at(until, link.send(asked))
            .await
            .map_err(|_| late())?
            .map_err(|_| unavailable("this edge stops"))?;
        match timeout_at(until, answer).await {
            Err(_) => return Err(late()),
            Ok(Ok(Reply::Done { version })) => break version,
            Ok(Ok(Reply::Mismatch { current })) => return Err(AskError::Mismatch { current }),
            Ok(Ok(Reply::Refused(why))) => return Err(AskError::Refused(why)),
            Ok(Ok(Reply::Unavailable(why))) => return Err(AskError::Unavailable(why)),
            Ok(Ok(Reply::Certificate(_))) => {
                return Err(AskError::Refused("it answers with a certificate".to_owned()));
            }
            // The connection broke: another node is asked, by the same number.
            Ok(Err(_)) => tokio::time::sleep(PAUSE).await,
        }
    };
    match timeout_at(until, position.wait_for(|position| *position >= version)).await {
        Ok(Ok(_)) => Ok(version),
        Ok(Err(_)) => Err(unavailable("this edge stops")),
        Err(_) => Err(unavailable("it is written, and this edge was not told of it in time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish() -> Wish {
        Wish::Announce { address: "e:1".to_owned(), token_key: None }
    }

    fn run_with<T>(test: impl Future<Output = T>) -> T {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        runtime.enable_all().start_paused(true).build().unwrap().block_on(test)
    }

    fn asked(asker: &Asker) -> oneshot::Receiver<Result<u64, AskError>> {
        let (sender, receiver) = oneshot::channel();
        asker.ask(wish(), |result| drop(sender.send(result)));
        receiver
    }

    #[test]
    fn a_wish_is_asked_again_by_the_same_number_and_done_when_the_edge_knows_it() {
        run_with(async {
            let (asker, wanted) = asks();
            let (link, mut node) = mpsc::channel(4);
            let (at, position) = watch::channel(3);
            let counts = Arc::new(Mutex::new(AskCounts::default()));
            let own = Arc::clone(&counts);
            let count = move |change: &dyn Fn(&mut AskCounts)| change(&mut own.lock().unwrap());
            let task = tokio::spawn(run(wanted, link, position, count));
            let mut first = asked(&asker);
            let one: Asked = node.recv().await.unwrap();
            drop(one.reply);
            let again = node.recv().await.unwrap();
            assert_eq!(again.ask, one.ask);
            let second = asked(&asker);
            let other = node.recv().await.unwrap();
            assert_eq!((other.ask.sequence, other.ask.settled), (1, 0), "the first is under way");
            other.reply.send(Reply::Mismatch { current: 7 }).unwrap();
            assert_eq!(second.await.unwrap(), Err(AskError::Mismatch { current: 7 }));
            again.reply.send(Reply::Done { version: 5 }).unwrap();
            tokio::task::yield_now().await;
            assert!(first.try_recv().is_err(), "the edge is at version 3");
            at.send_replace(5);
            assert_eq!(first.await.unwrap(), Ok(5));
            let third = asked(&asker);
            let other = node.recv().await.unwrap();
            assert_eq!(
                (other.ask.sequence, other.ask.settled),
                (2, 2),
                "nothing else is under way"
            );
            drop(other);
            // Nobody answers any more.
            let result = third.await.unwrap();
            assert!(matches!(result, Err(AskError::Unavailable(_))), "{result:?}");
            let counted = AskCounts { granted: 1, refused: 1, unavailable: 1 };
            assert_eq!(*counts.lock().unwrap(), counted);
            drop(asker);
            task.await.unwrap();
        });
    }

    #[test]
    fn what_waits_is_bounded() {
        let (asker, _wanted) = asks();
        for _ in 0..WISHES_MAX {
            drop(asked(&asker));
        }
        let result = asked(&asker).try_recv().unwrap();
        assert!(matches!(result, Err(AskError::Unavailable(_))), "{result:?}");
    }
}
