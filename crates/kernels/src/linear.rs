//! Linear layers over a block of rows, in f32, bf16 or 8-bit integers.
//!
//! Weights are packed once into panels ([`super::panel`]). Activations are converted once per block and used by every
//! layer that reads them. int8: weights are symmetric per output (the largest magnitude is 127). Activations are
//! unsigned, because the hardware multiplies unsigned by signed; they span each row's own smallest to largest value,
//! and what their zero point adds to a sum is subtracted. Limit: FLOPs.

use super::isa::Isa;
use super::panel::{Extent, Operand, PANEL, Sums};
use super::product::{multiply_bf16, multiply_f32, multiply_int8};
use super::rows::{Aligned, stride};
use super::view::{RowsView, RowsViewMut};
use crate::simd::dispatch;
use cellql_dtype::Dtype;

/// Rows of a block: with 3,072 f32 each they fill a second-level cache of 1 MiB and more.
pub const BLOCK: usize = 112;

/// A block of rows as products read them.
#[derive(Debug, Default)]
pub struct Activations {
    /// Lanes of packed number formats, `[rows, stride]`.
    lanes: Aligned<u32>,
    /// Per row; int8 only.
    codes: Vec<Code>,
}

/// What the 8-bit numbers of a row stand for: `scale · (number − zero)`.
#[derive(Debug, Clone, Copy)]
pub struct Code {
    scale: f32,
    zero: i32,
}

/// Rows to multiply: f32 as they are, or converted into an [`Activations`].
#[derive(Debug, Clone, Copy)]
pub enum PackedInput<'a> {
    F32(RowsView<'a>),
    /// Pairs of bf16, rows `row` lanes apart.
    Bf16 {
        lanes: &'a [u32],
        row: usize,
    },
    /// Four 8-bit integers per lane, rows `row` lanes apart, and what each row's integers stand for.
    Int8 {
        lanes: &'a [u32],
        row: usize,
        codes: &'a [Code],
    },
}

impl Activations {
    /// Converts `rows` rows to a number format. Rows are as wide as the layers that read them have inputs.
    pub fn of<'a>(&'a mut self, dtype: Dtype, x: RowsView<'a>, rows: usize) -> PackedInput<'a> {
        if dtype == Dtype::F32 {
            return PackedInput::F32(x);
        }
        let lanes = dtype.lanes(x.width());
        let apart = stride(lanes);
        let target = self.lanes.at_least(rows * apart);
        if dtype == Dtype::Bf16 {
            for i in 0..rows {
                let out = &mut target[i * apart..][..lanes];
                to_bf16(x.row(i), out);
            }
            return PackedInput::Bf16 { lanes: target, row: apart };
        }
        self.codes.clear();
        for i in 0..rows {
            let out = &mut target[i * apart..][..lanes];
            self.codes.push(quantise(x.row(i), out));
        }
        PackedInput::Int8 { lanes: target, row: apart, codes: &self.codes }
    }
}

/// The nearest bf16, ties to even.
#[inline(always)]
pub(crate) fn bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    (bits + 0x7fff + (bits >> 16 & 1)) >> 16
}

/// Pairs of bf16; what is left of the last lanes is zero.
#[inline(always)]
fn to_bf16_body(x: &[f32], lanes: &mut [u32]) {
    let (pairs, rest) = x.as_chunks::<2>();
    let (filled, empty) = lanes.split_at_mut(pairs.len());
    for (lane, [low, high]) in filled.iter_mut().zip(pairs) {
        *lane = bf16(*high) << 16 | bf16(*low);
    }
    empty.fill(0);
    if let (Some(lane), [last]) = (empty.first_mut(), rest) {
        *lane = bf16(*last);
    }
}

dispatch! {
    fn to_bf16_plain(x: &[f32], lanes: &mut [u32]) = to_bf16_body
}

/// Pairs of bf16; what is left of the last lanes is zero.
#[allow(unsafe_code, reason = "calls a function compiled for features that were detected")]
pub(crate) fn to_bf16(x: &[f32], lanes: &mut [u32]) {
    #[cfg(target_arch = "x86_64")]
    if Isa::best().converts_bf16() {
        // SAFETY: the instructions were detected.
        let done = unsafe { to_bf16_wide(x, lanes) };
        return to_bf16_body(&x[2 * done..], &mut lanes[done..]);
    }
    to_bf16_plain(x, lanes);
}

/// Whole vectors of lanes, and how many lanes they were. The instruction rounds as [`bf16`] does.
#[cfg(target_arch = "x86_64")]
#[allow(unsafe_code, reason = "vector loads and stores, each of a whole array")]
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn to_bf16_wide(x: &[f32], lanes: &mut [u32]) -> usize {
    use std::arch::x86_64::{__m512bh, __m512i, _mm512_cvtne2ps_pbh, _mm512_loadu_ps, _mm512_storeu_si512};
    let (from, to) = (x.as_chunks::<32>().0, lanes.as_chunks_mut::<16>().0);
    for (from, to) in from.iter().zip(to) {
        // SAFETY: two loads of 16 f32 from an array of 32, a store of 64 bytes into an array of 16 u32; any 64 bytes
        // are both types.
        unsafe {
            let (low, high) = (_mm512_loadu_ps(from.as_ptr()), _mm512_loadu_ps(from.as_ptr().add(16)));
            let halves = _mm512_cvtne2ps_pbh(high, low);
            _mm512_storeu_si512(to.as_mut_ptr().cast(), std::mem::transmute::<__m512bh, __m512i>(halves));
        }
    }
    from.len().min(lanes.len() / 16) * 16
}

/// Adding this leaves the nearest integer, ties to even, in the low bits.
const ROUND: f32 = 12_582_912.0;

/// Smallest and largest value, zero among them.
#[inline(always)]
fn range(x: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([0f32; 16], [0f32; 16]);
    let (chunks, rest) = x.as_chunks::<16>();
    for chunk in chunks {
        for ((l, h), v) in low.iter_mut().zip(&mut high).zip(chunk) {
            *l = if *v < *l { *v } else { *l };
            *h = if *v > *h { *v } else { *h };
        }
    }
    let all = low.iter().chain(&high).chain(rest);
    all.fold((0.0, 0.0), |(l, h), v| (if *v < l { *v } else { l }, if *v > h { *v } else { h }))
}

/// Four numbers of eight bits a lane: `round(v · inverse) + zero`; what is left of the last lanes is `zero`.
#[inline(always)]
fn codes(x: &[f32], inverse: f32, zero: i32, lanes: &mut [u32]) {
    let code = |v: f32| (v * inverse + ROUND).to_bits().wrapping_add(zero as u32) & 0xff;
    let (quads, rest) = x.as_chunks::<4>();
    let (filled, empty) = lanes.split_at_mut(quads.len());
    for (lane, [a, b, c, d]) in filled.iter_mut().zip(quads) {
        *lane = code(*a) | code(*b) << 8 | code(*c) << 16 | code(*d) << 24;
    }
    let at = |i: usize| rest.get(i).map_or(zero as u32 & 0xff, |v| code(*v));
    for (i, lane) in empty.iter_mut().enumerate() {
        *lane = at(4 * i) | at(4 * i + 1) << 8 | at(4 * i + 2) << 16 | at(4 * i + 3) << 24;
    }
}

/// A row of activations to 0..=255.
#[inline(always)]
fn quantise_body(x: &[f32], lanes: &mut [u32]) -> Code {
    let (low, high) = range(x);
    // One step less than there are: the zero point, rounded up to a whole one, must not push the largest value out.
    let scale = (high - low) / 254.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let zero = (-low * inverse).ceil() as i32;
    codes(x, inverse, zero, lanes);
    Code { scale, zero }
}

dispatch! {
    fn quantise(x: &[f32], lanes: &mut [u32]) -> Code = quantise_body
}

/// What happens to a product before it is written.
#[derive(Debug, Clone, Copy)]
pub enum Then<'a> {
    /// Bias only.
    Bias,
    /// Bias, then the larger of it and zero.
    Relu,
    /// Bias, then these rows added, `[rows, outputs]`.
    Add(RowsView<'a>),
}

/// A linear layer, `[inputs]` to `[outputs]`, its weights packed.
#[derive(Debug)]
pub struct Linear {
    inputs: usize,
    outputs: usize,
    isa: Isa,
    panels: Panels,
    /// Padded to whole panels.
    bias: Aligned<f32>,
}

#[derive(Debug)]
enum Panels {
    F32(Aligned<f32>),
    Bf16(Aligned<u32>),
    Int8 {
        lanes: Aligned<u32>,
        /// What a quantised 1 stands for, per output.
        scale: Aligned<f32>,
        /// Sum of each output's quantised weights.
        totals: Aligned<i32>,
    },
}

impl Linear {
    /// Packs `weight`, `[outputs, inputs]` as torch has it, and `bias`, `[outputs]` or empty.
    pub fn pack(isa: Isa, dtype: Dtype, weight: &[f32], bias: &[f32], inputs: usize, outputs: usize) -> Self {
        let padded = outputs.div_ceil(PANEL) * PANEL;
        let lanes = dtype.lanes(inputs);
        let mut padded_bias = Aligned::new(padded);
        padded_bias[..bias.len()].copy_from_slice(bias);
        let panels = match dtype {
            Dtype::F32 => {
                let mut data = Aligned::<f32>::new(lanes * padded);
                for (panel, rows) in data.chunks_exact_mut(lanes * PANEL).zip(weight.chunks(inputs * PANEL)) {
                    pack_panel(rows, inputs, panel);
                }
                Panels::F32(data)
            }
            Dtype::Bf16 => {
                let mut data = Aligned::<u32>::new(lanes * padded);
                let mut row = vec![0u32; lanes];
                for (n, weights) in weight.chunks_exact(inputs).enumerate() {
                    to_bf16(weights, &mut row);
                    place(&row, n, &mut data);
                }
                Panels::Bf16(data)
            }
            Dtype::Int8 => pack_int8(weight, inputs, padded, lanes),
        };
        Self { inputs, outputs, isa, panels, bias: padded_bias }
    }

    /// The number format that its input must have.
    pub fn dtype(&self) -> Dtype {
        match self.panels {
            Panels::F32(_) => Dtype::F32,
            Panels::Bf16(_) => Dtype::Bf16,
            Panels::Int8 { .. } => Dtype::Int8,
        }
    }

    /// The product alone, in f32: no bias. Whole vectors of sixteen outputs are written straight into `out`.
    pub(crate) fn product(&self, x: RowsView, rows: usize, mut out: RowsViewMut) {
        let Panels::F32(b) = &self.panels else {
            unreachable!("asked of a layer that is packed in another number format")
        };
        let (a, stride) = (Operand::by_rows(x.data(), x.stride()), out.stride());
        for (first, panel) in (0..self.outputs).step_by(PANEL).zip(b.chunks_exact(self.inputs * PANEL)) {
            let extent = Extent { rows, lanes: self.inputs, columns: self.outputs - first };
            multiply_f32(self.isa, extent, a, panel, Sums::new(&mut out.data_mut()[first..], stride));
        }
    }

    /// The layer of at most [`BLOCK`] rows: `[rows, inputs]` to `[rows, outputs]`.
    pub fn forward(&self, x: PackedInput, rows: usize, then: Then, mut out: RowsViewMut) {
        debug_assert!(rows <= BLOCK);
        let lanes = self.dtype().lanes(self.inputs);
        let mut sums = BlockSums([0.0; BLOCK * PANEL]);
        for (first, bias) in (0..self.outputs).step_by(PANEL).zip(self.bias.chunks_exact(PANEL)) {
            let panel = first * lanes..(first + PANEL) * lanes;
            let extent = Extent { rows, lanes, columns: self.outputs - first };
            match (&self.panels, x) {
                (Panels::F32(b), PackedInput::F32(x)) => {
                    let a = Operand::by_rows(x.data(), x.stride());
                    multiply_f32(self.isa, extent, a, &b[panel], Sums::new(&mut sums.0, PANEL));
                }
                (Panels::Bf16(b), PackedInput::Bf16 { lanes: data, row }) => {
                    let a = Operand::by_rows(data, row);
                    multiply_bf16(self.isa, extent, a, &b[panel], Sums::new(&mut sums.0, PANEL));
                }
                (Panels::Int8 { lanes: b, scale, totals }, PackedInput::Int8 { lanes: data, row, codes }) => {
                    let (a, whole) = (Operand::by_rows(data, row), bytemuck::cast_slice_mut(&mut sums.0));
                    multiply_int8(self.isa, extent, a, &b[panel], Sums::new(whole, PANEL));
                    dequantise(&mut sums.0, &codes[..rows], &scale[first..], &totals[first..]);
                }
                _ => unreachable!("activations were converted for another layer"),
            }
            let columns = PANEL.min(self.outputs - first);
            let out = out.columns(first, columns);
            match then {
                Then::Bias => finish_bias(&sums.0, rows, bias, out),
                Then::Relu => finish_relu(&sums.0, rows, bias, out),
                Then::Add(add) => finish_add(&sums.0, rows, bias, out, add.columns(first, columns)),
            }
        }
    }
}

/// One panel of sums for a block of rows.
#[repr(align(64))]
struct BlockSums([f32; BLOCK * PANEL]);

/// Writes the columns of a panel.
#[inline(always)]
fn finish(sums: &[f32], rows: usize, bias: &[f32], mut out: RowsViewMut, then: impl Fn(f32) -> f32) {
    for i in 0..rows {
        let sums = &sums[i * PANEL..][..PANEL];
        for ((out, sum), bias) in out.row_mut(i).iter_mut().zip(sums).zip(bias) {
            *out = then(sum + bias);
        }
    }
}

#[inline(always)]
fn finish_bias_body(sums: &[f32], rows: usize, bias: &[f32], out: RowsViewMut) {
    finish(sums, rows, bias, out, |v| v);
}

#[inline(always)]
fn finish_relu_body(sums: &[f32], rows: usize, bias: &[f32], out: RowsViewMut) {
    finish(sums, rows, bias, out, |v| if v > 0.0 { v } else { 0.0 });
}

#[inline(always)]
fn finish_add_body(sums: &[f32], rows: usize, bias: &[f32], mut out: RowsViewMut, add: RowsView) {
    for i in 0..rows {
        let (sums, add) = (&sums[i * PANEL..][..PANEL], add.row(i));
        for (((out, sum), bias), add) in out.row_mut(i).iter_mut().zip(sums).zip(bias).zip(add) {
            *out = sum + bias + add;
        }
    }
}

dispatch! {
    fn finish_bias(sums: &[f32], rows: usize, bias: &[f32], out: RowsViewMut) = finish_bias_body
}
dispatch! {
    fn finish_relu(sums: &[f32], rows: usize, bias: &[f32], out: RowsViewMut) = finish_relu_body
}
dispatch! {
    fn finish_add(sums: &[f32], rows: usize, bias: &[f32], out: RowsViewMut, add: RowsView) = finish_add_body
}

/// Sums of integers, in place, to what they stand for.
#[inline(always)]
fn dequantise_body(sums: &mut [f32], codes: &[Code], scale: &[f32], totals: &[i32]) {
    for (sums, code) in sums.chunks_exact_mut(PANEL).zip(codes) {
        for ((sum, scale), total) in sums.iter_mut().zip(scale).zip(totals) {
            let whole = (sum.to_bits() as i32).wrapping_sub(code.zero * total);
            *sum = whole as f32 * (code.scale * scale);
        }
    }
}

dispatch! {
    fn dequantise(sums: &mut [f32], codes: &[Code], scale: &[f32], totals: &[i32]) = dequantise_body
}

/// Up to 32 rows of weights to a panel `[inputs, 32]`.
fn pack_panel(rows: &[f32], inputs: usize, panel: &mut [f32]) {
    // Sixteen inputs at a time: one line of each row, written to sixteen rows of the panel.
    const STEP: usize = 16;
    for first in (0..inputs).step_by(STEP) {
        let some = STEP.min(inputs - first);
        for (n, row) in rows.chunks_exact(inputs).enumerate() {
            for (p, value) in row[first..first + some].iter().enumerate() {
                panel[(first + p) * PANEL + n] = *value;
            }
        }
    }
}

/// Puts the lanes of output `n` into its panel.
fn place(row: &[u32], n: usize, data: &mut [u32]) {
    let panel = &mut data[n / PANEL * PANEL * row.len()..];
    for (p, lane) in row.iter().enumerate() {
        panel[p * PANEL + n % PANEL] = *lane;
    }
}

fn pack_int8(weight: &[f32], inputs: usize, padded: usize, lanes: usize) -> Panels {
    let (mut data, mut scale, mut totals) =
        (Aligned::<u32>::new(lanes * padded), Aligned::<f32>::new(padded), Aligned::<i32>::new(padded));
    let mut row = vec![0u32; lanes];
    for (n, weights) in weight.chunks_exact(inputs).enumerate() {
        let (low, high) = range(weights);
        scale[n] = high.max(-low) / 127.0;
        codes(weights, if scale[n] > 0.0 { 1.0 / scale[n] } else { 0.0 }, 0, &mut row);
        totals[n] = row.iter().flat_map(|lane| lane.to_le_bytes()).map(|byte| i32::from(byte as i8)).sum();
        place(&row, n, &mut data);
    }
    Panels::Int8 { lanes: data, scale, totals }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_by_instruction_is_bf16_by_hand() {
        let x: Vec<f32> = (0..167).map(|i| (i as f32 - 80.0) * 1.003 / 3.0).collect();
        for len in [0usize, 1, 31, 32, 33, 64, 166, 167] {
            let mut lanes = [vec![9u32; len.div_ceil(2) + 20], vec![9u32; len.div_ceil(2) + 20]];
            to_bf16(&x[..len], &mut lanes[0]);
            to_bf16_body(&x[..len], &mut lanes[1]);
            assert_eq!(lanes[0], lanes[1], "{len}");
        }
    }
    use rand::{Rng, SeedableRng};

    /// Widths that fill no panel and no lane, and more rows than a strip.
    const SHAPE: (usize, usize, usize) = (33, 101, 75);

    fn random(n: usize, seed: u64) -> Vec<f32> {
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
        (0..n).map(|_| rng.random_range(-1.0..1.0)).collect()
    }

    fn exact(x: &[f32], w: &[f32], bias: &[f32], (rows, inputs, outputs): (usize, usize, usize)) -> Vec<f64> {
        let dot = |i: usize, n: usize| {
            (0..inputs).map(|p| f64::from(x[i * inputs + p]) * f64::from(w[n * inputs + p])).sum::<f64>()
        };
        (0..rows * outputs).map(|at| dot(at / outputs, at % outputs) + f64::from(bias[at % outputs])).collect()
    }

    fn run(dtype: Dtype, isa: Isa, x: &[f32], w: &[f32], bias: &[f32], then: Then) -> Vec<f32> {
        let (rows, inputs, outputs) = SHAPE;
        let layer = Linear::pack(isa, dtype, w, bias, inputs, outputs);
        let mut activations = Activations::default();
        let mut out = vec![0.0; rows * outputs];
        let input = activations.of(dtype, RowsView::new(x, inputs, inputs), rows);
        layer.forward(input, rows, then, RowsViewMut::new(&mut out, outputs, outputs));
        out
    }

    #[test]
    fn each_dtype_gives_the_product_within_its_rounding() {
        let (rows, inputs, outputs) = SHAPE;
        let (x, w, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
        let exact = exact(&x, &w, &bias, SHAPE);
        for (dtype, tolerance) in [(Dtype::F32, 1e-5), (Dtype::Bf16, 0.08), (Dtype::Int8, 0.15)] {
            for isa in [Isa::best(), Isa::PLAIN] {
                let out = run(dtype, isa, &x, &w, &bias, Then::Bias);
                let worst = out.iter().zip(&exact).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max);
                assert!(worst < tolerance && worst > 0.0, "{dtype:?}: {worst}");
            }
        }
    }

    #[test]
    fn what_follows_a_product_is_applied_to_it() {
        let (rows, inputs, outputs) = SHAPE;
        let (x, w, bias) = (random(rows * inputs, 1), random(outputs * inputs, 2), random(outputs, 3));
        let plain = run(Dtype::F32, Isa::best(), &x, &w, &bias, Then::Bias);
        let relu = run(Dtype::F32, Isa::best(), &x, &w, &bias, Then::Relu);
        assert!(plain.iter().zip(&relu).all(|(p, r)| p.max(0.0) == *r));
        let add = random(rows * outputs, 4);
        let sum = run(Dtype::F32, Isa::best(), &x, &w, &bias, Then::Add(RowsView::new(&add, outputs, outputs)));
        assert!(plain.iter().zip(&add).zip(&sum).all(|((p, a), s)| p + a == *s));
    }

    #[test]
    fn rows_of_zeros_stay_exact_in_every_dtype() {
        let (rows, inputs, outputs) = SHAPE;
        let (w, bias) = (random(outputs * inputs, 2), random(outputs, 3));
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Int8] {
            let out = run(dtype, Isa::best(), &vec![0.0; rows * inputs], &w, &bias, Then::Bias);
            assert!(out.chunks(outputs).all(|row| row == bias));
        }
    }
}
