#!/usr/bin/env python3
"""Times the `math` verifier beside Math-Verify on one file of cases, in turns.

    python benches/peers/verify_math.py --cases cases.jsonl [--tallow PATH] [--pairs 3] [--sample 400]

Needs math-verify in the Python that runs it (figures of ours: 0.9.0). Cases are those of `tallow verify`
(id, gold, pred, gold_form, pred_form, options), with `expected` where the truth is known. Math-Verify
judges an evenly spread sample of the rows, because it does some hundred a second, and other rows in each
pair, because sympy remembers what it has simplified; tallow judges the whole file. A bare gold is put in $...$ and a bare answer in \\boxed{...} for it. Each pair runs both sides, the
first of them in turn; ratios are medians over the pairs. Nothing else should run meanwhile.
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

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--cases", type=Path, required=True)
parser.add_argument("--tallow", default="target/release/tallow")
parser.add_argument("--pairs", type=int, default=3)
parser.add_argument("--sample", type=int, default=400)
parser.add_argument("--json", action="store_true")
args = parser.parse_args()

logging.disable(logging.CRITICAL)  # it logs whole hostile replies
rows = [json.loads(line) for line in args.cases.open(encoding="utf-8") if line.strip()]
step = max(1, -(-len(rows) // args.sample))


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


def peer(sample, verdicts):
    times = []
    for row in sample:
        start = time.perf_counter()
        try:
            verdicts[row["id"]] = judge_peer(row)
        except Exception:
            verdicts[row["id"]] = False
        times.append((time.perf_counter() - start) * 1e6)
    times.sort()
    at = lambda share: times[int((len(times) - 1) * share)]
    return {
        "verdicts_s": 1e6 * len(times) / sum(times),
        "p50_us": at(0.5),
        "p99_us": at(0.99),
        "max_us": at(1.0),
    }


def own(path, repeat=1):
    command = [args.tallow, "bench", "verify", "math", "--cases", str(path), "--threads", "1", "--repeat", str(repeat), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def own_verdicts():
    with tempfile.TemporaryDirectory() as folder:
        cases, out = Path(folder) / "cases.jsonl", Path(folder) / "out.jsonl"
        cases.write_text("".join(json.dumps(row) + "\n" for row in judged), encoding="utf-8")
        command = [args.tallow, "verify", "math", "--cases", str(cases), "--out", str(out), "-q"]
        subprocess.run(command, check=True)
        return {row["id"]: bool(row["verdict"]) for row in map(json.loads, out.open())}


def accuracy(verdicts):
    known = [row for row in judged if row.get("expected") is not None]
    return sum(verdicts[row["id"]] == row["expected"] for row in known) / max(1, len(known))


pairs, judged, verdicts = [], [], {}
for pair in range(args.pairs):
    sample = rows[pair % step :: step]
    judged += sample if pair < step else []
    if pair % 2:
        ours = own(args.cases)
        theirs = peer(sample, verdicts)
    else:
        theirs = peer(sample, verdicts)
        ours = own(args.cases)
    pairs.append((ours, theirs))
    print(f"pair {pair + 1}: tallow {ours['verdicts_s']:.0f}/s, Math-Verify {theirs['verdicts_s']:.0f}/s", file=sys.stderr)

ratios = [ours["verdicts_s"] / theirs["verdicts_s"] for ours, theirs in pairs]
middle = lambda side, key: statistics.median(pair[side][key] for pair in pairs)
result = {
    "rows": len(rows),
    "sample": len(judged),
    "ratio": statistics.median(ratios),
    "ratio_range": [min(ratios), max(ratios)],
    "tallow": {key: middle(0, key) for key in ("verdicts_s", "p50_us", "p99_us", "max_us")},
    "math_verify": {key: middle(1, key) for key in ("verdicts_s", "p50_us", "p99_us", "max_us")},
    "accuracy": {"tallow": accuracy(own_verdicts()), "math_verify": accuracy(verdicts)},
}
if args.json:
    print(json.dumps(result))
else:
    print(f"{'':14}{'verdicts/s':>12}{'p50 us':>10}{'p99 us':>10}{'slowest us':>12}{'accuracy':>10}")
    for name in ("tallow", "math_verify"):
        it = result[name]
        print(f"{name:14}{it['verdicts_s']:12.0f}{it['p50_us']:10.1f}{it['p99_us']:10.1f}{it['max_us']:12.1f}{result['accuracy'][name]:10.4f}")
    low, high = result["ratio_range"]
    print(f"ratio {result['ratio']:.0f} ({low:.0f} to {high:.0f}), {len(pairs)} pairs; Math-Verify on {len(judged)} of {len(rows)} rows")
