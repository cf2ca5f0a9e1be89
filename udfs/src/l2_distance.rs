//! `l2_distance(a, b)`: the Euclidean distance of two vectors.
//!
//! ```sql
//! SELECT a.cell_id, b.cell_id, l2_distance(a.vector, b.vector) AS distance
//! FROM embeddings a JOIN embeddings b ON a.cell_id < b.cell_id ORDER BY distance LIMIT 5;
//! ```

use crate::description::{Description, Kind};
use crate::distances::{Distance, Number, TWO_VECTORS, sum};

/// Name in SQL.
pub const NAME: &str = "l2_distance";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Scalar,
    parameters: TWO_VECTORS,
    returns: "Float64; NULL where a vector or one of its numbers is NULL.",
    summary: "The Euclidean distance of two vectors, summed in f64.",
    example: "SELECT a.cell_id, b.cell_id, l2_distance(a.vector, b.vector) AS distance\n\
              FROM embeddings a JOIN embeddings b ON a.cell_id < b.cell_id ORDER BY distance LIMIT 5;",
};

#[derive(Debug)]
pub(crate) struct L2Distance;

impl Distance for L2Distance {
    const DESCRIPTION: &'static Description = &DESCRIPTION;

    fn between<A: Number, B: Number>(a: &[A], b: &[B]) -> Option<f64> {
        Some(sum(a, b, |x, y| (x - y) * (x - y)).sqrt())
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::{shown, wrong};

    #[test]
    fn vectors_of_any_number_type_are_compared() {
        let sql = "SELECT l2_distance(vector, [4, 6]) AS v FROM cells ORDER BY cell_id";
        assert_eq!(shown(sql), ["5.0", "1.0", "NULL", "NULL"]);
        let sql = "SELECT l2_distance(b => vector, a => arrow_cast([1.0, 2.0], 'FixedSizeList(2, Float32)')) < 0.1 \
             AS v \
                   FROM cells ORDER BY cell_id";
        assert_eq!(shown(sql), ["true", "false", "NULL", "NULL"]);
        assert_eq!(shown("SELECT l2_distance([0, 3], [4.0, 0.0]) AS v"), ["5.0"]);
        assert_eq!(shown("SELECT l2_distance([0, NULL], [4.0, 0.0]) AS v"), ["NULL"]);
        assert_eq!(shown("SELECT l2_distance(NULL, [4.0, 0.0]) AS v"), ["NULL"]);
    }

    #[test]
    fn lengths_must_agree() {
        let error = wrong("SELECT l2_distance(vector, [1.0, 2.0, 3.0]) FROM cells");
        assert!(error.contains("different lengths, 2 and 3 numbers"), "{error}");
        let sql = "SELECT l2_distance(vector, arrow_cast([1, 2, 3], 'FixedSizeList(3, Float32)')) FROM cells";
        assert!(wrong(sql).contains("different lengths, 2 and 3 numbers"));
        assert!(wrong("SELECT l2_distance(vector, 'x') FROM cells").contains("a vector is an array of numbers"));
        assert!(wrong("SELECT l2_distance(vector) FROM cells").contains("takes 2 arguments, not 1"));
    }
}
