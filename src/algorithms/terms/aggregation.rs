//! How the losses of one optimizer step's tokens become one number.
//!
//! Every mode is a weight that all tokens of a reply share, computed once over the whole step, so
//! that a loss and its gradient do not depend on how the step is cut into micro-batches. With N
//! replies of |o_i| sampled tokens, G prompts, L = `max_tokens`:
//!
//! - `token_mean` (DAPO, arXiv:2503.14476 eq. 8): 1 / sum_i |o_i|
//! - `sequence_mean` (GRPO, arXiv:2402.03300 eq. 3): 1 / (N |o_i|)
//! - `sequence_sum`: 1 / N
//! - `constant_length` (Dr. GRPO, arXiv:2503.20783): 1 / (N L)
//! - `prompt_mean`: 1 / (G sum of |o_j| over the replies to its prompt)

use serde::{Deserialize, Serialize};

/// Which denominator a token's loss gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Aggregation {
    /// Every token of the step weighs the same.
    TokenMean,
    /// Every reply weighs the same, whatever its length.
    SequenceMean,
    /// Token losses of a reply are summed, replies averaged.
    SequenceSum,
    /// Every token weighs the same and the sum is divided by replies times the longest allowed.
    ConstantLength,
    /// Every prompt weighs the same, and every token within a prompt's replies.
    PromptMean,
}

/// What the denominators of one optimizer step are made of.
#[derive(Clone, Copy, Debug)]
pub struct Denominators<'a> {
    /// Tokens of each reply that count.
    pub lengths: &'a [usize],
    /// The prompt each reply answers.
    pub groups: &'a [usize],
    /// L: the longest reply allowed; never the longest there is.
    pub max_tokens: usize,
    /// Whether a reply without tokens counts as a reply. It does where the constant length is the
    /// denominator, and nowhere else: an empty reply says nothing about the mean of the others.
    pub count_empty: bool,
    /// Divide by L alone, as verl does under the name Dr. GRPO, not by replies times L.
    pub without_replies: bool,
    /// Tokens of the step, where this is a part of it.
    pub tokens: Option<usize>,
    /// Replies of the step, where this is a part of it.
    pub replies: Option<usize>,
}

impl Aggregation {
    /// Whether an empty reply counts in this mode's denominator unless someone says otherwise.
    pub fn counts_empty(self) -> bool {
        self == Self::ConstantLength
    }

    /// Weight of each reply's tokens.
    pub fn weights(self, of: &Denominators<'_>) -> Vec<f64> {
        let total: usize = of.tokens.unwrap_or_else(|| of.lengths.iter().sum());
        let counted = of.lengths.iter().filter(|it| **it > 0 || of.count_empty).count();
        // Nothing to divide by means nothing to weigh.
        let replies = of.replies.unwrap_or(counted).max(1) as f64;
        match self {
            Self::TokenMean => vec![1.0 / total.max(1) as f64; of.lengths.len()],
            Self::SequenceMean => {
                of.lengths.iter().map(|it| 1.0 / (replies * (*it).max(1) as f64)).collect()
            }
            Self::SequenceSum => vec![1.0 / replies; of.lengths.len()],
            Self::ConstantLength => {
                let replies = if of.without_replies { 1.0 } else { replies };
                vec![1.0 / (replies * of.max_tokens.max(1) as f64); of.lengths.len()]
            }
            Self::PromptMean => {
                let mut tokens = std::collections::BTreeMap::<usize, usize>::new();
                for (group, length) in of.groups.iter().zip(of.lengths) {
                    *tokens.entry(*group).or_default() += length;
                }
                let prompts = tokens.values().filter(|it| **it > 0 || of.count_empty).count();
                let share = |group: &usize| 1.0 / (prompts.max(1) * tokens[group].max(1)) as f64;
                of.groups.iter().map(share).collect()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_follow_their_formulas() {
        let of = Denominators {
            lengths: &[1, 3, 0],
            groups: &[0, 0, 1],
            max_tokens: 10,
            count_empty: false,
            without_replies: false,
            tokens: None,
            replies: None,
        };
        let weights = |mode: Aggregation| mode.weights(&of);
        assert_eq!(weights(Aggregation::TokenMean), [0.25; 3]);
        assert_eq!(weights(Aggregation::SequenceMean), [0.5, 1.0 / 6.0, 0.5]);
        assert_eq!(weights(Aggregation::SequenceSum), [0.5; 3]);
        assert_eq!(weights(Aggregation::ConstantLength), [0.05; 3]);
        assert_eq!(weights(Aggregation::PromptMean)[..2], [0.25; 2]);
        let counted = Denominators { count_empty: true, ..of };
        assert_eq!(Aggregation::ConstantLength.weights(&counted), [1.0 / 30.0; 3]);
    }
}
