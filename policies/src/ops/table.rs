//! Every operation with a gradient, beside the same of candle's own operations: for the tests and
//! benches that hold the two against each other.

use std::sync::Arc;

use candle_core::{Result, Tensor};

use super::attention::{self, Heads};
use super::matmul::{Job, Output, Panels, Right, matmuls};
use super::rope::{Rotations, Turn};
use super::token_logprobs::{Scored, Slopes};
use super::{embedding, linear, rms_norm, rope, swiglu, token_logprobs};
use crate::packed::PackedSequences;

/// Every operation with a gradient.
pub const ALL: &[Operation] = &[
    Operation {
        name: "linear",
        inputs: |batch| vec![vec![batch.tokens(), batch.width], vec![batch.vocab, batch.width]],
        fused: |inputs, g, batch| linear_results(inputs, g, batch, None),
        composed: |inputs, _| linear::composed(&inputs[0], &inputs[1], None),
    },
    Operation {
        name: "linear_with_bias",
        inputs: |batch| {
            let Batch { width, vocab, .. } = *batch;
            vec![vec![batch.tokens(), width], vec![vocab, width], vec![vocab]]
        },
        fused: |inputs, g, batch| linear_results(inputs, g, batch, Some(&inputs[2])),
        composed: |inputs, _| linear::composed(&inputs[0], &inputs[1], Some(&inputs[2])),
    },
    Operation {
        name: "rms_norm",
        inputs: |batch| vec![vec![batch.tokens(), batch.width], vec![batch.width]],
        fused: |inputs, g, _| {
            let (x, weight) = (&inputs[0], &inputs[1]);
            let mut value = vec![0.0; x.len()];
            rms_norm::forward(x, weight, 1e-6, &mut value);
            let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
            rms_norm::backward(x, weight, g, 1e-6, &mut dx, Some(&mut dw));
            Results { value, gradients: vec![dx, dw] }
        },
        composed: |inputs, _| rms_norm::composed(&inputs[0], &inputs[1], 1e-6),
    },
    Operation {
        name: "rope",
        inputs: |batch| vec![vec![batch.tokens(), batch.heads.query_width()]],
        fused: |inputs, g, batch| {
            let (width, sequences) = (batch.heads.query_width(), batch.sequences());
            let (mut value, mut dx) = (inputs[0].clone(), g.to_vec());
            let rotations = batch.rotations();
            rope::turn(&mut value, width, sequences.positions(), &rotations, Turn::Forth);
            rope::turn(&mut dx, width, sequences.positions(), &rotations, Turn::Back);
            Results { value, gradients: vec![dx] }
        },
        composed: |inputs, batch| {
            rope::composed(&inputs[0], batch.sequences().positions(), &batch.rotations())
        },
    },
    Operation {
        name: "swiglu",
        inputs: |batch| vec![vec![batch.tokens(), batch.width]; 2],
        fused: |inputs, g, _| {
            let (mut gate, mut up) = (inputs[0].clone(), inputs[1].clone());
            let mut value = vec![0.0; gate.len()];
            swiglu::forward(&gate, &up, &mut value);
            let mut g = g.to_vec();
            swiglu::backward(&mut gate, &mut up, &mut g);
            Results { value: g, gradients: vec![gate, up] }
        },
        composed: |inputs, _| swiglu::composed(&inputs[0], &inputs[1]),
    },
    Operation {
        name: "attention",
        inputs: |batch| {
            let (tokens, heads) = (batch.tokens(), batch.heads);
            let kv = vec![tokens, heads.kv_width()];
            vec![vec![tokens, heads.query_width()], kv.clone(), kv]
        },
        fused: |inputs, g, batch| {
            let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
            let (sequences, heads) = (batch.sequences(), batch.heads);
            let mut value = vec![0.0; q.len()];
            attention::forward(q, k, v, &sequences, heads, &mut value);
            let mut dq = vec![0.0; q.len()];
            let (mut dk, mut dv) = (vec![0.0; k.len()], vec![0.0; v.len()]);
            attention::backward(q, k, v, &value, g, &sequences, heads, &mut dq, &mut dk, &mut dv);
            Results { value, gradients: vec![dq, dk, dv] }
        },
        composed: |inputs, batch| {
            let (q, k, v) = (&inputs[0], &inputs[1], &inputs[2]);
            attention::composed(q, k, v, &batch.sequences(), batch.heads)
        },
    },
    Operation {
        name: "embedding",
        inputs: |batch| vec![vec![batch.vocab, batch.width]],
        fused: |inputs, g, batch| {
            let ids = batch.ids();
            let mut value = vec![0.0; ids.len() * batch.width];
            embedding::forward(&inputs[0], batch.width, &ids, &mut value);
            let mut dtable = vec![0.0; inputs[0].len()];
            embedding::backward(g, batch.width, &ids, &mut dtable);
            Results { value, gradients: vec![dtable] }
        },
        composed: |inputs, batch| embedding::composed(&inputs[0], &batch.ids()),
    },
    Operation {
        name: "token_logprobs",
        inputs: |batch| vec![vec![batch.tokens(), batch.width], vec![batch.vocab, batch.width]],
        fused: |inputs, g, batch| {
            let (hidden, head, width) = (&inputs[0], &inputs[1], batch.width);
            let (ids, temperature) = (batch.ids(), TRIED_TEMPERATURE);
            let mut scored = Scored::default();
            let (value, _) =
                token_logprobs::forward(hidden, width, head, &ids, temperature, &mut scored);
            let (mut dhidden, mut dhead) = (vec![0.0; hidden.len()], vec![0.0; head.len()]);
            let dhead_to = Some((&mut dhead[..], Output::Replace));
            let slopes = Slopes { logprobs: g, entropies: None };
            let dhidden_to = &mut dhidden;
            token_logprobs::backward(
                hidden,
                width,
                head,
                slopes,
                &mut scored,
                dhidden_to,
                dhead_to,
            );
            Results { value, gradients: vec![dhidden, dhead] }
        },
        composed: |inputs, batch| {
            let ids = batch.ids();
            Ok(token_logprobs::composed(&inputs[0], &inputs[1], &ids, TRIED_TEMPERATURE)?.0)
        },
    },
    Operation {
        name: "token_logprobs_and_entropies",
        inputs: |batch| vec![vec![batch.tokens(), batch.width], vec![batch.vocab, batch.width]],
        fused: |inputs, g, batch| {
            let (hidden, head, width) = (&inputs[0], &inputs[1], batch.width);
            let (ids, temperature) = (batch.ids(), TRIED_TEMPERATURE);
            let mut scored = Scored::default();
            let (mut value, entropies) =
                token_logprobs::forward(hidden, width, head, &ids, temperature, &mut scored);
            value.extend(entropies);
            let (by_logprob, by_entropy) = g.split_at(ids.len());
            let slopes = Slopes { logprobs: by_logprob, entropies: Some(by_entropy) };
            let (mut dhidden, mut dhead) = (vec![0.0; hidden.len()], vec![0.0; head.len()]);
            let (dhidden_to, dhead_to) = (&mut dhidden, Some((&mut dhead[..], Output::Replace)));
            token_logprobs::backward(
                hidden,
                width,
                head,
                slopes,
                &mut scored,
                dhidden_to,
                dhead_to,
            );
            Results { value, gradients: vec![dhidden, dhead] }
        },
        composed: |inputs, batch| {
            let ids = batch.ids();
            let (logprobs, entropies) =
                token_logprobs::composed(&inputs[0], &inputs[1], &ids, TRIED_TEMPERATURE)?;
            Tensor::cat(&[logprobs, entropies], 0)
        },
    },
    Operation {
        name: "logits",
        inputs: |batch| vec![vec![batch.tokens(), batch.width], vec![batch.vocab, batch.width]],
        fused: |inputs, g, batch| {
            let (hidden, head, width) = (&inputs[0], &inputs[1], batch.width);
            let mut scored = Scored::default();
            let value = token_logprobs::logits(hidden, width, head, TRIED_TEMPERATURE, &mut scored);
            let scale = scored.inverse_temperature().unwrap_or(f32::NAN);
            let (mut dhidden, mut dhead) = (vec![0.0; hidden.len()], vec![0.0; head.len()]);
            let dhead_to = Some((&mut dhead[..], Output::Replace));
            token_logprobs::logits_backward(hidden, width, head, g, scale, &mut dhidden, dhead_to);
            Results { value, gradients: vec![dhidden, dhead] }
        },
        composed: |inputs, _| inputs[0].matmul(&inputs[1].t()?)? / TRIED_TEMPERATURE,
    },
];

fn linear_results(
    inputs: &[Vec<f32>],
    g: &[f32],
    batch: &Batch,
    bias: Option<&Vec<f32>>,
) -> Results {
    let (x, weight) = (&inputs[0], &inputs[1]);
    let Batch { width, vocab, .. } = *batch;
    let mut panels = Panels::default();
    panels.pack(weight, vocab, width);
    let mut value = vec![0.0; g.len()];
    let bias = bias.map(Vec::as_slice);
    matmuls(vec![linear::forward(x, width, &panels, bias, &mut value, vocab)]);
    let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
    matmuls(vec![
        linear::backward_input(g, vocab, Right::Rows(weight, width), &mut dx, width),
        Job { output: Output::Replace, ..linear::backward_weight(g, vocab, x, width, &mut dw) },
    ]);
    let mut gradients = vec![dx, dw];
    if bias.is_some() {
        let mut db = vec![0.0; vocab];
        linear::backward_bias(g, &mut db);
        gradients.push(db);
    }
    Results { value, gradients }
}

/// A temperature other than 1, so that forgetting it shows.
const TRIED_TEMPERATURE: f64 = 0.7;

/// One operation, ours and composed, on inputs of given shapes.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Its name in test and bench output.
    pub name: &'static str,
    /// Shapes of its differentiable inputs for a batch.
    pub inputs: fn(&Batch) -> Vec<Vec<usize>>,
    /// What training runs: from the inputs and the gradient of the result, the result and the
    /// gradients of the inputs.
    pub fused: fn(&[Vec<f32>], &[f32], &Batch) -> Results,
    /// The result of candle's own operations, with gradient.
    pub composed: fn(&[Tensor], &Batch) -> Result<Tensor>,
}

/// A result and the gradients of the inputs it was made of.
#[derive(Clone, Debug, PartialEq)]
pub struct Results {
    /// The operation's result.
    pub value: Vec<f32>,
    /// One for each input.
    pub gradients: Vec<Vec<f32>>,
}

/// The sizes an operation can be tried on, and the ids and positions that go with them.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Lengths of the packed sequences: a prompt, then the replies that share it.
    pub lengths: Vec<Vec<usize>>,
    /// The heads of attention and rotation.
    pub heads: Heads,
    /// Width of a row elsewhere.
    pub width: usize,
    /// Rows of tables and heads, and width of linear outputs.
    pub vocab: usize,
}

impl Batch {
    /// Rows in all.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().flatten().sum()
    }

    /// The sequences, of ids that mean nothing.
    fn sequences(&self) -> PackedSequences {
        let mut packed = PackedSequences::default();
        for lengths in &self.lengths {
            let ids: Vec<Vec<u32>> = lengths.iter().map(|length| vec![0; *length]).collect();
            let replies: Vec<&[u32]> = ids[1..].iter().map(Vec::as_slice).collect();
            packed.push(&ids[0], &replies);
        }
        packed
    }

    /// Some id below `vocab` for each row, with repeats.
    fn ids(&self) -> Arc<[u32]> {
        (0..self.tokens()).map(|row| (row * row % self.vocab) as u32).collect()
    }

    fn rotations(&self) -> Rotations {
        let positions = self.lengths.iter().map(|it| it.iter().sum()).max().unwrap_or(0);
        Rotations::new(self.heads.head_dim, 100.0, &crate::RopeScaling::None, positions)
    }
}
