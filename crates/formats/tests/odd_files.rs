//! Odd inputs: each is read as it is meant, or refused with an error that names the file and the object.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, missing_docs)]

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Float64Type, Int64Type};
use cellql_formats::{CellSource, Format, FormatError, OpenOptions, inputs, open, parts, recognise};
use hdf5_pure::{
    AttrValue, Datatype, DatatypeByteOrder, FileBuilder, FloatingPointLayout, GroupBuilder, make_f32_type,
};
use tempfile::TempDir;

const CSV: &str = "barcode,INS,GCG,SST\nA,1,0,2\nB,0,3,0\n";
/// The counts of two cells and three genes in every file here.
const COUNTS: [f32; 6] = [1.0, 0.0, 2.0, 0.0, 3.0, 0.0];

fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

fn opened(path: &Path) -> Box<dyn CellSource> {
    open(path, &OpenOptions::default()).unwrap_or_else(|e| panic!("{e}"))
}

/// Opens a file that must be refused with an error that names it and contains these words.
fn refused(path: &Path, words: &[&str]) -> FormatError {
    let error = open(path, &OpenOptions::default()).err().unwrap_or_else(|| panic!("{}", path.display()));
    assert_eq!(error.file, path);
    for word in words {
        assert!(error.to_string().contains(word), "'{word}' not in: {error}");
    }
    error
}

/// Checks the counts of a source.
fn holds_counts(source: &mut dyn CellSource) {
    let block = source.next_block().unwrap().unwrap();
    assert_eq!(block.values, [1.0, 2.0, 3.0]);
    assert_eq!(block.features, [0, 2, 1]);
    source.rewind().unwrap();
}

/// Values of a numeric obs column as `f64`, NaN where they are missing.
fn numbers(source: &mut dyn CellSource, name: &str) -> Vec<f64> {
    let place = source.obs_columns().iter().position(|c| c.name == name).unwrap_or_else(|| panic!("no {name}"));
    let block = source.next_block().unwrap().unwrap();
    source.rewind().unwrap();
    let column = &block.obs[place];
    let floats = arrow::compute::cast(column, &arrow::datatypes::DataType::Float64).unwrap();
    floats.as_primitive::<Float64Type>().iter().map(|v| v.unwrap_or(f64::NAN)).collect()
}

type Fill<'a> = &'a dyn Fn(&mut GroupBuilder);

/// A dataframe; `order` is its attribute `column-order`, if it has one.
fn frame(file: &mut FileBuilder, name: &str, index: &[&str], order: Option<&[&str]>, fill: Fill<'_>) {
    let mut group = file.create_group(name);
    group.set_attr("_index", AttrValue::String("_index".into()));
    if let Some(order) = order {
        group.set_attr("column-order", AttrValue::StringArray(order.iter().map(|n| (*n).to_owned()).collect()));
    }
    group.create_dataset("_index").with_vlen_strings(index);
    fill(&mut group);
    let group = group.finish();
    file.add_group(group);
}

/// Writes an `.h5ad` of two cells with these obs columns.
fn h5ad(path: &Path, order: Option<&[&str]>, fill: Fill<'_>) {
    let mut file = FileBuilder::new();
    file.create_dataset("X").with_f32_data(&COUNTS).with_shape(&[2, 3]);
    frame(&mut file, "obs", &["A", "B"], order, fill);
    frame(&mut file, "var", &["INS", "GCG", "SST"], Some(&[]), &|_| {});
    file.write(path.to_str().unwrap()).unwrap();
}

fn ages(group: &mut GroupBuilder) {
    group.create_dataset("age").with_i64_data(&[4, 5]);
}

#[test]
fn obs_columns_with_slashes_stars_dots_quotes_and_spaces_are_read() {
    let folder = folder();
    let names = ["age/sex", "*", "a.b", "it's \"q\"", "two words"];
    let fill: Fill<'_> = &|group| {
        for (i, name) in names.iter().enumerate() {
            let values = [i as i64, -1];
            match name.split_once('/') {
                None => {
                    group.create_dataset(name).with_i64_data(&values);
                }
                Some((outer, inner)) => {
                    let mut nested = group.create_group(outer);
                    nested.create_dataset(inner).with_i64_data(&values);
                    let nested = nested.finish();
                    group.add_group(nested);
                }
            }
        }
    };
    for (file, order) in [("order.h5ad", Some(&names[..])), ("none.h5ad", None)] {
        let path = folder.path().join(file);
        h5ad(&path, order, fill);
        let mut source = opened(&path);
        assert_eq!(source.obs_columns().len(), names.len(), "{file}: {:?}", source.notes());
        for (i, name) in names.iter().enumerate() {
            assert_eq!(numbers(source.as_mut(), name), [i as f64, -1.0], "{file}: {name}");
        }
    }
}

/// The type of numpy's `float16`, or of bfloat16.
fn half_type(is_bfloat: bool, byte_order: DatatypeByteOrder) -> Datatype {
    let Datatype::FloatingPoint { layout, .. } = make_f32_type() else { panic!() };
    let (size, bias) = if is_bfloat { (8, 127) } else { (5, 15) };
    let layout = FloatingPointLayout {
        bit_precision: 16,
        exponent_location: 15 - size,
        exponent_size: size,
        mantissa_size: 15 - size,
        exponent_bias: bias,
        ..layout
    };
    Datatype::FloatingPoint { size: 2, byte_order, layout }
}

/// The counts 1, 0, 2, 0, 3, 0 in half precision, little-endian.
const HALVES: [u16; 6] = [0x3c00, 0, 0x4000, 0, 0x4200, 0];

fn bytes(words: &[u16]) -> Vec<u8> {
    words.iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[test]
fn float16_matrices_and_obs_columns_are_read() {
    let folder = folder();
    let little = || half_type(false, DatatypeByteOrder::LittleEndian);
    for sparse in [false, true] {
        let path = folder.path().join(format!("half_{sparse}.h5ad"));
        let mut file = FileBuilder::new();
        if sparse {
            let mut x = file.create_group("X");
            x.set_attr("encoding-type", AttrValue::String("csr_matrix".into()));
            x.set_attr("shape", AttrValue::I64Array(vec![2, 3]));
            x.create_dataset("data").with_raw_data(little(), bytes(&[0x3c00, 0x4000, 0x4200]), 3);
            x.create_dataset("indices").with_i32_data(&[0, 2, 1]);
            x.create_dataset("indptr").with_i32_data(&[0, 2, 3]);
            let x = x.finish();
            file.add_group(x);
        } else {
            file.create_dataset("X").with_raw_data(little(), bytes(&HALVES), 6).with_shape(&[2, 3]);
        }
        frame(&mut file, "obs", &["A", "B"], Some(&["half", "big", "brain"]), &|group| {
            group.create_dataset("half").with_raw_data(little(), bytes(&[0x3555, 0x7e00]), 2);
            let big = half_type(false, DatatypeByteOrder::BigEndian);
            group.create_dataset("big").with_raw_data(big, vec![0xc0, 0x00, 0x00, 0x01], 2);
            let brain = half_type(true, DatatypeByteOrder::LittleEndian);
            group.create_dataset("brain").with_raw_data(brain, bytes(&[0x3fc0, 0xff80]), 2);
        });
        frame(&mut file, "var", &["INS", "GCG", "SST"], Some(&[]), &|_| {});
        file.write(path.to_str().unwrap()).unwrap();
        let mut source = opened(&path);
        holds_counts(source.as_mut());
        let half = numbers(source.as_mut(), "half");
        assert!(half[0] == 0.333_251_953_125 && half[1].is_nan(), "{half:?}");
        assert_eq!(numbers(source.as_mut(), "big"), [-2.0, 2f64.powi(-24)]);
        assert_eq!(numbers(source.as_mut(), "brain"), [1.5, f64::NEG_INFINITY]);
    }
}

#[test]
fn ten_thousand_obs_columns_are_read_in_seconds() {
    let folder = folder();
    let path = folder.path().join("wide.h5ad");
    h5ad(&path, None, &|group| {
        for i in 0..10_000i64 {
            group.create_dataset(&format!("c{i:05}")).with_i64_data(&[i, 7]);
        }
    });
    let start = Instant::now();
    let mut source = opened(&path);
    let block = source.next_block().unwrap().unwrap();
    // Before groups were walked once, 7 seconds here and 200 in a file of h5py.
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    assert_eq!(block.obs.len(), 10_000);
    assert_eq!(source.obs_columns()[9_999].name, "c09999");
    assert_eq!(block.obs[9_999].as_primitive::<Int64Type>().value(0), 9_999);
    assert_eq!(block.obs[9_999].len(), 2);
}

/// A Matrix Market data set of three genes and two cells.
fn matrix_market(folder: &Path, prefix: &[u8], text: &str) -> PathBuf {
    let at = |name: &str| folder.join(OsStr::from_bytes(&[prefix, name.as_bytes()].concat()));
    std::fs::write(at("features.tsv"), "INS\nGCG\nSST\n").unwrap();
    std::fs::write(at("barcodes.tsv"), "A\nB\n").unwrap();
    std::fs::write(at("matrix.mtx"), text).unwrap();
    at("matrix.mtx")
}

const BANNER: &str = "%%MatrixMarket matrix coordinate integer general\n";

#[test]
fn impossible_sizes_and_empty_matrix_market_files_are_refused() {
    let folder = folder();
    let max = u64::MAX;
    for sizes in [
        format!("{max} {max} {max}"),
        format!("3 2 {max}"),
        format!("{max} 1 0"),
        format!("1 {max} {max}"),
        format!("{max} 2 1"),
        format!("3 {max} 1"),
        format!("{max}0 2 1"),
    ] {
        let path = matrix_market(folder.path(), b"", &format!("{BANNER}{sizes}\n1 1 1\n"));
        let error = refused(&path, &[]);
        assert!(["line 2", "sizes"].contains(&error.object.as_str()), "{sizes}: {error}");
    }
    let path = matrix_market(folder.path(), b"", "");
    refused(&path, &["is empty"]);
    assert_eq!(recognise(&path).unwrap_err().object, "file");
    let path = matrix_market(folder.path(), b"", "barcode,INS\nA,1\n");
    refused(&path, &["%%MatrixMarket"]);
    let packed = folder.path().join("x.mtx.gz");
    std::fs::write(&packed, "").unwrap();
    refused(&packed, &["is empty"]);
    let path = matrix_market(folder.path(), b"", &format!("{}3 2 1\n1 1 5\n", BANNER.to_lowercase()));
    assert_eq!(recognise(&path).unwrap(), Some(Format::MatrixMarket));
    assert_eq!(opened(&path).next_block().unwrap().unwrap().values, [5.0]);
}

/// Runs something that must not block.
fn in_time<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || send.send(run()));
    receive.recv_timeout(Duration::from_secs(60)).unwrap_or_else(|e| panic!("it hangs: {e}"))
}

fn fifo(path: &Path) {
    assert!(Command::new("mkfifo").arg(path).status().unwrap().success());
}

#[test]
fn pipes_sockets_and_devices_are_refused_and_never_opened() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fifo(&at("pipe.csv"));
    fifo(&at("pipe.h5ad"));
    let _socket = UnixListener::bind(at("socket.csv")).unwrap();
    symlink("/dev/zero", at("zero.csv")).unwrap();
    symlink(at("pipe.csv"), at("link.mtx")).unwrap();
    let odd = ["pipe.csv", "pipe.h5ad", "socket.csv", "zero.csv", "link.mtx"];
    for path in odd.iter().map(|name| at(name)).chain(["/dev/zero".into(), "/dev/null".into()]) {
        let errors = in_time(move || {
            let options = OpenOptions::default();
            let refusals = [
                recognise(&path).err(),
                inputs(&path).err(),
                parts(&path, &options).err(),
                open(&path, &options).err(),
            ];
            (path, refusals)
        });
        for error in errors.1 {
            let error = error.unwrap_or_else(|| panic!("{}", errors.0.display()));
            assert_eq!(error.file, errors.0);
            assert!(error.problem.contains("not a regular file"), "{error}");
        }
    }
    std::fs::write(at("cells.csv"), CSV).unwrap();
    let scanned = folder.path().to_owned();
    let (found, other) = in_time(move || inputs(&scanned)).unwrap();
    assert_eq!(found, [at("cells.csv")]);
    assert_eq!(other.len(), odd.len());
    // Named by an option.
    let matrix = matrix_market(folder.path(), b"", &format!("{BANNER}3 2 1\n1 1 5\n"));
    let options = OpenOptions { genes: Some(at("pipe.csv")), ..OpenOptions::default() };
    let (read, of) = in_time(move || (open(&matrix, &options).err(), parts(&matrix, &options).err()));
    assert_eq!([read.unwrap().file, of.unwrap().file], [at("pipe.csv"), at("pipe.csv")]);
}

#[test]
fn directories_behind_symlink_loops_are_visited_once() {
    let (folder, elsewhere) = (folder(), folder());
    let at = |name: &str| folder.path().join(name);
    for name in ["a", "b/c", "cells.lance/_versions", "cells.lance/data"] {
        std::fs::create_dir_all(at(name)).unwrap();
    }
    std::fs::write(at("b/c/cells.csv"), CSV).unwrap();
    std::fs::write(at("cells.lance/data/1.lance"), "").unwrap();
    std::fs::write(elsewhere.path().join("far.csv"), CSV).unwrap();
    for (to, link) in
        [("..", "a/up"), (".", "b/self"), ("../b", "a/sideways"), ("loop", "loop"), ("..", "cells.lance/up")]
    {
        symlink(to, at(link)).unwrap();
    }
    symlink(elsewhere.path(), at("far")).unwrap();
    symlink(elsewhere.path(), at("far2")).unwrap();
    symlink(folder.path(), elsewhere.path().join("back")).unwrap();
    let scanned = folder.path().to_owned();
    let (found, other) = in_time(move || inputs(&scanned)).unwrap();
    assert_eq!(found, [at("b/c/cells.csv"), at("cells.lance"), at("far/far.csv")]);
    assert_eq!(other, [at("a"), at("loop")]);
    std::fs::remove_file(at("loop")).unwrap();
    let lance = at("cells.lance");
    let files = in_time(move || parts(&lance, &OpenOptions::default())).unwrap();
    let once = |name: &str| files.iter().filter(|f| f.file_name() == Some(OsStr::new(name))).count();
    assert_eq!((once("1.lance"), once("cells.csv"), once("far.csv")), (1, 1, 1), "{files:?}");
}

#[test]
fn a_dataframe_in_endless_groups_is_refused() {
    let folder = folder();
    let path = folder.path().join("deep.h5ad");
    let deep = vec!["g"; 50_000].join("/");
    h5ad(&path, Some(&[&deep[..30_000]]), &|_| {});
    let source = opened(&path);
    assert!(source.notes().iter().any(|n| n.contains("g/g")));
    let path = folder.path().join("many.h5ad");
    h5ad(&path, None, &|group| {
        for i in 0..1001 {
            let nested = group.create_group(&format!("g{i}")).finish();
            group.add_group(nested);
        }
    });
    assert_eq!(refused(&path, &["1000 groups"]).object, "obs");
}

#[test]
fn columns_that_are_listed_but_not_there_are_named_in_a_note() {
    let folder = folder();
    let path = folder.path().join("cells.h5ad");
    h5ad(&path, Some(&["far/away", "age", "far"]), &ages);
    let mut source = opened(&path);
    assert!(source.notes().iter().any(|n| n.contains("far/away, far")), "{:?}", source.notes());
    assert_eq!(numbers(source.as_mut(), "age"), [4.0, 5.0]);
    holds_counts(source.as_mut());
}

/// Makes files with links, which only libhdf5 writes.
const LINKS: &str = r#"
import sys, h5py, numpy as np
folder = sys.argv[1]
def make(name, kind, X=True, **how):
    f = h5py.File(f"{folder}/{name}", "w", **how)
    for frame, index in (("obs", ["A", "B"]), ("var", ["INS", "GCG", "SST"])):
        g = f.create_group(frame)
        g.attrs["_index"], g.attrs["column-order"] = "_index", np.array([], h5py.string_dtype())
        g["_index"] = np.array(index, object)
    f["obs/age"] = np.array([4, 5])
    f["obs"].attrs["column-order"] = np.array(["age", "far"], object)
    f["counts"] = np.array([[1, 0, 2], [0, 3, 0]], np.float32)
    link = {"external": h5py.ExternalLink("gone.h5", "/far"), "dangling": h5py.SoftLink("/gone"),
            "soft": h5py.SoftLink("/obs/age")}[kind]
    f["obs/far"] = link
    if X:
        f["X"] = f["counts"][:]
    else:
        f["X"] = h5py.SoftLink("/counts") if kind == "soft" else link
for kind in ("external", "dangling", "soft"):
    for libver in ("earliest", "latest"):
        make(f"{kind}_{libver}_obs.h5ad", kind, libver=libver)
        make(f"{kind}_{libver}_x.h5ad", kind, X=False, libver=libver)
"#;

#[test]
fn soft_and_external_links_are_left_out_with_a_note_or_refused() {
    let cache = std::env::var_os("CELLQL_TEST_DATA").map(PathBuf::from);
    let home = || PathBuf::from(std::env::var_os("HOME").unwrap_or_default()).join(".cache/cellql-test-data");
    let python = cache.unwrap_or_else(home).join("python/bin/python");
    if !python.is_file() {
        // CI has it, and this test with it.
        assert!(std::env::var_os("CI").is_none(), "no {}", python.display());
        return;
    }
    let folder = folder();
    assert!(Command::new(python).args(["-c", LINKS]).arg(folder.path()).status().unwrap().success());
    for kind in ["external", "dangling", "soft"] {
        for libver in ["earliest", "latest"] {
            let path = folder.path().join(format!("{kind}_{libver}_obs.h5ad"));
            let mut source = opened(&path);
            let noted = source.notes().iter().any(|n| n.contains("links") && n.ends_with(": far"));
            assert!(noted, "{kind} {libver}: {:?}", source.notes());
            assert_eq!(numbers(source.as_mut(), "age"), [4.0, 5.0]);
            holds_counts(source.as_mut());
            let path = folder.path().join(format!("{kind}_{libver}_x.h5ad"));
            assert_eq!(refused(&path, &["link", "write_h5ad"]).object, "X");
        }
    }
}

#[test]
fn hdf5_behind_a_user_block_is_read() {
    let folder = folder();
    let path = folder.path().join("plain.h5ad");
    h5ad(&path, Some(&["age"]), &ages);
    let plain = std::fs::read(&path).unwrap();
    for size in [512, 1024, 2048, 131_072] {
        let path = folder.path().join(format!("{size}.bin"));
        let mut file = FileBuilder::new();
        file.with_userblock(size);
        file.create_dataset("X").with_f32_data(&COUNTS).with_shape(&[2, 3]);
        frame(&mut file, "obs", &["A", "B"], Some(&["age"]), &ages);
        frame(&mut file, "var", &["INS", "GCG", "SST"], Some(&[]), &|_| {});
        file.write(path.to_str().unwrap()).unwrap();
        assert_eq!(recognise(&path).unwrap(), Some(Format::H5ad));
        let mut source = opened(&path);
        holds_counts(source.as_mut());
        assert_eq!(numbers(source.as_mut(), "age"), [4.0, 5.0]);
        // A file that was moved behind other bytes still states the addresses from before.
        let moved = folder.path().join("moved.h5ad");
        std::fs::write(&moved, [vec![b'x'; size as usize], plain.clone()].concat()).unwrap();
        assert_eq!(refused(&moved, &[&format!("tail -c +{}", size + 1)]).object, "user block");
    }
    // The header of a tar archive has the length of a user block.
    let mut tar = vec![0; 512];
    tar[257..262].copy_from_slice(b"ustar");
    let path = folder.path().join("archive.h5");
    std::fs::write(&path, [tar, plain].concat()).unwrap();
    refused(&path, &["tar archive"]);
}

#[test]
fn mudata_zarr_and_r_objects_are_refused_with_the_way_out() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    let mut file = FileBuilder::new();
    let mut modalities = file.create_group("mod");
    for name in ["rna", "atac"] {
        let modality = modalities.create_group(name).finish();
        modalities.add_group(modality);
    }
    let modalities = modalities.finish();
    file.add_group(modalities);
    file.with_userblock(512);
    frame(&mut file, "obs", &["A", "B"], Some(&[]), &|_| {});
    file.write(at("cells.h5mu").to_str().unwrap()).unwrap();
    assert_eq!(refused(&at("cells.h5mu"), &["atac, rna", "read_h5mu", "write_h5ad"]).object, "mod");
    let mut other = vec![at("cells.h5mu")];
    for (name, inside) in [("v2.zarr", ".zgroup"), ("v3.zarr", "zarr.json"), ("bare", ".zattrs")] {
        std::fs::create_dir(at(name)).unwrap();
        std::fs::write(at(name).join(inside), "{}").unwrap();
        std::fs::write(at(name).join("table.csv"), CSV).unwrap();
        refused(&at(name), &["Zarr", "read_zarr", "write_h5ad"]);
        assert!(inputs(&at(name)).is_err());
        other.push(at(name));
    }
    for name in ["x.rds", "x.RData", "x.rda", "x.qs", "x.qs2", "X.RDS"] {
        std::fs::write(at(name), "barcode,INS\nA,1\n").unwrap();
        refused(&at(name), &["writeH5AD", "write10xCounts"]);
        other.push(at(name));
    }
    std::fs::write(at("renamed.txt"), b"RDX3\nX\n\0\0\0\x03").unwrap();
    refused(&at("renamed.txt"), &["objects of R"]);
    other.push(at("renamed.txt"));
    std::fs::write(at("cells.csv"), CSV).unwrap();
    let (found, listed) = inputs(folder.path()).unwrap();
    other.sort();
    assert_eq!((found, listed), (vec![at("cells.csv")], other));
}

#[test]
fn file_names_that_are_not_utf8_are_read() {
    let folder = folder();
    let matrix = matrix_market(folder.path(), b"\xff\xfe_", &format!("{BANNER}3 2 1\n1 1 5\n"));
    let dense = folder.path().join(OsStr::from_bytes(b"\xc3\x28.csv"));
    std::fs::write(&dense, CSV).unwrap();
    let hdf5 = folder.path().join(OsStr::from_bytes(b"\x80.h5ad"));
    let plain = folder.path().join("plain.h5ad");
    h5ad(&plain, Some(&[]), &|_| {});
    std::fs::rename(plain, &hdf5).unwrap();
    let broken = folder.path().join(OsStr::from_bytes(b"\xf0.loom"));
    std::fs::write(&broken, CSV).unwrap();
    assert_eq!(opened(&matrix).next_block().unwrap().unwrap().values, [5.0]);
    holds_counts(opened(&dense).as_mut());
    holds_counts(opened(&hdf5).as_mut());
    refused(&broken, &["HDF5"]);
    assert_eq!(parts(&matrix, &OpenOptions::default()).unwrap().len(), 3);
    let (found, other) = inputs(folder.path()).unwrap();
    assert_eq!((found.len(), other), (3, vec![broken]));
}
