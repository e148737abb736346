//! Memory of a device, and views into it.

use std::ops::Range;
use std::sync::Arc;

use super::driver::{Argument, Driver, Kind, Precision};
use crate::error::PolicyError;

/// A device to compute on; clones are the same device.
#[derive(Clone, Debug)]
pub struct Device(Arc<dyn Driver>);

/// A stretch of device memory, given back when dropped.
#[derive(Debug)]
pub(crate) struct Buffer {
    device: Device,
    address: u64,
    kind: Kind,
    count: usize,
}

/// Some values of a buffer. Whoever holds one may read and write them through the device, which
/// does so in the order it is asked.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View<'a> {
    owner: &'a Buffer,
    first: usize,
    count: usize,
}

/// A buffer that grows to what is asked of it.
#[derive(Debug, Default)]
pub(crate) struct Room(Option<Buffer>);

impl Device {
    /// The device behind a driver.
    pub fn new(driver: Arc<dyn Driver>) -> Self {
        Self(driver)
    }

    pub(crate) fn driver(&self) -> &dyn Driver {
        &*self.0
    }

    /// What it is, for people.
    pub fn name(&self) -> String {
        self.0.name()
    }

    /// What weights and activations are stored as.
    pub fn precision(&self) -> Precision {
        self.0.precision()
    }

    /// Bytes that are free, and all bytes.
    ///
    /// # Errors
    /// If the driver does not say.
    pub fn memory(&self) -> Result<(u64, u64), PolicyError> {
        self.0.memory()
    }

    pub(crate) fn bytes_of(&self, kind: Kind) -> usize {
        match kind {
            Kind::Element => self.precision().bytes(),
            Kind::F32 | Kind::U32 => 4,
            Kind::F64 => 8,
        }
    }

    /// Room for `count` values, whatever they are.
    pub(crate) fn buffer(&self, kind: Kind, count: usize) -> Result<Buffer, PolicyError> {
        let count = count.max(1);
        let address = self.0.allocate(count * self.bytes_of(kind))?;
        Ok(Buffer { device: self.clone(), address, kind, count })
    }

    /// A buffer of zeros.
    pub(crate) fn zeros(&self, kind: Kind, count: usize) -> Result<Buffer, PolicyError> {
        let buffer = self.buffer(kind, count)?;
        buffer.view().clear()?;
        Ok(buffer)
    }

    /// A buffer of the given f32 values.
    pub(crate) fn floats(&self, values: &[f32]) -> Result<Buffer, PolicyError> {
        let buffer = self.buffer(Kind::F32, values.len())?;
        buffer.slice(0..values.len()).write(values)?;
        Ok(buffer)
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let bytes = self.count * self.device.bytes_of(self.kind);
        self.device.0.release(self.address, bytes);
    }
}

impl Buffer {
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    pub(crate) fn view(&self) -> View<'_> {
        View { owner: self, first: 0, count: self.count }
    }

    pub(crate) fn slice(&self, range: Range<usize>) -> View<'_> {
        self.view().slice(range)
    }
}

impl Room {
    /// The first `count` values, whatever they are; what was there is lost if it grows.
    pub(crate) fn sized(
        &mut self,
        device: &Device,
        kind: Kind,
        count: usize,
    ) -> Result<View<'_>, PolicyError> {
        if self.0.as_ref().is_none_or(|held| held.count() < count || held.kind() != kind) {
            self.0 = None; // give the old one back first
            self.0 = Some(device.buffer(kind, count)?);
        }
        Ok(self.get(count))
    }

    /// What [`sized`](Self::sized) gave before.
    ///
    /// # Panics
    /// If it never gave as many.
    pub(crate) fn get(&self, count: usize) -> View<'_> {
        self.0.as_ref().expect("sized before").slice(0..count)
    }
}

impl<'a> View<'a> {
    pub(crate) fn count(self) -> usize {
        self.count
    }

    pub(crate) fn kind(self) -> Kind {
        self.owner.kind
    }

    pub(crate) fn address(self) -> u64 {
        self.owner.address + (self.first * self.bytes_each()) as u64
    }

    /// As an argument of a kernel.
    pub(crate) fn argument(self) -> Argument {
        Argument::Address(self.address(), self.owner.kind)
    }

    pub(crate) fn slice(self, range: Range<usize>) -> View<'a> {
        assert!(
            range.start <= range.end && range.end <= self.count,
            "{range:?} of {} values",
            self.count
        );
        View { owner: self.owner, first: self.first + range.start, count: range.len() }
    }

    pub(crate) fn clear(self) -> Result<(), PolicyError> {
        self.driver().clear(self.address(), self.bytes())
    }

    /// Overwrites this with as many values of the same kind.
    pub(crate) fn copy_from(self, from: View<'_>) -> Result<(), PolicyError> {
        assert!(self.count == from.count && self.kind() == from.kind(), "copies are alike");
        self.driver().copy(from.address(), self.address(), self.bytes())
    }

    /// Overwrites this with as many values of the host.
    pub(crate) fn write<T: Value>(self, values: &[T]) -> Result<(), PolicyError> {
        assert!(self.kind() == T::KIND && self.count == values.len(), "as many values, alike");
        if values.is_empty() {
            return Ok(());
        }
        self.driver().upload(bytemuck::cast_slice(values), self.address())
    }

    /// Waits for the device, then reads.
    pub(crate) fn read<T: Value>(self) -> Result<Vec<T>, PolicyError> {
        assert!(self.kind() == T::KIND, "the values are alike");
        let mut values = vec![T::zeroed(); self.count];
        if !values.is_empty() {
            self.driver().download(self.address(), bytemuck::cast_slice_mut(&mut values))?;
        }
        Ok(values)
    }

    fn driver(self) -> &'a dyn Driver {
        self.owner.device.driver()
    }

    fn bytes_each(self) -> usize {
        self.owner.device.bytes_of(self.owner.kind)
    }

    fn bytes(self) -> usize {
        self.count * self.bytes_each()
    }
}

/// What host and device both know.
pub(crate) trait Value: bytemuck::Pod {
    const KIND: Kind;
}

impl Value for f32 {
    const KIND: Kind = Kind::F32;
}

impl Value for f64 {
    const KIND: Kind = Kind::F64;
}

impl Value for u32 {
    const KIND: Kind = Kind::U32;
}
