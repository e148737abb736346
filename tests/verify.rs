//! The verbs that judge: bulk verdicts, attacks, and the measurement of both.

mod support;

use serde_json::{Value, json};
use support::{Scene, text};

/// Pairs with what `math` must say: forms and options come with the case.
fn cases() -> Vec<(Value, Option<bool>)> {
    vec![
        (json!({"gold": "1/2", "pred": "It is \\boxed{0.5}."}), Some(true)),
        (json!({"gold": "1/2", "pred": "0.5", "pred_form": "answer"}), Some(true)),
        (json!({"gold": "so \\boxed{3}", "pred": "3", "gold_form": "text"}), Some(true)),
        (json!({"gold": "10", "pred": "10\\%"}), Some(true)),
        (
            json!({"gold": "10", "pred": "10\\%", "options": {"percent_as_number": false}}),
            Some(false),
        ),
        (json!({"gold": "\\frac{1}{", "pred": "5"}), None),
        (json!({"gold": "7", "pred": "\\boxed{7 \\text{ or } 8}", "more": [1]}), Some(false)),
    ]
}

#[test]
fn verdicts_keep_the_order_and_do_not_depend_on_threads() {
    let scene = Scene::new();
    let lines: Vec<String> = (0..40)
        .flat_map(|round| {
            cases().into_iter().enumerate().map(move |(at, (mut case, _))| {
                case["id"] = json!(format!("{round}-{at}"));
                case.to_string()
            })
        })
        .collect();
    scene.write("cases.jsonl", &(lines.join("\n") + "\n"));
    let judged = |threads: &str| -> Vec<Value> {
        let output =
            scene.output(["verify", "math", "--cases", "cases.jsonl", "--threads", threads]);
        assert!(output.status.success(), "{}", text(&output.stderr));
        text(&output.stdout)
            .lines()
            .map(|line| {
                let mut line: Value = serde_json::from_str(line).expect("a line of JSON");
                assert!(line["us"].as_f64().is_some_and(|it| it > 0.0));
                line["us"] = Value::Null;
                line
            })
            .collect()
    };
    let (one, two) = (judged("1"), judged("2"));
    assert_eq!(one, two);
    let expected = cases();
    for (at, line) in one.iter().enumerate() {
        let (case, verdict) = &expected[at % expected.len()];
        assert_eq!(line["id"], format!("{}-{}", at / expected.len(), at % expected.len()));
        assert_eq!(line["verdict"], json!(verdict), "{case}: {line}");
        assert_eq!(line["outcome"] == "unscorable", verdict.is_none(), "{line}");
    }
}

#[test]
fn an_option_that_a_case_misspells_is_told_with_its_line() {
    let scene = Scene::new();
    scene.write(
        "cases.jsonl",
        "{\"gold\": \"1\", \"pred\": \"1\", \"options\": {\"strickt\": true}}\n",
    );
    let output = scene.output(["verify", "math", "--cases", "cases.jsonl"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("cases.jsonl:1") && told.contains("strickt"), "{told}");
}

#[test]
fn an_attack_says_by_its_status_whether_it_got_through() {
    let scene = Scene::new();
    let output = scene.output(["attack", "math"]);
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    assert!(text(&output.stdout).contains("several_boxes"));

    // The last number counts there, whatever stands before it.
    let output = scene.output(["attack", "numeric", "--json"]);
    assert_eq!(output.status.code(), Some(1));
    let told = text(&output.stderr);
    assert!(told.contains("hedge") && told.contains("by design"), "{told}");
    let lines: Vec<Value> = text(&output.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect();
    let hedge = lines.iter().find(|it| it["class"] == "hedge").expect("the class is there");
    assert!(hedge["accepted"].as_u64() > Some(0) && hedge["example"].is_string(), "{hedge}");
    let lax = scene.output(["attack", "numeric", "--threshold", "0.9"]);
    assert!(lax.status.success());

    // Prompts of a file are what exploits may echo.
    scene.write("cases.jsonl", "{\"gold\": \"12\", \"prompt\": \"The answer is 12. Say it.\"}\n");
    let output = scene.output(["attack", "numeric", "--cases", "cases.jsonl", "--json"]);
    let echo = text(&output.stdout);
    assert!(
        echo.lines().any(|it| it.contains("\"echo\"") && !it.contains("\"accepted\":0")),
        "{echo}"
    );
}

#[test]
fn a_bench_of_verdicts_has_its_figures() {
    let scene = Scene::new();
    scene.write("cases.jsonl", "{\"gold\": \"1\", \"pred\": \"\\\\boxed{1}\"}\n");
    let output =
        scene.output(["bench", "verify", "math", "--cases", "cases.jsonl", "--repeat", "2"]);
    let line: Value = serde_json::from_str(&text(&output.stdout)).expect("one line of JSON");
    for key in ["verdicts_s", "mean_us", "p50_us", "p99_us", "max_us", "all_threads_verdicts_s"] {
        assert!(line[key].as_f64().is_some_and(|it| it > 0.0), "{key}: {line}");
    }
    assert_eq!(line["reasons"], json!({"plain numbers": 1.0}));
}
