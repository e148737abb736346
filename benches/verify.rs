//! Verdicts a second of every built-in verifier, on its own contract cases.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::hint::black_box;
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

criterion_group!(benches, verify);
criterion_main!(benches);
