//! Reader of 10x Genomics HDF5 matrices: version 3 (`matrix`, with feature types) and version 2 (a group per genome).
//! Both store genes × cells in CSC form, which is cells × genes in CSR form, so no transpose is needed.

use std::path::Path;

use arrow::array::StringArray;
use cellql_schemas::feature::Feature;

use crate::block::{BLOCK_CELLS, Block, CellSource, ObsColumn};
use crate::error::Result;
use crate::features::{EXPRESSION, identified};
use crate::h5::file::{H5, H5Dataset};
use crate::h5::matrix::{Matrix, Sparse};
use crate::options::OpenOptions;
use crate::rows::Rows;

/// An open 10x file.
pub(crate) struct TenX {
    features: Vec<Feature>,
    /// New index of each feature of the file, `None` for a feature that is left out. `None` if all features are kept.
    kept: Option<Vec<Option<u32>>>,
    barcodes: H5Dataset,
    matrix: Matrix,
    name: String,
    notes: Vec<String>,
    next: u64,
}

/// A feature with its type and genome, in either version.
struct FeatureRow {
    feature: Feature,
    kind: String,
    genome: String,
}

impl TenX {
    /// True if a group is a genome of version 2.
    pub(crate) fn is_genome(h5: &H5, group: &str) -> bool {
        ["barcodes", "data", "gene_names", "genes", "indices", "indptr"]
            .iter()
            .all(|part| h5.has_dataset(&format!("{group}/{part}")))
    }

    /// Opens a file of either version.
    pub(crate) fn open(path: &Path, options: &OpenOptions) -> Result<Self> {
        let h5 = H5::open(path)?;
        if h5.group("matrix/features").is_some() {
            return Self::version_3(&h5, options);
        }
        Self::version_2(&h5, options)
    }

    fn version_3(h5: &H5, options: &OpenOptions) -> Result<Self> {
        let names = h5.all_texts("matrix/features/name")?;
        let ids = h5.all_texts("matrix/features/id")?;
        let optional = |name: &str, otherwise: &str| {
            let object = format!("matrix/features/{name}");
            match h5.has_dataset(&object) {
                true => h5.all_texts(&object),
                false => Ok(vec![otherwise.to_owned(); names.len()]),
            }
        };
        let (kinds, genomes) = (optional("feature_type", EXPRESSION)?, optional("genome", "")?);
        if [ids.len(), kinds.len(), genomes.len()].iter().any(|n| *n != names.len()) {
            return Err(
                h5.error("matrix/features", "has columns (name, id, feature_type, genome) of different lengths")
            );
        }
        let rest = ids.into_iter().zip(kinds).zip(genomes);
        let described = names.into_iter().zip(rest).map(|(name, ((id, kind), genome))| {
            // A file of several genomes prefixes every name with its genome.
            let plain = |text: String| match text.strip_prefix(&format!("{genome}_")) {
                Some(rest) if !genome.is_empty() => rest.trim_start_matches('_').to_owned(),
                _ => text,
            };
            FeatureRow { feature: identified(plain(name), plain(id)), kind, genome: genome.clone() }
        });
        Self::select(h5, "matrix", described.collect(), options)
    }

    fn version_2(h5: &H5, options: &OpenOptions) -> Result<Self> {
        let mut genomes = Vec::new();
        for group in h5.members("/")?.into_iter().filter(|g| Self::is_genome(h5, g)) {
            let (names, ids) =
                (h5.all_texts(&format!("{group}/gene_names"))?, h5.all_texts(&format!("{group}/genes"))?);
            if names.len() != ids.len() {
                return Err(h5.error(&group, "has columns gene_names and genes of different lengths"));
            }
            genomes.push((group, names, ids));
        }
        let all: Vec<String> = genomes.iter().map(|(g, ..)| g.clone()).collect();
        let human = |ids: &[String]| ids.iter().any(|id| id.contains("ENSG0"));
        let wanted = match &options.genome {
            Some(genome) => genomes.into_iter().find(|(g, ..)| g == genome),
            None => {
                let place = genomes.iter().position(|(_, _, ids)| human(ids)).unwrap_or(0);
                (place < genomes.len()).then(|| genomes.swap_remove(place))
            }
        };
        let Some((group, names, ids)) = wanted else {
            return Err(
                h5.error("file", format!("does not have the genome named by --genome; it has {}", all.join(", ")))
            );
        };
        let described = names.into_iter().zip(ids).map(|(name, id)| FeatureRow {
            feature: identified(name, id),
            kind: EXPRESSION.to_owned(),
            genome: group.clone(),
        });
        let described = described.collect();
        let mut source = Self::select(h5, &group, described, options)?;
        if all.len() > 1 {
            source.notes.push(format!("read the genome {group}; the file has {} (--genome)", all.join(", ")));
        }
        Ok(source)
    }

    /// Opens the matrix and keeps the expression features of one genome.
    fn select(h5: &H5, group: &str, described: Vec<FeatureRow>, options: &OpenOptions) -> Result<Self> {
        let mut genomes: Vec<&str> = described.iter().map(|d| d.genome.as_str()).filter(|g| !g.is_empty()).collect();
        genomes.sort_unstable();
        genomes.dedup();
        let human = |g: &str| described.iter().any(|d| d.genome == g && is_human(&d.feature));
        let genome = match &options.genome {
            Some(wanted) if !genomes.contains(&wanted.as_str()) => {
                return Err(h5.error(group, format!("has no genome '{wanted}'; it has {}", genomes.join(", "))));
            }
            Some(wanted) => wanted.clone(),
            None => {
                let chosen = genomes.iter().copied().find(|g| human(g)).or(genomes.first().copied());
                chosen.unwrap_or_default().to_owned()
            }
        };
        let fits = |d: &FeatureRow| d.kind == EXPRESSION && (d.genome.is_empty() || d.genome == genome);
        let mut notes = Vec::new();
        let others: Vec<&FeatureRow> = described.iter().filter(|d| !fits(d)).collect();
        if !others.is_empty() {
            notes.push(format!(
                "left out {} features that are not gene expression of {genome}: {}",
                others.len(),
                count_by_type(&others)
            ));
        }
        let mut next = 0;
        let kept: Vec<Option<u32>> = described
            .iter()
            .map(|d| {
                fits(d).then(|| {
                    next += 1;
                    next - 1
                })
            })
            .collect();
        let all = described.len() as u64;
        let features: Vec<Feature> =
            described.into_iter().zip(&kept).filter(|(_, k)| k.is_some()).map(|(d, _)| d.feature).collect();
        if features.is_empty() {
            return Err(h5.error(group, format!("names no feature of the type '{EXPRESSION}'")));
        }
        let barcodes = h5.dataset(&format!("{group}/barcodes"))?;
        Self::check_shape(h5, group, all, barcodes.rows())?;
        let sparse = Sparse::open(h5, group, barcodes.rows(), all)?;
        let kept = kept.contains(&None).then_some(kept);
        Ok(Self { features, kept, barcodes, matrix: Matrix::from_csr(sparse), name: group.to_owned(), notes, next: 0 })
    }

    fn check_shape(h5: &H5, group: &str, genes: u64, cells: u64) -> Result<()> {
        let shape = h5.dataset(&format!("{group}/shape"))?;
        let stated = shape.read_i64(0, shape.rows().min(2))?;
        match stated == [genes as i64, cells as i64] {
            true => Ok(()),
            false => Err(shape.error(format!("states {stated:?} but {genes} features and {cells} barcodes are named"))),
        }
    }

    /// Removes values of features that are left out and renumbers the others.
    fn filter(&self, rows: Rows) -> Rows {
        let Some(kept) = &self.kept else { return rows };
        let mut out = Rows::new();
        for i in 0..rows.len() {
            for at in rows.starts[i]..rows.starts[i + 1] {
                if let Some(feature) = kept.get(rows.features[at] as usize).copied().flatten() {
                    out.features.push(feature);
                    out.values.push(rows.values[at]);
                }
            }
            out.close_row();
        }
        out
    }
}

fn is_human(feature: &Feature) -> bool {
    feature.ensembl_id.as_deref().is_some_and(|id| id.starts_with("ENSG0"))
}

/// Features left out, counted by type and genome.
fn count_by_type(others: &[&FeatureRow]) -> String {
    let mut counts = std::collections::BTreeMap::new();
    for other in others {
        *counts.entry((other.kind.as_str(), other.genome.as_str())).or_insert(0usize) += 1;
    }
    let parts = counts.iter().map(|((kind, genome), n)| format!("{n} {kind} {genome}").trim_end().to_owned());
    parts.collect::<Vec<_>>().join(", ")
}

impl CellSource for TenX {
    fn n_cells(&self) -> Option<u64> {
        Some(self.barcodes.rows())
    }

    fn features(&self) -> &[Feature] {
        &self.features
    }

    fn obs_columns(&self) -> &[ObsColumn] {
        &[]
    }

    fn matrix(&self) -> &str {
        &self.name
    }

    fn notes(&self) -> &[String] {
        &self.notes
    }

    fn next_block(&mut self) -> Result<Option<Block>> {
        let Some(rows) = self.matrix.rows(BLOCK_CELLS as u64)? else {
            return Ok(None);
        };
        let count = rows.len() as u64;
        let rows = self.filter(rows);
        let barcodes = StringArray::from_iter_values(self.barcodes.read_text(self.next, count)?);
        self.next += count;
        Ok(Some(Block { barcodes, obs: Vec::new(), starts: rows.starts, features: rows.features, values: rows.values }))
    }

    fn rewind(&mut self) -> Result<()> {
        self.next = 0;
        self.matrix.rewind();
        Ok(())
    }
}
