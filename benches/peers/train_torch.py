"""Next-token training steps of torch and transformers: the peer of `tallow bench train`.

Prints one JSON line. Needs: pip install torch transformers
"""

import argparse
import json
import os
import resource
import statistics
import time

os.environ["HF_HUB_OFFLINE"] = "1"

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--random-init", action="store_true")
parser.add_argument("--batch", type=int, default=16)
parser.add_argument("--seq", type=int, default=256)
parser.add_argument("--steps", type=int, default=4, help="steps counted, after one to warm up")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
parser.add_argument("--compile", action="store_true", help="torch.compile instead of eager mode")
args = parser.parse_args()

import torch
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(args.threads)
torch.manual_seed(0)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
config = AutoConfig.from_pretrained(args.model)
if args.random_init:
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
else:
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)
model.to(args.device).train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
ids = torch.randint(5, config.vocab_size - 5, (args.batch, args.seq + 1), device=args.device)
run = torch.compile(model) if args.compile else model


def step():
    logits = run(input_ids=ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    if args.device != "cpu":
        torch.cuda.synchronize()


times = []
for _ in range(args.steps + 1):
    started = time.perf_counter()
    step()
    times.append(time.perf_counter() - started)
seconds = statistics.median(times[1:])
print(
    json.dumps(
        {
            "peer": "torch " + torch.__version__ + (" compiled" if args.compile else ""),
            "step_s": seconds,
            "tok_s": args.batch * args.seq / seconds,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    )
)
