//! `--admin URL`, which all commands for a running node or edge have.

use clap::Args;
use outrider_node::command::{AdminClient, CommandError};

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct At {
    /// The admin API [default: OUTRIDER_ADMIN, else http://127.0.0.1:9190 (a node) or :9180 (`outrider up`), where
    /// somebody listens]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
}

impl At {
    pub(crate) async fn client(&self) -> Result<AdminClient, CommandError> {
        let variable = || std::env::var("OUTRIDER_ADMIN").ok().filter(|url| !url.is_empty());
        AdminClient::at(self.admin.clone().or_else(variable).as_deref()).await
    }
}

/// Does it, on a runtime of this thread.
pub(crate) fn run<T>(
    work: impl Future<Output = Result<T, CommandError>>,
) -> Result<T, CommandError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| CommandError::Refused(error.to_string()))?;
    runtime.block_on(work)
}
