//! Verdicts a second of every built-in verifier, on its own contract cases, and of `math` by the route
//! that decides.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
use tallow_verifiers::math::{MathConfig, judge};
use tallow_verifiers::{Transcript, Verifiers};

fn verify(criterion: &mut Criterion) {
    let verifiers = Verifiers::builtin();
    let mut group = criterion.benchmark_group("verify/contract_cases");
    for entry in verifiers.entries() {
        let cases: Vec<_> = entry
            .cases()
            .into_iter()
            .filter_map(|case| {
                let verifier = verifiers.build(entry.name(), case.options).ok()?;
                Some((verifier, Transcript::of_reply(Vec::new(), case.reply), case.reference))
            })
            .collect();
        group.throughput(Throughput::Elements(cases.len() as u64));
        group.bench_function(entry.name(), |bencher| {
            bencher.iter(|| {
                for (verifier, transcript, reference) in &cases {
                    black_box(verifier.verify(transcript, reference).is_ok());
                }
            });
        });
    }
    group.finish();
}

/// A gold answer and a reply for each way in which `math` comes to a verdict.
const ROUTES: [(&str, &str, &str); 9] = [
    ("plain", "1234", "So it is \\boxed{1,234}."),
    ("same_text", "\\frac{\\sqrt{3}}{2}", "So it is \\boxed{\\frac{\\sqrt{3}}{2}}."),
    ("words", "\\text{Even}", "So it is \\boxed{even}."),
    ("rationals", "\\frac{35}{128}", "So it is \\boxed{105/384}."),
    ("radicals", "\\frac{1}{\\sqrt{3}}+\\sqrt{8}", "\\boxed{2\\sqrt2+\\frac{\\sqrt{3}}{3}}"),
    ("polynomials", "(x+2)(x-3)(x+5)", "\\boxed{x^3+4x^2-11x-30}"),
    ("residues", "(x+1)^{100000}", "\\boxed{x(1+x)^{99999}+(x+1)^{99999}}"),
    ("floats", "\\sin 2x", "\\boxed{2\\sin x\\cos x}"),
    ("intervals", "(-\\infty,2)\\cup(2,\\infty)", "\\boxed{\\mathbb{R}\\setminus\\{2\\}}"),
];

fn math_routes(criterion: &mut Criterion) {
    let options = MathConfig::default();
    let mut group = criterion.benchmark_group("verify/math_routes");
    for (name, gold, reply) in ROUTES {
        group.bench_function(name, |bencher| {
            bencher.iter(|| black_box(judge(gold, reply, &options)));
        });
    }
    // The search alone is linear: a long reply costs what it is long.
    let long = format!("{}\\boxed{{7}}", "we add $3$ and \\(4\\), ".repeat(1000));
    group.throughput(Throughput::Bytes(long.len() as u64));
    group.bench_function("long_reply", |bencher| {
        bencher.iter(|| black_box(judge("7", &long, &options)));
    });
    group.finish();
}

criterion_group!(benches, verify, math_routes);
criterion_main!(benches);
