//! What a sampled token contributes to the policy's loss, given its importance ratio r and its
//! advantage A. sg is stop-gradient; all of it is minimised.
//!
//! | surrogate | loss | source |
//! |---|---|---|
//! | clip | max(-A r, -A clip(r, 1 - low, 1 + high)); with dual clip at most -A c where A < 0 | PPO, arXiv:1707.06347 eq. 7; clip-higher, arXiv:2503.14476; dual clip, arXiv:1912.09729 |
//! | cispo | -sg(clip(r)) A log pi | MiniMax-M1, arXiv:2506.13585 eq. 4 |
//! | unclipped | -A r | |
//! | reinforce | -A log pi | Williams 1992 |
//! | hard zero | -sg(r inside the range, else 0) A log pi | IcePop |
//! | gmpo | -A exp(mean of log r, clipped on the side A pushes to), one a reply | arXiv:2507.20673 |
//! | dppo | -A r, dropped where the probability has moved far enough in A's direction | arXiv:2602.04879 |
//!
//! | own | a formula that stands in its method's file | |
//!
//! An absent bound is no bound.

use std::fmt;
use std::sync::Arc;

use candle_core::{Device, Result, Tensor};

/// A formula of a method's own: losses from [`SurrogateInputs`], with gradient.
pub type Formula = dyn Fn(&SurrogateInputs<'_>) -> Result<Tensor> + Send + Sync;

/// Which of them.
#[derive(Clone)]
pub enum Surrogate {
    /// PPO's.
    Clip {
        /// The ratio counts from 1 - low.
        low: Option<f64>,
        /// The ratio counts to 1 + high.
        high: Option<f64>,
        /// c: where A < 0 the loss is at most -A c.
        dual: Option<f64>,
    },
    /// The ratio, clipped, is only a weight: clipped tokens keep their gradient.
    Cispo {
        /// The weight is at least 1 - low.
        low: Option<f64>,
        /// The weight is at most 1 + high.
        high: Option<f64>,
    },
    /// The ratio as it is.
    Unclipped,
    /// No ratio.
    Reinforce,
    /// The ratio as a weight, 0 outside the open range.
    HardZero {
        /// The range begins at 1 - low.
        low: f64,
        /// The range ends at 1 + high.
        high: f64,
    },
    /// The geometric mean of clipped ratios, one a reply.
    Gmpo {
        /// log r counts from -low where A < 0.
        low: f64,
        /// log r counts to high where A > 0.
        high: f64,
    },
    /// A trust region in probability, not in ratio.
    Dppo {
        /// Dropped where A < 0 and the probability fell by more.
        delta_low: f64,
        /// Dropped where A > 0 and the probability rose by more.
        delta_high: f64,
    },
    /// A formula of the method's own, under its name.
    Own(&'static str, Arc<Formula>),
}

impl fmt::Debug for Surrogate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Clip { .. } => "clip",
            Self::Cispo { .. } => "cispo",
            Self::Unclipped => "unclipped",
            Self::Reinforce => "reinforce",
            Self::HardZero { .. } => "hard_zero",
            Self::Gmpo { .. } => "gmpo",
            Self::Dppo { .. } => "dppo",
            Self::Own(name, _) => name,
        };
        formatter.write_str(name)
    }
}

/// What a surrogate is computed from; `(tokens)`, or `(rows)` where the ratio is the reply's.
#[derive(Clone, Copy)]
pub struct SurrogateInputs<'a> {
    /// log pi(token), with gradient.
    pub logprobs: &'a Tensor,
    /// log pi(token) of the ratio's denominator.
    pub anchor_logprobs: &'a Tensor,
    /// r, with gradient.
    pub ratio: &'a Tensor,
    /// A.
    pub advantages: &'a Tensor,
}

impl Surrogate {
    /// Loss of each token (or reply), with gradient.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn losses(&self, of: &SurrogateInputs<'_>) -> Result<Tensor> {
        let SurrogateInputs { logprobs, anchor_logprobs, ratio, advantages } = *of;
        let weighted = |weight: Tensor| (weight.detach() * advantages)?.mul(logprobs)?.neg();
        match *self {
            Self::Own(_, ref formula) => formula(of),
            Self::Clip { low, high, dual } => {
                let clipped = (bounded(ratio, low, high)? * advantages)?;
                let losses = (ratio * advantages)?.minimum(&clipped)?.neg()?;
                let Some(dual) = dual else { return Ok(losses) };
                let capped = losses.minimum(&(advantages * -dual)?)?;
                let falls = mask(&values(advantages)?, |it| it < 0.0)?;
                (&falls * capped)? + (falls.affine(-1.0, 1.0)? * losses)?
            }
            Self::Cispo { low, high } => weighted(bounded(ratio, low, high)?),
            Self::Unclipped => (ratio * advantages)?.neg(),
            Self::Reinforce => (logprobs * advantages)?.neg(),
            Self::HardZero { low, high } => {
                let inside = mask(&values(ratio)?, |it| it > 1.0 - low && it < 1.0 + high)?;
                weighted((ratio * inside)?)
            }
            // The ratio that comes in is the clipped mean already: see `log_ratio`.
            Self::Gmpo { .. } => (ratio * advantages)?.neg(),
            Self::Dppo { .. } => {
                let dropped = self.dropped(
                    &values(logprobs)?,
                    &values(anchor_logprobs)?,
                    &values(advantages)?,
                );
                let kept: Vec<f64> = dropped.iter().map(|it| f64::from(u8::from(!it))).collect();
                (ratio * advantages)?.mul(&Tensor::new(kept, &Device::Cpu)?)?.neg()
            }
        }
    }

    /// The log ratio of each token as this surrogate wants it, with gradient.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn log_ratio(&self, log_ratio: &Tensor, advantages: &[f64]) -> Result<Tensor> {
        let Self::Gmpo { low, high } = *self else { return Ok(log_ratio.clone()) };
        // Pessimistic: each side is cut only where A pushes to it.
        let bound = |side: &dyn Fn(f64) -> f64| {
            let bounds: Vec<f64> = advantages.iter().map(|it| side(*it)).collect();
            Tensor::new(bounds, &Device::Cpu)
        };
        let far = 1e9;
        let lower = bound(&|a| if a < 0.0 { -low } else { -far })?;
        let upper = bound(&|a| if a > 0.0 { high } else { far })?;
        log_ratio.maximum(&lower)?.minimum(&upper)
    }

    /// Whether one loss stands for a whole reply.
    pub fn is_of_replies(&self) -> bool {
        matches!(self, Self::Gmpo { .. })
    }

    /// Tokens that a probability trust region drops.
    pub fn dropped(&self, logprobs: &[f64], anchor: &[f64], advantages: &[f64]) -> Vec<bool> {
        let Self::Dppo { delta_low, delta_high } = *self else {
            return vec![false; logprobs.len()];
        };
        let moved = logprobs.iter().zip(anchor).map(|(now, then)| now.exp() - then.exp());
        moved
            .zip(advantages)
            .map(|(rise, a)| (*a > 0.0 && rise > delta_high) || (*a < 0.0 && -rise > delta_low))
            .collect()
    }

    /// The range of the ratio that is left alone.
    pub fn bounds(&self) -> (f64, f64) {
        let (low, high) = match *self {
            Self::Clip { low, high, .. } | Self::Cispo { low, high } => (low, high),
            Self::HardZero { low, high } => (Some(low), Some(high)),
            _ => (None, None),
        };
        (low.map_or(f64::NEG_INFINITY, |it| 1.0 - it), high.map_or(f64::INFINITY, |it| 1.0 + it))
    }
}

fn bounded(ratio: &Tensor, low: Option<f64>, high: Option<f64>) -> Result<Tensor> {
    let raised = match low {
        Some(low) => ratio.maximum(1.0 - low)?,
        None => ratio.clone(),
    };
    match high {
        Some(high) => raised.minimum(1.0 + high),
        None => Ok(raised),
    }
}

/// The numbers of a tensor, cut from the graph.
pub fn values(tensor: &Tensor) -> Result<Vec<f64>> {
    tensor.detach().to_vec1()
}

/// 1 where the condition holds, else 0.
pub fn mask(values: &[f64], holds: impl Fn(f64) -> bool) -> Result<Tensor> {
    let marks: Vec<f64> = values.iter().map(|it| f64::from(u8::from(holds(*it)))).collect();
    Tensor::new(marks, &Device::Cpu)
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Var;

    /// Loss and gradient of single tokens at given ratios, by hand.
    #[test]
    fn clipped_loss_and_gradient_follow_the_formula() {
        // (ratio, advantage, loss, d loss / d log ratio) with both clips 0.2
        let table = [
            (1.0, 2.0, -2.0, -2.0),
            (1.0, -1.0, 1.0, 1.0),
            (1.1, 1.0, -1.1, -1.1),
            (1.5, 1.0, -1.2, 0.0),
            (1.5, -1.0, 1.5, 1.5),
            (4.0, -1.0, 3.0, 0.0),
            (0.5, 1.0, -0.5, -0.5),
            (0.5, -1.0, 0.8, 0.0),
        ];
        let clip = Surrogate::Clip { low: Some(0.2), high: Some(0.2), dual: Some(3.0) };
        for (ratio, advantage, loss, gradient) in table {
            let logprobs = Var::new(&[f64::ln(ratio)], &Device::Cpu).expect("var");
            let advantages = Tensor::new(&[advantage], &Device::Cpu).expect("tensor");
            let got = clip
                .losses(&SurrogateInputs {
                    logprobs: &logprobs,
                    anchor_logprobs: &Tensor::new(&[0.0], &Device::Cpu).expect("tensor"),
                    ratio: &logprobs.exp().expect("exp"),
                    advantages: &advantages,
                })
                .expect("loss");
            let grads = got.sum_all().and_then(|it| it.backward()).expect("backward");
            let got = values(&got).expect("loss")[0];
            let slope = grads.get(&logprobs).map_or(0.0, |it| values(it).expect("g")[0]);
            assert!((got - loss).abs() < 1e-9, "ratio {ratio} advantage {advantage}: loss {got}");
            assert!((slope - gradient).abs() < 1e-9, "ratio {ratio}, {advantage}: {slope}");
        }
    }
}
