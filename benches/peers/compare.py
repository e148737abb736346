#!/usr/bin/env python3
"""Times tallow beside its peers, in turns, and prints the table of ratios that README shows.

    python benches/peers/compare.py --small DIR [--large DIR] [--python PYTHON] [--pairs 5]
    python benches/peers/compare.py --large DIR --device cuda --dtype bf16

--small holds a config.json and a tokenizer of some five million parameters (weights are drawn at
random on both sides), --large a whole model such as SmolLM2-135M. --python has torch, transformers
and TRL. On a GPU the batches are larger, and training is also compared with torch.compile. Each pair runs both sides once, the first of them in turn; ratios are medians over the
pairs, with the smallest and the largest behind them. Nothing else should run meanwhile.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
parser = argparse.ArgumentParser()
parser.add_argument("--small", type=Path)
parser.add_argument("--large", type=Path)
parser.add_argument("--tallow", default="target/release/tallow")
parser.add_argument("--python", default=sys.executable)
parser.add_argument("--pairs", type=int, default=5)
parser.add_argument("--threads", default="2")
parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
parser.add_argument("--only", nargs="*", help="names of rows to run")
args = parser.parse_args()

GRPO, TRAIN, GENERATE = "grpo_trl.py", "train_torch.py", "generate_torch.py"
VERBS = {GRPO: "grpo", TRAIN: "train", GENERATE: "generate"}


def shape(**sizes):
    return [part for key, value in sizes.items() for part in (f"--{key.replace('_', '-')}", str(value))]


def rows():
    if args.device == "cuda":
        yield from rows_of_a_gpu()
        return
    if args.small:
        small = ["--model", str(args.small), "--random-init"]
        yield "grpo-small", GRPO, small + shape(prompts=8, group=8, prompt_tokens=64, new_tokens=64, steps=2)
        yield "train-small", TRAIN, small + shape(batch=16, seq=256, steps=4)
    if args.large:
        large = ["--model", str(args.large)]
        yield "grpo-large", GRPO, large + shape(prompts=2, group=8, prompt_tokens=64, new_tokens=32, steps=1)
        yield "grpo-large-long", GRPO, large + shape(prompts=2, group=8, prompt_tokens=256, new_tokens=32, steps=1)
        yield "train-large", TRAIN, large + shape(batch=4, seq=256, steps=2)


def rows_of_a_gpu():
    large = ["--model", str(args.large)]
    yield "grpo-large", GRPO, large + shape(prompts=8, group=8, prompt_tokens=64, new_tokens=64, steps=4)
    yield "generate-large", GENERATE, large + shape(batch=256, prompt_tokens=128, new_tokens=128)
    train = large + shape(batch=32, seq=1024, steps=8)
    yield "train-large", TRAIN, train
    yield "train-large-compiled", TRAIN, train + ["--compile"]


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


print("| row | what | peer / tallow | smallest, largest | tallow | peer |")
print("| --- | --- | --- | --- | --- | --- |", flush=True)
for name, program, work in rows():
    if args.only and name not in args.only:
        continue
    verb = VERBS[program]
    common = ["--threads", args.threads, "--device", args.device, "--dtype", args.dtype]
    # To compile is the peer's choice.
    ours = [args.tallow, "bench", verb, *[it for it in work if it != "--compile"], *common]
    peer = [args.python, str(HERE / program), *work, *common]
    pairs = []
    for pair in range(args.pairs):
        first_is_ours = pair % 2 == 0
        one = run(ours if first_is_ours else peer)
        other = run(peer if first_is_ours else ours)
        pairs.append((one, other) if first_is_ours else (other, one))
    kinds = ["step_s"] + (["generate_s", "update_s"] if verb == "grpo" else []) + ["peak_rss_mb"]
    for kind in kinds:
        ratios = sorted(theirs[kind] / mine[kind] for mine, theirs in pairs)
        mine = statistics.median(it[kind] for it, _ in pairs)
        theirs = statistics.median(it[kind] for _, it in pairs)
        print(
            f"| {name} | {kind} | {statistics.median(ratios):.2f} | {ratios[0]:.2f}, {ratios[-1]:.2f} "
            f"| {mine:.2f} | {theirs:.2f} |",
            flush=True,
        )
