//! The edge in the same process, whose pages are answered on the same address.

use std::pin::Pin;

use serde_json::Value;

/// What takes a while.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// An edge in the same process.
pub trait Beside: Send + Sync {
    /// Every metric in the OpenMetrics text format.
    fn metrics(&self) -> Pending<'_, String>;
    /// Why this process should be started again.
    fn health(&self) -> Pending<'_, Vec<String>>;
    /// Why no request should be sent to the edge now.
    fn readiness(&self) -> Pending<'_, Vec<String>>;
    /// What is worth to be known beside that.
    fn remarks(&self) -> Vec<String>;
    /// Everything that an operator would ask first.
    fn status(&self) -> Pending<'_, Value>;
}

/// Two texts of metrics as one. Each ends with `# EOF`, which stands once.
pub(crate) fn joined(first: &str, second: &str) -> String {
    let first = first.strip_suffix("# EOF\n").unwrap_or(first);
    [first, second].concat()
}

#[cfg(test)]
mod tests {
    #[test]
    fn metrics_end_once() {
        assert_eq!(super::joined("a 1\n# EOF\n", "b 2\n# EOF\n"), "a 1\nb 2\n# EOF\n");
    }
}
