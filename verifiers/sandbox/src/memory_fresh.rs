//! Stands for `memory.rs` where no page map tells what was written: nothing is put back.

use std::io;

/// Never made.
pub(crate) struct Regions;

/// Never made.
pub(crate) struct Snapshot;

/// Whether memories can be put back on this machine.
pub(crate) fn available() -> bool {
    false
}

/// What `make` returns.
pub(crate) fn made_by<T>(make: impl FnOnce() -> T) -> (T, Regions) {
    (make(), Regions)
}

impl Snapshot {
    pub(crate) fn of(_: &Regions) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn lay_under(&self, _: &Regions) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    pub(crate) fn put_back(&self, _: &Regions) -> io::Result<bool> {
        Ok(false)
    }
}
