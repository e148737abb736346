//! Every built-in environment meets the contract, at its defaults and at the ends of its knobs.

use std::path::Path;

use serde_json::{Value, json};
use tallow_envs::{BuildContext, Environments, Seed, contract::check_environment};
use tallow_verifiers::Verifiers;

/// Sixty lines in the form of GSM8K.
fn write_lines(folder: &Path) {
    let lines: String = (0..60)
        .map(|it| {
            let (question, answer) = (format!("{it}+1000?"), it + 1000);
            json!({"question": question, "answer": format!("It is.\n#### {answer}")}).to_string()
                + "\n"
        })
        .collect();
    std::fs::write(folder.join("sums.jsonl"), lines).expect("a file for the test");
}

/// Options beside the defaults under which each environment is checked.
fn variants(name: &str) -> Vec<Value> {
    match name {
        "arithmetic" => vec![
            json!({"terms": 2, "digits": 1, "operators": "+"}),
            json!({"terms": 16, "digits": 6, "operators": "*"}),
            json!({"terms": 8, "operators": "-"}),
        ],
        "calculator" => vec![
            json!({"calls": 0, "instructions": false}),
            json!({"terms": 8, "digits": 15, "calls": 64}),
        ],
        "code_puzzles" => vec![
            json!({"over": "number", "steps": 2}),
            json!({"steps": 2, "tests": 2}),
            json!({"steps": 8, "tests": 16}),
        ],
        "countdown" => vec![
            json!({"numbers": 2, "largest_number": 20}),
            json!({"numbers": 6, "largest_number": 1000, "largest_target": 1000}),
            json!({"numbers": 4, "largest_number": 6, "largest_target": 6, "search_steps": 0}),
            json!({"numbers": 5, "search_steps": 1000}),
        ],
        "courtesy" => vec![
            json!({"digits": 9, "words": 64, "courteous": 1.0}),
            json!({"words": 1, "courteous": 0.0}),
        ],
        "digit_sum" => vec![json!({"digits": 2}), json!({"digits": 256, "modulus": 2})],
        "jsonl" => vec![
            json!({"path": "sums.jsonl", "answer_after": "####", "reply": "answer"}),
            json!({"path": "sums.jsonl", "answer_after": "####", "judge": "exact"}),
            json!({"path": "sums.jsonl"}),
        ],
        "letter_count" => vec![
            json!({"random_share": 0.0}),
            json!({"random_share": 1.0, "shortest": 1, "longest": 64}),
        ],
        "multiplication" => vec![
            json!({"left_digits": 1, "right_digits": 1}),
            json!({"left_digits": 2, "right_digits": 5}),
            json!({"left_digits": 9, "right_digits": 9}),
        ],
        "plugin" => {
            vec![json!({"plugin": "../verifiers/sandbox/tests/plugins/counting.wat", "workers": 2})]
        }
        "python_tool" => vec![json!({"tasks": {"name": "parity"}, "calls": 1, "workers": 1})],
        "parity" => vec![json!({"bits": 8}), json!({"bits": 1024})],
        other => panic!("add options for the environment `{other}` to this table"),
    }
}

#[test]
fn every_builtin_environment_meets_the_contract() {
    let folder = tempfile::tempdir().expect("a folder for the test");
    write_lines(folder.path());
    let verifiers = Verifiers::builtin();
    let mut breaches = Vec::new();
    for entry in Environments::builtin().entries() {
        let mut options = variants(entry.name());
        // A file has no default.
        if !["jsonl", "plugin"].contains(&entry.name()) {
            options.push(entry.default_options());
        }
        for (seed, options) in options.iter().enumerate() {
            let context =
                BuildContext { folder: folder.path().to_owned(), seed: Seed(seed as u64) };
            breaches.extend(check_environment(entry, options, &context, &verifiers).err());
        }
    }
    let breaches: Vec<String> = breaches.into_iter().flatten().collect();
    assert!(breaches.is_empty(), "{}", breaches.join("\n"));
}

#[test]
fn spaces_too_small_to_split_are_refused() {
    let context = BuildContext { folder: std::path::PathBuf::new(), seed: Seed(0) };
    let table = [
        ("parity", json!({"bits": 2}), "bits"),
        ("countdown", json!({"numbers": 2, "largest_number": 4}), "largest_number"),
    ];
    for (name, options, key) in table {
        let fault = Environments::builtin()
            .build(name, options, &context)
            .err()
            .expect("the space is too small");
        assert_eq!(fault.key, key, "{fault}");
    }
}
