//! Files that may be gzipped, with one member or many (BGZF), and lines of bounded length.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use flate2::bufread::MultiGzDecoder;

use crate::error::{FormatError, Result};
use crate::recognise::require_file;

/// First bytes of every gzip member.
pub(crate) const MAGIC: &[u8] = b"\x1f\x8b";

const BUFFER: usize = 256 << 10;

/// Opens a file, decompressing it if it is gzipped.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let fail = |e: std::io::Error| FormatError::new(path, "file", format!("cannot be read: {e}"));
    require_file(path)?;
    let mut plain = BufReader::with_capacity(BUFFER, File::open(path).map_err(fail)?);
    let gzipped = plain.fill_buf().map_err(fail)?.starts_with(MAGIC);
    Ok(match gzipped {
        true => Box::new(BufReader::with_capacity(BUFFER, MultiGzDecoder::new(plain))),
        false => Box::new(plain),
    })
}

/// The first `count` bytes of a file's content, decompressed; fewer if the file is shorter or damaged after them.
pub(crate) fn head(path: &Path, count: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = open(path)?.take(count as u64);
    match reader.read_to_end(&mut bytes) {
        Ok(_) => Ok(bytes),
        Err(_) if !bytes.is_empty() => Ok(bytes),
        Err(e) => Err(FormatError::new(path, "file", format!("cannot be read: {e}"))),
    }
}

/// A reader that fails at a line longer than `limit` bytes: a small gzipped file can decompress to an endless line.
pub(crate) struct LineLimited {
    text: Box<dyn BufRead + Send>,
    limit: u64,
    since_line_end: u64,
}

impl LineLimited {
    pub(crate) fn open(path: &Path, limit: u64) -> Result<Self> {
        Ok(Self { text: open(path)?, limit, since_line_end: 0 })
    }
}

impl Read for LineLimited {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        let read = self.text.read(to)?;
        self.since_line_end = match to[..read].iter().rposition(|b| *b == b'\n') {
            Some(end) => (read - end - 1) as u64,
            None => self.since_line_end + read as u64,
        };
        match self.since_line_end > self.limit {
            true => Err(std::io::Error::other(format!("a line is longer than {} bytes", self.limit))),
            false => Ok(read),
        }
    }
}

/// Reads one line into `line`, without its line end; returns false at the end of the file. A line longer than `limit`
/// bytes is an error, because a binary file may contain no line end.
pub(crate) fn read_line(reader: &mut dyn BufRead, line: &mut Vec<u8>, limit: u64) -> std::io::Result<bool> {
    line.clear();
    let read = reader.take(limit).read_until(b'\n', line)?;
    if read as u64 == limit && line.last() != Some(&b'\n') {
        return Err(std::io::Error::other(format!("a line is longer than {limit} bytes")));
    }
    while matches!(line.last(), Some(b'\n' | b'\r')) {
        line.pop();
    }
    Ok(read > 0)
}
