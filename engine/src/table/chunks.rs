//! The chunk section: where every chunk begins.
//!
//! | Offset | Size | Field  | Meaning                                                           |
//! |-------:|-----:|--------|-------------------------------------------------------------------|
//! |    4*i |    4 | start  | Where chunk i begins in the file, over 8. They ascend.            |
//! |    4*n |    4 | end    | Where the last chunk ends, over 8.                                |
//!
//! The first chunk begins behind the file's header, and each ends where the next begins.

use super::chunk::{CHUNK_LEN_MAX, CHUNK_LEN_MIN};
use super::damage::Damage;
use super::header::HEADER_LEN;
use super::record::ALIGN_LEN;

/// Bytes of the file that one cell of the grid stands for. About the length of a chunk, so that a
/// cell has about one chunk.
const CELL_LEN: u64 = 32 << 10;

/// Where the chunks of a table are.
#[derive(Debug)]
pub(super) struct Chunks {
    /// Starts over 8, then the end. Invariant: ascending, at least two.
    starts: Vec<u32>,
    /// Per cell the last chunk that begins at or before it. Derived; turns a place into its chunk
    /// without a search over all of them.
    grid: Vec<u32>,
}

impl Chunks {
    /// The bytes of the section.
    pub fn encode(starts: &[u32]) -> Vec<u8> {
        starts
            .iter()
            .flat_map(|start| start.to_le_bytes())
            .collect()
    }

    /// Reads the section, which stands at `at`. Its checksum has been compared.
    pub fn decode(bytes: &[u8], at: u64) -> Result<Chunks, Damage> {
        let (words, rest) = bytes.as_chunks::<4>();
        if !rest.is_empty() || words.len() < 2 {
            let expected = "at least 8 bytes, a multiple of 4";
            return Err(Damage::new(
                at,
                "length of the chunk section",
                expected,
                bytes.len(),
            ));
        }
        let starts: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        if starts.first().map(|first| *first as usize) != Some(HEADER_LEN / ALIGN_LEN) {
            let expected = format!("{HEADER_LEN} over 8");
            return Err(Damage::new(
                at,
                "start of the first chunk",
                expected,
                starts[0],
            ));
        }
        for (index, pair) in starts.windows(2).enumerate() {
            let len = (i64::from(pair[1]) - i64::from(pair[0])) * ALIGN_LEN as i64;
            if len < CHUNK_LEN_MIN as i64 || len > CHUNK_LEN_MAX as i64 {
                let at = at + 4 * (index as u64 + 1);
                let expected = format!("{CHUNK_LEN_MIN} to {CHUNK_LEN_MAX} bytes");
                return Err(Damage::new(at, "length of a chunk", expected, len));
            }
        }
        let grid = grid_of(&starts);
        Ok(Chunks { starts, grid })
    }

    /// How many chunks there are. Never 0.
    pub fn count(&self) -> u32 {
        (self.starts.len() - 1) as u32
    }

    /// Where the chunk lies in the file, or `None` where there is no such chunk.
    pub fn range(&self, chunk: u32) -> Option<std::ops::Range<u64>> {
        let place = |index: usize| Some(u64::from(*self.starts.get(index)?) * ALIGN_LEN as u64);
        Some(place(chunk as usize)?..place(chunk as usize + 1)?)
    }

    /// Where the last chunk ends.
    pub fn data_end(&self) -> u64 {
        u64::from(self.starts[self.starts.len() - 1]) * ALIGN_LEN as u64
    }

    /// The chunk that a place over 8 lies in, and the offset in it.
    pub fn locate(&self, place: u32) -> Option<(u32, usize)> {
        let cell = (u64::from(place) * ALIGN_LEN as u64 / CELL_LEN) as usize;
        let low = *self.grid.get(cell)? as usize;
        let high = match self.grid.get(cell + 1) {
            Some(next) => *next as usize + 1,
            None => self.starts.len(),
        };
        let among = self.starts.get(low..high)?;
        let chunk = (low + among.partition_point(|start| *start <= place)).checked_sub(1)?;
        let start = *self.starts.get(chunk)?;
        let is_inside = chunk + 1 < self.starts.len() && place >= start;
        is_inside.then(|| (chunk as u32, (place - start) as usize * ALIGN_LEN))
    }
}

fn grid_of(starts: &[u32]) -> Vec<u32> {
    let last = starts.len() - 1;
    let cell_count = u64::from(starts[last]) * ALIGN_LEN as u64 / CELL_LEN + 1;
    let mut chunk = 0;
    (0..cell_count)
        .map(|cell| {
            let from = cell * CELL_LEN / ALIGN_LEN as u64;
            while chunk + 1 < last && u64::from(starts[chunk + 1]) <= from {
                chunk += 1;
            }
            chunk as u32
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decoded(starts: &[u32]) -> Result<Chunks, Damage> {
        Chunks::decode(&Chunks::encode(starts), 0)
    }

    #[test]
    fn chunks_begin_behind_the_header_and_ascend() {
        assert_eq!(decoded(&[8, 20, 40]).unwrap().data_end(), 320);
        for bad in [
            &[8][..],
            &[9, 20],
            &[8, 20, 20],
            &[8, 20, 19],
            &[8, 9],
            &[8, u32::MAX],
        ] {
            assert!(decoded(bad).is_err(), "{bad:?}");
        }
        assert!(Chunks::decode(&[0; 9], 0).is_err());
        assert!(Chunks::decode(&[], 0).is_err());
    }

    proptest! {
        #[test]
        fn every_place_is_located_in_its_chunk(lens in proptest::collection::vec(7u32..9_000, 1..40)) {
            let mut starts = vec![8];
            starts.extend(lens.iter().scan(8, |at, len| { *at += len; Some(*at) }));
            let chunks = decoded(&starts).unwrap();
            let end = starts[starts.len() - 1];
            for place in (0..end + 9).step_by(101).chain(starts.iter().copied()) {
                let expected = (0..chunks.count())
                    .find(|n| chunks.range(*n).unwrap().contains(&(u64::from(place) * 8)))
                    .map(|n| (n, (place - starts[n as usize]) as usize * 8));
                prop_assert_eq!(chunks.locate(place), expected);
            }
            prop_assert_eq!(chunks.locate(u32::MAX), None);
        }
    }
}
