//! What a device must compute, held against the CPU: for the emulation and for real cards.

use std::sync::Arc;

use candle_core::DType;
use tallow_policies::contract::tiny_decoder;
use tallow_policies::gpu::{Device, Precision};
use tallow_policies::{
    AdamW, AdamWConfig, CacheSpan, Completion, Decoder, Engine, GradientSet, HeadInit, Inference,
    Keep, KvCache, ModelConfig, PackedSequences, Pass, PolicyError, Request, SamplingParams,
    ScalarModel, ScoreGradients, Sizes, TokenId, Tokenizer, models,
};

/// Packs with a shared prompt longer than a tile of attention, a short one, and a plain sequence.
fn sequences(vocab: usize) -> PackedSequences {
    let ids = |count: usize, salt: usize| -> Vec<TokenId> {
        (0..count).map(|it| ((it * it * 7 + it * 3 + salt) % vocab) as TokenId).collect()
    };
    let mut packed = PackedSequences::default();
    let replies = [ids(5, 1), ids(40, 2), ids(1, 3)];
    packed.push(&ids(37, 0), &replies.each_ref().map(Vec::as_slice));
    packed.push(&ids(3, 4), &[&ids(2, 5)]);
    packed.push(&ids(34, 6), &[]);
    packed
}

/// Scores, hidden states, every gradient and two steps of the optimizer, for every family.
pub fn every_family(device: &Device, tolerance: f64) {
    for family in models::BUILTIN {
        one_decoder(&tiny_decoder(family.name, 5).unwrap(), device, tolerance);
    }
    let mut config = tiny_decoder("llama", 0).unwrap().config().clone();
    config.attention_bias = Some(true);
    config.tie_word_embeddings = true;
    let init = tallow_policies::InitOptions { std: Some(0.3), ..Default::default() };
    one_decoder(&Decoder::new(config, &init, 4).unwrap(), device, tolerance);
    // Rows that several warps share, and heads of more columns than a warp has lanes.
    let sizes = Sizes {
        vocab: 300,
        hidden: 96,
        intermediate: 130,
        layers: 1,
        heads: 3,
        kv_heads: 1,
        head_dim: 100,
    };
    let config = ModelConfig::of_family("qwen3", &sizes).unwrap();
    let init = tallow_policies::InitOptions { std: Some(0.1), ..Default::default() };
    one_decoder(&Decoder::new(config, &init, 6).unwrap(), device, tolerance);
}

fn one_decoder(on_cpu: &Decoder, device: &Device, tolerance: f64) {
    if device.precision() == Precision::Bf16 {
        // The device starts from the very same weights; what differs is its arithmetic.
        for (_, variable) in on_cpu.parameters().iter() {
            let rounded = variable.to_dtype(DType::BF16).unwrap().to_dtype(DType::F32).unwrap();
            variable.set(&rounded).unwrap();
        }
    }
    let on_device = on_cpu.snapshot().unwrap().on(device).unwrap();
    let sequences = sequences(on_cpu.config().vocab_size);
    // A prompt's last row is asked for once for each of its replies.
    let rows: Vec<u32> = (0..sequences.rows() as u32).chain([36, 36, 36]).collect();
    let vocab = on_cpu.config().vocab_size as TokenId;
    let targets: Vec<TokenId> = rows.iter().map(|row| (row * 5 + 1) % vocab).collect();
    let slopes: Vec<f32> = rows.iter().map(|row| (*row as f32 * 0.7).sin() / 50.0).collect();
    let mut cpu_optimizer = AdamW::new(AdamWConfig::default());
    let mut device_optimizer = AdamW::new(AdamWConfig::default());
    let what = &on_cpu.config().model_type;
    for keep in [Keep::Activations, Keep::Inputs] {
        let run = |decoder: &Decoder| {
            let (mut pass, mut gradients) = (Pass::new(keep), GradientSet::new());
            decoder.forward(&mut pass, &sequences).unwrap();
            let hidden = decoder.hidden(&mut pass, &rows[..7]).unwrap().to_vec();
            for _ in 0..2 {
                // Twice, so that sums go on.
                decoder.forward(&mut pass, &sequences).unwrap();
                let scores = decoder.score(&mut pass, &rows, &targets, 0.8).unwrap();
                decoder.backward(&mut pass, &slopes, &mut gradients).unwrap();
                assert!(scores.logprobs.iter().all(|it| *it < 0.0));
            }
            decoder.forward(&mut pass, &sequences).unwrap();
            let scores = decoder.score(&mut pass, &rows, &targets, 0.8).unwrap();
            (hidden, scores, gradients)
        };
        let (hidden, scores, gradients) = run(on_cpu);
        let (device_hidden, device_scores, device_gradients) = run(&on_device);
        near(&device_hidden, &hidden, tolerance, &format!("{what}: hidden states"));
        near(&device_scores.logprobs, &scores.logprobs, tolerance, &format!("{what}: logprobs"));
        near(&device_scores.entropies, &scores.entropies, tolerance, &format!("{what}: entropies"));
        let read = device_gradients.read_back().unwrap();
        assert_eq!(
            read.keys().map(String::as_str).collect::<Vec<_>>(),
            gradients.iter().map(|(name, _)| name).collect::<Vec<_>>(),
            "{what}"
        );
        for (name, gradient) in gradients.iter() {
            near(&read[name], gradient, 3.0 * tolerance, &format!("{what}: gradient of {name}"));
        }
        let cpu = on_cpu.step(&mut cpu_optimizer, &gradients, 1e-2).unwrap();
        let found = on_device.step(&mut device_optimizer, &device_gradients, 1e-2).unwrap();
        close(found.grad_norm, cpu.grad_norm, tolerance, "grad_norm");
        close(found.clip_scale, cpu.clip_scale, tolerance, "clip_scale");
        close(found.update_norm, cpu.update_norm, 10.0 * tolerance, "update_norm");
        assert_eq!(found.step, cpu.step);
        on_device.read_back().unwrap();
        for ((name, found), (_, expected)) in
            on_device.parameters().iter().zip(on_cpu.parameters().iter())
        {
            let values = |it: &candle_core::Var| -> Vec<f32> {
                it.flatten_all().unwrap().to_vec1().unwrap()
            };
            // Where a gradient is next to nothing, its sign decides Adam's first steps.
            near(&values(found), &values(expected), 20.0 * tolerance, &format!("{what}: {name}"));
        }
        // The next turn starts alike.
        on_device.copy_from(on_cpu).unwrap();
    }
}

/// The cache, in uneven pieces and from a shared prefix, against scoring on the same device, and
/// the log-probabilities that the engine reports.
pub fn sampled_logprobs(device: &Device, tolerance: f64) {
    let decoder = tiny_decoder("qwen3", 1).unwrap().on(device).unwrap();
    let vocab = decoder.config().vocab_size;
    let tokens: Vec<TokenId> = (0..70).map(|it| ((it * it + 3) % vocab) as TokenId).collect();
    let mut pass = Pass::new(Keep::Nothing);
    decoder.forward(&mut pass, &PackedSequences::of_lengths(&tokens, &[70])).unwrap();
    let all: Vec<u32> = (0..70).collect();
    let whole = decoder.hidden(&mut pass, &all).unwrap().to_vec();
    let width = decoder.config().hidden_size;
    let mut inference = Inference::new(&decoder).unwrap();
    let mut cache = KvCache::new(&decoder, 3, 70);
    let mut end = 0;
    for piece in [1, 30, 3, 35, 1] {
        let span = CacheSpan { slot: 1, tokens: &tokens[end..end + piece] };
        let hidden = inference.extend(&mut cache, &[span]).unwrap();
        end += piece;
        let found = inference.read_hidden(&hidden).unwrap();
        let expected = &whole[(end - 1) * width..end * width];
        near(&found, expected, tolerance, "the cache and a forward pass");
    }
    cache.share_prefix(1, 2, 40).unwrap();
    let spans = [
        CacheSpan { slot: 2, tokens: &tokens[40..45] },
        CacheSpan { slot: 0, tokens: &tokens[..2] },
    ];
    let hidden = inference.extend(&mut cache, &spans).unwrap();
    let found = inference.read_hidden(&hidden).unwrap();
    let expected = [&whole[44 * width..45 * width], &whole[width..2 * width]].concat();
    near(&found, &expected, tolerance, "a shared prefix and a forward pass");

    let (completions, prompts) = sample(&decoder, &SamplingParams::default());
    for (completion, prompt) in completions.iter().zip(&prompts) {
        let text = [prompt.as_slice(), &completion.tokens].concat();
        decoder.forward(&mut pass, &PackedSequences::of_lengths(&text, &[text.len()])).unwrap();
        let first = prompt.len() as u32 - 1;
        let rows: Vec<u32> = (first..first + completion.tokens.len() as u32).collect();
        let scores = decoder.score(&mut pass, &rows, &completion.tokens, 1.0).unwrap();
        near(&completion.logprobs, &scores.logprobs, tolerance, "sampler and learner");
    }
}

/// With the same seeds, the same replies.
pub fn same_replies(device: &Device) {
    let on_cpu = tiny_decoder("qwen2", 2).unwrap();
    let on_device = on_cpu.snapshot().unwrap().on(device).unwrap();
    for params in [
        SamplingParams::default(),
        SamplingParams { temperature: 0.0, ..Default::default() },
        SamplingParams { temperature: 0.7, top_k: 5, ..Default::default() },
        SamplingParams { min_tokens: 9, ..Default::default() },
    ] {
        let ((expected, _), (found, _)) = (sample(&on_cpu, &params), sample(&on_device, &params));
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.tokens, expected.tokens, "{params:?}");
            near(&found.logprobs, &expected.logprobs, 1e-4, "log-probabilities");
            near(&found.kept_masses, &expected.kept_masses, 1e-4, "kept masses");
        }
    }
}

fn sample(decoder: &Decoder, params: &SamplingParams) -> (Vec<Completion>, Vec<Vec<TokenId>>) {
    let vocab = decoder.config().vocab_size as TokenId;
    let texts: [Vec<TokenId>; 2] =
        [(0..35).map(|it| (it * 3) % vocab).collect(), (0..3).map(|it| (it + 7) % vocab).collect()];
    let params = Arc::new(SamplingParams { max_tokens: 12, ..params.clone() });
    let prompts: Vec<Vec<TokenId>> = (0..6).map(|it| texts[it / 3].clone()).collect();
    let shared: Vec<Arc<[TokenId]>> = texts.iter().map(|it| Arc::from(it.as_slice())).collect();
    let requests = (0..6)
        .map(|it| Request {
            id: it as u64,
            prompt: Arc::clone(&shared[it / 3]),
            params: Arc::clone(&params),
            seed: 40 + it as u64,
        })
        .collect();
    // Fewer slots than requests, and room for two replies.
    let room = 4 * Engine::bytes_for(decoder.config(), 1);
    let mut engine = Engine::new(decoder, tokenizer(), 4).unwrap().with_cache_bytes(room);
    (engine.generate(requests).unwrap(), prompts)
}

fn tokenizer() -> Arc<Tokenizer> {
    Arc::new(Tokenizer::of_characters(["abcdefghijklmnopqrst"], None).unwrap())
}

/// A model and its optimizer go through files from the device to the CPU and back, and go on.
pub fn checkpoints(device: &Device) {
    let folder = tempfile::tempdir().unwrap();
    let start = tiny_decoder("llama", 3).unwrap();
    let on_device = start.snapshot().unwrap().on(device).unwrap();
    let mut optimizer = AdamW::new(AdamWConfig::default());
    let learn = |decoder: &Decoder, optimizer: &mut AdamW| {
        let sequences = sequences(decoder.config().vocab_size);
        let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
        decoder.forward(&mut pass, &sequences).unwrap();
        let scores = decoder.score(&mut pass, &[1, 2, 3], &[4, 5, 6], 1.0).unwrap();
        decoder.backward(&mut pass, &[-0.3; 3], &mut gradients).unwrap();
        decoder.step(optimizer, &gradients, 1e-2).unwrap();
        scores.logprobs
    };
    let first = learn(&on_device, &mut optimizer);
    on_device.save_folder(folder.path()).unwrap();
    let state = folder.path().join("optimizer.safetensors");
    optimizer.save(&state).unwrap();
    let second = learn(&on_device, &mut optimizer);
    let third = learn(&on_device, &mut optimizer);
    assert!(second.iter().sum::<f32>() > first.iter().sum::<f32>());

    let loaded = Decoder::from_folder(folder.path()).unwrap();
    let again = loaded.on(device).unwrap();
    let mut restored = AdamW::load(AdamWConfig::default(), &state).unwrap();
    assert_eq!(learn(&again, &mut restored), second, "resumed on the device");
    assert_eq!(learn(&again, &mut restored), third, "and after another step");
    let mut restored = AdamW::load(AdamWConfig::default(), &state).unwrap();
    near(&learn(&loaded, &mut restored), &second, 2e-5, "resumed on the CPU");
    near(&learn(&loaded, &mut restored), &third, 1e-3, "and after another step");

    let told = start.on(device).unwrap().with_adapters(&Default::default(), 0).unwrap_err();
    assert!(told.to_string().contains("CPU only"), "{told}");
}

/// A scalar model gives its values on a device and is trained on the CPU only; what a device does not
/// compute of a decoder is refused, and what it does is not disturbed by asking for hidden states.
pub fn scalar_models(device: &Device, tolerance: f64) {
    let decoder = tiny_decoder("qwen3", 3).unwrap();
    let on_device = decoder.snapshot().unwrap().on(device).unwrap();
    let model = ScalarModel::from_decoder(&on_device, HeadInit::Scaled, 3).unwrap();
    assert!(model.decoder().device().is_none());
    let moved = model.on(device).unwrap();
    let sequences = sequences(decoder.config().vocab_size);
    let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
    let rows = [0, 36, 40, sequences.rows() as u32 - 1];
    let expected = model.values(&mut Pass::default(), &sequences, &rows).unwrap();
    let found = moved.values(&mut pass, &sequences, &rows).unwrap();
    near(&found, &expected, tolerance, "values");
    let cpu_only = |result: Result<(), PolicyError>| {
        let told = result.unwrap_err().to_string();
        assert!(told.contains("CPU only"), "{told}");
    };
    cpu_only(moved.backward(&mut pass, &[1.0; 4], &mut gradients));
    let mut optimizer = AdamW::new(AdamWConfig::default());
    cpu_only(moved.step(&mut optimizer, &gradients, 1e-2).map(|_| ()));

    let run = |asks: bool| {
        let (mut pass, mut gradients) = (Pass::default(), GradientSet::new());
        on_device.forward(&mut pass, &sequences).unwrap();
        on_device.score(&mut pass, &rows, &[1, 2, 3, 4], 0.8).unwrap();
        if asks {
            on_device.hidden(&mut pass, &rows).unwrap();
            let logprobs = &[1.0; 4];
            let entropies = ScoreGradients { logprobs, entropies: Some(&[1.0; 4]), hidden: None };
            cpu_only(on_device.backward_scores(&mut pass, &entropies, &mut gradients));
            let states = vec![0.0; 4 * decoder.config().hidden_size];
            let states = ScoreGradients { logprobs, entropies: None, hidden: Some(&states) };
            cpu_only(on_device.backward_scores(&mut pass, &states, &mut gradients));
            cpu_only(on_device.logits(&mut pass, &rows, 1.0).map(|_| ()));
            cpu_only(on_device.backward_logits(&mut pass, &[], &mut gradients));
        }
        on_device.backward(&mut pass, &[0.3, -0.2, 0.1, 0.4], &mut gradients).unwrap();
        gradients.read_back().unwrap()
    };
    assert_eq!(run(true), run(false));
}

/// Root mean square of the differences, relative to that of the expected values.
fn near(found: &[f32], expected: &[f32], tolerance: f64, what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let square = |values: &mut dyn Iterator<Item = f64>| values.map(|it| it * it).sum::<f64>();
    let pairs = found.iter().zip(expected);
    let error = square(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b))).sqrt();
    let scale = square(&mut expected.iter().map(|it| f64::from(*it))).sqrt();
    assert!(error <= tolerance * scale + 1e-7, "{what}: off by {error}, length {scale}");
}

fn close(found: f64, expected: f64, tolerance: f64, what: &str) {
    assert!((found - expected).abs() <= tolerance * expected.abs(), "{what}: {found} {expected}");
}
