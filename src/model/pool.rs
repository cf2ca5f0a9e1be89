//! From the tokens of a cell to its embedding.

use cellql_schemas::recipe::Pool;

/// Pools `[tokens, width]`, T and S last, into `out`: `[4·width]` for pool `all`, `[width]` for `max`.
pub(super) fn pool(tokens: &[f32], width: usize, pool: Pool, out: &mut [f32]) {
    match pool {
        Pool::Max => maximum(tokens, width, out),
        Pool::All => {
            let (genes, depth) = tokens.split_at(tokens.len() - 2 * width);
            let (target, source) = depth.split_at(width);
            let (head, tail) = out.split_at_mut(2 * width);
            head[..width].copy_from_slice(source);
            head[width..].copy_from_slice(target);
            let (max, mean) = tail.split_at_mut(width);
            maximum(genes, width, max);
            average(genes, width, mean);
        }
    }
}

fn maximum(tokens: &[f32], width: usize, out: &mut [f32]) {
    out.fill(f32::NEG_INFINITY);
    for token in tokens.chunks_exact(width) {
        out.iter_mut().zip(token).for_each(|(o, t)| *o = o.max(*t));
    }
}

/// In f64: a cell may have thousands of tokens.
fn average(tokens: &[f32], width: usize, out: &mut [f32]) {
    let mut sums = vec![0f64; width];
    for token in tokens.chunks_exact(width) {
        sums.iter_mut().zip(token).for_each(|(s, t)| *s += f64::from(*t));
    }
    let count = (tokens.len() / width) as f64;
    out.iter_mut().zip(sums).for_each(|(o, s)| *o = (s / count) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_in_the_authors_order() {
        // Two genes, then T, then S; width 2.
        let tokens = [1.0, 8.0, 3.0, 4.0, 5.0, 6.0, 7.0, 2.0];
        let mut all = [0.0; 8];
        pool(&tokens, 2, Pool::All, &mut all);
        assert_eq!(all, [7.0, 2.0, 5.0, 6.0, 3.0, 8.0, 2.0, 6.0]);
        let mut max = [0.0; 2];
        pool(&tokens, 2, Pool::Max, &mut max);
        assert_eq!(max, [7.0, 8.0]);
    }
}
