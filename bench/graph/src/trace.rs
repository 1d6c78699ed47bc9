//! The traces as manifests. Of a layer's digest the trace has the first 16 digits; the others are made from its
//! number. Whose an image is the trace does not say: it is taken to be the first part of its name.

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;

use outrider_artifact::{Digest, RepositoryName, Tag};
use outrider_graph::Seen;
use serde_json::json;

/// What they all are.
pub(crate) const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// One manifest as it would be pushed.
pub(crate) struct Manifest {
    pub(crate) bytes: Vec<u8>,
    pub(crate) seen: Seen,
    /// Its layers, the base first.
    pub(crate) layers: Vec<Digest>,
}

/// The lines of `NAME.csv.xz` after the first, by their parts.
fn table(folder: &Path, name: &str) -> Result<Vec<Vec<String>>, String> {
    let file = folder.join(format!("{name}.csv.xz"));
    let failed = |why: &dyn std::fmt::Display| format!("{}: {why}", file.display());
    let output = Command::new("xz").arg("-dc").arg(&file).output();
    let output = output.map_err(|error| failed(&format!("xz: {error}")))?;
    if !output.status.success() {
        return Err(failed(&String::from_utf8_lossy(&output.stderr).trim()));
    }
    let text = String::from_utf8(output.stdout).map_err(|error| failed(&error))?;
    let lines = text.lines().skip(1);
    Ok(lines.map(|line| line.split(',').map(str::to_owned).collect()).collect())
}

fn part<'a>(line: &'a [String], at: usize, table: &str) -> Result<&'a str, String> {
    line.get(at).map(String::as_str).ok_or_else(|| format!("{table}: a line is too short"))
}

fn digest(prefix: &str, number: &str) -> Result<Digest, String> {
    let rest = Digest::sha256(number.as_bytes()).hex();
    let text = format!("sha256:{prefix}{}", rest.get(prefix.len()..).unwrap_or_default());
    text.parse().map_err(|error| format!("layers.csv.xz: {prefix}: {error}"))
}

/// Reads all of them, in the order of the trace.
pub(crate) fn read(folder: &Path) -> Result<Vec<Manifest>, String> {
    let mut layers = HashMap::new();
    for line in table(folder, "layers")? {
        let [number, prefix, size] =
            [part(&line, 0, "layers")?, part(&line, 1, "layers")?, part(&line, 2, "layers")?];
        let size: u64 = size.parse().map_err(|_| format!("layers.csv.xz: size {size}"))?;
        layers.insert(number.to_owned(), (digest(prefix, number)?, size));
    }
    let mut contents = HashMap::new();
    for line in table(folder, "image_layers")? {
        let all = part(&line, 1, "image_layers")?.split(' ').map(str::to_owned);
        contents.insert(part(&line, 0, "image_layers")?.to_owned(), all.collect::<Vec<_>>());
    }
    let mut manifests = Vec::new();
    for line in table(folder, "images")? {
        let number = part(&line, 0, "images")?;
        let all = contents.get(number).map(Vec::as_slice).unwrap_or_default();
        let all = all.iter().map(|layer| {
            layers.get(layer).copied().ok_or_else(|| format!("there is no layer {layer}"))
        });
        let all: Vec<(Digest, u64)> = all.collect::<Result<_, _>>()?;
        manifests.push(manifest(&line, number, &all)?);
    }
    Ok(manifests)
}

fn manifest(line: &[String], number: &str, all: &[(Digest, u64)]) -> Result<Manifest, String> {
    let name = part(line, 1, "images")?;
    let image: RepositoryName = name.parse().map_err(|error| format!("{name}: {error}"))?;
    let tag = part(line, 2, "images")?;
    let tag: Tag = tag.parse().map_err(|error| format!("{name}:{tag}: {error}"))?;
    let config = Digest::sha256(format!("config {number}").as_bytes());
    let layers = all.iter().map(
        |(digest, size)| json!({ "mediaType": LAYER, "size": size, "digest": digest.to_string() }),
    );
    let bytes = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "size": 7023, "digest": config.to_string() },
        "layers": layers.collect::<Vec<_>>(),
    });
    let seen = Seen {
        customer: name.split('/').next().unwrap_or(name).to_owned(),
        image,
        tag: Some(tag),
        unix_ms: unix_ms(part(line, 3, "images")?)?,
        digest: None,
    };
    let layers = all.iter().map(|(digest, _)| *digest).collect();
    Ok(Manifest { bytes: bytes.to_string().into_bytes(), seen, layers })
}

/// `2014-07-21T09:22:18`, in UTC. Days by Howard Hinnant's algorithm (`days_from_civil`).
fn unix_ms(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no time");
    let parts: Vec<i64> = text
        .split(['-', 'T', ':'])
        .map(|part| part.parse().map_err(|_| wrong()))
        .collect::<Result<_, _>>()?;
    let [year, month, day, hour, minute, second] = *parts else { return Err(wrong()) };
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year - era * 400;
    let day_of_year = (153 * (month + if month > 2 { -3 } else { 9 }) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    let days = era * 146_097 + day_of_era - 719_468;
    let seconds = ((days * 24 + hour) * 60 + minute) * 60 + second;
    u64::try_from(seconds).map(|seconds| seconds * 1000).map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::unix_ms;

    #[test]
    fn times_are_read() {
        assert_eq!(unix_ms("1970-01-01T00:00:00"), Ok(0));
        assert_eq!(unix_ms("2014-07-21T09:22:18"), Ok(1_405_934_538_000));
        assert_eq!(unix_ms("2024-02-29T23:59:59"), Ok(1_709_251_199_000));
        assert!(unix_ms("yesterday").is_err());
    }
}
