//! What the numbers before and after RL say, as a table and as sentences.
//!
//! A change counts where the 95 % intervals before and after do not overlap, which is stricter
//! than a test of the difference. Without intervals no change is claimed to be more than noise.

use std::{collections::BTreeMap, ops::RangeInclusive};

use super::run_folder::{Variant, text};

/// Factor of the mean length that counts as no change.
const SAME_LENGTH: RangeInclusive<f64> = 0.87..=1.15;

/// How far the accuracy after RL may exceed pass@k before RL where all of it was within reach.
const WITHIN_REACH: f64 = 0.05;

/// Share of truncated replies from which the accuracy and the lengths understate.
const MANY_TRUNCATED: f64 = 0.02;

/// Difference in nats between sampler and learner from which updates are off-policy by mistake.
const LARGE_MISMATCH: f64 = 0.02;

/// A measured share with its 95 % interval, where one was recorded.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Estimate {
    pub(super) value: f64,
    pub(super) interval: Option<(f64, f64)>,
}

/// One evaluation of a variant, or the mean of those of its seeds.
#[derive(Clone, Debug, Default)]
pub(super) struct Evaluation {
    pub(super) step: f64,
    pub(super) accuracy: Option<Estimate>,
    pub(super) greedy: Option<f64>,
    pub(super) tokens: Option<f64>,
    pub(super) tokens_right: Option<f64>,
    pub(super) tokens_wrong: Option<f64>,
    pub(super) truncated: Option<f64>,
    /// By k.
    pub(super) pass: BTreeMap<u32, Estimate>,
}

/// One stage of variants that differ in their seed only.
#[derive(Clone, Debug)]
pub(super) struct Group {
    /// The variant, and its stage where several were evaluated.
    pub(super) name: String,
    pub(super) stage: String,
    pub(super) role: Role,
    pub(super) note: Option<String>,
    pub(super) seeds: usize,
    pub(super) before: Evaluation,
    /// `None` while there is one evaluation only.
    pub(super) after: Option<Evaluation>,
    /// Numbers of training that deserve a warning, as sentences.
    warnings: Vec<String>,
}

/// What a group is there for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Role {
    Main,
    Control,
}

/// The verdict on a run.
#[derive(Clone, Debug)]
pub(super) struct Verdict {
    /// The groups that were evaluated, in the order of the run.
    pub(super) groups: Vec<Group>,
    /// What RL did and did not teach, by group: (name, sentences).
    pub(super) findings: Vec<(String, Vec<String>)>,
    /// How far to trust it.
    pub(super) caveats: Vec<String>,
}

/// How an estimate moved.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Change {
    Rose,
    Fell,
    Unclear,
}

impl Verdict {
    pub(super) fn of(variants: &[Variant]) -> Self {
        let groups = groups(variants);
        let mut findings = Vec::new();
        for group in &groups {
            let mut sentences = match (group.role, &group.after) {
                (_, None) => vec![once(&group.before)],
                (Role::Main, Some(after)) => main_findings(group, after, &groups),
                (Role::Control, Some(after)) => control_findings(group, after, &groups),
            };
            sentences.extend(group.warnings.clone());
            findings.push((group.name.clone(), sentences));
        }
        let caveats = caveats(&groups);
        Self { groups, findings, caveats }
    }

    /// The table: a header, then rows of (quantity, one cell for each group).
    pub(super) fn table(&self) -> (Vec<String>, Vec<(String, Vec<String>)>) {
        let title = |group: &Group| match group.seeds {
            1 => group.name.clone(),
            seeds => format!("{} (mean of {seeds} seeds)", group.name),
        };
        let header = self.groups.iter().map(title).collect();
        let mut rows = Vec::new();
        let mut row = |name: String, cell: &dyn Fn(&Evaluation) -> Option<String>| {
            let cells: Vec<_> = self.groups.iter().map(|group| change_cell(group, cell)).collect();
            if cells.iter().any(|cell| cell != "–") {
                rows.push((name, cells));
            }
        };
        let tokens = |tokens: Option<f64>| tokens.map(|tokens| format!("{tokens:.1}"));
        row("sampled accuracy".into(), &|e| e.accuracy.map(with_interval));
        row("greedy accuracy".into(), &|e| e.greedy.map(share));
        row("mean reply length, tokens".into(), &|e| tokens(e.tokens));
        row("length of right replies".into(), &|e| tokens(e.tokens_right));
        row("length of wrong replies".into(), &|e| tokens(e.tokens_wrong));
        row("truncated replies".into(), &|e| e.truncated.map(share));
        let mut ks: Vec<u32> =
            self.groups.iter().flat_map(|group| group.before.pass.keys().copied()).collect();
        ks.sort_unstable();
        ks.dedup();
        for k in ks {
            row(format!("pass@{k}"), &|e| e.pass.get(&k).copied().map(with_interval));
        }
        row("evaluated at step".into(), &|e| Some(format!("{:.0}", e.step)));
        (header, rows)
    }
}

/// The evaluations of one stage, in order of their steps.
#[derive(Clone, Debug)]
pub(super) struct StageEvaluations {
    pub(super) stage: String,
    /// Whether the first and the last tell what RL did: the stage has rollouts.
    pub(super) of_rl: bool,
    pub(super) evaluations: Vec<Evaluation>,
}

/// The evaluations of a variant by stage, in the order of the stages. Every stage has its own
/// tasks, so those of one are not compared with those of another, unless there are none of RL
/// itself: then stages that only evaluate stand before and after it.
pub(super) fn evaluations(variant: &Variant) -> Vec<StageEvaluations> {
    let mut stages: Vec<StageEvaluations> = Vec::new();
    for name in variant.stages().into_iter().filter(|it| !variant.learns_from_pairs(it)) {
        let evaluations = evaluations_of(variant, name);
        if !evaluations.is_empty() {
            let of_rl = has_rollouts(variant, name);
            stages.push(StageEvaluations { stage: name.to_owned(), of_rl, evaluations });
        }
    }
    if !stages.is_empty() && stages.iter().all(|it| !it.of_rl) {
        let trained = variant.stages().into_iter().find(|stage| has_rollouts(variant, stage));
        let stage = trained.map_or_else(|| stages[0].stage.clone(), str::to_owned);
        let evaluations = stages.into_iter().flat_map(|it| it.evaluations).collect();
        return vec![StageEvaluations { stage, of_rl: true, evaluations }];
    }
    stages
}

fn has_rollouts(variant: &Variant, stage: &str) -> bool {
    let mut lines = variant.lines.iter().filter(|line| line.stage == stage);
    lines.any(|line| line.values.keys().any(|key| key.starts_with("rollout/")))
}

/// Lines that only hold the loss of a supervised stage are none.
fn evaluations_of(variant: &Variant, stage: &str) -> Vec<Evaluation> {
    let mut evaluations: Vec<Evaluation> = Vec::new();
    let is_evaluation = |key: &String| {
        key == "eval/accuracy" || key == "eval/greedy_accuracy" || key.starts_with("eval/pass@")
    };
    let lines = variant.lines.iter().filter(|line| line.stage == stage);
    for line in lines.filter(|line| line.values.keys().any(is_evaluation)) {
        // A resumed run evaluates again.
        while evaluations.last().is_some_and(|last| last.step >= line.step) {
            evaluations.pop();
        }
        let value = |key: &str| line.values.get(&format!("eval/{key}")).copied();
        let estimate = |key: &str| {
            let bounds = value(&format!("{key}_low")).zip(value(&format!("{key}_high")));
            Some(Estimate { value: value(key)?, interval: bounds })
        };
        let ks = line.values.keys().filter_map(|key| key.strip_prefix("eval/pass@")?.parse().ok());
        evaluations.push(Evaluation {
            step: line.step,
            accuracy: estimate("accuracy"),
            greedy: value("greedy_accuracy"),
            tokens: value("reply_tokens_mean"),
            tokens_right: value("reply_tokens_right"),
            tokens_wrong: value("reply_tokens_wrong"),
            truncated: value("truncated_share"),
            pass: ks.filter_map(|k| Some((k, estimate(&format!("pass@{k}"))?))).collect(),
        });
    }
    evaluations
}

/// A variant and the evaluations of one of its stages.
type Seed<'a> = (&'a Variant, StageEvaluations);

fn groups(variants: &[Variant]) -> Vec<Group> {
    let mut members: Vec<(String, Vec<Seed<'_>>)> = Vec::new();
    for variant in variants {
        let stages = evaluations(variant);
        let several = stages.len() > 1;
        for evaluated in stages {
            let name = match several {
                true => format!("{}, {}", variant.group(), evaluated.stage),
                false => variant.group().to_owned(),
            };
            match members.iter_mut().find(|(known, _)| *known == name) {
                Some((_, group)) => group.push((variant, evaluated)),
                None => members.push((name, vec![(variant, evaluated)])),
            }
        }
    }
    let several = variants.iter().any(|variant| variant.group() != variants[0].group());
    let group = |(name, members): (String, Vec<Seed<'_>>)| {
        let (first, stage) = (members[0].0, members[0].1.stage.clone());
        let role = match text(&first.info, "role") {
            Some("control") => Role::Control,
            Some(_) => Role::Main,
            None if several && is_control_name(first.group()) => Role::Control,
            None => Role::Main,
        };
        let all = || members.iter().map(|(_, stage)| &stage.evaluations);
        let before: Vec<_> = all().map(|evaluated| &evaluated[0]).collect();
        let after: Vec<_> = all().filter_map(|evaluated| evaluated[1..].last()).collect();
        Group {
            name,
            role,
            note: text(&first.info, "note").map(str::to_owned),
            seeds: members.len(),
            before: mean(&before),
            after: (after.len() == members.len()).then(|| mean(&after)),
            warnings: members.iter().flat_map(|(variant, _)| warnings(variant, &stage)).collect(),
            stage,
        }
    };
    members.into_iter().map(group).collect()
}

/// The group of `groups` that is `wanted`, if there is one of the same stage; else any.
fn counterpart<'a>(
    stage: &str,
    groups: &'a [Group],
    wanted: impl Fn(&Group) -> bool,
) -> Option<&'a Group> {
    let same = groups.iter().find(|other| other.stage == stage && wanted(other));
    same.or_else(|| groups.iter().find(|other| wanted(other)))
}

/// Of a stage that was evaluated once.
fn once(evaluation: &Evaluation) -> String {
    match evaluation.accuracy {
        Some(accuracy) => format!(
            "Evaluated once only, so there is no change to report: sampled accuracy {}.",
            with_interval(accuracy)
        ),
        None => "Evaluated once only, so there is no change to report.".to_owned(),
    }
}

/// Names by which experiments call their controls where run.json does not say.
fn is_control_name(name: &str) -> bool {
    name.contains("random") || name.contains("control") || name.starts_with("no_")
}

/// The mean over seeds; its interval spans those of all seeds.
fn mean(evaluations: &[&Evaluation]) -> Evaluation {
    if let [only] = evaluations {
        return (*only).clone();
    }
    let number = |pick: &dyn Fn(&Evaluation) -> Option<f64>| {
        let values: Option<Vec<f64>> =
            evaluations.iter().map(|evaluation| pick(evaluation)).collect();
        values.map(|values| values.iter().sum::<f64>() / values.len() as f64)
    };
    let estimate = |pick: &dyn Fn(&Evaluation) -> Option<Estimate>| {
        let bound = |fold: fn(f64, f64) -> f64, side: fn((f64, f64)) -> f64| {
            let bounds: Option<Vec<_>> =
                evaluations.iter().map(|e| pick(e)?.interval.map(side)).collect();
            bounds?.into_iter().reduce(fold)
        };
        let value = number(&|e| pick(e).map(|estimate| estimate.value))?;
        let interval = bound(f64::min, |(low, _)| low).zip(bound(f64::max, |(_, high)| high));
        Some(Estimate { value, interval })
    };
    let ks = evaluations[0].pass.keys();
    Evaluation {
        step: evaluations.iter().map(|e| e.step).fold(0.0, f64::max),
        accuracy: estimate(&|e| e.accuracy),
        greedy: number(&|e| e.greedy),
        tokens: number(&|e| e.tokens),
        tokens_right: number(&|e| e.tokens_right),
        tokens_wrong: number(&|e| e.tokens_wrong),
        truncated: number(&|e| e.truncated),
        pass: ks.filter_map(|k| Some((*k, estimate(&|e| e.pass.get(k).copied())?))).collect(),
    }
}

fn main_findings(group: &Group, after: &Evaluation, groups: &[Group]) -> Vec<String> {
    let before = &group.before;
    let mut sentences = Vec::new();
    let Some((was, is)) = before.accuracy.zip(after.accuracy) else {
        return vec!["Sampled accuracy was not measured before and after.".to_owned()];
    };
    let change = change(was, is);
    sentences.push(match change {
        Change::Rose => format!("Sampled accuracy rose from {} to {}.", with_interval(was), with_interval(is)),
        Change::Fell => format!("Sampled accuracy fell from {} to {}.", with_interval(was), with_interval(is)),
        Change::Unclear if was.interval.is_none() || is.interval.is_none() => format!(
            "Sampled accuracy went from {} to {}; without intervals that cannot be told from noise.",
            with_interval(was),
            with_interval(is)
        ),
        Change::Unclear => format!(
            "Sampled accuracy went from {} to {}, which is within what chance explains.",
            with_interval(was),
            with_interval(is)
        ),
    });
    if change == Change::Rose {
        sentences.extend(reach(before, after, was, is));
        let baseline = counterpart(&group.stage, groups, |other| other.name.contains("no_chain"));
        if let Some((k, pass)) = baseline.and_then(|other| largest(&other.before)) {
            sentences.push(format!(
                "To read pass@{k} aright: the control without chains reaches {} before RL, so that \
                 much comes from repeated guessing.",
                share(pass.value)
            ));
        }
        if let Some((greedy_was, greedy_is)) = before.greedy.zip(after.greedy)
            && greedy_was <= was.value + 0.02
            && greedy_is > is.value - 0.1
        {
            sentences.push(format!(
                "Greedy decoding did not show the skill before ({}) and does after ({}).",
                share(greedy_was),
                share(greedy_is)
            ));
        }
    }
    sentences.extend(length(before, after, change));
    sentences.extend(truncation(after));
    sentences
}

/// Whether RL made the model do more often what it could do, or do what it could not.
fn reach(before: &Evaluation, after: &Evaluation, was: Estimate, is: Estimate) -> Vec<String> {
    let mut sentences = Vec::new();
    let Some((k, pass_was)) = largest(before).filter(|(k, _)| *k > 1) else {
        let missing = "pass@k for a k above 1 was not measured before RL, so this run cannot tell \
                       an amplified skill from a new one.";
        return vec![missing.to_owned()];
    };
    if pass_was.value + WITHIN_REACH >= is.value {
        sentences.push(format!(
            "RL amplified a skill the starting model already had rarely: pass@{k} was {} before, \
             at a single-try accuracy of {}.",
            share(pass_was.value),
            share(was.value)
        ));
    } else {
        sentences.push(format!(
            "Single tries now solve more ({}) than {k} tries did before RL (pass@{k} {}), so the \
             gain is more than choosing among replies the starting model gave.",
            share(is.value),
            share(pass_was.value)
        ));
    }
    let Some(&pass_is) = after.pass.get(&k) else { return sentences };
    let (from, to) = (with_interval(pass_was), with_interval(pass_is));
    sentences.push(match change(pass_was, pass_is) {
        Change::Rose => format!(
            "pass@{k} rose beyond its interval, from {from} to {to}: some problems that \
             {k} tries did not solve before became solvable within {k}."
        ),
        Change::Fell => format!(
            "pass@{k} fell from {from} to {to}: some problems solved now and then before are no \
             longer solved within {k} tries."
        ),
        Change::Unclear => format!(
            "pass@{k} went from {from} to {to}, intervals that overlap: there is no sign that new \
             problems became solvable."
        ),
    });
    sentences
}

fn length(before: &Evaluation, after: &Evaluation, change: Change) -> Vec<String> {
    let mut sentences = Vec::new();
    let Some((was, is)) = before.tokens.zip(after.tokens).filter(|(was, _)| *was > 0.0) else {
        return sentences;
    };
    let factor = is / was;
    let lengths = format!("from {was:.1} to {is:.1} tokens");
    sentences.push(match change {
        _ if SAME_LENGTH.contains(&factor) => {
            format!("Reply length hardly changed ({lengths}).")
        }
        Change::Rose if factor > 1.0 => {
            format!("Replies grew {lengths} together with the accuracy.")
        }
        Change::Rose => format!("Replies shrank {lengths} while the accuracy rose."),
        _ if factor > 1.0 => {
            format!(
                "Replies grew {lengths} without a gain in accuracy: length alone proves nothing."
            )
        }
        _ => format!("Replies shrank {lengths} without a gain in accuracy."),
    });
    if let Some((right, wrong)) = before.tokens_right.zip(before.tokens_wrong)
        && change == Change::Rose
        && factor > *SAME_LENGTH.end()
        && right > wrong * 1.5
    {
        sentences.push(format!(
            "Right replies were longer than wrong ones before RL already ({right:.1} against \
             {wrong:.1} tokens): RL chose the long kind of reply more often, it did not invent it."
        ));
    }
    sentences
}

fn truncation(after: &Evaluation) -> Option<String> {
    let truncated = after.truncated.filter(|&truncated| truncated > MANY_TRUNCATED)?;
    Some(format!(
        "{} of the replies after RL were cut at the token limit, so accuracy and length understate.",
        percent(truncated)
    ))
}

fn control_findings(group: &Group, after: &Evaluation, groups: &[Group]) -> Vec<String> {
    let Some((was, is)) = group.before.accuracy.zip(after.accuracy) else {
        return vec!["This control was not measured before and after.".to_owned()];
    };
    let change = change(was, is);
    let (from, to) = (with_interval(was), with_interval(is));
    let moved = match change {
        Change::Rose => format!("rose from {from} to {to}"),
        Change::Fell => format!("did not improve: it fell from {from} to {to}"),
        Change::Unclear => {
            format!("did not improve by more than its interval (from {from} to {to})")
        }
    };
    let main = counterpart(&group.stage, groups, |other| other.role == Role::Main);
    let gain =
        |group: &Group| Some(group.after.as_ref()?.accuracy?.value - group.before.accuracy?.value);
    let main_gain = main.and_then(gain).unwrap_or_default();
    let main_name = main.map_or("the main variant", |main| main.name.as_str());
    let random_reward = group.name.contains("random");
    let no_chains = group.name.contains("no_chain");
    let meaning = match change {
        Change::Rose if is.value - was.value > main_gain / 2.0 => {
            format!(
                "A control that gains this much means that the gain of {main_name} cannot be \
                 credited to what the control lacks."
            )
        }
        Change::Rose => format!(
            "The control gained too, though less than half of what {main_name} did: only the \
             difference counts."
        ),
        _ if random_reward => format!(
            "So the gain of {main_name} comes from the reward being right, not from the act of \
             training."
        ),
        _ if no_chains => {
            "So RL did not invent the chain by itself: without chains in the starting model there \
             was nothing to amplify."
                .to_owned()
        }
        _ => format!("So what this control lacks is needed for the gain of {main_name}."),
    };
    let what = if random_reward {
        "Control: with rewards drawn at random, accuracy"
    } else if no_chains {
        "Control: from a starting model that never saw chains, accuracy"
    } else {
        "Control: accuracy"
    };
    let mut sentences = vec![format!("{what} {moved}."), meaning];
    // Nothing follows from a control where the main variant gained nothing, or nobody can tell.
    let main_rose = main.and_then(|main| {
        Some(self::change(main.before.accuracy?, main.after.as_ref()?.accuracy?) == Change::Rose)
    });
    if main_rose != Some(true) || was.interval.is_none() || is.interval.is_none() {
        sentences.truncate(1);
    }
    sentences.extend(length(&group.before, after, change));
    sentences.extend(truncation(after));
    sentences
}

/// What in the metrics of training should make a reader careful.
fn warnings(variant: &Variant, stage: &str) -> Vec<String> {
    let values = |key: &str| {
        let curves = variant.curves(key).into_iter().filter(|curve| curve.stage == stage);
        curves.flat_map(|curve| curve.points).map(|(_, value)| value).collect::<Vec<_>>()
    };
    let mut warnings = Vec::new();
    for (key, what) in
        [("rollout/verifier_errors", "a verifier"), ("rollout/env_errors", "an environment")]
    {
        let errors: f64 = values(key).iter().sum();
        if errors > 0.0 {
            warnings.push(format!("{errors:.0} replies met an error of {what}: see its log."));
        }
    }
    let mismatch = values("learner/sampler_mismatch_nats").into_iter().fold(0.0, f64::max);
    if mismatch > LARGE_MISMATCH {
        warnings.push(format!(
            "Sampler and learner disagreed by up to {mismatch:.3} nats per token: more than \
             rounding, so updates were not quite on-policy."
        ));
    }
    warnings
}

fn caveats(groups: &[Group]) -> Vec<String> {
    let mut caveats = Vec::new();
    if groups.is_empty() {
        caveats.push("No evaluation was recorded, so there is no verdict.".to_owned());
        return caveats;
    }
    let single: Vec<_> = groups.iter().filter(|group| group.seeds == 1).collect();
    if single.len() == groups.len() {
        caveats.push(
            "One seed each: intervals cover the draw of problems and replies, not that of \
                      the training run."
                .to_owned(),
        );
    } else {
        caveats.push(
            "Over several seeds the value is the mean, and the interval spans those of \
                      all seeds."
                .to_owned(),
        );
    }
    let estimates = groups.iter().filter_map(|group| group.before.accuracy);
    if estimates.clone().any(|estimate| estimate.interval.is_none()) {
        caveats
            .push("Where no interval was recorded, a change cannot be told from noise.".to_owned());
    }
    if groups.iter().any(|group| group.before.step > 0.0) {
        caveats.push(
            "The first evaluation came after RL had begun: \"before\" is not quite the \
                      starting model."
                .to_owned(),
        );
    }
    caveats.push(
        "Brackets hold 95 % intervals; a change counts where those before and after do not overlap.".to_owned(),
    );
    caveats
}

fn change(was: Estimate, is: Estimate) -> Change {
    match was.interval.zip(is.interval) {
        Some(((_, high), (low, _))) if low > high => Change::Rose,
        Some(((low, _), (_, high))) if high < low => Change::Fell,
        _ => Change::Unclear,
    }
}

fn largest(evaluation: &Evaluation) -> Option<(u32, Estimate)> {
    evaluation.pass.last_key_value().map(|(&k, &estimate)| (k, estimate))
}

fn change_cell(group: &Group, cell: &dyn Fn(&Evaluation) -> Option<String>) -> String {
    let dash = || "–".to_owned();
    let before = cell(&group.before);
    match &group.after {
        None => before.unwrap_or_else(dash),
        Some(after) => match (before, cell(after)) {
            (None, None) => dash(),
            (before, after) => {
                format!("{} → {}", before.unwrap_or_else(dash), after.unwrap_or_else(dash))
            }
        },
    }
}

fn share(value: f64) -> String {
    format!("{value:.3}")
}

fn percent(value: f64) -> String {
    format!("{:.1} %", value * 100.0)
}

fn with_interval(estimate: Estimate) -> String {
    match estimate.interval {
        Some((low, high)) => format!("{:.3} [{low:.3}, {high:.3}]", estimate.value),
        None => share(estimate.value),
    }
}

#[cfg(test)]
mod tests {
    use super::super::run_folder::Line;
    use super::*;

    fn estimate(value: f64) -> Estimate {
        Estimate { value, interval: Some((value - 0.02, value + 0.02)) }
    }

    fn group(
        name: &str,
        role: Role,
        accuracy: (f64, f64),
        pass: (f64, f64),
        tokens: (f64, f64),
    ) -> Group {
        let evaluation = |accuracy: f64, pass: f64, tokens: f64| Evaluation {
            accuracy: Some(estimate(accuracy)),
            tokens: Some(tokens),
            pass: [(16, estimate(pass))].into(),
            ..Evaluation::default()
        };
        Group {
            name: name.to_owned(),
            stage: "rl".to_owned(),
            role,
            note: None,
            seeds: 1,
            before: evaluation(accuracy.0, pass.0, tokens.0),
            after: Some(evaluation(accuracy.1, pass.1, tokens.1)),
            warnings: Vec::new(),
        }
    }

    fn said(groups: &[Group]) -> String {
        let group = groups.last().unwrap();
        let after = group.after.as_ref().unwrap();
        match group.role {
            Role::Main => main_findings(group, after, groups).join(" "),
            Role::Control => control_findings(group, after, groups).join(" "),
        }
    }

    #[test]
    fn a_high_pass_at_k_before_rl_is_called_amplification() {
        let said = said(&[group("main", Role::Main, (0.2, 0.98), (0.965, 0.99), (5.0, 19.0))]);
        assert!(said.contains("amplified a skill"), "{said}");
        assert!(said.contains("no sign that new problems"), "{said}");
        assert!(said.contains("grew from 5.0 to 19.0 tokens together"), "{said}");
    }

    #[test]
    fn a_low_pass_at_k_that_rises_is_called_new() {
        let said = said(&[group("main", Role::Main, (0.1, 0.8), (0.3, 0.9), (9.0, 9.1))]);
        assert!(said.contains("more than choosing"), "{said}");
        assert!(said.contains("became solvable"), "{said}");
        assert!(said.contains("hardly changed"), "{said}");
    }

    #[test]
    fn growth_without_gain_is_called_nothing() {
        let said = said(&[group("main", Role::Main, (0.259, 0.26), (0.9, 0.9), (5.3, 11.8))]);
        assert!(said.contains("length alone proves nothing"), "{said}");
        assert!(!said.contains("amplified"), "{said}");
    }

    #[test]
    fn a_control_that_stays_credits_the_reward_and_one_that_gains_warns() {
        let main = || group("main", Role::Main, (0.2, 0.98), (0.96, 1.0), (5.0, 19.0));
        let fell = group("random_reward", Role::Control, (0.2, 0.1), (0.96, 0.9), (5.0, 3.0));
        assert!(said(&[main(), fell]).contains("comes from the reward being right"));
        let rose = group("random_reward", Role::Control, (0.2, 0.9), (0.96, 1.0), (5.0, 19.0));
        assert!(said(&[main(), rose]).contains("cannot be credited"));
    }

    fn variant(lines: &[(&str, f64, &str, f64)]) -> Variant {
        let line = |&(stage, step, key, value): &(&str, f64, &str, f64)| Line {
            step,
            stage: stage.to_owned(),
            values: [(key.to_owned(), value)].into(),
        };
        Variant {
            name: "main".to_owned(),
            info: serde_json::Map::new(),
            dir: std::path::PathBuf::new(),
            lines: lines.iter().map(line).collect(),
        }
    }

    #[test]
    fn stages_are_not_compared_with_each_other() {
        let accuracy = "eval/accuracy";
        let run = variant(&[
            ("easy", 0.0, accuracy, 0.1),
            ("easy", 1.0, "rollout/accuracy", 0.1),
            ("easy", 9.0, accuracy, 0.9),
            ("hard", 0.0, accuracy, 0.2),
            ("hard", 1.0, "rollout/accuracy", 0.1),
            ("hard", 9.0, accuracy, 0.3),
            ("other tasks", 0.0, accuracy, 0.05),
        ]);
        let (header, rows) = Verdict::of(&[run]).table();
        assert_eq!(header, ["main, easy", "main, hard", "main, other tasks"]);
        assert_eq!(rows[0].1, ["0.100 → 0.900", "0.200 → 0.300", "0.050"]);
        assert_eq!(rows[1].1, ["0 → 9", "0 → 9", "0"]);
    }

    #[test]
    fn stages_that_only_evaluate_stand_before_and_after_an_rl_that_does_not() {
        let run = variant(&[
            ("before", 0.0, "eval/accuracy", 0.1),
            ("rl", 1.0, "rollout/accuracy", 0.1),
            ("after", 0.0, "eval/accuracy", 0.9),
        ]);
        let (header, rows) = Verdict::of(&[run]).table();
        assert_eq!((header, &rows[0].1), (vec!["main".to_owned()], &vec!["0.100 → 0.900".into()]));
    }

    #[test]
    fn without_intervals_no_change_is_claimed() {
        let bare = |value| Estimate { value, interval: None };
        assert_eq!(change(bare(0.1), bare(0.9)), Change::Unclear);
    }
}
