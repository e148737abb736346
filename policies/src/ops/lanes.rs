//! Inner loops over f32 slices, written so that the compiler turns them into wide registers.
//!
//! A default build targets the first x86-64 machines. Functions marked `multiversion` call
//! these and are compiled again for AVX2 and AVX-512, chosen at run time; everything here is
//! `inline(always)` so that it is compiled with its caller. Sums run in [`LANES`] partial
//! sums, added up in a fixed order: the result depends on the values alone, neither on the
//! machine's width nor on the number of threads. No fused multiply-add, for the same reason.

/// Partial sums of a reduction: one AVX-512 register of f32.
pub(crate) const LANES: usize = 16;

/// Work (in elements touched) below which handing rows to other threads costs more than it saves.
pub(crate) const PARALLEL_ELEMENTS: usize = 1 << 17;

/// Rows that one thread takes at a time. Fixed, so that sums over rows, which are taken
/// chunk by chunk, do not depend on the number of threads.
pub(crate) const ROWS_PER_CHUNK: usize = 128;

/// Σ a_i b_i.
#[inline(always)]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let ((a_rows, a_rest), (b_rows, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_rows.iter().zip(b_rows) {
        for lane in 0..LANES {
            sums[lane] += a[lane] * b[lane];
        }
    }
    for (sum, (a, b)) in sums.iter_mut().zip(a_rest.iter().zip(b_rest)) {
        *sum += a * b;
    }
    folded(sums)
}

/// The largest value; negative infinity of an empty slice. NaN is passed over.
#[inline(always)]
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut largest = [f32::NEG_INFINITY; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            largest[lane] = if row[lane] > largest[lane] { row[lane] } else { largest[lane] };
        }
    }
    for (largest, &value) in largest.iter_mut().zip(rest) {
        *largest = if value > *largest { value } else { *largest };
    }
    largest.into_iter().fold(f32::NEG_INFINITY, f32::max)
}

/// Replaces each value by exp(value - shift) and gives their sum.
#[inline(always)]
pub(crate) fn exponentiate(values: &mut [f32], shift: f32) -> f32 {
    let mut sums = [0.0; LANES];
    let (rows, rest) = values.as_chunks_mut::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            row[lane] = exp(row[lane] - shift);
            sums[lane] += row[lane];
        }
    }
    // The rest goes through one more full row: in a short row of scores it is most of the work.
    let mut last = [shift; LANES];
    last[..rest.len()].copy_from_slice(rest);
    last.iter_mut().for_each(|value| *value = exp(*value - shift));
    for (sum, (value, &e)) in sums.iter_mut().zip(rest.iter_mut().zip(&last)) {
        *value = e;
        *sum += e;
    }
    folded(sums)
}

/// Σ a_i.
#[inline(always)]
pub(crate) fn sum(values: &[f32]) -> f32 {
    let mut sums = [0.0; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for lane in 0..LANES {
            sums[lane] += row[lane];
        }
    }
    for (sum, value) in sums.iter_mut().zip(rest) {
        *sum += value;
    }
    folded(sums)
}

/// Adds the partial sums pairwise: halves onto halves, as a register would.
#[inline(always)]
pub(crate) fn folded(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
        width /= 2;
    }
    sums[0]
}

/// e^x to about 1e-7 relative; branch-free. Below the smallest normal number it gives that
/// number, above the largest finite one about that; NaN stays NaN.
///
/// x = n ln 2 + r with |r| ≤ ln 2 / 2; the polynomial for e^r is Cephes' `expf` (Moshier).
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    /// 1.5 · 2^23: adding it rounds to a whole number, left in the low bits.
    const ROUNDER: f32 = 12_582_912.0;
    // ln 2 in two parts, the first short enough that n times it is exact.
    const LN_2_HIGH: f32 = 0.693_359_4;
    const LN_2_LOW: f32 = -2.121_944_4e-4;
    let x = x.clamp(-87.33, 88.37);
    let shifted = x * std::f32::consts::LOG2_E + ROUNDER;
    let n = shifted - ROUNDER;
    let r = x - n * LN_2_HIGH - n * LN_2_LOW;
    let mut p = 1.987_569_1e-4;
    p = p * r + 1.398_199_9e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    let exp_r = p * r * r + r + 1.0;
    // 2^n, by writing n into the exponent.
    let exponent = shifted.to_bits().wrapping_sub(ROUNDER.to_bits()).wrapping_add(127);
    exp_r * f32::from_bits(exponent << 23)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_close_to_f64_everywhere() {
        let mut worst = 0.0_f64;
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let exact = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) / exact - 1.0).abs());
        }
        assert!(worst < 1.5e-7, "{worst}");
    }

    #[test]
    fn exp_keeps_nan_and_vanishes_far_below() {
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(f32::NEG_INFINITY) < 1e-37);
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn ragged_slices_lose_no_element() {
        for length in 0..40 {
            let ones = vec![1.0; length];
            let counted: Vec<f32> = (0..length).map(|i| i as f32).collect();
            assert_eq!(dot(&ones, &counted), counted.iter().sum::<f32>());
            assert_eq!(max(&counted), counted.last().copied().unwrap_or(f32::NEG_INFINITY));
            assert_eq!(exponentiate(&mut ones.clone(), 1.0), length as f32);
        }
    }
}
