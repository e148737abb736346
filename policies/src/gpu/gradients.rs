//! Gradients on a device: f32 sums, by the parameter's name.

use std::collections::BTreeMap;

use super::buffer::{Buffer, Device, View};
use super::driver::Kind;
use super::weights::Parameter;
use crate::error::PolicyError;
use crate::ops::matmul::Output;

/// The device's half of a [`crate::GradientSet`].
#[derive(Debug, Default)]
pub(crate) struct DeviceGradients(BTreeMap<String, Gradient>);

#[derive(Debug)]
struct Gradient {
    sum: Buffer,
    /// Whether anything was added since the last reset; before, the values mean nothing.
    holds: bool,
}

impl DeviceGradients {
    pub(crate) fn reset(&mut self) {
        self.0.values_mut().for_each(|gradient| gradient.holds = false);
    }

    /// Where a product goes that is part of a parameter's gradient, and what it does with what
    /// is there.
    pub(crate) fn product(
        &mut self,
        device: &Device,
        parameter: &Parameter,
    ) -> Result<(View<'_>, Output), PolicyError> {
        if !self.0.contains_key(&parameter.name) {
            let sum = device.buffer(Kind::F32, parameter.master.count())?;
            self.0.insert(parameter.name.clone(), Gradient { sum, holds: false });
        }
        let gradient = self.0.get_mut(&parameter.name).expect("inserted above");
        let held = std::mem::replace(&mut gradient.holds, true);
        Ok((gradient.sum.view(), if held { Output::Add } else { Output::Replace }))
    }

    /// A parameter's gradient for a sum to go on with, zero if nothing was added yet.
    pub(crate) fn sum(
        &mut self,
        device: &Device,
        parameter: &Parameter,
    ) -> Result<View<'_>, PolicyError> {
        let (view, into) = self.product(device, parameter)?;
        if into == Output::Replace {
            view.clear()?;
        }
        Ok(view)
    }

    /// What was added to the gradient of the named parameter, if anything was.
    pub(crate) fn get(&self, name: &str) -> Option<View<'_>> {
        self.0.get(name).filter(|it| it.holds).map(|it| it.sum.view())
    }

    /// Names and gradients of what holds something, in the order of the names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, View<'_>)> {
        self.0.iter().filter(|(_, it)| it.holds).map(|(name, it)| (name.as_str(), it.sum.view()))
    }
}
