//! What a loss costs: floating-point operations of training, and a picture of losses over them.
//!
//! Operations are counted by formula, two for each multiplication and addition of a matrix product: a run's are three
//! times those of its forward passes, as is usual (Kaplan et al. 2020), whatever was computed twice to save memory.

use plotters::prelude::*;

use crate::curves::{draw_legend, legend_line, ticks};
use crate::error::{Result, TrainingError};
use cellql_model::Config;

/// Operations of one cell's forward pass whose encoder reads `tokens` tokens, T and S among them.
pub fn forward_flops(config: &Config, tokens: f64) -> f64 {
    let (encoder, decoder, positions) = (&config.encoder, &config.decoder, config.seq_len as f64);
    let (dim, width) = (encoder.hidden_dim as f64, decoder.hidden_dim as f64);
    let inner = (decoder.heads * decoder.dim_head) as f64;
    let features = (config.nb_features() * decoder.heads) as f64;
    // Four products of width² each in attention and eight in the feed-forward, then scores and their sums.
    let of_encoder = encoder.depth as f64 * (24.0 * dim * dim * tokens + 4.0 * dim * tokens * tokens);
    // Queries, keys, values and output; features of queries and keys; keys into sums and queries out of them;
    // feed-forward.
    let head = decoder.dim_head as f64;
    let of_layer = 8.0 * width * inner + 4.0 * features * head + 4.0 * features * head + 16.0 * width * width;
    of_encoder + positions * (2.0 * dim * width + decoder.depth as f64 * of_layer + 2.0 * width)
}

/// Operations of training on some cells.
pub fn training_flops(config: &Config, tokens: f64, cells: f64) -> f64 {
    3.0 * forward_flops(config, tokens) * cells
}

/// A run of one size: its name, and losses of held-out cells over operations.
#[derive(Debug, Clone, PartialEq)]
pub struct Line {
    /// The size.
    pub name: String,
    /// `(operations, loss)`, ascending.
    pub points: Vec<(f64, f64)>,
}

const SIZE: (u32, u32) = (900, 520);

/// Draws runs side by side as SVG.
///
/// # Errors
/// No run has a point.
pub fn picture(lines: &[Line]) -> Result<String> {
    let all = || lines.iter().flat_map(|line| &line.points);
    let range = |of: fn(&(f64, f64)) -> f64| {
        all().map(of).fold((f64::INFINITY, 0f64), |(low, high), v| (low.min(v), high.max(v)))
    };
    let (flops, losses) = (range(|p| p.0), range(|p| p.1));
    if !flops.0.is_finite() || flops.0 <= 0.0 || losses.0 <= 0.0 {
        return Err(TrainingError::Nothing("no run has a loss of held-out cells yet"));
    }
    let mut svg = String::new();
    draw(&mut svg, lines, flops, losses).map_err(|e| TrainingError::file("drawing the runs")(e.to_string()))?;
    Ok(svg)
}

fn draw(
    svg: &mut String,
    lines: &[Line],
    flops: (f64, f64),
    losses: (f64, f64),
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let x = (flops.0 * 0.9..flops.1 * 1.1).log_scale();
    let y = (losses.0 * 0.97..losses.1 * 1.03).log_scale().with_key_points(ticks(losses.0, losses.1));
    let mut chart = ChartBuilder::on(&root)
        .caption("Loss of held-out cells over training operations", ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(x, y)?;
    chart
        .configure_mesh()
        .x_desc("floating-point operations")
        .x_labels(6)
        .y_desc("mean squared error at masked genes")
        .x_label_formatter(&|v| format!("{v:.1e}"))
        .y_label_formatter(&|v| format!("{v:.3}"))
        .draw()?;
    for (n, line) in lines.iter().enumerate() {
        let colour = Palette99::pick(n).to_rgba();
        let points = line.points.iter().copied();
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(&line.name)
            .legend(legend_line(colour.stroke_width(2)));
    }
    draw_legend(&mut chart)?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use cellql_model::Size;

    /// Both figures are those of scFoundation's sizes, counted independently of this formula: 170 MFLOP and 37 kFLOP·K
    /// a token in the encoder, 0.86 TFLOP in the decoder.
    #[test]
    fn operations_of_the_large_model_are_the_known_ones() {
        let config = Config::of_size(Size::M100, 19_264);
        let (short, long) = (forward_flops(&config, 1000.0), forward_flops(&config, 2000.0));
        let decoder = 2.0 * short - long + 2e6 * 37e3;
        assert!((decoder / 0.86e12 - 1.0).abs() < 0.1, "{decoder:e}");
        let encoder = long - short - 3e6 * 37e3;
        assert!((encoder / (1000.0 * 170e6) - 1.0).abs() < 0.02, "{encoder:e}");
    }

    #[test]
    fn a_picture_names_its_runs() {
        let line =
            |name: &str, by: f64| Line { name: name.to_owned(), points: vec![(1e12 * by, 2.0), (1e13 * by, 1.0)] };
        let svg = picture(&[line("3M", 1.0), line("10M", 3.0)]).unwrap();
        assert!(svg.contains("3M") && svg.contains("10M") && svg.contains("</svg>"));
        assert!(picture(&[]).is_err());
    }
}
