#!/usr/bin/env python3
"""Times the `math` verifier beside Math-Verify on one file of cases, in turns.

    python benches/peers/verify_math.py --cases cases.jsonl [--tallow PATH] [--pairs 3] [--sample 400]

Needs math-verify in the Python that runs it (figures of ours: 0.9.0). Cases are those of `tallow verify`
(id, gold, pred, gold_form, pred_form, options), with `expected` where the truth is known. Math-Verify
judges an evenly spread sample of the rows, because it does some hundred a second; tallow judges the whole
file, on one thread. Accuracy is that of both on the sample. A bare gold is put in $...$ and a bare answer
in \\boxed{...} for Math-Verify; its time is that of both parses and the comparison, with its own limit of
five seconds each, and a row that met it counts once under timeouts. Each of its passes starts with empty
caches and compiled patterns. Each pair runs both sides, the first of them in turn; ratios are medians over
the pairs, with the smallest and the largest behind them. Nothing else should run meanwhile.
"""

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify
from sympy.core.cache import clear_cache

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--cases", type=Path, required=True)
parser.add_argument("--tallow", default="target/release/tallow")
parser.add_argument("--pairs", type=int, default=3)
parser.add_argument("--sample", type=int, default=400)
parser.add_argument("--json", action="store_true")
args = parser.parse_args()
if args.pairs < 1 or args.sample < 1:
    parser.error("--pairs and --sample are at least 1")

rows = [json.loads(line) for line in args.cases.open(encoding="utf-8") if line.strip()]
if not rows:
    parser.error("no cases")
count = min(args.sample, len(rows))
sample = [rows[at * len(rows) // count] for at in range(count)]


class Timeouts(logging.Handler):
    """Math-Verify only logs that it gave up, and goes on with no answer or with false."""

    seen = 0

    def emit(self, record):
        self.seen += record.getMessage().startswith("Timeout during")


timeouts = Timeouts()
logging.getLogger("math_verify").addHandler(timeouts)
logging.getLogger("math_verify").propagate = False


def judge_peer(row):
    options = row.get("options") or {}
    kinds = options.get("match_types", ["latex", "expr"])
    configs = []
    if "latex" in kinds:
        priority = options.get("boxed_match_priority")
        configs.append(LatexExtractionConfig() if priority is None else LatexExtractionConfig(boxed_match_priority=priority))
    if "expr" in kinds:
        configs.append(ExprExtractionConfig())
    gold = f"${row['gold']}$" if row.get("gold_form", "answer") == "answer" else row["gold"]
    answer = f"\\boxed{{{row['pred']}}}" if row.get("pred_form") == "answer" else row["pred"]
    extra = {key: options[key] for key in ("float_rounding", "strict", "allow_set_relation_comp") if key in options}
    return bool(verify(parse(gold, configs), parse(answer, configs), **extra))


def peer():
    clear_cache()
    judge_peer({"gold": "\\frac{1}{2}", "pred": "0.5", "pred_form": "answer"})
    times, verdicts, timed_out, errors = [], {}, 0, 0
    for row in sample:
        before = timeouts.seen
        start = time.perf_counter()
        try:
            verdicts[row["id"]] = judge_peer(row)
        except Exception:
            verdicts[row["id"]] = None
            errors += 1
        times.append((time.perf_counter() - start) * 1e6)
        timed_out += timeouts.seen > before
    times.sort()
    at = lambda share: times[int((len(times) - 1) * share)]
    return {
        "verdicts_s": 1e6 * len(times) / sum(times),
        "p50_us": at(0.5),
        "p99_us": at(0.99),
        "max_us": at(1.0),
        "timeouts": timed_out,
        "errors": errors,
    }, verdicts


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return done.stdout


def own():
    command = [args.tallow, "bench", "verify", "math", "--cases", str(args.cases)]
    return json.loads(run([*command, "--threads", "1", "--repeat", "1", "--json"]).strip().splitlines()[-1])


def own_verdicts():
    with tempfile.TemporaryDirectory() as folder:
        cases, out = Path(folder) / "cases.jsonl", Path(folder) / "out.jsonl"
        cases.write_text("".join(json.dumps(row) + "\n" for row in sample), encoding="utf-8")
        run([args.tallow, "verify", "math", "--cases", str(cases), "--out", str(out), "-q"])
        return {row["id"]: row["verdict"] for row in map(json.loads, out.open(encoding="utf-8"))}


known = [row for row in sample if row.get("expected") is not None]


def accuracy(verdicts):
    """The share of right verdicts; none at all is a wrong one."""
    if not known:
        return None
    return sum(verdicts.get(row["id"]) is row["expected"] for row in known) / len(known)


pairs = []
for pair in range(args.pairs):
    if pair % 2 == 0:
        ours = own()
        theirs, verdicts = peer()
    else:
        theirs, verdicts = peer()
        ours = own()
    pairs.append((ours, theirs))
    print(f"pair {pair + 1}: tallow {ours['verdicts_s']:.0f}/s, Math-Verify {theirs['verdicts_s']:.1f}/s", file=sys.stderr)

KEYS = ("verdicts_s", "p50_us", "p99_us", "max_us")
ratios = [ours["verdicts_s"] / theirs["verdicts_s"] for ours, theirs in pairs]
middle = lambda side, key: statistics.median(pair[side][key] for pair in pairs)
result = {
    "rows": len(rows),
    "sample": len(sample),
    "pairs": len(pairs),
    "ratio": statistics.median(ratios),
    "ratio_range": [min(ratios), max(ratios)],
    "tallow": {key: middle(0, key) for key in KEYS},
    "math_verify": {key: middle(1, key) for key in (*KEYS, "timeouts", "errors")},
    "accuracy": {"rows": len(known), "tallow": accuracy(own_verdicts()), "math_verify": accuracy(verdicts)},
}
if args.json:
    print(json.dumps(result))
else:
    print("| | verdicts/s | p50 us | p99 us | slowest us | accuracy |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name in ("tallow", "math_verify"):
        it, right = result[name], result["accuracy"][name]
        right = "-" if right is None else f"{right:.4f}"
        print(f"| {name} | {it['verdicts_s']:.1f} | {it['p50_us']:.1f} | {it['p99_us']:.1f} | {it['max_us']:.1f} | {right} |")
    low, high = result["ratio_range"]
    peer_result = result["math_verify"]
    print(f"tallow / Math-Verify in verdicts/s: {result['ratio']:.0f} ({low:.0f} to {high:.0f}), {len(pairs)} pairs")
    print(
        f"Math-Verify on a sample of {len(sample)} of {len(rows)} rows: {peer_result['timeouts']:g} timed out, "
        f"{peer_result['errors']:g} raised; tallow on all. Accuracy of both on the {len(known)} rows of the sample with a known truth"
    )
