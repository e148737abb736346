//! Sampled tokens a second by number of replies at once, with one reply at a time as the reference.
//! Weights are random and lengths exact, so every size does the same work for each reply.

use std::sync::Arc;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tallow_policies::{
    Decoder, Engine, InitOptions, ModelConfig, Request, SamplingParams, Sizes, TokenId, Tokenizer,
};

const NEW_TOKENS: usize = 32;

fn sample(criterion: &mut Criterion) {
    let tokenizer =
        Arc::new(Tokenizer::of_characters(["0123456789+=?"], None).expect("an alphabet is given"));
    let sizes = Sizes {
        vocab: tokenizer.vocabulary_size(),
        hidden: 64,
        intermediate: 176,
        layers: 2,
        heads: 4,
        kv_heads: 4,
        head_dim: 16,
    };
    let config = ModelConfig::of_family("llama", &sizes).expect("the sizes agree");
    let decoder = Decoder::new(config, &InitOptions::default(), 1).expect("the sizes agree");
    let params = Arc::new(SamplingParams {
        max_tokens: NEW_TOKENS,
        min_tokens: NEW_TOKENS,
        ..Default::default()
    });
    let mut group = criterion.benchmark_group("sample/replies_at_once");
    for replies in [1usize, 16, 256] {
        let mut engine =
            Engine::new(&decoder, Arc::clone(&tokenizer), replies).expect("the cache fits");
        group.throughput(Throughput::Elements((replies * NEW_TOKENS) as u64));
        group.bench_function(BenchmarkId::from_parameter(replies), |bencher| {
            bencher.iter(|| {
                let requests = (0..replies as u64)
                    .map(|id| {
                        let digit = 4 + (id % 8) as TokenId;
                        let prompt: Arc<[TokenId]> = [digit, 5, 6, 7].into();
                        Request { id, prompt, params: Arc::clone(&params), seed: id }
                    })
                    .collect();
                engine.generate(requests).expect("the model is sound")
            });
        });
    }
    group.finish();
}

criterion_group!(benches, sample);
criterion_main!(benches);
