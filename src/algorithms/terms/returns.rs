//! Credit of single tokens: discounted returns, and generalised advantage estimation (Schulman et al.
//! 2016, arXiv:1506.02438, eq. 16).
//!
//! A reply here is every position from its first token on, with a mask that says which of them the
//! policy sampled; the others are what a tool or the environment put between two turns. They earn
//! nothing and get no credit. What they do to the tokens before them is where the peers differ:
//!
//! - skipped (ours, verl's GAE): value and advantage are carried over them, and they cost no discount
//! - a step of value 0 and reward 0 (OpenRLHF)
//! - treated as sampled (SkyRL's GAE), which lets the values of tool output leak into the policy's
//! - the return starts anew before them (verl's and SkyRL's REINFORCE++)

use serde::{Deserialize, Serialize};

/// What a position that was not sampled does to returns before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskedReturn {
    /// Nothing.
    #[default]
    CarryReturn,
    /// It costs one discount.
    CarryReturnAndDiscount,
    /// It ends them.
    ResetReturn,
}

/// What a position that was not sampled does to advantages before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MaskedValue {
    /// Nothing.
    #[default]
    Skip,
    /// It is a step of value 0 and reward 0.
    ZeroValueZeroReward,
    /// It is a step like any other.
    TreatedAsValid,
}

/// Discounted sum of rewards from each position on; 0 where nothing was sampled.
pub fn returns(rewards: &[f64], sampled: &[bool], gamma: f64, masked: MaskedReturn) -> Vec<f64> {
    let mut running = 0.0;
    let mut returns = vec![0.0; rewards.len()];
    for position in (0..rewards.len()).rev() {
        if sampled[position] {
            running = rewards[position] + gamma * running;
            returns[position] = running;
            continue;
        }
        match masked {
            MaskedReturn::CarryReturn => {}
            MaskedReturn::CarryReturnAndDiscount => running *= gamma,
            MaskedReturn::ResetReturn => running = 0.0,
        }
    }
    returns
}

/// Discounts of generalised advantage estimation.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Gae {
    /// Discount of later rewards.
    pub gamma: f64,
    /// Discount of later temporal differences: 1 trusts the rewards, 0 the critic.
    pub lambda: f64,
    /// What a position that was not sampled does.
    pub masked: MaskedValue,
}

impl Gae {
    /// Advantage of each position; 0 where nothing was sampled. With d_t = r_t + gamma V_{t+1} - V_t:
    /// A_t = d_t + gamma lambda A_{t+1}.
    pub fn advantages(&self, rewards: &[f64], values: &[f64], sampled: &[bool]) -> Vec<f64> {
        let (mut next_value, mut next_advantage) = (0.0, 0.0);
        let mut advantages = vec![0.0; rewards.len()];
        for position in (0..rewards.len()).rev() {
            let (reward, value) = match (sampled[position], self.masked) {
                (false, MaskedValue::Skip) => continue,
                (false, MaskedValue::ZeroValueZeroReward) => (0.0, 0.0),
                _ => (rewards[position], values[position]),
            };
            let difference = reward + self.gamma * next_value - value;
            next_advantage = difference + self.gamma * self.lambda * next_advantage;
            next_value = value;
            if sampled[position] {
                advantages[position] = next_advantage;
            }
        }
        advantages
    }
}

/// Puts a reward on the last sampled position.
pub fn on_last_token(reward: f64, sampled: &[bool]) -> Vec<f64> {
    let mut rewards = vec![0.0; sampled.len()];
    if let Some(last) = sampled.iter().rposition(|it| *it) {
        rewards[last] = reward;
    }
    rewards
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two turns around one token of tool output, by hand: gamma 0.9, lambda 0.5.
    #[test]
    fn advantages_skip_what_a_tool_said() {
        let sampled = [true, true, false, true];
        let values = [0.1, 0.2, 50.0, 0.4];
        let rewards = on_last_token(1.0, &sampled);
        assert_eq!(rewards, [0.0, 0.0, 0.0, 1.0]);
        let gae = Gae { gamma: 0.9, lambda: 0.5, masked: MaskedValue::Skip };
        let got = gae.advantages(&rewards, &values, &sampled);
        let last = 1.0 - 0.4;
        let middle = 0.9 * 0.4 - 0.2 + 0.45 * last;
        let first = 0.9 * 0.2 - 0.1 + 0.45 * middle;
        for (got, want) in got.iter().zip([first, middle, 0.0, last]) {
            assert!((got - want).abs() < 1e-12, "{got} instead of {want}");
        }
    }

    #[test]
    fn returns_cross_tool_output_as_told() {
        let sampled = [true, false, true];
        let rewards = [0.5, 0.0, 1.0];
        for (masked, first) in [
            (MaskedReturn::CarryReturn, 1.0),
            (MaskedReturn::CarryReturnAndDiscount, 0.75),
            (MaskedReturn::ResetReturn, 0.5),
        ] {
            assert_eq!(returns(&rewards, &sampled, 0.5, masked), [first, 0.0, 1.0]);
        }
    }
}
