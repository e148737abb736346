//! The critic's loss (PPO2's; arXiv:2005.12729, table 1): with V the value now and V_old that of the
//! rollouts, `factor max((V - R)^2, (V_old + clip(V - V_old, -c, c) - R)^2)`; without a clip
//! `factor (V - R)^2`.

use candle_core::{Device, Result, Tensor};

use super::surrogate::values;

/// What a critic's loss is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ValueLoss {
    /// c: how far a value moves from the old one before its gradient stops; absent: as far as it will.
    pub clip: Option<f64>,
    /// Weight of the squared error.
    pub factor: f64,
}

impl ValueLoss {
    /// Loss of each token, with gradient through `values`; and which tokens the clip held back. All
    /// are f64 `(tokens)`.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn losses(
        &self,
        now: &Tensor,
        old: &[f64],
        returns: &[f64],
    ) -> Result<(Tensor, Vec<bool>)> {
        let old = Tensor::new(old, &Device::Cpu)?;
        let returns = Tensor::new(returns, &Device::Cpu)?;
        let plain = (now - &returns)?.sqr()?;
        let Some(clip) = self.clip else {
            let tokens = plain.elem_count();
            return Ok(((plain * self.factor)?, vec![false; tokens]));
        };
        let moved = (now - &old)?.clamp(-clip, clip)?;
        let clipped = ((old + moved)? - returns)?.sqr()?;
        let pairs = values(&clipped)?.into_iter().zip(values(&plain)?);
        let held = pairs.map(|(clipped, plain)| clipped > plain).collect();
        Ok(((plain.maximum(&clipped)? * self.factor)?, held))
    }
}
