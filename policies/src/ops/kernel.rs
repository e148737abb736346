//! The inner loop of every matrix product: a small block of the result held in registers.
//!
//! `block` computes `MR` rows of at most 32 columns: element (i, j) is Σ_p a(i, p) b(p, j), taken
//! in the order of p by one chain of fused multiply-adds. The chain is the same however the rows
//! around it are blocked, so a row's product does not depend on how many rows stand beside it:
//! what makes a sampled reply independent of its neighbours, and equal to its own recomputation.
//!
//! Three versions, chosen once at run time: AVX-512 (written out, because compilers spill its
//! accumulators), AVX2 with FMA and plain, both left to the compiler.

#![expect(unsafe_code, reason = "vector instructions and raw pointers; callers check every bound")]

use std::sync::OnceLock;

/// Columns of one block: two AVX-512 registers.
pub(super) const COLUMNS: usize = 32;

/// Rows of one block at most: with 32 columns, 24 accumulators of 32 registers.
pub(super) const ROWS: usize = 12;

/// One product of a block: pointers, strides and what happens to the result.
#[derive(Clone, Copy)]
pub(super) struct Product {
    /// Products summed in each element.
    pub inner: usize,
    /// a(i, p) is `a[i * a_row + p * a_column]`.
    pub a: *const f32,
    pub a_row: usize,
    pub a_column: usize,
    /// b(p, j) is `b[p * b_row + j]`.
    pub b: *const f32,
    pub b_row: usize,
    /// Result (i, j) is `out[i * out_row + j]`.
    pub out: *mut f32,
    pub out_row: usize,
    /// 1 to 32 columns, of which only these are read from b and written to out.
    pub columns: usize,
    /// Multiplies the finished sums.
    pub scale: f32,
    /// Whether they are added to what is there.
    pub add: bool,
}

/// A version of the inner loop for 1 to [`ROWS`] rows.
pub(super) type Block = unsafe fn(usize, &Product);

/// The fastest version this processor runs.
pub(super) fn block() -> Block {
    static CHOSEN: OnceLock<Block> = OnceLock::new();
    *CHOSEN.get_or_init(|| {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return avx512::block;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return block_fma;
            }
        }
        block_plain
    })
}

#[cfg(target_arch = "x86_64")]
mod avx512 {
    use std::arch::x86_64::{
        __m512, __mmask16, _mm512_add_ps, _mm512_fmadd_ps, _mm512_mask_storeu_ps,
        _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_set1_ps, _mm512_setzero_ps,
    };

    use super::Product;

    /// # Safety
    /// The processor has AVX-512 F, and every element `product` names is in bounds.
    pub(super) unsafe fn block(rows: usize, product: &Product) {
        // SAFETY: passed on to the caller.
        unsafe {
            if product.columns > 16 {
                by_rows::<2>(rows, product);
            } else {
                by_rows::<1>(rows, product);
            }
        }
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn by_rows<const VECTORS: usize>(rows: usize, product: &Product) {
        // SAFETY: passed on to the caller.
        unsafe {
            match rows {
                1 => registers::<1, VECTORS>(product),
                2 => registers::<2, VECTORS>(product),
                3 => registers::<3, VECTORS>(product),
                4 => registers::<4, VECTORS>(product),
                5 => registers::<5, VECTORS>(product),
                6 => registers::<6, VECTORS>(product),
                7 => registers::<7, VECTORS>(product),
                8 => registers::<8, VECTORS>(product),
                9 => registers::<9, VECTORS>(product),
                10 => registers::<10, VECTORS>(product),
                11 => registers::<11, VECTORS>(product),
                _ => registers::<12, VECTORS>(product),
            }
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn registers<const ROWS: usize, const VECTORS: usize>(product: &Product) {
        let &Product { inner, a_row, a_column, b_row, out, out_row, columns, scale, add, .. } =
            product;
        // Lanes of the last vector that hold columns.
        let last: __mmask16 = (u32::MAX >> (32 - (columns - 16 * (VECTORS - 1)))) as __mmask16;
        let mask = |vector: usize| if vector + 1 == VECTORS { last } else { __mmask16::MAX };
        let mut sums: [[__m512; VECTORS]; ROWS] = [[_mm512_setzero_ps(); VECTORS]; ROWS];
        // SAFETY: the caller vouches for every element named by `product`; masked lanes are not
        // touched.
        unsafe {
            let (mut a, mut b) = (product.a, product.b);
            for _ in 0..inner {
                let mut row = [_mm512_setzero_ps(); VECTORS];
                for (vector, row) in row.iter_mut().enumerate() {
                    *row = _mm512_maskz_loadu_ps(mask(vector), b.add(16 * vector));
                }
                for (i, sums) in sums.iter_mut().enumerate() {
                    let left = _mm512_set1_ps(*a.add(i * a_row));
                    for (sum, right) in sums.iter_mut().zip(row) {
                        *sum = _mm512_fmadd_ps(left, right, *sum);
                    }
                }
                a = a.wrapping_add(a_column);
                b = b.wrapping_add(b_row);
            }
            let scales = _mm512_set1_ps(scale);
            for (i, sums) in sums.into_iter().enumerate() {
                for (vector, sum) in sums.into_iter().enumerate() {
                    let at = out.add(i * out_row + 16 * vector);
                    let mut value = _mm512_mul_ps(sum, scales);
                    if add {
                        value = _mm512_add_ps(_mm512_maskz_loadu_ps(mask(vector), at), value);
                    }
                    _mm512_mask_storeu_ps(at, mask(vector), value);
                }
            }
        }
    }
}

/// # Safety
/// The processor has AVX2 and FMA, and every element `product` names is in bounds.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn block_fma(rows: usize, product: &Product) {
    // SAFETY: passed on to the caller.
    unsafe { row_pairs(rows, product, |a, b, sum| a.mul_add(b, sum)) }
}

/// # Safety
/// Every element `product` names is in bounds.
unsafe fn block_plain(rows: usize, product: &Product) {
    // SAFETY: passed on to the caller.
    unsafe { row_pairs(rows, product, |a, b, sum| a * b + sum) }
}

/// Two rows of 16 columns at a time, which fits sixteen AVX2 registers.
#[inline(always)]
unsafe fn row_pairs(rows: usize, product: &Product, step: impl Fn(f32, f32, f32) -> f32) {
    const LANES: usize = 16;
    let &Product { inner, a, a_row, a_column, b, b_row, out, out_row, .. } = product;
    for first in (0..product.columns).step_by(LANES) {
        let columns = LANES.min(product.columns - first);
        let mut i = 0;
        while i < rows {
            let taken = 2.min(rows - i);
            let mut sums = [[0.0_f32; LANES]; 2];
            // SAFETY: the caller vouches for every element named by `product`.
            unsafe {
                for p in 0..inner {
                    let row = b.add(p * b_row + first);
                    let mut right = [0.0_f32; LANES];
                    if columns == LANES {
                        right = *row.cast::<[f32; LANES]>();
                    } else {
                        std::ptr::copy_nonoverlapping(row, right.as_mut_ptr(), columns);
                    }
                    for (k, sums) in sums.iter_mut().enumerate().take(taken) {
                        let left = *a.add((i + k) * a_row + p * a_column);
                        for lane in 0..LANES {
                            sums[lane] = step(left, right[lane], sums[lane]);
                        }
                    }
                }
                for (k, sums) in sums.iter().enumerate().take(taken) {
                    for (lane, sum) in sums.iter().enumerate().take(columns) {
                        let at = out.add((i + k) * out_row + first + lane);
                        let value = sum * product.scale;
                        *at = if product.add { *at + value } else { value };
                    }
                }
            }
            i += taken;
        }
    }
}
