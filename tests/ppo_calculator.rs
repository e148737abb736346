//! PPO on episodes with tool output between the turns: what a calculator said gets no credit, has no
//! value and is not learned from, checked against a few lines worked out here.

use std::ops::Range;
use std::sync::Arc;

use serde_json::{Value, json};
use tallow::algorithms::terms::returns::{Gae, MaskedValue};
use tallow::algorithms::{Algorithm, BUILTIN};
use tallow::learner::batch::{MicroBatch, Sequence, SharedPrompts};
use tallow::learner::update::{UpdateSettings, Updated};
use tallow::learner::{Beside, Learner, OptimizerConfig};
use tallow::model::ModelSettings;
use tallow::registry::Registry;
use tallow::renderer::Renderer;
use tallow::rollout::episode::{EpisodePlan, LiveEpisode, Next};
use tallow::rollout::scoring::Scoring;
use tallow::rollout::trajectory::{ScoredGroup, Trajectory};
use tallow_envs::{BuildContext, Environment, Seed, Split, Task};
use tallow_policies::{
    AdamWConfig, Completion, Decoder, FinishReason, InitOptions, Keep, Pass, SamplingParams,
    ScalarModel, TokenId, Tokenizer,
};

const GAMMA: f64 = 0.98;
const LAMBDA: f64 = 0.95;

/// AdamW's first step is `rate × gradient / (|gradient| + eps)`: with an `eps` that dwarfs the
/// gradient, and a rate as large, the step is the gradient.
const PLAIN: f64 = 1e6;

/// Steps in which only the critic learns, so that it has values to tell.
const WARMUP: u64 = 4;

/// A policy, and calculator episodes played with it.
struct Scene {
    decoder: Decoder,
    groups: Vec<ScoredGroup>,
}

impl Scene {
    fn new() -> Self {
        let alphabet: String = (' '..='~').chain("\n×·".chars()).collect();
        let tokenizer = Tokenizer::of_characters([alphabet.as_str()], None).expect("an alphabet");
        let tokenizer = Arc::new(tokenizer);
        let renderer = Renderer::new(Arc::clone(&tokenizer)).expect("no template");
        let settings = ModelSettings {
            layers: 2,
            hidden: 32,
            heads: 4,
            context: 128,
            init: InitOptions { std: Some(0.1), ..InitOptions::default() },
            ..ModelSettings::default()
        };
        let config = settings.config(tokenizer.vocabulary_size()).expect("sound sizes");
        let decoder = Decoder::new(config, &settings.init, 5).expect("a decoder");

        let registry = Registry::builtin();
        let context = BuildContext { folder: ".".into(), seed: Seed(1) };
        let options = json!({"instructions": false, "digits": 2});
        let environment = registry.environments.build("calculator", options, &context);
        let environment = environment.expect("sound options");
        let (name, options) = environment.default_verifier();
        let verifier = registry.verifiers.build(name, options).expect("the default");
        let groups = (0..2).map(|index| {
            let task = Arc::new(environment.task(Split::Train, index).expect("a task"));
            let answer = environment.gold_reply(&task).expect("a gold reply");
            // Two calls and the answer; one call and a wrong answer; an answer at once.
            let scripts: [&[&str]; 3] = [
                &["<calc>12*345</calc>", "<calc>4140-7</calc>", &answer],
                &["<calc>1+</calc>", "=0"],
                &[&answer],
            ];
            let played = scripts.iter().enumerate().map(|(member, script)| {
                play(&*environment, &renderer, &tokenizer, &task, member, script)
            });
            let played = played.collect();
            Scoring::by(Arc::clone(&verifier)).score(&task, played, Vec::new(), Seed(3))
        });
        Self { groups: groups.collect(), decoder }
    }

    fn trajectories(&self) -> impl Iterator<Item = (&Trajectory, f64)> {
        let members = self.groups.iter().flat_map(|it| &it.members);
        members.map(|it| (&it.trajectory, f64::from(it.reward)))
    }

    /// A learner whose critic has learned a little and whose policy has not.
    fn learner(&self, algorithm: &Algorithm) -> Learner {
        let config = OptimizerConfig {
            learning_rate: PLAIN,
            adamw: AdamWConfig {
                eps: PLAIN,
                weight_decay: 0.0,
                clip_norm: None,
                ..AdamWConfig::default()
            },
            ..OptimizerConfig::default()
        };
        let decoder = self.decoder.snapshot().expect("a copy");
        let mut learner = Learner::new(decoder, config, 10, Beside::Nothing, Seed(1));
        let learner_of = learner.as_mut().expect("a learner");
        let critic = algorithm.critic.expect("PPO has a critic");
        learner_of.add_critic(critic, Seed(1)).expect("a critic");
        for step in 0..WARMUP {
            self.update(learner_of, algorithm, step);
        }
        learner.expect("a learner")
    }

    fn update(&self, learner: &mut Learner, algorithm: &Algorithm, newest: u64) -> Updated {
        let settings = UpdateSettings {
            epochs: 1,
            minibatches: 1,
            temperature: 1.0,
            max_tokens: 32,
            newest,
            seed: Seed(1),
        };
        learner.update(algorithm, &self.groups, &settings).expect("an update")
    }
}

/// Plays one episode whose replies are written down.
fn play(
    environment: &dyn Environment,
    renderer: &Renderer,
    tokenizer: &Tokenizer,
    task: &Arc<Task>,
    member: usize,
    script: &[&str],
) -> Trajectory {
    let plan = EpisodePlan {
        id: 0,
        group: 0,
        member,
        task: Arc::clone(task),
        params: Arc::new(SamplingParams::default()),
        seed: Seed(5),
        max_turns: 8,
    };
    let (mut episode, _) = LiveEpisode::start(plan, environment, renderer).expect("it opens");
    for text in script {
        let mut tokens = tokenizer.encode(text).expect("encoded");
        tokens.push(tokenizer.end_id());
        let completion = Completion {
            logprobs: vec![-0.5; tokens.len()],
            kept_masses: Vec::new(),
            tokens,
            finish: FinishReason::Stop,
            versions: 0..=0,
        };
        if let Next::Ended(trajectory) = episode.reply(completion, renderer).expect("played") {
            assert_eq!(trajectory.turns.len(), script.len(), "every reply was asked for");
            return trajectory;
        }
    }
    panic!("the script ends before the episode: {script:?}");
}

fn ppo(more: Value) -> Algorithm {
    let mut options = json!({
        "gamma": GAMMA, "lambda": LAMBDA,
        // The replies were written, not sampled: their probabilities are the learner's own.
        "old_policy": "learner",
        "critic": {"warmup_steps": WARMUP, "learning_rate": 3e4},
    });
    for (key, value) in more.as_object().expect("a table") {
        options[key] = value.clone();
    }
    let entry = BUILTIN.iter().find(|it| it.name == "ppo").expect("ppo is built in");
    entry.build(options).expect("sound options")
}

/// The critic's value before every token of a sequence but the first, tool output included.
fn values_everywhere(critic: &ScalarModel, tokens: &[TokenId]) -> Vec<f64> {
    let every = Sequence::new(tokens.to_vec(), &vec![true; tokens.len()]);
    let batch = MicroBatch::pack([&every], SharedPrompts::Copied);
    let mut pass = Pass::new(Keep::Nothing);
    let values = critic.values(&mut pass, &batch.sequences, &batch.rows).expect("values");
    // Nothing is before the first token.
    std::iter::once(0.0).chain(values.into_iter().map(f64::from)).collect()
}

/// The critic that a learner has now, read back from what it saves.
fn critic_of(learner: &Learner) -> ScalarModel {
    let folder = tempfile::tempdir().expect("a temporary folder");
    learner.save(folder.path()).expect("saved");
    ScalarModel::from_folder(&folder.path().join("critic")).expect("a critic on its own trunk")
}

/// Positions the policy sampled.
fn sampled(trajectory: &Trajectory) -> Vec<usize> {
    trajectory.turns.iter().flat_map(|it| it.range.clone()).collect()
}

/// Positions between two turns: what the calculator said, and the template around it.
fn said_by_the_tool(trajectory: &Trajectory) -> Vec<usize> {
    let turns = trajectory.turns.windows(2);
    turns.flat_map(|it| it[0].range.end..it[1].range.start).collect()
}

/// Generalised advantages by hand: the sampled tokens follow each other as if the calculator had
/// said nothing, and the last one earns the reward.
fn by_hand(values: &[f64], reward: f64) -> Vec<f64> {
    let count = values.len();
    let delta = |at: usize| match at + 1 == count {
        true => reward - values[at],
        false => GAMMA * values[at + 1] - values[at],
    };
    // The definition, a sum over what is to come, and not the recursion that the learner uses.
    let advantage = |at: usize| {
        let later = (at..count).map(|it| (GAMMA * LAMBDA).powi((it - at) as i32) * delta(it));
        later.sum::<f64>()
    };
    (0..count).map(advantage).collect()
}

fn check_close(found: f64, wanted: f64, tolerance: f64, what: &str) {
    assert!((found - wanted).abs() <= tolerance, "{what}: {found} instead of {wanted}");
}

/// Credit of each sampled token, by hand and without whitening.
fn hand_credit(scene: &Scene, critic: &ScalarModel) -> Vec<Vec<f64>> {
    let of = |(trajectory, reward): (&Trajectory, f64)| {
        let values = values_everywhere(critic, &trajectory.tokens);
        let own: Vec<f64> = sampled(trajectory).into_iter().map(|it| values[it]).collect();
        by_hand(&own, reward)
    };
    scene.trajectories().map(of).collect()
}

#[test]
fn credit_is_the_hand_computed_advantage_of_sampled_tokens_alone() {
    let scene = Scene::new();
    let rewards: Vec<f64> = scene.trajectories().map(|it| it.1).collect();
    assert_eq!(rewards, [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]);
    let first = scene.trajectories().next().expect("an episode").0;
    assert_eq!(first.turns.len(), 3);
    assert!(said_by_the_tool(first).len() >= 8, "the calculator said something");

    let plain = ppo(json!({"normalise": "none"}));
    let mut learner = scene.learner(&plain);
    let critic = critic_of(&learner);
    let wanted = hand_credit(&scene, &critic);
    let updated = scene.update(&mut learner, &plain, WARMUP);
    let found: Vec<&Vec<f32>> = updated.credit.iter().flatten().collect();
    for ((found, wanted), (trajectory, _)) in found.iter().zip(&wanted).zip(scene.trajectories()) {
        assert_eq!(found.len(), trajectory.sampled_tokens(), "no credit for what a tool said");
        for (found, wanted) in found.iter().zip(wanted) {
            check_close(f64::from(*found), *wanted, 1e-5, "credit");
        }
    }
    let (least, most) = scene
        .trajectories()
        .flat_map(|it| values_everywhere(&critic, &it.0.tokens))
        .fold((f64::MAX, f64::MIN), |(least, most), it| (least.min(it), most.max(it)));
    assert!(most - least > 0.01, "the critic tells states apart: {least} to {most}");
    // The critic is asked to say V + A, so that it is off by A; before a step nothing is clipped.
    let all: Vec<f64> = wanted.iter().flatten().copied().collect();
    let count = all.len() as f64;
    let half_square = all.iter().map(|it| 0.5 * it * it).sum::<f64>() / count;
    let told = updated.metrics.value("learner/value_loss").expect("it is measured");
    check_close(told, half_square, 1e-5, "the critic's loss");

    // PPO as it is whitens over the sampled tokens of the step.
    let whitened = ppo(json!({}));
    let mut learner = scene.learner(&whitened);
    let updated = scene.update(&mut learner, &whitened, WARMUP);
    let mean = all.iter().sum::<f64>() / count;
    let variance = all.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / (count - 1.0);
    for (found, wanted) in updated.credit.iter().flatten().flatten().zip(&all) {
        let wanted = (wanted - mean) / (variance + 1e-8).sqrt();
        check_close(f64::from(*found), wanted, 1e-4, "whitened credit");
    }
}

#[test]
fn values_of_tool_output_change_nothing() {
    let scene = Scene::new();
    let algorithm = ppo(json!({"normalise": "none"}));
    let critic = critic_of(&scene.learner(&algorithm));
    let wanted = hand_credit(&scene, &critic);
    let mut most = 0.0f64;
    for ((trajectory, reward), wanted) in scene.trajectories().zip(&wanted) {
        let whole: Range<usize> =
            trajectory.turns[0].range.start..trajectory.turns.last().expect("a turn").range.end;
        let mask = trajectory.sampled_positions();
        let mut rewards = vec![0.0; whole.len()];
        *rewards.last_mut().expect("a token") = reward;
        let own = values_everywhere(&critic, &trajectory.tokens)[whole.clone()].to_vec();
        let mut other = own.clone();
        for at in said_by_the_tool(trajectory) {
            other[at - whole.start] += 100.0;
        }
        let credit = |masked: MaskedValue, values: &[f64]| -> Vec<f64> {
            let gae = Gae { gamma: GAMMA, lambda: LAMBDA, masked };
            let all = gae.advantages(&rewards, values, &mask);
            all.into_iter().zip(&mask).filter(|it| *it.1).map(|it| it.0).collect()
        };
        let skipped = credit(MaskedValue::Skip, &own);
        assert_eq!(skipped, credit(MaskedValue::Skip, &other));
        for (found, wanted) in skipped.iter().zip(wanted) {
            check_close(*found, *wanted, 1e-9, "credit that skips tool output");
        }
        // That is no matter of course: a rule that takes them for steps is swayed by them.
        if trajectory.turns.len() > 1 {
            let last = trajectory.turns[0].range.len() - 1;
            let swayed = |values: &[f64]| {
                (credit(MaskedValue::TreatedAsValid, values)[last] - wanted[last]).abs()
            };
            most = most.max(swayed(&own));
            assert!(swayed(&other) > 1.0, "the check could not fail");
        }
    }
    assert!(most > 0.01, "the critic's own values of tool output would matter: {most}");
}

/// All weights of a model, end to end.
fn weights(decoder: &Decoder) -> Vec<f64> {
    let flat = |(_, tensor): (&str, &candle_core::Var)| -> Vec<f32> {
        tensor.flatten_all().and_then(|it| it.to_vec1()).expect("f32 values")
    };
    decoder.parameters().iter().flat_map(flat).map(f64::from).collect()
}

/// The model, moved by `far` times `direction`.
fn moved(decoder: &Decoder, direction: &[f64], far: f64) -> Decoder {
    let copy = decoder.snapshot().expect("a copy");
    let mut rest = direction;
    for (_, tensor) in copy.parameters().iter() {
        let shape = tensor.shape().clone();
        let (own, later) = rest.split_at(shape.elem_count());
        rest = later;
        let old: Vec<f32> = tensor.flatten_all().and_then(|it| it.to_vec1()).expect("f32 values");
        let new = old.iter().zip(own).map(|(old, by)| (f64::from(*old) + far * by) as f32);
        let new: Vec<f32> = new.collect();
        let new = candle_core::Tensor::from_vec(new, shape, tensor.device()).expect("a tensor");
        tensor.set(&new).expect("the same shape");
    }
    copy
}

fn unit(vector: &[f64]) -> Vec<f64> {
    let length = vector.iter().map(|it| it * it).sum::<f64>().sqrt();
    vector.iter().map(|it| it / length).collect()
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

#[test]
fn the_loss_has_no_gradient_through_the_probability_of_tool_output() {
    let scene = Scene::new();
    let algorithm = ppo(json!({"normalise": "none"}));
    let mut learner = scene.learner(&algorithm);
    let credit = hand_credit(&scene, &critic_of(&learner));

    // No tool token is a target of the learner's batch.
    for (trajectory, _) in scene.trajectories() {
        let stretches = trajectory.turns.iter().map(|it| it.range.clone());
        let sequence = Sequence::with_stretches(trajectory.tokens.clone(), stretches);
        let batch = MicroBatch::pack([&sequence], SharedPrompts::Copied);
        let wanted: Vec<TokenId> =
            sampled(trajectory).into_iter().map(|it| trajectory.tokens[it]).collect();
        assert_eq!(batch.targets, wanted);
    }

    let before = weights(learner.decoder());
    scene.update(&mut learner, &algorithm, WARMUP);
    let after = weights(learner.decoder());
    let gradient: Vec<f64> = before.iter().zip(&after).map(|(was, is)| was - is).collect();

    // Log-probability of every token, tool output included.
    let logprobs = |decoder: &Decoder| -> Vec<Vec<f64>> {
        let of = |(trajectory, _): (&Trajectory, f64)| {
            let tokens = trajectory.tokens.clone();
            let every = Sequence::new(tokens, &vec![true; trajectory.tokens.len()]);
            let scored = Learner::score(decoder, &[every], 1.0).expect("scored");
            std::iter::once(0.0).chain(scored.into_iter().map(f64::from)).collect()
        };
        scene.trajectories().map(of).collect()
    };
    let old = logprobs(&scene.decoder);
    let tokens: usize = credit.iter().map(Vec::len).sum();
    // PPO's loss by hand; `tool_credit` is what a learner without a mask would give to tool output.
    let loss = |decoder: &Decoder, tool_credit: f64| -> f64 {
        let new = logprobs(decoder);
        let mut sum = 0.0;
        for (nth, (trajectory, _)) in scene.trajectories().enumerate() {
            let mut part = |at: usize, advantage: f64| {
                let ratio: f64 = (new[nth][at] - old[nth][at]).exp();
                sum += (-advantage * ratio).max(-advantage * ratio.clamp(0.8, 1.2));
            };
            for (at, advantage) in sampled(trajectory).into_iter().zip(&credit[nth]) {
                part(at, *advantage);
            }
            said_by_the_tool(trajectory).into_iter().for_each(|at| part(at, tool_credit));
        }
        sum / tokens as f64
    };
    let slope = |direction: &[f64], tool_credit: f64| -> f64 {
        let far = 2e-3;
        let at = |far: f64| loss(&moved(&scene.decoder, direction, far), tool_credit);
        (at(far) - at(-far)) / (2.0 * far)
    };

    let length = dot(&gradient, &gradient).sqrt();
    assert!(length > 1e-2, "there is something to learn: {length}");
    check_close(slope(&unit(&gradient), 0.0), length, 0.02 * length, "along the gradient");

    // The direction in which tool output becomes likelier, found by learning it.
    let config = OptimizerConfig {
        learning_rate: PLAIN,
        adamw: AdamWConfig {
            eps: PLAIN,
            weight_decay: 0.0,
            clip_norm: None,
            ..AdamWConfig::default()
        },
        ..OptimizerConfig::default()
    };
    let start = scene.decoder.snapshot().expect("a copy");
    let mut tool = Learner::new(start, config, 10, Beside::Nothing, Seed(1)).expect("a learner");
    let said: Vec<Sequence> = scene
        .trajectories()
        .map(|(trajectory, _)| {
            let mut marks = vec![false; trajectory.tokens.len()];
            said_by_the_tool(trajectory).into_iter().for_each(|at| marks[at] = true);
            Sequence::new(trajectory.tokens.clone(), &marks)
        })
        .collect();
    tool.next_token_step(&said).expect("a step");
    let towards: Vec<f64> =
        weights(tool.decoder()).iter().zip(&before).map(|(is, was)| is - was).collect();
    let towards = unit(&towards);
    let found = dot(&gradient, &towards);
    check_close(slope(&towards, 0.0), found, 0.02 * length, "towards tool output");
    // A learner that gave tool output the credit of its neighbours would go elsewhere.
    assert!((slope(&towards, 0.3) - found).abs() > 0.1 * length, "the check could not fail");
}
