//! The Prometheus text format, as far as the tests read it.

/// One reading of every series.
#[derive(Clone, Debug, Default)]
pub struct Metrics(Vec<(String, String, f64)>);

impl Metrics {
    /// Parses a scrape; lines that are not samples are left out.
    pub fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
            let (series, value) = line.rsplit_once(' ')?;
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            Some((name.to_owned(), labels.trim_end_matches('}').to_owned(), value.parse().ok()?))
        });
        Self(samples.collect())
    }

    /// The sum of all series of `name` whose labels contain each of `labels` (as `key="value"`).
    /// Fails when there is no such metric at all, so that a renamed one is noticed.
    pub fn sum(&self, name: &str, labels: &[&str]) -> f64 {
        assert!(
            self.0.iter().any(|(n, ..)| n == name),
            "there is no metric {name}; there are {:?}",
            self.names()
        );
        self.0
            .iter()
            .filter(|(n, l, _)| n == name && labels.iter().all(|label| l.contains(label)))
            .map(|(.., value)| value)
            .sum()
    }

    /// All names, once each.
    pub fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.0.iter().map(|(name, ..)| name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names
    }
}
