//! Long one-dimensional arrays of numbers, read chunk by chunk and inflated on every core. Inflating limits the speed.
//!
//! Only common layouts are read here: contiguous, or chunked with deflate and shuffle; little-endian. Other layouts are
//! read by hdf5-pure.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Arc, Mutex};

use hdf5_pure::{DType, Datatype, DatatypeByteOrder, Layout};
use rayon::prelude::*;

use super::half::Half;
use crate::rows::to_f32;

const DEFLATE: u16 = 1;
const SHUFFLE: u16 = 2;
/// Largest chunk that is read here, in bytes. Writers of single-cell data make smaller ones.
const MAX_CHUNK_BYTES: u64 = 64 << 20;

struct StoredChunk {
    address: u64,
    size: usize,
    mask: u32,
}

enum Location {
    Contiguous(u64),
    /// Chunk length in elements, and the chunks in order.
    Chunked(u64, Vec<StoredChunk>),
}

/// Location of the chunks of an array and their filters.
pub(crate) struct Chunks {
    file: Arc<File>,
    dtype: DType,
    width: usize,
    location: Location,
    filters: Vec<u16>,
    /// Number and decompressed bytes of the chunk the last window ended in: the next window usually begins there.
    last: Mutex<Option<(usize, Vec<u8>)>>,
}

impl Chunks {
    /// `None` if the array does not have a common layout. All arrays share `file`: a file of thousands of columns must
    /// not be opened thousands of times.
    pub(crate) fn open(file: &Arc<File>, dataset: &hdf5_pure::Dataset, dtype: &DType, shape: &[u64]) -> Option<Self> {
        let [len] = *shape else { return None };
        let width = dataset.element_size().ok()? as usize;
        if len == 0 || !is_little_endian(&dataset.datatype().ok()?) {
            return None;
        }
        let filters: Vec<u16> = dataset.filter_pipeline().iter().map(|f| f.id).collect();
        if filters.iter().any(|f| *f != DEFLATE && *f != SHUFFLE) {
            return None;
        }
        let location = match dataset.layout().ok()? {
            Layout::Contiguous { address: Some(address), size } if size == len * width as u64 => {
                Location::Contiguous(address)
            }
            Layout::Chunked { chunk_shape, .. } => {
                let [chunk] = chunk_shape[..] else { return None };
                Location::Chunked(chunk, in_order(dataset, len, chunk, width as u64)?)
            }
            _ => return None,
        };
        let file = Arc::clone(file);
        Some(Self { file, dtype: dtype.clone(), width, location, filters, last: Mutex::new(None) })
    }

    /// Elements as values of a matrix.
    pub(crate) fn values(&self, start: u64, count: u64) -> Result<Vec<f32>, String> {
        use DType::{F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        if self.dtype == F32 {
            return self.words(start, count, f32::from_le_bytes);
        }
        let bytes = self.bytes(start, count)?;
        match self.dtype {
            F64 => bytes.chunks_exact(8).map(|b| to_f32(f64::from_le_bytes(array(b)))).collect(),
            U8 => Ok(bytes.iter().map(|b| f32::from(*b)).collect()),
            I8 => Ok(bytes.iter().map(|b| f32::from(*b as i8)).collect()),
            U16 => Ok(numbers(&bytes, |b| f32::from(u16::from_le_bytes(b)))),
            I16 => Ok(numbers(&bytes, |b| f32::from(i16::from_le_bytes(b)))),
            U32 => bytes.chunks_exact(4).map(|b| to_f32(f64::from(u32::from_le_bytes(array(b))))).collect(),
            I32 => bytes.chunks_exact(4).map(|b| to_f32(f64::from(i32::from_le_bytes(array(b))))).collect(),
            U64 => bytes.chunks_exact(8).map(|b| to_f32(u64::from_le_bytes(array(b)) as f64)).collect(),
            I64 => bytes.chunks_exact(8).map(|b| to_f32(i64::from_le_bytes(array(b)) as f64)).collect(),
            _ => match Half::of_dtype(&self.dtype) {
                Some(half) => Ok(half.numbers(&bytes).collect()),
                None => Err(format!("has the type {}, expected numbers", self.dtype)),
            },
        }
    }

    /// Elements as indices.
    pub(crate) fn indices(&self, start: u64, count: u64) -> Result<Vec<u32>, String> {
        use DType::{I32, I64, U32, U64};
        let wrong = |i: i128| format!("holds {i}, which is not a valid index");
        match self.dtype {
            // A negative index becomes a huge one, which the caller's bound rejects.
            U32 | I32 => self.words(start, count, u32::from_le_bytes),
            U64 | I64 => {
                let bytes = self.bytes(start, count)?;
                let long = bytes.chunks_exact(8).map(|b| u64::from_le_bytes(array(b)));
                long.map(|i| u32::try_from(i).map_err(|_| wrong(i128::from(i as i64)))).collect()
            }
            _ => {
                let small = self.values(start, count)?;
                small
                    .into_iter()
                    .map(|v| if v >= 0.0 && v.fract() == 0.0 { Ok(v as u32) } else { Err(wrong(v as i128)) })
                    .collect()
            }
        }
    }

    /// Elements of four bytes, decompressed directly into the result.
    fn words<T: bytemuck::Pod>(&self, start: u64, count: u64, read: fn([u8; 4]) -> T) -> Result<Vec<T>, String> {
        let mut out = vec![T::zeroed(); count as usize];
        self.decompress_into(start, bytemuck::cast_slice_mut(&mut out))?;
        if cfg!(target_endian = "big") {
            out.iter_mut().for_each(|v| *v = read(array(bytemuck::bytes_of(v))));
        }
        Ok(out)
    }

    /// The stored bytes of some elements, decompressed.
    fn bytes(&self, start: u64, count: u64) -> Result<Vec<u8>, String> {
        let mut out = vec![0u8; count as usize * self.width];
        self.decompress_into(start, &mut out)?;
        Ok(out)
    }

    fn decompress_into(&self, start: u64, out: &mut [u8]) -> Result<(), String> {
        if out.is_empty() {
            return Ok(());
        }
        match &self.location {
            Location::Contiguous(address) => {
                let at = address + start * self.width as u64;
                self.file.read_exact_at(out, at).map_err(|e| format!("cannot be read: {e}"))
            }
            Location::Chunked(length, chunks) => self.decompress_window(*length, chunks, start, out),
        }
    }

    fn decompress_window(&self, length: u64, chunks: &[StoredChunk], start: u64, out: &mut [u8]) -> Result<(), String> {
        let chunk_bytes = length as usize * self.width;
        let first = (start / length) as usize;
        let skip = (start % length) as usize * self.width;
        // Pieces of the output, one for each chunk they come from.
        let mut pieces = Vec::new();
        let mut rest = out;
        let mut room = chunk_bytes - skip;
        while !rest.is_empty() {
            let (piece, tail) = rest.split_at_mut(room.min(rest.len()));
            pieces.push(piece);
            rest = tail;
            room = chunk_bytes;
        }
        let final_chunk = first + pieces.len() - 1;
        let held = self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let kept = pieces
            .into_par_iter()
            .enumerate()
            .map_init(Workspace::new, |workspace, (i, piece)| {
                let number = first + i;
                let from = if i == 0 { skip } else { 0 };
                if let Some((_, bytes)) = held.as_ref().filter(|(n, _)| *n == number) {
                    piece.copy_from_slice(&bytes[from..from + piece.len()]);
                    return Ok((number == final_chunk).then(|| bytes.clone()));
                }
                if piece.len() == chunk_bytes
                    && number != final_chunk
                    && self.inflate(chunks.get(number), piece, workspace)?
                {
                    return Ok(None);
                }
                let bytes = self.decompress(chunks.get(number), chunk_bytes, workspace)?;
                piece.copy_from_slice(&bytes[from..from + piece.len()]);
                Ok((number == final_chunk).then(|| bytes.to_vec()))
            })
            .collect::<Result<Vec<_>, String>>()?;
        if let Some(bytes) = kept.into_iter().flatten().next_back() {
            *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((final_chunk, bytes));
        }
        Ok(())
    }

    /// Inflates a whole chunk directly into `out`; returns false if deflate is not its only filter.
    fn inflate(&self, chunk: Option<&StoredChunk>, out: &mut [u8], workspace: &mut Workspace) -> Result<bool, String> {
        let Some(chunk) = chunk.filter(|c| self.filters == [DEFLATE] && c.mask == 0) else {
            return Ok(false);
        };
        workspace.compressed.resize(chunk.size, 0);
        self.file
            .read_exact_at(&mut workspace.compressed, chunk.address)
            .map_err(|e| format!("cannot be read: {e}"))?;
        let written = workspace.inflater.zlib_decompress(&workspace.compressed, out);
        match written.map_err(|e| format!("a chunk is damaged: {e}"))? {
            n if n == out.len() => Ok(true),
            n => Err(format!("a chunk holds {n} bytes; expected {}", out.len())),
        }
    }

    /// One chunk, its filters undone in reverse order.
    fn decompress<'a>(
        &self,
        chunk: Option<&StoredChunk>,
        chunk_bytes: usize,
        workspace: &'a mut Workspace,
    ) -> Result<&'a [u8], String> {
        let chunk = chunk.ok_or("a chunk is missing")?;
        let Workspace { inflater, compressed, plain } = workspace;
        compressed.resize(chunk.size, 0);
        self.file.read_exact_at(compressed, chunk.address).map_err(|e| format!("cannot be read: {e}"))?;
        for (i, filter) in self.filters.iter().enumerate().rev() {
            if chunk.mask >> i & 1 == 1 {
                continue;
            }
            plain.clear();
            plain.resize(chunk_bytes, 0);
            if *filter == DEFLATE {
                let written =
                    inflater.zlib_decompress(compressed, plain).map_err(|e| format!("a chunk is damaged: {e}"))?;
                plain.truncate(written);
            } else {
                unshuffle(compressed, plain, self.width);
            }
            std::mem::swap(compressed, plain);
        }
        if compressed.len() != chunk_bytes {
            return Err(format!("a chunk holds {} bytes; expected {chunk_bytes}", compressed.len()));
        }
        Ok(compressed)
    }
}

struct Workspace {
    inflater: libdeflater::Decompressor,
    compressed: Vec<u8>,
    plain: Vec<u8>,
}

impl Workspace {
    fn new() -> Self {
        Self { inflater: libdeflater::Decompressor::new(), compressed: Vec::new(), plain: Vec::new() }
    }
}

/// The chunks of an array in order; `None` if one is too large, missing or listed twice.
fn in_order(dataset: &hdf5_pure::Dataset, len: u64, chunk: u64, width: u64) -> Option<Vec<StoredChunk>> {
    if chunk == 0 || chunk.checked_mul(width)? > MAX_CHUNK_BYTES {
        return None;
    }
    let mut listed = dataset.chunks().ok()?;
    listed.sort_by_key(|c| c.offset.first().copied());
    let whole = listed.len() as u64 == len.div_ceil(chunk)
        && listed.iter().zip(0u64..).all(|(c, i)| c.offset[..] == [i * chunk])
        // An incompressible chunk grows a little.
        && listed.iter().all(|c| c.storage_size <= chunk * width * 2 + 1024);
    whole.then(|| {
        listed
            .iter()
            .map(|c| StoredChunk { address: c.address, size: c.storage_size as usize, mask: c.filter_mask })
            .collect()
    })
}

fn is_little_endian(datatype: &Datatype) -> bool {
    let order = match datatype {
        Datatype::FixedPoint { byte_order, size, .. } | Datatype::FloatingPoint { byte_order, size, .. } => {
            (byte_order, *size)
        }
        _ => return false,
    };
    matches!(order, (DatatypeByteOrder::LittleEndian, _) | (_, 1))
}

fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut out = [0; N];
    out.copy_from_slice(bytes);
    out
}

fn numbers<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
    bytes.chunks_exact(N).map(|b| read(array(b))).collect()
}

/// Undoes HDF5's byte shuffle: first bytes of all elements, then their second bytes, and so on.
fn unshuffle(from: &[u8], to: &mut [u8], width: usize) {
    let count = from.len() / width.max(1);
    for byte in 0..width {
        let plane = &from[byte * count..(byte + 1) * count];
        for (element, value) in to.chunks_exact_mut(width).zip(plane) {
            element[byte] = *value;
        }
    }
    let tail = count * width;
    if tail < from.len() && tail < to.len() {
        let end = from.len().min(to.len());
        to[tail..end].copy_from_slice(&from[tail..end]);
    }
}
