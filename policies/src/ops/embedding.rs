//! Embedding: row `ids[t]` of the table for each token t; the gradient is added back there.
//!
//! `table` is `(vocab, hidden)`; the result is `(tokens, hidden)`.

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Device, Layout, Result, Shape, Tensor, bail};

use super::slices::{Values, values};

/// The rows of `table` named by `ids`, with gradient.
pub fn embedding(table: &Tensor, ids: &Arc<[u32]>) -> Result<Tensor> {
    table.apply_op1(Embedding { ids: Arc::clone(ids) })
}

/// The same of candle's own operations: the reference.
pub fn composed(table: &Tensor, ids: &Arc<[u32]>) -> Result<Tensor> {
    table.index_select(&Tensor::from_slice(ids, ids.len(), &Device::Cpu)?, 0)
}

struct Embedding {
    ids: Arc<[u32]>,
}

impl CustomOp1 for Embedding {
    fn name(&self) -> &'static str {
        "embedding"
    }

    fn cpu_fwd(&self, table: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (vocab, hidden) = layout.shape().dims2()?;
        let table = values(table, layout)?;
        let mut rows = Vec::with_capacity(self.ids.len() * hidden);
        for &id in self.ids.iter() {
            let id = id as usize;
            if id >= vocab {
                bail!("embedding: id {id} for a table of {vocab} rows");
            }
            rows.extend_from_slice(&table[id * hidden..(id + 1) * hidden]);
        }
        Ok((CpuStorage::F32(rows), (self.ids.len(), hidden).into()))
    }

    fn bwd(&self, table: &Tensor, _rows: &Tensor, g: &Tensor) -> Result<Option<Tensor>> {
        let (vocab, hidden) = table.dims2()?;
        let g = g.contiguous()?;
        let mut dtable = vec![0.0; vocab * hidden];
        for (&id, g) in self.ids.iter().zip(Values::of(&g)?.chunks_exact(hidden)) {
            let row = &mut dtable[id as usize * hidden..][..hidden];
            for (sum, value) in row.iter_mut().zip(g) {
                *sum += value;
            }
        }
        Tensor::from_vec(dtable, (vocab, hidden), &Device::Cpu).map(Some)
    }
}
