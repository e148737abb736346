//! Any two texts may be judged: no panic, the same judgement twice, an answer is equal to itself,
//! and no pair takes longer than the budget allows for.

#![no_main]

use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use tallow_verifiers::math::{AnswerForm, MathConfig, Status, judge};

fuzz_target!(|pair: (&str, &str)| {
    let (gold, answer) = pair;
    for form in [AnswerForm::Answer, AnswerForm::Text] {
        let options = MathConfig { gold_form: form, pred_form: form, ..MathConfig::default() };
        let start = Instant::now();
        let first = judge(gold, answer, &options);
        let took = start.elapsed();
        // Far above what the budget buys on a slow machine with instrumented code.
        assert!(took < Duration::from_millis(500), "{took:?}: {first:?}");
        assert_eq!(first, judge(gold, answer, &options));
        let itself = judge(gold, gold, &options).status;
        assert!(
            !matches!(itself, Status::NotEqual) || form == AnswerForm::Text,
            "not equal to itself: {gold:?}"
        );
    }
});
