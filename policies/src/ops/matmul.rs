//! Matrix products of f32 slices, on one thread or over all of them.
//!
//! Strides stand for transposition, so the left matrix is never copied. The right one is read as
//! rows, or as [`Panels`]: 32 columns side by side, made once from a matrix stored transposed, as
//! every weight is for its forward product.
//!
//! Sums run over the inner index in order, in stretches of fixed length: a row of the result
//! depends on its own row and the right matrix, not on how many rows there are or who computes
//! them (see [`super::kernel`]).

use std::marker::PhantomData;
use std::ops::Range;

use multiversion::multiversion;
use rayon::prelude::*;

use super::kernel::{self, COLUMNS, Product, ROWS};
use super::lanes::PARALLEL_ELEMENTS;

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

    /// Without the first rows.
    pub(crate) fn skip_rows(self, row: usize) -> Self {
        Self { values: &self.values[row * self.row_stride..], ..self }
    }

    fn holds(&self, rows: usize, columns: usize) -> bool {
        (rows - 1) * self.row_stride + (columns - 1) * self.column_stride < self.values.len()
    }
}

/// The right matrix of a product, `(inner, columns)`.
#[derive(Clone, Copy)]
pub(crate) enum Right<'a> {
    /// Rows in a slice, this far apart.
    Rows(&'a [f32], usize),
    /// Panels of 32 columns.
    Panels(PanelsView<'a>),
}

impl Right<'_> {
    /// Some of the columns; the first must begin a panel.
    fn columns(self, columns: Range<usize>) -> Self {
        match self {
            Self::Rows(values, stride) => Self::Rows(&values[columns.start..], stride),
            Self::Panels(PanelsView { inner, values, .. }) => {
                let panel = inner * COLUMNS;
                let values = &values[columns.start / COLUMNS * panel..];
                Self::Panels(PanelsView { inner, columns: columns.len(), values })
            }
        }
    }
}

/// Some consecutive panels.
#[derive(Clone, Copy)]
pub(crate) struct PanelsView<'a> {
    inner: usize,
    columns: usize,
    values: &'a [f32],
}

/// A matrix `(inner, columns)` as panels of 32 columns: element (p, j) of panel j / 32 is
/// `values[(j / 32 * inner + p) * 32 + j % 32]`. The last panel is filled up with zeros.
#[derive(Clone, Debug, Default)]
pub(crate) struct Panels {
    inner: usize,
    columns: usize,
    values: Vec<f32>,
}

impl Panels {
    /// Of a weight `(columns, inner)`, that is stored transposed; reuses the memory held.
    pub(crate) fn pack(&mut self, weight: &[f32], columns: usize, inner: usize) {
        assert_eq!(weight.len(), columns * inner, "a weight is as large as its shape");
        (self.inner, self.columns) = (inner, columns);
        let panel = inner * COLUMNS;
        self.values.resize(columns.div_ceil(COLUMNS) * panel, 0.0);
        let pack_panel = |(panel, rows): (&mut [f32], &[f32])| transpose(rows, inner, panel);
        let panel = panel.max(1);
        if weight.len() < PARALLEL_ELEMENTS {
            self.values.chunks_mut(panel).zip(weight.chunks(panel)).for_each(pack_panel);
        } else {
            self.values.par_chunks_mut(panel).zip(weight.par_chunks(panel)).for_each(pack_panel);
        }
    }

    /// Lays out a matrix `(inner, columns)` as it is stored, for products that many rows share;
    /// reuses the memory held.
    pub(crate) fn pack_rows(&mut self, matrix: &[f32], inner: usize, columns: usize) {
        assert_eq!(matrix.len(), columns * inner, "a matrix is as large as its shape");
        (self.inner, self.columns) = (inner, columns);
        let panel = inner * COLUMNS;
        self.values.resize(columns.div_ceil(COLUMNS) * panel, 0.0);
        let pack_panel = |(index, panel): (usize, &mut [f32])| {
            let first = index * COLUMNS;
            gather_rows(&matrix[first..], columns, COLUMNS.min(columns - first), panel);
        };
        if matrix.len() < PARALLEL_ELEMENTS {
            self.values.chunks_mut(panel.max(1)).enumerate().for_each(pack_panel);
        } else {
            self.values.par_chunks_mut(panel).enumerate().for_each(pack_panel);
        }
    }

    /// All of them, as the right matrix of a product.
    pub(crate) fn right(&self) -> Right<'_> {
        Right::Panels(PanelsView { inner: self.inner, columns: self.columns, values: &self.values })
    }
}

/// At most 32 rows of `inner` values -> one panel `(inner, 32)`, absent rows as zeros.
pub(crate) fn transpose(rows: &[f32], inner: usize, panel: &mut [f32]) {
    /// Values of each row moved at once: as many cache lines as the nearest cache holds.
    const BLOCK: usize = 64;
    let held = rows.len() / inner;
    for first in (0..inner).step_by(BLOCK) {
        let last = (first + BLOCK).min(inner);
        if held < COLUMNS {
            panel[first * COLUMNS..last * COLUMNS].fill(0.0);
        }
        for (j, row) in rows.chunks_exact(inner).enumerate() {
            let out = panel[first * COLUMNS..last * COLUMNS].iter_mut().skip(j).step_by(COLUMNS);
            for (out, value) in out.zip(&row[first..last]) {
                *out = *value;
            }
        }
    }
}

/// Where a product goes: rows of `columns` elements, `stride` apart.
///
/// Made of a slice, or one of several blocks of columns that different threads may write.
pub(crate) struct Out<'a> {
    values: *mut f32,
    rows: usize,
    columns: usize,
    stride: usize,
    held: PhantomData<&'a mut [f32]>,
}

#[expect(unsafe_code, reason = "a column block is a strided exclusive borrow")]
// SAFETY: an `Out` is an exclusive borrow of the elements in its rows and columns, no others.
unsafe impl Send for Out<'_> {}

impl<'a> Out<'a> {
    /// All rows of a slice.
    pub(crate) fn rows(values: &'a mut [f32], columns: usize) -> Self {
        assert!(columns > 0 && values.len().is_multiple_of(columns), "whole rows");
        let rows = values.len() / columns;
        Self { values: values.as_mut_ptr(), rows, columns, stride: columns, held: PhantomData }
    }

    /// Cut into blocks of at most `columns` columns, left to right.
    pub(crate) fn column_blocks(self, columns: usize) -> Vec<Self> {
        self.blocks(usize::MAX, columns)
    }

    /// Cut into blocks of at most `rows` rows and `columns` columns.
    fn blocks(self, rows: usize, columns: usize) -> Vec<Self> {
        let mut blocks = Vec::new();
        for row in (0..self.rows).step_by(rows) {
            for column in (0..self.columns).step_by(columns) {
                blocks.push(Self {
                    values: self.values.wrapping_add(row * self.stride + column),
                    rows: rows.min(self.rows - row),
                    columns: columns.min(self.columns - column),
                    ..self
                });
            }
        }
        blocks
    }

    /// Sets every row to `values`.
    fn set_rows(&mut self, values: &[f32]) {
        assert_eq!(values.len(), self.columns, "a row is as wide as the matrix");
        for row in 0..self.rows {
            // SAFETY: an `Out` is an exclusive borrow of its rows and columns.
            #[expect(unsafe_code, reason = "rows of a strided borrow")]
            unsafe {
                let row = self.values.wrapping_add(row * self.stride);
                std::ptr::copy_nonoverlapping(values.as_ptr(), row, self.columns);
            }
        }
    }

    /// A stretch of a single row, as `rows` rows of `columns`.
    pub(crate) fn regrouped(&mut self, start: usize, rows: usize, columns: usize) -> Out<'_> {
        assert!(self.rows == 1 && start + rows * columns <= self.columns, "a stretch of one row");
        let values = self.values.wrapping_add(start);
        Out { values, rows, columns, stride: columns, held: PhantomData }
    }

    /// Some of the rows and columns, borrowed for a while.
    pub(crate) fn part(&mut self, rows: Range<usize>, columns: Range<usize>) -> Out<'_> {
        assert!(rows.end <= self.rows && columns.end <= self.columns, "a part lies inside");
        Out {
            values: self.values.wrapping_add(rows.start * self.stride + columns.start),
            rows: rows.len(),
            columns: columns.len(),
            stride: self.stride,
            held: PhantomData,
        }
    }
}

/// What happens to the values that were there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Replace,
    Add,
}

/// Products summed before the result is put away: as many rows of a panel as stay close.
const STRETCH: usize = 512;

/// out = scale · a b, or out += scale · a b, on this thread. `out` gives rows and columns, `inner`
/// the columns of `a` and rows of `b`.
///
/// # Panics
/// If a matrix is too short for the extent.
pub(crate) fn matmul(
    out: &mut Out<'_>,
    output: Output,
    scale: f32,
    a: View<'_>,
    b: Right<'_>,
    inner: usize,
) {
    let Out { rows, columns, stride, .. } = *out;
    if rows == 0 || columns == 0 {
        return;
    }
    assert!(inner > 0 && a.holds(rows, inner), "the left matrix is as large as its extent");
    let (b_values, b_row, b_panel) = match b {
        Right::Rows(values, stride) => {
            assert!((inner - 1) * stride + columns <= values.len(), "the right matrix is whole");
            (values, stride, COLUMNS)
        }
        Right::Panels(panels) => {
            assert!(panels.inner == inner && panels.columns == columns, "panels of this extent");
            (panels.values, COLUMNS, inner * COLUMNS)
        }
    };
    let block = kernel::block();
    // Rows of b far apart, or of a side by side, are gathered where they are read many times:
    // a stretch of them then lies in the nearest caches instead of on as many pages.
    let gathers = rows >= GATHERED_ROWS && inner >= GATHERED_ROWS;
    let gathers_b = gathers && b_row > COLUMNS;
    let gathers_a = gathers && a.row_stride == 1;
    let mut gathered = Gathered::default();
    for start in (0..inner).step_by(STRETCH) {
        let length = STRETCH.min(inner - start);
        if gathers_a {
            gathered.gather_a(&a.values[start * a.column_stride..], a.column_stride, rows, length);
        }
        for column in (0..columns).step_by(COLUMNS) {
            let width = COLUMNS.min(columns - column);
            let from = &b_values[column / COLUMNS * b_panel + start * b_row..];
            let (b, b_row) = if gathers_b {
                gathered.gather_b(from, b_row, width, length);
                (gathered.b.as_ptr(), COLUMNS)
            } else {
                (from.as_ptr(), b_row)
            };
            for row in (0..rows).step_by(ROWS) {
                let (a, a_row, a_column) = if gathers_a {
                    (gathered.a[row * length..].as_ptr(), 1, ROWS)
                } else {
                    let values = &a.values[row * a.row_stride + start * a.column_stride..];
                    (values.as_ptr(), a.row_stride, a.column_stride)
                };
                let product = Product {
                    inner: length,
                    a,
                    a_row,
                    a_column,
                    b,
                    b_row,
                    out: out.values.wrapping_add(row * stride + column),
                    out_row: stride,
                    columns: width,
                    scale,
                    add: output == Output::Add || start > 0,
                };
                // SAFETY: the assertions above bound every element of a and b, and what is
                // gathered of them has the same extent; `out` is an exclusive borrow of its rows
                // and columns, so it overlaps neither.
                #[expect(unsafe_code, reason = "the kernel takes pointers")]
                unsafe {
                    block(ROWS.min(rows - row), &product);
                }
            }
        }
    }
}

/// Rows from which on gathering costs little beside the products.
const GATHERED_ROWS: usize = 4 * ROWS;

/// Parts of the operands side by side.
#[derive(Default)]
struct Gathered {
    /// `(length, 12)` for each block of rows.
    a: Vec<f32>,
    /// `(length, 32)`
    b: Vec<f32>,
}

impl Gathered {
    fn gather_a(&mut self, a: &[f32], stride: usize, rows: usize, length: usize) {
        self.a.resize(rows.next_multiple_of(ROWS) * length, 0.0);
        for (block, out) in self.a.chunks_exact_mut(ROWS * length).enumerate() {
            let row = block * ROWS;
            gather_columns(&a[row..], stride, ROWS.min(rows - row), out);
        }
    }

    fn gather_b(&mut self, b: &[f32], stride: usize, columns: usize, length: usize) {
        self.b.resize(COLUMNS * length, 0.0);
        gather_rows(b, stride, columns, &mut self.b);
    }
}

/// The first `width` values of rows `stride` apart, as rows of 12.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn gather_columns(from: &[f32], stride: usize, width: usize, out: &mut [f32]) {
    for (p, out) in out.chunks_exact_mut(ROWS).enumerate() {
        let from = &from[p * stride..][..width];
        match from.first_chunk::<ROWS>() {
            Some(whole) => *out.first_chunk_mut().expect("a chunk of that size") = *whole,
            None => out[..width].copy_from_slice(from),
        }
    }
}

/// The first `width` values of rows `stride` apart, as rows of 32; what is beyond them is zero.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn gather_rows(from: &[f32], stride: usize, width: usize, out: &mut [f32]) {
    for (p, out) in out.chunks_exact_mut(COLUMNS).enumerate() {
        let from = &from[p * stride..][..width];
        match from.first_chunk::<COLUMNS>() {
            Some(whole) => *out.first_chunk_mut().expect("a chunk of that size") = *whole,
            None => {
                out[..width].copy_from_slice(from);
                out[width..].fill(0.0);
            }
        }
    }
}

/// One product to compute.
pub(crate) struct Job<'a> {
    pub out: Out<'a>,
    pub output: Output,
    pub scale: f32,
    pub a: View<'a>,
    pub b: Right<'a>,
    pub inner: usize,
    /// Added to every row; [`Output::Replace`] then.
    pub bias: Option<&'a [f32]>,
}

impl<'a> Job<'a> {
    /// out = a b.
    pub(crate) fn new(out: Out<'a>, a: View<'a>, b: Right<'a>, inner: usize) -> Self {
        Self { out, output: Output::Replace, scale: 1.0, a, b, inner, bias: None }
    }

    fn work(&self) -> usize {
        self.out.rows * self.out.columns * self.inner
    }

    fn run(mut self) {
        if let Some(bias) = self.bias {
            self.out.set_rows(bias);
            self.output = Output::Add;
        }
        matmul(&mut self.out, self.output, self.scale, self.a, self.b, self.inner);
    }

    /// Cut into blocks of rows and columns, about `parts` of them.
    fn split(self, parts: usize) -> impl Iterator<Item = Self> {
        let Self { output, scale, a, b, inner, bias, .. } = self;
        let row_blocks = self.out.rows.div_ceil(ROWS_PER_TASK);
        let column_blocks = parts.div_ceil(row_blocks).clamp(1, self.out.columns.div_ceil(COLUMNS));
        let columns = self.out.columns.div_ceil(column_blocks).next_multiple_of(COLUMNS);
        let across = self.out.columns.div_ceil(columns);
        let blocks = self.out.blocks(ROWS_PER_TASK, columns);
        blocks.into_iter().enumerate().map(move |(index, out)| {
            let (row, column) = (index / across * ROWS_PER_TASK, index % across * columns);
            let taken = column..column + out.columns;
            Self {
                a: a.skip_rows(row),
                b: b.columns(taken.clone()),
                bias: bias.map(|bias| &bias[taken]),
                ..Self { out, output, scale, a, b, inner, bias }
            }
        })
    }
}

/// Computes products that do not depend on each other, over all threads where they are large.
/// Neither the cut nor the threads change a bit of the result.
pub(crate) fn matmuls(jobs: Vec<Job<'_>>) {
    let work: usize = jobs.iter().map(Job::work).sum();
    if work < PARALLEL_PRODUCTS {
        jobs.into_iter().for_each(Job::run);
        return;
    }
    let parts = PARTS_PER_THREAD * rayon::current_num_threads();
    let tasks: Vec<_> = jobs
        .into_iter()
        .flat_map(|job| {
            let share = job.work() * parts / work;
            job.split(share.max(1))
        })
        .collect();
    tasks.into_par_iter().with_max_len(1).for_each(Job::run);
}

/// Multiplications below which one thread is faster.
const PARALLEL_PRODUCTS: usize = 1 << 20;

/// Rows a task takes at most: a whole number of blocks.
const ROWS_PER_TASK: usize = 8 * ROWS;

/// Tasks for each thread, so that one that is late can be helped.
const PARTS_PER_THREAD: usize = 6;

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that add up without rounding.
    fn whole_numbers(count: usize, modulus: usize) -> Vec<f32> {
        (0..count).map(|i| (i * 7 % modulus) as f32 - (modulus / 2) as f32).collect()
    }

    fn naive(a: View<'_>, b: &[f32], rows: usize, columns: usize, inner: usize) -> Vec<f32> {
        let mut out = vec![0.0; rows * columns];
        for i in 0..rows {
            for j in 0..columns {
                for p in 0..inner {
                    out[i * columns + j] +=
                        a.values[i * a.row_stride + p * a.column_stride] * b[p * columns + j];
                }
            }
        }
        out
    }

    #[test]
    fn every_extent_and_layout_gives_the_product() {
        for (rows, columns, inner) in
            [(1, 1, 1), (2, 33, 3), (13, 16, 65), (12, 31, 513), (47, 97, 40), (25, 64, 1200)]
        {
            let a = whole_numbers(rows * inner, 17);
            let b = whole_numbers(inner * columns, 13); // (inner, columns)
            let weight: Vec<f32> =
                (0..columns * inner).map(|i| b[i % inner * columns + i / inner]).collect(); // (columns, inner)
            let mut panels = Panels::default();
            panels.pack(&weight, columns, inner);
            let a_transposed: Vec<f32> =
                (0..rows * inner).map(|i| a[i % rows * inner + i / rows]).collect();
            let expected = naive(View::rows(&a, inner), &b, rows, columns, inner);
            let lefts = [View::rows(&a, inner), View::rows(&a_transposed, rows).transposed()];
            for left in lefts {
                for right in [Right::Rows(&b, columns), panels.right()] {
                    let mut out = vec![1.0; rows * columns];
                    let mut view = Out::rows(&mut out, columns);
                    matmul(&mut view, Output::Replace, 1.0, left, right, inner);
                    assert_eq!(out, expected, "{rows} {columns} {inner}");
                    matmul(
                        &mut Out::rows(&mut out, columns),
                        Output::Add,
                        -1.0,
                        left,
                        right,
                        inner,
                    );
                    assert!(out.iter().all(|it| *it == 0.0));
                    let bias = vec![3.0; columns];
                    let job = Job::new(Out::rows(&mut out, columns), left, right, inner);
                    job.split(5).for_each(|part| {
                        Job { bias: Some(&bias[..part.out.columns]), ..part }.run();
                    });
                    assert!(
                        out.iter().zip(&expected).all(|(found, expected)| *found == expected + 3.0)
                    );
                }
            }
        }
    }

    /// The promise sampling rests on, with values whose sums do round.
    #[test]
    fn a_row_does_not_depend_on_the_rows_beside_it() {
        let (rows, columns, inner) = (29, 50, 700);
        let a: Vec<f32> = (0..rows * inner).map(|i| (i as f32 * 0.37).sin()).collect();
        let weight: Vec<f32> = (0..columns * inner).map(|i| (i as f32 * 0.73).cos()).collect();
        let mut panels = Panels::default();
        panels.pack(&weight, columns, inner);
        let product = |a: &[f32]| {
            let mut out = vec![0.0; a.len() / inner * columns];
            let job =
                Job::new(Out::rows(&mut out, columns), View::rows(a, inner), panels.right(), inner);
            matmuls(vec![job]);
            out
        };
        let all = product(&a);
        for row in 0..rows {
            assert_eq!(product(&a[row * inner..][..inner]), all[row * columns..][..columns]);
        }
    }

    #[test]
    fn column_blocks_are_written_side_by_side() {
        let mut out = vec![0.0; 2 * 6];
        let identity = [1.0, 0.0, 0.0, 1.0];
        for (index, mut block) in Out::rows(&mut out, 6).column_blocks(2).into_iter().enumerate() {
            let right = Right::Rows(&identity, 2);
            matmul(&mut block, Output::Replace, index as f32, View::rows(&identity, 2), right, 2);
        }
        assert_eq!(out, [0.0, 0.0, 1.0, 0.0, 2.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 2.0]);
    }
}
