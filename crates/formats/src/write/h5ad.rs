//! Writer of `.h5ad` in the encoding of anndata 0.8 and later: dataframes 0.2.0, CSR `X`. Values are written as they
//! arrive; obs and obsm are kept in memory until the end, because strings and two-dimensional arrays cannot be
//! appended.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int32Type, Int64Type, UInt64Type};
use hdf5_pure::{
    AttrValue, BufferedAppender, Dataset, DatasetBuilder, EnumTypeBuilder, File, FileAccessProperties,
    FileCreateProperties, MaxExtent, StagedGroup, SyncPolicy,
};

use super::partial::PartialFile;
use crate::error::{FormatError, Result};

/// Elements in a chunk of `X`. From 65,536 elements hdf5-pure 0.47 writes a length that libhdf5 rejects.
const CHUNK: u64 = 1 << 15;
/// Deflate level, anndata's default.
const LEVEL: u32 = 4;

/// A column of a dataframe.
#[derive(Debug, Clone)]
pub struct Column {
    /// Name of the column.
    pub name: String,
    /// `Utf8`, `Int64`, `UInt64`, `Float64`, `Boolean` or `Dictionary(Int32, Utf8)`.
    pub values: ArrayRef,
    /// True for a categorical column whose categories are ordered.
    pub ordered: bool,
}

impl Column {
    /// A column whose categories, if any, are not ordered.
    pub fn new(name: impl Into<String>, values: ArrayRef) -> Self {
        Self { name: name.into(), values, ordered: false }
    }
}

/// A file that is being written. It has the suffix `.partial` until [`H5adWriter::finish`]; one that is dropped before
/// is deleted.
pub struct H5adWriter {
    path: PathBuf,
    partial: PartialFile,
    file: File,
    indptr: Vec<i64>,
    columns: u64,
}

/// An entry of `obsm`.
#[derive(Debug, Clone, PartialEq)]
pub struct ObsmArray {
    /// Name: `X_umap`.
    pub name: String,
    /// Length of a row.
    pub dim: usize,
    /// `[cells, dim]`, row by row.
    pub values: Vec<f32>,
}

impl H5adWriter {
    /// Creates a file of cells with `columns` genes.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn create(path: &Path, columns: usize) -> Result<Self> {
        let partial = PartialFile::new(path)?;
        let fail = |e: hdf5_pure::Error| FormatError::new(path, "file", format!("cannot be written: {e}"));
        let access = FileAccessProperties::new().with_sync_policy(SyncPolicy::OnClose);
        let file = File::create_with_options(partial.path(), FileCreateProperties::new(), access).map_err(fail)?;
        let build = || -> Result<(), hdf5_pure::Error> {
            file.root().create_group_with("X", |x| {
                x.create_dataset("data", |d| growing(d.with_f32_data(&[])));
                x.create_dataset("indices", |d| growing(d.with_i32_data(&[])));
            })?;
            file.commit()
        };
        build().map_err(fail)?;
        Ok(Self { path: path.to_owned(), partial, file, indptr: vec![0], columns: columns as u64 })
    }

    /// Appends cells in CSR form: `starts` (`[cells + 1]`) holds offsets into `columns` and `values`.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn append(&mut self, starts: &[usize], columns: &[i32], values: &[f32]) -> Result<()> {
        let before = self.indptr.last().copied().unwrap_or_default();
        let first = starts.first().copied().unwrap_or_default();
        self.indptr.extend(starts.iter().skip(1).map(|s| before + (s - first) as i64));
        let fail = |e: hdf5_pure::Error| FormatError::new(&self.path, "X", format!("cannot be written: {e}"));
        let grow = || -> Result<(), hdf5_pure::Error> {
            grow(&mut self.file.dataset("X/data")?, |a| a.append(values))?;
            grow(&mut self.file.dataset("X/indices")?, |a| a.append(columns))
        };
        grow().map_err(fail)
    }

    /// Writes obs, var, obsm and the provenance (into `uns/cellql`) and renames the file to its final name. `obs` and
    /// `var` are an index and columns.
    ///
    /// # Errors
    /// The file cannot be written, or a column has a type that obs cannot have.
    pub fn finish(
        self,
        obs: (&[String], &[Column]),
        var: (&[String], &[Column]),
        obsm: &[ObsmArray],
        provenance: &BTreeMap<String, String>,
    ) -> Result<()> {
        let fail = |e: hdf5_pure::Error| FormatError::new(&self.path, "file", format!("cannot be written: {e}"));
        let frames = [frame(&self.path, obs)?, frame(&self.path, var)?];
        let write = || -> Result<(), hdf5_pure::Error> {
            let root = self.file.root();
            encoded(&mut |name, value| root.set_attr(name, value), "anndata", "0.1.0")?;
            let x = self.file.group("X")?;
            encoded(&mut |name, value| x.set_attr(name, value), "csr_matrix", "0.1.0")?;
            x.set_attr("shape", AttrValue::I64Array(vec![self.indptr.len() as i64 - 1, self.columns as i64]))?;
            x.create_dataset("indptr", |d| {
                d.with_i64_data(&self.indptr);
            })?;
            for (name, frame) in ["obs", "var"].into_iter().zip(&frames) {
                root.create_group_with(name, |g| frame.write(g))?;
            }
            root.create_group_with("obsm", |g| {
                encoded_group(g, "dict", "0.1.0");
                for ObsmArray { name, dim, values } in obsm {
                    let shape = [(values.len() / (*dim).max(1)) as u64, *dim as u64];
                    g.create_dataset(name, |d| {
                        array(d.with_f32_data(values).with_shape(&shape));
                    });
                }
            })?;
            for name in ["layers", "varm", "obsp", "varp"] {
                root.create_group_with(name, |g| encoded_group(g, "dict", "0.1.0"))?;
            }
            root.create_group_with("uns", |g| {
                encoded_group(g, "dict", "0.1.0");
                g.create_group_with("cellql", |g| {
                    encoded_group(g, "dict", "0.1.0");
                    for (name, text) in provenance {
                        g.create_dataset(name, |d| scalar(d, text));
                    }
                });
            })?;
            self.file.commit()
        };
        write().map_err(fail)?;
        self.file.close().map_err(fail)?;
        self.partial.finish()
    }
}

fn growing(dataset: &mut DatasetBuilder) {
    dataset.with_shape(&[0]).with_maxshape(&[MaxExtent::Unlimited]).with_chunks(&[CHUNK]).with_deflate(LEVEL);
}

fn grow(
    dataset: &mut Dataset,
    append: impl FnOnce(&mut BufferedAppender<'_>) -> Result<(), hdf5_pure::Error>,
) -> Result<(), hdf5_pure::Error> {
    let mut appender = dataset.buffered_appender()?;
    append(&mut appender)?;
    appender.finish()
}

type SetAttribute<'a> = dyn FnMut(&str, AttrValue) -> Result<(), hdf5_pure::Error> + 'a;

fn encoded(set: &mut SetAttribute<'_>, kind: &str, version: &str) -> Result<(), hdf5_pure::Error> {
    set("encoding-type", AttrValue::VarLenString(kind.to_owned()))?;
    set("encoding-version", AttrValue::VarLenString(version.to_owned()))
}

fn encoded_group(group: &mut StagedGroup<'_>, kind: &str, version: &str) {
    group.set_attr("encoding-type", AttrValue::VarLenString(kind.to_owned()));
    group.set_attr("encoding-version", AttrValue::VarLenString(version.to_owned()));
}

fn typed<'a>(dataset: &'a mut DatasetBuilder, kind: &str) -> &'a mut DatasetBuilder {
    dataset.set_attr("encoding-type", AttrValue::VarLenString(kind.to_owned()));
    dataset.set_attr("encoding-version", AttrValue::VarLenString("0.2.0".to_owned()))
}

fn array(dataset: &mut DatasetBuilder) {
    typed(dataset, "array");
}

fn strings(dataset: &mut DatasetBuilder, values: &[&str]) {
    typed(dataset.with_vlen_strings(values), "string-array");
}

fn scalar(dataset: &mut DatasetBuilder, text: &str) {
    typed(dataset.with_vlen_strings(&[text]).with_shape(&[]), "string");
}

fn bools(dataset: &mut DatasetBuilder, values: &[u8]) {
    // As h5py stores booleans.
    match EnumTypeBuilder::u8_based().value("FALSE", 0).value("TRUE", 1).build() {
        Ok(kind) => array(dataset.with_enum_u8_data(kind, values)),
        Err(_) => array(dataset.with_u8_data(values)),
    }
}

/// A dataframe with its columns converted for the file.
struct Dataframe<'a> {
    index: &'a [String],
    columns: Vec<(String, Stored)>,
}

/// Values of a column, in the form of the file.
enum Stored {
    Text(Vec<String>),
    Integers(Vec<i64>),
    Large(Vec<u64>),
    Floats(Vec<f64>),
    Bools(Vec<u8>),
    /// Values, and 1 where they are missing.
    MaskedIntegers(Vec<i64>, Vec<u8>),
    MaskedLarge(Vec<u64>, Vec<u8>),
    MaskedBools(Vec<u8>, Vec<u8>),
    Codes {
        codes: Vec<i32>,
        categories: Vec<String>,
        ordered: bool,
    },
}

fn frame<'a>(path: &Path, (index, columns): (&'a [String], &[Column])) -> Result<Dataframe<'a>> {
    let stored = columns.iter().map(|c| {
        if c.name.contains('/') {
            let problem = "has a slash in its name, which separates groups in an .h5ad file; rename it";
            return Err(FormatError::new(path, c.name.clone(), problem));
        }
        let wrong = || {
            FormatError::new(
                path,
                c.name.clone(),
                format!("has the type {}, which an .h5ad column cannot have; cast or drop it", c.values.data_type()),
            )
        };
        Ok((c.name.clone(), stored(c).ok_or_else(wrong)?))
    });
    Ok(Dataframe { index, columns: stored.collect::<Result<_>>()? })
}

fn stored(column: &Column) -> Option<Stored> {
    let values = &column.values;
    let mask = || (0..values.len()).map(|i| u8::from(values.is_null(i))).collect::<Vec<u8>>();
    Some(match values.data_type() {
        // Strings cannot be missing in anndata before 0.11; categorical values can.
        DataType::Utf8 if values.null_count() > 0 => {
            let codes = cast(values, &crate::block::categorical_type()).ok()?;
            codes_of(&codes, false)?
        }
        DataType::Utf8 => Stored::Text(values.as_string::<i32>().iter().flatten().map(str::to_owned).collect()),
        DataType::Int64 => {
            let numbers: Vec<i64> = values.as_primitive::<Int64Type>().iter().map(Option::unwrap_or_default).collect();
            if values.null_count() > 0 { Stored::MaskedIntegers(numbers, mask()) } else { Stored::Integers(numbers) }
        }
        DataType::UInt64 => {
            let numbers = values.as_primitive::<UInt64Type>().iter().map(Option::unwrap_or_default).collect();
            if values.null_count() > 0 { Stored::MaskedLarge(numbers, mask()) } else { Stored::Large(numbers) }
        }
        DataType::Float64 => {
            Stored::Floats(values.as_primitive::<Float64Type>().iter().map(|v| v.unwrap_or(f64::NAN)).collect())
        }
        DataType::Boolean => {
            let flags: Vec<u8> = values.as_boolean().iter().map(|v| u8::from(v.unwrap_or_default())).collect();
            if values.null_count() > 0 { Stored::MaskedBools(flags, mask()) } else { Stored::Bools(flags) }
        }
        DataType::Dictionary(_, _) => {
            let codes = cast(values, &crate::block::categorical_type()).ok()?;
            codes_of(&codes, column.ordered)?
        }
        _ => return None,
    })
}

fn codes_of(values: &ArrayRef, ordered: bool) -> Option<Stored> {
    let dictionary = values.as_dictionary_opt::<Int32Type>()?;
    let categories = dictionary.values().as_string_opt::<i32>()?;
    let codes = dictionary.keys().iter().map(|k| k.unwrap_or(-1)).collect();
    Some(Stored::Codes {
        codes,
        categories: categories.iter().map(|c| c.unwrap_or_default().to_owned()).collect(),
        ordered,
    })
}

impl Dataframe<'_> {
    fn write(&self, group: &mut StagedGroup<'_>) {
        encoded_group(group, "dataframe", "0.2.0");
        group.set_attr("_index", AttrValue::VarLenString("_index".to_owned()));
        let order = self.columns.iter().map(|(name, _)| name.clone()).collect();
        group.set_attr("column-order", AttrValue::VarLenStringArray(order));
        let index: Vec<&str> = self.index.iter().map(String::as_str).collect();
        group.create_dataset("_index", |d| strings(d, &index));
        for (name, column) in &self.columns {
            column.write(group, name);
        }
    }
}

/// Writes values beside a mask of those that are missing.
fn masked(group: &mut StagedGroup<'_>, name: &str, kind: &str, mask: &[u8], values: impl FnOnce(&mut DatasetBuilder)) {
    group.create_group_with(name, |g| {
        encoded_group(g, kind, "0.1.0");
        g.create_dataset("values", values);
        g.create_dataset("mask", |d| bools(d, mask));
    });
}

impl Stored {
    fn write(&self, group: &mut StagedGroup<'_>, name: &str) {
        match self {
            Stored::Text(values) => {
                let values: Vec<&str> = values.iter().map(String::as_str).collect();
                group.create_dataset(name, |d| strings(d, &values));
            }
            Stored::Integers(values) => {
                group.create_dataset(name, |d| array(d.with_i64_data(values)));
            }
            Stored::Large(values) => {
                group.create_dataset(name, |d| array(d.with_u64_data(values)));
            }
            Stored::Floats(values) => {
                group.create_dataset(name, |d| array(d.with_f64_data(values)));
            }
            Stored::Bools(values) => {
                group.create_dataset(name, |d| bools(d, values));
            }
            Stored::MaskedIntegers(values, mask) => {
                masked(group, name, "nullable-integer", mask, |d| array(d.with_i64_data(values)));
            }
            Stored::MaskedLarge(values, mask) => {
                masked(group, name, "nullable-integer", mask, |d| array(d.with_u64_data(values)));
            }
            Stored::MaskedBools(values, mask) => {
                masked(group, name, "nullable-boolean", mask, |d| bools(d, values));
            }
            Stored::Codes { codes, categories, ordered } => {
                group.create_group_with(name, |g| {
                    encoded_group(g, "categorical", "0.2.0");
                    g.set_attr("ordered", AttrValue::U8(u8::from(*ordered)));
                    let categories: Vec<&str> = categories.iter().map(String::as_str).collect();
                    g.create_dataset("categories", |d| strings(d, &categories));
                    g.create_dataset("codes", |d| array(d.with_i32_data(codes)));
                });
            }
        }
    }
}

/// Appends the column of each gene of a cell to `columns`. Both lists of gene ids ascend; the column of a gene is its
/// place in `column_genes`.
///
/// # Errors
/// The first gene that has no column.
pub fn columns_of(gene_ids: &[u32], column_genes: &[u32], columns: &mut Vec<i32>) -> std::result::Result<(), u32> {
    columns.reserve(gene_ids.len());
    let mut first = 0;
    for gene in gene_ids {
        // Genes ascend, so the next column is near: the range to search grows from the last one on.
        let mut width = 8;
        while column_genes.get(first + width).is_some_and(|last| last < gene) {
            first += width;
            width *= 2;
        }
        let last = (first + width + 1).min(column_genes.len());
        first += column_genes[first..last].binary_search(gene).map_err(|_| *gene)?;
        columns.push(first as i32);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, DictionaryArray, Float64Array, Int64Array, StringArray};

    use super::*;
    use crate::{OpenOptions, open};

    #[test]
    fn columns_of_genes_are_their_places_and_other_genes_have_none() {
        let column_genes: Vec<u32> = (0..1000).map(|i| 3 * i).collect();
        for gene_ids in [vec![], vec![0], vec![2997], vec![0, 3, 27, 30, 1500, 1503, 2994, 2997]] {
            let mut columns = vec![7];
            assert_eq!(columns_of(&gene_ids, &column_genes, &mut columns), Ok(()));
            let expected: Vec<i32> = gene_ids.iter().map(|gene| (gene / 3) as i32).collect();
            assert_eq!((columns[0], &columns[1..]), (7, &expected[..]));
        }
        for unknown in [1, 29, 3000] {
            assert_eq!(columns_of(&[0, unknown], &column_genes, &mut vec![]), Err(unknown));
        }
        assert_eq!(columns_of(&[5], &[], &mut vec![]), Err(5));
    }

    #[test]
    fn cells_written_to_h5ad_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out.h5ad");
        let mut writer = H5adWriter::create(&path, 3).unwrap();
        writer.append(&[0, 2, 2], &[0, 2], &[1.0, 5.0]).unwrap();
        writer.append(&[0, 1], &[1], &[7.0]).unwrap();
        let names = |n: &[&str]| n.iter().map(|s| (*s).to_owned()).collect::<Vec<String>>();
        let kinds: DictionaryArray<Int32Type> = [Some("b"), None, Some("a")].into_iter().collect();
        let columns = [
            Column::new("age", Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]))),
            Column::new("kind", Arc::new(kinds)),
            Column::new("note", Arc::new(StringArray::from(vec!["x", "", "é"]))),
            Column::new("score", Arc::new(Float64Array::from(vec![0.5, 1.5, -2.0]))),
            Column::new("flag", Arc::new(BooleanArray::from(vec![true, false, true]))),
        ];
        let (obs, var) = (names(&["c1", "c2", "c3"]), names(&["INS", "GCG", "SST"]));
        let embedding = ObsmArray { name: "X_m".to_owned(), dim: 2, values: vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0] };
        let provenance = BTreeMap::from([("store".to_owned(), "here".to_owned())]);
        writer.finish((&obs, &columns), (&var, &[]), &[embedding], &provenance).unwrap();

        let mut source = open(&path, &OpenOptions::default()).unwrap();
        let block = source.next_block().unwrap().unwrap();
        assert_eq!((block.starts.as_slice(), block.features.as_slice()), (&[0, 2, 2, 3][..], &[0, 2, 1][..]));
        assert_eq!(block.values, [1.0, 5.0, 7.0]);
        for (column, read) in columns.iter().zip(&block.obs) {
            let plain = |a: &ArrayRef| match a.data_type() {
                DataType::Dictionary(_, _) => cast(a, &DataType::Utf8).unwrap(),
                _ => Arc::clone(a),
            };
            assert_eq!(&plain(&column.values), &plain(read), "{}", column.name);
        }
        assert!(!folder.path().join("out.h5ad.partial").exists());
    }
}
