//! Rotary frequencies for contexts longer than a model was first trained on.
//!
//! Each kind changes the frequencies of the rotation and nothing else in the network, save that
//! yarn also multiplies cosines and sines by an *attention factor*. The formulas are those of
//! `modeling_rope_utils.py` in transformers 5, taken in f64; `policies/tests/rope_scaling.rs`
//! compares the numbers.

use std::f64::consts::TAU;

use serde_json::{Map, Value};

use crate::error::PolicyError;

/// How the rotary frequencies differ from theta^(-2i / head_dim).
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// Every frequency is divided: positions are interpolated (Chen et al. 2023, arXiv:2306.15595).
    Linear {
        /// The divisor, above 0.
        factor: f64,
    },
    /// Low frequencies are divided, high ones kept, those between blended (Llama 3.1, arXiv:2407.21783).
    Llama3 {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Wavelengths above `original_context / low_freq_factor` count as low frequencies.
        low_freq_factor: f64,
        /// Wavelengths below `original_context / high_freq_factor` count as high frequencies.
        high_freq_factor: f64,
        /// Tokens of context before the extension.
        original_context: f64,
    },
    /// As Llama 3's, by a linear ramp over the pairs, with an attention factor (Peng et al. 2023,
    /// arXiv:2309.00071).
    Yarn {
        /// Divisor of the low frequencies.
        factor: f64,
        /// Rotations over the original context above which a pair keeps its frequency.
        beta_fast: f64,
        /// Rotations over the original context below which a pair's frequency is divided whole.
        beta_slow: f64,
        /// Tokens of context before the extension.
        original_context: f64,
        /// Multiplies cosines and sines, so scores are multiplied by its square.
        attention_factor: f64,
        /// Whether the ramp begins and ends at whole pairs.
        truncate: bool,
    },
}

impl RopeScaling {
    /// The scaling that `rope_scaling` or `rope_parameters` of a `config.json` describes.
    ///
    /// `field` names the object for errors; `original_context` stands outside it in some configs
    /// and then wins; `max_positions` is the config's `max_position_embeddings`.
    ///
    /// # Errors
    /// If the type is one that is not computed, or a number is missing or makes no sense.
    pub(crate) fn from_config(
        field: &str,
        rope: &Map<String, Value>,
        original_context: Option<f64>,
        max_positions: usize,
    ) -> Result<Self, PolicyError> {
        let fault = |message: String| {
            let rope = Value::Object(rope.clone());
            PolicyError::config(format!("{field} is {rope}: {message}"))
        };
        let number = |name: &str| match rope.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => value
                .as_f64()
                .filter(|it| it.is_finite())
                .map(Some)
                .ok_or_else(|| fault(format!("{name} is {value}, expected a number"))),
        };
        let positive = |name: &str| match number(name)? {
            Some(value) if value > 0.0 => Ok(value),
            Some(value) => Err(fault(format!("{name} is {value}, expected a number above 0"))),
            None => Err(fault(format!("{name} is missing"))),
        };
        if let Some(partial) = number("partial_rotary_factor")?
            && partial != 1.0
        {
            return Err(fault("every element of a head is turned here, not a part of them".into()));
        }
        let kind = rope.get("rope_type").or_else(|| rope.get("type"));
        let kind = match kind {
            Some(Value::String(kind)) => kind.as_str(),
            // Transformers reads this as no scaling at all, which its author did not mean.
            None if rope.contains_key("factor") => {
                return Err(fault("it has a factor but no rope_type".into()));
            }
            None => "default",
            Some(other) => return Err(fault(format!("rope_type is {other}, expected a name"))),
        };
        let original = || match original_context {
            Some(outside) => Ok::<_, PolicyError>(outside),
            None => Ok(number("original_max_position_embeddings")?
                .filter(|it| *it > 0.0)
                .unwrap_or(max_positions as f64)),
        };
        Ok(match kind {
            "default" => Self::None,
            "linear" => Self::Linear { factor: positive("factor")? },
            "llama3" => {
                let (low_freq_factor, high_freq_factor) =
                    (positive("low_freq_factor")?, positive("high_freq_factor")?);
                if low_freq_factor >= high_freq_factor {
                    return Err(fault(format!(
                        "low_freq_factor {low_freq_factor} is not below high_freq_factor \
                         {high_freq_factor}"
                    )));
                }
                Self::Llama3 {
                    factor: positive("factor")?,
                    low_freq_factor,
                    high_freq_factor,
                    original_context: original()?,
                }
            }
            "yarn" => {
                let original_context = original()?;
                let factor = match rope.get("factor") {
                    Some(Value::Null) => max_positions as f64 / original_context,
                    _ => positive("factor")?,
                };
                // Zero stands for the default in each of these, as in transformers.
                let stated = |name: &str| number(name).map(|it| it.filter(|it| *it != 0.0));
                let (mscale, all_dim) = (stated("mscale")?, stated("mscale_all_dim")?);
                let attention_factor = match (number("attention_factor")?, mscale, all_dim) {
                    (Some(given), ..) => given,
                    (None, Some(mscale), Some(all_dim)) => {
                        yarn_mscale(factor, mscale) / yarn_mscale(factor, all_dim)
                    }
                    _ => yarn_mscale(factor, 1.0),
                };
                Self::Yarn {
                    factor,
                    beta_fast: stated("beta_fast")?.unwrap_or(32.0),
                    beta_slow: stated("beta_slow")?.unwrap_or(1.0),
                    original_context,
                    attention_factor,
                    truncate: match rope.get("truncate") {
                        None => true,
                        Some(value) => value.as_bool().unwrap_or(false),
                    },
                }
            }
            other => {
                return Err(fault(format!(
                    "rope_type {other:?} is not computed; default, linear, llama3 and yarn are"
                )));
            }
        })
    }

    /// Radians a position for each pair of elements, `head_dim / 2` of them, fastest first.
    pub fn frequencies(&self, head_dim: usize, theta: f64) -> Vec<f64> {
        let plain = (0..head_dim / 2).map(|pair| theta.powf(-2.0 * pair as f64 / head_dim as f64));
        match *self {
            Self::None => plain.collect(),
            Self::Linear { factor } => plain.map(|frequency| frequency / factor).collect(),
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => plain
                .map(|frequency| {
                    let turns = original_context * frequency / TAU;
                    let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor))
                        .clamp(0.0, 1.0);
                    (1.0 - kept) * frequency / factor + kept * frequency
                })
                .collect(),
            Self::Yarn { factor, beta_fast, beta_slow, original_context, truncate, .. } => {
                // The pair that turns so often over the original context.
                let pair_of = |turns: f64| {
                    let ratio = original_context / (turns * TAU);
                    head_dim as f64 * ratio.ln() / (2.0 * theta.ln())
                };
                let (mut first, mut last) = (pair_of(beta_fast), pair_of(beta_slow));
                if truncate {
                    (first, last) = (first.floor(), last.ceil());
                }
                let first = first.max(0.0);
                let mut last = last.min(head_dim as f64 - 1.0);
                if first == last {
                    last += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(pair, frequency)| {
                        let divided = ((pair as f64 - first) / (last - first)).clamp(0.0, 1.0);
                        frequency / factor * divided + frequency * (1.0 - divided)
                    })
                    .collect()
            }
        }
    }

    /// What cosines and sines are multiplied by.
    pub fn attention_factor(&self) -> f64 {
        match self {
            Self::Yarn { attention_factor, .. } => *attention_factor,
            _ => 1.0,
        }
    }
}

/// 0.1 m ln(s) + 1 (arXiv:2309.00071, eq. 22): 1 where nothing is extended.
pub(crate) fn yarn_mscale(scale: f64, mscale: f64) -> f64 {
    if scale <= 1.0 { 1.0 } else { 0.1 * mscale * scale.ln() + 1.0 }
}
