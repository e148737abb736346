//! What every verifier must satisfy, as a check that authors run over their own.
//!
//! The built-in table is checked by `tests/contract.rs`; an outside author writes the same loop
//! over their own rows.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use crate::{
    answer_span::excerpt,
    attack::attack,
    error::VerifyError,
    registry::{ContractCase, VerifierEntry, Verifiers},
    transcript::{StopReason, Transcript},
    verifier::{Outcome, Reference, ReferenceKind, Verdict, Verifier},
};

/// Checks one row of a table; `verifiers` is the table that its children are built from.
///
/// Builds the verifier with the options of each of its [cases](crate::VerifierConfig::cases), then:
/// - every case gets its known outcome, with full reward exactly when it should;
/// - the same transcript gets the same verdict twice, alone and in a group;
/// - no hostile reply makes it panic, err or pay a reward that is not in `0.0..=1.0`;
/// - a reference of a kind it does not list is an error;
/// - no [exploit](crate::attack) gets a reward, of the classes that it does not accept by design.
///
/// # Errors
/// Every breach, one sentence each.
pub fn check_verifier(entry: &VerifierEntry, verifiers: &Verifiers) -> Result<(), Vec<String>> {
    check_with_cases(entry, verifiers, &entry.cases())
}

/// [`check_verifier`] by other cases than its own, for a verifier that
/// [needs](crate::VerifierConfig::NEEDS) what only the caller has: a server, a program.
///
/// Without cases, and if it needs something, only what is said of its options is checked.
///
/// # Errors
/// Every breach, one sentence each.
pub fn check_with_cases(
    entry: &VerifierEntry,
    verifiers: &Verifiers,
    cases: &[ContractCase],
) -> Result<(), Vec<String>> {
    let mut breaches = Vec::new();
    let mut breach = |what: String| breaches.push(format!("verifier `{}`: {what}", entry.name()));

    if entry.summary().is_empty() {
        breach("its summary is empty".to_owned());
    }
    // Some verifiers have no sensible defaults; they must say so, not panic.
    match caught(|| entry.build(entry.default_options(), verifiers)) {
        Ok(Err(fault)) if fault.problem.is_empty() => {
            breach("refuses its default options without saying why".to_owned());
        }
        Ok(_) => {}
        Err(panic) => breach(format!("building with default options panicked: {panic}")),
    }
    let with_unknown_key = serde_json::json!({ "no such key": 1 });
    if entry.build(with_unknown_key, verifiers).is_ok() {
        breach("accepts a key that it does not have".to_owned());
    }

    if entry.needs().is_some() && cases.is_empty() {
        return if breaches.is_empty() { Ok(()) } else { Err(breaches) };
    }
    if !cases.iter().any(|case| matches!(case.outcome, Outcome::Correct | Outcome::Graded)) {
        breach("none of its cases is correct or graded".to_owned());
    }
    for case in cases {
        let verifier = match entry.build(case.options.clone(), verifiers) {
            Ok(verifier) => verifier,
            Err(fault) => {
                breach(format!("refuses the options of its own case {}: {fault}", case.options));
                continue;
            }
        };
        let transcript = Transcript::of_reply(Vec::new(), case.reply.clone());
        match judged(verifier.as_ref(), &transcript, &case.reference) {
            Ok(verdict) if verdict.outcome != case.outcome => breach(format!(
                "with options {} judges {} {}, not {}",
                case.options,
                excerpt(&case.reply),
                verdict.outcome,
                case.outcome
            )),
            Ok(_) => {}
            Err(what) => breach(what),
        }
    }

    // Each set of options once is enough for what does not depend on the reply.
    let mut tried: Vec<(&Value, ReferenceKind)> = Vec::new();
    for case in cases {
        let key = (&case.options, case.reference.kind());
        if tried.contains(&key) {
            continue;
        }
        tried.push(key);
        let Ok(verifier) = entry.build(case.options.clone(), verifiers) else { continue };
        if verifier.reference_kinds().is_empty() {
            breach("judges no kind of reference".to_owned());
        }
        for reply in hostile_replies() {
            for stop in [StopReason::Finished, StopReason::Length] {
                let mut transcript = Transcript::of_reply(Vec::new(), reply.clone());
                transcript.stop = stop;
                if let Err(what) = judged(verifier.as_ref(), &transcript, &case.reference) {
                    breach(what);
                }
            }
        }
        let silent = Transcript { messages: Vec::new(), stop: StopReason::TurnLimit };
        if let Err(what) = judged(verifier.as_ref(), &silent, &case.reference) {
            breach(what);
        }
        for reference in one_reference_of_each_kind() {
            if verifier.reference_kinds().contains(&reference.kind()) {
                continue;
            }
            match caught(|| verifier.verify(&silent, &reference)) {
                Ok(Err(_)) => {}
                Ok(Ok(_)) => breach(format!(
                    "gives a verdict by a reference of kind {}, which it does not list",
                    reference.kind()
                )),
                Err(panic) => {
                    breach(format!(
                        "panicked at a reference of kind {}: {panic}",
                        reference.kind()
                    ));
                }
            }
        }
    }
    for breach_of_class in attacked(entry, verifiers, cases) {
        breach(breach_of_class);
    }
    if breaches.is_empty() { Ok(()) } else { Err(breaches) }
}

/// What the exploits got out of the verifier under the options and references of its cases.
fn attacked(entry: &VerifierEntry, verifiers: &Verifiers, cases: &[ContractCase]) -> Vec<String> {
    // Under the default options, where there are any: those of a case may be lax on purpose.
    let built: Vec<_> = cases
        .iter()
        .filter_map(|case| {
            let verifier = entry
                .build(entry.default_options(), verifiers)
                .or_else(|_| entry.build(case.options.clone(), verifiers));
            Some((verifier.ok()?, &case.reference))
        })
        .collect();
    // A few references tell: most classes do not look at them.
    let tasks: Vec<_> = built
        .iter()
        .step_by(built.len().div_ceil(12).max(1))
        .map(|(verifier, reference)| ("", *reference, verifier.as_ref()))
        .collect();
    let Ok(reports) = caught(|| attack(&tasks)) else {
        return vec!["panicked at an exploit".to_owned()];
    };
    let mut breaches = Vec::new();
    for report in reports {
        let by_design = entry.accepts().contains(&report.class);
        if let Some(example) = report.example.filter(|_| !by_design) {
            breaches.push(format!("rewards the exploit {example} of class {}", report.class));
        }
        if report.broken > 0 {
            breaches.push(format!("breaks at exploits of class {}", report.class));
        }
    }
    breaches
}

/// Replies that have broken parsers: verifiers and episodes must survive them all.
pub fn hostile_replies() -> Vec<String> {
    let mut replies: Vec<String> = [
        "",
        " \n\t",
        "\0",
        "\u{202e}12\u{202c}",
        "\u{feff}=7",
        "٣٤",
        "=",
        "==",
        "=>",
        "####",
        "\\boxed",
        "\\boxed{",
        "\\boxed{{}",
        "\\boxed{\\boxed{1}",
        "\\boxed{\\",
        "\\frac{1}{0}",
        "\\boxed{\\frac{1}{0}}",
        "<answer>",
        "</answer><answer>",
        "<answer></answer>",
        "<calc>",
        "<calc></calc>",
        "<calc>1/0</calc>",
        "</calc><calc>",
        "1e999999999",
        "\\boxed{1e-999999999}",
        "-",
        "1,",
        ",1",
        "0/0",
        "NaN",
        "inf",
        "{\"numbers\": 1}",
    ]
    .map(str::to_owned)
    .into();
    replies.push("x".repeat(1 << 20));
    replies.push("9".repeat(200_000));
    replies.push(format!("={}", "9".repeat(5_000)));
    replies.push(format!("\\boxed{{{}}}", "9".repeat(5_000)));
    replies.push("(".repeat(100_000));
    replies.push(format!("<calc>{}1{}</calc>", "(".repeat(50_000), ")".repeat(50_000)));
    replies.push("\\boxed{".repeat(20_000));
    replies.push("<answer>".repeat(20_000));
    replies.push("\\frac{1".repeat(20_000));
    replies.push("1-".repeat(50_000));
    replies.push("日本語=é\u{301}".repeat(1_000));
    replies
}

/// Judges one transcript three times and checks what holds of every verdict.
fn judged(
    verifier: &dyn Verifier,
    transcript: &Transcript,
    reference: &Reference,
) -> Result<Verdict, String> {
    let reply = excerpt(transcript.last_reply());
    let verify = || verifier.verify(transcript, reference);
    let grouped = || verifier.verify_group(std::slice::from_ref(transcript), reference);
    let panicked = |panic| format!("panicked at the reply {reply}: {panic}");
    let erred = |error: VerifyError| format!("erred at the reply {reply}: {error}");

    let first = caught(verify).map_err(panicked)?.map_err(erred)?;
    let second = caught(verify).map_err(panicked)?.map_err(erred)?;
    if first != second {
        return Err(format!("gives the reply {reply} two different verdicts"));
    }
    let mut group = caught(grouped).map_err(panicked)?;
    match (group.pop(), group.is_empty()) {
        (Some(Ok(third)), true) if third == first => {}
        _ => return Err(format!("judges the reply {reply} differently in a group of one")),
    }
    if !(0.0..=1.0).contains(&first.reward) {
        return Err(format!("pays {} for the reply {reply}, not 0 to 1", first.reward));
    }
    Ok(first)
}

fn one_reference_of_each_kind() -> [Reference; 4] {
    [
        Reference::None,
        Reference::Answer("1".to_owned()),
        Reference::Tests(Vec::new()),
        Reference::Custom(Value::Null),
    ]
}

/// Runs `work` and turns a panic into its message.
fn caught<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    // Whatever a panicking verifier left half done is not looked at again.
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        text.or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "something that is not text".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    };

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::{config_fault::ConfigFault, registry::VerifierConfig};

    /// Breaks every clause: pays 2, changes its mind, panics at NUL, takes any reference.
    #[derive(Default, Deserialize, Serialize)]
    #[serde(default)]
    struct RogueConfig {}

    struct Rogue {
        calls: AtomicU32,
    }

    impl VerifierConfig for RogueConfig {
        const NAME: &'static str = "rogue";
        const SUMMARY: &'static str = "";

        fn build(&self, _: &Verifiers) -> Result<Arc<dyn Verifier>, ConfigFault> {
            Ok(Arc::new(Rogue { calls: AtomicU32::new(0) }))
        }

        fn cases() -> Vec<ContractCase> {
            vec![ContractCase {
                options: Value::Null,
                reference: Reference::None,
                reply: "even".to_owned(),
                outcome: Outcome::Incorrect,
            }]
        }
    }

    impl Verifier for Rogue {
        fn name(&self) -> &str {
            "rogue"
        }

        fn reference_kinds(&self) -> &'static [ReferenceKind] {
            &[ReferenceKind::None]
        }

        fn verify(&self, transcript: &Transcript, _: &Reference) -> Result<Verdict, VerifyError> {
            match transcript.last_reply() {
                "\0" => panic!("met a NUL"),
                "==" => Ok(Verdict::graded(self.calls.fetch_add(1, Ordering::Relaxed) as f32)),
                "=>" => Ok(Verdict::graded(f32::NAN)),
                "=" => Ok(Verdict::graded(2.0)),
                _ => Ok(Verdict::correct()),
            }
        }
    }

    #[test]
    fn every_clause_is_checked() {
        let breaches = check_verifier(&VerifierEntry::of::<RogueConfig>(), &Verifiers::builtin())
            .expect_err("the rogue breaks the contract")
            .join("\n");
        for clause in [
            "its summary is empty",
            "accepts a key that it does not have",
            "none of its cases is correct or graded",
            "judges \"even\" correct, not incorrect",
            "panicked at the reply \"\\0\": met a NUL",
            "gives the reply \"==\" two different verdicts",
            "pays 2 for the reply \"=\"",
            "gives a verdict by a reference of kind tests",
        ] {
            assert!(breaches.contains(clause), "`{clause}` is not among\n{breaches}");
        }
    }
}
