//! Measures the dependency graph over the manifests of a folder of traces (`images.csv.xz`, `layers.csv.xz`,
//! `image_layers.csv.xz`): how fast they are analysed and applied, how long every named query takes, and whether
//! a Neo4j gives the same rows.

#![forbid(unsafe_code)]

mod queries;
mod trace;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use outrider_graph::neo4j::Options;
use outrider_graph::{Batch, Embedded, Graph, Neo4j, Position, analyse};

use trace::Manifest;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Memory for pages of the embedded store: what a node has by default.
const CACHE_BYTES: usize = 64 << 20;

/// Measures the dependency graph over real manifests
#[derive(Parser)]
struct Arguments {
    /// The folder with images.csv.xz, layers.csv.xz and image_layers.csv.xz (`xz` is run to read them)
    #[arg(value_name = "FOLDER")]
    traces: PathBuf,
    /// Where the embedded graph is written [default: a temporary folder]
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// Manifests of one batch
    #[arg(long, value_name = "N", default_value_t = 1024)]
    batch: usize,
    /// Layers and images that are asked about, for each query
    #[arg(long, value_name = "N", default_value_t = 200)]
    samples: usize,
    /// Rows of one answer
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
    /// An empty Neo4j that gets the same batches and is asked the same
    #[arg(long, value_name = "bolt://HOST:PORT")]
    neo4j: Option<String>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(measure(&arguments)),
        Err(error) => Err(error.to_string()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "outrider-bench-graph: {error}");
            ExitCode::FAILURE
        }
    }
}

fn say(line: &str) {
    let _ = writeln!(std::io::stdout(), "{line}");
}

async fn measure(arguments: &Arguments) -> Result<(), String> {
    let manifests = trace::read(&arguments.traces)?;
    let bytes: usize = manifests.iter().map(|manifest| manifest.bytes.len()).sum();
    say(&format!("{} manifests, {bytes} bytes", manifests.len()));
    let scratch = tempfile::tempdir().map_err(|error| error.to_string())?;
    let data = arguments.data.as_deref().unwrap_or(scratch.path());
    let path = data.join("graph.redb");
    let embedded = Embedded::open(&path, CACHE_BYTES).map_err(|error| error.to_string())?;
    fill("embedded", &embedded, &manifests, arguments.batch).await?;
    let length = std::fs::metadata(&path).map_err(|error| error.to_string())?.len();
    say(&format!("embedded file: {} MiB", length >> 20));
    let stats = embedded.stats().await.map_err(|error| error.to_string())?;
    say(&format!("nodes {:?}, contains {}", stats.nodes, stats.contains));

    let asked = queries::choose(&manifests, arguments.samples, arguments.limit)?;
    let answers = queries::run("embedded", &embedded, &asked).await?;
    let Some(url) = &arguments.neo4j else { return Ok(()) };
    let time_max = Duration::from_secs(600);
    let options = Options { url: url.clone(), ca: None, login: None, database: None, time_max };
    let neo4j = Neo4j::new(options)?;
    fill("neo4j", &neo4j, &manifests, arguments.batch).await?;
    let theirs = neo4j.stats().await.map_err(|error| error.to_string())?;
    if theirs != stats {
        return Err(format!("neo4j has {theirs:?}"));
    }
    let theirs = queries::run("neo4j", &neo4j, &asked).await?;
    queries::compare(&asked, &answers, &theirs)
}

/// Analyses and applies all manifests, as they would come from one queue.
async fn fill(
    name: &str,
    graph: &dyn Graph,
    manifests: &[Manifest],
    batch: usize,
) -> Result<(), String> {
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let (mut analysis, mut slowest, mut last) = (Duration::ZERO, Duration::ZERO, 0);
    for some in manifests.chunks(batch.max(1)) {
        let begun = Instant::now();
        let found = some.iter().map(|manifest| {
            analyse(&manifest.bytes, Some(trace::MANIFEST), manifest.seen.clone())
                .map_err(|error| format!("{}: {error}", manifest.seen.image))
        });
        let found = found.collect::<Result<Vec<_>, _>>()?;
        analysis += begun.elapsed();
        last += 1;
        let position = Some(Position::new("traces", last));
        let begun = Instant::now();
        let batch = Batch { position, found, ..Batch::default() };
        graph.apply(batch).await.map_err(|error| error.to_string())?;
        slowest = slowest.max(begun.elapsed());
    }
    let took = started.elapsed();
    say(&format!(
        "{name}: analysed and applied in {:.2} s: {:.0} manifests a second (analysis alone {:.0}), \
         slowest batch {:.0} ms; {:.1} s of CPU of this process, load {}",
        took.as_secs_f64(),
        manifests.len() as f64 / took.as_secs_f64(),
        manifests.len() as f64 / analysis.as_secs_f64(),
        slowest.as_secs_f64() * 1e3,
        cpu_seconds() - cpu,
        std::fs::read_to_string("/proc/loadavg").unwrap_or_default().trim(),
    ));
    Ok(())
}

/// User and system time of this process; its clock has 100 ticks a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The name, which may have spaces, ends with the last bracket.
    let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
    let ticks =
        after.split_whitespace().skip(11).take(2).filter_map(|text| text.parse::<f64>().ok());
    ticks.sum::<f64>() / 100.0
}
