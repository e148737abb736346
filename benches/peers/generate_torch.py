"""Sampling by transformers' generate: the peer of `tallow bench generate`.

Every reply has exactly --new-tokens tokens. Prints one JSON line; its rate is that of the whole call,
prompts included. Needs: pip install torch transformers
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
parser.add_argument("--batch", type=int, default=64)
parser.add_argument("--prompt-tokens", type=int, default=64)
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", default="cpu")
parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
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
model.to(args.device).eval()
shape = (args.batch, args.prompt_tokens)
ids = torch.randint(5, config.vocab_size - 5, shape, device=args.device)

times = []
for _ in range(4):
    started = time.perf_counter()
    with torch.no_grad():
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            min_new_tokens=args.new_tokens,
            max_new_tokens=args.new_tokens,
            pad_token_id=0,
        ).cpu()
    times.append(time.perf_counter() - started)
seconds = statistics.median(times[1:])
print(
    json.dumps(
        {
            "peer": "torch " + torch.__version__,
            "step_s": seconds,
            "tok_s": args.batch * args.new_tokens / seconds,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    )
)
