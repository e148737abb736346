//! Which plots a report shows, and from which metrics. A plot without data is left out.
//!
//! Every stage counts its steps from the start. Where several stages of a run have a metric, its
//! plot lays them end to end and marks where each begins.

use crate::evaluation::wilson;

use super::{
    chart::{Chart, Mark, Series, XAxis, YAxis},
    run_folder::{Curve, Variant},
    standings::OverSeeds,
    verdict::{Estimate, evaluations},
};

/// A metric as one kind of line of a plot.
struct Kind {
    key: &'static str,
    label: &'static str,
    mark: Mark,
}

/// A plot over steps.
struct Spec {
    slug: &'static str,
    title: &'static str,
    caption: &'static str,
    y_label: &'static str,
    y: YAxis,
    kinds: &'static [Kind],
}

const fn noisy(key: &'static str, label: &'static str) -> Kind {
    Kind { key, label, mark: Mark::Noisy }
}

const fn discs(key: &'static str, label: &'static str) -> Kind {
    Kind { key, label, mark: Mark::Discs }
}

/// The plots over steps, in reading order; pass@k follows the first.
const OVER_STEPS: &[Spec] = &[
    Spec {
        slug: "accuracy",
        title: "Accuracy",
        caption: "Share of sampled replies that are right. Discs: evaluations with 95 % intervals; \
                  dots: batches of training, with their running mean as a line.",
        y_label: "share right",
        y: YAxis::Share,
        kinds: &[
            discs("eval/accuracy", "evaluation"),
            noisy("rollout/accuracy", "training batches"),
        ],
    },
    Spec {
        slug: "pair_accuracy",
        title: "Pairs ordered rightly",
        caption: "Share of held-out pairs whose preferred reply gets the higher score, with 95 % intervals. \
                  Where labels are noisy, their noise bounds it.",
        y_label: "share of pairs",
        y: YAxis::Share,
        kinds: &[discs("eval/pair_accuracy", "held-out pairs")],
    },
    Spec {
        slug: "reply_length",
        title: "Length of right and wrong replies",
        caption: "Mean length in training batches. Longer replies prove nothing by themselves: \
                  read this beside the accuracy.",
        y_label: "tokens per reply",
        y: YAxis::FromZero,
        kinds: &[
            noisy("rollout/reply_tokens_right", "right"),
            noisy("rollout/reply_tokens_wrong", "wrong"),
        ],
    },
    Spec {
        slug: "reply_length_mean",
        title: "Mean reply length",
        caption: "Over all replies, right or wrong.",
        y_label: "tokens per reply",
        y: YAxis::FromZero,
        kinds: &[
            discs("eval/reply_tokens_mean", "evaluation"),
            noisy("rollout/reply_tokens_mean", "training batches"),
        ],
    },
    Spec {
        slug: "reward",
        title: "Reward",
        caption: "Mean reward of each training batch, and the standard deviation within it.",
        y_label: "reward",
        y: YAxis::Fitted,
        kinds: &[
            noisy("rollout/reward_mean", "mean"),
            noisy("rollout/reward_std", "standard deviation"),
        ],
    },
    Spec {
        slug: "groups",
        title: "Groups without signal",
        caption: "Groups whose replies all got the same reward teach nothing; truncated replies \
                  were cut at the token limit.",
        y_label: "share",
        y: YAxis::Share,
        kinds: &[
            noisy("rollout/groups_zero_variance", "groups of equal rewards"),
            noisy("rollout/truncated_share", "truncated replies"),
        ],
    },
    Spec {
        slug: "answer_changes",
        title: "Replies that change their answer",
        caption: "Share of replies that state an answer and later a different one, and how often \
                  these are right beside those that state one and stay with it.",
        y_label: "share",
        y: YAxis::Share,
        kinds: &[
            noisy("rollout/answer_changes_share", "change their answer"),
            noisy("rollout/accuracy_changed", "right, changed"),
            noisy("rollout/accuracy_unchanged", "right, unchanged"),
        ],
    },
    Spec {
        slug: "entropy",
        title: "Entropy",
        caption: "Mean entropy of the policy at each token. Near zero it samples the same reply \
                  again and again.",
        y_label: "nats per token",
        y: YAxis::FromZero,
        kinds: &[noisy("learner/entropy_nats", "entropy")],
    },
    Spec {
        slug: "kl",
        title: "KL divergence",
        caption: "From the reference policy, per token.",
        y_label: "nats per token",
        y: YAxis::Fitted,
        kinds: &[noisy("learner/kl_nats", "KL")],
    },
    Spec {
        slug: "clipped_share",
        title: "Clipped tokens",
        caption: "Share of tokens whose ratio left the clip range, so that they taught nothing.",
        y_label: "share of tokens",
        y: YAxis::FromZero,
        kinds: &[noisy("learner/clipped_share", "clipped")],
    },
    Spec {
        slug: "sampler_mismatch",
        title: "Sampler against learner",
        caption: "Mean difference between the log-probability of a token when it was sampled and \
                  when it was learned from, on a log axis. On-policy it is rounding only.",
        y_label: "nats per token",
        y: YAxis::Log,
        kinds: &[noisy("learner/sampler_mismatch_nats", "mismatch")],
    },
    Spec {
        slug: "gradient_norm",
        title: "Gradient norm (RL)",
        caption: "Before clipping.",
        y_label: "norm",
        y: YAxis::Log,
        kinds: &[noisy("learner/grad_norm", "norm")],
    },
    Spec {
        slug: "staleness",
        title: "Staleness",
        caption: "Updates between the policy that sampled a reply and the one that learned from it.",
        y_label: "updates",
        y: YAxis::FromZero,
        kinds: &[noisy("learner/staleness_mean", "staleness")],
    },
    Spec {
        slug: "pretraining_loss",
        title: "Next-token loss",
        caption: "Of pretraining and supervised stages.",
        y_label: "nats per token",
        y: YAxis::FromZero,
        kinds: &[
            noisy("train/loss_nats", "training batches"),
            discs("eval/loss_nats", "evaluation"),
        ],
    },
    Spec {
        slug: "pair_accuracy",
        title: "Pairs ranked right",
        caption: "Share of pairs in which the preferred reply scores higher; a half is chance. Discs: \
                  held-out pairs with 95 % intervals.",
        y_label: "share of pairs",
        y: YAxis::Share,
        kinds: &[
            discs("eval/accuracy", "held-out pairs"),
            noisy("train/accuracy", "training batches"),
        ],
    },
    Spec {
        slug: "pair_loss",
        title: "Loss of pairs",
        caption: "Of reward models and DPO; ln 2 = 0.69 is a model that does not tell the replies \
                  apart.",
        y_label: "nats per pair",
        y: YAxis::FromZero,
        kinds: &[
            noisy("train/loss_nats", "training batches"),
            discs("eval/loss", "held-out pairs"),
        ],
    },
    Spec {
        slug: "pair_margin",
        title: "Lead of the preferred reply",
        caption: "Mean difference of the scores of a pair's replies.",
        y_label: "score",
        y: YAxis::Fitted,
        kinds: &[noisy("train/margin", "training batches"), discs("eval/margin", "held-out pairs")],
    },
    Spec {
        slug: "bits_per_byte",
        title: "Bits per byte",
        caption: "Loss in a unit that does not depend on the tokenizer.",
        y_label: "bits per byte",
        y: YAxis::FromZero,
        kinds: &[
            noisy("train/bits_per_byte", "training batches"),
            discs("eval/bits_per_byte", "evaluation"),
        ],
    },
    Spec {
        slug: "rollout_throughput",
        title: "Throughput of rollouts",
        caption: "Tokens sampled in each second of the rollouts.",
        y_label: "tokens per second",
        y: YAxis::FromZero,
        kinds: &[noisy("rollout/tokens_per_second", "rollouts")],
    },
    Spec {
        slug: "training_throughput",
        title: "Throughput of next-token training",
        caption: "Tokens learned from in each second of pretraining and supervised stages.",
        y_label: "tokens per second",
        y: YAxis::FromZero,
        kinds: &[noisy("train/tokens_per_second", "training")],
    },
];

/// The plots that the metrics of `variants` allow.
pub(super) fn charts(variants: &[Variant]) -> Vec<Chart> {
    let mut charts = Vec::new();
    for spec in OVER_STEPS {
        charts.extend(over_steps(spec, variants));
        if spec.slug == "accuracy" {
            charts.extend(pass_at_k(variants));
        }
        if spec.slug == "pair_margin" {
            charts.extend(calibration(variants));
        }
    }
    for family in FAMILIES {
        let mut groups = Vec::new();
        for variant in variants {
            // Of variants that differ in their seed only, the first stands for all: a page of plots
            // that look alike is not read.
            if !groups.contains(&variant.group()) {
                groups.push(variant.group());
                charts.extend(of_family(family, variant, variants));
            }
        }
    }
    charts
}

/// Metrics whose names are data: one plot for each variant.
struct Family {
    prefix: &'static str,
    suffix: &'static str,
    /// Only names that are whole numbers belong to it; they stand in their order.
    numbers: bool,
    /// What stands around a name in the legend.
    label: (&'static str, &'static str),
    /// Names that are zero throughout have nothing to show.
    drop_zeros: bool,
    /// Where every curve begins that has no value there.
    origin: Option<(f64, f64)>,
    slug: &'static str,
    title: &'static str,
    caption: &'static str,
    y_label: &'static str,
    y: YAxis,
    mark: Mark,
}

/// The plots of names that are data, in reading order.
const FAMILIES: &[Family] = &[
    Family {
        prefix: "eval/pass@",
        suffix: "_gain",
        numbers: true,
        label: ("k = ", ""),
        drop_zeros: false,
        origin: Some((0.0, 0.0)),
        slug: "pass_at_k_gain",
        title: "Gain of pass@k over the start",
        caption: "pass@k of each evaluation less that before the first step, on the same tasks. A \
                  gain at k = 1 alone is choosing better among replies that were there before.",
        y_label: "gain",
        y: YAxis::Fitted,
        mark: Mark::Discs,
    },
    Family {
        prefix: "phrase/",
        suffix: "_share",
        numbers: false,
        label: ("", ""),
        drop_zeros: true,
        origin: None,
        slug: "phrases",
        title: "Replies with a phrase",
        caption: "Share of the replies of training batches that hold a phrase of the list. Words \
                  prove nothing by themselves: read this beside the changed answers.",
        y_label: "share of replies",
        y: YAxis::FromZero,
        mark: Mark::Noisy,
    },
    Family {
        prefix: "phrase/",
        suffix: "_per_reply",
        numbers: false,
        label: ("", ""),
        drop_zeros: true,
        origin: None,
        slug: "phrase_counts",
        title: "Phrases in a reply",
        caption: "Mean number of phrases of the list in a reply of training batches.",
        y_label: "phrases per reply",
        y: YAxis::FromZero,
        mark: Mark::Noisy,
    },
    Family {
        prefix: "part/",
        suffix: "",
        numbers: false,
        label: ("", ""),
        drop_zeros: false,
        origin: None,
        slug: "reward_parts",
        title: "Parts of the reward",
        caption: "In training batches.",
        y_label: "mean value",
        y: YAxis::FromZero,
        mark: Mark::Noisy,
    },
    Family {
        prefix: "learner/staleness_",
        suffix: "",
        numbers: true,
        label: ("", " behind"),
        drop_zeros: true,
        origin: None,
        slug: "staleness_histogram",
        title: "How stale the replies were",
        caption: "Share of a batch's replies by the number of updates between the policy that \
                  sampled their first token and the one that learned from them.",
        y_label: "share of replies",
        y: YAxis::Share,
        mark: Mark::Noisy,
    },
];

fn over_steps(spec: &Spec, variants: &[Variant]) -> Option<Chart> {
    let of_pairs = spec.slug.starts_with("pair_");
    let curves: Vec<(&Kind, &Variant, Curve)> = spec
        .kinds
        .iter()
        .flat_map(|kind| variants.iter().map(move |variant| (kind, variant)))
        .flat_map(|(kind, variant)| {
            variant.curves(kind.key).into_iter().map(move |curve| (kind, variant, curve))
        })
        // Both kinds of stages have an accuracy and a loss, of replies and tokens or of pairs.
        .filter(|(kind, variant, curve)| {
            let either = !kind.key.starts_with("eval/") && !kind.key.starts_with("train/");
            either || of_pairs == variant.learns_from_pairs(&curve.stage)
        })
        .collect();
    let starts = starts(variants, curves.iter().map(|it| &it.2));
    // Curves that differ in their seed only become one.
    let mut alike: Vec<Vec<(&Kind, &Variant, Curve)>> = Vec::new();
    for (kind, variant, curve) in curves {
        let same = alike.iter_mut().find(|it| {
            let (other_kind, other, other_curve) = &it[0];
            other_kind.key == kind.key
                && other.group() == variant.group()
                && other_curve.stage == curve.stage
        });
        match same {
            Some(seeds) => seeds.push((kind, variant, curve)),
            None => alike.push(vec![(kind, variant, curve)]),
        }
    }
    let series: Vec<Series> = alike
        .into_iter()
        .map(|seeds| {
            let (kind, variant, first) = &seeds[0];
            let start = start_of(&starts, &first.stage);
            let several = seeds.len() > 1;
            let (points, intervals) = if several {
                over_seeds(seeds.iter().map(|it| it.2.points.as_slice()))
            } else {
                (first.points.clone(), intervals(variant, kind.key, &first.stage))
            };
            // Bands of noisy curves would hide one another.
            let shown = !several || kind.mark == Mark::Discs;
            let intervals = intervals.into_iter().filter(|_| shown);
            Series {
                group: variant.group().to_owned(),
                kind: kind.label.to_owned(),
                mark: kind.mark,
                points: points.into_iter().map(|(x, y)| (start + x, y)).collect(),
                intervals: intervals.map(|(x, low, high)| (start + x, low, high)).collect(),
                band: several,
            }
        })
        .collect();
    let values = || series.iter().flat_map(|series| &series.points);
    // A metric that is zero throughout has nothing to show on a log axis.
    if values().next().is_none() || spec.y == YAxis::Log && !values().any(|&(_, y)| y > 0.0) {
        return None;
    }
    // A plot of one group has no legend of groups: its title tells which, where there are more.
    let of = &series[0].group;
    let several = variants.iter().any(|it| it.group() != of);
    let title = match several && series.iter().all(|it| it.group == *of) {
        true => format!("{}, {of}", spec.title),
        false => spec.title.to_owned(),
    };
    Some(Chart {
        slug: spec.slug.to_owned(),
        title,
        caption: match series.iter().any(|it| it.band) {
            true => format!("{} Lines: means over seeds; bands: 95 % intervals.", spec.caption),
            false => spec.caption.to_owned(),
        },
        x_label: x_label(&starts),
        y_label: spec.y_label.to_owned(),
        x: XAxis::Steps,
        y: spec.y,
        series,
        below: Vec::new(),
        starts,
    })
}

/// (x, y), and (x, low, high).
type Averaged = (Vec<(f64, f64)>, Vec<(f64, f64, f64)>);

/// Mean and 95 % interval over seeds at the steps that all of them have.
fn over_seeds<'a>(curves: impl Iterator<Item = &'a [(f64, f64)]>) -> Averaged {
    let curves: Vec<_> = curves.collect();
    let (mut points, mut intervals) = (Vec::new(), Vec::new());
    for &(x, _) in curves[0] {
        let at = |curve: &&[(f64, f64)]| {
            curve.binary_search_by(|it| it.0.total_cmp(&x)).ok().map(|place| curve[place].1)
        };
        let Some(values) = curves.iter().map(at).collect::<Option<Vec<f64>>>() else { continue };
        let Some(over) = OverSeeds::of(&values) else { continue };
        points.push((x, over.mean));
        intervals.extend(over.half_width.map(|half| (x, over.mean - half, over.mean + half)));
    }
    (points, intervals)
}

/// Where each stage that `curves` come from begins on an axis that lays the stages end to end: one
/// place for all variants, so a stage is as long as it is in the variant where it is longest.
fn starts<'a>(variants: &[Variant], curves: impl Iterator<Item = &'a Curve>) -> Vec<(f64, String)> {
    let mut lengths: Vec<(&str, f64)> = Vec::new();
    for stage in variants.iter().flat_map(Variant::stages) {
        if !lengths.iter().any(|(known, _)| *known == stage) {
            lengths.push((stage, f64::NEG_INFINITY));
        }
    }
    for curve in curves {
        let last = curve.points.last().map_or(0.0, |point| point.0);
        if let Some((_, length)) = lengths.iter_mut().find(|(stage, _)| *stage == curve.stage) {
            *length = length.max(last);
        }
    }
    let mut start = 0.0;
    let mut starts = Vec::new();
    for (stage, length) in lengths.into_iter().filter(|(_, length)| *length >= 0.0) {
        starts.push((start, stage.to_owned()));
        start += length;
    }
    starts
}

fn start_of(starts: &[(f64, String)], stage: &str) -> f64 {
    starts.iter().find(|(_, name)| name == stage).map_or(0.0, |(start, _)| *start)
}

fn x_label(starts: &[(f64, String)]) -> String {
    if starts.len() > 1 { "step, stage after stage" } else { "step" }.to_owned()
}

/// (step, low, high) where the metrics hold `KEY_low` and `KEY_high`.
fn intervals(variant: &Variant, key: &str, stage: &str) -> Vec<(f64, f64, f64)> {
    let bound = |suffix: &str| {
        let curves = variant.curves(&format!("{key}{suffix}")).into_iter();
        curves.filter(|curve| curve.stage == stage).flat_map(|curve| curve.points)
    };
    let both = bound("_low").zip(bound("_high"));
    both.filter(|((a, _), (b, _))| a == b).map(|((x, low), (_, high))| (x, low, high)).collect()
}

/// pass@k by k.
type PassCurve = Vec<(f64, Estimate)>;

/// pass@k before the first and after the last RL of each variant.
fn pass_at_k(variants: &[Variant]) -> Option<Chart> {
    // By group and by end, the curves of its seeds.
    let mut alike: Vec<((&str, &str), Vec<PassCurve>)> = Vec::new();
    for variant in variants {
        let trained: Vec<_> = evaluations(variant).into_iter().filter(|it| it.of_rl).collect();
        let mut ends: Vec<_> = trained.iter().flat_map(|it| &it.evaluations).collect();
        let (Some(after), before) = (ends.pop(), ends.first()) else { continue };
        for (label, evaluation) in [("after RL", Some(after)), ("before RL", before.copied())] {
            let Some(evaluation) = evaluation.filter(|it| !it.pass.is_empty()) else { continue };
            let pass = evaluation.pass.iter().map(|(&k, estimate)| (f64::from(k), *estimate));
            let (key, curve) = ((variant.group(), label), pass.collect());
            match alike.iter_mut().find(|it| it.0 == key) {
                Some((_, seeds)) => seeds.push(curve),
                None => alike.push((key, vec![curve])),
            }
        }
    }
    let series: Vec<Series> = alike
        .into_iter()
        .map(|((group, label), seeds)| {
            let curves: Vec<Vec<(f64, f64)>> = seeds
                .iter()
                .map(|it| it.iter().map(|(k, pass)| (*k, pass.value)).collect())
                .collect();
            let several = curves.len() > 1;
            let (points, mut intervals) = over_seeds(curves.iter().map(Vec::as_slice));
            if !several {
                let bounds =
                    |(k, pass): &(f64, Estimate)| pass.interval.map(|(low, high)| (*k, low, high));
                intervals = seeds[0].iter().filter_map(bounds).collect();
            }
            Series {
                group: group.to_owned(),
                kind: label.to_owned(),
                mark: Mark::Discs,
                points,
                intervals,
                band: several,
            }
        })
        .collect();
    (!series.is_empty()).then(|| Chart {
        slug: "pass_at_k".to_owned(),
        title: "Solved within k tries".to_owned(),
        caption: "pass@k before and after RL with 95 % intervals. Where the line before RL is \
                  high at the right, the model could already solve the task now and then."
            .to_owned(),
        x_label: "tries k".to_owned(),
        y_label: "pass@k".to_owned(),
        x: XAxis::Doublings,
        y: YAxis::Share,
        series,
        below: Vec::new(),
        starts: Vec::new(),
    })
}

/// How sure a stage that learned from pairs is of held-out ones, and how often it is right.
fn calibration(variants: &[Variant]) -> Option<Chart> {
    let mut series = Vec::new();
    for variant in variants {
        let stages = variant.stages().into_iter().filter(|it| variant.learns_from_pairs(it));
        for stage in stages {
            let last = |number: usize, what: &str| {
                let curves = variant.curves(&format!("calibration/bin_{number}_{what}"));
                let curve = curves.into_iter().find(|it| it.stage == stage)?;
                Some(curve.points.last()?.1)
            };
            let bins: Vec<(f64, f64, f64)> = (1..)
                .map_while(|number| {
                    // Bins without pairs have no numbers; there are no more than ten.
                    (number <= 10).then(|| {
                        let predicted = last(number, "predicted")?;
                        Some((predicted, last(number, "observed")?, last(number, "pairs")?))
                    })
                })
                .flatten()
                .collect();
            if bins.is_empty() {
                continue;
            }
            series.push(Series {
                group: variant.group().to_owned(),
                kind: stage.to_owned(),
                mark: Mark::Discs,
                points: bins.iter().map(|it| (it.0, it.1)).collect(),
                intervals: bins
                    .iter()
                    .map(|&(predicted, observed, pairs)| {
                        let (low, high) = wilson(observed, pairs);
                        (predicted, low, high)
                    })
                    .collect(),
                band: false,
            });
        }
    }
    (!series.is_empty()).then(|| Chart {
        slug: "pair_calibration".to_owned(),
        title: "Calibration on held-out pairs".to_owned(),
        caption:
            "Pairs by how sure the model is of its preference, with 95 % intervals. A model that \
                  can be taken at its word is right as often as it is sure; one below that is too \
                  sure."
                .to_owned(),
        x_label: "predicted probability".to_owned(),
        y_label: "share right".to_owned(),
        x: XAxis::Certainty,
        y: YAxis::Share,
        series,
        below: Vec::new(),
        starts: Vec::new(),
    })
}

fn of_family(family: &Family, variant: &Variant, variants: &[Variant]) -> Option<Chart> {
    let keys = variant.keys(family.prefix).into_iter();
    let mut named: Vec<(Option<u32>, String, String)> = keys
        .filter_map(|key| {
            let name = key.strip_prefix(family.prefix)?.strip_suffix(family.suffix)?.to_owned();
            let number = name.parse().ok();
            (number.is_some() || !family.numbers).then_some((number, name, key))
        })
        .collect();
    if family.numbers {
        named.sort();
    }
    let curves: Vec<(String, Curve)> = named
        .into_iter()
        .filter_map(|(_, name, key)| {
            let curves = variant.curves(&key);
            let zero = curves.iter().flat_map(|it| &it.points).all(|point| point.1 == 0.0);
            let (before, after) = family.label;
            let label = format!("{before}{}{after}", name.replace('_', " "));
            (!(zero && family.drop_zeros)).then_some((label, curves))
        })
        .flat_map(|(label, curves)| curves.into_iter().map(move |it| (label.clone(), it)))
        .collect();
    let starts = starts(std::slice::from_ref(variant), curves.iter().map(|it| &it.1));
    let series: Vec<Series> = curves
        .into_iter()
        .map(|(kind, curve)| {
            let start = start_of(&starts, &curve.stage);
            let first = curve.points.first().map_or(0.0, |point| point.0);
            let origin = family.origin.filter(|origin| origin.0 < first);
            let points = origin.into_iter().chain(curve.points);
            Series {
                group: String::new(),
                kind,
                mark: family.mark,
                points: points.map(|(x, y)| (start + x, y)).collect(),
                intervals: Vec::new(),
                band: false,
            }
        })
        .collect();
    let of = if variants.len() > 1 { format!(", {}", variant.name) } else { String::new() };
    let file_name: String =
        of.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    (!series.is_empty()).then(|| Chart {
        slug: format!("{}{file_name}", family.slug),
        title: format!("{}{of}", family.title),
        caption: family.caption.to_owned(),
        x_label: x_label(&starts),
        y_label: family.y_label.to_owned(),
        x: XAxis::Steps,
        y: family.y,
        series,
        below: Vec::new(),
        starts,
    })
}

#[cfg(test)]
mod tests {
    use super::super::run_folder::Line;
    use super::*;

    fn variant(lines: Vec<Line>) -> Variant {
        Variant {
            name: "main".to_owned(),
            info: serde_json::Map::new(),
            dir: std::path::PathBuf::new(),
            lines,
        }
    }

    #[test]
    fn names_that_are_data_are_ordered_told_apart_and_left_out_where_zero() {
        let line = |step: f64| Line {
            step,
            stage: "rl".to_owned(),
            values: [
                ("eval/pass@16_gain", 0.1),
                ("eval/pass@4_gain", -0.2),
                ("eval/pass@4", 0.5),
                ("phrase/restart_share", 0.0),
                ("phrase/reflection_share", 0.5),
                ("phrase/reflection_per_reply", 1.5),
                ("phrase/reflection_per_reply_right", 2.5),
                ("learner/staleness_mean", 1.0),
                ("learner/staleness_0", 0.0),
                ("learner/staleness_1", 1.0),
            ]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        };
        let charts = charts(&[variant(vec![line(1.0), line(2.0)])]);
        let kinds = |slug: &str| -> Vec<String> {
            let chart = charts.iter().find(|it| it.slug == slug).unwrap();
            chart.series.iter().map(|it| it.kind.clone()).collect()
        };
        assert_eq!(kinds("pass_at_k_gain"), ["k = 4", "k = 16"]);
        let gain = charts.iter().find(|it| it.slug == "pass_at_k_gain").unwrap();
        assert_eq!(gain.series[0].points, [(0.0, 0.0), (1.0, -0.2), (2.0, -0.2)]);
        assert_eq!(kinds("phrases"), ["reflection"]);
        assert_eq!(kinds("phrase_counts"), ["reflection"]);
        assert_eq!(kinds("staleness_histogram"), ["1 behind"]);
    }

    #[test]
    fn shares_of_pairs_are_not_shown_as_shares_of_replies() {
        let line = |stage: &str, step: f64, values: &[(&str, f64)]| Line {
            step,
            stage: stage.to_owned(),
            values: values.iter().map(|(key, value)| ((*key).to_owned(), *value)).collect(),
        };
        let lines = vec![
            line("pretrain", 9.0, &[("train/loss_nats", 2.0)]),
            line("reward", 9.0, &[("train/loss_nats", 0.6), ("train/margin", 0.2)]),
            line(
                "reward",
                9.0,
                &[
                    ("eval/accuracy", 0.9),
                    ("eval/margin", 1.0),
                    ("calibration/bin_2_predicted", 0.65),
                    ("calibration/bin_2_observed", 0.7),
                    ("calibration/bin_2_pairs", 40.0),
                ],
            ),
            line("rl", 9.0, &[("eval/accuracy", 0.5), ("rollout/reward_mean", 0.5)]),
        ];
        let variant = Variant {
            name: "main".to_owned(),
            info: serde_json::Map::new(),
            dir: std::path::PathBuf::new(),
            lines,
        };
        let values = |slug: &str| -> Vec<f64> {
            let variants = std::slice::from_ref(&variant);
            let charts = charts(variants);
            let chart = charts.iter().find(|it| it.slug == slug).expect("a chart");
            chart.series.iter().flat_map(|it| &it.points).map(|it| it.1).collect()
        };
        assert_eq!(values("accuracy"), [0.5]);
        assert_eq!(values("pair_accuracy"), [0.9]);
        assert_eq!(values("pretraining_loss"), [2.0]);
        assert_eq!(values("pair_loss"), [0.6]);
        assert_eq!(values("pair_calibration"), [0.7]);
        let evaluated = evaluations(&variant);
        assert_eq!(evaluated.iter().map(|it| it.stage.as_str()).collect::<Vec<_>>(), ["rl"]);
    }

    #[test]
    fn stages_are_laid_end_to_end_and_marked() {
        let line = |stage: &str, step: f64, value: f64| Line {
            step,
            stage: stage.to_owned(),
            values: [("eval/accuracy".to_owned(), value)].into(),
        };
        let lines = vec![
            line("easy", 0.0, 0.1),
            line("easy", 40.0, 0.5),
            line("hard", 0.0, 0.2),
            line("hard", 20.0, 0.6),
            line("check", 0.0, 0.7),
        ];
        let chart = charts(&[variant(lines)]).remove(0);
        let starts = [(0.0, "easy"), (40.0, "hard"), (60.0, "check")];
        assert_eq!(chart.starts, starts.map(|(at, stage)| (at, stage.to_owned())));
        let points: Vec<_> = chart.series.iter().map(|it| it.points.clone()).collect();
        assert_eq!(
            points,
            [vec![(0.0, 0.1), (40.0, 0.5)], vec![(40.0, 0.2), (60.0, 0.6)], vec![(60.0, 0.7)],]
        );
    }
}
