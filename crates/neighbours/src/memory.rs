//! Long buffers that are read at random places: quantised vectors and links.

use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a cache line.
const LINE: usize = 64;

/// Advises the system to use huge pages for a buffer, which saves TLB misses of random reads. To be called before the
/// buffer is first written; the advice changes only speed.
#[allow(unsafe_code, reason = "madvise on the memory of a vector")]
fn advise<T>(buffer: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        let bytes = buffer.capacity() * size_of::<T>();
        let skip = buffer.as_ptr().align_offset(PAGE).saturating_mul(size_of::<T>());
        if bytes > skip.saturating_add(PAGE) {
            // SAFETY: the range lies inside the buffer's own allocation; the advice leaves what it holds as it is.
            unsafe {
                let start = buffer.as_mut_ptr().cast::<u8>().wrapping_add(skip);
                libc::madvise(start.cast(), (bytes - skip) / PAGE * PAGE, libc::MADV_HUGEPAGE);
            }
        }
    }
    #[cfg(not(target_os = "linux"))]
    let _ = buffer;
}

/// Bytes that start at a cache line.
#[derive(Debug)]
pub(crate) struct Bytes {
    data: Vec<u8>,
    first: usize,
    len: usize,
}

impl Bytes {
    /// `len` bytes, all zero.
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut data = Vec::with_capacity(len + LINE);
        advise(&mut data);
        data.resize(len + LINE, 0);
        let first = data.as_ptr().align_offset(LINE).min(LINE);
        Self { data, first, len }
    }

    /// All bytes.
    pub(crate) fn get(&self) -> &[u8] {
        &self.data[self.first..][..self.len]
    }

    /// Keeps the first `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.data.truncate(self.first + self.len);
    }

    /// All bytes, to write.
    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.first..][..self.len]
    }
}

/// Fills the rest of a row that has fewer links than places.
pub(crate) const NONE: u32 = u32::MAX;

/// Links of vectors: `[rows, width]`, each row a list of positions. A row may be read while another thread writes it:
/// the reader may see a mix of old and new links, and each of them was a link of the row.
#[derive(Debug)]
pub(crate) struct Links {
    width: usize,
    data: Vec<AtomicU32>,
}

impl Links {
    /// `rows` rows of `width` places without links.
    pub(crate) fn empty(rows: usize, width: usize) -> Self {
        let mut data = Vec::with_capacity(rows * width);
        advise(&mut data);
        data.resize_with(rows * width, || AtomicU32::new(NONE));
        Self { width, data }
    }

    /// Places in a row.
    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// The places of all rows, `[rows · width]`.
    pub(crate) fn all(&self) -> &[AtomicU32] {
        &self.data
    }

    /// The places of a row, `[width]`.
    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[AtomicU32] {
        &self.data[row * self.width..][..self.width]
    }

    /// The links of a row.
    #[inline(always)]
    pub(crate) fn of(&self, row: usize) -> impl Iterator<Item = u32> + '_ {
        self.row(row).iter().map(|link| link.load(Ordering::Relaxed)).take_while(|link| *link != NONE)
    }

    /// Replaces the links of a row.
    pub(crate) fn set(&self, row: usize, links: impl Iterator<Item = u32>) {
        for (place, link) in self.row(row).iter().zip(links.chain(std::iter::repeat(NONE))) {
            place.store(link, Ordering::Relaxed);
        }
    }

    /// Keeps the first `rows` rows.
    pub(crate) fn truncate(&mut self, rows: usize) {
        self.data.truncate(rows * self.width);
    }

    /// Adds a link if the row has room. Returns whether it had.
    pub(crate) fn push(&self, row: usize, link: u32) -> bool {
        let free = self.row(row).iter().find(|place| place.load(Ordering::Relaxed) == NONE);
        free.map(|place| place.store(link, Ordering::Relaxed)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_at_a_cache_line_and_hold_what_is_written() {
        for len in [0, 1, 64, 5_000_000] {
            let mut bytes = Bytes::zeroed(len);
            assert!(bytes.get().iter().all(|b| *b == 0));
            assert_eq!(bytes.get().as_ptr().align_offset(LINE), 0);
            bytes.get_mut().fill(7);
            assert_eq!(bytes.get(), vec![7; len]);
        }
    }

    #[test]
    fn a_row_ends_where_its_list_ends() {
        let links = Links::empty(2, 3);
        assert_eq!(links.of(1).count(), 0);
        assert!(links.push(1, 5) && links.push(1, 6) && links.push(1, 7) && !links.push(1, 8));
        links.set(0, [9].into_iter());
        assert_eq!((links.of(0).collect::<Vec<_>>(), links.of(1).collect::<Vec<_>>()), (vec![9], vec![5, 6, 7]));
    }
}
