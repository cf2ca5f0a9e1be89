//! Long one-dimensional arrays of numbers, chunk by chunk: an atlas is read at the speed of inflating, on every core.
//!
//! Only the usual layouts are read here: contiguous, or chunked with deflate and shuffle; little-endian. Everything else
//! goes through hdf5-pure.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Mutex;

use hdf5_pure::{DType, Datatype, DatatypeByteOrder, Layout};
use rayon::prelude::*;

use crate::rows::narrow;

const DEFLATE: u16 = 1;
const SHUFFLE: u16 = 2;
/// A larger chunk is nothing that a writer of single-cell data makes.
const MOST_CHUNK_BYTES: u64 = 64 << 20;

struct Stored {
    address: u64,
    size: usize,
    mask: u32,
}

enum Place {
    Contiguous(u64),
    /// Chunk length in elements, and the chunks in order.
    Chunked(u64, Vec<Stored>),
}

/// Where the parts of an array lie and how they are packed.
pub(crate) struct Chunks {
    file: File,
    kind: DType,
    width: usize,
    place: Place,
    filters: Vec<u16>,
    /// The chunk a window ended in, unpacked: the next window begins there.
    last: Mutex<Option<(usize, Vec<u8>)>>,
}

impl Chunks {
    /// `None` where the array is not of a usual layout.
    pub(crate) fn open(path: &Path, dataset: &hdf5_pure::Dataset, kind: &DType, shape: &[u64]) -> Option<Self> {
        let [len] = *shape else { return None };
        let width = dataset.element_size().ok()? as usize;
        if len == 0 || !is_little_endian(&dataset.datatype().ok()?) {
            return None;
        }
        let filters: Vec<u16> = dataset.filter_pipeline().iter().map(|f| f.id).collect();
        if filters.iter().any(|f| *f != DEFLATE && *f != SHUFFLE) {
            return None;
        }
        let place = match dataset.layout().ok()? {
            Layout::Contiguous { address: Some(address), size } if size == len * width as u64 => {
                Place::Contiguous(address)
            }
            Layout::Chunked { chunk_shape, .. } => {
                let [chunk] = chunk_shape[..] else { return None };
                Place::Chunked(chunk, in_order(dataset, len, chunk, width as u64)?)
            }
            _ => return None,
        };
        let file = File::open(path).ok()?;
        Some(Self { file, kind: kind.clone(), width, place, filters, last: Mutex::new(None) })
    }

    /// Elements as values of a matrix.
    pub(crate) fn values(&self, start: u64, count: u64) -> Result<Vec<f32>, String> {
        use DType::{F32, F64, I8, I16, I32, I64, U8, U16, U32, U64};
        if self.kind == F32 {
            return self.words(start, count, f32::from_le_bytes);
        }
        let bytes = self.bytes(start, count)?;
        match self.kind {
            F64 => bytes.chunks_exact(8).map(|b| narrow(f64::from_le_bytes(array(b)))).collect(),
            U8 => Ok(bytes.iter().map(|b| f32::from(*b)).collect()),
            I8 => Ok(bytes.iter().map(|b| f32::from(*b as i8)).collect()),
            U16 => Ok(numbers(&bytes, |b| f32::from(u16::from_le_bytes(b)))),
            I16 => Ok(numbers(&bytes, |b| f32::from(i16::from_le_bytes(b)))),
            U32 => bytes.chunks_exact(4).map(|b| narrow(f64::from(u32::from_le_bytes(array(b))))).collect(),
            I32 => bytes.chunks_exact(4).map(|b| narrow(f64::from(i32::from_le_bytes(array(b))))).collect(),
            U64 => bytes.chunks_exact(8).map(|b| narrow(u64::from_le_bytes(array(b)) as f64)).collect(),
            I64 => bytes.chunks_exact(8).map(|b| narrow(i64::from_le_bytes(array(b)) as f64)).collect(),
            _ => Err(format!("has the type {}, expected numbers", self.kind)),
        }
    }

    /// Elements as positions.
    pub(crate) fn indices(&self, start: u64, count: u64) -> Result<Vec<u32>, String> {
        use DType::{I32, I64, U32, U64};
        let wrong = |i: i128| format!("holds the index {i}, which no matrix has");
        match self.kind {
            // A negative one becomes a huge one, which the caller's bound refuses.
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

    /// Elements of four bytes, unpacked where they will lie.
    fn words<T: bytemuck::Pod>(&self, start: u64, count: u64, read: fn([u8; 4]) -> T) -> Result<Vec<T>, String> {
        let mut out = vec![T::zeroed(); count as usize];
        self.unpack_into(start, bytemuck::cast_slice_mut(&mut out))?;
        if cfg!(target_endian = "big") {
            out.iter_mut().for_each(|v| *v = read(array(bytemuck::bytes_of(v))));
        }
        Ok(out)
    }

    /// The stored bytes of some elements, unpacked.
    fn bytes(&self, start: u64, count: u64) -> Result<Vec<u8>, String> {
        let mut out = vec![0u8; count as usize * self.width];
        self.unpack_into(start, &mut out)?;
        Ok(out)
    }

    fn unpack_into(&self, start: u64, out: &mut [u8]) -> Result<(), String> {
        if out.is_empty() {
            return Ok(());
        }
        match &self.place {
            Place::Contiguous(address) => {
                let at = address + start * self.width as u64;
                self.file.read_exact_at(out, at).map_err(|e| format!("cannot be read: {e}"))
            }
            Place::Chunked(length, chunks) => self.unpack_window(*length, chunks, start, out),
        }
    }

    fn unpack_window(&self, length: u64, chunks: &[Stored], start: u64, out: &mut [u8]) -> Result<(), String> {
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
                let bytes = self.unpack(chunks.get(number), chunk_bytes, workspace)?;
                piece.copy_from_slice(&bytes[from..from + piece.len()]);
                Ok((number == final_chunk).then(|| bytes.to_vec()))
            })
            .collect::<Result<Vec<_>, String>>()?;
        if let Some(bytes) = kept.into_iter().flatten().next_back() {
            *self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some((final_chunk, bytes));
        }
        Ok(())
    }

    /// A whole chunk that is only deflated, straight to its place; false where it is packed in another way.
    fn inflate(&self, chunk: Option<&Stored>, out: &mut [u8], workspace: &mut Workspace) -> Result<bool, String> {
        let Some(chunk) = chunk.filter(|c| self.filters == [DEFLATE] && c.mask == 0) else {
            return Ok(false);
        };
        workspace.packed.resize(chunk.size, 0);
        self.file.read_exact_at(&mut workspace.packed, chunk.address).map_err(|e| format!("cannot be read: {e}"))?;
        let written = workspace.inflater.zlib_decompress(&workspace.packed, out);
        match written.map_err(|e| format!("a chunk is damaged: {e}"))? {
            n if n == out.len() => Ok(true),
            n => Err(format!("a chunk holds {n} bytes where {} should be", out.len())),
        }
    }

    /// One chunk, its filters undone in reverse order.
    fn unpack<'a>(
        &self,
        chunk: Option<&Stored>,
        chunk_bytes: usize,
        workspace: &'a mut Workspace,
    ) -> Result<&'a [u8], String> {
        let chunk = chunk.ok_or("a chunk is missing")?;
        let Workspace { inflater, packed, plain } = workspace;
        packed.resize(chunk.size, 0);
        self.file.read_exact_at(packed, chunk.address).map_err(|e| format!("cannot be read: {e}"))?;
        for (i, filter) in self.filters.iter().enumerate().rev() {
            if chunk.mask >> i & 1 == 1 {
                continue;
            }
            plain.clear();
            plain.resize(chunk_bytes, 0);
            if *filter == DEFLATE {
                let written =
                    inflater.zlib_decompress(packed, plain).map_err(|e| format!("a chunk is damaged: {e}"))?;
                plain.truncate(written);
            } else {
                unshuffle(packed, plain, self.width);
            }
            std::mem::swap(packed, plain);
        }
        if packed.len() != chunk_bytes {
            return Err(format!("a chunk holds {} bytes where {chunk_bytes} should be", packed.len()));
        }
        Ok(packed)
    }
}

struct Workspace {
    inflater: libdeflater::Decompressor,
    packed: Vec<u8>,
    plain: Vec<u8>,
}

impl Workspace {
    fn new() -> Self {
        Self { inflater: libdeflater::Decompressor::new(), packed: Vec::new(), plain: Vec::new() }
    }
}

/// The chunks of an array sorted by place; `None` where they are too large, missing or stand twice.
fn in_order(dataset: &hdf5_pure::Dataset, len: u64, chunk: u64, width: u64) -> Option<Vec<Stored>> {
    if chunk == 0 || chunk.checked_mul(width)? > MOST_CHUNK_BYTES {
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
            .map(|c| Stored { address: c.address, size: c.storage_size as usize, mask: c.filter_mask })
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
