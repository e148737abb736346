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
//! Learning and sampling run the same `forward` over packed rows; they
//! differ in one closure, which says where attention finds its keys and values.

use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};

use candle_core::Tensor;

use crate::TokenId;
use crate::checkpoint;
use crate::error::PolicyError;
use crate::kv_cache::KvCache;
use crate::model_config::{DecoderShape, ModelConfig};
use crate::ops::{self, Heads, Rotations};
use crate::parameters::{self, InitOptions, Parameters};

/// A causal language model.
///
/// # Contract (see [`crate::contract::check_decoder`])
/// - `hidden` and `extend` agree on every row.
/// - Every parameter receives a gradient, and it matches finite differences.
/// - A packed batch gives each sequence what it would get alone.
/// - Saving and loading is the identity.
#[derive(Clone, Debug)]
pub struct Decoder {
    config: ModelConfig,
    shape: DecoderShape,
    parameters: Parameters,
    /// What `hidden` reads: the variables, or their untracked twins in a frozen decoder.
    weights: Weights,
    /// The same storage, outside the gradient graph: what `extend` reads.
    untracked: Weights,
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

/// What the model thought of given tokens.
#[derive(Clone, Debug)]
pub struct TokenScores {
    /// log p(target | hidden) in nats, `(n)` f32, with gradient.
    pub logprobs: Tensor,
    /// Entropy of the distribution each target was scored under, in nats; no gradient.
    pub entropies: Vec<f32>,
}

impl Decoder {
    /// A decoder with fresh weights. Each tensor's values depend on the seed, its name and
    /// its length only.
    ///
    /// # Errors
    /// If the configuration is not one this crate computes.
    pub fn new(config: ModelConfig, init: &InitOptions, seed: u64) -> Result<Self, PolicyError> {
        let parameters = parameters::draw(&config.shape()?, config.initializer_range, init, seed)?;
        Self::from_parameters(config, parameters)
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
        Self::from_parameters(config, parameters)
    }

    /// Writes `config.json` and `model.safetensors`, which transformers loads. Each file is
    /// written aside, flushed to disk and renamed, so a crash leaves old or new, never half.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save_folder(&self, folder: &Path) -> Result<(), PolicyError> {
        checkpoint::write_folder(folder, &self.config, &self.parameters)
    }

    /// The configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The trainable tensors.
    pub fn parameters(&self) -> &Parameters {
        &self.parameters
    }

    /// The same weights in the same storage, recording no gradient. Updates of the original
    /// show here.
    pub fn frozen(&self) -> Self {
        Self { weights: self.untracked.clone(), ..self.clone() }
    }

    /// A copy with storage of its own: a reference policy, or a published version.
    ///
    /// # Errors
    /// If memory runs out.
    pub fn snapshot(&self) -> Result<Self, PolicyError> {
        Self::from_parameters(self.config.clone(), self.parameters.deep_copy()?)
    }

    /// Overwrites this decoder's values, in place, with another's.
    ///
    /// # Errors
    /// If the two differ in shape.
    pub fn copy_from(&self, other: &Self) -> Result<(), PolicyError> {
        if self.shape != other.shape {
            return Err(PolicyError::input(format!(
                "cannot copy weights between decoders of different shape: {:?} and {:?}",
                self.shape, other.shape
            )));
        }
        for ((_, to), (_, from)) in self.parameters.iter().zip(other.parameters.iter()) {
            if !same_storage(to, from) {
                to.set(from)?;
            }
        }
        Ok(())
    }

    /// Final normed hidden states of sequences packed end to end, `(tokens, hidden)`, with
    /// gradient. `lengths` holds the length of each sequence, in order.
    ///
    /// # Errors
    /// If the lengths do not add up to the tokens, or a token is outside the vocabulary.
    pub fn hidden(&self, tokens: &[TokenId], lengths: &[usize]) -> Result<Tensor, PolicyError> {
        if lengths.iter().sum::<usize>() != tokens.len() || tokens.is_empty() {
            return Err(PolicyError::input(format!(
                "{} tokens packed as sequences of lengths {lengths:?}",
                tokens.len()
            )));
        }
        let positions: Arc<[u32]> = lengths.iter().flat_map(|&length| 0..length as u32).collect();
        let lengths: Arc<[usize]> = lengths.iter().copied().filter(|&length| length > 0).collect();
        let heads = self.heads();
        let x = self.forward(&self.weights, tokens, positions, &mut |_layer, q, k, v| {
            ops::causal_attention(&q, &k, &v, &lengths, heads)
        })?;
        self.final_norm(&self.weights, &x)
    }

    /// Appends each span's tokens to its cache slot and returns the normed hidden state of
    /// each span's last token, `(spans, hidden)`, without gradient. Prefill and decode are
    /// the same call, and may be mixed.
    ///
    /// # Errors
    /// If a span is empty, names a slot twice or outside the cache, or overflows its slot;
    /// the cache is then as it was.
    pub fn extend(
        &self,
        cache: &mut KvCache,
        spans: &[CacheSpan<'_>],
    ) -> Result<Tensor, PolicyError> {
        self.check_spans(cache, spans)?;
        let tokens: Vec<TokenId> = spans.iter().flat_map(|span| span.tokens).copied().collect();
        let positions: Arc<[u32]> = spans
            .iter()
            .flat_map(|span| {
                let held = cache.len(span.slot);
                held as u32..(held + span.tokens.len()) as u32
            })
            .collect();
        for span in spans {
            cache.drop_uncommitted(span.slot);
        }
        let heads = self.heads();
        let x = self.forward(&self.untracked, &tokens, positions, &mut |layer, q, k, v| {
            ops::cached_attention(&q, &k, &v, cache, layer, spans, heads)
        })?;
        for span in spans {
            cache.commit(span.slot, span.tokens.len());
        }
        let mut end = 0;
        let last_rows: Arc<[u32]> = spans
            .iter()
            .map(|span| {
                end += span.tokens.len() as u32;
                end - 1
            })
            .collect();
        let last = ops::embedding(&x, &last_rows)?; // (spans, hidden)
        self.final_norm(&self.untracked, &last)
    }

    /// Hidden states `(n, hidden)` -> logits `(n, vocab)` f32, with gradient.
    ///
    /// # Errors
    /// If the width is not the model's.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, PolicyError> {
        Ok(ops::linear(hidden, &self.weights.head, None)?)
    }

    /// log p(target | hidden) at a temperature for each row of `hidden` `(n, hidden)`, with
    /// gradient, and the entropy of each row. Works in chunks of rows: never holds all of
    /// `(n, vocab)` unless it is small.
    ///
    /// # Errors
    /// If there is not one target for each row, a target is outside the vocabulary, or the
    /// temperature is not positive.
    pub fn token_logprobs(
        &self,
        hidden: &Tensor,
        targets: &[TokenId],
        temperature: f64,
    ) -> Result<TokenScores, PolicyError> {
        let (rows, _hidden) = hidden.dims2()?;
        if rows != targets.len() {
            return Err(PolicyError::input(format!(
                "{} targets for {rows} rows of hidden states",
                targets.len()
            )));
        }
        if !(temperature > 0.0 && temperature.is_finite()) {
            return Err(PolicyError::input(format!(
                "temperature is {temperature}, expected a positive number"
            )));
        }
        self.check_vocabulary(targets)?;
        let targets: Arc<[u32]> = targets.into();
        let (logprobs, entropies) =
            ops::token_logprobs(hidden, &self.weights.head, &targets, temperature)?;
        Ok(TokenScores { logprobs, entropies })
    }

    fn from_parameters(config: ModelConfig, parameters: Parameters) -> Result<Self, PolicyError> {
        let shape = config.shape()?;
        let weights = Weights::new(&shape, &parameters, Tracking::Recorded);
        let untracked = Weights::new(&shape, &parameters, Tracking::Untracked);
        let rotations = rotations(&shape, FIRST_POSITIONS);
        let rotations = Arc::new(RwLock::new(Arc::new(rotations)));
        Ok(Self { config, shape, parameters, weights, untracked, rotations })
    }

    /// Residual stream after the last layer, `(tokens, hidden)`, not yet normed. `attention`
    /// gets the layer's index and its rotated q, rotated k and v.
    fn forward(
        &self,
        weights: &Weights,
        tokens: &[TokenId],
        positions: Arc<[u32]>,
        attention: &mut dyn FnMut(usize, Tensor, Tensor, Tensor) -> candle_core::Result<Tensor>,
    ) -> Result<Tensor, PolicyError> {
        self.check_vocabulary(tokens)?;
        let eps = self.shape.rms_norm_eps;
        let rotations = self.rotations_to(&positions);
        let mut x = ops::embedding(&weights.embedding, &tokens.into())?; // (tokens, hidden)
        for (index, layer) in weights.layers.iter().enumerate() {
            let normed = ops::rms_norm(&x, &layer.attention_norm, eps)?;
            let q = self.head_norm(layer.query.apply(&normed)?, layer.query_norm.as_ref())?;
            let k = self.head_norm(layer.key.apply(&normed)?, layer.key_norm.as_ref())?;
            let v = layer.value.apply(&normed)?;
            let q = ops::rope(&q, &positions, &rotations)?;
            let k = ops::rope(&k, &positions, &rotations)?;
            x = (x + layer.output.apply(&attention(index, q, k, v)?)?)?;

            let normed = ops::rms_norm(&x, &layer.feed_forward_norm, eps)?;
            let (gate, up) = (layer.gate.apply(&normed)?, layer.up.apply(&normed)?);
            x = (x + layer.down.apply(&ops::swiglu(&gate, &up)?)?)?;
        }
        Ok(x)
    }

    fn final_norm(&self, weights: &Weights, x: &Tensor) -> Result<Tensor, PolicyError> {
        Ok(ops::rms_norm(x, &weights.final_norm, self.shape.rms_norm_eps)?)
    }

    /// Norms each head on its own, where the family asks for it.
    fn head_norm(&self, x: Tensor, weight: Option<&Tensor>) -> candle_core::Result<Tensor> {
        let Some(weight) = weight else { return Ok(x) };
        let (tokens, width) = x.dims2()?;
        let head_dim = self.shape.head_dim;
        let by_head = x.reshape((tokens * width / head_dim, head_dim))?;
        ops::rms_norm(&by_head, weight, self.shape.rms_norm_eps)?.reshape((tokens, width))
    }

    fn heads(&self) -> Heads {
        let DecoderShape { heads, kv_heads, head_dim, .. } = self.shape;
        Heads { heads, kv_heads, head_dim }
    }

    /// The table of rotations, grown to hold every one of the positions.
    fn rotations_to(&self, positions: &[u32]) -> Arc<Rotations> {
        let wanted = positions.iter().max().map_or(0, |&last| last as usize + 1);
        let held = self.rotations.read().unwrap_or_else(PoisonError::into_inner).clone();
        if held.positions() >= wanted {
            return held;
        }
        let grown = Arc::new(rotations(&self.shape, wanted.next_power_of_two()));
        *self.rotations.write().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&grown);
        grown
    }

    fn check_vocabulary(&self, tokens: &[TokenId]) -> Result<(), PolicyError> {
        match tokens.iter().find(|&&token| token as usize >= self.shape.vocab) {
            None => Ok(()),
            Some(token) => Err(PolicyError::input(format!(
                "token {token} is outside the vocabulary of {}",
                self.shape.vocab
            ))),
        }
    }

    fn check_spans(&self, cache: &KvCache, spans: &[CacheSpan<'_>]) -> Result<(), PolicyError> {
        if !cache.fits(self.shape.layers, self.shape.kv_width()) {
            return Err(PolicyError::input("the cache was made for a model of another shape"));
        }
        if spans.is_empty() {
            return Err(PolicyError::input("no span to extend the cache with"));
        }
        let mut named = vec![false; cache.slots()];
        for &CacheSpan { slot, tokens } in spans {
            match named.get_mut(slot) {
                None => {
                    return Err(PolicyError::input(format!(
                        "slot {slot} of a cache with {} slots",
                        cache.slots()
                    )));
                }
                Some(true) => {
                    return Err(PolicyError::input(format!("slot {slot} is named by two spans")));
                }
                Some(named) => *named = true,
            }
            if tokens.is_empty() {
                return Err(PolicyError::input(format!("the span of slot {slot} is empty")));
            }
            if cache.len(slot) + tokens.len() > cache.capacity() {
                return Err(PolicyError::input(format!(
                    "slot {slot} holds {} tokens and cannot take {} more: its capacity is {}",
                    cache.len(slot),
                    tokens.len(),
                    cache.capacity()
                )));
            }
        }
        Ok(())
    }
}

/// Positions the rotation table starts with.
const FIRST_POSITIONS: usize = 64;

fn rotations(shape: &DecoderShape, positions: usize) -> Rotations {
    Rotations::new(shape.head_dim, shape.rope_theta, &shape.rope_scaling, positions)
}

fn same_storage(one: &Tensor, other: &Tensor) -> bool {
    one.id() == other.id()
}

/// Whether operations on a set of weights enter the gradient graph.
#[derive(Clone, Copy)]
enum Tracking {
    Recorded,
    Untracked,
}

/// The parameters by their place in the network.
#[derive(Clone, Debug)]
struct Weights {
    embedding: Tensor,
    layers: Vec<Layer>,
    final_norm: Tensor,
    head: Tensor,
}

#[derive(Clone, Debug)]
struct Layer {
    attention_norm: Tensor,
    query: Linear,
    key: Linear,
    value: Linear,
    query_norm: Option<Tensor>,
    key_norm: Option<Tensor>,
    output: Linear,
    feed_forward_norm: Tensor,
    gate: Linear,
    up: Linear,
    down: Linear,
}

#[derive(Clone, Debug)]
struct Linear {
    weight: Tensor,
    bias: Option<Tensor>,
}

impl Linear {
    fn apply(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        ops::linear(x, &self.weight, self.bias.as_ref())
    }
}

impl Weights {
    /// # Panics
    /// If `parameters` lacks one that `parameters::specs` lists for this shape.
    fn new(shape: &DecoderShape, parameters: &Parameters, tracking: Tracking) -> Self {
        let optional = |name: &str| {
            parameters.get(name).map(|variable| match tracking {
                Tracking::Recorded => variable.as_tensor().clone(),
                Tracking::Untracked => variable.as_detached_tensor(),
            })
        };
        let tensor = |name: &str| {
            optional(name).unwrap_or_else(|| panic!("parameters are drawn or read whole: {name}"))
        };
        let layer = |index: usize| {
            let name = |rest: &str| format!("model.layers.{index}.{rest}");
            let linear = |rest: &str| Linear {
                weight: tensor(&name(&format!("{rest}.weight"))),
                bias: optional(&name(&format!("{rest}.bias"))),
            };
            Layer {
                attention_norm: tensor(&name("input_layernorm.weight")),
                query: linear("self_attn.q_proj"),
                key: linear("self_attn.k_proj"),
                value: linear("self_attn.v_proj"),
                query_norm: optional(&name("self_attn.q_norm.weight")),
                key_norm: optional(&name("self_attn.k_norm.weight")),
                output: linear("self_attn.o_proj"),
                feed_forward_norm: tensor(&name("post_attention_layernorm.weight")),
                gate: linear("mlp.gate_proj"),
                up: linear("mlp.up_proj"),
                down: linear("mlp.down_proj"),
            }
        };
        let embedding = tensor("model.embed_tokens.weight");
        Self {
            head: if shape.tied_head { embedding.clone() } else { tensor("lm_head.weight") },
            embedding,
            layers: (0..shape.layers).map(layer).collect(),
            final_norm: tensor("model.norm.weight"),
        }
    }
}
