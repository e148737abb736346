//! What the arithmetic asks of a device: memory, copies, kernel launches, matrix products.
//!
//! A driver works in the order it was asked; only [`Driver::download`] waits. Addresses are the
//! driver's own: nothing on the host reads through them.

use std::fmt;

use crate::error::PolicyError;

/// What weights and activations are stored as. Arithmetic is f32 in both.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// 32 bits.
    F32,
    /// The upper 16 bits of an f32, rounded to even.
    Bf16,
}

impl Precision {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    /// As it is called on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }
}

/// What a buffer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Weights and activations, in the device's [`Precision`].
    Element,
    /// Sums, statistics and logits.
    F32,
    /// Partial sums.
    F64,
    /// Indices.
    U32,
}

/// One argument of a kernel, as the kernel declares it.
#[derive(Clone, Copy, Debug)]
pub enum Argument {
    /// An address, and what lies there; 0 is none.
    Address(u64, Kind),
    /// `unsigned`.
    U32(u32),
    /// `unsigned long long`.
    U64(u64),
    /// `float`.
    F32(f32),
}

/// One kernel over a grid of blocks.
#[derive(Debug)]
pub struct Launch<'a> {
    /// The kernel's name in [`super::kernels::SOURCES`].
    pub kernel: &'static str,
    /// Blocks along x and y, none of them 0.
    pub grid: (u32, u32),
    /// Threads of a block.
    pub threads: u32,
    /// Bytes of shared memory beyond what the kernel declares.
    pub shared_bytes: u32,
    /// In the order of the kernel's parameters.
    pub arguments: &'a [Argument],
}

/// A matrix of a [`Product`]: rows at a distance of `stride`, elements next to each other.
#[derive(Clone, Copy, Debug)]
pub struct Operand {
    /// Of the first element.
    pub address: u64,
    /// Elements from one row to the next.
    pub stride: usize,
    /// Whether the product reads it with rows and columns exchanged.
    pub transposed: bool,
}

/// out = scale · a b, or added to what is there; f32 sums of elements.
#[derive(Clone, Copy, Debug)]
pub struct Product {
    /// Rows of `a` and `out`.
    pub rows: usize,
    /// Columns of `b` and `out`.
    pub columns: usize,
    /// Columns of `a`, rows of `b`.
    pub inner: usize,
    /// `(rows, inner)`, of elements.
    pub a: Operand,
    /// `(inner, columns)`, of elements.
    pub b: Operand,
    /// `(rows, columns)`, without gaps.
    pub out: u64,
    /// [`Kind::Element`] or [`Kind::F32`].
    pub out_kind: Kind,
    /// Multiplies the product.
    pub scale: f32,
    /// Whether the product is added to `out`.
    pub add: bool,
}

/// A device. The module's head says what is expected of it.
///
/// # Errors
/// Of every function: [`PolicyError::Device`], with the driver's own words. Work that fails late
/// may be told by a later call.
pub trait Driver: fmt::Debug + Send + Sync {
    /// What it is, for people.
    fn name(&self) -> String;

    /// What kernels were compiled for.
    fn precision(&self) -> Precision;

    /// Bytes that are free, and all bytes.
    fn memory(&self) -> Result<(u64, u64), PolicyError>;

    /// Memory of at least one byte, aligned to 256, whatever it holds.
    fn allocate(&self, bytes: usize) -> Result<u64, PolicyError>;

    /// Gives back what [`allocate`](Self::allocate) gave.
    fn release(&self, address: u64, bytes: usize);

    /// Host to device; the bytes may be changed once this returns.
    fn upload(&self, bytes: &[u8], to: u64) -> Result<(), PolicyError>;

    /// Device to host, after all work asked for before.
    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), PolicyError>;

    /// Within the device; the two do not overlap.
    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), PolicyError>;

    /// Sets bytes to zero.
    fn clear(&self, address: u64, bytes: usize) -> Result<(), PolicyError>;

    /// Runs a kernel.
    fn launch(&self, launch: &Launch<'_>) -> Result<(), PolicyError>;

    /// Multiplies matrices.
    fn multiply(&self, product: &Product) -> Result<(), PolicyError>;
}
