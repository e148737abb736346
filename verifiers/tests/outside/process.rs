//! `process` against programs that fail in every way: one in shell that does what the reply tells it.

use std::{
    fs,
    path::Path,
    process::Command,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tallow_verifiers::{
    ContractCase, Outcome, Preparation, Verifier, Verifiers, contract::check_with_cases,
};

use super::{bounded, build, check_broken, entry, gold, judge, rewards, skipped};

/// Judges one item, or the second of two as well, by whether the reply is 42; other replies tell it what
/// to do instead. `$1` is a folder for its notes.
const SCORER: &str = r#"
echo $$ >>"$1/started"
while IFS= read -r line; do
    id=${line#*\"id\":}; id=${id%%,*}
    case $line in
    *'"items":[]'*) results= ;;
    *'"reply":"hang"'*) sleep 61 & echo $! >"$1/grandchild"; sleep 60 ;;
    *'"reply":"die"'*) echo 'the last words' >&2; exit 3 ;;
    *'"reply":"orphan"'*) sleep 61 & echo $! >"$1/grandchild"; exit 5 ;;
    *'"reply":"die once"'*)
        if [ -e "$1/died" ]; then results=1; else : >"$1/died"; exit 4; fi ;;
    *'"reply":"garbage"'*) echo 'debugging...'; results=1 ;;
    *'"reply":"flood"'*) while :; do printf 'xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx'; done ;;
    *'"reply":"many lines"'*) while :; do echo '{}'; done ;;
    *'"reply":"noise"'*)
        i=0; while [ $i -lt 20000 ]; do echo "noise $i on stderr" >&2; i=$((i + 1)); done; results=1 ;;
    *'"reply":"slowly"'*) while :; do printf ' '; sleep 0.05; done ;;
    *'"reply":"half"'*) printf '{"id":%s,' "$id"; exit 0 ;;
    *'"reply":"close"'*) exec >&-; sleep 60 ;;
    *'"reply":"other id"'*) id=99999; results=1 ;;
    *'"reply":"nan"'*) results=NaN ;;
    *'"reply":"unscorable"'*) results='{"unscorable":"no compiler"}' ;;
    *'"reply":"last"'*) printf '{"id":%s,"results":[1]}\n' "$id"; exit 0 ;;
    *'"reply":"42"'*'"reply":"41"'*) results=1,0 ;;
    *'"reply":"42"'*) results=1 ;;
    *) results=0 ;;
    esac
    printf '{"id":%s,"results":[%s]}\n' "$id" "$results"
done
"#;

fn options(notes: &Path) -> Value {
    json!({"command": ["/bin/sh", "-c", SCORER, "scorer", notes], "timeout_s": 0.5,
           "start_timeout_s": 10, "max_reply_bytes": 10_000})
}

fn lines(notes: &Path, name: &str) -> Vec<String> {
    let text = fs::read_to_string(notes.join(name)).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

fn lives(process: &str) -> bool {
    let state = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    // A zombie that nobody has waited for yet has ended.
    let mut signal = Command::new("/bin/sh");
    signal.args(["-c", &format!("kill -0 {process} 2>/dev/null")]);
    signal.status().expect("a shell").success() && !state.contains(") Z ")
}

/// `end` comes true soon.
#[track_caller]
fn soon(what: &str, end: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while !end() {
        assert!(Instant::now() < deadline, "{what}");
        thread::sleep(Duration::from_millis(10));
    }
}

#[track_caller]
fn check_fault(reply: &str, starts: usize, told: &[&str]) {
    let notes = tempfile::tempdir().expect("a folder");
    let verifier = build("process", &options(notes.path()));
    assert_eq!(rewards(&judge(&verifier, &["42", "41"])), [1.0, 0.0]);
    let clock = Instant::now();
    check_broken(&judge(&verifier, &[reply]), &["`process`", "`/bin/sh -c"]);
    check_broken(&judge(&verifier, &[reply]), told);
    assert!(clock.elapsed() < Duration::from_secs(8), "{reply}: {:?}", clock.elapsed());
    assert_eq!(rewards(&judge(&verifier, &["42", "41"])), [1.0, 0.0], "after {reply}");
    assert_eq!(lines(notes.path(), "started").len(), starts, "{reply}");
}

#[test]
fn a_program_that_hangs_is_killed_with_what_it_started() {
    check_fault("hang", 3, &["did not answer within 0.5 s"]);
    let notes = tempfile::tempdir().expect("a folder");
    let verifier = build("process", &options(notes.path()));
    check_broken(&judge(&verifier, &["hang"]), &[]);
    for process in [lines(notes.path(), "started"), lines(notes.path(), "grandchild")].concat() {
        soon("the whole group is gone", || !lives(&process));
    }
}

#[test]
fn a_program_that_dies_is_asked_once_more() {
    check_fault("die", 5, &["twice", "exit status: 3", "the last words"]);
    check_fault("half", 5, &["exit status: 0"]);
    check_fault("close", 5, &["closed its output"]);
    // A child of it holds its output open.
    check_fault("orphan", 5, &["exit status: 5"]);
    let notes = tempfile::tempdir().expect("a folder");
    let verifier = build("process", &options(notes.path()));
    assert_eq!(rewards(&judge(&verifier, &["die once"])), [1.0]);
    assert_eq!(lines(notes.path(), "started").len(), 2);
}

#[test]
fn a_program_that_ends_between_groups_is_started_again() {
    let notes = tempfile::tempdir().expect("a folder");
    let verifier = build("process", &options(notes.path()));
    for _ in 0..3 {
        assert_eq!(rewards(&judge(&verifier, &["last"])), [1.0]);
    }
    assert_eq!(lines(notes.path(), "started").len(), 3);
}

#[test]
fn garbage_is_told_and_judges_nothing() {
    check_fault("garbage", 3, &["debugging...", "stdout is for answers alone"]);
    check_fault("other id", 3, &["answered request 99999"]);
    check_fault("nan", 3, &["NaN and Infinity are not JSON"]);
    check_fault("many lines", 3, &["missing field `results`"]);
}

#[test]
fn floods_and_trickles_are_cut_off() {
    check_fault("flood", 3, &["longer than max_reply_bytes"]);
    check_fault("slowly", 3, &["did not answer within"]);
}

#[test]
fn noise_on_stderr_harms_nothing() {
    let notes = tempfile::tempdir().expect("a folder");
    let mut options = options(notes.path());
    options["timeout_s"] = json!(15);
    let verifier = build("process", &options);
    assert_eq!(rewards(&judge(&verifier, &["noise"])), [1.0]);
    check_broken(&judge(&verifier, &["garbage"]), &["noise 19999 on stderr"]);
}

#[test]
fn an_unscorable_item_costs_no_program() {
    let notes = tempfile::tempdir().expect("a folder");
    let verifier = build("process", &options(notes.path()));
    check_broken(&judge(&verifier, &["unscorable"]), &["no compiler", "/bin/sh"]);
    assert_eq!(rewards(&judge(&verifier, &["42"])), [1.0]);
    assert_eq!(lines(notes.path(), "started").len(), 1);
}

fn prepared(verifier: &Arc<dyn Verifier>) -> Result<(), String> {
    let verifier = Arc::clone(verifier);
    bounded(move || verifier.prepare(&Preparation::default())).map_err(|error| error.to_string())
}

#[test]
fn what_cannot_start_fails_when_it_is_prepared() {
    for (script, told) in [
        ("echo 'no module named torch' >&2; exit 7", "no module named torch"),
        ("exit 7", "exit status: 7"),
        ("sleep 60", "did not answer within 0.4 s"),
        ("cat; sleep 60", "at its start, to a request about no items"),
        ("cat >/dev/null", "did not answer within 0.4 s"),
    ] {
        let options = json!({"command": ["/bin/sh", "-c", script], "start_timeout_s": 0.4});
        let verifier = build("process", &options);
        let problem = prepared(&verifier).expect_err("it cannot start");
        assert!(problem.contains(told) && problem.contains(script), "{problem}");
        check_broken(&judge(&verifier, &["42"]), &[told]);
    }
}

#[test]
fn a_prepared_program_is_the_one_that_judges() {
    let notes = tempfile::tempdir().expect("a folder");
    let verifier = build("process", &options(notes.path()));
    assert_eq!(prepared(&verifier), Ok(()));
    assert_eq!(prepared(&verifier), Ok(()));
    assert_eq!(rewards(&judge(&verifier, &["42"])), [1.0]);
    assert_eq!(lines(notes.path(), "started").len(), 1);
}

#[test]
fn a_missing_program_is_a_fault_of_the_configuration() {
    let folder = tempfile::tempdir().expect("a folder");
    let verifiers = Verifiers::builtin().in_folder(folder.path());
    for program in ["no-such-program-anywhere", "./scorer", "bin/scorer"] {
        let fault = verifiers.build("process", json!({"command": [program]})).err();
        let fault = fault.expect("refused");
        assert_eq!(fault.key, "command[0]");
        assert!(fault.to_string().contains("scorer") || fault.to_string().contains(program));
    }
    // One that goes away later.
    let path = folder.path().join("scorer");
    fs::write(&path, "#!/bin/sh\n").expect("written");
    let verifier = verifiers.build("process", json!({"command": ["./scorer"]})).expect("there");
    fs::remove_file(&path).expect("removed");
    check_broken(&judge(&verifier, &["42"]), &["./scorer", "does not start"]);
}

#[test]
fn a_program_that_reads_nothing_blocks_nobody() {
    let script = "read -r line; echo '{\"id\":0,\"results\":[]}'; exec sleep 60";
    let options = json!({"command": ["/bin/sh", "-c", script], "timeout_s": 0.4});
    let verifier = build("process", &options);
    check_broken(&judge(&verifier, &[&"x".repeat(4 << 20)]), &["did not answer within"]);
}

#[test]
fn dropping_it_ends_its_programs() {
    let notes = tempfile::tempdir().expect("a folder");
    let mut options = options(notes.path());
    options["workers"] = json!(2);
    let verifier = build("process", &options);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| judge(&verifier, &["42"]));
        }
    });
    let started = lines(notes.path(), "started");
    assert!(started.iter().all(|it| lives(it)), "{started:?}");
    drop(verifier);
    for process in started {
        soon("it is gone", || !lives(&process));
    }
    // One that does not mind the end of its input.
    let script = format!(
        "echo $$ >'{}'; read -r line; echo '{{\"id\":0,\"results\":[]}}'; sleep 60; sleep 60",
        notes.path().join("deaf").display()
    );
    let verifier = build("process", &json!({"command": ["/bin/sh", "-c", script]}));
    assert_eq!(prepared(&verifier), Ok(()));
    bounded(move || drop(verifier));
    soon("the deaf one is gone", || !lives(&lines(notes.path(), "deaf")[0]));
}

#[test]
fn eight_threads_share_three_programs() {
    let notes = tempfile::tempdir().expect("a folder");
    let mut options = options(notes.path());
    options["workers"] = json!(3);
    options["timeout_s"] = json!(10);
    let verifier = build("process", &options);
    thread::scope(|scope| {
        for number in 0..8 {
            let verifier = &verifier;
            scope.spawn(move || {
                for _ in 0..20 {
                    assert_eq!(rewards(&judge(verifier, &["42", "41"])), [1.0, 0.0]);
                    assert_eq!(rewards(&judge(verifier, &["41"])), [0.0]);
                }
                // Among them some that fail, which must cost nobody else anything.
                if number % 4 == 0 {
                    check_broken(&judge(verifier, &["garbage"]), &["debugging"]);
                }
            });
        }
    });
    let started = lines(notes.path(), "started").len();
    assert!((1..=5).contains(&started), "{started} programs");
}

#[test]
fn the_example_in_python_meets_the_contract() {
    if Command::new("python3").arg("--version").output().is_err() {
        return skipped("python3 is not here, the example reward.py was not run");
    }
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
    let verifiers = Verifiers::builtin().in_folder(folder);
    let case = |reply: &str, outcome| ContractCase {
        options: json!({"command": ["python3", "reward.py"]}),
        reference: gold(),
        reply: reply.to_owned(),
        outcome,
    };
    let cases = [case(" 42\n", Outcome::Correct), case("43", Outcome::Incorrect)];
    assert_eq!(check_with_cases(&entry(&verifiers, "process"), &verifiers, &cases), Ok(()));
}
