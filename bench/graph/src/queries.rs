//! Which queries are asked, how long they take, and whether two stores answer them alike.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use outrider_artifact::{Digest, Reference};
use outrider_graph::{Answer, Asked, Graph, GraphError, Query};

use crate::say;
use crate::trace::Manifest;

/// What a store said.
pub(crate) type Said = Result<Answer, GraphError>;

/// About the layers, images and customers that are used most, and about random ones. The same seed always.
pub(crate) fn choose(
    manifests: &[Manifest],
    samples: usize,
    limit: usize,
) -> Result<Vec<Asked>, String> {
    let (mut uses, mut images, mut customers) = (HashMap::new(), HashMap::new(), HashMap::new());
    for manifest in manifests {
        for layer in manifest.layers.iter().collect::<HashSet<_>>() {
            *uses.entry(*layer).or_insert(0_u64) += 1;
        }
        *images.entry(manifest.seen.image.clone()).or_insert(0_u64) += 1;
        *customers.entry(manifest.seen.customer.clone()).or_insert(0_u64) += 1;
    }
    let layers = pick(uses, samples);
    let images = pick(images, samples);
    let customers = pick(customers, samples);
    let mut random = fastrand::Rng::with_seed(7);
    let mut queries = Vec::new();
    for layer in layers {
        let layer: Digest = layer;
        queries.push(Query::Images { layer });
        queries.push(Query::LayerDepth { layer });
        queries.push(Query::Neighbours { layer });
        queries.push(Query::Affected { layer });
    }
    // The largest with the largest first, then the largest with all others.
    for (place, other) in images.iter().enumerate() {
        let one = &images[place.saturating_sub(1)];
        queries.push(Query::SharedByImages { images: [one.clone(), other.clone()] });
        queries.push(Query::ImageDepth { image: other.clone() });
    }
    for (place, other) in customers.iter().enumerate() {
        let one = &customers[place.saturating_sub(1)];
        queries.push(Query::SharedByCustomers { customers: [one.clone(), other.clone()] });
    }
    for _ in 0..samples {
        let manifest = random.choice(manifests).ok_or("there are no manifests")?;
        let image = manifest.seen.image.clone();
        let tag = manifest.seen.tag.clone().ok_or("it has no tag")?;
        queries.push(Query::Added { image, version: Reference::Tag(tag), since: None });
    }
    Ok(queries.into_iter().map(|query| Asked { query, limit }).collect())
}

/// Half of them the most frequent ones, in that order, and half random.
fn pick<T: Ord + Clone>(counts: HashMap<T, u64>, samples: usize) -> Vec<T> {
    let mut all: Vec<(T, u64)> = counts.into_iter().collect();
    all.sort_by(|(a, one), (b, other)| other.cmp(one).then(a.cmp(b)));
    let most = all.len().min(samples / 2);
    fastrand::Rng::with_seed(7).shuffle(&mut all[most..]);
    all.into_iter().take(samples).map(|(one, _)| one).collect()
}

/// Asks them one after the other; says how long each kind took.
pub(crate) async fn run(
    name: &str,
    graph: &dyn Graph,
    asked: &[Asked],
) -> Result<Vec<Said>, String> {
    let mut times: BTreeMap<String, Vec<Duration>> = BTreeMap::new();
    let (mut answers, mut rows) = (Vec::new(), 0);
    for one in asked {
        let begun = Instant::now();
        let said = graph.ask(one.clone()).await;
        times.entry(kind(&one.query)).or_default().push(begun.elapsed());
        match &said {
            Ok(answer) => rows += answer.rows.len(),
            Err(GraphError::NoPredecessor { .. }) => {}
            Err(error) => return Err(format!("{one:?}: {error}")),
        }
        answers.push(said);
    }
    say(&format!("{name}: {} queries, {rows} rows; milliseconds:", asked.len()));
    for (kind, mut all) in times {
        all.sort_unstable();
        let at = |part: f64| {
            let place = ((all.len() - 1) as f64 * part).round() as usize;
            all[place].as_secs_f64() * 1e3
        };
        say(&format!(
            "  {kind:<18} {:>5} asked, median {:>7.3}, p99 {:>7.3}, slowest {:>7.3}",
            all.len(),
            at(0.5),
            at(0.99),
            at(1.0)
        ));
    }
    Ok(answers)
}

fn kind(query: &Query) -> String {
    match query {
        Query::SharedByCustomers { .. } => "shared (customers)".to_owned(),
        Query::SharedByImages { .. } => "shared (images)".to_owned(),
        Query::ImageDepth { .. } => "depth (image)".to_owned(),
        Query::LayerDepth { .. } => "depth (layer)".to_owned(),
        other => other.name().to_owned(),
    }
}

/// Whether two stores said the same.
pub(crate) fn compare(asked: &[Asked], ours: &[Said], theirs: &[Said]) -> Result<(), String> {
    for ((asked, ours), theirs) in asked.iter().zip(ours).zip(theirs) {
        if ours != theirs {
            return Err(format!("{asked:?}: {ours:?} is not {theirs:?}"));
        }
    }
    say(&format!("both stores gave the same rows to {} queries", asked.len()));
    Ok(())
}
