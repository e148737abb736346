//! The same program gets the same report, whoever ran before it on its worker and however many
//! workers there are; and what ran leaves nothing behind.

mod programs;

use sha2::{Digest, Sha256};

use programs::{LIMITS, programs, squares};
use tallow_sandbox::{Case, Job, Report, Sandbox, Tests, Workers};

/// Every program of the tests, and honest ones between them: what each prints, and what it does
/// under tests.
fn jobs() -> Vec<Job> {
    let honest = [
        "def f(x):\n    return x * x",
        "import random, time\nprint(random.random(), hash('a'), time.time(), id(object()))\nf = lambda x: x * x",
        "import os\nprint(os.urandom(8), {'b', 'a', 'c'})\ndef f(x): return sum([x] * x)",
        "print(input()[::-1])",
    ];
    let mut jobs = Vec::new();
    for (index, (_, program)) in
        programs("forge").into_iter().chain(programs("hostile")).enumerate()
    {
        let cases = vec![Case { stdin: "in1\nin2\n".to_owned(), stdout: "never\n".to_owned() }];
        for program in [program.as_str(), honest[index % honest.len()]] {
            jobs.push(squares(program));
            jobs.push(Job { limits: LIMITS, ..Job::new(program, Tests::Cases(cases.clone())) });
        }
    }
    jobs
}

fn graded(workers: u32, jobs: &[Job]) -> Vec<Report> {
    let sandbox = Sandbox::start(Workers::Threads, workers).expect("the sandbox starts");
    // More jobs than the queue takes: another thread hands them in.
    std::thread::scope(|scope| {
        let (hand, queued) = std::sync::mpsc::channel();
        let sandbox = &sandbox;
        scope.spawn(move || {
            for job in jobs {
                hand.send(sandbox.submit(job.clone())).expect("somebody waits");
            }
        });
        queued.iter().map(|it| Sandbox::wait(&it).expect("a report")).collect()
    })
}

#[test]
fn reports_do_not_depend_on_what_ran_before_or_beside() {
    let jobs = jobs();
    let alone = graded(1, &jobs);
    let mut backwards = jobs.clone();
    backwards.reverse();
    let mut two = graded(2, &backwards);
    two.reverse();
    // To compare with another run or another machine.
    println!("reports: {:02x?}", &Sha256::digest(format!("{alone:?}"))[..8]);
    for ((job, one), other) in jobs.iter().zip(&alone).zip(&two) {
        assert_eq!(one, other, "{}", job.program);
    }
}

/// Resident memory of this process, in MiB.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").expect("Linux");
    text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") / 256
}

#[test]
#[cfg(target_os = "linux")]
fn memory_returns_to_its_level() {
    let sandbox = Sandbox::start(Workers::Threads, 1).expect("the sandbox starts");
    let hungry = [
        "def f(x): return [0] * 3_000_000",
        "xs = [bytearray(1 << 20) for _ in range(40)]\ndef f(x): return 1",
        "def f(x): return {i: str(i) for i in range(20_000)}",
        "def f(x): return f(x)",
        "import os\ndef f(x): os._exit(1)",
        "def f(x):\n    for _ in range(3000): print('x' * 100)\n    return 4",
    ];
    let round = |count: usize| {
        for index in 0..count {
            let report = sandbox.grade(squares(hungry[index % hungry.len()])).expect("a report");
            assert!(report.failure.is_some());
        }
    };
    round(60);
    let before = resident();
    round(600);
    let after = resident();
    assert!(after <= before + 64, "{before} MiB before, {after} MiB after");
}
