//! AdamW on a device: see [`crate::optimizer`] for the formula.

use std::collections::BTreeMap;

use super::buffer::{Buffer, Device, Room};
use super::driver::Kind;
use super::gradients::DeviceGradients;
use super::kernels::square_parts;
use super::weights::{Parameter, Resident};
use crate::error::PolicyError;
use crate::optimizer::Update;

/// A parameter's name and its moments on the host.
pub(crate) type NamedMoments = (String, Vec<f32>, Vec<f32>);

/// First and second moments on the device, by the parameter's name.
#[derive(Debug, Default)]
pub(crate) struct DeviceMoments {
    moments: BTreeMap<String, (Buffer, Buffer)>,
    partial: Room,
}

impl DeviceMoments {
    /// Takes over moments of the host.
    pub(crate) fn put(
        &mut self,
        device: &Device,
        name: &str,
        mean: &[f32],
        square: &[f32],
    ) -> Result<(), PolicyError> {
        let moments = (device.floats(mean)?, device.floats(square)?);
        self.moments.insert(name.to_owned(), moments);
        Ok(())
    }

    /// Names and moments, for the host to keep.
    pub(crate) fn read(&self) -> Result<Vec<NamedMoments>, PolicyError> {
        let read = |(name, (mean, square)): (&String, &(Buffer, Buffer))| {
            Ok((name.clone(), mean.view().read()?, square.view().read()?))
        };
        self.moments.iter().map(read).collect()
    }

    /// Changes every parameter by its gradient; gives the length of the change. `scalars` gives
    /// those of one parameter.
    pub(crate) fn step(
        &mut self,
        resident: &Resident,
        gradients: &DeviceGradients,
        scalars: impl Fn(&Parameter) -> Update,
    ) -> Result<f64, PolicyError> {
        let device = &resident.device;
        let parts = |parameter: &Parameter| square_parts(parameter.master.count());
        let all = resident.parameters.values().map(|it| parts(it)).sum();
        let partial = self.partial.sized(device, Kind::F64, all)?;
        let mut first = 0;
        for (name, parameter) in &resident.parameters {
            let count = parameter.master.count();
            if !self.moments.contains_key(name) {
                let fresh = (device.zeros(Kind::F32, count)?, device.zeros(Kind::F32, count)?);
                self.moments.insert(name.clone(), fresh);
            }
            let (mean, square) = &self.moments[name];
            let gradient = gradients.get(name).ok_or_else(|| missing(name))?;
            let end = first + parts(parameter);
            device.adamw(
                parameter.master.view(),
                mean.view(),
                square.view(),
                gradient,
                parameter.rounded.as_ref().map(Buffer::view),
                partial.slice(first..end),
                scalars(parameter),
            )?;
            first = end;
        }
        Ok(partial.read::<f64>()?.iter().sum::<f64>().sqrt())
    }
}

impl DeviceGradients {
    /// Length of all gradients together, each of which must be there and be a number.
    pub(crate) fn norm(&self, resident: &Resident) -> Result<f64, PolicyError> {
        let device = &resident.device;
        let counts: Vec<usize> =
            resident.parameters.values().map(|it| square_parts(it.master.count())).collect();
        let partial = device.buffer(Kind::F64, counts.iter().sum())?;
        let mut first = 0;
        for (name, parts) in resident.parameters.keys().zip(&counts) {
            let gradient = self.get(name).ok_or_else(|| missing(name))?;
            device.sum_squares(gradient, partial.slice(first..first + parts))?;
            first += parts;
        }
        let squares: Vec<f64> = partial.view().read()?;
        let mut rest = squares.as_slice();
        let mut total = 0.0;
        for (name, parts) in resident.parameters.keys().zip(counts) {
            let (own, later) = rest.split_at(parts);
            let square: f64 = own.iter().sum();
            if !square.is_finite() {
                return Err(PolicyError::gradient(name, "holds NaN or an infinity"));
            }
            total += square;
            rest = later;
        }
        Ok(total.sqrt())
    }
}

fn missing(name: &str) -> PolicyError {
    PolicyError::gradient(name, "missing")
}
