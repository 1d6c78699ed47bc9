//! Where files hold data that was written. Space that was only reserved is answered without the
//! device, and would flatter its rate.

use std::fs::File;
use std::os::fd::AsFd;

use rustix::fs::SeekFrom;
use rustix::io::Errno;

use super::BLOCK_BYTES;
use crate::BenchError;

/// More parts than this of one file are not looked for.
const PARTS_MAX: usize = 1 << 20;

/// Places of reads of one length, all in written data.
#[derive(Clone, Debug)]
pub struct Places {
    read_bytes: u64,
    /// (file, first byte, how many places from there on), and the sum of places up to its end.
    parts: Vec<(usize, u64, u64)>,
    ends: Vec<u64>,
}

impl Places {
    /// All block-aligned places of `files` where `read_bytes` of written data begin.
    ///
    /// # Errors
    /// When the file system cannot say where data is, or there is not enough.
    pub fn find(files: &[File], read_bytes: u64) -> Result<Self, BenchError> {
        let mut parts = Vec::new();
        for (index, file) in files.iter().enumerate() {
            for (start, end) in data_parts(file)? {
                parts.push((index, start, end));
            }
        }
        let places = Self::of(&parts, read_bytes);
        if places.count() == 0 {
            return Err(BenchError::Void("the files hold no data to read".to_owned()));
        }
        Ok(places)
    }

    /// The places in parts given as (file, first byte, end).
    fn of(parts: &[(usize, u64, u64)], read_bytes: u64) -> Self {
        let mut places = Self { read_bytes, parts: Vec::new(), ends: Vec::new() };
        let mut sum = 0;
        for (file, start, end) in parts {
            let start = start.next_multiple_of(BLOCK_BYTES);
            if start + read_bytes > *end {
                continue;
            }
            let count = (end - start - read_bytes) / BLOCK_BYTES + 1;
            sum += count;
            places.parts.push((*file, start, count));
            places.ends.push(sum);
        }
        places
    }

    /// How many places there are.
    pub fn count(&self) -> u64 {
        self.ends.last().copied().unwrap_or_default()
    }

    /// Bytes of written data that reads can reach.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|(_, _, count)| (count - 1) * BLOCK_BYTES + self.read_bytes).sum()
    }

    /// The file and offset of place `index`, which is below [`Places::count`].
    pub fn at(&self, index: u64) -> (usize, u64) {
        let part = self.ends.partition_point(|end| *end <= index);
        let before = if part == 0 { 0 } else { self.ends[part - 1] };
        let (file, start, _) = self.parts[part];
        (file, start + (index - before) * BLOCK_BYTES)
    }
}

fn data_parts(file: &File) -> Result<Vec<(u64, u64)>, BenchError> {
    let wrong = |errno: Errno| BenchError::io("asking where a file holds data")(errno.into());
    let mut parts = Vec::new();
    let mut from = 0;
    while parts.len() < PARTS_MAX {
        let start = match rustix::fs::seek(file.as_fd(), SeekFrom::Data(from)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(wrong(errno)),
        };
        let end = rustix::fs::seek(file.as_fd(), SeekFrom::Hole(start)).map_err(wrong)?;
        parts.push((start, end));
        from = end;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    #[test]
    fn every_place_lies_in_written_data() {
        let places = Places::of(&[(0, 0, 10_000), (1, 4096, 8192), (2, 1, 20_480)], 8192);
        // File 0: only at 0, since a read at 4096 would end beyond 10,000; file 1 is too short;
        // file 2 from the first whole block on.
        let all: Vec<(usize, u64)> = (0..places.count()).map(|index| places.at(index)).collect();
        assert_eq!(all, [(0, 0), (2, 4096), (2, 8192), (2, 12_288)]);
        assert_eq!(places.bytes(), 8192 + 16_384);
    }

    #[test]
    fn holes_of_a_file_are_not_read() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[1; 8192]).unwrap();
        file.seek(std::io::SeekFrom::Start(1 << 20)).unwrap();
        file.write_all(&[1; 8192]).unwrap();
        let places = Places::find(&[file], 4096).unwrap();
        let all: Vec<(usize, u64)> = (0..places.count()).map(|index| places.at(index)).collect();
        assert_eq!(all, [(0, 0), (0, 4096), (0, 1 << 20), (0, (1 << 20) + 4096)]);
    }

    #[test]
    fn files_without_data_are_an_error() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(1 << 20).unwrap();
        assert!(Places::find(&[file], 4096).is_err());
    }
}
