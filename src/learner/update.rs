//! Learning from scored groups: one batch of rollouts becomes credit, and credit optimizer steps.
//!
//! ```text
//! groups ─▶ Sample (shaped reward) ─▶ old, reference and value passes ─▶ Algorithm::assign_credit
//!        ─▶ epochs × minibatches: PolicyLoss::plan, then forward, loss and backward by micro-batch
//! ```

use candle_core::{Device, Tensor, Var};
use rand::seq::SliceRandom;
use tallow_envs::Seed;
use tallow_policies::{Keep, Pass, ScoreGradients};
use tallow_verifiers::StopReason;

use super::batch::{MicroBatch, Sequence, bundled_runs, token_budget_runs};
use super::critic::{Valued, gradient};
use super::{Critic, Learner};
use crate::algorithms::terms::aggregation::{Aggregation, Denominators};
use crate::algorithms::terms::divergence::generalised_divergence;
use crate::algorithms::terms::kl::{AdaptiveKl, KlClamps, KlEstimator};
use crate::algorithms::terms::policy_loss::{PartInputs, PolicyLoss, StepNumbers};
use crate::algorithms::terms::preference::PreferenceLoss;
use crate::algorithms::terms::rows::Rows;
use crate::algorithms::terms::surrogate::values as numbers;
use crate::algorithms::{Algorithm, Credit, Objective, OldPolicy, Rollouts, ZeroVariance};
use crate::error::Error;
use crate::rollout::trajectory::ScoredGroup;
use crate::tracking::Metrics;

/// How a batch of rollouts is learned from.
#[derive(Clone, Copy, Debug)]
pub struct UpdateSettings {
    /// Passes over the batch.
    pub epochs: usize,
    /// Optimizer steps in each pass.
    pub minibatches: usize,
    /// The temperature that sampled.
    pub temperature: f64,
    /// Longest reply allowed.
    pub max_tokens: usize,
    /// Version of the current weights.
    pub newest: u64,
    /// Draws the order of minibatches.
    pub seed: Seed,
}

/// What an update did.
pub struct Updated {
    /// Numbers about it.
    pub metrics: Metrics,
    /// Credit of each sampled token by group and member; empty for replies that did not learn.
    pub credit: Vec<Vec<Vec<f32>>>,
}

/// Sampled tokens of one reply, ready to be learned from. Vectors have one entry a sampled token.
struct Sample {
    group: usize,
    member: usize,
    sequence: Sequence,
    /// Every position from the first sampled token to the last: was it sampled?
    sampled: Vec<bool>,
    reward: f64,
    sampler_logprobs: Vec<f64>,
    behavior_logprobs: Vec<f64>,
    reference_logprobs: Vec<f64>,
    values: Vec<f64>,
    advantages: Vec<f64>,
    returns: Vec<f64>,
    staleness: u64,
}

/// What one minibatch left in the learner's gradients, and numbers about it.
struct Accumulated {
    metrics: Metrics,
    /// How far sampler and learner disagreed, nats a token.
    mismatch: f64,
    /// Whether anything had a gradient at all.
    teaches: bool,
}

impl Learner {
    /// Learns from scored groups. What teaches nothing is left out: groups too small for the method,
    /// and what its settings exclude.
    ///
    /// # Errors
    /// If the model fails or a gradient is not finite (the weights are then unchanged).
    pub fn update(
        &mut self,
        algorithm: &Algorithm,
        groups: &[ScoredGroup],
        settings: &UpdateSettings,
    ) -> Result<Updated, Error> {
        let mut updated = Updated { metrics: Metrics::new(), credit: blank(groups) };
        let (samples, bundle) = self.prepared(algorithm, groups, settings, &mut updated)?;
        if samples.is_empty() {
            return Ok(updated);
        }
        let metrics = &mut updated.metrics;
        let kl_weight = self.kl_weight.unwrap_or(algorithm.kl_weight());
        self.adapt_kl(algorithm, &samples, kl_weight, metrics);
        let warmup = self.critic.as_ref().map_or(0, |it| it.config().warmup_steps);
        let only_critic = settings.newest < warmup;

        let mut sums = Metrics::new();
        let mut updates = 0.0;
        for epoch in 0..settings.epochs.max(1) {
            let mut order: Vec<usize> = (0..samples.len() / bundle).collect();
            if settings.minibatches > 1 {
                order.shuffle(&mut settings.seed.derive(&[epoch as u64]).rng());
            }
            let size = order.len().div_ceil(settings.minibatches.max(1));
            for minibatch in order.chunks_mut(size) {
                // Siblings stand together again, so that they can share their prompt.
                minibatch.sort_unstable();
                let part: Vec<&Sample> = minibatch
                    .iter()
                    .flat_map(|it| &samples[it * bundle..(it + 1) * bundle])
                    .collect();
                let factor = self.config.schedule.factor(self.steps, self.total_steps);
                let mut report = Metrics::new();
                if let Some(critic) = &mut self.critic {
                    let replies: Vec<Valued<'_>> = part.iter().map(|it| it.valued()).collect();
                    report.extend(critic.learn(&replies, factor)?);
                }
                if !only_critic {
                    let done = self.accumulate(algorithm, part, kl_weight, settings)?;
                    // Only before the first step are these still the weights that sampled; later the
                    // difference is learning, not a disagreement between sampler and learner.
                    if updates == 0.0 {
                        metrics.set("learner/sampler_mismatch_nats", done.mismatch);
                    }
                    report.extend(done.metrics);
                    // A minibatch in which nothing has credit changes nothing, moments included.
                    if done.teaches {
                        report.extend(self.step()?);
                    }
                }
                sums.accumulate(&report);
                updates += 1.0;
            }
        }
        sums.scale(1.0 / updates);
        metrics.extend(sums);
        metrics.set("learner/optimizer_steps", self.steps as f64);
        Ok(updated)
    }

    /// The gradient that a method makes of scored groups with the weights as they are, all in one
    /// minibatch, and numbers about it. No weight changes.
    ///
    /// # Errors
    /// If the model fails or a gradient is not finite.
    pub fn gradient(
        &mut self,
        algorithm: &Algorithm,
        groups: &[ScoredGroup],
        settings: &UpdateSettings,
    ) -> Result<(Metrics, Vec<f32>), Error> {
        let mut updated = Updated { metrics: Metrics::new(), credit: blank(groups) };
        let (samples, _) = self.prepared(algorithm, groups, settings, &mut updated)?;
        let part: Vec<&Sample> = samples.iter().collect();
        let done = self.accumulate(algorithm, part, algorithm.kl_weight(), settings)?;
        let flat = self.gradients.iter().flat_map(|(_, values)| values).copied().collect();
        Ok((done.metrics, flat))
    }

    /// The samples of a batch with their credit, and how many neighbours stay together; notes the
    /// credit in `updated`.
    fn prepared(
        &self,
        algorithm: &Algorithm,
        groups: &[ScoredGroup],
        settings: &UpdateSettings,
        updated: &mut Updated,
    ) -> Result<(Vec<Sample>, usize), Error> {
        let mut samples = usable_samples(algorithm, groups, settings);
        if samples.is_empty() {
            return Ok((samples, 1));
        }
        let stale: u64 = samples.iter().map(|it| it.staleness).sum();
        updated.metrics.set("learner/staleness_mean", stale as f64 / samples.len() as f64);
        self.annotate(algorithm, &mut samples, settings.temperature)?;
        let kl_weight = self.kl_weight.unwrap_or(algorithm.kl_weight());
        assign_credit(algorithm, &mut samples, kl_weight);
        for sample in &samples {
            updated.credit[sample.group][sample.member] =
                sample.advantages.iter().map(|it| *it as f32).collect();
        }
        Ok(match algorithm.objective {
            Objective::Pairs(_) => (paired(samples), 2),
            _ => (samples, 1),
        })
    }

    /// Forward, loss and backward of one minibatch, into the learner's gradients.
    fn accumulate(
        &mut self,
        algorithm: &Algorithm,
        part: Vec<&Sample>,
        kl_weight: f64,
        settings: &UpdateSettings,
    ) -> Result<Accumulated, Error> {
        match &algorithm.objective {
            Objective::Policy(loss) => self.policy_gradient(loss, part, kl_weight, settings),
            Objective::Pairs(loss) => {
                let pairs: Vec<ScoredReply<'_>> = part.iter().map(|it| it.scored_reply()).collect();
                let metrics = self.preference_gradient(loss, &pairs, settings.temperature)?;
                Ok(Accumulated { metrics, mismatch: 0.0, teaches: !pairs.is_empty() })
            }
            Objective::Divergence { beta, aggregation } => {
                self.divergence_gradient(*beta, *aggregation, &part, settings)
            }
        }
    }

    /// The passes that credit needs: the policy before the update, the reference, the critic.
    fn annotate(
        &self,
        algorithm: &Algorithm,
        samples: &mut [Sample],
        temperature: f64,
    ) -> Result<(), Error> {
        let sequences: Vec<Sequence> = samples.iter().map(|it| it.sequence.clone()).collect();
        let whole_vocabulary = matches!(algorithm.objective, Objective::Divergence { .. });
        if let Some(reference) = self.reference.as_ref().filter(|_| !whole_vocabulary) {
            let scored =
                self.scored(&sequences, |part| Self::score(reference, part, temperature))?;
            for (sample, scored) in samples.iter_mut().zip(scored) {
                sample.reference_logprobs = scored;
            }
        }
        if algorithm.old_policy == OldPolicy::Learner {
            let scored =
                self.scored(&sequences, |part| Self::score(&self.decoder, part, temperature))?;
            for (sample, scored) in samples.iter_mut().zip(scored) {
                sample.behavior_logprobs = scored;
            }
        }
        if let Some(critic) = &self.critic {
            let scored = self.scored(&sequences, |part| critic.values(&self.decoder, part))?;
            for (sample, scored) in samples.iter_mut().zip(scored) {
                sample.values = scored;
            }
        }
        Ok(())
    }

    /// One number for each sampled token of each sequence, by micro-batches.
    fn scored(
        &self,
        sequences: &[Sequence],
        score: impl Fn(&[Sequence]) -> Result<Vec<f32>, Error>,
    ) -> Result<Vec<Vec<f64>>, Error> {
        let mut scored = Vec::with_capacity(sequences.len());
        let budget = self.config.micro_batch_tokens;
        for run in token_budget_runs(sequences, budget, self.config.sharing()) {
            let part = &sequences[run];
            let flat = score(part)?;
            let mut rest = flat.as_slice();
            for sequence in part {
                let (own, later) = rest.split_at(sequence.scored_tokens());
                scored.push(own.iter().map(|it| f64::from(*it)).collect());
                rest = later;
            }
        }
        Ok(scored)
    }

    /// Moves the weight of a KL penalty for the steps to come.
    fn adapt_kl(
        &mut self,
        algorithm: &Algorithm,
        samples: &[Sample],
        weight: f64,
        metrics: &mut Metrics,
    ) {
        let in_loss = algorithm.policy_loss().and_then(|it| it.kl).map(|it| it.estimator);
        let in_reward = algorithm.shaping.kl.map(|it| it.estimator);
        let estimator = in_loss.or(in_reward).unwrap_or(KlEstimator::K3);
        if samples.iter().all(|it| it.reference_logprobs.is_empty()) {
            return;
        }
        let kl = mean_kl(estimator, samples);
        metrics.set("learner/reference_kl_nats", kl);
        metrics.set("learner/kl_weight", weight);
        if let Some(adaptive) = algorithm.adaptive_kl {
            let replies = samples.len() as f64;
            self.kl_weight = Some(adaptive.adapted(weight, kl, replies, AdaptiveKl::CLIP));
        }
    }

    fn policy_gradient(
        &mut self,
        loss: &PolicyLoss,
        mut samples: Vec<&Sample>,
        kl_weight: f64,
        settings: &UpdateSettings,
    ) -> Result<Accumulated, Error> {
        // Without credit, and without anything else in the loss, there is no gradient: such replies
        // count in the denominators and are not computed.
        let only_credit = loss.kl.is_none()
            && loss.entropy_bonus == 0.0
            && loss.squared_log_ratio == 0.0
            && !loss.teacher_credit
            && self.critic.as_ref().and_then(Critic::shared_head).is_none();
        let idle = |it: &Sample| only_credit && it.advantages.iter().all(|it| *it == 0.0);
        samples.sort_by_key(|it| idle(it));
        let active = samples.iter().filter(|it| !idle(it)).count();
        let lengths: Vec<usize> = samples.iter().map(|it| it.advantages.len()).collect();
        let groups: Vec<usize> = samples.iter().map(|it| it.group).collect();
        let flat = |of: &dyn Fn(&Sample) -> &[f64], part: &[&Sample]| -> Vec<f64> {
            part.iter().flat_map(|it| of(it)).copied().collect()
        };
        let mut plan = loss.plan(&StepNumbers {
            lengths: &lengths,
            groups: &groups,
            behavior_logprobs: &flat(&|it| &it.behavior_logprobs, &samples),
            sampler_logprobs: &flat(&|it| &it.sampler_logprobs, &samples),
            max_tokens: settings.max_tokens,
        });
        if loss.kl.is_some() {
            plan.set_kl_weight(kl_weight);
        }
        let computed = lengths[..active].iter().sum::<usize>().max(1) as f64;
        let mut metrics = Metrics::new();
        for (name, value) in &plan.metrics {
            metrics.set(*name, *value);
        }
        let mut mismatch = 0.0;
        // Sums of the importance ratio of each token and of its square.
        let mut weights = (0.0, 0.0);
        let sharing = self.config.sharing();
        self.gradients.reset();
        let sequences = samples[..active].iter().map(|it| &it.sequence);
        for run in token_budget_runs(sequences, self.config.micro_batch_tokens, sharing) {
            let part = &samples[run.clone()];
            let batch = MicroBatch::pack(part.iter().map(|it| &it.sequence), sharing);
            if batch.targets.is_empty() {
                continue;
            }
            self.decoder.forward(&mut self.pass, &batch.sequences)?;
            let scores = self.decoder.score(
                &mut self.pass,
                &batch.rows,
                &batch.targets,
                settings.temperature,
            )?;
            let sampler = flat(&|it| &it.sampler_logprobs, part);
            for (now, then) in scores.logprobs.iter().zip(&sampler) {
                let log_ratio = f64::from(*now) - then;
                mismatch += log_ratio.abs();
                let ratio = log_ratio.exp();
                weights = (weights.0 + ratio, weights.1 + ratio * ratio);
            }
            let entropy: f64 = scores.entropies.iter().map(|it| f64::from(*it)).sum();
            metrics.add("learner/entropy_nats", entropy / computed);

            // The loss is differentiated by candle as a function of these.
            let logprobs = variable(&scores.logprobs)?;
            let entropies = (loss.entropy_bonus != 0.0).then(|| variable(&scores.entropies));
            let entropies = entropies.transpose()?;
            let reference = flat(&|it| &it.reference_logprobs, part);
            let reference = (!reference.is_empty())
                .then(|| Tensor::new(reference, &Device::Cpu))
                .transpose()?;
            let part_loss = loss.loss(
                &plan,
                run.clone(),
                &PartInputs {
                    logprobs: &logprobs,
                    behavior_logprobs: &Tensor::new(
                        flat(&|it| &it.behavior_logprobs, part),
                        &Device::Cpu,
                    )?,
                    sampler_logprobs: &Tensor::new(sampler, &Device::Cpu)?,
                    reference_logprobs: reference.as_ref(),
                    entropies: entropies.as_ref().map(Var::as_tensor),
                    advantages: &Tensor::new(flat(&|it| &it.advantages, part), &Device::Cpu)?,
                },
            )?;
            for (name, value) in part_loss.metrics {
                metrics.add(name, value);
            }
            metrics.add("learner/loss", self.finite_loss(part_loss.loss.to_scalar()?)?);
            let gradients = part_loss.loss.backward()?;
            let slopes = |by: &Var| match gradients.get(by) {
                Some(slopes) => Ok(numbers(slopes)?.into_iter().map(|it| it as f32).collect()),
                None => Err(Error::Diverged("the loss has no gradient".into())),
            };
            let by_logprobs: Vec<f32> = slopes(&logprobs)?;
            let by_entropies: Option<Vec<f32>> = entropies.as_ref().map(slopes).transpose()?;

            let mut by_hidden = None;
            if let Some(critic) = &self.critic
                && let Some(head) = critic.shared_head()
            {
                let hidden = self.decoder.hidden(&mut self.pass, &batch.rows)?.to_vec();
                let (old, returns) = (flat(&|it| &it.values, part), flat(&|it| &it.returns, part));
                let config = critic.config();
                let by = gradient(config, &head.values(&hidden)?, &old, &returns, computed)?;
                metrics.accumulate(&by.metrics);
                let coefficient = config.value_coefficient as f32;
                let slopes: Vec<f32> = by.slopes.iter().map(|it| it * coefficient).collect();
                by_hidden = Some(head.backward(&hidden, &slopes, &mut self.gradients)?);
            }
            let by = ScoreGradients {
                logprobs: &by_logprobs,
                entropies: by_entropies.as_deref(),
                hidden: by_hidden.as_deref(),
            };
            self.decoder.backward_scores(&mut self.pass, &by, &mut self.gradients)?;
        }
        // Kish's share of samples that importance weights of the policy of now leave effective.
        if weights.1 > 0.0 {
            let share = (weights.0 / computed).powi(2) / (weights.1 / computed);
            metrics.set("learner/effective_sample_size", share);
        }
        Ok(Accumulated { metrics, mismatch: mismatch / computed, teaches: active > 0 })
    }

    /// One optimizer step on pairs of replies: the preferred one, then the other, and so on.
    ///
    /// # Errors
    /// If the model fails or a gradient is not finite (the weights are then unchanged).
    pub fn preference_step(
        &mut self,
        loss: &PreferenceLoss,
        replies: &[ScoredReply<'_>],
        temperature: f64,
    ) -> Result<Metrics, Error> {
        let mut metrics = self.preference_gradient(loss, replies, temperature)?;
        metrics.extend(self.step()?);
        Ok(metrics)
    }

    fn preference_gradient(
        &mut self,
        loss: &PreferenceLoss,
        replies: &[ScoredReply<'_>],
        temperature: f64,
    ) -> Result<Metrics, Error> {
        let total = (replies.len() / 2).max(1) as f64;
        let sharing = self.config.sharing();
        let mut metrics = Metrics::new();
        self.gradients.reset();
        let sequences: Vec<&Sequence> = replies.iter().map(|it| it.sequence).collect();
        for run in bundled_runs(&sequences, 2, self.config.micro_batch_tokens, sharing) {
            let part = &replies[run];
            let batch = MicroBatch::pack(part.iter().map(|it| it.sequence), sharing);
            if batch.targets.is_empty() {
                continue;
            }
            self.decoder.forward(&mut self.pass, &batch.sequences)?;
            let scores =
                self.decoder.score(&mut self.pass, &batch.rows, &batch.targets, temperature)?;
            let logprobs = variable(&scores.logprobs)?;
            let judged = loss.judged(&logprobs, part)?;
            for (name, value) in judged.metrics(total) {
                metrics.add(name, value);
            }
            let scalar = (judged.losses.sum_all()? / total)?;
            metrics.add("learner/loss", self.finite_loss(scalar.to_scalar()?)?);
            let slopes: Vec<f32> = match scalar.backward()?.get(&logprobs) {
                Some(slopes) => numbers(slopes)?.into_iter().map(|it| it as f32).collect(),
                None => vec![0.0; scores.logprobs.len()],
            };
            self.decoder.backward(&mut self.pass, &slopes, &mut self.gradients)?;
        }
        Ok(metrics)
    }

    fn divergence_gradient(
        &mut self,
        beta: f64,
        aggregation: Aggregation,
        samples: &[&Sample],
        settings: &UpdateSettings,
    ) -> Result<Accumulated, Error> {
        let Some(teacher) = self.reference.clone() else {
            return Err(Error::Diverged("distillation without a teacher".into()));
        };
        let lengths: Vec<usize> = samples.iter().map(|it| it.advantages.len()).collect();
        let groups: Vec<usize> = samples.iter().map(|it| it.group).collect();
        let weights = aggregation.weights(&Denominators {
            lengths: &lengths,
            groups: &groups,
            max_tokens: settings.max_tokens,
            count_empty: aggregation.counts_empty(),
            without_replies: false,
            tokens: None,
            replies: None,
        });
        let sharing = self.config.sharing();
        let vocabulary = self.decoder.config().vocab_size;
        let budget = self.config.micro_batch_tokens.min((LOGITS_AT_ONCE / vocabulary).max(1));
        let tokens = lengths.iter().sum::<usize>().max(1) as f64;
        let mut teacher_pass = Pass::new(Keep::Nothing);
        let mut metrics = Metrics::new();
        let mut mismatch = 0.0;
        self.gradients.reset();
        let sequences = samples.iter().map(|it| &it.sequence);
        for run in token_budget_runs(sequences, budget, sharing) {
            let part = &samples[run.clone()];
            let batch = MicroBatch::pack(part.iter().map(|it| &it.sequence), sharing);
            if batch.targets.is_empty() {
                continue;
            }
            let (rows, temperature) = (&batch.rows, settings.temperature);
            teacher.forward(&mut teacher_pass, &batch.sequences)?;
            let taught = teacher.logits(&mut teacher_pass, rows, temperature)?;
            self.decoder.forward(&mut self.pass, &batch.sequences)?;
            let scores = self.decoder.score(&mut self.pass, rows, &batch.targets, temperature)?;
            let drawn = part.iter().flat_map(|it| &it.sampler_logprobs);
            let differences = scores.logprobs.iter().zip(drawn);
            mismatch += differences.map(|(now, then)| (f64::from(*now) - then).abs()).sum::<f64>();
            let entropy: f64 = scores.entropies.iter().map(|it| f64::from(*it)).sum();
            metrics.add("learner/entropy_nats", entropy / tokens);
            let logits = self.decoder.logits(&mut self.pass, rows, temperature)?;
            let matrix = |logits: Vec<f32>| -> Result<Tensor, Error> {
                let wide: Vec<f64> = logits.into_iter().map(f64::from).collect();
                Ok(Tensor::from_vec(wide, (rows.len(), vocabulary), &Device::Cpu)?)
            };
            let logits = Var::from_tensor(&matrix(logits)?)?;
            let losses = generalised_divergence(&logits, &matrix(taught)?, beta)?;
            let spread = Rows::new(&lengths[run.clone()])?.spread_values(&weights[run]);
            let scalar = (losses * Tensor::new(spread, &Device::Cpu)?)?.sum_all()?;
            metrics.add("learner/loss", self.finite_loss(scalar.to_scalar()?)?);
            let gradients = scalar.backward()?;
            let slopes: Vec<f32> = match gradients.get(&logits) {
                Some(slopes) => {
                    let flat = numbers(&slopes.flatten_all()?)?;
                    flat.into_iter().map(|it| it as f32).collect()
                }
                None => return Err(Error::Diverged("the divergence has no gradient".into())),
            };
            self.decoder.backward_logits(&mut self.pass, &slopes, &mut self.gradients)?;
        }
        Ok(Accumulated { metrics, mismatch: mismatch / tokens, teaches: !samples.is_empty() })
    }
}

/// Logits of a whole vocabulary that distillation holds at once, of either model.
const LOGITS_AT_ONCE: usize = 1 << 22;

/// A reply and what the reference thought of its tokens.
#[derive(Clone, Copy)]
pub struct ScoredReply<'a> {
    /// Its tokens.
    pub sequence: &'a Sequence,
    /// log pi_ref of each scored token, nats.
    pub reference_logprobs: &'a [f64],
}

/// What a preference loss makes of some pairs.
pub struct Judged {
    /// Loss of each pair, with gradient.
    pub losses: Tensor,
    chosen_rewards: Vec<f64>,
    rejected_rewards: Vec<f64>,
}

impl Judged {
    /// Implicit rewards of each pair: of the preferred reply, then of the other.
    pub fn rewards(&self) -> impl Iterator<Item = (f64, f64)> {
        self.chosen_rewards.iter().copied().zip(self.rejected_rewards.iter().copied())
    }

    /// Parts of the means over `total` pairs.
    pub fn metrics(&self, total: f64) -> [(&'static str, f64); 3] {
        let pairs = self.chosen_rewards.iter().zip(&self.rejected_rewards);
        let right = pairs.clone().filter(|(chosen, rejected)| chosen > rejected).count() as f64;
        let margin: f64 = pairs.map(|(chosen, rejected)| chosen - rejected).sum();
        let chosen: f64 = self.chosen_rewards.iter().sum();
        [
            ("learner/pair_accuracy", right / total),
            ("learner/pair_margin", margin / total),
            ("learner/chosen_reward", chosen / total),
        ]
    }
}

impl PreferenceLoss {
    /// The losses of pairs, from the log-probabilities of all their scored tokens end to end.
    ///
    /// # Errors
    /// If the shapes disagree.
    pub fn judged(&self, logprobs: &Var, replies: &[ScoredReply<'_>]) -> Result<Judged, Error> {
        let lengths: Vec<usize> = replies.iter().map(|it| it.sequence.scored_tokens()).collect();
        let rows = Rows::new(&lengths)?;
        let reference: Vec<f64> =
            replies.iter().flat_map(|it| it.reference_logprobs).copied().collect();
        let reference = Tensor::new(reference, &Device::Cpu)?;
        let rewards = self.rewards(&rows.sum(logprobs)?, &rows.sum(&reference)?)?;
        let policy = self.of_replies(&rows, logprobs)?;
        let reference = self.of_replies(&rows, &reference)?;
        let side = |of: &Tensor, first: u32| -> Result<Tensor, Error> {
            let places: Vec<u32> = (first..replies.len() as u32).step_by(2).collect();
            Ok(of.index_select(&Tensor::new(places, &Device::Cpu)?, 0)?)
        };
        let losses = self.losses(
            &side(&policy, 0)?,
            &side(&policy, 1)?,
            &side(&reference, 0)?,
            &side(&reference, 1)?,
        )?;
        let every_second = |first: usize| rewards.iter().skip(first).step_by(2).copied().collect();
        Ok(Judged { losses, chosen_rewards: every_second(0), rejected_rewards: every_second(1) })
    }
}

impl Sample {
    fn scored_reply(&self) -> ScoredReply<'_> {
        ScoredReply { sequence: &self.sequence, reference_logprobs: &self.reference_logprobs }
    }

    fn valued(&self) -> Valued<'_> {
        Valued { sequence: &self.sequence, old_values: &self.values, returns: &self.returns }
    }
}

/// No credit for any reply.
fn blank(groups: &[ScoredGroup]) -> Vec<Vec<Vec<f32>>> {
    groups.iter().map(|group| vec![Vec::new(); group.members.len()]).collect()
}

fn usable_samples(
    algorithm: &Algorithm,
    groups: &[ScoredGroup],
    settings: &UpdateSettings,
) -> Vec<Sample> {
    let mut samples = Vec::new();
    for (group_index, group) in groups.iter().enumerate() {
        let still = group.has_no_variance();
        let pairs = matches!(algorithm.credit, Credit::Pairs);
        let drops = algorithm.zero_variance == ZeroVariance::Drop || pairs;
        if group.members.len() < algorithm.smallest_group || (still && drops) {
            continue;
        }
        for (member_index, member) in group.members.iter().enumerate() {
            let trajectory = &member.trajectory;
            let cut_off = trajectory.transcript.stop == StopReason::Length;
            if algorithm.overlong_filter && cut_off {
                continue;
            }
            let stretches = trajectory.turns.iter().map(|it| it.range.clone());
            let sequence = Sequence::with_stretches(trajectory.tokens.clone(), stretches);
            let tokens = sequence.scored_tokens();
            let logprobs: Vec<f64> = trajectory.logprobs().into_iter().map(f64::from).collect();
            let reward = f64::from(member.reward);
            samples.push(Sample {
                group: group_index,
                member: member_index,
                sampled: trajectory.sampled_positions(),
                reward: algorithm.shaped_reward(reward, tokens, settings.max_tokens, cut_off),
                behavior_logprobs: logprobs.clone(),
                sampler_logprobs: logprobs,
                reference_logprobs: Vec::new(),
                values: Vec::new(),
                advantages: Vec::new(),
                returns: Vec::new(),
                staleness: settings.newest.saturating_sub(*trajectory.versions.start()),
                sequence,
            });
        }
    }
    samples
}

/// Lets the method give credit; replies that do not learn are dropped.
fn assign_credit(algorithm: &Algorithm, samples: &mut Vec<Sample>, kl_weight: f64) {
    let rewards: Vec<f64> = samples.iter().map(|it| it.reward).collect();
    let groups: Vec<usize> = samples.iter().map(|it| it.group).collect();
    let sampled: Vec<Vec<bool>> = samples.iter().map(|it| it.sampled.clone()).collect();
    let flat = |of: &dyn Fn(&Sample) -> &[f64]| -> Vec<f64> {
        samples.iter().flat_map(of).copied().collect()
    };
    let behavior = flat(&|it| &it.behavior_logprobs);
    let reference = flat(&|it| &it.reference_logprobs);
    let values = flat(&|it| &it.values);
    let assigned = algorithm.assign_credit(&Rollouts {
        rewards: &rewards,
        groups: &groups,
        sampled: &sampled,
        behavior_logprobs: &behavior,
        reference_logprobs: (!reference.is_empty()).then_some(&reference),
        values: (!values.is_empty()).then_some(&values),
        kl_weight,
    });
    let (mut credit, mut returns) = (assigned.advantages.as_slice(), assigned.returns.as_slice());
    for sample in samples.iter_mut() {
        let tokens = sample.behavior_logprobs.len();
        let (own, later) = credit.split_at(tokens);
        (sample.advantages, credit) = (own.to_vec(), later);
        if !returns.is_empty() {
            let (own, later) = returns.split_at(tokens);
            (sample.returns, returns) = (own.to_vec(), later);
        }
    }
    let mut learns = assigned.learns.iter();
    samples.retain(|_| learns.next() == Some(&true));
}

/// The pairs of each group, the preferred reply first.
fn paired(samples: Vec<Sample>) -> Vec<Sample> {
    let rewards: Vec<f64> = samples.iter().map(|it| it.reward).collect();
    let groups: Vec<usize> = samples.iter().map(|it| it.group).collect();
    let mut samples: Vec<Option<Sample>> = samples.into_iter().map(Some).collect();
    Algorithm::pairs(&rewards, &groups)
        .into_iter()
        .flat_map(|(best, worst)| [samples[best].take(), samples[worst].take()])
        .flatten()
        .collect()
}

/// Mean estimate over all tokens of the KL of the policy before the update to the reference.
fn mean_kl(estimator: KlEstimator, samples: &[Sample]) -> f64 {
    let (mut sum, mut tokens) = (0.0, 0);
    for sample in samples {
        let pairs = sample.behavior_logprobs.iter().zip(&sample.reference_logprobs);
        sum += pairs.map(|(now, then)| estimator.value(now - then, KlClamps::USUAL)).sum::<f64>();
        tokens += sample.behavior_logprobs.len();
    }
    sum / tokens.max(1) as f64
}

fn variable(values: &[f32]) -> Result<Var, Error> {
    let wide: Vec<f64> = values.iter().map(|it| f64::from(*it)).collect();
    Ok(Var::new(wide, &Device::Cpu)?)
}
