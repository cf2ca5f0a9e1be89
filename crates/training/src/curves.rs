//! Pictures of a run: losses over cells, drawn as SVG.

use plotters::coord::CoordTranslate;
use plotters::prelude::*;

use crate::error::{Result, TrainingError};
use crate::metrics::StepMetrics;

const SIZE: (u32, u32) = (900, 520);
const LEARNED: RGBColor = RGBColor(31, 119, 180);
const HELD_OUT: RGBColor = RGBColor(214, 39, 40);

/// Losses of a run over the cells it learned from: every step, and held-out cells.
///
/// # Errors
/// Nothing was measured yet.
pub fn curves(title: &str, measured: &[StepMetrics]) -> Result<String> {
    let learned: Vec<(f64, f64)> = smoothed(measured);
    let held: Vec<(f64, f64)> = measured.iter().filter_map(|m| Some((m.cells as f64, m.validation_loss?))).collect();
    let all = || learned.iter().chain(&held).map(|(_, loss)| *loss);
    let (low, high) = (all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max));
    let Some(last) = measured.last().filter(|_| low.is_finite() && high > 0.0) else {
        return Err(TrainingError::Nothing("nothing was measured yet"));
    };
    let mut svg = String::new();
    let loss = match last.parts {
        None => "mean squared error at masked genes",
        Some(_) => "weighted sum of the objectives",
    };
    draw(&mut svg, (title, loss), (last.cells as f64, low.max(1e-9), high), &learned, &held)
        .map_err(|e| TrainingError::file("drawing the curves")(e.to_string()))?;
    Ok(svg)
}

/// Means over a two-hundredth of the run each: single batches jump more than a run changes.
fn smoothed(measured: &[StepMetrics]) -> Vec<(f64, f64)> {
    let size = measured.len().div_ceil(200).max(1);
    let mean = |part: &[StepMetrics]| {
        let loss = part.iter().map(|m| m.loss).sum::<f64>() / part.len() as f64;
        (part.last().map_or(0.0, |m| m.cells as f64), loss)
    };
    measured.chunks(size).map(mean).collect()
}

/// Round numbers from `low` to `high`, some eight: a logarithmic axis of less than a power of ten has no labels of its
/// own.
pub fn ticks(low: f64, high: f64) -> Vec<f64> {
    let rough = ((high - low) / 8.0).max(f64::MIN_POSITIVE);
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|n| n * power).find(|step| *step >= rough).unwrap_or(10.0 * power);
    let first = (low / step).ceil() as i64;
    (first..=(high / step).floor() as i64).map(|n| n as f64 * step).collect()
}

/// What stands before a label in a legend: a short line in the style of its series.
pub(crate) fn legend_line(style: ShapeStyle) -> impl Fn((i32, i32)) -> PathElement<(i32, i32)> {
    move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style)
}

/// Draws the legend of a chart in its upper right corner.
pub(crate) fn draw_legend<'a, DB: DrawingBackend + 'a, CT: CoordTranslate>(
    chart: &mut ChartContext<'a, DB, CT>,
) -> std::result::Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
    let mut labels = chart.configure_series_labels();
    labels.position(SeriesLabelPosition::UpperRight).background_style(WHITE.mix(0.8)).border_style(BLACK).draw()
}

fn draw(
    svg: &mut String,
    (title, loss): (&str, &str),
    (cells, low, high): (f64, f64, f64),
    learned: &[(f64, f64)],
    held: &[(f64, f64)],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(title, ("sans-serif", 20))
        .margin(14)
        .x_label_area_size(44)
        .y_label_area_size(64)
        .build_cartesian_2d(0.0..cells, (low * 0.95..high * 1.05).log_scale().with_key_points(ticks(low, high)))?;
    chart
        .configure_mesh()
        .x_desc("cells learned from")
        .y_desc(loss)
        .x_label_formatter(&|cells| format!("{cells:.0}"))
        .y_label_formatter(&|loss| format!("{loss:.3}"))
        .draw()?;
    for (points, colour, label) in [(learned, LEARNED, "cells learned from"), (held, HELD_OUT, "held-out cells")] {
        let line = chart.draw_series(LineSeries::new(points.iter().copied(), colour.stroke_width(2)))?;
        line.label(label).legend(legend_line(colour.stroke_width(2)));
    }
    draw_legend(&mut chart)?;
    root.present()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(ticks(0.31, 0.92).len(), 6);
        for (low, high) in [(0.31, 0.92), (2.0, 40.0), (0.001, 0.0012)] {
            let ticks = ticks(low, high);
            assert!(
                (4..=9).contains(&ticks.len()) && ticks.iter().all(|tick| (low..=high).contains(tick)),
                "{ticks:?}"
            );
        }
    }
}
