//! What lengths do to rewards, before any baseline is taken off.

use serde::{Deserialize, Serialize};

/// DAPO's soft overlong punishment (arXiv:2503.14476, eq. 13): nothing up to `longest - buffer`
/// tokens, then linearly more, `factor` at the longest.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct SoftOverlong {
    /// Tokens before the longest allowed at which the punishment starts; absent: a fifth of the
    /// longest, as in the paper.
    pub buffer: Option<usize>,
    /// Punishment at the longest.
    pub factor: f64,
}

impl Default for SoftOverlong {
    fn default() -> Self {
        Self { buffer: None, factor: 1.0 }
    }
}

impl SoftOverlong {
    /// What a reply of `tokens` loses where `longest` are allowed; without `capped` the punishment
    /// goes on growing past the longest, as in verl.
    pub fn penalty(&self, tokens: usize, longest: usize, capped: bool) -> f64 {
        let buffer = self.buffer.unwrap_or(longest / 5).max(1) as f64;
        let over = tokens as f64 - (longest as f64 - buffer);
        let penalty = over.max(0.0) / buffer * self.factor;
        if capped { penalty.min(self.factor) } else { penalty }
    }
}

/// The reward of a reply that was cut off: scaled by a coefficient of 0 or more, or replaced by a
/// negative one (OpenRLHF's stop-properly penalty).
pub fn cut_off_reward(reward: f64, coefficient: f64) -> f64 {
    if coefficient >= 0.0 { reward * coefficient } else { coefficient }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_punishment_grows_over_the_buffer_and_stops() {
        let soft = SoftOverlong { buffer: Some(8), factor: 1.0 };
        let lost = [12, 13, 16, 20, 23].map(|it| soft.penalty(it, 20, true));
        assert_eq!(lost, [0.0, 0.125, 0.5, 1.0, 1.0]);
        assert_eq!(soft.penalty(23, 20, false), 1.375);
    }
}
