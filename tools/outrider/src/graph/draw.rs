//! An answer as a picture: in Graphviz's language, and as SVG with a column for each kind of node. Pure.

use std::fmt::Write as _;

use outrider_graph::{Answer, Kind, Row};

/// Width of a node, and of the space between columns, in pixels.
const NODE_WIDTH: usize = 250;
const COLUMN_GAP: usize = 110;
/// Height of a node with its space.
const NODE_HEIGHT: usize = 22;
const ROW_HEIGHT: usize = 30;
const MARGIN: usize = 12;
/// Of a digest's hexadecimal digits.
const DIGITS_SHOWN: usize = 12;
/// The longest label, in characters.
const LABEL_MAX: usize = 36;

/// Nodes, and edges between their places.
pub(super) struct Picture {
    nodes: Vec<(Kind, String)>,
    edges: Vec<(usize, usize, String)>,
}

/// What an answer to the query `name` looks like.
pub(super) fn picture(name: &str, answer: &Answer) -> Picture {
    let mut picture = Picture { nodes: Vec::new(), edges: Vec::new() };
    let about: Vec<usize> = answer.about.iter().map(|row| picture.add(row)).collect();
    let rows: Vec<usize> = answer.rows.iter().map(|row| picture.add(row)).collect();
    match (name, &*about) {
        ("added", [now, then]) => {
            picture.edge(*then, *now, "succeeded_by");
            rows.iter().for_each(|row| picture.edge(*now, *row, "contains"));
        }
        ("affected", [layer]) => {
            for (place, row) in rows.iter().zip(&answer.rows) {
                match row.kind {
                    Kind::Customer => picture.edge(*layer, *place, "owned_by"),
                    Kind::Version => picture.edge(*place, *layer, "contains"),
                    _ => {}
                }
                // A version belongs to its image.
                let image = answer.rows.iter().zip(&rows).find(|(other, _)| {
                    other.kind == Kind::Image && Some(&other.name) == row.image.as_ref()
                });
                if let Some((_, image)) = image {
                    picture.edge(*place, *image, "version_of");
                }
            }
            for (place, row) in rows.iter().zip(&answer.rows) {
                if row.kind == Kind::Image {
                    picture.edge(*layer, *place, "shared_by");
                }
            }
        }
        ("neighbours", [layer]) => {
            for (place, row) in rows.iter().zip(&answer.rows) {
                let label = format!("together {}", row.together.unwrap_or(0));
                picture.edge(*layer, *place, &label);
            }
        }
        _ => {
            for one in &about {
                for place in &rows {
                    let (from, to) = match name {
                        // From the layer to who shares it.
                        "shared" => (*place, *one),
                        _ => (*one, *place),
                    };
                    picture.edge(from, to, "shared_by");
                }
            }
        }
    }
    picture
}

impl Picture {
    fn add(&mut self, row: &Row) -> usize {
        self.nodes.push((row.kind, label(row)));
        self.nodes.len() - 1
    }

    fn edge(&mut self, from: usize, to: usize, label: &str) {
        self.edges.push((from, to, label.to_owned()));
    }
}

fn label(row: &Row) -> String {
    let short = match row.name.split_once(':') {
        Some((_, hex)) if row.kind != Kind::Customer => hex.chars().take(DIGITS_SHOWN).collect(),
        _ => row.name.clone(),
    };
    let text = match (&row.image, &row.tag) {
        (Some(image), Some(tag)) => format!("{image}:{tag}"),
        (Some(image), None) => format!("{image}@{short}"),
        _ => match row.bytes {
            Some(bytes) => format!("{short} ({bytes} bytes)"),
            None => short,
        },
    };
    let length = text.chars().count();
    if length <= LABEL_MAX {
        return text;
    }
    // The end tells versions of one image apart.
    let end: String = text.chars().skip(length - LABEL_MAX + 1).collect();
    format!("…{end}")
}

const fn shape(kind: Kind) -> &'static str {
    match kind {
        Kind::Layer | Kind::Component | Kind::Function => "box",
        Kind::Image => "folder",
        Kind::Version => "note",
        Kind::Index => "tab",
        Kind::Customer => "ellipse",
    }
}

const fn colour(kind: Kind) -> &'static str {
    match kind {
        Kind::Layer | Kind::Component | Kind::Function => "#dce8f7",
        Kind::Image => "#e4f3dc",
        Kind::Version | Kind::Index => "#fdf1d3",
        Kind::Customer => "#f5dfe8",
    }
}

/// In Graphviz's language.
pub(super) fn dot(picture: &Picture) -> String {
    let quoted = |text: &str| format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""));
    let mut out = String::from("digraph outrider {\n  rankdir=LR;\n  node [style=filled];\n");
    for (place, (kind, label)) in picture.nodes.iter().enumerate() {
        let (shape, colour, label) = (shape(*kind), colour(*kind), quoted(label));
        // Writing into a String cannot fail.
        let _ = writeln!(out, "  n{place} [shape={shape}, fillcolor=\"{colour}\", label={label}];");
    }
    for (from, to, label) in &picture.edges {
        let _ = writeln!(out, "  n{from} -> n{to} [label={}];", quoted(label));
    }
    out.push_str("}\n");
    out
}

/// As SVG: a column for each kind, in the order of the rows.
pub(super) fn svg(picture: &Picture) -> String {
    let escaped = |text: &str| {
        text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
    };
    let mut columns: Vec<Kind> = Vec::new();
    let mut filled: Vec<usize> = Vec::new();
    let mut places = Vec::new();
    for (kind, _) in &picture.nodes {
        let column = columns.iter().position(|other| other == kind).unwrap_or_else(|| {
            columns.push(*kind);
            filled.push(0);
            columns.len() - 1
        });
        let x = MARGIN + column * (NODE_WIDTH + COLUMN_GAP);
        places.push((x, MARGIN + filled[column] * ROW_HEIGHT));
        filled[column] += 1;
    }
    let width = 2 * MARGIN + columns.len().max(1) * (NODE_WIDTH + COLUMN_GAP);
    let height = 2 * MARGIN + filled.iter().max().copied().unwrap_or(0) * ROW_HEIGHT;
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n"
    );
    for (from, to, label) in &picture.edges {
        let ((from_x, from_y), (to_x, to_y)) = (places[*from], places[*to]);
        let middle = NODE_HEIGHT / 2;
        // From side to side; within a column around its right side.
        let (start, end) = match from_x.cmp(&to_x) {
            std::cmp::Ordering::Less => (from_x + NODE_WIDTH, to_x),
            std::cmp::Ordering::Greater => (from_x, to_x + NODE_WIDTH),
            std::cmp::Ordering::Equal => (from_x + NODE_WIDTH, to_x + NODE_WIDTH),
        };
        let bend = if from_x > to_x { start - COLUMN_GAP / 2 } else { start + COLUMN_GAP / 2 };
        let (a, b, label) = (from_y + middle, to_y + middle, escaped(label));
        let _ = writeln!(
            out,
            "<path d=\"M{start},{a} C{bend},{a} {bend},{b} {end},{b}\" fill=\"none\" \
             stroke=\"#999\"><title>{label}</title></path>"
        );
    }
    for ((kind, label), (x, y)) in picture.nodes.iter().zip(&places) {
        let (colour, label, name) = (colour(*kind), escaped(label), kind.as_str());
        let (text_x, text_y) = (x + 6, y + 15);
        let _ = writeln!(
            out,
            "<rect x=\"{x}\" y=\"{y}\" width=\"{NODE_WIDTH}\" height=\"{NODE_HEIGHT}\" rx=\"3\" \
             fill=\"{colour}\" stroke=\"#666\"><title>{name}</title></rect>\
             <text x=\"{text_x}\" y=\"{text_y}\">{label}</text>"
        );
    }
    out.push_str("</svg>\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Answer {
        let mut layer = Row::new(Kind::Layer, format!("sha256:{}", "ab".repeat(32)));
        layer.bytes = Some(7);
        let mut version = Row::new(Kind::Version, format!("sha256:{}", "cd".repeat(32)));
        version.image = Some("library/a".into());
        let rows = vec![
            Row::new(Kind::Customer, "a \"b\" <c> \\ & d"),
            Row::new(Kind::Image, "library/a"),
            version,
        ];
        Answer { about: vec![layer], rows, more: false }
    }

    #[test]
    fn what_is_affected_is_drawn_with_its_edges_and_nothing_breaks_out_of_its_quotes() {
        let picture = picture("affected", &answer());
        let dot = dot(&picture);
        for wanted in [
            "label=\"a \\\"b\\\" <c> \\\\ & d\"",
            "n0 -> n1 [label=\"owned_by\"];",
            "n3 -> n0 [label=\"contains\"];",
            "n3 -> n2 [label=\"version_of\"];",
            "n0 -> n2 [label=\"shared_by\"];",
            "label=\"abababababab (7 bytes)\"",
            "label=\"library/a@cdcdcdcdcdcd\"",
        ] {
            assert!(dot.contains(wanted), "{wanted} in {dot}");
        }
        let svg = svg(&picture);
        assert!(svg.contains("a &quot;b&quot; &lt;c&gt; \\ &amp; d"), "{svg}");
        assert_eq!((svg.matches("<rect").count(), svg.matches("<path").count()), (4, 4));
    }

    #[test]
    fn long_names_keep_their_end() {
        let mut row = Row::new(Kind::Version, "sha256:00");
        row.image = Some("a".repeat(60));
        row.tag = Some("v1.2".into());
        let label = label(&row);
        assert_eq!(label.chars().count(), LABEL_MAX);
        assert!(label.starts_with('…') && label.ends_with("a:v1.2"), "{label}");
    }
}
