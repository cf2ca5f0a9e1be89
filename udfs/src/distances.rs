//! What every distance between two vectors shares: types, NULLs, lengths.

use std::fmt::Debug;
use std::hash::{Hash, Hasher};
use std::marker::PhantomData;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array};
use arrow::datatypes::{DataType, Field};
use datafusion::common::{Result, exec_err, plan_err};
use datafusion::logical_expr::{ColumnarValue, ScalarFunctionArgs, ScalarUDFImpl, Signature, Volatility};

use crate::description::Description;
use crate::parameters::{self, Accepts, Parameter};
use crate::vectors::{Numbers, Vectors, item_type};

/// The parameters of a distance.
pub(crate) const TWO_VECTORS: &[Parameter] = &[
    Parameter::required("a", "a vector: an array of numbers", Accepts::Anything),
    Parameter::required("b", "another of the same length", Accepts::Anything),
];

/// A number of a vector.
pub(crate) trait Number: Copy + Into<f64> {}
impl Number for f32 {}
impl Number for f64 {}

/// Sums `of` over pairs of numbers, in f64. Eight sums side by side, which the compiler makes vector instructions of.
pub(crate) fn sum<A: Number, B: Number>(a: &[A], b: &[B], of: impl Fn(f64, f64) -> f64) -> f64 {
    const LANES: usize = 8;
    let (whole_a, rest_a) = a.as_chunks::<LANES>();
    let (whole_b, rest_b) = b.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for (a, b) in whole_a.iter().zip(whole_b) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += of(a[i].into(), b[i].into());
        }
    }
    let rest: f64 = rest_a.iter().zip(rest_b).map(|(a, b)| of((*a).into(), (*b).into())).sum();
    lanes.iter().sum::<f64>() + rest
}

/// A distance between vectors of one length.
pub(crate) trait Distance: Debug + Send + Sync + 'static {
    /// What it is called; its parameters are [`TWO_VECTORS`].
    const DESCRIPTION: &'static Description;

    /// The distance; `None` where it has no meaning. Both slices have one length.
    fn between<A: Number, B: Number>(a: &[A], b: &[B]) -> Option<f64>;
}

/// A distance as a function of SQL.
#[derive(Debug)]
pub(crate) struct DistanceFunction<D> {
    signature: Signature,
    what: PhantomData<D>,
}

impl<D: Distance> DistanceFunction<D> {
    pub(crate) fn new() -> Self {
        Self { signature: Signature::user_defined(Volatility::Immutable), what: PhantomData }
    }

    fn column(column: &ColumnarValue) -> Result<Column> {
        let (array, step): (ArrayRef, usize) = match column {
            ColumnarValue::Array(array) => (Arc::clone(array), 1),
            ColumnarValue::Scalar(value) => (value.to_array()?, 0),
        };
        match Vectors::new(&array) {
            Some(vectors) => Ok(Column { vectors, step }),
            None => plan_err!("{}: {} is no vector of numbers", D::DESCRIPTION.usage(), array.data_type()),
        }
    }
}

/// A column of vectors, or one vector for all rows.
struct Column {
    vectors: Vectors,
    /// 0 where one vector stands for all rows.
    step: usize,
}

impl<D: Distance> PartialEq for DistanceFunction<D> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<D: Distance> Eq for DistanceFunction<D> {}
impl<D: Distance> Hash for DistanceFunction<D> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        D::DESCRIPTION.name.hash(state);
    }
}

/// The type an argument is read as: itself where it is an array of Float32 or Float64, else an array of Float64.
fn read_as(given: &DataType) -> Option<DataType> {
    let item = || Arc::new(Field::new_list_field(DataType::Float64, true));
    if given.is_null() {
        return Some(DataType::List(item()));
    }
    let of = item_type(given)?;
    let is_read = matches!(of, DataType::Float32 | DataType::Float64);
    match given {
        DataType::List(_) | DataType::FixedSizeList(..) if is_read => Some(given.clone()),
        DataType::FixedSizeList(_, size) if of.is_numeric() => Some(DataType::FixedSizeList(item(), *size)),
        _ if of.is_numeric() || of.is_null() => Some(DataType::List(item())),
        _ => None,
    }
}

fn rows<D: Distance, A: Number, B: Number>(
    (a, numbers_a): (&Column, &[A]),
    (b, numbers_b): (&Column, &[B]),
    count: usize,
) -> Result<Float64Array> {
    let distance = |row: usize| -> Result<Option<f64>> {
        let (Some(at_a), Some(at_b)) = (a.vectors.span(row * a.step), b.vectors.span(row * b.step)) else {
            return Ok(None);
        };
        if at_a.len() != at_b.len() {
            let name = D::DESCRIPTION.name;
            return exec_err!("{name}: the vectors have different lengths, {} and {} numbers", at_a.len(), at_b.len());
        }
        if a.vectors.lacks_numbers(&at_a) || b.vectors.lacks_numbers(&at_b) {
            return Ok(None);
        }
        Ok(D::between(&numbers_a[at_a], &numbers_b[at_b]))
    };
    (0..count).map(distance).collect()
}

impl<D: Distance> ScalarUDFImpl for DistanceFunction<D> {
    fn name(&self) -> &str {
        D::DESCRIPTION.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        parameters::check_types(D::DESCRIPTION, types)?;
        let fixed = |given: &DataType| match given {
            DataType::FixedSizeList(_, size) => Some(*size),
            _ => None,
        };
        if let (Some(a), Some(b)) = (fixed(&types[0]), fixed(&types[1]))
            && a != b
        {
            let name = D::DESCRIPTION.name;
            return plan_err!("{name}: the vectors have different lengths, {a} and {b} numbers");
        }
        let each = types.iter().map(|given| match read_as(given) {
            Some(read) => Ok(read),
            None => plan_err!("{}: a vector is an array of numbers, not {given}", D::DESCRIPTION.usage()),
        });
        each.collect()
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(DataType::Float64)
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let (a, b, n) = (Self::column(&args.args[0])?, Self::column(&args.args[1])?, args.number_rows);
        let distances = match (&a.vectors.numbers, &b.vectors.numbers) {
            (Numbers::F32(x), Numbers::F32(y)) => rows::<D, _, _>((&a, x), (&b, y), n),
            (Numbers::F32(x), Numbers::F64(y)) => rows::<D, _, _>((&a, x), (&b, y), n),
            (Numbers::F64(x), Numbers::F32(y)) => rows::<D, _, _>((&a, x), (&b, y), n),
            (Numbers::F64(x), Numbers::F64(y)) => rows::<D, _, _>((&a, x), (&b, y), n),
        }?;
        Ok(ColumnarValue::Array(Arc::new(distances)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_summed_once() {
        for length in [0, 1, 7, 8, 9, 16, 21] {
            let a: Vec<f32> = (0..length).map(|i| i as f32).collect();
            let b = vec![2.0f64; length];
            assert_eq!(sum(&a, &b, |x, y| x * y), (length * length) as f64 - length as f64);
        }
    }
}
