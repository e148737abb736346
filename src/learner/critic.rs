//! What estimates values for PPO: a scalar head on a trunk of its own, or on the policy's.

use std::path::Path;

use candle_core::{Device, Var};
use tallow_envs::Seed;
use tallow_policies::{
    AdamW, AdamWConfig, Decoder, GradientSet, HeadInit, Keep, Pass, ScalarHead, ScalarModel,
};

use super::OptimizerConfig;
use super::batch::{MicroBatch, Sequence, SharedPrompts, token_budget_runs};
use super::guard::diverged;
use crate::algorithms::ppo::{CriticConfig, CriticTrunk};
use crate::algorithms::terms::surrogate::values as numbers;
use crate::error::Error;
use crate::tracking::Metrics;

const FOLDER: &str = "critic";
const HEAD_FILE: &str = "critic_head.safetensors";
const OPTIMIZER_FILE: &str = "critic_optimizer.safetensors";

/// Tag of the seed stream that draws fresh heads.
const HEAD_STREAM: u64 = 0x6865_6164;

/// A critic's learning rate over the policy's, unless it is set: it starts from nothing.
const RATE_FACTOR: f64 = 10.0;

/// See the head of this file.
pub struct Critic {
    config: CriticConfig,
    stands: Stands,
}

enum Stands {
    Alone(Box<OwnTrunk>),
    OnPolicy(ScalarHead),
}

struct OwnTrunk {
    model: ScalarModel,
    optimizer: AdamW,
    adamw: AdamWConfig,
    learning_rate: f64,
    budget: usize,
    sharing: SharedPrompts,
    pass: Pass,
    gradients: GradientSet,
}

/// One reply, as a critic learns from it; all vectors have one entry a sampled token.
#[derive(Clone, Copy)]
pub struct Valued<'a> {
    /// Its tokens.
    pub sequence: &'a Sequence,
    /// What the critic said when the batch was scored.
    pub old_values: &'a [f64],
    /// What it should have said.
    pub returns: &'a [f64],
}

/// Loss and gradient of values; metrics are sums over `of` tokens' means.
pub struct ValueGradient {
    /// Gradient of the loss by each value.
    pub slopes: Vec<f32>,
    /// Parts of the step's means.
    pub metrics: Metrics,
}

impl Critic {
    /// A critic on the policy's weights of now, its head 0: the first values are 0.
    ///
    /// # Errors
    /// If the weights cannot be copied.
    pub fn new(
        policy: &Decoder,
        config: CriticConfig,
        optimizer: &OptimizerConfig,
        seed: Seed,
    ) -> Result<Self, Error> {
        let drawn = seed.derive(&[HEAD_STREAM]).0;
        let stands = match config.trunk {
            CriticTrunk::Shared => {
                let width = policy.config().hidden_size;
                Stands::OnPolicy(ScalarHead::new(width, HeadInit::Zero, drawn)?)
            }
            CriticTrunk::Own => {
                let recomputes = optimizer.recompute_activations;
                Stands::Alone(Box::new(OwnTrunk {
                    model: ScalarModel::from_decoder(policy, HeadInit::Zero, drawn)?,
                    optimizer: AdamW::new(optimizer.adamw.clone()),
                    adamw: optimizer.adamw.clone(),
                    learning_rate: config
                        .learning_rate
                        .unwrap_or(RATE_FACTOR * optimizer.learning_rate),
                    budget: optimizer.micro_batch_tokens,
                    sharing: optimizer.sharing(),
                    pass: Pass::new(if recomputes { Keep::Inputs } else { Keep::Activations }),
                    gradients: GradientSet::new(),
                }))
            }
        };
        Ok(Self { config, stands })
    }

    /// Its settings.
    pub fn config(&self) -> &CriticConfig {
        &self.config
    }

    /// The head on the policy's trunk, if it stands there.
    pub fn shared_head(&self) -> Option<&ScalarHead> {
        match &self.stands {
            Stands::OnPolicy(head) => Some(head),
            Stands::Alone(_) => None,
        }
    }

    /// The value before each sampled token of the sequences, end to end.
    ///
    /// # Errors
    /// If the model fails.
    pub fn values(&self, policy: &Decoder, sequences: &[Sequence]) -> Result<Vec<f32>, Error> {
        let batch = MicroBatch::pack(sequences, SharedPrompts::Once);
        if batch.targets.is_empty() {
            return Ok(Vec::new());
        }
        let mut pass = Pass::new(Keep::Nothing);
        match &self.stands {
            Stands::Alone(own) => Ok(own.model.values(&mut pass, &batch.sequences, &batch.rows)?),
            Stands::OnPolicy(head) => {
                policy.forward(&mut pass, &batch.sequences)?;
                Ok(head.values(policy.hidden(&mut pass, &batch.rows)?)?)
            }
        }
    }

    /// One optimizer step of a trunk of its own; nothing for a shared one, which learns with the
    /// policy. `factor` is where the policy's schedule is.
    ///
    /// # Errors
    /// If the model fails or a gradient is not finite (the weights are then unchanged).
    pub fn learn(&mut self, replies: &[Valued<'_>], factor: f64) -> Result<Metrics, Error> {
        let mut metrics = Metrics::new();
        let tokens: usize = replies.iter().map(|it| it.returns.len()).sum();
        let Stands::Alone(own) = &mut self.stands else { return Ok(metrics) };
        if tokens == 0 {
            return Ok(metrics);
        }
        own.gradients.reset();
        let sequences = replies.iter().map(|it| it.sequence);
        for run in token_budget_runs(sequences, own.budget, own.sharing) {
            let part = &replies[run];
            let batch = MicroBatch::pack(part.iter().map(|it| it.sequence), own.sharing);
            if batch.targets.is_empty() {
                continue;
            }
            let values = own.model.values(&mut own.pass, &batch.sequences, &batch.rows)?;
            let old: Vec<f64> = part.iter().flat_map(|it| it.old_values).copied().collect();
            let returns: Vec<f64> = part.iter().flat_map(|it| it.returns).copied().collect();
            let by = gradient(&self.config, &values, &old, &returns, tokens as f64)?;
            metrics.accumulate(&by.metrics);
            own.model.backward(&mut own.pass, &by.slopes, &mut own.gradients)?;
        }
        let rate = own.learning_rate * factor;
        let report = own
            .model
            .step(&mut own.optimizer, &own.gradients, rate)
            .map_err(|it| diverged("the critic", it))?;
        metrics.set("learner/critic_grad_norm", report.grad_norm);
        Ok(metrics)
    }

    /// Writes the critic and its optimizer beside the weights of a checkpoint.
    ///
    /// # Errors
    /// If a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<(), Error> {
        match &self.stands {
            Stands::OnPolicy(head) => head.save(&folder.join(HEAD_FILE))?,
            Stands::Alone(own) => {
                own.model.save_folder(&folder.join(FOLDER))?;
                own.optimizer.save(&folder.join(OPTIMIZER_FILE))?;
            }
        }
        Ok(())
    }

    /// Goes on from what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// If a file cannot be read or belongs to another model.
    pub fn restore(&mut self, folder: &Path) -> Result<(), Error> {
        match &mut self.stands {
            Stands::OnPolicy(head) => {
                head.copy_from(&ScalarHead::load(&folder.join(HEAD_FILE))?)?;
            }
            Stands::Alone(own) => {
                own.model.copy_from(&ScalarModel::from_folder(&folder.join(FOLDER))?)?;
                own.optimizer = AdamW::load(own.adamw.clone(), &folder.join(OPTIMIZER_FILE))?;
            }
        }
        Ok(())
    }
}

/// Loss and gradient of some of a step's values; `tokens` are the step's.
///
/// # Errors
/// If there is not one old value and return for each.
pub fn gradient(
    config: &CriticConfig,
    values: &[f32],
    old: &[f64],
    returns: &[f64],
    tokens: f64,
) -> Result<ValueGradient, Error> {
    let now: Vec<f64> = values.iter().map(|it| f64::from(*it)).collect();
    let count = now.len();
    let now = Var::from_vec(now, count, &Device::Cpu)?;
    let (losses, held) = config.loss().losses(&now, old, returns)?;
    let loss = (losses.sum_all()? / tokens)?;
    let slopes = match loss.backward()?.get(&now) {
        Some(slopes) => numbers(slopes)?.into_iter().map(|it| it as f32).collect(),
        None => vec![0.0; count],
    };
    let mut metrics = Metrics::new();
    metrics.add("learner/value_loss", loss.to_scalar::<f64>()?);
    let held = held.iter().filter(|it| **it).count() as f64;
    metrics.add("learner/value_clipped_share", held / tokens);
    let errors = values.iter().zip(returns).map(|(value, it)| (it - f64::from(*value)).powi(2));
    metrics.add("learner/value_squared_error", errors.sum::<f64>() / tokens);
    Ok(ValueGradient { slopes, metrics })
}
