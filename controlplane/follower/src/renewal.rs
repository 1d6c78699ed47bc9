//! The edge's certificate is made anew before it ends: the node that is followed gives another one of the same key,
//! to who shows the present one. It is shown from then on, and kept in the edge's folder.

use std::sync::Arc;
use std::time::Duration;

use outrider_certificate::Shown;
use outrider_link::Asked;
use outrider_push::{Ask, Reply, Wish};
use tokio::sync::{mpsc, oneshot};

use crate::folder::EdgeFolder;
use crate::follower::Monitor;

/// For one attempt.
const ATTEMPT_TIME_MAX: Duration = Duration::from_secs(5);

pub(crate) struct Renewal {
    pub(crate) folder: EdgeFolder,
    pub(crate) shown: Arc<Shown>,
    /// To the node that is followed.
    pub(crate) link: mpsc::Sender<Asked>,
    pub(crate) monitor: Monitor,
}

impl Renewal {
    /// Renews it as often as it is due, until it is dropped.
    pub(crate) async fn run(self) {
        loop {
            tokio::time::sleep(self.shown.validity().look_interval()).await;
            if self.shown.due().is_none() {
                continue;
            }
            let failure = self.renew().await.err();
            match &failure {
                None => tracing::info!("the certificate of this edge was renewed"),
                Some(why) => tracing::warn!(why, "the certificate of this edge is not renewed"),
            }
            self.note(failure);
        }
    }

    async fn renew(&self) -> Result<(), String> {
        let public_key = self.shown.public_key().map_err(|error| error.to_string())?;
        let (reply, answer) = oneshot::channel();
        // It is not numbered: it writes nothing.
        let ask = Ask { client: [0; 8], sequence: 0, settled: 0, wish: Wish::Renew { public_key } };
        let answered = async {
            self.link.send(Asked { ask, reply }).await.map_err(|_| "this edge stops")?;
            answer.await.map_err(|_| "the connection ended")
        };
        let late = |_| "no node answered in time".to_owned();
        match tokio::time::timeout(ATTEMPT_TIME_MAX, answered).await.map_err(late)?? {
            Reply::Certificate(pem) => {
                self.folder.renew(&self.shown, &pem).map_err(|error| error.to_string())
            }
            Reply::Refused(why) | Reply::Unavailable(why) => Err(why),
            other => Err(format!("the node answers {other:?}")),
        }
    }

    /// Shows how it stands.
    pub(crate) fn note(&self, failure: Option<String>) {
        self.monitor.set_certificate(self.shown.validity(), failure);
    }
}
