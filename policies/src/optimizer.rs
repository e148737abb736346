//! AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101, algorithm 2) over named gradients.
//!
//! ```text
//! g = clip(grad)                        all gradients scaled so that their norm is ≤ clip_norm
//! m = β1 m + (1 - β1) g                 v = β2 v + (1 - β2) g²
//! θ = θ - lr λ θ - lr m̂ / (sqrt(v̂) + ε)     m̂ = m / (1 - β1^t),  v̂ = v / (1 - β2^t)
//! ```
//!
//! As in torch, the decay is scaled by the learning rate (the paper's schedule multiplier
//! alone would be a different λ), and λ applies by default to matrices only. Moments are
//! f32, keyed by name. Each tensor takes one pass; chunks of fixed size run in parallel and
//! the norm is summed in their order, so results do not depend on the number of threads.

use std::collections::BTreeMap;
use std::f64::consts::PI;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{CpuStorage, InplaceOp1, Layout, Tensor};
use multiversion::multiversion;
use rayon::prelude::*;
use safetensors::tensor::SafeTensors;
use serde::{Deserialize, Serialize};

use crate::checkpoint;
use crate::error::{PolicyError, not_finite};
use crate::gpu::gradients::DeviceGradients;
use crate::gpu::optimizer::DeviceMoments;
use crate::gpu::weights::Resident;
use crate::layer::Named;
use crate::ops::matmul::Output;
use crate::parameters::Parameters;

/// The optimizer and its moments.
#[derive(Debug)]
pub struct AdamW {
    config: AdamWConfig,
    step: u64,
    moments: BTreeMap<String, Moments>,
    /// Those of a decoder that is on a device.
    device: DeviceMoments,
}

/// Settings of [`AdamW`]; the learning rate comes with each step.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct AdamWConfig {
    /// Memory of the mean gradient. 0.9 is the paper's.
    pub beta1: f64,
    /// Memory of the mean squared gradient. 0.95 forgets a bad batch sooner than the paper's 0.999.
    pub beta2: f64,
    /// Keeps a still gradient from dividing by zero.
    pub eps: f64,
    /// λ: share of a weight that one step at learning rate 1 would remove.
    pub weight_decay: f64,
    /// Which parameters decay.
    pub decay: DecayTargets,
    /// Gradients longer than this together are scaled down to it; absent: never.
    pub clip_norm: Option<f64>,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        Self {
            beta1: 0.9,
            beta2: 0.95,
            eps: 1e-8,
            weight_decay: 0.0,
            decay: DecayTargets::Matrices,
            clip_norm: Some(1.0),
        }
    }
}

/// Which parameters weight decay shrinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum DecayTargets {
    /// Tensors of two axes: projections, embedding and head; not norms and biases.
    #[default]
    Matrices,
    /// Every tensor.
    All,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Length of all gradients together, before clipping.
    pub grad_norm: f64,
    /// What clipping multiplied the gradients by; 1 if they were short enough.
    pub clip_scale: f64,
    /// Length of the weights' change.
    pub update_norm: f64,
    /// How many steps have been taken, this one included.
    pub step: u64,
}

#[derive(Clone, Debug)]
struct Moments {
    mean: Vec<f32>,
    square: Vec<f32>,
}

/// Gradients of every parameter, summed over micro-batches in the order they were added. Keeps
/// its memory from one update to the next.
#[derive(Debug, Default)]
pub struct GradientSet {
    held: BTreeMap<String, Gradient>,
    /// Those of a decoder that is on a device; the functions below give the host's alone, but for
    /// [`read_back`](Self::read_back) and [`reset`](Self::reset).
    device: DeviceGradients,
}

/// The gradient of one parameter.
#[derive(Clone, Debug, Default)]
pub(crate) struct Gradient {
    dims: Vec<usize>,
    values: Vec<f32>,
    /// Whether anything was added since the last reset; before, the values mean nothing.
    holds: bool,
}

impl Gradient {
    /// Rows and columns of a matrix.
    pub(crate) fn dims2(&self) -> (usize, usize) {
        (self.dims[0], self.dims[1])
    }

    /// What a product that goes into [`values`](Self::values) is to do with what is there. The
    /// gradient counts as held from then on.
    pub(crate) fn output(&mut self) -> Output {
        let held = std::mem::replace(&mut self.holds, true);
        if held { Output::Add } else { Output::Replace }
    }

    pub(crate) fn values(&mut self) -> &mut [f32] {
        &mut self.values
    }

    /// The values, zero if nothing was added yet, for a sum to go on with.
    pub(crate) fn summed(&mut self) -> &mut [f32] {
        if self.output() == Output::Replace {
            self.values.fill(0.0);
        }
        &mut self.values
    }
}

impl GradientSet {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was added and keeps the memory.
    pub fn reset(&mut self) {
        self.held.values_mut().for_each(|gradient| gradient.holds = false);
        self.device.reset();
    }

    /// Takes a parameter's gradient out, to be added to and [put](Self::put) back.
    pub(crate) fn take(&mut self, name: &str, parameter: &Tensor) -> Gradient {
        match self.held.get_mut(name) {
            Some(gradient) => std::mem::take(gradient),
            None => Gradient {
                dims: parameter.dims().to_vec(),
                values: vec![0.0; parameter.elem_count()],
                holds: false,
            },
        }
    }

    pub(crate) fn put(&mut self, name: &str, gradient: Gradient) {
        match self.held.get_mut(name) {
            Some(place) => *place = gradient,
            None => drop(self.held.insert(name.to_owned(), gradient)),
        }
    }

    /// Hands a parameter's gradient to `add`, zero if nothing was added yet; nothing where the
    /// parameter is frozen.
    pub(crate) fn sum_into(
        &mut self,
        named: &Named,
        trained: bool,
        add: impl FnOnce(Option<&mut [f32]>),
    ) {
        if !trained {
            return add(None);
        }
        let mut gradient = self.take(&named.name, &named.values);
        add(Some(gradient.summed()));
        self.put(&named.name, gradient);
    }

    /// Multiplies every gradient, say by 1 / the number of tokens.
    pub fn scale(&mut self, factor: f32) {
        for gradient in self.held.values_mut() {
            gradient.values.par_iter_mut().with_min_len(CHUNK).for_each(|value| *value *= factor);
        }
    }

    /// The gradient of the named parameter, if anything was added to it.
    pub fn get(&self, name: &str) -> Option<&[f32]> {
        self.held.get(name).filter(|it| it.holds).map(|it| it.values.as_slice())
    }

    /// Names and gradients, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[f32])> {
        self.held
            .iter()
            .filter(|(_, it)| it.holds)
            .map(|(name, gradient)| (name.as_str(), gradient.values.as_slice()))
    }

    /// Those that are on a device, copied to the host.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read_back(&self) -> Result<BTreeMap<String, Vec<f32>>, PolicyError> {
        self.device.iter().map(|(name, it)| Ok((name.to_owned(), it.read()?))).collect()
    }

    pub(crate) fn on_device(&self) -> &DeviceGradients {
        &self.device
    }

    pub(crate) fn device_mut(&mut self) -> &mut DeviceGradients {
        &mut self.device
    }

    /// Whether nothing was added yet.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Length of all gradients together.
    ///
    /// # Errors
    /// If a gradient is not finite; the message names it.
    pub fn norm(&self) -> Result<f64, PolicyError> {
        let mut total = 0.0;
        for (name, gradient) in self.iter() {
            let square = sum_of_squares(gradient);
            if !square.is_finite() {
                let (bad, count) = (not_finite(gradient), gradient.len());
                let problem = format!("{bad} of {count} values are NaN or infinite");
                return Err(PolicyError::gradient(name, problem));
            }
            total += square;
        }
        Ok(total.sqrt())
    }
}

impl AdamW {
    /// An optimizer that has seen nothing.
    pub fn new(config: AdamWConfig) -> Self {
        Self { config, step: 0, moments: BTreeMap::new(), device: DeviceMoments::default() }
    }

    /// The settings.
    pub fn config(&self) -> &AdamWConfig {
        &self.config
    }

    /// How many steps have been taken.
    pub fn steps_taken(&self) -> u64 {
        self.step
    }

    /// Changes every parameter, in place, by its gradient.
    ///
    /// # Errors
    /// If a gradient is missing, of another shape or not finite; weights and moments are
    /// then as they were.
    pub fn step(
        &mut self,
        parameters: &Parameters,
        gradients: &GradientSet,
        learning_rate: f64,
    ) -> Result<StepReport, PolicyError> {
        for (name, variable) in parameters.iter() {
            match gradients.get(name) {
                None => return Err(PolicyError::gradient(name, "missing")),
                Some(gradient) if gradient.len() != variable.elem_count() => {
                    let problem =
                        format!("has {} values, expected {:?}", gradient.len(), variable.dims());
                    return Err(PolicyError::gradient(name, problem));
                }
                Some(_) => {}
            }
        }
        let grad_norm = gradients.norm()?;
        let clip_scale = self.clip_scale(grad_norm);
        let step = self.step + 1;
        let mut update_square = 0.0;
        for (name, variable) in parameters.iter() {
            let gradient = gradients.get(name).expect("presence was checked above");
            let count = variable.elem_count();
            let moments = self
                .moments
                .entry(name.to_owned())
                .or_insert_with(|| Moments { mean: vec![0.0; count], square: vec![0.0; count] });
            let update = self.config.update(variable.rank(), step, clip_scale, learning_rate);
            let fused = FusedUpdate { update, gradient, moments: Mutex::new((moments, 0.0)) };
            variable.inplace_op1(&fused)?;
            update_square += fused.moments.lock().unwrap_or_else(PoisonError::into_inner).1;
        }
        self.step = step;
        Ok(StepReport { grad_norm, clip_scale, update_norm: update_square.sqrt(), step })
    }

    /// The same for a decoder that is on a device.
    pub(crate) fn step_on(
        &mut self,
        resident: &Resident,
        gradients: &DeviceGradients,
        learning_rate: f64,
    ) -> Result<StepReport, PolicyError> {
        let grad_norm = gradients.norm(resident)?;
        let clip_scale = self.clip_scale(grad_norm);
        let step = self.step + 1;
        for (name, Moments { mean, square }) in std::mem::take(&mut self.moments) {
            self.device.put(&resident.device, &name, &mean, &square)?;
        }
        let config = &self.config;
        let update_norm = self.device.step(resident, gradients, |parameter| {
            config.update(parameter.dims.len(), step, clip_scale, learning_rate)
        })?;
        self.step = step;
        Ok(StepReport { grad_norm, clip_scale, update_norm, step })
    }

    fn clip_scale(&self, grad_norm: f64) -> f64 {
        match self.config.clip_norm {
            Some(limit) => (limit / (grad_norm + CLIP_FLOOR)).min(1.0),
            None => 1.0,
        }
    }

    /// Whether the moments are numbers. A squared gradient may overflow where the gradient does
    /// not, and its weight would stand still from then on.
    ///
    /// # Errors
    /// [`PolicyError::Weights`] with the first tensor that holds a NaN or an infinity.
    pub fn check_finite(&self) -> Result<(), PolicyError> {
        for (name, Moments { mean, square }) in &self.moments {
            PolicyError::unless_finite(&format!("{name}{MEAN}"), mean)?;
            PolicyError::unless_finite(&format!("{name}{SQUARE}"), square)?;
        }
        for (name, mean, square) in self.device.read()? {
            PolicyError::unless_finite(&format!("{name}{MEAN}"), &mean)?;
            PolicyError::unless_finite(&format!("{name}{SQUARE}"), &square)?;
        }
        Ok(())
    }

    /// Writes moments and step count as one safetensors file.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PolicyError> {
        let on_host = self
            .moments
            .iter()
            .map(|(name, Moments { mean, square })| (name.clone(), mean.clone(), square.clone()));
        let tensors: Vec<_> = on_host
            .chain(self.device.read()?)
            .flat_map(|(name, mean, square)| {
                [
                    (format!("{name}{MEAN}"), vec![mean.len()], mean),
                    (format!("{name}{SQUARE}"), vec![square.len()], square),
                ]
            })
            .collect();
        checkpoint::write_tensors(path, &tensors, [(STEP, self.step.to_string())])
    }

    /// Reads what [`Self::save`] wrote; training then continues byte for byte.
    ///
    /// # Errors
    /// If the file is missing, damaged or not an optimizer state.
    pub fn load(config: AdamWConfig, path: &Path) -> Result<Self, PolicyError> {
        let bytes = checkpoint::read(path)?;
        let damaged = |error: &dyn std::fmt::Display| {
            PolicyError::checkpoint(path, format!("not a whole optimizer state: {error}"))
        };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|error| damaged(&error))?;
        let step = header
            .metadata()
            .as_ref()
            .and_then(|metadata| metadata.get(STEP)?.parse().ok())
            .ok_or_else(|| damaged(&"no step count"))?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| damaged(&error))?;
        let mut moments = BTreeMap::new();
        for (stored, view) in tensors.iter() {
            let Some(name) = stored.strip_suffix(MEAN) else { continue };
            let square =
                tensors.tensor(&format!("{name}{SQUARE}")).map_err(|error| damaged(&error))?;
            let (Some(mean), Some(square)) =
                (checkpoint::widened(&view), checkpoint::widened(&square))
            else {
                return Err(damaged(&format!("{name} is not f32")));
            };
            if mean.len() != square.len() {
                return Err(damaged(&format!("the moments of {name} differ in length")));
            }
            moments.insert(name.to_owned(), Moments { mean, square });
        }
        Ok(Self { config, step, moments, device: DeviceMoments::default() })
    }
}

const MEAN: &str = ".mean";
const SQUARE: &str = ".square";
const STEP: &str = "step";

/// Keeps a zero norm from dividing by zero when clipping; torch's value.
const CLIP_FLOOR: f64 = 1e-6;

/// How the learning rate moves through a run: up to 1, then along a shape.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct Schedule {
    /// The way down after the warm-up.
    pub shape: ScheduleShape,
    /// Steps to climb from nothing to the full rate.
    pub warmup_steps: u64,
    /// What is left at the last step, as a share of the full rate.
    pub final_fraction: f64,
}

impl Default for Schedule {
    fn default() -> Self {
        Self { shape: ScheduleShape::Constant, warmup_steps: 0, final_fraction: 0.0 }
    }
}

/// The way down.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ScheduleShape {
    /// None: stays at the full rate, whatever `final_fraction` says.
    #[default]
    Constant,
    /// Along a line.
    Linear,
    /// Along half a cosine (Loshchilov and Hutter 2017, arXiv:1608.03983).
    Cosine,
}

impl Schedule {
    /// What to multiply the learning rate by at `step` (the first is 0) of `total`.
    pub fn factor(&self, step: u64, total: u64) -> f64 {
        if step < self.warmup_steps {
            return (step + 1) as f64 / (self.warmup_steps + 1) as f64;
        }
        // The last step is total - 1, and is where `final_fraction` is reached.
        let way = total.saturating_sub(1).saturating_sub(self.warmup_steps).max(1);
        let progress = ((step - self.warmup_steps) as f64 / way as f64).min(1.0);
        let left = match self.shape {
            ScheduleShape::Constant => return 1.0,
            ScheduleShape::Linear => 1.0 - progress,
            ScheduleShape::Cosine => 0.5 * (1.0 + (PI * progress).cos()),
        };
        self.final_fraction + (1.0 - self.final_fraction) * left
    }
}

/// The scalars of one tensor's step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Update {
    /// What decay leaves of a weight.
    pub keep: f32,
    pub clip_scale: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub mean_share: f32,
    pub square_share: f32,
    pub rate: f32,
    pub square_root_correction: f32,
    pub eps: f32,
}

impl AdamWConfig {
    /// The scalars of step `step` (the first is 1) for a tensor of `rank` axes.
    fn update(&self, rank: usize, step: u64, clip_scale: f64, learning_rate: f64) -> Update {
        let Self { beta1, beta2, eps, weight_decay, decay, .. } = *self;
        let decays = decay == DecayTargets::All || rank == 2;
        let lambda = if decays { weight_decay } else { 0.0 };
        Update {
            keep: (1.0 - learning_rate * lambda) as f32,
            clip_scale: clip_scale as f32,
            beta1: beta1 as f32,
            beta2: beta2 as f32,
            mean_share: (1.0 - beta1) as f32,
            square_share: (1.0 - beta2) as f32,
            rate: (learning_rate / (1.0 - beta1.powi(step as i32))) as f32,
            square_root_correction: (1.0 - beta2.powi(step as i32)).sqrt() as f32,
            eps: eps as f32,
        }
    }
}

/// The step of one tensor as an in-place operation: candle's way to a variable's storage.
struct FusedUpdate<'a> {
    update: Update,
    gradient: &'a [f32],
    /// The moments, and the squared length of the change once it is done. The lock is only
    /// for `&self`: nothing else holds it.
    moments: Mutex<(&'a mut Moments, f64)>,
}

impl InplaceOp1 for FusedUpdate<'_> {
    fn name(&self) -> &'static str {
        "adamw"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("adamw: a variable is not contiguous");
        };
        let CpuStorage::F32(values) = storage else {
            candle_core::bail!("adamw: a variable is not f32");
        };
        let mut held = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (moments, update_square) = &mut *held;
        let weights = &mut values[start..end];
        if moments.mean.len() != weights.len() {
            candle_core::bail!(
                "adamw: moments of {} values for a variable of {}",
                moments.mean.len(),
                weights.len()
            );
        }
        let chunks = weights
            .par_chunks_mut(CHUNK)
            .zip(self.gradient.par_chunks(CHUNK))
            .zip(moments.mean.par_chunks_mut(CHUNK))
            .zip(moments.square.par_chunks_mut(CHUNK));
        let one_chunk = |(((weights, gradient), mean), square)| {
            step_chunk(weights, gradient, mean, square, self.update)
        };
        *update_square = if self.gradient.len() <= CHUNK {
            step_chunk(weights, self.gradient, &mut moments.mean, &mut moments.square, self.update)
        } else {
            chunks.map(one_chunk).collect::<Vec<f64>>().into_iter().sum()
        };
        Ok(())
    }
}

/// Values one thread takes at a time: large against the cost of handing over.
const CHUNK: usize = 16 * 1024;

/// Independent partial sums, so that the compiler may keep them in one wide register.
const LANES: usize = 16;

/// One pass over a chunk; gives the squared length of the change.
#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn step_chunk(
    weights: &mut [f32],
    gradient: &[f32],
    mean: &mut [f32],
    square: &mut [f32],
    update: Update,
) -> f64 {
    let mut sums = [0.0_f32; LANES];
    let Update { keep, clip_scale, beta1, beta2, .. } = update;
    let Update { mean_share, square_share, rate, square_root_correction, eps, .. } = update;
    let step_lane = |w: &mut f32, g: &f32, m: &mut f32, v: &mut f32, sum: &mut f32| {
        let g = g * clip_scale;
        *m = beta1 * *m + mean_share * g;
        *v = beta2 * *v + square_share * g * g;
        let new = *w * keep - rate * *m / (v.sqrt() / square_root_correction + eps);
        let change = new - *w;
        *sum += change * change;
        *w = new;
    };
    let (weight_rows, weight_rest) = weights.as_chunks_mut::<LANES>();
    let (gradient_rows, gradient_rest) = gradient.as_chunks::<LANES>();
    let (mean_rows, mean_rest) = mean.as_chunks_mut::<LANES>();
    let (square_rows, square_rest) = square.as_chunks_mut::<LANES>();
    for (((w, g), m), v) in
        weight_rows.iter_mut().zip(gradient_rows).zip(mean_rows).zip(square_rows)
    {
        for lane in 0..LANES {
            step_lane(&mut w[lane], &g[lane], &mut m[lane], &mut v[lane], &mut sums[lane]);
        }
    }
    let rest = weight_rest.iter_mut().zip(gradient_rest).zip(mean_rest).zip(square_rest);
    for ((((w, g), m), v), sum) in rest.zip(&mut sums) {
        step_lane(w, g, m, v, sum);
    }
    sums.iter().map(|&sum| f64::from(sum)).sum()
}

/// Σ g², in f64, chunk by chunk in order.
fn sum_of_squares(values: &[f32]) -> f64 {
    if values.len() <= CHUNK {
        return chunk_sum_of_squares(values);
    }
    let sums: Vec<f64> = values.par_chunks(CHUNK).map(chunk_sum_of_squares).collect();
    sums.into_iter().sum()
}

#[multiversion(targets("x86_64+avx512f+avx512vl", "x86_64+avx2"))]
fn chunk_sum_of_squares(values: &[f32]) -> f64 {
    let mut sums = [0.0_f64; LANES];
    let (rows, rest) = values.as_chunks::<LANES>();
    for row in rows {
        for (sum, &value) in sums.iter_mut().zip(row) {
            *sum += f64::from(value) * f64::from(value);
        }
    }
    for (sum, &value) in sums.iter_mut().zip(rest) {
        *sum += f64::from(value) * f64::from(value);
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schedules_climb_then_fall_to_the_final_fraction() {
        let schedule = |shape| Schedule { shape, warmup_steps: 4, final_fraction: 0.1 };
        for shape in [ScheduleShape::Linear, ScheduleShape::Cosine] {
            let factors: Vec<f64> = (0..25).map(|step| schedule(shape).factor(step, 25)).collect();
            assert!((factors[0] - 0.2).abs() < 1e-12);
            assert!((factors[4] - 1.0).abs() < 1e-12);
            assert!((factors[14] - 0.55).abs() < 1e-12, "{}", factors[14]);
            assert!((factors[24] - 0.1).abs() < 1e-12);
            assert!(factors[4..].is_sorted_by(|a, b| a > b));
        }
        assert_eq!(schedule(ScheduleShape::Constant).factor(20, 25), 1.0);
    }

    #[test]
    fn a_run_of_one_step_takes_it_at_the_full_rate() {
        let schedule = Schedule { shape: ScheduleShape::Cosine, ..Schedule::default() };
        assert_eq!(schedule.factor(0, 1), 1.0);
    }

    #[test]
    fn unknown_settings_are_refused() {
        assert!(serde_json::from_str::<AdamWConfig>(r#"{"beta3": 0.9}"#).is_err());
        assert!(serde_json::from_str::<Schedule>(r#"{"shape": "cosine", "warmup": 1}"#).is_err());
    }
}
