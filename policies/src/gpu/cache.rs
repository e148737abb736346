//! Keys and values on a device, in the blocks that [`crate::KvCache`] counts.

use super::buffer::{Buffer, Device, View};
use super::driver::Kind;
use crate::error::PolicyError;

/// `(blocks, layers, kv_heads, 2, 32, head_dim)` elements: keys, then values.
#[derive(Debug)]
pub(crate) struct DeviceBlocks {
    device: Device,
    block_size: usize,
    held: Option<Buffer>,
}

impl DeviceBlocks {
    pub(crate) fn new(device: &Device, block_size: usize) -> Self {
        Self { device: device.clone(), block_size, held: None }
    }

    /// Bytes of memory taken.
    pub(crate) fn bytes(&self) -> usize {
        self.count() * self.block_bytes()
    }

    pub(crate) fn block_bytes(&self) -> usize {
        self.block_size * self.device.bytes_of(Kind::Element)
    }

    /// Makes room for so many blocks; those that are held stay as they are.
    pub(crate) fn reserve(&mut self, blocks: usize, most: usize) -> Result<(), PolicyError> {
        if blocks <= self.count() {
            return Ok(());
        }
        // Room for more than was asked, so that growing is rare.
        let wanted = blocks.max(self.count() * 3 / 2).max(FIRST_BLOCKS).min(most.max(blocks));
        let grown = self.device.buffer(Kind::Element, wanted * self.block_size)?;
        if let Some(held) = &self.held {
            grown.slice(0..held.count()).copy_from(held.view())?;
        }
        self.held = Some(grown);
        Ok(())
    }

    pub(crate) fn copy_block(&self, from: usize, to: usize) -> Result<(), PolicyError> {
        self.block(to).copy_from(self.block(from))
    }

    pub(crate) fn view(&self) -> View<'_> {
        self.held.as_ref().expect("blocks were reserved").view()
    }

    fn block(&self, index: usize) -> View<'_> {
        self.view().slice(index * self.block_size..(index + 1) * self.block_size)
    }

    fn count(&self) -> usize {
        self.held.as_ref().map_or(0, |held| held.count() / self.block_size)
    }
}

const FIRST_BLOCKS: usize = 64;
