//! Long buffers that are read at random places.

use std::sync::atomic::{AtomicU32, Ordering};

const LINE: usize = 64;

/// Asks the system for large pages, of which the processor knows many more bytes' places. Before the first use of a buffer;
/// the advice changes nothing but speed.
#[allow(unsafe_code, reason = "advice about memory of a vector")]
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

/// Bytes that start at a cache line, all zero at first.
#[derive(Debug)]
pub(crate) struct Bytes {
    data: Vec<u8>,
    first: usize,
    len: usize,
}

impl Bytes {
    pub(crate) fn zeroed(len: usize) -> Self {
        let mut data = Vec::with_capacity(len + LINE);
        advise(&mut data);
        data.resize(len + LINE, 0);
        let first = data.as_ptr().align_offset(LINE).min(LINE);
        Self { data, first, len }
    }

    pub(crate) fn get(&self) -> &[u8] {
        &self.data[self.first..][..self.len]
    }

    pub(crate) fn get_mut(&mut self) -> &mut [u8] {
        &mut self.data[self.first..][..self.len]
    }
}

/// Ends a list that is shorter than its row.
pub(crate) const NONE: u32 = u32::MAX;

/// Lists of links, rows of one width. Rows may be read while others are written: a reader may see a row half old and half
/// new, yet every number in it is a link that was given.
#[derive(Debug)]
pub(crate) struct Links {
    width: usize,
    data: Vec<AtomicU32>,
}

impl Links {
    pub(crate) fn empty(rows: usize, width: usize) -> Self {
        let mut data = Vec::with_capacity(rows * width);
        advise(&mut data);
        data.resize_with(rows * width, || AtomicU32::new(NONE));
        Self { width, data }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// All rows, as they lie.
    pub(crate) fn all(&self) -> &[AtomicU32] {
        &self.data
    }

    #[inline(always)]
    pub(crate) fn row(&self, row: usize) -> &[AtomicU32] {
        &self.data[row * self.width..][..self.width]
    }

    #[inline(always)]
    pub(crate) fn of(&self, row: usize) -> impl Iterator<Item = u32> + '_ {
        self.row(row).iter().map(|link| link.load(Ordering::Relaxed)).take_while(|link| *link != NONE)
    }

    pub(crate) fn set(&self, row: usize, links: impl Iterator<Item = u32>) {
        for (place, link) in self.row(row).iter().zip(links.chain(std::iter::repeat(NONE))) {
            place.store(link, Ordering::Relaxed);
        }
    }

    /// Adds a link where the row has room.
    pub(crate) fn push(&self, row: usize, link: u32) -> bool {
        let free = self.row(row).iter().find(|place| place.load(Ordering::Relaxed) == NONE);
        free.map(|place| place.store(link, Ordering::Relaxed)).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_start_at_a_line_and_hold_what_is_written() {
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
