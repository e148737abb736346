//! Keys and values of sequences in flight, so that each token is computed once.
//!
//! Memory comes in blocks of 32 positions, all layers together, as in vLLM (Kwon et al. 2023,
//! arXiv:2309.06180): a sequence is a list of blocks. Sequences that begin alike share blocks; a
//! shared block is copied when one of its sequences writes to it. A cache may be given a bound on
//! its blocks; who uses it asks [`KvCache::blocks_needed`] before it writes.

use crate::decoder::Decoder;
use crate::error::PolicyError;
use crate::gpu::cache::DeviceBlocks;
use crate::model_config::ModelConfig;
use crate::ops::attention::{BLOCK, Block, scatter};
use crate::process::prefer_large_pages;

/// Blocks come in slabs of about this size: a few large pages.
const SLAB_BYTES: usize = 8 << 20;

/// A cache of a fixed number of sequences, each of a bounded length.
#[derive(Debug)]
pub struct KvCache {
    layers: usize,
    kv_heads: usize,
    head_dim: usize,
    capacity: usize,
    lengths: Vec<usize>,
    /// The blocks of each sequence, in the order of their positions.
    tables: Vec<Vec<usize>>,
    storage: Storage,
    /// How many sequences hold each block; 0 is free.
    holders: Vec<u32>,
    free: Vec<usize>,
    most_blocks: usize,
}

#[derive(Debug)]
enum Storage {
    /// Slabs of blocks, `(layers, kv_heads, 2, 32 * head_dim)` each: keys `(head_dim, 32)`, values
    /// `(32, head_dim)`.
    Host {
        slabs: Vec<Vec<f32>>,
        slab_blocks: usize,
    },
    Device(DeviceBlocks),
}

impl KvCache {
    /// An empty cache for a decoder, where it is: `slots` sequences of at most `capacity` tokens
    /// each.
    pub fn new(decoder: &Decoder, slots: usize, capacity: usize) -> Self {
        let shape = decoder.shape();
        let block_size = shape.layers * 2 * BLOCK * shape.kv_width();
        let storage = match decoder.device() {
            Some(device) => Storage::Device(DeviceBlocks::new(device, block_size)),
            None => {
                let slab_blocks = (SLAB_BYTES / Self::block_bytes(decoder.config())).max(1);
                Storage::Host { slabs: Vec::new(), slab_blocks }
            }
        };
        Self {
            layers: shape.layers,
            kv_heads: shape.kv_heads,
            head_dim: shape.head_dim,
            capacity,
            lengths: vec![0; slots],
            tables: vec![Vec::new(); slots],
            storage,
            holders: Vec::new(),
            free: Vec::new(),
            most_blocks: usize::MAX,
        }
    }

    /// Bounds the blocks that may exist at once to what fits into so many bytes.
    #[must_use]
    pub fn with_most_bytes(mut self, bytes: usize) -> Self {
        let block_bytes = match &self.storage {
            Storage::Host { .. } => self.block_size() * size_of::<f32>(),
            Storage::Device(blocks) => blocks.block_bytes(),
        };
        let most = bytes / block_bytes.max(1);
        self.most_blocks = most;
        if let Storage::Host { slab_blocks, .. } = &mut self.storage {
            *slab_blocks = (*slab_blocks).min(most).max(1);
        }
        self
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

    /// Forgets a slot's sequence; blocks that no other holds become free.
    pub fn clear(&mut self, slot: usize) {
        self.truncate(slot, 0);
    }

    /// Keeps the first `tokens` tokens of a slot; does nothing if it holds fewer.
    pub fn truncate(&mut self, slot: usize, tokens: usize) {
        if tokens < self.lengths[slot] {
            self.lengths[slot] = tokens;
            for block in self.tables[slot].split_off(tokens.div_ceil(BLOCK)) {
                self.release(block);
            }
        }
    }

    /// Makes `to` hold the first `tokens` tokens of `from` and nothing else: the members of
    /// a group share a prompt that was computed once. Copies nothing until one of them writes.
    ///
    /// # Errors
    /// If `from` holds fewer tokens.
    pub fn share_prefix(
        &mut self,
        from: usize,
        to: usize,
        tokens: usize,
    ) -> Result<(), PolicyError> {
        if self.lengths[from] < tokens {
            return Err(PolicyError::input(format!(
                "cannot share {tokens} cached tokens of slot {from}, which holds {}",
                self.lengths[from]
            )));
        }
        if from == to {
            self.truncate(to, tokens);
            return Ok(());
        }
        self.clear(to);
        let shared = self.tables[from][..tokens.div_ceil(BLOCK)].to_vec();
        for block in &shared {
            self.holders[*block] += 1;
        }
        self.tables[to] = shared;
        self.lengths[to] = tokens;
        Ok(())
    }

    /// Blocks that must be free for a slot to take `tokens` more.
    pub fn blocks_needed(&self, slot: usize, tokens: usize) -> usize {
        let length = self.lengths[slot];
        let table = &self.tables[slot];
        let new = (length + tokens).div_ceil(BLOCK) - table.len();
        let copied = !length.is_multiple_of(BLOCK)
            && tokens > 0
            && table.last().is_some_and(|block| self.holders[*block] > 1);
        new + usize::from(copied)
    }

    /// Blocks that may still be taken.
    pub fn blocks_free(&self) -> usize {
        self.most_blocks.saturating_sub(self.holders.len() - self.free.len())
    }

    /// Bytes of one block: 32 positions of all layers.
    pub fn block_bytes(config: &ModelConfig) -> usize {
        BLOCK * config.num_hidden_layers * 2 * config.kv_width() * size_of::<f32>()
    }

    /// Positions of one block.
    pub const BLOCK_POSITIONS: usize = BLOCK;

    /// Bytes of memory taken for keys and values, free blocks included.
    pub fn bytes(&self) -> usize {
        match &self.storage {
            Storage::Host { slabs, .. } => {
                slabs.iter().map(|slab| slab.len() * size_of::<f32>()).sum()
            }
            Storage::Device(blocks) => blocks.bytes(),
        }
    }

    /// The blocks on a device, if that is where they are.
    pub(crate) fn on_device(&self) -> Option<&DeviceBlocks> {
        match &self.storage {
            Storage::Host { .. } => None,
            Storage::Device(blocks) => Some(blocks),
        }
    }

    /// Whether this cache was made for a model of these sizes.
    pub(crate) fn fits(&self, layers: usize, kv_heads: usize, head_dim: usize) -> bool {
        (self.layers, self.kv_heads, self.head_dim) == (layers, kv_heads, head_dim)
    }

    /// Makes room for `tokens` more in a slot and counts them as held.
    ///
    /// # Errors
    /// If a device has no memory for more blocks.
    ///
    /// # Panics
    /// If too few blocks are free.
    pub(crate) fn grow(&mut self, slot: usize, tokens: usize) -> Result<(), PolicyError> {
        let length = self.lengths[slot];
        if !length.is_multiple_of(BLOCK) {
            let last = self.tables[slot].len() - 1;
            let shared = self.tables[slot][last];
            if self.holders[shared] > 1 {
                let own = self.take()?;
                self.copy_block(shared, own)?;
                self.release(shared);
                self.tables[slot][last] = own;
            }
        }
        for _ in self.tables[slot].len()..(length + tokens).div_ceil(BLOCK) {
            let block = self.take()?;
            self.tables[slot].push(block);
        }
        self.lengths[slot] += tokens;
        Ok(())
    }

    fn copy_block(&mut self, from: usize, to: usize) -> Result<(), PolicyError> {
        if let Storage::Device(blocks) = &self.storage {
            return blocks.copy_block(from, to);
        }
        let copied = self.values(from).to_vec();
        self.values_mut(to).copy_from_slice(&copied);
        Ok(())
    }

    /// Writes the keys and values, `(tokens, kv_heads * head_dim)`, of a slot's last tokens.
    pub(crate) fn write(&mut self, layer: usize, slot: usize, keys: &[f32], values: &[f32]) {
        let Self { kv_heads, head_dim, .. } = *self;
        let width = kv_heads * head_dim;
        let first = self.lengths[slot] - keys.len() / width;
        let rows = keys.chunks_exact(width).zip(values.chunks_exact(width));
        for (row, (keys, values)) in rows.enumerate() {
            let (index, lane) = ((first + row) / BLOCK, (first + row) % BLOCK);
            let block = self.values_mut(self.tables[slot][index]);
            let heads = keys.chunks_exact(head_dim).zip(values.chunks_exact(head_dim));
            for (head, (key, value)) in heads.enumerate() {
                let at = (layer * kv_heads + head) * 2 * BLOCK * head_dim;
                let (of_keys, of_values) =
                    block[at..at + 2 * BLOCK * head_dim].split_at_mut(BLOCK * head_dim);
                scatter(&mut of_keys[lane..], key);
                of_values[lane * head_dim..(lane + 1) * head_dim].copy_from_slice(value);
            }
        }
    }

    /// The blocks of a slot, in the order of their positions: equal numbers are one block.
    pub(crate) fn table(&self, slot: usize) -> &[usize] {
        &self.tables[slot]
    }

    /// One key head's keys and values of one block of a slot.
    pub(crate) fn block(&self, layer: usize, slot: usize, head: usize, index: usize) -> Block<'_> {
        let size = BLOCK * self.head_dim;
        let at = (layer * self.kv_heads + head) * 2 * size;
        let block = self.values(self.tables[slot][index]);
        Block { keys: &block[at..at + size], values: &block[at + size..at + 2 * size] }
    }

    /// Values of one block.
    fn block_size(&self) -> usize {
        self.layers * self.kv_heads * 2 * BLOCK * self.head_dim
    }

    fn values(&self, block: usize) -> &[f32] {
        let size = self.block_size();
        let Storage::Host { slabs, slab_blocks } = &self.storage else { return &[] };
        let place = block % slab_blocks;
        &slabs[block / slab_blocks][place * size..(place + 1) * size]
    }

    fn values_mut(&mut self, block: usize) -> &mut [f32] {
        let size = self.block_size();
        let Storage::Host { slabs, slab_blocks } = &mut self.storage else { return &mut [] };
        let place = block % *slab_blocks;
        &mut slabs[block / *slab_blocks][place * size..(place + 1) * size]
    }

    fn take(&mut self) -> Result<usize, PolicyError> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.new_block()?,
        };
        self.holders[block] = 1;
        Ok(block)
    }

    fn new_block(&mut self) -> Result<usize, PolicyError> {
        let block = self.holders.len();
        assert!(block < self.most_blocks, "free blocks were counted before");
        let size = self.block_size();
        match &mut self.storage {
            Storage::Host { slabs, slab_blocks } => {
                if block == slabs.len() * *slab_blocks {
                    let mut slab = Vec::with_capacity(*slab_blocks * size);
                    prefer_large_pages(&mut slab);
                    slab.resize(*slab_blocks * size, 0.0);
                    slabs.push(slab);
                }
            }
            Storage::Device(blocks) => blocks.reserve(block + 1, self.most_blocks)?,
        }
        self.holders.push(0);
        Ok(block)
    }

    fn release(&mut self, block: usize) {
        self.holders[block] -= 1;
        if self.holders[block] == 0 {
            self.free.push(block);
        }
    }
}
