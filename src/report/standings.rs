//! Variants against each other: one row each, best final accuracy first, with intervals over seeds.
//!
//! Unlike the verdict's intervals, which cover the draw of problems, these cover the training run:
//! Student's t over the seeds of a variant.

use super::{run_folder::Variant, verdict::evaluations};

/// Accuracy whose first step is told.
const GOAL: f64 = 0.9;

/// What the seeds of a variant say of one number.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct OverSeeds {
    pub(super) mean: f64,
    /// Half the width of the 95 % interval; `None` of a single seed.
    pub(super) half_width: Option<f64>,
}

impl OverSeeds {
    /// `None` without values.
    pub(super) fn of(values: &[f64]) -> Option<Self> {
        let count = values.len() as f64;
        let mean = values.iter().sum::<f64>() / count;
        let freedom = values.len().checked_sub(1)?;
        let half_width = (freedom > 0).then(|| {
            let squares: f64 = values.iter().map(|it| (it - mean).powi(2)).sum();
            student(freedom) * (squares / freedom as f64 / count).sqrt()
        });
        Some(Self { mean, half_width })
    }

    /// With so many decimals.
    fn text(self, decimals: usize) -> String {
        match self.half_width {
            Some(half) => format!("{:.decimals$} ± {half:.decimals$}", self.mean),
            None => format!("{:.decimals$}", self.mean),
        }
    }
}

/// The 97.5 % quantile of Student's t.
fn student(freedom: usize) -> f64 {
    const QUANTILES: [f64; 15] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131,
    ];
    // Beyond the table, the first terms of the expansion in 1 / freedom; right to three digits.
    let beyond = 1.960 + 2.372 / freedom as f64 + 2.822 / (freedom as f64).powi(2);
    QUANTILES.get(freedom - 1).copied().unwrap_or(beyond)
}

/// A variant's row.
#[derive(Clone, Debug)]
struct Standing {
    name: String,
    seeds: usize,
    accuracy: OverSeeds,
    /// Of the seeds that reached the goal, and their number.
    steps_to_goal: (Option<OverSeeds>, usize),
    tokens: Option<OverSeeds>,
    seconds: Option<OverSeeds>,
}

/// The table: a header, then rows. Empty unless several variants have several seeds.
pub(super) fn table(variants: &[Variant]) -> (Vec<String>, Vec<Vec<String>>) {
    let mut standings = standings(variants);
    if standings.len() < 2 || standings.iter().all(|it| it.seeds < 2) {
        return (Vec::new(), Vec::new());
    }
    standings.sort_by(|one, other| other.accuracy.mean.total_cmp(&one.accuracy.mean));
    let percent = GOAL * 100.0;
    let header = [
        "variant".to_owned(),
        "seeds".to_owned(),
        "final accuracy".to_owned(),
        format!("steps to {percent:.0} %"),
        "final reply, tokens".to_owned(),
        "time of all steps, s".to_owned(),
    ];
    let cell =
        |it: Option<OverSeeds>, decimals| it.map_or("–".to_owned(), |it| it.text(decimals));
    let row = |it: Standing| {
        let goal = match it.steps_to_goal {
            (None, _) => "never".to_owned(),
            (reached, count) if count == it.seeds => cell(reached, 1),
            (reached, count) => format!("{} ({count} of {} seeds)", cell(reached, 1), it.seeds),
        };
        vec![
            it.name,
            it.seeds.to_string(),
            it.accuracy.text(3),
            goal,
            cell(it.tokens, 1),
            cell(it.seconds, 1),
        ]
    };
    (header.to_vec(), standings.into_iter().map(row).collect())
}

/// What stands under the table.
pub(super) const NOTE: &str = "Sampled accuracy at the last evaluation, best first; ± is the 95 % \
    interval over seeds (Student's t). Steps are read off a straight line between evaluations. \
    Times are those of rollouts and learning, without evaluations.";

fn standings(variants: &[Variant]) -> Vec<Standing> {
    let mut groups: Vec<(&str, Vec<&Variant>)> = Vec::new();
    for variant in variants {
        match groups.iter_mut().find(|(name, _)| *name == variant.group()) {
            Some((_, seeds)) => seeds.push(variant),
            None => groups.push((variant.group(), vec![variant])),
        }
    }
    groups.into_iter().filter_map(|(name, seeds)| standing(name, &seeds)).collect()
}

fn standing(name: &str, seeds: &[&Variant]) -> Option<Standing> {
    let (mut finals, mut tokens, mut goals, mut seconds) = (vec![], vec![], vec![], vec![]);
    for variant in seeds {
        let Some(trained) = evaluations(variant).into_iter().rfind(|it| it.of_rl) else { continue };
        let Some(last) = trained.evaluations.last() else { continue };
        let Some(accuracy) = last.accuracy else { continue };
        finals.push(accuracy.value);
        tokens.extend(last.tokens);
        let told = trained.evaluations.iter();
        let points: Vec<(f64, f64)> =
            told.filter_map(|it| Some((it.step, it.accuracy?.value))).collect();
        goals.extend(first_at(&points, GOAL));
        let steps =
            variant.curves("time/step_s").into_iter().filter(|it| it.stage == trained.stage);
        let spent: f64 = steps.flat_map(|it| it.points).map(|(_, seconds)| seconds).sum();
        seconds.extend((spent > 0.0).then_some(spent));
    }
    Some(Standing {
        name: name.to_owned(),
        seeds: finals.len(),
        accuracy: OverSeeds::of(&finals)?,
        steps_to_goal: (OverSeeds::of(&goals), goals.len()),
        tokens: OverSeeds::of(&tokens),
        seconds: OverSeeds::of(&seconds),
    })
}

/// Where a line through `points` first reaches `goal`.
fn first_at(points: &[(f64, f64)], goal: f64) -> Option<f64> {
    let at = points.iter().position(|&(_, y)| y >= goal)?;
    let (x, y) = points[at];
    let Some(before) = at.checked_sub(1) else { return Some(x) };
    let (x_before, y_before) = points[before];
    Some(x_before + (x - x_before) * (goal - y_before) / (y - y_before))
}

#[cfg(test)]
mod tests {
    use super::super::run_folder::Line;
    use super::*;

    #[test]
    fn an_interval_is_students() {
        let it = OverSeeds::of(&[1.0, 2.0, 3.0]).unwrap();
        assert_eq!(it.mean, 2.0);
        assert!((it.half_width.unwrap() - 4.303 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(OverSeeds::of(&[5.0]).unwrap().half_width, None);
        assert_eq!(OverSeeds::of(&[]), None);
        for (freedom, quantile) in [(16, 2.120), (20, 2.086), (30, 2.042), (60, 2.000)] {
            assert!((student(freedom) - quantile).abs() < 2e-3, "{freedom}: {}", student(freedom));
        }
    }

    #[test]
    fn a_goal_is_reached_between_two_evaluations() {
        let points = [(0.0, 0.1), (5.0, 0.8), (10.0, 1.0), (15.0, 0.5)];
        assert_eq!(first_at(&points, 0.9), Some(7.5));
        assert_eq!(first_at(&points, 0.05), Some(0.0));
        assert_eq!(first_at(&points[..2], 0.9), None);
    }

    fn variant(name: &str, last: f64) -> Variant {
        let line = |step: f64, key: &str, value: f64| Line {
            step,
            stage: "rl".to_owned(),
            values: [(key.to_owned(), value)].into(),
        };
        Variant {
            name: name.to_owned(),
            info: serde_json::Map::new(),
            dir: std::path::PathBuf::new(),
            lines: vec![
                line(0.0, "eval/accuracy", 0.2),
                line(1.0, "rollout/accuracy", 0.2),
                line(10.0, "eval/accuracy", last),
            ],
        }
    }

    #[test]
    fn the_best_variant_stands_first_and_seeds_are_counted() {
        let runs = [
            variant("slow/seed_1", 0.5),
            variant("slow/seed_2", 0.95),
            variant("good/seed_1", 1.0),
            variant("good/seed_2", 1.0),
        ];
        let (header, rows) = table(&runs);
        assert_eq!(header[3], "steps to 90 %");
        assert_eq!(rows[0][..4], ["good", "2", "1.000 ± 0.000", "8.8 ± 0.0"]);
        assert_eq!(rows[1][0], "slow");
        assert!(rows[1][3].ends_with("(1 of 2 seeds)"), "{:?}", rows[1]);
        assert!(table(&runs[..1]).1.is_empty(), "one variant has nothing to stand against");
    }
}
