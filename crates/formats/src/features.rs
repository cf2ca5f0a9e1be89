//! Features from the columns that name them, and which axis of a table they stand on.

use cellql_schemas::feature::Feature;
use cellql_schemas::nomenclature::{Nomenclature, Resolution, is_foreign_ensembl_id, is_title_case};

/// Columns that hold Ensembl ids beside symbols, as files in the wild call them.
pub(crate) const ENSEMBL_COLUMNS: &[&str] =
    &["gene_ids", "gene_id", "ensembl_id", "ensembl_ids", "ensembl", "feature_id", "Accession", "id"];
/// Columns that hold symbols where the index holds Ensembl ids.
pub(crate) const SYMBOL_COLUMNS: &[&str] = &[
    "feature_name",
    "gene_symbols",
    "gene_symbol",
    "gene_name",
    "gene_names",
    "symbol",
    "gene_short_name",
    "Gene",
    "name",
];

/// True for an Ensembl gene id of any species.
fn is_ensembl(name: &str) -> bool {
    name.starts_with("ENSG") || is_foreign_ensembl_id(name)
}

/// True where most names are Ensembl ids.
pub(crate) fn are_ensembl<'a>(names: impl IntoIterator<Item = &'a str>) -> bool {
    let (mut ids, mut all) = (0usize, 0usize);
    for name in names {
        all += 1;
        ids += usize::from(is_ensembl(name));
    }
    ids * 2 > all
}

/// Features named by an index and, where there is one, by a further column. `column` gives a text column by name.
pub(crate) fn from_index<E>(
    index: Vec<String>,
    mut column: impl FnMut(&str) -> Option<Result<Vec<String>, E>>,
) -> Result<Vec<Feature>, E> {
    if are_ensembl(index.iter().map(String::as_str)) {
        let symbols = SYMBOL_COLUMNS.iter().find_map(|n| column(n)).transpose()?.unwrap_or_else(|| index.clone());
        return Ok(symbols.into_iter().zip(index).map(|(name, id)| identified(name, id)).collect());
    }
    // By content, not by name alone: `gene_id` may hold Entrez numbers beside an `ensembl_id`.
    for name in ENSEMBL_COLUMNS {
        if let Some(ids) = column(name).transpose()?.filter(|ids| are_ensembl(ids.iter().map(String::as_str))) {
            return Ok(index.into_iter().zip(ids).map(|(name, id)| identified(name, id)).collect());
        }
    }
    Ok(index.into_iter().map(Feature::named).collect())
}

/// A feature of a name and an id, either of which may be empty.
pub(crate) fn identified(name: String, id: String) -> Feature {
    let name = if name.is_empty() { id.clone() } else { name };
    Feature { name, ensembl_id: (!id.is_empty()).then_some(id) }
}

/// Share of names that are those of genes, of any species: by this the axis of genes is known.
pub(crate) fn share_of_genes<'a>(names: impl IntoIterator<Item = &'a str>) -> f64 {
    let nomenclature = Nomenclature::hgnc();
    let (mut genes, mut all) = (0usize, 0usize);
    for name in names {
        all += 1;
        let known = !matches!(nomenclature.resolve(name), Resolution::Unknown);
        // A barcode in capitals and digits is neither title case nor an Ensembl id.
        genes += usize::from(known || is_ensembl(name) || is_title_case(name));
    }
    genes as f64 / all.max(1) as f64
}
