//! One optimizer step over groups of replies: a prompt computed once for its replies, with copies of
//! it as the reference; activations kept or computed anew; all weights or adapters alone.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tallow::learner::batch::Sequence;
use tallow::learner::{Beside, Learner, OptimizerConfig};
use tallow_envs::Seed;
use tallow_policies::{Decoder, InitOptions, LoraConfig, ModelConfig, Sizes, TokenId};

const PROMPTS: usize = 2;
const REPLIES: usize = 8;
const REPLY: usize = 32;

fn update(criterion: &mut Criterion) {
    let sizes = Sizes {
        vocab: 1024,
        hidden: 128,
        intermediate: 352,
        layers: 4,
        heads: 4,
        kv_heads: 2,
        head_dim: 32,
    };
    let config = ModelConfig::of_family("llama", &sizes).expect("the sizes agree");
    let decoder = Decoder::new(config, &InitOptions::default(), 1).expect("the sizes agree");
    let lora = Some(LoraConfig::default());
    let ways = [
        ("shared", OptimizerConfig::default()),
        ("copied", OptimizerConfig { share_prompts: false, ..Default::default() }),
        ("recomputed", OptimizerConfig { recompute_activations: true, ..Default::default() }),
        ("adapters", OptimizerConfig { lora, ..Default::default() }),
    ];
    let mut group = criterion.benchmark_group("update/prompt_tokens");
    for prompt in [32, 256] {
        let sequences = groups(prompt);
        group.throughput(Throughput::Elements((PROMPTS * REPLIES * REPLY) as u64));
        for (name, config) in &ways {
            let start = decoder.snapshot().expect("a copy");
            let mut learner =
                Learner::new(start, config.clone(), u64::MAX, Beside::Nothing, Seed(1))
                    .expect("sound settings");
            group.bench_function(BenchmarkId::new(*name, prompt), |bencher| {
                bencher.iter(|| learner.next_token_step(&sequences).expect("finite gradients"));
            });
        }
    }
    group.finish();
}

/// Prompts of a length, each with its replies, of which every token is scored.
fn groups(prompt: usize) -> Vec<Sequence> {
    let tokens = |seed: usize, count: usize| {
        (0..count).map(move |it| ((it * 37 + seed * 101) % 1024) as TokenId)
    };
    let reply = |group: usize, member: usize| {
        let whole = tokens(group, prompt).chain(tokens(7 + group * REPLIES + member, REPLY));
        Sequence::with_stretches(whole.collect(), std::iter::once(prompt..prompt + REPLY))
    };
    (0..PROMPTS)
        .flat_map(|group| (0..REPLIES).map(move |member| (group, member)))
        .map(|(group, member)| reply(group, member))
        .collect()
}

criterion_group!(benches, update);
criterion_main!(benches);
