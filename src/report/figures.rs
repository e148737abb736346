//! Which plots a report shows, and from which metrics. A plot without data is left out.
//!
//! Every stage counts its steps from the start. Where several stages of a run have a metric, its
//! plot lays them end to end and marks where each begins.

use crate::evaluation::wilson;

use super::{
    chart::{Chart, Mark, Series, XAxis, YAxis},
    run_folder::{Curve, Variant},
    verdict::evaluations,
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
    let phrases = ("phrase/", "_share", "phrases", "Phrases", "share of replies");
    let parts = ("part/", "", "reward_parts", "Parts of the reward", "mean value");
    for names in [phrases, parts] {
        charts
            .extend(variants.iter().filter_map(|variant| by_name(variant, variants.len(), names)));
    }
    charts
}

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
    let series: Vec<Series> = curves
        .into_iter()
        .map(|(kind, variant, curve)| {
            let start = start_of(&starts, &curve.stage);
            let intervals = intervals(variant, kind.key, &curve.stage).into_iter();
            Series {
                group: variant.group().to_owned(),
                kind: kind.label.to_owned(),
                mark: kind.mark,
                points: curve.points.into_iter().map(|(x, y)| (start + x, y)).collect(),
                intervals: intervals.map(|(x, low, high)| (start + x, low, high)).collect(),
            }
        })
        .collect();
    let values = || series.iter().flat_map(|series| &series.points);
    // A metric that is zero throughout has nothing to show on a log axis.
    if values().next().is_none() || spec.y == YAxis::Log && !values().any(|&(_, y)| y > 0.0) {
        return None;
    }
    Some(Chart {
        slug: spec.slug.to_owned(),
        title: spec.title.to_owned(),
        caption: spec.caption.to_owned(),
        x_label: x_label(&starts),
        y_label: spec.y_label.to_owned(),
        x: XAxis::Steps,
        y: spec.y,
        series,
        starts,
    })
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

/// pass@k before the first and after the last RL of each variant.
fn pass_at_k(variants: &[Variant]) -> Option<Chart> {
    let mut series = Vec::new();
    for variant in variants {
        let trained: Vec<_> = evaluations(variant).into_iter().filter(|it| it.of_rl).collect();
        let mut ends: Vec<_> = trained.iter().flat_map(|it| &it.evaluations).collect();
        let (Some(after), before) = (ends.pop(), ends.first()) else { continue };
        for (label, evaluation) in [("after RL", Some(after)), ("before RL", before.copied())] {
            let Some(evaluation) = evaluation.filter(|it| !it.pass.is_empty()) else { continue };
            let pass = || evaluation.pass.iter().map(|(&k, estimate)| (f64::from(k), estimate));
            let bounds =
                pass().filter_map(|(k, pass)| Some((k, pass.interval?.0, pass.interval?.1)));
            series.push(Series {
                group: variant.group().to_owned(),
                kind: label.to_owned(),
                mark: Mark::Discs,
                points: pass().map(|(k, pass)| (k, pass.value)).collect(),
                intervals: bounds.collect(),
            });
        }
    }
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
        starts: Vec::new(),
    })
}

/// One plot for a variant of all keys with a prefix; names of the keys are data.
fn by_name(
    variant: &Variant,
    variants: usize,
    (prefix, suffix, slug, title, y_label): (&str, &str, &str, &str, &str),
) -> Option<Chart> {
    let curves: Vec<(String, Curve)> = variant
        .keys(prefix)
        .into_iter()
        .flat_map(|key| {
            let name = key.strip_prefix(prefix).unwrap_or(&key);
            let name = name.strip_suffix(suffix).unwrap_or(name).replace('_', " ");
            variant.curves(&key).into_iter().map(move |curve| (name.clone(), curve))
        })
        .collect();
    let starts = starts(std::slice::from_ref(variant), curves.iter().map(|it| &it.1));
    let series: Vec<Series> = curves
        .into_iter()
        .map(|(kind, curve)| {
            let start = start_of(&starts, &curve.stage);
            Series {
                group: String::new(),
                kind,
                mark: Mark::Noisy,
                points: curve.points.into_iter().map(|(x, y)| (start + x, y)).collect(),
                intervals: Vec::new(),
            }
        })
        .collect();
    let of = if variants > 1 { format!(", {}", variant.name) } else { String::new() };
    let file_name: String =
        of.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    (!series.is_empty()).then(|| Chart {
        slug: format!("{slug}{file_name}"),
        title: format!("{title}{of}"),
        caption: "In training batches.".to_owned(),
        x_label: x_label(&starts),
        y_label: y_label.to_owned(),
        x: XAxis::Steps,
        y: YAxis::FromZero,
        series,
        starts,
    })
}

#[cfg(test)]
mod tests {
    use super::super::run_folder::Line;
    use super::*;

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
            let charts = charts(std::slice::from_ref(&variant));
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
        let variant = Variant {
            name: "main".to_owned(),
            info: serde_json::Map::new(),
            dir: std::path::PathBuf::new(),
            lines,
        };
        let chart = charts(&[variant]).remove(0);
        let starts = [(0.0, "easy"), (40.0, "hard"), (60.0, "check")];
        assert_eq!(chart.starts, starts.map(|(at, stage)| (at, stage.to_owned())));
        let points: Vec<_> = chart.series.iter().map(|it| it.points.clone()).collect();
        assert_eq!(
            points,
            [vec![(0.0, 0.1), (40.0, 0.5)], vec![(40.0, 0.2), (60.0, 0.6)], vec![(60.0, 0.7)],]
        );
    }
}
