//! A head of one value a token, on a decoder of its own or on one that is shared.
//!
//! ```text
//! value_t = Σ_j w_j hidden_tj              hidden: final normed states, (rows, hidden)
//! dhidden_t = d_t w        dw = Σ_t d_t hidden_t
//! ```
//!
//! A [`ScalarModel`] is a reward model (Ouyang et al. 2022, arXiv:2203.02155, section 3.5) or a
//! critic. On disk it is what transformers calls `...ForSequenceClassification` with one label:
//! `model.*` and `score.weight` `(1, hidden)`, without a bias. Sums run in f64, over a row in the order
//! of its columns and over rows in their own.

use std::path::Path;

use candle_core::{Device, Tensor, Var};
use rand_distr::{Distribution, Normal};
use safetensors::tensor::SafeTensors;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::TokenId;
use crate::checkpoint;
use crate::decoder::{self, Decoder};
use crate::error::PolicyError;
use crate::gpu;
use crate::layer::Named;
use crate::model_config::{DecoderShape, ModelConfig};
use crate::models;
use crate::ops::slices::Values;
use crate::optimizer::{AdamW, GradientSet, StepReport};
use crate::packed::PackedSequences;
use crate::parameters::{ParameterSpec, Parameters, Role, named_stream};
use crate::pass::Pass;

/// The head's only parameter, as transformers names it.
const SCORE: &str = "score.weight";

/// What no head here has.
const BIAS: &str = "score.bias";

/// How the weight of a fresh [`ScalarHead`] is drawn.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeadInit {
    /// Normal with deviation 1 / sqrt(hidden + 1), so that first values are near 1 in size: for reward
    /// models (Stiennon et al. 2020, arXiv:2009.01325, appendix B).
    #[default]
    Scaled,
    /// All zero, so that first values are 0: for critics, whose first advantages are then the
    /// rewards.
    Zero,
    /// Normal with the given deviation.
    Normal {
        /// At least 0.
        std: f64,
    },
}

/// One value for each hidden state. See the head of this file.
#[derive(Clone, Debug)]
pub struct ScalarHead {
    weight: Named,
    parameters: Parameters,
}

impl ScalarHead {
    /// A fresh head on states of this width; its values depend on the seed alone.
    ///
    /// # Errors
    /// If the width is 0, or the deviation is not a number of at least 0.
    pub fn new(width: usize, init: HeadInit, seed: u64) -> Result<Self, PolicyError> {
        let std = match init {
            HeadInit::Scaled => 1.0 / (width as f64 + 1.0).sqrt(),
            HeadInit::Zero => 0.0,
            HeadInit::Normal { std } => std,
        };
        let normal = Normal::new(0.0, std).ok().filter(|_| std >= 0.0 && std.is_finite());
        let Some(normal) = normal else {
            return Err(PolicyError::config(format!(
                "standard deviation of {SCORE} is {std}, expected a number of at least 0"
            )));
        };
        let mut stream = named_stream(seed, SCORE);
        // With a deviation of 0 a draw may be -0, which is another pattern of bits.
        let draw = |_| normal.sample(&mut stream) as f32 + 0.0;
        Self::of((0..width).map(draw).collect())
    }

    fn of(values: Vec<f32>) -> Result<Self, PolicyError> {
        if values.is_empty() {
            return Err(PolicyError::config("a head on hidden states of width 0"));
        }
        let dims = (1, values.len());
        Self::sharing(Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu)?)?)
    }

    fn sharing(variable: Var) -> Result<Self, PolicyError> {
        let weight = Named { name: SCORE.to_owned(), values: variable.as_detached_tensor() };
        let mut parameters = Parameters::default();
        parameters.insert(SCORE.to_owned(), variable);
        Ok(Self { weight, parameters })
    }

    /// Width of the states.
    pub fn width(&self) -> usize {
        self.weight.values.elem_count()
    }

    /// `score.weight`, `(1, hidden)`.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// One value for each state, from final normed ones `(rows, hidden)`, as
    /// [`Decoder::hidden`] gives them.
    ///
    /// # Errors
    /// If the states are not whole rows.
    pub fn values(&self, normed_hidden: &[f32]) -> Result<Vec<f32>, PolicyError> {
        self.rows_of(normed_hidden)?;
        let weight = Values::of(&self.weight.values)?;
        let value = |row: &[f32]| {
            row.iter().zip(&*weight).map(|(h, w)| f64::from(*h) * f64::from(*w)).sum::<f64>() as f32
        };
        Ok(normed_hidden.chunks_exact(self.width()).map(value).collect())
    }

    /// Adds to `gradients` that of the weight, and returns that by the states, `(rows, hidden)`, from
    /// the gradient by each value: for [`crate::ScoreGradients::hidden`] or
    /// [`Decoder::backward_hidden`].
    ///
    /// # Errors
    /// If the states are not whole rows, or there is not one gradient for each.
    pub fn backward(
        &self,
        normed_hidden: &[f32],
        d_values: &[f32],
        gradients: &mut GradientSet,
    ) -> Result<Vec<f32>, PolicyError> {
        let rows = self.rows_of(normed_hidden)?;
        if d_values.len() != rows {
            let told = format!("{} gradients by {rows} values", d_values.len());
            return Err(PolicyError::input(told));
        }
        let width = self.width();
        let mut sums = vec![0.0_f64; width];
        for (row, slope) in normed_hidden.chunks_exact(width).zip(d_values) {
            for (sum, h) in sums.iter_mut().zip(row) {
                *sum += f64::from(*slope) * f64::from(*h);
            }
        }
        gradients.sum_into(&self.weight, true, |gradient| {
            for (total, sum) in gradient.into_iter().flatten().zip(&sums) {
                *total += *sum as f32;
            }
        });
        let weight = Values::of(&self.weight.values)?;
        Ok(d_values.iter().flat_map(|slope| weight.iter().map(move |w| slope * w)).collect())
    }

    /// A copy with storage of its own.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn snapshot(&self) -> Result<Self, PolicyError> {
        Self::of(Values::of(&self.weight.values)?.to_vec())
    }

    /// Overwrites the weight, in place, with another's.
    ///
    /// # Errors
    /// If the two differ in width.
    pub fn copy_from(&self, other: &Self) -> Result<(), PolicyError> {
        let (own, width) = (self.width(), other.width());
        if own != width {
            let told = format!("cannot copy a head on states of width {width} to one of {own}");
            return Err(PolicyError::input(told));
        }
        for ((_, to), (_, from)) in self.parameters.iter().zip(other.parameters.iter()) {
            if to.id() != from.id() {
                to.set(from)?;
            }
        }
        Ok(())
    }

    /// Writes the weight as one safetensors file, for a head whose trunk is stored elsewhere.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), PolicyError> {
        let values = Values::of(&self.weight.values)?.to_vec();
        let tensors = [(SCORE.to_owned(), vec![1, values.len()], values)];
        checkpoint::write_tensors(path, &tensors, [("format", "pt".to_owned())])
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// If the file is missing or damaged, or its weight is not `(1, hidden)` or not finite.
    pub fn load(path: &Path) -> Result<Self, PolicyError> {
        let bytes = checkpoint::read(path)?;
        let tensors = SafeTensors::deserialize(&bytes).map_err(|error| {
            PolicyError::checkpoint(path, format!("not a whole safetensors file: {error}"))
        })?;
        let Ok(view) = tensors.tensor(SCORE) else {
            return Err(PolicyError::checkpoint(path, format!("tensor {SCORE} is missing")));
        };
        let width = view.shape().last().copied().unwrap_or(0);
        checkpoint::check_dims(path, SCORE, view.shape(), &[1, width])?;
        let Some(values) = checkpoint::widened(&view) else {
            let told = format!("tensor {SCORE} is neither F32, F16 nor BF16");
            return Err(PolicyError::checkpoint(path, told));
        };
        checkpoint::check_finite(path, SCORE, &values)?;
        Self::of(values)
    }

    fn rows_of(&self, normed_hidden: &[f32]) -> Result<usize, PolicyError> {
        let width = self.width();
        if normed_hidden.len().is_multiple_of(width) {
            return Ok(normed_hidden.len() / width);
        }
        Err(PolicyError::input(format!(
            "{} elements of hidden states for a head on rows of {width}",
            normed_hidden.len()
        )))
    }
}

/// A decoder below a head of one value a token, in place of its language head. Trained whole, on the
/// CPU.
///
/// # Contract (see [`crate::contract::check_scalar_model`])
/// - A packed batch gives each sequence what it would get alone: bit for bit.
/// - Every parameter, the head's too, receives a gradient, and it matches finite differences.
/// - Saving and loading is the identity.
///
/// transformers reads the value of a whole text at the token that
/// [`pooled_position`](Self::pooled_position) gives.
#[derive(Clone, Debug)]
pub struct ScalarModel {
    decoder: Decoder,
    head: ScalarHead,
    /// Both, by name; the same storage.
    parameters: Parameters,
}

impl ScalarModel {
    /// The trunk of a language model, copied, with a fresh head. Adapters are merged; a model on a
    /// device is read back, and the copy is on the CPU.
    ///
    /// Where the configuration names no filler, `pad_token_id` becomes the first token of texts,
    /// else the smallest id that ends none: transformers takes no batch without one.
    ///
    /// # Errors
    /// If the deviation is not a number of at least 0, or a device fails.
    pub fn from_decoder(decoder: &Decoder, init: HeadInit, seed: u64) -> Result<Self, PolicyError> {
        decoder.read_back()?;
        let mut config = decoder.config().clone();
        config.architectures = vec![models::family_of(&config)?.classifier()];
        config.tie_word_embeddings = true;
        config.pad_token_id = config.pad_token_id.or_else(|| filler(&config));
        config.other.insert("id2label".to_owned(), json!({"0": "LABEL_0"}));
        config.other.insert("label2id".to_owned(), json!({"LABEL_0": 0}));
        // It would contradict the labels.
        config.other.remove("num_labels");
        let mut parameters = decoder.merged()?.parameters().clone();
        // Without it there is no head to train that no value depends on.
        parameters.remove(decoder::HEAD);
        let head = ScalarHead::new(config.hidden_size, init, seed)?;
        Self::from_parts(config, parameters.deep_copy()?, head)
    }

    /// Reads a folder in the layout of transformers' sequence classification with one label. A
    /// language head in it is ignored.
    ///
    /// # Errors
    /// If a file is missing, damaged or cut short, the head gives more than one value or has a bias,
    /// or a tensor is missing, of another shape or not finite.
    pub fn from_folder(folder: &Path) -> Result<Self, PolicyError> {
        let score = |shape: &DecoderShape| ParameterSpec {
            name: SCORE.to_owned(),
            dims: vec![1, shape.hidden],
            role: Role::Values,
        };
        let (mut config, mut parameters) = checkpoint::read_scalar_model(folder, score, &[BIAS])?;
        config.architectures = vec![models::family_of(&config)?.classifier()];
        let label = || Value::Object(Map::from_iter([("0".to_owned(), json!("LABEL_0"))]));
        config.other.entry("id2label").or_insert_with(label);
        let Some(score) = parameters.remove(SCORE) else {
            return Err(PolicyError::checkpoint(folder, format!("tensor {SCORE} is missing")));
        };
        Self::from_parts(config, parameters, ScalarHead::sharing(score)?)
    }

    fn from_parts(
        config: ModelConfig,
        trunk: Parameters,
        head: ScalarHead,
    ) -> Result<Self, PolicyError> {
        let parameters = trunk.joined(head.parameters())?;
        Ok(Self { decoder: Decoder::from_parameters(config, trunk, None)?, head, parameters })
    }

    /// Writes `config.json` and `model.safetensors`, which transformers loads as
    /// `AutoModelForSequenceClassification`. A crash leaves old or new files, never half.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_folder(&self, folder: &Path) -> Result<(), PolicyError> {
        checkpoint::write_folder(folder, self.config(), &self.parameters)
    }

    /// This model with its trunk on a device: for [`values`](Self::values), not for training.
    ///
    /// # Errors
    /// If the device has no room for it, or its kernels do not take its heads.
    pub fn on(&self, device: &gpu::Device) -> Result<Self, PolicyError> {
        Ok(Self { decoder: self.decoder.on(device)?, ..self.clone() })
    }

    /// The configuration; its `architectures` names the class of transformers.
    pub fn config(&self) -> &ModelConfig {
        self.decoder.config()
    }

    /// The trunk. Its language head is the embedding and means nothing.
    pub fn decoder(&self) -> &Decoder {
        &self.decoder
    }

    /// The head.
    pub fn head(&self) -> &ScalarHead {
        &self.head
    }

    /// What is trained: the trunk and the head.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The position in a text at which transformers reads its value: the last token that is not
    /// the filler (`pad_token_id`), or the first if there is no other. A text that ends in the
    /// filler, as where a model ends its texts with it, is read before it.
    pub fn pooled_position(&self, tokens: &[TokenId]) -> usize {
        let pad = self.config().pad_token_id;
        tokens.iter().rposition(|token| Some(*token) != pad).unwrap_or(0)
    }

    /// The values of some rows of packed sequences, after a forward pass over them.
    ///
    /// # Errors
    /// If there is no token, one is outside the vocabulary, or a row does not exist.
    pub fn values(
        &self,
        pass: &mut Pass,
        sequences: &PackedSequences,
        rows: &[u32],
    ) -> Result<Vec<f32>, PolicyError> {
        self.decoder.forward(pass, sequences)?;
        self.head.values(self.decoder.hidden(pass, rows)?)
    }

    /// Adds to `gradients` those of every parameter, from the gradient of a loss by each of the last
    /// [`values`](Self::values). Uses up what the pass kept.
    ///
    /// # Errors
    /// If the pass kept nothing, there is not one gradient for each value, or the model is on a
    /// device.
    pub fn backward(
        &self,
        pass: &mut Pass,
        d_values: &[f32],
        gradients: &mut GradientSet,
    ) -> Result<(), PolicyError> {
        self.must_be_on_the_cpu()?;
        decoder::must_have_kept(pass)?;
        let normed = &pass.normed[..pass.rows.len() * self.head.width()];
        let d_hidden = self.head.backward(normed, d_values, gradients)?;
        self.decoder.backward_hidden(pass, &d_hidden, gradients)
    }

    /// One step of the optimizer; the gradients of trunk and head are clipped together.
    ///
    /// # Errors
    /// If a gradient is missing, of another shape or not finite, or the model is on a device;
    /// weights and moments are then as they were.
    pub fn step(
        &self,
        optimizer: &mut AdamW,
        gradients: &GradientSet,
        learning_rate: f64,
    ) -> Result<StepReport, PolicyError> {
        self.must_be_on_the_cpu()?;
        optimizer.step(&self.parameters, gradients, learning_rate)
    }

    /// A copy with storage of its own, on the same device as this.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn snapshot(&self) -> Result<Self, PolicyError> {
        let decoder = self.decoder.snapshot()?;
        let head = self.head.snapshot()?;
        let parameters = decoder.parameters().joined(head.parameters())?;
        Ok(Self { decoder, head, parameters })
    }

    /// Overwrites every parameter, in place, with another's.
    ///
    /// # Errors
    /// If the two differ in shape.
    pub fn copy_from(&self, other: &Self) -> Result<(), PolicyError> {
        self.decoder.copy_from(&other.decoder)?;
        self.head.copy_from(&other.head)
    }

    fn must_be_on_the_cpu(&self) -> Result<(), PolicyError> {
        match self.decoder.device() {
            Some(_) => Err(decoder::on_cpu_only("gradients and steps of scalar models")),
            None => Ok(()),
        }
    }
}

/// An id that no text ends with.
fn filler(config: &ModelConfig) -> Option<TokenId> {
    let first = config.bos_token_id.as_ref().and_then(|it| it.as_slice().first().copied());
    let ends = |id: &TokenId| config.eos_token_ids().contains(id);
    first.filter(|it| !ends(it)).or_else(|| (0..config.vocab_size as TokenId).find(|it| !ends(it)))
}
