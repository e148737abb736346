//! Embedding: row `ids[t]` of the table for each token t; the gradient is added back there.
//!
//! `table` is `(vocab, hidden)`; the result is `(tokens, hidden)`.

use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

/// The rows of `table` named by `ids`, with gradient.
pub fn embedding(table: &Tensor, ids: &Arc<[u32]>) -> Result<Tensor> {
    composed(table, ids)
}

/// The same of candle's own operations: the reference.
pub fn composed(table: &Tensor, ids: &Arc<[u32]>) -> Result<Tensor> {
    table.index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0)
}
