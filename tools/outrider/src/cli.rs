//! What can be said on the command line.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use outrider_edge::Config;
use outrider_edge::config::{Listen, UpOptions, UpstreamArgument};
use outrider_edge::units::Size;

use crate::cluster::ClusterCommand;
use crate::get::GetArguments;
use crate::graph::GraphCommand;
use crate::operate::{
    CustomerCommand, InvalidateArguments, PlacementCommand, TagsArguments, WeightsArguments,
};
use crate::state::StateCommand;
use crate::status::StatusArguments;

/// An edge cache for container images and other content-addressed artifacts.
#[derive(Debug, Parser)]
#[command(name = "outrider", version, arg_required_else_help = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start on this machine with defaults, no configuration needed
    Up(UpArguments),
    /// Run the daemon from a configuration file
    Edge(EdgeArguments),
    /// Run a node of the control plane
    Control(ControlArguments),
    /// Make, join and look at a cluster of the control plane
    #[command(subcommand)]
    Cluster(ClusterCommand),
    /// Ask the dependency graph of a node
    #[command(subcommand)]
    Graph(GraphCommand),
    /// Read, write and watch fragments of the replicated state
    #[command(subcommand)]
    State(StateCommand),
    /// Say who the customers are to the caches of all edges
    #[command(subcommand)]
    Customer(CustomerCommand),
    /// Show or change the weights of the importance score on all edges
    Weights(WeightsArguments),
    /// Say on how many edges what is pushed must be before that is acknowledged
    #[command(subcommand)]
    Placement(PlacementCommand),
    /// Tell all edges that a tag, a content or a repository is no longer what it was
    Invalidate(InvalidateArguments),
    /// List what the tags of the fleet stand for
    Tags(TagsArguments),
    /// Show how a node or an edge is, and what is wrong; fails when something is
    Status(StatusArguments),
    /// Fetch an image or an artifact from an edge
    Get(Box<GetArguments>),
    /// Make a secret for a customer to log in with, and the line of the file that knows it
    Secret(SecretArguments),
    /// Print the version
    Version,
}

#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    /// Where to keep everything [default: ~/.local/share/outrider]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where to answer HTTPS, or "off" [default: 127.0.0.1:8443]
    #[arg(long, value_name = "ADDR")]
    https: Option<Listen>,
    /// Where to answer plain HTTP (loopback only), or "off" [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<Listen>,
    /// Where to show metrics, health and status, or "off" [default: 127.0.0.1:9180]
    #[arg(long, value_name = "ADDR")]
    admin: Option<Listen>,
    /// How many threads serve [default: one for each CPU]
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// A registry to mirror: URL at the root, NAME=URL as NAME/... and ?ns=NAME; may be repeated
    #[arg(long = "upstream", value_name = "[NAME=]URL")]
    upstreams: Vec<String>,
    /// Memory for the cache [default: an eighth of the memory, at most 1GiB]
    #[arg(long, value_name = "SIZE")]
    ram: Option<Size>,
    /// Disk for the cache, fixed at the first start; 0 for none [default: a tenth of what is free, at most 20GiB]
    #[arg(long, value_name = "SIZE")]
    ssd: Option<Size>,
    /// A further name for the server's certificate; may be repeated
    #[arg(long = "tls-name", value_name = "NAME")]
    tls_names: Vec<String>,
    /// Without a node of the control plane in the process; not once there was one
    #[arg(long)]
    no_control: bool,
}

#[derive(Debug, Args)]
pub(crate) struct EdgeArguments {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Only say whether the configuration is valid
    #[arg(long)]
    pub(crate) check_config: bool,
}

#[derive(Debug, Args)]
pub(crate) struct SecretArguments {
    /// The customer, without spaces
    pub(crate) customer: String,
    /// Append the line to this file, and print the secret alone
    #[arg(long, value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ControlArguments {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE")]
    pub(crate) config: PathBuf,
    /// Only say whether the configuration is valid
    #[arg(long)]
    pub(crate) check_config: bool,
}

impl UpArguments {
    /// The configuration that these arguments ask for.
    pub(crate) fn into_config(self) -> Result<Config, String> {
        // Not by clap, which repeats what it refuses, and with it a password.
        let upstreams = self
            .upstreams
            .iter()
            .map(|text| text.parse::<UpstreamArgument>())
            .collect::<Result<_, _>>()
            .map_err(|error| format!("--upstream: {error}"))?;
        let data = match self.data {
            Some(data) => data,
            None => data_default(|name| std::env::var_os(name)).ok_or_else(|| {
                "--data: neither XDG_DATA_HOME nor HOME says where your data is; name a directory"
                    .to_owned()
            })?,
        };
        Config::for_up(UpOptions {
            data,
            https: self.https,
            http: self.http,
            admin: self.admin,
            shards: self.shards,
            ram: self.ram,
            ssd: self.ssd,
            tls_names: self.tls_names,
            upstreams,
            control: !self.no_control,
        })
        .map_err(|invalid| invalid.to_string())
    }
}

/// `$XDG_DATA_HOME/outrider`, else `~/.local/share/outrider`. Relative ones are ignored, as the XDG Base
/// Directory Specification says.
pub(crate) fn data_default(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let absolute = |name| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base =
        absolute("XDG_DATA_HOME").or_else(|| Some(absolute("HOME")?.join(".local/share")))?;
    Some(base.join("outrider"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::path::Path;

    fn up(arguments: &[&str]) -> Result<Config, String> {
        let all = ["outrider", "up", "--data", "/d"].iter().chain(arguments);
        match Cli::try_parse_from(all).map_err(|e| e.to_string())?.command {
            Command::Up(arguments) => arguments.into_config(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn up_needs_nothing_and_takes_everything() {
        let config = up(&[]).unwrap();
        assert_eq!(config.data.dir, Path::new("/d"));
        assert!(!config.shards.pin);
        let config = up(&[
            "--https",
            "0.0.0.0:443",
            "--http",
            "off",
            "--admin",
            "127.0.0.1:0",
            "--shards",
            "2",
            "--upstream",
            "https://registry-1.docker.io",
            "--upstream",
            "ghcr.io=https://ghcr.io",
            "--ram",
            "128MiB",
            "--ssd",
            "2GiB",
            "--tls-name",
            "edge.example",
        ])
        .unwrap();
        assert_eq!(config.listen.https, "0.0.0.0:443".parse().unwrap());
        assert_eq!(config.listen.http, Listen::Off);
        assert_eq!(config.shards.count, Some(2));
        assert_eq!(config.cache.ssd, Some(Size::gib(2)));
        let names: Vec<_> = config.upstream.iter().map(|u| u.name.as_deref()).collect();
        assert_eq!(names, [None, Some("ghcr.io")]);
    }

    #[test]
    fn what_is_wrong_is_named_with_what_to_write() {
        for (arguments, wanted) in [
            (["--http", "0.0.0.0:8080"], "plain HTTP is for this machine only"),
            (["--shards", "0"], "it must be 1 to 64"),
            (["--upstream", "registry.example"], "write https://registry.example"),
            (["--upstream", "https://u:p@registry.example"], "does not belong into a URL"),
            (["--ssd", "20G"], "is not a size"),
            (["--https", "8443"], "write IP:PORT"),
            (["--nonsense", "1"], "--nonsense"),
        ] {
            let message = up(&arguments).unwrap_err();
            assert!(message.contains(wanted), "{arguments:?} gave {message}");
            assert!(!message.contains("u:p"), "{message}");
        }
        let twice = ["--upstream", "x=https://a.example", "--upstream", "x=https://b.example"];
        assert!(up(&twice).unwrap_err().contains("another upstream has that name"));
    }

    #[test]
    fn the_data_directory_is_where_the_user_keeps_data() {
        let with = |xdg: &'static str, home: &'static str| {
            data_default(move |name| {
                let value = if name == "HOME" { home } else { xdg };
                (!value.is_empty()).then(|| value.into())
            })
        };
        assert_eq!(with("", "/home/u"), Some("/home/u/.local/share/outrider".into()));
        assert_eq!(with("/xdg", "/home/u"), Some("/xdg/outrider".into()));
        assert_eq!(with("relative", "/home/u"), Some("/home/u/.local/share/outrider".into()));
        assert_eq!(with("", ""), None);
    }
}
