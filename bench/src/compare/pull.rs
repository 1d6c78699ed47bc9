//! `compare pull`: a multi-layer image is pulled through Outrider, docker-registry 2.8 and
//! distribution 3, each a pull-through cache of the same plain registry: cold, with nothing cached,
//! and warm. All are on plain HTTP on loopback, and none is pinned.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::{order, version};
use crate::arguments::{ComparePullArguments, Contender};
use crate::image::{self, Image};
use crate::peers::outrider::{Options, Outrider};
use crate::peers::registry::{self, Registry};
use crate::peers::{find, outrider};
use crate::report::{self, Heading, Table};
use crate::statistics::{Ratio, Spread};
use crate::{BenchError, machine};

const REPOSITORY: &str = "benchmark/image";
const TAG: &str = "v1";
/// The caches write what they fetched after the client has it; a warm pull comes after that.
const SETTLE: Duration = Duration::from_secs(1);
/// Warm pulls of a round; the median counts.
const WARM_PULLS: u32 = 3;
const SEED: u64 = 0x0070_756c_6c65_6421;
/// Others that used more than this in a round disturbed it.
const OTHERS_CORES_MAX: f64 = 0.1;

#[derive(Clone, Debug, Serialize)]
struct Times {
    contender: Contender,
    version: String,
    cold_ms: Vec<f64>,
    warm_ms: Vec<f64>,
    cold: Spread,
    warm: Spread,
}

#[derive(Clone, Debug, Serialize)]
struct AgainstOutrider {
    contender: Contender,
    /// Outrider's time over the other's; below 1 is faster.
    cold: Ratio,
    warm: Ratio,
}

#[derive(Clone, Debug, Serialize)]
struct Report {
    image_bytes: u64,
    layers: u32,
    parallel: u32,
    times: Vec<Times>,
    ratios: Vec<AgainstOutrider>,
    notes: Vec<String>,
}

/// A cache that runs for one round.
enum Running {
    Outrider(Outrider),
    Registry(Registry),
}

impl Running {
    fn http(&self) -> SocketAddr {
        match self {
            Self::Outrider(server) => server.http,
            Self::Registry(server) => server.http,
        }
    }
}

/// The verb.
///
/// # Errors
/// When a server is missing or fails, or a pull does not give the right bytes.
pub fn verb(arguments: &ComparePullArguments) -> Result<(), BenchError> {
    let contenders: Vec<Contender> = match arguments.only.as_slice() {
        [] => vec![Contender::Outrider, Contender::DockerRegistry, Contender::Distribution],
        only => only.to_vec(),
    };
    let docker_registry = find("docker-registry".as_ref(), registry::INSTALL_2)?;
    let programs = contenders
        .iter()
        .map(|contender| match contender {
            Contender::Outrider => find(&arguments.outrider, outrider::INSTALL),
            Contender::DockerRegistry => Ok(docker_registry.clone()),
            Contender::Distribution => find(&arguments.distribution, registry::INSTALL_3),
        })
        .collect::<Result<Vec<PathBuf>, BenchError>>()?;
    let heading = Heading::new(format!(
        "compare pull: an image of {} in {} layers, {} blobs at a time, through pull-through caches \
         of a plain docker-registry; {} interleaved rounds with empty caches; plain HTTP, not pinned",
        report::bytes(arguments.size),
        arguments.layers,
        arguments.parallel,
        arguments.rounds,
    ));

    let folder = tempfile::Builder::new()
        .prefix("outrider-bench-")
        .tempdir()
        .map_err(BenchError::io("making a folder"))?;
    let upstream =
        Registry::start("the upstream", &docker_registry, &folder.path().join("upstream"), None)?;
    let image = Image::generate(SEED, arguments.size, arguments.layers);
    image.push(upstream.http, REPOSITORY, TAG)?;

    let mut cold_ms = vec![Vec::new(); contenders.len()];
    let mut warm_ms = vec![Vec::new(); contenders.len()];
    for round in 0..arguments.rounds {
        for index in order(contenders.len(), round) {
            let place = folder.path().join(format!("round-{round}-{index}"));
            let url = format!("http://{}", upstream.http);
            let running = start(contenders[index], &programs[index], &place, &url)?;
            let (cold, warm) = measure(running.http(), &image, arguments.parallel)?;
            drop(running);
            std::fs::remove_dir_all(&place)
                .map_err(BenchError::io(format!("removing {}", place.display())))?;
            report::progress(&format!(
                "round {} of {}, {}: cold {cold:.0} ms, warm {warm:.0} ms",
                round + 1,
                arguments.rounds,
                contenders[index].name(),
            ));
            cold_ms[index].push(cold);
            warm_ms[index].push(warm);
        }
    }

    let void = || BenchError::Void("there were no rounds".to_owned());
    let mut times = Vec::new();
    for (index, contender) in contenders.iter().enumerate() {
        times.push(Times {
            contender: *contender,
            version: version(&programs[index], "--version"),
            cold: Spread::of(&cold_ms[index]).ok_or_else(void)?,
            warm: Spread::of(&warm_ms[index]).ok_or_else(void)?,
            cold_ms: std::mem::take(&mut cold_ms[index]),
            warm_ms: std::mem::take(&mut warm_ms[index]),
        });
    }
    let ratios = ratios(&times);
    let report = Report {
        image_bytes: image.size_bytes(),
        layers: arguments.layers,
        parallel: arguments.parallel,
        notes: notes(&heading),
        times,
        ratios,
    };
    heading.print(arguments.json, &text(&report), &report)
}

fn start(
    contender: Contender,
    program: &PathBuf,
    place: &Path,
    upstream: &str,
) -> Result<Running, BenchError> {
    Ok(match contender {
        Contender::Outrider => {
            let options = Options { upstream: Some(upstream), ..Options::default() };
            Running::Outrider(Outrider::start(program, place, &options)?)
        }
        Contender::DockerRegistry | Contender::Distribution => {
            Running::Registry(Registry::start(contender.name(), program, place, Some(upstream))?)
        }
    })
}

/// One cold pull and the median of the warm ones, in milliseconds.
fn measure(server: SocketAddr, image: &Image, parallel: u32) -> Result<(f64, f64), BenchError> {
    let pull = || {
        let start = Instant::now();
        let received = image::pull(server, REPOSITORY, TAG, parallel)?;
        let ms = start.elapsed().as_secs_f64() * 1e3;
        if received != image.size_bytes() {
            let text = format!("{received} bytes came, {} were pushed", image.size_bytes());
            return Err(BenchError::Protocol(text));
        }
        Ok(ms)
    };
    let cold = pull()?;
    thread::sleep(SETTLE);
    let warm = (0..WARM_PULLS).map(|_| pull()).collect::<Result<Vec<f64>, BenchError>>()?;
    let warm = Spread::of(&warm).map_or(f64::NAN, |spread| spread.median);
    Ok((cold, warm))
}

fn ratios(times: &[Times]) -> Vec<AgainstOutrider> {
    let Some(outrider) = times.iter().find(|times| times.contender == Contender::Outrider) else {
        return Vec::new();
    };
    times
        .iter()
        .filter(|times| times.contender != Contender::Outrider)
        .filter_map(|other| {
            Some(AgainstOutrider {
                contender: other.contender,
                cold: Ratio::of(&outrider.cold_ms, &other.cold_ms)?,
                warm: Ratio::of(&outrider.warm_ms, &other.warm_ms)?,
            })
        })
        .collect()
}

fn notes(heading: &Heading) -> Vec<String> {
    let mut notes = Vec::new();
    if heading.machine.load_average > OTHERS_CORES_MAX * machine::usable().len() as f64 {
        notes.push(format!(
            "the load average was {:.2} before this run began: other programs may have disturbed it",
            heading.machine.load_average
        ));
    }
    if cfg!(debug_assertions) {
        notes.push("the client is a debug build".to_owned());
    }
    notes
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    let mut table =
        Table::new(["through", "cold min", "median", "max", "warm min", "median", "max"]);
    for times in &report.times {
        let ms = |value: f64| format!("{value:.0} ms");
        table.row([
            times.contender.name().to_owned(),
            ms(times.cold.min),
            ms(times.cold.median),
            ms(times.cold.max),
            ms(times.warm.min),
            ms(times.warm.median),
            ms(times.warm.max),
        ]);
    }
    text.push_str(&table.render());
    text.push('\n');
    for times in &report.times {
        let _ = writeln!(text, "{}: {}", times.contender.name(), times.version);
    }
    if !report.ratios.is_empty() {
        text.push('\n');
        let mut table = Table::new([
            "outrider's time over that of",
            "cold, of medians",
            "worst pair",
            "",
            "warm, of medians",
            "worst pair",
            "",
        ]);
        for ratio in &report.ratios {
            let verdict = |passed: bool| if passed { "passed" } else { "MISSED" }.to_owned();
            table.row([
                ratio.contender.name().to_owned(),
                format!("{:.3}", ratio.cold.of_medians),
                format!("{:.3}", ratio.cold.of_pairs.max),
                verdict(ratio.cold.of_medians <= 1.0),
                format!("{:.3}", ratio.warm.of_medians),
                format!("{:.3}", ratio.warm.of_pairs.max),
                verdict(ratio.warm.of_medians < 1.0),
            ]);
        }
        text.push_str(&table.render());
    }
    for note in &report.notes {
        let _ = writeln!(text, "\nNOTE  {note}");
    }
    text
}
