//! The kernels of a device as plain loops: the reference that `learning.cu` is tested against, and what tensors on the
//! CPU use. Nothing here is fast.

use super::Heads;
use crate::favor::FEATURE_EPS;
use crate::norm::NORM_EPS;
use crate::simd::dot;

/// The factor of rows before they are projected: dim^-¼.
fn scale(dim: usize) -> f32 {
    (dim as f32).sqrt().sqrt().recip()
}

/// Number and rows of each cell.
fn cells(starts: &[u32]) -> impl Iterator<Item = (usize, std::ops::Range<usize>)> {
    starts.windows(2).map(|s| s[0] as usize..s[1] as usize).enumerate()
}

/// `x` `[rows, heads, dim]`, `w` `[features, dim]` to `[rows, heads]`: the largest projection of each row.
pub fn largest(x: &[f32], w: &[f32], h: Heads) -> Vec<f32> {
    let of_row = |x: &[f32]| w.chunks_exact(h.dim).map(|w| scale(h.dim) * dot(x, w)).fold(f32::NEG_INFINITY, f32::max);
    x.chunks_exact(h.dim).map(of_row).collect()
}

/// Exponentials of a row with its largest projection, `[dim + 1]`: features before [`FEATURE_EPS`] is added.
fn exponentials<'a>(xl: &'a [f32], w: &'a [f32]) -> impl Iterator<Item = f32> + 'a {
    let (x, largest) = xl.split_at(xl.len() - 1);
    let s = scale(x.len());
    let shift = largest[0] + 0.5 * s * s * dot(x, x);
    w.chunks_exact(x.len()).map(move |w| (s * dot(x, w) - shift).exp())
}

/// `xl` `[rows, heads, dim + 1]`, `t` `[cells, heads, features, dim + 1]` to `[rows, heads, dim + 1]`: for each row the
/// sum over features of the feature times its row of `t`.
pub fn gather(xl: &[f32], w: &[f32], t: &[f32], starts: &[u32], h: Heads) -> Vec<f32> {
    let (wide, of_head) = (h.dim + 1, w.len() / h.dim * (h.dim + 1));
    let mut out = vec![0.0; xl.len()];
    for (cell, rows) in cells(starts) {
        for at in rows.start * h.heads..rows.end * h.heads {
            let t = &t[(cell * h.heads + at % h.heads) * of_head..][..of_head];
            let (row, out) = (&xl[at * wide..][..wide], &mut out[at * wide..][..wide]);
            for (e, t) in exponentials(row, w).zip(t.chunks_exact(wide)) {
                out.iter_mut().zip(t).for_each(|(o, t)| *o += (e + FEATURE_EPS) * t);
            }
        }
    }
    out
}

/// `xl` and `r` `[rows, heads, dim + 1]` to `[cells, heads, features, dim + 1]`: for each feature the sum over a cell's
/// rows of the feature times the row of `r`.
pub fn scatter(xl: &[f32], r: &[f32], w: &[f32], starts: &[u32], h: Heads) -> Vec<f32> {
    let (wide, of_head) = (h.dim + 1, w.len() / h.dim * (h.dim + 1));
    let mut out = vec![0.0; (starts.len() - 1) * h.heads * of_head];
    for (cell, rows) in cells(starts) {
        for at in rows.start * h.heads..rows.end * h.heads {
            let out = &mut out[(cell * h.heads + at % h.heads) * of_head..][..of_head];
            let (row, r) = (&xl[at * wide..][..wide], &r[at * wide..][..wide]);
            for (e, out) in exponentials(row, w).zip(out.chunks_exact_mut(wide)) {
                out.iter_mut().zip(r).for_each(|(o, r)| *o += (e + FEATURE_EPS) * r);
            }
        }
    }
    out
}

/// The derivative by the rows, `[rows, heads, dim]`, of Σ over rows of [`gather`]'s result times `r` `[rows, heads, dim
/// + 1]`. The largest projections count as constants.
pub fn derivative(xl: &[f32], r: &[f32], w: &[f32], t: &[f32], starts: &[u32], h: Heads) -> Vec<f32> {
    let (wide, of_head, s) = (h.dim + 1, w.len() / h.dim * (h.dim + 1), scale(h.dim));
    let mut out = vec![0.0; xl.len() / wide * h.dim];
    for (cell, rows) in cells(starts) {
        for at in rows.start * h.heads..rows.end * h.heads {
            let t = &t[(cell * h.heads + at % h.heads) * of_head..][..of_head];
            let (row, r) = (&xl[at * wide..][..wide], &r[at * wide..][..wide]);
            let (out, mut total) = (&mut out[at * h.dim..][..h.dim], 0.0);
            for ((e, t), w) in exponentials(row, w).zip(t.chunks_exact(wide)).zip(w.chunks_exact(h.dim)) {
                let g = dot(r, t) * e;
                out.iter_mut().zip(w).for_each(|(o, w)| *o += g * s * w);
                total += g;
            }
            out.iter_mut().zip(row).for_each(|(o, x)| *o -= total * s * s * x);
        }
    }
    out
}

/// A head of a token in `qkv` `[tokens, 3, heads, dim]`: query, key and value.
fn parts(qkv: &[f32], token: usize, head: usize, h: Heads) -> [&[f32]; 3] {
    [0, 1, 2].map(|part| &qkv[(token * 3 + part) * h.width() + head * h.dim..][..h.dim])
}

/// `qkv` `[tokens, 3, heads, dim]` to `[tokens, heads, dim + 1]`: attention within each cell, and the logarithm of each
/// query's sum of exponentials.
pub fn attend(qkv: &[f32], starts: &[u32], h: Heads) -> Vec<f32> {
    let (wide, s) = (h.dim + 1, (h.dim as f32).sqrt().recip());
    let mut out = vec![0.0; qkv.len() / (3 * h.width()) * h.wider()];
    for (_, tokens) in cells(starts) {
        for (query, head) in tokens.clone().flat_map(|token| (0..h.heads).map(move |head| (token, head))) {
            let [q, ..] = parts(qkv, query, head, h);
            let scores: Vec<f32> = tokens.clone().map(|key| s * dot(q, parts(qkv, key, head, h)[1])).collect();
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum = most + scores.iter().map(|score| (score - most).exp()).sum::<f32>().ln();
            let out = &mut out[(query * h.heads + head) * wide..][..wide];
            for (key, score) in tokens.clone().zip(scores) {
                let [.., v] = parts(qkv, key, head, h);
                out.iter_mut().zip(v).for_each(|(o, v)| *o += (score - sum).exp() * v);
            }
            out[h.dim] = sum;
        }
    }
    out
}

/// The gradient of `qkv`, from the result `given` of [`attend`] and its gradient `g` `[tokens, heads, dim]`.
pub fn attend_backward(qkv: &[f32], given: &[f32], g: &[f32], starts: &[u32], h: Heads) -> Vec<f32> {
    let (wide, s) = (h.dim + 1, (h.dim as f32).sqrt().recip());
    let mut out = vec![0.0; qkv.len()];
    for (_, tokens) in cells(starts) {
        for (query, head) in tokens.clone().flat_map(|token| (0..h.heads).map(move |head| (token, head))) {
            let at = query * h.heads + head;
            let ([q, ..], g) = (parts(qkv, query, head, h), &g[at * h.dim..][..h.dim]);
            let (mixed, sum) = given[at * wide..][..wide].split_at(h.dim);
            let mean = dot(mixed, g);
            for key in tokens.clone() {
                let [_, k, v] = parts(qkv, key, head, h);
                let weight = (s * dot(q, k) - sum[0]).exp();
                let score = weight * (dot(g, v) - mean) * s;
                let mut add = |token: usize, part: usize, times: f32, what: &[f32]| {
                    let to = &mut out[(token * 3 + part) * h.width() + head * h.dim..][..h.dim];
                    to.iter_mut().zip(what).for_each(|(o, x)| *o += times * x);
                };
                add(query, 0, score, k);
                add(key, 1, score, q);
                add(key, 2, weight, g);
            }
        }
    }
    out
}

/// A row minus its mean, divided by its standard deviation, and the inverse of that deviation.
fn normed(x: &[f32]) -> (Vec<f32>, f32) {
    let mean = x.iter().sum::<f32>() / x.len() as f32;
    let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / x.len() as f32;
    let scale = (variance + NORM_EPS).sqrt().recip();
    (x.iter().map(|x| (x - mean) * scale).collect(), scale)
}

/// Layer norm of rows of `weight`'s width.
pub fn normalise(x: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
    let of_row =
        |x: &[f32]| normed(x).0.into_iter().zip(weight.iter().zip(bias)).map(|(x, (w, b))| x * w + b).collect();
    x.chunks_exact(weight.len()).flat_map(|x| -> Vec<f32> { of_row(x) }).collect()
}

/// From the gradient `g` of [`normalise`]'s result to `[2, rows, width]`: the gradient of `x`, and `g` times the
/// normalised row, whose sum over rows is the gradient of the weight.
pub fn norm_backward(x: &[f32], weight: &[f32], g: &[f32]) -> Vec<f32> {
    let width = weight.len();
    let (mut of_x, mut along_g) = (Vec::with_capacity(2 * x.len()), Vec::with_capacity(x.len()));
    for (x, g) in x.chunks_exact(width).zip(g.chunks_exact(width)) {
        let (x, scale) = normed(x);
        let gw: Vec<f32> = g.iter().zip(weight).map(|(g, w)| g * w).collect();
        let (mean, along) = (gw.iter().sum::<f32>() / width as f32, dot(&gw, &x) / width as f32);
        of_x.extend(gw.iter().zip(&x).map(|(g, x)| (g - mean - x * along) * scale));
        along_g.extend(g.iter().zip(&x).map(|(g, x)| g * x));
    }
    of_x.extend(along_g);
    of_x
}

/// Adds `bias` to every row of its width.
pub fn biased(x: &[f32], bias: &[f32]) -> Vec<f32> {
    x.chunks_exact(bias.len()).flat_map(|x| x.iter().zip(bias).map(|(x, b)| x + b)).collect()
}

/// The gradient of `x` from the gradient `g` of gelu(`x`).
pub fn gelu_backward(x: &[f32], g: &[f32]) -> Vec<f32> {
    let (mut x, mut g) = (x.to_vec(), g.to_vec());
    crate::gelu_backward(&mut x, &mut g);
    g
}

/// Sums of lists of rows, `[lists, width]`: list `i` holds the row numbers `sources[starts[i]..starts[i + 1]]`.
pub fn sum_rows(x: &[f32], starts: &[u32], sources: &[u32], width: usize) -> Vec<f32> {
    let mut out = vec![0.0; (starts.len() - 1) * width];
    for (bounds, out) in starts.windows(2).zip(out.chunks_exact_mut(width)) {
        for row in &sources[bounds[0] as usize..bounds[1] as usize] {
            out.iter_mut().zip(&x[*row as usize * width..]).for_each(|(o, x)| *o += x);
        }
    }
    out
}
