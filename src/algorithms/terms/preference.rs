//! Losses over pairs of replies of which one is preferred: of policies (DPO and its kin) and of
//! reward models (Bradley-Terry).
//!
//! With x = (log pi(w) - log pi_ref(w)) - (log pi(l) - log pi_ref(l)) for the preferred reply w and
//! the other l, s the label smoothing:
//!
//! | loss | formula | source |
//! |---|---|---|
//! | sigmoid | -(1 - s) log sigmoid(beta x) - s log sigmoid(-beta x) | DPO, arXiv:2305.18290 eq. 7; cDPO |
//! | robust | (-(1 - s) log sigmoid(beta x) + s log sigmoid(-beta x)) / (1 - 2 s) | arXiv:2403.00409 |
//! | hinge | max(0, 1 - beta x) | SLiC, arXiv:2305.10425 |
//! | ipo | (x - 1 / (2 beta))^2 | arXiv:2310.12036 eq. 17 |
//!
//! A reward model's: -log sigmoid(r_w - r_l - margin), smoothed likewise, + c (r_w + r_l)^2, which
//! keeps rewards around 0 (arXiv:2312.09244).

use candle_core::{Result, Tensor};
use serde::{Deserialize, Serialize};

use super::rows::Rows;

/// Which loss of a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferenceKind {
    /// DPO's.
    #[default]
    Sigmoid,
    /// Unbiased under label noise.
    Robust,
    /// A margin.
    Hinge,
    /// A squared distance to a margin.
    Ipo,
}

/// A policy's loss over pairs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PreferenceLoss {
    /// Which.
    pub kind: PreferenceKind,
    /// How strongly the policy is held to the reference.
    pub beta: f64,
    /// Share of pairs whose label is thought wrong.
    pub label_smoothing: f64,
    /// Compare means over tokens instead of sums.
    pub length_normalize: bool,
}

impl PreferenceLoss {
    /// Log-probability of each reply from those of its tokens: `(tokens)` to `(rows)`, with gradient.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn of_replies(&self, rows: &Rows, logprobs: &Tensor) -> Result<Tensor> {
        if self.length_normalize { rows.mean(logprobs) } else { rows.sum(logprobs) }
    }

    /// Loss of each pair. All are f64 `(pairs)`: log-probabilities of whole replies, in nats.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn losses(
        &self,
        chosen: &Tensor,
        rejected: &Tensor,
        reference_chosen: &Tensor,
        reference_rejected: &Tensor,
    ) -> Result<Tensor> {
        let (beta, smoothing) = (self.beta, self.label_smoothing);
        let chosen = (chosen - reference_chosen)?;
        let rejected = (rejected - reference_rejected)?;
        let x = (&chosen - &rejected)?;
        let scaled = (&x * beta)?;
        match self.kind {
            PreferenceKind::Sigmoid => smoothed(&scaled, smoothing),
            PreferenceKind::Robust => {
                let right = (log_sigmoid(&scaled)? * -(1.0 - smoothing))?;
                let wrong = (log_sigmoid(&scaled.neg()?)? * smoothing)?;
                (right + wrong)? / (1.0 - 2.0 * smoothing)
            }
            PreferenceKind::Hinge => scaled.affine(-1.0, 1.0)?.relu(),
            PreferenceKind::Ipo => (x - 1.0 / (2.0 * beta))?.sqr(),
        }
    }

    /// DPO's implicit rewards of whole replies, beta (log pi - log pi_ref), from sums over their
    /// tokens whatever the loss compares.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn rewards(&self, policy: &Tensor, reference: &Tensor) -> Result<Vec<f64>> {
        ((policy.detach() - reference)? * self.beta)?.to_vec1()
    }
}

/// A reward model's loss over pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct BradleyTerry {
    /// Share of pairs whose label is thought wrong.
    pub label_smoothing: f64,
    /// c: pulls the sum of a pair's rewards to 0.
    pub centering: f64,
}

impl BradleyTerry {
    /// Loss of each pair, `(pairs)`, with gradient; rewards and margins are f64 `(pairs)`.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn losses(
        &self,
        chosen: &Tensor,
        rejected: &Tensor,
        margin: Option<&Tensor>,
    ) -> Result<Tensor> {
        let mut lead = (chosen - rejected)?;
        if let Some(margin) = margin {
            lead = (lead - margin)?;
        }
        let losses = smoothed(&lead, self.label_smoothing)?;
        if self.centering == 0.0 {
            return Ok(losses);
        }
        losses + ((chosen + rejected)?.sqr()? * self.centering)?
    }
}

/// -(1 - s) log sigmoid(x) - s log sigmoid(-x)
fn smoothed(x: &Tensor, smoothing: f64) -> Result<Tensor> {
    let right = (log_sigmoid(x)? * -(1.0 - smoothing))?;
    if smoothing == 0.0 {
        return Ok(right);
    }
    right + (log_sigmoid(&x.neg()?)? * -smoothing)?
}

/// -log(1 + exp(-x)), with the larger exponent taken out and cut from the graph, where it cancels:
/// exact to rounding, and its gradient is right at 0, where DPO begins.
fn log_sigmoid(x: &Tensor) -> Result<Tensor> {
    let largest = x.neg()?.relu()?.detach();
    let sum = (largest.neg()?.exp()? + (x.neg()? - &largest)?.exp()?)?;
    (largest + sum.log()?)?.neg()
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Var};

    #[test]
    fn a_pair_without_difference_has_loss_ln_2_and_slope_one_half() {
        let chosen = Var::new(&[-3.0f64, 800.0, -800.0], &Device::Cpu).expect("var");
        let zero = Tensor::new(&[-3.0f64, 0.0, 0.0], &Device::Cpu).expect("tensor");
        let losses = BradleyTerry::default().losses(&chosen, &zero, None).expect("losses");
        let slopes = losses.sum_all().and_then(|it| it.backward()).expect("backward");
        let losses = losses.to_vec1::<f64>().expect("values");
        let slopes = slopes.get(&chosen).expect("gradient").to_vec1::<f64>().expect("values");
        assert_eq!(losses, [std::f64::consts::LN_2, 0.0, 800.0]);
        assert_eq!(slopes, [-0.5, 0.0, -1.0]);
    }
}
