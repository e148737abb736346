//! Every fused operation against its composed reference and against finite differences,
//! forward and backward, over ragged shapes.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use candle_core::{Device, Tensor, Var};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tallow_policies::ops::{ALL, Batch, Heads, Operation, Results};

/// f32 sums in another order; relative to the length of the whole tensor.
const TOLERANCE: f64 = 2e-6;

/// Central differences of an f32 function at this step: rounding over step, and step
/// squared, both stay well under the tolerance.
const DIFFERENCE_TOLERANCE: f64 = 5e-3;
const DIFFERENCE_STEP: f64 = 0.03;

/// A gradient that vanishes (one key, one word) has no slope to measure.
const LEAST_GRADIENT: f64 = 1e-6;

fn batches() -> Vec<Batch> {
    let heads = |heads, kv_heads, head_dim| Heads { heads, kv_heads, head_dim };
    vec![
        Batch { lengths: vec![vec![1]], heads: heads(1, 1, 2), width: 1, vocab: 1 },
        Batch {
            lengths: vec![vec![3], vec![1], vec![5]],
            heads: heads(4, 2, 6),
            width: 17,
            vocab: 18,
        },
        Batch { lengths: vec![vec![20]; 9], heads: heads(4, 4, 16), width: 64, vocab: 33 },
        // Prompts shared by replies: within a block of positions, at its end, and beyond.
        Batch {
            lengths: vec![vec![3, 5, 1], vec![32, 7, 40], vec![75, 30, 33, 2]],
            heads: heads(4, 2, 16),
            width: 8,
            vocab: 9,
        },
        // More than one block of queries, and work enough for several threads.
        Batch {
            lengths: vec![vec![70], vec![2], vec![131]],
            heads: heads(6, 2, 32),
            width: 96,
            vocab: 500,
        },
        Batch {
            lengths: vec![vec![700], vec![600]],
            heads: heads(2, 1, 8),
            width: 128,
            vocab: 130,
        },
    ]
}

fn drawn(count: usize, stream: &mut impl Rng) -> Vec<f32> {
    (0..count).map(|_| stream.random_range(-1.5..1.5)).collect()
}

/// An operation, its inputs, and the gradient of its result.
struct Case {
    operation: &'static Operation,
    batch: Batch,
    shapes: Vec<Vec<usize>>,
    inputs: Vec<Vec<f32>>,
    g: Vec<f32>,
}

fn cases() -> impl Iterator<Item = Case> {
    ALL.iter().flat_map(|operation| batches().into_iter().map(move |batch| (operation, batch))).map(
        |(operation, batch)| {
            let mut stream = ChaCha8Rng::seed_from_u64(7);
            let shapes = (operation.inputs)(&batch);
            let inputs: Vec<Vec<f32>> =
                shapes.iter().map(|dims| drawn(dims.iter().product(), &mut stream)).collect();
            let vars = variables(&shapes, &inputs);
            let result = (operation.composed)(&tensors(&vars), &batch).unwrap();
            let g = drawn(result.elem_count(), &mut stream);
            Case { operation, batch, shapes, inputs, g }
        },
    )
}

impl Case {
    fn fused(&self, inputs: &[Vec<f32>]) -> Results {
        (self.operation.fused)(inputs, &self.g, &self.batch)
    }

    fn composed(&self) -> Results {
        let variables = variables(&self.shapes, &self.inputs);
        let result = (self.operation.composed)(&tensors(&variables), &self.batch).unwrap();
        let g = Tensor::from_slice(&self.g, result.shape(), &Device::Cpu).unwrap();
        let store = (&result * &g).unwrap().sum_all().unwrap().backward().unwrap();
        let gradients = variables.iter().map(|it| values(store.get(it).expect("a gradient")));
        Results { value: values(&result), gradients: gradients.collect() }
    }

    fn name(&self) -> String {
        format!("{} on {:?}", self.operation.name, self.batch)
    }
}

fn variables(shapes: &[Vec<usize>], inputs: &[Vec<f32>]) -> Vec<Var> {
    let variable = |(dims, values): (&Vec<usize>, &Vec<f32>)| {
        Var::from_tensor(&Tensor::from_slice(values, dims.as_slice(), &Device::Cpu).unwrap())
    };
    shapes.iter().zip(inputs).map(|it| variable(it).unwrap()).collect()
}

fn tensors(inputs: &[Var]) -> Vec<Tensor> {
    inputs.iter().map(|input| input.as_tensor().clone()).collect()
}

fn values(tensor: &Tensor) -> Vec<f32> {
    tensor.flatten_all().unwrap().to_vec1().unwrap()
}

fn length(values: impl IntoIterator<Item = f64>) -> f64 {
    values.into_iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn wide(values: &[f32]) -> impl Iterator<Item = f64> {
    values.iter().map(|x| f64::from(*x))
}

fn assert_near(found: &[f32], expected: &[f32], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    let error = length(wide(found).zip(wide(expected)).map(|(a, b)| a - b));
    let expected = length(wide(expected));
    assert!(error <= TOLERANCE * expected.max(1e-3), "{what}: off by {error} of {expected}");
}

#[test]
fn ours_and_composed_agree_forward_and_backward() {
    for case in cases() {
        let (found, expected) = (case.fused(&case.inputs), case.composed());
        assert_near(&found.value, &expected.value, &case.name());
        assert_eq!(found.gradients.len(), expected.gradients.len());
        for (index, (found, expected)) in
            found.gradients.iter().zip(&expected.gradients).enumerate()
        {
            assert_near(found, expected, &format!("gradient {index} of {}", case.name()));
        }
    }
}

#[test]
fn gradients_match_finite_differences_along_themselves() {
    for case in cases() {
        let Results { gradients, .. } = case.fused(&case.inputs);
        for (index, gradient) in gradients.iter().enumerate() {
            let expected = length(wide(gradient));
            if expected < LEAST_GRADIENT {
                continue;
            }
            // Along the gradient itself the slope is its length: the steepest there is.
            let value_at = |step: f64| {
                let mut moved = case.inputs.clone();
                for (value, slope) in moved[index].iter_mut().zip(gradient) {
                    *value += slope * (step / expected) as f32;
                }
                let value = case.fused(&moved).value;
                wide(&value).zip(wide(&case.g)).map(|(r, w)| r * w).sum::<f64>()
            };
            let step = DIFFERENCE_STEP;
            let found = (value_at(step) - value_at(-step)) / (2.0 * step);
            assert!(
                (found / expected - 1.0).abs() < DIFFERENCE_TOLERANCE,
                "gradient {index} of {}: length {expected}, differences give {found}",
                case.name()
            );
        }
    }
}

#[test]
fn one_thread_and_three_give_the_same_bits() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| cases().map(|case| case.fused(&case.inputs)).collect::<Vec<_>>())
    };
    assert!(run(1) == run(3));
}
