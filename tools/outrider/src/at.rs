//! `--admin URL` and what belongs to it, which all commands for a running node or edge have.

use std::path::PathBuf;

use clap::Args;
use outrider_node::command::{AdminClient, CommandError, Secure};

#[derive(Clone, Debug, Default, Args)]
pub(crate) struct At {
    /// The admin API [default: OUTRIDER_ADMIN, else http://127.0.0.1:9190 (a node) or :9180 (`outrider up`), where
    /// somebody listens]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    /// The file of the bearer token, where the node wants one [default: OUTRIDER_TOKEN_FILE]
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// The certificates to trust (PEM) where the URL is https [default: OUTRIDER_CA]
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The name in the node's certificate, where that is not the host of the URL; node.outrider.internal for the
    /// cluster's own
    #[arg(long, value_name = "NAME")]
    tls_name: Option<String>,
}

impl At {
    pub(crate) async fn client(&self) -> Result<AdminClient, CommandError> {
        let variable = |name| std::env::var(name).ok().filter(|text| !text.is_empty());
        let text = |file: &Option<PathBuf>, name| {
            let file = file.clone().or_else(|| variable(name).map(PathBuf::from));
            let read = |file: PathBuf| {
                std::fs::read_to_string(&file)
                    .map_err(|error| CommandError::Refused(format!("{}: {error}", file.display())))
            };
            file.map(read).transpose()
        };
        let secure = Secure {
            token: text(&self.token_file, "OUTRIDER_TOKEN_FILE")?.map(|t| t.trim().to_owned()),
            authorities_pem: text(&self.ca, "OUTRIDER_CA")?,
            name: self.tls_name.clone(),
        };
        let url = self.admin.clone().or_else(|| variable("OUTRIDER_ADMIN"));
        AdminClient::at(url.as_deref(), &secure).await
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
