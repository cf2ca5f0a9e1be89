//! Text files that name the rows and columns of a matrix: `features.tsv` (or `genes.tsv`) and `barcodes.tsv`, plain or
//! gzipped.

use std::path::Path;

use cellql_schemas::feature::Feature;

use crate::error::{FormatError, Result};
use crate::features::{EXPRESSION, identified};
use crate::gzip;

/// Longest line, in bytes.
const MAX_LINE_BYTES: u64 = 1 << 20;

/// Reads one feature per line (`id<TAB>name<TAB>type`, `id<TAB>name` or a single name), and for each whether it is gene
/// expression.
pub(crate) fn read_features(path: &Path) -> Result<(Vec<Feature>, Vec<bool>)> {
    let mut kept = Vec::new();
    let mut features = Vec::new();
    for_lines(path, |line| {
        let fields: Vec<&str> = line.split('\t').map(|f| f.trim().trim_matches('"')).collect();
        kept.push(fields.get(2).is_none_or(|kind| kind.is_empty() || *kind == EXPRESSION || !kind.contains(' ')));
        features.push(match fields[..] {
            [only] => Feature::named(only),
            [id, name, ..] => identified(name.to_owned(), id.to_owned()),
            [] => Feature::default(),
        });
    })?;
    Ok((features, kept))
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
