//! What a policy was paid for beside what was only watched: whether a rise of the one is a rise of the
//! other, and where they part (Gao, Schulman and Hilton 2022, arXiv:2210.10760).
//!
//! A rubric of the resolved configuration says which is which: parts of weight 0 are watched. Any run
//! with such a rubric gets these plots and the table. Paid is the mean reward of the training batches,
//! watched the mean of the part, KL that to the start of the stage times the length of a reply, where it
//! was logged. Rewards are running means over a twelfth of the steps, each seed for itself; of KL it is the
//! running median, since single replies that the start all but excludes weigh as much as all others.

use std::collections::BTreeMap;

use super::{
    chart::{Chart, Mark, Panel, Series, XAxis, YAxis},
    run_folder::{RunFolder, Variant},
};

/// One step of one seed, smoothed.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Place {
    step: f64,
    paid: f64,
    watched: f64,
    /// Nats a reply, from the start.
    kl: Option<f64>,
}

/// Variants that differ in their seed only.
#[derive(Clone, Debug)]
struct Group {
    name: String,
    algorithm: String,
    stage: String,
    /// Label of the part that is watched.
    part: String,
    /// The places of each seed, in order of their steps.
    seeds: Vec<Vec<Place>>,
}

/// What is watched in a stage.
#[derive(Clone, Debug, PartialEq)]
struct Watch {
    stage: String,
    algorithm: String,
    part: String,
}

/// All groups of a run that were paid for one thing and watched for another.
#[derive(Clone, Debug, Default)]
pub(super) struct Watched {
    groups: Vec<Group>,
}

impl Watched {
    pub(super) fn of(run: &RunFolder) -> Self {
        let watches = run.config.as_deref().map(watches).unwrap_or_default();
        let mut groups: Vec<Group> = Vec::new();
        for variant in &run.variants {
            // A run without variants is called `run` in its configuration.
            let found = watches.get(&variant.name).or_else(|| watches.get("run"));
            for watch in found.into_iter().flatten() {
                let places = places(variant, watch);
                if places.is_empty() {
                    continue;
                }
                let known = groups.iter_mut().find(|it| {
                    (it.name.as_str(), &it.stage, &it.part)
                        == (variant.group(), &watch.stage, &watch.part)
                });
                match known {
                    Some(group) => group.seeds.push(places),
                    None => groups.push(Group {
                        name: variant.group().to_owned(),
                        algorithm: watch.algorithm.clone(),
                        stage: watch.stage.clone(),
                        part: watch.part.clone(),
                        seeds: vec![places],
                    }),
                }
            }
        }
        Self { groups }
    }

    /// Paid, watched and KL by step, one plot for each algorithm; then paid and watched by KL.
    pub(super) fn charts(&self) -> Vec<Chart> {
        let mut charts = Vec::new();
        for (stage, part) in self.subjects() {
            let of_it =
                || self.groups.iter().filter(move |it| it.stage == stage && it.part == part);
            let algorithms = distinct(of_it().map(|it| it.algorithm.as_str()));
            let several = self.subjects().len() > 1;
            let about = if several { format!(", {stage}: {part}") } else { String::new() };
            for algorithm in &algorithms {
                let groups: Vec<&Group> = of_it().filter(|it| it.algorithm == *algorithm).collect();
                let name =
                    if algorithms.len() > 1 { format!(", {algorithm}") } else { String::new() };
                charts.push(by_step(&groups, part, &format!("{name}{about}")));
            }
            charts.extend(by_kl(&of_it().collect::<Vec<_>>(), part, &about));
        }
        charts
    }

    /// The table: a header, then rows of cells, the first of which names the group.
    pub(super) fn table(&self) -> Option<(Vec<String>, Vec<Vec<String>>)> {
        let first = self.groups.first()?;
        let one_part = self.groups.iter().all(|it| it.part == first.part);
        let watched = if one_part { first.part.as_str() } else { "watched" };
        let header = [
            "paid and watched".to_owned(),
            format!("{watched}, start"),
            format!("{watched}, peak"),
            "at step".to_owned(),
            "at KL".to_owned(),
            "stopped at the KL of the other seeds' peaks".to_owned(),
            format!("{watched}, end"),
            "paid, start".to_owned(),
            "paid, peak".to_owned(),
            "paid, end".to_owned(),
            "KL, end".to_owned(),
        ];
        let rows = self.groups.iter().map(|group| {
            let name = if one_part {
                group.name.clone()
            } else {
                format!("{}, {}", group.name, group.part)
            };
            let over = |pick: &dyn Fn(&[Place]) -> Option<f64>, digits: usize| {
                let values: Option<Vec<f64>> = group.seeds.iter().map(|it| pick(it)).collect();
                values.map_or_else(|| "–".to_owned(), |values| mean_and_interval(&values, digits))
            };
            let stopped = group.stopped_by_the_others();
            vec![
                name,
                over(&|it| Some(it.first()?.watched), 3),
                over(&|it| Some(peak(it)?.watched), 3),
                over(&|it| Some(peak(it)?.step), 0),
                over(&|it| peak(it)?.kl, 2),
                stopped.map_or_else(|| "–".to_owned(), |it| mean_and_interval(&it, 3)),
                over(&|it| Some(it.last()?.watched), 3),
                over(&|it| Some(it.first()?.paid), 2),
                over(&|it| Some(peak(it)?.paid), 2),
                over(&|it| Some(it.last()?.paid), 2),
                over(&|it| it.last()?.kl, 2),
            ]
        });
        Some((header.into(), rows.collect()))
    }

    /// What the table's numbers are.
    pub(super) fn note(&self) -> &'static str {
        "Paid: the mean reward of the training batches. The other reward was logged and not paid. Peaks \
         are those of the reward that was not paid, each seed's own; KL is from the start of the stage, in \
         nats a reply; ± is half a 95 % interval over seeds (Student's t). Rewards are running means over \
         a twelfth of the steps, KL is the running median. To stop at a peak one must know the reward \
         that is not paid; to stop at a KL one need not: the column says what it gives to stop each seed \
         at the mean KL of the other seeds' peaks."
    }

    /// What is watched where, in order.
    fn subjects(&self) -> Vec<(&str, &str)> {
        let mut subjects = Vec::new();
        for group in &self.groups {
            let subject = (group.stage.as_str(), group.part.as_str());
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
        }
        subjects
    }
}

impl Group {
    /// The mean over seeds, as far as all went.
    fn mean(&self) -> Vec<Place> {
        let shortest = self.seeds.iter().map(Vec::len).min().unwrap_or(0);
        let count = self.seeds.len() as f64;
        (0..shortest)
            .map(|at| {
                let mean = |pick: &dyn Fn(&Place) -> f64| {
                    self.seeds.iter().map(|seed| pick(&seed[at])).sum::<f64>() / count
                };
                let kls: Option<Vec<f64>> = self.seeds.iter().map(|seed| seed[at].kl).collect();
                Place {
                    step: mean(&|it| it.step),
                    paid: mean(&|it| it.paid),
                    watched: mean(&|it| it.watched),
                    kl: kls.map(|kls| kls.iter().sum::<f64>() / count),
                }
            })
            .collect()
    }

    /// The watched reward of each seed where its KL first reaches the mean of the KLs at which the
    /// other seeds peak, or at its end where it never does: a stop that needs no look at what is watched.
    fn stopped_by_the_others(&self) -> Option<Vec<f64>> {
        let peaks: Vec<f64> =
            self.seeds.iter().map(|it| peak(it)?.kl).collect::<Option<Vec<f64>>>()?;
        if peaks.len() < 2 {
            return None;
        }
        let total: f64 = peaks.iter().sum();
        let stopped = self.seeds.iter().zip(&peaks).map(|(seed, own)| {
            let budget = (total - own) / (peaks.len() - 1) as f64;
            let reached = seed.iter().find(|it| it.kl.is_some_and(|kl| kl >= budget));
            Some(reached.or(seed.last())?.watched)
        });
        stopped.collect()
    }
}

/// The stages of each run of a resolved configuration whose rubric watches something, by the run's name.
fn watches(config: &str) -> BTreeMap<String, Vec<Watch>> {
    let mut found = BTreeMap::new();
    // A configuration that cannot be read is no reason to have no report.
    let Ok(config) = config.parse::<toml::Table>() else { return found };
    let runs = config.get("runs").and_then(toml::Value::as_table);
    for (name, run) in runs.into_iter().flatten() {
        let stages = run.get("stage").and_then(toml::Value::as_array);
        let watches: Vec<Watch> = stages.into_iter().flatten().flat_map(watches_of).collect();
        if !watches.is_empty() {
            found.insert(name.clone(), watches);
        }
    }
    found
}

fn watches_of(stage: &toml::Value) -> Vec<Watch> {
    let text = |value: &toml::Value, key: &str| {
        value.get(key).and_then(toml::Value::as_str).map(str::to_owned)
    };
    let verifier = stage.get("verifier");
    if verifier.and_then(|it| text(it, "name")).as_deref() != Some("rubric") {
        return Vec::new();
    }
    let parts = verifier.and_then(|it| it.get("parts")).and_then(toml::Value::as_array);
    let unpaid = |part: &&toml::Value| {
        let weight = part.get("weight");
        weight.and_then(|it| it.as_float().or(it.as_integer().map(|it| it as f64))) == Some(0.0)
    };
    let named = |part: &toml::Value| {
        Some(Watch {
            stage: text(stage, "name")?,
            algorithm: stage.get("algorithm").and_then(|it| text(it, "name")).unwrap_or_default(),
            part: text(part, "label").or_else(|| text(part, "name"))?,
        })
    };
    parts.into_iter().flatten().filter(unpaid).filter_map(named).collect()
}

/// The steps of a variant that logged both rewards, smoothed.
fn places(variant: &Variant, watch: &Watch) -> Vec<Place> {
    let values = |key: &str| -> BTreeMap<u64, f64> {
        let curves = variant.curves(key).into_iter().filter(|it| it.stage == watch.stage);
        curves.flat_map(|it| it.points).map(|(step, value)| (step as u64, value)).collect()
    };
    let (paid, watched) = (values("rollout/reward_mean"), values(&format!("part/{}", watch.part)));
    let (nats, tokens) = (values("learner/reference_kl_nats"), values("rollout/reply_tokens_mean"));
    // A step that no group taught logs no KL, and leaves the policy where it was.
    let mut last = None;
    let raw: Vec<Place> = paid
        .into_iter()
        .filter_map(|(step, paid)| {
            last = nats.get(&step).copied().or(last);
            Some(Place {
                step: step as f64,
                paid,
                watched: *watched.get(&step)?,
                kl: last.zip(tokens.get(&step)).map(|(nats, tokens)| nats * tokens),
            })
        })
        .collect();
    smoothed(&raw)
}

/// Running means over a twelfth of the places; at both ends of what there is of it.
fn smoothed(raw: &[Place]) -> Vec<Place> {
    let reach = raw.len() / 24;
    (0..raw.len())
        .map(|at| {
            let window = &raw[at.saturating_sub(reach)..(at + reach + 1).min(raw.len())];
            let count = window.len() as f64;
            let mean = |pick: &dyn Fn(&Place) -> f64| window.iter().map(pick).sum::<f64>() / count;
            let kls: Vec<f64> = window.iter().filter_map(|it| it.kl).collect();
            Place {
                step: raw[at].step,
                paid: mean(&|it| it.paid),
                watched: mean(&|it| it.watched),
                kl: median(kls),
            }
        })
        .collect()
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// Where the watched reward is largest.
fn peak(places: &[Place]) -> Option<&Place> {
    places.iter().reduce(|best, it| if it.watched > best.watched { it } else { best })
}

/// `0.71 ± 0.05`: the mean, and half of its 95 % interval; one value stands alone.
fn mean_and_interval(values: &[f64], digits: usize) -> String {
    /// Student's t at 97.5 %, by degrees of freedom from 1.
    const T: [f64; 9] = [12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262];
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    if values.len() < 2 {
        return format!("{mean:.digits$}");
    }
    let variance = values.iter().map(|it| (it - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let quantile = T.get(values.len() - 2).copied().unwrap_or(1.96);
    format!("{mean:.digits$} ± {:.digits$}", quantile * (variance / count).sqrt())
}

/// What a line is, in the legend.
fn line_kind(groups: &[&Group]) -> String {
    match groups.iter().map(|it| it.seeds.len()).max() {
        Some(seeds) if seeds > 1 => format!("mean of {seeds} seeds"),
        _ => "running mean".to_owned(),
    }
}

/// A curve of a group as (x, y) of each place that has both.
type Pick<'a> = &'a dyn Fn(&Place) -> Option<(f64, f64)>;

fn series(group: &Group, kind: &str, mark: Mark, places: &[Place], pick: Pick<'_>) -> Series {
    Series {
        group: group.name.clone(),
        kind: kind.to_owned(),
        mark,
        points: places.iter().filter_map(pick).collect(),
        intervals: Vec::new(),
        band: false,
    }
}

/// The means of all groups, and where their watched reward peaks; before them each seed, faintly.
fn lines(
    groups: &[&Group],
    kind: &dyn Fn(&Group) -> String,
    peak_kind: &str,
    each_seed: bool,
    pick: Pick<'_>,
) -> Vec<Series> {
    let mut all = Vec::new();
    for group in groups {
        all.push(series(group, &kind(group), Mark::Line, &group.mean(), pick));
    }
    for group in groups.iter().filter(|it| each_seed && it.seeds.len() > 1) {
        let seeds = group.seeds.iter();
        all.extend(seeds.map(|it| series(group, "one seed", Mark::Faint, it, pick)));
    }
    for group in groups {
        let mean = group.mean();
        let peak = peak(&mean).map_or_else(Vec::new, |it| vec![*it]);
        all.push(series(group, peak_kind, Mark::Places, &peak, pick));
    }
    all.retain(|it| !it.points.is_empty());
    all
}

fn by_step(groups: &[&Group], part: &str, about: &str) -> Chart {
    let kind = |_: &Group| line_kind(groups);
    let peaks = format!("peak of {part}");
    let of = |pick: Pick<'_>| lines(groups, &kind, &peaks, true, pick);
    let kl = of(&|it| Some((it.step, it.kl?)));
    let mut below = vec![Panel {
        y_label: format!("{part}, not paid"),
        y: YAxis::FromZero,
        series: of(&|it| Some((it.step, it.watched))),
    }];
    if !kl.is_empty() {
        let y_label = "KL, nats a reply".to_owned();
        below.push(Panel { y_label, y: YAxis::Log, series: kl });
    }
    Chart {
        slug: format!("paid_and_watched{}", file_name(about)),
        title: format!("What is paid, and what is not{about}"),
        caption: format!(
            "Above the reward that was paid for, below it {part}, which was logged and not paid, and how \
             far the policy is from where it began. Rings: where {part} is largest. Beyond a ring the \
             policy is paid more for less."
        ),
        x_label: "step".to_owned(),
        y_label: "reward paid".to_owned(),
        x: XAxis::Steps,
        y: YAxis::Fitted,
        series: of(&|it| Some((it.step, it.paid))),
        below,
        starts: Vec::new(),
    }
}

/// Nothing where no KL was logged.
fn by_kl(groups: &[&Group], part: &str, about: &str) -> Option<Chart> {
    let algorithms = distinct(groups.iter().map(|it| it.algorithm.as_str()));
    let kind = |group: &Group| match algorithms.len() {
        1 => line_kind(groups),
        _ => format!("{}, {}", group.algorithm, line_kind(groups)),
    };
    let peaks = format!("peak of {part}");
    let of = |pick: Pick<'_>| lines(groups, &kind, &peaks, false, pick);
    let watched = of(&|it| Some((it.kl?, it.watched)));
    (!watched.is_empty()).then(|| Chart {
        slug: format!("watched_by_kl{}", file_name(about)),
        title: format!("What is not paid, by distance from the start{about}"),
        caption: format!(
            "Each line is a run from left to right: {part} above, the reward that was paid for below, \
             against the KL divergence from the start of the stage. Rings: where {part} is largest."
        ),
        x_label: "KL from the start, nats a reply (roots evenly spaced)".to_owned(),
        y_label: format!("{part}, not paid"),
        x: XAxis::Roots,
        y: YAxis::FromZero,
        series: watched,
        below: vec![Panel {
            y_label: "reward paid".to_owned(),
            y: YAxis::Fitted,
            series: of(&|it| Some((it.kl?, it.paid))),
        }],
        starts: Vec::new(),
    })
}

fn file_name(about: &str) -> String {
    let about = about.trim_start_matches(", ");
    let name: String =
        about.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    if name.is_empty() { name } else { format!("_{name}") }
}

fn distinct<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let mut seen = Vec::new();
    for name in names {
        if !seen.contains(&name) {
            seen.push(name);
        }
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG: &str = r#"
name = "gaming"
[[runs."grpo/seed_1".stage]]
name = "rl"
[runs."grpo/seed_1".stage.algorithm]
name = "grpo"
[runs."grpo/seed_1".stage.verifier]
name = "rubric"
parts = [
    { name = "courtesy", weight = 0.0, label = "true" },
    { name = "reward_model", label = "proxy" },
    { name = "format", weight = 0 },
]
[[runs.plain.stage]]
name = "rl"
verifier = { name = "exact" }
"#;

    #[test]
    fn parts_of_weight_0_are_watched() {
        let watches = watches(CONFIG);
        let parts: Vec<_> = watches["grpo/seed_1"].iter().map(|it| it.part.as_str()).collect();
        assert_eq!(parts, ["true", "format"]);
        assert_eq!(watches["grpo/seed_1"][0].algorithm, "grpo");
        assert!(!watches.contains_key("plain"));
        assert!(super::watches("no = [toml").is_empty());
    }

    /// A seed whose watched reward is a tent over its KL, with the peak at that step.
    fn tent(peak: f64) -> Vec<Place> {
        let place = |step: u32| {
            let step = f64::from(step);
            let watched = 1.0 - (step - peak).abs() / 10.0;
            Place { step, paid: step, watched, kl: Some(step / 2.0) }
        };
        (1..=20).map(place).collect()
    }

    fn group(seeds: Vec<Vec<Place>>) -> Group {
        let (name, algorithm) = ("a".to_owned(), "grpo".to_owned());
        Group { name, algorithm, stage: "rl".to_owned(), part: "true".to_owned(), seeds }
    }

    #[test]
    fn the_table_tells_the_peak_the_end_and_what_a_stop_by_kl_gives() {
        let watched = Watched { groups: vec![group(vec![tent(8.0), tent(12.0)])] };
        let (header, rows) = watched.table().unwrap();
        assert_eq!(header.len(), rows[0].len());
        assert_eq!(rows[0][..2], ["a", "0.100 ± 2.541"]);
        assert_eq!(rows[0][2..5], ["1.000 ± 0.000", "10 ± 25", "5.00 ± 12.71"]);
        // Each stops four steps from its own peak.
        assert_eq!(rows[0][5], "0.600 ± 0.000");
        assert_eq!(rows[0][9], "20.00 ± 0.00");
    }

    #[test]
    fn without_seeds_or_kl_there_are_no_intervals_and_no_plot_by_kl() {
        let mut places = tent(8.0);
        places.iter_mut().for_each(|it| it.kl = None);
        let watched = Watched { groups: vec![group(vec![places])] };
        let (_, rows) = watched.table().unwrap();
        assert_eq!(rows[0][2..6], ["1.000", "8", "–", "–"]);
        let slugs: Vec<_> = watched.charts().into_iter().map(|it| it.slug).collect();
        assert_eq!(slugs, ["paid_and_watched"]);
        assert!(Watched::default().table().is_none());
    }

    #[test]
    fn every_algorithm_has_a_plot_and_all_share_the_one_by_kl() {
        let mut other = group(vec![tent(5.0)]);
        (other.name, other.algorithm) = ("b".to_owned(), "ppo".to_owned());
        let watched = Watched { groups: vec![group(vec![tent(8.0)]), other] };
        let charts = watched.charts();
        let slugs: Vec<_> = charts.iter().map(|it| it.slug.as_str()).collect();
        assert_eq!(slugs, ["paid_and_watched_grpo", "paid_and_watched_ppo", "watched_by_kl"]);
        assert_eq!(charts[0].below.len(), 2);
        for chart in &charts {
            assert!(chart.svg().unwrap().contains("<svg"));
        }
    }
}
