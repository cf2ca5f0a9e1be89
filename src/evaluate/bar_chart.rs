//! Bar chart of scores, as SVG. Text stays text, so the picture needs no fonts.

use std::fmt::Write;

/// Width of a panel's bars in pixels, height of a bar, and distances.
const BAR_WIDTH: f64 = 420.0;
const BAR_HEIGHT: usize = 14;
const ROW_HEIGHT: usize = 18;
const LABELS: usize = 260;
const MARGIN: usize = 24;
const TITLE: usize = 34;

/// Colours of the bars of a group, one per representation (Tableau 10).
const COLOURS: [&str; 10] =
    ["#4e79a7", "#f28e2b", "#59a14f", "#e15759", "#76b7b2", "#edc948", "#b07aa1", "#ff9da7", "#9c755f", "#bab0ac"];

/// Draws a group of horizontal bars for each score, one bar for each of `names`. Scores are from 0 to 1 (shorter bars
/// are drawn for others); `None` is not drawn.
pub fn bar_chart(title: &str, names: &[String], groups: &[(&str, Vec<Option<f64>>)]) -> String {
    let group_height = names.len() * ROW_HEIGHT + TITLE;
    let (width, height) = (LABELS + BAR_WIDTH as usize + 4 * MARGIN, TITLE + groups.len() * group_height + MARGIN);
    let mut svg = String::new();
    // Writing to a string cannot fail.
    let _ = writeln!(
        svg,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{MARGIN}\" y=\"24\" font-size=\"16\">{}</text>",
        escaped(title)
    );
    for (g, (score, values)) in groups.iter().enumerate() {
        let top = TITLE + g * group_height;
        let _ = writeln!(svg, "<text x=\"{MARGIN}\" y=\"{}\" font-weight=\"bold\">{}</text>", top + 22, escaped(score));
        for (i, (name, value)) in names.iter().zip(values).enumerate() {
            let y = top + TITLE + i * ROW_HEIGHT - 4;
            let text = value.map_or_else(|| "not defined".to_owned(), |value| format!("{value:.3}"));
            let length = value.unwrap_or(0.0).clamp(0.0, 1.0) * BAR_WIDTH;
            let (colour, base) = (COLOURS[i % COLOURS.len()], y + BAR_HEIGHT - 3);
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{base}\" text-anchor=\"end\">{}</text>\
                 <rect x=\"{LABELS}\" y=\"{y}\" width=\"{length:.1}\" height=\"{BAR_HEIGHT}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{base}\">{text}</text>",
                LABELS - 8,
                escaped(name),
                LABELS as f64 + length + 6.0
            );
        }
    }
    svg.push_str("</svg>\n");
    svg
}

/// Text with the characters that mean something in XML replaced.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chart_names_everything_and_escapes_it() {
        let names = ["a<b".to_owned(), "c".to_owned()];
        let svg = bar_chart("t", &names, &[("kNN", vec![Some(0.5), None]), ("NMI", vec![Some(1.0), Some(0.25)])]);
        assert_eq!(svg.matches("<rect").count(), 5);
        assert!(svg.contains("a&lt;b") && svg.contains("not defined") && svg.contains("width=\"210.0\""));
        assert!(svg.ends_with("</svg>\n"));
    }
}
