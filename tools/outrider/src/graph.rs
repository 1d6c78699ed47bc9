//! `outrider graph`: the named queries over the dependency graph of a node.

mod draw;

use clap::{Args, Subcommand};
use outrider_graph::{Answer, Kind, Row};
use outrider_node::command::CommandError;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::at::{self, At};

#[derive(Debug, Subcommand)]
pub(crate) enum GraphCommand {
    #[command(flatten)]
    Query(QueryCommand),
    /// How the store is, and how large the graph
    Status {
        #[command(flatten)]
        admin: At,
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum QueryCommand {
    /// Which images use a layer, and in how many of their versions
    Images {
        /// Its digest
        layer: String,
        #[command(flatten)]
        how: How,
    },
    /// The layers that two images have in common, or two customers
    Shared {
        /// An image, or a customer
        one: String,
        /// The other one
        other: String,
        /// They are customers
        #[arg(long)]
        customers: bool,
        #[command(flatten)]
        how: How,
    },
    /// How many layers a layer needs under it and has on it; or how deep an image is
    Depth {
        /// A layer's digest, or an image
        name: String,
        #[command(flatten)]
        how: How,
    },
    /// The layers of a version that its predecessor, or another one, does not have
    Added {
        /// The image
        image: String,
        /// A tag or a digest
        version: String,
        /// A tag or a digest [default: the predecessor]
        since: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// The layers that are most often in one version with this one
    Neighbours {
        /// Its digest
        layer: String,
        #[command(flatten)]
        how: How,
    },
    /// Which customers, images, versions and indexes a bad layer affects
    Affected {
        /// Its digest
        layer: String,
        #[command(flatten)]
        how: How,
    },
}

#[derive(Debug, Args)]
pub(crate) struct How {
    #[command(flatten)]
    admin: At,
    /// The most rows of each kind, 1 to 1000
    #[arg(long, value_name = "N", default_value_t = outrider_graph::query::LIMIT_DEFAULT)]
    limit: usize,
    /// As JSON
    #[arg(long, conflicts_with_all = ["dot", "svg"])]
    json: bool,
    /// As a graph in Graphviz's language
    #[arg(long, conflicts_with = "svg")]
    dot: bool,
    /// As a picture
    #[arg(long)]
    svg: bool,
}

impl QueryCommand {
    /// Its name and its parameters.
    fn query(self) -> (&'static str, Vec<(&'static str, String)>, How) {
        match self {
            Self::Images { layer, how } => ("images", vec![("layer", layer)], how),
            Self::Shared { one, other, customers, how } => {
                let what = if customers { "customer" } else { "image" };
                ("shared", vec![(what, one), (what, other)], how)
            }
            Self::Depth { name, how } => {
                // Names of repositories have no colon, digests do.
                let what = if name.contains(':') { "layer" } else { "image" };
                ("depth", vec![(what, name)], how)
            }
            Self::Added { image, version, since, how } => {
                let mut all = vec![("image", image), ("version", version)];
                all.extend(since.map(|since| ("since", since)));
                ("added", all, how)
            }
            Self::Neighbours { layer, how } => ("neighbours", vec![("layer", layer)], how),
            Self::Affected { layer, how } => ("affected", vec![("layer", layer)], how),
        }
    }
}

/// Asks a node; the text to print.
pub(crate) fn run(command: GraphCommand) -> Result<String, CommandError> {
    let (name, mut parameters, how) = match command {
        GraphCommand::Query(query) => query.query(),
        GraphCommand::Status { admin, json } => {
            let status = ask(admin, "")?;
            return Ok(if json { format!("{status:#}\n") } else { status_text(&status) });
        }
    };
    parameters.push(("limit", how.limit.to_string()));
    let encoded = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    let path = format!("/{name}?{}", encoded.collect::<Vec<_>>().join("&"));
    let value = ask(how.admin, &path)?;
    if how.json {
        return Ok(format!("{value:#}\n"));
    }
    let answer: Answer = serde_json::from_value(value)
        .map_err(|error| CommandError::Refused(format!("an answer that is none: {error}")))?;
    Ok(match (how.dot, how.svg) {
        (true, _) => draw::dot(&draw::picture(name, &answer)),
        (_, true) => draw::svg(&draw::picture(name, &answer)),
        _ => text(&answer),
    })
}

fn ask(at: At, path: &str) -> Result<Value, CommandError> {
    at::run(async { at.client().await?.graph(path).await })
}

/// One row a line; what is asked about first, indented less.
fn text(answer: &Answer) -> String {
    let mut out = String::new();
    for row in &answer.about {
        out.push_str(&format!("{}\n", line(row)));
    }
    for row in &answer.rows {
        out.push_str(&format!("  {}\n", line(row)));
    }
    if answer.more {
        out.push_str("  … and more (--limit)\n");
    }
    out
}

fn line(row: &Row) -> String {
    let mut out = format!("{:<9} ", row.kind.as_str());
    match (&row.image, &row.tag) {
        (Some(image), Some(tag)) => out.push_str(&format!("{image}:{tag} {}", row.name)),
        (Some(image), None) => out.push_str(&format!("{image} {}", row.name)),
        _ => out.push_str(&row.name),
    }
    let mut add = |name: &str, value: Option<u64>| {
        if let Some(value) = value {
            out.push_str(&format!("  {name} {value}"));
        }
    };
    add("bytes", row.bytes);
    add("together", row.together);
    add("versions", row.versions);
    add("below", row.below);
    add("above", row.above);
    add("dependants", row.dependants);
    add("depth", row.depth);
    if row.kind.is_content() || matches!(row.kind, Kind::Version | Kind::Index) {
        add("accesses", row.accesses);
    }
    out
}

fn status_text(status: &Value) -> String {
    let plain = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let mut out = format!("{} store, {}", plain(&status["store"]), plain(&status["state"]));
    if let Some(error) = status["error"].as_str() {
        out.push_str(&format!(": {error}"));
    }
    out.push('\n');
    for (kind, count) in status["nodes"].as_object().into_iter().flatten() {
        out.push_str(&format!("  {kind:<9} {count}\n"));
    }
    for (source, last) in status["positions"].as_object().into_iter().flatten() {
        out.push_str(&format!("  {source} up to {last}\n"));
    }
    out
}
