//! Matrix products of f32 slices, through the `gemm` crate.
//!
//! Strides stand for transposition, so nothing is ever copied to be transposed. The one
//! place here with `unsafe`: gemm takes pointers, and [`matmul`] checks every view first.

use rayon::prelude::*;

/// A matrix within a slice: element (i, j) is `values[i * row_stride + j * column_stride]`.
#[derive(Clone, Copy)]
pub(crate) struct View<'a> {
    pub values: &'a [f32],
    pub row_stride: usize,
    pub column_stride: usize,
}

impl<'a> View<'a> {
    /// Rows of `stride` elements each, of which the first count as columns.
    pub(crate) fn rows(values: &'a [f32], stride: usize) -> Self {
        Self { values, row_stride: stride, column_stride: 1 }
    }

    /// The same elements with the axes exchanged.
    pub(crate) fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.values.len()
    }
}

/// What happens to the values that were there.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Output {
    Replace,
    Add,
}

/// The extent of a product: `(rows, inner) · (inner, columns) -> (rows, columns)`.
#[derive(Clone, Copy)]
pub(crate) struct Extent {
    pub rows: usize,
    pub columns: usize,
    pub inner: usize,
}

/// out = scale · a b, or out += scale · a b, on this thread. Rows of `out` lie `out_stride` apart.
///
/// # Panics
/// If a view or `out` is too short for the extent.
pub(crate) fn matmul(
    out: &mut [f32],
    out_stride: usize,
    output: Output,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
    Extent { rows, columns, inner }: Extent,
) {
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(columns <= out_stride || rows == 1, "rows of a product must not overlap");
    assert!((rows - 1) * out_stride + columns <= out.len(), "the product needs room");
    assert!(inner > 0 && a.holds(rows, inner), "the left matrix is as large as its extent");
    assert!(b.holds(inner, columns), "the right matrix is as large as its extent");
    // SAFETY: the assertions above bound every element read and written, and `out` is
    // borrowed mutably, so it overlaps neither input.
    #[expect(unsafe_code, reason = "gemm takes pointers")]
    unsafe {
        gemm::gemm(
            rows,
            columns,
            inner,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            output == Output::Add,
            a.values.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.values.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            scale,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// The same over all threads where the product is large, in chunks of rows that depend on
/// the extent alone. Rows of `out` are contiguous.
pub(crate) fn parallel_matmul(
    out: &mut [f32],
    output: Output,
    scale: f32,
    a: View<'_>,
    b: View<'_>,
    Extent { rows, columns, inner }: Extent,
) {
    let chunk = rows.div_ceil(CHUNKS).next_multiple_of(CHUNK_ROWS);
    if rows * columns * inner < PARALLEL_PRODUCTS || chunk >= rows {
        return matmul(out, columns, output, scale, a, b, Extent { rows, columns, inner });
    }
    out[..rows * columns].par_chunks_mut(chunk * columns).enumerate().for_each(|(index, out)| {
        let first = index * chunk;
        let a = View { values: &a.values[first * a.row_stride..], ..a };
        let rows = out.len() / columns;
        matmul(out, columns, output, scale, a, b, Extent { rows, columns, inner });
    });
}

/// Multiplications below which one thread is faster.
const PARALLEL_PRODUCTS: usize = 1 << 20;

/// At most this many chunks: each packs the right matrix anew.
const CHUNKS: usize = 8;

/// Chunks are whole numbers of gemm's tiles.
const CHUNK_ROWS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strides_stand_for_transposition() {
        let a: Vec<f32> = (0..6).map(|i| i as f32).collect(); // (2, 3)
        let mut out = vec![1.0; 4];
        let extent = Extent { rows: 2, columns: 2, inner: 3 };
        let view = View::rows(&a, 3);
        matmul(&mut out, 2, Output::Add, 2.0, view, view.transposed(), extent);
        assert_eq!(out, [11.0, 29.0, 29.0, 101.0]);
    }

    #[test]
    fn chunks_of_rows_give_what_the_whole_gives() {
        let (rows, columns, inner) = (1283, 37, 65);
        let a: Vec<f32> = (0..rows * inner).map(|i| (i % 17) as f32 - 8.0).collect();
        let b: Vec<f32> = (0..inner * columns).map(|i| (i % 13) as f32 - 6.0).collect();
        let (mut whole, mut chunked) = (vec![0.0; rows * columns], vec![0.0; rows * columns]);
        let extent = Extent { rows, columns, inner };
        let (a, b) = (View::rows(&a, inner), View::rows(&b, columns));
        matmul(&mut whole, columns, Output::Replace, 1.0, a, b, extent);
        parallel_matmul(&mut chunked, Output::Replace, 1.0, a, b, extent);
        assert_eq!(whole, chunked);
    }
}
