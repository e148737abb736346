//! `tallow loss` against the numbers of the peers: every case of the stored file, gradients and metrics
//! too, within the case's own tolerance.

mod support;

use std::path::Path;

use serde_json::{Value, json};
use support::Scene;

/// Outputs that peers fill with what they like where the mask is 0.
const MASKED: [&str; 4] = ["advantages", "returns", "weights", "token_advantages"];

struct Tolerance {
    relative: f64,
    absolute: f64,
}

fn golden_cases() -> Value {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/goldens/algorithms.json.zst");
    let file = std::fs::File::open(path).expect("the fixture is there");
    let text = zstd::decode_all(file).expect("zstd");
    serde_json::from_slice(&text).expect("JSON")
}

/// Puts cases through the binary; a result for each, in order.
fn results(file: &Value) -> Vec<Value> {
    let scene = Scene::new();
    scene.write("cases.json", file.to_string());
    let done = scene.output(["loss", "--cases", "cases.json", "--out", "results.jsonl"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    scene
        .read("results.jsonl")
        .lines()
        .map(|line| serde_json::from_str(line).expect("a line of JSON"))
        .collect()
}

fn compare(
    want: &Value,
    got: &Value,
    mask: Option<&Value>,
    within: &Tolerance,
) -> Result<(), String> {
    match (want, got) {
        (Value::Object(want), Value::Object(got)) => want.iter().try_for_each(|(name, want)| {
            let got = got.get(name).ok_or_else(|| format!("{name} is missing"))?;
            compare(want, got, mask, within).map_err(|it| format!("{name}: {it}"))
        }),
        (Value::Array(want), Value::Array(got)) if want.len() == got.len() => {
            want.iter().zip(got).enumerate().try_for_each(|(index, (want, got))| {
                let inner = mask.and_then(|it| it.get(index));
                if inner == Some(&json!(0)) {
                    return Ok(());
                }
                compare(want, got, inner, within).map_err(|it| format!("[{index}]: {it}"))
            })
        }
        (Value::Number(want), Value::Number(got)) => {
            let (want, got) = (want.as_f64().expect("f64"), got.as_f64().expect("f64"));
            let allowed = within.absolute + within.relative * want.abs();
            match (want - got).abs() <= allowed {
                true => Ok(()),
                false => Err(format!("{got} instead of {want}")),
            }
        }
        (want, got) => Err(format!("{got} instead of {want}")),
    }
}

#[test]
fn every_peers_numbers_are_ours() {
    let file = golden_cases();
    let cases = file["cases"].as_array().expect("cases");
    let results = results(&file);
    assert_eq!(cases.len(), results.len());
    let mut wrong = Vec::new();
    for (case, result) in cases.iter().zip(&results) {
        assert_eq!(case["id"], result["id"]);
        let tolerance = |name: &str| case["tolerance"][name].as_f64().expect("a tolerance");
        let within = Tolerance { relative: tolerance("rtol"), absolute: tolerance("atol") };
        for (name, want) in case["outputs"].as_object().expect("outputs") {
            let mask = MASKED.contains(&name.as_str()).then(|| &case["inputs"]["mask"]);
            if let Err(told) = compare(want, &result["outputs"][name], mask, &within) {
                wrong.push(format!("{} {name}{told}: {result}", case["id"]));
            }
        }
    }
    assert!(wrong.is_empty(), "{} of {}: {}", wrong.len(), cases.len(), wrong[0]);
}

#[test]
fn empty_minibatches_give_zero_and_no_nan() {
    let mut file = golden_cases();
    let mut emptied = 0;
    for case in file["cases"].as_array_mut().expect("cases") {
        for (name, grid) in case["inputs"].as_object_mut().expect("inputs") {
            if !name.ends_with("mask") {
                continue;
            }
            emptied += 1;
            for row in grid.as_array_mut().expect("rows") {
                row.as_array_mut().expect("a row").fill(json!(0));
            }
        }
    }
    assert!(emptied > 200, "{emptied} masks");
    for (case, result) in file["cases"].as_array().expect("cases").iter().zip(results(&file)) {
        // serde_json writes what is no number as null.
        assert!(!result.to_string().contains("null"), "{result}");
        let whole_reply = ["sequence_product", "gmpo"].iter().any(|it| {
            case["hyperparameters"]["ratio_level"] == *it
                || case["hyperparameters"]["surrogate"] == *it
        });
        let masked = case["inputs"].get("mask").is_some();
        if let Some(loss) = result["outputs"]["loss"].as_f64().filter(|_| masked && !whole_reply) {
            assert_eq!(loss, 0.0, "{result}");
        }
    }
}

#[test]
fn what_is_unknown_is_unsupported_and_what_is_broken_is_placed() {
    let file = golden_cases();
    let cases = file["cases"].as_array().expect("cases");
    let case = cases
        .iter()
        .find(|it| it["hyperparameters"]["surrogate"] == "clip")
        .expect("a clipped case");
    let mut unknown = vec![case.clone(), case.clone(), case.clone()];
    unknown[0]["hyperparameters"]["clip_medium"] = json!(0.2);
    unknown[1]["hyperparameters"]["surrogate"] = json!("clap");
    unknown[2]["kind"] = json!("loss");
    for result in results(&json!({"header": {}, "cases": unknown})) {
        assert!(result["unsupported"].is_string(), "{result}");
    }
    let mut broken = case.clone();
    broken["inputs"]["mask"][0].as_array_mut().expect("a row").push(json!(1));
    let scene = Scene::new();
    let text = serde_json::to_string_pretty(&json!({"header": {}, "cases": [broken]}));
    scene.write("broken.json", text.expect("JSON"));
    let done = scene.output(["loss", "--cases", "broken.json"]);
    let told = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{told}");
    assert!(told.contains("broken.json:") && told.contains("inputs.logprobs"), "{told}");
}
