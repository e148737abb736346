//! How token losses of one update become one number.
//!
//! Written as a weight per token, computed once over the whole update, so that a loss and its
//! gradient do not depend on how the update is cut into micro-batches. With N replies of |o_i|
//! sampled tokens:
//!
//! - `token_mean` (DAPO, arXiv:2503.14476 eq. 8): 1 / sum_i |o_i|
//! - `sequence_mean` (GRPO, arXiv:2402.03300 eq. 3): 1 / (N |o_i|)
//! - `constant_length` (Dr. GRPO, arXiv:2503.20783): 1 / (N L) with L = `max_tokens`

use serde::{Deserialize, Serialize};

/// Which denominator a token's loss gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Every token of the update weighs the same.
    TokenMean,
    /// Every reply weighs the same, whatever its length.
    SequenceMean,
    /// Every token weighs the same and the sum is divided by replies times the longest allowed.
    ConstantLength,
}

impl Aggregation {
    /// Weight of each token of each reply, from the replies' numbers of sampled tokens and the
    /// longest reply allowed. An empty reply counts as a reply.
    pub fn token_weights(self, sampled: &[usize], max_tokens: usize) -> Vec<f32> {
        let replies = sampled.len() as f64;
        let total: usize = sampled.iter().sum();
        sampled
            .iter()
            .map(|tokens| match self {
                Self::TokenMean => 1.0 / total.max(1) as f64,
                Self::SequenceMean => 1.0 / (replies * (*tokens).max(1) as f64),
                Self::ConstantLength => 1.0 / (replies * max_tokens.max(1) as f64),
            })
            .map(|it| it as f32)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_their_formulas() {
        let lengths = [1, 3];
        assert_eq!(Aggregation::TokenMean.token_weights(&lengths, 10), [0.25, 0.25]);
        assert_eq!(Aggregation::SequenceMean.token_weights(&lengths, 10), [0.5, 1.0 / 6.0]);
        assert_eq!(Aggregation::ConstantLength.token_weights(&lengths, 10), [0.05, 0.05]);
    }
}
