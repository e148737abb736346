//! `config.json` of a decoder, with the field names of Hugging Face transformers.
//!
//! Fields this crate does not read are kept aside and written back, so that a round trip
//! loses nothing. [`ModelConfig::shape`] turns the file into the numbers the decoder needs
//! and refuses what it cannot compute (sliding windows, other activations).

use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::TokenId;
use crate::checkpoint;
use crate::error::PolicyError;
use crate::models::{self, AttentionBias};
use crate::rope_scaling::RopeScaling;

/// A decoder's configuration as stored beside its weights.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct ModelConfig {
    /// Class names in transformers, such as `Qwen2ForCausalLM`.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// The family: a `name` of [`models::BUILTIN`].
    #[serde(default)]
    pub model_type: String,
    /// Rows of the embedding and of the head.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Query heads.
    pub num_attention_heads: usize,
    /// Key and value heads; absent means as many as query heads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_key_value_heads: Option<usize>,
    /// Width of a head; absent means `hidden_size / num_attention_heads`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_dim: Option<usize>,
    /// The longest sequence the model was made for.
    #[serde(default = "default_max_position_embeddings")]
    pub max_position_embeddings: usize,
    /// Added to the mean square under the root of every norm.
    #[serde(default = "default_rms_norm_eps")]
    pub rms_norm_eps: f64,
    /// Base of the rotary angles; a `rope_theta` in the two fields below comes first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_theta: Option<f64>,
    /// Newer form of `rope_theta` and `rope_scaling` in one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_parameters: Option<Value>,
    /// How a context is stretched, see [`RopeScaling`]; it comes before `rope_parameters`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<Value>,
    /// Whether the head is the embedding.
    #[serde(default)]
    pub tie_word_embeddings: bool,
    /// Bias on q, k, v and o, for families that leave it open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attention_bias: Option<bool>,
    /// Bias in the feed-forward block; must be absent or false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mlp_bias: Option<bool>,
    /// Activation of the feed-forward gate; must be `silu`.
    #[serde(default = "default_hidden_act")]
    pub hidden_act: String,
    /// Standard deviation of freshly drawn matrices.
    #[serde(default = "default_initializer_range")]
    pub initializer_range: f64,
    /// First token of a text, where the model has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bos_token_id: Option<TokenIds>,
    /// Tokens that end a text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eos_token_id: Option<TokenIds>,
    /// Filler token, where the model has one. Nothing here pads.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pad_token_id: Option<TokenId>,
    /// Every other field, unread.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// One token id or several: `config.json` allows both.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged)]
pub enum TokenIds {
    /// A single id.
    One(TokenId),
    /// Several, any of which counts.
    Many(Vec<TokenId>),
}

impl TokenIds {
    /// The ids as a slice.
    pub fn as_slice(&self) -> &[TokenId] {
        match self {
            Self::One(id) => std::slice::from_ref(id),
            Self::Many(ids) => ids,
        }
    }
}

/// The numbers a decoder is built from, checked and with every default filled in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DecoderShape {
    pub vocab: usize,
    pub hidden: usize,
    pub intermediate: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub rope_scaling: RopeScaling,
    pub tied_head: bool,
    pub query_key_value_bias: bool,
    pub output_bias: bool,
    pub query_key_norm: bool,
}

impl DecoderShape {
    /// Width of the queries, `heads * head_dim`.
    pub fn query_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of the keys and of the values, `kv_heads * head_dim`.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }
}

impl ModelConfig {
    /// Reads the `config.json` of a model folder, or the metadata of a GGUF file.
    ///
    /// # Errors
    /// If there is none, or it is not one.
    pub fn from_folder(folder: &Path) -> Result<Self, PolicyError> {
        checkpoint::read_config(folder)
    }

    /// A configuration of the named family with the given sizes and transformers' defaults.
    ///
    /// # Errors
    /// If `family` is not a row of [`models::BUILTIN`].
    pub fn of_family(family: &str, sizes: &Sizes) -> Result<Self, PolicyError> {
        let mut config = Self {
            architectures: Vec::new(),
            model_type: family.to_owned(),
            vocab_size: sizes.vocab,
            hidden_size: sizes.hidden,
            intermediate_size: sizes.intermediate,
            num_hidden_layers: sizes.layers,
            num_attention_heads: sizes.heads,
            num_key_value_heads: Some(sizes.kv_heads),
            head_dim: Some(sizes.head_dim),
            max_position_embeddings: default_max_position_embeddings(),
            rms_norm_eps: default_rms_norm_eps(),
            rope_theta: Some(DEFAULT_ROPE_THETA),
            rope_parameters: None,
            rope_scaling: None,
            tie_word_embeddings: false,
            attention_bias: None,
            mlp_bias: None,
            hidden_act: default_hidden_act(),
            initializer_range: default_initializer_range(),
            bos_token_id: None,
            eos_token_id: None,
            pad_token_id: None,
            other: Map::new(),
        };
        config.architectures = vec![models::family_of(&config)?.architecture.to_owned()];
        Ok(config)
    }

    /// Number of trained values.
    ///
    /// # Errors
    /// If the configuration is not one this crate computes.
    pub fn parameter_count(&self) -> Result<usize, PolicyError> {
        let specs = crate::parameters::specs(&self.shape()?);
        Ok(specs.iter().map(|it| it.dims.iter().product::<usize>()).sum())
    }

    /// Width of all query heads together.
    pub fn query_width(&self) -> usize {
        let head_dim = self.head_dim.unwrap_or(self.hidden_size / self.num_attention_heads.max(1));
        self.num_attention_heads * head_dim
    }

    /// Width of all key heads together; the values' is the same.
    pub fn kv_width(&self) -> usize {
        let kv_heads = self.num_key_value_heads.unwrap_or(self.num_attention_heads);
        self.query_width() / self.num_attention_heads.max(1) * kv_heads
    }

    /// Names the ids that end and pad a text, for programs that load the folder.
    pub fn name_special_tokens(&mut self, end: TokenId, pad: Option<TokenId>) {
        self.eos_token_id = Some(TokenIds::One(end));
        self.pad_token_id = pad;
    }

    /// Ids that end a text; empty where the model names none.
    pub fn eos_token_ids(&self) -> &[TokenId] {
        self.eos_token_id.as_ref().map_or(&[], TokenIds::as_slice)
    }

    /// Radians a position for each pair of a head's elements, fastest first, and what cosines and
    /// sines are multiplied by: 1 unless the scaling is yarn's.
    ///
    /// # Errors
    /// If the configuration is not one this crate computes.
    pub fn rope_frequencies(&self) -> Result<(Vec<f64>, f64), PolicyError> {
        let DecoderShape { head_dim, rope_theta, rope_scaling, .. } = self.shape()?;
        Ok((rope_scaling.frequencies(head_dim, rope_theta), rope_scaling.attention_factor()))
    }

    /// Checks the configuration and fills in what it leaves to defaults.
    ///
    /// # Errors
    /// If the family is unknown, sizes contradict each other, or a feature is asked for
    /// that the decoder does not compute.
    pub(crate) fn shape(&self) -> Result<DecoderShape, PolicyError> {
        let family = models::family_of(self)?;
        let heads = self.num_attention_heads;
        let kv_heads = self.num_key_value_heads.unwrap_or(heads);
        for (field, size) in [
            ("vocab_size", self.vocab_size),
            ("hidden_size", self.hidden_size),
            ("intermediate_size", self.intermediate_size),
            ("num_hidden_layers", self.num_hidden_layers),
            ("num_attention_heads", heads),
            ("num_key_value_heads", kv_heads),
        ] {
            if size == 0 {
                return Err(PolicyError::config(format!("{field} is 0")));
            }
        }
        if !heads.is_multiple_of(kv_heads) {
            return Err(PolicyError::config(format!(
                "num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}"
            )));
        }
        let head_dim = match self.head_dim {
            Some(head_dim) => head_dim,
            None if self.hidden_size.is_multiple_of(heads) => self.hidden_size / heads,
            None => {
                return Err(PolicyError::config(format!(
                    "hidden_size {} is not a multiple of num_attention_heads {heads}, and \
                     head_dim is not given",
                    self.hidden_size
                )));
            }
        };
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(PolicyError::config(format!(
                "head_dim is {head_dim}, but rotary embedding turns pairs and needs an even width"
            )));
        }
        if self.hidden_act != "silu" {
            return Err(PolicyError::config(format!(
                "hidden_act is {:?}; only \"silu\" is computed",
                self.hidden_act
            )));
        }
        if self.mlp_bias == Some(true) {
            return Err(PolicyError::config("mlp_bias is true, which no family here computes"));
        }
        if self.other.get("use_sliding_window") == Some(&Value::Bool(true)) {
            return Err(PolicyError::config(
                "use_sliding_window is true, but attention here sees the whole prefix",
            ));
        }
        if !(self.rms_norm_eps > 0.0 && self.rms_norm_eps.is_finite()) {
            return Err(PolicyError::config(format!(
                "rms_norm_eps is {}, expected a positive number",
                self.rms_norm_eps
            )));
        }
        let (rope_theta, rope_scaling) = self.rope()?;
        let configured_bias = self.attention_bias.unwrap_or(false);
        let (query_key_value_bias, output_bias) = match family.attention_bias {
            AttentionBias::QueryKeyValue => (true, false),
            AttentionBias::Configured => (configured_bias, configured_bias),
        };
        Ok(DecoderShape {
            vocab: self.vocab_size,
            hidden: self.hidden_size,
            intermediate: self.intermediate_size,
            layers: self.num_hidden_layers,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: self.rms_norm_eps,
            rope_theta,
            rope_scaling,
            tied_head: self.tie_word_embeddings,
            query_key_value_bias,
            output_bias,
            query_key_norm: family.query_key_norm,
        })
    }

    /// Base and scaling of the rotary frequencies, looked up in transformers' order: what stands
    /// in `rope_scaling`, else in `rope_parameters`, comes before the fields beside it.
    fn rope(&self) -> Result<(f64, RopeScaling), PolicyError> {
        let mut theta = self.rope_theta;
        let mut scaling = RopeScaling::None;
        for (field, value) in
            [("rope_scaling", &self.rope_scaling), ("rope_parameters", &self.rope_parameters)]
        {
            let rope = match value {
                None | Some(Value::Null) => continue,
                Some(Value::Object(rope)) if rope.is_empty() => continue,
                Some(Value::Object(rope)) => rope,
                Some(other) => {
                    return Err(PolicyError::config(format!(
                        "{field} is {other}, expected an object or null"
                    )));
                }
            };
            let outside =
                self.other.get("original_max_position_embeddings").and_then(Value::as_f64);
            scaling = RopeScaling::from_config(field, rope, outside, self.max_position_embeddings)?;
            theta = rope.get("rope_theta").and_then(Value::as_f64).or(theta);
            break;
        }
        if self.other.get("partial_rotary_factor").and_then(Value::as_f64).unwrap_or(1.0) != 1.0 {
            return Err(PolicyError::config(
                "partial_rotary_factor is set, but every element of a head is turned here",
            ));
        }
        let theta = theta.unwrap_or(DEFAULT_ROPE_THETA);
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(PolicyError::config(format!(
                "rope_theta is {theta}, expected a positive number"
            )));
        }
        Ok((theta, scaling))
    }
}

/// The sizes that tell two models of one family apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sizes {
    /// Rows of the embedding.
    pub vocab: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the feed-forward block.
    pub intermediate: usize,
    /// Number of layers.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head; even.
    pub head_dim: usize,
}

/// The base of Su et al. 2021 (arXiv:2104.09864) and of Llama.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

fn default_max_position_embeddings() -> usize {
    2048
}

fn default_rms_norm_eps() -> f64 {
    1e-6
}

fn default_hidden_act() -> String {
    "silu".to_owned()
}

fn default_initializer_range() -> f64 {
    0.02
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> ModelConfig {
        serde_json::from_str(json).unwrap()
    }

    const SMALL: &str = r#"{"model_type":"llama","vocab_size":7,"hidden_size":8,
        "intermediate_size":16,"num_hidden_layers":1,"num_attention_heads":2"#;

    fn small(more: &str) -> ModelConfig {
        parse(&format!("{SMALL}{more}}}"))
    }

    #[test]
    fn unread_fields_survive_a_round_trip() {
        let config = small(r#","use_cache":true,"dtype":"bfloat16","quirk":{"deep":[1,2]}"#);
        let again = parse(&serde_json::to_string(&config).unwrap());
        assert_eq!(config, again);
        assert_eq!(again.other["quirk"]["deep"][1], 2);
    }

    #[test]
    fn the_base_is_read_from_either_place() {
        assert_eq!(small(r#","rope_theta":100"#).shape().unwrap().rope_theta, 100.0);
        let newer = r#","rope_parameters":{"rope_theta":5e5,"rope_type":"default"}"#;
        assert_eq!(small(newer).shape().unwrap().rope_theta, 5e5);
        assert_eq!(small("").shape().unwrap().rope_theta, 10_000.0);
        let both = r#","rope_theta":100,"rope_parameters":{"rope_theta":5e5}"#;
        assert_eq!(small(both).shape().unwrap().rope_theta, 5e5, "as in transformers");
    }

    #[test]
    fn end_tokens_may_be_one_or_several() {
        assert_eq!(small(r#","eos_token_id":3"#).eos_token_ids(), [3]);
        assert_eq!(small(r#","eos_token_id":[3,4]"#).eos_token_ids(), [3, 4]);
        assert!(small(r#","eos_token_id":null"#).eos_token_ids().is_empty());
    }

    #[test]
    fn what_is_not_computed_is_refused_by_name() {
        for (more, named) in [
            (
                r#","rope_scaling":{"rope_type":"dynamic","factor":4.0}"#,
                "\"dynamic\" is not computed",
            ),
            (r#","rope_parameters":{"rope_type":"longrope"}"#, "rope_parameters"),
            (r#","rope_scaling":{"type":"mrope"}"#, "default, linear, llama3 and yarn"),
            (r#","rope_scaling":{"type":"linear"}"#, "factor is missing"),
            (r#","rope_scaling":{"type":"linear","factor":0}"#, "a number above 0"),
            (r#","rope_scaling":{"factor":2.0}"#, "no rope_type"),
            (r#","rope_scaling":3"#, "expected an object"),
            (r#","partial_rotary_factor":0.5"#, "partial_rotary_factor"),
            (r#","hidden_act":"gelu""#, "hidden_act"),
            (r#","mlp_bias":true"#, "mlp_bias"),
            (r#","use_sliding_window":true"#, "use_sliding_window"),
            (r#","num_key_value_heads":3"#, "num_key_value_heads"),
            (r#","head_dim":3"#, "head_dim"),
        ] {
            let message = small(more).shape().unwrap_err().to_string();
            assert!(message.contains(named), "{message}");
        }
    }

    #[test]
    fn an_unknown_family_lists_the_known_ones() {
        let mut config = small("");
        config.model_type = "mamba".to_owned();
        let message = config.shape().unwrap_err().to_string();
        assert!(message.contains("llama, qwen2, qwen3"), "{message}");
    }
}
