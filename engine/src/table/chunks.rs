//! The chunk section: where every chunk begins, and how its records have their versions.
//!
//! A row of 16 bytes per chunk:
//!
//! | Offset | Size | Field       | Meaning                                                        |
//! |-------:|-----:|-------------|----------------------------------------------------------------|
//! |      0 |    7 | start       | Where it begins in the file. They ascend.                      |
//! |      7 |    1 | version_len | As in its header.                                              |
//! |      8 |    8 | version_min | As in its header.                                              |
//!
//! Then 8 bytes: where the last chunk ends. The first chunk begins behind the file's header, and each
//! ends where the next begins. The versions stand here as well so that a lookup that knows the place of a
//! record fetches no line of memory but those of the record.

use strandline_wal::Hlc;

use super::chunk::{CHUNK_LEN_MAX, CHUNK_LEN_MIN};
use super::damage::Damage;
use super::header::HEADER_LEN;
use super::layout::Field;
use super::record::Versions;

const ROW_LEN: usize = 16;

const START: Field = Field::first(7);
const VERSION_LEN: Field = START.then(1);
const VERSION_MIN: Field = VERSION_LEN.then(8);

const _: () = assert!(VERSION_MIN.end() == ROW_LEN);

/// Where the last chunk ends at most. No disk holds a file of that length.
pub(super) const PLACE_MAX: u64 = (1 << (8 * START.len)) - 1;

/// Bytes of the file that one cell of the grid stands for. About the length of a chunk, so that a
/// cell has about one chunk.
const CELL_LEN: u64 = 32 << 10;

/// A chunk: where it begins, and how its versions are written.
pub(super) type Start = (u64, Versions);

/// Where the chunks of a table are.
#[derive(Debug)]
pub(super) struct Chunks {
    /// Invariant: ascending, at least one.
    starts: Vec<Start>,
    /// Where the last one ends.
    end: u64,
    /// Per cell the last chunk that begins at or before it. Derived; turns a place into its chunk
    /// without a search over all of them.
    grid: Vec<u32>,
}

impl Chunks {
    /// The bytes of the section.
    pub fn encode(starts: &[Start], end: u64) -> Vec<u8> {
        assert!(end <= PLACE_MAX, "a file of 64 PiB");
        let mut bytes = Vec::with_capacity(starts.len() * ROW_LEN + 8);
        for (start, versions) in starts {
            let mut row = [0; ROW_LEN];
            START.put(&mut row, &start.to_le_bytes()[..START.len]);
            VERSION_LEN.put(&mut row, &[versions.len]);
            VERSION_MIN.put(&mut row, &versions.min.0.to_le_bytes());
            bytes.extend_from_slice(&row);
        }
        bytes.extend_from_slice(&end.to_le_bytes());
        bytes
    }

    /// Reads the section, which stands at `at`, behind all chunks. Its checksum has been compared.
    pub fn decode(bytes: &[u8], at: u64) -> Result<Chunks, Damage> {
        let (rows, rest) = bytes.as_chunks::<ROW_LEN>();
        let end = rest.try_into().map(u64::from_le_bytes);
        let (Ok(end @ ..=PLACE_MAX), false) = (end, rows.is_empty()) else {
            let expected = "rows of 16 bytes, and a place";
            let found = format!("{} bytes", bytes.len());
            return Err(Damage::new(at, "chunk section", expected, found));
        };
        let mut starts = Vec::with_capacity(rows.len());
        for (row, at) in rows.iter().zip((at..).step_by(ROW_LEN)) {
            let len = VERSION_LEN.u8(row);
            let versions = Versions::of(Hlc(VERSION_MIN.u64(row)), len).ok_or_else(|| {
                let at = at + VERSION_LEN.at as u64;
                Damage::new(at, "length of versions", "1 to 8", len)
            })?;
            let mut start = [0; 8];
            start[..START.len].copy_from_slice(START.of(row));
            starts.push((u64::from_le_bytes(start), versions));
        }
        if starts[0].0 != HEADER_LEN as u64 {
            let found = starts[0].0;
            return Err(Damage::new(
                at,
                "start of the first chunk",
                HEADER_LEN,
                found,
            ));
        }
        let ends = starts[1..].iter().map(|(start, _)| *start).chain([end]);
        for (index, ((start, _), end)) in starts.iter().zip(ends).enumerate() {
            let is_len = |len: &u64| (CHUNK_LEN_MIN as u64..=CHUNK_LEN_MAX as u64).contains(len);
            if end.checked_sub(*start).filter(is_len).is_none() {
                let at = at + (ROW_LEN * (index + 1)) as u64;
                let expected = format!("{CHUNK_LEN_MIN} to {CHUNK_LEN_MAX} bytes");
                let found = format!("{start} to {end}");
                return Err(Damage::new(at, "length of a chunk", expected, found));
            }
        }
        // Before anything is as large as it says.
        if end > at {
            let expected = format!("at most {at}");
            return Err(Damage::new(at, "end of the chunks", expected, end));
        }
        let grid = grid_of(&starts, end);
        Ok(Chunks { starts, end, grid })
    }

    /// How many chunks there are. Never 0.
    pub fn count(&self) -> u32 {
        self.starts.len() as u32
    }

    /// Where the chunk lies in the file, or `None` where there is no such chunk.
    pub fn range(&self, chunk: u32) -> Option<std::ops::Range<u64>> {
        let (start, _) = self.starts.get(chunk as usize)?;
        let next = self.starts.get(chunk as usize + 1);
        Some(*start..next.map_or(self.end, |(next, _)| *next))
    }

    /// How the records of a chunk have their versions.
    pub fn versions(&self, chunk: u32) -> Option<&Versions> {
        Some(&self.starts.get(chunk as usize)?.1)
    }

    /// Where the last chunk ends.
    pub fn data_end(&self) -> u64 {
        self.end
    }

    /// The chunk that a place lies in, the offset in it, and how its versions are written.
    pub fn locate(&self, place: u64) -> Option<(u32, usize, &Versions)> {
        let cell = usize::try_from(place / CELL_LEN).ok()?;
        let low = *self.grid.get(cell)? as usize;
        let high = match self.grid.get(cell + 1) {
            Some(next) => *next as usize + 1,
            None => self.starts.len(),
        };
        let among = self.starts.get(low..high)?;
        let is_before = |(start, _): &Start| *start <= place;
        let chunk = (low + among.partition_point(is_before)).checked_sub(1)?;
        let (start, versions) = self.starts.get(chunk)?;
        let is_inside = place < self.end && place >= *start;
        is_inside.then(|| (chunk as u32, (place - start) as usize, versions))
    }
}

fn grid_of(starts: &[Start], end: u64) -> Vec<u32> {
    let mut chunk = 0;
    (0..=end / CELL_LEN)
        .map(|cell| {
            let begins_before = |(start, _): &Start| *start <= cell * CELL_LEN;
            while starts.get(chunk + 1).is_some_and(begins_before) {
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

    /// Where the section stands.
    const AT: u64 = 1 << 50;

    #[test]
    fn the_byte_table_is_what_the_code_does() {
        super::super::layout::check_byte_table(
            include_str!("chunks.rs"),
            0,
            &[
                ("start", START),
                ("version_len", VERSION_LEN),
                ("version_min", VERSION_MIN),
            ],
        );
    }

    /// Chunks that begin, but for the last number, which is the end.
    fn decoded(places: &[u64]) -> Result<Chunks, Damage> {
        let (end, starts) = places.split_last().unwrap();
        let versions = |start: &u64| Versions::of(Hlc(*start), 1 + (*start % 8) as u8).unwrap();
        let starts: Vec<Start> = starts
            .iter()
            .map(|start| (*start, versions(start)))
            .collect();
        Chunks::decode(&Chunks::encode(&starts, *end), AT)
    }

    #[test]
    fn chunks_begin_behind_the_header_and_ascend() {
        assert_eq!(decoded(&[64, 160, 320]).unwrap().data_end(), 320);
        for bad in [
            &[64][..],
            &[65, 160],
            &[64, 160, 160],
            &[64, 160, 159],
            &[64, 72],
            &[64, PLACE_MAX],
        ] {
            assert!(decoded(bad).is_err(), "{bad:?}");
        }
        // A file that is shorter than what it says of its chunks.
        let far: Vec<u64> = (0..=1_000).map(|n| 64 + n * CHUNK_LEN_MAX as u64).collect();
        assert!(decoded(&far).is_ok());
        let (end, starts) = far.split_last().unwrap();
        let versions = Versions::of(Hlc(1), 1).unwrap();
        let starts: Vec<Start> = starts.iter().map(|start| (*start, versions)).collect();
        let damage = Chunks::decode(&Chunks::encode(&starts, *end), 16_064).unwrap_err();
        assert_eq!((damage.at, damage.what), (16_064, "end of the chunks"));
        assert!(Chunks::decode(&[0; 25], 0).is_err());
        assert!(Chunks::decode(&[0xff; 24], 0).is_err());
        assert!(Chunks::decode(&[0; 8], 0).is_err());
        assert!(Chunks::decode(&[], AT).is_err());
        let mut bytes = Chunks::encode(&[(64, Versions::of(Hlc(1), 8).unwrap())], 160);
        assert!(Chunks::decode(&bytes, AT).is_ok());
        bytes[VERSION_LEN.at] = 9;
        let damage = Chunks::decode(&bytes, AT).unwrap_err();
        assert_eq!((damage.at, damage.what), (AT + 7, "length of versions"));
    }

    proptest! {
        #[test]
        fn every_place_is_located_in_its_chunk(lens in proptest::collection::vec(60u64..72_000, 1..40)) {
            let mut starts = vec![64];
            starts.extend(lens.iter().scan(64, |at, len| { *at += len; Some(*at) }));
            let chunks = decoded(&starts).unwrap();
            let end = starts[starts.len() - 1];
            for place in (0..end + 9).step_by(809).chain(starts.iter().copied()) {
                let expected = (0..chunks.count())
                    .find(|n| chunks.range(*n).unwrap().contains(&place))
                    .map(|n| {
                        let at = (place - starts[n as usize]) as usize;
                        (n, at, chunks.versions(n).unwrap())
                    });
                prop_assert_eq!(chunks.locate(place), expected);
            }
            prop_assert_eq!(chunks.locate(u64::MAX), None);
        }
    }
}
