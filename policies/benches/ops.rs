//! Each fused operation against its composed reference, forward and backward, and whole
//! training and sampling steps of a small policy.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use std::hint::black_box;

use candle_core::{Device, Tensor, Var};
use criterion::{Criterion, Throughput, criterion_group};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tallow_policies::ops::{ALL, Batch, Forward, Heads};
use tallow_policies::{
    AdamW, AdamWConfig, CacheSpan, Decoder, GradientSet, InitOptions, KvCache, ModelConfig, Sizes,
    TokenId,
};

/// A batch of a small policy, and one of a middling model.
fn batches() -> [(&'static str, Batch); 2] {
    let small = Heads { heads: 4, kv_heads: 4, head_dim: 16 };
    let large = Heads { heads: 9, kv_heads: 3, head_dim: 64 };
    [
        ("small", Batch { lengths: vec![20; 64], heads: small, width: 64, vocab: 176 }),
        ("large", Batch { lengths: vec![512; 2], heads: large, width: 576, vocab: 1536 }),
    ]
}

fn drawn(dims: &[usize], stream: &mut ChaCha8Rng) -> Var {
    let count = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|_| stream.random_range(-1.0..1.0)).collect();
    Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu).unwrap()).unwrap()
}

fn forward_and_backward(forward: Forward, inputs: &[Tensor], batch: &Batch) {
    let result = forward(inputs, batch).unwrap();
    black_box(result.sum_all().unwrap().backward().unwrap());
}

fn operations(criterion: &mut Criterion) {
    for (size, batch) in batches() {
        for operation in ALL {
            let mut group = criterion.benchmark_group(format!("ops/{}_{size}", operation.name));
            group.throughput(Throughput::Elements(batch.tokens() as u64)).sample_size(10);
            let mut stream = ChaCha8Rng::seed_from_u64(0);
            let inputs: Vec<Tensor> = (operation.inputs)(&batch)
                .iter()
                .map(|dims| drawn(dims, &mut stream).into_inner())
                .collect();
            for (name, forward) in [("fused", operation.fused), ("composed", operation.composed)] {
                group.bench_function(name, |bencher| {
                    bencher.iter(|| forward_and_backward(forward, &inputs, &batch));
                });
            }
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
    let lengths = [20; 64];
    let tokens = tokens(20 * 64);
    let targets: Vec<TokenId> = tokens.iter().map(|token| 17 - token).collect();
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let mut group = criterion.benchmark_group("decoder/training_step");
    group.throughput(Throughput::Elements(tokens.len() as u64)).sample_size(50);
    group.bench_function("forward", |bencher| {
        bencher.iter(|| black_box(decoder.hidden(&tokens, &lengths).unwrap()));
    });
    group.bench_function("forward_backward_adamw", |bencher| {
        bencher.iter(|| {
            let hidden = decoder.hidden(&tokens, &lengths).unwrap();
            let scores = decoder.token_logprobs(&hidden, &targets, 1.0).unwrap();
            let loss = scores.logprobs.mean_all().unwrap().neg().unwrap();
            let store = loss.backward().unwrap();
            let gradients = GradientSet::from_store(decoder.parameters(), &store).unwrap();
            optimizer.step(decoder.parameters(), &gradients, 1e-4).unwrap()
        });
    });
}

fn sampling_step(criterion: &mut Criterion) {
    let decoder = small_decoder();
    let mut group = criterion.benchmark_group("decoder/sampling_step");
    for slots in [1, 64, 256] {
        let mut cache = KvCache::new(decoder.config(), slots, 64).unwrap();
        let prompt = tokens(10);
        let spans: Vec<_> = (0..slots).map(|slot| CacheSpan { slot, tokens: &prompt }).collect();
        decoder.extend(&mut cache, &spans).unwrap();
        let spans: Vec<_> = (0..slots).map(|slot| CacheSpan { slot, tokens: &[3] }).collect();
        group.throughput(Throughput::Elements(slots as u64));
        group.bench_function(format!("{slots}_slots"), |bencher| {
            bencher.iter(|| {
                (0..slots).for_each(|slot| cache.truncate(slot, 10));
                black_box(decoder.extend(&mut cache, &spans).unwrap())
            });
        });
    }
}

criterion_group!(benches, training_step, sampling_step, operations);

fn main() {
    tallow_policies::prepare_process();
    benches();
    Criterion::default().configure_from_args().final_summary();
}
