//! Work on another shard.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use outrider_shard::channel::oneshot;
use outrider_shard::{task, time};
use outrider_transport::RequestBody;

use super::carried::carry;
use super::reply::{pack, unpack};
use super::{Inbox, Unanswered};
use crate::gateway::{Answer, Gateway};
use crate::names::Names;
use crate::protocol::{ApiError, Code};

/// When a client may come back after it was refused for want of room between shards.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// How long is waited before what must be done is tried again.
const AGAIN_AFTER: Duration = Duration::from_millis(5);

/// What becomes of work on another shard when nobody waits for its answer any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Leaving {
    /// It is dropped.
    Cancels,
    /// It goes on, and comes to its end by itself, since nothing more comes in.
    EndsTheBody,
}

impl From<Unanswered> for ApiError {
    fn from(unanswered: Unanswered) -> Self {
        ApiError::new(Code::Unavailable, unanswered.to_string()).with_retry_after(RETRY_AFTER)
    }
}

impl<N: Names> Gateway<N> {
    /// Does what other shards want done here, for as long as the shard lives. Call it once.
    pub fn attend(self: &Rc<Self>, inbox: Inbox<N>) {
        let (gateway, mut questions) = (self.clone(), inbox.0);
        task::spawn(async move {
            while let Some(work) = questions.recv().await {
                work(&gateway);
                task::yield_if_needed().await;
            }
        });
    }

    /// What `work` gives with the gateway of that shard, which runs it in a task of its own. It is
    /// dropped there when who waits here is.
    ///
    /// # Errors
    /// [`Unanswered::Busy`] when too many questions wait there, [`Unanswered::Ended`] when it has ended
    /// before it answered.
    pub(crate) async fn on<R, F, Fut>(&self, shard: u16, work: F) -> Result<R, Unanswered>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Self>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        self.question(shard, Leaving::Cancels, work).await
    }

    async fn question<R, F, Fut>(
        &self,
        shard: u16,
        leaving: Leaving,
        work: F,
    ) -> Result<R, Unanswered>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Self>) -> Fut + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        if shard == self.shard {
            let gateway = self.me.upgrade().ok_or(Unanswered::Ended)?;
            return Ok(work(gateway).await);
        }
        let (give, given) = oneshot(&self.handle);
        let customer = self.customers.behalf();
        let question = Box::new(move |gateway: &Rc<Self>| {
            let gateway = gateway.clone();
            let work = gateway.customers.during(customer, || work(gateway.clone()));
            task::spawn(async move {
                let mut work = pin!(work);
                let answer = std::future::poll_fn(|cx| {
                    if leaving == Leaving::Cancels && give.poll_closed(cx).is_ready() {
                        return Poll::Ready(None);
                    }
                    let work = || work.as_mut().poll(cx).map(Some);
                    gateway.customers.during(customer, work)
                })
                .await;
                if let Some(answer) = answer {
                    give.complete(answer);
                }
            });
        });
        self.metrics.mesh_questions.inc();
        if let Err(unanswered) = self.hub.send(shard, question) {
            self.metrics.mesh_refused.inc();
            return Err(unanswered);
        }
        given.await.ok_or(Unanswered::Ended)
    }

    /// [`Gateway::on`] for what must be done: tried again for as long as the shard is busy. An error
    /// says that the shard has ended, and with it what was to be done.
    pub(crate) async fn surely_on<R, F, Fut>(&self, shard: u16, work: F) -> Result<R, Unanswered>
    where
        R: Send + 'static,
        F: FnOnce(Rc<Self>) -> Fut + Clone + Send + 'static,
        Fut: Future<Output = R> + 'static,
    {
        loop {
            match self.on(shard, work.clone()).await {
                Err(Unanswered::Busy) => time::sleep(AGAIN_AFTER).await,
                done => return done,
            }
        }
    }

    /// Tells a shard something that may get lost when it is busy.
    pub(crate) fn tell(&self, shard: u16, work: impl FnOnce(&Rc<Self>) + Send + 'static) {
        if self.hub.send(shard, Box::new(work)).is_err() {
            self.metrics.mesh_lost.inc();
        }
    }

    /// The answer of that shard.
    pub(crate) async fn answer_on<F, Fut>(&self, shard: u16, work: F) -> Answer
    where
        F: FnOnce(Rc<Self>) -> Fut + Send + 'static,
        Fut: Future<Output = Answer> + 'static,
    {
        self.reply_of(shard, Leaving::Cancels, work).await
    }

    async fn reply_of<F, Fut>(&self, shard: u16, leaving: Leaving, work: F) -> Answer
    where
        F: FnOnce(Rc<Self>) -> Fut + Send + 'static,
        Fut: Future<Output = Answer> + 'static,
    {
        let reply = self.question(shard, leaving, move |gateway| async move {
            let answer = work(gateway.clone()).await;
            pack(answer, &gateway.pins)
        });
        unpack(reply.await?)
    }

    /// The answer of that shard to a request whose body is read here. When the client leaves, the body
    /// ends with an error over there, and the work goes on from that: what came in of an upload is kept.
    pub(crate) async fn carry_to<F, Fut>(&self, shard: u16, body: RequestBody, work: F) -> Answer
    where
        F: FnOnce(Rc<Self>, RequestBody) -> Fut + Send + 'static,
        Fut: Future<Output = Answer> + 'static,
    {
        let (carrier, carried) = carry(body);
        let work = move |gateway| work(gateway, carried.into_body());
        let answer = self.reply_of(shard, Leaving::EndsTheBody, work);
        let mut answer = pin!(answer);
        let mut reading: Option<Pin<Box<dyn Future<Output = ()>>>> = Some(Box::pin(carrier.run()));
        std::future::poll_fn(|cx| {
            if let Some(running) = &mut reading
                && running.as_mut().poll(cx).is_ready()
            {
                reading = None;
            }
            answer.as_mut().poll(cx)
        })
        .await
    }
}
