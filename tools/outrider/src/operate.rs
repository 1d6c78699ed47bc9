//! `outrider customer`, `weights`, `placement`, `invalidate` and `tags`: what all edges go by.

use clap::{Args, Subcommand};
use http::Method;
use outrider_node::command::{AdminClient, Call, CommandError};
use outrider_settings::units::Size;
use serde_json::{Map, Value, json};

use crate::at::{self, At};
use crate::state::{encoded, pages};

#[derive(Debug, Subcommand)]
pub(crate) enum CustomerCommand {
    /// List the customers
    List {
        /// As JSON, one customer a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: At,
    },
    /// Make a customer, or change what is said of it here
    Set {
        name: String,
        /// The weight of its class of service, 0 to 1000 [default of a new one: 1]
        #[arg(long, value_name = "WEIGHT")]
        class: Option<f64>,
        /// Memory and disk that each edge keeps for it
        #[arg(long, value_name = "SIZE")]
        guaranteed: Option<Size>,
        /// What it may have stored; 0 for no bound
        #[arg(long, value_name = "SIZE")]
        stored_max: Option<Size>,
        /// Requests that it may make at each edge; 0 for no bound
        #[arg(long, value_name = "N")]
        requests_per_second: Option<u32>,
        /// Seconds after which content that it has not used goes first; 0 for as the upstream says
        #[arg(long, value_name = "SECONDS")]
        content_ttl: Option<u32>,
        #[command(flatten)]
        admin: At,
    },
    /// Remove a customer
    Remove {
        name: String,
        #[command(flatten)]
        admin: At,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum PlacementCommand {
    /// List the rules
    List {
        /// As JSON, one rule a line
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        admin: At,
    },
    /// Set the rule of some repositories
    Set {
        /// A repository, which is for all below it too; / for all repositories
        prefix: String,
        /// Edges that must have what is pushed before that is acknowledged, 1 to 5
        #[arg(long, value_name = "N")]
        replicas: u8,
        /// Count edges of this region only; may be given several times [default: all edges]
        #[arg(long = "region", value_name = "REGION")]
        regions: Vec<String>,
        #[command(flatten)]
        admin: At,
    },
    /// Remove a rule
    Remove {
        /// As it is listed
        prefix: String,
        #[command(flatten)]
        admin: At,
    },
}

#[derive(Debug, Args)]
pub(crate) struct WeightsArguments {
    /// Of the customer's class
    #[arg(long)]
    class: Option<f64>,
    /// Of how often a content is asked for
    #[arg(long)]
    frequency: Option<f64>,
    /// Of how long it took to fetch
    #[arg(long)]
    fetch: Option<f64>,
    /// Of how long it takes to compile or run
    #[arg(long)]
    execute: Option<f64>,
    /// Of how many others depend on it
    #[arg(long)]
    depth: Option<f64>,
    #[command(flatten)]
    admin: At,
}

#[derive(Debug, Args)]
pub(crate) struct InvalidateArguments {
    /// REPOSITORY:TAG or a digest; a repository with --repository
    what: String,
    /// It is a repository: all of it
    #[arg(long)]
    repository: bool,
    #[command(flatten)]
    admin: At,
}

#[derive(Debug, Args)]
pub(crate) struct TagsArguments {
    /// Those of this repository
    #[arg(conflicts_with = "prefix")]
    repository: Option<String>,
    /// Those of repositories that begin so
    #[arg(long)]
    prefix: Option<String>,
    /// As JSON, one tag a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    admin: At,
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

async fn put(client: &AdminClient, path: &str, value: &Value) -> Result<(), CommandError> {
    let body = value.to_string().into();
    client.call(Call { body, ..Call::new(Method::PUT, path) }).await?.done()
}

/// `outrider customer`.
pub(crate) fn customer(command: CustomerCommand) -> Result<String, CommandError> {
    at::run(async {
        match command {
            CustomerCommand::List { json, admin } => {
                let client = admin.client().await?;
                let rows = pages(&client, "/v1/customers", "customers", |row| text(&row["name"]));
                let line = |row: &Value| match json {
                    true => format!("{row}\n"),
                    false => customer_line(row),
                };
                Ok(rows.await?.iter().map(line).collect())
            }
            CustomerCommand::Set {
                name,
                class,
                guaranteed,
                stored_max,
                requests_per_second,
                content_ttl,
                admin,
            } => {
                let (client, path) =
                    (admin.client().await?, format!("/v1/customers/{}", encoded(&name)));
                let found = client.call(Call::new(Method::GET, &path)).await?;
                let mut customer = match found.status.as_u16() {
                    404 => json!({ "class": 1.0 }),
                    _ => found.json()?,
                };
                let size = |size: Option<Size>| size.map(|size| json!(size.0));
                change(
                    &mut customer,
                    [
                        ("class", class.map(|class| json!(class))),
                        ("guaranteed_bytes", size(guaranteed)),
                        ("stored_bytes_max", size(stored_max)),
                        ("requests_per_second_max", requests_per_second.map(|n| json!(n))),
                        ("content_ttl_s", content_ttl.map(|n| json!(n))),
                    ],
                );
                put(&client, &path, &customer).await?;
                customer["name"] = json!(name);
                Ok(customer_line(&customer))
            }
            CustomerCommand::Remove { name, admin } => {
                let path = format!("/v1/customers/{}", encoded(&name));
                admin.client().await?.call(Call::new(Method::DELETE, path)).await?.done()?;
                Ok(String::new())
            }
        }
    })
}

fn change<const N: usize>(value: &mut Value, changes: [(&str, Option<Value>); N]) {
    for (name, new) in changes {
        if let Some(new) = new {
            value[name] = new;
        }
    }
}

fn customer_line(row: &Value) -> String {
    let number = |name: &str| row[name].as_u64().unwrap_or(0);
    let mut line = format!("{}  class {}", text(&row["name"]), row["class"]);
    if number("guaranteed_bytes") > 0 {
        line.push_str(&format!("  guaranteed {}", Size(number("guaranteed_bytes"))));
    }
    if number("stored_bytes_max") > 0 {
        line.push_str(&format!("  stored at most {}", Size(number("stored_bytes_max"))));
    }
    if number("requests_per_second_max") > 0 {
        line.push_str(&format!("  at most {} requests/s", number("requests_per_second_max")));
    }
    if number("content_ttl_s") > 0 {
        line.push_str(&format!("  unused content for {} s", number("content_ttl_s")));
    }
    line + "\n"
}

/// `outrider placement`.
pub(crate) fn placement(command: PlacementCommand) -> Result<String, CommandError> {
    at::run(async {
        match command {
            PlacementCommand::List { json, admin } => {
                let call = Call::new(Method::GET, "/v1/placement");
                let found = admin.client().await?.call(call).await?.json()?;
                let rows = found["placements"].as_array().cloned().unwrap_or_default();
                let line = |row: &Value| match json {
                    true => format!("{row}\n"),
                    false => placement_line(row),
                };
                Ok(rows.iter().map(line).collect())
            }
            PlacementCommand::Set { prefix, replicas, regions, admin } => {
                let mut rule = json!({ "replicas": replicas, "regions": regions });
                put(&admin.client().await?, &placement_path(&prefix), &rule).await?;
                rule["prefix"] = json!(prefix);
                Ok(placement_line(&rule))
            }
            PlacementCommand::Remove { prefix, admin } => {
                let call = Call::new(Method::DELETE, placement_path(&prefix));
                admin.client().await?.call(call).await?.done()?;
                Ok(String::new())
            }
        }
    })
}

/// `/` is no repository's name.
fn placement_path(prefix: &str) -> String {
    let prefix = if prefix == "/" { "" } else { prefix };
    format!("/v1/placement/{}", encoded(prefix))
}

fn placement_line(row: &Value) -> String {
    let prefix = match &*text(&row["prefix"]) {
        "" => "/".to_owned(),
        prefix => prefix.to_owned(),
    };
    let regions: Vec<String> = row["regions"].as_array().into_iter().flatten().map(text).collect();
    let of = if regions.is_empty() { String::new() } else { format!(" of {}", regions.join(", ")) };
    format!("{prefix}  on {} edges{of}\n", row["replicas"])
}

/// `outrider weights`.
pub(crate) fn weights(arguments: WeightsArguments) -> Result<String, CommandError> {
    at::run(async {
        let WeightsArguments { class, frequency, fetch, execute, depth, admin } = arguments;
        let client = admin.client().await?;
        let mut weights = client.call(Call::new(Method::GET, "/v1/weights")).await?.json()?;
        let changes = [
            ("class", class),
            ("frequency", frequency),
            ("fetch", fetch),
            ("execute", execute),
            ("depth", depth),
        ];
        if changes.iter().any(|(_, weight)| weight.is_some()) {
            change(&mut weights, changes.map(|(name, weight)| (name, weight.map(|w| json!(w)))));
            put(&client, "/v1/weights", &weights).await?;
        }
        let rows = weights.as_object().into_iter().flat_map(Map::iter);
        Ok(rows.map(|(name, weight)| format!("{name:<10} {weight}\n")).collect())
    })
}

/// `outrider invalidate`.
pub(crate) fn invalidate(arguments: InvalidateArguments) -> Result<String, CommandError> {
    let InvalidateArguments { what, repository, admin } = arguments;
    let kind = match (repository, what.parse::<outrider_artifact::Digest>()) {
        (true, _) => "repository",
        (false, Ok(_)) => "digest",
        (false, Err(_)) => "tag",
    };
    let body = json!({ kind: what }).to_string().into();
    at::run(async {
        let call = Call { body, ..Call::new(Method::POST, "/v1/invalidations") };
        let answer = admin.client().await?.call(call).await?;
        answer.done()?;
        Ok(format!("told as version {}\n", answer.version.unwrap_or(0)))
    })
}

/// `outrider tags`.
pub(crate) fn tags(arguments: TagsArguments) -> Result<String, CommandError> {
    let TagsArguments { repository, prefix, json, admin } = arguments;
    let base = match (repository, prefix) {
        (Some(repository), _) => format!("/v1/tags?repository={}", encoded(&repository)),
        (None, Some(prefix)) => format!("/v1/tags?prefix={}", encoded(&prefix)),
        (None, None) => "/v1/tags".to_owned(),
    };
    let name = |row: &Value| format!("{}:{}", text(&row["repository"]), text(&row["tag"]));
    at::run(async {
        let rows = pages(&admin.client().await?, &base, "tags", name).await?;
        let line = |row: &Value| match json {
            true => format!("{row}\n"),
            false => {
                let upstream = row["upstream"].as_str().map(|name| format!("  of {name}"));
                let holders = row["holders"].as_array().map_or(0, Vec::len);
                let held = format!("  held by {holders}");
                let digest = text(&row["digest"]);
                format!("{}  {digest}{}\n", name(row), upstream.unwrap_or(held))
            }
        };
        Ok(rows.iter().map(line).collect())
    })
}
