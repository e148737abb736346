"""Next-token training steps of torch eager and transformers: the peer of `tallow bench train`.

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
args = parser.parse_args()

import torch
from transformers import AutoConfig, AutoModelForCausalLM

torch.set_num_threads(args.threads)
torch.manual_seed(0)
config = AutoConfig.from_pretrained(args.model)
if args.random_init:
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
else:
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32)
model.train()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
ids = torch.randint(5, config.vocab_size - 5, (args.batch, args.seq + 1))


def step():
    logits = model(input_ids=ids[:, :-1]).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


times = []
for _ in range(args.steps + 1):
    started = time.perf_counter()
    step()
    times.append(time.perf_counter() - started)
seconds = statistics.median(times[1:])
print(
    json.dumps(
        {
            "peer": "torch " + torch.__version__,
            "step_s": seconds,
            "tok_s": args.batch * args.seq / seconds,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    )
)
