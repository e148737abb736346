"""Whole GRPO steps of TRL on a Hugging Face folder: the peer of `tallow bench grpo`.

Every reply has exactly --new-tokens tokens, so both sides do the same work. Prints one JSON line.
Needs: pip install torch transformers trl datasets accelerate
"""

import argparse
import json
import os
import resource
import statistics
import tempfile
import time

os.environ["HF_HUB_OFFLINE"] = "1"

parser = argparse.ArgumentParser()
parser.add_argument("--model", required=True)
parser.add_argument("--random-init", action="store_true")
parser.add_argument("--prompts", type=int, default=8)
parser.add_argument("--group", type=int, default=8)
parser.add_argument("--prompt-tokens", type=int, default=64)
parser.add_argument("--new-tokens", type=int, default=64)
parser.add_argument("--steps", type=int, default=2, help="steps counted, after one to warm up")
parser.add_argument("--threads", type=int, default=2)
parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
parser.add_argument("--dtype", default="f32", choices=["f32", "bf16"])
args = parser.parse_args()

import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

torch.set_num_threads(args.threads)
torch.manual_seed(0)
dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[args.dtype]
tokenizer = AutoTokenizer.from_pretrained(args.model)
tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
if args.random_init:
    config = AutoConfig.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_config(config, dtype=dtype)
else:
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=dtype)

# TRL takes texts: random ids, decoded, and cut where they encode to more than was asked for.
draws = torch.Generator().manual_seed(0)
texts = []
for _ in range(args.prompts * (args.steps + 2)):
    ids = torch.randint(5, min(len(tokenizer), 40000) - 5, (args.prompt_tokens,), generator=draws)
    again = tokenizer(tokenizer.decode(ids.tolist()), add_special_tokens=False)["input_ids"]
    texts.append(tokenizer.decode(again[: args.prompt_tokens]))

steps, generating = [], 0.0


class Clock(TrainerCallback):
    def on_step_begin(self, *_, **__):
        global generating
        self.started, generating = time.perf_counter(), 0.0

    def on_step_end(self, *_, **__):
        steps.append((time.perf_counter() - self.started, generating))


with tempfile.TemporaryDirectory() as folder:
    config = GRPOConfig(
        output_dir=folder,
        per_device_train_batch_size=args.prompts * args.group,
        num_generations=args.group,
        max_completion_length=args.new_tokens,
        generation_kwargs={"min_new_tokens": args.new_tokens},
        max_steps=args.steps + 1,
        learning_rate=1e-6,
        beta=0.0,
        temperature=1.0,
        bf16=args.dtype == "bf16",
        gradient_checkpointing=False,
        use_cpu=args.device == "cpu",
        report_to=[],
        save_strategy="no",
        logging_steps=1000,
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        args=config,
        processing_class=tokenizer,
        # Some number that differs between replies, so that every group has something to teach.
        reward_funcs=lambda completions, **_: [float(len(set(it)) % 7) for it in completions],
        train_dataset=Dataset.from_dict({"prompt": texts}),
        callbacks=[Clock()],
    )
    generate = trainer.model.generate

    def timed(*positional, **named):
        global generating
        started = time.perf_counter()
        result = generate(*positional, **named)
        generating += time.perf_counter() - started
        return result

    trainer.model.generate = timed
    trainer.train()

counted = steps[1:]
whole = statistics.median(step for step, _ in counted)
sampling = statistics.median(part for _, part in counted)
print(
    json.dumps(
        {
            "peer": "trl",
            "step_s": whole,
            "generate_s": sampling,
            "update_s": whole - sampling,
            "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        }
    )
)
