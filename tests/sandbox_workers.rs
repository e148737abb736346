//! The sandbox's worker processes: the same verdicts as threads give, and a worker that is killed costs
//! the program it was judging its verdict, and nothing else.
#![cfg(all(feature = "sandbox", target_os = "linux"))]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::{Scene, text};

/// Programs of some tenths of a second each; every third is wrong.
fn cases() -> String {
    (0..60)
        .map(|index| {
            let wrong = index % 3 == 0;
            let program = format!(
                "def f(x):\n    for i in range(2_000_000): pass\n    return x * x + {}",
                u8::from(wrong)
            );
            json!({"id": index, "program": program, "tests": {"asserts": "assert f(2) == 4"}})
                .to_string()
                + "\n"
        })
        .collect()
}

fn verdicts(output: &str) -> Vec<(Value, Value)> {
    output
        .lines()
        .map(|it| serde_json::from_str::<Value>(it).expect("a line"))
        .map(|it| (it["verdict"].clone(), it["reason"].clone()))
        .collect()
}

/// Processes that `parent` has started.
fn children(parent: u32) -> Vec<u32> {
    let entries = std::fs::read_dir("/proc").expect("Linux");
    let processes = entries.flatten().filter_map(|it| it.file_name().to_str()?.parse().ok());
    let started_by = |process: &u32| {
        let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok()
    };
    processes.filter(|it| started_by(it) == Some(parent)).collect()
}

#[test]
fn a_killed_worker_costs_one_verdict() {
    let scene = Scene::new();
    scene.write("cases.jsonl", cases());
    let verify = |set: &[&str]| {
        let mut command = scene.tallow(["verify", "python", "--cases", "cases.jsonl"]);
        command.args(["--threads", "2", "--set", "workers=2"]).args(set);
        command
    };
    let processes = ["--set", "backend=processes"];
    let by_threads = verify(&[]).output().expect("the binary starts");
    let threads = verdicts(&text(&by_threads.stdout));
    assert_eq!(threads.len(), 60, "{}", text(&by_threads.stderr));
    assert!(threads.iter().enumerate().all(|(it, verdict)| verdict.0 == json!(it % 3 != 0)));
    let calm = verify(&processes).output().expect("the binary starts");
    assert_eq!(verdicts(&text(&calm.stdout)), threads);

    let child = verify(&processes).spawn().expect("the binary starts");
    let begun = Instant::now();
    let workers = loop {
        let workers = children(child.id());
        if workers.len() == 2 || begun.elapsed() > Duration::from_secs(60) {
            break workers;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    // Time enough for it to have a program.
    std::thread::sleep(Duration::from_millis(600));
    let killed = std::process::Command::new("kill").args(["-9", &workers[0].to_string()]).status();
    assert!(killed.is_ok_and(|it| it.success()), "the worker is there: {workers:?}");
    let output = child.wait_with_output().expect("it ends");
    let found = verdicts(&text(&output.stdout));
    assert_eq!(found.len(), 60, "{}", text(&output.stderr));
    let lost: Vec<_> = found.iter().zip(&threads).filter(|(one, other)| one != other).collect();
    let [(verdict, _)] = &lost[..] else { panic!("one is lost: {lost:?}") };
    assert!(verdict.0.is_null() && verdict.1.to_string().contains("worker died"), "{verdict:?}");
}
