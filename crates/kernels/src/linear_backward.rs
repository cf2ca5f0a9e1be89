//! Linear layers that learn: forward, the gradient of the input, and sums of the gradient of the weights.
//!
//! For `y = x·Wᵀ + b` the gradients are `dx = dy·W`, `dW = Σ dyᵀ·x` and `db = Σ dy`. W is packed twice, once for each
//! direction. `dW` is summed in panels of 32 inputs, the layout that products write, and brought into torch's order
//! once at the end. In bf16 all three products read bf16 and sum in f32. Limit: FLOPs.

use super::backward::add_scaled;
use super::isa::Isa;
use super::linear::{Activations, Linear, Then};
use super::operands::{across, multiply, transpose};
use super::panel::{Extent, Operand, PANEL, Sums};
use super::rows::{Aligned, stride};
use super::view::{RowsView, RowsViewMut};
use cellql_dtype::Dtype;

/// A linear layer with its weights packed for both directions.
#[derive(Debug)]
pub struct TrainableLinear {
    forward: Linear,
    backward: Linear,
    dtype: Dtype,
    inputs: usize,
    outputs: usize,
}

impl TrainableLinear {
    /// Packs `weight`, `[outputs, inputs]` as torch has it, and `bias`, `[outputs]` or empty. Products in f32 or bf16,
    /// the latter for int8 too.
    pub fn pack(isa: Isa, dtype: Dtype, weight: &[f32], bias: &[f32], inputs: usize, outputs: usize) -> Self {
        let (transposed, dtype) = (transposed(weight, inputs), dtype.floating());
        Self {
            forward: Linear::pack(isa, dtype, weight, bias, inputs, outputs),
            backward: Linear::pack(isa, dtype, &transposed, &[], outputs, inputs),
            dtype,
            inputs,
            outputs,
        }
    }

    /// `rows` rows of `x`, at most [`super::BLOCK`], through the layer: `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: RowsView, rows: usize, then: Then, out: RowsViewMut, activations: &mut Activations) {
        let input = activations.of(self.dtype, x.columns(0, self.inputs), rows);
        self.forward.forward(input, rows, then, out);
    }

    /// The gradient of the layer's input, `[rows, inputs]`, from that of its output, `[rows, outputs]`: `dy·W`; `then`
    /// may add rows to it.
    pub fn backward(&self, dy: RowsView, rows: usize, then: Then, dx: RowsViewMut, activations: &mut Activations) {
        let input = activations.of(self.dtype, dy.columns(0, self.outputs), rows);
        self.backward.forward(input, rows, then, dx);
    }
}

/// The transpose of a matrix without gaps, `[rows, columns]` to `[columns, rows]`.
pub fn transposed(from: &[f32], columns: usize) -> Vec<f32> {
    let rows = from.len() / columns;
    (0..from.len()).map(|i| from[i % rows * columns + i / rows]).collect()
}

/// Buffers that one thread uses again for each call of [`LinearGradient::add`].
#[derive(Debug, Default)]
pub struct LinearScratch {
    /// Pairs of rows of dy, and for tiles their transpose, in which what is summed over lies together.
    lanes: Aligned<u32>,
    transposed: Aligned<u32>,
    value_lanes: Aligned<u32>,
}

/// Sums of the gradients of a layer's weight and bias.
#[derive(Debug, Clone)]
pub struct LinearGradient {
    isa: Isa,
    dtype: Dtype,
    /// Panels `[outputs, 32]`, one per 32 inputs.
    panels: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl LinearGradient {
    /// Zero, for a layer of these sizes.
    pub fn new(isa: Isa, dtype: Dtype, inputs: usize, outputs: usize) -> Self {
        let panels = vec![0.0; inputs.div_ceil(PANEL) * PANEL * outputs];
        Self { isa, dtype: dtype.floating(), panels, bias: vec![0.0; outputs], inputs, outputs }
    }

    /// Adds `dyᵀ·x` and `Σ dy` of `rows` rows: `dy` is `[rows, outputs]`, `x` is `[rows, inputs]`.
    pub fn add(&mut self, dy: RowsView, x: RowsView, rows: usize, scratch: &mut LinearScratch) {
        let (outputs, dy) = (self.outputs, dy.columns(0, self.outputs));
        dy.rows(rows).for_each(|dy| add_scaled(&mut self.bias, dy, 1.0));
        let LinearScratch { lanes, transposed, value_lanes } = scratch;
        // Rows are what is summed over: in bf16 two of them are a lane.
        let summed = self.dtype.lanes(rows);
        let apart = stride(summed);
        let a = match self.dtype {
            Dtype::F32 => Operand::by_columns(bytemuck::cast_slice(dy.data()), dy.stride()),
            _ => {
                let lanes = lanes.at_least(summed * outputs);
                across(self.dtype, dy, rows, lanes, outputs);
                if self.isa.has_tiles() {
                    let transposed = transposed.at_least(outputs * apart);
                    transpose(lanes, (summed, outputs), transposed, apart);
                    Operand::by_rows(&*transposed, apart)
                } else {
                    Operand::by_columns(&*lanes, outputs)
                }
            }
        };
        for (panel, sums) in self.panels.chunks_exact_mut(outputs * PANEL).enumerate() {
            let first = panel * PANEL;
            let columns = PANEL.min(self.inputs - first);
            let to = value_lanes.at_least(summed * PANEL);
            across(self.dtype, x.columns(first, columns), rows, to, PANEL);
            let extent = Extent { rows: outputs, lanes: summed, columns: PANEL };
            multiply(self.isa, self.dtype, extent, a, to, Sums::added(sums, PANEL));
        }
    }

    /// Adds what was summed to gradients in torch's order, `[outputs, inputs]` and `[outputs]` (or none).
    pub fn add_to(&self, weight: &mut [f32], bias: &mut [f32]) {
        for (panel, sums) in self.panels.chunks_exact(self.outputs * PANEL).enumerate() {
            let first = panel * PANEL;
            let columns = PANEL.min(self.inputs - first);
            for (row, sums) in weight.chunks_exact_mut(self.inputs).zip(sums.chunks_exact(PANEL)) {
                row[first..first + columns].iter_mut().zip(sums).for_each(|(to, sum)| *to += sum);
            }
        }
        bias.iter_mut().zip(&self.bias).for_each(|(to, sum)| *to += sum);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::{Rng, SeedableRng};

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    #[test]
    fn gradients_are_the_products_that_calculus_gives() {
        let (rows, inputs, outputs) = (37, 45, 50);
        let (x, w, dy) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(rows * outputs, 3));
        for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::Bf16, 0.12)] {
            for isa in [Isa::best(), Isa::PLAIN] {
                let linear = TrainableLinear::pack(isa, dtype, &w, &[], inputs, outputs);
                let mut dx = vec![0.0; rows * inputs];
                let (x, dy) = (RowsView::new(&x, inputs, inputs), RowsView::new(&dy, outputs, outputs));
                let out = RowsViewMut::new(&mut dx, inputs, inputs);
                linear.backward(dy, rows, Then::Bias, out, &mut Activations::default());
                let mut gradient = LinearGradient::new(isa, dtype, inputs, outputs);
                gradient.add(dy, x, rows, &mut LinearScratch::default());
                let (mut dw, mut db) = (vec![0.0; outputs * inputs], vec![0.0; outputs]);
                gradient.add_to(&mut dw, &mut db);
                for i in 0..inputs {
                    for r in 0..rows {
                        let exact: f32 = (0..outputs).map(|o| dy.row(r)[o] * w[o * inputs + i]).sum();
                        assert!((dx[r * inputs + i] - exact).abs() < tolerance);
                    }
                    for o in 0..outputs {
                        let exact: f32 = (0..rows).map(|r| dy.row(r)[o] * x.row(r)[i]).sum();
                        assert!((dw[o * inputs + i] - exact).abs() < tolerance);
                    }
                }
                for (o, db) in db.iter().enumerate() {
                    let exact: f32 = (0..rows).map(|r| dy.row(r)[o]).sum();
                    assert!((db - exact).abs() < 1e-5);
                }
            }
        }
    }
}
