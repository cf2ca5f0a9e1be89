//! From the encoded tokens of a cell to its pooled vector, forward and backward. The parts stand in the order of pool
//! `all` of embeddings: S, T, the maximum over genes, the mean over genes, `[4·dim]`.

use cellql_kernels::Rows;

/// The pooled vector of a cell, and the token that gave each maximum.
#[derive(Debug, Clone, Default)]
pub(super) struct Pooled {
    pub(super) vector: Vec<f32>,
    largest: Vec<u32>,
}

/// Pools the encoded tokens of a cell, T and S last.
pub(super) fn pool(encoded: &Rows, tokens: usize, dim: usize) -> Pooled {
    let genes = tokens - 2;
    let mut vector = vec![0.0; 4 * dim];
    vector[..dim].copy_from_slice(encoded.row(tokens - 1));
    vector[dim..2 * dim].copy_from_slice(encoded.row(tokens - 2));
    let (max, mean) = vector[2 * dim..].split_at_mut(dim);
    max.fill(f32::NEG_INFINITY);
    let (mut largest, mut sums) = (vec![0; dim], vec![0f64; dim]);
    for token in 0..genes {
        let values = encoded.row(token).iter().zip(max.iter_mut().zip(&mut largest).zip(&mut sums));
        for (value, ((max, largest), sum)) in values {
            if *value > *max {
                (*max, *largest) = (*value, token as u32);
            }
            *sum += f64::from(*value);
        }
    }
    mean.iter_mut().zip(sums).for_each(|(mean, sum)| *mean = (sum / genes as f64) as f32);
    Pooled { vector, largest }
}

/// The gradient of the encoded tokens, `[tokens, dim]`, from that of the pooled vector.
pub(super) fn pool_backward(pooled: &Pooled, d: &[f32], tokens: usize) -> Rows {
    let (dim, genes) = (d.len() / 4, tokens - 2);
    let mut out = Rows::new(tokens, dim);
    let share = 1.0 / genes as f32;
    for token in 0..genes {
        out.row_mut(token).iter_mut().zip(&d[3 * dim..]).for_each(|(out, d)| *out = d * share);
    }
    for (i, (token, d)) in pooled.largest.iter().zip(&d[2 * dim..3 * dim]).enumerate() {
        out.row_mut(*token as usize)[i] += d;
    }
    out.row_mut(tokens - 1).copy_from_slice(&d[..dim]);
    out.row_mut(tokens - 2).copy_from_slice(&d[dim..2 * dim]);
    out
}
