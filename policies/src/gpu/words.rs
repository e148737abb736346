//! Indices of one batch, gathered on the host and uploaded at once.

use std::ops::Range;

use super::buffer::{Device, Room, View};
use super::driver::Kind;
use super::kernels::{SegmentViews, Segments};
use crate::error::PolicyError;

/// Stretches of u32 that go to the device together.
#[derive(Debug, Default)]
pub(crate) struct Words {
    values: Vec<u32>,
    room: Room,
}

/// Where a stretch stands.
pub(crate) type Stretch = Range<usize>;

/// Where the parts of [`Segments`] stand.
#[derive(Clone, Debug, Default)]
pub(crate) struct SegmentStretches {
    order: Stretch,
    starts: Stretch,
    targets: Stretch,
}

impl Words {
    /// Forgets what was added.
    pub(crate) fn start(&mut self) {
        self.values.clear();
    }

    /// Adds a stretch.
    pub(crate) fn add(&mut self, values: impl IntoIterator<Item = u32>) -> Stretch {
        let first = self.values.len();
        self.values.extend(values);
        first..self.values.len()
    }

    pub(crate) fn add_segments(&mut self, segments: &Segments) -> SegmentStretches {
        SegmentStretches {
            order: self.add(segments.order.iter().copied()),
            starts: self.add(segments.starts.iter().copied()),
            targets: self.add(segments.targets.iter().copied()),
        }
    }

    /// Uploads all stretches.
    pub(crate) fn upload(&mut self, device: &Device) -> Result<(), PolicyError> {
        self.room.sized(device, Kind::U32, self.values.len())?.write(&self.values)
    }

    /// A stretch on the device.
    pub(crate) fn view(&self, stretch: &Stretch) -> View<'_> {
        self.room.get(self.values.len()).slice(stretch.clone())
    }

    pub(crate) fn segments(&self, stretches: &SegmentStretches) -> SegmentViews<'_> {
        SegmentViews {
            order: self.view(&stretches.order),
            starts: self.view(&stretches.starts),
            targets: self.view(&stretches.targets),
        }
    }
}
