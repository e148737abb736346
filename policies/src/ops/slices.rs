//! Reading candle's CPU tensors as plain f32 slices.

use std::ops::{Deref, Range};

use candle_core::{CpuStorage, Result, Storage, StorageRef, Tensor, bail};

/// A tensor's values, readable while the guard lives.
pub(crate) struct Values<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Values<'a> {
    /// The values of a contiguous f32 tensor on the CPU.
    pub(crate) fn of(tensor: &'a Tensor) -> Result<Self> {
        let (storage, layout) = tensor.storage_and_layout();
        let Some((start, end)) = layout.contiguous_offsets() else {
            bail!("tensor of shape {:?} is not contiguous", layout.shape());
        };
        match &*storage {
            Storage::Cpu(CpuStorage::F32(_)) => {}
            _ => bail!("expected an f32 tensor on the CPU, got {:?}", tensor.dtype()),
        }
        Ok(Self { storage, range: start..end })
    }
}

impl Deref for Values<'_> {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => unreachable!("checked when the guard was made"),
        }
    }
}
