//! The example configuration and the manual say what the program does, key by key.

use std::collections::{BTreeMap, BTreeSet};

use outrider_edge::Config;
use outrider_edge::units::Span;
use serde_json::Value;

const EXAMPLE: &str = include_str!("../../../tools/packaging/edge.toml");
const MANUAL: &str = include_str!("../../../docs/OPERATING.md");

/// Keys whose default depends on the machine, or that have none: the example shows a value all the same.
const WITHOUT_DEFAULT: [&str; 10] = [
    "auth.audit_file",
    "auth.realm",
    "auth.secrets_file",
    "auth.service",
    "cache.ram",
    "cache.ssd",
    "cache.stripes",
    "control.nodes",
    "shards.count",
    "tls.names",
];
/// Only one of two can be given, and the example shows the other.
const ONE_OF_TWO: &str = "admin.auth.jwks_file";
/// What the example sets for production.
const SET_BY_EXAMPLE: &str = "listen.https";

/// The example with every key that is commented out taken in.
fn with_every_key() -> Config {
    let text: Vec<&str> = EXAMPLE
        .lines()
        .map(|line| match line.strip_prefix('#') {
            Some(key) if key.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => key,
            _ => line,
        })
        .collect();
    Config::parse(&text.join("\n"), "edge.toml").unwrap_or_else(|error| panic!("{error}"))
}

/// Every key as a path, with its value; the tables of an array share theirs.
fn keys(config: &Config) -> BTreeMap<String, Value> {
    fn walk(prefix: &str, value: &Value, into: &mut BTreeMap<String, Value>) {
        let dotted =
            |key: &str| format!("{prefix}{}{key}", if prefix.is_empty() { "" } else { "." });
        match value {
            Value::Object(table) => {
                table.iter().for_each(|(key, value)| walk(&dotted(key), value, into));
            }
            Value::Array(tables) if tables.iter().any(Value::is_object) => {
                tables.iter().for_each(|table| walk(prefix, table, into));
            }
            // Of several tables one may have what another one has not.
            Value::Null => {
                into.entry(prefix.to_owned()).or_insert(Value::Null);
            }
            leaf => {
                into.insert(prefix.to_owned(), leaf.clone());
            }
        }
    }
    let mut all = BTreeMap::new();
    walk("", &serde_json::to_value(config).expect("a configuration is plain data"), &mut all);
    all
}

#[test]
fn the_example_is_valid_as_it_stands_and_with_every_key() {
    Config::parse(EXAMPLE, "edge.toml").unwrap();
    let config = with_every_key();
    for (key, value) in keys(&config) {
        assert!(!value.is_null() || key == ONE_OF_TWO, "the example does not show {key}");
    }
    // Each key stands on a line of its own, so that what was not shown would be missed here.
    let (mut shown, mut table) = (BTreeSet::new(), "");
    for line in EXAMPLE.lines().filter(|line| !line.starts_with("# ")) {
        let line = line.trim_start_matches('#');
        match line.split_once(" = ") {
            Some((key, _)) => drop(shown.insert(format!("{table}{key}"))),
            None if line.starts_with('[') => table = line,
            None => {}
        }
    }
    assert_eq!(shown.len() + 1, keys(&config).len());
}

#[test]
fn the_example_shows_the_defaults() {
    let (shown, defaults) = (keys(&with_every_key()), keys(&Config::default()));
    for (key, value) in shown {
        if WITHOUT_DEFAULT.contains(&&*key) || key == SET_BY_EXAMPLE || key == "upstream" {
            continue;
        }
        let default = match key.strip_prefix("upstream.") {
            None => defaults.get(&key).cloned().unwrap_or_default(),
            Some(field) => upstream_default(field),
        };
        if !default.is_null() {
            assert_eq!(value, default, "{key}");
        }
    }
}

/// What a key of `[[upstream]]` is by default; null for the ones that have no default.
fn upstream_default(field: &str) -> Value {
    let text = "[[upstream]]\nurl = \"https://registry-1.docker.io\"\n";
    let config = Config::parse(text, "edge.toml").expect("a valid upstream");
    keys(&config)[&format!("upstream.{field}")].clone()
}

#[test]
fn the_manual_has_a_row_for_every_key_with_its_default() {
    let defaults = keys(&Config::default());
    for (key, _) in keys(&with_every_key()) {
        let start = format!("| `{key}` |");
        let row = MANUAL
            .lines()
            .find(|line| line.starts_with(&start))
            .unwrap_or_else(|| panic!("docs/OPERATING.md has no row for {key}"));
        let default = match key.strip_prefix("upstream.") {
            _ if WITHOUT_DEFAULT.contains(&&*key) => continue,
            // Of tables that there are none of.
            None => match defaults.get(&key) {
                Some(default) => default.clone(),
                None => continue,
            },
            Some("url") => continue,
            Some(field) => upstream_default(field),
        };
        let shown = match default {
            Value::Null => continue,
            Value::String(text) => text,
            other => other.to_string(),
        };
        let cell = row.split('|').nth(2).unwrap_or_default();
        let written = cell.trim().trim_matches('`');
        assert!(same(written, &shown), "{key} is {shown} by default, not {cell}");
    }
}

/// Whether both are the same text, or the same duration: `60s` is `1m`.
fn same(one: &str, other: &str) -> bool {
    let span = |text: &str| text.parse::<Span>().ok();
    one == other || span(one).is_some() && span(one) == span(other)
}
