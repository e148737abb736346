//! A made-up run folder with the shape of the emergence experiment, for tests of the report.
//!
//! The curves are formulas and a small generator of noise; no number here was measured.

use std::{fs, path::Path};

use serde_json::{Value, json};

/// A reply that attacks the page that shows it.
pub(super) const HOSTILE_REPLY: &str = "<img src=x onerror=alert(1)><script>alert(2)</script>";

/// Steps of RL.
const STEPS: u64 = 60;

/// Noise in [-1, 1], the same on every machine (Knuth's MMIX generator).
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (self.0 >> 11) as f64 / (1u64 << 52) as f64 - 1.0
    }
}

/// Writes an experiment of three variants into `dir`.
pub(super) fn write_emergence(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    let variants = ["main", "random_reward", "no_chains"];
    let info = json!({
        "tallow": "0.1.0", "name": "emergence",
        "question": "Does RL on the final answer alone make a tiny model think in longer chains?",
        "command": ["tallow", "run", "experiments/emergence"], "seed": 0, "device": "cpu",
        "threads": 2, "started": "2026-11-23T20:00:00Z", "ended": "2026-11-23T20:04:10Z",
        "status": "done", "variants": variants,
        "stages": [{"name": "pretrain", "kind": "pretrain"}, {"name": "rl", "kind": "rl"}],
    });
    fs::write(dir.join("run.json"), info.to_string()).unwrap();
    let config = "seed = 0\n\n[[stage]]\nkind = \"rl\"\nsteps = 60 # <b>not bold</b>\n";
    fs::write(dir.join("config.resolved.toml"), config).unwrap();
    for (seed, name) in variants.into_iter().enumerate() {
        write_variant(&dir.join("variants").join(name), name, seed as u64);
    }
}

fn write_variant(dir: &Path, name: &str, seed: u64) {
    fs::create_dir_all(dir.join("samples/rl")).unwrap();
    let role = if name == "main" { "main" } else { "control" };
    let info = json!({"name": name, "status": "done", "role": role, "seed": 0});
    fs::write(dir.join("run.json"), info.to_string()).unwrap();

    let mut noise = Noise(seed + 7);
    let mut rows = Vec::new();
    for step in 1..=800u64 {
        let loss = 0.45 + 2.2 * (-(step as f64) / 90.0).exp() + 0.05 * noise.next();
        rows.push(json!({"step": step, "stage": "pretrain", "time_s": step as f64 * 0.05,
            "train/loss_nats": loss, "train/bits_per_byte": loss / std::f64::consts::LN_2,
            "train/tokens_per_second": 26_000.0 + 1500.0 * noise.next(),
            "train/learning_rate": 2e-3}));
    }
    for step in 0..=STEPS {
        // How far the long replies have taken over.
        let grown = 1.0 / (1.0 + (-(step as f64 - 7.0) / 2.2).exp());
        let (accuracy, tokens) = match name {
            "main" => (0.2 + 0.785 * grown, 4.9 + 14.1 * grown),
            "random_reward" => (0.21 - 0.107 * grown, 4.9 - 1.8 * grown),
            _ => (0.101, 3.0),
        };
        if step % 15 == 0 {
            let mut row = json!({"step": step, "stage": "rl", "time_s": 40.0 + step as f64 * 0.3,
                "eval/accuracy": accuracy, "eval/accuracy_low": accuracy - 0.012,
                "eval/accuracy_high": accuracy + 0.012, "eval/reply_tokens_mean": tokens,
                "eval/greedy_accuracy": if name == "main" { 0.1 + 0.9 * grown } else { 0.1 },
                "eval/reply_tokens_right": tokens.max(if name == "no_chains" { 3.0 } else { 12.1 }),
                "eval/reply_tokens_wrong": tokens.min(3.0 + 16.0 * (grown - 0.05).max(0.0)),
                "eval/truncated_share": 0.002});
            for k in [1u32, 2, 4, 8, 16] {
                let pass = 1.0 - (1.0 - accuracy).powi(k as i32);
                row[format!("eval/pass@{k}")] = json!(pass);
                if step > 0 {
                    let first: f64 = if name == "main" { 0.23 } else { 0.15 };
                    row[format!("eval/pass@{k}_gain")] =
                        json!(pass - (1.0 - (1.0 - first).powi(k as i32)));
                }
                row[format!("eval/pass@{k}_low")] = json!((pass - 0.02).max(0.0));
                row[format!("eval/pass@{k}_high")] = json!((pass + 0.02).min(1.0));
            }
            rows.push(row);
        }
        if step == STEPS {
            break;
        }
        let drawn = (accuracy + 0.03 * noise.next()).clamp(0.0, 1.0);
        let mut row = json!({"step": step, "stage": "rl", "time_s": 40.0 + step as f64 * 0.3,
            "rollout/accuracy": drawn, "rollout/reward_mean": drawn,
            "rollout/reward_std": (drawn * (1.0 - drawn)).sqrt(),
            "rollout/reply_tokens_mean": tokens + 0.4 * noise.next(),
            "rollout/reply_tokens_wrong": 3.0 + (tokens - 4.9).max(0.0) * 0.9 + 0.6 * noise.next(),
            "rollout/truncated_share": 0.004 + 0.004 * noise.next(),
            "rollout/groups_zero_variance": (drawn * drawn).min(1.0),
            "rollout/tokens_per_second": 9000.0 + 900.0 * noise.next(),
            "learner/entropy_nats": 0.01 + 0.46 * (1.0 - grown) + 0.01 * noise.next().abs(),
            "learner/kl_nats": 0.4 * grown + 0.02 * noise.next(),
            "learner/clipped_share": 0.002 * (1.0 + noise.next()),
            "learner/sampler_mismatch_nats": 4e-8 * (2.0 + noise.next()),
            "learner/grad_norm": 0.3 * (1.2 + noise.next()),
            "phrase/recheck_per_reply": 0.15 * grown + 0.01 * noise.next().abs(),
            "phrase/backtracking_per_reply": 0.03 + 0.01 * noise.next(),
            "rollout/answer_changes_share": 0.08 * grown + 0.01 * noise.next().abs(),
            "rollout/accuracy_changed": (drawn - 0.1 + 0.05 * noise.next()).clamp(0.0, 1.0),
            "rollout/accuracy_unchanged": drawn,
            "phrase/recheck_share": 0.1 * grown + 0.01 * noise.next().abs(),
            "phrase/backtracking_share": 0.02 + 0.01 * noise.next()});
        if name != "no_chains" {
            row["rollout/reply_tokens_right"] = json!(12.1 + 6.9 * grown + 0.5 * noise.next());
        }
        rows.push(row);
        if step % 10 == 0 {
            write_samples(dir, step, tokens > 10.0);
        }
    }
    let mut metrics: String = rows.iter().map(|row| format!("{row}\n")).collect();
    metrics.push_str("{\"step\": 60, \"sta");
    fs::write(dir.join("metrics.jsonl"), metrics).unwrap();
}

fn write_samples(dir: &Path, step: u64, long: bool) {
    let mut rows = Vec::new();
    for member in 0..8u64 {
        let right = member % 2 == 0;
        let reply = match (member, long || right) {
            (1, _) => HOSTILE_REPLY,
            (_, true) if right => "9954152707968437=7\n",
            (_, true) => "9954152707968438=8\n",
            (_, false) => "=4\n",
        };
        rows.push(rollout(step, member, reply, right));
    }
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let packed = zstd::encode_all(text.as_bytes(), 3).unwrap();
    fs::write(dir.join(format!("samples/rl/step_{step:06}.jsonl.zst")), packed).unwrap();
}

fn rollout(step: u64, member: u64, reply: &str, right: bool) -> Value {
    let mut noise = Noise(step * 31 + member);
    // The hostile reply is one token, so that nothing but escaping keeps it from being markup.
    let token_texts: Vec<String> = match reply {
        HOSTILE_REPLY => vec![reply.to_owned()],
        _ => reply.chars().map(String::from).collect(),
    };
    let logprobs: Vec<f64> =
        token_texts.iter().map(|_| -2.5 * noise.next().max(0.0).powi(3)).collect();
    let advantage = if right { 0.97 } else { -0.97 };
    json!({
        "stage": "rl", "step": step, "task": {"split": "train", "index": member}, "member": member,
        "prompt": format!("9+5+1+2+0+9+8+{member}?"),
        "turns": [{"role": "assistant", "text": reply, "ids": [],
            "advantages": vec![advantage; token_texts.len()],
            "token_texts": token_texts, "logprobs": logprobs}],
        "reward": f64::from(u8::from(right)), "outcome": if right { "correct" } else { "incorrect" },
        "parts": {"exact": f64::from(u8::from(right))}, "stop": "finished", "reason": null,
        "reply_tokens": reply.chars().count(), "policy_version": step,
    })
}
