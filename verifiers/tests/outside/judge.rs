//! `judge` against a stand-in for a language model's server.

use std::{thread, time::Duration};

use serde_json::{Value, json};
use tallow_verifiers::{ContractCase, Outcome, Preparation, Verifiers, contract::check_with_cases};

use super::{
    build, check_broken, entry, gold, judge, part, rewards,
    server::{Answer, Request, Server},
};

fn options(server: &Server) -> Value {
    json!({"endpoint": server.url("/v1/"), "model": "grader", "timeout_s": 0.5, "retries": 2,
           "backoff_s": 0.01, "prompt": "{{ reference }}\n{{ reply }}"})
}

fn completion(text: &str) -> String {
    json!({
        "choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
    })
    .to_string()
}

fn question(request: &Request) -> &str {
    let messages = request.body["messages"].as_array().expect("messages");
    messages.last().expect("a question")["content"].as_str().expect("text")
}

/// Ten points if the reply is the reference, else two.
fn graded(request: &Request) -> String {
    let right = question(request).split_once('\n').is_some_and(|(gold, reply)| gold == reply);
    completion(&format!("I looked at it.\nScore: {}", if right { 10 } else { 2 }))
}

fn sound() -> Server {
    Server::start(|_, request| Answer::Text(200, graded(request)))
}

#[test]
fn a_sound_judge_meets_the_contract() {
    let server = sound();
    let mut options = options(&server);
    options["timeout_s"] = json!(10);
    options["correct_at"] = json!(8);
    let case = |reply: &str, outcome| ContractCase {
        options: options.clone(),
        reference: gold(),
        reply: reply.to_owned(),
        outcome,
    };
    let cases = [case("42", Outcome::Correct), case("43", Outcome::Incorrect)];
    let verifiers = Verifiers::builtin();
    assert_eq!(check_with_cases(&entry(&verifiers, "judge"), &verifiers, &cases), Ok(()));
}

#[test]
fn a_request_is_as_configured_and_a_verdict_tells_its_cost() {
    let server = sound();
    let mut options = options(&server);
    for (key, value) in [
        ("system", json!("be strict")),
        ("seed", json!(7)),
        ("extra", json!({"top_p": 0.5})),
        ("scale", json!([2, 12])),
        ("usd_per_million_tokens", json!({"prompt": 1000, "completion": 5000})),
    ] {
        options[key] = value;
    }
    let verdicts = judge(&build("judge", &options), &["42"]);
    assert_eq!(
        server.bodies(),
        [json!({
            "model": "grader",
            "messages": [
                {"role": "system", "content": "be strict"},
                {"role": "user", "content": "42\n42"},
            ],
            "temperature": 0.0,
            "max_tokens": 512,
            "seed": 7,
            "top_p": 0.5,
        })]
    );
    let verdict = verdicts[0].as_ref().expect("a verdict");
    assert_eq!((verdict.reward, verdict.outcome), (0.8, Outcome::Graded));
    assert_eq!(verdict.reason.as_deref(), Some("I looked at it.\nScore: 10"));
    for (name, value) in [
        ("score", 10.0),
        ("judge_prompt_tokens", 100.0),
        ("judge_completion_tokens", 10.0),
        ("judge_cached", 0.0),
        ("judge_usd", 0.15),
    ] {
        assert_eq!(part(&verdicts[0], name), value, "{name}");
    }
}

#[test]
fn an_answer_without_a_score_is_asked_for_again_and_paid_for() {
    let server = Server::start(|nth, request| match nth {
        0 => Answer::Text(200, completion("I would rather not.")),
        1 => Answer::Text(503, String::new()),
        _ => Answer::Text(200, graded(request)),
    });
    let mut options = options(&server);
    options["seed"] = json!(1);
    let verdicts = judge(&build("judge", &options), &["42"]);
    assert_eq!(rewards(&verdicts), [1.0]);
    assert_eq!(part(&verdicts[0], "judge_prompt_tokens"), 200.0);
    let seeds: Vec<_> = server.bodies().iter().map(|it| it["seed"].as_u64()).collect();
    assert_eq!(seeds, [Some(1), Some(2), Some(3)]);
}

#[track_caller]
fn check_fault(fault: impl Fn() -> Answer + Send + Sync + 'static, requests: usize, told: &str) {
    let server = Server::start(move |_, request| {
        let bad = question(request).ends_with("\nbad");
        if bad { fault() } else { Answer::Text(200, graded(request)) }
    });
    let verifier = build("judge", &options(&server));
    let mut verdicts = judge(&verifier, &["42", "bad", "41"]);
    // The siblings of a reply that cannot be judged keep their verdicts.
    let url = server.url("/v1/chat/completions");
    check_broken(&vec![verdicts.remove(1)], &["`judge`", "`grader`", &url, told]);
    assert_eq!(rewards(&verdicts), [1.0, 0.2]);
    assert_eq!(server.requests(), requests + 2, "{told}");
    assert_eq!(rewards(&judge(&verifier, &["42"])), [1.0]);
}

#[test]
fn what_a_judge_fails_to_say_is_never_a_reward() {
    let text = |text: &str| {
        let text = completion(text);
        move || Answer::Text(200, text.clone())
    };
    check_fault(text(""), 3, "holds no score");
    check_fault(text("Score: eleven"), 3, "holds no score");
    check_fault(text("Score: 11"), 3, "not one from 0 to 10");
    check_fault(|| Answer::Text(200, "{\"choices\": []}".into()), 3, "said nothing");
    let silent = || Answer::Text(200, "{\"choices\": [{\"message\": {\"content\": null}}]}".into());
    check_fault(silent, 3, "said nothing");
    let cut = json!({"choices": [{"message": {"content": "Score: 1"}, "finish_reason": "length"}]});
    check_fault(move || Answer::Text(200, cut.to_string()), 3, "cut off");
    check_fault(|| Answer::Text(200, "<html>".into()), 3, "no chat completion");
    check_fault(|| Answer::Text(400, "context too long".into()), 1, "context too long");
    check_fault(|| Answer::Hangup, 3, "call 3");
    check_fault(|| Answer::Half, 3, "call 3");
    check_fault(|| Answer::Late(Duration::from_secs(2), String::new()), 3, "no whole answer");
}

#[test]
fn what_is_cached_costs_no_request() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = sound();
    let mut options = options(&server);
    options["cache"] = json!(folder.path().join("answers"));
    options["usd_per_million_tokens"] = json!({"prompt": 1, "completion": 1});
    let verdicts = judge(&build("judge", &options), &["42", "41", "42"]);
    assert_eq!(rewards(&verdicts), [1.0, 0.2, 1.0]);
    // The third says what the first said.
    assert_eq!(server.requests(), 2);
    assert_eq!([0, 1, 2].map(|it| part(&verdicts[it], "judge_cached")), [0.0, 0.0, 1.0]);
    assert_eq!(part(&verdicts[2], "judge_usd"), 0.0);

    // Another run, whose scale is another.
    options["scale"] = json!([0, 20]);
    let verifier = build("judge", &options);
    verifier.prepare(&Preparation::default()).expect("the folder is there");
    let verdicts = judge(&verifier, &["42", "41"]);
    assert_eq!(rewards(&verdicts), [0.5, 0.1]);
    assert_eq!(server.requests(), 2);
    for (name, value) in
        [("judge_cached", 1.0), ("judge_prompt_tokens", 0.0), ("judge_usd", 0.0), ("score", 10.0)]
    {
        assert_eq!(part(&verdicts[0], name), value, "{name}");
    }
    // Another question, and an answer that cannot be read by what is looked for now.
    options["temperature"] = json!(0.5);
    judge(&build("judge", &options), &["42"]);
    assert_eq!(server.requests(), 3);
    options["score"] = json!({"pattern": "Points: ([0-9]+)"});
    check_broken(&judge(&build("judge", &options), &["42"]), &["holds no score"]);
    assert_eq!(server.requests(), 6);
}

#[test]
fn a_cache_that_cannot_be_written_is_told_and_costs_no_verdict() {
    let file = tempfile::NamedTempFile::new().expect("a file");
    let server = sound();
    let mut options = options(&server);
    options["cache"] = json!(file.path().join("below"));
    let verifier = build("judge", &options);
    let error = verifier.prepare(&Preparation::default()).expect_err("no folder can be made");
    assert!(error.to_string().contains("no cache in"), "{error}");
    let verdicts = judge(&verifier, &["42"]);
    assert_eq!(rewards(&verdicts), [1.0]);
    assert_eq!(part(&verdicts[0], "judge_cache_failed"), 1.0);
}

#[test]
fn many_threads_share_a_judge_within_the_limit() {
    let folder = tempfile::tempdir().expect("a folder");
    let server =
        Server::start(|_, request| Answer::Late(Duration::from_millis(20), graded(request)));
    let mut options = options(&server);
    options["concurrency"] = json!(4);
    options["timeout_s"] = json!(10);
    options["cache"] = json!(folder.path());
    let verifier = build("judge", &options);
    thread::scope(|scope| {
        for thread in 0..8 {
            let verifier = &verifier;
            scope.spawn(move || {
                for round in 0..2 {
                    let own = format!("{thread} {round}");
                    let verdicts = judge(verifier, &["42", &own, "41", "42"]);
                    assert_eq!(rewards(&verdicts), [1.0, 0.2, 0.2, 1.0]);
                }
            });
        }
    });
    let most = server.most_in_flight();
    assert!((2..=4).contains(&most), "{most} at a time");
}

#[test]
fn a_template_that_cannot_be_rendered_is_told() {
    let server = sound();
    let mut options = options(&server);
    options["prompt"] = json!("{{ reference.rubric }}");
    check_broken(&judge(&build("judge", &options), &["42"]), &["template `prompt`", "grader"]);
    assert_eq!(server.requests(), 0);
}
