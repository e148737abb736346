//! What holds of every judgement of mathematical answers.

use proptest::prelude::*;
use tallow_verifiers::math::{AnswerForm, MathConfig, Status, judge};

/// The corpus of one-line cases; its verdicts are held by the contract test.
const CASES: &str = include_str!("../src/math/cases.txt");

fn bare() -> MathConfig {
    MathConfig { pred_form: AnswerForm::Answer, ..MathConfig::default() }
}

fn status(gold: &str, answer: &str) -> Status {
    judge(gold, answer, &bare()).status
}

/// The gold answers of the corpus.
fn golds() -> Vec<&'static str> {
    let mut golds: Vec<&str> = CASES
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| line.split(" || ").nth(1))
        .collect();
    golds.dedup();
    golds
}

/// Values in LaTeX, without names, lists or brackets around the whole.
fn value() -> impl Strategy<Value = String> {
    let leaf = prop_oneof![
        (0_i64..1000).prop_map(|it| it.to_string()),
        (1_i64..500, 1_i64..10).prop_map(|(a, b)| format!("{a}.{b}")),
        (1_i64..50, 2_i64..50).prop_map(|(a, b)| format!("\\frac{{{a}}}{{{b}}}")),
        (2_i64..100).prop_map(|it| format!("\\sqrt{{{it}}}")),
        Just("x".to_owned()),
        Just("y".to_owned()),
        Just("\\pi".to_owned()),
        Just("i".to_owned()),
    ];
    leaf.prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})+({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})-({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("({a})\\cdot({b})")),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| format!("\\frac{{{a}}}{{{b}+7}}")),
            (inner.clone(), 0_u32..4).prop_map(|(a, n)| format!("({a})^{{{n}}}")),
            inner.clone().prop_map(|a| format!("\\sqrt{{{a}}}")),
            inner.prop_map(|a| format!("\\sin({a})")),
        ]
    })
}

/// Whole answers: values in structures, with units and names.
fn answer() -> impl Strategy<Value = String> {
    let v = value;
    prop_oneof![
        4 => v(),
        1 => v().prop_map(|a| format!("x = {a}")),
        1 => v().prop_map(|a| format!("{a}\\text{{ cm}}")),
        1 => (0_i64..100).prop_map(|a| format!("{a}\\%")),
        1 => (v(), v()).prop_map(|(a, b)| format!("({a}, {b})")),
        1 => (v(), v()).prop_map(|(a, b)| format!("[{a}, {b})")),
        1 => (v(), v()).prop_map(|(a, b)| format!("\\{{{a}, {b}\\}}")),
        1 => (v(), v(), v()).prop_map(|(a, b, c)| format!("{a}, {b}, {c}")),
        1 => (v(), v()).prop_map(|(a, b)| format!("\\begin{{pmatrix}} {a} \\\\ {b} \\end{{pmatrix}}")),
        1 => (v(), v()).prop_map(|(a, b)| format!("{a} < {b}")),
    ]
}

/// A rational written in some way: its value is `above / below`.
fn written() -> impl Strategy<Value = (i64, i64, String)> {
    (-60_i64..60, 1_i64..24, 1_i64..5, 0_usize..5).prop_map(|(above, below, factor, way)| {
        let (whole, rest) = (above / below, (above % below).abs());
        let text = match way {
            0 => format!("\\frac{{{above}}}{{{below}}}"),
            1 => format!("{}/{}", above * factor, below * factor),
            2 if whole != 0 && rest != 0 => format!("{whole}\\frac{{{rest}}}{{{below}}}"),
            3 => format!("-\\frac{{{}}}{{{below}}}", -above),
            _ => format!("({above}) \\div {below}"),
        };
        (above, below, text)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_answer_is_itself(gold in answer()) {
        prop_assert_eq!(status(&gold, &gold), Status::Equal);
    }

    #[test]
    fn values_are_equal_both_ways_or_not_at_all(a in value(), b in value()) {
        prop_assert_eq!(status(&a, &b), status(&b, &a));
    }

    #[test]
    fn how_it_is_set_changes_nothing(gold in answer(), other in answer()) {
        let verdict = status(&gold, &other);
        for (name, changed) in [
            ("spaces", other.replace('+', " + ").replace(',', " ,  ").replace('(', "( ")),
            ("brackets", other.replace('(', "\\left(").replace(')', "\\right)")),
            ("fractions", other.replace("\\frac", "\\dfrac")),
            ("small fractions", other.replace("\\frac", "\\tfrac")),
            ("dollars", format!("${other}$")),
            ("a display", format!("\\[{other}\\]")),
            ("thin spaces", other.replace('+', "\\,+\\;")),
        ] {
            prop_assert_eq!(status(&gold, &changed), verdict, "{}: {}", name, changed);
        }
        let reply = format!("So it must be \\boxed{{{other}}}. I checked 3 times.");
        prop_assert_eq!(judge(&gold, &reply, &MathConfig::default()).status, verdict);
    }

    #[test]
    fn rationals_are_equal_exactly_when_they_are(a in written(), b in written()) {
        let equal = a.0 * b.1 == b.0 * a.1;
        let expected = if equal { Status::Equal } else { Status::NotEqual };
        prop_assert_eq!(status(&a.2, &b.2), expected, "{} | {}", a.2, b.2);
    }

    #[test]
    fn polynomials_are_equal_to_their_factors(roots in prop::collection::vec(-9_i64..10, 1..5), off in 1_i64..5) {
        let mut coefficients = vec![1_i64];
        let mut factored = String::new();
        for root in &roots {
            factored += &format!("(x-({root}))");
            let mut next = vec![0; coefficients.len() + 1];
            for (power, it) in coefficients.iter().enumerate() {
                next[power + 1] += it;
                next[power] -= it * root;
            }
            coefficients = next;
        }
        let expanded = |coefficients: &[i64]| -> String {
            let terms: Vec<String> = coefficients
                .iter()
                .enumerate()
                .map(|(power, it)| format!("({it})x^{{{power}}}"))
                .collect();
            terms.join("+")
        };
        prop_assert_eq!(status(&factored, &expanded(&coefficients)), Status::Equal);
        coefficients[0] += off;
        prop_assert_eq!(status(&factored, &expanded(&coefficients)), Status::NotEqual);
    }
}

#[test]
fn every_gold_of_the_corpus_is_itself() {
    for gold in golds() {
        assert_eq!(status(gold, gold), Status::Equal, "{gold}");
    }
}

#[test]
fn threads_and_repetition_change_no_judgement() {
    let golds = golds();
    let judged = || -> Vec<_> {
        golds
            .iter()
            .flat_map(|gold| golds.iter().map(move |answer| judge(gold, answer, &bare())))
            .collect()
    };
    let alone = judged();
    std::thread::scope(|scope| {
        let others: Vec<_> = (0..3).map(|_| scope.spawn(judged)).collect();
        for other in others {
            assert_eq!(other.join().ok().as_ref(), Some(&alone));
        }
    });
}

#[test]
fn depth_is_bounded_before_the_stack_is() {
    let fractions = |depth: usize| format!("{}7{}", "\\frac{1}{".repeat(depth), "}".repeat(depth));
    assert_eq!(status("7", &fractions(200)), Status::Equal);
    assert_eq!(status("7", &fractions(201)), Status::NotEqual);
    for deep in [
        fractions(2000),
        format!("{}8{}", "(".repeat(1500), ")".repeat(1500)),
        format!("{}8", "\\sqrt".repeat(800)),
        format!("8{}", "^8".repeat(2000)),
        format!("{}8{}", "\\{".repeat(1000), "\\}".repeat(1000)),
        format!("{}8", "-".repeat(4000)),
        format!("{}8", "\\frac1".repeat(600)),
        format!("{}x", "\\sin".repeat(1000)),
        format!("{}8", "f(".repeat(1900)),
        format!("{}8", "\\begin{pmatrix}".repeat(200)),
        format!("{}8", "|".repeat(2000)),
        format!("{}8", "\\sum_{k=1}^".repeat(300)),
    ] {
        assert_ne!(status("7", &deep), Status::Equal, "{}", &deep[..20]);
    }
}

/// The limits are there for attacks: no pair of the corpus but those written as such meets them.
#[test]
fn real_answers_are_far_from_the_limits() {
    for gold in golds() {
        for answer in golds() {
            let judged = judge(gold, answer, &bare());
            let huge = [gold, answer].iter().any(|it| it.contains("9^{9") || it.contains("2004!"));
            assert!(judged.status != Status::Limit || huge, "{gold} | {answer}: {judged:?}");
        }
    }
}
