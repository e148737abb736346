//! A decoder's trainable tensors, by name, and how fresh ones are drawn.
//!
//! Names are those of Hugging Face transformers (`model.layers.0.self_attn.q_proj.weight`),
//! so weights on disk need no renaming. The order is that of the names: gradients,
//! optimizer state and checksums all follow it.

use std::collections::BTreeMap;

use candle_core::{Device, Tensor, Var};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Normal};
use serde::{Deserialize, Serialize};

use crate::error::PolicyError;
use crate::model_config::DecoderShape;

/// Named trainable tensors, ordered by name.
#[derive(Clone, Debug, Default)]
pub struct Parameters(BTreeMap<String, Var>);

impl Parameters {
    /// The variable of that name.
    pub fn get(&self, name: &str) -> Option<&Var> {
        self.0.get(name)
    }

    /// Names and variables, in the order of the names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Var)> {
        self.0.iter().map(|(name, variable)| (name.as_str(), variable))
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is no tensor at all.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many numbers the tensors hold together.
    pub fn count(&self) -> usize {
        self.0.values().map(|variable| variable.elem_count()).sum()
    }

    /// These and others, such as a trunk's and its head's, in one set that shares their storage: for
    /// one step of the optimizer, with one length of all gradients together.
    ///
    /// # Errors
    /// If both have a tensor of the same name.
    pub fn joined(&self, others: &Self) -> Result<Self, PolicyError> {
        let mut joined = self.clone();
        for (name, variable) in others.iter() {
            if joined.get(name).is_some() {
                return Err(PolicyError::input(format!("{name} is among both sets of parameters")));
            }
            joined.insert(name.to_owned(), variable.clone());
        }
        Ok(joined)
    }

    pub(crate) fn remove(&mut self, name: &str) -> Option<Var> {
        self.0.remove(name)
    }

    pub(crate) fn insert(&mut self, name: String, variable: Var) {
        self.0.insert(name, variable);
    }

    /// Copies every value into fresh storage.
    pub(crate) fn deep_copy(&self) -> Result<Self, PolicyError> {
        let copy = |(name, variable): (&String, &Var)| {
            Ok((name.clone(), Var::from_tensor(&variable.as_detached_tensor().copy()?)?))
        };
        self.0.iter().map(copy).collect::<Result<_, PolicyError>>().map(Self)
    }
}

/// How fresh weights are drawn. Norm weights are always 1.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct InitOptions {
    /// Standard deviation of every matrix; absent: the config's `initializer_range`.
    pub std: Option<f64>,
    /// Standard deviation of the matrices that write to the residual stream, `o_proj` and
    /// `down_proj`; absent: as the other matrices. GPT-2 shrinks these with depth.
    pub residual_std: Option<f64>,
    /// Standard deviation of the query and key biases, where the family has them; absent: 0,
    /// as in transformers. A spread near 1 gives attention a sense of position at the start.
    pub query_key_bias_std: Option<f64>,
}

/// What a parameter does, which decides how it is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    Matrix,
    ResidualMatrix,
    Norm,
    QueryKeyBias,
    Bias,
    /// The head of a scalar model, which is drawn where it is made.
    Values,
}

/// Name, shape and role of one parameter.
#[derive(Clone, Debug)]
pub(crate) struct ParameterSpec {
    pub name: String,
    pub dims: Vec<usize>,
    pub role: Role,
}

/// Every parameter of a decoder of this shape.
pub(crate) fn specs(shape: &DecoderShape) -> Vec<ParameterSpec> {
    let (hidden, intermediate) = (shape.hidden, shape.intermediate);
    let (query_width, kv_width) = (shape.query_width(), shape.kv_width());
    let mut specs = Vec::new();
    let mut add = |name: String, dims: &[usize], role| {
        specs.push(ParameterSpec { name, dims: dims.to_vec(), role });
    };
    add("model.embed_tokens.weight".to_owned(), &[shape.vocab, hidden], Role::Matrix);
    for layer in 0..shape.layers {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        for (projection, width, bias) in [
            ("q_proj", query_width, Role::QueryKeyBias),
            ("k_proj", kv_width, Role::QueryKeyBias),
            ("v_proj", kv_width, Role::Bias),
        ] {
            add(name(&format!("self_attn.{projection}.weight")), &[width, hidden], Role::Matrix);
            if shape.query_key_value_bias {
                add(name(&format!("self_attn.{projection}.bias")), &[width], bias);
            }
        }
        if shape.query_key_norm {
            add(name("self_attn.q_norm.weight"), &[shape.head_dim], Role::Norm);
            add(name("self_attn.k_norm.weight"), &[shape.head_dim], Role::Norm);
        }
        add(name("self_attn.o_proj.weight"), &[hidden, query_width], Role::ResidualMatrix);
        if shape.output_bias {
            add(name("self_attn.o_proj.bias"), &[hidden], Role::Bias);
        }
        add(name("mlp.gate_proj.weight"), &[intermediate, hidden], Role::Matrix);
        add(name("mlp.up_proj.weight"), &[intermediate, hidden], Role::Matrix);
        add(name("mlp.down_proj.weight"), &[hidden, intermediate], Role::ResidualMatrix);
        add(name("input_layernorm.weight"), &[hidden], Role::Norm);
        add(name("post_attention_layernorm.weight"), &[hidden], Role::Norm);
    }
    add("model.norm.weight".to_owned(), &[hidden], Role::Norm);
    if !shape.tied_head {
        add("lm_head.weight".to_owned(), &[shape.vocab, hidden], Role::Matrix);
    }
    specs
}

/// Draws every parameter. A tensor's values depend on the seed, its name and its length
/// only, so adding a layer or untying the head changes no other tensor.
pub(crate) fn draw(
    shape: &DecoderShape,
    initializer_range: f64,
    init: &InitOptions,
    seed: u64,
) -> Result<Parameters, PolicyError> {
    let matrix_std = init.std.unwrap_or(initializer_range);
    let mut parameters = Parameters::default();
    for ParameterSpec { name, dims, role } in specs(shape) {
        let count = dims.iter().product();
        let std = match role {
            Role::Matrix | Role::Values => matrix_std,
            Role::ResidualMatrix => init.residual_std.unwrap_or(matrix_std),
            Role::QueryKeyBias => init.query_key_bias_std.unwrap_or(0.0),
            Role::Norm | Role::Bias => 0.0,
        };
        if !(std >= 0.0 && std.is_finite()) {
            return Err(PolicyError::config(format!(
                "standard deviation of {name} is {std}, expected a number of at least 0"
            )));
        }
        let values: Vec<f32> = if role == Role::Norm {
            vec![1.0; count]
        } else {
            let normal = Normal::new(0.0, std).expect("the deviation was checked above");
            let mut stream = named_stream(seed, &name);
            (0..count).map(|_| normal.sample(&mut stream) as f32).collect()
        };
        let variable = Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu)?)?;
        parameters.insert(name, variable);
    }
    Ok(parameters)
}

/// The random stream of one name: ChaCha keyed by the seed and the name's FNV-1a hash.
pub(crate) fn named_stream(seed: u64, name: &str) -> ChaCha8Rng {
    const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
    const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;
    let hash = name
        .bytes()
        .fold(FNV_OFFSET, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(FNV_PRIME));
    let mut key = [0; 32];
    key[..8].copy_from_slice(&seed.to_le_bytes());
    key[8..16].copy_from_slice(&hash.to_le_bytes());
    ChaCha8Rng::from_seed(key)
}
