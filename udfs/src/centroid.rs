//! `centroid(vector)`: the mean of a group's vectors, number by number.
//!
//! ```sql
//! SELECT cell_type, centroid(vector) AS centre FROM cells JOIN embeddings USING (cell_id) GROUP BY cell_type;
//! ```

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, FixedSizeListArray, Float64Array, ListArray};
use arrow::buffer::OffsetBuffer;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, UInt64Type};
use datafusion::common::{Result, ScalarValue, exec_err, internal_err, not_impl_err, plan_err};
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDF, AggregateUDFImpl, Signature, Volatility};

use crate::description::{Description, Kind};
use crate::parameters::{self, Accepts, Parameter};
use crate::vectors::{Numbers, Vectors, item_type};

/// Name in SQL.
pub const NAME: &str = "centroid";
/// What it is.
pub const DESCRIPTION: Description = Description {
    name: NAME,
    kind: Kind::Aggregate,
    parameters: &[Parameter::required(
        "vector",
        "array of Float32 or Float64, of one length in a group",
        Accepts::Anything,
    )],
    returns: "the type of the vectors; NULL where the group has none.",
    summary: "The mean of a group's vectors, number by number, summed in f64. NULL vectors do not count.",
    example: "SELECT cell_type, centroid(vector) AS centre FROM cells JOIN embeddings USING (cell_id) GROUP BY \
         cell_type;",
};

/// The function.
pub fn function() -> AggregateUDF {
    AggregateUDF::from(Centroid { signature: Signature::user_defined(Volatility::Immutable) })
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct Centroid {
    signature: Signature,
}

impl AggregateUDFImpl for Centroid {
    fn name(&self) -> &str {
        NAME
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        let types = parameters::check_types(&DESCRIPTION, types)?;
        let is_vector = matches!(types[0], DataType::List(_) | DataType::FixedSizeList(..))
            && matches!(item_type(&types[0]), Some(DataType::Float32 | DataType::Float64));
        match is_vector {
            true => Ok(types),
            false => {
                plan_err!("{}: 'vector' must be an array of Float32 or Float64, not {}", DESCRIPTION.usage(), types[0])
            }
        }
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        Ok(types[0].clone())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let sums = DataType::List(Arc::new(Field::new_list_field(DataType::Float64, true)));
        let field = |part: &str, of: DataType| Arc::new(Field::new(format_state_name(args.name, part), of, true));
        Ok(vec![field("sums", sums), field("vectors", DataType::UInt64)])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        if args.is_distinct {
            return not_impl_err!("{NAME}(DISTINCT vector): choose the distinct vectors in a subquery instead");
        }
        Ok(Box::new(Group { returns: args.return_type().clone(), sums: Vec::new(), vectors: 0 }))
    }
}

/// The state of one group.
#[derive(Debug)]
struct Group {
    returns: DataType,
    sums: Vec<f64>,
    vectors: u64,
}

impl Group {
    fn add<V: Copy + Into<f64>>(&mut self, vector: &[V], count: u64) -> Result<()> {
        if self.vectors == 0 {
            self.sums = vec![0.0; vector.len()];
        } else if self.sums.len() != vector.len() {
            let (known, new) = (self.sums.len(), vector.len());
            return exec_err!("{NAME}: the vectors of a group have different lengths, {known} and {new} numbers");
        }
        self.sums.iter_mut().zip(vector).for_each(|(sum, number)| *sum += (*number).into());
        self.vectors += count;
        Ok(())
    }
}

impl Accumulator for Group {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let Some(vectors) = Vectors::new(&values[0]) else {
            return internal_err!("{NAME}: {} is no vector", values[0].data_type());
        };
        for span in (0..values[0].len()).filter_map(|row| vectors.span(row)) {
            if vectors.lacks_numbers(&span) {
                return exec_err!("{NAME}: a vector holds a NULL; leave such vectors out with WHERE");
            }
            match &vectors.numbers {
                Numbers::F32(numbers) => self.add(&numbers[span], 1)?,
                Numbers::F64(numbers) => self.add(&numbers[span], 1)?,
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        if self.vectors == 0 {
            return ScalarValue::try_from(&self.returns);
        }
        let means: ArrayRef =
            Arc::new(self.sums.iter().map(|sum| Some(sum / self.vectors as f64)).collect::<Float64Array>());
        match &self.returns {
            DataType::FixedSizeList(item, size) => {
                let means = cast(&means, item.data_type())?;
                let vector = FixedSizeListArray::try_new(Arc::clone(item), *size, means, None)?;
                Ok(ScalarValue::FixedSizeList(Arc::new(vector)))
            }
            DataType::List(item) => {
                let means = cast(&means, item.data_type())?;
                let offsets = OffsetBuffer::from_lengths([means.len()]);
                Ok(ScalarValue::List(Arc::new(ListArray::try_new(Arc::clone(item), offsets, means, None)?)))
            }
            other => internal_err!("{NAME}: {other} is no vector"),
        }
    }

    fn size(&self) -> usize {
        size_of_val(self) + 8 * self.sums.capacity()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let sums = self.sums.iter().copied().map(Some);
        let sums = ListArray::from_iter_primitive::<Float64Type, _, _>([Some(sums)]);
        Ok(vec![ScalarValue::List(Arc::new(sums)), ScalarValue::UInt64(Some(self.vectors))])
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let (Some(sums), Some(counts)) = (states[0].as_list_opt::<i32>(), states[1].as_primitive_opt::<UInt64Type>())
        else {
            return internal_err!("{NAME}: a state of other types");
        };
        for row in (0..counts.len()).filter(|row| counts.is_valid(*row) && counts.value(*row) > 0) {
            self.add(sums.value(row).as_primitive::<Float64Type>().values(), counts.value(row))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{shown, wrong};

    /// Two threads' parts of a group, and one that saw no vector.
    #[test]
    fn parts_of_a_group_merge_into_the_whole() {
        let group = || Group { returns: DataType::new_list(DataType::Float64, true), sums: Vec::new(), vectors: 0 };
        let (mut whole, mut first, mut second, mut none) = (group(), group(), group(), group());
        first.add(&[1.0f32, 2.0], 1).unwrap();
        first.add(&[2.0f32, 3.0], 1).unwrap();
        second.add(&[6.0f64, 1.0], 1).unwrap();
        for part in [&mut none, &mut first, &mut second] {
            let state: Vec<ArrayRef> = part.state().unwrap().iter().map(|s| s.to_array().unwrap()).collect();
            whole.merge_batch(&state).unwrap();
        }
        assert_eq!(whole.evaluate().unwrap().to_string(), "[3.0, 2.0]");
        assert!(whole.add(&[1.0f32], 1).unwrap_err().to_string().contains("2 and 1 numbers"));
    }

    #[test]
    fn it_is_the_mean_of_vectors_that_are_there() {
        let sql = "SELECT centroid(vector) AS v FROM cells GROUP BY kind ORDER BY kind";
        assert_eq!(shown(sql), ["[2.0, 4.0]", "NULL"]);
        assert_eq!(shown("SELECT arrow_typeof(centroid(vector)) AS v FROM cells"), ["FixedSizeList(2 x Float32)"]);
        let sql = "SELECT centroid(x) AS v FROM (VALUES ([1.0, 2.0]), ([2.0, 4.0]), ([6.0, 0.0])) AS t(x)";
        assert_eq!(shown(sql), ["[3.0, 2.0]"]);
        assert_eq!(shown("SELECT centroid(vector) AS v FROM cells WHERE false"), ["NULL"]);
    }

    #[test]
    fn vectors_of_different_lengths_have_none() {
        let error = wrong("SELECT centroid(x) FROM (VALUES ([1.0, 2.0]), ([2.0])) AS t(x)");
        assert!(error.contains("different lengths, 2 and 1 numbers"), "{error}");
        let error = wrong("SELECT centroid(x) FROM (VALUES ([1.0, NULL])) AS t(x)");
        assert!(error.contains("holds a NULL"), "{error}");
        let error = wrong("SELECT centroid(kind) FROM cells");
        assert!(error.contains("must be an array of Float32 or Float64"), "{error}");
    }
}
