//! `outrider cluster`: what an operator does with a cluster of the control plane.

use std::path::{Path, PathBuf};

use clap::Subcommand;
use outrider_follower::EdgeFolder;
use outrider_node::command::{CommandError, status_text};
use outrider_node::folder::{Folder, FolderError};
use outrider_node::join::{JoinError, join, join_edge};
use outrider_node::token::{Token, TokenError};
use outrider_node::{Config, run as node};
use outrider_settings::ConfigError;
use outrider_settings::units::Span;

use crate::at::At;

#[derive(Debug, Subcommand)]
pub(crate) enum ClusterCommand {
    /// Make a new cluster; the node of this configuration is its first
    Init {
        /// The node's configuration file (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
    /// Print a token that lets one newcomer in
    Token {
        #[command(flatten)]
        admin: At,
        /// What may join with it: node or edge
        #[arg(long, value_name = "ROLE", default_value = "node", value_parser = ["node", "edge"])]
        role: String,
        /// The region of an edge
        #[arg(long, value_name = "REGION", default_value = "")]
        region: String,
        /// For how long it is good, at most 7d
        #[arg(long, value_name = "TIME", default_value = "15m")]
        ttl: Span,
    },
    /// Join the cluster that the token is from; then start the node or the edge
    Join {
        /// What joins: node or edge
        #[arg(long, value_name = "ROLE", default_value = "node", value_parser = ["node", "edge"])]
        role: String,
        /// The node's or the edge's configuration file (TOML)
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
        /// What `outrider cluster token` printed
        #[arg(value_name = "TOKEN")]
        token: String,
    },
    /// Show who is in the cluster and how far each is
    Status {
        #[command(flatten)]
        admin: At,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Take a running node out of its cluster, for good
    Leave {
        #[command(flatten)]
        admin: At,
    },
    /// Take an edge or a dead node out of the cluster, for good: its certificate is not taken any more
    Remove {
        #[command(flatten)]
        admin: At,
        /// The number of the edge or of the node
        #[arg(value_name = "MEMBER")]
        member: u64,
    },
    /// Take a dead node out of the cluster, and print a token for the one that replaces it
    Replace {
        #[command(flatten)]
        admin: At,
        /// The number of the dead node
        #[arg(value_name = "NODE")]
        node: u64,
        /// For how long the token is good, at most 7d
        #[arg(long, value_name = "TIME", default_value = "15m")]
        ttl: Span,
    },
}

/// Why it was not done.
#[derive(Debug)]
pub(crate) enum ClusterError {
    Config(ConfigError),
    Folder(FolderError),
    Token(TokenError),
    Join(JoinError),
    Command(CommandError),
    Runtime(std::io::Error),
}

impl ClusterError {
    /// Whether the user asked wrongly.
    pub(crate) fn is_usage(&self) -> bool {
        matches!(self, Self::Config(_) | Self::Token(_) | Self::Command(CommandError::Url { .. }))
    }
}

impl std::fmt::Display for ClusterError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Config(error) => error.fmt(f),
            Self::Folder(error) => error.fmt(f),
            Self::Token(error) => error.fmt(f),
            Self::Join(error) => error.fmt(f),
            Self::Command(error) => error.fmt(f),
            Self::Runtime(error) => write!(f, "the system gives no event queue: {error}"),
        }
    }
}

async fn join_as_edge(file: &Path, token: &str) -> Result<String, ClusterError> {
    let config = outrider_edge::Config::load(file).map_err(ClusterError::Config)?;
    let token: Token = token.parse().map_err(ClusterError::Token)?;
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let folder = EdgeFolder::new(&config.control_dir());
    let (number, region) = join_edge(&folder, &token, &name).await.map_err(ClusterError::Join)?;
    let mut text = format!("joined as edge {number}, in {}\n", folder.path().display());
    if !region.is_empty() && region != config.site.region {
        text += &format!(
            "its token is for region {region}, and site.region is {}: one of them is wrong\n",
            config.site.region
        );
    }
    Ok(text + &format!("start it: outrider edge --config {}\n", file.display()))
}

/// Does it; gives what to print.
pub(crate) fn run(command: ClusterCommand) -> Result<String, ClusterError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(ClusterError::Runtime)?;
    runtime.block_on(carry_out(command))
}

async fn carry_out(command: ClusterCommand) -> Result<String, ClusterError> {
    let client = async |at: At| at.client().await.map_err(ClusterError::Command);
    match command {
        ClusterCommand::Init { config: file } => {
            let config = Config::load(&file).map_err(ClusterError::Config)?;
            node::init(&config).map_err(ClusterError::Folder)?;
            Ok(format!(
                "a new cluster with node 1 in {}\nstart it: outrider control --config {}\n",
                config.data.dir.display(),
                file.display()
            ))
        }
        ClusterCommand::Token { admin, role, region, ttl } => {
            let token = client(admin).await?.token(&role, &region, ttl.0).await;
            Ok(format!("{}\n", token.map_err(ClusterError::Command)?))
        }
        ClusterCommand::Join { role, config: file, token } if role == "edge" => {
            join_as_edge(&file, &token).await
        }
        ClusterCommand::Join { config: file, token, .. } => {
            let config = Config::load(&file).map_err(ClusterError::Config)?;
            let token: Token = token.parse().map_err(ClusterError::Token)?;
            let folder = Folder::open(&config.data.dir).map_err(ClusterError::Folder)?;
            let number = join(&folder, &token, &config.name()).await.map_err(ClusterError::Join)?;
            Ok(format!(
                "joined as node {number}\nstart it: outrider control --config {}\n",
                file.display()
            ))
        }
        ClusterCommand::Status { admin, json } => {
            let status = client(admin).await?.status().await.map_err(ClusterError::Command)?;
            Ok(if json { format!("{status:#}\n") } else { status_text(&status) })
        }
        ClusterCommand::Leave { admin } => {
            client(admin).await?.leave().await.map_err(ClusterError::Command)?;
            Ok("the node has left its cluster; stop it, and remove its folder\n".to_owned())
        }
        ClusterCommand::Remove { admin, member } => {
            client(admin).await?.remove(member).await.map_err(ClusterError::Command)?;
            Ok(format!("{member} is no member any more\n"))
        }
        ClusterCommand::Replace { admin, node, ttl } => {
            let client = client(admin).await?;
            client.remove(node).await.map_err(ClusterError::Command)?;
            let token = client.token("node", "", ttl.0).await.map_err(ClusterError::Command)?;
            Ok(format!("{token}\n"))
        }
    }
}
