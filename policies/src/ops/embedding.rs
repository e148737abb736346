//! Embedding: row `ids[t]` of the table for each token t; the gradient is added back there.
//!
//! `table` is `(vocab, hidden)`; the result is `(tokens, hidden)`.

use candle_core::{Device, Result, Tensor};

/// The same of candle's own operations: the reference.
pub fn composed(table: &Tensor, ids: &[u32]) -> Result<Tensor> {
    table.index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0)
}

/// The rows of `table` named by `ids`, into `out`.
pub(crate) fn forward(table: &[f32], hidden: usize, ids: &[u32], out: &mut [f32]) {
    for (out, id) in out.chunks_exact_mut(hidden).zip(ids) {
        out.copy_from_slice(&table[*id as usize * hidden..][..hidden]);
    }
}

/// Adds each row's gradient to its row of `dtable`.
pub(crate) fn backward(g: &[f32], hidden: usize, ids: &[u32], dtable: &mut [f32]) {
    for (g, id) in g.chunks_exact(hidden).zip(ids) {
        let row = &mut dtable[*id as usize * hidden..][..hidden];
        for (sum, value) in row.iter_mut().zip(g) {
            *sum += value;
        }
    }
}
