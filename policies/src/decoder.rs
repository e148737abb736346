//! The decoder: pre-norm transformer with rotary positions, grouped queries and SwiGLU.
//!
//! ```text
//! x = E[tokens]                                     (tokens, hidden)
//! for each layer:
//!     a = norm(x);  q, k, v = a Wq, a Wk, a Wv      (tokens, heads * head_dim), ...
//!     q, k = rope(norm?(q)), rope(norm?(k))
//!     x = x + attention(q, k, v) Wo
//!     b = norm(x);  x = x + (silu(b Wgate) * (b Wup)) Wdown
//! hidden = norm(x);  logits = hidden Wheadᵀ
//! ```
//!
//! Learning and sampling run the same layers over packed rows ([`crate::layer`]); they differ in
//! one closure, which says where attention finds its keys and values. Learning keeps what the
//! layers computed and runs them in reverse; the formulas of the reverse are
//! in the files of the operations.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::{Tensor, Var};

use crate::TokenId;
use crate::checkpoint;
use crate::error::PolicyError;
use crate::gpu;
use crate::gpu::weights::Resident;
use crate::layer::{Activations, AttentionOver, LayerWeights, Linear, Named, Place};
use crate::lora::{Adapters, LoraConfig};
use crate::model_config::{DecoderShape, ModelConfig};
use crate::ops::matmul::Output;
use crate::ops::slices::Values;
use crate::ops::token_logprobs::{Scored, Slopes};
use crate::ops::{self, Heads, Rotations};
use crate::optimizer::{AdamW, Gradient, GradientSet, StepReport};
use crate::packed::PackedSequences;
use crate::parameters::{self, InitOptions, Parameters};
use crate::pass::{Keep, Pass, sized};

/// A causal language model.
///
/// # Contract (see [`crate::contract::check_decoder`])
/// - A packed batch gives each sequence what it would get alone, and [`Inference`](crate::Inference)
///   gives every row what a forward pass gives it: bit for bit.
/// - A prompt that replies share changes no value, and gradients only by rounding.
/// - Every parameter receives a gradient, and it matches finite differences: by log-probabilities,
///   entropies, hidden states and logits.
/// - Saving and loading is the identity.
/// - With adapters ([`crate::lora`]), only they receive gradients.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: ModelConfig,
    shape: DecoderShape,
    parameters: Parameters,
    /// What is trained beside frozen parameters, if that is how this is trained.
    adapters: Option<Adapters>,
    /// The same storage, by place in the network.
    weights: Weights,
    /// The parameters on a device, where they are then changed; the host's copy follows when it is
    /// [read back](Self::read_back).
    resident: Option<Arc<Resident>>,
    /// Grows to the longest sequence seen; shared by all clones.
    rotations: Arc<RwLock<Arc<Rotations>>>,
}

/// New tokens for one slot of a cache.
#[derive(Clone, Copy, Debug)]
pub struct CacheSpan<'a> {
    /// The slot whose sequence continues.
    pub slot: usize,
    /// At least one token.
    pub tokens: &'a [TokenId],
}

/// What the model thought of given tokens, one of each per token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TokenScores {
    /// log p(target | hidden) in nats.
    pub logprobs: Vec<f32>,
    /// Entropy of the distribution each target was scored under, in nats.
    pub entropies: Vec<f32>,
}

/// The gradient of a loss by what [`Decoder::score`] said of some rows, and by the states it said it
/// of.
#[derive(Clone, Copy, Debug, Default)]
pub struct ScoreGradients<'a> {
    /// By each log-probability, one for each scored row.
    pub logprobs: &'a [f32],
    /// By each entropy, one for each scored row; none counts as zero.
    pub entropies: Option<&'a [f32]>,
    /// By the final normed states of the same rows, `(rows, hidden)`, beside what flows through the
    /// language head: from another head on the same trunk. None counts as zero.
    pub hidden: Option<&'a [f32]>,
}

impl Decoder {
    /// A decoder with fresh weights. Each tensor's values depend on the seed, its name and
    /// its length only.
    ///
    /// # Errors
    /// If the configuration is not one this crate computes.
    pub fn new(config: ModelConfig, init: &InitOptions, seed: u64) -> Result<Self, PolicyError> {
        let parameters = parameters::draw(&config.shape()?, config.initializer_range, init, seed)?;
        Self::from_parameters(config, parameters, None)
    }

    /// Reads `config.json` and `model.safetensors` (or the shards its index lists); f16 and
    /// bf16 widen to f32. A `.gguf` file, or a folder with one and no safetensors, is read whole
    /// from its metadata and tensors, dequantised to f32.
    ///
    /// # Errors
    /// If a file is missing, damaged or cut short, or a tensor is missing, of another shape
    /// or not finite.
    pub fn from_folder(folder: &Path) -> Result<Self, PolicyError> {
        let (config, parameters) = checkpoint::read_model(folder)?;
        Self::from_parameters(config, parameters, None)
    }

    /// Writes `config.json` and `model.safetensors`, which transformers loads, adapters
    /// [merged](Self::merged). Each file is written aside, flushed to disk and renamed, so a crash
    /// leaves old or new, never half.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_folder(&self, folder: &Path) -> Result<(), PolicyError> {
        self.read_back()?;
        checkpoint::write_folder(folder, &self.config, &self.merged()?.parameters)
    }

    /// This model with its parameters on a device, where everything is computed from then on.
    ///
    /// # Errors
    /// If the device has no room for them, the model has adapters, which are trained on the CPU
    /// only, or its heads are wider than the device's kernels take.
    pub fn on(&self, device: &gpu::Device) -> Result<Self, PolicyError> {
        if self.adapters.is_some() {
            return Err(PolicyError::config(ADAPTERS_ON_CPU));
        }
        self.read_back()?;
        let head = if self.shape.tied_head { EMBEDDING } else { HEAD };
        let names = [EMBEDDING, FINAL_NORM, head];
        let (parameters, layers) = (&self.parameters, &self.weights.layers);
        let resident = Resident::new(device, &self.shape, parameters, layers, names)?;
        Ok(Self { resident: Some(Arc::new(resident)), ..self.clone() })
    }

    /// The device this is on; none for the CPU.
    pub fn device(&self) -> Option<&gpu::Device> {
        self.resident.as_ref().map(|it| &it.device)
    }

    /// Brings the host's copy of the parameters up to date with the device, if there is one.
    ///
    /// # Errors
    /// If the device fails.
    pub fn read_back(&self) -> Result<(), PolicyError> {
        self.resident.as_ref().map_or(Ok(()), |it| it.read(&self.parameters))
    }

    /// Whether every [trained](Self::trainable) value is a number.
    ///
    /// # Errors
    /// [`PolicyError::Weights`] with the first tensor that holds a NaN or an infinity, or if the
    /// device fails.
    pub fn check_finite(&self) -> Result<(), PolicyError> {
        self.read_back()?;
        for (name, variable) in self.trainable().iter() {
            PolicyError::unless_finite(name, &Values::of(variable)?)?;
        }
        Ok(())
    }

    /// One step of the optimizer, on what is [trained](Self::trainable).
    ///
    /// # Errors
    /// If a gradient is missing, of another shape or not finite; weights and moments are then as
    /// they were.
    pub fn step(
        &self,
        optimizer: &mut AdamW,
        gradients: &GradientSet,
        learning_rate: f64,
    ) -> Result<StepReport, PolicyError> {
        match &self.resident {
            Some(resident) => optimizer.step_on(resident, gradients.on_device(), learning_rate),
            None => optimizer.step(self.trainable(), gradients, learning_rate),
        }
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The model's own tensors, without adapters; as of the last [`read_back`](Self::read_back)
    /// if this is on a device.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// What training changes: the adapters, or all parameters where there are none.
    pub fn trainable(&self) -> &Parameters {
        self.adapters.as_ref().map_or(&self.parameters, Adapters::parameters)
    }

    /// The adapters, if this has some.
    pub fn adapters(&self) -> Option<&Adapters> {
        self.adapters.as_ref()
    }

    /// This model with fresh adapters, which change nothing yet; its own parameters are shared and
    /// frozen.
    ///
    /// # Errors
    /// If the settings name no map, one there is none of, or a rank of 0.
    pub fn with_adapters(&self, config: &LoraConfig, seed: u64) -> Result<Self, PolicyError> {
        self.adapted(Adapters::draw(&self.shape, config, seed)?)
    }

    /// This model with the adapters of a folder in the layout of PEFT.
    ///
    /// # Errors
    /// If a file is missing or damaged, asks for what is not computed here, or belongs to a model
    /// of other sizes.
    pub fn with_adapter_folder(&self, folder: &Path) -> Result<Self, PolicyError> {
        self.adapted(Adapters::read(folder, &self.shape)?)
    }

    /// Writes the adapters in the layout of PEFT, if there are some. `base` says where the model
    /// is that they adapt.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_adapter(&self, folder: &Path, base: &str) -> Result<(), PolicyError> {
        self.adapters.as_ref().map_or(Ok(()), |adapters| adapters.write(folder, base))
    }

    /// The model without its adapters; shares their storage with this.
    ///
    /// # Errors
    /// If the configuration contradicts itself.
    pub fn base(&self) -> Result<Self, PolicyError> {
        self.read_back()?;
        Self::from_parameters(self.config.clone(), self.parameters.clone(), None)
    }

    /// The same model without adapters, their differences added to its parameters; itself if it
    /// has none.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn merged(&self) -> Result<Self, PolicyError> {
        if self.adapters.is_none() {
            return Ok(self.clone());
        }
        let mut parameters = self.parameters.clone();
        for layer in &self.weights.layers {
            for linear in layer.linears() {
                if linear.adapter.is_some() {
                    let values = linear.merged()?;
                    let dims = linear.weight.values.dims();
                    let tensor = Tensor::from_vec(values, dims, &candle_core::Device::Cpu)?;
                    parameters.insert(linear.weight.name.clone(), Var::from_tensor(&tensor)?);
                }
            }
        }
        Self::from_parameters(self.config.clone(), parameters, None)
    }

    /// A copy with storage of its own for what is trained: a reference policy, or a published
    /// version. Frozen parameters are shared. On the same device as this.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn snapshot(&self) -> Result<Self, PolicyError> {
        if let Some(adapters) = &self.adapters {
            return self.adapted(adapters.deep_copy()?);
        }
        self.read_back()?;
        let parameters = self.parameters.deep_copy()?;
        let copy = Self::from_parameters(self.config.clone(), parameters, None)?;
        match self.device() {
            Some(device) => copy.on(device),
            None => Ok(copy),
        }
    }

    /// Overwrites this decoder's [trainable](Self::trainable) values, in place, with another's.
    ///
    /// # Errors
    /// If the two differ in shape or adapters.
    pub fn copy_from(&self, other: &Self) -> Result<(), PolicyError> {
        if self.shape != other.shape {
            return Err(PolicyError::input(format!(
                "cannot copy weights between decoders of different shape: {:?} and {:?}",
                self.shape, other.shape
            )));
        }
        let settings = |it: &Self| it.adapters.as_ref().map(|it| it.config().clone());
        if settings(self) != settings(other) {
            return Err(PolicyError::input(format!(
                "cannot copy weights between decoders with different adapters: {:?} and {:?}",
                settings(self),
                settings(other)
            )));
        }
        other.read_back()?;
        for ((_, to), (_, from)) in self.trainable().iter().zip(other.trainable().iter()) {
            if !same_storage(to, from) {
                to.set(from)?;
            }
        }
        self.resident.as_ref().map_or(Ok(()), |it| it.write(&self.parameters))
    }

    /// Runs all layers over packed sequences and keeps in `pass` what it was made to keep.
    ///
    /// # Errors
    /// If there is no token, or one is outside the vocabulary.
    pub fn forward(&self, pass: &mut Pass, sequences: &PackedSequences) -> Result<(), PolicyError> {
        if sequences.rows() == 0 {
            return Err(PolicyError::input("a forward pass over no tokens"));
        }
        self.check_vocabulary(sequences.tokens())?;
        pass.sequences = sequences.clone();
        pass.rows.clear();
        pass.scored.clear();
        let (rows, hidden) = (sequences.rows(), self.shape.hidden);
        let rotations = self.rotations_to(sequences.positions());
        if let Some(resident) = &self.resident {
            return resident.forward(&mut pass.device, pass.keep, sequences, &rotations);
        }
        let keeps_inputs = pass.keep != Keep::Nothing;
        let inputs = if keeps_inputs { self.shape.layers + 1 } else { 2 };
        pass.inputs.resize_with(inputs, Vec::new);
        let layers = if pass.keep == Keep::Activations { self.shape.layers } else { 1 };
        pass.layers.resize_with(layers, Activations::default);
        self.embed(sequences.tokens(), sized(&mut pass.inputs[0], rows * hidden))?;
        let heads = self.heads();
        for (index, layer) in self.weights.layers.iter().enumerate() {
            let (from, to) =
                if keeps_inputs { (index, index + 1) } else { (index % 2, 1 - index % 2) };
            let [x, next] = pass.inputs.get_disjoint_mut([from, to]).expect("two buffers");
            let view = layer.view(&self.shape)?;
            pass.packed.pack(&view, &mut pass.scratch.merged);
            let activations = &mut pass.layers[if layers == 1 { 0 } else { index }];
            let place = Place { positions: sequences.positions(), rotations: &rotations };
            view.forward(
                &pass.packed,
                place,
                x,
                activations,
                next,
                &mut pass.scratch,
                &mut |q, k, v, out| {
                    ops::attention::forward(q, k, v, sequences, heads, out);
                },
            );
        }
        pass.last = if keeps_inputs { self.shape.layers } else { self.shape.layers % 2 };
        Ok(())
    }

    /// Final normed hidden states of some rows of the last [`forward`](Self::forward),
    /// `(rows, hidden)`. Asked for between a [`score`](Self::score) of the same rows and its backward
    /// pass, for another head on the same trunk, they leave the score as it is.
    ///
    /// # Errors
    /// If there was no forward pass, or it has fewer rows.
    pub fn hidden<'a>(&self, pass: &'a mut Pass, rows: &[u32]) -> Result<&'a [f32], PolicyError> {
        check_rows(pass, rows)?;
        let hidden = self.shape.hidden;
        let selected = pass.rows == rows && !rows.is_empty();
        if !selected {
            pass.scored.clear();
            pass.rows.clear();
            pass.rows.extend_from_slice(rows);
        }
        if let Some(resident) = &self.resident {
            if !selected {
                resident.select(&mut pass.device, rows, &[])?;
            }
            pass.normed = resident.selected(&mut pass.device)?;
            return Ok(&pass.normed);
        }
        if selected {
            return Ok(&pass.normed[..rows.len() * hidden]);
        }
        let Pass { inputs, last, selected, normed, .. } = pass;
        let selected = sized(selected, rows.len() * hidden);
        ops::embedding::forward(&inputs[*last], hidden, rows, selected);
        let normed = sized(normed, rows.len() * hidden);
        self.final_norm(selected, normed)?;
        Ok(normed)
    }

    /// log p(target | row) at a temperature for some rows of the last
    /// [`forward`](Self::forward), and the entropy of each. Works in chunks of rows: never holds
    /// `(rows, vocab)` unless it is small.
    ///
    /// # Errors
    /// If there is not one target for each row, a row or target does not exist, or the
    /// temperature is not positive.
    pub fn score(
        &self,
        pass: &mut Pass,
        rows: &[u32],
        targets: &[TokenId],
        temperature: f64,
    ) -> Result<TokenScores, PolicyError> {
        if rows.len() != targets.len() {
            return Err(PolicyError::input(format!(
                "{} targets for {} rows",
                targets.len(),
                rows.len()
            )));
        }
        check_temperature(temperature)?;
        self.check_vocabulary(targets)?;
        if let Some(resident) = &self.resident {
            check_rows(pass, rows)?;
            pass.rows.clear();
            pass.rows.extend_from_slice(rows);
            return resident.score(&mut pass.device, rows, targets, temperature);
        }
        self.hidden(pass, rows)?;
        let hidden = self.shape.hidden;
        let normed = &pass.normed[..rows.len() * hidden];
        let head = Values::of(&self.weights.head)?;
        let (logprobs, entropies) = ops::token_logprobs::forward(
            normed,
            hidden,
            &head,
            targets,
            temperature,
            &mut pass.scored,
        );
        Ok(TokenScores { logprobs, entropies })
    }

    /// Adds to `gradients` those of every parameter, from the gradient of a loss by each
    /// log-probability of the last [`score`](Self::score). Uses up what the pass kept.
    ///
    /// # Errors
    /// As [`backward_scores`](Self::backward_scores).
    pub fn backward(
        &self,
        pass: &mut Pass,
        d_logprobs: &[f32],
        gradients: &mut GradientSet,
    ) -> Result<(), PolicyError> {
        let by = ScoreGradients { logprobs: d_logprobs, ..ScoreGradients::default() };
        self.backward_scores(pass, &by, gradients)
    }

    /// The same from the gradient by log-probabilities, entropies and hidden states together.
    ///
    /// # Errors
    /// If the pass kept nothing, its rows were not scored, there is not one gradient for each of
    /// them, or the decoder is on a device and there are gradients by entropies or states, which are
    /// computed on the CPU only.
    pub fn backward_scores(
        &self,
        pass: &mut Pass,
        by: &ScoreGradients<'_>,
        gradients: &mut GradientSet,
    ) -> Result<(), PolicyError> {
        let (rows, hidden) = (pass.rows.len(), self.shape.hidden);
        check_count(by.logprobs, rows, "log-probabilities of scored rows")?;
        if let Some(entropies) = by.entropies {
            check_count(entropies, rows, "entropies of scored rows")?;
        }
        if let Some(states) = by.hidden {
            check_count(states, rows * hidden, "elements of the scored rows' hidden states")?;
        }
        must_have_kept(pass)?;
        if let Some(resident) = &self.resident {
            if by.entropies.is_some() || by.hidden.is_some() {
                return Err(on_cpu_only("gradients by entropies and hidden states"));
            }
            return resident.backward(&mut pass.device, by.logprobs, gradients.device_mut());
        }
        if pass.scored.rows() != rows {
            return Err(PolicyError::input("a backward pass over rows that were not scored"));
        }
        let slopes = Slopes { logprobs: by.logprobs, entropies: by.entropies };
        self.backward_head(pass, by.hidden, gradients, |normed, head, scored, d_hidden, d_head| {
            let backward = ops::token_logprobs::backward;
            backward(normed, hidden, head, slopes, scored, d_hidden, d_head);
        })
    }

    /// Logits of some rows of the last [`forward`](Self::forward), each divided by the
    /// temperature, `(rows, vocab)`: for losses over whole distributions. Holds them all, so the
    /// caller cuts its rows into micro-batches.
    ///
    /// # Errors
    /// If a row does not exist, the temperature is not positive, or the decoder is on a device.
    pub fn logits(
        &self,
        pass: &mut Pass,
        rows: &[u32],
        temperature: f64,
    ) -> Result<Vec<f32>, PolicyError> {
        check_temperature(temperature)?;
        if self.resident.is_some() {
            return Err(on_cpu_only("logits of a forward pass"));
        }
        self.hidden(pass, rows)?;
        let hidden = self.shape.hidden;
        let normed = &pass.normed[..rows.len() * hidden];
        let head = Values::of(&self.weights.head)?;
        let scored = &mut pass.scored;
        Ok(ops::token_logprobs::logits(normed, hidden, &head, temperature, scored))
    }

    /// Adds to `gradients` those of every parameter, from the gradient of a loss by the last
    /// [`logits`](Self::logits) as they were returned, `(rows, vocab)`. Uses up what the pass kept.
    ///
    /// # Errors
    /// If the pass kept nothing, no logits were asked for, there is not one gradient for each, or
    /// the decoder is on a device.
    pub fn backward_logits(
        &self,
        pass: &mut Pass,
        d_logits: &[f32],
        gradients: &mut GradientSet,
    ) -> Result<(), PolicyError> {
        if self.resident.is_some() {
            return Err(on_cpu_only("gradients by logits"));
        }
        check_count(d_logits, pass.rows.len() * self.shape.vocab, "logits")?;
        must_have_kept(pass)?;
        let Some(scale) = pass.scored.inverse_temperature() else {
            return Err(PolicyError::input("a backward pass over logits that were not asked for"));
        };
        let hidden = self.shape.hidden;
        self.backward_head(pass, None, gradients, |normed, head, _, d_hidden, d_head| {
            let backward = ops::token_logprobs::logits_backward;
            backward(normed, hidden, head, d_logits, scale, d_hidden, d_head);
        })
    }

    /// The backward pass of the language head, then that of everything below. `through` gives, for
    /// at least one row, the gradient by the normed states and adds to or replaces that of the
    /// head; `beside` is added to the former.
    fn backward_head(
        &self,
        pass: &mut Pass,
        beside: Option<&[f32]>,
        gradients: &mut GradientSet,
        through: impl FnOnce(&[f32], &[f32], &mut Scored, &mut [f32], Option<(&mut [f32], Output)>),
    ) -> Result<(), PolicyError> {
        let count = pass.rows.len() * self.shape.hidden;
        let mut d_hidden = std::mem::take(&mut pass.d_hidden);
        sized(&mut d_hidden, count);
        {
            let head = Values::of(&self.weights.head)?;
            let name = if self.shape.tied_head { EMBEDDING } else { HEAD };
            let mut d_head = self.trained().then(|| gradients.take(name, &self.weights.head));
            if count == 0 {
                // A gradient of zero, not what an earlier update left.
                d_head.as_mut().map(Gradient::summed);
            } else {
                let output = d_head.as_mut().map(Gradient::output);
                let into = d_head.as_mut().map(Gradient::values).zip(output);
                let Pass { normed, scored, .. } = pass;
                through(&normed[..count], &head, scored, &mut d_hidden[..count], into);
            }
            if let Some(d_head) = d_head {
                gradients.put(name, d_head);
            }
        }
        for (sum, value) in d_hidden.iter_mut().zip(beside.unwrap_or_default()) {
            *sum += value;
        }
        self.backward_hidden(pass, &d_hidden[..count], gradients)?;
        pass.d_hidden = d_hidden;
        Ok(())
    }

    /// The same from the gradient by the rows that [`hidden`](Self::hidden) gave last,
    /// `(rows, hidden)`: for heads other than the model's own.
    ///
    /// # Errors
    /// If the pass kept nothing, or there is not one gradient for each element of those rows.
    pub fn backward_hidden(
        &self,
        pass: &mut Pass,
        d_hidden: &[f32],
        gradients: &mut GradientSet,
    ) -> Result<(), PolicyError> {
        must_have_kept(pass)?;
        let count = pass.rows.len() * self.shape.hidden;
        check_count(d_hidden, count, "elements of hidden states")?;
        if let Some(resident) = &self.resident {
            let gradients = gradients.device_mut();
            return resident.backward_hidden(&mut pass.device, d_hidden, gradients);
        }
        let hidden = self.shape.hidden;
        let total = pass.sequences.rows() * hidden;
        let eps = self.shape.rms_norm_eps as f32;
        // Gradient by the residual stream, which flows from the last layer to the first.
        let mut g = std::mem::take(&mut pass.g);
        g.clear();
        g.resize(total, 0.0);
        {
            let weight = Values::of(&self.weights.final_norm.values)?;
            let d_selected = sized(&mut pass.scratch.normed, count);
            d_selected.fill(0.0);
            let (selected, d_normed) = (&pass.selected[..count], &d_hidden[..count]);
            gradients.sum_into(&self.weights.final_norm, self.trained(), |dw| {
                ops::rms_norm::backward(selected, &weight, d_normed, eps, d_selected, dw);
            });
            ops::embedding::backward(d_selected, hidden, &pass.rows, &mut g);
        }
        let sequences = std::mem::take(&mut pass.sequences);
        let rotations = self.rotations_to(sequences.positions());
        let place = Place { positions: sequences.positions(), rotations: &rotations };
        let heads = self.heads();
        for (index, layer) in self.weights.layers.iter().enumerate().rev() {
            let view = layer.view(&self.shape)?;
            let [x, next] = pass.inputs.get_disjoint_mut([index, index + 1]).expect("two buffers");
            let activations = if pass.keep == Keep::Activations {
                &mut pass.layers[index]
            } else {
                pass.packed.pack(&view, &mut pass.scratch.merged);
                let activations = &mut pass.layers[0];
                let attend: AttentionOver<'_> = &mut |q, k, v, out| {
                    ops::attention::forward(q, k, v, &sequences, heads, out);
                };
                view.forward(&pass.packed, place, x, activations, next, &mut pass.scratch, attend);
                activations
            };
            view.backward(
                layer,
                place,
                &sequences,
                x,
                activations,
                &mut g,
                &mut pass.scratch,
                gradients,
            );
        }
        if self.trained() {
            let mut d_embedding = gradients.take(EMBEDDING, &self.weights.embedding);
            ops::embedding::backward(&g, hidden, sequences.tokens(), d_embedding.summed());
            gradients.put(EMBEDDING, d_embedding);
        }
        pass.sequences = sequences;
        pass.g = g;
        Ok(())
    }

    pub(crate) fn resident(&self) -> Option<&Resident> {
        self.resident.as_deref()
    }

    pub(crate) fn shape(&self) -> &DecoderShape {
        &self.shape
    }

    pub(crate) fn layers(&self) -> &[LayerWeights] {
        &self.weights.layers
    }

    pub(crate) fn head(&self) -> &Tensor {
        &self.weights.head
    }

    /// The embedding's rows of some tokens.
    pub(crate) fn embed(&self, tokens: &[TokenId], out: &mut [f32]) -> Result<(), PolicyError> {
        let table = Values::of(&self.weights.embedding)?;
        ops::embedding::forward(&table, self.shape.hidden, tokens, out);
        Ok(())
    }

    /// Whether the model's own parameters are trained.
    fn trained(&self) -> bool {
        self.adapters.is_none()
    }

    fn adapted(&self, adapters: Adapters) -> Result<Self, PolicyError> {
        if self.resident.is_some() {
            return Err(PolicyError::config(ADAPTERS_ON_CPU));
        }
        Self::from_parameters(self.config.clone(), self.parameters.clone(), Some(adapters))
    }

    pub(crate) fn from_parameters(
        config: ModelConfig,
        parameters: Parameters,
        adapters: Option<Adapters>,
    ) -> Result<Self, PolicyError> {
        let shape = config.shape()?;
        let weights = Weights::new(&shape, &parameters, adapters.as_ref());
        let rotations = rotations(&shape, FIRST_POSITIONS);
        let rotations = Arc::new(RwLock::new(Arc::new(rotations)));
        Ok(Self { config, shape, parameters, adapters, weights, resident: None, rotations })
    }

    pub(crate) fn final_norm(&self, x: &[f32], out: &mut [f32]) -> Result<(), PolicyError> {
        let weight = Values::of(&self.weights.final_norm.values)?;
        ops::rms_norm::forward(x, &weight, self.shape.rms_norm_eps as f32, out);
        Ok(())
    }

    pub(crate) fn heads(&self) -> Heads {
        let DecoderShape { heads, kv_heads, head_dim, .. } = self.shape;
        Heads { heads, kv_heads, head_dim }
    }

    /// The table of rotations, grown to hold every one of the positions.
    pub(crate) fn rotations_to(&self, positions: &[u32]) -> Arc<Rotations> {
        let wanted = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let held = self.rotations.read().unwrap_or_else(PoisonError::into_inner).clone();
        if held.positions() >= wanted {
            return held;
        }
        let grown = Arc::new(rotations(&self.shape, wanted.next_power_of_two()));
        *self.rotations.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&grown);
        grown
    }

    pub(crate) fn check_vocabulary(&self, tokens: &[TokenId]) -> Result<(), PolicyError> {
        match tokens.iter().find(|&&token| token as usize >= self.shape.vocab) {
            None => Ok(()),
            Some(token) => Err(PolicyError::input(format!(
                "token {token} is outside the vocabulary of {}",
                self.shape.vocab
            ))),
        }
    }
}

fn check_rows(pass: &Pass, rows: &[u32]) -> Result<(), PolicyError> {
    let held = pass.sequences.rows();
    match rows.iter().find(|row| **row as usize >= held) {
        None => Ok(()),
        Some(row) => Err(PolicyError::input(format!("row {row} of a forward pass over {held}"))),
    }
}

fn check_temperature(temperature: f64) -> Result<(), PolicyError> {
    if temperature > 0.0 && temperature.is_finite() {
        return Ok(());
    }
    Err(PolicyError::input(format!("temperature is {temperature}, expected a positive number")))
}

/// Refuses gradients of another number than what they are by.
fn check_count(gradients: &[f32], expected: usize, by: &str) -> Result<(), PolicyError> {
    if gradients.len() == expected {
        return Ok(());
    }
    Err(PolicyError::input(format!("{} gradients by {expected} {by}", gradients.len())))
}

/// Refuses what no device computes yet.
pub(crate) fn on_cpu_only(what: &str) -> PolicyError {
    PolicyError::device(format!("{what} are computed on the CPU only so far"))
}

pub(crate) fn must_have_kept(pass: &Pass) -> Result<(), PolicyError> {
    if pass.keep == Keep::Nothing {
        let told = "a backward pass over a forward pass that kept nothing";
        return Err(PolicyError::input(told));
    }
    Ok(())
}

const ADAPTERS_ON_CPU: &str =
    "low-rank adapters are computed on the CPU only: merge them into the model, or use the CPU";

/// Positions the rotation table starts with.
const FIRST_POSITIONS: usize = 64;

fn rotations(shape: &DecoderShape, positions: usize) -> Rotations {
    Rotations::new(shape.head_dim, shape.rope_theta, &shape.rope_scaling, positions)
}

fn same_storage(one: &Tensor, other: &Tensor) -> bool {
    one.id() == other.id()
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const FINAL_NORM: &str = "model.norm.weight";
pub(crate) const HEAD: &str = "lm_head.weight";

/// The parameters by their place in the network.
#[derive(Clone, Debug)]
struct Weights {
    embedding: Tensor,
    layers: Vec<LayerWeights>,
    final_norm: Named,
    head: Tensor,
}

impl Weights {
    /// # Panics
    /// If `parameters` lacks one that `parameters::specs` lists for this shape.
    fn new(shape: &DecoderShape, parameters: &Parameters, adapters: Option<&Adapters>) -> Self {
        let optional = |name: &str| parameters.get(name).map(Var::as_detached_tensor);
        let tensor = |name: &str| {
            optional(name).unwrap_or_else(|| panic!("parameters are drawn or read whole: {name}"))
        };
        let layer = |index: usize| {
            let named = |rest: &str| {
                let name = format!("model.layers.{index}.{rest}");
                Named { values: tensor(&name), name }
            };
            let maybe = |rest: &str| {
                let name = format!("model.layers.{index}.{rest}");
                optional(&name).map(|values| Named { values, name })
            };
            let linear = |rest: &str| Linear {
                weight: named(&format!("{rest}.weight")),
                bias: maybe(&format!("{rest}.bias")),
                adapter: adapters.and_then(|it| it.of(&format!("model.layers.{index}.{rest}"))),
            };
            LayerWeights {
                frozen: adapters.is_some(),
                attention_norm: named("input_layernorm.weight"),
                query: linear("self_attn.q_proj"),
                key: linear("self_attn.k_proj"),
                value: linear("self_attn.v_proj"),
                query_norm: maybe("self_attn.q_norm.weight"),
                key_norm: maybe("self_attn.k_norm.weight"),
                output: linear("self_attn.o_proj"),
                feed_forward_norm: named("post_attention_layernorm.weight"),
                gate: linear("mlp.gate_proj"),
                up: linear("mlp.up_proj"),
                down: linear("mlp.down_proj"),
            }
        };
        let embedding = tensor(EMBEDDING);
        Self {
            head: if shape.tied_head { embedding.clone() } else { tensor(HEAD) },
            embedding,
            layers: (0..shape.layers).map(layer).collect(),
            final_norm: Named { values: tensor(FINAL_NORM), name: FINAL_NORM.to_owned() },
        }
    }
}
