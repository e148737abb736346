//! Programs that attack the sandbox or their grade: all contained, none graded correct.

use std::{fs, path::Path};

use tallow_sandbox::{Asserts, Case, Job, Limits, Report, Sandbox, Tests, Workers};

const LIMITS: Limits = Limits {
    fuel_millions: 2000,
    memory_mib: 256,
    output_kib: 64,
    recursion: 1000,
    backstop_s: 120,
};

fn programs(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(folder);
    let mut programs: Vec<_> = fs::read_dir(folder)
        .expect("the programs are there")
        .map(|entry| entry.expect("the folder can be read").path())
        .map(|path| {
            let name = path.file_stem().expect("it has a name").to_string_lossy().into_owned();
            (name, fs::read_to_string(&path).expect("the program can be read"))
        })
        .collect();
    programs.sort();
    programs
}

fn squares(program: &str) -> Job {
    let source = "assert f(2) == 4\nassert f(3) == 9".to_owned();
    let tests = Tests::Asserts(Asserts { source, ..Asserts::default() });
    Job { limits: LIMITS, ..Job::new(program, tests) }
}

fn grade(sandbox: &Sandbox, job: Job) -> Report {
    sandbox.grade(job).expect("the sandbox holds")
}

#[test]
fn no_forgery_is_graded_correct() {
    let sandbox = Sandbox::start(Workers::Threads, 2).expect("the sandbox starts");
    let forgeries = programs("forge");
    assert!(forgeries.len() >= 36, "{} forgeries", forgeries.len());
    for (name, program) in &forgeries {
        for every_test in [false, true] {
            let report = grade(&sandbox, Job { every_test, ..squares(program) });
            println!("{name}: {:?} {} Mfuel", report.failure, report.fuel / 1_000_000);
            assert!(report.failure.is_some(), "{name} got full marks");
            assert!(report.passed < 2, "{name} passed two tests");
            assert!(report.fuel <= LIMITS.fuel_millions * 1_000_000, "{name} used too much");
        }
        // The worker is none the worse for it.
        let honest = grade(&sandbox, squares("def f(x): return x * x"));
        assert_eq!((honest.failure, honest.passed), (None, 2), "after {name}");
    }
}

#[test]
fn hostile_programs_end_within_their_limits() {
    let sandbox = Sandbox::start(Workers::Threads, 2).expect("the sandbox starts");
    let hostile = programs("hostile");
    assert_eq!(hostile.len(), 28);
    for (name, program) in &hostile {
        let cases = vec![Case { stdin: "in1\nin2\n".to_owned(), stdout: "never\n".to_owned() }];
        let job = Job { limits: LIMITS, ..Job::new(program.as_str(), Tests::Cases(cases)) };
        let report = grade(&sandbox, job);
        let out: String = report.stdout.chars().take(60).collect();
        println!("{name}: {:?} {} Mfuel {out:?}", report.failure, report.fuel / 1_000_000);
        assert!(report.failure.is_some(), "{name} was graded correct");
        assert!(report.stdout.len() <= 64 << 10, "{name} wrote too much");
        assert!(report.fuel <= LIMITS.fuel_millions * 1_000_000, "{name} used too much");
    }
}
