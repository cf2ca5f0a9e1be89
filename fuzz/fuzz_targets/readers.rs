//! Fuzz target: arbitrary bytes as a file of cells. A reader must return an error or consistent blocks. It must not
//! panic, and its memory and time must be bounded by the size of the file.
//!
//! The input is one file of any format. The companion files of some formats (genes, barcodes) are fixed.

#![no_main]

use std::path::PathBuf;

use cellql_formats::{CellSource, OpenOptions, open, recognise};
use libfuzzer_sys::fuzz_target;

/// Aborts on panics in our code. Panics in format libraries are allowed, because the readers turn them into errors.
fn abort_where_we_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let library =
            panic.location().is_some_and(|l| l.file().contains("/registry/") || l.file().starts_with("/rustc/"));
        if !library {
            eprintln!("{panic}");
            std::process::abort();
        }
    }));
}

fuzz_target!(init: abort_where_we_panic(), |bytes: &[u8]| {
    let Ok(folder) = tempfile::tempdir() else { return };
    let beside = |name: &str, what: &str, count: usize| -> PathBuf {
        let path = folder.path().join(name);
        let lines: String = (0..count).map(|i| format!("{what}{i}\n")).collect();
        let _ = std::fs::write(&path, lines);
        path
    };
    let options = OpenOptions {
        genes: Some(beside("genes.tsv", "GENE", 40)),
        barcodes: Some(beside("barcodes.tsv", "CELL", 60)),
        ..OpenOptions::default()
    };
    let path = folder.path().join("matrix.mtx");
    if std::fs::write(&path, bytes).is_err() || !matches!(recognise(&path), Ok(Some(_))) {
        return;
    }
    match open(&path, &options) {
        Ok(mut source) => drain(source.as_mut()),
        Err(error) => assert!(!error.object.is_empty() && !error.problem.is_empty()),
    }
});

/// Reads every cell and checks the invariants of a block.
fn drain(source: &mut dyn CellSource) {
    let (features, columns) = (source.features().len(), source.obs_columns().len());
    let mut cells = 0u64;
    while let Ok(Some(block)) = source.next_block() {
        assert!(!block.is_empty());
        assert_eq!(block.barcodes_len(), block.len());
        assert!(block.starts.windows(2).all(|w| w[0] <= w[1]));
        assert_eq!(block.starts.last(), Some(&block.values.len()));
        assert_eq!(block.features.len(), block.values.len());
        assert!(block.features.iter().all(|f| (*f as usize) < features));
        assert_eq!(block.obs.len(), columns);
        cells += block.len() as u64;
        assert!(source.n_cells().is_none_or(|all| cells <= all));
    }
}
