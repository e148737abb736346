//! Every fused operation against its composed reference and against finite differences,
//! forward and backward, over ragged shapes.

#![expect(clippy::unwrap_used, reason = "what a test or bench prepares must succeed")]

use candle_core::{Device, Tensor, Var};
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tallow_policies::ops::{ALL, Batch, Heads, Operation};

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
        Batch { lengths: vec![1], heads: heads(1, 1, 2), width: 1, vocab: 1 },
        Batch { lengths: vec![3, 1, 5], heads: heads(4, 2, 6), width: 17, vocab: 18 },
        Batch { lengths: vec![20; 9], heads: heads(4, 4, 16), width: 64, vocab: 33 },
        // More than one block of queries, and work enough for several threads.
        Batch { lengths: vec![70, 2, 131], heads: heads(6, 2, 32), width: 96, vocab: 500 },
        Batch { lengths: vec![700, 600], heads: heads(2, 1, 8), width: 128, vocab: 130 },
    ]
}

fn drawn(dims: &[usize], stream: &mut impl Rng) -> Tensor {
    let count = dims.iter().product();
    let values: Vec<f32> = (0..count).map(|_| stream.random_range(-1.5..1.5)).collect();
    Tensor::from_vec(values, dims, &Device::Cpu).unwrap()
}

/// Fresh inputs of the operation, and a weight for each element of its result.
fn inputs(operation: &Operation, batch: &Batch) -> (Vec<Var>, Tensor) {
    let mut stream = ChaCha8Rng::seed_from_u64(7);
    let inputs: Vec<Var> = (operation.inputs)(batch)
        .iter()
        .map(|dims| Var::from_tensor(&drawn(dims, &mut stream)).unwrap())
        .collect();
    let result = (operation.composed)(&tensors(&inputs), batch).unwrap();
    let weights = drawn(result.dims(), &mut stream);
    (inputs, weights)
}

fn tensors(inputs: &[Var]) -> Vec<Tensor> {
    inputs.iter().map(|input| input.as_tensor().clone()).collect()
}

fn floats(tensor: &Tensor) -> Vec<f64> {
    let values: Vec<f32> = tensor.flatten_all().unwrap().to_vec1().unwrap();
    values.into_iter().map(f64::from).collect()
}

fn length(values: &[f64]) -> f64 {
    values.iter().map(|x| x * x).sum::<f64>().sqrt()
}

fn assert_near(found: &Tensor, expected: &Tensor, what: &str) {
    assert_eq!(found.dims(), expected.dims(), "{what}");
    let (found, expected) = (floats(found), floats(expected));
    let error: Vec<f64> = found.iter().zip(&expected).map(|(a, b)| a - b).collect();
    let (error, expected) = (length(&error), length(&expected));
    assert!(error <= TOLERANCE * expected.max(1e-3), "{what}: off by {error} of {expected}");
}

#[test]
fn fused_and_composed_agree_forward_and_backward() {
    for (operation, batch) in ALL.iter().flat_map(|op| batches().into_iter().map(move |b| (op, b)))
    {
        let (inputs, weights) = inputs(operation, &batch);
        let what = format!("{} on {batch:?}", operation.name);
        let [fused, composed] = [operation.fused, operation.composed].map(|forward| {
            let result = forward(&tensors(&inputs), &batch).unwrap();
            let store = (&result * &weights).unwrap().sum_all().unwrap().backward().unwrap();
            let gradients: Vec<Tensor> =
                inputs.iter().map(|input| store.get(input).expect("a gradient").clone()).collect();
            (result, gradients)
        });
        assert_near(&fused.0, &composed.0, &what);
        for (index, (found, expected)) in fused.1.iter().zip(&composed.1).enumerate() {
            assert_near(found, expected, &format!("gradient {index} of {what}"));
        }
    }
}

#[test]
fn gradients_match_finite_differences_along_themselves() {
    for (operation, batch) in ALL.iter().flat_map(|op| batches().into_iter().map(move |b| (op, b)))
    {
        let (inputs, weights) = inputs(operation, &batch);
        let result = (operation.fused)(&tensors(&inputs), &batch).unwrap();
        let store = (&result * &weights).unwrap().sum_all().unwrap().backward().unwrap();
        for (index, input) in inputs.iter().enumerate() {
            let gradient = store.get(input).unwrap();
            let expected = length(&floats(gradient));
            if expected < LEAST_GRADIENT {
                continue;
            }
            // Along the gradient itself the slope is its length: the steepest there is.
            let value_at = |step: f64| {
                let mut moved = tensors(&inputs);
                moved[index] = (&moved[index] + (gradient * (step / expected)).unwrap()).unwrap();
                let result = (operation.fused)(&moved, &batch).unwrap();
                floats(&result).iter().zip(floats(&weights)).map(|(r, w)| r * w).sum::<f64>()
            };
            let step = DIFFERENCE_STEP;
            let found = (value_at(step) - value_at(-step)) / (2.0 * step);
            assert!(
                (found / expected - 1.0).abs() < DIFFERENCE_TOLERANCE,
                "gradient {index} of {} on {batch:?}: length {expected}, differences give {found}",
                operation.name
            );
        }
    }
}

#[test]
fn one_thread_and_three_give_the_same_bits() {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let cases = ALL.iter().flat_map(|op| batches().into_iter().map(move |b| (op, b)));
            cases
                .map(|(operation, batch)| {
                    let (inputs, weights) = inputs(operation, &batch);
                    let result = (operation.fused)(&tensors(&inputs), &batch).unwrap();
                    let store =
                        (&result * &weights).unwrap().sum_all().unwrap().backward().unwrap();
                    let mut values = floats(&result);
                    inputs.iter().for_each(|input| {
                        values.extend(floats(store.get(input).unwrap()));
                    });
                    values
                })
                .collect::<Vec<_>>()
        })
    };
    assert!(run(1) == run(3));
}
