//! Linear layers that learn: a layer forwards, the gradient of its input, and sums of the gradient of its weights.
//!
//! For `y = x·Wᵀ + b` the gradients are `dx = dy·W`, `dW = Σ dyᵀ·x` and `db = Σ dy`. W is packed twice, once for each
//! direction; `dW` is summed in panels of 32 inputs, which is how products write, and put in order once at the end. In bf16 all
//! three products read bf16 and sum in f32. Limit: FLOPs.

use super::backward::add_scaled;
use super::linear::{Activations, Linear, Then};
use super::memory::{Aligned, stride};
use super::operands::{across, multiply, turn};
use super::tile::{Form, Isa, Operand, PANEL};

/// A linear layer with its weights packed for both directions.
#[derive(Debug)]
pub struct Dense {
    there: Linear,
    back: Linear,
    form: Form,
    inputs: usize,
    outputs: usize,
}

impl Dense {
    /// Packs `weight`, `[outputs, inputs]` as torch has it, and `bias`, `[outputs]` or empty; f32 or bf16.
    pub fn pack(isa: Isa, form: Form, weight: &[f32], bias: &[f32], inputs: usize, outputs: usize) -> Self {
        let turned: Vec<f32> = (0..inputs * outputs).map(|i| weight[i % outputs * inputs + i / outputs]).collect();
        Self {
            there: Linear::pack(isa, form, weight, bias, inputs, outputs),
            back: Linear::pack(isa, form, &turned, &[], outputs, inputs),
            form,
            inputs,
            outputs,
        }
    }

    /// `rows` rows of `x`, at most [`super::BLOCK`], through the layer; rows of `x` and `out` are `.1` apart.
    pub fn forward(
        &self,
        x: (&[f32], usize),
        rows: usize,
        then: Then,
        out: (&mut [f32], usize),
        activations: &mut Activations,
    ) {
        let input = activations.of(self.form, x.0, x.1, rows, self.inputs);
        self.there.forward(input, rows, then, out.0, out.1);
    }

    /// The gradient of the layer's input from that of its output, `dy·W`; `then` may add rows to it.
    pub fn back(
        &self,
        dy: (&[f32], usize),
        rows: usize,
        then: Then,
        dx: (&mut [f32], usize),
        activations: &mut Activations,
    ) {
        let input = activations.of(self.form, dy.0, dy.1, rows, self.outputs);
        self.back.forward(input, rows, then, dx.0, dx.1);
    }
}

/// Memory of one thread.
#[derive(Debug, Default)]
pub struct DenseScratch {
    /// Pairs of rows of dy, and for tiles the same turned, so that what is summed over lies together.
    lanes: Aligned<u32>,
    turned: Aligned<u32>,
    value_lanes: Aligned<u32>,
}

/// Sums of the gradients of a layer's weight and bias.
#[derive(Debug, Clone)]
pub struct DenseGradient {
    isa: Isa,
    form: Form,
    /// Panels `[outputs, 32]`, one per 32 inputs.
    panels: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
    outputs: usize,
}

impl DenseGradient {
    /// Zero, for a layer of these sizes.
    pub fn new(isa: Isa, form: Form, inputs: usize, outputs: usize) -> Self {
        let panels = vec![0.0; inputs.div_ceil(PANEL) * PANEL * outputs];
        Self { isa, form, panels, bias: vec![0.0; outputs], inputs, outputs }
    }

    /// Adds `dyᵀ·x` and `Σ dy` of some rows, `.1` apart.
    pub fn add(&mut self, dy: (&[f32], usize), x: (&[f32], usize), rows: usize, scratch: &mut DenseScratch) {
        let outputs = self.outputs;
        for dy in dy.0.chunks(dy.1).take(rows) {
            add_scaled(&mut self.bias, &dy[..outputs], 1.0);
        }
        let DenseScratch { lanes, turned, value_lanes } = scratch;
        // Rows are what is summed over: in bf16 two of them are a lane.
        let summed = self.form.lanes(rows);
        let apart = stride(summed);
        let a = match self.form {
            Form::F32 => Operand { data: bytemuck::cast_slice(dy.0), row: 1, step: dy.1 },
            _ => {
                let lanes = lanes.at_least(summed * outputs);
                across(self.form, dy, (rows, outputs), lanes, outputs);
                if self.isa.has_tiles() {
                    let turned = turned.at_least(outputs * apart);
                    turn(lanes, (summed, outputs), turned, apart);
                    Operand { data: &*turned, row: apart, step: 1 }
                } else {
                    Operand { data: &*lanes, row: 1, step: outputs }
                }
            }
        };
        for (panel, sums) in self.panels.chunks_exact_mut(outputs * PANEL).enumerate() {
            let first = panel * PANEL;
            let columns = PANEL.min(self.inputs - first);
            let to = value_lanes.at_least(summed * PANEL);
            across(self.form, (&x.0[first..], x.1), (rows, columns), to, PANEL);
            multiply(self.isa, self.form, (outputs, summed, PANEL), a, to, sums, PANEL, true);
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
        for (form, tolerance) in [(Form::F32, 1e-5), (Form::Bf16, 0.12)] {
            for isa in [Isa::best(), Isa::PLAIN] {
                let dense = Dense::pack(isa, form, &w, &[], inputs, outputs);
                let mut dx = vec![0.0; rows * inputs];
                dense.back((&dy, outputs), rows, Then::Bias, (&mut dx, inputs), &mut Activations::default());
                let mut gradient = DenseGradient::new(isa, form, inputs, outputs);
                gradient.add((&dy, outputs), (&x, inputs), rows, &mut DenseScratch::default());
                let (mut dw, mut db) = (vec![0.0; outputs * inputs], vec![0.0; outputs]);
                gradient.add_to(&mut dw, &mut db);
                for i in 0..inputs {
                    for r in 0..rows {
                        let exact: f32 = (0..outputs).map(|o| dy[r * outputs + o] * w[o * inputs + i]).sum();
                        assert!((dx[r * inputs + i] - exact).abs() < tolerance);
                    }
                    for o in 0..outputs {
                        let exact: f32 = (0..rows).map(|r| dy[r * outputs + o] * x[r * inputs + i]).sum();
                        assert!((dw[o * inputs + i] - exact).abs() < tolerance);
                    }
                }
                for o in 0..outputs {
                    let exact: f32 = (0..rows).map(|r| dy[r * outputs + o]).sum();
                    assert!((db[o] - exact).abs() < 1e-5);
                }
            }
        }
    }
}
