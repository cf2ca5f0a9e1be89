//! Cells as points in a plane, coloured by label, as SVG.

use std::fmt::Write;

use cellql_analysis::pca::{SparseRows, principal_components};

use super::bar_chart::escaped;

/// Side of the square with the points, width of the legend, and margin, in pixels.
const SIDE: f64 = 560.0;
const LEGEND: f64 = 210.0;
const MARGIN: f64 = 40.0;

/// Colours of labels (Tableau 20); they repeat from the twenty-first label on.
const COLOURS: [&str; 20] = [
    "#4e79a7", "#f28e2b", "#e15759", "#76b7b2", "#59a14f", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac",
    "#1f4e79", "#a0cbe8", "#8cd17d", "#b6992d", "#499894", "#d37295", "#86bcb6", "#fabfd2", "#79706e", "#d4a6c8",
];

/// The scores of vectors, `[n, dim]`, on their first two principal components.
pub fn principal_plane(vectors: &[f32], dim: usize) -> Vec<[f64; 2]> {
    let n = vectors.len() / dim.max(1);
    let offsets: Vec<usize> = (0..=n).map(|row| row * dim).collect();
    let columns: Vec<u32> = (0..n).flat_map(|_| 0..dim as u32).collect();
    let rows = SparseRows { dim, offsets: &offsets, columns: &columns, values: vectors };
    let found = principal_components(rows, 2, 0);
    let score =
        |row: usize, c: usize| if c < found.count { f64::from(found.scores[row * found.count + c]) } else { 0.0 };
    (0..n).map(|row| [score(row, 0), score(row, 1)]).collect()
}

/// Draws points with the colours of their labels, and a legend with the number of points of each, most frequent first.
pub fn scatter(title: &str, points: &[[f64; 2]], labels: &[String]) -> String {
    let mut counts: Vec<(&str, usize)> = Vec::new();
    for label in labels {
        match counts.iter_mut().find(|(other, _)| other == label) {
            Some((_, count)) => *count += 1,
            None => counts.push((label, 1)),
        }
    }
    counts.sort_by(|a, b| b.1.cmp(&a.1).then(a.0.cmp(b.0)));
    let colour = |label: &str| {
        let at = counts.iter().position(|(other, _)| *other == label).unwrap_or(0);
        COLOURS[at % COLOURS.len()]
    };
    let range = |axis: usize| {
        let values = || points.iter().map(|point| point[axis]);
        (values().fold(f64::INFINITY, f64::min), values().fold(f64::NEG_INFINITY, f64::max))
    };
    let (x, y) = (range(0), range(1));
    let place =
        |value: f64, (low, high): (f64, f64)| if high > low { (value - low) / (high - low) * SIDE } else { SIDE / 2.0 };
    let (width, height) = (SIDE + LEGEND + 2.0 * MARGIN, SIDE + 2.0 * MARGIN);
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"26\" font-size=\"16\">{}</text>",
        escaped(title)
    );
    for (point, label) in points.iter().zip(labels) {
        let (cx, cy) = (MARGIN + place(point[0], x), MARGIN + SIDE - place(point[1], y));
        let _ = writeln!(
            svg,
            "<circle cx=\"{cx:.1}\" cy=\"{cy:.1}\" r=\"3.5\" fill=\"{}\" fill-opacity=\"0.8\"/>",
            colour(label)
        );
    }
    for (i, (label, count)) in counts.iter().enumerate() {
        let (left, top) = (MARGIN + SIDE + 24.0, MARGIN + 20.0 * i as f64);
        let _ = writeln!(
            svg,
            "<circle cx=\"{left}\" cy=\"{top}\" r=\"5\" fill=\"{}\"/><text x=\"{}\" y=\"{}\">{} ({count})</text>",
            colour(label),
            left + 12.0,
            top + 4.0,
            escaped(label)
        );
    }
    svg.push_str("</svg>\n");
    svg
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_lie_along_the_directions_of_most_variance() {
        let vectors: Vec<f32> = (0..40).flat_map(|i| [i as f32, (i % 2) as f32, 1.0]).collect();
        let plane = principal_plane(&vectors, 3);
        assert!(plane.is_sorted_by_key(|point| point[0]) || plane.is_sorted_by_key(|point| -point[0]));
        assert_eq!(principal_plane(&[1.0, 1.0], 1), [[0.0, 0.0]; 2]);
    }

    #[test]
    fn a_picture_has_a_point_for_each_cell_and_a_legend() {
        let labels = ["a", "b<", "a"].map(str::to_owned);
        let svg = scatter("t", &[[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]], &labels);
        assert_eq!(svg.matches("<circle").count(), 5);
        assert!(svg.contains("a (2)") && svg.contains("b&lt; (1)"));
    }
}
