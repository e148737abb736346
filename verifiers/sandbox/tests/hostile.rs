//! Programs that attack the sandbox or their grade: all contained, none graded correct.

mod programs;

use programs::{LIMITS, programs, squares};
use tallow_sandbox::{Case, Job, Report, Sandbox, Tests, Workers};

fn grade(sandbox: &Sandbox, job: Job) -> Report {
    sandbox.grade(job).expect("the sandbox holds")
}

#[test]
fn no_forgery_is_graded_correct() {
    let sandbox = Sandbox::start(Workers::Threads, 2).expect("the sandbox starts");
    let forgeries = programs("forge");
    assert!(forgeries.len() >= 130, "{} forgeries", forgeries.len());
    for (name, program) in &forgeries {
        for every_test in [false, true] {
            let report = grade(&sandbox, Job { every_test, ..squares(program) });
            let Some(failure) = report.failure else { panic!("{name} got full marks") };
            println!("{name}: {failure} {} Mfuel", report.fuel / 1_000_000);
            assert!(report.passed < 2, "{name} passed two tests");
            assert!(failure.to_string().len() < 1400, "{name} floods the reason");
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
