//! Each fused operation against its composed reference, forward and backward, and whole
//! training and sampling steps of a small policy.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::hint::black_box;

use candle_core::{Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tallow_policies::ops::{ALL, Batch, Heads};
use tallow_policies::{
    AdamW, AdamWConfig, CacheSpan, Decoder, GradientSet, Inference, InitOptions, KvCache,
    ModelConfig, PackedSequences, Pass, Sizes, TokenId,
};

/// A batch of a small policy, and one of a middling model.
fn batches() -> [(&'static str, Batch); 2] {
    let small = Heads { heads: 4, kv_heads: 4, head_dim: 16 };
    let large = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
    [
        ("small", Batch { lengths: vec![vec![20]; 64], heads: small, width: 64, vocab: 176 }),
        ("large", Batch { lengths: vec![vec![512]; 2], heads: large, width: 576, vocab: 1536 }),
    ]
}

fn drawn(count: usize, stream: &mut ChaCha8Rng) -> Vec<f32> {
    (0..count).map(|_| stream.random_range(-1.0..1.0)).collect()
}

/// Forward and backward of each operation, ours and composed of candle's.
fn operations(criterion: &mut Criterion) {
    for (size, batch) in batches() {
        for operation in ALL {
            let mut group = criterion.benchmark_group(format!("ops/{}_{size}", operation.name));
            group.throughput(Throughput::Elements(batch.tokens() as u64)).sample_size(10);
            let mut stream = ChaCha8Rng::seed_from_u64(0);
            let shapes = (operation.inputs)(&batch);
            let inputs: Vec<Vec<f32>> =
                shapes.iter().map(|dims| drawn(dims.iter().product(), &mut stream)).collect();
            let tensors: Vec<Tensor> = shapes
                .iter()
                .zip(&inputs)
                .map(|(dims, values)| {
                    let tensor = Tensor::from_slice(values, dims.as_slice(), &Device::Cpu).unwrap();
                    Var::from_tensor(&tensor).unwrap().into_inner()
                })
                .collect();
            let count = (operation.composed)(&tensors, &batch).unwrap().elem_count();
            let g = vec![1.0; count];
            group.bench_function("ours", |bencher| {
                bencher.iter(|| black_box((operation.fused)(&inputs, &g, &batch)));
            });
            group.bench_function("composed", |bencher| {
                bencher.iter(|| {
                    let result = (operation.composed)(&tensors, &batch).unwrap();
                    black_box(result.sum_all().unwrap().backward().unwrap())
                });
            });
        }
    }
}

fn small_decoder() -> Decoder {
    let sizes = Sizes {
        vocab: 18,
        hidden: 64,
        intermediate: 176,
        layers: 2,
        heads: 4,
        kv_heads: 4,
        head_dim: 16,
    };
    let config = ModelConfig::of_family("qwen2", &sizes).unwrap();
    Decoder::new(config, &InitOptions::default(), 0).unwrap()
}

fn tokens(count: usize) -> Vec<TokenId> {
    (0..count as TokenId).map(|index| index * index % 18).collect()
}

fn training_step(criterion: &mut Criterion) {
    let decoder = small_decoder();
    let sequences = PackedSequences::of_lengths(&tokens(20 * 64), &[20; 64]);
    let rows: Vec<u32> = (0..sequences.rows() as u32).collect();
    let targets: Vec<TokenId> = sequences.tokens().iter().map(|token| 17 - token).collect();
    let slopes = vec![-1.0 / targets.len() as f32; targets.len()];
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    let mut group = criterion.benchmark_group("decoder/training_step");
    group.throughput(Throughput::Elements(sequences.rows() as u64)).sample_size(50);
    group.bench_function("forward", |bencher| {
        bencher.iter(|| decoder.forward(&mut pass, &sequences).unwrap());
    });
    group.bench_function("forward_backward_adamw", |bencher| {
        bencher.iter(|| {
            gradients.reset();
            decoder.forward(&mut pass, &sequences).unwrap();
            black_box(decoder.score(&mut pass, &rows, &targets, 1.0).unwrap());
            decoder.backward(&mut pass, &slopes, &mut gradients).unwrap();
            optimizer.step(decoder.parameters(), &gradients, 1e-4).unwrap()
        });
    });
}

/// What an update of eight replies to each of eight prompts gains by computing prompts once.
fn shared_prompts(criterion: &mut Criterion) {
    let decoder = small_decoder();
    let mut group = criterion.benchmark_group("decoder/shared_prompts");
    group.sample_size(20);
    for prompt_tokens in [8, 48] {
        let (prompt, reply) = (tokens(prompt_tokens), tokens(16));
        let mut shared = PackedSequences::default();
        let mut copied = PackedSequences::default();
        for _ in 0..8 {
            shared.push(&prompt, &[&reply[..]; 8]);
            (0..8).for_each(|_| drop(copied.push(&[&prompt[..], &reply].concat(), &[])));
        }
        for (name, sequences) in [("shared", shared), ("copied", copied)] {
            let last = sequences.rows() as u32 - 1;
            group.bench_function(format!("{name}_{prompt_tokens}"), |bencher| {
                let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
                bencher.iter(|| {
                    gradients.reset();
                    decoder.forward(&mut pass, &sequences).unwrap();
                    decoder.score(&mut pass, &[last], &[0], 1.0).unwrap();
                    decoder.backward(&mut pass, &[1.0], &mut gradients).unwrap();
                });
            });
        }
    }
}

fn sampling_step(criterion: &mut Criterion) {
    let decoder = small_decoder();
    let mut inference = Inference::new(&decoder).unwrap();
    let mut group = criterion.benchmark_group("decoder/sampling_step");
    for slots in [1, 64, 256] {
        let mut cache = KvCache::new(&decoder, slots, 64);
        let prompt = tokens(10);
        let spans: Vec<_> = (0..slots).map(|slot| CacheSpan { slot, tokens: &prompt }).collect();
        inference.extend(&mut cache, &spans).unwrap();
        let spans: Vec<_> = (0..slots).map(|slot| CacheSpan { slot, tokens: &[3] }).collect();
        group.throughput(Throughput::Elements(slots as u64));
        group.bench_function(format!("{slots}_slots"), |bencher| {
            bencher.iter(|| {
                (0..slots).for_each(|slot| cache.truncate(slot, 10));
                black_box(inference.extend(&mut cache, &spans).unwrap())
            });
        });
    }
}

criterion_group!(benches, training_step, shared_prompts, sampling_step, operations);

fn main() {
    tallow_policies::prepare_process();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
