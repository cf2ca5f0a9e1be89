//! From the tokens of a cell to its embedding.

use std::ops::Range;

use cellql_schemas::recipe::Pool;

use cellql_kernels::Rows;

/// Pools the tokens of a cell, T and S last, into `out`: `[4·width]` for pool `all`, `[width]` for `max`.
pub(crate) fn pool(tokens: &Rows, cell: Range<usize>, pool: Pool, out: &mut [f32]) {
    match pool {
        Pool::Max => maximum(tokens, cell, out),
        Pool::All => {
            let width = out.len() / 4;
            let genes = cell.start..cell.end - 2;
            let (head, tail) = out.split_at_mut(2 * width);
            head[..width].copy_from_slice(tokens.row(cell.end - 1));
            head[width..].copy_from_slice(tokens.row(cell.end - 2));
            let (max, mean) = tail.split_at_mut(width);
            maximum(tokens, genes.clone(), max);
            average(tokens, genes, mean);
        }
    }
}

fn maximum(tokens: &Rows, cell: Range<usize>, out: &mut [f32]) {
    out.fill(f32::NEG_INFINITY);
    for token in cell {
        out.iter_mut().zip(tokens.row(token)).for_each(|(o, t)| *o = o.max(*t));
    }
}

/// In f64: a cell may have thousands of tokens.
fn average(tokens: &Rows, cell: Range<usize>, out: &mut [f32]) {
    let mut sums = vec![0f64; out.len()];
    for token in cell.clone() {
        sums.iter_mut().zip(tokens.row(token)).for_each(|(s, t)| *s += f64::from(*t));
    }
    let count = cell.len() as f64;
    out.iter_mut().zip(sums).for_each(|(o, s)| *o = (s / count) as f32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_stand_in_the_authors_order() {
        // Two genes, then T, then S; width 2.
        let tokens = [[1.0, 8.0], [3.0, 4.0], [5.0, 6.0], [7.0, 2.0]];
        let mut rows = Rows::new(4, 2);
        tokens.iter().enumerate().for_each(|(i, token)| rows.row_mut(i).copy_from_slice(token));
        let mut all = [0.0; 8];
        pool(&rows, 0..4, Pool::All, &mut all);
        assert_eq!(all, [7.0, 2.0, 5.0, 6.0, 3.0, 8.0, 2.0, 6.0]);
        let mut max = [0.0; 2];
        pool(&rows, 0..4, Pool::Max, &mut max);
        assert_eq!(max, [7.0, 8.0]);
    }
}
