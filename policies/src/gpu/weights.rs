//! A decoder's parameters on a device: f32 masters that the optimizer changes, and the elements
//! that products read.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

use super::buffer::{Buffer, Device, View};
use super::driver::{Kind, Precision};
use super::kernels::WIDEST_HEAD;
use crate::error::PolicyError;
use crate::layer::{LayerWeights, Named};
use crate::model_config::DecoderShape;
use crate::ops::Rotations;
use crate::ops::slices::Values;
use crate::parameters::Parameters;

/// One parameter on the device.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub name: String,
    pub dims: Vec<usize>,
    pub master: Buffer,
    /// The masters rounded; absent where elements are f32 themselves.
    pub rounded: Option<Buffer>,
}

impl Parameter {
    /// What products read.
    pub(crate) fn elements(&self) -> View<'_> {
        self.rounded.as_ref().unwrap_or(&self.master).view()
    }
}

#[derive(Debug)]
pub(crate) struct Linear {
    pub weight: Arc<Parameter>,
    pub bias: Option<Arc<Parameter>>,
}

/// One layer's parameters.
#[derive(Debug)]
pub(crate) struct Layer {
    pub attention_norm: Arc<Parameter>,
    pub query: Linear,
    pub key: Linear,
    pub value: Linear,
    pub query_norm: Option<Arc<Parameter>>,
    pub key_norm: Option<Arc<Parameter>>,
    pub output: Linear,
    pub feed_forward_norm: Arc<Parameter>,
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

/// A decoder on a device.
#[derive(Debug)]
pub(crate) struct Resident {
    pub device: Device,
    pub shape: DecoderShape,
    /// By name, as in [`Parameters`].
    pub parameters: BTreeMap<String, Arc<Parameter>>,
    pub embedding: Arc<Parameter>,
    pub layers: Vec<Layer>,
    pub final_norm: Arc<Parameter>,
    pub head: Arc<Parameter>,
    rotations: Mutex<Option<Arc<DeviceRotations>>>,
}

/// Cosines and sines on the device.
#[derive(Debug)]
pub(crate) struct DeviceRotations {
    positions: usize,
    pub cos: Buffer,
    pub sin: Buffer,
}

impl Resident {
    /// Uploads the parameters of a decoder.
    pub(crate) fn new(
        device: &Device,
        shape: &DecoderShape,
        parameters: &Parameters,
        layers: &[LayerWeights],
        [embedding, final_norm, head]: [&str; 3],
    ) -> Result<Self, PolicyError> {
        if shape.head_dim > WIDEST_HEAD {
            return Err(PolicyError::config(format!(
                "head_dim {} on a GPU, expected at most {WIDEST_HEAD}",
                shape.head_dim
            )));
        }
        let mut held = BTreeMap::new();
        for (name, variable) in parameters.iter() {
            let parameter = Parameter::upload(device, name, variable)?;
            held.insert(name.to_owned(), Arc::new(parameter));
        }
        let of = |named: &Named| Arc::clone(&held[&named.name]);
        let linear = |linear: &crate::layer::Linear| Linear {
            weight: of(&linear.weight),
            bias: linear.bias.as_ref().map(of),
        };
        let layers = layers.iter().map(|layer| Layer {
            attention_norm: of(&layer.attention_norm),
            query: linear(&layer.query),
            key: linear(&layer.key),
            value: linear(&layer.value),
            query_norm: layer.query_norm.as_ref().map(of),
            key_norm: layer.key_norm.as_ref().map(of),
            output: linear(&layer.output),
            feed_forward_norm: of(&layer.feed_forward_norm),
            gate: linear(&layer.gate),
            up: linear(&layer.up),
            down: linear(&layer.down),
        });
        Ok(Self {
            device: device.clone(),
            shape: *shape,
            layers: layers.collect(),
            embedding: Arc::clone(&held[embedding]),
            final_norm: Arc::clone(&held[final_norm]),
            head: Arc::clone(&held[head]),
            parameters: held,
            rotations: Mutex::new(None),
        })
    }

    /// Overwrites the parameters with those of the host.
    pub(crate) fn write(&self, parameters: &Parameters) -> Result<(), PolicyError> {
        for (name, variable) in parameters.iter() {
            self.parameters[name].write(&self.device, &Values::of(variable)?)?;
        }
        Ok(())
    }

    /// Overwrites the parameters of the host with these.
    pub(crate) fn read(&self, parameters: &Parameters) -> Result<(), PolicyError> {
        for (name, variable) in parameters.iter() {
            let values: Vec<f32> = self.parameters[name].master.view().read()?;
            variable.set(&Tensor::from_vec(values, variable.dims(), &candle_core::Device::Cpu)?)?;
        }
        Ok(())
    }

    /// The rotations of all positions of `table`, which holds those that are needed.
    pub(crate) fn rotations(&self, table: &Rotations) -> Result<Arc<DeviceRotations>, PolicyError> {
        let mut held = self.rotations.lock().unwrap_or_else(PoisonError::into_inner);
        match &*held {
            Some(rotations) if rotations.positions >= table.positions() => {
                Ok(Arc::clone(rotations))
            }
            _ => {
                let (cos, sin) = table.values();
                let rotations = Arc::new(DeviceRotations {
                    positions: table.positions(),
                    cos: self.device.floats(cos)?,
                    sin: self.device.floats(sin)?,
                });
                *held = Some(Arc::clone(&rotations));
                Ok(rotations)
            }
        }
    }

    /// The rotations of the last forward pass.
    pub(crate) fn held_rotations(&self) -> Arc<DeviceRotations> {
        let held = self.rotations.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(held.as_ref().expect("a backward pass follows a forward pass"))
    }
}

impl Parameter {
    fn upload(device: &Device, name: &str, values: &Tensor) -> Result<Self, PolicyError> {
        let count = values.elem_count();
        let rounded = match device.precision() {
            Precision::F32 => None,
            Precision::Bf16 => Some(device.buffer(Kind::Element, count)?),
        };
        let (name, dims) = (name.to_owned(), values.dims().to_vec());
        let parameter = Self { name, dims, master: device.buffer(Kind::F32, count)?, rounded };
        parameter.write(device, &Values::of(values)?)?;
        Ok(parameter)
    }

    fn write(&self, device: &Device, values: &[f32]) -> Result<(), PolicyError> {
        self.master.view().write(values)?;
        match &self.rounded {
            Some(rounded) => device.narrow(self.master.view(), rounded.view()),
            None => Ok(()),
        }
    }
}
