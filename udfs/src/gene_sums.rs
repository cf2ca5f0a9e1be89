//! Sums of values per gene over groups of cells: what `sum_expr` and `mean_expr` share.
//!
//! A state holds one number per gene that was seen, whatever the number of cells: [`GeneSums`]. Partial states of
//! several threads are added gene by gene, in f64, so the result depends on their order only far below the f32 it ends
//! as.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, ListArray};
use arrow::datatypes::{DataType, Field, FieldRef, Float64Type, UInt32Type, UInt64Type};
use cellql_schemas::expr::{ProfileBuilder, Profiles, query_type, with_dataset_ids};
use datafusion::common::{Result, ScalarValue, exec_err, internal_err, not_impl_err};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::function::{AccumulatorArgs, StateFieldsArgs};
use datafusion::logical_expr::utils::format_state_name;
use datafusion::logical_expr::{Accumulator, AggregateUDFImpl, Signature, Volatility};

use crate::description::Description;
use crate::engine::Engine;
use crate::origins::Origins;
use crate::parameters;

/// A block of sums by position is used where at least every fourth gene of it has one.
const FILLED: usize = 4;

/// Sums of values per gene: those of low ids by position, the others as ascending pairs. Cells of one tissue share most
/// of their genes, so a group of many cells is soon all block; a group of one cell stays as small as the cell.
#[derive(Debug, Default)]
pub(crate) struct GeneSums {
    block: Vec<f64>,
    gene_ids: Vec<u32>,
    sums: Vec<f64>,
}

impl GeneSums {
    /// Adds a cell, or a part of the sums: strictly ascending gene ids with their values.
    pub(crate) fn add<V: Copy + Into<f64>>(&mut self, gene_ids: &[u32], values: &[V]) {
        let inside = gene_ids.partition_point(|gene| (*gene as usize) < self.block.len());
        for (gene, value) in gene_ids[..inside].iter().zip(values) {
            self.block[*gene as usize] += (*value).into();
        }
        if inside < gene_ids.len() {
            self.merge(&gene_ids[inside..], &values[inside..]);
            self.extend_block();
        }
    }

    fn merge<V: Copy + Into<f64>>(&mut self, gene_ids: &[u32], values: &[V]) {
        let mut genes = Vec::with_capacity(self.gene_ids.len() + gene_ids.len());
        let mut sums = Vec::with_capacity(genes.capacity());
        let mut at = 0;
        for (gene, value) in gene_ids.iter().zip(values) {
            let before = at + self.gene_ids[at..].partition_point(|known| known < gene);
            genes.extend_from_slice(&self.gene_ids[at..before]);
            sums.extend_from_slice(&self.sums[at..before]);
            at = before;
            let mut sum: f64 = (*value).into();
            if self.gene_ids.get(at) == Some(gene) {
                sum += self.sums[at];
                at += 1;
            }
            genes.push(*gene);
            sums.push(sum);
        }
        genes.extend_from_slice(&self.gene_ids[at..]);
        sums.extend_from_slice(&self.sums[at..]);
        (self.gene_ids, self.sums) = (genes, sums);
    }

    /// Takes the pairs into the block, where they fill it well enough.
    fn extend_block(&mut self) {
        let end = self.gene_ids.last().map_or(0, |gene| *gene as usize + 1);
        if self.gene_ids.len() * FILLED < end.saturating_sub(self.block.len()) {
            return;
        }
        self.block.resize(end, 0.0);
        for (gene, sum) in std::mem::take(&mut self.gene_ids).into_iter().zip(std::mem::take(&mut self.sums)) {
            self.block[gene as usize] = sum;
        }
    }

    /// Genes whose sum is not zero, ascending.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, f64)> {
        let block = (0u32..).zip(self.block.iter().copied());
        let pairs = self.gene_ids.iter().copied().zip(self.sums.iter().copied());
        block.chain(pairs).filter(|(_, sum)| *sum != 0.0)
    }

    fn heap_size(&self) -> usize {
        8 * (self.block.capacity() + self.sums.capacity()) + 4 * self.gene_ids.capacity()
    }
}

/// What becomes of the sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Finish {
    /// They are the result.
    Sum,
    /// They are divided by the number of cells.
    Mean,
}

/// An aggregate over expressions.
#[derive(Debug)]
pub(crate) struct OverGenes {
    description: &'static Description,
    finish: Finish,
    engine: Arc<dyn Engine>,
    signature: Signature,
}

impl OverGenes {
    pub(crate) fn new(description: &'static Description, finish: Finish, engine: &Arc<dyn Engine>) -> Self {
        let signature = Signature::user_defined(Volatility::Immutable);
        Self { description, finish, engine: Arc::clone(engine), signature }
    }
}

// One engine is bound per session, so equal arguments mean equal results.
impl PartialEq for OverGenes {
    fn eq(&self, other: &Self) -> bool {
        self.finish == other.finish && Arc::ptr_eq(&self.engine, &other.engine)
    }
}
impl Eq for OverGenes {}
impl Hash for OverGenes {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.description.name.hash(state);
    }
}

impl AggregateUDFImpl for OverGenes {
    fn name(&self) -> &str {
        self.description.name
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn coerce_types(&self, types: &[DataType]) -> Result<Vec<DataType>> {
        parameters::check_types(self.description, types)
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(query_type())
    }

    fn state_fields(&self, args: StateFieldsArgs) -> Result<Vec<FieldRef>> {
        let list = |of: DataType| DataType::List(Arc::new(Field::new_list_field(of, true)));
        let field = |part: &str, of: DataType| Arc::new(Field::new(format_state_name(args.name, part), of, true));
        Ok(vec![
            field("gene_ids", list(DataType::UInt32)),
            field("sums", list(DataType::Float64)),
            field("origins", list(DataType::UInt32)),
            field("cells", list(DataType::UInt64)),
        ])
    }

    fn accumulator(&self, args: AccumulatorArgs) -> Result<Box<dyn Accumulator>> {
        let name = self.description.name;
        if args.is_distinct {
            return not_impl_err!("{name}(DISTINCT expr): choose the distinct cells in a subquery instead");
        }
        let (engine, finish) = (Arc::clone(&self.engine), self.finish);
        Ok(Box::new(Group { name, finish, engine, sums: GeneSums::default(), origins: Origins::default() }))
    }
}

/// The state of one group.
#[derive(Debug)]
struct Group {
    name: &'static str,
    finish: Finish,
    engine: Arc<dyn Engine>,
    sums: GeneSums,
    /// Cells that were not NULL.
    origins: Origins,
}

impl Group {
    /// The number by which the sum of a gene is divided.
    fn divisor(&self, gene: u32) -> Result<f64> {
        match self.finish {
            Finish::Sum => Ok(1.0),
            Finish::Mean => Ok(self.origins.cells_that_measured(self.engine.as_ref(), gene)? as f64),
        }
    }
}

impl Accumulator for Group {
    fn update_batch(&mut self, values: &[ArrayRef]) -> Result<()> {
        let profiles =
            Profiles::new(&values[0]).map_err(|e| DataFusionError::Execution(format!("{}: {e}", self.name)))?;
        for row in 0..profiles.len() {
            let Some(cell) = profiles.get(row) else { continue };
            if !cell.gene_ids.is_sorted_by(|a, b| a < b) {
                return exec_err!(
                    "{}: the gene ids of an expression do not ascend; column expr of cells has such",
                    self.name
                );
            }
            self.sums.add(cell.gene_ids, cell.values);
            self.origins.add(profiles.dataset_ids(row), 1);
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<ScalarValue> {
        let mut profile = ProfileBuilder::default();
        if self.origins.is_empty() {
            profile.push_null();
        } else {
            let (mut gene_ids, mut values) = (Vec::new(), Vec::new());
            for (gene, sum) in self.sums.iter() {
                let value = (sum / self.divisor(gene)?) as f32;
                if value != 0.0 {
                    gene_ids.push(gene);
                    values.push(value);
                }
            }
            profile.push(&gene_ids, &values);
        }
        let one: ArrayRef = Arc::new(profile.finish());
        let together = self.origins.together();
        let one = with_dataset_ids(&one, [together.as_deref()]);
        let one = one.map_err(|e| DataFusionError::Execution(format!("{}: {e}", self.name)))?;
        Ok(ScalarValue::Struct(Arc::new(one.as_struct().clone())))
    }

    fn size(&self) -> usize {
        size_of_val(self) + self.sums.heap_size() + self.origins.heap_size()
    }

    fn state(&mut self) -> Result<Vec<ScalarValue>> {
        let (gene_ids, sums): (Vec<u32>, Vec<f64>) = self.sums.iter().unzip();
        let gene_ids = ListArray::from_iter_primitive::<UInt32Type, _, _>([Some(gene_ids.into_iter().map(Some))]);
        let sums = ListArray::from_iter_primitive::<Float64Type, _, _>([Some(sums.into_iter().map(Some))]);
        let (origins, cells) = self.origins.to_lists();
        let origins = ListArray::from_iter_primitive::<UInt32Type, _, _>([Some(origins.into_iter().map(Some))]);
        let cells = ListArray::from_iter_primitive::<UInt64Type, _, _>([Some(cells.into_iter().map(Some))]);
        Ok([gene_ids, sums, origins, cells].map(|list| ScalarValue::List(Arc::new(list))).to_vec())
    }

    fn merge_batch(&mut self, states: &[ArrayRef]) -> Result<()> {
        let lists: Vec<&ListArray> = states.iter().filter_map(|state| state.as_list_opt::<i32>()).collect();
        let [gene_ids, sums, origins, cells] = lists[..] else {
            return internal_err!("{}: a state of other types", self.name);
        };
        for row in (0..cells.len()).filter(|row| cells.is_valid(*row)) {
            let (genes, sums) = (gene_ids.value(row), sums.value(row));
            self.sums.add(genes.as_primitive::<UInt32Type>().values(), sums.as_primitive::<Float64Type>().values());
            let (origins, cells) = (origins.value(row), cells.value(row));
            self.origins
                .add_lists(origins.as_primitive::<UInt32Type>().values(), cells.as_primitive::<UInt64Type>().values());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(sums: &GeneSums) -> Vec<(u32, f64)> {
        sums.iter().collect()
    }

    #[test]
    fn sums_are_the_same_in_pairs_and_in_a_block() {
        let mut sums = GeneSums::default();
        sums.add(&[10, 4_000_000_000], &[1.0f32, 2.0]);
        assert!(sums.block.is_empty());
        sums.add(&[3, 10], &[0.5f32, 1.0]);
        assert_eq!(all(&sums), [(3, 0.5), (10, 2.0), (4_000_000_000, 2.0)]);
        let mut dense = GeneSums::default();
        dense.add(&[1, 2, 5], &[1.0f64, 2.0, 5.0]);
        assert_eq!(dense.block.len(), 6);
        dense.add(&[0, 5, 4_000_000_000], &[7.0f64, 5.0, 1.0]);
        assert_eq!(dense.block.len(), 6, "one gene far away is no reason for a block up to it");
        dense.add(&[2, 6, 7], &[-2.0f64, 6.0, 7.0]);
        assert_eq!(all(&dense), [(0, 7.0), (1, 1.0), (5, 10.0), (6, 6.0), (7, 7.0), (4_000_000_000, 1.0)]);
    }

    /// Against the plain way, over cells of scattered genes (multiples of steps, modulo a prime).
    #[test]
    fn many_cells_add_up_like_a_plain_table() {
        let mut sums = GeneSums::default();
        let mut plain = vec![0.0; 60_000];
        for cell in 0..200u32 {
            let mut genes: Vec<u32> = (0..300).map(|i| (i * (cell % 7 + 1) * 31 + cell) % 59_999).collect();
            genes.sort_unstable();
            genes.dedup();
            let values: Vec<f32> = genes.iter().map(|gene| (gene % 5 + 1) as f32).collect();
            sums.add(&genes, &values);
            genes.iter().zip(&values).for_each(|(gene, value)| plain[*gene as usize] += f64::from(*value));
        }
        let expected: Vec<(u32, f64)> = (0..).zip(plain).filter(|(_, sum)| *sum != 0.0).collect();
        assert_eq!(all(&sums), expected);
    }

    /// Two threads' parts of a group, and one that saw no cell.
    #[test]
    fn parts_of_a_group_merge_into_the_whole() {
        let part = |cells: &[(&[u32], &[f32])]| {
            let mut profiles = ProfileBuilder::default();
            cells.iter().for_each(|(genes, values)| profiles.push(genes, values));
            let (engine, sums) = (crate::fixture::engine(), GeneSums::default());
            let origins = Origins::default();
            let mut group = Group { name: "mean", finish: Finish::Mean, engine, sums, origins };
            group.update_batch(&[Arc::new(profiles.finish())]).unwrap();
            group
        };
        let mut whole = part(&[]);
        assert!(whole.evaluate().unwrap().is_null());
        for mut part in [part(&[(&[1, 7], &[3.0, 4.0]), (&[], &[])]), part(&[(&[2, 7], &[6.0, 5.0])]), part(&[])] {
            let state: Vec<ArrayRef> = part.state().unwrap().iter().map(|s| s.to_array().unwrap()).collect();
            whole.merge_batch(&state).unwrap();
        }
        let mean = whole.evaluate().unwrap().to_array().unwrap();
        let mean = Profiles::new(&mean).unwrap();
        let mean = mean.get(0).unwrap();
        assert_eq!((mean.gene_ids, mean.values), (&[1, 2, 7][..], &[1.0, 2.0, 3.0][..]));
    }
}
