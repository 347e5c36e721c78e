//! What the kernel of products is told: a block of rows over one panel, what follows the sums of its rows, and what is fetched
//! meanwhile. Knows nothing about tiles.

/// A block of rows of a product, over one panel.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    pub(crate) rows: usize,
    pub(crate) k: usize,
    /// The panel's first output.
    pub(crate) first_column: usize,
    /// The panel's padded width, a multiple of `LANE` and at most `PANEL`.
    pub(crate) width: usize,
    /// Its outputs, more than `width - LANE`.
    pub(crate) columns: usize,
    /// `[rows, k]`, contiguous.
    pub(crate) x: *const f32,
    /// The panel of W, `[k, width]`.
    pub(crate) w: *const f32,
    /// `[rows, columns]` with rows `y_stride` apart.
    pub(crate) y: *mut f32,
    pub(crate) y_stride: usize,
    /// Added in the end, of all rows of the product, with rows as far apart as those of y; or null.
    pub(crate) residual: *const f32,
    /// The block's first row, as rows are counted in `finishes` and in the residual.
    pub(crate) first_row: usize,
    /// What follows the sums of each row, in the order of the rows; they cover those of the block.
    pub(crate) finishes: &'a [Finish],
    /// What is read after the block, and is fetched into the second-level cache meanwhile, by each tile its share.
    pub(crate) ahead: &'a [Fetch],
}

impl Block<'_> {
    /// The residual of a row of the block and a column of the panel; nowhere, if there is none.
    #[inline(always)]
    pub(super) fn residual_at(&self, row: usize, column: usize) -> *const f32 {
        self.residual.wrapping_add((self.first_row + row) * self.y_stride + self.first_column + column)
    }
}

/// What follows the sums `x W^T` of neighbouring rows, for all outputs: `gain * (sums + h B^T) + bias + shift`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Finish {
    /// The first row, and one past the last.
    pub(crate) first: usize,
    pub(crate) end: usize,
    pub(crate) rank: usize,
    /// `[end - first, rank]`, contiguous.
    pub(crate) h: *const f32,
    /// Panels of `b_rows` rows each, of which the last `rank` are those of B.
    pub(crate) b: *const f32,
    pub(crate) b_rows: usize,
    /// Null, or the gain of output j is at `j * gain_stride`, if j is a panel's first; those of the panel follow.
    pub(crate) gain: *const f32,
    pub(crate) gain_stride: usize,
    /// `[out]` or null.
    pub(crate) bias: *const f32,
    /// `[out]` or null.
    pub(crate) shift: *const f32,
}

impl Finish {
    /// B's panel.
    #[inline(always)]
    pub(super) fn panel(&self, block: &Block<'_>) -> *const f32 {
        self.b.wrapping_add(block.first_column * self.b_rows + (self.b_rows - self.rank) * block.width)
    }

    /// Nothing follows the sums of so many rows.
    pub(crate) const fn nothing(rows: usize) -> Finish {
        let none = std::ptr::null();
        Finish {
            first: 0,
            end: rows,
            rank: 0,
            h: none,
            b: none,
            b_rows: 0,
            gain: none,
            gain_stride: 1,
            bias: none,
            shift: none,
        }
    }
}

/// Floats that lie side by side and are read soon.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fetch {
    pub(crate) from: *const f32,
    pub(crate) floats: usize,
}

impl Fetch {
    pub(crate) const NOTHING: Fetch = Fetch { from: std::ptr::null(), floats: 0 };

    /// Part `index` of so many equal ones.
    #[inline(always)]
    pub(super) fn part(self, index: usize, parts: usize) -> Fetch {
        let [begin, end] = [index, index + 1].map(|part| self.floats * part / parts);
        Fetch { from: self.from.wrapping_add(begin), floats: end - begin }
    }
}
