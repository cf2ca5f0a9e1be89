//! Text files that name the rows and columns of a matrix: `features.tsv` (or `genes.tsv`) and `barcodes.tsv`, plain or
//! gzipped.

use std::collections::BTreeMap;
use std::path::Path;

use cellql_schemas::feature::Feature;

use crate::error::{FormatError, Result};
use crate::features::{EXPRESSION, identified, is_other_type};
use crate::gzip;

/// Longest line, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Features of a text file, and which of them are genes.
pub(crate) struct FeatureTable {
    pub(crate) features: Vec<Feature>,
    /// Whether each feature is gene expression.
    pub(crate) is_expression: Vec<bool>,
    /// Type → number of features that are something else.
    pub(crate) left_out: BTreeMap<String, usize>,
}

/// Reads one feature per line: `id<TAB>name<TAB>type`, `id<TAB>name` or a single name.
///
/// # Errors
/// The file cannot be read, or no feature is gene expression.
pub(crate) fn read_features(path: &Path) -> Result<FeatureTable> {
    let (mut features, mut kinds) = (Vec::new(), Vec::new());
    for_lines(path, |line| {
        let fields: Vec<&str> = line.split('\t').map(|f| f.trim().trim_matches('"')).collect();
        kinds.push(fields.get(2).copied().unwrap_or_default().to_owned());
        features.push(match fields[..] {
            [only] => Feature::named(only),
            [id, name, ..] => identified(name.to_owned(), id.to_owned()),
            [] => Feature::default(),
        });
    })?;
    // A third column that never says `Gene Expression` may be anything: a biotype, a chromosome. Then only the other
    // types that 10x writes are known to be no genes.
    let has_types = kinds.iter().any(|kind| kind == EXPRESSION);
    let is_gene = |kind: &String| kind.is_empty() || kind == EXPRESSION || (!has_types && !is_other_type(kind));
    let is_expression: Vec<bool> = kinds.iter().map(is_gene).collect();
    let mut left_out = BTreeMap::new();
    for (kind, _) in kinds.into_iter().zip(&is_expression).filter(|(_, is_gene)| !**is_gene) {
        *left_out.entry(kind).or_insert(0) += 1;
    }
    if !features.is_empty() && !is_expression.contains(&true) {
        let types = left_out.keys().map(|kind| format!("'{kind}'")).collect::<Vec<_>>().join(", ");
        let problem = format!("names no feature of the type '{EXPRESSION}'; its types are {types}");
        return Err(FormatError::new(path, "features", problem));
    }
    Ok(FeatureTable { features, is_expression, left_out })
}

fn for_lines(path: &Path, mut each: impl FnMut(&str)) -> Result<()> {
    let mut reader = gzip::open(path)?;
    let (mut bytes, mut number) = (Vec::new(), 0usize);
    loop {
        number += 1;
        let fail = |e: std::io::Error| FormatError::new(path, format!("line {number}"), format!("cannot be read: {e}"));
        if !gzip::read_line(reader.as_mut(), &mut bytes, MAX_LINE_BYTES).map_err(fail)? {
            return Ok(());
        }
        let line = std::str::from_utf8(&bytes).map_err(|_| {
            FormatError::new(path, format!("line {number}"), "is not UTF-8 text; expected one name per line")
        })?;
        each(line);
    }
}

/// Reads barcodes: the first field of each line.
pub(crate) fn read_barcodes(path: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for_lines(path, |line| {
        names.push(line.split(['\t', ',']).next().unwrap_or_default().trim().trim_matches('"').to_owned());
    })?;
    Ok(names)
}
