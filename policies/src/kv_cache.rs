//! Keys and values of sequences in flight, so that each token is computed once.
//!
//! One pair of growing vectors for each layer and slot: `(positions, kv_heads * head_dim)`,
//! rotated keys and plain values. A slot holds one sequence; memory is taken as it grows.

use crate::error::PolicyError;
use crate::model_config::ModelConfig;

/// A cache of a fixed number of slots, each of a bounded length.
#[derive(Clone, Debug)]
pub struct KvCache {
    layers: usize,
    kv_width: usize,
    capacity: usize,
    lengths: Vec<usize>,
    /// Indexed by `layer * slots + slot`.
    rows: Vec<CachedRows>,
}

/// One layer's keys and values of one slot: `(positions, kv_heads * head_dim)` each.
#[derive(Clone, Debug, Default)]
pub(crate) struct CachedRows {
    pub keys: Vec<f32>,
    pub values: Vec<f32>,
}

impl KvCache {
    /// An empty cache for models of this configuration: `slots` sequences of at most
    /// `capacity` tokens each.
    ///
    /// # Errors
    /// If the configuration is not one the decoder can run.
    pub fn new(config: &ModelConfig, slots: usize, capacity: usize) -> Result<Self, PolicyError> {
        let shape = config.shape()?;
        Ok(Self {
            layers: shape.layers,
            kv_width: shape.kv_width(),
            capacity,
            lengths: vec![0; slots],
            rows: vec![CachedRows::default(); shape.layers * slots],
        })
    }

    /// How many sequences fit.
    pub fn slots(&self) -> usize {
        self.lengths.len()
    }

    /// How many tokens one sequence may reach.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Tokens held by a slot.
    pub fn len(&self, slot: usize) -> usize {
        self.lengths[slot]
    }

    /// Whether a slot holds no token.
    pub fn is_empty(&self, slot: usize) -> bool {
        self.lengths[slot] == 0
    }

    /// Forgets a slot's sequence and keeps its memory for the next.
    pub fn clear(&mut self, slot: usize) {
        self.truncate(slot, 0);
    }

    /// Keeps the first `tokens` tokens of a slot; does nothing if it holds fewer.
    pub fn truncate(&mut self, slot: usize, tokens: usize) {
        let kept = self.lengths[slot].min(tokens);
        self.lengths[slot] = kept;
        self.drop_uncommitted(slot);
    }

    /// Makes `to` hold the first `tokens` tokens of `from` and nothing else: the members of
    /// a group share a prompt that was computed once.
    ///
    /// # Errors
    /// If `from` holds fewer tokens.
    pub fn copy_prefix(
        &mut self,
        from: usize,
        to: usize,
        tokens: usize,
    ) -> Result<(), PolicyError> {
        if self.lengths[from] < tokens {
            return Err(PolicyError::input(format!(
                "cannot copy {tokens} cached tokens of slot {from}, which holds {}",
                self.lengths[from]
            )));
        }
        if from == to {
            self.truncate(to, tokens);
            return Ok(());
        }
        let count = tokens * self.kv_width;
        for layer_rows in self.rows.chunks_mut(self.lengths.len()) {
            let [source, target] = layer_rows
                .get_disjoint_mut([from, to])
                .expect("two different slots, both indexed above or below");
            target.keys.clear();
            target.keys.extend_from_slice(&source.keys[..count]);
            target.values.clear();
            target.values.extend_from_slice(&source.values[..count]);
        }
        self.lengths[to] = tokens;
        Ok(())
    }

    /// Bytes of memory taken for keys and values, spare room included.
    pub fn bytes(&self) -> usize {
        let floats: usize =
            self.rows.iter().map(|rows| rows.keys.capacity() + rows.values.capacity()).sum();
        floats * size_of::<f32>()
    }

    /// Whether this cache was made for a model of these sizes.
    pub(crate) fn fits(&self, layers: usize, kv_width: usize) -> bool {
        self.layers == layers && self.kv_width == kv_width
    }

    /// Drops rows of a step that was begun and never committed.
    pub(crate) fn drop_uncommitted(&mut self, slot: usize) {
        let count = self.lengths[slot] * self.kv_width;
        let slots = self.lengths.len();
        for rows in self.rows.iter_mut().skip(slot).step_by(slots) {
            rows.keys.truncate(count);
            rows.values.truncate(count);
        }
    }

    /// Appends rows to one layer of a slot; they count once [`Self::commit`] is called.
    pub(crate) fn append(&mut self, layer: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let rows = &mut self.rows[layer * self.lengths.len() + slot];
        rows.keys.extend_from_slice(keys);
        rows.values.extend_from_slice(values);
    }

    /// Keys and values of one layer and slot, uncommitted rows included.
    pub(crate) fn rows(&self, layer: usize, slot: usize) -> &CachedRows {
        &self.rows[layer * self.lengths.len() + slot]
    }

    /// Counts `tokens` appended rows of every layer as held.
    pub(crate) fn commit(&mut self, slot: usize, tokens: usize) {
        self.lengths[slot] += tokens;
    }
}
