//! Rows in rounds. While one is computed, what the adapters of the next read first is fetched and used, so rounds are short
//! where adapters are large. Knows nothing about what an adapter is, and nothing about threads.

use std::ops::Range;

/// How many bytes the adapters of a round's rows take for a panel of outputs at most. Together with the rows' x and two
/// panels of W, they then stay in a second-level cache of 1 MiB.
const PANEL_BYTES: usize = 384 << 10;
/// Tiles of a round at least, which share the reading of W. Adapters so large that fewer would fit hide nothing in time.
const TILES: usize = 4;

/// Rounds of about as many rows each, all but the last of whole tiles.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounds {
    rows: usize,
    tile_rows: usize,
    count: usize,
}

impl Rounds {
    /// Rounds of so many rows in tiles, whose adapters take so many bytes for each panel; one, where nothing is gained by more.
    pub(super) fn new(rows: usize, tile_rows: usize, panel_bytes: usize) -> Rounds {
        let (count, tiles) = (panel_bytes.div_ceil(PANEL_BYTES), rows.div_ceil(tile_rows));
        let count = if count <= tiles / TILES { count.max(1) } else { 1 };
        Rounds { rows, tile_rows, count }
    }

    /// How many rounds there are.
    pub(super) fn count(self) -> usize {
        self.count
    }

    /// The rows of a round; none of them, if it comes after the last.
    pub(super) fn rows(self, index: usize) -> Range<usize> {
        let tiles = self.rows.div_ceil(self.tile_rows);
        let first = |index: usize| self.rows.min(index.min(self.count) * tiles / self.count * self.tile_rows);
        first(index)..first(index + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::{PANEL_BYTES, Rounds};

    #[test]
    fn rounds_share_the_rows_in_whole_tiles() {
        for (rows, panel_bytes, ends) in [
            (0, 0, &[0][..]),
            (5, 9 * PANEL_BYTES, &[5]),
            (128, 0, &[128]),
            (128, PANEL_BYTES, &[128]),
            (128, PANEL_BYTES + 1, &[64, 128]),
            (130, 3 * PANEL_BYTES, &[40, 88, 130]),
            (64, 2 * PANEL_BYTES, &[32, 64]),
            (64, 2 * PANEL_BYTES + 1, &[64]),
        ] {
            let rounds = Rounds::new(rows, 8, panel_bytes);
            let mut first = 0;
            for (round, &end) in ends.iter().enumerate() {
                assert_eq!(rounds.rows(round), first..end, "{rows} rows, {panel_bytes} bytes");
                first = end;
            }
            assert_eq!(rounds.count(), ends.len());
            assert!(rounds.rows(rounds.count()).is_empty());
        }
    }
}
