//! Principal components of log-normalised counts.

use std::collections::HashSet;
use std::time::Instant;

use cellql_analysis::grouped_pca::{GroupMoments, PASSES, grouped_components};
use cellql_analysis::variable_genes::{ColumnMoments, most_variable};
use cellql_model::{LinearConfig, LinearWeights, Provenance};
use cellql_schemas::vocabulary::Vocabulary;
use cellql_store::Store;
use cellql_store::progress::OnProgress;
use roaring::RoaringTreemap;

use super::rows::{Piece, TrainingRows};
use super::{FitSettings, GeneSelection};
use crate::error::{Error, Result};
use crate::pretrain::{SplitCounts, split};

/// Bytes of the sums per gene and group; more groups than fit are refused.
const MOMENT_BYTES: usize = 2 << 30;

/// A fitted linear model, and how it was fitted.
#[derive(Debug, Clone)]
pub struct FittedPca {
    /// The model.
    pub weights: LinearWeights,
    /// Its provenance.
    pub provenance: Provenance,
    /// Numbers of cells.
    pub cells: SplitCounts,
    /// Groups that were centred by themselves and weighted alike.
    pub groups: usize,
    /// Share of the variance that the components hold.
    pub explained: f64,
    /// Seconds of work.
    pub seconds: f64,
}

/// Fits principal components to the cells of a store that have counts and are not held out. Memory does not grow with
/// the number of cells. `on_progress` is called with cells done and to do, over all passes.
///
/// # Errors
/// Settings that are invalid, a condition or column that does not fit `cells`, no cells, no genes, or a store that
/// cannot be read.
pub async fn fit_pca(store: &Store, settings: &FitSettings, on_progress: OnProgress) -> Result<FittedPca> {
    let began = Instant::now();
    let grouping = settings.check(store).await?;
    let split = split(store, settings.condition.as_deref(), &settings.hold_out, 0).await?;
    let cells = split.counts();
    let chosen = spread(split.train, settings.cells);
    let catalogue = store.genes().await?;
    let mut rows = TrainingRows::open(store, chosen, &grouping, PASSES + 1, on_progress).await?;
    tokio::task::block_in_place(|| {
        let moments = GeneMoments::of(&mut rows, catalogue.len())?;
        let chosen = with_names_of_their_own(moments.select(settings.genes), |gene| catalogue.symbol(gene));
        if chosen.is_empty() {
            return Err(Error::Request(format!("--genes {}: no gene satisfies it", settings.genes)));
        }
        let mut columns = vec![None; catalogue.len()];
        chosen.iter().enumerate().for_each(|(column, gene)| columns[*gene as usize] = Some(column as u32));
        rows.select(columns, chosen.len());
        let groups = moments.selected(&chosen);
        let found = grouped_components(&mut rows, chosen.len(), &groups, settings.components, settings.seed)?;
        if found.count == 0 {
            return Err(Error::Request("the cells to fit to do not vary; select other cells".into()));
        }
        let narrow = |values: &[f64]| values.iter().map(|value| *value as f32).collect::<Vec<f32>>();
        let weights = LinearWeights {
            config: LinearConfig { components: found.count, whitening: settings.whitening },
            vocabulary: vocabulary(&catalogue, &chosen)?,
            mean: narrow(&found.mean),
            loadings: narrow(&found.loadings),
            variances: narrow(&found.variances),
        };
        Ok(FittedPca {
            weights,
            provenance: settings.provenance(store, "pca", cells, None)?,
            cells,
            groups: groups.len(),
            explained: found.variances.iter().sum::<f64>() / found.total_variance,
            seconds: began.elapsed().as_secs_f64(),
        })
    })
}

/// At most so many of the rows, at equal distances.
pub(super) fn spread(rows: RoaringTreemap, at_most: Option<u64>) -> RoaringTreemap {
    match at_most {
        Some(most) if most < rows.len() => {
            let all = rows.len();
            (0..most).filter_map(|i| rows.select((u128::from(i) * u128::from(all) / u128::from(most)) as u64)).collect()
        }
        _ => rows,
    }
}

/// The genes whose name no gene before them has: a model knows genes by name, and several features without identity may
/// have the same.
fn with_names_of_their_own<'a>(genes: Vec<u32>, name: impl Fn(u32) -> Option<&'a str>) -> Vec<u32> {
    let mut seen = HashSet::new();
    genes.into_iter().filter(|gene| name(*gene).is_some_and(|name| seen.insert(name))).collect()
}

/// Names of genes of the store, by which another store finds them again.
fn vocabulary(catalogue: &cellql_store::genes::Catalogue, genes: &[u32]) -> Result<Vocabulary> {
    let name = |gene: &u32| catalogue.symbol(*gene).unwrap_or_default().to_owned();
    let names = genes.iter().map(name).collect();
    Vocabulary::new(names).map_err(Error::internal("naming the genes of the model"))
}

/// Sums of each gene over the cells of a group.
#[derive(Debug, Clone, Default)]
struct GeneSums {
    cells: u64,
    /// Sum of all squared log-normalised values of a gene.
    squares: Vec<f64>,
    /// Sums of log-normalised values.
    log: Vec<f64>,
    /// Sums of counts per 10,000 and of their squares.
    counts: Vec<f64>,
    count_squares: Vec<f64>,
}

/// Sums of each gene over the cells of all groups, by gene id.
struct GeneMoments {
    groups: Vec<GeneSums>,
    /// Cells that express each gene.
    expressing: Vec<u64>,
    cells: u64,
}

impl GeneMoments {
    /// Reads all cells once.
    fn of(rows: &mut TrainingRows, genes: usize) -> Result<Self> {
        let mut moments = Self { groups: Vec::new(), expressing: vec![0; genes], cells: 0 };
        let mut too_many = false;
        rows.first_pass(|piece| {
            let groups = piece.groups.iter().max().map_or(0, |most| *most as usize + 1);
            too_many |= groups * genes * 32 > MOMENT_BYTES;
            if !too_many {
                moments.add(piece, genes);
            }
        })?;
        if too_many {
            let most = MOMENT_BYTES / (genes * 32);
            return Err(Error::Request(format!(
                "--balance: the column has more than {most} different values; name a column with fewer, or none"
            )));
        }
        if moments.cells < 2 {
            return Err(Error::Request(
                "there are no cells to fit to: two at least must have counts, satisfy the condition and not be held out"
                    .into(),
            ));
        }
        Ok(moments)
    }

    fn add(&mut self, piece: &Piece, genes: usize) {
        let zeros = || vec![0.0; genes];
        for (ends, group) in piece.offsets.windows(2).zip(&piece.groups) {
            while self.groups.len() <= *group as usize {
                let (squares, log, counts, count_squares) = (zeros(), zeros(), zeros(), zeros());
                self.groups.push(GeneSums { cells: 0, squares, log, counts, count_squares });
            }
            let sums = &mut self.groups[*group as usize];
            sums.cells += 1;
            self.cells += 1;
            for at in ends[0]..ends[1] {
                let (gene, value) = (piece.genes[at] as usize, f64::from(piece.values[at]));
                let count = value.exp_m1();
                sums.log[gene] += value;
                sums.squares[gene] += value * value;
                sums.counts[gene] += count;
                sums.count_squares[gene] += count * count;
                self.expressing[gene] += 1;
            }
        }
    }

    /// The selected genes, ascending. Genes that no cell expresses are never selected.
    fn select(&self, selection: GeneSelection) -> Vec<u32> {
        match selection {
            GeneSelection::MinCells(share) => {
                let least = share * self.cells as f64;
                let genes = self.expressing.iter().zip(0u32..);
                genes.filter(|(cells, _)| **cells > 0 && **cells as f64 >= least).map(|(_, gene)| gene).collect()
            }
            GeneSelection::HighlyVariable(count) => {
                let moments = |sums: &GeneSums| {
                    let n = sums.cells as f64;
                    let mean: Vec<f64> = sums.counts.iter().map(|sum| sum / n).collect();
                    let variance = |(squares, mean): (&f64, &f64)| (squares - n * mean * mean).max(0.0) / (n - 1.0);
                    ColumnMoments { variance: sums.count_squares.iter().zip(&mean).map(variance).collect(), mean }
                };
                let groups: Vec<ColumnMoments> = self.groups.iter().filter(|g| g.cells > 1).map(moments).collect();
                most_variable(&groups, count)
            }
        }
    }

    /// Moments of the groups at the selected genes.
    fn selected(&self, genes: &[u32]) -> Vec<GroupMoments> {
        let of_group = |sums: &GeneSums| GroupMoments {
            rows: sums.cells,
            mean: genes.iter().map(|gene| sums.log[*gene as usize] / sums.cells as f64).collect(),
            squares: genes.iter().map(|gene| sums.squares[*gene as usize]).sum(),
        };
        self.groups.iter().map(of_group).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_genes_with_one_name_the_first_is_taken() {
        let names = ["A", "B", "A", "C"];
        let kept = with_names_of_their_own(vec![0, 2, 3, 9], |gene| names.get(gene as usize).copied());
        assert_eq!(kept, [0, 3]);
    }

    #[test]
    fn rows_are_spread_evenly() {
        let rows: RoaringTreemap = (100..200).collect();
        assert_eq!(spread(rows.clone(), Some(4)).iter().collect::<Vec<_>>(), [100, 125, 150, 175]);
        assert_eq!(spread(rows.clone(), Some(1000)), rows);
        assert_eq!(spread(rows.clone(), None), rows);
    }
}
